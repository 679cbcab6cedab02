"""What this process is, and what therefore works in it."""

from __future__ import annotations

import enum
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ipyportal.concurrency.suspension import greenlets_available

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Environment", "Kind", "detect", "version_of"]


class Kind(enum.Enum):
    """Where code is typed."""

    KERNEL = "a Jupyter kernel"
    TERMINAL = "terminal IPython"
    SCRIPT = "no IPython"


@dataclass(frozen=True)
class Environment:
    """What was found."""

    kind: Kind
    kernel: Any
    """The ``ipykernel.kernelbase.Kernel``, in a kernel."""
    can_suspend: bool
    why_not: str
    """Why a waiting cell cannot be suspended; empty if it can."""
    ipykernel: tuple[int, ...]
    """The version of ipykernel; empty outside of a kernel."""


def version_of(package: str) -> tuple[int, ...]:
    """The numbers of an installed package's version; empty if it is not installed."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return ()
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def detect(shell: InteractiveShell | None) -> Environment:
    """Look at `shell`, or, if None, at the running IPython, if there is any."""
    if shell is None and "IPython" in sys.modules:
        from IPython import get_ipython

        shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        kind = Kind.SCRIPT if shell is None else Kind.TERMINAL
        return Environment(kind, None, False, f"this is {kind.value}: no loop runs while code runs", ())
    why_not = ""
    if not greenlets_available():
        why_not = "the package greenlet is not installed"
    elif not hasattr(kernel, "shell_handlers"):
        why_not = "this kernel is not of ipykernel's kind"
    elif threading.current_thread() is not threading.main_thread():
        why_not = "the extension was loaded in a subshell"
    return Environment(Kind.KERNEL, kernel, not why_not, why_not, version_of("ipykernel"))
