"""`from_sync` and `from_async`: the same functions for both kinds of code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    WorkerThread,
    can_suspend,
    cast_to_call,
    create_call,
    from_async,
    from_sync,
    get_global_loop,
    in_global_loop,
)
from ipyportal.concurrency.api import wait_for

from .helpers import PATIENCE, Gate, soon

LONG = 30.0
MAIN = threading.main_thread()

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


def call_sync(name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(from_sync, name)(*args, **kwargs)


def call_async(name: str, *args: Any, **kwargs: Any) -> Any:
    async def main() -> Any:
        return await getattr(from_async, name)(*args, **kwargs)

    return asyncio.run(main())


def call_suspended(name: str, *args: Any, **kwargs: Any) -> Any:
    """`from_sync` in synchronous code of a task that can be suspended."""

    def work() -> Any:
        assert can_suspend()
        return getattr(from_sync, name)(*args, **kwargs)

    with EventLoopThread() as portal:
        return portal.submit(Call.new(work)).result()


kinds = pytest.mark.parametrize("do", [call_sync, call_async, call_suspended])
waiting = pytest.mark.parametrize("name", ["wait_for_call_in_loop_thread", "wait_for_call_in_new_thread"])
all_of_them = pytest.mark.parametrize(
    "name",
    ["wait_for_call_in_loop_thread", "wait_for_call_in_new_thread", "call_in_loop_thread", "call_in_new_thread"],
)

CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)


def test_both_have_the_same_functions() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(from_sync) == public(from_async)
    assert public(from_sync) == {
        "call_in_loop_thread",
        "call_in_new_thread",
        "call_soon_in_loop_thread",
        "call_soon_in_new_thread",
        "call_soon_in_waiting_thread",
        "wait_for_call_in_loop_thread",
        "wait_for_call_in_new_thread",
    }


# --- results ---------------------------------------------------------------------------------------------------------


@kinds
@all_of_them
def test_the_call_runs_where_the_name_says_and_its_result_comes_back(do: Callable[..., Any], name: str) -> None:
    def where() -> tuple[bool, bool]:
        return in_global_loop(), threading.current_thread() is MAIN

    async def where_async() -> tuple[bool, bool]:
        await asyncio.sleep(0)
        return where()

    for fn in where, where_async:
        assert do(name, fn) == ("loop" in name, False)
        assert do(name, create_call(fn)) == ("loop" in name, False)


@kinds
@all_of_them
def test_what_the_call_raises_is_raised(do: Callable[..., Any], name: str) -> None:
    async def fail() -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        do(name, fail)


@kinds
@all_of_them
def test_the_call_has_the_callers_context(do: Callable[..., Any], name: str) -> None:
    color.set("red")
    assert do(name, create_call(color.get)) == "red"
    color.set("none")


@kinds
@all_of_them
def test_a_call_that_is_not_over_in_time_is_ended(do: Callable[..., Any], name: str) -> None:
    begun: list[bool] = []
    cleaned: list[bool] = []

    async def work() -> None:
        begun.append(True)
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    with soon(), pytest.raises(TimeoutError, match=r"work timed out after 0\.05 s"):
        do(name, work, timeout=0.05)
    assert cleaned == begun  # on a slow machine it may not have begun in time


@kinds
@all_of_them
def test_a_cancelled_call_raises_what_the_standard_library_raises_there(do: Callable[..., Any], name: str) -> None:
    begun = Gate()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(LONG)

    call = create_call(work)
    canceller = threading.Thread(target=lambda: (begun.pass_through(), call.cancel()))
    canceller.start()
    with soon(), pytest.raises(CANCELLED) as caught:
        do(name, call)
    canceller.join()
    if do is call_async:
        assert caught.type is asyncio.CancelledError
    else:
        assert issubclass(caught.type, concurrent.futures.CancelledError)


@kinds
@all_of_them
def test_a_timeout_that_is_none_is_refused_before_anything_runs(do: Callable[..., Any], name: str) -> None:
    ran: list[int] = []
    for timeout, error in (-1, ValueError), (float("nan"), ValueError), ("1", TypeError):
        with pytest.raises(error, match="timeout must be"):
            do(name, lambda: ran.append(1), timeout=timeout)
    assert not ran


@kinds
@all_of_them
def test_what_cannot_be_called_is_refused(do: Callable[..., Any], name: str) -> None:
    with pytest.raises(TypeError, match="needs a function"):
        do(name, 5)


# --- callbacks and contexts ------------------------------------------------------------------------------------------


@kinds
@waiting
@pytest.mark.parametrize("ending", ["result", "error", "time-out"])
def test_done_callbacks_run_in_the_waiting_thread_however_it_ends(
    do: Callable[..., Any], name: str, ending: str
) -> None:
    ran: list[Any] = []

    async def work() -> None:
        if ending == "error":
            raise ValueError
        await asyncio.sleep(LONG if ending == "time-out" else 0)

    async def callback() -> None:
        ran.append(("async", threading.current_thread()))

    def wait() -> None:
        do(
            name,
            work,
            timeout=0.05 if ending == "time-out" else None,
            done_callbacks=[lambda: ran.append(("sync", threading.current_thread())), create_call(callback)],
        )

    if ending == "result":
        wait()
    else:
        with soon(), pytest.raises(ValueError if ending == "error" else TimeoutError):
            wait()
    assert [kind for kind, _ in ran] == ["sync", "async"]
    [thread] = {thread for _, thread in ran}
    assert (thread is MAIN) == (do is not call_suspended)


@kinds
@waiting
def test_contexts_are_entered_and_left_around_the_wait(do: Callable[..., Any], name: str) -> None:
    order: list[str] = []

    @contextlib.contextmanager
    def context(label: str) -> Iterator[None]:
        order.append(f"enter {label}")
        try:
            yield
        except ValueError:
            order.append(f"fail {label}")
            raise
        finally:
            order.append(f"leave {label}")

    do(name, lambda: order.append("call"), contexts=[context("a"), context("b")])
    assert order == ["enter a", "enter b", "call", "leave b", "leave a"]
    order.clear()

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        do(name, fail, contexts=[context("a")])
    assert order == ["enter a", "fail a", "leave a"]


@kinds
@waiting
def test_a_context_that_cannot_be_entered_keeps_the_call_from_running(do: Callable[..., Any], name: str) -> None:
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        raise ValueError("closed")
        yield

    ran: list[int] = []
    with pytest.raises(ValueError, match="closed"):
        do(name, lambda: ran.append(1), contexts=[context()])
    assert not ran


# --- at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [from_sync, from_async])
@pytest.mark.parametrize("name", ["call_soon_in_loop_thread", "call_soon_in_new_thread"])
def test_what_is_called_soon_is_returned_at_once(side: Any, name: str) -> None:
    gate = Gate()

    async def work() -> int:
        await asyncio.to_thread(gate.pass_through)
        return 5

    call = getattr(side, name)(work)
    assert isinstance(call, Call)
    assert not call.done()
    gate.set()
    assert call.result(PATIENCE) == 5
    late = getattr(side, name)(lambda: asyncio.sleep(LONG), timeout=0.01)
    with soon(), pytest.raises(TimeoutError):
        late.result()


def test_what_is_called_soon_may_go_to_another_portal(worker: WorkerThread, loop_thread: EventLoopThread) -> None:
    for portal in worker, loop_thread:
        call = from_sync.call_soon_in_loop_thread(threading.current_thread, portal=portal)
        assert call.result() is portal.thread


# --- sending back ----------------------------------------------------------------------------------------------------


@kinds
@waiting
def test_what_is_sent_back_runs_where_the_caller_waits(do: Callable[..., Any], name: str) -> None:
    async def work() -> list[Any]:
        answers = [
            await from_async.call_soon_in_waiting_thread(threading.current_thread),
            from_sync.call_soon_in_waiting_thread(create_call(threading.current_thread)),
        ]
        answers[1] = await answers[1]
        return answers

    first, second = do(name, work)
    assert first is second
    assert (first is MAIN) == (do is not call_suspended)


def test_what_is_sent_back_may_have_a_timeout() -> None:
    async def work() -> str:
        try:
            await from_async.call_soon_in_waiting_thread(lambda: asyncio.sleep(LONG), timeout=0.05)
        except TimeoutError:
            return "timed out"
        return "slept"

    with soon():
        assert from_sync.wait_for_call_in_loop_thread(work) == "timed out"


def test_an_outer_waiting_thread_can_be_reached_by_name() -> None:
    async def outer() -> list[Any]:
        loop_thread = threading.current_thread()

        def inner() -> list[Any]:
            return [
                from_sync.call_soon_in_waiting_thread(threading.current_thread).result(PATIENCE) is loop_thread,
                from_sync.call_soon_in_waiting_thread(threading.current_thread, thread=MAIN).result(PATIENCE) is MAIN,
            ]

        return await from_async.wait_for_call_in_new_thread(inner)

    assert from_sync.wait_for_call_in_loop_thread(outer) == [True, True]


def test_a_call_that_nobody_waits_for_reaches_the_thread_that_waits_for_the_call_around_it() -> None:
    async def outer() -> bool:
        def inner() -> bool:
            return from_sync.call_soon_in_waiting_thread(threading.current_thread).result(PATIENCE) is MAIN

        return await from_async.call_soon_in_new_thread(inner)

    assert from_sync.wait_for_call_in_loop_thread(outer)


def test_sending_back_from_outside_of_a_call_says_so() -> None:
    for side in from_sync, from_async:
        with pytest.raises(RuntimeError, match=r"not started by a call\. Start it with wait_for_call_in"):
            side.call_soon_in_waiting_thread(lambda: 1)


def test_sending_back_where_nobody_waits_says_who_and_what_to_do() -> None:
    def lonely() -> None:
        from_sync.call_soon_in_waiting_thread(lambda: 1)

    with pytest.raises(
        RuntimeError, match=r"lonely cannot send calls back, because no thread waits for it\. Start it with wait_for"
    ):
        from_sync.call_in_new_thread(lonely)


def test_sending_back_to_a_thread_that_does_not_wait_names_it() -> None:
    other = threading.Thread(name="somebody else")

    def work() -> None:
        from_sync.call_soon_in_waiting_thread(lambda: 1, thread=other)

    with pytest.raises(RuntimeError, match="because the thread 'somebody else' does not wait for it"):
        from_sync.wait_for_call_in_new_thread(work)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_create_call_and_cast_to_call() -> None:
    call = create_call(max, 1, 2, key=lambda number: -number)
    assert call() == 1
    assert cast_to_call(call) is call
    assert cast_to_call(lambda: 3)() == 3
    with pytest.raises(TypeError, match="needs a function"):
        cast_to_call(5)  # type: ignore[type-var]


def test_a_wait_on_the_loops_own_thread_where_nothing_can_be_suspended_is_told_at_once(uvloop: Any) -> None:
    answers: concurrent.futures.Future[list[str]] = concurrent.futures.Future()

    def callback() -> None:
        told = []
        for wait in wait_for, lambda portal, call: portal.submit(call).result():
            try:
                wait(portal, create_call(int))
            except RuntimeError as exc:
                told.append(str(exc))
        answers.set_result(told)

    with EventLoopThread(loop_factory=uvloop.new_event_loop) as portal:
        portal.submit(create_call(int)).result()
        portal.loop.call_soon_threadsafe(callback)
        told = answers.result(PATIENCE)
    assert len(told) == 2
    assert all("would never end" in text for text in told)


@pytest.mark.parametrize("name", ["wait_for_call_in_loop_thread", "call_in_loop_thread"])
def test_a_callback_of_the_loop_thread_waits_for_a_call_of_that_loop_suspended(name: str) -> None:
    answer: concurrent.futures.Future[int] = concurrent.futures.Future()

    async def double(n: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * n

    get_global_loop().loop.call_soon_threadsafe(
        lambda: answer.set_result(getattr(from_sync, name)(create_call(double, 4)))
    )
    assert answer.result(PATIENCE) == 8


def test_a_call_that_is_refused_is_not_over() -> None:
    portal = EventLoopThread("gone")
    portal.shutdown()
    ran: list[int] = []
    with pytest.raises(RuntimeError, match="was shut down"):
        wait_for(portal, create_call(int), done_callbacks=[lambda: ran.append(1)])
    assert ran == []
