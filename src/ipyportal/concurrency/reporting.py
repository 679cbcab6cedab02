"""What is said of exceptions that have nobody to go to, and how exceptions are handled whatever their class does."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["add_note", "report", "traceback_of"]

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
            sys.stderr.write(f"{text}:\n{''.join(traceback.format_exception(type(exc), exc, trace))}")
    except Exception:  # noqa: BLE001 - it is closed: there is nobody to tell
        pass


class _Unraisable(tuple[Any, ...]):
    """The fields that `sys.unraisablehook` reads; its own type cannot be made from Python."""

    __slots__ = ()
    exc_type = property(lambda self: self[0])
    exc_value = property(lambda self: self[1])
    exc_traceback = property(lambda self: self[2])
    err_msg = property(lambda self: self[3])
    object = property(lambda self: self[4])
