"""`TaskPortal`: calls in one task, and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from typing import Any

import pytest

from ipyportal.concurrency import Call, EventLoopThread, Portal, WorkerThread, current_call, from_async
from ipyportal.concurrency.api import wait_for
from ipyportal.concurrency.portals.shared import get_thread_pool
from ipyportal.concurrency.portals.tasks import TaskPortal
from tests.concurrency.helpers import By, Gate, soon, until

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


class Cleaned:
    """A clean-up that counts how often it ran."""

    def __init__(self) -> None:
        self.count = 0
        self.over = Gate()

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        self.count += 1
        self.over.set()


def started(place: Portal, clean_up: Cleaned | None = None) -> TaskPortal:
    portal = TaskPortal("the task", clean_up or Cleaned())
    portal.start(place)
    return portal


async def where() -> Any:
    await asyncio.sleep(0)
    return asyncio.current_task()


@pytest.mark.parametrize("thread", [EventLoopThread, WorkerThread])
def test_calls_run_one_after_the_other_in_one_task_and_context(thread: Any) -> None:
    async def paint() -> str:
        before = color.get()
        color.set("painted")
        await asyncio.sleep(0)
        return before

    clean_up = Cleaned()
    with thread() as portal:
        task = started(portal, clean_up)
        assert wait_for(task, Call(where)) is wait_for(task, Call(where))
        assert [wait_for(task, Call(paint)) for _ in range(2)] == ["none", "painted"]
        calls = [task.submit(Call(lambda: id(current_call()))) for _ in range(3)]
        assert [call.result() for call in calls] == [id(call) for call in calls]
        task.end()
        clean_up.over.pass_through()
    assert clean_up.count == 1


def test_a_call_sends_back_to_whoever_waits_for_that_call(loop_thread: EventLoopThread) -> None:
    async def ask() -> str:
        return await from_async.call_soon_in_waiting_thread(lambda: "answered")

    task = started(loop_thread)
    assert [wait_for(task, Call(ask)) for _ in range(2)] == ["answered"] * 2
    task.end()


def test_a_cancelled_call_ends_alone(loop_thread: EventLoopThread) -> None:
    begun = Gate()

    async def patient() -> None:
        begun.set()
        await asyncio.sleep(3600)

    async def cancelling() -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = started(loop_thread)
    first, second = task.submit(Call(patient)), task.submit(Call(cancelling))
    begun.pass_through()
    first.cancel()
    assert second.result() == 0
    assert first.cancelled()
    limited = Call[None](patient)
    limited.set_timeout(0.02)
    with pytest.raises(TimeoutError):
        wait_for(task, limited)
    assert task.submit(Call(cancelling)).result() == 0
    task.end()


@pytest.mark.parametrize("times", [30, pytest.param(200, marks=pytest.mark.storm)])
def test_a_cancel_at_any_moment_ends_no_other_call(often: None, loop_thread: EventLoopThread, times: int) -> None:
    # The request is on its way to the loop when the call ends by itself, and the next has begun there.
    async def short() -> None:
        await asyncio.sleep(0)

    task = started(loop_thread)
    for _ in range(times):
        first, second = task.submit(Call(short)), task.submit(Call(short))
        first.cancel()
        assert second.result() is None
        assert first.done()
    task.end()


def test_what_comes_after_the_end_is_refused(loop_thread: EventLoopThread) -> None:
    task = started(loop_thread)
    last = task.submit(Call(where))
    task.end()
    task.end()
    with pytest.raises(RuntimeError, match="the task is over, and takes no more calls"):
        task.submit(Call(where))
    assert last.result() is not None


@pytest.mark.parametrize("thread", [EventLoopThread, WorkerThread])
def test_a_shutdown_cleans_up_and_cancels_what_waits(thread: Any) -> None:
    begun, clean_up = Gate(), Cleaned()

    async def patient() -> None:
        begun.set()
        await asyncio.sleep(3600)

    portal = thread()
    task = started(portal, clean_up)
    calls = [task.submit(Call(patient)), task.submit(Call(where))]
    begun.pass_through()
    with soon():
        portal.shutdown(cancel=True)
    assert clean_up.count == 1
    for call in calls:
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
    with pytest.raises(RuntimeError, match="is over"):
        task.submit(Call(where))


def test_a_loop_that_is_shut_down_patiently_does_not_wait_for_an_idle_task() -> None:
    clean_up = Cleaned()
    with soon(), EventLoopThread() as portal:
        task = started(portal, clean_up)
        task.submit(Call(where)).result()
    assert clean_up.count == 1


def test_a_task_that_never_began_cancels_what_it_was_given(worker: WorkerThread) -> None:
    free = Gate()
    busy = worker.submit(Call.new(free.pass_through))
    task = started(worker)
    call = task.submit(Call(where))
    task._beginning.cancel()
    free.set()
    busy.result()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result()


def test_a_task_that_was_cancelled_before_its_first_step_cancels_what_it_was_given() -> None:
    async def begin() -> TaskPortal:
        task = started(By(Call.run))
        assert task._task is not None
        task._task.cancel()
        return task

    with EventLoopThread() as portal:
        task = portal.submit(Call(begin)).result()
        until(lambda: task._closed)
        with pytest.raises(RuntimeError, match="is over"):
            task.submit(Call(where))


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_waiting_on_the_very_loop_is_refused_where_nothing_can_be_suspended(kind: str, uvloop: Any) -> None:
    with EventLoopThread(loop_factory=asyncio.new_event_loop if kind == "asyncio" else uvloop.new_event_loop) as loop:
        wait_on_the_very_loop(loop, refused=kind == "uvloop")


def wait_on_the_very_loop(loop_thread: EventLoopThread, refused: bool) -> None:
    task = started(loop_thread)

    async def block() -> None:
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def callback() -> None:
            try:
                outcome.set_result(wait_for(task, Call(where)))
            except BaseException as exc:  # noqa: BLE001
                outcome.set_exception(exc)

        asyncio.get_running_loop().call_soon(callback)
        await asyncio.wrap_future(outcome)

    with pytest.raises(RuntimeError, match="would never end") if refused else contextlib.nullcontext():
        loop_thread.submit(Call(block)).result()
    task.end()


def test_a_task_in_a_thread_of_its_own_ends_with_it() -> None:
    clean_up = Cleaned()
    task = started(get_thread_pool(), clean_up)
    assert wait_for(task, Call(where)) is not None
    task.end()
    clean_up.over.pass_through()
