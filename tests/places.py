"""The places in which synchronous code may be when it calls `run` and its like: one axis for many tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal import WorkerThread, patch_asyncio, run
from ipyportal.concurrency import can_suspend
from ipyportal.concurrency.suspension.loops import turns_possible

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]
else:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))  # the first makes pipes that the process keeps

__all__ = [
    "PLACES",
    "SUSPENDED",
    "every_place",
    "in_a_call",
    "in_a_callback",
    "in_a_task",
    "in_a_task_that_blocks_its_loop",
    "in_main",
]


def in_main(fn: Callable[[], Any]) -> Any:
    return fn()


def in_a_thread(fn: Callable[[], Any]) -> Any:
    return run(fn, on="thread")


def in_a_worker(fn: Callable[[], Any]) -> Any:
    with WorkerThread() as worker:
        return run(fn, on=worker)


def in_a_call(fn: Callable[[], Any]) -> Any:
    """In synchronous code of a call on the loop thread."""

    async def call() -> Any:
        assert can_suspend()
        return fn()

    return run(call)


class _Loop:
    """Work of a loop that shows that the loop goes on, and that the place leaves nothing behind."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ticks = 0

    async def _tick(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> _Loop:
        assert can_suspend()
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._ticking.cancel()
        await asyncio.wait([self._ticking])
        await asyncio.sleep(0)
        assert "_run_once" not in vars(self.loop)


async def _in_a_task(fn: Callable[[], Any]) -> Any:
    async with _Loop():
        task = asyncio.current_task()
        assert task is not None
        try:
            return fn()
        finally:
            assert asyncio.current_task() is task
            assert task.cancelling() == 0
            # A cancel that was told is not told again.
            await asyncio.sleep(0)


async def _in_a_child_of_gather(fn: Callable[[], Any]) -> Any:
    async def child() -> Any:
        return fn()

    async with _Loop():
        return (await asyncio.gather(child(), asyncio.sleep(0)))[0]


async def _in_a_callback(fn: Callable[[], Any], delay: float | None = None) -> Any:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def callback() -> None:
        try:
            outcome.set_result(fn())
        except BaseException as exc:  # noqa: BLE001 - it is raised where the test is
            outcome.set_exception(exc)

    async with _Loop():
        if delay is None:
            loop.call_soon(callback)
        else:
            loop.call_later(delay, callback)
        return await outcome


async def _in_a_timer(fn: Callable[[], Any]) -> Any:
    return await _in_a_callback(fn, 0.001)


def in_a_task(fn: Callable[[], Any]) -> Any:
    return asyncio.run(_in_a_task(fn))


def in_a_child_of_gather(fn: Callable[[], Any]) -> Any:
    return asyncio.run(_in_a_child_of_gather(fn))


def in_a_callback(fn: Callable[[], Any]) -> Any:
    return asyncio.run(_in_a_callback(fn))


def in_a_timer(fn: Callable[[], Any]) -> Any:
    return asyncio.run(_in_a_timer(fn))


def in_a_task_of_the_loop_thread(fn: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await asyncio.create_task(_in_a_task(fn))

    return run(main)


def in_a_child_of_gather_on_the_loop_thread(fn: Callable[[], Any]) -> Any:
    return run(_in_a_child_of_gather, fn)


def in_a_callback_of_the_loop_thread(fn: Callable[[], Any]) -> Any:
    return run(_in_a_callback, fn)


def patched(place: Callable[..., Any]) -> Callable[..., Any]:
    """`place`, with asyncio patched."""

    def in_place(fn: Callable[[], Any]) -> Any:
        with patch_asyncio():
            return place(fn)

    in_place.__name__ = f"{place.__name__}_patched"
    return in_place


def in_a_task_that_blocks_its_loop(fn: Callable[[], Any]) -> Any:
    """On uvloop, whose tasks cannot be suspended."""

    async def main() -> Any:
        assert not can_suspend()
        return fn()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


_suspended = [
    in_a_task,
    in_a_child_of_gather,
    in_a_callback,
    in_a_timer,
    in_a_task_of_the_loop_thread,
    in_a_child_of_gather_on_the_loop_thread,
    in_a_callback_of_the_loop_thread,
]

SUSPENDED: list[Any] = []
"""Where a caller is suspended by turns on demand, with asyncio as it is, and patched."""
if turns_possible():
    SUSPENDED += [*_suspended, *map(patched, _suspended)]
PLACES: list[Any] = [in_main, in_a_thread, in_a_worker, in_a_call, *SUSPENDED]
if turns_possible():
    PLACES.append(patched(in_a_call))
if uvloop is not None:
    blocks = pytest.mark.filterwarnings("ignore:run.. blocks the event loop")
    PLACES.append(pytest.param(in_a_task_that_blocks_its_loop, marks=blocks))

every_place = pytest.mark.parametrize("place", PLACES)
