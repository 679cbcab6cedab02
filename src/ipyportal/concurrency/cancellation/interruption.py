"""How synchronous code is interrupted: through the thread that runs it.

`ThreadState` is the record of what the engine runs in one thread, and knows how that thread can be reached:

- in one of the engine's own waits, at once (the wait is woken);
- in an event loop that the code runs itself, as `asyncio.run` does, through that loop: its main task is cancelled, and
  the loop goes on for the clean-up. Code that waits for a loop in another greenlet (Playwright's sync API) is
  interrupted where it waits, and that loop stays as it is;
- on the main thread of a POSIX system, at once also inside ``time.sleep`` and other system calls: a ``SIGURG`` is
  sent to the thread. Its default action is to be ignored, so one that comes late harms nobody, and no ``SIGALRM``,
  timer or ``SIGINT`` handler of the user is touched;
- in any other thread, at its next bytecode (``PyThreadState_SetAsyncExc``). A thread that is blocked in C cannot be
  interrupted.

On Windows, where a thread cannot be sent a signal, the main thread is treated as any other thread.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from ipyportal.concurrency.cancellation.blocking import block
from ipyportal.concurrency.cancellation.clock import clock
from ipyportal.concurrency.cancellation.delivery import (
    innermost_frame,
    send_in_frame,
    set_async_exception,
    take_async_exception_back,
)
from ipyportal.concurrency.cancellation.frames import Mark, is_delicate, is_in_finalizer, leaves_scope, loop_run_in
from ipyportal.concurrency.cancellation.per_task import PerTask
from ipyportal.concurrency.cancellation.targets import (
    Interrupt,
    Interruptible,
    OnlyAtCheckpoints,
    Shield,
    Wait,
    waits_elsewhere,
)
from ipyportal.concurrency.greenlets import current_greenlet, greenlets_available
from ipyportal.concurrency.pyodide import IN_PYODIDE

__all__ = ["Cancelled", "ThreadState", "after_fork", "get", "thread_state"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.WHOLE  # its bookkeeping is what an interrupt is sent by

_AGAIN = 0.01  # seconds after which an interrupt is sent again that may not have been seen
_PATIENCE = 0.05  # seconds for an event loop to get to a callback

_NONE = Interrupt.NONE

_WAKE_SIGNAL: int | None = getattr(signal, "SIGURG", None) if hasattr(signal, "pthread_kill") else None


class Cancelled(asyncio.CancelledError):
    """What cancelling raises in synchronous code. Do not catch it without raising it again.

    Example:
        >>> import time
        >>> from ipyportal.concurrency import Cancelled, cancel_sync_after
        >>> def work():
        ...     try:
        ...         time.sleep(60)
        ...     except Cancelled:
        ...         print("cleaned up")
        ...         raise
        >>> try:
        ...     with cancel_sync_after(0.01):
        ...         work()
        ... except TimeoutError:
        ...     print("timed out")
        cleaned up
        timed out
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # CPython builds the exception in the thread that it was sent to, when it arrives there: the one moment at
        # which the sender can be told that the code has noticed.
        if (thread := _local.interruptible) is not None:
            frame = sys._getframe(1)
            if is_in_finalizer(frame):
                clock.remind(_AGAIN, thread._send_again)  # the interpreter drops what a finalizer raises
                return
            thread.delivered()
            if (scope := leaves_scope(frame)) is not None:
                scope._leave(self)


