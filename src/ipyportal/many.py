"""`map`: a function of many items at once, from synchronous code.

The caller and the place where the items run each have their part. The caller, in its own thread, draws items from the
iterables as there is room, and takes what has come of them. In the place, a `_Pool` has a few runners, which take one
item after the other. The two meet in `_Pool.exchange`, a step: items in, wait until something is over.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import math
import operator
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar, overload

from ipyportal import sync
from ipyportal.concurrency import interruption
from ipyportal.concurrency.api import await_for
from ipyportal.concurrency.calls import Call, _as_coroutine, current_call, name_of
from ipyportal.concurrency.deadlines import check_timeout
from ipyportal.concurrency.executors import ExecutorPortal, is_async_function
from ipyportal.concurrency.primitives import CoroutineWrapper, add_note, as_exception
from ipyportal.concurrency.suspension import suspendable
from ipyportal.concurrency.texts import short_repr
from ipyportal.concurrency.threads import LoopPortal, WorkerThread, submit_to_new_thread
from ipyportal.steps import Steps, Stream
from ipyportal.sync import Route, _check_route, get_route, run

__all__ = ["Results", "map"]

T = TypeVar("T")

TASKS = 1000
"""How many items of an asynchronous function are in flight, if no limit is given."""

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""How many items of a synchronous function are in flight, if no limit is given: as in `ThreadPoolExecutor`."""

_WAKES = 2  # how many runners a runner wakes, if there is more to do

_DRAWING = 0.001  # seconds for which items are drawn before the first of them are started


_Item = tuple[int, tuple[Any, ...]]  # its number, and the arguments


class _Outcome(NamedTuple):
    """What has come of an item."""

    number: int | None  # None: a runner failed
    item: tuple[Any, ...] | None  # the arguments, if it failed
    value: Any


