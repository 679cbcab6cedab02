"""`Execution`: a function that runs once: how it begins, how it is asked to end, and how it does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, FunctionType
from typing import Any, Protocol, TypeVar

from ipyportal.concurrency.calls.outcomes import Outcome, State
from ipyportal.concurrency.cancellation.clock import Timer, check_timeout, clock
from ipyportal.concurrency.cancellation.interruption import ThreadState, thread_state
from ipyportal.concurrency.cancellation.scopes import GRACE, cancel_task
from ipyportal.concurrency.cancellation.targets import Interrupt
from ipyportal.concurrency.labels import place_name, shown_name, type_name
from ipyportal.concurrency.reporting import Unretrieved, report, traceback_of

__all__ = ["Execution", "cancel_in_child", "current_execution", "is_awaitable", "name_of"]

T = TypeVar("T")

_PENDING, _RUNNING = State.PENDING, State.RUNNING
_FINISHED, _CANCELLED, _TIMEDOUT = State.FINISHED, State.CANCELLED, State.TIMEDOUT

# A weak reference: tasks that a call leaves behind keep its context, and must not keep its result.
_current: contextvars.ContextVar[weakref.ref[Execution[Any]] | None] = contextvars.ContextVar(
    "ipyportal_current_call", default=None
)


def current_execution() -> Execution[Any] | None:
    """The call whose code this is."""
    reference = _current.get()
    return None if reference is None else reference()


# The stop button and Ctrl-C are seen by who presses them. Who has cancelled what a call waited for knows of that.
_NO_FAILURES = (KeyboardInterrupt, asyncio.CancelledError, concurrent.futures.CancelledError)


class SendsBack(Protocol):
    """Who waits for a call, and runs what that sends back: a `Waiter`."""

    def _cancel_sent_back(self) -> None: ...


class Step(Protocol):
    """The step of a task that ends a call."""

    _wake: tuple[Callable[[Any], object], Any] | None

    def is_in_a_step(self) -> bool: ...


class Execution(Outcome[T]):
    """A function with its arguments and context, that runs once. `Call` adds what its users need."""

    __slots__ = (
        "_context",
        "_deadline",
        "_ending",
        "_entered_in",
        "_greenlet",
        "_interrupt",
        "_name",
        "_parent",
        "_portal",
        "_task",
        "_thread",
        "_timeout",
        "_timer",
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
        self._state = _PENDING
        self._over = False
        self._value = None
        self._traceback = None
        self._callbacks = None
        self._future = None
        self._unretrieved = None
        self._lock = threading.RLock()
        self.fn: Callable[..., Any] | None = fn
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._parent = _current.get()
        self._name: str | None = None
        self._portal: Any = None
        self._ending: State | None = None  # what it was asked to end as
        self._waiter: SendsBack | None = None
        self._timeout: float | None = None
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._thread: ThreadState | None = None
        self._task: asyncio.Task[None] | None = None
        self._interrupt = Interrupt.NONE
        self._greenlet: weakref.ref[Any] | None = None
        self._entered_in: int  # set when it is entered

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
    def deadline(self) -> float | None:
        """The time of `time.monotonic()` at which the call times out, in seconds, or None."""
        return self._deadline

    def __repr__(self) -> str:
        where = "" if self._portal is None else f" on {place_name(self._portal)}"
        return f"<{type(self).__name__} {self.name} {self._state.value}{where}>"

    # --- asking it to end ----------------------------------------------------------------------------------------

    def set_timeout(self, timeout: float | None) -> None:
        """Cancel the call if it is not over `timeout` seconds from now. Time that it waits in a queue counts.

        One deadline covers a function and the awaitable that it returns. If there are several, the earliest counts.

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

        A call that has not begun is cancelled at once. In a call that runs, `asyncio.CancelledError` is raised (see
        `ipyportal.concurrency.interruption` for where). The calls that it sent back to the thread that waits for it are
        cancelled, too. The call is over when its clean-up is over.
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

    def _time_out(self) -> None:
        self._end(_TIMEDOUT)

    def _to_be_told(self) -> bool:
        """Whether the task is still to be told. In its own thread the hand-over may have done it just now."""
        with self._lock:
            if self._interrupt is Interrupt.NOTICED:
                return False
            self._interrupt = Interrupt.SENT
            return True

    def _cancel_task(self, task: asyncio.Task[None], waiter: SendsBack | None) -> None:
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

    def _lose_loop(self) -> None:
        """End the call for those who wait for it: its loop was stopped, and will not run on."""
        self._finish(
            self._ending or _CANCELLED,
            f"{self.name} was not over when its event loop was stopped, and cannot be any more",
        )

    # --- its deadline --------------------------------------------------------------------------------------------

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

    # --- beginning, and ending -----------------------------------------------------------------------------------

    def _begin(self, thread: ThreadState | None, task: asyncio.Task[None] | None) -> bool:
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

    def _finish(self, state: State, value: Any, step: Step | None = None) -> bool:
        """To a final state, once. False if the call was over, which happens to one that was abandoned.

        In a `step` a thread that waits is woken at its end. Woken before, it would run on another core into the
        interpreter's lock, which the rest of the step holds, and would have to be woken again.
        """
        fn, name = self.fn, self._name
        if name is None and fn is not None:
            name = fn.__qualname__ if type(fn) is FunctionType else name_of(fn)
        with self._lock:
            if self._over:
                return False
            if self._name is None:
                self._name = name
            if state is not _FINISHED:
                value = self._as_exception(state, value)
                self._traceback = traceback_of(value)
                if state is not _CANCELLED and not isinstance(value, _NO_FAILURES):
                    self._unretrieved = Unretrieved(value, self._unretrieved_text(), self._context)
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
            if step is not None and step.is_in_a_step() and type(wake) is BuiltinMethodType:
                step._wake = wake, self
            elif threading.get_ident() == clock.ident:
                clock.elsewhere(lambda: self._tell(callbacks))
            else:
                self._tell(callbacks)
        return True

    def _unretrieved_text(self) -> str:
        where = "" if self._portal is None else f" on {place_name(self._portal)}"
        return f"{self.name} failed{where}, and its exception was never retrieved (call.result() retrieves it)"

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

    def _cancel_in_child(self, why: BaseException) -> None:
        if not self._over:
            self._value, self._state, self._over = why, _CANCELLED, True
            # Nobody is told: the callbacks are the parent's. Nothing is dropped: a finalizer might end what it uses.
            self._callbacks = None
            self._future = None  # whose lock may be held as well; who asks gets another