class ThreadState:
    """What the engine runs in one thread, innermost last, and the one way to interrupt it.

    All methods but `request` are called by that thread itself. The lock orders a request against the end of what it
    is for: an interrupt is sent only while its target is on the stack, and what was sent too late is taken back
    before the target is left. So it never hits code after its target.
    """

    __slots__ = (
        "_asked",
        "_delivered_in",
        "_delivered_to",
        "_handler",
        "_ident",
        "_lock",
        "_loop_has_until",
        "_signals",
        "_stack",
        "_suspended",
    )

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        # Reentrant, because the signal handler below runs in this thread and may find the lock held by it.
        self._lock = threading.RLock()
        self._stack: list[Interruptible] = []
        # What code entered that is suspended and in no task, and how to end its wait on behalf of one of that.
        self._suspended: list[tuple[list[Interruptible], Callable[[Interruptible], object]]] = []
        self._delivered_to: list[Interruptible] = []  # whom the latest interrupt was for
        # The task in which it was raised; weakly, since this is kept until the next one.
        self._delivered_in: weakref.ref[asyncio.Task[Any]] | None = None
        self._asked: asyncio.Future[Any] | None = None  # the main task of a loop that was asked to cancel it
        self._loop_has_until = 0.0  # the time for that
        self._signals = _WAKE_SIGNAL is not None and (threading.current_thread() is threading.main_thread())
        self._handler: Any = _NOT_INSTALLED

    def enter(self, target: Interruptible) -> None:
        target._entered_in = id(asyncio._get_running_loop())
        if not isinstance(target, (Shield, OnlyAtCheckpoints)):
            if self._signals and self._handler is _NOT_INSTALLED:
                self._install()
            if greenlets_available() and getattr(target, "_task", None) is None:  # a task's code runs no loop
                target._greenlet = weakref.ref(current_greenlet())
        with self._lock:
            self._stack.append(target)

    def leave(self, target: Interruptible) -> None:
        """Take `target` off the stack. Afterwards no interrupt meant for it can arrive.

        What it has been told may have been meant for an outer target, too: a thread has room for one interrupt at a
        time. That is sent again a little later, when the exception that is on its way has been handled.
        """
        ctrl_c: KeyboardInterrupt | None = None
        while True:
            try:
                with self._lock:
                    if isinstance(target, OnlyAtCheckpoints) and target in self._stack:
                        self._stack.remove(target)
                    elif target in self._stack:
                        del self._stack[self._stack.index(target) :]
                    if target._interrupt is Interrupt.SENT and not self._signals:
                        take_async_exception_back()
                    if target._interrupt is not Interrupt.NONE:
                        told = self._delivered_to if target in self._delivered_to else []
                        owed = [one for one in self._stack if one._interrupt is Interrupt.SENT or one in told]
                        for outer in owed:
                            outer._interrupt = Interrupt.REQUESTED
                        if told:
                            self._delivered_to = []
                        if owed:
                            clock.remind(_AGAIN, self._send_again)
                break
            except Cancelled:
                # It arrived in here, between two bytecodes. An interrupt is sent once, so this ends.
                continue
            except KeyboardInterrupt as exc:
                ctrl_c = exc
        if self._handler is not _NOT_INSTALLED and not self._stack:
            self._uninstall()
        if ctrl_c is not None:
            raise ctrl_c

    def _send_again(self) -> None:
        with self._lock:
            waits = self._send()
        _wake_all(waits)

    def suspend_what_runs_in(
        self, loop: asyncio.AbstractEventLoop, end_wait: Callable[[Interruptible], object] | None
    ) -> list[Interruptible]:
        """`suspend` what was entered in the handle that `loop` runs now.

        `end_wait` is called, from any thread, for what is asked to end meanwhile; None where that has a task, which is
        cancelled.
        """
        # What stands below was entered before the loop ran, and what its other handles have entered is suspended.
        depth = 0
        while depth < len(self._stack) and self._stack[depth]._entered_in != id(loop):
            depth += 1
        with self._lock:
            taken = self.suspend(depth)
            if taken and end_wait is not None:
                self._suspended.append((taken, end_wait))
        return taken

    def suspend(self, depth: int) -> list[Interruptible]:
        """Take off what lies above `depth`: its code is being suspended, and the thread goes on with other code."""
        with self._lock:
            self.checkpoint()
            taken = self._stack[depth:]
            del self._stack[depth:]
        return taken

    def resume(self, taken: list[Interruptible]) -> None:
        with self._lock:
            self._suspended = [one for one in self._suspended if one[0] is not taken]
            self._stack.extend(taken)
            waits = self._send()  # what was asked of them meanwhile
        _wake_all(waits)

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
        end_wait: Callable[[Interruptible], object] | None = None
        with self._lock:
            if target not in self._stack:
                taken, end_wait = next((one for one in self._suspended if target in one[0]), (None, None))
                if taken is None:
                    return False
                above = taken[taken.index(target) :]
                if any(isinstance(one, Shield) and not isinstance(one, Wait) for one in above):
                    end_wait = None  # it is sent when the code goes on, and has left the shield
            if target._interrupt is not Interrupt.NONE:
                return True
            target._interrupt = Interrupt.REQUESTED
            waits = self._send()
        _wake_all(waits)
        if end_wait is not None:
            end_wait(target)
        return True

    def _send(self) -> list[Wait]:
        """Tell the code of each target that was asked to end, unless a shield lies above it.

        With the lock. Gives the waits that are to be woken without it: that may end a call, and run its callbacks.
        """
        waits: list[Wait] = []
        innermost: Shield | None = None
        for target in reversed(self._stack):
            if isinstance(target, Shield):
                innermost = target
            elif target._interrupt is Interrupt.REQUESTED:
                if innermost is None:
                    if not isinstance(target, OnlyAtCheckpoints):
                        target._interrupt = Interrupt.SENT
                elif isinstance(innermost, Wait):
                    waits.append(innermost)
        sent = [target for target in self._unshielded() if target._interrupt is Interrupt.SENT]
        if not sent or time.monotonic() < self._loop_has_until:
            return waits
        found = loop_run_in(innermost_frame(self._ident))
        if found is not None and self._ask_loop(*found, sent):
            return waits
        if self._signals:
            self._signal()
        else:
            self._raise_there()
            if found is not None:
                _wake(found[0])
        return waits

    def _ask_loop(
        self, loop: asyncio.AbstractEventLoop, main: asyncio.Future[Any] | None, targets: list[Interruptible]
    ) -> bool:
        """Have the event loop that the code of `targets` runs cancel its main task. False if it shall be interrupted.

        An exception raised anywhere in the loop would hit whichever task it is running. So it is for a loop that does
        not get to its callbacks, and for one without a main task.
        """
        # Code that was entered in a running loop's task is itself run by that loop, and cannot run another.
        if any(getattr(target, "_task", None) is not None for target in targets):
            return False
        if main is None or main.done() or main is self._asked:
            return False
        try:
            loop.call_soon_threadsafe(self._cancel_main, main, targets)
        except RuntimeError:  # it was closed meanwhile
            return False
        self._asked = main
        self._loop_has_until = time.monotonic() + _PATIENCE
        clock.remind(_PATIENCE, self._send_again)
        return True

    def _cancel_main(self, main: asyncio.Future[Any], targets: list[Interruptible]) -> None:
        # In the loop. After the main task is done the loop may run for its own clean-up: code that comes later is told.
        with self._lock:
            self._asked = None
            self._loop_has_until = 0.0
            running = [target for target in targets if target in self._stack]
            if not running or main.done():
                return
            waiting = waits_elsewhere(running[0])
            if any(target._interrupt is Interrupt.SENT for target in running):
                self.delivered()
            elif self._delivered_in == (weakref.ref(main) if waiting is None else None):
                return
            # Else the exception was raised in another of the loop's tasks meanwhile, and was its own affair.
        if waiting is not None:
            # As the callback of a future that it waits for would switch to it. The loop stands still in this callback
            # until the code waits for it again.
            waiting.throw(Cancelled())
        elif not isinstance(main, asyncio.Task) or not main.cancelling():
            main.cancel()

    def _raise_there(self) -> None:
        """Send this thread an exception, but not where it stands now if that would tear the engine's code apart.

        A thread that does not hold the interpreter's lock stands where it gave it up, and that is where an exception
        sent to it is raised. To see whether it may be takes a while, in which the thread may run on: so it is sent only
        if the thread is in the same frame still. That frame may have been left meanwhile and entered by another way, if
        it is a coroutine's: hence the second look.
        """
        if IN_PYODIDE or sys.implementation.name != "cpython":
            # No other can: the thread is told at its next wait. In Pyodide all code that stands still has the same
            # thread's identity, and the exception could come to any of it.
            return
        frame = innermost_frame(self._ident)
        if not is_delicate(frame) and send_in_frame(self._ident, frame, Cancelled):
            if not is_delicate(innermost_frame(self._ident)):
                return
            set_async_exception(self._ident, None)  # it is sent again soon, or taken back by that thread itself
        clock.remind(_AGAIN, self._send_again)

    def _signal(self) -> None:
        """Send this thread the signal, and again until it is noticed.

        A system call sees only a signal that comes while it is in the kernel. One that comes after the last bytecode
        and before that leaves the thread asleep: often, since a thread that gives up the interpreter's lock for its
        system call wakes the very thread that cancels it.
        """
        assert _WAKE_SIGNAL is not None
        signal.pthread_kill(self._ident, _WAKE_SIGNAL)
        clock.remind(_AGAIN, self._send_again)

    def _unshielded(self) -> Iterator[Interruptible]:
        for target in reversed(self._stack):
            if isinstance(target, Shield):
                return
            yield target

    def delivered(self) -> None:
        """An interrupt has arrived in this thread."""
        with self._lock:
            self._delivered_to = [target for target in self._unshielded() if target._interrupt is Interrupt.SENT]
            for target in self._delivered_to:
                target._interrupt = Interrupt.NOTICED
            if self._delivered_to:
                task = None if asyncio._get_running_loop() is None else asyncio.current_task()
                self._delivered_in = None if task is None else weakref.ref(task)

    def cancel_pending(self, below: Shield | None = None) -> bool:
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
            if not self.cancel_pending():
                return
            if not self._signals:
                take_async_exception_back()  # it is raised here instead
            for target in self._unshielded():
                if target._interrupt is Interrupt.REQUESTED:
                    target._interrupt = Interrupt.SENT  # to be acknowledged by the constructor
        raise Cancelled

    def get(self, inbox: queue.SimpleQueue[T | None], timeout: float | None) -> T | None:
        """The next item of `inbox`, or None if an interrupt woke the wait. Raises `queue.Empty` after `timeout`."""
        wait = Wait(lambda: inbox.put(None))
        wait._entered_in = 0
        with self._lock:
            if not self._at_peace():
                self.checkpoint()
            self._stack.append(wait)
        item: T | None = None
        try:
            item = block(inbox, timeout)
        finally:
            waits: list[Wait] = []
            with self._lock:
                at_peace = self._stack[-1] is wait and self._at_peace()
                if at_peace:
                    del self._stack[-1]
                else:
                    self.leave(wait)
                    waits = self._send()  # a request that came together with the item
            _wake_all(waits)
        if not at_peace:
            self.checkpoint()  # it was cancelled: that comes before what it waited for, which is not lost
        return item

    def _at_peace(self) -> bool:
        """Whether nothing here was asked to end."""
        for target in self._stack:  # noqa: SIM110 - a generator would cost more than it saves
            if target._interrupt is not _NONE:
                return False
        return True

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
            if not is_delicate(frame):  # else `_signal` sends it again
                raise Cancelled
        elif callable(self._handler):  # a signal that we did not send: urgent data on a socket, say
            self._handler(signum, frame)


def _wake_all(waits: list[Wait]) -> None:
    for wait in waits:
        wait.wake()


_NOT_INSTALLED = object()


def after_fork() -> None:
    """In a forked child, where locks may be held by threads that do not exist."""
    clock._reset()
    if (thread := _local.interruptible) is not None:
        thread._lock = threading.RLock()


def _wake(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(int)
    except RuntimeError:
        pass  # it is closed, and does not sleep


class _Local(threading.local):
    interruptible: ThreadState | None = None


_local: _Local | PerTask[ThreadState] = PerTask() if IN_PYODIDE else _Local()


def thread_state() -> ThreadState:
    """The record of the current thread, made when it is first asked for."""
    thread = _local.interruptible
    if thread is None:
        thread = _local.interruptible = ThreadState()
    return thread


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
