"""Rows that only inform: what others take for the same errand, and ours on another loop."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from benchmarks.engine import bare
from benchmarks.measure import Sides, bare_loop, noop, repeat, row
from ipyportal import run
from ipyportal.concurrency import Call, EventLoopThread, get_global_loop

__all__: list[str] = []


@row("floor", "the floor: a bare loop is woken, and wakes", group="peers")
def floor(stack: ExitStack, calls: int) -> Sides:
    """A byte in a pipe, which a bare loop answers through a `SimpleQueue` / `run_coroutine_threadsafe` to such a loop.

    No context, task or result: nothing that goes to a loop in another thread and back can take less.
    """
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    loop = stack.enter_context(bare_loop())  # which ends before they are closed
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    ready = threading.Event()

    def add_reader() -> None:
        loop.add_reader(reader, lambda: answers.put(os.read(reader, 1)))
        ready.set()

    loop.call_soon_threadsafe(add_reader)
    ready.wait()
    stack.callback(loop.call_soon_threadsafe, loop.remove_reader, reader)

    def once() -> None:
        os.write(writer, b"x")
        answers.get()

    return repeat(calls, once), bare(stack, calls)


@row("anyio", "anyio: portal.call(noop)", group="peers", needs=("anyio",))
def anyio_portal(stack: ExitStack, calls: int) -> Sides:
    """`portal.call(noop)` of a blocking portal that stays open / `run_coroutine_threadsafe(noop(), loop).result()`."""
    from anyio.from_thread import start_blocking_portal

    portal = stack.enter_context(start_blocking_portal())
    return repeat(calls, lambda: portal.call(noop)), bare(stack, calls)


@row("asgiref", "asgiref: async_to_sync(noop)()", group="peers", needs=("asgiref",))
def asgiref(stack: ExitStack, calls: int) -> Sides:
    """`async_to_sync(noop)()` where no loop runs, made once / `run_coroutine_threadsafe(noop(), loop).result()`."""
    from asgiref.sync import async_to_sync

    return repeat(calls, async_to_sync(noop)), bare(stack, calls)


@row("fsspec", "fsspec: sync(loop, noop)", group="peers", needs=("fsspec",))
def fsspec(stack: ExitStack, calls: int) -> Sides:
    """`fsspec.asyn.sync(get_loop(), noop)` / `run_coroutine_threadsafe(noop(), loop).result()`."""
    from fsspec.asyn import get_loop, sync

    loop = get_loop()
    return repeat(calls, lambda: sync(loop, noop)), bare(stack, calls)


@row("unsync", "unsync: noop().result()", group="peers", needs=("unsync",))
def unsync(stack: ExitStack, calls: int) -> Sides:
    """A decorated `noop().result()` / `run_coroutine_threadsafe(noop(), loop).result()`."""
    from unsync import unsync as decorate

    decorated = decorate(noop)
    return repeat(calls, lambda: decorated().result()), bare(stack, calls)


@row("synchronicity", "synchronicity: create_blocking(noop)()", group="peers", needs=("synchronicity",))
def synchronicity(stack: ExitStack, calls: int) -> Sides:
    """A blocking wrapper of `noop`, called / `run_coroutine_threadsafe(noop(), loop).result()`."""
    from synchronicity import Synchronizer

    blocking = Synchronizer().create_blocking(noop, "noop_blocking", __name__)
    return repeat(calls, blocking), bare(stack, calls)


@row("asyncio-run", "asyncio.run(noop())", group="peers")
def asyncio_run(stack: ExitStack, calls: int) -> Sides:
    """A new loop each time, in the calling thread / `run_coroutine_threadsafe(noop(), loop).result()`."""
    return repeat(calls, lambda: asyncio.run(noop())), bare(stack, calls)


def _suspended(stack: ExitStack, calls: int, wait: Callable[[], Coroutine[Any, Any, None]]) -> Sides:
    import greenback

    def ours() -> float:
        return get_global_loop().submit(Call.new(repeat(calls, lambda: run(wait())))).result()

    async def in_portal() -> float:
        await greenback.ensure_portal()
        return repeat(calls, lambda: greenback.await_(wait()))()

    runner = stack.enter_context(asyncio.Runner())
    return ours, lambda: runner.run(in_portal())


@row("suspended", "a wait in a task that need not wait", group="informative", calls=2_000, needs=("greenback",))
def suspended(stack: ExitStack, calls: int) -> Sides:
    """`run(noop())` in synchronous code of a call / `greenback.await_(noop())` in a task with a portal.

    Fair: both in synchronous code, inside a task of a running loop.
    """
    return _suspended(stack, calls, noop)


@row("suspended-wait", "a wait in a task that does wait", group="informative", calls=1_000, needs=("greenback",))
def suspended_wait(stack: ExitStack, calls: int) -> Sides:
    """The same with `asyncio.sleep(0)`: the task gives way to its loop for one turn.

    Fair: both switch greenlets, and both let the loop turn once.
    """
    return _suspended(stack, calls, lambda: asyncio.sleep(0))


@row("uvloop", "to a uvloop thread and back", group="informative", needs=("uvloop",))
def uvloop(stack: ExitStack, calls: int) -> Sides:
    """An `EventLoopThread` with `loop_factory=uvloop.new_event_loop` / `run_coroutine_threadsafe` to a bare uvloop."""
    import uvloop as module

    portal = stack.enter_context(EventLoopThread("benchmark-uvloop", loop_factory=module.new_event_loop))
    loop = stack.enter_context(bare_loop(module.new_event_loop))
    return (
        repeat(calls, lambda: portal.submit(Call.new(noop)).result()),
        repeat(calls, lambda: asyncio.run_coroutine_threadsafe(noop(), loop).result()),
    )
