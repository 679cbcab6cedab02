"""The turns of event loops in greenlets, so that synchronous code of their tasks can be suspended.

`suspension` runs each *step* of one task in a greenlet. That is exact, and dear: a switch there and one back for each
step. Here the loop itself runs in a greenlet, which costs a task nothing. When synchronous code of a task waits, that
greenlet is left as it stands, with the loop's own frames and the task in the middle of its step, and the loop goes on
in another one:

    run_forever ── first worker: _run_once ── Task.__step ── your code ── drive(awaitable)   ... frozen here
         │ <═════════════════════════════════ switch ═════════════════════════╯
         ╰──────── second worker: _run_once ── Handle: the awaitable is over ══switch══> drive(...) goes on

When the step that was frozen has ended, the rest of its turn runs, and its worker switches back to whoever resumed it.
asyncio's C tasks and futures stay what they are. But for asyncio the task runs all the time, so three things are done
by hand: it is not the current task meanwhile; who cancels it is looked for after each turn; and the cancel, which
asyncio would raise once more at the task's next ``await``, is taken off there. For this `create_task` puts a
`_Stepped` around each coroutine, which is all that a task pays; tasks without one cannot be suspended.

The task's context (`contextvars`) stays entered, too, as no context can be twice: a task that was given the very same
context (``create_task(..., context=)``) fails if it is to run meanwhile. And in asyncio's debug mode the loop says that
the step took long.

What is private of asyncio is touched in this module alone. It is the same in CPython 3.11, 3.12 and 3.13:
``BaseEventLoop._run_once``, called by ``run_forever`` for each turn; in it, that the handles of one turn are popped
from ``_ready``, a deque, by their number when the turn began; ``_stopping``, ``_task_factory`` and ``_debug`` of the
loop; ``Task._must_cancel``.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import contextvars
import sys
import weakref
from collections.abc import Callable, Generator
from types import CoroutineType, FrameType
from typing import Any, TypeVar

from ipyportal.concurrency import interruption, suspension
from ipyportal.concurrency.interruption import interruptible_thread
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception
from ipyportal.concurrency.suspension import greenlets_available

__all__ = ["create_task", "here", "in_turns", "made_in_turns", "run_once", "turns_possible"]

T = TypeVar("T")

_create_task: Any = asyncio.BaseEventLoop.create_task
_run_once: Any = getattr(asyncio.BaseEventLoop, "_run_once", None)


def turns_possible() -> bool:
    """Whether this Python has what this module needs."""
    return greenlets_available() and _run_once is not None


class _Turn:
    """What one worker runs: turn after turn, until code in it is suspended."""

    __slots__ = ("broken", "worker")

    def __init__(self) -> None:
        self.worker: Any = None
        self.broken = False
        """Whether the loop has gone on elsewhere since its present turn began."""


class _Wait:
    """Suspended code of `task`, which waits for `awaited`."""

    __slots__ = ("awaited", "seen", "task", "told")

    def __init__(self, task: asyncio.Task[Any], awaited: asyncio.Task[Any]) -> None:
        self.task = task
        self.awaited = awaited
        self.seen = task.cancelling()
        self.told = False
        if getattr(task, "_must_cancel", False):  # asked to end before, in this very step
            self.tell()

    def tell(self) -> None:
        self.told = True
        # Not at once: its first step shall run before, as that of a coroutine that is awaited does.
        self.awaited.get_loop().call_soon(self.awaited.cancel)


class Turns:
    """One loop, while its turns run in greenlets. All in the thread that runs the loop."""

    def __init__(self) -> None:
        self.turn: _Turn | None = None
        self._back: list[Any] = []  # who switched to whom: the greenlet to go back to is the last
        self._waits: list[_Wait] = []
        self._depth = 0

    # --- the loop's side -----------------------------------------------------------------------------------------

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run turns in a worker until the loop is stopped, or code in the worker is suspended."""
        self._depth = interruptible_thread().depth
        self._switch(_Turn(), suspension._borrow(), self._run, loop, self)

    def _run(self, loop: Any) -> None:  # in a worker
        turn = self.turn
        assert turn is not None
        turn.worker = suspension._getcurrent()
        try:
            while True:
                _run_once(loop)
                if self._waits:
                    self._pass_cancels_on()
                if turn.broken or loop._stopping or replaced(loop):
                    return
        finally:
            turn.worker = None

    def _switch(self, turn: _Turn | None, target: Any, *what: Any) -> None:
        """Go on in the greenlet `target`; come back when its turns end, or code in it is suspended."""
        outer, self.turn = self.turn, turn
        self._back.append(suspension._getcurrent())
        switch = target.switch
        del target
        try:
            came = self._leave(switch, what, _is_answer)
        finally:
            del switch
            self.turn = outer
        if came is not _SUSPENDED:
            worker, came.worker = came.worker, None
            # Not if somebody else refers to it, who may switch to it: see `_leave`.
            if sys.getrefcount(worker) <= suspension._OWN_REFERENCES:
                interruptible_thread().idle.append(worker)
            if came.raised is not None:
                raise came.raised.error

    def switch(self, answers: list[Any]) -> Any:
        """What a worker calls when its turns have ended. It is idle then, and whoever switched to it goes on."""
        if not self._back:
            raise suspension.GreenletExit  # its loop was thrown away while code in it was suspended
        return self._leave(self._back.pop().switch, (_Ended(suspension._getcurrent(), answers.pop()),), _is_work)

    def _leave(self, go: Callable[..., Any], what: tuple[Any, ...], is_ours: Callable[[Any], bool]) -> Any:
        """Switch to another greenlet; come back with what is for this one.

        Code with greenlets of its own (SQLAlchemy's asyncio layer) makes them children of the one that it runs in, and
        they switch to their parent when they wait, end, or fail. Theirs may be one that was left since, while another
        runs their task. What they bring is passed on to that one.
        """
        while True:
            try:
                came = go(*what)
            except suspension.GreenletExit:
                raise
            except BaseException as exc:  # noqa: BLE001 - passed on
                go, what = self._stepping().throw, (exc,)
            else:
                if is_ours(came):
                    return came
                go, what = self._stepping().switch, (came,)

    def _stepping(self) -> Any:
        """The greenlet in which the loop runs now."""
        if self.turn is not None:
            return self.turn.worker
        first = suspension._getcurrent()
        while first.parent is not None:
            first = first.parent
        return first

    def base_frame(self) -> FrameType | None:
        """Where ``run_forever`` stands. From any thread."""
        frame: FrameType | None
        try:
            frame = self._back[0].gr_frame
        except IndexError:  # it has just gone on
            return None
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back
        return frame

    def _pass_cancels_on(self) -> None:
        for wait in self._waits:
            # To cancel a task that is in the middle of a step does nothing but count.
            if (requests := wait.task.cancelling()) > wait.seen:
                wait.seen = requests
                wait.tell()

    # --- the suspended code's side ---------------------------------------------------------------------------------

    def drive(self, steps: Any) -> Any:
        """Run a coroutine to its end in a task, suspending the code that calls this until then."""
        __tracebackhide__ = True
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        context = contextvars.copy_context()
        # Of asyncio's own kind also where a task factory is set: what an eager task waits for has to be resumed, too.
        awaited: asyncio.Task[Any] = asyncio.Task(_Stepped(_contained(steps)), loop=loop, context=context)
        self._suspend(loop, task, awaited)
        for variable, value in context.items():
            try:
                if variable.get() is value:
                    continue
            except LookupError:
                pass
            variable.set(value)
        try:
            result, interrupt = awaited.result()
        except asyncio.CancelledError:
            steps.close()  # it may not have begun, and would be warned of
            raise
        if interrupt is not None:
            raise interrupt
        return result

    def _suspend(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], awaited: asyncio.Task[Any]) -> None:
        thread, turn, stepped = interruptible_thread(), self.turn, task.get_coro()
        assert turn is not None
        assert isinstance(stepped, _Stepped)
        try:
            taken = thread.suspend(self._depth)
        except BaseException:
            awaited.cancel()
            raise
        here, left = suspension._getcurrent(), len(loop._ready)  # type: ignore[attr-defined]

        def resume(_: object) -> None:
            # Each turn has counted its handles, and pops them without a look. The turn that goes on now shall find as
            # many as when it was left, and the present one as many as now.
            _pad(loop, left)
            now = len(loop._ready)  # type: ignore[attr-defined]
            self._switch(turn, here, _RESUMED)
            _pad(loop, now)

        awaited.add_done_callback(resume)
        wait = _Wait(task, awaited)
        self._waits.append(wait)
        stepping, thread.stepping = thread.stepping, None
        asyncio.tasks._leave_task(loop, task)
        turn.broken = True
        try:
            self._leave(self._back.pop().switch, (_SUSPENDED,), _is_resumed)
        finally:
            asyncio.tasks._enter_task(loop, task)
            thread.stepping = stepping
            self._waits.remove(wait)
            if taken:
                thread.resume(taken)
        if wait.told:
            stepped.take_cancel_off(wait.seen)


