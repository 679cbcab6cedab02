"""`Driver`: runs a coroutine as ``await`` does, for code that stands still wherever the coroutine waits.

The coroutine runs in the caller's own task: the driver sends and throws as the task would. A callback has no task, so
there it gets one. For asyncio the caller's task runs all the time. So who cancels it reaches `StandingCode.cancel`,
which stands in the place of the task's own ``cancel``, and does what that does for a task that waits. asyncio's own
would only make a note, and raise once more at the next ``await``.

How code stands still is for the subclasses: in a greenlet (`turns`), or by WebAssembly's stack switching (`jspi`).
"""

from __future__ import annotations

import abc
import asyncio
import contextvars
from types import CoroutineType
from typing import Any, Generic, TypeVar

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Interrupt, Interruptible
from ipyportal.concurrency.private import BLOCKING, MUST_CANCEL
from ipyportal.concurrency.suspension.abandoned import RestOfCoroutine, WaitAbandoned
from ipyportal.concurrency.suspension.loop_internals import (
    Cancels,
    check_yielded,
    own_context,
    take_over_cancels,
    take_variables,
)

__all__ = ["Driver", "StandingCode"]

__ipyportal_mark__ = Mark.ITSELF  # between two stacks


class StandingCode(abc.ABC):
    """Code that waits: for what, and how to end that. In its loop's thread, but for `end_wait_for`."""

    __slots__ = ("abandoned", "future", "loop", "message", "must_cancel", "raises", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        self.loop = loop
        self.task = task  # None: a callback
        self.future: asyncio.Future[Any] | None = None  # None: for the next turn
        self.must_cancel = False
        self.message: Any = None
        self.abandoned = False
        self.raises: BaseException | None = None
        """What is to be raised when what it waits for has been cancelled and is over."""

    @abc.abstractmethod
    def wake(self, _: object = None) -> None:
        """A callback of the loop: what the code waits for is over."""

    @abc.abstractmethod
    def stands(self) -> bool:
        """Whether it stands still now."""

    def cancel(self, msg: Any | None = None) -> bool:
        """In place of the task's own ``cancel``, and as that is for a task that waits."""
        if self.task is not None:
            Cancels.of(self.task).add()
        return self._cancel_wait(msg)

    def _cancel_wait(self, msg: Any | None = None) -> bool:
        if self.future is None or not self.future.cancel(msg):
            # What it waits for is over, or is the next turn: it is woken anyway.
            self.must_cancel, self.message = True, msg
        return True

    def end_wait_for(self, target: Interruptible) -> None:
        """Cancel what it waits for, because a block of its code was asked to end. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._end_wait_for, target)
        except RuntimeError:
            pass  # the loop is closed, and the block with it

    def _end_wait_for(self, target: Interruptible) -> None:
        # If the code has gone on meanwhile, it was sent the interrupt then.
        if self.stands() and target._interrupt is Interrupt.REQUESTED:
            target._interrupt = Interrupt.NOTICED
            self._cancel_wait()

    def end(self, exc: BaseException) -> None:
        """Cancel what it waits for, and raise `exc` when that is over; a second time, do not wait for its clean-up."""
        if self.raises is None:
            self.raises = exc
            self._cancel_wait()
        else:
            self.abandon()

    def abandon(self) -> bool:
        """Give up the wait; what it waits for goes on. False if it is about to end by itself."""
        if self.future is None or self.future.done():
            return False
        self.future.remove_done_callback(self.wake)
        self.abandoned = True
        self.loop.call_soon(self.wake)
        return True


Code = TypeVar("Code", bound=StandingCode)


class Driver(abc.ABC, Generic[Code]):
    """Drives coroutines for code of one loop. All in the thread that runs the loop."""

    def __init__(self) -> None:
        self.callers: list[Code] = []
        self.context = contextvars.Context()  # for our own callbacks

    @abc.abstractmethod
    def _caller(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> Code:
        """The record of the code that calls `drive`."""

    @abc.abstractmethod
    def _about_to_stand(self, caller: Code) -> None:
        """Told before the loop is asked to wake `caller`."""

    @abc.abstractmethod
    def _stand_still(self, caller: Code) -> None:
        """Leave the code that calls this as it stands, and have the loop go on, until `StandingCode.wake`."""

    def drive(self, steps: Any) -> Any:
        """Run a coroutine to its end as ``await`` does; the code that calls this stands still wherever it waits."""
        __tracebackhide__ = True
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        caller = self._caller(loop, task)
        if task is None:
            return self._drive_in_a_task(caller, steps)
        try:
            yielded = steps.send(None)
            while True:
                try:
                    self._wait(caller, yielded)
                except WaitAbandoned as abandoned:
                    abandoned.task = loop.create_task(RestOfCoroutine(steps, caller.future))
                    _raise_abandoned(caller, abandoned)
                except BaseException as exc:  # noqa: BLE001 - it is the coroutine's to handle
                    yielded = steps.throw(exc)
                else:
                    yielded = steps.send(None)
        except StopIteration as stop:
            if caller.raises is not None:
                raise caller.raises from None
            return stop.value
        except asyncio.CancelledError:
            if caller.raises is not None:
                raise caller.raises from None
            raise
        finally:
            del steps

    def _drive_in_a_task(self, caller: Code, steps: Any) -> Any:
        """As `drive`, in a callback: what it waits for runs in a task, in the callback's own context."""
        __tracebackhide__ = True
        # Of asyncio's own kind also where a task factory is set: it is to begin when the callback stands still.
        context = own_context()
        awaited = asyncio.Task(_contained(steps), loop=caller.loop, context=context)
        setattr(awaited, BLOCKING, True)
        try:
            self._wait(caller, awaited)
        except WaitAbandoned as abandoned:
            abandoned.task = awaited
            _raise_abandoned(caller, abandoned)
        except asyncio.CancelledError:
            awaited.cancel()
            steps.close()  # it may not have begun, and would be warned of
            if caller.raises is not None:
                raise caller.raises from None
            raise
        finally:
            take_variables(context)
        if caller.raises is not None:
            raise caller.raises from None
        result, interrupt = awaited.result()
        if interrupt is not None:
            raise interrupt
        return result

    def _wait(self, caller: Code, yielded: Any) -> None:
        """Stand still until what a coroutine has yielded is over, and raise what it has raised."""
        __tracebackhide__ = True
        loop, task = caller.loop, caller.task
        thread = thread_state()
        check_yielded(yielded, loop, task)
        self._about_to_stand(caller)
        taken: list[Interruptible] = []
        if thread._stack:
            taken = thread.suspend_what_runs_in(loop, caller.end_wait_for if task is None else None)
        try:
            if yielded is None:
                caller.future = None
                loop.call_soon(caller.wake, context=self.context)
            else:
                caller.future = yielded
                yielded.add_done_callback(caller.wake, context=self.context)
            caller.must_cancel = False
            if task is not None and getattr(task, MUST_CANCEL, False):
                # Asked to end before, in this very step: as asyncio does it when a task begins to wait.
                take_over_cancels(task)
                caller._cancel_wait()
            self._stand_still(caller)
        finally:
            if taken:
                thread.resume(taken)
        if caller.abandoned:
            raise WaitAbandoned
        if caller.must_cancel:
            raise asyncio.CancelledError(*(() if caller.message is None else (caller.message,)))
        if yielded is not None:
            yielded.result()


def _raise_abandoned(caller: StandingCode, abandoned: WaitAbandoned) -> None:
    exc = caller.raises or KeyboardInterrupt("stopped waiting; what was waited for was cancelled, and cleans up")
    exc.task = abandoned.task  # type: ignore[attr-defined]  # what goes on, for who wants it
    raise exc from None


async def _contained(steps: Any) -> tuple[Any, BaseException | None]:
    """What `steps` gives, and what would leave the loop if a task raised it."""
    try:
        return await (steps if type(steps) is CoroutineType else RestOfCoroutine(steps, None)), None
    except (KeyboardInterrupt, SystemExit) as exc:
        return None, exc
