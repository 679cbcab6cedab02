"""`run` where it is called without the extension: a script, pytest, a loop's own thread."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from ipyportal import get_worker_thread, run, submit


async def soon() -> int:
    await asyncio.sleep(0)
    return 1


def test_a_task_of_the_loop_that_the_wait_would_block_is_refused_with_the_remedy() -> None:
    async def main() -> None:
        task = asyncio.create_task(soon())
        with pytest.raises(RuntimeError, match="Task of this thread's own loop would never end.*%load_ext ipyportal"):
            run(task)
        assert await task == 1

    asyncio.run(main())


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
