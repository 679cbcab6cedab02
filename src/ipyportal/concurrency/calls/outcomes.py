"""`Outcome`: what has become of a call, for whoever asks, waits for it, or is told."""

from __future__ import annotations

import abc
import concurrent.futures
import enum
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ipyportal.concurrency.reporting import Unretrieved, report

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CallFuture", "Outcome", "State"]

T = TypeVar("T")


class State(enum.Enum):
    """The state of a `Call`. The last four are final.

    Example:
        >>> from ipyportal.concurrency import Call, State
        >>> call = Call.new(int, "five")
        >>> call.state
        <State.PENDING: 'pending'>
        >>> call.run()
        >>> call.state is State.FAILED, type(call.exception())
        (True, <class 'ValueError'>)
    """

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEDOUT = "timed out"


# An enum's members take long to look up in CPython 3.11.
_PENDING, _RUNNING, _FINISHED = State.PENDING, State.RUNNING, State.FINISHED
_CANCELLED, _TIMEDOUT = State.CANCELLED, State.TIMEDOUT


class Outcome(Generic[T]):
    """The state of a call, its result, and who is told when it is over. All of it may be used from any thread."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_future",
        "_lock",
        "_over",
        "_state",
        "_traceback",
        "_unretrieved",
        "_value",
    )

    # Set by `Execution`, in one function: a call is made often.
    _state: State
    _over: bool
    """Whether the state is final."""
    _value: Any
    _traceback: TracebackType | None
    _unretrieved: Unretrieved | None
    """What it raised, until somebody retrieves it."""
    _callbacks: list[Callable[[Any], object]] | None
    _future: CallFuture[T] | None
    _lock: threading.RLock
    """Reentrant: a signal handler may cancel the very call whose state its thread is changing."""

    @abc.abstractmethod
    def cancel(self) -> bool:
        """Ask it to end. False if it is over already."""

    @property
    def state(self) -> State:
        return self._state

    def done(self) -> bool:
        """True if the call is over, however it ended."""
        return self._over

    def running(self) -> bool:
        return self._state is _RUNNING

    def cancelled(self) -> bool:
        """True if the call was cancelled. False if it was asked to end, but went on."""
        return self._state is _CANCELLED

    def timedout(self) -> bool:
        """True if the call's own deadline ended it."""
        if self._state is not _TIMEDOUT:
            return False
        self._mark_retrieved()  # who asks knows it now
        return True

    def add_done_callback(self, fn: Callable[[Self], object]) -> None:
        """Call ``fn(call)`` when the call is over, in the thread that ends it. If it is over already, call it now.

        If `fn` raises, that is reported, through `sys.unraisablehook` if one was set, otherwise on stderr. Other
        callbacks still run. No lock is held meanwhile. `fn` should not block: the thread has other calls to run.
        """

        def callback(call: Self) -> None:
            try:
                fn(call)
            except BaseException as exc:  # noqa: BLE001 - reported; a SystemExit must not end the thread of others
                report(exc, f"a done callback of {call!r} failed")

        self._when_done(callback)

    def _when_done(self, callback: Callable[[Self], object]) -> None:
        """Like `add_done_callback`, for the engine's own callbacks, which do not raise."""
        with self._lock:
            if not self._over:
                if self._callbacks is None:
                    self._callbacks = [callback]
                else:
                    self._callbacks.append(callback)
                return
        callback(self)

    def _not_when_done(self, callback: Callable[[Self], object]) -> None:
        with self._lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    @property
    def future(self) -> concurrent.futures.Future[T]:
        """The call as a `concurrent.futures.Future`, for `concurrent.futures.wait`, `asyncio.wrap_future` and others.

        Its ``cancel`` is the call's. Always the same object for the same call.
        """
        if self._future is None:
            with self._lock:
                if self._future is None:
                    self._future = CallFuture(self)
                    if self.done():
                        self._future._settle(self)
        return self._future

    def _take(self) -> T:
        __tracebackhide__ = True
        if self._state is _FINISHED:
            return cast(T, self._value)
        self._mark_retrieved()
        try:
            # Each time from the traceback it came with: taken twice, it does not grow.
            raise BaseException.with_traceback(self._value, self._traceback)
        finally:
            self = None  # type: ignore[assignment]  # the traceback refers to this frame

    def _mark_retrieved(self) -> None:
        """Somebody takes what it raised: it need not be reported."""
        if (unretrieved := self._unretrieved) is not None:
            self._unretrieved = None
            unretrieved.retrieved()

    def _failure(self) -> BaseException | None:
        """What it raised, if it failed; for the engine, which takes it."""
        if self._state is not State.FAILED:
            return None
        self._mark_retrieved()
        return cast(BaseException, self._value)

    def _tell(self, callbacks: list[Callable[[Any], object]]) -> None:
        """Call all of them, also if one is ended by Ctrl-C: those that follow tell who waits."""
        callbacks.reverse()
        try:
            while callbacks:
                callbacks.pop()(self)
        finally:
            if callbacks:
                self._tell(callbacks[::-1])


class CallFuture(concurrent.futures.Future[T]):
    """A call in the form that the standard library's functions take.

    It stays pending until the call is over: a Future that says it runs refuses to be cancelled, and a call does not.
    """

    def __init__(self, call: Outcome[T]) -> None:
        super().__init__()
        self._call: Outcome[T] | None = call
        self._unretrieved: Unretrieved | None = None

    def cancel(self) -> bool:
        call = self._call
        if call is None:  # this is final already
            return super().cancel()
        return call.cancel() or call.cancelled()

    def running(self) -> bool:
        call = self._call
        return call is not None and call.running()

    def result(self, timeout: float | None = None) -> T:
        try:
            return super().result(timeout)
        finally:
            self._mark_retrieved()
            self = None  # type: ignore[assignment]  # the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        finally:
            self._mark_retrieved()

    def _mark_retrieved(self) -> None:
        if self._unretrieved is not None and self.done():
            self._unretrieved.retrieved()

    def _settle(self, call: Outcome[T]) -> None:
        try:
            self._set(call)
        except BaseException as exc:  # noqa: BLE001 - of a callback (SystemExit), or it was set by somebody else
            report(exc, f"the future of {call!r} failed")
        finally:
            self._call = None  # not before: who cancels this meanwhile would take the call's end for undecided

    def _set(self, call: Outcome[T]) -> None:
        if call._state is _FINISHED:
            self.set_result(call._value)
        elif call._state is _CANCELLED:
            try:
                super().cancel()
            finally:  # also after a callback that raised SystemExit
                self.set_running_or_notify_cancel()  # tells concurrent.futures.wait
        else:
            self._unretrieved = call._unretrieved
            self.set_exception(call._value)
