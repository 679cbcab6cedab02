"""`Caller`: code that stands still on a loop with turns, until what it waits for is over."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
from types import FrameType
from typing import Any, Protocol

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.targets import Interrupt, Interruptible
from ipyportal.concurrency.private import HANDLE_RUN
from ipyportal.concurrency.suspension.abandoned import WaitAbandoned
from ipyportal.concurrency.suspension.loop_internals import Cancels

try:
    # As in `signal`, but without making enums of what is none: a hundred times faster.
    from _signal import getsignal  # type: ignore[import-not-found, unused-ignore]
    from _signal import signal as set_handler
except ImportError:
    from signal import getsignal
    from signal import signal as set_handler

__all__ = ["Caller", "TurnIsOver", "asks_without_waking", "raise_abandoned"]

__ipyportal_mark__ = Mark.ITSELF  # between two greenlets


class TurnIsOver(SystemExit):
    """Ends a worker's turn, whose caller goes on. A SystemExit, because ``Handle._run`` lets that pass."""

    def __init__(self, caller: Caller) -> None:
        super().__init__("a turn of ipyportal's has ended where no worker runs it")
        self.caller = caller


class _Turns(Protocol):
    """What a caller needs of `Turns`."""

    context: contextvars.Context

    def gives_way_to(self, caller: Caller) -> bool: ...
    def is_in_a_workers_turn(self, frame: FrameType | None) -> bool: ...


class Caller:
    """Code that waits: where it stands, for what, and how to end that. In its loop's thread, but for `end_wait_for`."""

    __slots__ = (
        "abandoned",
        "due",
        "future",
        "greenlet",
        "handler",
        "limit",
        "loop",
        "message",
        "must_cancel",
        "on_the_loops_stack",
        "raises",
        "task",
        "turns",
    )

    def __init__(self, turns: _Turns, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        self.turns = turns
        self.loop = loop
        self.task = task  # None: a callback
        self.greenlet: Any = None
        self.handler: Any = None
        self.limit: asyncio.TimerHandle | None = None
        self.due = 0
        self.future: asyncio.Future[Any] | None = None  # None: for the next turn
        self.must_cancel = False
        self.message: Any = None
        self.abandoned = False
        self.on_the_loops_stack = False
        self.raises: BaseException | None = None
        """What is to be raised when what it waits for has been cancelled and is over."""

    def cancel(self, msg: Any | None = None) -> bool:
        """In place of the task's own ``cancel``, and as that is for a task that waits."""
        if self.task is not None:
            Cancels.of(self.task).add()
        return self._cancel_wait(msg)

    def _cancel_wait(self, msg: Any | None = None) -> bool:
        if self.future is None or not self.future.cancel(msg):
            # What it waits for is over, or is the next turn: it is woken anyway.
            self.must_cancel, self.message = True, msg
        return True

    def end_wait_for(self, target: Interruptible) -> None:
        """Cancel what it waits for, because a block of its code was asked to end. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._end_wait_for, target)
        except RuntimeError:
            pass  # the loop is closed, and the block with it

    def _end_wait_for(self, target: Interruptible) -> None:
        # If the code has gone on meanwhile, it was sent the interrupt then.
        if self.greenlet is not None and target._interrupt is Interrupt.REQUESTED:
            target._interrupt = Interrupt.NOTICED
            self._cancel_wait()

    def end(self, exc: BaseException) -> None:
        """Cancel what it waits for, and raise `exc` when that is over; a second time, do not wait for its clean-up."""
        if self.raises is None:
            self.raises = exc
            self._cancel_wait()
        else:
            self.abandon()

    def take_sigint(self) -> bool:
        """Have Ctrl-C end this wait, where Python's own handler would raise KeyboardInterrupt in whatever runs."""
        handler = getsignal(signal.SIGINT)
        if handler is not signal.default_int_handler and not asks_without_waking(handler):
            return False
        self.handler = handler
        set_handler(signal.SIGINT, self._on_sigint)
        return True

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.end, KeyboardInterrupt())

    def give_sigint_back(self) -> None:
        if getsignal(signal.SIGINT) == self._on_sigint:
            set_handler(signal.SIGINT, self.handler)

    def abandon(self) -> bool:
        """Give up the wait; what it waits for goes on. False if it is about to end by itself."""
        if self.future is None or self.future.done():
            return False
        self.future.remove_done_callback(self.wake)
        self.abandoned = True
        self.loop.call_soon(self.wake)
        return True

    def wake(self, _: object = None) -> None:
        """A callback of the loop: what the caller waits for is over, and it goes on in place of this turn."""
        if self.greenlet is None:
            return  # it was thrown away
        handle = sys._getframe(1)
        if handle.f_code is HANDLE_RUN.__code__:
            if self.turns.is_in_a_workers_turn(handle.f_back):
                raise TurnIsOver(self)
            if self.turns.gives_way_to(self):
                return
        # A loop inside of the loop, as nest_asyncio has it. The next turn is a worker's.
        self.loop.call_soon(self.wake, context=self.turns.context)


def raise_abandoned(caller: Caller, abandoned: WaitAbandoned) -> None:
    exc = caller.raises or KeyboardInterrupt("stopped waiting; what was waited for was cancelled, and cleans up")
    exc.task = abandoned.task  # type: ignore[attr-defined]  # what goes on, for who wants it
    raise exc from None


def asks_without_waking(handler: Any) -> bool:
    """Whether a handler of SIGINT only asks a loop to cancel something, and does not wake it.

    ipykernel's for asynchronous cells does (7.4.0): the cell would be cancelled when something else wakes the loop.
    """
    return getattr(handler, "__module__", None) == "ipykernel.ipkernel"
