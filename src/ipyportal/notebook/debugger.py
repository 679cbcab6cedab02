"""ipykernel's debugger steps past our code, as it does past its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["hide_from_debugger"]


def hide_from_debugger(kernel: Any) -> Callable[[], None]:
    """Have the debugger leave out our frames; return what undoes that.

    It leaves out the files of those modules that were there when its kernel started. A client is told of them when it
    attaches: one that had attached before steps into our code.
    """
    files: object = getattr(getattr(kernel, "debugger", None), "kernel_modules", None)
    # When the extension is loaded, all of our modules are there that run in a kernel.
    ours = [
        module.__file__
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "ipyportal" and getattr(module, "__file__", None)
    ]
    if not isinstance(files, list):  # without debugpy, or in a kernel that is not ipykernel
        return lambda: None
    files += ours

    def undo() -> None:
        for path in ours:
            if path in files:
                files.remove(path)

    return undo
