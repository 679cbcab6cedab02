"""Where suspended code stands."""

from __future__ import annotations

import asyncio
import gc
import signal
from types import FrameType

import pytest

from ipyportal import run
from ipyportal.concurrency import EventLoopThread, suspended_stacks
from ipyportal.concurrency.calls import Call
from ipyportal.concurrency.greenlets import greenlets_available, why_not_suspended
from tests.concurrency.helpers import until

pytestmark = pytest.mark.skipif(not greenlets_available(), reason=f"nothing can be suspended: {why_not_suspended()}")


async def innermost(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await innermost(event)


def helper(event: asyncio.Event) -> None:
    run(outer(event))


def names() -> list[list[str]]:
    gc.collect()  # of what was suspended before
    return [[frame.name for frame in stack] for stack in suspended_stacks()]


def test_callers_in_tasks_and_callbacks_are_shown_with_what_they_wait_for() -> None:
    found: list[list[str]] = []

    async def task(event: asyncio.Event) -> None:
        helper(event)

    async def main() -> None:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_soon(helper, event)
        waits = loop.create_task(task(event))
        await asyncio.sleep(0.05)
        found.extend(names())
        event.set()
        await waits
        await asyncio.sleep(0)

    asyncio.run(main())
    below = ["outer", "innermost", "wait"]
    assert sorted(found) == [["helper", *below], ["task", "helper", *below]]
    assert names() == []


def test_a_wait_within_a_wait_is_one_stack(loop_thread: EventLoopThread) -> None:
    begun = []

    async def middle(event: asyncio.Event) -> None:
        begun.append(event)
        helper(event)

    def outermost() -> None:
        run(middle(asyncio.Event()))

    call = loop_thread.submit(Call.new(outermost))
    until(lambda: begun)
    until(names)
    assert names() == [["outermost", "middle", "helper", "outer", "innermost", "wait"]]
    call.cancel()
    until(call.done)
    until(lambda: not names())


def test_code_that_waits_for_nothing_is_not_shown() -> None:
    assert names() == []
    asyncio.run(asyncio.sleep(0))
    assert names() == []


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal")
def test_a_signals_handler_may_ask() -> None:
    found: list[list[str]] = []

    def show(number: int, frame: FrameType | None) -> None:
        found.extend(names())

    async def main() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGUSR1)
        asyncio.get_running_loop().call_later(0.1, event.set)
        helper(event)

    previous = signal.signal(signal.SIGUSR1, show)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert found == [["main", "helper", "outer", "innermost", "wait"]]
