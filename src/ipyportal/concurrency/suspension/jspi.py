"""Suspending in a browser: WebAssembly's stack is set aside by JSPI (JavaScript Promise Integration).

Pyodide's event loop calls each handle so that it can stand still: the handle waits for a promise, and JavaScript goes
on with the next handle. The current task, the running loop and the contexts are set aside together with the stack. So
nothing of asyncio has to be left and entered again, as it has with greenlets.
"""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

from ipyportal.concurrency.pyodide import can_stand_still, stand_still
from ipyportal.concurrency.suspension.driving import Driver, StandingCode
from ipyportal.concurrency.suspension.loop_internals import put_cancel_back, replace_cancel

__all__ = ["StackSwitching", "frames_that_stand_still", "stack_switching_here"]


class Caller(StandingCode):
    """Code that stands still until its promise is kept."""

    __slots__ = ("frame", "promise")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        super().__init__(loop, task)
        # A plain future, and not what is waited for: JavaScript would wait once more for a result with a `then`.
        self.promise: asyncio.Future[None] | None = None
        self.frame: FrameType | None = None
        """Where it stands."""

    def stands(self) -> bool:
        return self.promise is not None

    def wake(self, _: object = None) -> None:
        if self.promise is not None and not self.promise.done():
            self.promise.set_result(None)


class StackSwitching(Driver[Caller]):
    """Drives coroutines for code of the page's loop."""

    def _caller(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> Caller:
        return Caller(loop, task)

    def _about_to_stand(self, caller: Caller) -> None:
        caller.promise = caller.loop.create_future()

    def _stand_still(self, caller: Caller) -> None:
        task = caller.task
        own_cancel = None if task is None else replace_cancel(task, caller.cancel)
        self.callers.append(caller)
        caller.frame = sys._getframe()
        try:
            stand_still(caller.promise)
        finally:
            self.callers.remove(caller)
            caller.promise = caller.frame = None
            if task is not None:
                put_cancel_back(task, own_cancel)


_stack_switching = StackSwitching()


def stack_switching_here() -> StackSwitching | None:
    """What can suspend the code that asks, in Pyodide; None if nothing can."""
    return _stack_switching if can_stand_still() and asyncio._get_running_loop() is not None else None


def frames_that_stand_still() -> list[FrameType]:
    """The innermost frames of all code that stands still."""
    return [caller.frame for caller in _stack_switching.callers if caller.frame is not None]
