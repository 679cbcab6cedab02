"""`suspend`: ``await`` in synchronous code, where that can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import CoroutineType
from typing import Any, Protocol, TypeVar

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.greenlets import why_not_suspended
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.suspension.jspi import stack_switching_here
from ipyportal.concurrency.suspension.loops import turns_here
from ipyportal.concurrency.suspension.steps import per_thread
from ipyportal.concurrency.suspension.workers import drop_workers

__all__ = ["Suspends", "can_suspend", "drop_idle_greenlets", "steps_of", "suspend", "suspendable_here"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # about to wait


class Suspends(Protocol):
    """What can suspend the code that asked for it: a `Suspendable`, or a `Driver` for the code of a loop."""

    def drive(self, steps: Any) -> Any:
        """Run a coroutine to its end, suspending the code that calls this wherever it waits."""


def suspendable_here() -> Suspends | None:
    """What can suspend the code that asks; None if nothing can."""
    if (
        (current := per_thread.here.stepping) is not None
        # Not in another task that runs inside a step of this one: an eager task's first step, or a loop that was
        # started inside another.
        and asyncio._get_running_loop() is not None
        and asyncio.current_task() is current._task
    ):
        return current  # type: ignore[no-any-return]
    return stack_switching_here() if IN_PYODIDE else turns_here()


def can_suspend() -> bool:
    """Return whether `suspend` works here. It does in any task or callback of a loop of asyncio's own kind.

    On other loops, such as uvloop's, it works only in calls of an `EventLoopThread`. It never works without the package
    greenlet, or on a Python other than CPython. In a browser (Pyodide) it works wherever JavaScript can wait for
    Python, if the browser has JSPI.

    Example:
        >>> from ipyportal.concurrency import can_suspend, from_sync
        >>> can_suspend(), from_sync.call_in_loop_thread(can_suspend)
        (False, True)
    """
    return suspendable_here() is not None


def suspend(awaitable: Awaitable[T]) -> T:
    """Wait for `awaitable` in synchronous code of a task or a callback, while its loop goes on. Returns the result.

    Call it in the thread of the loop. The awaitable runs in the caller's context, as with ``await``: the caller sees
    context variables that it sets. If the task is cancelled meanwhile, this raises `asyncio.CancelledError`. A callback
    has no task; there, the awaitable runs in a new task.

    Raises:
        RuntimeError: `can_suspend()` is False here.
        TypeError: `awaitable` is not an awaitable.
        BaseException: What the awaitable raised.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync, suspend
        >>> def double(n):  # a plain function
        ...     return 2 * suspend(asyncio.sleep(0.01, n))
        >>> from_sync.call_in_loop_thread(create_call(double, 21))
        42
    """
    __tracebackhide__ = True
    current = suspendable_here()
    if current is None:
        raise RuntimeError(
            "synchronous code cannot be suspended here: "
            + (why_not_suspended() or "no event loop of asyncio's own kind runs in this thread")
            + ". ipyportal.run() waits for an awaitable everywhere"
        )
    return current.drive(steps_of(awaitable))  # type: ignore[no-any-return]


def steps_of(awaitable: Awaitable[T]) -> Any:
    """Something with ``send`` and ``throw`` that runs `awaitable`."""
    if isinstance(awaitable, CoroutineType):
        return awaitable
    try:
        steps = awaitable.__await__()
    except AttributeError:
        raise TypeError(f"suspend() needs an awaitable, not {type(awaitable).__name__}") from None
    if hasattr(steps, "send"):
        return steps

    async def wrapped() -> T:  # a plain iterator is allowed, too
        return await awaitable

    return wrapped()


def drop_idle_greenlets() -> None:
    """To be called at the end of a thread in which a loop has run: a greenlet can be ended by its own thread alone."""
    per_thread.here.idle.clear()
    drop_workers()
