"""`SyncWaiter`, which blocks its thread; and `ThreadInbox`, for a thread whose loop may be blocked so."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call, Portal, State
from ipyportal.concurrency.calls.execution import cancel_in_child
from ipyportal.concurrency.calls.tasks import call_of, start_on_loop
from ipyportal.concurrency.cancellation.blocking import block
from ipyportal.concurrency.cancellation.interruption import ThreadState, thread_state
from ipyportal.concurrency.cancellation.targets import Wait
from ipyportal.concurrency.waiters.waiter import Waiter

__all__ = ["SyncWaiter", "ThreadInbox"]

T = TypeVar("T")

_blocked: dict[threading.Thread, list[SyncWaiter[Any]]] = {}  # the waiters of each thread, innermost last

_inboxes: dict[threading.Thread, ThreadInbox] = {}


class ThreadInbox(Portal):
    """Calls for a thread that has a loop, which may be blocked: its loop runs them, or whatever `SyncWaiter` blocks it.

    Made in any thread; `close` it when it is not needed any more. One for each thread.
    """

    def __init__(self, thread: threading.Thread, name: str) -> None:
        self._thread = thread
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._todo: deque[Call[Any]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._closed: str | None = None  # why
        _inboxes[thread] = self

    @property
    def name(self) -> str:
        return self._name

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which loop the thread runs. What came before is run now. In that thread."""
        self._loop = loop
        self._drain()

    def submit(self, call: Call[T]) -> Call[T]:
        if self._closed:
            raise RuntimeError(f"{self._name} takes no more calls: {self._closed}")
        if not self._thread.is_alive():  # in a child that was forked by another thread
            raise RuntimeError(
                f"{call.name} cannot run on {self._name}: there is no such thread in this process, which was forked "
                "from the one that has it"
            )
        self._claim(call)
        # The call is put where a waiter looks before the waiters are looked at; a waiter shows itself before it looks
        # here. So a thread that is about to block either finds the call or is woken.
        self._todo.append(call)
        waiter = SyncWaiter.of_thread(self._thread)
        if waiter is not None:
            waiter._wake()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)
        return call

    def _drain(self) -> None:
        while self._todo:
            assert self._loop is not None
            start_on_loop(self._todo.popleft(), self._loop, self._running)

    def _continue(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run the asynchronous part of a call that a waiter began, when the loop is free. In the thread."""
        if self._loop is not None:
            task = self._loop.create_task(rest)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def close(self, why: str) -> None:
        """Take no more calls, and cancel those that have not begun."""
        self._closed = why
        if _inboxes.get(self._thread) is self:
            del _inboxes[self._thread]
        self.cancel_waiting()

    def cancel_waiting(self) -> None:
        """Cancel the calls that have not begun."""
        while self._todo:
            self._todo.popleft().cancel()

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it has to run on the loop of this thread, and the "
                "wait blocks this thread. In asynchronous code, await the call"
            )


def _after_fork() -> None:
    for shared in list(_inboxes.values()):
        calls = [*shared._todo, *filter(None, map(call_of, shared._running))]
        shared._todo.clear()
        cancel_in_child(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class SyncWaiter(Waiter[T]):
    """Waits for a call, and blocks its thread.

    An asynchronous call that is sent back runs in its own loop, as in `asyncio.run`.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import Call, SyncWaiter, get_global_loop
        >>> waiter = SyncWaiter(Call.new(asyncio.sleep, 0.01, "slept"))
        >>> waiter.wait(get_global_loop()).result()
        'slept'
    """

    @staticmethod
    def of_thread(thread: threading.Thread) -> SyncWaiter[Any] | None:
        """The waiter that blocks `thread` now, if there is one. From any thread."""
        waiters = _blocked.get(thread)
        try:
            return waiters[-1] if waiters else None
        except IndexError:  # it ended meanwhile
            return None

    _mark: Wait | None = None

    def __init__(self, call: Call[T]) -> None:
        super().__init__(call)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def _wake(self) -> None:
        self._inbox.put(None)

    def wait(self, portal: Portal | None = None) -> Call[T]:
        """Run the calls that are sent back until the call is over, then the done callbacks. In the waiter's own thread.

        With `portal`, the call is submitted there first. So if an interrupt comes, the call is either not submitted, or
        this thread waits for it and cancels it.

        Returns the call, even if it failed. If this thread is interrupted (KeyboardInterrupt), or its code is
        cancelled, this cancels the call, waits for its clean-up, and raises the exception. A second KeyboardInterrupt
        ends the wait at once; the call goes on with its clean-up.

        Raises:
            RuntimeError: The wait could never end, because this thread is the one that must run the call. It has not
                been submitted then.
        """
        call = self._call
        call._check_wait(portal)
        call._when_done(self._inbox.put)
        thread = thread_state()
        if thread._stack:  # else nothing runs here that could be asked to end
            self._stand_on(thread)
        blocked: list[SyncWaiter[Any]] | None = None
        if _inboxes and self._thread in _inboxes:
            blocked = _blocked.setdefault(self._thread, [])
            blocked.append(self)
        try:
            if self._mark is not None and thread.cancel_pending(below=self._mark):
                call.cancel()
            try:
                if portal is not None:
                    try:
                        portal.submit(call)
                    except Exception:
                        self._done_callbacks = ()  # it was refused: it did not begin, and is not over
                        raise
                self._serve()
            except KeyboardInterrupt:
                call.cancel()
                self._serve()
                raise
        finally:
            if blocked is not None:
                blocked.remove(self)
                if not blocked:
                    del _blocked[self._thread]
            if not self._closed:
                with self._lock:
                    self._closed = True
            try:
                for callback in self._done_callbacks:
                    self._run(callback)
                    self._report(callback)
            finally:  # not before the callbacks: an interrupt would keep them from being run
                if self._mark is not None:
                    thread.leave(self._mark)
        if self._mark is not None:
            thread.checkpoint()
        return call

    def _stand_on(self, thread: ThreadState) -> None:
        """Have a request to end what lies below this wait cancel the call."""
        self._mark = Wait(self._call.cancel)
        thread.enter(self._mark)

    def _serve(self) -> None:
        call, inbox = self._call, self._inbox
        while True:
            if _inboxes:
                self._serve_inbox()
            if call._over and self._sent_back:
                self._ended()
            while self._todo:
                if self._mark is None:
                    # Each call would install and remove the signal's handler, on a stack that is empty in between.
                    self._stand_on(thread_state())
                sent_back = self._next()
                self._run(sent_back)
                self._sent_back.pop(sent_back, None)
                if sent_back._state is State.FAILED and isinstance(sent_back._value, KeyboardInterrupt):
                    sent_back._mark_retrieved()
                    # The stop key was meant for all of it, whether or not the call looks at what it sent back.
                    raise KeyboardInterrupt
                del sent_back
            if call._over:
                if self._close_if_idle():
                    return
                continue
            timeout = None
            if call._deadline is not None and call._ending is None:
                timeout = max(0.0, call._deadline - time.monotonic())
            try:
                # Ends with what is submitted or with the call, which ends at its deadline whatever it does.
                block(inbox, timeout)
            except queue.Empty:
                call._time_out()

    def _serve_inbox(self) -> None:
        shared = _inboxes.get(self._thread)
        while shared is not None and shared._todo:
            lent = shared._todo.popleft()
            rest = lent._run_submitted()
            if rest is not None:
                shared._continue(rest)
            del lent, rest

    def _run(self, call: Call[Any]) -> None:
        rest = call._run_submitted()
        if rest is not None:
            call._fail(
                RuntimeError(
                    f"{call.name} is asynchronous, and the thread that waits for {self._call.name} blocks its loop: "
                    "it cannot run there. Wait with `await`, or send back a synchronous function"
                )
            )
            rest.close()
        del call  # this frame may be in the traceback of its exception
