"""What is said of exceptions that have nobody to go to, and how exceptions are handled whatever their class does."""

from __future__ import annotations

import contextvars
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ipyportal.concurrency.labels import sendable

__all__ = ["Unretrieved", "add_note", "forget_unretrieved", "report", "report_unretrieved", "traceback_of"]

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep  # where our files are; pathlib takes long to import

traceback_of: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__
"""``exc.__traceback__``, also of a class that has an attribute of its own by that name."""


def add_note(exc: BaseException, note: str) -> None:
    """``exc.add_note(note)``, if that can be: a frozen dataclass takes none."""
    try:
        exc.add_note(note)
    except Exception:  # noqa: BLE001 - whatever its own attributes raise; the exception itself matters more
        pass


def report(exc: BaseException, what: str) -> None:
    """Say that `exc` had nobody to go to: through `sys.unraisablehook` if one was set, else on stderr."""
    text, trace, hook = f"ipyportal: {what}", traceback_of(exc), sys.unraisablehook
    if hook is not sys.__unraisablehook__:  # that takes nothing but what the interpreter made
        try:
            hook(_Unraisable((type(exc), exc, trace, text, None)))
            return
        except Exception:  # noqa: BLE001 - then it goes where it would go without the hook
            pass
    try:
        if sys.stderr is not None:  # as in a program without a console
            shown = traceback.TracebackException(type(exc), exc, trace)
            _keep_users_frames(shown)
            sys.stderr.write(sendable(f"{text}:\n{''.join(shown.format())}"))
    except Exception:  # noqa: BLE001 - it is closed: there is nobody to tell
        pass


def _keep_users_frames(shown: traceback.TracebackException) -> None:
    """Leave out our own frames, where others are left."""
    kept = [frame for frame in shown.stack if not frame.filename.startswith(_OURS)]
    if kept:
        shown.stack[:] = kept
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            _keep_users_frames(other)


class _Unraisable(tuple[Any, ...]):
    """The fields that `sys.unraisablehook` reads; its own type cannot be made from Python."""

    __slots__ = ()
    exc_type = property(lambda self: self[0])
    exc_value = property(lambda self: self[1])
    exc_traceback = property(lambda self: self[2])
    err_msg = property(lambda self: self[3])
    object = property(lambda self: self[4])


class Unretrieved:
    """The exception of a call, until somebody retrieves it. If nobody does, it is reported when the call is collected.

    asyncio does the same for tasks. It is reported in the call's context, which decides where output goes.
    """

    __slots__ = ("__weakref__", "_context", "_exc", "_what")

    def __init__(self, exc: BaseException, what: str, context: contextvars.Context | None) -> None:
        self._exc: BaseException | None = exc
        self._what = what
        self._context = context
        _unretrieved.add(self)

    def retrieved(self) -> None:
        """Somebody has it: it need not be reported."""
        self._exc = self._context = None

    def tell(self) -> None:
        """Report it now, unless somebody has it."""
        exc, context = self._exc, self._context
        self.retrieved()
        if exc is not None:
            if context is None:
                report(exc, self._what)
            else:
                context.copy().run(report, exc, self._what)

    def __del__(self) -> None:
        self.tell()


_unretrieved: weakref.WeakSet[Unretrieved] = weakref.WeakSet()


def report_unretrieved() -> None:
    """Report all that nobody has retrieved: the interpreter is about to end."""
    for one in list(_unretrieved):
        one.tell()


def forget_unretrieved() -> None:
    """In a forked child: they are the parent's to report."""
    for one in list(_unretrieved):
        one.retrieved()
