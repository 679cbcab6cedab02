"""A call, and what must be true of it at its end, whatever was done to it meanwhile."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency import Call, State


class Watched(abc.ABC):
    """A call of `fn`, and what happened to it.

    The model: it ends once, in a state that what was done to it allows; its done callback runs once; its result is that
    of its function; if its code began, its clean-up ran before it was over. `fn` counts in `begun` and `cleaned_up`.
    """

    def __init__(self, fn: Callable[[], Any], number: int) -> None:
        self.number = number
        self.begun = 0
        self.cleaned_up = 0
        self.told = self.interrupted = 0
        self.over_before_clean_up = False
        self.cancelled = self.timed = self.refused = False
        self.call: Call[Any] = Call.new(fn)
        self.call.add_done_callback(self._tell)

    def _tell(self, call: Call[Any]) -> None:
        self.told += 1
        if self.begun != self.cleaned_up:
            self.over_before_clean_up = True

    @abc.abstractmethod
    def may_end_as(self, state: State) -> bool:
        """Whether that is what its function does, or what something that was done to it explains."""

    def check(self) -> None:
        text = str(self)
        if self.refused:
            assert self.begun == 0, text
            return
        assert self.call.done(), text
        assert self.told == 1, text
        assert self.begun <= 1, text
        assert self.interrupted <= 1, text
        assert self.begun == self.cleaned_up, text
        assert not self.over_before_clean_up, text
        assert self.may_end_as(self.call.state), text
        if self.call.state is State.FINISHED:
            assert self.call.result() == self.number, text

    def __str__(self) -> str:
        text = f"{self.call!r} begun {self.begun} cleaned up {self.cleaned_up} told {self.told}"
        if self.call.state in (State.FAILED, State.TIMEDOUT):
            text += f" {self.call.exception()!r}"
        return text


def spend(seconds: float) -> None:
    """Run bytecode for so long."""
    # Not in a `try` of the caller: CPython 3.12 and 3.13 leave the jump at the end of an empty loop out of it.
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
