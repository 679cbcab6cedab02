"""How synchronous code is interrupted: through the thread that runs it.

`InterruptibleThread` is the record of what the engine runs in one thread, and knows how that thread can be reached:

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

import _thread
import asyncio
import enum
import functools
import gc
import itertools
import math
import operator
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, Protocol, TypeVar

from ipyportal.concurrency.deadlines import clock

try:
    from greenlet import getcurrent as _getcurrent
except ImportError:  # a platform without it
    _getcurrent = None

__all__ = [
    "AtWaits",
    "Cancelled",
    "Interrupt",
    "Interruptible",
    "InterruptibleThread",
    "Shield",
    "Wait",
    "block",
    "get",
    "interruptible_thread",
    "send_sigint",
    "undisturbed",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_AGAIN = 0.01  # seconds after which an interrupt is sent again that may not have been seen
_PATIENCE = 0.05  # seconds for an event loop to get to a callback

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
            if _is_in_finalizer(frame):
                clock.remind(_AGAIN, thread._send_again)  # the interpreter drops what a finalizer raises
                return
            thread.acknowledge()
            if frame.f_code in _leaving:
                frame.f_locals["self"]._leave(self)


_leaving: set[CodeType] = set()


def leaves(method: F) -> F:
    """Mark the methods that leave a block of code.

    CPython 3.13 may raise an interrupt at the entry of the very functions that would deal with it, where no `try` can
    stand. What `self._leave` does is then done while it is on its way.
    """
    _leaving.add(method.__code__)
    return method


_undisturbed: set[CodeType] = set()


def undisturbed(function: F) -> F:
    """Mark a function that must get to its end: an interrupt waits for that. It runs no user code in this thread."""
    _undisturbed.add(function.__code__)
    return function


class Interrupt(enum.Enum):
    """How far a request to cancel synchronous code has come."""

    NONE = "not requested"
    REQUESTED = "requested, but a shield holds it back or nobody could be told yet"
    SENT = "sent to the thread, which has not noticed yet"
    NOTICED = "raised in the code"


_NONE = Interrupt.NONE


class Interruptible(Protocol):
    """A part of synchronous code that can be cancelled: a `Call`, a cancel scope, a shield."""

    _interrupt: Interrupt
    _greenlet: weakref.ref[Any] | None
    """Where its code was entered. Weak: `suspension` looks whether others refer to a greenlet."""
    _entered_in: int
    """The identity of the loop that ran in the thread when its code was entered. Set by then."""


class AtWaits:
    """A mixin: requests for this part are noticed in the engine's own waits alone, and never between two bytecodes.

    It may be left in any order, and never if it was entered by hand.
    """

    __slots__ = ()


class Shield:
    """Stands on a thread's stack where requests for what lies below it are held back."""

    __slots__ = ("_entered_in",)
    _entered_in: int
    _interrupt = Interrupt.NONE
    _greenlet: weakref.ref[Any] | None = None


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

    It is also what `suspension` knows of the thread, in `stepping` and `idle`: it is looked up but once for each step.

    All methods but `request` are called by that thread itself. The lock orders a request against the end of what it
    is for: an interrupt is sent only while its target is on the stack, and what was sent too late is taken back
    before the target is left. So it never hits code after its target.
    """

    __slots__ = (
        "_asked",
        "_handler",
        "_ident",
        "_lock",
        "_loop_has_until",
        "_signals",
        "_stack",
        "_suspended",
        "_told",
        "_told_in",
        "ends_its_greenlets",
        "idle",
        "stepping",
    )

    def __init__(self) -> None:
        self.stepping: Any = None
        """The suspendable coroutine whose step this thread is in."""
        self.idle: list[Any] = []
        """Greenlets that wait for a step to run."""
        self.ends_its_greenlets = False
        """Whether this thread calls `suspension.drop_idle_greenlets` at its end."""
        self._ident = threading.get_ident()
        # Reentrant, because the signal handler below runs in this thread and may find the lock held by it.
        self._lock = threading.RLock()
        self._stack: list[Interruptible] = []
        # What code entered that is suspended and in no task, and how to end its wait on behalf of one of that.
        self._suspended: list[tuple[list[Interruptible], Callable[[Interruptible], object]]] = []
        self._told: list[Interruptible] = []  # whom the latest interrupt was for
        # The task in which it was raised; weakly, since this is kept until the next one.
        self._told_in: weakref.ref[asyncio.Task[Any]] | None = None
        self._asked: asyncio.Future[Any] | None = None  # the main task of a loop that was asked to cancel it
        self._loop_has_until = 0.0  # the time for that
        self._signals = _WAKE_SIGNAL is not None and (threading.current_thread() is threading.main_thread())
        self._handler: Any = _NOT_INSTALLED

    def enter(self, target: Interruptible) -> None:
        target._entered_in = id(asyncio._get_running_loop())
        if not isinstance(target, (Shield, AtWaits)):
            if self._signals and self._handler is _NOT_INSTALLED:
                self._install()
            if _getcurrent is not None and getattr(target, "_task", None) is None:  # a task's code runs no loop
                target._greenlet = weakref.ref(_getcurrent())
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
                    if isinstance(target, AtWaits) and target in self._stack:
                        self._stack.remove(target)
                    elif target in self._stack:
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
                    if not isinstance(target, AtWaits):
                        target._interrupt = Interrupt.SENT
                elif isinstance(innermost, Wait):
                    waits.append(innermost)
        sent = [target for target in self._unshielded() if target._interrupt is Interrupt.SENT]
        if not sent or time.monotonic() < self._loop_has_until:
            return waits
        found = _loop_run_in(_innermost_frame(self._ident))
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
            waiting = _waits_elsewhere(running[0])
            if any(target._interrupt is Interrupt.SENT for target in running):
                self.acknowledge()
            elif self._told_in == (weakref.ref(main) if waiting is None else None):
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
        if sys.implementation.name != "cpython":
            return  # no other can: the thread is told at its next wait
        frame = _innermost_frame(self._ident)
        if not _is_delicate(frame) and _send_in_frame(self._ident, frame):
            if not _is_delicate(_innermost_frame(self._ident)):
                return
            _set_async_exception(self._ident, None)
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

    def acknowledge(self) -> None:
        """An interrupt has arrived in this thread."""
        with self._lock:
            self._told = [target for target in self._unshielded() if target._interrupt is Interrupt.SENT]
            for target in self._told:
                target._interrupt = Interrupt.NOTICED
            if self._told:
                task = None if asyncio._get_running_loop() is None else asyncio.current_task()
                self._told_in = None if task is None else weakref.ref(task)

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
            if not _is_delicate(frame):  # else `_signal` sends it again
                raise Cancelled
        elif callable(self._handler):  # a signal that we did not send: urgent data on a socket, say
            self._handler(signum, frame)


def _wake_all(waits: list[Wait]) -> None:
    for wait in waits:
        wait.wake()


_NOT_INSTALLED = object()


def _after_fork() -> None:
    """In a forked child, where locks may be held by threads that do not exist."""
    clock._reset()
    if (thread := _local.interruptible) is not None:
        thread._lock = threading.RLock()


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether a thread is in code that an interrupt would tear apart, or that would swallow it.

    The one is the engine's own: it may be at the entry of an ``__exit__``, before it could do anything about it. The
    other is called by the interpreter between two bytecodes, as finalizers and the callbacks of weak references and of
    the garbage collector are: it has nobody to raise to. An event loop would lose the step of a task that it was about
    to run, or what it was about to make or to close; and who puts a signal's handler back must get to it.

    And while a thread starts another, which has not begun: in CPython 3.11 the new one has the identity of the old one
    until then, and would get the exception in its place, die of it, and be waited for for ever; in later ones
    `threading` would count a thread, for good, that was never started.
    """
    if frame is not None and (_module(frame).startswith("asyncio.") or _module(frame) in _SWITCHING):
        return True
    undisturbed = _undisturbed.union(_collectors_callbacks())
    while frame is not None:
        name, module = frame.f_code.co_name, _module(frame)
        if module in _DELICATE or name == "__del__" or frame.f_code in undisturbed:
            return True
        if name in ("__init__", "close") and module.startswith("asyncio."):
            return True
        if module == "signal" and name != "sigwait":
            return True
        if module == "threading" and name == "start" and frame.f_locals["self"].ident is None:
            return True
        frame = frame.f_back
    return False


