"""Routes: where a call runs, as ``on=`` and `set_route` name it."""

from __future__ import annotations

import asyncio
import enum
import importlib
import importlib.util
import sys
from typing import Any, Literal

from ipyportal import hosts
from ipyportal.concurrency.calls import Portal
from ipyportal.concurrency.labels import short_repr
from ipyportal.concurrency.portals import LoopPortal, get_global_loop, get_thread_pool
from ipyportal.concurrency.pyodide import IN_PYODIDE, NO_THREADS

__all__ = ["HERE", "RULE", "Route", "check_route", "chosen_route", "get_route", "nested_loop", "portal_of", "set_route"]

Route = Literal["kernel", "loop", "thread", "nested"] | Portal
"""Where a call runs: the kernel's thread, the global `EventLoopThread`, a thread for this call alone, or a portal.

``"nested"`` is the last resort: nest-asyncio re-enters the loop that runs in this thread.
"""


_NAMES = ("kernel", "loop", "thread", "nested")


class _Own(enum.Enum):
    """What the package itself gives as ``on=``."""

    RULE = "the rule, whatever `set_route` says"
    HERE = "the task of the caller, which can be suspended"


RULE: Any = _Own.RULE
HERE: Any = _Own.HERE

_route: Route | None = None


def get_route() -> Route | None:
    """Return the session's default for ``on=``. None means the rule of `run`.

    Example:
        >>> from ipyportal import get_route, set_route
        >>> set_route("loop")
        >>> get_route()
        'loop'
        >>> set_route(None)
    """
    return _route


def set_route(on: Route | None) -> None:
    """Set the session's default for ``on=`` of `run` and `submit`. None goes back to the rule of `run`.

    Example:
        >>> import asyncio, threading
        >>> from ipyportal import run, set_route
        >>> async def where():
        ...     return threading.current_thread().name
        >>> set_route("thread")
        >>> run(where())  # doctest: +ELLIPSIS
        'ipyportal-thread-...'
        >>> set_route(None)
        >>> run(where())
        'ipyportal-loop'
    """
    global _route
    check_route(on)
    _route = on


def check_route(on: Any) -> None:
    """Refuse what is no route.

    Raises:
        TypeError, ValueError: It is none.
        RuntimeError: It needs a thread, and this is Pyodide.
    """
    if on is None or isinstance(on, (_Own, Portal)):
        return
    if not isinstance(on, str) or on not in _NAMES:  # what is no text may refuse to be compared
        raise (ValueError if isinstance(on, str) else TypeError)(
            'on= must be "kernel", "loop", "thread", "nested" or a Portal, as get_worker_thread("db") is, not '
            + short_repr(on)
        )
    if on == "thread" and IN_PYODIDE:
        raise RuntimeError(NO_THREADS)


def chosen_route(on: Any) -> Route | None:
    """The route that `on` means; None for the rule."""
    if on is None:
        return _route
    return None if on is RULE else on


def portal_of(on: Route | None) -> Portal:
    """The portal that a route means. For the rule it is that of a caller who cannot be suspended.

    Raises:
        RuntimeError: There is no kernel, or no loop to re-enter.
        ImportError: nest-asyncio is not installed.
    """
    if on is None or on == "loop":
        return get_global_loop()
    if on == "thread":
        return get_thread_pool()
    if on == "nested":
        return LoopPortal(nested_loop(asyncio._get_running_loop()), "this thread's loop")
    if on == "kernel":
        if hosts.current.kernel_portal is None:
            raise RuntimeError(
                'on="kernel" needs a Jupyter kernel with the extension: type %load_ext ipyportal in a cell'
            )
        return hosts.current.kernel_portal
    assert isinstance(on, Portal)
    return on


def nested_loop(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Have nest-asyncio, or one of its forks, patch the loop that runs in this thread."""
    # The maintained forks: nest-asyncio2, and anest-asyncio, which has nest-asyncio's own module name.
    found = [name for name in ("nest_asyncio2", "nest_asyncio") if importlib.util.find_spec(name) is not None]
    if not found:
        raise ImportError('on="nested" needs nest-asyncio, which is not installed: pip install "ipyportal[nest]"')
    if loop is None:
        raise RuntimeError('on="nested" re-enters the loop that runs in this thread, and none runs here: leave on= out')
    name = next((name for name in found if name in sys.modules), found[0])  # the one that may have patched it already
    importlib.import_module(name).apply(loop)
    return loop
