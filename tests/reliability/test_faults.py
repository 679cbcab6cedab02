"""What user code does that it should not: each call still ends, and the engine goes on with the calls of others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import ipyportal
from ipyportal.concurrency import (
    Call,
    State,
    cancel_sync_after,
    from_sync,
    get_global_loop,
    get_worker_thread,
)
from ipyportal.concurrency.cancellation.clock import clock
from ipyportal.concurrency.reporting import report
from tests.concurrency.helpers import PATIENCE, Gate, python, soon, until

PORTALS: dict[str, Callable[[Call[Any]], Call[Any]]] = {
    "loop": lambda call: get_global_loop().submit(call),
    "worker": lambda call: get_worker_thread("faults").submit(call),
    "lent thread": from_sync.call_soon_in_new_thread,
}
everywhere = pytest.mark.parametrize("submit", PORTALS.values(), ids=PORTALS)


def check_that_it_goes_on(submit: Callable[[Call[Any]], Call[Any]]) -> None:
    assert submit(Call.new(lambda: 5)).result(PATIENCE) == 5


# --- exceptions ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Its attributes cannot be set, `__traceback__` and `__notes__` among them."""

    number: int = 5


class Unprintable(RuntimeError):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = RuntimeError.__hash__


class Untraceable(Exception):
    @property
    def __traceback__(self) -> NoReturn:
        raise ZeroDivisionError

    @__traceback__.setter
    def __traceback__(self, value: object) -> NoReturn:
        raise ZeroDivisionError

    def with_traceback(self, tb: object) -> NoReturn:
        raise ZeroDivisionError


exceptions = pytest.mark.parametrize("exception", [Frozen, Unprintable, Untraceable, MemoryError, RecursionError])


@everywhere
@exceptions
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_any_exception_reaches_who_takes_the_result(
    submit: Callable[..., Call[Any]], exception: type[Exception], asynchronous: bool
) -> None:
    def fail() -> NoReturn:
        raise exception

    async def fail_later() -> NoReturn:
        await asyncio.sleep(0)
        raise exception

    call = submit(Call.new(fail_later if asynchronous else fail))
    with pytest.raises(exception):
        call.result(PATIENCE)
    assert type(asyncio.run(raised_by(call))) is exception
    with pytest.raises(exception):
        call.future.result(PATIENCE)
    check_that_it_goes_on(submit)


async def raised_by(call: Call[Any]) -> Exception | None:
    try:
        await call
    except Exception as exc:  # noqa: BLE001
        return exc
    return None


@exceptions
@pytest.mark.parametrize(
    "run", [ipyportal.run, lambda fn: ipyportal.submit(fn).result(PATIENCE)], ids=["run", "submit"]
)
def test_any_exception_passes_through_run_and_submit(run: Callable[..., Any], exception: type[Exception]) -> None:
    async def fail() -> NoReturn:
        raise exception

    def fail_below() -> None:  # suspended on the loop thread
        ipyportal.run(fail())

    for fn in (fail, fail_below):
        with pytest.raises(exception):
            run(fn)


@exceptions
def test_any_exception_passes_through_map(exception: type[Exception]) -> None:
    async def fail(number: int) -> NoReturn:
        raise exception

    with pytest.raises(exception):
        ipyportal.map(fail, [1, 2])


# --- functions and results -------------------------------------------------------------------------------------------


class Unbound:
    """A lazy proxy outside of its context: whatever it is asked, it raises."""

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:
        raise RuntimeError("working outside of application context")

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("working outside of application context")

    def __call__(self) -> int:
        return 5

    def __repr__(self) -> str:
        raise RuntimeError("working outside of application context")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("working outside of application context")

    __hash__ = None  # type: ignore[assignment]


@everywhere
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_any_object_can_be_a_result(submit: Callable[..., Call[Any]], asynchronous: bool) -> None:
    result = Unbound()

    async def give() -> Unbound:
        return result

    call = submit(Call.new(give if asynchronous else lambda: result))
    assert call.result(PATIENCE) is result
    assert call.future.result(PATIENCE) is result


