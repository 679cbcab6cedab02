"""`map`, and `map.unordered`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Literal, TypeVar, overload

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.reporting import add_note
from ipyportal.mapping.pool import ItemOutcome
from ipyportal.mapping.results import Results
from ipyportal.routes import Route

__all__ = ["map"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # half of the tasks may have been cancelled

_MISSING: Any = object()


def _collect(results: Results[T]) -> list[T]:
    """All results, in the order of the items."""
    __tracebackhide__ = True
    values: list[Any] = []

    def place(outcome: ItemOutcome) -> None:
        assert outcome.number is not None
        values.extend([_MISSING] * (outcome.number + 1 - len(values)))
        values[outcome.number] = outcome.value

    def fill() -> None:
        __tracebackhide__ = True
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
    if not finished:
        return
    add_note(
        exc,
        f"ipyportal: {len(finished)} results are kept: `finished` of this exception (in a notebook, "
        "sys.last_value.finished) is a dict of them by the numbers of their items",
    )


class _Map:
    """Call `fn` for many items at once, and return the list of results, in the order of the items. From any thread.

    ``map.unordered`` takes the same arguments, and returns an iterator over the results as they come.

    A coroutine function runs where `run` would run it: on this thread's own loop if the caller can be suspended,
    otherwise on the global `EventLoopThread`. Any other function runs in threads; if it returns an awaitable, that is
    awaited on that loop. Each item gets a copy of the context (`contextvars`) that was current at the call.

    The next item is taken from the iterables when there is room for it, in the thread and the task that calls `map`.
    So an iterable may be endless: at most `limit` items are held at a time.

    Args:
        fn: Called with one item of each of `iterables`. They may have different lengths: the shortest ends the map.
        limit: How many items may be in flight. An item counts from when it is taken until its result is taken. None
            means 1000 for a coroutine function or on an `ExecutorPortal`, and otherwise as many as
            `ThreadPoolExecutor` has threads. ``math.inf`` means no limit.
        timeout: Seconds for all items together.
        progress: Show a progress bar of `tqdm.auto`.
        return_exceptions: Put the exceptions of items that fail among the results.
        on: As for `run`. With an `ExecutorPortal`, its executor runs each item. A `WorkerThread` runs the items of a
            synchronous function one by one. On a loop, a synchronous function blocks that loop.

    Raises:
        BaseException: What the first item that failed raised, with a note that says which item. The others were
            cancelled, and have cleaned up.
        TimeoutError: The items took too long. All items in flight were cancelled, as for each of these errors.
        KeyboardInterrupt: The stop button or Ctrl-C.
        TypeError, ValueError: An argument cannot be used. Nothing has run.

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
