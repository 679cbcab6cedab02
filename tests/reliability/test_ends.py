"""How processes end: with calls in flight, at the interpreter's exit, in forked children, and in multiprocessing.

Each of them is an interpreter of its own, in development mode, with warnings as errors: nothing may be said on stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipyportal.concurrency import Call, cancel_sync_after, from_sync, shutdown
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.portals import get_thread_pool
from tests.concurrency.helpers import PATIENCE, soon, until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SETUP = """
import asyncio, concurrent.futures, gc, multiprocessing, os, sys, threading, time, warnings
import logging
import ipyportal
from ipyportal.concurrency import *

logging.disable()  # asyncio says which callbacks were slow, as forks are
warnings.simplefilter("ignore", DeprecationWarning)  # a fork in a process with threads is what some of this is about
begun = threading.Semaphore(0)


def cleaned_up():
    os.write(1, b"clean-up\\n")  # in one piece: other processes write there, too


async def work():
    begun.release()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        cleaned_up()


def sync_work():
    begun.release()
    try:
        while True:
            time.sleep(0.001)
    finally:
        cleaned_up()


def ready(calls):
    for _ in calls:
        assert begun.acquire(timeout=10)
    return calls
"""


def check_end(script: str, output: list[str], *, returncode: int = 0, path: Path | None = None) -> None:
    """The process says `output`, in any order, and ends well within 2 seconds of its last statement."""
    text = f"{SETUP}\n{textwrap.dedent(script)}"
    if path is None:
        what = ["-c", text]
    else:
        path.write_text(text, encoding="utf-8")
        what = [str(path)]
    with soon(10):  # as others may use the machine, too
        ran = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", *what],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ran.returncode, sorted(ran.stdout.splitlines()), ran.stderr) == (returncode, sorted(output), "")


# --- the interpreter's exit ------------------------------------------------------------------------------------------


def test_clean_ups_run_at_exit_wherever_calls_are_in_flight() -> None:
    check_end(
        """
        portals = [EventLoopThread(), EventLoopThread(), WorkerThread(), WorkerThread(), get_worker_thread("w")]
        works = [work, sync_work, work, sync_work, work]
        calls = ready([
            *(portal.submit(Call.new(fn)) for portal, fn in zip(portals, works)),
            ipyportal.submit(work),
            ipyportal.submit(lambda: ipyportal.run(work())),  # suspended
            from_sync.call_soon_in_new_thread(sync_work),
            from_sync.call_soon_in_new_thread(lambda: ipyportal.run(work())),  # blocked
            from_sync.call_soon_in_new_thread(lambda: asyncio.run(work())),
        ])
        """,
        ["clean-up"] * 10,
    )


def test_a_call_that_exits_ends_alone_and_an_error_of_the_program_changes_nothing() -> None:
    check_end(
        """
        calls = ready([ipyportal.submit(work)])
        for submit in (ipyportal.submit, from_sync.call_soon_in_new_thread, get_worker_thread("w").submit):
            assert type(submit(Call.new(sys.exit, 3)).exception()) is SystemExit
        sys.excepthook = lambda *exc_info: None
        raise ZeroDivisionError
        """,
        ["clean-up"],
        returncode=1,
    )


def test_threads_that_are_no_daemons_finish_their_calls_and_end() -> None:
    check_end(
        """
        for make in (EventLoopThread, WorkerThread):
            make(daemon=False).start()
            make(daemon=False)
            call = make(daemon=False).submit(Call.new(time.sleep, 0.05))
            call.add_done_callback(lambda call: cleaned_up())
            make(daemon=False).submit(Call.new(asyncio.sleep, 0.05)).add_done_callback(lambda call: cleaned_up())
        """,
        ["clean-up"] * 4,
    )


def test_what_cannot_be_ended_keeps_the_interpreter_for_a_second_in_all() -> None:
    check_end(
        """
        async def stubborn():
            begun.release()
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass

        lock = threading.Lock()
        lock.acquire()
        block = lambda: (begun.release(), lock.acquire())
        calls = ready([
            *(from_sync.call_soon_in_new_thread(block) for _ in range(10)),
            *(WorkerThread().submit(Call.new(block)) for _ in range(10)),
            *(EventLoopThread().submit(Call.new(stubborn)) for _ in range(10)),
            ipyportal.submit(stubborn),
        ])
        """,
        [],
    )


def test_the_engine_can_be_used_until_the_very_end() -> None:
    check_end(
        """
        import atexit

        def late():  # a thread that outlives the main one
            threading.main_thread().join()
            try:
                assert ipyportal.run(asyncio.sleep, 0.01, 5) == 5
                assert from_sync.call_in_new_thread(lambda: 6) == 6
            except RuntimeError:  # CPython 3.12: no thread can be started any more, whoever asks
                assert sys.version_info[:2] == (3, 12)
            os.write(1, b"late\\n")

        def later():
            try:
                assert ipyportal.run(asyncio.sleep, 0, 5) == 5
            except RuntimeError:  # CPython 3.12: no thread can be started
                pass
            os.write(1, b"later\\n")

        class Last:
            def __del__(self, run=ipyportal.run, write=os.write):
                try:
                    run(int, on="thread", timeout=1)
                except RuntimeError:
                    write(1, b"last\\n")

        last = Last()
        threading.Thread(target=late).start()
        atexit.register(later)
        """,
        ["late", "later", "last"],
    )


# --- forks -----------------------------------------------------------------------------------------------------------

IN_FLIGHT = """
portals = [EventLoopThread(), WorkerThread(), EventLoopThread(daemon=False), WorkerThread(daemon=False)]
for portal in portals:
    portal.submit(Call.new(int)).result()
