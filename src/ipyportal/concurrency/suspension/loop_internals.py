"""What code that stands still keeps from asyncio, so that it notices nothing.

`PyContext_Enter` and `PyContext_Exit` are public functions of C; ``asyncio.tasks._enter_task`` and ``_leave_task`` are
documented for those who write event loops.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import time
import weakref
from collections.abc import Callable
from types import FrameType, GeneratorType
from typing import Any

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.greenlets import current_greenlet, greenlets_available
from ipyportal.concurrency.private import BLOCKING, CALLBACK, DESCRIPTORS, HANDLE_RUN, READY, SIGNAL_HANDLERS

__all__ = [
    "Busy",
    "Cancels",
    "check_yielded",
    "close_descriptors",
    "enter_context",
    "excuse_slowness",
    "handle_that_runs",
    "has_handles_ready",
    "leave_contexts",
    "own_context",
    "pad",
    "put_cancel_back",
    "replace_cancel",
    "take_over_cancels",
    "take_variables",
]

__ipyportal_mark__ = Mark.ITSELF  # between two greenlets


class Cancels:
    """How often a task was cancelled while it stood still: its own count does not know of that.

    It stands in the task's ``cancelling`` and ``uncancel`` until all of that is taken back.
    """

    __slots__ = ("_count", "_task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = weakref.ref(task)  # the task refers to this
        self._count = 0

    @classmethod
    def of(cls, task: asyncio.Task[Any]) -> Cancels:
        """Those of `task`, which are made if there are none."""
        own = getattr(getattr(task, "uncancel", None), "__self__", None)
        if isinstance(own, cls):
            return own
        made = cls(task)
        task.cancelling = made.cancelling  # type: ignore[method-assign]
        task.uncancel = made.uncancel  # type: ignore[method-assign]
        return made

    def add(self, count: int = 1) -> None:
        self._count += count

    def _of_asyncio(self, name: str) -> int:
        task = self._task()
        return 0 if task is None else getattr(type(task), name)(task)

    def cancelling(self) -> int:
        return self._count + self._of_asyncio("cancelling")

    def uncancel(self) -> int:
        if self._count == 0:
            return self._of_asyncio("uncancel")
        self._count -= 1
        if self._count == 0 and (task := self._task()) is not None:
            del task.cancelling, task.uncancel
        return self.cancelling()


def replace_cancel(task: Any, cancel: Callable[..., bool]) -> Any:
    """Have `cancel` stand in the task's own; give what stood in the instance before, if anything did."""
    before = getattr(task, "cancel", None)
    own = before if getattr(before, "__self__", None) is not task else None
    task.cancel = cancel
    return own


def put_cancel_back(task: Any, own: Any) -> None:
    if own is None:
        del task.cancel
    else:
        task.cancel = own


def take_over_cancels(task: asyncio.Task[Any]) -> None:
    """Take over the cancels that asyncio would tell at the next ``await``, since they are told now.

    Since CPython 3.13 a task whose count is taken back to none forgets them. Before, it tells them twice.
    """
    if sys.version_info >= (3, 13):
        count = type(task).cancelling(task)
        for _ in range(count):
            type(task).uncancel(task)
        Cancels.of(task).add(count)


def own_context() -> contextvars.Context:
    """The very context of the code that asks, and no copy. It can be entered while that code stands still.

    In Pyodide it cannot be entered a second time: there it is a copy, whose variables `take_variables` brings back.
    """
    if not greenlets_available():
        return contextvars.copy_context()
    here = current_greenlet()
    if here.gr_context is None:
        contextvars.copy_context()  # makes one
    return here.gr_context  # type: ignore[no-any-return]


def take_variables(context: contextvars.Context) -> None:
    """Have the code that asks see what was set in `context`, if that is the copy that `own_context` gave."""
    if not greenlets_available():
        for variable, value in context.items():
            if variable.get(_UNSET) is not value:
                variable.set(value)


_UNSET: Any = object()


