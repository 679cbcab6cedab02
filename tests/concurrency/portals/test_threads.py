"""Threads that run calls: how they start, how they end, and what becomes of calls that come too late."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    Portal,
    SyncWaiter,
    WorkerThread,
    cancel_sync_after,
    from_sync,
    get_global_loop,
    get_worker_thread,
    in_global_loop,
    shutdown,
    wait_for_global_loop_exit,
)
from ipyportal.concurrency.calls.tasks import start_on_loop
from ipyportal.concurrency.cancellation.clock import clock
from ipyportal.concurrency.portals import get_thread_pool, pool, shared
from tests.concurrency.helpers import PATIENCE, Gate, python, soon, spin, until

both = pytest.mark.parametrize("make", [WorkerThread, EventLoopThread])
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


def at_once(number: int, fn: Callable[[], Any]) -> list[Any]:
    """The results of `fn` in several threads that call it at the same moment."""
    barrier = threading.Barrier(number, timeout=10)
    results: list[Any] = []

    def run() -> None:
        barrier.wait(PATIENCE)
        results.append(fn())

    those = [threading.Thread(target=run) for _ in range(number)]
    for one in those:
        one.start()
    for one in those:
        one.join()
    assert len(results) == number
    return results


# --- starting --------------------------------------------------------------------------------------------------------


@both
def test_a_thread_starts_with_its_first_call(make: type[Any]) -> None:
    portal = make(name="mine")
    assert portal.thread is None
    assert started_on(portal, threading.current_thread).result() is portal.thread
    assert portal.thread.name == "mine"
    assert portal.thread.daemon
    portal.shutdown()


@both
def test_submitting_from_ten_threads_at_once_starts_one_thread(make: type[Any], often: None) -> None:
    with concurrent.futures.ThreadPoolExecutor(1):
        portal = make()
        ran_in = at_once(10, lambda: started_on(portal, threading.current_thread).result())
        assert set(ran_in) == {portal.thread}
        portal.shutdown()


def test_asking_for_the_global_loop_from_ten_threads_at_once_starts_one_thread(often: None) -> None:
    before = threading.active_count()
    portals = at_once(10, get_global_loop)
    assert len(set(portals)) == 1
    assert threading.active_count() == before + 1


def test_ten_threads_that_set_the_first_deadline_at_once_start_one_clock(often: None) -> None:
    def scope() -> None:
        with cancel_sync_after(PATIENCE):
            pass

    before = set(threading.enumerate())
    at_once(10, scope)
    assert [one.name for one in set(threading.enumerate()) - before] == ["ipyportal-clock"]


def test_an_error_of_the_loop_factory_reaches_the_starter_and_it_can_be_tried_again() -> None:
    errors: list[BaseException] = [ValueError("no loop today"), KeyboardInterrupt()]

    def factory() -> asyncio.AbstractEventLoop:
        if errors:
            raise errors.pop(0)
        return asyncio.new_event_loop()

    portal = EventLoopThread(loop_factory=factory)
    with pytest.raises(ValueError, match="no loop today"):
        portal.start()
    call = Call.new(lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        portal.submit(call)
    assert portal.submit(call).result() == 1
    portal.shutdown()


def test_the_loop_is_the_factorys() -> None:
    made = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    with EventLoopThread(loop_factory=factory) as portal:
        assert started_on(portal, asyncio.get_running_loop).result() is made[0]
        assert portal.loop is made[0]
    assert made[0].is_closed()


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="there is none")
def test_a_loop_thread_does_without_an_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    with EventLoopThread() as portal:
        assert started_on(portal, asyncio.sleep, 0.001, "slept").result() == "slept"


class WithoutReaders(asyncio.SelectorEventLoop):
    """As the loops of Windows are."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError


def test_a_loop_thread_does_without_readers() -> None:
    with EventLoopThread(loop_factory=WithoutReaders) as portal:
        assert started_on(portal, asyncio.sleep, 0.001, "slept").result() == "slept"


def test_uvloop_is_a_loop_factory(uvloop: Any) -> None:

    async def where() -> str:
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop()).__module__

    with EventLoopThread(loop_factory=uvloop.new_event_loop) as portal:
        assert started_on(portal, where).result() == "uvloop"
        call = started_on(portal, asyncio.sleep, PATIENCE)
        call.cancel()
        with soon(), pytest.raises(concurrent.futures.CancelledError):
            call.result()

        def nested() -> str:
            return from_sync.call_in_new_thread(lambda: started_on(portal, where).result())

        assert started_on(portal, nested).result(PATIENCE) == "uvloop"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_a_loop_thread_with_eager_tasks_runs_calls_and_ends() -> None:
    def factory() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    portal = EventLoopThread(loop_factory=factory)
    assert started_on(portal, lambda: 1).result() == 1
    assert started_on(portal, asyncio.sleep, 0.001, 2).result() == 2
    left = started_on(portal, asyncio.sleep, PATIENCE)
    assert portal.shutdown(cancel=True, timeout=3)
    assert left.cancelled()


# --- what runs there -------------------------------------------------------------------------------------------------


def test_a_worker_runs_one_call_after_the_other(worker: WorkerThread) -> None:
    order: list[int] = []
    calls = [started_on(worker, order.append, number) for number in range(100)]
    calls[-1].result()
    assert order == list(range(100))


def test_a_loop_thread_begins_calls_in_order_and_runs_them_concurrently(
    loop_thread: EventLoopThread,
) -> None:
    order: list[int] = []

    async def main() -> None:
        barrier = asyncio.Barrier(100)

        async def meet(number: int) -> None:
            order.append(number)
            await barrier.wait()

        calls = [started_on(loop_thread, meet, number) for number in range(100)]
        await asyncio.gather(*calls)

    started_on(loop_thread, main).result(PATIENCE)
    assert order == list(range(100))


