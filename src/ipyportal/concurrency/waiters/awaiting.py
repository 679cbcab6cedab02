"""`AsyncWaiter`, which awaits in a task."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call
from ipyportal.concurrency.calls.tasks import CallDoneFuture, start_on_loop
from ipyportal.concurrency.waiters.waiter import Waiter

__all__ = ["AsyncWaiter"]

T = TypeVar("T")


class AsyncWaiter(Waiter[T]):
    """Waits for a call in a task. Calls that are sent back run in the task's loop; asynchronous ones run concurrently.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import AsyncWaiter, Call, get_global_loop
        >>> async def main():
        ...     call = Call.new(asyncio.sleep, 0.01, "slept")
        ...     waiter = AsyncWaiter(call)
        ...     get_global_loop().submit(call)
        ...     return (await waiter.wait()).result()
        >>> asyncio.run(main())
        'slept'
    """

    def __init__(self, call: Call[T]) -> None:
        super().__init__(call)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[asyncio.Task[None]] = set()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                self._cancel_sent_back()  # the loop was closed under the wait

    def _drain(self) -> None:
        loop = self._loop
        assert loop is not None
        while self._todo:
            call = self._next()
            call._when_done(self._is_over)
            start_on_loop(call, loop, self._running)

    def _is_over(self, call: Call[Any]) -> None:
        self._sent_back.pop(call, None)

    async def wait(self) -> Call[T]:
        """Run the calls that are sent back until all are over, then the done callbacks.

        Returns the call, even if it failed. If the task that waits is cancelled, the call and the calls that it sent
        back are cancelled, and the task waits for their clean-up.
        """
        __tracebackhide__ = True
        call = self._call
        self._loop = asyncio.get_running_loop()
        self._drain()
        cancelled: asyncio.CancelledError | None = None
        try:
            awaited = CallDoneFuture(call)
            try:
                await awaited
            except asyncio.CancelledError as exc:
                cancelled = exc
            finally:
                awaited.release()
            if awaited.asked_to_cancel and cancelled is None:
                cancelled = asyncio.CancelledError()
            self._ended()
            while not self._close_if_idle() or self._running:
                self._drain()
                try:
                    if self._running:
                        await asyncio.wait(list(self._running))
                except asyncio.CancelledError as exc:
                    cancelled = exc
                    self._cancel_sent_back()
        finally:
            self._closed = True
            for callback in self._done_callbacks:
                start_on_loop(callback, self._loop, self._running)
                while self._running:
                    try:
                        await asyncio.wait(list(self._running))
                    except asyncio.CancelledError as exc:
                        cancelled = exc
                        callback.cancel()
                self._report(callback)
        if cancelled is not None:
            raise cancelled
        return call
