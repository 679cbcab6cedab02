"""No lock of the engine is held while user code runs."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    SyncWaiter,
    WorkerThread,
    cancel_sync_after,
    from_sync,
)
from ipyportal.concurrency.cancellation.interruption import thread_state
from tests.concurrency.helpers import PATIENCE, Gate, until


def in_another_thread(do: Callable[[], object]) -> bool:
    """Whether another thread can do that while this one stands here."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(1.0)
    return not thread.is_alive()


def test_no_lock_is_held_while_a_finalizer_of_an_argument_runs() -> None:
    free: list[bool] = []

    class Argument:
        def __del__(self) -> None:
            free.append(in_another_thread(lambda: call._when_done(lambda _: None)))

    call = Call.new(lambda argument: None, Argument())
    call.cancel()
    assert free == [True]


def test_no_lock_is_held_while_a_functions_name_is_asked_for() -> None:
    free: list[bool] = []

    class Function:
        def __call__(self) -> None: ...

        @property
        def __name__(self) -> str:
            free.append(in_another_thread(lambda: call._when_done(lambda _: None)))
            return "name"

    call = Call.new(Function())
    call.cancel()
    assert free
    assert all(free)


@pytest.mark.parametrize("what", ["call", "scope"])
def test_no_lock_is_held_while_callbacks_of_a_call_run_that_ends_with_its_caller(
    what: str, worker: WorkerThread
) -> None:
    # The race: the thread that waits must get at its own record while another, which cancels it, runs callbacks.
    begun, block = Gate(), Gate()
    free: list[bool] = []
    worker.submit(Call.new(block.pass_through))
    queued = Call.new(int)
    scopes = [cancel_sync_after(None)]

    def outer() -> None:
        with scopes[0]:
            queued.add_done_callback(lambda _: free.append(in_another_thread(probe)))
            begun.set()
            SyncWaiter(queued).wait(worker)

    def probe() -> None:
        if record := records[0]:
            with record._lock:
                pass
        with scopes[0]._lock:
            pass

    records: list[Any] = []

    def start() -> None:
        records.append(thread_state())
        outer()

    call = from_sync.call_soon_in_new_thread(start)
    begun.pass_through()
    until(lambda: queued.portal is not None)
    (call if what == "call" else scopes[0]).cancel()
    concurrent.futures.wait([call.future], PATIENCE)
    block.set()
    assert queued.cancelled()
    assert free == [True]
