"""The stop button: SIGINT becomes a cancel, with clean-up, and ends the cell with KeyboardInterrupt.

ipykernel runs a synchronous cell with Python's own handler, which raises KeyboardInterrupt in whatever runs on the
main thread. While a cell is suspended that is the kernel's loop, and it would end the kernel. And it runs an
asynchronous cell with a handler that only asks the loop to cancel the cell, which a blocked loop never does.

So while a handler of the kernel runs (a cell, a comm message), the handler here is installed. On SIGINT,

- if the user's code is running, KeyboardInterrupt is raised in it, as ever;
- each cell and callback that is suspended, and an asynchronous cell, is cancelled through the loop: what it awaits
  is cancelled, with all its tasks, and cleans up. The `asyncio.CancelledError` that comes out of the outermost
  `run()` of the cell, or of the asynchronous cell itself, becomes KeyboardInterrupt;
- if neither the user's code runs nor something is suspended, but the switching between them, or the kernel on its way
  to that code, KeyboardInterrupt is owed, and raised when `run()` returns, or in place of the code that comes next;
- so it is if asyncio is in the middle of something for the user's code: the tasks that `gather()` has made so far would
  be nobody's, and a lock that is being released would stay locked. If that code waits next, it is cancelled, with
  those tasks; if it does not, KeyboardInterrupt is raised in it a moment later.

A second SIGINT, or `Interrupts.grace` seconds, give up the wait: what is cleaning up goes on in a task of its own. The
clean-up of an asynchronous cell's own ``await`` is cancelled then: the cell is that task.

Before a handler runs, its message is dispatched with Python's own handler, too, and a KeyboardInterrupt in the
dispatcher itself would end the kernel. `Interrupts.on_sigint_in_dispatch` stands there instead.

A signal handler can be set on the main thread alone, and cells of subshells run on others: there nothing is done.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ipyportal.concurrency.api import await_for
from ipyportal.concurrency.cancellation.clock import Timer, clock
from ipyportal.concurrency.cancellation.delivery import send_sigint
from ipyportal.concurrency.cancellation.frames import Mark, is_engine, mark_of, module_of
from ipyportal.concurrency.greenlets import greenlets_available
from ipyportal.concurrency.primitives import call_users
from ipyportal.concurrency.suspension.steps import Suspendable, current_suspendable
from ipyportal.hosts import Host

__all__ = ["Interrupts"]

# What code that must not be torn apart calls: half of the tasks of a map have been cancelled, and call_soon() runs.
_CALLED = {
    "_collections_abc",
    "_weakrefset",
    "abc",
    "asyncio",
    "concurrent",
    "contextlib",
    "enum",
    "functools",
    "inspect",
    "logging",
    "signal",
    "threading",
    "warnings",
    "weakref",
}

# What these do for the user's code is done whole. They do not block; other modules of asyncio run loops, which may.
_WHOLE = {
    "asyncio.futures",
    "asyncio.locks",
    "asyncio.queues",
    "asyncio.taskgroups",
    "asyncio.tasks",
    "asyncio.timeouts",
}

_SOON = 0.01  # seconds in which they have done it, or nearly always

_DISPATCHER = "ipykernel.kernelbase", "dispatch_shell"
"""Its module and name, which are those of ipykernel 6.17 to 7.4. By another name it is interrupted as any code is."""


class _Watch:
    """A task whose code can be interrupted: a handler of the kernel, or an asynchronous cell."""

    __slots__ = (
        "asked",
        "awaits_cell",
        "coroutine",
        "grace",
        "interrupted",
        "is_cell",
        "loop",
        "raises",
        "reminder",
        "task",
    )

    def __init__(self, coroutine: Suspendable[Any], is_cell: bool) -> None:
        self.coroutine = coroutine
        self.is_cell = is_cell
        self.awaits_cell = False  # a handler whose asynchronous cell has a task, and has not begun
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        self.interrupted = False  # a SIGINT came that has not ended the code yet
        self.asked = False  # and the task was asked to end
        self.raises: BaseException | None = None  # in place of KeyboardInterrupt
        self.grace: asyncio.TimerHandle | None = None
        self.reminder: Timer | None = None  # to look again whether KeyboardInterrupt can be raised in its code


class Interrupts:
    """The stop button's way to what runs on the main thread."""

    def __init__(self, host: Host, user_namespace: dict[str, Any]) -> None:
        self.grace = 10.0
        """Seconds that a clean-up may take before the wait for it is given up."""
        self._host = host
        self._user_namespace = user_namespace
        self._watches: list[_Watch] = []
        self._expecting = False  # a handler has been called that is not watched yet
        self._early = False  # and a SIGINT has come
        self._reminded: _Watch | None = None  # the SIGINT that comes next is no press: it is a reminder of one

    def expect(self) -> None:
        """Called first by a handler of the kernel that will be watched."""
        # Until then the KeyboardInterrupt of Python's own handler would end it, and a cell would get no reply.
        if greenlets_available() and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            dispatched = handler == self.on_sigint_in_dispatch
            self._reminded = None
            if not dispatched:
                self._early = False
            self._expecting = True
            if dispatched or handler is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._on_sigint)

    def on_sigint_in_dispatch(self, signum: int, frame: FrameType | None) -> None:
        """As Python's own handler, but in the dispatcher itself, where KeyboardInterrupt would end the kernel.

        There it is kept for the handler that is called next, if that expects to be watched.
        """
        if self._reminded is not None:
            self._reminded = None  # too late: its cell has ended
            return
        dispatcher = _caller_of_libraries(frame)
        if dispatcher is not None and (
            _is_ours(dispatcher) or (module_of(dispatcher), dispatcher.f_code.co_name) == _DISPATCHER
        ):
            self._early = True
        else:
            signal.default_int_handler(signum, frame)

    def begin_dispatch(self) -> Any:
        """Called by the kernel before each handler. Gives the handler of SIGINT that stood there."""
        self._early = False
        return signal.signal(signal.SIGINT, self.on_sigint_in_dispatch)

    def await_cell(self) -> _Watch | None:
        """The watch of the handler that calls this, which has made a task of its asynchronous cell."""
        handler = self._watch_of_current_task()
        if handler is not None and signal.getsignal(signal.SIGINT) == self._on_sigint:
            handler.awaits_cell = True
            return handler
        return None

    @contextmanager
    def watch(self, *, handler: _Watch | None = None, is_cell: bool = False, early: bool = False) -> Iterator[None]:
        """Around the code of a handler or an asynchronous cell, in its task.

        Args:
            handler: What `await_cell` gave, for a cell.
            is_cell: It is an asynchronous cell.
            early: It was cancelled before it began.
        """
        coroutine = current_suspendable()
        if coroutine is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        watch = _Watch(coroutine, is_cell)
        before = signal.getsignal(signal.SIGINT)
        self._watches.append(watch)
        signal.signal(signal.SIGINT, self._on_sigint)
        if handler is not None:
            handler.awaits_cell = False
            if handler.interrupted:
                self._forget(handler)
                early = True
        if not is_cell:
            self._expecting = False
            early = self._early
        if early:
            watch.interrupted = self._host.interrupt_owed = True
        try:
            yield
        finally:
            self._watches.remove(watch)
            if watch.grace is not None:
                watch.grace.cancel()
            if watch.reminder is not None:
                clock.cancel(watch.reminder)
            if not self._watches:
                self._host.interrupt_owed = False
            if before is not None and signal.getsignal(signal.SIGINT) == self._on_sigint:
                signal.signal(signal.SIGINT, before)
                if self._watches and not is_cell:
                    # A callback is still suspended. The kernel puts its own handler back after this one returns;
                    # then ours is needed again.
                    watch.loop.call_soon(self._install_again)

    def _install_again(self) -> None:
        current = signal.getsignal(signal.SIGINT)
        if self._watches and current != self._on_sigint:
            remaining = self._watches[-1]
            signal.signal(signal.SIGINT, self._on_sigint)
            if remaining.task is not None:
                remaining.task.add_done_callback(lambda _: self._put_back(current))

    def _put_back(self, handler: Any) -> None:
        if not self._watches and signal.getsignal(signal.SIGINT) == self._on_sigint:
            signal.signal(signal.SIGINT, handler)

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        # Runs on the main thread, between any two bytecodes: it runs no code of the user, and the one lock that it may
        # take, the clock's, is reentrant.
        running = current_suspendable()
        in_code = running is not None and running.runs_here()
        amid = in_code and _amid_asyncio(frame)
        raise_here = in_code and not amid and self._may_raise(frame)
        reminded, self._reminded = self._reminded, None
        if reminded is not None:
            if reminded.coroutine is running and in_code and _is_owed(reminded):
                if raise_here:
                    self._forget(reminded)
                    raise KeyboardInterrupt
                self._remind(reminded)
            return
        self._early = self._expecting
        for watch in list(self._watches):
            if watch.coroutine is running and in_code:
                if raise_here:
                    continue
                # Its code, in the middle of the switching. If it waits next it is cancelled, if not it is owed.
                self._host.interrupt_owed = True
                if amid:
                    self._remind(watch)
            elif watch.awaits_cell:
                watch.interrupted = True  # the cell takes it over
                continue
            elif not (watch.coroutine.suspended or watch.is_cell):
                continue  # a handler that awaits its asynchronous cell, which is watched itself
            watch.interrupted = True
            watch.loop.call_soon_threadsafe(self._ask, watch)
        if raise_here:
            raise KeyboardInterrupt

    def _may_raise(self, frame: FrameType | None) -> bool:
        """Whether the user's code is running, and nothing that must not be torn apart."""
        if _waits_for_a_call(frame):
            return False
        delicate = _caller_of_libraries(frame)
        if delicate is None or _is_ours(delicate) or mark_of(delicate) in (Mark.ITSELF, Mark.NOT_BY_THE_STOP_BUTTON):
            return False
        while frame is not None:
            if frame.f_globals is self._user_namespace or frame.f_code is call_users.__code__:
                return True
            frame = frame.f_back
        return False

    def _remind(self, watch: _Watch) -> None:
        """Look again soon: code that is owed a KeyboardInterrupt may go on without a wait, which would be cancelled."""

        def remind() -> None:  # on the clock's thread
            if watch in self._watches and _is_owed(watch) and signal.getsignal(signal.SIGINT) == self._on_sigint:
                self._reminded = watch
                send_sigint()

        watch.reminder = clock.remind(_SOON, remind)

    def _ask(self, watch: _Watch) -> None:
        """Cancel what is watched; if it has been, give up the wait for its clean-up. On the loop."""
        if not watch.interrupted or watch not in self._watches or watch.awaits_cell:
            return  # it was raised meanwhile, or will be taken over
        self._host.interrupt_owed = False
        if not watch.asked:
            watch.asked = True
            watch.coroutine.stop()
            watch.grace = watch.loop.call_later(self.grace, self._give_up, watch)
        else:
            self._give_up(watch)

    def _give_up(self, watch: _Watch) -> None:
        """End the wait for a clean-up; that of an asynchronous cell itself, which nobody waits for, by a cancel."""
        if watch.interrupted and not watch.coroutine.abandon():
            watch.coroutine.stop()

    def _watch_of_current_task(self) -> _Watch | None:
        coroutine = current_suspendable()
        for watch in reversed(self._watches):
            if watch.coroutine is coroutine:
                return watch
        return None

    def watching(self) -> bool:
        """Whether code that can be interrupted has begun, and is not over."""
        return bool(self._watches)

    def end(self) -> None:
        """Cancel what is watched, if nobody has: the kernel ends."""
        for watch in self._watches:
            if not watch.interrupted and (watch.coroutine.suspended or watch.is_cell):
                watch.interrupted = watch.asked = True
                watch.coroutine.stop()

    def catch(self, exc: BaseException) -> bool:
        """What leaves the kernel's loop, as the exception of a signal's handler does, is raised in the cell that waits.

        Returns:
            False if none does, or if the kernel is told to exit.
        """
        if isinstance(exc, SystemExit):
            return False
        for watch in reversed(self._watches):
            if watch.coroutine.suspended or watch.is_cell:
                watch.raises = exc
                watch.interrupted = True
                self._ask(watch)
                return True
        return False

    def take(self) -> BaseException | None:
        """What interrupts the present task, by the CancelledError at hand if there is one. Only once."""
        watch = self._watch_of_current_task()
        if watch is None or not watch.interrupted:
            return None
        exc, watch.raises = watch.raises, None
        self._forget(watch)
        return exc or KeyboardInterrupt()

    def _forget(self, watch: _Watch) -> None:
        watch.interrupted = False
        self._host.interrupt_owed = False
        if watch.asked:
            watch.asked = False
            watch.coroutine.resume_patience()
            if watch.task is not None:
                watch.task.uncancel()
        if watch.grace is not None:
            watch.grace.cancel()
            watch.grace = None

    def raise_owed(self) -> None:
        """Raise the KeyboardInterrupt that could not be raised when it came, if this is the code it is owed to."""
        __tracebackhide__ = True
        watch = self._watch_of_current_task()
        if watch is not None and _is_owed(watch):
            self._forget(watch)
            if sys.exc_info()[0] is None or not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                raise KeyboardInterrupt


def _caller_of_libraries(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is none of a library that delicate code calls."""
    while frame is not None and module_of(frame).partition(".")[0] in _CALLED:
        frame = frame.f_back
    return frame


def _amid_asyncio(frame: FrameType | None) -> bool:
    """Whether asyncio is in the middle of something that it does for the code which called it."""
    while frame is not None and (module := module_of(frame)) != "threading" and module.partition(".")[0] in _CALLED:
        if module in _WHOLE:
            return True
        frame = frame.f_back
    return False


def _is_owed(watch: _Watch) -> bool:
    """Whether its code has not been told of a SIGINT yet, neither by KeyboardInterrupt nor by a cancel."""
    return watch.interrupted and not watch.asked


def _waits_for_a_call(frame: FrameType | None) -> bool:
    """Whether the engine is submitting a call, or about to wait for it: nobody would cancel it, or await its end."""
    while frame is not None and (module_of(frame).partition(".")[0] in _CALLED or is_engine(frame)):
        if frame.f_code is await_for.__code__:
            return True
        frame = frame.f_back
    return False


def _is_ours(frame: FrameType) -> bool:
    """Whether it is code of the extension."""
    return module_of(frame).startswith(f"{__package__}.")
