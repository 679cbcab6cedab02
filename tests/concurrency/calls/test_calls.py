"""A call: what it captures, what becomes of it, and who hears of that."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ipyportal import run, submit
from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    State,
    WorkerThread,
    current_call,
    from_sync,
    get_global_loop,
    shield,
)
from tests.concurrency.helpers import PATIENCE, Gate, soon, spin, until

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")

OUTCOMES = [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError]


def add(a: int, b: int = 0) -> int:
    return a + b


async def add_async(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


def add_later(a: int, b: int = 0) -> Awaitable[int]:
    return add_async(a, b)


KINDS: list[Callable[..., Any]] = [add, add_async, add_later]


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


# --- what is called --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", KINDS)
def test_every_kind_of_function_runs_on_a_worker(worker: WorkerThread, fn: Callable[..., Any]) -> None:
    assert worker.submit(Call.new(fn, 1, b=2)).result() == 3


@pytest.mark.parametrize("fn", KINDS)
def test_every_kind_of_function_runs_on_a_loop_thread(loop_thread: EventLoopThread, fn: Callable[..., Any]) -> None:
    assert loop_thread.submit(Call.new(fn, 1, b=2)).result() == 3


@pytest.mark.parametrize("fn", KINDS)
def test_every_kind_of_function_runs_here(fn: Callable[..., Any]) -> None:
    call = Call.new(fn, 1, b=2)
    assert call.run() is None
    assert call.result() == 3


@pytest.mark.parametrize("fn", KINDS)
def test_every_kind_of_function_runs_here_inside_a_loop(fn: Callable[..., Any]) -> None:
    async def main() -> Any:
        call = Call.new(fn, 1, b=2)
        rest = call.run()
        if rest is not None:
            await rest
        return call.result()

    assert asyncio.run(main()) == 3


def test_calling_a_call_gives_the_result() -> None:
    assert Call.new(add, 1, 2)() == 3
    assert Call.new(add_async, 1, 2)() == 3


def test_calling_a_call_inside_a_loop_gives_an_awaitable_of_the_result() -> None:
    async def main() -> Any:
        return await Call.new(add_async, 1, 2)()  # type: ignore[misc]

    assert asyncio.run(main()) == 3


def test_calling_a_call_raises_what_it_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Call.new(lambda: 1 / 0)()


def test_run_raises_nothing() -> None:
    call = Call.new(lambda: 1 / 0)
    call.run()
    assert isinstance(call.exception(), ZeroDivisionError)


def test_a_future_that_the_function_returns_is_awaited(loop_thread: EventLoopThread) -> None:
    def soon_set() -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "set")
        return future

    assert started_on(loop_thread, soon_set).result() == "set"


def test_wrong_arguments_are_the_calls_exception(loop_thread: EventLoopThread) -> None:
    for fn in KINDS:
        with pytest.raises(TypeError, match="positional argument"):
            started_on(loop_thread, fn, 1, 2, 3).result()


def test_what_cannot_be_called_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="needs a function, not int"):
        Call.new(5)  # type: ignore[call-overload]


def test_keyword_arguments_may_have_any_name() -> None:
    assert Call.new(dict, fn=1, self=2, cls=3)() == {"fn": 1, "self": 2, "cls": 3}


# --- once ------------------------------------------------------------------------------------------------------------


def test_a_call_runs_once() -> None:
    call = Call.new(add, 1)
    call.run()
    with pytest.raises(RuntimeError, match="a call runs once"):
        call.run()


def test_a_call_is_submitted_once(worker: WorkerThread, loop_thread: EventLoopThread) -> None:
    call = started_on(worker, add, 1)
    for portal in worker, loop_thread:
        with pytest.raises(RuntimeError, match="submitted before"):
            portal.submit(call)


@pytest.mark.parametrize("make", [WorkerThread, EventLoopThread])
def test_a_call_that_was_run_while_it_waited_in_a_queue_does_not_end_its_thread(
    make: type[Any],
) -> None:
    with make() as portal:
        gate = Gate()
        blocker = started_on(portal, gate.pass_through)
        queued = started_on(portal, add, 1)
        queued.run()
        gate.set()
        blocker.result()
        assert queued.result() == 1
        assert started_on(portal, add, 2).result(PATIENCE) == 2


def test_a_call_that_was_run_before_its_lent_thread_took_it_does_not_end_that_thread(
    monkeypatch: pytest.MonkeyPatch, died: list[BaseException]
) -> None:
    from ipyportal.concurrency.portals import pool

    # The race: the thread is lent, and the call is run elsewhere before the thread gets to it.
    submit = pool.PooledThread.submit

    def run_first(lent: Any, call: Call[Any]) -> Call[Any]:
        call.run()
        call._portal = None
        return submit(lent, call)

    with monkeypatch.context() as patch:
        patch.setattr(pool.PooledThread, "submit", run_first)
        from_sync.call_soon_in_new_thread(lambda: 1)
    assert from_sync.call_soon_in_new_thread(lambda: 2).result(PATIENCE) == 2
    assert not died


# --- context ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["worker", "loop"])
def test_a_call_sees_the_context_of_its_creation(kind: str) -> None:
    with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
        color.set("red")
        call = Call.new(color.get)
        color.set("blue")
        portal.submit(call)
        assert call.result() == "red"


def test_what_a_call_sets_is_its_own(worker: WorkerThread) -> None:
    color.set("red")
    started_on(worker, color.set, "blue").result()
    assert color.get() == "red"
    assert started_on(worker, color.get).result() == "red"


@pytest.mark.parametrize("kind", ["worker", "loop", "here"])
def test_both_parts_of_a_call_share_one_context(kind: str) -> None:
    color.set("red")

    def outer() -> Awaitable[str]:
        color.set("green")

        async def inner() -> str:
            await asyncio.sleep(0)
            return color.get()

        return inner()

    call = Call.new(outer)
    if kind == "here":
        call.run()
        assert call.result() == "green"
    else:
        with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
            assert portal.submit(call).result() == "green"
    assert color.get() == "red"


def test_an_asynchronous_call_run_inside_a_loop_keeps_its_own_context() -> None:
    async def paint(value: str) -> str:
        before = color.get()
        await asyncio.sleep(0)
        color.set(value)
        await asyncio.sleep(0)
        assert current_call() is not None
        return before

    async def main() -> str:
        color.set("red")
        call = Call.new(paint, "green")
        color.set("blue")
        before: str = await call()  # type: ignore[misc]
        assert color.get() == "blue"
        assert current_call() is None
        return before

    assert asyncio.run(main()) == "red"


def test_current_call_is_the_call_whose_code_it_is(loop_thread: EventLoopThread) -> None:
    assert current_call() is None

    async def asynchronous() -> list[Call[Any] | None]:
        here = current_call()
        await asyncio.sleep(0)
        return [here, await asyncio.create_task(child())]

    async def child() -> Call[Any] | None:
        return current_call()

    call = started_on(loop_thread, asynchronous)
    assert call.result() == [call, call]
    call = started_on(loop_thread, lambda: [current_call()])
    assert call.result() == [call]
    call = Call.new(lambda: [current_call()])
    assert call() == [call]
    assert current_call() is None


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_the_states_of_a_call_that_succeeds(worker: WorkerThread) -> None:
    begun, gate = Gate(), Gate()

    def work() -> None:
        begun.set()
        gate.pass_through()

    call = Call.new(work)
    assert call.state is State.PENDING
    assert (call.running(), call.done()) == (False, False)
    worker.submit(call)
    begun.pass_through()
    assert call.state is State.RUNNING
    assert (call.running(), call.done()) == (True, False)
    gate.set()
    assert call.result() is None
    assert call.state is State.FINISHED
    assert (call.running(), call.done(), call.cancelled(), call.timedout()) == (
        False,
        True,
        False,
        False,
    )


def test_an_exception_is_raised_as_it_is_and_given_as_it_is(worker: WorkerThread) -> None:
    error = ValueError("no")

    def fail() -> None:
        raise error

    call = started_on(worker, fail)
    with pytest.raises(ValueError, match="no") as caught:
        call.result()
    assert caught.value is error
    assert call.exception() is error
    assert call.state is State.FAILED


def test_exception_is_none_for_a_result(worker: WorkerThread) -> None:
    assert started_on(worker, add, 1).exception() is None


def test_exception_raises_for_a_cancelled_call() -> None:
    call = Call.new(add, 1)
    call.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        call.exception()


@pytest.mark.parametrize("kind", ["worker", "loop", "new"])
@pytest.mark.parametrize("error", OUTCOMES)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_a_call_raises_reaches_who_takes_the_result_and_not_the_thread(
    kind: str, error: type[BaseException], asynchronous: bool
) -> None:
    def fail() -> None:
        raise error("told")

    async def fail_async() -> None:
        await asyncio.sleep(0)
        raise error("told")

    fn = fail_async if asynchronous else fail
    if kind == "new":
        with pytest.raises(error, match="told"):
            from_sync.call_in_new_thread(fn)
        return
    with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
        call = started_on(portal, fn)
        with pytest.raises(error, match="told"):
            call.result()
        assert started_on(portal, add, 1).result() == 1
        assert started_on(portal, threading.current_thread).result() is portal.thread


def test_awaiting_raises_what_the_call_raised(loop_thread: EventLoopThread) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await started_on(loop_thread, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await started_on(loop_thread, lambda: 1 / 0).aresult()

    asyncio.run(main())


def test_awaiting_gives_the_result_in_any_loop(worker: WorkerThread, loop_thread: EventLoopThread) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(started_on(worker, add, 1), started_on(loop_thread, add_async, 2))

    assert asyncio.run(main()) == [1, 2]
    with EventLoopThread() as other:
        assert started_on(other, main).result() == [1, 2]


def test_taking_the_result_again_does_not_grow_the_traceback(worker: WorkerThread) -> None:
    call = started_on(worker, lambda: 1 / 0)
    lengths = set()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            call.result()
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1


def test_the_traceback_shows_the_users_code_and_none_of_the_thread_that_ran_it(
    worker: WorkerThread, loop_thread: EventLoopThread
) -> None:
    def fail() -> None:
        raise ValueError

    async def fail_async() -> None:
        fail()

    for portal, fn in (worker, fail), (loop_thread, fail), (loop_thread, fail_async):
        with pytest.raises(ValueError, match="^$") as caught:
            started_on(portal, fn).result()
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[-1] == "fail"
        assert "_invoke" not in names
        assert "send" not in names


# --- waiting for it --------------------------------------------------------------------------------------------------


def test_a_wait_that_runs_out_of_time_leaves_the_call_alone(worker: WorkerThread) -> None:
    gate = Gate()
    call = started_on(worker, gate.pass_through)
    with pytest.raises(TimeoutError, match="it goes on"):
        call.result(0.01)
    with pytest.raises(TimeoutError, match="it goes on"):
        call.exception(0)
    assert not call.timedout()
    gate.set()
    assert call.result(PATIENCE) is None


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_timeout_that_is_none_is_refused(timeout: Any, error: type[Exception]) -> None:
    call = Call.new(add, 1)
    with pytest.raises(error, match="timeout must be"):
        call.set_timeout(timeout)
    with pytest.raises(error, match="timeout must be"):
        call.result(timeout)
    assert call.state is State.PENDING


def test_an_infinite_timeout_is_none() -> None:
    call = Call.new(add, 1)
    call.set_timeout(float("inf"))
    assert call.deadline is None


def test_of_several_timeouts_the_earliest_holds() -> None:
    call = Call.new(add, 1)
    call.set_timeout(5)
    deadline = call.deadline
    call.set_timeout(50)
    assert call.deadline == deadline
    call.set_timeout(1)
    assert call.deadline is not None
    assert deadline is not None
    assert call.deadline < deadline


def test_a_call_that_has_begun_takes_no_timeout() -> None:
    call = Call.new(add, 1)
    call.run()
    with pytest.raises(RuntimeError, match="has begun"):
        call.set_timeout(1)


@pytest.mark.parametrize("kind", ["worker", "loop"])
def test_one_deadline_covers_the_function_and_the_awaitable_that_it_returned(kind: str) -> None:
    begun: list[bool] = []
    gone: list[bool] = []

    def first() -> Awaitable[None]:
        time.sleep(0.05)
        return second()

    async def second() -> None:
        begun.append(True)
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            gone.append(True)

    call = Call.new(first)
    call.set_timeout(0.1)
    with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
        portal.submit(call)
        with soon(), pytest.raises(TimeoutError, match=r"second|first"):
            call.result()
    assert call.timedout()
    assert gone == begun  # on a slow machine the second part may not have begun in time


def test_a_deadline_that_passes_in_the_first_part_ends_the_second(
    loop_thread: EventLoopThread,
) -> None:
    # The race: the loop is in C when the deadline comes, so its own timer fires only when the second part waits.
    def first() -> Awaitable[None]:
        time.sleep(0.1)
        return asyncio.sleep(PATIENCE)

    call = Call.new(first)
    call.set_timeout(0.05)
    loop_thread.submit(call)
    with soon(), pytest.raises(TimeoutError):
        call.result()


def test_a_call_whose_time_is_over_before_it_begins_does_not_run(worker: WorkerThread) -> None:
    gate = Gate()
    blocker = started_on(worker, gate.pass_through)
    ran: list[int] = []
    call = Call.new(ran.append, 1)
    call.set_timeout(0.01)
    worker.submit(call)
    with pytest.raises(TimeoutError):
        call.result()
    assert call.timedout()
    gate.set()
    blocker.result()
    started_on(worker, add, 1).result()
    assert not ran


def test_the_time_out_says_which_call_and_how_long() -> None:
    call = Call.new(add_async, 1)
    call.set_timeout(0)
    call.run()
    with pytest.raises(TimeoutError, match=r"^add_async timed out after 0 s$"):
        call.result()


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_call_that_has_not_begun_is_cancelled_at_once(worker: WorkerThread) -> None:
    gate = Gate()
    started_on(worker, gate.pass_through)
    ran: list[int] = []
    call = started_on(worker, ran.append, 1)
    assert call.cancel()
    assert call.cancelled()
    with pytest.raises(concurrent.futures.CancelledError, match="append was cancelled"):
        call.result()
    gate.set()
    started_on(worker, add, 1).result()
    assert not ran


def test_a_call_that_is_over_cannot_be_cancelled() -> None:
    call = Call.new(add, 1)
    call.run()
    assert not call.cancel()
    assert not call.cancelled()


@pytest.mark.parametrize("kind", ["worker", "loop"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_cancelled_call_is_over_when_its_clean_up_is(kind: str, asynchronous: bool) -> None:
    begun, cleaning, clean = Gate(), Gate(), Gate()

    def work() -> None:
        try:
            begun.set()
            spin()
        finally:
            cleaning.set()
            clean.pass_through()

    async def work_async() -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            cleaning.set()
            while not clean.is_set():
                await asyncio.sleep(0.001)

    with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
        call = started_on(portal, work_async if asynchronous else work)
        begun.pass_through()
        assert call.cancel()
        cleaning.pass_through()
        assert not call.done()
        clean.set()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        assert call.cancelled()


def test_a_call_that_goes_on_when_cancelled_keeps_its_result(loop_thread: EventLoopThread) -> None:
    begun = Gate()

    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return "no"
        return "not asked"

    call = started_on(loop_thread, stubborn)
    begun.pass_through()
    call.cancel()
    assert call.result() == "no"
    assert not call.cancelled()


def test_what_the_clean_up_raises_is_the_calls_exception(loop_thread: EventLoopThread) -> None:
    begun = Gate()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            raise ValueError("clean-up")

    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    with pytest.raises(ValueError, match="clean-up"):
        call.result()


def test_being_cancelled_twice_interrupts_once(loop_thread: EventLoopThread) -> None:
    begun, cleaning = Gate(), Gate()
    interrupts = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            interrupts.append("first")
            cleaning.set()
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                interrupts.append("second")
            raise

    call = started_on(loop_thread, work)
    begun.pass_through()
    assert call.cancel()
    cleaning.pass_through()
    assert call.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert interrupts == ["first"]


def test_a_request_between_the_two_parts_of_a_call_interrupts_once(
    loop_thread: EventLoopThread,
) -> None:
    # The race: the function has returned its awaitable, so its thread cannot be told any more, and the task has not
    # begun to await it. The request goes to the task, and the hand-over sees it, too.
    interrupts = []

    class Returned:
        def __await__(self) -> Any:
            return work().__await__()

        @property
        def __class__(self) -> Any:  # looked at by `inspect.isawaitable`, after the function
            if not call._ending:
                asker = threading.Thread(target=call.cancel)
                asker.start()
                asker.join()
            return Returned

        @__class__.setter
        def __class__(self, value: Any) -> None: ...

    async def work() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                interrupts.append("interrupt")
        await asyncio.sleep(0)

    call = Call.new(Returned)
    loop_thread.submit(call)
    assert call.result(PATIENCE) is None
    assert interrupts == ["interrupt"]


@pytest.mark.parametrize("make", [WorkerThread, EventLoopThread])
def test_a_shield_holds_a_request_back_that_came_between_the_two_parts_of_a_call(make: type[Any]) -> None:
    # The race: the same. The hand-over cancels the task, in whose very step the shield is then entered.
    saved = []

    class Returned:
        def __await__(self) -> Any:
            return work().__await__()

        @property
        def __class__(self) -> Any:  # looked at by `inspect.isawaitable`, after the function
            call.cancel()
            return Returned

        @__class__.setter
        def __class__(self, value: Any) -> None: ...

    async def work() -> None:
        with shield():
            await asyncio.sleep(0)
            saved.append("saved")

    with make() as portal:
        call = Call.new(Returned)
        with pytest.raises(concurrent.futures.CancelledError):
            portal.submit(call).result(PATIENCE)
    assert saved == ["saved"]


def test_a_cancelled_call_raises_what_the_standard_library_raises_there(
    loop_thread: EventLoopThread,
) -> None:
    call = started_on(loop_thread, asyncio.sleep, PATIENCE)

    async def main() -> None:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    with pytest.raises(concurrent.futures.CancelledError):
        call.result()


def test_cancelling_the_task_that_awaits_cancels_the_call_and_waits_for_its_clean_up(
    loop_thread: EventLoopThread,
) -> None:
    begun = Gate()
    order: list[str] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.05)
            order.append("clean-up")

    async def main() -> None:
        call = started_on(loop_thread, work)

        async def wait() -> None:
            await call

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)  # the next line need not suspend if the thread is fast
        await asyncio.to_thread(begun.pass_through)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        order.append("cancelled")
        assert call.cancelled()

    asyncio.run(main())
    assert order == ["clean-up", "cancelled"]


def test_asyncio_timeouts_end_a_call_that_is_awaited(loop_thread: EventLoopThread) -> None:
    async def main() -> None:
        call = started_on(loop_thread, asyncio.sleep, PATIENCE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call
        assert call.cancelled()
        call = started_on(loop_thread, asyncio.sleep, PATIENCE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
        assert call.cancelled()

    with soon():
        asyncio.run(main())


def test_a_timed_out_call_raises_timeout_error_also_in_async_code(
    loop_thread: EventLoopThread,
) -> None:
    async def main() -> None:
        call = Call.new(asyncio.sleep, PATIENCE)
        call.set_timeout(0.01)
        with pytest.raises(TimeoutError, match="sleep timed out"):
            await loop_thread.submit(call)
        assert call.timedout()

    with soon():
        asyncio.run(main())


# --- callbacks -------------------------------------------------------------------------------------------------------


def test_done_callbacks_get_the_call_in_order(worker: WorkerThread) -> None:
    gate = Gate()
    call = started_on(worker, gate.pass_through)
    got: list[Any] = []
    call.add_done_callback(lambda call: got.append((1, call)))
    call.add_done_callback(lambda call: got.append((2, call)))
    gate.set()
    started_on(worker, add, 1).result()
    assert got == [(1, call), (2, call)]


def test_a_callback_added_when_the_call_is_over_is_called_at_once() -> None:
    call = Call.new(add, 1)
    call.run()
    got: list[Any] = []
    call.add_done_callback(got.append)
    assert got == [call]


@pytest.mark.parametrize("error", [*OUTCOMES, asyncio.CancelledError])
def test_a_callback_that_raises_is_reported_and_stops_no_other(
    worker: WorkerThread, reported: list[Any], error: type[BaseException]
) -> None:
    def fail(call: Call[Any]) -> None:
        raise error("callback")

    gate, got = Gate(), list[Any]()
    call = started_on(worker, gate.pass_through)
    call.add_done_callback(fail)
    call.add_done_callback(got.append)
    gate.set()
    assert started_on(worker, add, 1).result(PATIENCE) == 1  # the thread lives
    assert got == [call]
    [report] = reported
    assert isinstance(report.exc_value, error)
    assert "done callback of <Call" in report.err_msg


def test_a_done_callback_may_use_a_new_thread_and_wait_for_it() -> None:
    # The race: the thread whose call is over is lent again before that call's callbacks have run, and to the very
    # callback that waits.
    gate, over, answers = Gate(), Gate(), list[int]()

    def ask(call: Call[Any]) -> None:
        answers.append(from_sync.call_soon_in_new_thread(lambda: 5).result(PATIENCE))
        over.set()

    call = from_sync.call_soon_in_new_thread(gate.pass_through)
    until(call.running)
    call.add_done_callback(ask)
    gate.set()
    over.pass_through()
    assert answers == [5]


# --- its future ------------------------------------------------------------------------------------------------------


def test_the_future_is_a_future_and_always_the_same(worker: WorkerThread) -> None:
    call = started_on(worker, add, 1)
    assert isinstance(call.future, concurrent.futures.Future)
    assert call.future is call.future
    assert call.future.result(PATIENCE) == 1


def test_the_future_of_a_call_that_is_over_is_done() -> None:
    call = Call.new(add, 1)
    call.run()
    assert call.future.done()
    assert call.future.result(0) == 1
    failed = Call.new(lambda: 1 / 0)
    failed.run()
    assert isinstance(failed.future.exception(0), ZeroDivisionError)
    cancelled = Call.new(add, 1)
    cancelled.cancel()
    assert cancelled.future.cancelled()


@pytest.mark.parametrize("early", [True, False])
def test_concurrent_futures_wait_and_as_completed_take_calls(worker: WorkerThread, early: bool) -> None:
    gate = Gate()
    blocker = started_on(worker, gate.pass_through)
    finished, failed, cancelled = (
        started_on(worker, add, 1),
        started_on(worker, lambda: 1 / 0),
        started_on(worker, add, 2),
    )
    futures = {call.future for call in (finished, failed, cancelled)} if early else set()
    cancelled.cancel()
    gate.set()
    if not early:
        blocker.result()
    futures |= {call.future for call in (finished, failed, cancelled)}
    assert len(futures) == 3
    done, not_done = concurrent.futures.wait(futures, PATIENCE)
    assert (done, not_done) == (futures, set())
    assert set(concurrent.futures.as_completed(futures, PATIENCE)) == futures
    assert cancelled.future.cancelled()
    assert type(failed.future.exception()) is ZeroDivisionError


@pytest.mark.parametrize("ended", ["finished", "failed", "cancelled"])
def test_a_callback_of_the_future_that_raises_leaves_nobody_waiting(ended: str, reported: list[Any]) -> None:
    def leave(future: concurrent.futures.Future[Any]) -> None:
        raise SystemExit(future)

    call = Call.new((lambda: 1 / 0) if ended == "failed" else int)
    call.future.add_done_callback(leave)
    if ended == "cancelled":
        call.cancel()
    else:
        call.run()
    # The state of the standard library's futures that were cancelled, and which nobody has been told of, keeps a wait.
    assert concurrent.futures.wait([call.future], PATIENCE).not_done == set()
    assert [type(one.exc_value) for one in reported] == [SystemExit]
    assert (ended == "failed") == (call.state is State.FAILED and call.exception() is not None)


def test_asyncio_wrap_future_takes_a_call(loop_thread: EventLoopThread) -> None:
    async def main() -> int:
        return await asyncio.wrap_future(started_on(loop_thread, add_async, 1, 2).future)

    assert asyncio.run(main()) == 3


def test_cancelling_a_wrapped_future_cancels_the_call(loop_thread: EventLoopThread) -> None:
    async def main() -> None:
        call = started_on(loop_thread, asyncio.sleep, PATIENCE)
        wrapped = asyncio.wrap_future(call.future)
        await asyncio.sleep(0)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert call.cancelled()

    with soon():
        asyncio.run(main())


def test_cancelling_the_future_cancels_the_call_also_while_it_runs(
    loop_thread: EventLoopThread,
) -> None:
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    call = started_on(loop_thread, work)
    begun.pass_through()
    assert call.future.running()
    assert call.future.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.future.result()
    assert call.cancelled()
    assert not call.future.running()
    assert not call.future.running()


@pytest.mark.parametrize("ended", ["finished", "failed", "timed out", "cancelled"])
def test_cancelling_the_future_in_the_moment_in_which_the_call_ends_leaves_the_end_as_it_is(ended: str) -> None:
    # The call is over and its future is not yet: its thread is about to tell it. Who cancelled it here took the future
    # for one that no call will ever set; it was cancelled by itself, and what the call had to tell was lost.
    begun, gate = Gate(), Gate()

    def work() -> str:
        begun.set()
        if ended in ("timed out", "cancelled"):
            spin()
        gate.pass_through()
        if ended == "failed":
            raise ZeroDivisionError
        return "finished"

    def is_telling() -> bool:
        frame = sys._current_frames().get(thread)
        while frame is not None and frame.f_code is not type(call.future)._settle.__code__:
            frame = frame.f_back
        return frame is not None

    with WorkerThread() as worker:
        thread = worker.submit(Call.new(threading.get_ident)).result()
        call = Call.new(work)
        call.set_timeout(0.05 if ended == "timed out" else None)
        with call.future._condition:
            worker.submit(call)
            if ended == "cancelled":
                begun.pass_through()
                call.cancel()
            gate.set()
            until(call.done)
            until(is_telling)
            assert call.future.cancel() is (ended == "cancelled")
            assert not call.future.done()
        assert concurrent.futures.wait([call.future], PATIENCE).done
    assert call.state.value == ended
    assert call.future.cancelled() is (ended == "cancelled")
    assert call.future.cancel() is (ended == "cancelled")
    if ended != "cancelled":
        assert call.future.exception() is call.exception()


# --- waits that would never end --------------------------------------------------------------------------------------


def test_a_worker_that_waits_for_its_own_next_call_is_told_so(worker: WorkerThread) -> None:
    def wait() -> None:
        started_on(worker, add, 1).result()

    with soon(), pytest.raises(RuntimeError, match="would never end"):
        started_on(worker, wait).result()


@pytest.mark.parametrize("kind", ["worker", "loop", "new"])
def test_a_call_that_waits_for_itself_is_told_so(kind: str) -> None:
    def wait() -> None:
        call = current_call()
        assert call is not None
        call.result(PATIENCE)

    with soon(), pytest.raises(RuntimeError, match="would never end"):
        if kind == "new":
            from_sync.call_in_new_thread(wait)
        else:
            with WorkerThread() if kind == "worker" else EventLoopThread() as portal:
                started_on(portal, wait).result()


def test_a_callback_of_a_loop_waits_for_a_call_of_that_loop_suspended(loop_thread: EventLoopThread) -> None:
    answer: concurrent.futures.Future[int] = concurrent.futures.Future()
    loop_thread.loop.call_soon_threadsafe(lambda: answer.set_result(started_on(loop_thread, add, 1).result()))
    assert answer.result(PATIENCE) == 1


def test_a_callback_that_cannot_be_suspended_is_told_that_its_wait_would_never_end(uvloop: Any) -> None:
    answer: concurrent.futures.Future[BaseException | None] = concurrent.futures.Future()

    def callback() -> None:
        try:
            started_on(loop_thread, add, 1).result()
        except BaseException as exc:  # noqa: BLE001
            answer.set_result(exc)
        else:
            answer.set_result(None)

    with EventLoopThread(loop_factory=uvloop.new_event_loop) as loop_thread:
        loop_thread.loop.call_soon_threadsafe(callback)
        error = answer.result(PATIENCE)
    assert isinstance(error, RuntimeError)
    assert "would never end" in str(error)


def test_a_call_that_is_over_is_no_wait_also_on_its_own_thread(worker: WorkerThread) -> None:
    first = started_on(worker, add, 1)
    assert started_on(worker, first.result).result() == 1


# --- how it looks ----------------------------------------------------------------------------------------------------


def test_a_call_says_what_it_is_and_where(worker: WorkerThread) -> None:
    call = Call.new(add, 1)
    assert repr(call) == "<Call add pending>"
    worker.submit(call).result()
    assert repr(call) == f"<Call add finished on {worker.name}>"


def test_a_calls_name_is_that_of_the_function_behind_it() -> None:
    assert Call.new(functools.partial(functools.partial(add, 1), 2)).name == "add"
    assert Call.new("x".join, []).name == "str.join"
    assert Call.new(type("Callable", (), {"__call__": lambda self: 1})()).name == "Callable"
    call = Call.new(add, 1)
    call.name = "mine"
    call.run()
    assert repr(call) == "<Call mine finished>"


# --- many threads ----------------------------------------------------------------------------------------------------


def test_a_call_that_several_cancel_while_it_begins_ends_and_ends_once(often: None) -> None:
    # The race: a request meets the call before, while and after it begins, in every order.
    portal = get_global_loop()
    for number in range(100):
        ends: list[Call[Any]] = []
        call = Call.new(asyncio.sleep if number % 2 else time.sleep, 0.0005)
        call.add_done_callback(ends.append)
        barrier = threading.Barrier(3, timeout=10)

        def cancel(call: Call[Any] = call, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            call.cancel()

        threads = [threading.Thread(target=cancel) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait(PATIENCE)
        portal.submit(call)
        for thread in threads:
            thread.join()
        try:
            call.result(PATIENCE)
        except concurrent.futures.CancelledError:
            assert call.cancelled()
        until(lambda ends=ends: ends)  # as in the standard library, who waits may be told before the callbacks
        assert ends == [call]


def test_a_call_that_a_function_returns_is_awaited(worker: WorkerThread, loop_thread: EventLoopThread) -> None:
    def work() -> Call[int]:
        return get_global_loop().submit(Call.new(int, "7"))

    for portal in worker, loop_thread:
        assert portal.submit(Call.new(work)).result(PATIENCE) == 7
    assert run(work) == 7
    assert run(work, on="thread") == 7
    assert submit(work).result(PATIENCE) == 7
