"""Failures that nobody takes: they are reported, once, where the call was made; what somebody takes is not."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal import run
from ipyportal.concurrency import Call, EventLoopThread, WorkerThread
from tests.concurrency.helpers import PATIENCE, Gate, python, until


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


async def fails_async() -> None:
    await asyncio.sleep(0)
    raise ValueError("lost")


def fails_sync() -> None:
    raise ValueError("lost")


@pytest.mark.parametrize("fn", [fails_sync, fails_async])
def test_a_failure_that_nobody_takes_is_reported_when_its_call_is_thrown_away(
    worker: WorkerThread, fn: Callable[[], Any], reported: list[Any]
) -> None:
    call: Any = started_on(worker, fn)
    until(call.done)
    worker.shutdown()
    assert reported == []
    del call
    (one,) = reported
    assert type(one.exc_value) is ValueError
    assert fn.__name__ in one.err_msg
    assert worker.name in one.err_msg


def test_the_cancel_of_what_a_call_waits_for_is_not_reported(worker: WorkerThread, reported: list[Any]) -> None:
    # As at the end of the interpreter: what a call waits for is cancelled before the call itself.
    with EventLoopThread() as loop:
        inner: Any = loop.submit(Call.new(asyncio.sleep, 60))
        outer: Any = started_on(worker, inner.result)
        until(inner.running)
        until(outer.running)
        inner.cancel()
        until(outer.done)
    worker.shutdown()
    assert outer.cancelled() is False
    del inner, outer
    gc.collect()
    assert reported == []


def take_result(call: Call[Any]) -> None:
    with pytest.raises(ValueError, match="lost"):
        call.result(PATIENCE)


def take_by_await(call: Call[Any]) -> None:
    with pytest.raises(ValueError, match="lost"):
        asyncio.run(call.aresult())


def take_by_run(call: Call[Any]) -> None:
    with pytest.raises(ValueError, match="lost"):
        run(call)


def take_by_future(call: Call[Any]) -> None:
    assert type(call.future.exception(PATIENCE)) is ValueError


def take_result_of_future(call: Call[Any]) -> None:
    with pytest.raises(ValueError, match="lost"):
        call.future.result(PATIENCE)


def take_in_a_callback(call: Call[Any]) -> None:
    seen: list[Any] = []
    call.add_done_callback(lambda call: seen.append(call.exception()))
    until(lambda: seen)


TAKES = [
    lambda call: call.exception(PATIENCE),
    take_result,
    take_by_await,
    take_by_run,
    take_by_future,
    take_result_of_future,
    take_in_a_callback,
]


@pytest.mark.parametrize("take", TAKES)
def test_a_failure_that_somebody_takes_is_not_reported(
    loop_thread: EventLoopThread, take: Callable[[Any], object], reported: list[Any]
) -> None:
    call: Any = started_on(loop_thread, fails_async)
    take(call)
    del call
    gc.collect()
    assert reported == []


def test_a_cancel_is_no_failure_and_a_time_out_is_one_until_somebody_asks(
    worker: WorkerThread, reported: list[Any]
) -> None:
    gate = Gate()
    blocker = started_on(worker, gate.pass_through)
    cancelled: Any = started_on(worker, int)
    cancelled.cancel()
    late = [Call.new(int) for _ in range(2)]
    for call in late:
        call.set_timeout(0)
        until(worker.submit(call).done)
    gate.set()
    blocker.result(PATIENCE)
    worker.shutdown()
    assert late.pop().timedout()
    del cancelled, call
    assert reported == []
    late.clear()
    assert [type(one.exc_value) for one in reported] == [TimeoutError]


def test_a_failure_is_reported_in_the_context_of_its_call(
    worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which says where output goes: to the cell that launched it.
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="another")
    told_in: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda _: told_in.append(cell.get()))
    cell.set("its own")
    call: Any = started_on(worker, fails_sync)
    cell.set("another")
    until(call.done)
    worker.shutdown()
    del call
    assert told_in == ["its own"]


def test_what_is_left_at_the_end_is_reported_then_and_shows_the_users_frames() -> None:
    result = python("""
        from ipyportal import submit
        def inner():
            1 / 0
        async def outer():
            inner()
        call = submit(outer())
        while not call.done():
            pass
        print("the end")
    """)
    assert result.stdout == "the end\n"
    assert result.stderr.startswith("ipyportal: outer failed on ipyportal-loop, and its exception was never retrieved")
    assert result.stderr.count("ZeroDivisionError") == 1
    assert [line for line in result.stderr.splitlines() if "File" in line and "ipyportal" in line] == []
    assert result.stderr.count('File "<string>"') == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_report_its_parents_failures() -> None:
    result = python("""
        import gc, os, warnings
        from ipyportal import submit
        warnings.simplefilter("ignore")
        async def fails():
            1 / 0
        call = submit(fails())
        while not call.done():
            pass
        if (child := os.fork()) == 0:
            del call
            gc.collect()
            raise SystemExit
        os.waitpid(child, 0)
        assert call.exception() is not None
    """)
    assert result.stderr == ""
