"""Workers: the greenlets in which an event loop goes on while code stands still in others.

A worker runs turns of a loop (`Work`) and then switches to who goes on in its place (`Ended`). A thread keeps those
that are idle. They are all started by one greenlet, the *spawner*, which stands low in the stack.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.greenlets import Greenlet, GreenletExit, current_greenlet, first_greenlet

__all__ = [
    "SHALLOW",
    "Ended",
    "Work",
    "borrow_worker",
    "depth_of",
    "drop_workers",
    "end_idle_workers",
    "forward_siblings",
    "greenlets",
    "leave",
]


__ipyportal_mark__ = Mark.ITSELF  # between two greenlets


class _Greenlets(threading.local):
    """The workers of one thread."""

    def __init__(self) -> None:
        self.idle: list[Any] = []
        self.spawner: Any = None
        self.forwarder: Any = None
        self.depth = 0  # of the stack where the spawner was started
        self.runs_turn: Any = None
        """The greenlet in which the present turn of the loop runs; None before any code has waited."""


greenlets = _Greenlets()

SHALLOW = 100  # frames: about as many as a kernel has below a cell


class RunsTurns(Protocol):
    """What a worker runs: `Turns`."""

    def work(self, loop: Any) -> None: ...
    def take_next(self) -> Any: ...


class Work:
    """What a worker is given: the turns of a loop."""

    __slots__ = ("loop", "turns")

    def __init__(self, turns: RunsTurns, loop: asyncio.AbstractEventLoop) -> None:
        self.turns = turns
        self.loop = loop


class Ended:
    """What a worker brings that has ended its work, to whoever goes on in its place."""

    __slots__ = ("raised", "worker")

    def __init__(self, raised: BaseException | None) -> None:
        self.worker = current_greenlet()
        self.raised = raised


def leave(go: Callable[..., Any], what: Any, expected: type) -> Any:
    """Switch to another greenlet; come back with what is for this one.

    Code with greenlets of its own (SQLAlchemy's asyncio layer) makes them children of the one that it runs in, and
    they switch to their parent when they wait, end, or fail. Theirs may be one that was left since, while another runs
    their task. What they bring is passed on to that one.
    """
    try:
        while True:
            try:
                came = go(what)
            except GreenletExit:
                raise
            except BaseException as exc:  # noqa: BLE001 - passed on
                go, what = _addressee().throw, exc
            else:
                if type(came) is expected:
                    return came
                go, what = _addressee().switch, came
    finally:
        # Also when it is killed here: see `steps._run_steps`.
        go = what = came = None  # type: ignore[assignment]


def _be_a_worker(starter: list[Any]) -> None:
    """The body of a worker: it waits for work, does it, and switches to who goes on then."""
    target, message = starter.pop(), None
    while True:
        try:
            work = leave(target.switch, message, Work)
        finally:
            target = message = None
        raised: BaseException | None = None
        try:
            work.turns.work(work.loop)
        except GreenletExit:
            raise  # it was thrown away, with its loop
        except BaseException as exc:  # noqa: BLE001 - it is raised where the loop stands
            raised = exc
        target, message = work.turns.take_next(), Ended(raised)
        work = raised = None


def _be_the_spawner(starter: list[Any]) -> None:
    """The body of the greenlet that starts the others.

    One starts as deep in the stack as who starts it. That shall not be code that waits: of a hundred tasks that wait at
    once each would begin where the one before stands still.
    """
    target: Any = starter.pop()
    while True:
        worker = Greenlet(_be_a_worker, first_greenlet())
        worker.switch([current_greenlet()])
        starter.append(worker)
        worker = None
        try:
            target, starter = target.switch(starter)
        except BaseException:
            target = None
            starter.clear()
            raise


def _that_runs_the_turn() -> Any:
    return greenlets.runs_turn or first_greenlet()


def _addressee() -> Any:
    """Who is to get what was brought to another greenlet."""
    addressee = _that_runs_the_turn()
    if addressee is current_greenlet() or addressee.dead:  # to switch there would return at once, again and again
        raise RuntimeError("a greenlet has switched to one of ipyportal's, which does not wait for it")
    return addressee


def _be_the_forwarder(starter: list[Any]) -> None:
    """The body of a greenlet that passes on whatever is brought to it."""
    leave(starter.pop().switch, None, Work)


def forward_siblings() -> None:
    """To be called where code is about to stand still: what is meant for the loop shall not wake it.

    Code in a greenlet of its own stands on the one that runs the turn, which waits for it in `switch`. That one has
    other children, if tasks began theirs in it, and these switch to it whoever runs their tasks by now. So they get
    another parent, which passes that on. It is a rare case, and to look for the children takes some milliseconds.
    """
    own, runs_turn = current_greenlet(), _that_runs_the_turn()
    if own is runs_turn:
        return
    waiting = []
    while own is not None and own is not runs_turn:
        waiting.append(own)
        own = own.parent
    if greenlets.forwarder is None:
        greenlets.forwarder = Greenlet(_be_the_forwarder, first_greenlet())
        greenlets.forwarder.switch([current_greenlet()])
    for child in gc.get_referrers(runs_turn):
        if isinstance(child, Greenlet) and child.parent is runs_turn and child not in waiting and not _is_ours(child):
            child.parent = greenlets.forwarder
            # SQLAlchemy 2.0 keeps it in an attribute as well, and switches to that.
            for name, value in list(getattr(child, "__dict__", {}).items()):
                if value is runs_turn:
                    setattr(child, name, greenlets.forwarder)


def _is_ours(greenlet: Any) -> bool:
    """Whether it is the engine's own, or none that has begun and not ended."""
    frame = greenlet.gr_frame
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is None or frame.f_globals.get("__package__") == __package__


def borrow_worker() -> Any:
    """An idle worker of this thread; a new one if there is none."""
    if greenlets.idle:
        return greenlets.idle.pop()
    here, made = current_greenlet(), []
    if greenlets.spawner is None:
        greenlets.depth = depth_of(sys._getframe())
        greenlets.spawner = Greenlet(_be_the_spawner, first_greenlet())
        made.append(here)
        greenlets.spawner.switch(made)
    else:
        greenlets.spawner.switch((here, made))
    return made.pop()


def depth_of(frame: FrameType | None) -> int:
    """How many frames there are from `frame` down to where its greenlet began."""
    depth = 0
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


def end_idle_workers() -> None:
    """End those of this thread that wait for work, and what starts them."""
    greenlets.idle.clear()
    greenlets.spawner = greenlets.forwarder = None
    greenlets.depth = 0


def drop_workers() -> None:
    """To be called at the end of a thread in which a loop has run: a greenlet can be ended by its own thread alone."""
    end_idle_workers()
    greenlets.runs_turn = None
