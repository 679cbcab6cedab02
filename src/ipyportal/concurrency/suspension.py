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
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, TypeVar

from ipyportal.concurrency.interruption import Interruptible, _local, interruptible_thread
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception, traceback_of

try:
    import greenlet
except ImportError:  # a platform without it
    greenlet = None
if greenlet is None or sys.implementation.name != "cpython":  # `_step` counts references, turns use CPython's C API
    greenlet = None
    Greenlet: Any = None
    GreenletExit: Any = None
    _getcurrent: Callable[[], Any] = object
else:
    Greenlet, GreenletExit, _getcurrent = greenlet.greenlet, greenlet.GreenletExit, greenlet.getcurrent

__all__ = [
    "OVER",
    "Suspendable",
    "WaitAbandoned",
    "can_suspend",
    "current_suspendable",
    "drop_idle_greenlets",
    "greenlets_available",
    "suspend",
    "suspendable",
    "suspendable_here",
    "why_no_greenlets",
]

T = TypeVar("T")


def greenlets_available() -> bool:
    """Whether the package greenlet is there, and this is CPython: else nothing can be suspended."""
    return greenlet is not None


def why_no_greenlets() -> str:
    """Why nothing can be suspended in this process; empty if `greenlets_available`."""
    if greenlet is not None:
        return ""
    if sys.implementation.name != "cpython":
        return f"synchronous code can be suspended on CPython alone, and this is {sys.implementation.name}"
    return "the package greenlet is not installed: pip install greenlet"


class WaitAbandoned(BaseException):
    """A suspended wait was given up; what was awaited goes on in `task`. It leaves `drive` as KeyboardInterrupt."""

    task: asyncio.Task[Any]


class _Proxy(asyncio.Future[None]):
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


class _Rest(CoroutineWrapper[Any]):
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
        future._asyncio_future_blocking = True  # as Future.__await__ does before it yields itself
        return future

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        self._future = None
        return self._inner.throw(as_exception(typ, val, tb))

    def close(self) -> None:
        self._inner.close()


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
    first = _getcurrent()
    while first.parent is not None:
        first = first.parent
    new = greenlet.greenlet(_run_steps, first)
    new.switch([_getcurrent()])
    return new


def drop_idle_greenlets() -> None:
    """To be called at the end of a thread in which a loop has run: a greenlet can be ended by its own thread alone."""
    interruptible_thread().idle.clear()
    _drop_workers()


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
        self._proxy: _Proxy | None = None

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
        return self._root is not None and _getcurrent() is not self._root

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
        thread = _local.interruptible or interruptible_thread()
        if self._task is None:
            self._task = asyncio.current_task()
        outer, thread.stepping = thread.stepping, self
        self._root = root = _getcurrent()
        self._depth = len(thread._stack)
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
        proxy: _Proxy | None = None
        if (
            yielded is not None
            and (type(yielded) is not asyncio.Future or self._asked_to_stop)
            and getattr(yielded, "_asyncio_future_blocking", False)
            and yielded.get_loop() is asyncio._get_running_loop()
        ):
            yielded._asyncio_future_blocking = False
            proxy = _Proxy(yielded, begun)
            proxy._asyncio_future_blocking = True
            yielded = proxy
        taken: list[Interruptible] = interruptible_thread().suspend(self._depth)
        self._proxy = proxy
        self._greenlet = _getcurrent()
        root = self._root
        try:
            answer = root.switch(yielded)
        finally:
            # Resumed, by a step that set the root anew.
            del root
            self._proxy = None
            if taken:
                interruptible_thread().resume(taken)
        if type(answer) is _Raised:
            try:
                raise answer.error
            finally:
                del answer
        if proxy is not None and proxy.abandoned:
            self._asked_to_stop = False
            task = proxy.get_loop().create_task(_Rest(steps, proxy.future))
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
    return coro if greenlet is None else Suspendable(coro)


def current_suspendable() -> Suspendable[Any] | None:
    """The suspendable coroutine in whose step this thread is."""
    thread = _local.interruptible
    return None if thread is None else thread.stepping


_elsewhere: Callable[[], Any] | None = None
"""Finds what can suspend other code of a loop; set by `turns`."""
_drop_workers: Callable[[], object] = int


def suspendable_here() -> Any:
    """What can suspend the code that asks, by its ``drive``: the suspendable coroutine that it runs in; or None."""
    thread = _local.interruptible
    if (
        thread is not None
        and (current := thread.stepping) is not None
        # Not in another task that runs inside a step of this one: an eager task's first step, or a loop that was
        # started inside another.
        and asyncio._get_running_loop() is not None
        and asyncio.current_task() is current._task
    ):
        return current
    return None if _elsewhere is None else _elsewhere()


def can_suspend() -> bool:
    """Whether `suspend` works here: in any task or callback of a loop of asyncio's own kind.

    On other loops, uvloop say, in the calls of an `EventLoopThread` alone. Nowhere without the package greenlet,
    nor elsewhere than on CPython.

    Example:
        >>> from ipyportal.concurrency import can_suspend, from_sync
        >>> can_suspend(), from_sync.call_in_loop_thread(can_suspend)
        (False, True)
    """
    return suspendable_here() is not None


def suspend(awaitable: Awaitable[T]) -> T:
    """``await awaitable``, in synchronous code of a task or a callback: that waits, and its loop goes on.

    Call it in the thread of the loop. Context variables are the caller's own, as in ``await``: what the awaitable sets
    is set afterwards. A task that is cancelled meanwhile gets `asyncio.CancelledError` out of it. In a callback, which
    has no task, the awaitable runs in a task of its own.

    Raises:
        RuntimeError: `can_suspend()` is False here.
        TypeError: `awaitable` is none.
        BaseException: What the awaitable raised.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync, suspend
        >>> def double(n):  # a plain function
        ...     return 2 * suspend(asyncio.sleep(0.01, n))
        >>> from_sync.call_in_loop_thread(create_call(double, 21))
        42
    """
    __tracebackhide__ = True
    current = suspendable_here()
    if current is None:
        raise RuntimeError(
            "synchronous code cannot be suspended here: "
            + (why_no_greenlets() or "no event loop of asyncio's own kind runs in this thread")
            + ". ipyportal.run() waits for an awaitable everywhere"
        )
    return current.drive(_steps_of(awaitable))  # type: ignore[no-any-return]


def _steps_of(awaitable: Awaitable[T]) -> Any:
    """Something with ``send`` and ``throw`` that runs `awaitable`."""
    if isinstance(awaitable, CoroutineType):
        return awaitable
    try:
        steps = awaitable.__await__()
    except AttributeError:
        raise TypeError(f"suspend() needs an awaitable, not {type(awaitable).__name__}") from None
    if hasattr(steps, "send"):
        return steps

    async def wrapped() -> T:  # a plain iterator is allowed, too
        return await awaitable

    return wrapped()


def _calibrate() -> int:
    """How many references an idle borrowed greenlet has that are ours, as `Suspendable._step` counts them."""
    if greenlet is None:
        return 0
    borrowed = _new_greenlet()
    return sys.getrefcount(borrowed)


_OWN_REFERENCES = _calibrate()