class _Ended:
    """What a worker brings whose turns have ended."""

    __slots__ = ("raised", "worker")

    def __init__(self, worker: Any, raised: Any) -> None:
        self.worker = worker
        self.raised = raised


_SUSPENDED: Any = object()
_RESUMED: Any = object()


def _is_answer(came: Any) -> bool:
    return came is _SUSPENDED or type(came) is _Ended


def _is_resumed(came: Any) -> bool:
    return came is _RESUMED


def _is_work(came: Any) -> bool:
    """Whether an idle greenlet was given its next step."""
    return type(came) is tuple and len(came) == 3 and isinstance(came[2], (Turns, suspension.Greenlet))


def _pad(loop: Any, count: int) -> None:
    """Have at least `count` handles ready, if need be some that do nothing."""
    for _ in range(count - len(loop._ready)):
        handle = asyncio.Handle(int, (), loop)
        handle.cancel()
        loop._ready.append(handle)


async def _contained(steps: Any) -> tuple[Any, BaseException | None]:
    """What `steps` gives, and what would leave the loop if a task raised it."""
    try:
        return await (steps if type(steps) is CoroutineType else _Steps(steps)), None
    except (KeyboardInterrupt, SystemExit) as exc:
        return None, exc


class _Steps(CoroutineWrapper[T]):
    """Something that has a coroutine's methods."""

    def __init__(self, steps: Any) -> None:
        self._inner = steps

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._inner.throw(as_exception(typ, val, tb))

    def close(self) -> None:
        self._inner.close()


