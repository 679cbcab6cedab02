"""What a call does not keep alive: its arguments, its result, its exception, its context, itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    WorkerThread,
    cancel_sync_after,
    from_async,
    from_sync,
)
from ipyportal.concurrency.portals import get_thread_pool
from tests.concurrency.helpers import PATIENCE, Gate, blocked_in_c, until

thing_var: contextvars.ContextVar[Any] = contextvars.ContextVar("thing")


class Thing:
    """Something to be referred to, weakly."""


class Failure(Exception):
    """An exception that can be referred to weakly."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """What a test sees freed was freed by its last reference, and not by the cycle collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=["worker", "loop", "new"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Call[Any]], Any]]:
    """Run a call somewhere, and wait until the place has let go of it; its thread stays alive."""
    if request.param == "new":
        yield lambda call: (from_sync.call_soon_in_new_thread(call), settle(call), until(idle))
        return
    with WorkerThread() if request.param == "worker" else EventLoopThread() as portal:

        def submit(call: Call[Any]) -> None:
            portal.submit(call)
            settle(call)
            portal.submit(Call.new(int)).result(PATIENCE)  # so that the thread is done with the first
            if isinstance(portal, EventLoopThread):
                until(lambda: not portal._running)

        yield submit


def settle(call: Call[Any]) -> None:
    concurrent.futures.wait([call.future], PATIENCE)


def idle() -> bool:
    return all(lent.current is None for lent in get_thread_pool().all)


def give(thing: Any = None, *, key: Any = None) -> Any:
    return thing


async def give_async(thing: Any = None, *, key: Any = None) -> Any:
    await asyncio.sleep(0)
    return thing


def fail(*args: Any, **kwargs: Any) -> None:
    raise Failure


async def fail_async(*args: Any, **kwargs: Any) -> None:
    await asyncio.sleep(0)
    raise Failure


functions = pytest.mark.parametrize("fn", [give, give_async, fail, fail_async])


def refer(thing: Any) -> Callable[[], bool]:
    reference = weakref.ref(thing)
    return lambda: reference() is None


@functions
def test_arguments_are_dropped_when_the_call_is_over(run: Callable[..., Any], fn: Callable[..., Any]) -> None:
    thing, key = Thing(), Thing()
    gone = [refer(thing), refer(key)]
    call = Call.new((lambda thing, key: fn(None)) if fn is give else fn, thing, key=key)
    run(call)
    if fn is give_async:  # returns it
        call = None  # type: ignore[assignment]
    del thing, key
    if call is not None and call.exception() is not None:
        call.exception().__traceback__ = None  # type: ignore[union-attr]  # whose frames have the arguments
        call._traceback = None
    assert [is_gone() for is_gone in gone] == [True, True]


@pytest.mark.parametrize("fn", [give, give_async])
def test_a_result_lives_no_longer_than_its_call(run: Callable[..., Any], fn: Callable[..., Any]) -> None:
    call = Call.new(fn, Thing())
    run(call)
    gone = refer(call.result())
    assert not gone()
    del call
    assert gone()


@functions
def test_a_call_that_nobody_holds_is_gone_when_it_is_over(
    run: Callable[..., Any], fn: Callable[..., Any], reported: list[Any]
) -> None:
    call: Any = Call.new(fn)
    gone = refer(call)
    run(call)
    del call
    assert gone()


@pytest.mark.parametrize("fn", [fail, fail_async])
@pytest.mark.parametrize("how", ["result", "future", "await", "exception"])
def test_an_exception_that_was_taken_lives_no_longer_than_its_call(
    run: Callable[..., Any], fn: Callable[..., Any], how: str
) -> None:
    call: Any = Call.new(fn)
    run(call)
    try:
        if how == "result":
            call.result()
        elif how == "future":
            call.future.result()
        elif how == "await":
            asyncio.run(wait_for(call))
        else:
            raise call.exception()
    except Failure as exc:
        gone = refer(exc)
    del call
    if how == "await":
        gc.collect()  # asyncio's own frames make a cycle of an exception that leaves asyncio.run()
    assert gone()


