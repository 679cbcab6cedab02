"""`iterate` and `enter`: ``async for`` and ``async with`` in synchronous code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, cast, overload

from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.interruption import Cancelled
from ipyportal.concurrency.cancellation.scopes import SyncCancelScope
from ipyportal.concurrency.cancellation.targets import OnlyAtCheckpoints
from ipyportal.routes import Route, check_route
from ipyportal.stepwise import Steps, Stream

__all__ = ["Entered", "Iteration", "enter", "iterate"]

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # between two steps

T = TypeVar("T")


class _End(enum.Enum):
    END = "there is no next item"


class _Maker(Generic[T]):
    """What was given to `iterate` or `enter`: the thing itself, or a function that makes it, called in its place."""

    def __init__(self, name: str, method: str, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name = name_of(work)
        self._for, self._method = name, method
        self._work, self._args, self._kwargs = work, args, kwargs
        if hasattr(type(work), method):
            if args or kwargs:
                raise TypeError(f"arguments go with a function: {name}(fn, *args), not {name}(fn(...), *args)")
        elif inspect.isawaitable(work) or not callable(work):
            raise self._refusal(work)

    def _refusal(self, given: Any) -> TypeError:
        kind, statement, sync_method = {
            "iterate": ("async iterable", "for", "__iter__"),
            "enter": ("async context manager", "with", "__enter__"),
        }[self._for]
        if inspect.isawaitable(given):
            advice = f": await it first, {self._for}(run(...))"
        elif hasattr(type(given), sync_method):
            advice = f": this one is synchronous, `{statement}` takes it as it is"
        else:
            advice = ", or a function that returns one"
        return TypeError(f"{self._for}() needs an {kind}, not {type(given).__name__}{advice}")

    async def make(self) -> T:
        made = self._work
        if not hasattr(type(made), self._method):
            made = made(*self._args, **self._kwargs)
            if inspect.isawaitable(made) and not hasattr(type(made), self._method):
                made = await made
            if not hasattr(type(made), self._method):
                raise self._refusal(made)
        self._work = self._args = self._kwargs = None  # type: ignore[assignment]  # not kept alive
        return cast(T, made)


class _Source:
    """The asynchronous side of an `Iteration`."""

    def __init__(self, maker: _Maker[AsyncIterable[Any]]) -> None:
        self._maker = maker
        self._iterator: AsyncIterator[Any] | None = None
        self._over = False

    async def advance(self) -> Any:
        """The next item, or `_End`. Whatever else ends it, it is closed within this very step."""
        if self._over:
            return _End.END
        try:
            if self._iterator is None:
                self._iterator = aiter(await self._maker.make())
            return await anext(self._iterator)
        except StopAsyncIteration:
            self._over = True
            return _End.END
        except BaseException:
            await self.close()
            raise

    def over(self) -> bool:
        return self._over

    def skip(self) -> None:
        """Close what has not begun."""
        self._over = True

    async def close(self) -> None:
        over, self._over = self._over, True
        if not over and (aclose := getattr(self._iterator, "aclose", None)) is not None:
            await aclose()


class Iteration(Stream[T]):
    """What `iterate` returns: an iterator, which is also a context manager that closes it."""

    def __init__(self, maker: _Maker[AsyncIterable[T]], timeout: float | None, on: Route | None) -> None:
        self._name = maker.name
        self._source = _Source(maker)
        self._timeout = timeout
        self._on = on

    def __next__(self) -> T:
        __tracebackhide__ = True
        source = self._source
        try:
            if source.over():
                raise StopIteration
            if self._steps is None:
                self._steps = Steps(self._name, source.close, self._on)
            item: Any = self._steps.run(source.advance, timeout=self._timeout)
            if item is _End.END:
                raise StopIteration
        except BaseException:
            # A step that fails has closed it. An interrupt may come before or after a step, too, and its traceback
            # would keep this alive.
            if self._steps is not None and source.over():
                self._steps.end()
            self.close()
            raise
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        __tracebackhide__ = True
        if self._steps is None:
            self._source.skip()
        super().close()


@overload
def iterate(
    work: Callable[..., Coroutine[Any, Any, AsyncIterable[T]]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> Iteration[T]: ...
@overload
def iterate(
    work: Callable[..., AsyncIterable[T]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> Iteration[T]: ...
@overload
def iterate(work: AsyncIterable[T], /, *, timeout: float | None = None, on: Route | None = None) -> Iteration[T]: ...
def iterate(
    work: Any, /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any
) -> Iteration[Any]:
    """Loop over an async iterable in synchronous code: ``for item in iterate(work)``. From any thread.

    It stands for ``async for item in work``. The next item is requested only when the loop needs it. The whole
    iteration runs in one task. If the caller can be suspended, this is the caller's own task; otherwise it is a new
    task on the global `EventLoopThread`.

    If the loop ends by ``break`` or an exception, the async iterator's ``aclose()`` runs in the same task, and the
    caller waits for it. ``with iterate(work) as items`` does this at the end of the block, and raises what the clean-up
    raises. After a ``break`` without ``with``, such an exception can only be reported, through `sys.unraisablehook`.

    Args:
        work: An async generator, or anything that ``async for`` takes. Or a function, asynchronous or not, that
            returns one; it is called with `args` and `kwargs` in that task.
        timeout: Seconds that each item may take.
        on: As for `run`. The iteration then runs in a new task there.

    Returns:
        An iterator with ``close()``.

    Raises:
        TypeError: ``async for`` cannot take `work`. If a function returned it, the loop raises this.
        TypeError, ValueError: As `run` does for `timeout` and `on`.
        TimeoutError: From the loop. An item did not come in time; the iteration is over.
        KeyboardInterrupt: From the loop. The stop button or Ctrl-C. The iteration is over, and has cleaned up.
        BaseException: From the loop. What `work` raised.

    Example:
        >>> import asyncio
        >>> from ipyportal import iterate
        >>> async def ticks():
        ...     try:
        ...         for n in range(1000):
        ...             await asyncio.sleep(0.001)
        ...             yield n
        ...     finally:
        ...         print("closed")
        >>> for n in iterate(ticks()):
        ...     if n == 2:
        ...         break
        closed
    """
    timeout = check_timeout(timeout)
    check_route(on)
    return Iteration(_Maker("iterate", "__aiter__", work, args, kwargs), timeout, on)


class _Body(OnlyAtCheckpoints, SyncCancelScope):
    """The body of a ``with`` block whose context manager runs in another task, and may cancel that.

    As in ``async with``, the code is interrupted where it waits.
    """


class _Manager:
    """The asynchronous side of `Entered`."""

    def __init__(self, maker: _Maker[AbstractAsyncContextManager[Any, Any]]) -> None:
        self._maker = maker
        self._manager: AbstractAsyncContextManager[Any, Any] | None = None  # while it is entered
        self.cancelled: asyncio.CancelledError | None = None
        self.body = _Body(None, None)

    async def enter(self) -> Any:
        __tracebackhide__ = True
        manager = await self._maker.make()
        value = await type(manager).__aenter__(manager)
        self._manager = manager
        return value

    async def leave(self, exc: BaseException | None = None) -> Any:
        __tracebackhide__ = True
        manager, self._manager = self._manager, None
        if manager is None:
            return False
        if self.cancelled is not None and (exc is None or isinstance(exc, asyncio.CancelledError)):
            # The manager's own, which it may know by its text. If the body ended before it noticed: `async with` would
            # have noticed in the first wait of `__aexit__`.
            exc = self.cancelled
        elif isinstance(exc, Cancelled):
            # Not a subclass of it: `asyncio.timeout` and `asyncio.TaskGroup` ask for the type itself.
            exc = asyncio.CancelledError(*exc.args).with_traceback(exc.__traceback__)
        if exc is None:
            return await type(manager).__aexit__(manager, None, None, None)
        return await type(manager).__aexit__(manager, type(exc), exc, exc.__traceback__)

    def cancel_body(self, exc: asyncio.CancelledError, loop_ends: bool) -> None:
        """The context manager cancels its task, whose code is now the body of the ``with`` block."""
        self.cancelled = exc
        if not loop_ends:  # else all that waits there is cancelled, and is not to be told twice
            self.body.cancel()  # nothing, if the body has not begun: then it looks itself


class Entered(AbstractContextManager[T, bool]):
    """What `enter` returns: a context manager that you can use once."""

    def __init__(
        self, maker: _Maker[AbstractAsyncContextManager[T, Any]], timeout: float | None, on: Route | None
    ) -> None:
        self._name = maker.name
        self._manager = _Manager(maker)
        self._timeout = timeout
        self._on = on
        self._steps: Steps | None = None

    def __enter__(self) -> T:
        __tracebackhide__ = True
        if self._steps is not None:
            raise RuntimeError(f"{self._name} was entered before: each `with` needs an enter() of its own")
        manager = self._manager
        self._steps = steps = Steps(self._name, manager.leave, self._on, manager.cancel_body)
        try:
            value: Any = steps.run(manager.enter, timeout=self._timeout)
            if steps.apart:
                manager.body.__enter__()
                if manager.cancelled is not None:
                    manager.body.cancel()
        except BaseException:
            steps.end()
            raise
        return value  # type: ignore[no-any-return]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        __tracebackhide__ = True
        manager, steps = self._manager, self._steps
        assert steps is not None
        try:
            if steps.apart:
                manager.body.__exit__(exc_type, exc, tb)
            return bool(steps.run(manager.leave, exc))
        except BaseException as error:
            if error is exc or (_is_cancel(error) and _is_cancel(exc)):
                return False  # the body's own goes on
            raise
        finally:
            steps.end()


def _is_cancel(exc: BaseException | None) -> bool:
    return isinstance(exc, (asyncio.CancelledError, concurrent.futures.CancelledError))


@overload
def enter(
    work: AbstractAsyncContextManager[T, Any], /, *, timeout: float | None = None, on: Route | None = None
) -> Entered[T]: ...
@overload
def enter(
    work: Callable[..., Coroutine[Any, Any, AbstractAsyncContextManager[T, Any]]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> Entered[T]: ...
@overload
def enter(
    work: Callable[..., AbstractAsyncContextManager[T, Any]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> Entered[T]: ...
def enter(
    work: Any, /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any
) -> Entered[Any]:
    """Use an async context manager in synchronous code: ``with enter(work) as value``. From any thread.

    It stands for ``async with work as value``. The context manager is entered and left in the same task, so cancel
    scopes and task groups work. If the caller can be suspended, this is the caller's own task; otherwise it is a new
    task on the global `EventLoopThread`. An exception in the body reaches ``__aexit__``, which may suppress it. If the
    context manager cancels its task, as `asyncio.timeout` and `asyncio.TaskGroup` do, the body is interrupted where it
    waits in `run` or another wait of ipyportal.

    The value belongs to the loop where the context manager runs: use it inside `run`.

    Args:
        work: An async context manager. Or a function, asynchronous or not, that returns one; it is called with `args`
            and `kwargs` in that task: ``enter(asyncio.timeout, 5)``.
        timeout: Seconds that entering may take. There is no limit for leaving.
        on: As for `run`. The context manager then runs in a new task there, and you may leave it in a later cell.

    Raises:
        TypeError: `work` is not an async context manager. If a function returned it, the ``with`` raises this.
        TypeError, ValueError: As `run` does for `timeout` and `on`.
        TimeoutError: From the ``with``. Entering took too long.
        KeyboardInterrupt: From the ``with``. The stop button or Ctrl-C.
        BaseException: From the ``with``. What the context manager raised.

    Example:
        >>> import asyncio, contextlib
        >>> from ipyportal import enter, run
        >>> @contextlib.asynccontextmanager
        ... async def station(city):
        ...     yield city.upper()
        ...     print(city, "closed")
        >>> with enter(station("Oslo")) as name:
        ...     print(name)
        OSLO
        Oslo closed
        >>> try:
        ...     with enter(asyncio.timeout, 0.01):
        ...         run(asyncio.sleep(60))
        ... except TimeoutError:
        ...     print("timed out")
        timed out
    """
    timeout = check_timeout(timeout)
    check_route(on)
    return Entered(_Maker("enter", "__aenter__", work, args, kwargs), timeout, on)
