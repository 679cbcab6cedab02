"""What the interpreter's frames tell: whether a thread may be interrupted where it is, and which event loop it runs.

Code that an interrupt would tear apart is marked where it stands. A module has a global ``__ipyportal_mark__``, a
`Mark`; a function a decorator, `uninterruptible` or `exits_scope`. Who interrupts walks up the stack and looks. What is
of others (asyncio, `threading`, `signal`, `weakref`) cannot be marked: its names are below, and those that the stop
button alone heeds in `notebook.interrupts`.
"""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, TypeVar

from ipyportal.concurrency.private import RUN_FOREVER, RUNNERS_LOOP

__all__ = [
    "CONTINUED",
    "Mark",
    "exits_scope",
    "is_delicate",
    "is_engine",
    "is_in_finalizer",
    "leaves_scope",
    "loop_run_in",
    "mark_of",
    "module_of",
    "outermost",
    "uninterruptible",
]

F = TypeVar("F", bound=Callable[..., Any])


class Mark(enum.Enum):
    """When a module's code may not be interrupted: the module's global ``__ipyportal_mark__``."""

    WHOLE = "while it is anywhere on the stack"
    ITSELF = "while it is the innermost code; what it calls may be"
    NOT_BY_THE_STOP_BUTTON = "as ITSELF, but a cancel may interrupt it; a press is kept, and raised when it returns"


def mark_of(frame: FrameType) -> Mark | None:
    """The mark of the module whose code `frame` runs."""
    return frame.f_globals.get("__ipyportal_mark__")


# The functions that are marked, each one by itself.
_uninterruptible: set[CodeType] = set()
_exits: set[CodeType] = set()


def uninterruptible(function: F) -> F:
    """Mark a function that must get to its end: an interrupt waits for that. It runs no user code in this thread."""
    _uninterruptible.add(function.__code__)
    return function


def exits_scope(method: F) -> F:
    """Mark the methods that leave a block of code.

    CPython 3.13 may raise an interrupt at the entry of the very functions that would deal with it, where no `try` can
    stand. What `self._leave` does is then done while it is on its way.
    """
    _exits.add(method.__code__)
    return method


def leaves_scope(frame: FrameType) -> Any:
    """The scope that the code of `frame` is about to leave, by a method that is marked so; else None."""
    return frame.f_locals["self"] if frame.f_code in _exits else None


_ENGINE = f"{__name__.partition('.cancellation.')[0]}."


def is_engine(frame: FrameType) -> bool:
    """Whether `frame` runs the engine's own code."""
    return module_of(frame).startswith(_ENGINE)


def is_delicate(frame: FrameType | None) -> bool:
    """Whether a thread is in code that an interrupt would tear apart, or that would swallow it.

    The one is the engine's own: it may be at the entry of an ``__exit__``, before it could do anything about it. The
    other is called by the interpreter between two bytecodes, as finalizers and the callbacks of weak references and of
    the garbage collector are: it has nobody to raise to. An event loop would lose the step of a task that it was about
    to run, or what it was about to make or to close; and who puts a signal's handler back must get to it.

    And while a thread starts another, which has not begun: in CPython 3.11 the new one has the identity of the old one
    until then, and would get the exception in its place, die of it, and be waited for for ever; in later ones
    `threading` would count a thread, for good, that was never started.
    """
    if frame is not None and (module_of(frame).startswith("asyncio.") or mark_of(frame) is Mark.ITSELF):
        return True
    uninterruptible = _uninterruptible.union(_collectors_callbacks())
    while frame is not None:
        name, module = frame.f_code.co_name, module_of(frame)
        if mark_of(frame) is Mark.WHOLE or module in _WEAK or name == "__del__" or frame.f_code in uninterruptible:
            return True
        if name in ("__init__", "close") and module.startswith("asyncio."):
            return True
        if module == "signal" and name != "sigwait":
            return True
        if module == "threading" and name == "start" and frame.f_locals["self"].ident is None:
            return True
        frame = frame.f_back
    return False


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether the interpreter drops what is raised there, and reports it.

    That is in ``__del__``, in the callbacks of the garbage collector (`gc.callbacks`), and in those by which the
    collections of `weakref` forget what is gone. Callbacks of other weak references look like any other function.
    """
    callbacks = _collectors_callbacks()
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name == "__del__"
            or code in callbacks
            or ("<locals>" in code.co_qualname and module_of(frame) in _WEAK)
        ):
            return True
        frame = frame.f_back
    return False


def _collectors_callbacks() -> list[CodeType]:
    functions = [one.__func__ if isinstance(one, MethodType) else one for one in gc.callbacks]
    return [one.__code__ for one in functions if isinstance(one, FunctionType)]


def module_of(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""  # globals of `exec` may hold anything


_WEAK = frozenset(["weakref", "_weakrefset"])


# As they are in asyncio: others may stand in their place later, and call these.
_RUNNER_RUN = asyncio.Runner.run.__code__

_RUN_UNTIL_COMPLETE = asyncio.BaseEventLoop.run_until_complete.__code__


CONTINUED: dict[CodeType, Callable[[FrameType], FrameType | None]] = {}
"""Functions below which a thread's stack goes on elsewhere: the way from their frame to the one below."""


def loop_run_in(frame: FrameType | None) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[Any] | None] | None:
    """The event loop that the code of a thread runs, outermost frames of the engine's excluded, and its main task.

    It is found by the frames of `asyncio.Runner.run` (whose loop may be of any kind, uvloop say) and of asyncio's own
    loops, and in their local variables, whose names are those of CPython 3.11 to 3.14. Where they have others, the
    loop is interrupted as any other code is.
    """
    loop: Any = None
    main: Any = None
    while frame is not None:
        if frame.f_code in CONTINUED:
            frame = CONTINUED[frame.f_code](frame)
            continue
        if is_engine(frame):
            break
        if frame.f_code is _RUNNER_RUN:
            loop, main = getattr(frame.f_locals.get("self"), RUNNERS_LOOP, None), frame.f_locals.get("task")
        elif frame.f_code is _RUN_UNTIL_COMPLETE:
            loop, main = frame.f_locals.get("self"), frame.f_locals.get("future")
        elif frame.f_code is RUN_FOREVER:
            loop = frame.f_locals.get("self")
        if loop is not None and asyncio.isfuture(main):
            return loop, main
        frame = frame.f_back
    return None if loop is None else (loop, None)


def outermost(frame: FrameType | None) -> FrameType | None:
    below = frame
    while below is not None:
        frame = below
        go_on = CONTINUED.get(frame.f_code)
        below = frame.f_back if go_on is None else go_on(frame)
    return frame
