"""Rows of much that waits at once: suspended callers, and open ``enter`` blocks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from benchmarks.measure import Side, Sides, bare_loop, row
from ipyportal import enter

__all__: list[str] = []

# In a process of its own: what a process has once had, it does not give back.
WAITING = """
import asyncio, gc, sys, threading, time
import psutil
from ipyportal import run

kind, calls = sys.argv[1], int(sys.argv[2])
process = psutil.Process()

async def wait(over):
    await over.wait()

def waits(over):
    run(wait(over))

async def caller(over):
    if kind == "run":
        waits(over)
    else:
        await wait(over)

async def tasks(calls):
    gc.collect()
    before, over = process.memory_info().rss, asyncio.Event()
    begin = time.perf_counter()
    all_tasks = [asyncio.ensure_future(caller(over)) for _ in range(calls)]
    await asyncio.sleep(0)
    while kind == "run" and sum(task.get_coro().cr_running for task in all_tasks) < calls:
        await asyncio.sleep(0)
    held = process.memory_info().rss - before
    over.set()
    await asyncio.wait(all_tasks)
    return held / calls, (time.perf_counter() - begin) / calls * 1e6

def threads(calls):
    before, over = process.memory_info().rss, threading.Event()
    begin = time.perf_counter()
    all_threads = [threading.Thread(target=over.wait) for _ in range(calls)]
    for thread in all_threads:
        thread.start()
    held = process.memory_info().rss - before
    over.set()
    for thread in all_threads:
        thread.join()
    return held / calls, (time.perf_counter() - begin) / calls * 1e6

async def main():
    await tasks(1)
    return await tasks(calls)

print(*(threads(calls) if kind == "thread" else asyncio.run(main())))
"""


def waiting(kind: str, calls: int, number: int) -> Side:
    """A side that gives the bytes (0) or the time (1) of each of so many that wait."""

    def side() -> float:
        command = [sys.executable, "-c", WAITING, kind, str(calls)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[number])

    return side


def _bytes(stack: ExitStack, calls: int) -> Sides:
    """What the process grows by for each task whose synchronous code waits in `run` / that awaits the same itself.

    Fair: the same event is awaited; the system's own number, which counts the stacks that are set aside.
    """
    return waiting("run", calls, 0), waiting("await", calls, 0)


def _times(stack: ExitStack, calls: int) -> Sides:
    """The time for each such task, from its beginning to its end / for one that awaits the same itself."""
    return waiting("run", calls, 1), waiting("await", calls, 1)


def _beside_threads(stack: ExitStack, calls: int) -> Sides:
    """What the process grows by for each task whose synchronous code waits in `run` / for each thread that waits."""
    return waiting("run", calls, 0), waiting("thread", calls, 0)


def _entered(stack: ExitStack, calls: int) -> Sides:
    """So many nested ``with enter(...)`` in a script, entered and left / `AsyncExitStack` in a task of a bare loop.

    Not the same: each of ours has a task of its own on the loop thread, and the caller's thread waits for each step.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        yield

    def ours() -> float:
        begin = time.perf_counter()
        with ExitStack() as blocks:
            for _ in range(calls):
                blocks.enter_context(enter(opened()))
        return (time.perf_counter() - begin) / calls * 1e6

    async def entered() -> None:
        async with AsyncExitStack() as blocks:
            for _ in range(calls):
                await blocks.enter_async_context(opened())

    loop = stack.enter_context(bare_loop())

    def peer() -> float:
        begin = time.perf_counter()
        asyncio.run_coroutine_threadsafe(entered(), loop).result()
        return (time.perf_counter() - begin) / calls * 1e6

    return ours, peer


for _number in (100, 1_000, 10_000):
    _title = f"{_number:,} callers suspended"
    row(f"callers-{_number}", _title, group="growth", calls=_number, most_rounds=3, needs=("psutil",))(_times)
    row(
        f"callers-held-{_number}",
        f"held by {_title}",
        group="growth",
        unit="B",
        calls=_number,
        most_rounds=3,
        needs=("psutil",),
    )(_bytes)
row(
    "callers-threads",
    "held by 1,000 callers suspended, beside threads",
    group="informative",
    unit="B",
    calls=1_000,
    most_rounds=3,
    needs=("psutil",),
)(_beside_threads)
for _number in (10, 100, 1_000):
    row(f"enters-{_number}", f"{_number:,} open enters", group="growth", calls=_number, most_rounds=5)(_entered)