calls = ready([
    *(portal.submit(Call.new(work)) for portal in portals[:2]),
    *(ipyportal.submit(work, timeout=60) for _ in range(3)),
    from_sync.call_soon_in_new_thread(sync_work),
    from_sync.call_soon_in_new_thread(lambda: ipyportal.run(work(), timeout=60)),
])
"""

FORK = """
def fork(leave):
    child = os.fork()
    if not child:
        gc.collect()
        assert ipyportal.run(asyncio.sleep, 0.01, 5) == 5
        assert from_sync.call_in_new_thread(lambda: 6, timeout=10) == 6
        assert ipyportal.submit(asyncio.sleep, 60).cancel()
        assert [portal.submit(Call.new(lambda: 7)).result(10) for portal in portals] == [7] * 4
        gc.collect()
        os.write(1, b"child\\n")
        leave(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@needs_fork
@pytest.mark.parametrize(
    "fork",
    [
        "fork(sys.exit)",
        "from_sync.call_in_new_thread(lambda: fork(os._exit))",
        "from_sync.call_in_loop_thread(lambda: fork(os._exit))",
        "asyncio.run(asyncio.to_thread(fork, os._exit))",
    ],
    ids=["main thread", "new thread", "loop thread", "to_thread"],
)
def test_a_child_that_is_forked_with_calls_in_flight_starts_afresh(fork: str) -> None:
    check_end(f"{IN_FLIGHT}{FORK}\n{fork}\n", ["child"] + ["clean-up"] * 7)


@needs_fork
@needs_fork
def test_a_process_of_multiprocessing_does_not_end_what_is_its_parents() -> None:
    check_end(
        """
        from ipyportal.concurrency.portals import shared
        shared.endings.append(cleaned_up)
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join(10)
        """,
        ["clean-up"],
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_start_afresh(method: str, tmp_path: Path) -> None:
    check_end(
        f"""
def target(answers):
    calls = ready([ipyportal.submit(work)])
    answers.put(ipyportal.run(asyncio.sleep, 0.01, 5))
    calls[0].cancel()
    concurrent.futures.wait([calls[0].future], 10)  # multiprocessing ends the process, whatever runs in it

if __name__ == "__main__":
{textwrap.indent(IN_FLIGHT, "    ")}
    context = multiprocessing.get_context({method!r})
    answers = context.SimpleQueue()
    process = context.Process(target=target, args=(answers,))
    process.start()
    assert answers.get() == 5
    process.join()
    assert process.exitcode == 0
""",
        ["clean-up"] * 8,
        path=tmp_path / "script.py",
    )


# --- shutdown --------------------------------------------------------------------------------------------------------


def test_a_call_for_a_lent_thread_that_has_just_been_ended_is_cancelled() -> None:
    # The race: the shutdown comes between the choice of an idle thread and the submitting to it.
    from_sync.call_in_new_thread(int)
    until(lambda: get_thread_pool().idle)
    chosen = get_thread_pool().idle[-1]
    shutdown()
    call = chosen.submit(Call.new(int))
    assert call.cancelled()


def test_shutting_down_while_threads_are_lent_loses_no_call(often: None) -> None:
    # The race: as above, and the thread may not even have been started.
    stop = threading.Event()
    calls: list[Call[Any]] = []

    def submit() -> None:
        while not stop.is_set():
            calls.append(from_sync.call_soon_in_new_thread(lambda: None))
            calls[-1]._when_done(lambda _: None)

    submitters = [threading.Thread(target=submit) for _ in range(3)]
    for one in submitters:
        one.start()
    for _ in range(20):
        shutdown()
    stop.set()
    for one in submitters:
        one.join()
    until(lambda: all(call.done() for call in calls))


def test_shutting_down_waits_for_all_together() -> None:
    block = threading.Event()
    begun: list[int] = []
    for _ in range(20):
        from_sync.call_soon_in_new_thread(lambda: (begun.append(1), block.wait(PATIENCE)))
    until(lambda: len(begun) == 20)
    begin = time.monotonic()
    shutdown(0.2)
    assert time.monotonic() - begin < 3.5  # and not 20 times 0.2
    block.set()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


class InterruptedOnce:
    """A lock in which Ctrl-C arrives."""

    def __init__(self, lock: Any, put_back: Callable[[Any], None]) -> None:
        self._lock = lock
        self._put_back = put_back

    def __enter__(self) -> None:
        self._put_back(self._lock)
        raise KeyboardInterrupt

    def __exit__(self, *exc_info: object) -> None: ...


def test_an_interrupt_at_the_end_of_a_scope_leaves_nothing_of_it() -> None:
    thread = thread_state()

    def put_back(lock: Any) -> None:
        thread._lock = lock

    with pytest.raises(KeyboardInterrupt), cancel_sync_after(PATIENCE):
        thread._lock = InterruptedOnce(thread._lock, put_back)  # type: ignore[assignment]
    assert thread.depth == 0
