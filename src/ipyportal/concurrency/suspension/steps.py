"""Suspending synchronous code inside a task, so that the task's loop goes on meanwhile.

A coroutine can be suspended only where it says ``await``. A greenlet can be suspended anywhere: it has a C stack of
its own, and `greenlet.switch` leaves it as it stands. So a task whose every step runs in a greenlet can be suspended
also in a synchronous function that it called, as deep as you like:

    the loop ── Task.__step ── Suspendable.send ═switch═> coroutine.send ── your code ── suspend(awaitable)
                                      <══════════════════════switch══════════════════════════╯
                          yields to the loop what the awaitable waits for

`suspend` drives the awaitable itself. When that yields something to wait for, `suspend` switches to the greenlet that
the loop's step came from, and `Suspendable.send` returns it to the task as if the coroutine had yielded it. When the
loop sends the task its next value, `Suspendable` switches back into `suspend`, which feeds it to the awaitable. An
awaitable that need not wait costs no switch at all.

Starting a greenlet is dear and switching is cheap, so a thread keeps its greenlets in a pool, and a task borrows one
for each *step*. It keeps it beyond the step only

- while synchronous code is suspended in it, and
- while somebody else refers to it: code with greenlets of its own (SQLAlchemy's asyncio layer) starts them as
  children of the one that it runs in, and later switches to that parent.

A greenlet has a current context (`contextvars`) of its own, so it is given the task's before each switch into it.

Cells are run so, whose waits a stop button may give up, and calls on loops that know no other way (uvloop). On loops of
asyncio's own kind `turns` suspends whatever waits, calls as well.

Without the package greenlet, and elsewhere than on CPython, nothing can be suspended: `can_suspend` is False, and
callers block in a `SyncWaiter`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Interruptible
from ipyportal.concurrency.greenlets import Greenlet, current_greenlet, first_greenlet, greenlets_available
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception
from ipyportal.concurrency.private import BLOCKING
from ipyportal.concurrency.reporting import traceback_of
from ipyportal.concurrency.suspension.abandoned import RestOfCoroutine, WaitAbandoned, WaitProxy

__all__ = ["OVER", "Suspendable", "current_suspendable", "per_thread", "suspendable"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # between two greenlets


class ThreadHere:
    """What one thread has of suspendable coroutines."""

    __slots__ = ("ends_its_greenlets", "idle", "state", "stepping")

    def __init__(self) -> None:
        self.stepping: Any = None
        """The coroutine whose step this thread is in."""
        self.idle: list[Any] = []
        """Greenlets that wait for a step to run."""
        self.ends_its_greenlets = False
        """Whether it calls `drop_idle_greenlets` at its end."""
        self.state = thread_state()


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.here = ThreadHere()


per_thread = _PerThread()
"""``per_thread.here`` is that of the current thread. A step looks it up once: an attribute of a thread takes long."""


OVER: Any = object()
"""What a step gives that ends its coroutine without a result, in place of raising StopIteration."""


class _Raised:
    """What a step raised, or what it is to raise: greenlet 3.0 to 3.3 may lose what is given to `throw`."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _run_steps(starter: list[Any]) -> Any:  # pragma: no cover - in a greenlet
    """The body of a pooled greenlet: switch back, to be given a step; run it, switch back with what came of it; again.

    An idle greenlet holds nothing. What it is given first it would hold for life: that is an empty list in the end.
    """
    answers: list[Any] = []
    target = starter.pop()
    while True:
        try:
            # What is given to `switch` is held, too: so not the answer itself.
            step, value, root = target.switch(answers)
        finally:
            # Also when it is killed here, and an exception keeps this frame: greenlet 3.5 may free the first greenlet
            # of a thread that has ended while a garbage collection hides this last reference to it.
            target = None
        try:
            answers.append(step(value))
        except BaseException as exc:  # noqa: BLE001 - it goes on in the task's own stack
            answers.append(_Raised(exc))
        step = value = None
        target, root = root, None


def _new_greenlet() -> Any:
    # A child of the thread's first greenlet, and not of the one that happens to need it, which it would keep alive.
    new = Greenlet(_run_steps, first_greenlet())
    new.switch([current_greenlet()])
    return new


