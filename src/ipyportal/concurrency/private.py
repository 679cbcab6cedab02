"""The private names of asyncio that the engine uses: all of them, and here alone.

They are the same in CPython 3.11 to 3.15.

What uses them says ``getattr(loop, READY)``. Beside these it uses what asyncio has for those who write event loops and
frameworks: ``_get_running_loop``, ``_set_running_loop``, ``_enter_task`` and ``_leave_task``, which are in the
``__all__`` of their modules.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from types import CodeType
from typing import Any

__all__ = [
    "BLOCKING",
    "CALLBACK",
    "DESCRIPTORS",
    "HANDLE_RUN",
    "MUST_CANCEL",
    "READY",
    "RUNNERS_LOOP",
    "RUN_FOREVER",
    "RUN_ONCE",
    "SIGNAL_HANDLERS",
    "STOPPING",
    "missing",
    "register_atexit",
]

RUN_ONCE = "_run_once"
"""Of an event loop: one turn. ``run_forever`` calls it for each."""
READY = "_ready"
"""Of an event loop: a deque of the handles that are due. A turn pops as many as there were when it began."""
STOPPING = "_stopping"
"""Of an event loop: whether ``run_forever`` is to return after this turn."""
SIGNAL_HANDLERS = "_signal_handlers"
"""Of an event loop: a dict from signals to handles."""
DESCRIPTORS = ("_selector", "_ssock", "_csock")
"""Of an event loop: what it holds open. Without them, a forked child keeps them."""
BLOCKING = "_asyncio_future_blocking"
"""Of a future: set by its ``__await__`` before it yields the future to the task, which takes it back."""
MUST_CANCEL = "_must_cancel"
"""Of a task: it is to get a CancelledError when it next waits."""
CALLBACK = "_callback"
"""Of a handle: what it calls."""
RUNNERS_LOOP = "_loop"
"""Of an `asyncio.Runner`: its loop, if it has been made. ``get_loop()`` would make it."""

HANDLE_RUN: Any = getattr(asyncio.Handle, "_run", None)
"""Calls the callback of a handle."""
RUN_FOREVER: CodeType = asyncio.BaseEventLoop.run_forever.__code__

register_atexit: Any = getattr(threading, "_register_atexit", None)
"""Has a function called before the interpreter waits for threads, as `concurrent.futures` does. None if there is none.

Without it, a thread that is no daemon keeps the interpreter until it is shut down.
"""


def _uses(function: Any, name: str) -> bool:
    """Whether a function that is written in Python says `name`. Others may have put theirs in asyncio's places."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return code is not None and name in code.co_names


@functools.cache
def missing() -> tuple[str, ...]:
    """Which of them this Python does not have. Without one, code is suspended step by step alone, in cells."""
    loop: Any = asyncio.BaseEventLoop
    selecting: Any = asyncio.SelectorEventLoop
    turn = getattr(loop, RUN_ONCE, None)
    used = {
        f"BaseEventLoop.{RUN_ONCE}": turn is not None and RUN_ONCE in RUN_FOREVER.co_names,
        f"BaseEventLoop.{READY}": _uses(turn, READY),
        f"BaseEventLoop.{STOPPING}": STOPPING in RUN_FOREVER.co_names,
        f"Future.{BLOCKING}": hasattr(asyncio.Future, BLOCKING),
        f"Task.{MUST_CANCEL}": hasattr(asyncio.Task, MUST_CANCEL) or _uses(asyncio.Task.cancel, MUST_CANCEL),
        f"Handle.{CALLBACK}": hasattr(asyncio.Handle, CALLBACK),
        "Handle._run": _uses(HANDLE_RUN, CALLBACK),
        f"Runner.{RUNNERS_LOOP}": _uses(asyncio.Runner.run, RUNNERS_LOOP),
        f"SelectorEventLoop.{SIGNAL_HANDLERS}": sys.platform == "win32"
        or _uses(selecting.add_signal_handler, SIGNAL_HANDLERS),
    }
    return tuple(name for name, there in used.items() if not there)
