"""`Call`: a function with its arguments and context, to be run once, somewhere, and what became of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import enum
import inspect
import os
import queue
import sys
import threading
import time
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from ipyportal.concurrency import interruption
from ipyportal.concurrency.cancellation import GRACE, cancel_task
from ipyportal.concurrency.deadlines import Timer, check_timeout, clock, report
from ipyportal.concurrency.interruption import Interrupt, InterruptibleThread, interruptible_thread
from ipyportal.concurrency.primitives import as_exception, traceback_of
from ipyportal.concurrency.suspension import OVER, Suspendable, can_suspend, greenlets_available, suspend
from ipyportal.concurrency.texts import place_name, shown_name, type_name
from ipyportal.concurrency.turns import loop_has_turns

if TYPE_CHECKING:
    from ipyportal.concurrency.portals import Portal
    from ipyportal.concurrency.waiters import Waiter

__all__ = [
    "Awaited",
    "Call",
    "CallCoroutine",
    "State",
    "call_of",
    "current_call",
    "leave_to_parent",
    "name_of",
    "start_on_loop",
]

T = TypeVar("T")
R = TypeVar("R")  # of a class method: checkers take the T of a class that is named without it for unknown


class State(enum.Enum):
    """Where a `Call` is in its life. The last four are final.

    Example:
        >>> from ipyportal.concurrency import Call, State
        >>> call = Call.new(int, "five")
        >>> call.state
        <State.PENDING: 'pending'>
        >>> call.run()
        >>> call.state is State.FAILED
        True
    """

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEDOUT = "timed out"


_PENDING, _RUNNING = State.PENDING, State.RUNNING
_FINISHED, _CANCELLED, _TIMEDOUT = State.FINISHED, State.CANCELLED, State.TIMEDOUT

# A weak reference: tasks that a call leaves behind keep its context, and must not keep its result.
_current: contextvars.ContextVar[weakref.ref[Call[Any]] | None] = contextvars.ContextVar(
    "ipyportal_current_call", default=None
)


def current_call() -> Call[Any] | None:
    """The call whose code this is, also in tasks and threads that got the call's context; None outside of calls.

    Example:
        >>> from ipyportal.concurrency import create_call, current_call, from_sync
        >>> def name():
        ...     return current_call().name
        >>> from_sync.call_in_new_thread(name)
        'name'
        >>> current_call() is None
        True
    """
    reference = _current.get()
    return None if reference is None else reference()


class Call(Generic[T]):
    """A function to be run once, with its arguments, and its result.

    Make one with `Call.new`, give it to a `Portal` or run it here with `run()`. ``fn`` may be synchronous,
    asynchronous, or a synchronous function that returns an awaitable (a `Call` is one), which is then awaited where the
    call runs. It runs in a copy of the context (`contextvars`) that was current when the call was made. When it is
    over, the function, its arguments and the context are dropped; the engine keeps no reference to the call.

    All methods may be used from any thread. KeyboardInterrupt, SystemExit and the like raised by ``fn`` are the
    call's exception: they reach whoever takes the result and do not end the thread that ran it.

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

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_context",
        "_deadline",
        "_ending",
        "_entered_in",
        "_future",
        "_greenlet",
        "_interrupt",
        "_lock",
        "_name",
        "_over",
        "_parent",
        "_portal",
        "_state",
        "_task",
        "_thread",
        "_timeout",
        "_timer",
        "_traceback",
        "_value",
        "_waiter",
        "args",
        "fn",
        "kwargs",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"a call needs a function, not {type(fn).__name__}; an awaitable can be given to ipyportal.run()"
            )
        self.fn: Callable[..., Any] | None = fn
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._parent = _current.get()
        self._name: str | None = None
        self._portal: Portal | None = None
        self._state = _PENDING
        self._over = False  # whether that is final
        self._ending: State | None = None  # what it was asked to end as
        self._value: Any = None
        self._traceback: types.TracebackType | None = None
        self._callbacks: list[Callable[[Any], object]] | None = None
        self._future: _CallFuture[T] | None = None
        self._waiter: Waiter[Any] | None = None
        self._timeout: float | None = None
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._thread: InterruptibleThread | None = None
        self._task: asyncio.Task[None] | None = None
        self._interrupt = Interrupt.NONE
        self._greenlet: weakref.ref[Any] | None = None
        self._entered_in: int  # set when it is entered
        # Reentrant: a signal handler may cancel the very call whose state its thread is changing.
        self._lock = threading.RLock()

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

        What `fn` returns is awaited if it can be, a `Call` as well: its result is the call's.

        Raises:
            TypeError: `fn` is not callable.
        """
        return cls(fn, args, kwargs or None)

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The function's qualified name, or what it was set to; on one line, with what is not printable escaped."""
        if self._name is None:
            self._name = name_of(self.fn)
        return shown_name(self._name)

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a call must be a str, not {type(name).__name__}")
        self._name = name

    @property
    def state(self) -> State:
        return self._state

    @property
    def portal(self) -> Portal | None:
        """Where the call was submitted."""
        return self._portal

    @property
    def deadline(self) -> float | None:
        """The time of `time.monotonic()` at which the call times out, in seconds, or None."""
        return self._deadline

    def __repr__(self) -> str:
        where = "" if self._portal is None else f" on {place_name(self._portal)}"
        return f"<Call {self.name} {self._state.value}{where}>"

    def done(self) -> bool:
        """True if the call is over, however it ended."""
        return self._over

    def running(self) -> bool:
        return self._state is _RUNNING

    def cancelled(self) -> bool:
        """True if the call ended by being cancelled. One that was asked to and went on is not."""
        return self._state is _CANCELLED

    def timedout(self) -> bool:
        """True if the call's own deadline ended it."""
        return self._state is _TIMEDOUT

    # --- what is asked of it -------------------------------------------------------------------------------------

    def set_timeout(self, timeout: float | None) -> None:
        """Give the call `timeout` seconds from now to be over, waiting in queues included; then it is cancelled.

        One deadline covers a function and the awaitable that it returns. Of several, the earliest holds.

        Raises:
            TypeError, ValueError: `timeout` is not a number, or is negative.
            RuntimeError: The call has begun.
        """
        timeout = check_timeout(timeout)
        if timeout is None:
            return
        with self._lock:
            if self._state is not _PENDING:
                raise RuntimeError(f"{self!r} has begun: set its time-out before it is submitted")
            deadline = time.monotonic() + timeout
            if self._deadline is None or deadline < self._deadline:
                self._timeout, self._deadline = timeout, deadline

    def cancel(self) -> bool:
        """Ask the call to end. False if it is over already.

        One that has not begun is cancelled at once. One that runs gets `asyncio.CancelledError` raised in it (see
        `ipyportal.concurrency.interruption` for where), and with it all that it sent back to the thread that waits
        for it. It is over when its clean-up is.
        """
        return self._end(_CANCELLED)

    def _end(self, why: State) -> bool:
        """Ask the call to end because it is cancelled or its time is over."""
        with self._lock:
            if self.done():
                return False
            if self._ending is not None:
                return True
            self._ending = why
            begun = self._state is _RUNNING
            thread, task, waiter = self._thread, self._task, self._waiter
        if not begun:
            return self._finish(why, None)
        # Who waits is released if the code is where no request can reach it: blocked in C, or in a blocked loop. Set
        # before the request: who waits may be gone, and have ended the clock, as soon as the code has been told.
        timer = clock.remind(GRACE, self._abandon)
        with self._lock:
            if not self._over:
                timer, self._timer = self._timer, timer  # in place of the deadline's, which matters no more
        if timer is not None:
            clock.cancel(timer)
        told_thread = thread is not None and thread.request(self)
        if not told_thread and task is not None and self._to_be_told():
            try:
                task.get_loop().call_soon_threadsafe(self._cancel_task, task, waiter)
                waiter = None
            except RuntimeError:
                pass  # the loop is closed: the call is over, or nothing can end it but what follows
        if waiter is not None:
            waiter._cancel_sent_back()
        return True

    def _to_be_told(self) -> bool:
        """Whether the task is still to be told. In its own thread the hand-over may have done it just now."""
        with self._lock:
            if self._interrupt is Interrupt.NOTICED:
                return False
            self._interrupt = Interrupt.SENT
            return True

    def _cancel_task(self, task: asyncio.Task[None], waiter: Waiter[Any] | None) -> None:
        # Not if the hand-over from the synchronous part has done it meanwhile: a request interrupts once.
        if not self.done() and self._interrupt is not Interrupt.NOTICED:
            self._interrupt = Interrupt.NOTICED
            cancel_task(task)
        # After the task: one that awaits what it sent back would else be told by that first, and then once more by its
        # own cancel, in the middle of its clean-up.
        if waiter is not None:
            waiter._cancel_sent_back()

    def _abandon(self) -> None:
        """End the call for those who wait for it, if its code has not noticed that it shall end."""
        with self._lock:
            if self.done() or self._interrupt is not Interrupt.SENT or self._ending is None:
                return
            ending = self._ending
        where = "its thread" if self._portal is None else place_name(self._portal)
        self._finish(
            ending,
            f"{self.name} {ending.value} and could not be interrupted: {where} is blocked; "
            f"what runs there goes on until it returns, and its result will be dropped",
        )

    # --- running it ----------------------------------------------------------------------------------------------

    def _begin(self, thread: InterruptibleThread | None, task: asyncio.Task[None] | None) -> bool:
        """From pending to running. False if the call was cancelled, or its deadline passed, before.

        Synchronous code that nobody has timed yet is timed from here. An asynchronous call is when it first waits:
        before, it would not notice.
        """
        timer = None
        if self._deadline is not None:
            if time.monotonic() >= self._deadline:
                self._end(_TIMEDOUT)
            elif thread is not None and self._timer is None:
                try:
                    timer = clock.call_at(self._deadline, self._time_out)
                except RuntimeError as exc:  # no thread can be started for the clock
                    self._finish(State.FAILED, exc)
        with self._lock:
            if self._state is not _PENDING or self._ending is not None:
                if timer is not None:
                    clock.cancel(timer)
                return False
            self._state = _RUNNING
            self._thread = thread
            self._task = task
            if timer is not None:
                self._timer = timer
        return True

    def _keep_time(self) -> None:
        """Have the clock end the call at its deadline."""
        assert self._deadline is not None
        try:
            timer = clock.call_at(self._deadline, self._time_out)
        except RuntimeError as exc:  # no thread can be started for it
            if self._state is _PENDING:
                self._finish(State.FAILED, exc)
            else:
                report(exc, f"the time of {self!r} is not limited")
            return
        with self._lock:
            if not self._over and self._ending is None:
                self._timer = timer
                return
        clock.cancel(timer)

    def _drop_timer(self) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            clock.cancel(timer)

    def _invoke(self) -> Any:
        """Call the function. In the call's context."""
        _current.set(weakref.ref(self))
        fn, args, kwargs = self.fn, self.args, self.kwargs
        assert fn is not None
        assert args is not None
        try:
            if kwargs is None:
                return fn(*args)
            return fn(*args, **kwargs)
        finally:
            # What is raised keeps the frames of its traceback, and those the frames that called them, as this one.
            self = fn = args = kwargs = None  # type: ignore[assignment]

    def run(self) -> Coroutine[Any, Any, None] | None:
        """Run the call here and now; what comes of it is the call's result, and nothing is raised.

        Returns None, or, where a loop runs in this thread and ``fn`` turns out to be asynchronous, a coroutine that
        runs the rest: await it. In a thread without a running loop an asynchronous ``fn`` runs in a loop of its
        own, as in `asyncio.run`.

        Raises:
            RuntimeError: The call has begun before.
        """
        thread = interruptible_thread()
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
        thread = interruptible_thread()
        if not self._begin(thread, None):
            return None
        try:
            return self._run(thread)
        finally:
            del self  # see `_invoke`

    def _run(self, thread: InterruptibleThread) -> Coroutine[Any, Any, None] | None:
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
            if result is None or not _is_awaitable(result):
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

    def _time_out(self) -> None:
        self._end(_TIMEDOUT)

    def _fail(self, exc: BaseException) -> bool:
        """End the call with what its code raised. False if it was over."""
        if (traceback := traceback_of(exc)) is not None:
            # Without the frame that caught it: it is ours, and its locals would keep the call alive.
            traceback = traceback.tb_next
            while traceback is not None and traceback.tb_frame.f_code is _INVOKE_CODE:
                traceback = traceback.tb_next
            BaseException.with_traceback(exc, traceback)  # not by its attribute, which a frozen dataclass cannot set
        if isinstance(exc, asyncio.CancelledError) or (
            # What it waited for was ended together with it, and the wait told it first.
            self._ending is not None and isinstance(exc, concurrent.futures.CancelledError)
        ):
            return self._finish(_TIMEDOUT if self._ending is _TIMEDOUT else _CANCELLED, exc)
        return self._finish(State.FAILED, exc)

    def _finish(self, state: State, value: Any, step: CallCoroutine | None = None) -> bool:
        """To a final state, once. False if the call was over, which happens to one that was abandoned.

        In a `step` a thread that waits is woken at its end. Woken before, it would run on another core into the
        interpreter's lock, which the rest of the step holds, and would have to be woken again.
        """
        fn, name = self.fn, self._name
        if name is None and fn is not None:
            name = fn.__qualname__ if type(fn) is types.FunctionType else name_of(fn)
        with self._lock:
            if self._over:
                return False
            if self._name is None:
                self._name = name
            if state is not _FINISHED:
                value = self._as_exception(state, value)
                self._traceback = traceback_of(value)
            self._value = value
            self._state = state
            self._over = True
            callbacks, self._callbacks = self._callbacks, None
            timer, future = self._timer, self._future
            dropped = (self.args, self.kwargs, self._context)
            self.fn = self.args = self.kwargs = self._context = None
            self._thread = self._task = self._waiter = self._timer = None
        # Without the lock: finalizers run here, too. Before the callbacks, which may run for long.
        del fn, dropped, value
        if timer is not None:
            clock.cancel(timer)
        if future is not None:
            # First: `concurrent.futures.wait` ends before the callbacks are called.
            callbacks = [future._settle, *(callbacks or ())]
        if callbacks is not None:
            # The `put` of a wait alone: a user's callback may wait in the step. And suspended code that is thrown away
            # ends in no step.
            wake = callbacks[0] if len(callbacks) == 1 else None
            if step is not None and step.is_in_a_step() and type(wake) is types.BuiltinMethodType:
                step._wake = wake, self
            elif threading.get_ident() == clock.ident:
                clock.elsewhere(lambda: self._tell(callbacks))
            else:
                self._tell(callbacks)
        return True

    def _tell(self, callbacks: list[Callable[[Any], object]]) -> None:
        """Call all of them, also if one is ended by Ctrl-C: those that follow tell who waits."""
        callbacks.reverse()
        try:
            while callbacks:
                callbacks.pop()(self)
        finally:
            if callbacks:
                self._tell(callbacks[::-1])

    def _as_exception(self, state: State, value: Any) -> BaseException:
        if state is State.FAILED:
            assert isinstance(value, BaseException)
            return value
        cause = value if isinstance(value, BaseException) else None
        text = value if isinstance(value, str) else None
        exc: BaseException
        if state is _TIMEDOUT:
            exc = TimeoutError(text or f"{self.name} timed out after {self._timeout:g} s")
        else:
            exc = concurrent.futures.CancelledError(text or f"{self.name} was cancelled")
        exc.__cause__ = cause
        return exc

    def _leave_to_parent(self, why: BaseException) -> None:
        if not self._over:
            self._value, self._state, self._over = why, _CANCELLED, True
            # Nobody is told: the callbacks are the parent's. Nothing is dropped: a finalizer might end what it uses.
            self._callbacks = None
            self._future = None  # whose lock may be held as well; who asks gets another

    # --- waiting for it ------------------------------------------------------------------------------------------

    def add_done_callback(self, fn: Callable[[Call[T]], object]) -> None:
        """Call ``fn(call)`` when the call is over, in the thread that ends it; now, if it is over.

        What `fn` raises is reported, through `sys.unraisablehook` if one was set, else on stderr; other callbacks still
        run. No lock is held meanwhile. It should not block: the thread has other calls to run.
        """

        def callback(call: Call[T]) -> None:
            try:
                fn(call)
            except BaseException as exc:  # noqa: BLE001 - reported; a SystemExit must not end the thread of others
                report(exc, f"a done callback of {call!r} failed")

        self._when_done(callback)

    def _when_done(self, callback: Callable[[Call[T]], object]) -> None:
        """Like `add_done_callback`, for the engine's own callbacks, which do not raise."""
        with self._lock:
            if not self._over:
                if self._callbacks is None:
                    self._callbacks = [callback]
                else:
                    self._callbacks.append(callback)
                return
        callback(self)

    def _not_when_done(self, callback: Callable[[Call[T]], object]) -> None:
        with self._lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call to be over and give its result. From any thread but that of the loop it runs on.

        Args:
            timeout: Seconds to wait; None to wait as long as it takes. The call goes on when they are over.

        Raises:
            TimeoutError: The call timed out (then `timedout()` is true), or the wait did.
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

    def _take(self) -> T:
        __tracebackhide__ = True
        if self._state is _FINISHED:
            return cast(T, self._value)
        try:
            # Each time from the traceback it came with: taken twice, it does not grow.
            raise BaseException.with_traceback(self._value, self._traceback)
        finally:
            self = None  # type: ignore[assignment]  # the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call to be over and give what it raised, or None. As `result` in all else."""
        if not self.done():
            self._wait(timeout)
        if self._state is _FINISHED:
            return None
        if self._state is _CANCELLED:
            self._take()
        return cast(BaseException, self._value)

    def _check_wait(self) -> None:
        """Raise RuntimeError if the code that would wait is the call's own."""
        thread, task = self._thread, self._task
        if (task is not None and asyncio._get_running_loop() is not None and task is asyncio.current_task()) or (
            thread is not None and thread is interruptible_thread() and thread.runs(self)
        ):
            raise RuntimeError(f"waiting here for {self!r} would never end: it is this very code that waits")

    def _wait(self, timeout: float | None) -> None:
        timeout = check_timeout(timeout)
        self._check_wait()
        if can_suspend():
            suspend(self._wait_suspended(timeout))
            return
        if self._portal is not None:
            self._portal._check_wait(self)
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
        over = asyncio.ensure_future(_over(self))
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
        """Wait for the call to be over and give its result, in any loop; the same as ``await call``.

        Cancelling the task that awaits it cancels the call, and waits for the call's clean-up.

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
            self._check_wait()
            awaited = Awaited(self)
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

    @property
    def future(self) -> concurrent.futures.Future[T]:
        """The call as a `concurrent.futures.Future`, for `concurrent.futures.wait`, `asyncio.wrap_future` and others.

        Its ``cancel`` is the call's. Always the same object for the same call.
        """
        if self._future is None:
            with self._lock:
                if self._future is None:
                    self._future = _CallFuture(self)
                    if self.done():
                        self._future._settle(self)
        return self._future


_INVOKE_CODE = Call._invoke.__code__


def leave_to_parent(calls: Iterable[Call[Any]]) -> None:
    """In a forked child: end calls that no thread runs here. Who waits for one would wait for ever."""
    why = concurrent.futures.CancelledError(
        f"the call was in flight in process {os.getppid()} when this process was forked from it: it goes on there, and "
        "its result is there. Wait for it before the fork, or call the function anew"
    )
    here, own = interruptible_thread(), current_call()
    for call in calls:
        call._lock = threading.RLock()  # a thread that does not exist may hold the other
        if call is not own and not here.runs(call):  # else it is the one that forked
            call._leave_to_parent(why)


def name_of(fn: Any) -> str:
    """What messages call a function, a coroutine or the task that runs it, a `Call`."""
    if type(fn) is types.FunctionType:
        return shown_name(fn.__qualname__)
    try:
        if isinstance(fn, Call):
            return fn.name
        if isinstance(fn, asyncio.Task):
            fn = fn.get_coro()
        while type(fn) is not types.FunctionType and isinstance(getattr(fn, "func", None), types.FunctionType):
            fn = fn.func  # functools.partial
        name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
        return shown_name(name) if isinstance(name, str) else type_name(fn)
    except Exception:  # noqa: BLE001 - a proxy of something that is not there, say
        return type_name(fn)


def _is_awaitable(result: Any) -> bool:
    """`inspect.isawaitable`; False for what raises when it is asked (a proxy of something that is not there)."""
    try:
        return inspect.isawaitable(result)
    except Exception:  # noqa: BLE001 - whoever takes the result may know what to do with it
        return False


class _CallFuture(concurrent.futures.Future[T]):
    """A call in the form that the standard library's functions take.

    It stays pending until the call is over: a Future that says it runs refuses to be cancelled, and a call does not.
    """

    def __init__(self, call: Call[T]) -> None:
        super().__init__()
        self._call: Call[T] | None = call

    def cancel(self) -> bool:
        call = self._call
        if call is None:  # this is final already
            return super().cancel()
        return call.cancel() or call.cancelled()

    def running(self) -> bool:
        call = self._call
        return call is not None and call.running()

    def _settle(self, call: Call[T]) -> None:
        try:
            self._set(call)
        except BaseException as exc:  # noqa: BLE001 - of a callback (SystemExit), or it was set by somebody else
            report(exc, f"the future of {call!r} failed")
        finally:
            self._call = None  # not before: who cancels this meanwhile would take the call's end for undecided

    def _set(self, call: Call[T]) -> None:
        if call._state is _FINISHED:
            self.set_result(call._value)
        elif call._state is _CANCELLED:
            try:
                super().cancel()
            finally:  # also after a callback that raised SystemExit
                self.set_running_or_notify_cancel()  # tells concurrent.futures.wait
        else:
            self.set_exception(call._value)


class Awaited(asyncio.Future[None]):
    """What a task awaits for a call: done when the call is. The `owner` of the call cancels it when cancelled."""

    def __init__(self, call: Call[Any], *, owner: bool = True) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._call = call
        self._owner = owner
        self.asked_to_cancel = False
        self._ident = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        if call._deadline is not None:
            # Also a call that waits in the queue of a blocked loop times out.
            delay = call._deadline - time.monotonic()
            self._timer = loop.call_later(max(0.0, delay), call._time_out)
        call._when_done(self._wake)

    def _wake(self, call: Call[Any]) -> None:
        if threading.get_ident() == self._ident:
            self._settle()
        else:
            try:
                self.get_loop().call_soon_threadsafe(self._settle)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

    def _settle(self) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any | None = None) -> bool:
        if not self._owner:
            return super().cancel(msg)
        # Not cancelled itself: the task goes on when the call's clean-up has run.
        if self.done() or not self._call.cancel():
            return False
        self.asked_to_cancel = True
        return True

    def release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._call._not_when_done(self._wake)
        if not self.done():
            super().cancel()


async def _over(call: Call[Any]) -> None:
    """Wait for the call to be over, without cancelling it when the wait is cancelled."""
    awaited = Awaited(call, owner=False)
    try:
        await awaited
    finally:
        awaited.release()


class CallCoroutine(Suspendable[None]):
    """What a task runs for a call: its function, then the awaitable that it returned.

    A task that is cancelled before its first step still ends the call, and the call is over within the very step
    that ends it. It raises nothing: the task always ends well.
    """

    __slots__ = ("_alone", "_begun", "_call", "_context", "_in_greenlets", "_running", "_untimed", "_wake")
    _inner: Coroutine[Any, Any, Any] | None

    def __init__(
        self,
        call: Call[Any],
        running: set[asyncio.Task[None]] | None = None,
        *,
        awaitable: Awaitable[Any] | None = None,
        context: contextvars.Context | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__(None if awaitable is None else _as_coroutine(awaitable))
        self._call: Call[Any] | None = call
        self._running = running
        # On a loop without turns. A call that has begun, because `Call.run` called the function, belongs to whoever
        # awaits the rest.
        self._in_greenlets = (
            awaitable is None and greenlets_available() and not loop_has_turns(asyncio._get_running_loop())
        )
        self._context = context  # the call's, where the task has another
        self._alone = alone  # in a loop of its own, whose Runner makes a Ctrl-C of the CancelledError that it causes
        self._untimed = False  # it has a deadline, and has not waited yet
        self._begun = False
        self._wake: tuple[Callable[[Any], object], Call[Any]] | None = None  # of the thread that waits for the call

    def send(self, value: Any) -> Any:
        try:
            answer = self._step(self._advance, value) if self._in_greenlets else self._answer(self._advance(value))
        finally:
            if (wake := self._wake) is not None:
                wake[0](wake[1])  # here, and not in a function at whose entry Ctrl-C could be seen
                self._wake = wake = None
        if self._untimed:
            self._untimed = False
            if self._call is not None:
                self._call._keep_time()
        return answer

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        exc = as_exception(typ, val, tb)
        try:
            if self._greenlet is not None:
                return self._step(None, exc)
            if self._in_greenlets:
                return self._step(self._advance_with, exc)
            return self._answer(self._advance_with(exc))
        finally:
            if (wake := self._wake) is not None:  # likewise
                wake[0](wake[1])
                self._wake = wake = None

    def is_in_a_step(self) -> bool:
        """Whether the code of the call that asks is in a step. In a greenlet that is thrown away it is in none."""
        return not self._in_greenlets or self._root is not None

    def _answer(self, answer: Any) -> Any:
        if answer is OVER:
            raise StopIteration
        return answer

    def _advance(self, value: Any) -> Any:
        """One step: what it waits for, or `OVER`."""
        call, inner = self._call, self._inner
        assert call is not None
        if not self._begun:
            inner = self._start(call)
            if inner is None:
                del call
                self._over()
                return OVER
        assert inner is not None
        try:
            if self._context is not None:
                return self._context.run(inner.send, value)
            return inner.send(value)
        except StopIteration as stop:
            call._finish(_FINISHED, stop.value, self)
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            self._fail(call, exc)
        del call, inner
        self._over()
        return OVER

    def _advance_with(self, exc: BaseException) -> Any:
        """One step that begins with an exception."""
        call, inner = self._call, self._inner
        assert call is not None
        if inner is None:
            call._end(_CANCELLED)
            self._over()
            return OVER
        if not self._begun:
            self._adopt(call)
        try:
            if self._context is not None:
                return self._context.run(inner.throw, exc)
            return inner.throw(exc)
        except StopIteration as stop:
            call._finish(_FINISHED, stop.value)
        except BaseException as error:  # noqa: BLE001
            self._fail(call, error)
        del call, inner, exc
        self._over()
        return OVER

    def _fail(self, call: Call[Any], exc: BaseException) -> None:
        if self._alone and isinstance(exc, asyncio.CancelledError) and call._ending is None:
            self._over()
            raise exc
        call._fail(exc)

    def close(self) -> None:
        if self._greenlet is not None:
            super().close()
        inner, call = self._inner, self._call
        if inner is not None:
            inner.close()
        if call is not None:
            call._end(_CANCELLED)
            call._finish(_CANCELLED, None)
        self._over()

    def _adopt(self, call: Call[Any]) -> asyncio.Task[None] | None:
        self._begun = True
        task = self._task
        if task is None:
            self._task = task = asyncio.current_task()
            if self._running is not None and task is not None:
                self._running.add(task)  # its first step may wait, and who made the task with it
        return task

    def _start(self, call: Call[Any]) -> Coroutine[Any, Any, Any] | None:
        """The first step: run the function. Gives what is left to be awaited, or None if the call is over."""
        task = self._adopt(call)
        if self._inner is not None:  # begun by `Call.run`
            with call._lock:
                call._task = task
            self._hand_over(call)
            return self._inner
        fn = call.fn
        if type(fn) is types.FunctionType and fn.__code__.co_flags & inspect.CO_COROUTINE:
            # No code runs now that would need to be interrupted.
            if not call._begin(None, task):
                return None
            if call._deadline is not None and call._timer is None:
                self._untimed = True
            try:
                self._inner = call._invoke()
            except BaseException as exc:  # noqa: BLE001 - wrong arguments
                call._fail(exc)
                del call
            return self._inner
        thread = interruptible_thread()
        if not call._begin(thread, task):
            return None
        thread.enter(call)
        try:
            try:
                result = call._invoke()
            finally:
                thread.leave(call)
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            call._fail(exc)
            call = fn = task = None  # type: ignore[assignment]  # as in `Call._invoke`
            return None
        if not _is_awaitable(result):
            call._finish(_FINISHED, result, self)
            return None
        self._inner = _as_coroutine(result)
        self._hand_over(call)
        return self._inner

    def _hand_over(self, call: Call[Any]) -> None:
        """What the synchronous part was asked and did not notice any more, the asynchronous part is asked."""
        with call._lock:
            if call._ending is None or call._interrupt is Interrupt.NOTICED:
                return
            call._interrupt = Interrupt.SENT
        if self._task is not None:
            # Between two steps, and not in this one: its code may be about to enter a shield, which holds it back.
            self._task.get_loop().call_soon(call._cancel_task, self._task, None)

    def _over(self) -> None:
        if self._running is not None:
            # A task that is cancelled before its first step has not been seen here before.
            task = self._task or asyncio.current_task()
            if task is not None:
                self._running.discard(task)
        self._call = self._inner = self._context = self._task = None


def _as_coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    if isinstance(awaitable, types.CoroutineType):
        return awaitable

    async def await_it() -> Any:
        return await awaitable

    return await_it()


def call_of(task: asyncio.Task[None]) -> Call[Any] | None:
    """The call that `task` runs, if it is not over."""
    coroutine = task.get_coro()
    return coroutine._call if isinstance(coroutine, CallCoroutine) else None


def start_on_loop(
    call: Call[Any], loop: asyncio.AbstractEventLoop, running: set[asyncio.Task[None]], *, at_once: bool = False
) -> None:
    """Run `call` in a task of `loop`, in the loop's thread. The task is kept in `running` until it ends.

    With `at_once` its first step runs now, and not in another turn of the loop, where CPython can do that (3.12). If
    synchronous code waits in that step, whoever calls this stands still.
    """
    context = call._context
    if context is None:
        return  # cancelled while it was queued
    coroutine = CallCoroutine(call, running)
    # What the first step raises keeps the frames that called it, as this one: see `Call._invoke`.
    del call
    task: asyncio.Task[None]
    if loop.get_task_factory() is not None:
        try:
            task = loop.create_task(coroutine, context=context)
        except Exception as exc:  # noqa: BLE001 - the factory is somebody else's; the calls that follow must run
            if coroutine._call is not None:
                coroutine._call._fail(exc)
            return
    elif at_once and sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
    else:
        task = coroutine._task = asyncio.Task(coroutine, loop=loop, context=context)
    if not task.done():  # it may be over already
        running.add(task)
    del task, coroutine, context  # likewise
