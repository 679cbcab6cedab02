"""`Caller`: code that stands still on a loop with turns, until what it waits for is over."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
from types import FrameType
from typing import Any, Protocol

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.private import HANDLE_RUN
from ipyportal.concurrency.suspension.driving import StandingCode

try:
    # As in `signal`, but without making enums of what is none: a hundred times faster.
    from _signal import getsignal  # type: ignore[import-not-found, unused-ignore]
    from _signal import signal as set_handler
except ImportError:
    from signal import getsignal
    from signal import signal as set_handler

__all__ = ["Caller", "TurnIsOver", "asks_without_waking"]

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


class Caller(StandingCode):
    """Code that stands still in a greenlet: where, and what it keeps of its loop. In its loop's thread."""

    __slots__ = ("due", "greenlet", "handler", "limit", "on_the_loops_stack", "turns")

    def __init__(self, turns: _Turns, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        super().__init__(loop, task)
        self.turns = turns
        self.greenlet: Any = None
        self.handler: Any = None
        self.limit: asyncio.TimerHandle | None = None
        self.due = 0
        self.on_the_loops_stack = False

    def stands(self) -> bool:
        return self.greenlet is not None

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


def asks_without_waking(handler: Any) -> bool:
    """Whether a handler of SIGINT only asks a loop to cancel something, and does not wake it.

    ipykernel's for asynchronous cells does (7.4.0): the cell would be cancelled when something else wakes the loop.
    """
    return getattr(handler, "__module__", None) == "ipykernel.ipkernel"
