"""Rows of the engine: a loop thread, a worker thread, the way back to the thread that waits."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import Side, Sides, bare_loop, noop, repeat, row
from ipyportal.concurrency import Call, from_sync, get_global_loop

__all__: list[str] = []


def nothing() -> None:
    """What both sides of every synchronous row run."""


def bare(stack: ExitStack, calls: int) -> Side:
    """The peer of most rows: the standard library's way to a loop in another thread and back."""
    loop = stack.enter_context(bare_loop())
    return repeat(calls, lambda: asyncio.run_coroutine_threadsafe(noop(), loop).result())


@row("round-trip", "to the loop thread and back", bar=0.75, scatters=True, pinned_bar=0.75)
def round_trip(stack: ExitStack, calls: int) -> Sides:
    """`submit(Call.new(noop)).result()` / `run_coroutine_threadsafe(noop(), loop).result()` on a bare loop thread.

    Fair: both capture the context, run a task, carry the result back and can be cancelled. Ours can be suspended in
    synchronous code, too.
    """
    submit = get_global_loop().submit
    return repeat(calls, lambda: submit(Call.new(noop)).result()), bare(stack, calls)


@row("waiter", "the same, in a SyncWaiter", bar=0.90, scatters=True, pinned_bar=0.85)
def waiter(stack: ExitStack, calls: int) -> Sides:
    """`from_sync.wait_for_call_in_loop_thread(noop)` / as before.

    More than fair: ours could be sent something back meanwhile, the peer could not.
    """
    return repeat(calls, lambda: from_sync.wait_for_call_in_loop_thread(noop)), bare(stack, calls)


@row("waiter-timeout", "the same, with timeout=60", bar=0.90, scatters=True, pinned_bar=0.85)
def waiter_timeout(stack: ExitStack, calls: int) -> Sides:
    """`from_sync.wait_for_call_in_loop_thread(noop, timeout=60)` / as before, without a timeout.

    More than fair: ours would cancel the call after its time, the peer sets no timer at all.
    """
    return repeat(calls, lambda: from_sync.wait_for_call_in_loop_thread(noop, timeout=60)), bare(stack, calls)


@row("burst", "5,000 submitted, then awaited", bar=0.60, calls=5_000, most_rounds=31)
def burst(stack: ExitStack, calls: int) -> Sides:
    """5,000 calls submitted one by one, then the results of all taken; both on a loop thread, per call.

    Fair: the same loops over lists on both sides.
    """
    submit = get_global_loop().submit
    loop = stack.enter_context(bare_loop())

    def ours() -> float:
        begin = time.perf_counter()
        for call in [submit(Call.new(noop)) for _ in range(calls)]:
            call.result()
        return (time.perf_counter() - begin) / calls * 1e6

    def peer() -> float:
        begin = time.perf_counter()
        for future in [asyncio.run_coroutine_threadsafe(noop(), loop) for _ in range(calls)]:
            future.result()
        return (time.perf_counter() - begin) / calls * 1e6

    return ours, peer


def pool(stack: ExitStack, calls: int) -> Side:
    executor = stack.enter_context(ThreadPoolExecutor(1))
    return repeat(calls, lambda: executor.submit(nothing).result())


@row("thread", "a call in a worker thread", bar=1.2, scatters=True, pinned_bar=1.1)
def thread(stack: ExitStack, calls: int) -> Sides:
    """`from_sync.call_in_new_thread(nothing)` / `ThreadPoolExecutor(1).submit(nothing).result()`.

    Fair: both have an idle thread. Ours captures the context, and can be cancelled while it runs.
    """
    return repeat(calls, lambda: from_sync.call_in_new_thread(nothing)), pool(stack, calls)


@row("thread-timeout", "the same, with timeout=60", bar=1.5, scatters=True, pinned_bar=1.2)
def thread_timeout(stack: ExitStack, calls: int) -> Sides:
    """`from_sync.call_in_new_thread(nothing, timeout=60)` / as before, without a timeout.

    More than fair: ours would interrupt the function after its time; a thread of the pool cannot be interrupted.
    """
    return repeat(calls, lambda: from_sync.call_in_new_thread(nothing, timeout=60)), pool(stack, calls)


