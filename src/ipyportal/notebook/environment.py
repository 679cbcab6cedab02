"""What this process is, and what therefore works in it."""

from __future__ import annotations

import asyncio
import enum
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ipyportal import patching, sync
from ipyportal.concurrency.suspension import greenlets_available

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Environment", "Kind", "Report", "detect", "version_of"]


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
    return Environment(Kind.KERNEL, kernel, not why_not, why_not, version_of("ipykernel"))


class Report:
    """What ``%portal`` shows: what was found, and what is set."""

    def __init__(self, environment: Environment, running: int) -> None:
        self._environment = environment
        self._running = running

    def lines(self) -> list[tuple[str, str]]:
        """Pairs of a subject and what there is to say about it."""
        environment = self._environment
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        packages = [
            f"{package} {'.'.join(map(str, version))}"
            for package in ("ipython", "ipykernel", "ipywidgets", "greenlet", "uvloop")
            if (version := version_of(package))
        ]
        suspended = "suspended: the loop goes on" if environment.can_suspend else f"blocked: {environment.why_not}"
        return [
            ("this is", environment.kind.value),
            ("Python", sys.version.split()[0]),
            ("packages", ", ".join(packages)),
            (
                "the loop of this thread",
                "none runs" if loop is None else f"{type(loop).__module__}.{type(loop).__name__}",
            ),
            ("a waiting cell is", suspended),
            (
                "calls run",
                f"by the rule{_HERE if environment.can_suspend else _LOOP}"
                if sync.get_route() is None
                else f"on {sync.get_route()}",
            ),
            ("asyncio.run()", patching.report()),
            ("nest_asyncio", _nest_asyncio()),
            ("calls running", str(self._running)),
            (
                "threads",
                ", ".join(thread.name for thread in threading.enumerate() if thread.name.startswith("ipyportal")),
            ),
        ]

    def __repr__(self) -> str:
        lines = self.lines()
        width = max(len(subject) for subject, _ in lines)
        return "\n".join(f"{subject.ljust(width)}  {text}".rstrip() for subject, text in lines)


_HERE = ", in a cell on its own loop"
_LOOP = ", on the EventLoopThread"


def _nest_asyncio() -> str:
    if not nest_asyncio_applied():
        return "not applied"
    return "applied: run_until_complete() is its own, and asyncio's tasks are slower"


def nest_asyncio_applied() -> bool:
    """Whether nest_asyncio has patched asyncio in this process."""
    return hasattr(asyncio, "_nest_patched") or hasattr(asyncio.BaseEventLoop, "_nest_patched")
