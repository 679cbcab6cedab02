"""`Call`: a function with its arguments and context, to be run once; and `Portal`, a place where calls run."""

from __future__ import annotations

import abc
import asyncio
import queue
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from inspect import CORO_CREATED, getcoroutinestate
from types import CoroutineType
from typing import Any, TypeVar, cast, overload

from ipyportal.concurrency.calls.execution import Execution, current_execution, is_awaitable, name_of
from ipyportal.concurrency.calls.outcomes import State
from ipyportal.concurrency.calls.tasks import CallCoroutine, CallDoneFuture, wait_until_over
from ipyportal.concurrency.cancellation import interruption
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.cancellation.interruption import ThreadState, thread_state
from ipyportal.concurrency.pyodide import IN_PYODIDE, check_wait
from ipyportal.concurrency.reporting import report
from ipyportal.concurrency.suspension.suspending import suspendable_here

__all__ = ["Call", "Portal", "around", "await_it", "awaiting", "close_unbegun", "current_call"]

T = TypeVar("T")
R = TypeVar("R")  # of a class method: checkers take the T of a class that is named without it for unknown

_FINISHED, _CANCELLED, _TIMEDOUT = State.FINISHED, State.CANCELLED, State.TIMEDOUT


def current_call() -> Call[Any] | None:
    """Return the call whose code is running, or None. It works also in tasks and threads with the call's context.

    Example:
        >>> from ipyportal.concurrency import create_call, current_call, from_sync
        >>> def name():
        ...     return current_call().name
        >>> from_sync.call_in_new_thread(name)
        'name'
        >>> current_call() is None
        True
    """
    return cast("Call[Any] | None", current_execution())


async def await_it(awaitable: Awaitable[T]) -> T:
    """``await awaitable``, as a coroutine function."""
    __tracebackhide__ = True
    return await awaitable


def close_unbegun(coroutine: CoroutineType[Any, Any, Any]) -> None:
    """As a task does whose first step is cancelled: Python would warn that it was never awaited."""
    if getcoroutinestate(coroutine) == CORO_CREATED:
        coroutine.close()


def awaiting(awaitable: Awaitable[T]) -> Call[T]:
    """A call that awaits `awaitable`, and goes by its name. A coroutine that does not begin is closed at its end."""
    call: Call[T] = Call(await_it, (awaitable,))
    call._name = name_of(awaitable)
    if isinstance(awaitable, CoroutineType):
        call._when_done(lambda _: close_unbegun(awaitable))
    return call


def around(call: Call[Any] | None) -> Iterator[Call[Any]]:
    """`call`, and the calls around it whose code has made it, the innermost first."""
    while call is not None:
        yield call
        call = cast("Call[Any] | None", None if call._parent is None else call._parent())