@row("callback", "from a worker to the waiting thread and back", bar=2.0, scatters=True, pinned_bar=2.0)
def callback(stack: ExitStack, calls: int) -> Sides:
    """`call_soon_in_waiting_thread(nothing).result()` in a worker / ping-pong of two threads over `SimpleQueue`s.

    The peer is the floor, not a tool: it wakes the other thread, which calls the function and wakes the first. Ours
    gives the call a context and a result, and cancels it with the call that sent it.
    """

    def in_worker() -> float:
        send_back = from_sync.call_soon_in_waiting_thread
        begin = time.perf_counter()
        for _ in range(calls):
            send_back(nothing).result()
        return (time.perf_counter() - begin) / calls * 1e6

    def ours() -> float:
        return from_sync.wait_for_call_in_new_thread(in_worker)

    ping: queue.SimpleQueue[bool] = queue.SimpleQueue()
    pong: queue.SimpleQueue[None] = queue.SimpleQueue()

    def serve() -> None:
        while ping.get():
            nothing()
            pong.put(None)

    server = threading.Thread(target=serve, name="pong")
    server.start()
    stack.callback(server.join)
    stack.callback(ping.put, False)

    def once() -> None:
        ping.put(True)
        pong.get()

    return ours, repeat(calls, once)


# --- growth ----------------------------------------------------------------------------------------------------------


def _in_flight(stack: ExitStack, calls: int) -> Sides:
    """So many calls await one event at the same time; from the first submission to the last result, per call.

    Fair: the same coroutine function on both sides. The ratio shall not grow with the number.
    """
    submit = get_global_loop().submit
    loop = stack.enter_context(bare_loop())

    def side(
        submit_all: Callable[[Callable[[], Coroutine[Any, Any, None]]], list[Any]], on: asyncio.AbstractEventLoop
    ) -> Side:
        def run() -> float:
            event = asyncio.Event()

            async def wait() -> None:
                await event.wait()

            begin = time.perf_counter()
            pending = submit_all(wait)
            on.call_soon_threadsafe(event.set)
            for future in pending:
                future.result()
            return (time.perf_counter() - begin) / calls * 1e6

        return run

    return (
        side(lambda wait: [submit(Call.new(wait)) for _ in range(calls)], get_global_loop().loop),
        side(lambda wait: [asyncio.run_coroutine_threadsafe(wait(), loop) for _ in range(calls)], loop),
    )


def _threads(number: int) -> Callable[[ExitStack, int], Sides]:
    def prepare(stack: ExitStack, calls: int) -> Sides:
        """Round trips to one loop thread from so many threads at the same time; the whole time, per call of all.

        Fair: the same number of threads and calls on both sides. The cost per call shall not grow with the threads.
        """
        submit = get_global_loop().submit
        loop = stack.enter_context(bare_loop())
        each = calls // number

        def side(once: Callable[[], object]) -> Side:
            def run() -> float:
                barrier = threading.Barrier(number + 1)

                def submitter() -> None:
                    barrier.wait()
                    for _ in range(each):
                        once()

                threads = [threading.Thread(target=submitter) for _ in range(number)]
                for submitting in threads:
                    submitting.start()
                barrier.wait()
                begin = time.perf_counter()
                for submitting in threads:
                    submitting.join()
                return (time.perf_counter() - begin) / (each * number) * 1e6

            return run

        return (
            side(lambda: submit(Call.new(noop)).result()),
            side(lambda: asyncio.run_coroutine_threadsafe(noop(), loop).result()),
        )

    return prepare


for _number in (1_000, 10_000, 100_000):
    row(f"flight-{_number}", f"{_number:,} calls in flight", group="growth", calls=_number, most_rounds=5)(_in_flight)
for _number in (1, 2, 4, 8):
    _title = f"{_number} submitting thread{'s' * (_number > 1)}"
    row(f"threads-{_number}", _title, group="growth", calls=2_400, most_rounds=9)(_threads(_number))
