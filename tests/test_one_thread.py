"""What needs no second thread: on the desktop, and in Pyodide, whose only thread is the page's.

`tests/lite/test_node.py` runs this file in Pyodide, too. There `asyncio.run` runs its coroutine on the page's loop, and
the code that calls it stands still.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import ipyportal
from ipyportal import Call, EventLoopThread, WorkerThread, enter, get_worker_thread, iterate, run, submit, syncify
from ipyportal.concurrency import (
    can_suspend,
    cancel_async_after,
    cancel_sync_after,
    create_call,
    from_sync,
    shield,
    shutdown,
    suspend,
    suspended_stacks,
    wait_for_global_loop_exit,
)
from ipyportal.concurrency.pyodide import IN_PYODIDE

if not IN_PYODIDE:
    pytest.importorskip("greenlet", reason="nothing can be suspended here")

pyodide = pytest.mark.skipif(not IN_PYODIDE, reason="has one thread")

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


async def double(n: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * n


def doubled(n: int) -> int:
    return run(double(n))


class Job:
    """A coroutine that waits for long, and says what became of it."""

    def __init__(self, clean_up: float = 0.0) -> None:
        self.said: list[str] = []
        self._clean_up = clean_up

    async def work(self) -> None:
        try:
            self.said.append("begun")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.said.append("cancelled")
            raise
        finally:
            await asyncio.sleep(self._clean_up)
            self.said.append("cleaned up")


CLEANED = ["begun", "cancelled", "cleaned up"]


# --- where code may be when it waits ---------------------------------------------------------------------------------


async def in_a_task(fn: Callable[[], Any]) -> Any:
    task = asyncio.current_task()
    try:
        return fn()
    finally:
        assert asyncio.current_task() is task


async def in_a_child(fn: Callable[[], Any]) -> Any:
    async def child() -> Any:
        return fn()

    return (await asyncio.gather(child(), asyncio.sleep(0)))[0]


async def _called_back(fn: Callable[[], Any], schedule: Callable[..., object]) -> Any:
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def callback(*_: object) -> None:
        assert asyncio.current_task() is None
        try:
            outcome.set_result(fn())
        except BaseException as exc:  # noqa: BLE001 - it is raised where the test is
            outcome.set_exception(exc)

    schedule(callback)
    return await outcome


async def in_a_callback(fn: Callable[[], Any]) -> Any:
    return await _called_back(fn, asyncio.get_running_loop().call_soon)


async def in_a_timer(fn: Callable[[], Any]) -> Any:
    return await _called_back(fn, functools.partial(asyncio.get_running_loop().call_later, 0.001))


async def in_a_done_callback(fn: Callable[[], Any]) -> Any:
    return await _called_back(fn, asyncio.ensure_future(asyncio.sleep(0)).add_done_callback)


async def in_a_call(fn: Callable[[], Any]) -> Any:
    return await submit(fn)


PLACES = [in_a_task, in_a_child, in_a_callback, in_a_timer, in_a_done_callback, in_a_call]
every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)


@every_place
def test_the_loop_goes_on_while_code_waits(place: Any) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        assert await place(lambda: doubled(21)) == 42
        assert ticks
        ticking.cancel()
        await asyncio.wait([ticking])

    asyncio.run(main())


@every_place
def test_code_may_wait_many_times_and_in_any_frame(place: Any) -> None:
    class Lazy:
        @property
        def value(self) -> int:
            return doubled(1)

        def __getattr__(self, name: str) -> int:
            return doubled(len(name))

        def __repr__(self) -> str:
            return f"<{doubled(3)}>"

        def __lt__(self, other: object) -> bool:
            return doubled(1) == 3

    def fn() -> Any:
        lazy = Lazy()
        return (
            list(map(doubled, range(3))),
            sorted([3, 1, 2], key=doubled),
            [item + 1 for item in (doubled(n) for n in range(2))],
            lazy.value,
            lazy.abcd,
            repr(lazy),
            max(Lazy(), Lazy()) is None,
        )

    assert asyncio.run(place(fn)) == ([0, 2, 4], [1, 2, 3], [1, 3], 2, 8, "<6>", False)


@every_place
def test_what_is_awaited_sees_and_sets_the_callers_variables(place: Any) -> None:
    async def work() -> int:
        seen = variable.get()
        await asyncio.sleep(0)
        variable.set(seen + 1)
        return seen

    def fn() -> list[int]:
        variable.set(5)
        return [run(work()), variable.get(), run(work()), variable.get()]

    assert asyncio.run(place(fn)) == [5, 6, 6, 7]


@every_place
def test_an_exception_comes_out_of_the_wait(place: Any) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("gone")

    def fn() -> None:
        with pytest.raises(KeyError, match="gone"):
            run(fails())
        with pytest.raises(KeyError, match="gone"):
            run(fails)

    asyncio.run(place(fn))


@every_place
def test_a_time_out_ends_the_work_and_its_clean_up_has_run(place: Any) -> None:
    job = Job(clean_up=0.01)

    def fn() -> None:
        with pytest.raises(TimeoutError, match=r"work timed out after 0\.02 s"):
            run(job.work(), timeout=0.02)

    asyncio.run(place(fn))
    assert job.said == CLEANED


@every_place
def test_waits_may_be_nested(place: Any) -> None:
    def down(depth: int) -> int:
        return 0 if depth == 0 else 1 + run(further(depth - 1))

    async def further(depth: int) -> int:
        await asyncio.sleep(0)
        return down(depth)

    assert asyncio.run(place(lambda: down(20))) == 20


def test_many_tasks_wait_at_once_and_end_in_any_order() -> None:
    async def main() -> None:
        gates = [asyncio.get_running_loop().create_future() for _ in range(300)]
        over: list[int] = []

        async def task(number: int) -> None:
            over.append(run(wait_for(number)))

        async def wait_for(number: int) -> int:
            await gates[number]
            return number

        tasks = [asyncio.ensure_future(task(number)) for number in range(300)]
        await asyncio.sleep(0.01)
        order = [*range(1, 300, 2), *reversed(range(0, 300, 2))]
        for number in order:
            gates[number].set_result(None)
            await asyncio.sleep(0)
        await asyncio.wait(tasks)
        assert over == order

    asyncio.run(main())


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_task_ends_what_its_code_waits_for() -> None:
    job = Job(clean_up=0.01)

    async def victim() -> None:
        run(job.work())

    async def main() -> None:
        task = asyncio.ensure_future(victim())
        await asyncio.sleep(0.01)
        assert job.said == ["begun"]
        assert task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert job.said == CLEANED


def test_a_cancel_is_told_once_and_can_be_taken_back() -> None:
    async def main() -> list[Any]:
        said: list[Any] = []

        async def stubborn() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                run(asyncio.sleep(60))
            except asyncio.CancelledError:
                said.append(task.cancelling())
                said.append(task.uncancel())
            await asyncio.sleep(0.01)  # would raise if it were told again
            said.append(doubled(1))

        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0.01)
        task.cancel()
        await task
        return said

    assert asyncio.run(main()) == [1, 0, 2]


def test_asyncios_own_scopes_hold_around_a_wait() -> None:
    job, other = Job(), Job()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                run(job.work())

        async def fails() -> None:
            await asyncio.sleep(0.01)
            raise KeyError

        async def waits() -> None:
            run(other.work())

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(waits())
                group.create_task(fails())
        with pytest.raises(TimeoutError), cancel_async_after(0.02):
            run(asyncio.sleep(60))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert job.said == other.said == CLEANED


@every_place
def test_a_scope_around_synchronous_code_ends_its_wait(place: Any) -> None:
    job = Job()

    def fn() -> None:
        with pytest.raises(TimeoutError), cancel_sync_after(0.02):
            run(job.work())
        assert doubled(1) == 2

    asyncio.run(place(fn))
    assert job.said == CLEANED


@every_place
def test_a_shield_holds_a_cancel_back(place: Any) -> None:
    def fn() -> list[str]:
        said = []
        with pytest.raises(TimeoutError), cancel_sync_after(0.02):
            with shield():
                run(asyncio.sleep(0.06))
                said.append("whole")
            run(asyncio.sleep(60))
        return said

    assert asyncio.run(place(fn)) == ["whole"]


# --- calls -----------------------------------------------------------------------------------------------------------


@every_place
def test_submit_starts_calls_that_run_at_once(place: Any) -> None:
    def fn() -> list[int]:
        calls = [submit(double, n) for n in range(5)]
        return [calls[0].result(), calls[1].result(timeout=5), run(calls[2]), *(call.result() for call in calls[3:])]

    assert asyncio.run(place(fn)) == [0, 2, 4, 6, 8]


@every_place
def test_a_call_can_be_cancelled_and_timed_out(place: Any) -> None:
    job, other = Job(), Job(clean_up=0.01)

    def fn() -> None:
        call = submit(job.work)
        while not job.said:
            run(asyncio.sleep(0.001))
        call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        late = submit(other.work, timeout=0.2)
        with pytest.raises(TimeoutError):
            late.result(timeout=0.001)
        with pytest.raises(TimeoutError, match="timed out"):
            late.result()

    asyncio.run(place(fn))
    assert job.said == other.said == CLEANED


def test_a_deadline_ends_a_call_that_nobody_waits_for() -> None:
    async def main() -> bool:
        job = Job()
        call = submit(job.work, timeout=0.02)
        over = asyncio.Event()
        call.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(over.set))
        if IN_PYODIDE:
            await asyncio.wait_for(over.wait(), 5)
        else:
            while not call.done():
                await asyncio.sleep(0.001)
        return call.timedout()

    assert asyncio.run(main())


def test_a_failure_that_nobody_takes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    async def fails() -> None:
        raise KeyError("nobody sees this")

    async def main() -> None:
        call = submit(fails)
        while not call.done():
            await asyncio.sleep(0.001)
        del call

    asyncio.run(main())
    gc.collect()
    assert [type(report.exc_value) for report in reported] == [KeyError]


@every_place
def test_from_sync_waits_and_takes_what_is_sent_back(place: Any) -> None:
    async def work() -> int:
        return await from_sync.call_soon_in_waiting_thread(create_call(double, 3))

    def fn() -> list[int]:
        return [
            from_sync.wait_for_call_in_loop_thread(create_call(double, 2)),
            from_sync.call_in_loop_thread(create_call(double, 4)),
            from_sync.wait_for_call_in_loop_thread(work),
        ]

    assert asyncio.run(place(fn)) == [4, 8, 6]


# --- many items, streams, classes ------------------------------------------------------------------------------------


@every_place
@pytest.mark.parametrize("fn", [double, doubled, lambda n: 2 * n], ids=["async", "waits", "sync"])
def test_map_calls_a_function_for_many(place: Any, fn: Callable[[int], Any]) -> None:
    def maps() -> Any:
        return ipyportal.map(fn, range(10)), sorted(ipyportal.map.unordered(fn, range(10), limit=3))

    expected = [2 * n for n in range(10)]
    assert asyncio.run(place(maps)) == (expected, expected)


@every_place
def test_map_ends_what_is_in_flight(place: Any) -> None:
    jobs = [Job() for _ in range(3)]

    async def work(n: int) -> int:
        if n < 3:
            await jobs[n].work()
        if n == 4:
            raise KeyError(n)
        return n

    def fn() -> None:
        with pytest.raises(KeyError) as caught:
            ipyportal.map(work, range(5))
        assert caught.value.finished == {3: 3}  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            ipyportal.map(asyncio.sleep, [60, 60], timeout=0.02)

    asyncio.run(place(fn))
    assert [job.said for job in jobs] == [CLEANED] * 3


@every_place
def test_iterate_and_enter(place: Any) -> None:
    said: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for n in range(10):
                await asyncio.sleep(0.001)
                yield n
        finally:
            said.append("closed")

    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        said.append("open")
        await asyncio.sleep(0)
        try:
            yield "it"
        finally:
            await asyncio.sleep(0)
            said.append("left")

    def fn() -> None:
        assert list(iterate(numbers())) == list(range(10))
        for n in iterate(numbers()):
            if n == 2:
                break
        with enter(opened()) as it:
            assert it == "it"
            assert doubled(1) == 2

    asyncio.run(place(fn))
    assert said == ["closed", "closed", "open", "left"]


@every_place
def test_a_block_sees_the_variables_that_are_set_when_it_is_entered(place: Any) -> None:
    @asynccontextmanager
    async def sets() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        variable.set(7)
        yield

    async def numbers() -> AsyncIterator[int]:
        variable.set(8)
        yield 1

    def fn() -> list[int]:
        seen = []
        with enter(sets()):
            seen.append(variable.get())
        return seen + [variable.get() for _ in iterate(numbers())]

    assert asyncio.run(place(fn)) == [7, 8]


def test_a_timeout_that_was_entered_ends_a_wait() -> None:
    job = Job()

    async def main() -> None:
        with pytest.raises(TimeoutError), enter(asyncio.timeout(0.02)):
            run(job.work())

    asyncio.run(main())
    assert job.said == CLEANED


@every_place
def test_a_class_can_be_made_synchronous(place: Any) -> None:
    class Client:
        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            await asyncio.sleep(0)

        async def get(self, n: int) -> int:
            return await double(n)

        async def pages(self) -> AsyncIterator[int]:
            for n in range(3):
                yield await double(n)

    def fn() -> Any:
        with syncify(Client)() as client:
            return client.get(4), list(client.pages())

    assert asyncio.run(place(fn)) == (8, [0, 2, 4])


@every_place
def test_the_stacks_of_what_waits_are_seen(place: Any) -> None:
    async def main() -> list[list[str]]:
        over = asyncio.get_running_loop().create_future()
        waits = asyncio.ensure_future(place(lambda: outer(over)))
        while not any(frame.name == "waits_for" for stack in suspended_stacks() for frame in stack):
            await asyncio.sleep(0.001)
        stacks = [[frame.name for frame in stack] for stack in suspended_stacks()]
        over.set_result(None)
        await waits
        assert suspended_stacks() == []
        return stacks

    def outer(over: asyncio.Future[None]) -> None:
        inner(over)

    def inner(over: asyncio.Future[None]) -> None:
        run(waits_for(over))

    async def waits_for(over: asyncio.Future[None]) -> None:
        while not over.done():
            await asyncio.sleep(0.001)

    (stack,) = asyncio.run(main())
    assert [name for name in stack if name in ("outer", "inner", "waits_for")] == ["outer", "inner", "waits_for"]


def test_suspend_awaits_in_a_task() -> None:
    async def main() -> Any:
        assert can_suspend()
        return suspend(double(2))

    assert asyncio.run(main()) == 4


# --- Pyodide alone ---------------------------------------------------------------------------------------------------


@pyodide
@pytest.mark.parametrize(
    "action",
    [
        lambda: run(double(1), on="thread"),
        lambda: submit(double, 1, on="thread"),
        lambda: ipyportal.map(doubled, [1], on="thread"),
        lambda: ipyportal.set_route("thread"),
        lambda: WorkerThread().submit(Call.new(doubled, 1)),
        lambda: EventLoopThread().start(),
        lambda: get_worker_thread("db").submit(Call.new(doubled, 1)),
        lambda: from_sync.call_in_new_thread(gc.isenabled),
    ],
)
def test_what_needs_a_thread_is_refused(action: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="one thread, and no other can be started"):
        action()


@pyodide
def test_what_javascript_calls_and_does_not_wait_for_cannot_wait() -> None:
    from pyodide.code import run_js  # type: ignore[import-not-found, unused-ignore]
    from pyodide.ffi import create_proxy  # type: ignore[import-not-found, unused-ignore]

    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    async def numbers() -> AsyncIterator[int]:
        yield 1

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        yield

    def fn() -> list[str]:
        texts = []
        waits: list[Callable[[], object]] = [
            lambda: run(work),
            lambda: submit(double, 1).result(),
            lambda: ipyportal.map(double, [1]),
            lambda: list(iterate(numbers())),
            lambda: enter(opened()).__enter__(),
            lambda: from_sync.wait_for_call_in_loop_thread(work),
        ]
        for wait in waits:
            try:
                wait()
            except RuntimeError as exc:
                texts.append(str(exc))
        assert not can_suspend()
        return texts

    proxy = create_proxy(fn)
    texts = run_js("(fn) => fn().toJs()")(proxy)
    proxy.destroy()
    assert len(texts) == 6
    assert all("JavaScript called this code, and does not wait for it" in text for text in texts)
    # By the name of what it is for, and not as a call: no task has begun that would have to be ended.
    names = [text.partition(": ")[0].removeprefix("nothing can wait here for ") for text in texts[2:5]]
    assert [name.rpartition(".")[2] for name in names] == ["map of double", "numbers", "opened"]
    assert ran == []  # what was refused has not run


@pyodide
def test_the_global_loop_is_the_pages() -> None:
    async def main() -> None:
        portal = ipyportal.get_global_loop()
        assert portal.loop is asyncio.get_running_loop()
        assert portal is ipyportal.get_global_loop()
        assert portal.running()
        assert portal.submit(Call.new(double, 1)).result() == 2
        with pytest.raises(RuntimeError, match="cannot be shut down"):
            portal.shutdown()

    asyncio.run(main())


@pyodide
def test_asyncio_run_ends_what_it_leaves_while_it_is_patched() -> None:
    job, inner, beside = Job(clean_up=0.01), Job(), Job()

    async def main() -> int:
        asyncio.ensure_future(job.work())  # noqa: RUF006 - it is left

        def library() -> int:
            return asyncio.run(work())

        async def work() -> int:
            asyncio.ensure_future(inner.work())  # noqa: RUF006
            return await double(2)

        global submitted
        submitted = submit(asyncio.sleep, 0.03, "goes on")
        result = library()
        assert inner.said == CLEANED
        assert job.said == ["begun"]
        return result

    genuine = asyncio.run
    other = asyncio.ensure_future(beside.work())
    with ipyportal.patch_asyncio():
        assert asyncio.run(main()) == 4
        assert job.said == CLEANED
        assert submitted.result() == "goes on"
        with pytest.raises(KeyError):
            asyncio.run(_fails())
        with pytest.raises(TypeError, match="needs a coroutine or another awaitable, not int"):
            asyncio.run(1)  # type: ignore[arg-type]
        assert asyncio.run(asyncio.ensure_future(double(1)), loop_factory=None) == 2  # type: ignore[arg-type, call-arg, unused-ignore]
        with pytest.raises(RuntimeError, match=r"type run\(x\)"):
            asyncio.Runner().run(refused := double(1))
        refused.close()
        assert asyncio.get_running_loop().run_until_complete(double(3)) == 6
    assert asyncio.run is genuine
    assert beside.said == ["begun"]
    other.cancel()
    run(asyncio.wait([other]))


submitted: Call[str]


async def _fails() -> None:
    raise KeyError


# What stands still by Pyodide's own means, as `time.sleep`, leaves on its record what it has entered.


@pyodide
def test_a_deadline_of_code_that_sleeps_does_not_end_other_code() -> None:
    async def main() -> list[str]:
        def sleeps() -> str:
            try:
                with cancel_sync_after(0.01):
                    time.sleep(0.1)  # Pyodide's own: it stands still, and is told at its next wait
                    run(asyncio.sleep(60))
            except TimeoutError:
                return "timed out"
            return "went on"

        def waits() -> str:
            time.sleep(0.05)  # until the deadline is over, and before the other has been told
            run(asyncio.sleep(0.01))
            return "waited"

        return [await call for call in [submit(sleeps), submit(waits)]]

    assert asyncio.run(main()) == ["timed out", "waited"]


@pyodide
def test_a_cancel_comes_to_its_own_code_and_not_to_other_code_that_stands_still() -> None:
    async def main() -> list[str]:
        over = asyncio.get_running_loop().create_future()

        def victim() -> str:
            try:
                with cancel_sync_after(None) as scope:
                    asyncio.get_running_loop().call_soon(lambda: (over.set_result(None), scope.cancel()))
                    run(asyncio.wait([over]))
                    run(asyncio.sleep(60))
            except asyncio.CancelledError:
                return "cancelled"
            return "went on"

        def bystander() -> str:
            run(asyncio.sleep(0.05))
            return "went on"

        return [await call for call in [submit(victim), submit(bystander)]]

    assert asyncio.run(main()) == ["cancelled", "went on"]


@pyodide
def test_the_end_of_the_engine_cancels_the_calls_of_the_page() -> None:
    job = Job()
    call = submit(job.work)
    run(asyncio.sleep(0.01))
    unbegun = submit(job.work)
    shutdown()
    for one in call, unbegun:
        with pytest.raises(concurrent.futures.CancelledError):
            one.result()
    assert job.said == CLEANED
    with pytest.raises(RuntimeError, match="cannot be shut down"):
        wait_for_global_loop_exit()
