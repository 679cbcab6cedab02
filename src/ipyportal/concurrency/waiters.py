"""Waiting for a call, and running meanwhile what is sent back to the thread that waits.

A waiter is a `Portal`: code of the call, wherever it runs, submits to it. `SyncWaiter` blocks its thread and runs one
call after the other; `AsyncWaiter` awaits in a loop, and runs them there as tasks.
"""

from __future__ import annotations

import abc
import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from ipyportal.concurrency import interruption
from ipyportal.concurrency.calls import Awaited, Call, State, call_of, leave_to_parent, start_on_loop
from ipyportal.concurrency.deadlines import report
from ipyportal.concurrency.interruption import InterruptibleThread, Wait, interruptible_thread
from ipyportal.concurrency.portals import Portal

__all__ = ["AsyncWaiter", "SyncWaiter", "ThreadInbox", "Waiter"]

T = TypeVar("T")


class Waiter(Portal, Generic[T]):
    """What both kinds of waiter share. Make it before the call is submitted, in the thread that will wait.

    What is submitted before the wait begins is kept until then; after its end, submitting raises RuntimeError. When
    the call is cancelled or times out, what was sent back until then is cancelled, too, also while it runs.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import Call, SyncWaiter, Waiter, get_global_loop
        >>> async def ask(waiter: Waiter):  # on the loop thread
        ...     return await waiter.submit(Call.new(threading.current_thread))
        >>> waiter = SyncWaiter(Call.new(lambda: ask(waiter)))
        >>> waiter.wait(get_global_loop().submit).result() is threading.current_thread()
        True
    """

    _done_callbacks: tuple[Call[Any], ...] = ()
    _closed = False

    def __init__(self, call: Call[T]) -> None:
        if not isinstance(call, Call):
            raise TypeError(f"a waiter needs a Call, not {type(call).__name__}: {type(self).__name__}(Call.new(fn))")
        self._call = call
        self._thread = threading.current_thread()
        self._todo: deque[Call[Any]] = deque()
        # What was sent back and is not over; and whether that was after the call had been asked to end, as a clean-up.
        self._sent_back: dict[Call[Any], bool] = {}
        # The call's own: nothing that is done with it here takes another, or calls what does.
        self._lock = call._lock
        self._earlier: Waiter[Any] | None = None
        """The waiter that the call had before, with calls of its own that were sent back to it."""
        with self._lock:
            if not call._over:
                self._earlier, call._waiter = call._waiter, self

    @property
    def name(self) -> str:
        return f"the thread that waits for {self._call.name} ({self._thread.name})"

    @property
    def thread(self) -> threading.Thread:
        """The thread that waits."""
        return self._thread

    @property
    def call(self) -> Call[T]:
        """The call that is waited for."""
        return self._call

    def submit(self, call: Call[Any]) -> Call[Any]:
        """Have `call` run in the thread that waits. From any thread.

        Raises:
            RuntimeError: The wait is over.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{call.name} cannot be sent back: nobody waits for {self._call.name} any more")
            self._adopt(call)
            self._sent_back[call] = self._call._ending is not None
            self._todo.append(call)
        self._wake()
        return call

    def add_done_callback(self, call: Call[Any]) -> Call[Any]:
        """Have `call` run in the thread that waits when the wait is over, however it ended. From any thread.

        What it raises is reported, and keeps none of the others from running.

        Raises:
            RuntimeError: The wait is over.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._call!r} is not waited for any more")
            self._adopt(call)
            self._done_callbacks += (call,)
        return call

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it is to run in this very thread, which the wait blocks. "
                "Call the function directly"
            )

    @abc.abstractmethod
    def _wake(self) -> None:
        """There is something to do for the thread that waits. From any thread."""

    def _cancel_sent_back(self) -> None:
        # The lock is held only to copy: cancelling calls back into this waiter.
        waiter: Waiter[Any] | None = self
        while waiter is not None:
            with self._lock:  # theirs, too: it is the call's
                sent_back = list(waiter._sent_back)
            for call in sent_back:
                call.cancel()
            waiter = waiter._earlier

    def _next(self) -> Call[Any]:
        """The next call to run; a cancelled one, if it was sent back before the awaited call was asked to end."""
        call = self._todo.popleft()
        if self._call._ending is not None and not self._sent_back.get(call):
            # Who cancels the awaited call is about to cancel this one, too, and may not have come to it yet.
            call.cancel()
        return call

    def _ended(self) -> None:
        """The call is over. If not by itself, what it sent back is not wanted any more."""
        if self._call.cancelled() or self._call.timedout():
            self._cancel_sent_back()

    def _close_if_idle(self) -> bool:
        with self._lock:
            self._closed = not self._todo
            return self._closed

    def _report(self, callback: Call[Any]) -> None:
        if callback.state is State.FAILED:
            report(callback._value, f"a done callback of {self._call!r} failed")


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
        self._closed = False
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
            raise RuntimeError(f"{self._name} takes no more calls: the extension was unloaded")
        if not self._thread.is_alive():  # in a child that was forked by another thread
            raise RuntimeError(
                f"{call.name} cannot run on {self._name}: there is no such thread in this process, which was forked "
                "from the one that has it"
            )
        self._adopt(call)
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

    def close(self) -> None:
        """Take no more calls, and cancel those that have not begun."""
        self._closed = True
        if _inboxes.get(self._thread) is self:
            del _inboxes[self._thread]
        while self._todo:
            self._todo.popleft().cancel()

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it is to run on the loop of this very thread, which the "
                "wait blocks. In asynchronous code, await the call"
            )


