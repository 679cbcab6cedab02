"""How an interrupt gets to another thread: by a signal, or by an exception that CPython raises there."""

from __future__ import annotations

import _thread
import functools
import gc
import itertools
import operator
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ipyportal.concurrency.pyodide import IN_PYODIDE

__all__ = ["innermost_frame", "send_in_frame", "send_sigint", "set_async_exception", "take_async_exception_back"]


def send_sigint() -> None:
    """Have the handler of SIGINT run on the main thread, also in the midst of a system call. From any thread.

    On Windows a system call is not ended.
    """
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def set_async_exception(ident: int, exception: type[BaseException] | None) -> None:
    if IN_PYODIDE or sys.implementation.name != "cpython":
        return  # none was sent, see _raise_there
    import ctypes  # only when something is cancelled: importing it costs more than the rest of this module

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if exception is None else ctypes.py_object(exception)
    )


class _TakenBack(BaseException):
    """Raised in place of what was sent, and caught at once."""


def take_async_exception_back() -> None:
    """Have an exception that was sent to this thread, and has not come, not come any more. In that thread.

    In CPython 3.11 one that is taken back by a null pointer leaves a flag set, by which the interpreter looks for
    signals and exceptions at each instruction. Code that is traced or profiled by a Python function (pdb, debugpy) then
    never gets beyond the next call. The flag is cleared when an exception comes. So another one does, here.
    """
    ident = threading.get_ident()
    if sys.version_info >= (3, 12) or IN_PYODIDE or sys.implementation.name != "cpython":
        set_async_exception(ident, None)
        return
    try:
        set_async_exception(ident, _TakenBack)
        while True:
            pass  # until it comes: that is at the first jump
    except _TakenBack:
        pass


def _frames() -> Iterator[dict[int, FrameType]]:
    """What `sys._current_frames` gives, when it is asked for the one item; all in functions written in C.

    In CPython 3.11 to 3.11.8 a garbage collection may begin in the middle of it. If that runs Python code, another
    thread may come to the lock that is held there, for threads to begin and end, and hold the interpreter's own, for
    which the first waits: all threads stand still for ever (github.com/python/cpython/issues/106883). Since 3.12 there
    is no collection in the middle of a function of C.
    """
    if sys.version_info >= (3, 12):
        return map(operator.call, [sys._current_frames])
    enable: list[Any] = []  # what is to be called afterwards, unless collections were disabled before
    look: Any = functools.partial(enable.extend, itertools.compress([gc.enable], map(operator.call, [gc.isenabled])))
    results: Iterator[Any] = map(operator.call, itertools.chain([look, gc.disable, sys._current_frames], enable))
    return map(operator.itemgetter(2), map(tuple, [results]))


def innermost_frame(ident: int) -> FrameType | None:
    """Where the thread `ident` is."""
    return next(_frames()).get(ident)


def send_in_frame(ident: int, frame: FrameType | None, exception: type[BaseException]) -> bool:
    """Send a thread `exception` if `frame` is its innermost one. False if it is not.

    The interpreter may switch to that thread between any two bytecodes: so that it does not between the look and the
    sending, both are one call of functions that are none of them written in Python.
    """
    import ctypes

    innermost = map(operator.methodcaller("get", ident), _frames())
    is_there = map(functools.partial(operator.is_, frame), innermost)
    what = [(ctypes.c_ulong(ident), ctypes.py_object(exception))]
    return any(itertools.starmap(ctypes.pythonapi.PyThreadState_SetAsyncExc, itertools.compress(what, is_there)))
