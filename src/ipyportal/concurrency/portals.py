"""`Portal`: a place where calls run."""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ipyportal.concurrency.calls import Call

__all__ = ["LoopPortal", "Portal"]

T = TypeVar("T")


class Portal(abc.ABC):
    """A place where calls run: a thread, an event loop, the thread that waits for a call, an executor."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abc.abstractmethod
    def submit(self, call: Call[T]) -> Call[T]:
        """Have `call` run here, soon, after those submitted before. From any thread. Returns the call.

        Raises:
            RuntimeError: The portal takes no more calls, or the call was submitted before.
        """

    def _adopt(self, call: Call[Any]) -> None:
        """Note that `call` is to run here, once."""
        # Without the call's lock: of two threads that submit one call, both may get here, and `Call._begin` sees to
        # it that it runs once.
        if call._portal is not None or call.running():
            raise RuntimeError(f"{call!r} was submitted before; make a new call for each run")
        call._portal = self

    def _check_wait(self, call: Call[Any]) -> None:  # noqa: B027 - most portals have nothing to check
        """Raise RuntimeError if this thread, by blocking for `call`, would keep it from ever being run."""


class LoopPortal(Portal):
    """A loop that runs already, in whatever thread: calls run on it as tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "an event loop") -> None:
        self._loop = loop
        self._name = name
        self._running: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def submit(self, call: Call[T]) -> Call[T]:
        from ipyportal.concurrency.calls import start_on_loop

        self._adopt(call)
        try:
            # Raises RuntimeError if the loop is closed.
            self._loop.call_soon_threadsafe(start_on_loop, call, self._loop, self._running)
        except RuntimeError:
            call._portal = None
            raise
        return call

    def _check_wait(self, call: Call[Any]) -> None:
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it runs on the loop of this very thread, which the "
                "wait blocks. In asynchronous code, await the call"
            )