async def wait_for(call: Call[Any]) -> Any:
    return await call


def test_the_context_is_dropped_when_the_call_is_over(run: Callable[..., Any]) -> None:
    gone: Any = None

    def inside() -> Call[Any]:
        nonlocal gone
        thing = Thing()
        gone = refer(thing)
        thing_var.set(thing)
        return Call.new(give, 5)

    call = contextvars.copy_context().run(inside)
    run(call)
    assert call.result() == 5
    assert gone()


def test_a_cancelled_call_drops_everything_at_once() -> None:
    thing = Thing()
    gone = refer(thing)
    with WorkerThread() as worker:
        gate = Gate()
        worker.submit(Call.new(gate.pass_through))
        call = worker.submit(Call.new(give, thing))
        del thing
        call.cancel()
        assert gone()
        gate.set()


def test_a_cancelled_call_is_not_kept_for_its_grace() -> None:
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    call: Any = from_sync.call_soon_in_loop_thread(work)
    begun.pass_through()
    gone = refer(call)
    call.cancel()
    settle(call)
    del call
    until(gone)


def test_a_deadline_that_was_not_reached_keeps_no_call(run: Callable[..., Any]) -> None:
    call: Any = Call.new(give)
    call.set_timeout(1000)
    gone = refer(call)
    run(call)
    del call
    until(gone)


def test_a_scope_that_was_left_is_not_kept_by_its_deadline() -> None:
    with cancel_sync_after(1000) as scope:
        pass
    gone = refer(scope)
    del scope
    assert gone()


def test_a_call_whose_thread_was_blocked_is_let_go_when_the_thread_returns() -> None:
    call: Any = Call.new(blocked_in_c, 0.8)
    gone = refer(call)
    call.set_timeout(0.05)
    from_sync.call_soon_in_new_thread(call)
    with pytest.raises(TimeoutError):
        call.result()
    del call
    until(gone)


@pytest.mark.parametrize("fn", [give, give_async])
def test_the_waiting_functions_keep_neither_call_nor_result(fn: Callable[..., Any]) -> None:
    def gone_after(wait: Callable[..., Any]) -> Callable[[], bool]:
        return refer(wait(Call.new(fn, Thing())))

    for wait in (
        from_sync.wait_for_call_in_loop_thread,
        from_sync.wait_for_call_in_new_thread,
        from_sync.call_in_loop_thread,
        from_sync.call_in_new_thread,
    ):
        until(gone_after(wait))
    for wait_async in (
        from_async.wait_for_call_in_loop_thread,
        from_async.wait_for_call_in_new_thread,
        from_async.call_in_loop_thread,
        from_async.call_in_new_thread,
    ):
        until(gone_after(lambda call, wait_async=wait_async: asyncio.run(wait_async(call))))


def test_a_task_that_a_call_left_behind_does_not_keep_its_result(loop_thread: EventLoopThread) -> None:
    async def work() -> Thing:
        work.task = asyncio.create_task(asyncio.sleep(PATIENCE))  # type: ignore[attr-defined]
        return Thing()

    call: Any = loop_thread.submit(Call.new(work))
    gone = refer(call.result())
    del call
    until(gone)
    loop_thread.loop.call_soon_threadsafe(work.task.cancel)  # type: ignore[attr-defined]


def test_what_was_sent_back_is_let_go_while_the_wait_goes_on() -> None:
    gone: Any = None
    freed = []

    async def work() -> None:
        nonlocal gone
        back = from_async.call_soon_in_waiting_thread(Thing)
        gone = refer(await back)
        del back
        # Something else goes through the waiting thread, so that it is done with the first.
        await from_async.call_soon_in_waiting_thread(int)
        freed.append(gone())

    from_sync.wait_for_call_in_loop_thread(work)
    from_sync.wait_for_call_in_loop_thread(work)
    assert freed == [True, True]


def test_a_wait_that_ran_out_of_time_leaves_nothing_at_the_call() -> None:
    gate = Gate()
    call = from_sync.call_soon_in_new_thread(gate.pass_through)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            call.result(0)
    assert not call._callbacks
    gate.set()
    call.result()
