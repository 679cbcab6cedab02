"""`Steps`: asynchronous code that synchronous code runs step by step, all of it in one place.

An async generator that is iterated, a context manager that is entered and left, a map whose results come one by one:
each begins somewhere, and must go on and end there. The place is chosen by the rule of `run`. Where the caller can be
suspended it is the caller's own task; elsewhere, and with ``on=``, a task of its own, a `TaskPortal`.
"""

from __future__ import annotations

import abc
import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ipyportal import hosts
from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.cancellation.clock import clock
from ipyportal.concurrency.cancellation.delivery import send_sigint
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.portals.executors import ExecutorPortal
from ipyportal.concurrency.portals.loops import LoopPortal
from ipyportal.concurrency.portals.tasks import TaskEnded, TaskPortal
from ipyportal.concurrency.pyodide import check_wait
from ipyportal.concurrency.reporting import add_note, report
from ipyportal.concurrency.suspension.loop_internals import own_context, take_variables
from ipyportal.concurrency.suspension.steps import Suspendable
from ipyportal.concurrency.suspension.suspending import Suspends, suspendable_here
from ipyportal.routes import HERE, Route, get_route, portal_of
from ipyportal.sync import run

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Steps", "Stream"]

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # a step is about to be waited for, or has just been

T = TypeVar("T")

# What anyio and `contextvars` say of what is left in another task than that which entered it.
_OTHER_TASK = ("in a different task than it was entered in", "was created in a different Context")

_SOON = 0.01  # seconds in which code gets from one statement to the wait in the next