_INVOKE_CODE = Execution._invoke.__code__


def cancel_in_child(calls: Iterable[Execution[Any]]) -> None:
    """In a forked child: end calls that no thread runs here. Who waits for one would wait for ever."""
    why = concurrent.futures.CancelledError(
        f"the call was in flight in process {os.getppid()} when this process was forked from it: it goes on there, and "
        "its result is there. Wait for it before the fork, or call the function anew"
    )
    here, own = thread_state(), current_execution()
    for call in calls:
        call._lock = threading.RLock()  # a thread that does not exist may hold the other
        if call is not own and not here.runs(call):  # else it is the one that forked
            call._cancel_in_child(why)


def name_of(fn: Any) -> str:
    """What messages call a function, a coroutine or the task that runs it, a `Call`."""
    if type(fn) is FunctionType:
        return shown_name(fn.__qualname__)
    try:
        if isinstance(fn, Execution):
            return fn.name
        if isinstance(fn, asyncio.Task):
            fn = fn.get_coro()
        while type(fn) is not FunctionType and isinstance(getattr(fn, "func", None), FunctionType):
            fn = fn.func  # functools.partial
        name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
        return shown_name(name) if isinstance(name, str) else type_name(fn)
    except Exception:  # noqa: BLE001 - a proxy of something that is not there, say
        return type_name(fn)


def is_awaitable(result: Any) -> bool:
    """`inspect.isawaitable`; False for what raises when it is asked (a proxy of something that is not there)."""
    try:
        return inspect.isawaitable(result)
    except Exception:  # noqa: BLE001 - whoever takes the result may know what to do with it
        return False
