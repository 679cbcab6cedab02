"""`LoopClock`: the deadlines of Pyodide, which has no thread for a clock. They are timers of the page's loop."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.reporting import report

__all__ = ["LoopClock"]


class LoopClock:
    """Has the methods of `Clock`. A deadline is kept when the code that runs at the time waits, or is over."""

    ident: int | None = None

    def call_at(self, when: float, fn: Callable[[], object]) -> list[Any]:
        timer: list[Any] = [when, 0, fn]
        self._sleep(timer)
        return timer

    def _sleep(self, timer: list[Any]) -> None:
        delay = max(0.0, timer[0] - time.monotonic())
        asyncio.get_running_loop().call_later(delay, self._look, timer, context=contextvars.Context())

    def _look(self, timer: list[Any]) -> None:
        if timer[2] is not None and timer[0] > time.monotonic():
            self._sleep(timer)  # a timer of JavaScript waits 25 days at most, and may be a millisecond early
        elif timer[2] is not None:
            fn, timer[2] = timer[2], None
            self._call(fn)

    @staticmethod
    def _call(fn: Callable[[], object]) -> None:
        try:
            fn()
        except Exception as exc:  # noqa: BLE001 - it is nobody's who runs here
            report(exc, "a deadline's function failed")

    @staticmethod
    def cancel(timer: list[Any]) -> None:
        timer[2] = None

    def remind(self, delay: float, fn: Callable[[], object]) -> list[Any]:
        return self.call_at(time.monotonic() + delay, fn)

    def elsewhere(self, fn: Callable[[], object]) -> None:
        self.remind(0.0, fn)

    def stop(self) -> None:
        """There is no thread to end."""

    def _reset(self) -> None:
        """There are no forks."""
