"""`WorkerThread`: a thread that runs calls one after the other, and how a thread without a loop runs a call."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections import deque
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call
from ipyportal.concurrency.calls.execution import Execution
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.portals.life import Phase, ThreadPortal
from ipyportal.concurrency.suspension.steps import per_thread
from ipyportal.concurrency.suspension.suspending import drop_idle_greenlets

__all__ = ["WorkerThread", "cancel_all", "run_alone"]

T = TypeVar("T")


class WorkerThread(ThreadPortal):
    """A thread that runs calls one after the other.

    An asynchronous call runs there in its own event loop, as in `asyncio.run`. You can use the thread as a context
    manager. At the end of the block, it waits for the calls that were submitted. If the block raises an exception, it
    cancels them.

    Args:
        name: The thread's name.
        daemon: If True, the interpreter may exit while calls run. They are then cancelled, and have a second to clean
            up. If False, the exit of the interpreter waits for the calls, and the thread ends.
        run_once: Take one call, and end.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import Call, WorkerThread
        >>> with WorkerThread("files") as thread:
        ...     call = thread.submit(Call.new(threading.current_thread))
        >>> call.result().name
        'files'
    """

    _kind = "worker"

    def __init__(self, name: str | None = None, daemon: bool = True, run_once: bool = False) -> None:
        super().__init__(name, daemon, run_once)

    def _reset(self) -> None:
        super()._reset()
        self._inbox: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._current: Call[Any] | None = None
        self._queued: deque[Call[Any]] = deque()  # as the inbox, and until they are `_current`: for a fork
        self._cancel_at_end = False

    def submit(self, call: Call[T]) -> Call[T]:
        with self._lock:
            if self._phase is not Phase.RUNNING:
                self.start()
            self._claim(call)
            self._queued.append(call)
            self._inbox.put(call)
            if self._run_once:
                self._close()
        return call

    def _close(self) -> None:
        self._phase = Phase.CLOSING
        self._inbox.put(None)

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, run those that were submitted, and end the thread. From any thread.

        Args:
            cancel: Cancel the calls instead.
            timeout: Seconds to wait for the end of the thread; None for as long as it takes.

        Returns:
            False if the thread had not ended by then.

        Raises:
            TypeError, ValueError: `timeout` is not a number, or is negative. Then nothing was done.
        """
        timeout = check_timeout(timeout)
        with self._lock:
            if self._phase is Phase.RUNNING:
                self._close()
            elif self._phase is Phase.NEW:
                self._phase = Phase.CLOSED
            if cancel:
                self._cancel_at_end = True
                try:
                    # The thread takes calls meanwhile, so that the inbox may be empty at any time.
                    while (call := self._inbox.get_nowait()) is not None:
                        self._queued.remove(call)
                        call.cancel()
                    self._inbox.put(None)
                except queue.Empty:
                    pass
                if (current := self._current) is not None:
                    current.cancel()
        return self._join(timeout)

    def _calls(self) -> list[Execution[Any]]:
        return [*([] if self._current is None else [self._current]), *self._queued]

    def _main(self, ready: concurrent.futures.Future[None]) -> None:
        per_thread.here.ends_its_greenlets = True
        ready.set_result(None)
        inbox = self._inbox
        try:
            # Each wait ends: with a call, or with the None of the shutdown.
            while (call := inbox.get()) is not None:
                self._current = call
                self._queued.remove(call)
                if self._cancel_at_end:  # a shutdown that came when the call was neither in the inbox nor here
                    call.cancel()
                run_alone(call)
                self._current = None
                del call
        finally:
            # Also when the thread dies of something: what waits here would wait for ever.
            with self._lock:
                self._phase = Phase.CLOSED
            cancel_all(inbox)
            self._queued.clear()
            drop_idle_greenlets()

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it has to run in this thread, {self._name!r}, "
                "after the code that waits. Submit it to another thread, or call the function directly"
            )


def run_alone(call: Call[Any]) -> None:
    """Run a call in a thread that runs no loop."""
    rest = call._run_submitted()
    del call  # this frame may be in the traceback of its exception
    if rest is not None:
        # Playwright's sync API leaves its loop behind as the one that runs. It stands still: nobody would run the rest.
        left_behind = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            asyncio.run(rest)
        finally:
            rest.close()  # where no loop could be made
            asyncio._set_running_loop(left_behind)


def cancel_all(inbox: queue.SimpleQueue[Call[Any] | None]) -> None:
    """Cancel what waits in a thread that takes no more calls."""
    try:
        while True:
            if (call := inbox.get_nowait()) is not None:
                call.cancel()
    except queue.Empty:
        pass
