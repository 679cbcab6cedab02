"""Deadlines, cancel scopes and shields, for synchronous and asynchronous code.

Cancelling is a *request*: it raises `asyncio.CancelledError` once, where the code is, and the code cleans up in
its own ``finally``. Asynchronous code gets it from its task. Synchronous code gets it from its thread:

- in one of the engine's own waits, at once (the wait is woken);
- on the main thread of a POSIX system, at once also inside ``time.sleep`` and other system calls: a ``SIGURG`` is
  sent to the thread. Its default action is to be ignored, so one that comes late harms nobody, and no ``SIGALRM``,
  timer or ``SIGINT`` handler of the user is touched;
- in any other thread, at its next bytecode (``PyThreadState_SetAsyncExc``). A thread that is blocked in C cannot be
  interrupted; who waits for it is released after `GRACE` seconds, while the thread goes on until it returns from C.

On Windows, where a thread cannot be sent a signal, the main thread is treated as any other thread.

Deadlines are times of `time.monotonic()`, in seconds. Those of asynchronous code are timers of its loop. Those of
synchronous code are kept by one clock thread for the whole process, started when the first is set; no deadline ever
starts a thread of its own.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import heapq
import itertools
import math
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "GRACE",
    "AsyncCancelScope",
    "CancelScope",
    "Cancelled",
    "SyncCancelScope",
    "cancel_async_after",
    "cancel_async_at",
    "cancel_sync_after",
    "cancel_sync_at",
    "check_timeout",
    "shield",
]

T = TypeVar("T")

GRACE = 0.5
"""Seconds that code which was cancelled has to notice it, before who waits for it is released. Code that noticed
and is cleaning up is waited for as long as it takes."""

_AGAIN = 0.01  # seconds after which an interrupt is sent again that may not have been seen

_WAKE_SIGNAL: int | None = getattr(signal, "SIGURG", None) if hasattr(signal, "pthread_kill") else None


def check_timeout(timeout: float | None, what: str = "timeout") -> float | None:
    """`timeout` in seconds as a deadline's distance, or None for none; raises on what cannot be one.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not a number of seconds (NaN).
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        try:
            if isinstance(timeout, bool):
                raise TypeError
            timeout = float(timeout.__float__())  # type: ignore[unreachable]  # numpy scalars, Fraction, Decimal
        except (AttributeError, TypeError, ValueError):
            raise TypeError(f"{what} must be a number of seconds or None, not {type(timeout).__name__}") from None
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"{what} must be 0 or more seconds, not {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


