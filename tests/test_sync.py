"""`run` where it is called without the extension: a script, pytest, a loop's own thread."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from importlib.util import find_spec
from typing import Any

import pytest

from ipyportal import get_worker_thread, run, submit
from ipyportal.concurrency.greenlets import greenlets_available

from .concurrency.helpers import python

ADVICE = "this is uvloop.Loop. Use await; or" if greenlets_available() else "pip install greenlet"


async def soon() -> int:
    await asyncio.sleep(0)
    return 1


def test_a_task_of_the_loop_that_the_wait_would_block_is_refused_with_the_remedy(uvloop: Any) -> None:
    async def main() -> None:
        task = asyncio.create_task(soon())
        with pytest.raises(RuntimeError, match=f"Task of this thread's own loop would never end.*{ADVICE}"):
            run(task)
        assert await task == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_task_that_waits_for_itself_is_told_so_at_once() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Task cannot await on itself|would never end"):
            run(asyncio.current_task())  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_loop_that_is_blocked_is_warned_of_once_with_advice_that_fits(
    uvloop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> int:
        return run(soon()) + run(soon())

    monkeypatch.setattr("ipyportal.sync._warned", False)
    with (
        pytest.warns(RuntimeWarning, match=f"blocks the event loop.*{ADVICE}") as warned,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        assert runner.run(main()) == 2
    assert len(warned) == 1
    assert "%load_ext" not in str(warned[0].message)


def test_trio_is_warned_of_and_its_coroutines_are_told_where_they_run() -> None:
    if find_spec("trio") is None:
        pytest.skip("needs the package trio")
    # In a process of its own: trio changes what hypothesis does when it is imported.
    result = python("""
        import asyncio, warnings, trio
        from ipyportal import run

        async def soon():
            await asyncio.sleep(0)
            return 1

        async def main():
            return run(soon()) + run(soon())

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            print(trio.run(main), *[warning.message for warning in warned])
        try:
            run(trio.lowlevel.cancel_shielded_checkpoint())
        except RuntimeError as error:
            print(error, *error.__notes__)
        print(run(trio.run, trio.sleep, 0, on="thread"))
    """)
    first, second, third = result.stdout.splitlines()
    assert first.startswith("2 run() blocks the event loop"), result.stderr
    assert first.endswith("Use await; or await trio.to_thread.run_sync(function), and run() in that function")
    assert "Task got bad yield" in second
    assert 'run(trio.run, function, on="thread")' in second
    assert third == "None"


def test_a_task_that_is_done_gives_its_result_also_there() -> None:
    async def main() -> int:
        task = asyncio.create_task(soon())
        await task
        return run(task)

    assert asyncio.run(main()) == 1


def test_a_coroutine_whose_call_is_cancelled_before_it_has_begun_is_closed() -> None:
    gate = threading.Event()
    thread = get_worker_thread("a busy one")
    try:
        holding = submit(gate.wait, 30, on=thread)
        coroutine = soon()
        assert submit(coroutine, on=thread).cancel()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        gate.set()
        assert holding.result(30)
    finally:
        thread.shutdown()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_task_of_a_loop_that_nobody_runs_cleans_up_after_a_time_out_and_ctrl_c() -> None:
    result = python("""
        import asyncio, signal
        from ipyportal import run

        async def work():
            try:
                loop.call_soon(begun)
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        loop = asyncio.new_event_loop()
        begun = bool
        task = loop.create_task(work())
        try:
            run(task, timeout=0.05)
        except TimeoutError as error:
            print(error)
        assert task.cancelled()
        begun = lambda: loop.call_later(0.05, signal.raise_signal, signal.SIGINT)
        task = loop.create_task(work())
        try:
            run(task)
        except KeyboardInterrupt:
            print("Ctrl-C", task.cancelled())
        loop.close()
    """)
    assert result.stderr == ""
    assert result.stdout == "cleaned up\nwork timed out after 0.05 s\ncleaned up\nCtrl-C True\n"
