"""Where suspended code stands. Debuggers and profilers that look at threads see none of it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ipyportal.concurrency.greenlets import Greenlet, current_greenlet
from ipyportal.concurrency.suspension.callers import Caller
from ipyportal.concurrency.suspension.jspi import frames_that_stand_still
from ipyportal.concurrency.suspension.steps import Suspendable

__all__ = ["suspended_stacks"]

_OURS = "ipyportal."
# What stands below the code of a cell or a task and is not its user's: from there on a stack says nothing.
_BELOW = ("IPython.", "ipykernel.", "asyncio.", "tornado.", "threading", "runpy", "traitlets.")


def suspended_stacks() -> list[traceback.StackSummary]:
    """Return the stacks of all suspended code of this process: code that waits in `run` while its event loop goes on.

    Each stack begins with your outermost frame. Then come the frame that waits, and the coroutines that it waits for,
    down to the innermost. Frames of ipyportal, and those of IPython and asyncio around a cell or a task, are left out.
    This looks through all objects of the garbage collector, so it is slow: do not call it again and again. You may call
    it from any thread, and from a signal handler.

    Example:
        >>> import asyncio, signal
        >>> from ipyportal.concurrency import suspended_stacks
        >>> def show(*_):
        ...     for stack in suspended_stacks():
        ...         print("".join(stack.format()))
        >>> previous = signal.signal(signal.SIGTERM, show)  # now `kill PID` shows where a notebook waits
        >>> show()
        >>> _ = signal.signal(signal.SIGTERM, previous)
    """
    frames = frames_that_stand_still() if Greenlet is None else [greenlet.gr_frame for greenlet in _greenlets()]
    found = [_stack(frame) for frame in frames]
    return [traceback.StackSummary.extract(iter(stack)) for stack in found if stack]


def _greenlets() -> list[Any]:
    """All greenlets. One may be older than ``gc.freeze()``, which hides it: then who waits in it leads to it."""
    found: dict[Any, None] = {}
    todo = [current_greenlet()]
    for thing in gc.get_objects():
        if isinstance(thing, Greenlet):
            todo.append(thing)
        elif type(thing) is Caller:
            todo.append(thing.greenlet)
        elif type(thing) is Suspendable:
            todo.append(thing._greenlet)
    while todo:
        greenlet = todo.pop()
        if greenlet is not None and greenlet not in found:
            found[greenlet] = None
            todo.append(greenlet.parent)
    return list(found)


def _stack(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """Frames with their lines, the outermost first; none if that is no user's code that waits in one of our waits."""
    outside: list[FrameType] = []
    steps: Any = None
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(_OURS):
            if steps is None and frame.f_code.co_name == "drive":
                steps = frame.f_locals.get("steps")  # what it waits for
        elif name.startswith(_BELOW):
            if outside:
                break
        elif steps is not None:
            outside.append(frame)
        frame = frame.f_back
    if not outside:
        return []
    return [*((frame, frame.f_lineno) for frame in reversed(outside)), *_coroutines(steps)]


def _coroutines(steps: Any) -> Iterator[tuple[FrameType, int]]:
    """The frames of a coroutine and of those that it awaits."""
    while steps is not None:
        frame = getattr(steps, "cr_frame", None) or getattr(steps, "gi_frame", None) or getattr(steps, "ag_frame", None)
        if isinstance(frame, FrameType):
            yield frame, frame.f_lineno
        steps = getattr(steps, "cr_await", None) or getattr(steps, "gi_yieldfrom", None)