def _is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether the interpreter drops what is raised there, and reports it.

    That is in ``__del__``, in the callbacks of the garbage collector (`gc.callbacks`), and in those by which the
    collections of `weakref` forget what is gone. Callbacks of other weak references look like any other function.
    """
    callbacks = _collectors_callbacks()
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name == "__del__"
            or code in callbacks
            or ("<locals>" in code.co_qualname and _module(frame) in _WEAK)
        ):
            return True
        frame = frame.f_back
    return False


def _collectors_callbacks() -> list[CodeType]:
    functions = [one.__func__ if isinstance(one, MethodType) else one for one in gc.callbacks]
    return [one.__code__ for one in functions if isinstance(one, FunctionType)]


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""  # globals of `exec` may hold anything


_WEAK = frozenset(["weakref", "_weakrefset"])
_DELICATE = _WEAK.union([__name__, *(f"{__package__}.{name}" for name in ("cancellation", "deadlines"))])
_SWITCHING = frozenset(f"{__package__}.{name}" for name in ("turns", "workers", "asyncio_inside"))


# As they are in asyncio: others may stand in their place later, and call these.
_RUNNER_RUN = asyncio.Runner.run.__code__
_RUN_UNTIL_COMPLETE = asyncio.BaseEventLoop.run_until_complete.__code__
_RUN_FOREVER = asyncio.BaseEventLoop.run_forever.__code__

_continued: dict[CodeType, Callable[[FrameType], FrameType | None]] = {}
"""Functions below which a thread's stack goes on elsewhere: the way from their frame to the one below."""


