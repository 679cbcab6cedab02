"""``asyncio.run`` in Pyodide, while asyncio is patched.

Pyodide's own works: its caller stands still. But it leaves the tasks running that its coroutine has made, and what they
raise is not told to anybody. This ends them, as asyncio does. Which they are is told by a context variable: a task has
a copy of the context of who made it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from ipyportal.concurrency.calls.tasks import as_coroutine, call_of
from ipyportal.concurrency.labels import type_name
from ipyportal.routes import RULE
from ipyportal.sync import run

__all__ = ["NO_RUNNER", "run_as_asyncio"]

NO_RUNNER = (
    "asyncio.Runner makes a loop of its own, and in a browser only the page's loop runs: type run(x), or "
    "asyncio.run(x), in place of runner.run(x)"
)

T = TypeVar("T")

_run: ContextVar[object] = ContextVar("ipyportal_asyncio_run", default=None)


def run_as_asyncio(main: Awaitable[T], *, debug: bool | None = None) -> T:
    """``asyncio.run(main)``: run it as a task of the page's loop, and end what it leaves.

    Args:
        main: An awaitable, as in CPython 3.14.
        debug: Has no effect. The debug mode is that of the page's loop.

    Raises:
        TypeError: `main` is none.
        BaseException: What it raised.
    """
    __tracebackhide__ = True
    if not inspect.isawaitable(main):
        raise TypeError(f"asyncio.run() needs a coroutine or another awaitable, not {type_name(main)}")
    whole: Coroutine[Any, Any, T] = _whole(as_coroutine(main))
    return run(whole, on=RULE)


async def _whole(main: Coroutine[Any, Any, T]) -> T:
    __tracebackhide__ = True
    loop, context, mark = asyncio.get_running_loop(), contextvars.copy_context(), object()
    context.run(_run.set, mark)
    task = loop.create_task(main, context=context)
    try:
        return await task
    finally:
        tasks: set[Any] = asyncio.all_tasks(loop)
        # But for ipyportal's calls, which go on elsewhere, too, when the loop ends that has submitted them.
        left = [one for one in tasks if one.get_context().get(_run) is mark and call_of(one) is None]
        for one in left:
            one.cancel()
        for one, outcome in zip(left, await asyncio.gather(*left, return_exceptions=True), strict=True):
            if isinstance(outcome, Exception):
                loop.call_exception_handler(
                    {"message": "unhandled exception at the end of asyncio.run()", "exception": outcome, "task": one}
                )
