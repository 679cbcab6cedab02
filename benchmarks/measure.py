"""The method: rows, each of two sides that are measured in turn.

A row's function prepares both sides and returns them; its docstring says what is compared, and why that is fair. A
*side* runs one round and returns what one call cost in it. `measure` calls ours, the peer, ours, the peer... with the
garbage collected before each, so what else the machine does at the time is the same for both. The ratio of each pair
is one sample.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib.util
import inspect
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tqdm.auto import tqdm

from ipyportal import concurrency

__all__ = [
    "Measured",
    "Quartiles",
    "Row",
    "Side",
    "Sides",
    "all_rows",
    "bare_loop",
    "measure",
    "noop",
    "on_one_core",
    "repeat",
    "row",
]

Side = Callable[[], float]
"""Runs one round; gives the cost of one call, in the row's unit."""

Sides = tuple[Side, Side | None]
"""Ours, and the peer's; None where the bar is an absolute one."""


async def noop() -> None:
    """What both sides of every asynchronous row run."""


def repeat(calls: int, once: Callable[[], object]) -> Side:
    """A side that does `once` so often in a round; in microseconds."""

    def side() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            once()
        return (time.perf_counter() - begin) / calls * 1e6

    return side


@contextmanager
def bare_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own, with nothing around it."""
    loop = loop_factory()
    thread = threading.Thread(target=loop.run_forever, name="bare-loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def on_one_core() -> Iterator[None]:
    """A block in which this thread, and those that it starts, run on one core. Linux has that."""
    concurrency.shutdown()  # its threads are started anew, in the block and after it
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        concurrency.shutdown()
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Row:
    """Two things to compare."""

    key: str
    group: str
    title: str
    why: str
    """What is compared and why it is fair."""
    bar: float | None
    """The highest ratio that is right, or, without a peer, the highest value; None: the row only informs."""
    unit: str
    calls: int
    """In one round."""
    most_rounds: int | None
    """For rows whose rounds are long, or all alike."""
    needs: tuple[str, ...]
    """The modules of its peer."""
    scatters: bool
    """Whether threads take turns in it: then the median of a few rounds is half as much again, or half, at times."""
    pinned: bool
    """Whether all threads are on one core: then it shows what the code costs, and not where the system puts threads."""
    prepare: Callable[[ExitStack, int], Sides]

    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


all_rows: list[Row] = []


def row(
    key: str,
    title: str,
    *,
    group: str = "bars",
    bar: float | None = None,
    unit: str = "us",
    calls: int = 150,
    most_rounds: int | None = None,
    needs: tuple[str, ...] = (),
    scatters: bool = False,
    pinned_bar: float | None = None,
) -> Callable[[Callable[[ExitStack, int], Sides]], Callable[[ExitStack, int], Sides]]:
    """Add a row; the decorated function prepares its sides, and its docstring says why they are comparable.

    With a `pinned_bar`, a second row is added, which is measured with all threads on one core, where that can be done.
    """

    def add(prepare: Callable[[ExitStack, int], Sides]) -> Callable[[ExitStack, int], Sides]:
        why = inspect.getdoc(prepare)
        assert why, f"{key} does not say what it compares"
        new = Row(key, group, title, why, bar, unit, calls, most_rounds, needs, scatters, False, prepare)
        all_rows.append(new)
        if pinned_bar is not None and hasattr(os, "sched_setaffinity"):
            why = f"As {key}, with all threads on one core."
            pinned = {"key": f"{key}-pinned", "group": "pinned", "bar": pinned_bar, "why": why, "pinned": True}
            all_rows.append(dataclasses.replace(new, **pinned))
        return prepare

    return add


@dataclass(frozen=True)
class Quartiles:
    """The middle of some samples, and how far they spread."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Quartiles:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass(frozen=True)
class Measured:
    """What came of a row."""

    row: Row
    ours: list[float]
    peer: list[float] | None

    @property
    def judged(self) -> Quartiles:
        """What the bar is for: the ratios of the rounds, or, without a peer, the values."""
        if self.peer is None:
            return Quartiles.of(self.ours)
        return Quartiles.of([ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)])

    def over(self) -> bool:
        return self.row.bar is not None and self.judged.median > self.row.bar

    def fails(self, factor: float) -> bool:
        """Whether it is over `factor` times its bar: the median, or, where that scatters, three of four rounds."""
        value = self.judged.low if self.row.scatters else self.judged.median
        return self.row.bar is not None and value > factor * self.row.bar


def measure(row: Row, rounds: int) -> Measured:
    """Measure a row: ours and the peer in turn. The first round of each only warms up."""
    if row.most_rounds is not None:
        rounds = min(rounds, row.most_rounds)
    with ExitStack() as stack:
        if row.pinned:
            stack.enter_context(on_one_core())
        ours, peer = row.prepare(stack, row.calls)
        measured = Measured(row, [], None if peer is None else [])
        # Silent where nobody looks; leave=False, because the table comes in its place.
        for number in tqdm(range(rounds + 1), desc=row.key, leave=False, disable=None):
            for side, samples in ((ours, measured.ours), (peer, measured.peer)):
                if side is not None and samples is not None:
                    gc.collect()
                    cost = side()
                    if number > 0:
                        samples.append(cost)
    return measured
