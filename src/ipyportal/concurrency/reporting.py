"""What is said of exceptions that have nobody to go to, and how exceptions are handled whatever their class does."""

from __future__ import annotations

import contextvars
import sys
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Unseen", "add_note", "forget_unseen", "report", "tell_unseen", "traceback_of"]

_OURS = str(Path(__file__).parents[1])  # where our files are

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
            # A lone surrogate would be refused, and in a notebook keep back what is written after it.
            said = f"{text}:\n{''.join(shown.format())}".encode("utf-8", "backslashreplace").decode()
            sys.stderr.write(said)
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


class Unseen:
    """What a call has raised, until somebody takes it. If nobody does, it is reported when the call is thrown away.

    As asyncio does it for tasks; and in the call's context, which says where output goes.
    """

    __slots__ = ("__weakref__", "_context", "_exc", "_what")

    def __init__(self, exc: BaseException, what: str, context: contextvars.Context | None) -> None:
        self._exc: BaseException | None = exc
        self._what = what
        self._context = context
        _unseen.add(self)

    def take(self) -> None:
        """Somebody has it."""
        self._exc = self._context = None

    def tell(self) -> None:
        """Report it now, if nobody has it."""
        exc, context = self._exc, self._context
        self.take()
        if exc is not None:
            if context is None:
                report(exc, self._what)
            else:
                context.copy().run(report, exc, self._what)

    def __del__(self) -> None:
        self.tell()


_unseen: weakref.WeakSet[Unseen] = weakref.WeakSet()


def tell_unseen() -> None:
    """Report all that nobody has taken: the interpreter is about to end."""
    for one in list(_unseen):
        one.tell()


def forget_unseen() -> None:
    """In a forked child: they are the parent's to report."""
    for one in list(_unseen):
        one.take()