@everywhere
def test_any_callable_can_be_called(submit: Callable[..., Call[Any]]) -> None:
    call = submit(Call.new(Unbound()))
    assert call.result(PATIENCE) == 5
    assert call.name == "Unbound"


def test_any_object_can_be_sent_back() -> None:
    result = Unbound()

    def send_back() -> list[Call[Any]]:
        return [from_sync.call_soon_in_waiting_thread(lambda: result)]

    (call,) = from_sync.wait_for_call_in_new_thread(send_back)
    assert call.result() is result


# --- callbacks -------------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["done callback", "callback of the future"])
def test_a_callback_that_raises_keeps_nobody_from_being_told(
    submit: Callable[..., Call[Any]],
    error: type[BaseException],
    kind: str,
    reported: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> NoReturn:
        raise error

    gate, told = Gate(), Gate()
    call = Call.new(gate.pass_through)
    (call if kind == "done callback" else call.future).add_done_callback(fail)
    call.add_done_callback(lambda _: told.set())
    submit(call)
    gate.set()
    call.result(PATIENCE)
    told.pass_through()
    check_that_it_goes_on(submit)
    if kind == "done callback" or error is not ZeroDivisionError:  # the others are logged by concurrent.futures
        assert [report.exc_type for report in reported] == [error]


def test_a_callback_that_raises_is_shown_on_stderr_where_no_hook_is_set() -> None:
    # As in every kernel and script: Python's own `sys.unraisablehook` takes nothing but what the interpreter makes.
    ran = python(
        """
        import time
        from ipyportal.concurrency import *
        for portal in (get_global_loop(), get_worker_thread("w")):
            call = Call.new(time.sleep, 0.01)
            call.add_done_callback(lambda call: 1 / 0)
            portal.submit(call)
            print(call.result(10), portal.submit(Call.new(int)).result(10))
        """
    )
    assert (ran.returncode, ran.stdout) == (0, "None 0\nNone 0\n")
    assert ran.stderr.count("ipyportal: a done callback of <Call sleep finished on ipyportal-") == 2
    assert ran.stderr.count("ZeroDivisionError: division by zero") == 2


def test_a_report_raises_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def hook(_: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "unraisablehook", hook)
    report(Untraceable(), "it failed")
    assert capsys.readouterr().err.startswith("ipyportal: it failed:\n")
    for stderr in (None, object()):
        monkeypatch.setattr(sys, "stderr", stderr)
        report(Frozen(), "it failed")


@everywhere
def test_a_future_that_somebody_else_sets_keeps_nobody_from_being_told(
    submit: Callable[..., Call[Any]], reported: list[Any]
) -> None:
    gate = Gate()
    call = Call.new(gate.pass_through)
    call.future.set_result(None)
    submit(call)
    gate.set()
    call.result(PATIENCE)
    assert [report.exc_type for report in reported] == [concurrent.futures.InvalidStateError]
    check_that_it_goes_on(submit)


@everywhere
def test_a_done_callback_may_submit_again(submit: Callable[..., Call[Any]]) -> None:
    again: list[Call[Any]] = []
    done = Gate()

    def go_on(_: object) -> None:
        if len(again) == 20:
            done.set()
            return
        again.append(Call.new(int))
        again[-1].add_done_callback(go_on)
        submit(again[-1])

    first = Call.new(int)
    first.add_done_callback(go_on)
    submit(first)
    done.pass_through()
    assert {call.state for call in again} == {State.FINISHED}


def test_a_done_callback_that_blocks_keeps_no_deadline_from_being_kept() -> None:
    # The race: the clock gives a blocked call up, and runs its callbacks; they wait for what only the clock can end.
    gate, free = Gate(), Gate()
    call = Call.new(lambda: gate.wait(PATIENCE))
    call.add_done_callback(lambda _: free.pass_through())
    call.set_timeout(0.01)
    from_sync.call_soon_in_new_thread(call)
    until(call.done)  # after the grace
    assert call.timedout()
    with soon(), pytest.raises(TimeoutError), cancel_sync_after(0.01):
        while True:
            pass
    assert clock.ident is not None
    free.set()
    gate.set()
