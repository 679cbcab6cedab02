"""A wait that is given up, while what was awaited goes on."""

from __future__ import annotations

import asyncio
from typing import Any

from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception
from ipyportal.concurrency.private import BLOCKING

__all__ = ["RestOfCoroutine", "WaitAbandoned", "WaitProxy"]


class WaitAbandoned(BaseException):
    """A suspended wait was given up; what was awaited goes on in `task`. It leaves `drive` as KeyboardInterrupt."""

    task: asyncio.Task[Any]


class WaitProxy(asyncio.Future[None]):
    """Waited for in place of `future`, so that the wait can be given up while the future goes on.

    A plain future needs none: it ends at once when it is cancelled. A task, or what gathers several, may take long to
    clean up, and a coroutine that is cleaning up may wait for anything.
    """

    def __init__(self, future: asyncio.Future[Any], begun: int) -> None:
        super().__init__(loop=future.get_loop())
        self.future = future
        self.begun = begun  # after so many stops
        self.abandoned = False
        future.add_done_callback(self._settle)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any | None = None) -> bool:
        return not self.done() and self.future.cancel(msg)

    def abandon(self) -> bool:
        if self.done():
            return False
        self.future.remove_done_callback(self._settle)
        self.abandoned = True
        self.set_result(None)
        return True


class RestOfCoroutine(CoroutineWrapper[Any]):
    """What is left of a coroutine that is waiting for `future`."""

    __slots__ = ("_future",)

    def __init__(self, inner: Any, future: asyncio.Future[Any] | None) -> None:
        self._inner = inner
        self._future = future

    def send(self, value: Any) -> Any:
        future, self._future = self._future, None
        if future is None:
            return self._inner.send(value)
        if future.done():
            return self._inner.send(None)
        setattr(future, BLOCKING, True)  # as Future.__await__ does before it yields itself
        return future

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        self._future = None
        return self._inner.throw(as_exception(typ, val, tb))

    def close(self) -> None:
        self._inner.close()
