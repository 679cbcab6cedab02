"""What this process is, and what therefore works in it."""

from __future__ import annotations

import asyncio
import enum
import os
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ipyportal import patching
from ipyportal.concurrency.greenlets import greenlets_available, why_not_suspended
from ipyportal.concurrency.labels import one_line, sendable, short_repr, type_name
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.suspension import can_suspend
from ipyportal.concurrency.suspension.loops import turns_possible
from ipyportal.notebook.html import table
from ipyportal.notebook.lite import LIMITS, LIMITS_OF_LITE, is_page_kernel
from ipyportal.routes import get_route

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Environment", "Kind", "Report", "detect", "version_of"]


class Kind(enum.Enum):
    """Where code is typed."""

    KERNEL = "a Jupyter kernel"
    OTHER_KERNEL = "a Jupyter kernel that is not ipykernel"
    PAGE = "a Pyodide kernel of JupyterLite, in the browser"
    TERMINAL = "terminal IPython"
    SCRIPT = "no IPython"


@dataclass(frozen=True)
class Environment:
    """What was found."""

    kind: Kind
    kernel: Any
    """The ``ipykernel.kernelbase.Kernel``, in such a kernel."""
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
        return Environment(kind, None, False, "no loop runs", ())
    why_not = why_not_suspended()
    if is_page_kernel(kernel):
        return Environment(Kind.PAGE, None, not why_not, why_not, ())
    if not isinstance(getattr(kernel, "shell_handlers", None), dict):
        # Its cells may be tasks of a loop, as any other.
        why_not = "" if can_suspend() else why_not or "they run in no task of asyncio's own loop"
        return Environment(Kind.OTHER_KERNEL, None, not why_not, why_not, ())
    return Environment(Kind.KERNEL, kernel, not why_not, why_not, version_of("ipykernel"))


def other_kernel(shell: InteractiveShell) -> str:
    """What is missing in a kernel that is not ipykernel."""
    kernel: Any = getattr(shell, "kernel", None)
    return (
        f"this kernel ({type_name(kernel)}) is not ipykernel: run, submit and the magics work, on_kernel_thread does "
        "not, and the stop button works as this kernel implements it"
    )


class Report:
    """What ``%portal`` shows: what was found, and what is set."""

    def __init__(self, environment: Environment, running: int) -> None:
        self._environment = environment
        self._running = running

    def facts(self) -> dict[str, Any]:
        """The same for programs: names that stay, and values of JSON's types; None for what does not apply here."""
        import platform  # which takes long to import

        environment = self._environment
        kernel = environment.kernel
        loop = asyncio._get_running_loop()
        return {
            "kind": environment.kind.name.lower(),
            "frontend": _frontend(),
            "python": sys.version.split()[0],
            "implementation": sys.implementation.name,
            "executable": sendable(sys.executable),
            "platform": platform.platform(),
            "packages": {package: version for package in _PACKAGES if (version := _installed(package))},
            "loop": None if loop is None else patching.loop_name(loop),
            "cells_are_suspended": environment.can_suspend,
            "why_not": environment.why_not or None,
            "widgets_are_live": environment.can_suspend if kernel is not None and version_of("ipywidgets") else None,
            "subshells": None if kernel is None else _has_subshells(kernel),
            "route": None if get_route() is None else _route(),
            "asyncio_is_patched": patching.patched(),
            "nest_asyncio_is_applied": nest_asyncio_applied(),
            "calls_running": self._running,
            "threads": _threads(),
            "limits": [*(LIMITS_OF_LITE if environment.kind is Kind.PAGE else LIMITS)] if IN_PYODIDE else [],
            "to_do": _to_do(environment),
        }

    def lines(self) -> list[tuple[str, str]]:
        """Pairs of a subject and what there is to say about it."""
        environment, facts = self._environment, self.facts()
        where = "" if facts["frontend"] is None else f", {facts['frontend']}"
        elsewhere = ", on the page's loop" if IN_PYODIDE else _LOOP
        rule = f"by the rule{_HERE if environment.can_suspend else elsewhere}{_in_a_line_that_awaits(environment)}"
        nothing = "none: Python has one in a browser" if IN_PYODIDE else "none of ipyportal's yet"
        return [
            ("this is", f"{environment.kind.value}{where}"),
            ("Python", f"{facts['python']}, {facts['executable']}"),
            ("system", facts["platform"]),
            ("packages", ", ".join(f"{package} {version}" for package, version in facts["packages"].items())),
            ("the loop of this thread", facts["loop"] or "none runs"),
            ("a waiting cell is", f"{_suspended(environment)}: {_why(environment)}"),
            ("widgets meanwhile", _widgets(environment)),
            ("subshells", _subshells(environment)),
            ("calls run", rule if facts["route"] is None else f"on {facts['route']}"),
            ("asyncio.run()", _asyncio_run(environment)),
            ("nest_asyncio", _nest_asyncio()),
            ("calls running", str(self._running)),
            ("threads", ", ".join(facts["threads"]) or nothing),
            *([("limits", "; ".join(facts["limits"]))] if IN_PYODIDE else []),
            ("to do", "; ".join(facts["to_do"]) or "nothing"),
        ]

    def __repr__(self) -> str:
        lines = self.lines()
        width = max(len(subject) for subject, _ in lines)
        return "\n".join(f"{subject.ljust(width)}  {text}".rstrip() for subject, text in lines)

    def _repr_html_(self) -> str:
        return table((line, "") for line in self.lines())


