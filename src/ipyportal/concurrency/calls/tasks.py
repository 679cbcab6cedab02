"""A call in a task of an event loop, and a task that waits for one."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ipyportal.concurrency.calls.execution import Execution, is_awaitable
from ipyportal.concurrency.calls.outcomes import State
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Interrupt
from ipyportal.concurrency.greenlets import greenlets_available
from ipyportal.concurrency.primitives import as_exception
from ipyportal.concurrency.suspension.loops import loop_has_turns
from ipyportal.concurrency.suspension.steps import OVER, Suspendable

__all__ = ["CallCoroutine", "CallDoneFuture", "as_coroutine", "call_of", "start_on_loop", "wait_until_over"]

_FINISHED, _CANCELLED = State.FINISHED, State.CANCELLED


class CallCoroutine(Suspendable[None]):
    """What a task runs for a call: its function, then the awaitable that it returned.

    A task that is cancelled before its first step still ends the call, and the call is over within the very step
    that ends it. It raises nothing: the task always ends well.
    """

    __slots__ = ("_alone", "_begun", "_call", "_context", "_in_greenlets", "_running", "_untimed", "_wake")
    _inner: Coroutine[Any, Any, Any] | None

    def __init__(
        self,
        call: Execution[Any],
        running: set[asyncio.Task[None]] | None = None,
        *,
        awaitable: Awaitable[Any] | None = None,
        context: contextvars.Context | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__(None if awaitable is None else as_coroutine(awaitable))
        self._call: Execution[Any] | None = call
        self._running = running
        # On a loop without turns. A call that has begun, because `Call.run` called the function, belongs to whoever
        # awaits the rest.
        self._in_greenlets = (
            awaitable is None and greenlets_available() and not loop_has_turns(asyncio._get_running_loop())
        )
        self._context = context  # the call's, where the task has another
        self._alone = alone  # in a loop of its own, whose Runner makes a Ctrl-C of the CancelledError that it causes
        self._untimed = False  # it has a deadline, and has not waited yet
        self._begun = False
        self._wake: tuple[Callable[[Any], object], Execution[Any]] | None = (
            None  # of the thread that waits for the call
        )

    def send(self, value: Any) -> Any:
        try:
            answer = self._step(self._advance, value) if self._in_greenlets else self._answer(self._advance(value))
        finally:
            if (wake := self._wake) is not None:
                wake[0](wake[1])  # here, and not in a function at whose entry Ctrl-C could be seen
                self._wake = wake = None
        if self._untimed:
            self._untimed = False
            if self._call is not None:
                self._call._keep_time()
        return answer

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        exc = as_exception(typ, val, tb)
        try:
            if self._greenlet is not None:
                return self._step(None, exc)
            if self._in_greenlets:
                return self._step(self._advance_with, exc)
            return self._answer(self._advance_with(exc))
        finally:
            if (wake := self._wake) is not None:  # likewise
                wake[0](wake[1])
                self._wake = wake = None

    def is_in_a_step(self) -> bool:
        """Whether the code of the call that asks is in a step. In a greenlet that is thrown away it is in none."""
        return not self._in_greenlets or self._root is not None

    def _answer(self, answer: Any) -> Any:
        if answer is OVER:
            raise StopIteration
        return answer

    def _advance(self, value: Any) -> Any:
        """One step: what it waits for, or `OVER`."""
        call, inner = self._call, self._inner
        assert call is not None
        if not self._begun:
            inner = self._start(call)
            if inner is None:
                del call
                self._over()
                return OVER
        assert inner is not None
        try:
            if self._context is not None:
                return self._context.run(inner.send, value)
            return inner.send(value)
        except StopIteration as stop:
            call._finish(_FINISHED, stop.value, self)
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            self._fail(call, exc)
        del call, inner
        self._over()
        return OVER

    def _advance_with(self, exc: BaseException) -> Any:
        """One step that begins with an exception."""
        call, inner = self._call, self._inner
        assert call is not None
        if inner is None:
            call._end(_CANCELLED)
            self._over()
            return OVER
        if not self._begun:
            self._adopt(call)
        try:
            if self._context is not None:
                return self._context.run(inner.throw, exc)
            return inner.throw(exc)
        except StopIteration as stop:
            call._finish(_FINISHED, stop.value)
        except BaseException as error:  # noqa: BLE001
            self._fail(call, error)
        del call, inner, exc
        self._over()
        return OVER

    def _fail(self, call: Execution[Any], exc: BaseException) -> None:
        if self._alone and isinstance(exc, asyncio.CancelledError) and call._ending is None:
            self._over()
            raise exc
        call._fail(exc)

    def close(self) -> None:
        if self._greenlet is not None:
            super().close()
        inner, call = self._inner, self._call
        if inner is not None:
            inner.close()
        if call is not None:
            call._end(_CANCELLED)
            call._finish(_CANCELLED, None)
        self._over()

    def _adopt(self, call: Execution[Any]) -> asyncio.Task[None] | None:
        self._begun = True
        task = self._task
        if task is None:
            self._task = task = asyncio.current_task()
            if self._running is not None and task is not None:
                self._running.add(task)  # its first step may wait, and who made the task with it
        return task

    def _start(self, call: Execution[Any]) -> Coroutine[Any, Any, Any] | None:
        """The first step: run the function. Gives what is left to be awaited, or None if the call is over."""
        task = self._adopt(call)
        if self._inner is not None:  # begun by `Call.run`
            with call._lock:
                call._task = task
            self._pass_cancel_to_task(call)
            return self._inner
        fn = call.fn
        if type(fn) is types.FunctionType and fn.__code__.co_flags & inspect.CO_COROUTINE:
            # No code runs now that would need to be interrupted.
            if not call._begin(None, task):
                return None
            if call._deadline is not None and call._timer is None:
                self._untimed = True
            try:
                self._inner = call._invoke()
            except BaseException as exc:  # noqa: BLE001 - wrong arguments
                call._fail(exc)
                del call
            return self._inner
        thread = thread_state()
        if not call._begin(thread, task):
            return None
        thread.enter(call)
        try:
            try:
                result = call._invoke()
            finally:
                thread.leave(call)
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            call._fail(exc)
            call = fn = task = None  # type: ignore[assignment]  # as in `Call._invoke`
            return None
        if not is_awaitable(result):
            call._finish(_FINISHED, result, self)
            return None
        self._inner = as_coroutine(result)
        self._pass_cancel_to_task(call)
        return self._inner

    def _pass_cancel_to_task(self, call: Execution[Any]) -> None:
        """What the synchronous part was asked and did not notice any more, the asynchronous part is asked."""
        with call._lock:
            if call._ending is None or call._interrupt is Interrupt.NOTICED:
                return
            call._interrupt = Interrupt.SENT
        if self._task is not None:
            # Between two steps, and not in this one: its code may be about to enter a shield, which holds it back.
            self._task.get_loop().call_soon(call._cancel_task, self._task, None)

    def _over(self) -> None:
        if self._running is not None:
            # A task that is cancelled before its first step has not been seen here before.
            task = self._task or asyncio.current_task()
            if task is not None:
                self._running.discard(task)
        self._call = self._inner = self._context = self._task = None


def as_coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    if isinstance(awaitable, types.CoroutineType):
        return awaitable

    async def await_it() -> Any:
        return await awaitable

    return await_it()


def call_of(task: asyncio.Task[None]) -> Execution[Any] | None:
    """The call that `task` runs, if it is not over."""
    coroutine = task.get_coro()
    return coroutine._call if isinstance(coroutine, CallCoroutine) else None


def start_on_loop(
    call: Execution[Any], loop: asyncio.AbstractEventLoop, running: set[asyncio.Task[None]], *, at_once: bool = False
) -> None:
    """Run `call` in a task of `loop`, in the loop's thread. The task is kept in `running` until it ends.

    With `at_once` its first step runs now, and not in another turn of the loop, where CPython can do that (3.12). If
    synchronous code waits in that step, whoever calls this stands still.
    """
    context = call._context
    if context is None:
        return  # cancelled while it was queued
    coroutine = CallCoroutine(call, running)
    # What the first step raises keeps the frames that called it, as this one: see `Call._invoke`.
    del call
    task: asyncio.Task[None]
    if loop.get_task_factory() is not None:
        try:
            task = loop.create_task(coroutine, context=context)
        except Exception as exc:  # noqa: BLE001 - the factory is somebody else's; the calls that follow must run
            if coroutine._call is not None:
                coroutine._call._fail(exc)
            return
    elif at_once and sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
    else:
        task = coroutine._task = asyncio.Task(coroutine, loop=loop, context=context)
    if not task.done():  # it may be over already
        running.add(task)
    del task, coroutine, context  # likewise


class CallDoneFuture(asyncio.Future[None]):
    """What a task awaits for a call: done when the call is. The `owner` of the call cancels it when cancelled."""

    def __init__(self, call: Execution[Any], *, owner: bool = True) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._call = call
        self._owner = owner
        self.asked_to_cancel = False
        self._ident = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        if call._deadline is not None:
            # Also a call that waits in the queue of a blocked loop times out.
            delay = call._deadline - time.monotonic()
            self._timer = loop.call_later(max(0.0, delay), call._time_out)
        call._when_done(self._wake)

    def _wake(self, call: Execution[Any]) -> None:
        if threading.get_ident() == self._ident:
            self._settle()
        else:
            try:
                self.get_loop().call_soon_threadsafe(self._settle)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

    def _settle(self) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any | None = None) -> bool:
        if not self._owner:
            return super().cancel(msg)
        # Not cancelled itself: the task goes on when the call's clean-up has run.
        if self.done() or not self._call.cancel():
            return False
        self.asked_to_cancel = True
        return True

    def release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._call._not_when_done(self._wake)
        if not self.done():
            super().cancel()


async def wait_until_over(call: Execution[Any]) -> None:
    """Wait for the call to be over, without cancelling it when the wait is cancelled."""
    awaited = CallDoneFuture(call, owner=False)
    try:
        await awaited
    finally:
        awaited.release()
