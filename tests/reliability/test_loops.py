"""Loops that cannot run, and loop threads that are shut down while calls stand in their way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    State,
)
from tests.concurrency.helpers import PATIENCE, Gate, soon


def closed_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


def loop_with_a_task_factory_that_fails() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()

    def fail(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> NoReturn:
        coro.close()
        raise ZeroDivisionError

    loop.set_task_factory(fail)
    return loop


@pytest.mark.parametrize(
    ("factory", "error"),
    [
        (lambda: None, TypeError),  # uvloop.install, say
        (closed_loop, ValueError),
        (loop_with_a_task_factory_that_fails, ZeroDivisionError),
    ],
)
def test_a_loop_that_cannot_run_is_told_to_the_starter(factory: Callable[..., Any], error: type[Exception]) -> None:
    portal = EventLoopThread(loop_factory=factory)
    for _ in range(2):  # it can be tried again
        with pytest.raises(error):
            portal.submit(Call.new(int))
    portal.shutdown()


def test_a_call_for_which_no_task_can_be_made_fails_and_those_after_it_run() -> None:
    fail = False

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()

        def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            if fail:
                raise ZeroDivisionError
            return asyncio.Task(coro, loop=loop, **options)

        loop.set_task_factory(make_task)
        return loop

    with EventLoopThread(loop_factory=make_loop) as portal:
        portal.submit(Call.new(int)).result(PATIENCE)
        fail = True
        call = portal.submit(Call.new(int))
        with pytest.raises(ZeroDivisionError):
            call.result(PATIENCE)
        fail = False
        assert portal.submit(Call.new(int)).result(PATIENCE) == 0


def test_shutting_a_loop_down_interrupts_the_synchronous_call_that_blocks_it() -> None:
    begun = Gate()
    cleaned_up: list[int] = []

    def spin() -> None:
        begun.set()
        try:
            while True:
                pass
        finally:
            cleaned_up.append(1)

    portal = EventLoopThread()
    call = portal.submit(Call.new(spin))
    begun.pass_through()
    with soon():
        assert portal.shutdown(cancel=True, timeout=PATIENCE)
    assert (call.state, cleaned_up) == (State.CANCELLED, [1])


def test_a_call_that_is_cancelled_and_then_shut_down_is_interrupted_once() -> None:
    # The race: the second request comes in the middle of the clean-up.
    begun, cleaning, go_on = Gate(), Gate(), Gate()
    cleaned_up: list[int] = []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.sleep(PATIENCE)
        finally:
            cleaning.set()
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            cleaned_up.append(1)

    portal = EventLoopThread()
    call = portal.submit(Call.new(work))
    begun.pass_through()
    call.cancel()
    cleaning.pass_through()
    portal.shutdown(cancel=True, timeout=0)
    portal.loop.call_soon_threadsafe(go_on.set)
    assert portal.shutdown(timeout=PATIENCE)
    assert (call.state, cleaned_up) == (State.CANCELLED, [1])
