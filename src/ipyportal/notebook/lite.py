"""The Pyodide kernel of JupyterLite: output goes to the cell that launched it, and callbacks of widgets can wait.

This is the one module that touches what is that kernel's own. Seen to work with jupyterlite-pyodide-kernel 0.8.6:

- ``kernel._parent_header``: JavaScript sets it before each message, and reads it when it sends what Python gives out.
  The kernel's class is replaced, while the extension is loaded, by a subclass where it is a context variable.
- ``kernel.run``: JavaScript calls it for each cell, and waits for it. Each cell is a task.
- ``kernel.comm_manager``: JavaScript calls ``comm_open``, ``comm_msg`` and ``comm_close`` for the messages of widgets,
  and does not wait. Code that it calls so cannot stand still. So they are called by the page's loop, in turn.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ipyportal.notebook.patches import replace

__all__ = ["LIMITS", "LIMITS_OF_LITE", "attend_page", "is_page_kernel"]

LIMITS = (
    "code that computes and does not wait cannot be timed out",
    'there are no threads: no %%thread, no on="thread"',
)
"""What does not work in a browser, whoever tries it."""

LIMITS_OF_LITE = (
    "the stop button does not end a cell that runs: JupyterLite has no way to interrupt its kernel",
    *LIMITS,
)
"""What does not work in JupyterLite."""

_parent: ContextVar[Any] = ContextVar("ipyportal_page_parent", default=None)

_COMMS = ("comm_open", "comm_msg", "comm_close")


def is_page_kernel(kernel: Any) -> bool:
    """Whether this is the kernel that this module knows."""
    return type(kernel).__module__ == "pyodide_kernel.kernel" and hasattr(kernel, "_parent_header")


class _Attributed:
    """A kernel whose parent header is that of the message for which code runs, and not that of the latest one."""

    _latest_parent: Any

    @property
    def _parent_header(self) -> Any:
        parent = _parent.get()
        return self._latest_parent if parent is None else parent

    @_parent_header.setter
    def _parent_header(self, value: Any) -> None:
        self._latest_parent = value


def attend_page(kernel: Any) -> Callable[[], object]:
    """Make these changes to `kernel`, in a cell of it; return what undoes them."""
    original: Any = type(kernel)
    latest = vars(kernel).pop("_parent_header")
    kernel.__class__ = type(original)(original.__name__, (_Attributed, original), {"__module__": original.__module__})
    kernel._latest_parent = latest
    run = kernel.run

    @functools.wraps(run)
    def run_for_its_message(code: Any) -> Any:
        parent = kernel._latest_parent  # of this message: when the cell begins, it may be that of the next one

        async def cell() -> Any:
            _parent.set(parent)
            return await run(code)

        return cell()

    undo = [replace(kernel, "run", run_for_its_message)]
    undo += [replace(kernel.comm_manager, name, _by_the_loop(kernel, name)) for name in _COMMS]
    _parent.set(latest)  # for the rest of this cell

    def put_back() -> None:
        for one in reversed(undo):
            one()
        latest = vars(kernel).pop("_latest_parent")
        kernel.__class__ = original
        kernel._parent_header = latest

    return put_back


def _by_the_loop(kernel: Any, name: str) -> Callable[..., None]:
    """A method of the comm manager, called by the page's loop."""
    original = getattr(kernel.comm_manager, name)
    loop = asyncio.get_running_loop()

    @functools.wraps(original)
    def handle(*args: Any) -> None:
        context = contextvars.copy_context()
        context.run(_parent.set, kernel._latest_parent)
        loop.call_soon(original, *args, context=context)

    return handle
