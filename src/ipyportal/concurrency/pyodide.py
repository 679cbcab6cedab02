"""Pyodide: CPython in WebAssembly, in a browser's page or in node. What is used of it; it is imported here alone.

It has one thread, which belongs to JavaScript. No other can be started, and this one cannot block: whatever would end
the wait could not run. But code of it can stand still, by *JSPI* (JavaScript Promise Integration): WebAssembly's stack
is set aside until a promise of JavaScript is kept. Pyodide's ``run_sync`` does that. It is marked as experimental.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["IN_PYODIDE", "NO_THREADS", "can_stand_still", "check_wait", "stand_still", "why_not_standing"]

_PLATFORM: str = sys.platform  # a checker would take what depends on `sys.platform` itself for unreachable

IN_PYODIDE = _PLATFORM == "emscripten"
"""Whether this is Pyodide. Each part that differs there has a second one in a file of its own, and chooses by this."""

NO_THREADS = (
    "Python in a browser has one thread, and no other can be started. Leave out on= or %%thread. submit(), "
    "ipyportal.map() and %%background run async code as tasks of the page's event loop"
)

_ffi: Any = importlib.import_module("pyodide.ffi") if IN_PYODIDE else None


def can_stand_still() -> bool:
    """Whether the code that asks can stand still: there is JSPI, and JavaScript called this so that it can wait."""
    return _ffi is not None and bool(_ffi.can_run_sync())


def stand_still(promise: Any) -> None:
    """Stand still until a future of the page's loop is done."""
    _ffi.run_sync(promise)


def why_not_standing() -> str:
    """Why the code that asks cannot stand still; empty if `can_stand_still`, and elsewhere than in Pyodide."""
    if not IN_PYODIDE or can_stand_still():
        return ""
    js: Any = importlib.import_module("js")
    if not hasattr(js.WebAssembly, "Suspending"):
        return "this browser lacks JSPI (JavaScript Promise Integration), which suspends Python there. Use a newer one"
    return "JavaScript called this code, and does not wait for it"


def check_wait(what: object) -> None:
    """Raise RuntimeError if code that waits for `what` here would block the one thread, and so wait for ever."""
    if why_not := why_not_standing():
        raise RuntimeError(f"nothing can wait here for {what}: {why_not}")