class Call(Execution[T]):
    """A function with its arguments, which runs once, and its result.

    Make a call with `Call.new`. Then submit it to a `Portal` (a place where calls run), or run it here with `run()`.
    ``fn`` may be synchronous or asynchronous. It may also be a synchronous function that returns an awaitable (a `Call`
    is one), which is then awaited where the call runs. The call runs in a copy of the context (`contextvars`) that was
    current when the call was made. When it is over, the function, its arguments and the context are dropped. The
    engine keeps no reference to the call.

    You may use all methods from any thread. If ``fn`` raises KeyboardInterrupt, SystemExit or the like, that is the
    call's exception: it is raised where the result is taken, and does not end the thread that ran the call.

    If a call fails and no code takes its exception (by `result`, `exception`, ``await`` or its `future`), the exception
    is reported when Python deletes the call or when the interpreter ends: on stderr, or through `sys.unraisablehook`
    if one was set. A cancelled call has not failed.

    Example:
        >>> from ipyportal.concurrency import Call, get_global_loop
        >>> async def double(n):
        ...     return 2 * n
        >>> call = get_global_loop().submit(Call.new(double, 21))
        >>> call.result(timeout=5)
        42
        >>> call.done(), call.cancelled()
        (True, False)
    """

    __slots__ = ()

    @overload
    @classmethod
    def new(cls, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, **kwargs: Any) -> Call[R]: ...

    @overload
    @classmethod
    def new(cls, fn: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any) -> Call[R]: ...

    @overload
    @classmethod
    def new(cls, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Call[R]: ...

    @classmethod
    def new(cls, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
        """A call of ``fn(*args, **kwargs)`` that has not begun. It captures the current context.

        If `fn` returns an awaitable (also a `Call`), it is awaited, and its result is the result of this call.

        Raises:
            TypeError: `fn` is not callable.
        """
        return cls(fn, args, kwargs or None)

    @property
    def portal(self) -> Portal | None:
        """Where the call was submitted."""
        return self._portal  # type: ignore[no-any-return]

    # --- running it ----------------------------------------------------------------------------------------------

    def run(self) -> Coroutine[Any, Any, None] | None:
        """Run the call here and now, and store what it returns or raises. Nothing is raised here.

        Returns None. But if a loop runs in this thread and ``fn`` is asynchronous, it returns a coroutine that runs the
        rest: await it. In a thread without a running loop, an asynchronous ``fn`` runs in its own loop, as in
        `asyncio.run`.

        Raises:
            RuntimeError: The call has begun before.
        """
        thread = thread_state()
        if not self._begin(thread, None):
            if self._ending is None:
                raise RuntimeError(f"{self!r} has begun before; a call runs once")
            return None
        try:
            return self._run(thread)
        finally:
            del self  # see `_invoke`

    def _run_submitted(self) -> Coroutine[Any, Any, None] | None:
        """`run` for a portal: its thread must not end because the call was run elsewhere meanwhile."""
        thread = thread_state()
        if not self._begin(thread, None):
            return None
        try:
            return self._run(thread)
        finally:
            del self  # see `_invoke`

    def _run(self, thread: ThreadState) -> Coroutine[Any, Any, None] | None:
        context = self._context
        assert context is not None
        try:
            try:
                thread.enter(self)
                if self._ending is not None:
                    thread.request(self)  # cancelled since it began, when this thread could not be told yet
                result = context.run(self._invoke)
            finally:
                thread.leave(self)
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            self._fail(exc)
        else:
            if result is None or not is_awaitable(result):
                self._finish(_FINISHED, result)
            elif asyncio._get_running_loop() is not None:
                return CallCoroutine(self, awaitable=result, context=context)
            else:
                try:
                    with asyncio.Runner() as runner:
                        runner.run(CallCoroutine(self, awaitable=result, alone=True), context=context)
                except BaseException as exc:  # noqa: BLE001 - Ctrl-C, or what tasks that were left behind raise
                    # A cancel that came in the last step ends the task alone.
                    if not self._fail(exc) and not isinstance(exc, asyncio.CancelledError):
                        report(exc, f"what {self!r} left behind failed")
        finally:
            self = result = None  # type: ignore[assignment]  # as in `_invoke`
        return None

    def __call__(self) -> T | Awaitable[T]:
        """Run the call here and give its result; where `run` returns a coroutine, one that gives the result."""
        rest = self.run()
        if rest is None:
            return self.result()

        async def run_rest() -> T:
            await rest
            return await self

        return run_rest()

    # --- waiting for it ------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> T:
        """Wait until the call is over, and return its result. From any thread except that of the loop it runs on.

        Args:
            timeout: Seconds to wait; None to wait as long as it takes. After that time, the call goes on.

        Raises:
            TimeoutError: The call timed out (then `timedout()` is true), or the wait took too long.
            concurrent.futures.CancelledError: The call was cancelled.
            RuntimeError: The wait could never end, because this thread is the one that must run the call.
            BaseException: What the call raised.
        """
        __tracebackhide__ = True
        try:
            if not self._over:
                self._wait(timeout)
            return self._take()
        finally:
            self = None  # type: ignore[assignment]  # as in `_take`

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the call is over, and return what it raised, or None. Otherwise like `result`."""
        if not self.done():
            self._wait(timeout)
        if self._state is _FINISHED:
            return None
        if self._state is _CANCELLED:
            self._take()
        self._mark_retrieved()
        return cast(BaseException, self._value)

    def _check_wait(self, portal: Portal | None = None) -> None:
        """Raise RuntimeError if a wait here, which blocks, could never end. `portal`: where the call will be submitted.

        It could not if the code that would wait is the call's own, or blocks the thread where the call is to run.
        """
        if (place := self.portal if portal is None else portal) is not None:
            place._check_wait(self)
        if IN_PYODIDE and not self._over:
            check_wait(self)
        self._check_code()

    def _check_code(self) -> None:
        """Raise RuntimeError if the code that would wait is the call's own."""
        thread, task = self._thread, self._task
        if (task is not None and asyncio._get_running_loop() is not None and task is asyncio.current_task()) or (
            thread is not None and thread is thread_state() and thread.runs(self)
        ):
            raise RuntimeError(f"waiting here for {self!r} would never end: the call would wait for itself")

    def _wait(self, timeout: float | None) -> None:
        timeout = check_timeout(timeout)
        if (caller := suspendable_here()) is not None:
            self._check_code()
            caller.drive(self._wait_suspended(timeout))
            return
        self._check_wait()
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        until = None if timeout is None else time.monotonic() + timeout
        self._when_done(inbox.put)
        try:
            while not self._over:
                limit = until
                if self._deadline is not None and self._ending is None:
                    limit = self._deadline if until is None else min(self._deadline, until)
                try:
                    interruption.get(inbox, None if limit is None else limit - time.monotonic())
                except queue.Empty:
                    now = time.monotonic()
                    if until is not None and now >= until and not self.done():
                        raise self._not_done_after(timeout) from None
                    if self._deadline is not None and now >= self._deadline:
                        self._end(_TIMEDOUT)
        finally:
            if self._callbacks is not None:
                self._not_when_done(inbox.put)

    async def _wait_suspended(self, timeout: float | None) -> None:
        over = asyncio.ensure_future(wait_until_over(self))
        try:
            await asyncio.wait([over], timeout=timeout)
            if not self.done():
                raise self._not_done_after(timeout)
        finally:
            over.cancel()

    def _not_done_after(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"{self.name} is not done after {timeout:g} s; it goes on. A time-out of the call itself would end it"
        )

    async def aresult(self) -> T:
        """Wait in async code, on any loop, until the call is over, and return its result. The same as ``await call``.

        If the task that awaits is cancelled, the call is cancelled, and the task waits for its clean-up.

        Raises:
            TimeoutError: The call timed out.
            asyncio.CancelledError: The call was cancelled.
            BaseException: What the call raised.
        """
        __tracebackhide__ = True
        return await self

    def __await__(self) -> Generator[Any, None, T]:
        __tracebackhide__ = True
        if not self.done():
            self._check_code()
            awaited = CallDoneFuture(self)
            try:
                yield from awaited
            finally:
                awaited.release()
            if awaited.asked_to_cancel and self._state is not _CANCELLED:
                # It ended by itself just before it noticed. Who was cancelled is told so all the same; the result
                # stays with the call.
                raise asyncio.CancelledError
        if self._state is _CANCELLED:
            raise asyncio.CancelledError(*self._value.args) from self._value.__cause__
        return self._take()


class Portal(abc.ABC):
    """A place where calls run: a thread, an event loop, an executor, or the thread that waits for a call.

    Example:
        >>> from ipyportal.concurrency import Call, Portal
        >>> class Here(Portal):
        ...     name = "here"
        ...     def submit(self, call):
        ...         call.run()
        ...         return call
        >>> Here().submit(Call.new(len, "Oslo")).result()
        4
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abc.abstractmethod
    def submit(self, call: Call[T]) -> Call[T]:
        """Run `call` here soon, after the calls submitted before. From any thread. Returns the call.

        Raises:
            RuntimeError: The portal takes no more calls, or the call was submitted before.
            TypeError: `call` is not a `Call`.
        """

    def _claim(self, call: Call[Any]) -> None:
        """Note that `call` is to run here, once."""
        # Without the call's lock: of two threads that submit one call, both may get here, and `Call._begin` sees to
        # it that it runs once.
        try:
            submitted = call._portal is not None or call.running()
        except AttributeError:
            raise TypeError(
                f"a portal runs a Call, not {type(call).__name__}: portal.submit(Call.new(fn, *args)), or "
                "ipyportal.submit(fn, *args, on=portal)"
            ) from None
        if submitted:
            raise RuntimeError(f"{call!r} was submitted before; make a new call for each run")
        call._portal = self
        # From now on, in the queue. A waiter keeps the time of its call by itself, at less cost.
        if call._deadline is not None and call._waiter is None:
            call._keep_time()

    def _unclaim(self, call: Call[Any]) -> None:
        """Undo `_claim`: the call is not to run here after all."""
        call._portal = None
        call._drop_timer()

    def _check_wait(self, call: Call[Any]) -> None:  # noqa: B027 - most portals have nothing to check
        """Raise RuntimeError if this thread, by blocking for `call`, would keep it from ever being run."""