class Suspendable(CoroutineWrapper[T]):
    """A coroutine in whose steps synchronous code can be suspended. Give it to a task in place of `coro`."""

    __slots__ = ("_asked_to_stop", "_depth", "_greenlet", "_kept", "_proxy", "_root", "_stops", "_task")

    def __init__(self, coro: Coroutine[Any, Any, T] | None) -> None:
        self._inner = coro
        self._greenlet: Any = None  # that of suspended code: a step's, or one that code in the step made
        self._kept: Any = None  # the borrowed greenlet, if it is kept beyond the step
        self._root: Any = None  # where the present step came from, and goes back to
        self._task: asyncio.Task[Any] | None = None
        self._depth = 0  # of the thread's stack, below the present step
        self._asked_to_stop = False
        self._stops = 0  # how often it was asked
        self._proxy: WaitProxy | None = None

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that runs this, once it has begun."""
        return self._task

    @property
    def suspended(self) -> bool:
        """Whether synchronous code in it is suspended."""
        return self._greenlet is not None

    def runs_here(self) -> bool:
        """Whether the code that asks runs in a step of this, and not in the loop or in the switching."""
        return self._root is not None and current_greenlet() is not self._root

    def stop(self) -> None:
        """Cancel the task, whose suspended wait can from now on be abandoned. In the loop's thread."""
        self._asked_to_stop = True
        self._stops += 1
        if self._task is not None:
            self._task.cancel()

    def resume_patience(self) -> None:
        """Take `stop` back: the cancel has ended what was awaited."""
        self._asked_to_stop = False

    def abandon(self) -> bool:
        """End the suspended wait with KeyboardInterrupt; what it waits for goes on. In the loop's thread.

        Returns:
            False if there is no such wait; or if it began, in a clean-up, after the last `stop`: nobody has told it to
            end, which another `stop` does.
        """
        return self._proxy is not None and self._proxy.begun < self._stops and self._proxy.abandon()

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        exc = as_exception(typ, val, tb)
        if self._greenlet is not None:
            return self._step(None, exc)
        return self._step(self._inner.throw, exc)

    def _step(self, step: Callable[[Any], Any] | None, value: Any) -> Any:
        """Run one step of the coroutine in a greenlet; `step` None raises `value` in suspended code."""
        thread = per_thread.here
        if self._task is None:
            self._task = asyncio.current_task()
        outer, thread.stepping = thread.stepping, self
        self._root = root = current_greenlet()
        self._depth = len(thread.state._stack)
        suspended = self._greenlet
        try:
            if suspended is not None:
                self._greenlet = None
                # It has its context: the task's, or one that its code entered with Context.run.
                answer = suspended.switch(_Raised(value) if step is None else value)
                del suspended
            else:
                borrowed = self._kept
                if borrowed is None:
                    borrowed = thread.idle.pop() if thread.idle else _new_greenlet()
                    self._kept = borrowed
                borrowed.gr_context = root.gr_context
                del suspended
                answer = borrowed.switch(step, value, root)
                del borrowed
        finally:
            thread.stepping = outer
            self._root = None
        if self._greenlet is not None:
            return answer  # what the suspended code waits for
        answer = answer.pop()
        borrowed, self._kept = self._kept, None
        if sys.getrefcount(borrowed) <= _OWN_REFERENCES:
            # One that was started within another step has started with that step's depth of recursion, and would
            # leave later steps less of it.
            if outer is None:
                thread.idle.append(borrowed)
        elif answer is not OVER and type(answer) is not _Raised:
            self._kept = borrowed  # somebody may switch to it
        if answer is OVER:
            self._task = None  # which refers to this
            raise StopIteration
        if type(answer) is not _Raised:
            return answer
        self._task = None
        error = answer.error
        try:
            # Without the pooled greenlet's frame.
            traceback = traceback_of(error)
            raise BaseException.with_traceback(error, traceback and traceback.tb_next)
        finally:
            del error, answer, traceback, root  # see `_run_steps`

    def _wait(self, yielded: Any, steps: Any, begun: int) -> Any:
        """Leave the greenlet that calls this as it stands, until the loop answers to `yielded`."""
        __tracebackhide__ = True
        proxy: WaitProxy | None = None
        if (
            yielded is not None
            and (type(yielded) is not asyncio.Future or self._asked_to_stop)
            and getattr(yielded, BLOCKING, False)
            and yielded.get_loop() is asyncio._get_running_loop()
        ):
            setattr(yielded, BLOCKING, False)
            proxy = WaitProxy(yielded, begun)
            setattr(proxy, BLOCKING, True)
            yielded = proxy
        taken: list[Interruptible] = thread_state().suspend(self._depth)
        self._proxy = proxy
        self._greenlet = current_greenlet()
        root = self._root
        try:
            answer = root.switch(yielded)
        finally:
            # Resumed, by a step that set the root anew.
            del root
            self._proxy = None
            if taken:
                thread_state().resume(taken)
        if type(answer) is _Raised:
            try:
                raise answer.error
            finally:
                del answer
        if proxy is not None and proxy.abandoned:
            self._asked_to_stop = False
            task = proxy.get_loop().create_task(RestOfCoroutine(steps, proxy.future))
            exc = WaitAbandoned(
                f"stopped waiting for {getattr(steps, '__qualname__', 'an awaitable')!r}, which has been cancelled "
                "and goes on with its clean-up"
            )
            exc.task = task
            raise exc
        return answer

    def drive(self, steps: Any) -> Any:
        """Run a coroutine to its end, suspending the code that calls this wherever it waits."""
        __tracebackhide__ = True
        begun = self._stops
        try:
            yielded = steps.send(None)
            while True:
                try:
                    answer = self._wait(yielded, steps, begun)
                except WaitAbandoned as abandoned:
                    interrupt = KeyboardInterrupt(*abandoned.args)
                    interrupt.task = abandoned.task  # type: ignore[attr-defined]  # what goes on, for who wants it
                    raise interrupt from None
                except BaseException as exc:  # noqa: BLE001 - it is the coroutine's to handle
                    yielded = steps.throw(exc)
                else:
                    yielded = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            del steps

    def close(self) -> None:
        """End the coroutine: suspended code gets GeneratorExit, as a coroutine's own code does."""
        if self._greenlet is not None:
            try:
                self.throw(GeneratorExit())
            except (GeneratorExit, StopIteration):
                pass
            else:
                raise RuntimeError("coroutine ignored GeneratorExit")
        else:
            self._inner.close()


def suspendable(coro: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """`coro`, made so that synchronous code in it can be suspended; `coro` itself where there are no greenlets."""
    return Suspendable(coro) if greenlets_available() else coro


def current_suspendable() -> Suspendable[Any] | None:
    """The suspendable coroutine in whose step this thread is."""
    return per_thread.here.stepping  # type: ignore[no-any-return]


def _calibrate() -> int:
    """How many references an idle borrowed greenlet has that are ours, as `Suspendable._step` counts them."""
    if not greenlets_available():
        return 0
    borrowed = _new_greenlet()
    return sys.getrefcount(borrowed)


_OWN_REFERENCES = _calibrate()