class _Stepped(_Steps[T]):
    """What a task runs: its coroutine, and takes off the cancel that synchronous code in it has been told already."""

    # Defaults of the class: one is made for each task.
    _requests = -1  # how many cancels had been asked for when the code was told
    _held: Any = None

    def take_cancel_off(self, requests: int) -> None:
        self._requests = requests

    def send(self, value: Any) -> Any:
        if self._held is not None:
            return self._go_on()
        try:
            yielded = self._inner.send(value)
        except StopIteration as stop:
            if self._requests < 0:
                raise
            return self._hold_end(stop)
        return yielded if self._requests < 0 else self._hold(yielded)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        if self._held is not None:
            return self._go_on()
        try:
            yielded = self._inner.throw(as_exception(typ, val, tb))
        except StopIteration as stop:
            if self._requests < 0:
                raise
            return self._hold_end(stop)
        return yielded if self._requests < 0 else self._hold(yielded)

    def _hold(self, yielded: Any) -> Any:
        """If asyncio is about to cancel whatever this step waits for, wait for a future of ours first."""
        if not self._cancel_is_due():
            return yielded
        if yielded is not None:
            yielded._asyncio_future_blocking = False
        return self._first(suspension._Rest(self._inner, yielded))

    def _hold_end(self, stop: StopIteration) -> Any:
        """If asyncio is about to have the task end as cancelled, though its coroutine has ended, wait likewise."""
        if not self._cancel_is_due():
            raise stop

        return self._first(_rest(stop.value))

    def _cancel_is_due(self) -> bool:
        if getattr(asyncio.current_task(), "_must_cancel", False):
            return True
        self._requests = -1
        return False

    def _first(self, rest: Any) -> Any:
        self._held = rest
        ours = asyncio.get_running_loop().create_future()
        ours._asyncio_future_blocking = True
        return ours

    def _go_on(self) -> Any:
        """Our future was cancelled: wait for what is to be waited for, unless there was one more request since."""
        task = asyncio.current_task()
        assert task is not None
        rest, self._held, requests, self._requests = self._held, None, self._requests, -1
        return rest.send(None) if task.cancelling() <= requests else rest.throw(asyncio.CancelledError())


def _rest(value: T) -> Generator[None, None, T]:
    """The rest of a coroutine that has only its result left to give."""
    yield from ()
    return value


# Who asks a thread to cancel the loop that it runs looks for `run_forever`, which is in the first of the greenlets.
interruption._continued[Turns._run.__code__] = lambda frame: frame.f_locals["self"].base_frame()


# --- all loops -------------------------------------------------------------------------------------------------------

_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


def run_once(self: asyncio.BaseEventLoop) -> None:
    """In place of ``BaseEventLoop._run_once``."""
    turns = _turns.get(self)
    if turns is None:
        turns = _turns[self] = Turns()
    turns.begin(self)


def replaced(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `run_once` is not in its place any more: put back, or replaced by nest_asyncio, which re-enters turns."""
    return type(loop)._run_once is not run_once  # type: ignore[attr-defined]


def create_task(self: asyncio.BaseEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """In place of ``BaseEventLoop.create_task``."""
    if type(coro) is CoroutineType:
        coro = _Stepped(coro)
        if self._task_factory is None and not self._debug:  # type: ignore[attr-defined]
            return asyncio.Task(coro, loop=self, **options)  # what the line below comes to, for the commonest case
    return _create_task(self, coro, **options)  # type: ignore[no-any-return]


def here() -> Turns | None:
    """What can suspend the code that asks, if that is in a task that was made while loops run in turns."""
    loop = asyncio._get_running_loop()
    turns = None if loop is None else _turns.get(loop)
    if turns is None or turns.turn is None:
        return None
    task = asyncio.current_task()
    if task is None or not made_in_turns(task) or not _allowed():
        return None
    return turns


def made_in_turns(task: asyncio.Task[Any]) -> bool:
    """Whether `create_task` made the task."""
    return isinstance(task.get_coro(), _Stepped)


_allowed: Callable[[], bool] = bool


def in_turns(on: bool, allowed: Callable[[], bool] = lambda: True) -> None:
    """Say whether `run_once` is in its place; `allowed` says whether the task that runs may be suspended at all."""
    global _allowed
    _allowed = allowed
    suspension._elsewhere = here if on else None
