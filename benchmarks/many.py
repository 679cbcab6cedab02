"""Rows of `map`: what an item costs, and what is held of a million."""

from __future__ import annotations

import asyncio
import itertools
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack

import ipyportal
from benchmarks.measure import Sides, bare_loop, row

__all__: list[str] = []

LIMIT = 100


async def double(number: int) -> int:
    return 2 * number


def _items(stack: ExitStack, calls: int) -> Sides:
    """`map(double, range(n), limit=100)` / `gather` of 100 at a time on a bare loop thread, per item.

    Fair: the same function, and at most 100 in flight on both sides. `map` starts the next when one has ended, and
    draws its items from the calling thread; `gather` waits for the slowest of its hundred.
    """
    loop = stack.enter_context(bare_loop())

    async def in_hundreds() -> list[int]:
        results: list[int] = []
        numbers = iter(range(calls))
        while some := list(itertools.islice(numbers, LIMIT)):
            results += await asyncio.gather(*map(double, some))
        return results

    def timed(once: Callable[[], list[int]]) -> Callable[[], float]:
        def side() -> float:
            begin = time.perf_counter()
            results = once()
            took = time.perf_counter() - begin
            assert len(results) == calls
            return took / calls * 1e6

        return side

    return (
        timed(lambda: ipyportal.map(double, range(calls), limit=LIMIT)),
        timed(lambda: asyncio.run_coroutine_threadsafe(in_hundreds(), loop).result()),
    )


def _held(stack: ExitStack, calls: int) -> Sides:
    """The most memory that tracemalloc counts while `map.unordered(double, range(n), limit=100)` gives its results.

    Nothing is compared: the number shall not grow with n.
    """

    def ours() -> float:
        with ipyportal.map.unordered(double, range(LIMIT), limit=LIMIT) as results:
            assert sum(1 for _ in results) == LIMIT  # what the first use makes is not counted
        tracemalloc.start()
        try:
            count = sum(1 for _ in ipyportal.map.unordered(double, range(calls), limit=LIMIT))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == calls
        return most

    return ours, None


for _number in (1_000, 100_000, 1_000_000):
    row(f"map-{_number}", f"map of {_number:,} items", group="growth", calls=_number, most_rounds=3)(_items)
for _number in (1_000, 100_000, 1_000_000):
    row(
        f"map-held-{_number}",
        f"held by a map of {_number:,} items",
        group="growth",
        unit="B",
        calls=_number,
        most_rounds=1,
    )(_held)
