"""The place where the items of a map run: a few runners, which take one item after the other."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from ipyportal.concurrency.api import await_for
from ipyportal.concurrency.calls import Call, Portal, current_call
from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.calls.tasks import as_coroutine
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.interruption import get
from ipyportal.concurrency.portals.loops import LoopPortal
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception, call_users
from ipyportal.concurrency.suspension.steps import suspendable
from ipyportal.sync import run

__all__ = ["Item", "ItemOutcome", "ItemPool"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # half of the tasks may have been cancelled

_WAKES = 2  # how many runners a runner wakes, if there is more to do


Item = tuple[int, tuple[Any, ...]]  # its number, and the arguments


class ItemOutcome(NamedTuple):
    """What has come of an item."""

    number: int | None  # None: a runner failed
    item: tuple[Any, ...] | None  # the arguments, if it failed
    value: Any


class _InContext(CoroutineWrapper[T]):
    """A coroutine that runs in a context of its own, and not in that of its task, which runs one after the other."""

    __slots__ = ("_context",)

    def __init__(self, inner: Coroutine[Any, Any, T], context: contextvars.Context) -> None:
        self._inner = inner
        self._context = context

    def send(self, value: Any) -> Any:
        __tracebackhide__ = True
        return self._context.run(self._inner.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        __tracebackhide__ = True
        return self._context.run(self._inner.throw, as_exception(typ, val, tb))

    def close(self) -> None:
        self._context.run(self._inner.close)


class ItemPool:
    """Runners that run a function of the items they are given. All but `outcomes` is for the loop where it lives.

    Args:
        threads: The portal of runners in threads; None for runners on the loop.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        limit: float,
        return_exceptions: bool,
        threads: Portal | None,
    ) -> None:
        self._fn = fn
        self._limit = limit
        self._return_exceptions = return_exceptions
        self._threads = threads
        self._context = contextvars.copy_context()
        self._todo: deque[Item] = deque()
        self.outcomes: deque[ItemOutcome] = deque()
        """What the caller has not taken yet. Kept here and not returned by a step: an interrupt loses none of it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._idle_threads: list[queue.SimpleQueue[None]] = []
        self._news: asyncio.Future[None] | None = None
        self._told = False
        self.closed = False

    # --- steps -------------------------------------------------------------------------------------------------------

    async def exchange(self, items: list[Item], in_flight: int, wait: bool) -> None:
        """Start `items`, and `wait` until there are outcomes. If it is cancelled, so is all that is in flight."""
        self._loop = asyncio.get_running_loop()
        try:
            self._todo.extend(items)
            if self._threads is None:
                self._begin(_WAKES)
            else:
                self._wake_threads(len(items))
                while len(self._tasks) < min(in_flight, self._limit):
                    self._add_runner(await_for(self._threads, self._call_of_thread()))
            if not wait:
                await asyncio.sleep(0)
            while wait and not self.outcomes:
                self._news = self._loop.create_future()
                self._told = False
                # Not before: an outcome that came in between has told nobody.
                if not self.outcomes:
                    await self._news
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Cancel what is in flight, and wait for its clean-up."""
        self.closed = True
        self._todo.clear()
        self._wake_threads(len(self._idle_threads))
        for task in self._tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(list(self._tasks))
            except asyncio.CancelledError as exc:
                cancelled = exc  # they have been told, and their clean-up takes as long as it takes
        if cancelled is not None:
            raise cancelled

    # --- runners -----------------------------------------------------------------------------------------------------

    def _add_runner(self, runner: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(runner)
        self._tasks.add(task)
        task.add_done_callback(self._runner_over)

    def _begin(self, count: int) -> None:
        """Have so many more runners of the loop look for items, if there are some."""
        for _ in range(min(count, len(self._todo))):
            if self._idle:
                self._idle.pop().set_result(None)
            elif len(self._tasks) < self._limit:
                # By it, the stop button finds what runs in an item, also in a function in C.
                self._add_runner(suspendable(self._run_on_loop()))

    def _call_of_thread(self) -> Call[None]:
        call: Call[None] = Call(self._run_in_thread)
        call.name = name_of(self._fn)
        return call

    def _runner_over(self, runner: asyncio.Task[None]) -> None:
        self._tasks.discard(runner)
        error = asyncio.CancelledError() if runner.cancelled() else runner.exception()
        if error is not None and not self.closed:
            self._fail(None, (), error)  # its thread was shut down, say: nobody else would tell the caller

    async def _run_on_loop(self) -> None:
        __tracebackhide__ = True
        task = asyncio.current_task()
        assert task is not None
        while not self.closed:
            # Each that is woken wakes others: soon all are that are needed, and few where items are over at once.
            self._begin(_WAKES)
            while self._todo:
                number, item = self._todo.popleft()
                try:
                    context = self._context.copy()
                    work: Any = context.run(call_users, self._fn, *item)
                    if inspect.isawaitable(work):
                        work = await _InContext(as_coroutine(work), context)
                    self._record(ItemOutcome(number, None, work))
                except BaseException as exc:  # noqa: BLE001 - the caller gets it
                    if self._closing():
                        return
                    self._fail(number, item, exc)
                    while task.cancelling():
                        task.uncancel()  # the item has cancelled itself
            if not self._closing():
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle

    def _wake_threads(self, count: int) -> None:
        try:
            for _ in range(count):
                self._idle_threads.pop().put(None)
        except IndexError:
            pass  # the others find the items by themselves, or are started

    def _run_in_thread(self) -> None:
        __tracebackhide__ = True
        inbox: queue.SimpleQueue[None] = queue.SimpleQueue()
        runner = current_call()
        assert runner is not None
        while not self.closed:
            try:
                number, item = self._todo.popleft()
            except IndexError:
                self._wait_in_thread(inbox)
                continue
            try:
                self._record(ItemOutcome(number, None, self._context.copy().run(self._call, item)))
            except BaseException as exc:  # noqa: BLE001 - likewise
                if self._closing():
                    return
                self._fail(number, item, exc)
                if runner._ending is not None:
                    return  # its thread is being shut down; it is told so once
            del item

    def _wait_in_thread(self, inbox: queue.SimpleQueue[None]) -> None:
        self._idle_threads.append(inbox)
        # Items that came in between have woken others, if anybody.
        if not self._todo:
            get(inbox)
        try:
            self._idle_threads.remove(inbox)
        except ValueError:
            pass  # as it should be: `exchange` took it out

    def _call(self, item: tuple[Any, ...]) -> Any:
        __tracebackhide__ = True
        value: Any = call_users(self._fn, *item)
        # A function that returns an awaitable: that is for the loop, whose clients and locks it may use.
        return run(value, on=LoopPortal(self._loop)) if inspect.isawaitable(value) else value

    def _closing(self) -> bool:
        return self.closed

    def _fail(self, number: int | None, item: tuple[Any, ...], exc: BaseException) -> None:
        if number is not None and self._return_exceptions and isinstance(exc, (Exception, asyncio.CancelledError)):
            self._record(ItemOutcome(number, None, exc))
        else:
            self._todo.clear()  # the caller will end it all
            self._record(ItemOutcome(number, item, exc))

    def _record(self, outcome: ItemOutcome) -> None:
        self.outcomes.append(outcome)
        if not self._told:
            self._told = True
            if self._threads is None:
                self._tell()
                return
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:
                pass  # the loop is closed, and nobody waits

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
