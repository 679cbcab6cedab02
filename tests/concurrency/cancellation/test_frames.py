"""Marks: each is there because the code that it stands in would be torn apart; without it, a test here fails."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import pytest

from ipyportal.concurrency import Call, EventLoopThread, cancel_sync_after, get_global_loop, suspend
from ipyportal.concurrency.cancellation import blocking, clock, frames, interruption, scopes
from ipyportal.concurrency.cancellation.frames import Mark, is_delicate, leaves_scope
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Shield
from ipyportal.concurrency.portals import get_thread_pool
from ipyportal.concurrency.portals.life import ThreadPortal
from ipyportal.concurrency.portals.pool import ThreadPool
from ipyportal.concurrency.suspension import callers, driving, loop_internals, loops, turns, workers
from ipyportal.concurrency.suspension.loops import turns_possible
from tests.concurrency.helpers import Gate, python

Look = Callable[[FrameType], Any]


def looks(action: Callable[[], object], look: Look, wanted: Callable[[FrameType], bool]) -> list[Any]:
    """What `look` says of each frame that is `wanted`, at the entry of its function, while `action` runs here."""
    said: list[Any] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and wanted(frame):
            said.append(look(frame))

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return said


def delicate(action: Callable[[], object], module: ModuleType) -> list[bool]:
    """Whether each function of `module` that `action` calls may not be interrupted."""
    return looks(action, is_delicate, lambda frame: frame.f_globals is vars(module))


def set_a_deadline() -> None:
    clock.clock.cancel(clock.clock.call_at(time.monotonic() + 60, int))


def enter_a_scope() -> None:
    with cancel_sync_after(None):
        pass


def enter_a_shield() -> None:
    mark = Shield()
    thread_state().enter(mark)
    thread_state().leave(mark)


def block() -> None:
    inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
    inbox.put(1)
    blocking.block(inbox, None)


def wait_in_tasks_and_callbacks() -> None:
    async def main() -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda: (suspend(asyncio.sleep(0)), over.set()))
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(waits())
        await over.wait()

    async def waits() -> None:
        suspend(asyncio.sleep(0.001))

    asyncio.run(main())


# What is done of each, which no other marked code calls.
WHOLE: dict[Any, Callable[[], object]] = {
    clock: set_a_deadline,
    scopes: enter_a_scope,
    interruption: enter_a_shield,
    blocking: block,
}
ITSELF = [turns, workers, callers, driving, loop_internals, loops]


@pytest.mark.parametrize(("module", "action"), WHOLE.items(), ids=[module.__name__ for module in WHOLE])
def test_what_must_be_done_whole_is_not_interrupted(
    module: Any, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.__ipyportal_mark__ is Mark.WHOLE
    said = delicate(action, module)
    assert said
    assert all(said)
    monkeypatch.delattr(module, "__ipyportal_mark__")
    assert not all(delicate(action, module))


def check_switching(name: str) -> None:
    """Fails if the mark of a module is missing, and if the module would be as well off without it."""
    module: Any = sys.modules[name]
    assert module.__ipyportal_mark__ is Mark.ITSELF
    said = delicate(wait_in_tasks_and_callbacks, module)
    assert said
    assert all(said)
    del module.__ipyportal_mark__
    assert not all(delicate(wait_in_tasks_and_callbacks, module))
    print("checked")


# In a process of its own: it profiles the thread where greenlets of other tests may stand still.


@pytest.mark.skipif(not turns_possible(), reason="nothing can be suspended here")
@pytest.mark.parametrize("module", ITSELF, ids=lambda module: module.__name__)
def test_the_switching_between_greenlets_is_not_interrupted(module: Any) -> None:
    where = "tests.concurrency.cancellation.test_frames"
    result = python(f"from {where} import check_switching\ncheck_switching({module.__name__!r})")
    assert result.stdout == "checked\n", result.stderr


@pytest.mark.skipif(not turns_possible(), reason="nothing can be suspended here")
def test_code_that_the_switching_calls_may_be_interrupted() -> None:
    result = python("""
        from tests.concurrency.cancellation.test_frames import is_delicate, looks, wait_in_tasks_and_callbacks
        print(set(looks(wait_in_tasks_and_callbacks, is_delicate, lambda frame: frame.f_code.co_name == "waits")))
    """)
    assert result.stdout == "{False}\n", result.stderr


def start_a_thread() -> None:
    with EventLoopThread():
        pass


@pytest.mark.parametrize(
    ("function", "action"),
    [
        (get_global_loop, get_global_loop),
        (ThreadPortal.start, start_a_thread),
        (ThreadPool.submit, lambda: get_thread_pool().submit(Call.new(int)).result()),
    ],
    ids=["get_global_loop", "start", "submit"],
)
def test_who_starts_a_thread_is_not_interrupted(
    function: Any, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_in(frame: FrameType) -> bool:
        return frame.f_code is function.__code__

    assert looks(action, is_delicate, look_in) == [True]
    monkeypatch.setattr(frames, "_uninterruptible", frames._uninterruptible - {function.__code__})
    assert looks(action, is_delicate, look_in) == [False]


def test_a_scope_that_is_about_to_be_left_is_found_by_the_methods_that_leave_it() -> None:
    entered: list[Any] = []

    def enter() -> None:
        with cancel_sync_after(60) as scope:
            entered.append(scope)

    names = ("__exit__", "_leave")
    found = looks(enter, leaves_scope, lambda frame: frame.f_globals is vars(scopes) and frame.f_code.co_name in names)
    assert found == entered * 2


def test_a_mark_is_looked_for_on_the_way_down_the_stack() -> None:
    # A thread that waits for a call stands in the engine's wait, whatever called that, and is woken instead.
    begun, gate = Gate(), Gate()
    call = get_thread_pool().submit(Call.new(lambda: (begun.set(), gate.pass_through())))

    def wait() -> None:
        waiting.set()
        call.result()

    waiting = Gate()
    thread = threading.Thread(target=wait)
    thread.start()
    begun.pass_through()
    waiting.pass_through()
    try:
        while (frame := sys._current_frames()[thread.ident or 0]).f_code.co_name != "block":
            time.sleep(0.001)
        assert is_delicate(frame)
    finally:
        gate.set()
        thread.join()
