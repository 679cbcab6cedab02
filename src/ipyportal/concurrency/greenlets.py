"""The package greenlet: whether it is there, and what is used of it. It is imported here alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.pyodide import IN_PYODIDE, why_not_standing

try:
    import greenlet
except ImportError:  # a platform without it
    greenlet = None
if greenlet is None or sys.implementation.name != "cpython":  # `steps` counts references, `turns` uses CPython's C API
    greenlet = None
    Greenlet: Any = None
    GreenletExit: Any = None
    current_greenlet: Callable[[], Any] = object
else:
    Greenlet, GreenletExit, current_greenlet = greenlet.greenlet, greenlet.GreenletExit, greenlet.getcurrent

__all__ = [
    "Greenlet",
    "GreenletExit",
    "current_greenlet",
    "first_greenlet",
    "greenlets_available",
    "why_not_suspended",
]


def greenlets_available() -> bool:
    """Whether the package greenlet is there, and this is CPython: else nothing can be suspended."""
    return greenlet is not None


def why_not_suspended() -> str:
    """Why nothing can be suspended in this process, or, in Pyodide, here; empty if it can."""
    if IN_PYODIDE:
        return why_not_standing()
    if greenlet is not None:
        return ""
    if sys.implementation.name != "cpython":
        return f"synchronous code can be suspended on CPython alone, and this is {sys.implementation.name}"
    return "the package greenlet is not installed: pip install greenlet"


def first_greenlet() -> Any:
    """The thread's first greenlet."""
    first = current_greenlet()
    while first.parent is not None:
        first = first.parent
    return first
