"""The row of the memory that a call in flight takes."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import Side, Sides, bare_loop, row
from ipyportal.concurrency import Call, get_global_loop

__all__ = ["bytes_in_flight"]

Starter = Callable[[Callable[[], Awaitable[None]]], Any]
"""Starts a coroutine function on a loop thread; gives something with ``result()``."""


def bytes_in_flight(calls: int, loop: asyncio.AbstractEventLoop, start: Starter) -> float:
    """The bytes that tracemalloc counts for each of `calls` calls that await one event on `loop`."""
    event = asyncio.Event()
    all_wait = threading.Event()
    left = calls

    async def wait() -> None:
        nonlocal left
        left -= 1
        if not left:
            # Behind the calls' own steps, so that the last of them waits, too.
            loop.call_soon(all_wait.set)
        await event.wait()

    pending: list[Any] = [None] * calls
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(calls):
            pending[number] = start(wait)
        all_wait.wait()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    loop.call_soon_threadsafe(event.set)
    for future in pending:
        future.result()
    return (after - before) / calls


@row("memory", "bytes for a call in flight", bar=1.0, unit="B", calls=5_000, most_rounds=3)
def memory(stack: ExitStack, calls: int) -> Sides:
    """5,000 calls that await one event: what is allocated for each by then, on both threads, by tracemalloc.

    Fair: the same coroutine function. What the event, the coroutine and its task take is in both numbers.
    """
    portal = get_global_loop()
    loop = stack.enter_context(bare_loop())

    def ours() -> float:
        return bytes_in_flight(calls, portal.loop, lambda wait: portal.submit(Call.new(wait)))

    def peer() -> float:
        return bytes_in_flight(calls, loop, lambda wait: asyncio.run_coroutine_threadsafe(wait(), loop))  # type: ignore[arg-type]

    sides: tuple[Side, Side] = ours, peer
    return sides