def test_a_call_in_a_loop_of_a_worker_leaves_no_task_behind(worker: WorkerThread) -> None:
    ended = []

    async def linger() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.append(True)

    async def work() -> None:
        work.task = asyncio.create_task(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    started_on(worker, work).result()
    started_on(worker, lambda: None).result()
    assert ended == [True]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_task_that_a_call_leaves_behind_cannot_end_the_worker(
    worker: WorkerThread, reported: list[Any], error: type[BaseException]
) -> None:
    async def linger() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            raise error

    async def work() -> int:
        work.task = asyncio.create_task(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return 1

    assert started_on(worker, work).result() == 1
    assert started_on(worker, lambda: 2).result(PATIENCE) == 2
    del work.task  # type: ignore[attr-defined]
    assert [report.exc_type for report in reported] == [error]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_task_of_a_call_cannot_end_the_loop_thread_and_the_calls_of_others(
    loop_thread: EventLoopThread, error: type[BaseException]
) -> None:
    async def child() -> None:
        await asyncio.sleep(0)
        raise error("told")

    async def work() -> None:
        await asyncio.gather(child(), asyncio.sleep(0))

    gate = Gate()
    other = started_on(loop_thread, asyncio.to_thread, gate.pass_through)
    with pytest.raises(error, match="told"):
        started_on(loop_thread, work).result(PATIENCE)
    gate.set()
    assert other.result(PATIENCE) is None
    assert started_on(loop_thread, threading.current_thread).result(PATIENCE) is loop_thread.thread


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_call_that_comes_when_a_task_leaves_the_loop_is_no_error_of_the_loop(
    loop_thread: EventLoopThread, error: type[BaseException]
) -> None:
    # The loop finds what wakes it behind the task in one turn. The task leaves the turn, and the loop finds it again.
    errors: list[dict[str, Any]] = []

    async def child() -> None:
        raise error

    second: list[Call[Any]] = []

    def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: errors.append(context))
        loop.create_task(child()).add_done_callback(asyncio.Task.exception)
        thread = threading.Thread(target=lambda: second.append(started_on(loop_thread, threading.current_thread)))
        thread.start()
        thread.join()  # and the loop waits, too: a wait of ours would let it go on

    started_on(loop_thread, work).result(PATIENCE)
    assert second[0].result(PATIENCE) is loop_thread.thread
    assert started_on(loop_thread, asyncio.sleep, 0, "a turn later").result(PATIENCE) == "a turn later"
    assert errors == []


def test_workers_for_short_calls_are_reused() -> None:
    before = set(threading.enumerate())
    used = {from_sync.call_in_new_thread(threading.current_thread) for _ in range(100)}
    assert len(set(threading.enumerate()) - before) <= 2
    assert len(used) <= 2


def test_calls_in_new_threads_run_beside_each_other() -> None:
    barrier = threading.Barrier(20, timeout=10)
    calls = [from_sync.call_soon_in_new_thread(lambda: barrier.wait(PATIENCE)) for _ in range(20)]
    assert sorted(call.result() for call in calls) == list(range(20))


def test_a_thread_that_was_blocked_when_its_call_ended_is_lent_again() -> None:
    # The race: the call ends by the clock, while its thread cannot be interrupted; only later is the thread free.
    gate = Gate()
    hidden = gate.pass_through
    call = from_sync.call_soon_in_new_thread(lambda: (time.sleep(1.0), hidden()))
    until(call.running)
    lent = call.portal
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError, match="could not be interrupted"):
        call.result()
    gate.set()
    until(lambda: lent in get_thread_pool().idle)


@pytest.fixture
def left_behind() -> Iterator[Callable[[], None]]:
    """What Playwright's sync API does: it leaves its loop behind as the one that runs, though it stands still."""
    loop = asyncio.new_event_loop()
    yield lambda: asyncio._set_running_loop(loop)
    loop.close()


def test_an_asynchronous_call_runs_in_a_worker_where_another_call_left_a_loop_behind(
    worker: WorkerThread, left_behind: Callable[[], None]
) -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    started_on(worker, left_behind).result()
    there = started_on(worker, asyncio.get_running_loop).result()
    assert started_on(worker, double, 4).result(PATIENCE) == 8
    assert started_on(worker, asyncio.get_running_loop).result() is there


def test_a_thread_where_a_call_left_a_loop_behind_is_not_lent_again(left_behind: Callable[[], None]) -> None:
    first = from_sync.call_in_new_thread(lambda: (left_behind(), threading.current_thread())[1])
    first.join(PATIENCE)
    assert from_sync.call_in_new_thread(lambda: asyncio._get_running_loop()) is None


def test_an_idle_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.ThreadPool, "IDLE", 0.01)
    thread = from_sync.call_in_new_thread(threading.current_thread)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert from_sync.call_in_new_thread(lambda: 1) == 1


def test_no_call_is_lost_to_a_thread_that_is_about_to_end(monkeypatch: pytest.MonkeyPatch, often: None) -> None:
    # The race: a thread is lent in the moment in which it has been idle for long enough to end.
    monkeypatch.setattr(pool.ThreadPool, "IDLE", 0.001)
    for number in range(100):
        assert from_sync.call_soon_in_new_thread(lambda: 1).result(PATIENCE) == 1
        time.sleep(0.0009 + number % 5 * 0.0001)


