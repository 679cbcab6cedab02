"""What can be interrupted, and what holds an interrupt back: the parts of code that a thread has entered."""

from __future__ import annotations

import enum
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ipyportal.concurrency.cancellation.frames import outermost

__all__ = ["Interrupt", "Interruptible", "OnlyAtCheckpoints", "Shield", "Wait", "waits_elsewhere"]


class Interrupt(enum.Enum):
    """How far a request to cancel synchronous code has come."""

    NONE = "not requested"
    REQUESTED = "requested, but a shield holds it back or nobody could be told yet"
    SENT = "sent to the thread, which has not noticed yet"
    NOTICED = "raised in the code"


class Interruptible(Protocol):
    """A part of synchronous code that can be cancelled: a `Call`, a cancel scope, a shield."""

    _interrupt: Interrupt
    _greenlet: weakref.ref[Any] | None
    """Where its code was entered. Weak: `suspension` looks whether others refer to a greenlet."""
    _entered_in: int
    """The identity of the loop that ran in the thread when its code was entered. Set by then."""


class OnlyAtCheckpoints:
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


def waits_elsewhere(target: Interruptible) -> Any:
    """The greenlet of the code of `target` if the loop that runs here is none of that code's own, else None.

    Playwright's sync API runs its loop in a greenlet, for as long as the browser lives. Code that waits switches to
    that, and is switched back to by a callback of the loop. The loop's main task is then the connection to the browser.
    """
    home = None if target._greenlet is None else target._greenlet()
    if home is None or home.dead or outermost(home.gr_frame) in (None, outermost(sys._getframe())):
        return None
    return home
