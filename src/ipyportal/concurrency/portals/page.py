"""`PagePortal`: the loop of a page in a browser (Pyodide), on which calls run that elsewhere have a thread's loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call
from ipyportal.concurrency.portals.loops import LoopPortal

__all__ = ["the_page"]

T = TypeVar("T")


class PagePortal(LoopPortal):
    """The page's loop. It stands in the place of the global `EventLoopThread`, and ends with the page."""

    thread = threading.main_thread()

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        super().__init__(loop, name)
        self._calls: set[Call[Any]] = set()  # also those that have not begun

    def submit(self, call: Call[T]) -> Call[T]:
        super().submit(call)
        self._calls.add(call)
        call._when_done(self._calls.discard)
        return call

    def start(self) -> PagePortal:
        """The loop runs already. Returns the portal."""
        return self

    def running(self) -> bool:
        """True: the loop takes calls as long as there is a page."""
        return True

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Refused: the loop is the browser's.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the page's event loop is the browser's, and cannot be shut down. Cancel calls one by one")

    def cancel_calls(self) -> None:
        """Cancel what was submitted and is not over."""
        for call in list(self._calls):
            call.cancel()

    def _check_wait(self, call: Call[object]) -> None:
        pass  # `Call._check_wait` says why nothing can wait here


@functools.cache
def the_page() -> PagePortal:
    """The portal of the page's loop."""
    return PagePortal(asyncio.get_running_loop(), "the page's loop")