def _loop_run_in(frame: FrameType | None) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[Any] | None] | None:
    """The event loop that the code of a thread runs, outermost frames of the engine's excluded, and its main task.

    It is found by the frames of `asyncio.Runner.run` (whose loop may be of any kind, uvloop say) and of asyncio's own
    loops, and in their local variables, whose names are those of CPython 3.11 to 3.14. Where they have others, the
    loop is interrupted as any other code is.
    """
    loop: Any = None
    main: Any = None
    while frame is not None:
        if frame.f_code in _continued:
            frame = _continued[frame.f_code](frame)
            continue
        if _module(frame).startswith(f"{__package__}."):
            break
        if frame.f_code is _RUNNER_RUN:
            loop, main = getattr(frame.f_locals.get("self"), "_loop", None), frame.f_locals.get("task")
        elif frame.f_code is _RUN_UNTIL_COMPLETE:
            loop, main = frame.f_locals.get("self"), frame.f_locals.get("future")
        elif frame.f_code is _RUN_FOREVER:
            loop = frame.f_locals.get("self")
        if loop is not None and asyncio.isfuture(main):
            return loop, main
        frame = frame.f_back
    return None if loop is None else (loop, None)


def _waits_elsewhere(target: Interruptible) -> Any:
    """The greenlet of the code of `target` if the loop that runs here is none of that code's own, else None.

    Playwright's sync API runs its loop in a greenlet, for as long as the browser lives. Code that waits switches to
    that, and is switched back to by a callback of the loop. The loop's main task is then the connection to the browser.
    """
    home = None if target._greenlet is None else target._greenlet()
    if home is None or home.dead or _outermost(home.gr_frame) in (None, _outermost(sys._getframe())):
        return None
    return home


def _outermost(frame: FrameType | None) -> FrameType | None:
    below = frame
    while below is not None:
        frame = below
        go_on = _continued.get(frame.f_code)
        below = frame.f_back if go_on is None else go_on(frame)
    return frame


def _wake(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(int)
    except RuntimeError:
        pass  # it is closed, and does not sleep


def send_sigint() -> None:
    """Have the handler of SIGINT run on the main thread, also in the midst of a system call. From any thread.

    On Windows a system call is not ended.
    """
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _set_async_exception(ident: int, exception: type[BaseException] | None) -> None:
    if sys.implementation.name != "cpython":
        return  # none was sent, see _raise_there
    import ctypes  # only when something is cancelled: importing it costs more than the rest of this module

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exception is None else ctypes.py_object(exception)
    )


def _frames() -> Iterator[dict[int, FrameType]]:
    """What `sys._current_frames` gives, when it is asked for the one item; all in functions written in C.

    In CPython 3.11 to 3.11.8 a garbage collection may begin in the middle of it. If that runs Python code, another
    thread may come to the lock that is held there, for threads to begin and end, and hold the interpreter's own, for
    which the first waits: all threads stand still for ever (github.com/python/cpython/issues/106883). Since 3.12 there
    is no collection in the middle of a function of C.
    """
    if sys.version_info >= (3, 12):
        return map(operator.call, [sys._current_frames])
    enable: list[Any] = []  # what is to be called afterwards, unless collections were disabled before
    look: Any = functools.partial(enable.extend, itertools.compress([gc.enable], map(operator.call, [gc.isenabled])))
    results: Iterator[Any] = map(operator.call, itertools.chain([look, gc.disable, sys._current_frames], enable))
    return map(operator.itemgetter(2), map(tuple, [results]))


def _innermost_frame(ident: int) -> FrameType | None:
    """Where the thread `ident` is."""
    return next(_frames()).get(ident)


def _send_in_frame(ident: int, frame: FrameType | None) -> bool:
    """Send a thread `Cancelled` if `frame` is its innermost one. False if it is not.

    The interpreter may switch to that thread between any two bytecodes: so that it does not between the look and the
    sending, both are one call of functions that are none of them written in Python.
    """
    import ctypes

    innermost = map(operator.methodcaller("get", ident), _frames())
    is_there = map(functools.partial(operator.is_, frame), innermost)
    what = [(ctypes.c_ulong(ident), ctypes.py_object(Cancelled))]
    return any(itertools.starmap(ctypes.pythonapi.PyThreadState_SetAsyncExc, itertools.compress(what, is_there)))


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
    """Block this thread for the next item of `inbox`, without looking at what its code is asked.

    It ends with an item or after `timeout`: who calls it sees to it that one of them comes.
    """
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