_PACKAGES = (
    *("ipython", "ipykernel", "ipywidgets", "anywidget", "jupyterlab", "notebook", "tqdm"),
    *("greenlet", "uvloop"),
)

_HERE = ", in a cell on its own loop"
_LOOP = ", on the EventLoopThread"


def _route() -> str:
    route = get_route()
    return route if isinstance(route, str) else short_repr(route)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _threads() -> list[str]:
    return [one_line(thread.name) for thread in threading.enumerate() if thread.name.startswith("ipyportal")]


def _nest_asyncio() -> str:
    if not nest_asyncio_applied():
        return "not applied"
    return "applied: run_until_complete() is its own, and asyncio's tasks are slower"


def _frontend() -> str | None:
    """Who has started this kernel, as far as that can be told from the environment that it was given."""
    if "COLAB_RELEASE_TAG" in os.environ:
        return "of Colab"
    if "VSCODE_PID" in os.environ:
        return "of VS Code"
    if "BINDER_SERVICE_HOST" in os.environ:
        return "on Binder"
    if "JPY_SESSION_NAME" in os.environ:  # set by Jupyter's server, for the notebook that the kernel is started for
        return "of a Jupyter server (JupyterLab, Notebook)"
    return None


def shows_widgets(shell: Any) -> bool:
    """Whether widgets are shown where a kernel's cell sends its output, as far as that can be told.

    Notebooks say with a request which of their cells it is. ``jupyter console`` does not, and shows no widgets; nor
    does nbclient, and of its files many readers show none.
    """
    if "COLAB_RELEASE_TAG" in os.environ or "VOILA_PREHEAT" in os.environ:
        return True
    parent = getattr(shell, "parent_header", None)
    metadata = parent.get("metadata") if isinstance(parent, dict) else None
    return isinstance(metadata, dict) and "cellId" in metadata


def _suspended(environment: Environment) -> str:
    if environment.kind is Kind.PAGE and not environment.can_suspend:
        return "refused"
    return "suspended" if environment.can_suspend else "blocked"


def _why(environment: Environment) -> str:
    if environment.kind is not Kind.TERMINAL:
        return environment.why_not or "the loop goes on"
    if _suspends_in_a_terminal():
        return "no loop runs; in a line with await one does, and goes on"
    return ": ".join(
        filter(None, ["no loop runs; in a line with await one does, and is blocked, too", why_not_suspended()])
    )


def _suspends_in_a_terminal() -> bool:
    """Whether a line of terminal IPython with ``await`` can be suspended, as any task of asyncio's loops can."""
    return turns_possible()


def _in_a_line_that_awaits(environment: Environment) -> str:
    if environment.kind is Kind.TERMINAL and _suspends_in_a_terminal():
        return "; in a line with await on its own loop"
    return ""


def _asyncio_run(environment: Environment) -> str:
    if environment.kind is not Kind.TERMINAL:
        return patching.report()
    if not patching.patched():
        return "works: no loop is running. In a line with await, type %portal patch on"
    return f"works: no loop is running. In a line with await: {patching.report()}"


def _widgets(environment: Environment) -> str:
    if environment.kind is Kind.OTHER_KERNEL:
        return "as this kernel handles them"
    if environment.kind is Kind.PAGE:
        return "not live: JupyterLite keeps their messages until the cell is over"
    if environment.kernel is None:
        return "none: they are a kernel's"
    if not version_of("ipywidgets"):
        return "ipywidgets is not installed"
    return "live: their messages are handled" if environment.can_suspend else "not live: their messages wait"


def _has_subshells(kernel: Any) -> bool:
    return "kernel subshells" in getattr(kernel, "kernel_info", {}).get("supported_features", ())


def _subshells(environment: Environment) -> str:
    if environment.kind in (Kind.OTHER_KERNEL, Kind.PAGE):
        return "not known to this kernel"
    if environment.kernel is None:
        return "none: they are a kernel's"
    if not _has_subshells(environment.kernel):
        return "not known to this kernel"
    return f"a waiting cell is {_suspended(environment)} there, too; the stop button does not reach it"


def _to_do(environment: Environment) -> list[str]:
    """What to do about what does not work."""
    steps = []
    if environment.kernel is not None and not greenlets_available() and sys.implementation.name == "cpython":
        steps.append("pip install greenlet, and restart the kernel: then cells that wait are suspended")
    if nest_asyncio_applied():
        steps.append("remove nest_asyncio.apply() and restart the kernel; use %portal patch on instead")
    return steps


def nest_asyncio_applied() -> bool:
    """Whether nest_asyncio has patched asyncio in this process."""
    return hasattr(asyncio, "_nest_patched") or hasattr(asyncio.BaseEventLoop, "_nest_patched")