class Cancelled(asyncio.CancelledError):
    """What cancelling raises in synchronous code. Do not catch it without raising it again."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # CPython builds the exception in the thread that it was sent to, when it arrives there: the one moment at
        # which the sender can be told that the code has noticed.
        if (thread := _local.interruptible) is not None:
            thread.acknowledge()
            frame = sys._getframe(1)
            if frame.f_code in (SyncCancelScope.__exit__.__code__, SyncCancelScope._leave.__code__):
                # CPython 3.13 may raise it at the entry of the very functions that would deal with it, where no `try`
                # can stand. What they do is done here, while it is on its way.
                frame.f_locals["self"]._leave(self)


# --- the clock -------------------------------------------------------------------------------------------------------


class Timer:
    """A function that the clock thread will call; `cancel` may be called from any thread."""

    __slots__ = ("_clock", "_fn")

    def __init__(self, clock: Clock, fn: Callable[[], object]) -> None:
        self._clock = clock
        self._fn: Callable[[], object] | None = fn

    def cancel(self) -> None:
        if self._fn is not None:
            self._fn = None
            self._clock.forget()


class Clock:
    """One thread that calls functions at their times. They are the engine's own, short, and never user code."""

    _COMPACT_FROM = 256

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # Reentrant, because a signal handler on the thread that holds it may cancel a call, and so a timer.
        self._changed = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._dead = 0
        self._thread: threading.Thread | None = None

    def call_at(self, when: float, fn: Callable[[], object]) -> Timer:
        timer = Timer(self, fn)
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), timer))
            if self._thread is None:
                thread = threading.Thread(target=self._main, name="ipyportal-clock", daemon=True)
                thread.start()
                self._thread = thread
            elif self._heap[0][2] is timer:  # only an earliest deadline needs to wake the clock
                self._changed.notify()
        return timer

    def remind(self, delay: float, fn: Callable[[], object]) -> None:
        """Call `fn` in `delay` seconds; not if the interpreter is ending, where no thread can be started any more."""
        try:
            self.call_at(time.monotonic() + delay, fn)
        except RuntimeError:
            pass

    def forget(self) -> None:
        """A timer was cancelled. Cancelled timers stay until half of the heap is made of them."""
        with self._changed:
            self._dead += 1
            if self._dead > self._COMPACT_FROM and self._dead * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2]._fn is not None]
                heapq.heapify(self._heap)
                self._dead = 0

    def _main(self) -> None:
        while (timer := self._next()) is not None:
            fn, timer._fn = timer._fn, None
            if fn is not None:
                try:
                    fn()
                except Exception as exc:  # noqa: BLE001 - a bug of the engine: say so, and keep the other deadlines
                    _report(exc, "a deadline's function failed")
            del fn, timer

    def _next(self) -> Timer | None:
        with self._changed:
            # Not a flag: after a stop another thread may be the clock before this one has looked.
            while self._thread is threading.current_thread():
                if not self._heap:
                    self._changed.wait()
                    continue
                when, _, timer = self._heap[0]
                delay = when - time.monotonic()
                if timer._fn is None:
                    self._dead -= 1
                elif delay > 0:
                    self._changed.wait(min(delay, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._heap)
                if timer._fn is not None:
                    return timer
            return None

    def stop(self) -> None:
        """End the thread and drop all deadlines. The next one starts it anew."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._heap.clear()
            self._dead = 0
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _report(exc: BaseException, what: str) -> None:
    """Say through `sys.unraisablehook` that `exc` had nobody to go to."""
    sys.unraisablehook(_Unraisable((type(exc), exc, exc.__traceback__, f"ipyportal: {what}", None)))


class _Unraisable(tuple[Any, ...]):
    """The fields that `sys.unraisablehook` reads; its own type cannot be made from Python."""

    __slots__ = ()
    exc_type = property(lambda self: self[0])
    exc_value = property(lambda self: self[1])
    exc_traceback = property(lambda self: self[2])
    err_msg = property(lambda self: self[3])
    object = property(lambda self: self[4])


clock = Clock()


# --- interrupting a thread -------------------------------------------------------------------------------------------


class Interrupt(enum.Enum):
    """How far a request to cancel synchronous code has come."""

    NONE = "not requested"
    REQUESTED = "requested, but a shield holds it back or nobody could be told yet"
    SENT = "sent to the thread, which has not noticed yet"
    NOTICED = "raised in the code"


class Interruptible(Protocol):
    """A part of synchronous code that can be cancelled: a `Call`, a cancel scope, a shield."""

    _interrupt: Interrupt


class Shield:
    """Stands on a thread's stack where requests for what lies below it are held back."""

    __slots__ = ()
    _interrupt = Interrupt.NONE


class Wait(Shield):
    """Stands on a thread's stack while the thread is in one of the engine's own waits.

    A request for what lies below calls `wake` instead of interrupting the thread, which may be anywhere in the
    engine's bookkeeping. The wait looks for what it is owed when it wakes, and at its end.
    """

    __slots__ = ("wake",)

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake


class InterruptibleThread:
    """What the engine runs in one thread, innermost last, and the one way to interrupt it.

    All methods but `request` are called by that thread itself. The lock orders a request against the end of what it
    is for: an interrupt is sent only while its target is on the stack, and what was sent too late is taken back
    before the target is left. So it never hits code after its target.
    """

    __slots__ = ("_handler", "_ident", "_lock", "_signals", "_stack", "_told")

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        # Reentrant, because the signal handler below runs in this thread and may find the lock held by it.
        self._lock = threading.RLock()
        self._stack: list[Interruptible] = []
        self._told: list[Interruptible] = []  # whom the latest interrupt was for
        self._signals = _WAKE_SIGNAL is not None and (threading.current_thread() is threading.main_thread())
        self._handler: Any = _NOT_INSTALLED

    def enter(self, target: Interruptible) -> None:
        if self._signals and self._handler is _NOT_INSTALLED and not isinstance(target, Shield):
            self._install()
        with self._lock:
            self._stack.append(target)

    def leave(self, target: Interruptible) -> None:
        """Take `target` off the stack. Afterwards no interrupt meant for it can arrive.

        What it has been told may have been meant for an outer target, too: a thread has room for one interrupt at a
        time. That is sent again a little later, when the exception that is on its way has been handled.
        """
        while True:
            try:
                with self._lock:
                    if target in self._stack:
                        del self._stack[self._stack.index(target) :]
                    if target._interrupt is Interrupt.SENT and not self._signals:
                        _set_async_exception(self._ident, None)
                    if target._interrupt is not Interrupt.NONE:
                        told = self._told if target in self._told else []
                        owed = [one for one in self._stack if one._interrupt is Interrupt.SENT or one in told]
                        for outer in owed:
                            outer._interrupt = Interrupt.REQUESTED
                        if told:
                            self._told = []
                        if owed:
                            clock.remind(_AGAIN, self._send_again)
                break
            except Cancelled:
                # It arrived in here, between two bytecodes. An interrupt is sent once, so this ends.
                continue
        if self._handler is not _NOT_INSTALLED and not self._stack:
            self._uninstall()

    def _send_again(self) -> None:
        with self._lock:
            self._send()

    def suspend(self, depth: int) -> list[Interruptible]:
        """Take off what lies above `depth`: its code is being suspended, and the thread goes on with other code."""
        with self._lock:
            self.checkpoint()
            taken = self._stack[depth:]
            del self._stack[depth:]
        return taken

    def resume(self, taken: list[Interruptible]) -> None:
        with self._lock:
            self._stack.extend(taken)
            self._send()  # what was asked of them meanwhile

    @property
    def depth(self) -> int:
        return len(self._stack)

    def runs_code_of(self, task: asyncio.Task[Any]) -> bool:
        """True if synchronous code of `task` is running in this thread."""
        return any(getattr(target, "_task", None) is task for target in self._stack)

    def runs(self, target: Interruptible) -> bool:
        """True if the code of `target` is running, or waiting, in this thread."""
        return target in self._stack

    def request(self, target: Interruptible) -> bool:
        """Interrupt `target`. From any thread. False if this thread is not running it now."""
        with self._lock:
            if target not in self._stack:
                return False
            if target._interrupt is Interrupt.NONE:
                target._interrupt = Interrupt.REQUESTED
                self._send()
            return True

    def _send(self) -> None:
        """Tell the code of each target that was asked to end, unless a shield lies above it."""
        innermost: Shield | None = None
        for target in reversed(self._stack):
            if isinstance(target, Shield):
                innermost = target
            elif target._interrupt is Interrupt.REQUESTED:
                if innermost is None:
                    target._interrupt = Interrupt.SENT
                elif isinstance(innermost, Wait):
                    innermost.wake()
        if any(target._interrupt is Interrupt.SENT for target in self._unshielded()):
            if self._signals:
                self._signal(_AGAIN)
            else:
                self._raise_there()

    def _raise_there(self) -> None:
        """Send this thread an exception, but not where it stands now if that would tear the engine's code apart.

        A thread that does not hold the interpreter's lock stands where it gave it up, and that is where an exception
        sent to it is raised. It may run on between the first look and the sending: hence the second.
        """
        if self._can_be_raised_in():
            _set_async_exception(self._ident, Cancelled)
            if self._can_be_raised_in():
                return
            _set_async_exception(self._ident, None)
        clock.remind(_AGAIN, self._send_again)

    def _can_be_raised_in(self) -> bool:
        frame = sys._current_frames().get(self._ident)
        return not _is_delicate(frame) and not _awaits_start(frame)

    def _signal(self, again: float) -> None:
        """Send this thread the signal, and after `again` seconds once more.

        A system call sees only a signal that comes while it is in the kernel. One that comes after the last bytecode
        and before that leaves the thread asleep: often, since a thread that gives up the interpreter's lock for its
        system call wakes the very thread that cancels it.
        """
        assert _WAKE_SIGNAL is not None
        signal.pthread_kill(self._ident, _WAKE_SIGNAL)
        clock.remind(again, lambda: self._remind(again))

    def _remind(self, after: float) -> None:
        with self._lock:
            if any(target._interrupt is Interrupt.SENT for target in self._unshielded()):
                self._signal(min(2 * after, 0.05))

    def _unshielded(self) -> Iterator[Interruptible]:
        for target in reversed(self._stack):
            if isinstance(target, Shield):
                return
            yield target

    def acknowledge(self) -> None:
        """An interrupt has arrived in this thread."""
        with self._lock:
            self._told = [target for target in self._unshielded() if target._interrupt is Interrupt.SENT]
            for target in self._told:
                target._interrupt = Interrupt.NOTICED

    def owed(self, below: Shield | None = None) -> bool:
        """True if the code here, or that below the shield `below`, was asked to end and has not been told."""
        stack = self._stack if below is None else self._stack[: self._stack.index(below)]
        for target in reversed(stack):
            if isinstance(target, Shield):
                return False
            if target._interrupt in (Interrupt.REQUESTED, Interrupt.SENT):
                return True
        return False

    def checkpoint(self) -> None:
        """Raise `Cancelled` here if the code here was asked to end and has not been told."""
        with self._lock:
            if not self.owed():
                return
            if not self._signals:
                _set_async_exception(self._ident, None)  # it is raised here instead
            for target in self._unshielded():
                if target._interrupt is Interrupt.REQUESTED:
                    target._interrupt = Interrupt.SENT  # to be acknowledged by the constructor
        raise Cancelled

    def get(self, inbox: queue.SimpleQueue[T | None], timeout: float | None) -> T | None:
        """The next item of `inbox`, or None if an interrupt woke the wait. Raises `queue.Empty` after `timeout`."""
        wait = Wait(lambda: inbox.put(None))
        with self._lock:
            self.checkpoint()
            self._stack.append(wait)
        item: T | None = None
        try:
            item = block(inbox, timeout)
        finally:
            with self._lock:
                self.leave(wait)
                self._send()  # a request that came together with the item
        if item is None:
            self.checkpoint()
        return item

    def _install(self) -> None:
        assert _WAKE_SIGNAL is not None
        self._handler = signal.getsignal(_WAKE_SIGNAL)
        signal.signal(_WAKE_SIGNAL, self._on_signal)

    def _uninstall(self) -> None:
        assert _WAKE_SIGNAL is not None
        if self._handler is not None:  # None: it was not installed from Python, so Python cannot put it back
            signal.signal(_WAKE_SIGNAL, self._handler)
        self._handler = _NOT_INSTALLED

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        with self._lock:
            ours = any(target._interrupt is Interrupt.SENT for target in self._unshielded())
        if ours:
            if not _is_delicate(frame):  # else `_signal` sends it again
                raise Cancelled
        elif callable(self._handler):  # a signal that we did not send: urgent data on a socket, say
            self._handler(signum, frame)


_NOT_INSTALLED = object()


def _after_fork() -> None:
    """In a forked child, where locks may be held by threads that do not exist."""
    clock._reset()
    if (thread := _local.interruptible) is not None:
        thread._lock = threading.RLock()


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether a thread is in code that an interrupt would tear apart, or that would swallow it.

    The one is this module's: it may be at the entry of an ``__exit__``, before it could do anything about it. The other
    is called by the interpreter between two bytecodes, as finalizers and the callbacks of weak references are: it has
    nobody to raise to.
    """
    while frame is not None:
        if frame.f_globals is globals() or frame.f_code.co_name == "__del__":
            return True
        if frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False


def _awaits_start(frame: FrameType | None) -> bool:
    """Whether a thread is starting another, and that has not begun to run.

    In CPython 3.11 the new one has the identity of the old one until it runs, and would get an exception in its place.
    It would die of it, and the old one wait for it for ever.
    """
    while frame is not None and sys.version_info < (3, 12):
        if frame.f_code.co_name == "start" and frame.f_globals.get("__name__") == "threading":
            return frame.f_locals["self"].ident is None
        frame = frame.f_back
    return False


def _set_async_exception(ident: int, exception: type[BaseException] | None) -> None:
    import ctypes  # only when something is cancelled: importing it costs more than the rest of this module

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exception is None else ctypes.py_object(exception)
    )


class _Local(threading.local):
    interruptible: InterruptibleThread | None = None


_local = _Local()


def interruptible_thread() -> InterruptibleThread:
    """The record of the current thread, made when it is first asked for."""
    thread = _local.interruptible
    if thread is None:
        thread = _local.interruptible = InterruptibleThread()
    return thread


# Seconds between looks for Ctrl-C. On Windows a thread that acquires a lock does not see it; elsewhere it wakes.
_SLICE = 0.1 if sys.platform == "win32" else None


def block(inbox: queue.SimpleQueue[T], timeout: float | None) -> T:
    """Block this thread for the next item of `inbox`, without looking at what its code is asked."""
    if _SLICE is None:
        return inbox.get(True, timeout)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            return inbox.get(True, max(0.0, min(left, _SLICE)))
        except queue.Empty:
            if left <= _SLICE:
                raise


def get(inbox: queue.SimpleQueue[T | None], timeout: float | None = None) -> T | None:
    """Block this thread for the next item of `inbox`: the engine's one blocking wait.

    It ends with an item, after `timeout` seconds (`queue.Empty`), or with `Cancelled` when the code that waits is
    cancelled. None is an item that only wakes.
    """
    if timeout is not None:
        timeout = min(max(timeout, 0.0), threading.TIMEOUT_MAX)
    thread = _local.interruptible
    if thread is None or not thread._stack:
        return block(inbox, timeout)
    return thread.get(inbox, timeout)


# --- scopes ----------------------------------------------------------------------------------------------------------


class _Ending(enum.Enum):
    """Why the code inside a scope was asked to end."""

    CANCEL = "cancelled"
    DEADLINE = "timed out"


class CancelScope(abc.ABC):
    """A block of code that can be cancelled as one, by a deadline or from any thread.

    Made by `cancel_sync_after`, `cancel_sync_at`, `cancel_async_after`, `cancel_async_at`. If the deadline ends the
    block, `TimeoutError` is raised out of it; if `cancel()` does, `asyncio.CancelledError`. A block that had ended
    before it noticed is neither.
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
            if self._ending is None:
                self._ending = why
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
    """A `CancelScope` around synchronous code of one thread."""

    _interrupt = Interrupt.NONE

    _task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._thread = interruptible_thread()
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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._leave(exc)

    def _leave(self, exc: BaseException | None) -> None:
        self._thread.leave(self)
        with self._lock:
            self._open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._requested and self._task.uncancel() > self._cancelling:
            return  # somebody else cancelled the task, too
        self._settle(exc)


class AsyncCancelScope(CancelScope):
    """A `CancelScope` around asynchronous code of one task. Entered with ``with``, inside the task."""

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError(
                "cancel_async_after and cancel_async_at work inside an asyncio task; in synchronous code "
                "use cancel_sync_after or cancel_sync_at"
            )
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
    """
    return SyncCancelScope(*_deadline(seconds))


def cancel_sync_at(deadline: float | None) -> SyncCancelScope:
    """Like `cancel_sync_after`, at a time of `time.monotonic()`, in seconds."""
    return SyncCancelScope(_check_deadline(deadline), None)


def cancel_async_after(seconds: float | None) -> AsyncCancelScope:
    """Cancel the asynchronous code of a ``with`` block after `seconds` (None: only by `CancelScope.cancel`).

    Call it inside a task. The block ends with `TimeoutError` at the ``await`` where it is.

    Raises:
        TypeError, ValueError: `seconds` is not a number, or is negative.
        RuntimeError: Entered outside a task.
    """
    return AsyncCancelScope(*_deadline(seconds))


def cancel_async_at(deadline: float | None) -> AsyncCancelScope:
    """Like `cancel_async_after`, at a time of `time.monotonic()`, in seconds."""
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
    """Hold back what would cancel the code of a ``with`` block until the block is left.

    In synchronous code and in a task alike. It guards against `Call.cancel`, deadlines and cancel scopes of
    ipyportal, but for scopes inside of it. It does not guard a task against ``task.cancel()`` by others, nor any code
    against KeyboardInterrupt. When the block is left, `asyncio.CancelledError` is raised if something was held back.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    thread = interruptible_thread()
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
