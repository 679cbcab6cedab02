"""Turns on demand: how synchronous code of any task or callback waits while its loop goes on.

An event loop runs in turns: it looks what has happened, then calls what is due, one handle after the other. Code that
must wait in the middle of a handle is left as it stands, on its own C stack, and the loop's next turns run in another
greenlet, a *worker*, until what the code waits for is over:

    run_forever ── _run_once ── Handle ── Task.__step ── your code ── drive(awaitable)     ... stands still here
         a worker ── _run_once ── _run_once ── Handle: the awaitable is over ══switch══> drive(...) goes on

Nothing is prepared beforehand, so this costs nothing until somebody waits. It serves tasks of any origin, callbacks,
timers and readers. `suspension` does the same step by step, for single tasks, on loops without such turns (uvloop).

asyncio must notice nothing of it:

- *The awaitable runs in the caller's own task*, as with ``await``: see `driving`.
- *For asyncio the task runs all the time.* So it is not the current task meanwhile, and who cancels it reaches the
  caller.
- *A context can be entered once.* The handle's contexts are left, and entered again before the code goes on. So what is
  awaited can run in them, and so can other handles that share them.
- *A turn has counted its handles*, and pops them without a look. When one that was left goes on, the queue is filled up
  with cancelled handles to what it was.
- *A handle is not run inside of itself*, though what it was called for is still there, as a socket that can be read:
  see `Busy`.

The callback that ends a wait, `Caller.wake`, ends the worker's turn by an exception that asyncio lets pass, so that
the worker has nothing left to do. While somebody waits, ``_run_once`` is replaced in the loop by a function that runs
the turns in a worker. The loop can then return from ``run_forever`` whoever stands still. Only code that waits first
stands on the loop's own stack: if the loop is stopped, it has a second to end, then its wait is cancelled.

What is private of asyncio is named in `private`.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from ipyportal.concurrency.cancellation.frames import CONTINUED, Mark, is_engine
from ipyportal.concurrency.greenlets import GreenletExit, current_greenlet
from ipyportal.concurrency.private import HANDLE_RUN, READY, RUN_FOREVER, RUN_ONCE, STOPPING
from ipyportal.concurrency.suspension.callers import Caller, TurnIsOver
from ipyportal.concurrency.suspension.driving import Driver
from ipyportal.concurrency.suspension.loop_internals import (
    Busy,
    enter_context,
    excuse_slowness,
    handle_that_runs,
    leave_contexts,
    pad,
    put_cancel_back,
    replace_cancel,
)
from ipyportal.concurrency.suspension.steps import per_thread
from ipyportal.concurrency.suspension.workers import (
    SHALLOW,
    Ended,
    Work,
    borrow_worker,
    depth_of,
    end_idle_workers,
    forward_siblings,
    greenlets,
    leave,
)

__all__ = ["Turns", "existing_turns", "run_once", "turns_of"]

__ipyportal_mark__ = Mark.ITSELF  # between two greenlets

GRACE = 1.0
"""Seconds that a wait may keep a loop from returning that was stopped."""

_PATIENCE = 0.005  # seconds for which a turn may sleep where loops run inside of loops, as with nest_asyncio

_run_once: Any = getattr(asyncio.BaseEventLoop, RUN_ONCE, None)


# --- the code that waits ---------------------------------------------------------------------------------------------


class Turns(Driver[Caller]):
    """The turns of one loop. All in the thread that runs the loop."""

    def __init__(self) -> None:
        super().__init__()
        # The greenlets in which the loop itself stands between two turns, and whether it waits for more than one.
        self._loops: list[tuple[Any, bool]] = []
        self._impatient = 0  # how many do not
        self._worker: Any = None  # the greenlet that runs the present turn; None: the loop itself
        self._next: Any = None  # the one to switch to when a worker has ended
        self._at_once: Caller | None = None  # who goes on before the next worker begins a turn
        self._due: int | None = None  # how many handles the present turn will pop at most, if code in it stood still
        self._context_of_worker: contextvars.Context | None = None
        self._stop_again = False
        self._kept = False
        self._catch: Callable[[BaseException], bool] | None = None

    # --- the loop's side -----------------------------------------------------------------------------------------

    def hook(self, loop: Any) -> None:
        """Have the loop's next turns run by workers."""
        if not _is_patched(loop) and RUN_ONCE not in vars(loop):
            reference = weakref.ref(loop)

            def run_once_here() -> None:
                if (loop := reference()) is not None:
                    self.begin(loop, sys._getframe(1))

            setattr(loop, RUN_ONCE, run_once_here)

    def begin(self, loop: Any, caller: FrameType) -> None:
        """In place of the loop's ``_run_once``: one turn, or more, in a worker. `caller` is the frame that calls it."""
        if self._stop_again:
            setattr(loop, STOPPING, True)
            self._stop_again = False
        self._due = None
        if not _is_patched(loop) and not (self.callers or self._kept or self._loops):
            vars(loop).pop(RUN_ONCE, None)
            getattr(type(loop), RUN_ONCE)(loop)
            return
        if greenlets.depth > SHALLOW > depth_of(caller):
            end_idle_workers()  # they were started from deep in somebody's stack
            greenlets.idle.append(borrow_worker())
        here, worker = current_greenlet(), self._worker
        greenlets.runs_turn = here
        # Whoever else calls it, as nest_asyncio does, may look for what it waits for after each turn.
        stands = here, caller.f_code is RUN_FOREVER
        self._impatient += not stands[1]
        task = asyncio.current_task(loop)  # whose code runs the loop inside of itself
        if task is not None:
            asyncio.tasks._leave_task(loop, task)
        self._loops.append(stands)
        # What one of several waits for may be there already: it must come to look, and no turn may sleep for long.
        alarm = loop.call_later(_PATIENCE, int, context=self.context) if self._impatient > 1 else None
        try:
            self._switch_to_a_worker(loop, here.gr_context)
        finally:
            if alarm is not None:
                alarm.cancel()
            self._worker = worker
            if stands in self._loops:
                self._loops.remove(stands)
                self._impatient -= not stands[1]
            if task is not None:
                asyncio.tasks._enter_task(loop, task)
            self._tidy()

    def _tidy(self) -> None:
        """End the workers if nobody waits, in a thread that may end with the loop and be none of ours."""
        # greenlet has crashed where a thread ended with greenlets in it, of which the garbage collector knew.
        if not (self.callers or self._kept or self._loops):
            thread = threading.current_thread()
            if thread is not threading.main_thread() and not per_thread.here.ends_its_greenlets:
                end_idle_workers()

    def work(self, loop: Any) -> None:
        """What a worker does: turn after turn, until somebody who waited goes on, or the loop is to go on itself."""
        if self._at_once is not None:
            self._next, self._at_once = self._at_once.greenlet, None
            return
        self._worker = current_greenlet()
        turn = _run_once if _is_patched(loop) else getattr(type(loop), RUN_ONCE)
        try:
            while True:
                self._due = None
                try:
                    turn(loop)
                except (TurnIsOver, GreenletExit):
                    raise
                except BaseException as exc:  # KeyboardInterrupt, SystemExit, what a signal's handler raises
                    if self._catch is not None and self._catch(exc):
                        pass
                    elif self._loops or not self._end_what_stands_on_the_loops_stack(exc):
                        raise
                stopping = getattr(loop, STOPPING)
                if self._loops:
                    if stopping or self._impatient or not (self._kept or self.callers or _is_patched(loop)):
                        self._next = self._loop_that_goes_on()
                        return
                elif stopping:
                    setattr(loop, STOPPING, False)  # else it would not sleep until then
                    self._stop_again = True
                    self._limit_what_stands_on_the_loops_stack()
        except TurnIsOver as over:
            self._next = over.caller.greenlet
        except GreenletExit:
            raise
        except BaseException:
            self._next = self._loop_that_goes_on()
            raise
        finally:
            self._worker = None

    def _loop_that_goes_on(self) -> Any:
        """The greenlet in which the loop itself goes on: of several, one inside of the other, each in its turn."""
        number = next((number for number, (_, patient) in enumerate(self._loops) if not patient), -1)
        greenlet, patient = self._loops.pop(number)
        self._impatient -= not patient
        return greenlet

    def is_in_a_workers_turn(self, frame: FrameType | None) -> bool:
        """Whether a worker is in that turn of the loop in which `frame` is, and no handle in between."""
        while frame is not None and frame.f_code is not HANDLE_RUN.__code__:
            if frame.f_code is Turns.work.__code__:
                return True
            frame = frame.f_back
        return False

    def take_next(self) -> Any:
        """The greenlet that goes on when a worker has ended."""
        following, self._next = self._next, None
        return following

    def _end_what_stands_on_the_loops_stack(self, exc: BaseException) -> bool:
        """Have the code raise `exc` that stands where the loop itself would raise it. False if there is none."""
        for caller in self.callers:
            if caller.on_the_loops_stack:
                caller.end(exc)
                return True
        return False

    def _limit_what_stands_on_the_loops_stack(self) -> None:
        """The loop is to be stopped, and cannot return before that code has ended: its wait is cancelled after a while.

        Not at once: the loop may be run again, as by `unittest.IsolatedAsyncioTestCase` for each part of a test.
        """
        for caller in self.callers:
            if caller.on_the_loops_stack and caller.limit is None:
                text = "the event loop is being stopped"
                caller.limit = caller.loop.call_later(GRACE, caller.cancel, text, context=self.context)

    def _switch_to_a_worker(self, loop: Any, context: contextvars.Context | None) -> None:
        """Have a worker run the turns; come back when it is this greenlet's turn again."""
        worker = borrow_worker()
        own = None if context is None else context.copy()  # one that is not entered
        worker.gr_context = own
        runs_turn, greenlets.runs_turn = greenlets.runs_turn, worker
        outer, self._context_of_worker = self._context_of_worker, own
        try:
            ended = leave(worker.switch, Work(self, loop), Ended)
        finally:
            greenlets.runs_turn, self._context_of_worker = runs_turn, outer
        worker, ended.worker = ended.worker, None
        greenlets.idle.append(worker)
        raised, ended.raised = ended.raised, None
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    def base_frame(self) -> FrameType | None:
        """Where ``run_forever`` stands. From any thread."""
        try:
            if self._loops:
                frame: FrameType | None = self._loops[-1][0].gr_frame
            else:
                frame = next(one.greenlet.gr_frame for one in self.callers if one.on_the_loops_stack)
        except (IndexError, AttributeError, StopIteration):  # it has just gone on
            return None
        while frame is not None and is_engine(frame):
            frame = frame.f_back
        return frame

    # --- the side of the code that waits -------------------------------------------------------------------------

    def gives_way_to(self, caller: Caller) -> bool:
        """In the rest of the turn in which somebody waited first: stand still in the middle of it; `caller` goes on.

        That turn is on the loop's own stack, and cannot be ended. It goes on in the next one. False for a loop inside
        of the loop.
        """
        if self._loops or self._worker is not None:
            return False
        loop: Any = caller.loop
        turn = Caller(self, loop, None)
        turn.due = self._due_now(loop)
        loop.call_soon(turn.wake, context=self.context)
        self._at_once = caller
        # A Ctrl-C meanwhile is for the code that goes on.
        self._stand_still(turn, takes_sigint=False)
        if turn.raises is not None:
            raise turn.raises
        return True

    def _caller(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> Caller:
        return Caller(self, loop, task)

    def _about_to_stand(self, caller: Caller) -> None:
        caller.due = self._due_now(caller.loop)

    def _due_now(self, loop: Any) -> int:
        """How many handles the present turn will pop at most."""
        # It counted them when it began: not more than are left now, or were left when its code stood still before.
        ready = len(getattr(loop, READY))
        return ready if self._due is None else min(self._due, ready)

    def _stand_still(self, caller: Caller, takes_sigint: bool = True) -> None:
        """Leave the greenlet that calls this as it stands, and have a worker run the loop, until `Caller.wake`."""
        loop: Any = caller.loop
        task = caller.task
        caller.greenlet = here = current_greenlet()
        worker = self._worker
        caller.on_the_loops_stack = worker is None
        handle = handle_that_runs() if task is None else None
        busy = None if handle is None else Busy(handle)
        stepping, per_thread.here.stepping = per_thread.here.stepping, None
        takes_sigint = takes_sigint and threading.current_thread() is threading.main_thread() and caller.take_sigint()
        own_cancel = None
        if task is not None:
            own_cancel = replace_cancel(task, caller.cancel)
            asyncio.tasks._leave_task(loop, task)
        self.hook(loop)
        forward_siblings()
        self.callers.append(caller)
        began = loop.time() if loop.get_debug() else None
        contexts = leave_contexts(here, self._context_of_worker)
        try:
            self._switch_to_a_worker(loop, here.gr_context)
        finally:
            for context in reversed(contexts):
                enter_context(context)
            self._worker = worker
            self.callers.remove(caller)
            caller.greenlet = None
            if caller.limit is not None:
                caller.limit.cancel()
                caller.limit = None
            per_thread.here.stepping = stepping
            if task is not None:
                asyncio.tasks._enter_task(loop, task)
                put_cancel_back(task, own_cancel)
            if takes_sigint:
                caller.give_sigint_back()
            if busy is not None:
                busy.put_back(loop)
            if began is not None:
                excuse_slowness(loop, loop.time() - began)
            pad(loop, caller.due)
            self._due = caller.due
            self._tidy()


# Who asks a thread to cancel the loop that it runs looks for `run_forever`, which is in another of the greenlets.
CONTINUED[Turns.work.__code__] = lambda frame: frame.f_locals["self"].base_frame()


# --- all loops -------------------------------------------------------------------------------------------------------

_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """The turns of `loop`."""
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = Turns()
    return turns


def existing_turns(loop: asyncio.AbstractEventLoop) -> Turns | None:
    """Those of `loop` if any code has ever waited on it."""
    return _turns.get(loop)


def run_once(self: asyncio.BaseEventLoop) -> None:
    """In place of ``BaseEventLoop._run_once``."""
    if _is_patched(self):
        turns_of(self).begin(self, sys._getframe(1))
    else:  # a kind of loop that has a `_run_once` of its own, and calls asyncio's
        _run_once(self)


def _is_patched(loop: Any) -> bool:
    """Whether `run_once` is in its place."""
    return getattr(type(loop), RUN_ONCE) is run_once