# --- shutting down ---------------------------------------------------------------------------------------------------


@both
def test_shutting_down_waits_for_what_was_submitted(make: type[Any]) -> None:
    portal = make()
    gate = Gate()
    blocker = started_on(portal, gate.pass_through)
    queued = [started_on(portal, asyncio.sleep, 0, number) for number in range(5)]
    assert not portal.shutdown(timeout=0.01)
    gate.set()
    assert portal.shutdown()
    assert blocker.done()
    assert [call.result(0) for call in queued] == list(range(5))
    assert not portal.thread.is_alive()


@both
def test_shutting_down_may_cancel_what_was_submitted(make: type[Any]) -> None:
    portal = make()
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(60)

    running = started_on(portal, work)
    begun.pass_through()
    queued = started_on(portal, asyncio.sleep, PATIENCE)
    with soon():
        assert portal.shutdown(cancel=True)
    assert running.cancelled()
    assert queued.cancelled()


@both
def test_a_call_that_is_cancelled_by_the_shutdown_before_it_began_keeps_no_thread(make: type[Any]) -> None:
    # The race: the shutdown comes while calls are in the inbox, so that they are cancelled before their first step.
    portal = make()
    begun, gate = Gate(), Gate()

    def work() -> None:
        begun.set()
        with cancel_sync_after(None):
            gate.pass_through()

    started_on(portal, work)
    begun.pass_through()
    queued = [started_on(portal, asyncio.sleep, PATIENCE) for _ in range(3)]
    portal.shutdown(cancel=True, timeout=0)
    gate.set()
    with soon():
        assert portal.shutdown(timeout=PATIENCE)
    assert all(call.cancelled() for call in queued)


@both
def test_a_patient_shutdown_can_lose_its_patience(make: type[Any]) -> None:
    portal = make()
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(60)

    call = started_on(portal, work)
    begun.pass_through()
    assert not portal.shutdown(timeout=0.01)
    with soon():
        assert portal.shutdown(cancel=True)
    assert call.cancelled()


@both
def test_shutting_down_twice_is_no_error(make: type[Any]) -> None:
    portal = make().start()
    assert portal.shutdown()
    assert portal.shutdown(cancel=True)


@both
def test_submitting_after_the_shutdown_says_which_thread_was_shut_down(make: type[Any]) -> None:
    for started in True, False:
        portal = make(name="the-one")
        if started:
            portal.start()
        portal.shutdown()
        call = Call.new(lambda: 1)
        with pytest.raises(RuntimeError, match=f"{make.__name__} 'the-one' was shut down"):
            portal.submit(call)
        with pytest.raises(RuntimeError, match="was shut down"):
            portal.start()
        assert "shut down" in repr(portal)
        with WorkerThread() as other:
            assert other.submit(call).result() == 1  # it can still go elsewhere


@both
def test_leaving_the_context_waits(make: type[Any]) -> None:
    with make() as portal:
        call = started_on(portal, asyncio.sleep, 0.05, "done")
    assert call.result(0) == "done"
    assert not portal.thread.is_alive()


@both
def test_leaving_the_context_by_an_exception_cancels(make: type[Any]) -> None:
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(60)

    portal = make()

    def leave_by_an_exception() -> None:
        with portal:
            calls.append(started_on(portal, work))
            begun.pass_through()
            raise ZeroDivisionError

    calls: list[Call[Any]] = []
    with soon(), pytest.raises(ZeroDivisionError):
        leave_by_an_exception()
    [call] = calls
    assert call.cancelled()
    assert not portal.thread.is_alive()


@both
def test_run_once_takes_one_call_and_ends(make: type[Any]) -> None:
    portal = make(name="once", run_once=True)
    gate = Gate()
    call = started_on(portal, gate.pass_through)
    with pytest.raises(RuntimeError, match="'once' was shut down"):
        started_on(portal, lambda: 2)
    gate.set()
    call.result()
    portal.thread.join(PATIENCE)
    assert not portal.thread.is_alive()