class _InContext(CoroutineWrapper[T]):
    """A coroutine that runs in a context of its own, and not in that of its task, which runs one after the other."""

    __slots__ = ("_context",)

    def __init__(self, inner: Coroutine[Any, Any, T], context: contextvars.Context) -> None:
        self._inner = inner
        self._context = context

    def send(self, value: Any) -> Any:
        return self._context.run(self._inner.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._context.run(self._inner.throw, as_exception(typ, val, tb))

    def close(self) -> None:
        self._context.run(self._inner.close)


class _Pool:
    """Runners that run a function of the items they are given. All but `outcomes` is for the loop where it lives.

    Args:
        threads: Where runners of their own threads are submitted; None for runners on the loop.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        limit: float,
        return_exceptions: bool,
        threads: Callable[[Call[Any]], object] | None,
    ) -> None:
        self._fn = fn
        self._limit = limit
        self._return_exceptions = return_exceptions
        self._threads = threads
        self._context = contextvars.copy_context()
        self._todo: deque[_Item] = deque()
        self.outcomes: deque[_Outcome] = deque()
        """What the caller has not taken yet. Kept here and not returned by a step: an interrupt loses none of it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._idle_threads: list[queue.SimpleQueue[None]] = []
        self._news: asyncio.Future[None] | None = None
        self._told = False
        self.closed = False

    # --- steps -------------------------------------------------------------------------------------------------------

    async def exchange(self, items: list[_Item], in_flight: int, wait: bool) -> None:
        """Start `items`, and `wait` until there are outcomes. If it is cancelled, so is all that is in flight."""
        self._loop = asyncio.get_running_loop()
        try:
            self._todo.extend(items)
            if self._threads is None:
                self._begin(_WAKES)
            else:
                self._wake_threads(len(items))
                while len(self._tasks) < min(in_flight, self._limit):
                    self._add_runner(await_for(self._threads, self._call_of_thread()))
            if not wait:
                await asyncio.sleep(0)
            while wait and not self.outcomes:
                self._news = self._loop.create_future()
                self._told = False
                # Not before: an outcome that came in between has told nobody.
                if not self.outcomes:
                    await self._news
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Cancel what is in flight, and wait for its clean-up."""
        self.closed = True
        self._todo.clear()
        self._wake_threads(len(self._idle_threads))
        for task in self._tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(list(self._tasks))
            except asyncio.CancelledError as exc:
                cancelled = exc  # they have been told, and their clean-up takes as long as it takes
        if cancelled is not None:
            raise cancelled

    # --- runners -----------------------------------------------------------------------------------------------------

    def _add_runner(self, runner: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(runner)
        self._tasks.add(task)
        task.add_done_callback(self._runner_over)

    def _begin(self, count: int) -> None:
        """Have so many more runners of the loop look for items, if there are some."""
        for _ in range(min(count, len(self._todo))):
            if self._idle:
                self._idle.pop().set_result(None)
            elif len(self._tasks) < self._limit:
                self._add_runner(suspendable(self._run_on_loop()))

    def _call_of_thread(self) -> Call[None]:
        call: Call[None] = Call(self._run_in_thread)
        call.name = name_of(self._fn)
        return call

    def _runner_over(self, runner: asyncio.Task[None]) -> None:
        self._tasks.discard(runner)
        error = asyncio.CancelledError() if runner.cancelled() else runner.exception()
        if error is not None and not self.closed:
            self._fail(None, (), error)  # its thread was shut down, say: nobody else would tell the caller

    async def _run_on_loop(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not self.closed:
            # Each that is woken wakes others: soon all are that are needed, and few where items are over at once.
            self._begin(_WAKES)
            while self._todo:
                number, item = self._todo.popleft()
                try:
                    context = self._context.copy()
                    work = context.run(self._fn, *item)
                    if inspect.isawaitable(work):
                        work = await _InContext(_as_coroutine(work), context)
                    self._record(_Outcome(number, None, work))
                except BaseException as exc:  # noqa: BLE001 - the caller gets it
                    if self._closing():
                        return
                    self._fail(number, item, exc)
                    while task.cancelling():
                        task.uncancel()  # the item has cancelled itself
            if not self._closing():
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle

    def _wake_threads(self, count: int) -> None:
        try:
            for _ in range(count):
                self._idle_threads.pop().put(None)
        except IndexError:
            pass  # the others find the items by themselves, or are started

    def _run_in_thread(self) -> None:
        inbox: queue.SimpleQueue[None] = queue.SimpleQueue()
        runner = current_call()
        assert runner is not None
        while not self.closed:
            try:
                number, item = self._todo.popleft()
            except IndexError:
                self._wait_in_thread(inbox)
                continue
            try:
                self._record(_Outcome(number, None, self._context.copy().run(self._call, item)))
            except BaseException as exc:  # noqa: BLE001 - likewise
                if self._closing():
                    return
                self._fail(number, item, exc)
                if runner._ending is not None:
                    return  # its thread is being shut down; it is told so once
            del item

    def _wait_in_thread(self, inbox: queue.SimpleQueue[None]) -> None:
        self._idle_threads.append(inbox)
        # Items that came in between have woken others, if anybody.
        if not self._todo:
            interruption.get(inbox)
        try:
            self._idle_threads.remove(inbox)
        except ValueError:
            pass  # as it should be: `exchange` took it out

    def _call(self, item: tuple[Any, ...]) -> Any:
        value = self._fn(*item)
        # A function that returns an awaitable: that is for the loop, whose clients and locks it may use.
        return run(value, on=LoopPortal(self._loop)) if inspect.isawaitable(value) else value

    def _closing(self) -> bool:
        return self.closed

    def _fail(self, number: int | None, item: tuple[Any, ...], exc: BaseException) -> None:
        if number is not None and self._return_exceptions and isinstance(exc, (Exception, asyncio.CancelledError)):
            self._record(_Outcome(number, None, exc))
        else:
            self._todo.clear()  # the caller will end it all
            self._record(_Outcome(number, item, exc))

    def _record(self, outcome: _Outcome) -> None:
        self.outcomes.append(outcome)
        if not self._told:
            self._told = True
            if self._threads is None:
                self._tell()
                return
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:
                pass  # the loop is closed, and nobody waits

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


# --- the caller's part -----------------------------------------------------------------------------------------------


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
        _check_route(on)
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
        self._pool = _Pool(fn, limit, return_exceptions, threads)
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

    def _draw(self, room: float) -> list[_Item]:
        items: list[_Item] = []
        until = time.monotonic() + _DRAWING
        try:
            while len(items) < room:
                items.append((self._given + len(items), next(self._items)))
                if time.monotonic() > until:
                    break
        except StopIteration:
            self._exhausted = True
        except BaseException as exc:
            add_note(exc, f"ipyportal: raised by what map was given, asked for item {self._given + len(items)}")
            raise
        self._given += len(items)
        return items

    def _take(self) -> _Outcome:
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
            sync.host.interrupted()
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


# --- what is given ---------------------------------------------------------------------------------------------------


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
) -> tuple[Callable[..., Any], Route | None, Callable[[Call[Any]], object] | None, float]:
    """What the pool runs and where it is, where its runners' threads come from, and how many items are in flight."""
    route = get_route() if on is None else on
    pool_on: Route | None = None if get_route() is None else "loop"
    if isinstance(route, ExecutorPortal):
        return _sender(fn, route), pool_on, None, TASKS if limit is None else limit
    if not is_async_function(fn):
        if route is None or route == "thread":
            return fn, pool_on, submit_to_new_thread, THREADS if limit is None else limit
        if isinstance(route, WorkerThread):
            route._check_wait(Call(fn))
            return fn, pool_on, route.submit, 1
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
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("map(..., progress=True) needs the package tqdm: pip install tqdm") from None
    shortest = min(_length(iterable) for iterable in iterables)
    return tqdm(total=None if shortest < 0 else shortest)


# --- map -------------------------------------------------------------------------------------------------------------


_MISSING: Any = object()


def _collect(results: Results[T]) -> list[T]:
    """All results, in the order of the items."""
    __tracebackhide__ = True
    values: list[Any] = []

    def place(outcome: _Outcome) -> None:
        assert outcome.number is not None
        values.extend([_MISSING] * (outcome.number + 1 - len(values)))
        values[outcome.number] = outcome.value

    def fill() -> None:
        while results._ready():
            if results._pool.outcomes[0].item is None:
                place(results._pool.outcomes[0])  # before it is taken: it is in one of the two, whatever comes
            results._take()

    try:
        fill()  # a function: in CPython 3.13 a `try` does not cover the jump at the end of a loop
    except BaseException as exc:  # noqa: BLE001 - raised below
        error = exc
        try:
            results.close()
        except BaseException as worse:  # noqa: BLE001 - the stop button, once more
            error = worse
        for outcome in list(results._pool.outcomes):
            if outcome.item is None:
                place(outcome)
        _attach(error, {number: value for number, value in enumerate(values) if value is not _MISSING})
        try:
            raise error
        finally:
            del error
    return values


def _attach(exc: BaseException, finished: dict[int, Any]) -> None:
    try:
        exc.finished = finished  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - one with slots, a frozen dataclass
        return
    add_note(
        exc,
        f"ipyportal: {len(finished)} results are kept: `finished` of this exception (in a notebook, "
        "sys.last_value.finished) is a dict of them by the numbers of their items",
    )


class _Map:
    """``fn`` of each item, many at once: `builtins.map` for what waits. Returns a list. From any thread.

    ``map.unordered`` takes the same arguments, and is an iterator over the results as they come.

    A coroutine function runs where the rule of `run` says: on this thread's own loop, if the caller can be suspended,
    else on the global `EventLoopThread`. Any other function runs in threads; what it returns, if that is an awaitable,
    is awaited on that loop. Each item has a copy of the context (`contextvars`) that was current at the call.

    The iterables are drawn in the thread and the task that calls this, each item when there is room for it: with an
    endless one, or one of a million items, no more than `limit` are held at a time.

    Args:
        fn: Called with an item of each of `iterables`, which may have different lengths: the shortest ends it.
        limit: How many items are in flight at most, from those that were drawn to those whose result was taken. None
            for 1000 of a coroutine function or on an `ExecutorPortal`, and for as many of any other as
            `ThreadPoolExecutor` has threads. ``math.inf`` for no limit.
        timeout: Seconds for all of it to be over.
        progress: Show a bar of `tqdm.auto`.
        return_exceptions: Put the exceptions of items that fail among the results.
        on: As for `run`. An `ExecutorPortal` has its executor run each item. A `WorkerThread` takes the items of a
            synchronous function one by one; on any loop, a synchronous function blocks it.

    Raises:
        BaseException: What the first item that failed raised, with a note that says which. The others have been
            cancelled, and have cleaned up.
        TimeoutError: It was not over in time. All that was in flight was cancelled, as for each of these.
        KeyboardInterrupt: The stop button or Ctrl-C.
        TypeError, ValueError: Before anything runs, if an argument is of no use.

        What was finished by then is not lost: each of these that was raised after the beginning has an attribute
        ``finished``, a dict from the numbers of items, counted from 0, to results. (After `map.unordered`, go on
        iterating.)

    Example:
        >>> import asyncio, ipyportal
        >>> async def double(n):
        ...     await asyncio.sleep(0.01)
        ...     return 2 * n
        >>> ipyportal.map(double, range(5), limit=2)
        [0, 2, 4, 6, 8]
        >>> sorted(ipyportal.map.unordered(double, range(5)))
        [0, 2, 4, 6, 8]
    """

    __name__ = __qualname__ = "map"

    @overload
    def __call__(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
        on: Route | None = None,
    ) -> list[T]: ...
    @overload
    def __call__(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool,
        on: Route | None = None,
    ) -> list[T | BaseException]: ...
    @overload
    def __call__(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
        on: Route | None = None,
    ) -> list[T]: ...
    @overload
    def __call__(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool,
        on: Route | None = None,
    ) -> list[T | BaseException]: ...
    def __call__(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool = False,
        on: Route | None = None,
    ) -> list[Any]:
        __tracebackhide__ = True
        return _collect(Results(fn, iterables, limit, timeout, progress, return_exceptions, on))

    @overload
    def unordered(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
        on: Route | None = None,
    ) -> Results[T]: ...
    @overload
    def unordered(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool,
        on: Route | None = None,
    ) -> Results[T | BaseException]: ...
    @overload
    def unordered(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
        on: Route | None = None,
    ) -> Results[T]: ...
    @overload
    def unordered(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool,
        on: Route | None = None,
    ) -> Results[T | BaseException]: ...
    def unordered(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        limit: float | None = None,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool = False,
        on: Route | None = None,
    ) -> Results[Any]:
        """Like `map`, but an iterator over the results in the order in which they come.

        The first items are drawn and begin when the first result is asked for. When its loop ends by ``break`` or an
        exception, what is in flight is cancelled, and its clean-up waited for; likewise by ``close()``, and at the
        end of ``with map.unordered(...) as results``.
        """
        return Results(fn, iterables, limit, timeout, progress, return_exceptions, on)

    def __repr__(self) -> str:
        return "<function ipyportal.map>"


map = _Map()
