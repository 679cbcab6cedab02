"""A loop of the user's own that runs in a thread of its own, where no other runs, while its caller is suspended."""

from __future__ import annotations

import asyncio
import asyncio.runners
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Wait
from ipyportal.concurrency.portals.workers import WorkerThread
from ipyportal.concurrency.suspension.steps import suspendable
from ipyportal.sync import run

__all__ = ["end_all_threads", "end_thread", "run_elsewhere", "thread_of"]

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # it has made a call, and is about to wait for it


class _Main:
    """The main task of such a loop. A cancel of the call that runs the loop is a cancel of this task."""

    def __init__(self, stop: Callable[[], object] | None = None) -> None:
        self._future: asyncio.Future[Any] | None = None
        self._stop = stop  # what ends a loop that has no main task
        self._asked = False
        self._told = False

    def ask(self) -> None:
        """Cancel it, now or when it begins. From any thread."""
        # First the flag, then the look: `_begin` does it the other way round, so that one of the two sees the other.
        self._asked = True
        if self._stop is not None:
            self._stop()
        if (future := self._future) is not None:
            try:
                future.get_loop().call_soon_threadsafe(self._tell)
            except RuntimeError:
                pass  # the loop is closed: it is over

    def _begin(self, future: asyncio.Future[Any] | None) -> None:
        self._future = future
        if self._asked:
            self._tell()

    def _tell(self) -> None:
        if not self._told and self._future is not None:
            self._told = True
            self._future.cancel()

    def of(self, work: Any) -> Any:
        """`work` as the main task's coroutine; what is none is left to asyncio to refuse."""
        if asyncio.isfuture(work):
            self._begin(work)
            return work
        if not asyncio.iscoroutine(work):
            return work

        async def main() -> Any:
            __tracebackhide__ = True
            self._begin(asyncio.current_task())
            if self._told:
                work.close()  # does not begin
                raise asyncio.CancelledError
            return await work

        main.__name__ = getattr(work, "__name__", main.__name__)
        main.__qualname__ = getattr(work, "__qualname__", main.__name__)
        return suspendable(main())


def run_elsewhere(
    on: Any, start: Callable[..., Any], work: Any = None, stop: Callable[[], object] | None = None
) -> Any:
    """``start(work)`` in a thread in which no loop runs, the caller suspended; `start` runs a loop for `work`."""
    __tracebackhide__ = True
    main = _Main(stop)
    coroutine = main.of(work)

    def call() -> tuple[Any]:
        __tracebackhide__ = True
        thread = thread_state()
        mark = Wait(main.ask)  # an interrupt of this thread would tear the loop apart
        thread.enter(mark)
        try:
            if thread.cancel_pending(below=mark):
                main.ask()
            return (start(coroutine),)  # not as it is: a call awaits what its function returns, if it can be
        finally:
            thread.leave(mark)
            if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                coroutine.close()  # it never began; who made `work` is told by Python

    call.__name__ = call.__qualname__ = name_of(work)
    try:
        return run(call, on=on)[0]
    except (asyncio.CancelledError, KeyboardInterrupt):
        if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            coroutine.close()  # cancelled while it waited for its thread: it does not begin, and is not warned of
            work.close()
        raise


_threads: weakref.WeakKeyDictionary[Any, WorkerThread] = weakref.WeakKeyDictionary()


def thread_of(owner: Any) -> WorkerThread:
    """The thread in which the loop of `owner` runs, the same each time: what it uses may belong to a thread."""
    thread = _threads.get(owner)
    if thread is None:
        thread = _threads[owner] = WorkerThread(name="ipyportal-asyncio")
        weakref.finalize(owner, thread.shutdown, timeout=0.0).atexit = False
    return thread


def end_thread(owner: Any) -> None:
    thread = _threads.pop(owner, None)
    if thread is not None:
        thread.shutdown(timeout=0.0)  # what runs there may run on


def end_all_threads() -> None:
    """End the threads of all loops: nobody is going to run one there any more."""
    for owner in list(_threads):
        end_thread(owner)