@both
def test_run_once_takes_one_call_of_four_threads_that_submit_at_once(make: type[Any], often: None) -> None:
    # The race: two threads submit before either has closed the portal.
    for _ in range(50):
        portal = make(run_once=True)
        barrier = threading.Barrier(4)
        taken: list[Call[int]] = []

        def submit(portal: Any, barrier: threading.Barrier, taken: list[Call[int]]) -> None:
            barrier.wait(PATIENCE)
            with contextlib.suppress(RuntimeError):
                taken.append(started_on(portal, int))

        threads = [threading.Thread(target=submit, args=(portal, barrier, taken)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        [call] = taken
        assert call.result(PATIENCE) == 0
        portal.thread.join(PATIENCE)
        assert not portal.thread.is_alive()


@both
@pytest.mark.parametrize("through", ["callback", "future"])
def test_a_deadline_in_a_queue_is_kept_though_nobody_waits_through_the_engine(make: type[Any], through: str) -> None:
    gate, told = Gate(), Gate()
    with make() as portal:
        held = started_on(portal, gate.wait, PATIENCE)  # blocks the loop, too
        queued = Call.new(lambda: 1)
        queued.set_timeout(0.05)
        (queued if through == "callback" else queued.future).add_done_callback(lambda _: told.set())
        portal.submit(queued)
        with soon():
            told.pass_through()
        assert queued.timedout()
        gate.set()
        assert held.result(PATIENCE)
        assert started_on(portal, lambda: 2).result(PATIENCE) == 2


@both
def test_a_call_that_was_refused_has_no_deadline_any_more(make: type[Any]) -> None:
    with make() as over:
        pass
    call = Call.new(lambda: 1)
    call.set_timeout(0.2)
    with pytest.raises(RuntimeError, match="was shut down"):
        over.submit(call)
    assert call._timer is None
    assert not call.done()
    assert started_on(get_global_loop(), call.run).result(PATIENCE) is None
    assert call.result() == 1


def test_who_is_told_of_time_outs_is_told_in_one_thread_unless_a_callback_is_slow(reported: list[Any]) -> None:
    gate, all_told = Gate(), Gate()
    names: list[threading.Thread] = []

    def tell(number: int) -> None:
        names.append(threading.current_thread())
        if number == 49:
            all_told.set()

    def tell_of(fn: Callable[[], object]) -> None:  # as a deadline does
        clock.call_at(time.monotonic(), lambda: clock.elsewhere(fn))

    for number in range(50):
        tell_of(functools.partial(tell, number))
    all_told.pass_through()
    # A machine that stands still for longer than a callback may looks like a slow callback.
    assert len(set(names)) < 10
    # One that waits holds the others up for a moment only, and one that fails does not.
    told = Gate()
    tell_of(gate.pass_through)
    tell_of(functools.partial(int, "no number"))
    tell_of(told.set)
    with soon():
        told.pass_through()
    gate.set()
    assert [type(one.exc_value) for one in reported] == [ValueError]


@pytest.mark.parametrize("stops", ["before it is told", "while it is told"])
def test_who_tells_of_time_outs_does_not_start_the_clock_anew(stops: str) -> None:
    # The race: the engine is shut down between a deadline and the callbacks of its call, or in the middle of these.
    # A clock that was started then would be nobody's to end.
    class Nowhere(Portal):
        name = "nowhere"

        def submit(self, call: Call[Any]) -> Call[Any]:
            self._claim(call)
            return call

    begun, gate = Gate(), Gate()
    for _ in range(20):
        begun.clear()
        gate.clear()
        call = Call.new(lambda: None)
        call.set_timeout(0)
        call.add_done_callback(lambda _: (begun.set(), gate.pass_through()))
        Nowhere().submit(call)
        if stops == "while it is told":
            begun.pass_through()
        else:
            until(call.done)
        shutdown()
        gate.set()
        assert call.timedout()
        for name in "ipyportal-callbacks", "ipyportal-clock":
            until(lambda name=name: name not in [thread.name for thread in threading.enumerate()])


@both
def test_a_call_may_shut_its_own_thread_down(make: type[Any]) -> None:
    portal = make()
    with soon():
        started_on(portal, portal.shutdown).result()
        assert portal.shutdown()


@both
@pytest.mark.parametrize("cancel", [False, True])
def test_submitting_while_it_shuts_down_loses_no_call(make: type[Any], cancel: bool, often: None) -> None:
    # The race: calls come before, while and after the thread stops to take them. Each is refused or ends.
    for _ in range(15):
        portal = make().start()
        accepted: list[Call[Any]] = []
        refused: list[Call[Any]] = []
        barrier = threading.Barrier(4, timeout=10)

        def submit(
            portal: Any = portal,
            accepted: list[Call[Any]] = accepted,
            refused: list[Call[Any]] = refused,
            barrier: threading.Barrier = barrier,
        ) -> None:
            barrier.wait(PATIENCE)
            for _ in range(15):
                call = Call.new(lambda: 1)
                try:
                    portal.submit(call)
                except RuntimeError as exc:
                    assert "was shut down" in str(exc)  # noqa: PT017
                    refused.append(call)
                else:
                    accepted.append(call)

        those = [threading.Thread(target=submit) for _ in range(3)]
        for one in those:
            one.start()
        barrier.wait(PATIENCE)
        assert portal.shutdown(cancel=cancel, timeout=PATIENCE)
        for one in those:
            one.join()
        assert len(accepted) + len(refused) == 45
        for call in accepted:
            try:
                assert call.result(PATIENCE) == 1
            except concurrent.futures.CancelledError:
                assert call.cancelled()
        assert not any(call.done() for call in refused)


def test_a_call_that_comes_when_the_loop_has_just_ended_is_refused() -> None:
    # The race: `submit` saw the thread running, and the thread ended before the call was in its inbox.
    portal = EventLoopThread().start()
    adopt = portal._claim

    def shut_down_first(call: Call[Any]) -> None:
        portal.shutdown()
        adopt(call)

    portal._claim = shut_down_first  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="was shut down"):
        portal.submit(Call.new(lambda: 1))


def test_a_call_that_is_taken_back_while_the_loop_starts_others_leaves_nothing_to_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The race: the loop has counted its calls, and a `submit` that saw the shutdown takes one of them back.
    errors: list[Any] = []
    back = Call.new(lambda: 1)

    def start(call: Call[Any], *args: Any, **kwargs: Any) -> None:
        if back in portal._inbox:
            portal._inbox.remove(back)
        start_on_loop(call, *args, **kwargs)

    with EventLoopThread() as portal:
        portal.loop.set_exception_handler(lambda loop, context: errors.append(context))
        counted = threading.Event()
        held = started_on(portal, counted.wait, PATIENCE)
        monkeypatch.setattr("ipyportal.concurrency.portals.loops.start_on_loop", start)
        first = started_on(portal, lambda: 2)
        portal.submit(back)
        counted.set()
        assert held.result(PATIENCE)
        assert first.result(PATIENCE) == 2
        assert started_on(portal, lambda: 3).result(PATIENCE) == 3
    assert not back.done()
    assert not errors


def test_a_call_that_comes_while_the_loop_is_being_closed_ends(reported: list[Any]) -> None:
    # The race: the loop has served its last call, and is being closed, which runs it for some more steps. A call that
    # wakes it then must not become a task that nobody runs any more.
    portal = EventLoopThread()
    late: list[Call[Any]] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            call = Call.new(asyncio.sleep, PATIENCE)
            portal._claim(call)
            portal._inbox.append(call)  # as `submit` does when it saw the thread running
            portal.loop.call_soon_threadsafe(portal._drain)
            late.append(call)
            await asyncio.sleep(0)

    async def work() -> None:
        work.task = asyncio.create_task(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    started_on(portal, work).result()
    assert portal.shutdown(timeout=PATIENCE)
    with pytest.raises(concurrent.futures.CancelledError):
        late[0].result(PATIENCE)


def test_shutdown_calls_run_on_the_loop_before_it_ends_the_last_added_first() -> None:
    portal = EventLoopThread()
    order: list[Any] = []

    async def at_the_end(number: int) -> None:
        await asyncio.sleep(0)
        order.append((number, asyncio.get_running_loop()))

    first = portal.add_shutdown_call(Call.new(at_the_end, 1))
    loop = portal.loop
    portal.add_shutdown_call(Call.new(at_the_end, 2))
    started_on(portal, at_the_end, 0)
    portal.shutdown()
    assert order == [(0, loop), (2, loop), (1, loop)]
    assert first.done()


def test_a_shutdown_call_that_fails_keeps_none_of_the_others_from_running() -> None:
    portal = EventLoopThread().start()
    last = portal.add_shutdown_call(Call.new(lambda: "ran"))
    failing = portal.add_shutdown_call(Call.new(lambda: 1 / 0))
    portal.shutdown()
    assert last.result(0) == "ran"
    assert isinstance(failing.exception(0), ZeroDivisionError)


def test_a_shutdown_call_that_is_added_too_late_is_refused() -> None:
    portal = EventLoopThread().start()
    portal.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        portal.add_shutdown_call(Call.new(lambda: 1))


def test_shutdown_calls_of_a_thread_that_never_started_are_cancelled() -> None:
    portal = EventLoopThread()
    call = portal.add_shutdown_call(Call.new(lambda: 1))
    portal.shutdown()
    assert call.cancelled()


# --- the global loop -------------------------------------------------------------------------------------------------


def test_the_global_loop_is_one_and_knows_itself() -> None:
    assert not in_global_loop()
    assert get_global_loop() is get_global_loop()
    assert from_sync.call_in_loop_thread(in_global_loop)
    assert from_sync.call_in_loop_thread(get_global_loop) is get_global_loop()


def test_the_global_loop_is_rebuilt_after_its_exit_was_waited_for() -> None:
    first = get_global_loop()
    call = started_on(first, asyncio.sleep, PATIENCE)
    with soon():
        assert wait_for_global_loop_exit()
    assert call.cancelled()
    assert first.thread is not None
    assert not first.thread.is_alive()
    assert from_sync.call_in_loop_thread(lambda: 1) == 1
    assert get_global_loop() is not first


def test_a_caller_that_is_cancelled_while_it_starts_the_global_loop_leaves_one_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The race: the request comes when the thread runs and its starter has not noted it yet. Nobody would end it.
    def make_loop() -> asyncio.AbstractEventLoop:
        call.cancel()
        return asyncio.new_event_loop()

    monkeypatch.setattr(shared, "EventLoopThread", lambda name: EventLoopThread(name, loop_factory=make_loop))
    call = Call.new(get_global_loop)
    from_sync.call_soon_in_new_thread(call)
    concurrent.futures.wait([call.future], PATIENCE)
    assert [one.name for one in threading.enumerate()].count("ipyportal-loop") == 1
    shutdown()
    assert [one.name for one in threading.enumerate()].count("ipyportal-loop") == 0


def test_the_global_loop_is_rebuilt_after_its_shutdown() -> None:
    first = get_global_loop()
    first.shutdown()
    assert from_sync.call_in_loop_thread(lambda: 1) == 1
    assert get_global_loop() is not first


def test_the_global_loop_is_rebuilt_after_it_died_and_its_calls_end(died: list[BaseException]) -> None:
    first = get_global_loop()
    waiting = from_sync.call_soon_in_loop_thread(lambda: asyncio.sleep(PATIENCE))
    until(waiting.running)
    first.loop.call_soon_threadsafe(lambda: asyncio.get_running_loop().stop())
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    assert first.thread is not None
    first.thread.join(PATIENCE)
    assert "stopped before" in str(died[0])
    assert from_sync.call_in_loop_thread(lambda: 1) == 1
    assert get_global_loop() is not first


def test_a_call_that_is_queued_when_the_loop_dies_ends(died: list[BaseException]) -> None:
    portal = EventLoopThread().start()
    gate = Gate()

    def stop() -> None:
        gate.pass_through()
        asyncio.get_running_loop().stop()

    started_on(portal, stop)
    queued = [started_on(portal, asyncio.sleep, PATIENCE) for _ in range(3)]
    gate.set()
    for call in queued:
        with pytest.raises(concurrent.futures.CancelledError):
            call.result(PATIENCE)
    assert portal.thread is not None
    portal.thread.join(PATIENCE)
    assert len(died) == 1


def test_the_global_loops_own_thread_cannot_wait_for_its_end() -> None:
    with pytest.raises(RuntimeError, match="own thread cannot wait"):
        from_sync.call_in_loop_thread(wait_for_global_loop_exit)


def test_waiting_for_the_exit_of_no_loop_is_no_error() -> None:
    assert wait_for_global_loop_exit()


def test_shutting_the_engine_down_cancels_what_runs_and_it_starts_anew() -> None:
    on_loop = from_sync.call_soon_in_loop_thread(lambda: asyncio.sleep(PATIENCE))
    on_thread = from_sync.call_soon_in_new_thread(spin)
    until(on_loop.running)
    until(on_thread.running)
    before = set(threading.enumerate())
    with soon():
        shutdown()
    assert on_loop.cancelled()
    assert on_thread.cancelled()
    assert not any(one.name.startswith("ipyportal") for one in threading.enumerate())
    assert from_sync.call_in_loop_thread(lambda: 1) == 1
    assert from_sync.call_in_new_thread(lambda: 2) == 2
    assert set(threading.enumerate()).isdisjoint(one for one in before if one.name.startswith("ipyportal"))


def test_a_deadline_that_is_set_while_the_clock_is_stopped_holds_and_the_stop_ends(often: None) -> None:
    # The race: a deadline starts the clock anew before the old clock's thread has seen that it shall end.
    for _ in range(100):
        fired = Gate()
        clock.cancel(clock.call_at(time.monotonic() + PATIENCE, fired.set))
        barrier = threading.Barrier(2, timeout=10)

        def stop(barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            clock.stop()

        stopper = threading.Thread(target=stop)
        stopper.start()
        barrier.wait(PATIENCE)
        timer = clock.call_at(time.monotonic() + PATIENCE, fired.set)
        stopper.join(PATIENCE)
        assert not stopper.is_alive()
        assert sum(one.name == "ipyportal-clock" for one in threading.enumerate()) <= 1
        clock.cancel(timer)
        clock.stop()
        clock.call_at(time.monotonic(), fired.set)
        fired.pass_through()


def test_the_clock_that_could_not_be_started_is_started_by_the_next_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fired = Gate()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            clock.call_at(time.monotonic(), fired.set)
    clock.call_at(time.monotonic(), fired.set)
    fired.pass_through()


def test_a_call_whose_deadline_cannot_be_kept_fails_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, worker: WorkerThread
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    begun = Gate()
    call = Call.new(begun.set)
    call.set_timeout(PATIENCE)
    with soon(), pytest.raises(RuntimeError, match="can't start new thread"):
        worker.submit(call).result()
    assert not begun.is_set()


def test_an_asynchronous_call_whose_deadline_cannot_be_kept_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, loop_thread: EventLoopThread, reported: list[Any]
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    call = Call.new(asyncio.sleep, 0.01, "slept")
    call.set_timeout(PATIENCE)
    # Who waits keeps the time, too.
    assert SyncWaiter(call).wait(loop_thread).result() == "slept"
    assert "is not limited" in str(reported[0].err_msg)


# --- worker threads with names ---------------------------------------------------------------------------------------


def test_a_named_worker_is_the_same_thread_each_time() -> None:
    first, second = (started_on(get_worker_thread("db"), threading.current_thread).result() for _ in range(2))
    assert first is second
    assert first.name == "ipyportal-db"
    assert started_on(get_worker_thread("other"), threading.current_thread).result() is not first


def test_asking_for_a_named_worker_from_ten_threads_at_once_makes_one(often: None) -> None:
    assert len(set(at_once(10, lambda: get_worker_thread("db")))) == 1


def test_a_named_worker_that_was_shut_down_is_made_anew() -> None:
    begun = Gate()
    before = get_worker_thread("db")
    call = started_on(before, lambda: (begun.set(), spin()))
    begun.pass_through()
    shutdown()
    assert call.cancelled()
    after = get_worker_thread("db")
    assert after is not before
    assert started_on(after, int).result() == 0
    after.shutdown()
    assert started_on(get_worker_thread("db"), int).result() == 0


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (None, TypeError), (5, TypeError)])
def test_a_named_worker_needs_a_name(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="name"):
        get_worker_thread(name)


def test_a_call_in_a_new_thread_that_comes_in_the_middle_of_a_shutdown_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The race: the shutdown ends the threads that there are, and then this one is added. No later shutdown knows it.
    def make(pool: Any) -> Any:
        shutdown()
        return lent_thread(pool)

    lent_thread = pool.PooledThread
    monkeypatch.setattr(pool, "PooledThread", make)
    call = from_sync.call_soon_in_new_thread(lambda: asyncio.sleep(PATIENCE))
    with soon():
        concurrent.futures.wait([call.future], PATIENCE)
    assert call.cancelled()


@both
@pytest.mark.parametrize("blocked", [False, True], ids=["deadline", "grace"])
def test_shutting_down_what_is_shared_leaves_the_deadlines_of_other_threads(make: type[Any], blocked: bool) -> None:
    # The race: the clock, which is shared, is stopped between the setting of a deadline and its time.
    begun, gate = Gate(), Gate()

    def block() -> None:
        begun.set()
        gate.wait(PATIENCE)  # in C, where no request reaches it

    async def wait() -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    with make() as portal:
        call: Call[None] = Call.new(block if blocked else wait)
        if not blocked:
            call.set_timeout(0.2)
        portal.submit(call)
        begun.pass_through()
        if blocked:
            call.cancel()
        shutdown()
        with soon():
            concurrent.futures.wait([call.future], PATIENCE)
        assert call.cancelled() if blocked else call.timedout()
        gate.set()
    shutdown()
    until(lambda: clock._thread is None)


# --- forks and the end -----------------------------------------------------------------------------------------------


FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # a fork in a process with threads is what this is about
import asyncio
import errno
from ipyportal.concurrency import *

def check():
    {check}

{before}
pid = os.fork()
if not pid:
    try:
        check()
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
check()
"""

FORKED = {
    "the global loop": (
        "assert from_sync.call_in_loop_thread(lambda: asyncio.sleep(0, 5)) == 5",
        "from_sync.call_in_loop_thread(lambda: 1)",
    ),
    "new threads": (
        "assert from_sync.call_in_new_thread(lambda: 5) == 5",
        "from_sync.call_in_new_thread(lambda: 1)",
    ),
    "a loop thread": (
        "assert portal.submit(Call.new(asyncio.sleep, 0, 5)).result() == 5; portal.shutdown()",
        "portal = EventLoopThread(); portal.submit(Call.new(int)).result()",
    ),
    "a worker": (
        "assert portal.submit(Call.new(asyncio.sleep, 0, 5)).result() == 5; portal.shutdown()",
        "portal = WorkerThread(); portal.submit(Call.new(int)).result()",
    ),
    "the clock": (
        """
    call = Call.new(asyncio.sleep, 60)
    call.set_timeout(0.01)
    try:
        with cancel_sync_after(0.01):
            while True: pass
    except TimeoutError:
        pass
    call.run()
    assert call.timedout()""",
        "exec('with cancel_sync_after(60): pass')",
    ),
}


@needs_fork
@pytest.mark.parametrize("what", FORKED)
def test_a_forked_child_starts_anew(what: str) -> None:
    check, before = FORKED[what]
    ran = python(FORKING.format(check=check, before=before))
    assert (ran.returncode, ran.stderr) == (0, "")


FORKED_IN_FLIGHT = """
import asyncio, concurrent.futures, os, sys, threading, traceback, warnings
import concurrent.futures.thread  # now: while another thread imports it, a fork fails
warnings.simplefilter("ignore", DeprecationWarning)  # a fork in a process with threads is what this is about
from ipyportal.concurrency import *

gate, running, told = threading.Event(), threading.Event(), []

def blocks():
    running.set()
    return gate.wait()

async def waits():
    running.set()
    return await asyncio.to_thread(gate.wait)

portal = {portal}
submit = portal.submit if portal else from_sync.call_soon_in_new_thread
calls = [submit(create_call({fn})), submit(create_call(gate.wait))]  # the other waits behind it, or beside it
for call in calls:
    call.add_done_callback(told.append)
futures = [call.future for call in calls]
running.wait()

# The race: a thread that does not exist in the child holds their locks.
held, release = threading.Event(), threading.Event()
def hold():
    with calls[0]._lock, calls[1]._lock, futures[0]._condition, futures[1]._condition:
        held.set()
        release.wait()
holds = threading.Thread(target=hold)
holds.start()
held.wait()

parent = os.getpid()
if not (child := os.fork()):
    try:
        for call in calls:
            assert call.done() and call.cancelled() and not call.cancel()
            for take in call.result, lambda: asyncio.run(call.aresult()):
                try:
                    take()
                except (concurrent.futures.CancelledError, asyncio.CancelledError) as exc:
                    assert f"in flight in process {{parent}}" in str(exc), exc
                else:
                    raise AssertionError(take)
        concurrent.futures.wait([call.future for call in calls])
        assert not told
        assert from_sync.call_in_loop_thread(lambda: asyncio.sleep(0, 5)) == 5
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
release.set()
holds.join()
gate.set()
assert [future.result() for future in futures] == [True, True]
if portal:
    portal.shutdown()
shutdown()
assert sorted(map(id, told)) == sorted(map(id, calls))
"""


@needs_fork
@pytest.mark.parametrize("fn", ["blocks", "waits"])
@pytest.mark.parametrize(
    "portal",
    [
        "get_global_loop()",
        "EventLoopThread()",
        "WorkerThread()",
        "ExecutorPortal(concurrent.futures.ThreadPoolExecutor(1), owner=True)",
        "None",
    ],
)
def test_in_a_forked_child_the_calls_of_its_parent_are_over(portal: str, fn: str) -> None:
    ran = python(FORKED_IN_FLIGHT.format(portal=portal, fn=fn))
    assert (ran.returncode, ran.stderr) == (0, "")


FORKED_WHILE_TAKEN = """
import collections, os, queue, threading, warnings
from concurrent.futures import CancelledError
warnings.simplefilter("ignore", DeprecationWarning)
from ipyportal.concurrency import *

taken, release = threading.Event(), threading.Event()

def out_of_the_queue(call):
    if call is not None and not release.is_set():
        taken.set()
        release.wait()
    return call

class Queue:
    def __init__(self):
        self._queue = queue.SimpleQueue()
        self.put, self.empty, self.get_nowait = self._queue.put, self._queue.empty, self._queue.get_nowait
    def get(self):
        return out_of_the_queue(self._queue.get())

class Deque(collections.deque):
    def popleft(self):
        return out_of_the_queue(super().popleft())

portal = {portal}()
portal._inbox = {inbox}()
call = portal.submit(create_call(lambda: 5))
taken.wait()
if not (child := os.fork()):
    try:
        call.result()
    except CancelledError as exc:
        os._exit(7 if "goes on there" in str(exc) else 1)
release.set()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert call.result() == 5
portal.shutdown()
"""


@needs_fork
@pytest.mark.parametrize(("portal", "inbox"), [("WorkerThread", "Queue"), ("EventLoopThread", "Deque")])
def test_a_call_that_is_being_taken_from_the_queue_is_over_in_a_forked_child(portal: str, inbox: str) -> None:
    # The race: at the moment of the fork the call is in no queue any more, and the thread has not noted it yet.
    ran = python(FORKED_WHILE_TAKEN.format(portal=portal, inbox=inbox))
    assert (ran.returncode, ran.stderr) == (0, "")


FORKED_WHILE_MADE = """
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ipyportal.concurrency import *

children = []

class Forks({portal}):
    def _reset(self):
        if not children:
            children.append(os.fork())
        super()._reset()

assert from_sync.call_in_loop_thread(int) == 0
portal = Forks()
if not children[0]:
    signal.alarm(10)
    os._exit(7 if [from_sync.call_in_loop_thread(int), portal.submit(create_call(int)).result()] == [0, 0] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
"""


@needs_fork
@pytest.mark.parametrize("portal", ["WorkerThread", "EventLoopThread"])
def test_a_portal_that_is_being_made_does_not_keep_a_forked_child_from_starting_anew(portal: str) -> None:
    # The race: a thread forks while another is in the middle of making a portal.
    ran = python(FORKED_WHILE_MADE.format(portal=portal))
    assert (ran.returncode, ran.stderr) == (0, "")


FORKED_DESCRIPTORS = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ipyportal.concurrency import *

def files():
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")[:-1]}

before = files()
with EventLoopThread() as portal:
    for loop in portal, get_global_loop():
        loop.submit(create_call(int)).result()
    if not (child := os.fork()):
        os._exit(7 if files().items() <= before.items() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for loop in portal, get_global_loop():
        assert loop.submit(create_call(int)).result() == 0
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the descriptors of a process are listed on Linux alone")
def test_a_forked_child_keeps_no_descriptors_of_its_parents_loops() -> None:
    ran = python(FORKED_DESCRIPTORS)
    assert (ran.returncode, ran.stderr) == (0, "")


FORKING_CALL = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ipyportal.concurrency import *

own = []  # calls that run in the thread that forks
behind = []

def forks():
    own.append(current_call())
    behind.append(portal.submit(create_call(int)))
    if not (child := os.fork()):
        os._exit(7 if behind[0].cancelled() and all(call.running() for call in own) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def forks_async():
    return forks()

def forks_in_another():
    own.append(current_call())
    inner = create_call(forks)
    inner.run()
    return inner.result()

with {portal}() as portal:
    assert portal.submit(create_call({fn})).result() == 7
    assert behind[0].result() == 0
"""


@needs_fork
@pytest.mark.parametrize("fn", ["forks", "forks_async", "forks_in_another"])
@pytest.mark.parametrize("portal", ["EventLoopThread", "WorkerThread"])
def test_a_call_that_forks_goes_on_in_the_child_and_those_behind_it_do_not(portal: str, fn: str) -> None:
    ran = python(FORKING_CALL.format(portal=portal, fn=fn))
    assert (ran.returncode, ran.stderr) == (0, "")


@needs_fork
def test_a_child_that_was_forked_while_locks_were_held_has_locks_of_its_own() -> None:
    # The race: other threads hold the engine's locks at the moment of the fork, and do not exist in the child.
    ran = python(
        FORKING.format(
            check="assert from_sync.call_in_loop_thread(lambda: 5, timeout=30) == 5;"
            "exec('with cancel_sync_after(30): pass')",
            before="""
from ipyportal.concurrency.cancellation import clock, interruption
from ipyportal.concurrency.portals import shared
from_sync.call_in_loop_thread(lambda: 1)
held, release = threading.Event(), threading.Event()
with cancel_sync_after(30): pass
locks = [shared._globals_lock, clock.clock._lock, interruption.thread_state()._lock,
    get_global_loop()._lock]
def hold():
    from contextlib import ExitStack
    with ExitStack() as stack:
        for lock in locks: stack.enter_context(lock)
        held.set()
        release.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
os.register_at_fork(after_in_parent=release.set)
""",
        ),
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


AT_EXIT = """
import asyncio, threading, time
from ipyportal.concurrency import *

async def work():
    try:
        await asyncio.sleep(60)
    finally:
        print("clean-up", flush=True)

begun = threading.Event()
calls = [from_sync.call_soon_in_loop_thread(work), from_sync.call_soon_in_new_thread(lambda: (begun.set(), {block}))]
begun.wait()
while not calls[0].running(): time.sleep(0.001)
"""


@pytest.mark.parametrize("block", ["time.sleep(60)", "exec('while True: pass')", "asyncio.run(asyncio.sleep(60))"])
def test_the_interpreter_exits_though_calls_run_and_their_clean_up_runs(block: str) -> None:
    with soon(10):
        ran = python(AT_EXIT.format(block=block))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "clean-up\n", "")


@both
def test_the_interpreter_exits_though_a_thread_was_not_shut_down(make: type[Any]) -> None:
    with soon(10):
        ran = python(
            f"from ipyportal.concurrency import *\nprint({make.__name__}().submit(Call.new(lambda: 5)).result())"
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "5\n", "")


def test_a_thread_that_is_no_daemon_keeps_the_interpreter_until_its_call_is_over() -> None:
    ran = python(
        "import time\n"
        "from ipyportal.concurrency import *\n"
        "WorkerThread(daemon=False, run_once=True).submit(Call.new(lambda: (time.sleep(0.2), print(5))))"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "5\n", "")


def test_the_engine_imports_nothing_of_the_notebook() -> None:
    ran = python(
        """
        import sys
        import ipyportal.concurrency
        parts = ("IPython", "ipykernel", "tornado", "zmq", "jupyter_client", "ctypes", "ipyportal.notebook")
        print([name for name in sys.modules if name.startswith(parts)])
        """
    )
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
