"""ipykernel's debugger steps past our code, as it does past its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["hide_from_debugger"]


def hide_from_debugger(kernel: Any) -> Callable[[], None]:
    """Have the debugger leave out our frames; return what undoes that.

    It leaves out the files of those modules that were there when its kernel started. A client is told of them when it
    attaches: one that had attached before steps into our code.
    """
    files: object = getattr(getattr(kernel, "debugger", None), "kernel_modules", None)
    ours = [str(path) for path in Path(__file__).parents[1].rglob("*.py")]
    if not isinstance(files, list):  # without debugpy, or in a kernel that is not ipykernel
        return lambda: None
    files += ours

    def undo() -> None:
        for path in ours:
            if path in files:
                files.remove(path)

    return undo
