"""Loops that run in turns: which do, which have somebody who waits, and how to have workers run them all the time."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.greenlets import greenlets_available
from ipyportal.concurrency.private import missing
from ipyportal.concurrency.suspension.callers import Caller
from ipyportal.concurrency.suspension.turns import Turns, existing_turns, turns_of

__all__ = [
    "TOOLKITS_CALLERS",
    "in_a_toolkits_loop",
    "keep",
    "let_go",
    "loop_has_turns",
    "turns_here",
    "turns_possible",
    "waits_of",
]

__ipyportal_mark__ = Mark.ITSELF  # between two greenlets


def turns_possible() -> bool:
    """Whether this Python has what this module needs."""
    return greenlets_available() and not missing()


def loop_has_turns(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Whether `loop` calls asyncio's own ``_run_once`` for each turn. uvloop's and Qt's do not."""
    kind: Any = type(loop)
    return loop is not None and _kind_has_turns(kind)


@functools.lru_cache(maxsize=64)
def _kind_has_turns(kind: Any) -> bool:
    if not turns_possible() or not issubclass(kind, asyncio.BaseEventLoop):
        return False
    # A loop that runs otherwise has its own way of doing these. nest_asyncio's are asyncio's, re-entered.
    methods = (getattr(kind, name) for name in ("run_forever", "call_soon", "call_at"))
    known = ("asyncio", "nest_asyncio", "nest_asyncio2")
    return all(method.__module__.partition(".")[0] in known for method in methods)


def keep(loop: asyncio.AbstractEventLoop, catch: Callable[[BaseException], bool]) -> bool:
    """Run all turns of `loop` in workers, beginning with the next, until `let_go`. In its thread.

    It can be stopped then whoever stands still. `catch` is called with what would leave the loop, as KeyboardInterrupt
    does, and says whether the loop is to go on. False if the loop has no turns.
    """
    if not loop_has_turns(loop):
        return False
    turns = turns_of(loop)
    turns._kept, turns._catch = True, catch
    turns.hook(loop)
    return True


def let_go(loop: asyncio.AbstractEventLoop) -> None:
    """Undo `keep`. In the thread of the loop."""
    turns = turns_of(loop)
    turns._kept, turns._catch = False, None


def turns_here() -> Turns | None:
    """What can suspend the code that asks, if a loop with turns runs in this thread."""
    loop = asyncio._get_running_loop()
    if loop is None or not loop_has_turns(loop) or in_a_toolkits_loop():
        return None
    return turns_of(loop)


_TOOLKITS = ("PySide6.QtCore", "PyQt6.QtCore", "PySide2.QtCore", "PyQt5.QtCore", "tkinter", "wx", "gi")

TOOLKITS_CALLERS = {"ipykernel.eventloops"}
"""The modules that let a toolkit have the thread, by their names."""


def in_a_toolkits_loop() -> bool:
    """Whether the code that asks is called by a GUI toolkit, which ipykernel lets have its thread.

    Such code cannot stand still: the toolkit keeps pointers to its own frames on the stack, and would follow them while
    they are set aside.
    """
    if not any(name in sys.modules for name in _TOOLKITS):
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in TOOLKITS_CALLERS:
            return True
        frame = frame.f_back
    return False


def waits_of(loop: asyncio.AbstractEventLoop) -> list[Caller]:
    """The callers that stand still on `loop`. In its thread."""
    turns = existing_turns(loop)
    return [] if turns is None else list(turns.callers)