async def _call(fn: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> T:
    # Calling a coroutine function itself takes no synchronous code that a cancel could interrupt.
    __tracebackhide__ = True
    return await fn(*args)


class Steps:
    """Where the steps run. Made where the first of them is asked for; they may be asked for from any thread.

    Args:
        name: What messages call it.
        clean_up: The last step. It may be run more than once.
        on: As for `run`, but no `ExecutorPortal`.
        cancelled: As for `TaskPortal`. Without ``on``, in a caller that can be suspended, it is not called.
    """

    def __init__(
        self,
        name: str,
        clean_up: Callable[[], Coroutine[Any, Any, object]],
        on: Route | None = None,
        cancelled: Callable[[asyncio.CancelledError, bool], object] | None = None,
    ) -> None:
        self.name = name
        self._clean_up = clean_up
        self._ended = False
        self._portal: TaskPortal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step: Call[Any] | None = None
        self._context: contextvars.Context | None = None
        self._remember_caller()
        if on is None:
            on = get_route()
        if isinstance(on, ExecutorPortal):
            raise TypeError(f"{name} cannot run on {on.name}, which only runs functions: use run, submit or map")
        check_wait(name)
        if on is None and self._caller is not None and asyncio.current_task() is not None:
            self._loop = asyncio.get_running_loop()
        else:
            portal = portal_of(on)
            if on is None and self._caller is not None:
                # A callback of the loop has no task. It gets one, which runs in its context while it waits.
                portal, self._context = LoopPortal(asyncio.get_running_loop(), "this thread's loop"), own_context()
            self._portal = TaskPortal(name, clean_up, cancelled, self._context)
            try:
                self._portal.start(portal)
            except BaseException:  # interrupted: it may have been started
                self._portal.end()
                raise

    @property
    def apart(self) -> bool:
        """Whether they run in a task of their own."""
        return self._portal is not None

    def _remember_caller(self) -> None:
        self._caller = suspendable_here()
        self._where = _where()
        self._home: Suspends | None = None

    def run(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, timeout: float | None = None) -> T:
        """Run a step, and wait for it as `run` does; what it raises, too."""
        __tracebackhide__ = True
        try:
            return self._run(fn, args, timeout)
        except (RuntimeError, ValueError) as exc:
            text = exc.args[0] if exc.args else None
            if self._portal is None and isinstance(text, str) and any(part in text for part in _OTHER_TASK):
                routes = 'on="loop"' if hosts.current.kernel_portal is None else 'on="kernel" or on="loop"'
                add_note(
                    exc,
                    f"ipyportal: {self.name} began in one task and goes on in another, as in another cell. "
                    f"Pass {routes}: then it has a task of its own",
                )
            raise

    def _run(self, fn: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], timeout: float | None) -> T:
        __tracebackhide__ = True
        at_home = self._home is not None and self._home is suspendable_here()
        if not at_home:
            self._remember_caller()
            if self._portal is None and self._caller is not None and asyncio.get_running_loop() is self._loop:
                at_home = True
                if isinstance(self._caller, Suspendable):
                    # It is that of one task. In the next step nothing of the above has changed if it is the same.
                    self._home = self._caller
        if at_home:
            steps: Any = fn(*args)
            steps.__qualname__ = self.name  # what a TimeoutError calls it
            return cast(T, run(steps, timeout=timeout, on=HERE))
        portal: Portal | None = self._portal
        if portal is None:
            assert self._loop is not None
            portal = LoopPortal(self._loop, f"the loop that {self.name} began on")
        step: Call[T] | None = Call.new(_call, fn, args)
        assert step is not None
        self._step = step
        step.name = self.name
        try:
            return run(step, timeout=timeout, on=portal)
        finally:
            self._step = step = None  # what it raises refers to this frame
            if self._context is not None:
                take_variables(self._context)

    def close(self) -> None:
        """Run the last step, after cancelling one that another thread waits for, and wait for it. Once."""
        __tracebackhide__ = True
        if self._ended:
            return
        self._ended = True
        if (step := self._step) is not None:
            step.cancel()
        try:
            self.run(self._clean_up)
        except TaskEnded:
            pass  # it cleans up by itself: another thread has ended it, or its thread was shut down
        finally:
            self.end()

    def end(self) -> None:
        """No more steps: what a task of its own has not cleaned up it does now. Nobody waits for that."""
        self._ended = True
        if self._portal is not None:
            self._portal.end()

    def finalize(self) -> None:
        """`close`, in the ``__del__`` of what owns this. It waits in the code that ran the latest step alone.

        That is the loop which was left by ``break``. The garbage collector may come by anywhere else: in the loop
        itself, or in a thread that has nothing to do with it.
        """
        if self._ended or sys.is_finalizing():
            return
        try:
            if _where() == self._where:
                self.close()
            elif self._loop is not None:
                self._ended = True
                closing: Call[Any] = Call(self._clean_up)
                closing._when_done(self._report)
                LoopPortal(self._loop).submit(closing)
            else:
                self.end()
        except KeyboardInterrupt:
            # A finalizer has nobody to raise it to. What runs after it has, if that has not ended meanwhile. Not at
            # once: the clock's thread would get to it in the very moment in which that code enters a system call, and
            # a signal that comes just before does not end the call.
            caller = self._caller
            clock.remind(_SOON, lambda: _interrupt_again(caller))
        except BaseException as exc:  # noqa: BLE001 - likewise
            report(exc, f"closing {self.name} failed")

    def _report(self, closing: Call[Any]) -> None:
        if (exc := closing._failure()) is not None:
            report(exc, f"closing {self.name} failed")


def _where() -> tuple[int, int]:
    """Which code runs here: that of a task, or of a thread."""
    loop = asyncio._get_running_loop()
    return threading.get_ident(), 0 if loop is None else id(asyncio.current_task() or loop)


def _interrupt_again(caller: Suspends | None) -> None:
    if not isinstance(caller, Suspendable) or (caller.task is not None and not caller.task.done()):
        send_sigint()


class Stream(Iterator[T]):
    """An iterator whose items come by `Steps`. It is closed when its loop ends, however it does, or by ``with``."""

    _steps: Steps | None = None

    @abc.abstractmethod
    def __next__(self) -> T: ...

    def close(self) -> None:
        """Cancel what is in flight, have its clean-up run where it ran, and wait for that. From any thread.

        Raises:
            BaseException: What the clean-up raised.
        """
        __tracebackhide__ = True
        if self._steps is not None:
            self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._steps is not None:
            self._steps.finalize()
