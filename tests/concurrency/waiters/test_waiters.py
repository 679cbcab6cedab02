"""Waiting for a call: what is sent back, what is cancelled with it, and what an interrupt does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal import run
from ipyportal.concurrency import (
    AsyncWaiter,
    Call,
    EventLoopThread,
    SyncWaiter,
    Waiter,
    WorkerThread,
    current_call,
    from_async,
    from_sync,
    get_global_loop,
)
from ipyportal.concurrency.api import wait_for
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.waiters import blocking
from tests.concurrency.helpers import PATIENCE, By, Gate, blocked_in_a_wait, press_stop, soon, spin, until

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")

MAIN = threading.main_thread()
LONG = 30.0


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


def sync_wait(call: Call[Any], submit: Callable[[Call[Any]], Any]) -> Call[Any]:
    waiter = SyncWaiter(call)
    submit(call)
    return waiter.wait()


def async_wait(call: Call[Any], submit: Callable[[Call[Any]], Any]) -> Call[Any]:
    async def main() -> Call[Any]:
        waiter = AsyncWaiter(call)
        submit(call)
        return await waiter.wait()

    return asyncio.run(main())


both = pytest.mark.parametrize("wait", [sync_wait, async_wait])


def to_loop(call: Call[Any]) -> Call[Any]:
    return get_global_loop().submit(call)


def to_thread(call: Call[Any]) -> Call[Any]:
    return from_sync.call_soon_in_new_thread(call)


everywhere = pytest.mark.parametrize("submit", [to_loop, to_thread])


def send_back(fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return from_sync.call_soon_in_waiting_thread(Call.new(fn, *args))


# --- sending back ----------------------------------------------------------------------------------------------------


@both
@everywhere
def test_what_is_sent_back_runs_on_the_waiting_thread_in_order(
    wait: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    ran: list[Any] = []

    def work() -> None:
        for number in range(20):
            send_back(lambda number=number: ran.append((number, threading.current_thread())))

    wait(Call.new(work), submit).result()
    assert ran == [(number, MAIN) for number in range(20)]


@both
def test_what_is_sent_back_runs_in_the_context_of_who_sends_it(wait: Callable[..., Any]) -> None:
    async def work() -> list[Any]:
        color.set("red")
        first = from_async.call_soon_in_waiting_thread(lambda: (color.get(), color.set("green"))[0])
        color.set("blue")
        second = from_async.call_soon_in_waiting_thread(color.get)
        return [await first, await second, color.get()]

    color.set("grey")
    assert wait(Call.new(work), to_loop).result() == ["red", "blue", "blue"]
    assert color.get() == "grey"


@both
def test_the_result_and_the_exception_go_to_who_sent_it(wait: Callable[..., Any]) -> None:
    async def work() -> str:
        with pytest.raises(ZeroDivisionError):
            await from_async.call_soon_in_waiting_thread(lambda: 1 / 0)
        return await from_async.call_soon_in_waiting_thread(lambda: "answer")

    assert wait(Call.new(work), to_loop).result() == "answer"


@both
@everywhere
def test_synchronous_code_may_wait_for_what_it_sends_back(wait: Callable[..., Any], submit: Callable[..., Any]) -> None:
    def work() -> list[Any]:
        return [send_back(threading.current_thread).result(PATIENCE) for _ in range(3)]

    assert wait(Call.new(work), submit).result() == [MAIN] * 3


@both
def test_asynchronous_work_can_be_sent_back(wait: Callable[..., Any]) -> None:
    async def back() -> tuple[threading.Thread, bool]:
        await asyncio.sleep(0)
        return threading.current_thread(), current_call() is not None

    async def work() -> Any:
        return await from_async.call_soon_in_waiting_thread(back)

    assert wait(Call.new(work), to_loop).result() == (MAIN, True)


def test_asynchronous_work_that_is_sent_back_to_an_async_waiter_runs_concurrently() -> None:
    async def main() -> None:
        barrier = asyncio.Barrier(10)

        async def meet() -> None:
            await barrier.wait()

        async def work() -> None:
            await asyncio.gather(*(from_async.call_soon_in_waiting_thread(meet) for _ in range(10)))

        await asyncio.wait_for(from_async.wait_for_call_in_loop_thread(work), PATIENCE)

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_a_waiter_in_a_loop_with_eager_tasks_ends() -> None:
    async def main() -> int:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def work() -> int:
            first = await from_async.call_soon_in_waiting_thread(lambda: 1)
            second = await from_async.call_soon_in_waiting_thread(lambda: asyncio.sleep(0, 2))
            return first + second

        return await asyncio.wait_for(from_async.wait_for_call_in_loop_thread(work), PATIENCE)

    assert asyncio.run(main()) == 3


@both
def test_an_exception_of_what_nobody_awaits_disturbs_nobody_and_is_reported(
    wait: Callable[..., Any], reported: list[Any]
) -> None:
    def work() -> int:
        send_back(lambda: 1 / 0)
        return 5

    assert wait(Call.new(work), to_thread).result() == 5
    until(lambda: reported)
    assert [type(one.exc_value) for one in reported] == [ZeroDivisionError]


@both
def test_what_was_sent_back_before_the_wait_began_is_kept(wait: Callable[..., Any]) -> None:
    ran: list[Any] = []

    def submit(call: Call[Any]) -> None:
        # The call is over before the wait begins.
        to_thread(call).result(PATIENCE)

    def work() -> None:
        send_back(ran.append, 1)
        send_back(ran.append, 2)

    wait(Call.new(work), submit)
    assert ran == [1, 2]


@both
def test_all_that_was_sent_back_has_run_when_the_wait_ends(wait: Callable[..., Any]) -> None:
    # The race: the call ends right after it has sent something back.
    for _ in range(50):
        sent: list[Call[Any]] = []

        def work(sent: list[Call[Any]] = sent) -> None:
            sent.append(send_back(lambda: 1))

        wait(Call.new(work), to_thread)
        assert sent[0].done()
        assert sent[0].result(0) == 1


@both
def test_sending_back_after_the_wait_is_refused(wait: Callable[..., Any]) -> None:
    kept: list[Waiter[Any]] = []

    def submit(call: Call[Any]) -> Call[Any]:
        assert call._waiter is not None
        kept.append(call._waiter)
        return to_thread(call)

    wait(Call.new(lambda: 1), submit)
    call = Call.new(lambda: 2)
    with pytest.raises(RuntimeError, match="nobody waits for"):
        kept[0].submit(call)
    with pytest.raises(RuntimeError, match="is not waited for any more"):
        kept[0].add_done_callback(call)
    with WorkerThread() as worker:
        assert worker.submit(call).result() == 2


@both
def test_sending_back_while_the_wait_ends_loses_no_call(wait: Callable[..., Any], often: None) -> None:
    # The race: a thread that the call left behind sends back while the wait ends. Each is refused or runs.
    for number in range(20):
        accepted: list[Call[Any]] = []

        def flood(waiter: Waiter[Any], accepted: list[Call[Any]] = accepted, number: int = number) -> None:
            for _ in range(10 * number):
                call = Call.new(lambda: 1)
                try:
                    waiter.submit(call)
                except RuntimeError:
                    return
                accepted.append(call)

        thread = None

        def submit(call: Call[Any], flood: Any = flood) -> None:
            nonlocal thread
            thread = threading.Thread(target=flood, args=(call._waiter,))
            thread.start()
            to_thread(call)

        wait(Call.new(lambda: None), submit)
        assert thread is not None
        thread.join()
        assert [call.result(PATIENCE) for call in accepted] == [1] * len(accepted)


def test_a_wait_inside_what_was_sent_back_serves_its_own_call() -> None:
    def outer() -> int:
        return send_back(middle).result(PATIENCE)

    def middle() -> int:
        assert threading.current_thread() is MAIN
        return from_sync.wait_for_call_in_new_thread(inner)

    def inner() -> int:
        return send_back(lambda: 5 if threading.current_thread() is MAIN else 0).result(PATIENCE)

    assert from_sync.wait_for_call_in_new_thread(outer) == 5


# --- waits that would never end --------------------------------------------------------------------------------------


def test_waiting_on_the_waiting_thread_for_what_was_sent_back_to_it_is_told_at_once() -> None:
    def work() -> None:
        send_back(first).result(PATIENCE)

    def first() -> None:
        # This thread runs this; the second is in the same thread's queue, behind it.
        send_back(lambda: 2).result(PATIENCE)

    with soon(), pytest.raises(RuntimeError, match="would never end"):
        from_sync.wait_for_call_in_new_thread(work)


def test_a_callback_of_the_loop_cannot_wait_for_a_call_of_that_loop(loop_thread: EventLoopThread) -> None:
    answer: concurrent.futures.Future[str] = concurrent.futures.Future()

    def callback() -> None:
        call = Call.new(lambda: 1)
        waiter = SyncWaiter(call)
        loop_thread.submit(call)
        try:
            waiter.wait()
        except RuntimeError as exc:
            answer.set_result(str(exc))
        else:
            answer.set_result("it ended")

    loop_thread.loop.call_soon_threadsafe(callback)
    assert "would never end" in answer.result(PATIENCE)


# --- done callbacks --------------------------------------------------------------------------------------------------


def fails() -> None:
    raise ZeroDivisionError


async def is_cancelled() -> None:
    call = current_call()
    assert call is not None
    call.cancel()
    await asyncio.sleep(LONG)


async def times_out() -> None:
    await asyncio.sleep(LONG)


@both
@pytest.mark.parametrize(
    ("work", "timeout", "state"),
    [
        (lambda: 1, None, "finished"),
        (fails, None, "failed"),
        (is_cancelled, None, "cancelled"),
        (times_out, 0.01, "timed out"),
    ],
)
def test_done_callbacks_run_on_the_waiting_thread_however_the_call_ended(
    wait: Callable[..., Any], work: Callable[..., Any], timeout: float | None, state: str
) -> None:
    ran: list[Any] = []
    call = Call.new(work)
    call.set_timeout(timeout)

    def submit(call: Call[Any]) -> None:
        assert call._waiter is not None
        for number in 1, 2:
            call._waiter.add_done_callback(
                Call.new(lambda number=number: ran.append((number, threading.current_thread(), call.state.value)))
            )
        to_loop(call)

    with soon():
        wait(call, submit)
    assert ran == [(1, MAIN, state), (2, MAIN, state)]
    assert (state in ("failed", "timed out")) == (not call.cancelled() and call.exception() is not None)


@both
def test_a_done_callback_that_raises_is_reported_and_the_others_run(
    wait: Callable[..., Any], reported: list[Any]
) -> None:
    ran: list[int] = []

    def submit(call: Call[Any]) -> None:
        assert call._waiter is not None
        call._waiter.add_done_callback(Call.new(fails))
        call._waiter.add_done_callback(Call.new(ran.append, 2))
        to_loop(call)

    assert wait(Call.new(lambda: 5), submit).result() == 5
    assert ran == [2]
    [report] = reported
    assert report.exc_type is ZeroDivisionError
    assert "done callback" in report.err_msg


@both
def test_a_done_callback_may_be_asynchronous(wait: Callable[..., Any]) -> None:
    ran: list[int] = []

    async def callback() -> None:
        await asyncio.sleep(0)
        ran.append(1)

    def submit(call: Call[Any]) -> None:
        assert call._waiter is not None
        call._waiter.add_done_callback(Call.new(callback))
        to_loop(call)

    wait(Call.new(lambda: 5), submit)
    assert ran == [1]


# --- what is cancelled with a call -----------------------------------------------------------------------------------


def sleep_on_the_waiting_thread(seen: list[str], begun: Gate) -> None:
    try:
        begun.set()
        time.sleep(LONG)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    seen.append("slept")


async def await_on_the_waiting_thread(seen: list[str], begun: Gate) -> None:
    try:
        begun.set()
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    seen.append("slept")


backs = pytest.mark.parametrize("back", [sleep_on_the_waiting_thread, await_on_the_waiting_thread])


@backs
@everywhere
@pytest.mark.parametrize("how", ["cancel", "time-out"])
def test_a_call_that_ends_early_ends_what_it_sent_back_while_that_sleeps_on_the_main_thread(
    back: Callable[..., Any], submit: Callable[..., Any], how: str
) -> None:
    seen: list[str] = []
    begun = Gate()

    def work() -> None:
        send_back(back, seen, begun).result()

    call = Call.new(work)
    if how == "time-out":
        call.set_timeout(0.1)
    else:
        threading.Thread(target=lambda: (begun.pass_through(), call.cancel())).start()
    with soon():
        sync_wait(call, submit)
    assert seen == (["cancelled"] if begun.is_set() else [])  # on a slow machine it may not have begun in time
    assert call.cancelled() if how == "cancel" else call.timedout()


@everywhere
@pytest.mark.parametrize("how", ["cancel", "time-out"])
def test_a_call_that_ends_early_ends_what_it_sent_back_while_that_awaits_in_the_waiting_loop(
    submit: Callable[..., Any], how: str
) -> None:
    seen: list[str] = []
    begun = Gate()

    def work() -> None:
        send_back(await_on_the_waiting_thread, seen, begun).result()

    call = Call.new(work)
    if how == "time-out":
        call.set_timeout(0.1)
    else:
        threading.Thread(target=lambda: (begun.pass_through(), call.cancel())).start()
    with soon():
        async_wait(call, submit)
    assert seen == (["cancelled"] if begun.is_set() else [])  # on a slow machine it may not have begun in time
    assert call.cancelled() if how == "cancel" else call.timedout()


@backs
def test_a_call_that_failed_lets_what_it_sent_back_finish(back: Callable[..., Any]) -> None:
    ran: list[int] = []

    def work() -> None:
        send_back(lambda: (time.sleep(0.02), ran.append(1)))
        send_back(ran.append, 2)
        raise ZeroDivisionError

    call = sync_wait(Call.new(work), to_thread)
    assert isinstance(call.exception(), ZeroDivisionError)
    assert ran == [1, 2]


def test_what_was_sent_back_to_one_of_two_waiters_ends_with_the_call() -> None:
    back: list[Call[Any]] = []

    def work() -> None:
        back.append(send_back(spin))
        spin()

    call = Call.new(work)
    first = from_sync.call_soon_in_new_thread(Call.new(lambda: (sync_wait(call, to_thread), None)[1]))
    until(lambda: back and back[0].running())
    second = SyncWaiter(call)
    call.cancel()
    with soon():
        second.wait()
        first.result(PATIENCE)
    assert call.cancelled()
    assert back[0].cancelled()


def test_what_is_sent_back_finds_each_of_two_waiters() -> None:
    threads: list[threading.Thread] = []
    two = Gate()

    def work() -> list[Any]:
        two.pass_through()
        ask = threading.current_thread
        return [
            from_sync.call_soon_in_waiting_thread(Call.new(ask), thread=thread).result(PATIENCE)
            for thread in [*threads, None]
        ]

    def wait(call: Call[Any]) -> None:
        threads.append(threading.current_thread())
        sync_wait(call, to_thread)

    call = Call.new(work)
    first = from_sync.call_soon_in_new_thread(Call.new(wait, call))
    until(lambda: call.running() and call._waiter is not None)
    threads.append(threading.current_thread())
    second = SyncWaiter(call)
    two.set()
    second.wait()
    first.result(PATIENCE)
    assert call.result() == [*threads, threads[1]]


@both
def test_what_waits_in_the_queue_of_a_cancelled_call_never_begins(wait: Callable[..., Any]) -> None:
    ran: list[int] = []

    def work() -> None:
        for _ in range(10):
            send_back(ran.append, 1)
        call.cancel()
        spin()

    call = Call.new(work)
    # Begun before the wait, so that all is in the queue when it is cancelled.
    with soon():
        wait(call, lambda call: (to_thread(call), until(lambda: call._ending)))
    assert ran == []


def test_a_call_whose_loop_is_blocked_is_given_up_and_the_wait_ends() -> None:
    gate = Gate()
    with EventLoopThread() as portal:
        started_on(portal, time.sleep, 1.2)
        queued = Call.new(asyncio.sleep, 0)
        queued.set_timeout(0.05)
        with soon(1.0):
            sync_wait(queued, portal.submit)
        assert queued.timedout()
        gate.set()


# --- cancelling who waits --------------------------------------------------------------------------------------------


def test_cancelling_the_task_that_waits_cancels_the_call_and_what_it_sent_back() -> None:
    order: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def back() -> None:
            begun.set()
            try:
                await asyncio.sleep(LONG)
            finally:
                order.append("sent back")

        async def work() -> None:
            try:
                await from_async.call_soon_in_waiting_thread(back)
            finally:
                await asyncio.sleep(0.01)
                order.append("call")

        waiting = asyncio.create_task(from_async.wait_for_call_in_loop_thread(work))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        order.append("wait")

    with soon():
        asyncio.run(main())
    assert sorted(order[:2]) == ["call", "sent back"]
    assert order[2:] == ["wait"]


def test_a_cancelled_call_that_waits_for_another_cancels_that_and_waits_for_its_clean_up() -> None:
    order: list[str] = []
    begun = Gate()

    async def inner() -> None:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.02)
            order.append("inner")

    def outer() -> None:
        try:
            from_sync.wait_for_call_in_loop_thread(inner)
        finally:
            order.append("outer")

    call = from_sync.call_soon_in_new_thread(outer)
    begun.pass_through()
    call.cancel()
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert order == ["inner", "outer"]


def test_a_call_in_a_lent_thread_that_waits_for_itself_is_told() -> None:
    def work() -> None:
        wait_for(None, current_call())

    with soon(), pytest.raises(RuntimeError, match="the call would wait for itself"):
        from_sync.call_in_new_thread(work)


def test_a_call_that_was_submitted_just_before_its_caller_was_cancelled_is_not_left_running() -> None:
    # The race: the request comes after the call was submitted and before the wait for it has begun.
    cleaned: list[str] = []
    begun = Gate()

    async def inner() -> None:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("inner")

    def submit(call: Call[Any]) -> None:
        to_loop(call)
        begun.pass_through()
        outer_call.cancel()
        sum(1 for _ in range(100_000))  # where an interrupt would have come

    outer_call = Call.new(lambda: wait_for(By(submit), Call.new(inner)))
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        to_thread(outer_call).result()
    assert cleaned == ["inner"]


# --- interrupts ------------------------------------------------------------------------------------------------------


def stop_when_blocked() -> threading.Thread:
    """Press stop once the main thread is in a wait."""

    def press() -> None:
        until(lambda: blocked_in_a_wait(MAIN))
        # Nothing tells when it is in the system call. Before that Python itself loses a Ctrl-C.
        time.sleep(0.02)
        press_stop()

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@everywhere
def test_an_interrupt_cancels_the_call_and_is_raised_when_its_clean_up_has_run(
    submit: Callable[..., Any],
) -> None:
    order: list[str] = []
    begun = Gate()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.02)
            order.append("clean-up")

    call = Call.new(work)
    waiter = SyncWaiter(call)
    submit(call)
    begun.pass_through()
    presser = stop_when_blocked()
    with soon(), pytest.raises(KeyboardInterrupt):
        waiter.wait()
    presser.join()
    assert order == ["clean-up"]
    assert call.cancelled()


@pytest.mark.parametrize("back", ["sleep", "spin", "await"])
def test_an_interrupt_of_what_was_sent_back_ends_all_of_it(back: str) -> None:
    async def awaiting() -> None:
        presser()
        await asyncio.sleep(LONG)

    def presser() -> None:
        threading.Thread(target=lambda: (time.sleep(0.05), press_stop())).start()

    def running() -> None:
        presser()
        if back == "sleep":
            time.sleep(LONG)
        spin()

    cleaned = []

    async def work() -> None:
        try:
            await from_async.call_soon_in_waiting_thread(awaiting if back == "await" else running)
            await asyncio.sleep(LONG)
        finally:
            cleaned.append(True)

    with soon(), pytest.raises(KeyboardInterrupt):
        from_sync.wait_for_call_in_loop_thread(work)
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_keyboard_interrupt_of_what_was_sent_back_does_not_end_the_loop_thread() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    async def work() -> None:
        await from_async.call_soon_in_waiting_thread(interrupted)

    thread = get_global_loop().thread
    with soon(), pytest.raises(KeyboardInterrupt):
        from_sync.wait_for_call_in_loop_thread(work)
    assert from_sync.call_in_loop_thread(threading.current_thread) is thread


def test_a_second_interrupt_does_not_wait_for_the_clean_up() -> None:
    begun, clean = Gate(), Gate()
    pressers: list[threading.Thread] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            pressers.append(stop_when_blocked())
            while not clean.is_set():
                await asyncio.sleep(0.001)

    call = Call.new(work)
    waiter = SyncWaiter(call)
    to_loop(call)
    begun.pass_through()
    pressers.append(stop_when_blocked())
    with soon(), pytest.raises(KeyboardInterrupt):
        waiter.wait()
    for presser in pressers:
        presser.join()
    assert not call.done()
    clean.set()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result(PATIENCE)


def test_done_callbacks_run_also_after_an_interrupt() -> None:
    ran: list[int] = []
    call = Call.new(asyncio.sleep, LONG)
    waiter = SyncWaiter(call)
    waiter.add_done_callback(Call.new(ran.append, 1))
    to_loop(call)
    presser = stop_when_blocked()
    with soon(), pytest.raises(KeyboardInterrupt):
        waiter.wait()
    presser.join()
    assert ran == [1]


def test_an_interrupted_result_leaves_the_call_alone() -> None:
    gate = Gate()
    call = to_thread(Call.new(gate.pass_through))
    presser = stop_when_blocked()
    with soon(), pytest.raises(KeyboardInterrupt):
        call.result()
    presser.join()
    assert call.running()
    gate.set()
    call.result(PATIENCE)


def test_an_interrupt_at_any_moment_of_a_wait_ends_the_call_and_leaves_no_trace() -> None:
    # The race: the interrupt comes anywhere between the first and the last bytecode of the call and its wait.
    get_global_loop()
    handler = signal.getsignal(signal.SIGURG)
    calls: list[Call[Any]] = []
    for number in range(60):
        timer = threading.Timer(0.00002 * number, press_stop)
        call = Call.new(asyncio.sleep, 0.0003)
        calls.append(call)
        try:
            try:
                timer.start()
                from_sync.wait_for_call_in_loop_thread(call)
            finally:
                timer.join()
                time.sleep(0)
        except KeyboardInterrupt:
            pass
    for call in calls:
        if call.portal is not None:
            concurrent.futures.wait([call.future], PATIENCE)
            assert call.done()
    assert thread_state().depth == 0
    assert not blocking._blocked
    assert signal.getsignal(signal.SIGURG) is handler


# --- a caller that is itself asked to end ----------------------------------------------------------------------------


def cancel_from_elsewhere(call: Call[Any]) -> None:
    asker = threading.Thread(target=call.cancel)
    asker.start()
    asker.join(PATIENCE)


@pytest.mark.parametrize("make", [WorkerThread, pytest.param(EventLoopThread, id="suspended_EventLoopThread")])
def test_a_caller_that_is_cancelled_while_it_submits_cancels_the_call_and_runs_the_callbacks(make: type[Any]) -> None:
    # The race: the call has been submitted, and the wait has not begun.
    inner = Call.new(asyncio.sleep, PATIENCE)
    told = []

    def submit(call: Call[None]) -> None:
        from_sync.call_soon_in_new_thread(call)
        cancel_from_elsewhere(outer)

    with make() as portal:
        outer = Call.new(lambda: wait_for(By(submit), inner, [lambda: told.append("callback")]))
        with soon(), pytest.raises(concurrent.futures.CancelledError):
            portal.submit(outer).result()
    assert inner.cancelled()
    assert told == ["callback"]


@pytest.mark.parametrize("make", [WorkerThread, pytest.param(EventLoopThread, id="suspended_EventLoopThread")])
def test_a_caller_that_is_cancelled_while_done_callbacks_run_runs_those_that_follow(make: type[Any]) -> None:
    told = []

    def cancel() -> None:
        told.append("first")
        cancel_from_elsewhere(outer)

    callbacks = [cancel, lambda: told.append("second")]
    with make() as portal:
        outer = Call.new(lambda: from_sync.wait_for_call_in_new_thread(int, done_callbacks=callbacks))
        with soon(), pytest.raises(concurrent.futures.CancelledError):
            portal.submit(outer).result()
    assert told == ["first", "second"]


# --- what is refused -------------------------------------------------------------------------------------------------


def refused_work(portal: Any) -> tuple[list[str], Callable[[], None]]:
    """What became of work that is sent to `portal` by its own thread, and the code of that thread that waits for it."""
    seen: list[str] = []

    def wait() -> None:
        try:
            run(lambda: seen.append("it ran"), on=portal)
        except RuntimeError as exc:
            seen.append("would never end" if "would never end" in str(exc) else str(exc))

    return seen, wait


def test_what_a_worker_thread_is_refused_to_wait_for_does_not_run() -> None:
    # It was in the queue of the very thread that was refused the wait, and ran afterwards.
    with WorkerThread() as worker:
        seen, wait = refused_work(worker)
        worker.submit(Call.new(wait)).result()
    assert seen == ["would never end"]


@pytest.mark.filterwarnings("ignore:run.. blocks the event loop")
def test_what_a_callback_of_a_loop_thread_is_refused_to_wait_for_does_not_run(uvloop: Any) -> None:
    over = threading.Event()
    with EventLoopThread(loop_factory=uvloop.new_event_loop) as thread:  # whose callbacks cannot be suspended
        seen, wait = refused_work(thread)
        thread.loop.call_soon_threadsafe(lambda: (wait(), over.set()))
        assert over.wait(PATIENCE)
    assert seen == ["would never end"]


def test_a_wait_that_would_never_end_is_refused_whatever_the_truth_of_its_portal() -> None:
    class Empty(WorkerThread):
        def __len__(self) -> int:
            return 0

    with Empty() as portal:
        waits = started_on(portal, lambda: SyncWaiter(Call.new(int)).wait(portal))
        with pytest.raises(RuntimeError, match="would never end"):
            waits.result(PATIENCE)
