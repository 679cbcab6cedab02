"""Cancel scopes and shields, for synchronous and asynchronous code.

Cancelling is a *request*: it raises `asyncio.CancelledError` once, where the code is, and the code cleans up in
its own ``finally``. Asynchronous code gets it from its task, synchronous code from its thread (`interruption` says
how). Code that cannot be interrupted is not waited for beyond `GRACE` seconds; it goes on until it returns.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ipyportal.concurrency.cancellation.clock import Timer, check_timeout, clock
from ipyportal.concurrency.cancellation.frames import Mark, exits_scope
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Interrupt, Shield

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "GRACE",
    "AsyncCancelScope",
    "CancelScope",
    "SyncCancelScope",
    "cancel_async_after",
    "cancel_async_at",
    "cancel_sync_after",
    "cancel_sync_at",
    "cancel_task",
    "shield",
]

T = TypeVar("T")

__ipyportal_mark__ = Mark.WHOLE  # a scope is entered, and left, or neither

GRACE = 0.5
"""Seconds that code which was cancelled has to notice it, before who waits for it is released. Code that noticed
and is cleaning up is waited for as long as it takes."""


class _Ending(enum.Enum):
    """Why the code inside a scope was asked to end."""

    CANCEL = "cancelled"
    DEADLINE = "timed out"


class CancelScope(abc.ABC):
    """A block of code that can be cancelled as a whole, at a deadline or from any thread.

    `cancel_sync_after`, `cancel_sync_at`, `cancel_async_after` and `cancel_async_at` make one. If the deadline ends
    the block, it raises `TimeoutError`. If `cancel()` ends it, it raises `asyncio.CancelledError`. If the block ended
    before it noticed, it raises neither. You can enter a scope once; a second time raises `RuntimeError`.

    Example:
        >>> import asyncio, time
        >>> from ipyportal.concurrency import CancelScope, cancel_sync_after, create_call, from_sync
        >>> def stop(scope: CancelScope):  # in another thread
        ...     scope.cancel()
        >>> try:
        ...     with cancel_sync_after(None) as scope:
        ...         call = from_sync.call_soon_in_new_thread(create_call(stop, scope))
        ...         time.sleep(60)
        ... except asyncio.CancelledError:
        ...     print("cancelled")
        cancelled
    """

    def __init__(self, deadline: float | None, timeout: float | None) -> None:
        self.name = "the code in the cancel scope"
        """What a TimeoutError calls it."""
        self._deadline = deadline
        self._timeout = timeout
        self._lock = threading.RLock()
        self._ending: _Ending | None = None
        self._outcome: _Ending | None = None
        self._open = False
        self._entered = False

    def _enter_once(self) -> None:
        if self._entered:
            raise RuntimeError(
                "a cancel scope can be entered once: its deadline was for the block before. Make one for each block, "
                "with cancel_sync_after or cancel_async_after"
            )
        self._entered = True

    @property
    def deadline(self) -> float | None:
        """The time of `time.monotonic()` at which the block is cancelled, in seconds, or None."""
        return self._deadline

    def cancel(self) -> bool:
        """Cancel the block. From any thread. False if it is not running."""
        return self._end(_Ending.CANCEL)

    def cancelled(self) -> bool:
        """True if the block was ended by `cancel()`."""
        return self._outcome is _Ending.CANCEL

    def timedout(self) -> bool:
        """True if the block was ended by its deadline."""
        return self._outcome is _Ending.DEADLINE

    def _end(self, why: _Ending) -> bool:
        with self._lock:
            if not self._open:
                return False
            if self._ending is not None:
                return True
            self._ending = why
        # Without the lock: it may end a call that the block waits for, and run its callbacks.
        self._interrupt_block()
        return True

    @abc.abstractmethod
    def _interrupt_block(self) -> None:
        """Have the code of the block interrupted. From any thread."""

    def _settle(self, exc: BaseException | None) -> None:
        """Decide how the block ended, and raise `TimeoutError` in place of what its deadline raised in it."""
        if not isinstance(exc, asyncio.CancelledError):
            return
        self._outcome = self._ending
        if self._ending is _Ending.DEADLINE:
            seconds = "" if self._timeout is None else f" after {self._timeout:g} s"
            raise TimeoutError(f"{self.name} timed out{seconds}") from exc


class SyncCancelScope(CancelScope):
    """A `CancelScope` around synchronous code of one thread.

    Example:
        >>> from ipyportal.concurrency import SyncCancelScope, cancel_sync_after
        >>> scope = cancel_sync_after(60)
        >>> isinstance(scope, SyncCancelScope), scope.timedout()
        (True, False)
    """

    _interrupt = Interrupt.NONE
    _greenlet: weakref.ref[Any] | None = None
    _entered_in: int
    _task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._enter_once()
        self._thread = thread_state()
        self._timer: Timer | None = None
        if asyncio._get_running_loop() is not None and (task := asyncio.current_task()) is not None:
            self._task = task
            self._shields = _open_shields(task)
            self._cancelling = task.cancelling()
            self._requested = False
        try:
            self._open = True
            self._thread.enter(self)
            if self._deadline is not None:
                self._timer = clock.call_at(self._deadline, lambda: self._end(_Ending.DEADLINE))
            return self
        except BaseException as exc:
            # Interrupted before the block has begun: then nobody calls `__exit__`.
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def _interrupt_block(self) -> None:
        if not self._thread.request(self) and self._task is not None:
            # Its code is suspended. It may be resumed before the loop gets to this, and is interrupted then.
            self._interrupt = Interrupt.REQUESTED
            try:
                self._task.get_loop().call_soon_threadsafe(self._cancel_task)
            except RuntimeError:
                pass  # the loop is closed, and the block with it

    def _cancel_task(self) -> None:
        # In the loop, where no code of the task runs: if the block has not ended, it is suspended.
        if self._open and self._interrupt is Interrupt.REQUESTED and self._task is not None:
            if _open_shields(self._task) > self._shields:
                return  # the shield looks for it when it is left
            self._interrupt = Interrupt.NOTICED
            self._requested = True
            self._task.cancel()

    @exits_scope
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._leave(exc)

    @exits_scope
    def _leave(self, exc: BaseException | None) -> None:
        try:
            self._thread.leave(self)
        finally:  # also after a Ctrl-C: the clock would be kept for a deadline of nobody
            with self._lock:
                self._open = False
            if self._timer is not None:
                clock.cancel(self._timer)
        if self._task is not None and self._requested and self._task.uncancel() > self._cancelling:
            return  # somebody else cancelled the task, too
        self._settle(exc)


class AsyncCancelScope(CancelScope):
    """A `CancelScope` around asynchronous code of one task. Entered with ``with``, inside the task.

    Example:
        >>> from ipyportal.concurrency import AsyncCancelScope, cancel_async_after
        >>> scope = cancel_async_after(60)
        >>> isinstance(scope, AsyncCancelScope), scope.timedout()
        (True, False)
    """

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError(
                "cancel_async_after and cancel_async_at work inside an asyncio task; in synchronous code "
                "use cancel_sync_after or cancel_sync_at"
            )
        self._enter_once()
        self._task = task
        self._loop = task.get_loop()
        self._cancelling = task.cancelling()
        self._timer: asyncio.TimerHandle | None = None
        self._shields = _open_shields(task)
        self._requested = False
        self._held_back = False
        self._open = True
        if self._deadline is not None:
            # The loop's own clock may be another one than time.monotonic().
            when = self._loop.time() + (self._deadline - time.monotonic())
            self._timer = self._loop.call_at(when, self._end, _Ending.DEADLINE)
        return self

    def _interrupt_block(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._cancel_task)
        except RuntimeError:
            pass  # the loop is closed, and the block with it

    def _cancel_task(self) -> None:
        if self._open and cancel_task(self._task, self._shields, self._wanted):
            self._requested = True

    def _wanted(self) -> bool:
        self._held_back = self._open
        return self._open

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with self._lock:
            self._open = False
        if self._timer is not None:
            self._timer.cancel()
        # As asyncio.timeout does it: what others asked of the task meanwhile is theirs, and stays.
        if self._requested and self._task.uncancel() > self._cancelling:
            return
        if self._requested or self._held_back:
            self._settle(exc)


def _deadline(seconds: float | None) -> tuple[float | None, float | None]:
    timeout = check_timeout(seconds)
    return (None, None) if timeout is None else (time.monotonic() + timeout, timeout)


def _check_deadline(deadline: float | None) -> float | None:
    # Any moment that is past is as good as another.
    past = isinstance(deadline, (int, float)) and not isinstance(deadline, bool) and deadline < 0
    return check_timeout(0.0 if past else deadline, "deadline")


def cancel_sync_after(seconds: float | None) -> SyncCancelScope:
    """Cancel the synchronous code of a ``with`` block after `seconds` (None: only by `CancelScope.cancel`).

    Call it from the thread whose code it is. The block ends with `TimeoutError`, on the main thread of a POSIX
    system also out of ``time.sleep``; in another thread at the next bytecode.

    Raises:
        TypeError, ValueError: `seconds` is not a number, or is negative.

    Example:
        >>> import time
        >>> from ipyportal.concurrency import cancel_sync_after
        >>> try:
        ...     with cancel_sync_after(0.01):
        ...         time.sleep(60)
        ... except TimeoutError:
        ...     print("timed out")
        timed out
    """
    return SyncCancelScope(*_deadline(seconds))


def cancel_sync_at(deadline: float | None) -> SyncCancelScope:
    """Like `cancel_sync_after`, at a time of `time.monotonic()`, in seconds.

    Example:
        >>> import time
        >>> from ipyportal.concurrency import cancel_sync_at
        >>> try:
        ...     with cancel_sync_at(time.monotonic() + 0.01):
        ...         time.sleep(60)
        ... except TimeoutError:
        ...     print("timed out")
        timed out
    """
    return SyncCancelScope(_check_deadline(deadline), None)


def cancel_async_after(seconds: float | None) -> AsyncCancelScope:
    """Cancel the asynchronous code of a ``with`` block after `seconds` (None: only by `CancelScope.cancel`).

    Call it inside a task. The block ends with `TimeoutError` at the ``await`` where it is.

    Raises:
        TypeError, ValueError: `seconds` is not a number, or is negative.
        RuntimeError: Entered outside a task.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import cancel_async_after
        >>> async def main():
        ...     try:
        ...         with cancel_async_after(0.01):
        ...             await asyncio.sleep(60)
        ...     except TimeoutError:
        ...         print("timed out")
        >>> asyncio.run(main())
        timed out
    """
    return AsyncCancelScope(*_deadline(seconds))


def cancel_async_at(deadline: float | None) -> AsyncCancelScope:
    """Like `cancel_async_after`, at a time of `time.monotonic()`, in seconds.

    Example:
        >>> import asyncio, time
        >>> from ipyportal.concurrency import cancel_async_at
        >>> async def main():
        ...     try:
        ...         with cancel_async_at(time.monotonic() + 0.01):
        ...             await asyncio.sleep(60)
        ...     except TimeoutError:
        ...         print("timed out")
        >>> asyncio.run(main())
        timed out
    """
    return AsyncCancelScope(_check_deadline(deadline), None)


# --- shields ---------------------------------------------------------------------------------------------------------


class _TaskShield:
    """The shields that are open in one task, and what they hold back."""

    __slots__ = ("held_back", "open")

    def __init__(self) -> None:
        self.open = 0
        # For each request, how many shields lie outside of what it is for, and whether it is still wanted.
        self.held_back: list[tuple[int, Callable[[], bool]]] = []

    def close(self) -> bool:
        """Leave the innermost shield. True if a request that it held back is due now."""
        self.open -= 1
        due = [wanted() for outside, wanted in self.held_back if outside >= self.open]
        self.held_back = [request for request in self.held_back if request[0] < self.open]
        return any(due)


_task_shields: weakref.WeakKeyDictionary[asyncio.Task[Any], _TaskShield] = weakref.WeakKeyDictionary()


def _open_shields(task: asyncio.Task[Any]) -> int:
    shielded = _task_shields.get(task) if _task_shields else None
    return 0 if shielded is None else shielded.open


def cancel_task(task: asyncio.Task[Any], outside: int = 0, wanted: Callable[[], bool] = lambda: True) -> bool:
    """Cancel `task`. In its loop's thread.

    Where more than `outside` shields are open in it, the last of those raises `CancelledError` when it is left, if
    the request is `wanted` then; False is returned now.
    """
    shielded = _task_shields.get(task) if _task_shields else None
    if shielded is None or shielded.open <= outside:
        task.cancel()
        return True
    shielded.held_back.append((outside, wanted))
    return False


@contextmanager
def shield() -> Iterator[None]:
    """Delay a cancel of the code in a ``with`` block until the end of the block.

    It works in synchronous code and in a task. It protects against `Call.cancel`, and against deadlines and cancel
    scopes of ipyportal, except scopes inside the block. It does not protect a task against ``task.cancel()`` by other
    code, or any code against KeyboardInterrupt. If a cancel was delayed, the end of the block raises
    `asyncio.CancelledError`.

    Example:
        >>> import time
        >>> from ipyportal.concurrency import cancel_sync_after, shield
        >>> try:
        ...     with cancel_sync_after(0.01):
        ...         with shield():
        ...             time.sleep(0.05)
        ...             print("saved")
        ...         print("not reached")
        ... except TimeoutError:
        ...     print("timed out")
        saved
        timed out
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    thread = thread_state()
    # In a task, synchronous code is interrupted through its thread while it runs, and through the task while it is
    # suspended; asynchronous code through the task alone.
    mark = Shield() if task is None or thread.runs_code_of(task) else None
    shielded: _TaskShield | None = None
    if task is not None:
        shielded = _task_shields.setdefault(task, _TaskShield())
        shielded.open += 1
    if mark is not None:
        thread.enter(mark)
    try:
        yield
    finally:
        due = False
        if task is not None and shielded is not None:
            due = shielded.close()
            if not shielded.open:
                _task_shields.pop(task, None)
        if mark is not None:
            thread.leave(mark)
            thread.checkpoint()
        if due:
            raise asyncio.CancelledError