def leave_contexts(here: Any, outermost: contextvars.Context | None) -> list[contextvars.Context]:
    """Leave the contexts that were entered in this greenlet, the innermost first, until that which nobody entered."""
    left: list[contextvars.Context] = []
    while (context := here.gr_context) is not None and context is not outermost:
        try:
            _exit_context(context)
        except RuntimeError:  # the thread's own, which nobody has entered
            break
        left.append(context)
    return left


def _context_function(name: str) -> Callable[[contextvars.Context], int]:
    import ctypes  # only when somebody waits

    return ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)((name, ctypes.pythonapi))


def enter_context(context: contextvars.Context) -> None:
    _context_functions()[0](context)


def _exit_context(context: contextvars.Context) -> None:
    _context_functions()[1](context)


@functools.cache
def _context_functions() -> tuple[Callable[[contextvars.Context], int], Callable[[contextvars.Context], int]]:
    return _context_function("PyContext_Enter"), _context_function("PyContext_Exit")


def handle_that_runs() -> Any:
    """The handle whose callback calls this, if that is near: a callback that waits is rarely deep in the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not HANDLE_RUN.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("self")


def pad(loop: Any, count: int) -> None:
    """Have at least `count` handles ready, if need be some that do nothing."""
    for _ in range(count - len(getattr(loop, READY))):
        handle = asyncio.Handle(int, (), loop)
        handle.cancel()
        getattr(loop, READY).append(handle)


def close_descriptors(loop: Any) -> None:
    """In a forked child: close what a loop of its parent holds open.

    Nothing is unregistered first, as ``loop.close()`` does: that would reach the parent, who shares it.
    """
    for name in DESCRIPTORS:
        if (held := getattr(loop, name, None)) is not None:
            held.close()


def has_handles_ready(loop: Any) -> bool:
    """Whether the loop would call something at once. False for a loop that is not asyncio's own kind."""
    return bool(getattr(loop, READY, ()))


def excuse_slowness(loop: Any, seconds: float) -> None:
    """In asyncio's debug mode the loop warns of a slow callback. That it stood still is no fault of its code."""
    before = loop.slow_callback_duration
    loop.slow_callback_duration = before + seconds
    loop.call_soon(setattr, loop, "slow_callback_duration", before)


class Busy:
    """Stands in the place of a handle's callback while that is running and stands still.

    A reader is called again in each turn in which its socket can be read, and a signal's callback at each signal. That
    is done afterwards: a callback is not run inside of itself.
    """

    __slots__ = ("_callback", "_called", "_handle")

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._callback = getattr(handle, CALLBACK)
        self._called = False
        setattr(handle, CALLBACK, self)

    def __call__(self, *args: Any) -> None:
        self._called = True
        time.sleep(0.001)  # the socket can be read all the time: leave the processor to others

    def put_back(self, loop: Any) -> None:
        if getattr(self._handle, CALLBACK) is self:  # else it was cancelled
            setattr(self._handle, CALLBACK, self._callback)
            if self._called and self._handle in getattr(loop, SIGNAL_HANDLERS, {}).values():
                loop.call_soon(HANDLE_RUN, self._handle, context=contextvars.Context())


def check_yielded(yielded: Any, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Refuse what a task refuses to wait for, in the same words; `yielded` is waited for from now on."""
    if yielded is None:
        return
    blocking = getattr(yielded, BLOCKING, None)
    if blocking is None:
        if isinstance(yielded, GeneratorType):
            raise RuntimeError(f"yield was used instead of yield from for generator in task {task!r} with {yielded!r}")
        raise RuntimeError(f"Task got bad yield: {yielded!r}")
    if yielded.get_loop() is not loop:
        raise RuntimeError(f"Task {task!r} got Future {yielded!r} attached to a different loop")
    if not blocking:
        raise RuntimeError(f"yield was used instead of yield from in task {task!r} with {yielded!r}")
    setattr(yielded, BLOCKING, False)
    if yielded is task:
        raise RuntimeError(f"Task cannot await on itself: {task!r}")