def _after_fork() -> None:
    for shared in list(_inboxes.values()):
        calls = [*shared._todo, *filter(None, map(call_of, shared._running))]
        shared._todo.clear()
        leave_to_parent(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class SyncWaiter(Waiter[T]):
    """Waits for a call in a thread that may block.

    Asynchronous calls that are sent back run in a loop of their own, as in `asyncio.run`.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import Call, SyncWaiter, get_global_loop
        >>> waiter = SyncWaiter(Call.new(asyncio.sleep, 0.01, "slept"))
        >>> waiter.wait(get_global_loop().submit).result()
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

    def wait(self, submit: Callable[[Call[T]], object] | None = None) -> Call[T]:
        """Run what is sent back until the call is over; then the done callbacks. In the thread that made the waiter.

        With `submit`, that is called with the call first: then an interrupt finds the call either not submitted or
        waited for, and never running with nobody to cancel it.

        Returns the call, also one that failed. If this thread is interrupted (KeyboardInterrupt), or its code is
        cancelled, the call is cancelled, its clean-up waited for, and the exception raised. A second
        KeyboardInterrupt ends the wait at once; the call goes on with its clean-up.

        Raises:
            RuntimeError: The wait could never end, because this thread is the one that must run the call.
        """
        call = self._call
        if submit is None or call._portal is not None:  # else it has not begun
            call._check_wait()
        call._when_done(self._inbox.put)
        thread = interruptible_thread()
        if thread._stack:  # else nothing runs here that could be asked to end
            self._stand_on(thread)
        blocked: list[SyncWaiter[Any]] | None = None
        if _inboxes and self._thread in _inboxes:
            blocked = _blocked.setdefault(self._thread, [])
            blocked.append(self)
        try:
            if self._mark is not None and thread.owed(below=self._mark):
                call.cancel()
            try:
                if submit is not None:
                    try:
                        submit(call)
                    except Exception:
                        self._done_callbacks = ()  # it was refused: it did not begin, and is not over
                        raise
                if call._portal is not None:
                    try:
                        call._portal._check_wait(call)
                    except RuntimeError:
                        if submit is not None:
                            # What is refused does not run. It has not begun: this thread alone could begin it.
                            self._done_callbacks = ()
                            call.cancel()
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

    def _stand_on(self, thread: InterruptibleThread) -> None:
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
                    self._stand_on(interruptible_thread())
                sent_back = self._next()
                self._run(sent_back)
                self._sent_back.pop(sent_back, None)
                if sent_back._state is State.FAILED and isinstance(sent_back._value, KeyboardInterrupt):
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
                interruption.block(inbox, timeout)
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


class AsyncWaiter(Waiter[T]):
    """Waits for a call in a task. What is sent back runs in the task's loop, asynchronous calls concurrently.

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
        """Run what is sent back until the call, and all that, is over; then the done callbacks.

        Returns the call, also one that failed. Cancelling the task that waits cancels the call and what it sent
        back, and waits for the clean-up.
        """
        __tracebackhide__ = True
        call = self._call
        self._loop = asyncio.get_running_loop()
        self._drain()
        cancelled: asyncio.CancelledError | None = None
        try:
            awaited = Awaited(call)
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
