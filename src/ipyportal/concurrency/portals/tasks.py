"""`TaskPortal`: calls that run one after the other in one task.

What is entered must be left in the task that entered it: cancel scopes and task groups belong to a task, context
variables to its context. So whoever runs such code step by step, from outside, gives each step to the same portal.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.calls.tasks import CallCoroutine, call_of
from ipyportal.concurrency.cancellation.targets import Interrupt
from ipyportal.concurrency.portals.loops import EventLoopThread
from ipyportal.concurrency.suspension.loops import waits_of

__all__ = ["TaskEnded", "TaskPortal", "give_up", "in_flight_on", "steps_in_flight"]

T = TypeVar("T")


class TaskEnded(RuntimeError):
    """A call was submitted to a `TaskPortal` that is over, or is about to be."""


class TaskPortal(Portal):
    """A task in which calls run, one after the other. All methods may be called from any thread.

    On a loop that goes on without it, the task is one that calls left behind: it keeps nobody from shutting that loop
    down, and is cancelled then. In a thread without a loop it has the thread, and a loop in it, until `end`.

    Args:
        name: What messages call it.
        clean_up: Called in the task before it ends, however it does.
        cancelled: Called in the task, if something cancels it while it waits for a call; the task goes on then, but
            for the shutdown of its thread. If None, it ends. It is told whether that was `cancel`.
        context: What the task runs in, on a loop that goes on without it. If None, in the context of who starts it.
    """

    def __init__(
        self,
        name: str,
        clean_up: Callable[[], Awaitable[object]],
        cancelled: Callable[[asyncio.CancelledError, bool], object] | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._name = name
        self._context = context
        self._clean_up = clean_up
        self._cancelled = cancelled
        self._lock = threading.RLock()
        self._inbox: deque[Call[Any] | None] = deque()  # None: the end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._step: Call[Any] | None = None  # the call that runs
        self._closed = False
        self._place_ended = False
        self._beginning: Call[Any] = Call(self._begin)

    @property
    def name(self) -> str:
        return self._name

    def start(self, portal: Portal) -> None:
        """Have the task made where `portal` runs calls."""
        self._beginning._when_done(self._begun)
        portal.submit(self._beginning)

    def _begin(self) -> Coroutine[Any, Any, None] | None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._serve()
        self._task = self._loop.create_task(self._serve(), context=self._context)
        self._task.add_done_callback(self._over)
        _on_loops.add(self)
        return None

    def _begun(self, beginning: Call[Any]) -> None:
        if self._task is None:  # it was cancelled, or has been the task itself
            self._over()

    def _over(self, task: asyncio.Task[None] | None = None) -> None:
        """Nothing runs here any more; a task that was cancelled before its first step has run nothing at all."""
        with self._lock:
            self._closed = True
            left, self._inbox = self._inbox, deque()
        for call in left:
            if call is not None:
                call.cancel()

    def submit(self, call: Call[T]) -> Call[T]:
        with self._lock:
            if self._closed:
                raise TaskEnded(f"{self._name} is over, and takes no more calls")
            self._claim(call)
            self._put(call)
        return call

    def end(self) -> None:
        """End the task after the calls that were submitted."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._put(None)

    def cancel(self) -> None:
        """End the task at once, with its clean-up: its loop ends. In the loop's thread."""
        self._place_ended = True
        if self._step is not None:
            self._step.cancel()  # not the task: who waits for the call may cancel that, too, and it is told once
        elif self._task is not None:
            self._task.cancel()

    def _put(self, call: Call[Any] | None) -> None:
        # The task looks at the inbox after it has said which loop to wake: either it finds the call or it is woken.
        self._inbox.append(call)
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop is closed
                self._over()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            self._loop = task.get_loop()
        try:
            while (call := await self._next()) is not None:
                before = task.cancelling()
                self._step = call
                try:
                    await CallCoroutine(call)
                finally:
                    self._step = None
                if call._interrupt is Interrupt.NOTICED and task.cancelling() > before:
                    task.uncancel()  # that was for the call alone
                del call
                if task.cancelling() > before or self._place_ended:
                    return  # something else wants this to end, the shutdown of the loop for instance
        finally:
            self._over()
            await self._clean_up()

    async def _next(self) -> Call[Any] | None:
        assert self._loop is not None
        while not self._inbox:
            self._news = self._loop.create_future()
            try:
                await self._news
            except asyncio.CancelledError as exc:
                if self._cancelled is not None:
                    self._cancelled(exc, self._place_ended)
                if self._cancelled is None or self._place_ends():
                    raise
        return self._inbox.popleft()

    def _place_ends(self) -> bool:
        """Whether the thread or the loop is being shut down, and would wait for this in vain."""
        portal = self._beginning.portal
        return (
            self._place_ended
            or self._beginning._ending is not None
            or (isinstance(portal, EventLoopThread) and not portal.running())
        )

    def _check_wait(self, call: Call[Any]) -> None:
        if self._beginning.portal is not None:
            self._beginning.portal._check_wait(call)


_on_loops: weakref.WeakSet[TaskPortal] = weakref.WeakSet()  # those whose loop goes on without them


class InFlight(Protocol):
    """What can be told to end."""

    def cancel(self) -> object: ...


def in_flight_on(loop: asyncio.AbstractEventLoop) -> list[InFlight]:
    """The calls and `TaskPortal`s on a loop, and all other code that waits there suspended. In the loop's thread."""
    found: dict[asyncio.Task[Any], InFlight] = {
        task: call for task in asyncio.all_tasks(loop) if (call := call_of(task)) is not None
    }
    for portal in list(_on_loops):
        if portal._loop is loop and portal._task is not None and not portal._task.done():
            found[portal._task] = portal
    # The code that waits may be theirs.
    return [*found.values(), *(caller for caller in waits_of(loop) if caller.task not in found)]


def steps_in_flight() -> list[Call[Any]]:
    """The calls that run in a `TaskPortal` on a loop, whichever it is. From any thread."""
    return [step for portal in list(_on_loops) if (step := portal._step) is not None]


def give_up(loop: asyncio.AbstractEventLoop) -> None:
    """End the calls of a loop that was stopped for good, for those who wait. In what was its thread."""
    for one in in_flight_on(loop):
        call: object = one
        if isinstance(one, TaskPortal):
            one._over()
            call = one._step
        if isinstance(call, Call):
            call._lose_loop()
