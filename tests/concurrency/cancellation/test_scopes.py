"""Deadlines, cancel scopes and shields: what they end, when, and what they leave alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    CancelScope,
    EventLoopThread,
    SyncCancelScope,
    WorkerThread,
    cancel_async_after,
    cancel_async_at,
    cancel_sync_after,
    cancel_sync_at,
    from_async,
    from_sync,
    shield,
    suspend,
)
from ipyportal.concurrency.cancellation.interruption import thread_state
from tests.concurrency.helpers import PATIENCE, Gate, soon, spin, until
from tests.places import SUSPENDED

LONG = 30.0

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="the main thread can be interrupted in C by a signal alone"
)


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


def on_main(fn: Callable[[], Any]) -> Any:
    return fn()


def on_worker(fn: Callable[[], Any]) -> Any:
    with WorkerThread() as worker:
        return started_on(worker, fn).result()


def on_foreign_thread(fn: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def on_loop_thread(fn: Callable[[], Any]) -> Any:
    with EventLoopThread() as portal:
        return started_on(portal, fn).result()


everywhere = pytest.mark.parametrize("run", [on_main, on_worker, on_foreign_thread, on_loop_thread, *SUSPENDED])


# --- synchronous scopes ----------------------------------------------------------------------------------------------


@everywhere
def test_a_deadline_ends_a_tight_loop(run: Callable[..., Any]) -> None:
    def work() -> None:
        with cancel_sync_after(0.05) as scope:
            spin()
        assert scope.timedout()

    with soon(), pytest.raises(TimeoutError, match=r"timed out after 0\.05 s"):
        run(work)


@everywhere
def test_a_deadline_ends_a_wait_of_the_engine(run: Callable[..., Any]) -> None:
    begun: list[bool] = []
    cleaned: list[bool] = []

    async def other() -> None:
        begun.append(True)
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaned.append(True)

    def work() -> None:
        with cancel_sync_after(0.05):
            from_sync.wait_for_call_in_new_thread(other)

    with soon(), pytest.raises(TimeoutError):
        run(work)
    assert cleaned == begun  # on a slow machine it may not have begun in time


@everywhere
def test_a_deadline_ends_the_wait_for_a_result_and_not_the_call(run: Callable[..., Any]) -> None:
    gate = Gate()
    call = from_sync.call_soon_in_new_thread(gate.pass_through)

    def work() -> None:
        with cancel_sync_after(0.05):
            call.result()

    with soon(), pytest.raises(TimeoutError):
        run(work)
    assert not call.done()
    gate.set()
    call.result(PATIENCE)


@needs_signals
def test_a_deadline_ends_time_sleep_on_the_main_thread() -> None:
    with soon(), pytest.raises(TimeoutError), cancel_sync_after(0.05):
        time.sleep(LONG)


@needs_signals
def test_a_signal_that_comes_just_before_the_system_call_is_not_lost() -> None:
    # The race: the thread that cancels is woken by the sleeper's giving up the interpreter's lock, and sends its
    # signal before the sleeper has reached the system call.
    for _ in range(50):
        begun = Gate()

        def cancel(begun: Gate = begun) -> None:
            begun.pass_through()
            scope.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with soon():
            try:
                with cancel_sync_after(None) as scope:
                    begun.set()
                    time.sleep(LONG)
            except asyncio.CancelledError:
                pass
            thread.join()
        assert scope.cancelled()


@everywhere
def test_a_scope_can_be_cancelled_from_another_thread(run: Callable[..., Any]) -> None:
    scopes: list[SyncCancelScope] = []

    def work() -> None:
        with cancel_sync_after(None) as scope:
            scopes.append(scope)
            threading.Thread(target=scope.cancel).start()
            spin()

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        run(work)
    assert scopes[0].cancelled()
    assert not scopes[0].timedout()


@everywhere
def test_a_block_that_ends_in_time_is_neither_cancelled_nor_timed_out(run: Callable[..., Any]) -> None:
    def work() -> CancelScope:
        with cancel_sync_after(LONG) as scope:
            pass
        assert not scope.cancel()
        return scope

    scope = run(work)
    assert not scope.cancelled()
    assert not scope.timedout()


@everywhere
def test_an_exception_of_the_block_is_its_own(run: Callable[..., Any]) -> None:
    def work() -> None:
        with cancel_sync_after(LONG):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(work)


@everywhere
@pytest.mark.parametrize("first", ["outer", "inner"])
def test_nested_scopes_end_at_their_own_deadlines(run: Callable[..., Any], first: str) -> None:
    outer_at, inner_at = (0.05, LONG) if first == "outer" else (LONG, 0.05)

    def work() -> list[str]:
        seen = []
        try:
            with cancel_sync_after(outer_at) as outer:
                try:
                    with cancel_sync_after(inner_at) as inner:
                        spin()
                except TimeoutError:
                    seen.append("inner")
                except asyncio.CancelledError:
                    seen.append("passes inner")
                    raise
        except TimeoutError:
            seen.append("outer")
        assert (outer.timedout(), inner.timedout()) == (first == "outer", first == "inner")
        return seen

    with soon():
        assert run(work) == (["passes inner", "outer"] if first == "outer" else ["inner"])


@everywhere
def test_both_of_two_scopes_that_end_together_are_told(run: Callable[..., Any]) -> None:
    # The race: a thread has room for one interrupt, and both are sent before it looks.
    def work() -> list[str]:
        seen = []
        try:
            with cancel_sync_after(None) as outer:
                try:
                    with cancel_sync_after(None) as inner:
                        with shield():
                            outer.cancel()
                            inner.cancel()
                        seen.append("not told")
                except asyncio.CancelledError:
                    seen.append("inner")
                spin()
        except asyncio.CancelledError:
            seen.append("outer")
        assert inner.cancelled()
        assert outer.cancelled()
        return seen

    with soon():
        assert run(work) == ["inner", "outer"]


@everywhere
def test_a_clean_up_may_have_deadlines_of_its_own_and_is_not_interrupted_again(run: Callable[..., Any]) -> None:
    def work() -> None:
        with cancel_sync_after(0.01):
            try:
                spin()
            finally:
                with pytest.raises(TimeoutError), cancel_sync_after(0.01):
                    spin()
                time.sleep(0.05)  # longer than an interrupt that was not seen is sent again
                cleaned.append(True)

    cleaned: list[bool] = []
    with soon(), pytest.raises(TimeoutError):
        run(work)
    assert cleaned == [True]


@everywhere
def test_after_a_time_out_the_code_goes_on_undisturbed(run: Callable[..., Any]) -> None:
    def work() -> int:
        for _ in range(5):
            try:
                with cancel_sync_after(0.001):
                    spin()
            except TimeoutError:
                pass
        return sum(range(100_000))

    assert run(work) == sum(range(100_000))


def busy(until: float) -> None:
    # In a function of its own: in CPython 3.13.0 the jump back of such a loop is covered by no exception handler, so
    # what arrives there passes by the `with` around the loop. That goes for KeyboardInterrupt, too.
    while time.monotonic() < until:
        pass


@everywhere
def test_an_interrupt_never_hits_code_after_its_scope(run: Callable[..., Any]) -> None:
    # The race: the deadline comes at the very moment at which the block ends, some thousand times.
    def work() -> int:
        rest = random.Random(5)
        timeouts = rounds = 0
        while rounds < 400 or not timeouts:
            rounds += 1
            after = rest.random() * 0.0004
            until = time.monotonic() + after + rest.random() * 0.0001
            try:
                with cancel_sync_after(after):
                    busy(until)
            except TimeoutError:
                timeouts += 1
            # Here nothing must arrive: an exception would leave this function.
            for _ in range(30):
                pass
        assert thread_state().depth == (run in (on_worker, on_loop_thread))
        return timeouts

    assert run(work)


@everywhere
def test_a_cancel_never_hits_code_after_its_scope(run: Callable[..., Any]) -> None:
    # The race: another thread cancels while the block ends.
    def work() -> list[bool]:
        outcomes = []
        scope: SyncCancelScope | None = None
        over = threading.Event()

        def cancel() -> None:
            while not over.is_set():
                if scope is not None:
                    scope.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            for _ in range(300):
                try:
                    with cancel_sync_after(None) as scope:
                        for _ in range(3):
                            pass
                except asyncio.CancelledError:
                    pass
                outcomes.append(scope.cancelled())
            assert thread_state().depth == (run in (on_worker, on_loop_thread))
        finally:
            over.set()
            canceller.join()
        return outcomes

    assert len(run(work)) == 300


@everywhere
def test_an_interrupt_is_not_lost_in_a_finalizer(run: Callable[..., Any]) -> None:
    # The race: the interrupt comes while the interpreter runs a finalizer or the callback of a weak reference, where
    # exceptions are not raised to anybody.
    class Final:
        def __del__(self) -> None:
            linger()

    def linger() -> None:
        for _ in range(10):
            pass

    def work() -> None:
        things: weakref.WeakSet[Any] = weakref.WeakSet()
        with cancel_sync_after(0.002):
            for _ in range(1_000_000):
                things.add(Final())
                linger()

    for _ in range(3):
        with soon(), pytest.raises(TimeoutError):
            run(work)


@everywhere
def test_an_interrupt_does_not_end_the_thread_that_is_being_started(run: Callable[..., Any]) -> None:
    # The race: a thread is interrupted while it starts another, which has its identity for a moment. The new thread
    # would get the exception and end, and the old one wait for it for ever.
    def work() -> None:
        with cancel_sync_after(0.003):
            for _ in range(10_000):
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()
                busy(time.monotonic() + 0.0002)

    for _ in range(10):
        with soon(), pytest.raises(TimeoutError):
            run(work)


def test_a_thread_that_is_blocked_in_c_is_waited_for_no_longer_than_the_grace() -> None:
    call = Call.new(time.sleep, 1.5)
    call.set_timeout(0.05)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="could not be interrupted"):
        from_sync.call_in_new_thread(call)
    assert time.monotonic() - begin < 1.4
    assert call.timedout()


@needs_signals
@pytest.mark.parametrize("number", ["SIGALRM", "SIGURG", "SIGINT"])
def test_the_users_signal_handlers_are_the_same_afterwards(number: str) -> None:
    def mine(signum: int, frame: Any) -> None:
        heard.append(signum)

    heard: list[int] = []
    which = getattr(signal, number)
    before = signal.signal(which, mine)
    try:
        with pytest.raises(TimeoutError), cancel_sync_after(0.01):
            time.sleep(LONG)
        call = Call.new(time.sleep, LONG)
        call.set_timeout(0.01)
        call.run()
        assert call.timedout()
        assert signal.getsignal(which) is mine
        assert heard == []
        with cancel_sync_after(LONG):
            signal.raise_signal(which)
        assert heard == [which]
        signal.raise_signal(which)
        assert heard == [which, which]
    finally:
        signal.signal(which, before)


@needs_signals
def test_a_users_alarm_still_rings_inside_a_scope() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: heard.append(signum))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(TimeoutError), cancel_sync_after(0.1):
            time.sleep(LONG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == [signal.SIGALRM]


def test_a_hundred_time_outs_start_one_thread() -> None:
    before = set(threading.enumerate())
    for _ in range(100):
        with pytest.raises(TimeoutError), cancel_sync_after(0.0001):
            spin()
    with pytest.raises(TimeoutError):
        asyncio.run(sleep_within(cancel_async_after(0.001)))
    assert len(set(threading.enumerate()) - before) <= 1


def test_deadlines_that_are_not_reached_are_forgotten() -> None:
    from ipyportal.concurrency.cancellation.clock import clock

    for _ in range(2000):
        with cancel_sync_after(LONG):
            pass
    assert len(clock._heap) < 1000


def test_a_deadline_behind_a_cancelled_one_does_not_wake_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # With the cancelled one taken out when the clock comes by, the next would be the earliest again: so would be each.
    from ipyportal.concurrency.cancellation.clock import clock

    now = time.monotonic()
    clock.cancel(clock.call_at(now + LONG, spin))
    for _ in range(2):  # when the second is called, the clock has looked at what lies behind the first
        reached = Gate()
        clock.call_at(now, reached.set)
        reached.pass_through()
    woken: list[bool] = []
    monkeypatch.setattr(clock._changed, "notify", lambda: woken.append(True))
    clock.cancel(clock.call_at(now + LONG + 1, spin))
    assert woken == []


@pytest.mark.parametrize("make", [cancel_sync_after, cancel_async_after])
@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_a_time_that_is_none_is_refused(make: Callable[..., Any], seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(seconds)


@pytest.mark.parametrize("make", [cancel_sync_at, cancel_async_at])
@pytest.mark.parametrize(("deadline", "error"), [(float("nan"), ValueError), ("1", TypeError)])
def test_a_deadline_that_is_none_is_refused(make: Callable[..., Any], deadline: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(deadline)


@pytest.mark.parametrize("make", [cancel_sync_at, cancel_async_at, cancel_sync_after, cancel_async_after])
def test_an_infinite_deadline_is_none(make: Callable[..., Any]) -> None:
    assert make(float("inf")).deadline is None
    assert make(None).deadline is None


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("make", [cancel_sync_after, cancel_async_after])
def test_a_scope_is_entered_once(make: Callable[[float], CancelScope], inside: bool) -> None:
    async def main() -> None:
        scope = make(LONG)
        with scope:
            if inside:
                with pytest.raises(RuntimeError, match="entered once"), scope:
                    raise AssertionError
        with pytest.raises(RuntimeError, match="Make one for each block"), scope:
            raise AssertionError
        assert not scope.timedout()
        assert not scope.cancelled()

    asyncio.run(main())


def test_a_deadline_at_a_time_is_monotonic() -> None:
    deadline = time.monotonic() + 0.05
    with soon(), pytest.raises(TimeoutError, match="timed out$"), cancel_sync_at(deadline) as scope:
        spin()
    assert scope.deadline == deadline
    assert time.monotonic() >= deadline


@pytest.mark.parametrize("deadline", [0, -5, -0.5])
def test_a_deadline_that_has_passed_ends_the_block_at_once(deadline: float) -> None:
    with soon(), pytest.raises(TimeoutError), cancel_sync_at(deadline):
        spin()
    with soon(), pytest.raises(TimeoutError):
        asyncio.run(sleep_within(cancel_async_at(deadline)))


# --- asynchronous scopes ---------------------------------------------------------------------------------------------


async def sleep_within(scope: CancelScope) -> None:
    with scope:  # type: ignore[attr-defined]
        await asyncio.sleep(LONG)


def test_a_deadline_ends_an_await() -> None:
    scope = cancel_async_after(0.01)
    with soon(), pytest.raises(TimeoutError, match=r"timed out after 0\.01 s"):
        asyncio.run(sleep_within(scope))
    assert scope.timedout()
    assert not scope.cancelled()


def test_an_async_scope_can_be_cancelled_from_another_thread() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.CancelledError), cancel_async_after(None) as scope:
            threading.Thread(target=scope.cancel).start()
            await asyncio.sleep(LONG)
        assert scope.cancelled()
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        await asyncio.sleep(0)

    with soon():
        asyncio.run(main())


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_nested_async_scopes_end_at_their_own_deadlines(first: str) -> None:
    outer_at, inner_at = (0.01, LONG) if first == "outer" else (LONG, 0.01)

    async def main() -> list[str]:
        seen = []
        try:
            with cancel_async_after(outer_at) as outer:
                try:
                    with cancel_async_after(inner_at) as inner:
                        await asyncio.sleep(LONG)
                except TimeoutError:
                    seen.append("inner")
                except asyncio.CancelledError:
                    seen.append("passes inner")
                    raise
        except TimeoutError:
            seen.append("outer")
        assert (outer.timedout(), inner.timedout()) == (first == "outer", first == "inner")
        return seen

    with soon():
        assert asyncio.run(main()) == (["passes inner", "outer"] if first == "outer" else ["inner"])


def test_async_scopes_and_asyncio_timeouts_nest_both_ways() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError), cancel_async_after(0.01) as scope:
            async with asyncio.timeout(LONG):
                await asyncio.sleep(LONG)
        assert scope.timedout()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01) as timeout:
                with cancel_async_after(LONG) as scope:
                    await asyncio.sleep(LONG)
        assert timeout.expired()
        assert not scope.timedout()
        await asyncio.sleep(0)

    with soon():
        asyncio.run(main())


def test_a_task_that_others_cancel_inside_a_scope_is_cancelled() -> None:
    async def main() -> None:
        task = asyncio.create_task(sleep_within(scope))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not scope.cancelled()
        assert not scope.timedout()

    scope = cancel_async_after(LONG)
    asyncio.run(main())


def test_an_async_scope_outside_a_task_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match=r"no running event loop|use cancel_sync_after"):
        cancel_async_after(1).__enter__()

    async def main() -> str:
        answer = asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                cancel_async_after(1).__enter__()
            except RuntimeError as exc:
                answer.set_result(str(exc))

        asyncio.get_running_loop().call_soon(callback)
        return await answer

    assert "use cancel_sync_after" in asyncio.run(main())


def test_a_request_that_comes_when_the_async_block_has_ended_hits_nothing() -> None:
    # The race: the request is on its way through the loop when the block is left.
    async def main() -> None:
        with cancel_async_after(None) as scope:
            scope.cancel()
        assert not scope.cancelled()
        await asyncio.sleep(0.001)
        with cancel_async_after(None) as scope:
            pass
        assert not scope.cancel()
        await asyncio.sleep(0.001)

    asyncio.run(main())


# --- scopes around suspended code ------------------------------------------------------------------------------------


@pytest.fixture(params=["suspend", "wait", "result"])
def wait_suspended(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    """A wait that suspends its caller on a loop thread for long, in several ways."""
    gate = Gate()
    yield {
        "suspend": lambda: suspend(asyncio.sleep(LONG)),
        "wait": lambda: from_sync.wait_for_call_in_new_thread(lambda: asyncio.sleep(LONG)),
        "result": lambda: from_sync.call_soon_in_new_thread(gate.pass_through).result(),
    }[request.param]
    gate.set()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_deadline_of_a_sync_scope_ends_code_that_is_suspended(
    loop_thread: EventLoopThread, wait_suspended: Callable[[], Any], asynchronous: bool
) -> None:
    def work() -> int:
        with pytest.raises(TimeoutError), cancel_sync_after(0.05) as scope:
            wait_suspended()
        assert scope.timedout()
        task = asyncio.current_task()
        assert task is not None
        suspend(asyncio.sleep(0))  # nothing more arrives
        return task.cancelling()

    async def work_async() -> int:
        await asyncio.sleep(0)
        return work()

    with soon():
        assert started_on(loop_thread, work_async if asynchronous else work).result() == 0


def test_nested_sync_scopes_around_suspended_code_end_at_their_own_deadlines(loop_thread: EventLoopThread) -> None:
    def work() -> list[str]:
        seen = []
        try:
            with cancel_sync_after(0.1):
                try:
                    with cancel_sync_after(0.05):
                        suspend(asyncio.sleep(LONG))
                except TimeoutError:
                    seen.append("inner")
                suspend(asyncio.sleep(LONG))
        except TimeoutError:
            seen.append("outer")
        return seen

    with soon():
        assert started_on(loop_thread, work).result() == ["inner", "outer"]


def test_a_sync_scope_inside_an_async_one_leaves_it_alone(loop_thread: EventLoopThread) -> None:
    def inner() -> None:
        with pytest.raises(TimeoutError), cancel_sync_after(0.01):
            # No coroutine, which would warn if the deadline came when it was made and not yet waited for.
            suspend(asyncio.get_running_loop().create_future())

    async def work() -> str:
        try:
            with cancel_async_after(0.1) as scope:
                inner()
                await asyncio.sleep(LONG)
        except TimeoutError:
            return f"outer {scope.timedout()}"
        return "not ended"

    with soon():
        assert started_on(loop_thread, work).result() == "outer True"


def test_a_scope_that_was_cancelled_while_its_code_was_suspended_is_told_once_it_runs(
    loop_thread: EventLoopThread,
) -> None:
    # The race: the request comes while the code is suspended, and the code is resumed before the loop gets to it.
    def work() -> None:
        def resume_after_cancelling() -> None:
            other = threading.Thread(target=scope.cancel)
            other.start()
            other.join()
            future.set_result(None)

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(resume_after_cancelling)
        with pytest.raises(asyncio.CancelledError), cancel_sync_after(None) as scope:
            suspend(wait_for(future))
            spin()
        assert scope.cancelled()
        suspend(asyncio.sleep(0.001))

    async def wait_for(future: asyncio.Future[None]) -> None:
        await future

    with soon():
        started_on(loop_thread, work).result()


def test_a_call_that_is_suspended_can_be_cancelled(
    loop_thread: EventLoopThread, wait_suspended: Callable[[], Any]
) -> None:
    begun = Gate()
    cleaned = []

    def work() -> None:
        try:
            begun.set()
            wait_suspended()
        finally:
            suspend(asyncio.sleep(0.001))
            cleaned.append(True)

    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert cleaned == [True]


# --- shields ---------------------------------------------------------------------------------------------------------


@everywhere
def test_a_shield_holds_a_deadline_back_in_sync_code(run: Callable[..., Any]) -> None:
    def work() -> None:
        with cancel_sync_after(None) as scope:
            with shield():
                threading.Thread(target=scope.cancel).start()
                until(lambda: scope._ending)
                time.sleep(0.02)
                survived.append(True)
            survived.append(False)

    survived: list[bool] = []
    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        run(work)
    assert survived == [True]


@pytest.mark.parametrize("make", [WorkerThread, EventLoopThread])
def test_a_shield_holds_the_cancelling_of_a_synchronous_call_back(make: type[Any]) -> None:
    begun, asked = Gate(), Gate()
    survived = []

    def work() -> None:
        with shield():
            begun.set()
            spin(asked)
            survived.append(True)
        survived.append(False)

    with make() as portal:
        call = started_on(portal, work)
        begun.pass_through()
        call.cancel()
        time.sleep(0.02)
        asked.set()
        with soon(), pytest.raises(concurrent.futures.CancelledError):
            call.result()
    assert survived == [True]


def test_a_shield_holds_the_cancelling_of_an_asynchronous_call_back(loop_thread: EventLoopThread) -> None:
    begun = Gate()
    survived = []

    async def work() -> None:
        with shield():
            begun.set()
            await asyncio.sleep(0.05)
            survived.append(True)
        await asyncio.sleep(0)
        survived.append(False)

    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert survived == [True]


def test_a_shield_holds_the_cancelling_of_a_suspended_call_back(loop_thread: EventLoopThread) -> None:
    begun = Gate()
    survived = []

    def work() -> None:
        with shield():
            begun.set()
            suspend(asyncio.sleep(0.05))
            survived.append(True)
        survived.append(False)

    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert survived == [True]


def test_a_shield_holds_the_deadline_of_a_sync_scope_back_while_it_is_suspended(
    loop_thread: EventLoopThread,
) -> None:
    def work() -> list[str]:
        seen = []
        try:
            with cancel_sync_after(0.01):
                with shield():
                    suspend(asyncio.sleep(0.05))
                    seen.append("survived")
                seen.append("not told")
        except TimeoutError:
            seen.append("timed out")
        suspend(asyncio.sleep(0))
        return seen

    with soon():
        assert started_on(loop_thread, work).result() == ["survived", "timed out"]


def test_a_shield_in_a_task_holds_the_deadline_of_an_async_scope_back() -> None:
    async def main() -> list[str]:
        seen = []
        try:
            with cancel_async_after(0.01):
                with shield():
                    await asyncio.sleep(0.05)
                    seen.append("survived")
                await asyncio.sleep(0)
                seen.append("not told")
        except TimeoutError:
            seen.append("timed out")
        await asyncio.sleep(0)
        return seen

    with soon():
        assert asyncio.run(main()) == ["survived", "timed out"]


@everywhere
def test_a_scope_inside_a_shield_is_not_shielded_by_it(run: Callable[..., Any]) -> None:
    def work() -> bool:
        with shield(), pytest.raises(TimeoutError), cancel_sync_after(0.01) as scope:
            spin()
        return scope.timedout()

    with soon():
        assert run(work)


def test_an_async_scope_inside_a_shield_is_not_shielded_by_it() -> None:
    async def main() -> None:
        with shield():
            with pytest.raises(TimeoutError), cancel_async_after(0.01) as scope:
                await asyncio.sleep(LONG)
            assert scope.timedout()
        await asyncio.sleep(0)

    with soon():
        asyncio.run(main())


def test_what_an_inner_shield_held_back_from_a_scope_inside_an_outer_one_arrives_between_them() -> None:
    async def main() -> list[str]:
        seen = []
        with shield():
            try:
                with cancel_async_after(0.01):
                    with shield():
                        await asyncio.sleep(0.05)
                        seen.append("survived")
                    await asyncio.sleep(LONG)
            except TimeoutError:
                seen.append("timed out")
            await asyncio.sleep(0)
        return seen

    with soon():
        assert asyncio.run(main()) == ["survived", "timed out"]


def test_nested_shields_hold_back_until_the_outer_one_is_left(loop_thread: EventLoopThread) -> None:
    begun = Gate()
    survived = []

    async def work() -> None:
        with shield():
            with shield():
                begun.set()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0)
            survived.append(True)
        await asyncio.sleep(0)
        survived.append(False)

    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert survived == [True]


def test_a_held_back_request_of_a_scope_that_has_ended_hits_nothing() -> None:
    async def main() -> None:
        with shield():
            with cancel_async_after(None) as scope, shield():
                scope.cancel()
                await asyncio.sleep(0.01)
                scope._open = False  # as if the block had ended meanwhile
            await asyncio.sleep(0)

    asyncio.run(main())


def test_a_shield_without_a_request_changes_nothing() -> None:
    with shield():
        pass

    async def main() -> int:
        with shield():
            await asyncio.sleep(0)
        return 5

    assert asyncio.run(main()) == 5


def test_a_shielded_call_is_waited_for(loop_thread: EventLoopThread) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await call
        assert finished == [True]

    async def work() -> None:
        with shield():
            begun.set()
            await asyncio.sleep(0.7)  # longer than the grace
            finished.append(True)

    begun = Gate()
    finished: list[bool] = []
    call = started_on(loop_thread, work)
    begun.pass_through()
    call.cancel()
    asyncio.run(main())


def test_a_scope_cancelled_inside_a_wait_for_a_call_in_async_code_ends_that_call() -> None:
    begun: list[bool] = []
    cleaned: list[bool] = []

    async def other() -> None:
        begun.append(True)
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    async def main() -> None:
        with pytest.raises(TimeoutError), cancel_async_after(0.05):
            await from_async.wait_for_call_in_loop_thread(other)
        assert cleaned == begun  # on a slow machine it may not have begun in time

    with soon():
        asyncio.run(main())


def test_the_clock_ends_by_itself_when_there_is_no_deadline_any_more() -> None:
    # One that is set just after the engine's end starts it anew, and nobody would end it.
    with pytest.raises(TimeoutError), cancel_sync_after(0.01):
        spin()
    assert clocks()
    until(lambda: not clocks())
    with pytest.raises(TimeoutError), cancel_sync_after(0.01):
        spin()


def clocks() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ipyportal-clock"]
