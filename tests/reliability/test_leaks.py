"""Many calls leave nothing: no objects, no memory, no threads, no files."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ipyportal
from ipyportal.concurrency import Call, from_sync, get_global_loop, get_worker_thread
from ipyportal.concurrency.cancellation.clock import clock


async def nothing() -> None: ...


def cancelled() -> None:
    call = get_global_loop().submit(Call.new(asyncio.sleep, 60))
    call.cancel()
    while not call.done():
        time.sleep(0)


def timed_out() -> None:
    with pytest.raises(TimeoutError):
        from_sync.call_in_loop_thread(lambda: asyncio.sleep(60), timeout=0)


def sent_back() -> None:
    from_sync.wait_for_call_in_loop_thread(lambda: from_sync.call_soon_in_waiting_thread(int) and None)


KINDS: dict[str, Callable[[], object]] = {
    "run": lambda: ipyportal.run(nothing()),
    "run with a time-out": lambda: ipyportal.run(nothing(), timeout=60),
    "submit": lambda: ipyportal.submit(nothing).result(),
    "worker": lambda: get_worker_thread("leaks").submit(Call.new(nothing)).result(),
    "lent thread": lambda: from_sync.call_in_new_thread(int, timeout=60),
    "sent back": sent_back,
    "timed out": timed_out,
    "cancelled": cancelled,
}


def files() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def check(do: Callable[[], object], times: int) -> None:
    def measure() -> tuple[int, int, int, int]:
        ipyportal.run(nothing())  # the loop has looked at all that was submitted before
        get_worker_thread("leaks").submit(Call.new(int)).result()  # and the worker has closed its latest loop
        # What was cancelled is kept by the clock for its grace: its reminders are dropped here.
        with clock._lock:
            for timer in clock._heap:
                timer[2] = None
            clock._heap.clear()
        gc.collect()
        return len(gc.get_objects()), threading.active_count(), files(), tracemalloc.get_traced_memory()[0]

    for _ in range(50):
        do()
    before = measure()
    for _ in range(times):
        do()
    objects, threads, files_, memory = (after - was for after, was in zip(measure(), before, strict=True))
    assert objects < times / 2, f"{objects} objects more"  # some belong to threads that are not quite done
    assert threads <= 1
    assert files_ == 0
    assert memory < 50 * times, f"{memory} bytes more"


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_hundred_calls_leave_nothing(kind: str, traced: None) -> None:
    check(KINDS[kind], 300)


@pytest.mark.storm
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_calls_leave_nothing(kind: str, traced: None) -> None:
    check(KINDS[kind], 100_000 // len(KINDS))
