"""`Results`: the caller of a map, who draws items, and takes what has come of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar, cast

from ipyportal import hosts
from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.labels import short_repr
from ipyportal.concurrency.portals.executors import ExecutorPortal, is_async_function
from ipyportal.concurrency.portals.shared import get_thread_pool
from ipyportal.concurrency.portals.workers import WorkerThread
from ipyportal.concurrency.primitives import call_users
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.reporting import add_note
from ipyportal.mapping.pool import Item, ItemOutcome, ItemPool
from ipyportal.routes import Route, check_route, get_route
from ipyportal.stepwise import Steps, Stream

__all__ = ["Results"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # half of the tasks may have been cancelled

TASKS = 1000
"""How many items of an asynchronous function are in flight, if no limit is given."""


THREADS = min(32, (os.cpu_count() or 1) + 4)
"""How many items of a synchronous function are in flight, if no limit is given: as in `ThreadPoolExecutor`."""


_DRAWING = 0.001  # seconds for which items are drawn before the first of them are started


class Results(Stream[T]):
    """What `map.unordered` returns: an iterator over results as they come, and a context manager that closes it."""

    def __init__(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        limit: float | None,
        timeout: float | None,
        progress: bool,
        return_exceptions: bool,
        on: Route | None,
    ) -> None:
        timeout = check_timeout(timeout)
        check_route(on)
        _check_function(fn)
        limit = None if limit is None else _check_limit(limit)
        items = _zip(iterables)
        self._name = name_of(fn)
        fn, on, threads, limit = _place(fn, on, limit)
        self._items = items
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._on = on
        self._given = self._taken = 0
        self._exhausted = False
        self._limit = limit
        self._pool = ItemPool(fn, limit, return_exceptions, threads)
        self._bar = _make_bar(iterables) if progress else None

    def __next__(self) -> T:
        __tracebackhide__ = True
        try:
            if not self._ready():
                raise StopIteration
            return self._take().value  # type: ignore[no-any-return]
        except BaseException:
            self.close()
            raise

    def _ready(self) -> bool:
        """Wait until there is an outcome; False at the end."""
        __tracebackhide__ = True
        outcomes = self._pool.outcomes
        while True:
            room = self._limit - (self._given - self._taken)
            if self._pool.closed or (self._exhausted and self._given == self._taken):
                self.close()
                return bool(outcomes)
            if outcomes and (self._exhausted or room * 2 < self._limit):
                return True  # more are started when half of them are over, and not with each
            self._exchange(room)
            if outcomes:
                return True

    def _exchange(self, room: float) -> None:
        __tracebackhide__ = True
        pool = self._pool
        items = self._draw(room) if room and not self._exhausted else []
        in_flight = self._given - self._taken
        if not in_flight:
            return
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if self._steps is None:
            self._steps = Steps(f"map of {self._name}", pool.close, self._on)
        try:
            wait = not pool.outcomes and (self._exhausted or in_flight >= self._limit)
            self._steps.run(pool.exchange, items, in_flight, wait, timeout=timeout)
        except TimeoutError:
            raise TimeoutError(f"map of {self._name} timed out after {self._timeout:g} s") from None
        finally:
            if pool.closed:
                self._steps.end()

    def _draw(self, room: float) -> list[Item]:
        items: list[Item] = []
        until = time.monotonic() + _DRAWING
        try:
            while len(items) < room:
                items.append((self._given + len(items), call_users(next, self._items)))
                if time.monotonic() > until:
                    break
        except StopIteration:
            self._exhausted = True
        except BaseException as exc:
            add_note(exc, f"ipyportal: raised by what map was given, asked for item {self._given + len(items)}")
            raise
        self._given += len(items)
        return items

    def _take(self) -> ItemOutcome:
        """The next outcome.

        Raises:
            BaseException: The item's, if it failed; all that is in flight has been cancelled then.
        """
        __tracebackhide__ = True
        outcome = self._pool.outcomes.popleft()
        self._taken += 1
        if outcome.item is None:
            if self._bar is not None:
                self._bar.update()
            return outcome
        self.close()
        error: BaseException = outcome.value
        if outcome.number is not None:
            arguments = ", ".join(short_repr(argument) for argument in outcome.item)
            add_note(error, f"ipyportal: item {outcome.number} of map: {self._name}({arguments})")
        if isinstance(error, KeyboardInterrupt):
            # The stop button hit an item's code on the kernel's thread. The cell, which was suspended, has been asked
            # to end, too: that is done by this, and must not cancel what comes after it.
            hosts.current.interrupted()
        if isinstance(error, asyncio.CancelledError):
            # As from `run`: it is not the caller that was cancelled.
            raise concurrent.futures.CancelledError(f"item {outcome.number} of map was cancelled") from error
        if isinstance(error, StopIteration):
            raise RuntimeError(f"{self._name} raised StopIteration") from error
        try:
            raise error
        finally:
            del error, outcome, self

    def close(self) -> None:
        __tracebackhide__ = True
        try:
            self._exhausted = True
            super().close()
            self._pool.closed = True
        finally:
            if self._bar is not None:
                self._bar.close()


def _check_function(fn: Any) -> None:
    if inspect.isawaitable(fn) or not callable(fn):
        raise TypeError(f"map() needs a function and iterables, map(fetch, urls), not {type(fn).__name__} first")
    if inspect.isasyncgenfunction(fn):
        raise TypeError(f"{name_of(fn)} is an async generator function, which has many results: see iterate()")


def _zip(iterables: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if not iterables:
        raise TypeError("map() needs a function and at least one iterable: map(fetch, urls)")
    for iterable in iterables:
        if hasattr(type(iterable), "__aiter__"):
            raise TypeError(
                f"map() draws from synchronous iterables, and {name_of(iterable)} is asynchronous: "
                "map(fn, iterate(...))"
            )
        if not hasattr(type(iterable), "__iter__") and not hasattr(type(iterable), "__getitem__"):
            raise TypeError(
                f"map() needs iterables, such as lists, and {short_repr(iterable)} is not one: "
                "map(fetch, urls); for the same argument each time, map(fn, items, itertools.repeat(x))"
            )
    return zip(*iterables, strict=False)


def _check_limit(limit: Any) -> float:
    if isinstance(limit, float):
        if limit >= 1 and (limit.is_integer() or math.isinf(limit)):
            return limit
    else:
        try:
            if isinstance(limit, bool):
                raise TypeError
            limit = operator.index(limit)
        except TypeError:
            raise TypeError(f"limit must be a whole number or None, not {type(limit).__name__}") from None
        if limit >= 1:
            return float(min(limit, sys.maxsize))  # a float can be no larger than 10**308
    raise ValueError(f"limit must be a whole number of 1 or more, not {limit!r}")


def _place(
    fn: Callable[..., Any], on: Route | None, limit: float | None
) -> tuple[Callable[..., Any], Route | None, Portal | None, float]:
    """What the pool runs and where it is, where its runners' threads come from, and how many items are in flight."""
    route = get_route() if on is None else on
    pool_on: Route | None = None if get_route() is None else "loop"
    if isinstance(route, ExecutorPortal):
        return _sender(fn, route), pool_on, None, TASKS if limit is None else limit
    if not is_async_function(fn):
        if route is None and IN_PYODIDE:
            return fn, pool_on, None, THREADS if limit is None else limit  # there are no threads: in tasks
        if route is None or route == "thread":
            return fn, pool_on, get_thread_pool(), THREADS if limit is None else limit
        if isinstance(route, WorkerThread):
            route._check_wait(Call(fn))
            return fn, pool_on, route, 1
    return fn, on, None, TASKS if limit is None else limit


def _sender(fn: Callable[..., Any], portal: ExecutorPortal) -> Callable[..., Coroutine[Any, Any, Any]]:
    """`fn` as an asynchronous function that runs it on `portal`."""

    async def send(*item: Any) -> Any:
        return await portal.submit(Call(fn, item))

    return send


def _length(iterable: Any) -> int:
    """Its length; -1 if it has none, or does not tell."""
    try:
        return len(iterable)
    except Exception:  # noqa: BLE001 - somebody's, or more items than `len` can count
        return -1


def _make_bar(iterables: tuple[Any, ...]) -> Any:
    try:
        if hosts.current.shows_widgets():
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm  # type: ignore[assignment]
    except ImportError:
        raise ImportError("map(..., progress=True) needs the package tqdm: pip install tqdm") from None
    if IN_PYODIDE:  # it would warn that it can start no thread to watch its bars
        tqdm = cast(Any, type("tqdm", (tqdm,), {"monitor_interval": 0}))
    shortest = min(_length(iterable) for iterable in iterables)
    return tqdm(total=None if shortest < 0 else shortest)
