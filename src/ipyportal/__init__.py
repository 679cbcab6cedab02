"""ipyportal runs async code from synchronous code in a live notebook.

``run(x)`` means ``await x``, written where ``await`` cannot be written: in a function, a ``df.apply``, a property, a
widget callback. In a notebook, type ``%load_ext ipyportal`` first: then the notebook stays alive while a cell waits.
The same call works in a script, in pytest and in terminal IPython:

    >>> import asyncio
    >>> from ipyportal import run, submit
    >>> async def fetch(city):  # any async library
    ...     await asyncio.sleep(0.01)
    ...     return f"{city} {len(city)} °C"
    >>> def temperature(city):  # a plain function
    ...     return run(fetch(city))
    >>> temperature("Oslo")
    'Oslo 4 °C'
    >>> call = submit(fetch("Riga"))  # starts it, and returns its Call at once
    >>> call.result()
    'Riga 4 °C'

In the same way, `iterate` is ``async for`` and `enter` is ``async with``. `syncify` makes a synchronous version of a
function or a class. `map` calls a function for many items at once.

A route says where a call runs. Your own functions can take one as an argument; `Route` is its type:

    >>> import ipyportal
    >>> def forecast(city, on: ipyportal.Route | None = None):
    ...     return run(fetch(city), on=on)
    >>> forecast("Oslo", on="thread")
    'Oslo 4 °C'
    >>> print(f"by ipyportal {ipyportal.__version__}")  # doctest: +ELLIPSIS
    by ipyportal ...

All this is built on `ipyportal.concurrency`, an engine that does not import IPython.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipyportal._version import __version__
from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    ExecutorPortal,
    Portal,
    WorkerThread,
    get_global_loop,
    get_worker_thread,
    shield,
)
from ipyportal.concurrency.labels import show_unquoted
from ipyportal.mapping import map as map  # not in __all__: `import *` must not replace the builtin one
from ipyportal.patching import patch_asyncio
from ipyportal.routes import Route, get_route, set_route
from ipyportal.streams import enter, iterate
from ipyportal.sync import on_kernel_thread, run, submit
from ipyportal.synchronous import syncify

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "Call",
    "EventLoopThread",
    "ExecutorPortal",
    "Portal",
    "Route",
    "WorkerThread",
    "__version__",
    "enter",
    "get_global_loop",
    "get_route",
    "get_worker_thread",
    "iterate",
    "on_kernel_thread",
    "patch_asyncio",
    "run",
    "set_route",
    "shield",
    "submit",
    "syncify",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "map"])


show_unquoted(globals()[name] for name in __dir__())


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%load_ext ipyportal`` calls."""
    from ipyportal.notebook import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%unload_ext ipyportal`` calls."""
    from ipyportal.notebook import unload

    unload(shell)
