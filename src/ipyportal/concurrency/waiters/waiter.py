"""`Waiter`: what waits for a call, and is a portal for what the call sends back."""

from __future__ import annotations

import abc
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.reporting import report

__all__ = ["Waiter", "waiter_of", "waiters_of"]

T = TypeVar("T")


class Waiter(Portal, Generic[T]):
    """Waits for a call, and runs the calls that it sends back. Make it in the thread that will wait.

    This is the base of `SyncWaiter` and `AsyncWaiter`. Make a waiter before you submit the call. A call that is sent
    back before the wait begins is kept until then. After the end of the wait, submitting raises RuntimeError. If the
    call is cancelled or times out, the calls that it sent back are cancelled, too, even while they run.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import Call, SyncWaiter, Waiter, get_global_loop
        >>> async def ask(waiter: Waiter):  # on the loop thread
        ...     return await waiter.submit(Call.new(threading.current_thread))
        >>> waiter = SyncWaiter(Call.new(lambda: ask(waiter)))
        >>> waiter.wait(get_global_loop()).result() is threading.current_thread()
        True
    """

    _done_callbacks: tuple[Call[Any], ...] = ()
    _closed = False

    def __init__(self, call: Call[T]) -> None:
        if not isinstance(call, Call):
            raise TypeError(f"a waiter needs a Call, not {type(call).__name__}: {type(self).__name__}(Call.new(fn))")
        self._call = call
        self._thread = threading.current_thread()
        self._todo: deque[Call[Any]] = deque()
        # What was sent back and is not over; and whether that was after the call had been asked to end, as a clean-up.
        self._sent_back: dict[Call[Any], bool] = {}
        # The call's own: nothing that is done with it here takes another, or calls what does.
        self._lock = call._lock
        self.earlier: Waiter[Any] | None = None
        """The waiter that the call had before, with calls of its own that were sent back to it."""
        with self._lock:
            if not call._over:
                self.earlier, call._waiter = waiter_of(call), self

    @property
    def name(self) -> str:
        return f"the thread that waits for {self._call.name} ({self._thread.name})"

    @property
    def thread(self) -> threading.Thread:
        """The thread that waits."""
        return self._thread

    @property
    def closed(self) -> bool:
        """True if the wait is over, so that no call can be sent back."""
        return self._closed

    @property
    def call(self) -> Call[T]:
        """The call that is waited for."""
        return self._call

    def submit(self, call: Call[Any]) -> Call[Any]:
        """Run `call` in the thread that waits. From any thread.

        Raises:
            RuntimeError: The wait is over.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{call.name} cannot be sent back: nobody waits for {self._call.name} any more")
            self._claim(call)
            self._sent_back[call] = self._call._ending is not None
            self._todo.append(call)
        self._wake()
        return call

    def add_done_callback(self, call: Call[Any]) -> Call[Any]:
        """Run `call` in the thread that waits when the wait is over, however it ended. From any thread.

        If it raises an exception, that is reported, and the other callbacks still run.

        Raises:
            RuntimeError: The wait is over.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._call!r} is not waited for any more")
            self._claim(call)
            self._done_callbacks += (call,)
        return call

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it has to run in this thread, and the wait blocks "
                "this thread. Call the function directly"
            )

    @abc.abstractmethod
    def _wake(self) -> None:
        """There is something to do for the thread that waits. From any thread."""

    def _cancel_sent_back(self) -> None:
        # The lock is held only to copy: cancelling calls back into this waiter.
        waiter: Waiter[Any] | None = self
        while waiter is not None:
            with self._lock:  # theirs, too: it is the call's
                sent_back = list(waiter._sent_back)
            for call in sent_back:
                call.cancel()
            waiter = waiter.earlier

    def _next(self) -> Call[Any]:
        """The next call to run; a cancelled one, if it was sent back before the awaited call was asked to end."""
        call = self._todo.popleft()
        if self._call._ending is not None and not self._sent_back.get(call):
            # Who cancels the awaited call is about to cancel this one, too, and may not have come to it yet.
            call.cancel()
        return call

    def _ended(self) -> None:
        """The call is over. If not by itself, what it sent back is not wanted any more."""
        if self._call.cancelled() or self._call.timedout():
            self._cancel_sent_back()

    def _close_if_idle(self) -> bool:
        with self._lock:
            self._closed = not self._todo
            return self._closed

    def _report(self, callback: Call[Any]) -> None:
        if (exc := callback._failure()) is not None:
            report(exc, f"a done callback of {self._call!r} failed")


def waiter_of(call: Call[Any]) -> Waiter[Any] | None:
    """The latest waiter of a call that is not over. A call knows it as what it cancels when it ends, and no more."""
    return cast("Waiter[Any] | None", call._waiter)


def waiters_of(call: Call[Any]) -> Iterator[Waiter[Any]]:
    """All waiters of a call, the latest first. From any thread."""
    waiter = waiter_of(call)
    while waiter is not None:
        yield waiter
        waiter = waiter.earlier
