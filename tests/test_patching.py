"""``asyncio.run()`` and ``run_until_complete()`` where a loop runs, without a kernel."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import gc
import random
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from ipyportal import EventLoopThread, get_global_loop, patch_asyncio, patching, run, set_route, submit
from ipyportal.concurrency import Call, cancel_sync_after
from ipyportal.concurrency.suspension.loops import turns_possible
from tests.concurrency.helpers import NEST_ASYNCIO, PATIENCE, Gate, python, soon

PLACES: list[tuple[Any, str]] = [
    (asyncio, "run"),
    (asyncio.Runner, "run"),
    (asyncio.Runner, "close"),
    (asyncio.BaseEventLoop, "run_until_complete"),
    (asyncio.BaseEventLoop, "_run_once"),
    (asyncio.BaseEventLoop, "run_forever"),
    (asyncio.BaseEventLoop, "stop"),
    (asyncio.AbstractEventLoop, "__init_subclass__"),
]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


def attributes() -> list[Any]:
    return [vars(owner).get(name) for owner, name in PLACES]


def in_a_task(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


def in_a_call(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return get_global_loop().submit(Call.new(main)).result()


@pytest.fixture(params=[in_a_task, in_a_call])
def within(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Runs an async function in a task of a plain loop, or in a call on the loop thread, while the patch is on."""
    with patch_asyncio():
        yield request.param


async def double(n: int) -> int:
    await asyncio.sleep(0.001)
    return 2 * n


def reach(n: int) -> int:
    """A library's synchronous function."""
    return asyncio.run(double(n))


def reach_here(n: int) -> int:
    return asyncio.get_running_loop().run_until_complete(double(n))


class Ticks:
    """A task that shows that its loop goes on."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> Ticks:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.count += 1


def test_a_patch_that_is_not_entered_says_so() -> None:
    unused = patch_asyncio()
    assert "does nothing" in repr(unused)
    with pytest.warns(RuntimeWarning, match="with patch_asyncio"):
        del unused
    assert not patching.patched()


def test_the_patch_decorates_functions() -> None:
    @patch_asyncio()
    def patched() -> bool:
        return patching.patched()

    assert patched()
    assert patched()
    assert not patching.patched()


# --- asyncio.run -----------------------------------------------------------------------------------------------------


def test_asyncio_run_runs_a_fresh_loop_and_closes_it_while_this_one_goes_on(within: Callable[..., Any]) -> None:
    seen: list[Any] = []

    async def library() -> str:
        loop = asyncio.get_running_loop()
        seen.append((loop, threading.current_thread()))
        await asyncio.to_thread(seen.append, "the default executor")
        await asyncio.sleep(0.005)
        return "result"

    async def main() -> Any:
        async with Ticks() as ticks:
            result = asyncio.run(library())
            return result, ticks.count, asyncio.get_running_loop(), threading.current_thread()

    result, count, loop, thread = within(main)
    assert result == "result"
    assert count > 1
    (inner_loop, inner_thread), executor = seen
    assert executor == "the default executor"
    assert inner_loop is not loop
    assert inner_loop.is_closed()
    assert inner_loop._executor_shutdown_called
    assert inner_thread is not thread


def test_asyncio_run_shuts_async_generators_down(within: Callable[..., Any]) -> None:
    closed: list[str] = []

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async def library() -> Any:
        generator = numbers()
        await anext(generator)
        return generator  # kept, so that only the loop's end closes it

    async def main() -> Any:
        return asyncio.run(library()), list(closed)

    assert within(main)[1] == ["closed"]


def test_asyncio_run_keeps_debug_and_context(within: Callable[..., Any]) -> None:
    async def library() -> tuple[bool, str]:
        before = variable.get()
        variable.set("of the library")
        return asyncio.get_running_loop().get_debug(), before

    async def main() -> Any:
        variable.set("of the caller")
        return asyncio.run(library(), debug=True), asyncio.run(library(), debug=False), variable.get()

    assert within(main) == ((True, "of the caller"), (False, "of the caller"), "of the caller")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run has it since CPython 3.12")
def test_asyncio_run_keeps_loop_factory(within: Callable[..., Any]) -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    async def library() -> bool:
        return asyncio.get_running_loop() is made[0]

    async def main() -> Any:
        return asyncio.run(library(), loop_factory=factory)  # type: ignore[call-arg, unused-ignore]

    assert within(main) is True
    assert made[0].is_closed()


def test_asyncio_run_cancels_the_tasks_that_are_left(within: Callable[..., Any]) -> None:
    ended: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("left")

    async def library() -> None:
        task = asyncio.create_task(left())
        await asyncio.sleep(0)
        assert not task.done()

    async def main() -> list[str]:
        asyncio.run(library())
        return list(ended)

    assert within(main) == ["left"]


def test_a_result_that_could_be_awaited_is_not(within: Callable[..., Any]) -> None:
    async def library() -> Any:
        return double(1)

    async def main() -> None:
        for call in (asyncio.run, asyncio.get_running_loop().run_until_complete):
            result = call(library())
            assert asyncio.iscoroutine(result)
            result.close()

    within(main)


def test_what_is_raised_is_raised(within: Callable[..., Any]) -> None:
    async def library(error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        for error in (KeyError("k"), SystemExit(3), KeyboardInterrupt("key"), asyncio.CancelledError("of its own")):
            for call in (asyncio.run, asyncio.get_running_loop().run_until_complete):
                with pytest.raises(type(error)) as caught:
                    call(library(error))
                assert caught.value is error or isinstance(error, asyncio.CancelledError)

    within(main)


def test_a_runner_keeps_its_loop_its_thread_and_its_context(within: Callable[..., Any]) -> None:
    async def library(value: str) -> Any:
        before = variable.get()
        variable.set(value)
        return asyncio.get_running_loop(), threading.current_thread(), before

    async def main() -> None:
        context = contextvars.copy_context()
        with asyncio.Runner(debug=True) as runner:
            first, second = runner.run(library("first")), runner.run(library("second"))
            third = runner.run(library("third"), context=context)
            assert first[0] is second[0] is third[0] is runner.get_loop()
            assert first[0].get_debug()
            assert first[1] is second[1]
            assert (first[2], second[2], third[2]) == ("default", "first", "default")
        assert context[variable] == "third"
        assert first[0].is_closed()
        policy = getattr(asyncio.events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
        assert policy().get_event_loop() is asyncio.get_running_loop()
        assert str(refusal(runner.run, library("late"))) == "Runner is closed"

    within(main)


@pytest.mark.parametrize("on_its_own_thread", [True, False])
def test_a_runner_can_be_run_inside_of_itself(on_its_own_thread: bool) -> None:
    async def value() -> str:
        before = variable.get()
        variable.set("inside")
        await asyncio.sleep(0.001)
        return before

    async def library() -> list[str]:
        context = contextvars.copy_context()
        context.run(variable.set, "of the context")
        with pytest.raises((ValueError, TypeError), match="a coroutine"):
            runner.run(5)  # type: ignore[arg-type]
        results = [runner.run(value()), runner.run(value(), context=context)]
        assert context[variable] == "inside"
        return results

    async def main() -> list[str]:
        return runner.run(library())

    with patch_asyncio(), soon(), asyncio.Runner() as runner:
        if on_its_own_thread:
            assert asyncio.run(main()) == ["default", "of the context"]
        else:
            assert runner.run(library()) == ["default", "of the context"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before CPython 3.14 a Runner runs coroutines alone")
def test_a_runner_inside_of_itself_takes_any_awaitable() -> None:
    class Awaitable:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return 7

    async def library() -> Any:
        return runner.run(Awaitable())  # type: ignore[arg-type]

    with patch_asyncio(), soon(), asyncio.Runner() as runner:
        assert runner.run(library()) == 7


def test_closing_a_runner_that_has_no_loop_takes_no_turn(within: Callable[..., Any]) -> None:
    # Finalizers close runners (that of IsolatedAsyncioTestCase from 3.13 on), in the middle of whatever code made the
    # garbage collector run: a turn there let the tasks of a TaskGroup end while it iterated over them.
    async def main() -> list[str]:
        seen: list[str] = []
        closed = asyncio.Runner()
        with closed:
            closed.run(asyncio.sleep(0))
        asyncio.get_running_loop().call_soon(seen.append, "a turn")
        for runner in (asyncio.Runner(), closed):
            runner.close()
        return list(seen)

    assert within(main) == []


def test_a_loop_of_ones_own_can_be_run(within: Callable[..., Any]) -> None:
    async def main() -> list[int]:
        loop = asyncio.new_event_loop()
        try:
            task = loop.create_task(double(2))
            return [loop.run_until_complete(double(1)), loop.run_until_complete(task)]
        finally:
            loop.close()

    assert within(main) == [2, 4]


# --- run_until_complete of the loop that runs ------------------------------------------------------------------------


def test_what_belongs_to_the_running_loop_is_awaited_on_it(within: Callable[..., Any]) -> None:
    async def where() -> Any:
        await asyncio.sleep(0.001)
        return asyncio.get_running_loop()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "the future's")
        async with Ticks() as ticks:
            assert loop.run_until_complete(where()) is loop
            assert loop.run_until_complete(loop.create_task(where())) is loop
            assert loop.run_until_complete(future) == "the future's"
            assert loop.run_until_complete(asyncio.gather(where(), where())) == [loop, loop]
            assert ticks.count > 1

    within(main)


def test_the_session_s_route_is_not_for_the_running_loop(within: Callable[..., Any]) -> None:
    async def where() -> Any:
        return asyncio.get_running_loop()

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        return loop.run_until_complete(where()) is loop

    set_route("thread")
    try:
        assert within(main)
    finally:
        set_route(None)


@pytest.mark.parametrize("reach_it", [reach, reach_here])
def test_in_tasks_of_gather_and_wait_for(within: Callable[..., Any], reach_it: Callable[[int], int]) -> None:
    async def call(n: int) -> int:
        await asyncio.sleep(0)
        result = reach_it(n)
        await asyncio.sleep(0)
        return result + reach_it(n)

    async def main() -> Any:
        assert await asyncio.wait_for(asyncio.create_task(call(1)), PATIENCE) == 4
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call(2))
        assert task.result() == 8
        return await asyncio.gather(*map(call, range(8)))

    assert within(main) == [4 * n for n in range(8)]


@pytest.mark.parametrize("own_loops", [True, False], ids=["asyncio.run", "run_until_complete"])
def test_nested_twenty_deep(within: Callable[..., Any], own_loops: bool) -> None:
    def deeper(depth: int) -> int:
        if own_loops:
            return asyncio.run(nested(depth))
        return asyncio.get_running_loop().run_until_complete(nested(depth))

    async def nested(depth: int) -> int:
        await asyncio.sleep(0)
        if depth == 0:
            return 0
        if depth % 2:  # in a task of its own each other time
            return 1 + await asyncio.create_task(in_task(depth - 1))
        return 1 + deeper(depth - 1)

    async def in_task(depth: int) -> int:
        return deeper(depth)

    async def main() -> int:
        return await nested(20)

    assert within(main) == 20


def test_waits_end_in_any_order(within: Callable[..., Any]) -> None:
    # The one that began first ends last, and the other way round: a stack of nested loops could do but one of them.
    async def main() -> list[str]:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        events = {name: asyncio.Event() for name in "abc"}

        async def wait(name: str) -> None:
            loop.run_until_complete(events[name].wait())
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(wait(name))
            for name in "acb":
                for _ in range(3):
                    await asyncio.sleep(0)
                events[name].set()
        return order

    assert within(main) == ["a", "c", "b"]


def test_run_in_a_task_suspends_while_the_patch_is_on() -> None:
    async def sets() -> str:
        variable.set("set inside")
        await asyncio.sleep(0.001)
        return "result"

    async def main() -> None:
        async with Ticks() as ticks:
            assert run(sets()) == "result"
            assert variable.get() == "set inside"  # as after `await sets()`
            assert submit(double, 2).result() == 4
            assert ticks.count > 1

    with patch_asyncio():
        asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in CPython 3.12")
def test_in_eager_tasks() -> None:
    async def call(n: int) -> int:
        return reach(n) + reach_here(n)

    async def main() -> list[int]:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        return [*await asyncio.gather(*map(call, range(4))), await asyncio.create_task(call(4))]

    with patch_asyncio():
        assert asyncio.run(main()) == [0, 4, 8, 12, 16]


def test_code_with_greenlets_of_its_own_goes_on_meanwhile() -> None:
    # SQLAlchemy's greenlets are children of the one in which a query began. While other tasks are suspended, the loop
    # runs in another one.
    sqlalchemy = pytest.importorskip("sqlalchemy")
    sqlalchemy_asyncio = pytest.importorskip("sqlalchemy.ext.asyncio")

    async def main() -> list[int]:
        engine = sqlalchemy_asyncio.create_async_engine("sqlite+aiosqlite://")

        async def query(n: int) -> int:
            total = 0
            for _ in range(3):
                async with engine.connect() as connection:
                    total += (await connection.execute(sqlalchemy.text(f"select {n}"))).scalar()
                    with pytest.raises(sqlalchemy.exc.OperationalError):
                        await connection.execute(sqlalchemy.text("select nothing"))
            return total

        async def call(n: int) -> int:
            return sum(reach(n) + reach_here(n) for _ in range(3))

        async with engine.connect():
            pass  # two that came at the same time would make two of the one connection that is kept
        try:
            return await asyncio.gather(query(1), call(1), call(2), query(2), call(3))
        finally:
            await engine.dispose()

    with patch_asyncio():
        assert asyncio.run(main()) == [3, 12, 24, 6, 36]


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_loop", [True, False], ids=["asyncio.run", "run_until_complete"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_cancelled_task_cancels_what_it_waits_for_and_both_clean_up(
    within: Callable[..., Any], own_loop: bool, how: str
) -> None:
    log: list[str] = []

    async def library(begun: Gate) -> None:
        try:
            begun.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            log.append("library")

    async def call(begun: Gate) -> str:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(0.05 if how == "timeout" else None):
                try:
                    asyncio.run(library(begun)) if own_loop else loop.run_until_complete(library(begun))
                finally:
                    # A cancel is told once: neither the clean-up nor what comes after it is cancelled again.
                    await asyncio.sleep(0.001)
                    log.append("clean-up")
        except TimeoutError:
            return "timed out"
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            log.append("cancelled")
            raise
        return "went on"

    async def main() -> Any:
        begun = Gate()
        task = asyncio.create_task(call(begun))
        if how == "timeout":
            return await task
        await asyncio.to_thread(begun.pass_through)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return "cancelled"

    with soon():
        if how == "timeout":
            assert within(main) == "timed out"
            assert log == ["library", "clean-up"]
        else:
            within(main)
            assert log == ["library", "clean-up", "cancelled"]


@pytest.mark.parametrize("thread", ["thread", "main thread"])
def test_a_loop_where_no_other_runs_is_cancelled_with_its_clean_up(thread: str) -> None:
    cleaned: list[str] = []

    async def library() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            cleaned.append("cleaned up")

    with patch_asyncio(), soon(), pytest.raises(TimeoutError):
        if thread == "thread":
            run(lambda: asyncio.run(library()), on="thread", timeout=0.05)
        else:
            with cancel_sync_after(0.05):
                asyncio.run(library())
    assert cleaned == ["cleaned up"]


def test_a_task_that_is_cancelled_and_returns_at_once_has_returned() -> None:
    # asyncio would cancel a task that was cancelled in the middle of its last step.
    async def call() -> str:
        try:
            async with asyncio.timeout(0.01):
                asyncio.run(asyncio.sleep(3600))
        except TimeoutError:
            return "timed out"
        return "went on"

    async def main() -> str:
        return await asyncio.create_task(call())

    with patch_asyncio():
        assert asyncio.run(main()) == "timed out"


def test_what_is_cancelled_before_it_begins_does_not_begin_and_is_not_warned_of(within: Callable[..., Any]) -> None:
    making, go_on = Gate(), Gate()
    begun: list[str] = []

    def loop_factory() -> asyncio.AbstractEventLoop:
        making.set()
        go_on.pass_through()
        return asyncio.new_event_loop()

    async def library(name: str) -> None:
        begun.append(name)

    async def main() -> None:
        runner = asyncio.Runner(loop_factory=loop_factory)

        async def call(name: str) -> None:
            runner.run(library(name))

        first = asyncio.create_task(call("whose loop is being made"))
        await asyncio.to_thread(making.pass_through)
        second = asyncio.create_task(call("that waits for the thread of the first"))
        for _ in range(3):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.cancelled()
        runner.close()

    within(main)
    gc.collect()
    assert begun == []


def test_what_is_cancelled_before_its_first_step_is_not_warned_of() -> None:
    async def call() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(cancel_all)  # comes before the first step of what is waited for
        loop.run_until_complete(asyncio.sleep(3600))

    def cancel_all() -> None:
        for task in asyncio.all_tasks():
            if task is not main_task:
                task.cancel()

    async def main() -> None:
        nonlocal main_task
        main_task = asyncio.current_task()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(call())

    main_task: asyncio.Task[None] | None = None
    with patch_asyncio(), soon():
        asyncio.run(main())
    gc.collect()


def test_a_second_cancel_reaches_the_clean_up() -> None:
    async def main() -> list[str]:
        log: list[str] = []

        async def call() -> None:
            try:
                asyncio.get_running_loop().run_until_complete(asyncio.sleep(3600))
            except asyncio.CancelledError:
                log.append("first")
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    log.append("second")
                    raise

        task = asyncio.create_task(call())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        while not log:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return log

    with patch_asyncio():
        assert asyncio.run(main()) == ["first", "second"]


def test_a_second_cancel_is_not_taken_off_with_the_first() -> None:
    # It comes after the task's step has ended, and before the first was taken off: in the next turn.
    async def main() -> list[str]:
        log: list[str] = []

        async def call() -> None:
            loop = asyncio.get_running_loop()
            try:
                loop.run_until_complete(asyncio.sleep(3600))
            except asyncio.CancelledError:
                loop.call_soon(task.cancel)
                try:
                    await asyncio.sleep(3600)
                finally:
                    log.append("second")

        task = asyncio.create_task(call())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return log

    with patch_asyncio(), soon():
        assert asyncio.run(main()) == ["second"]


def test_a_task_that_was_cancelled_before_it_waits_is_told_so_by_the_wait() -> None:
    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        asyncio.get_running_loop().run_until_complete(asyncio.sleep(3600))

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(call())

    with patch_asyncio(), soon():
        asyncio.run(main())


def test_a_task_stays_suspended_between_two_runs_of_its_loop(within: Callable[..., Any]) -> None:
    async def main() -> int:
        with asyncio.Runner() as runner:
            event = asyncio.Event()

            async def call() -> int:
                asyncio.get_running_loop().run_until_complete(event.wait())
                return 7

            async def begin() -> asyncio.Task[int]:
                task = asyncio.create_task(call())
                for _ in range(3):
                    await asyncio.sleep(0)
                return task

            async def end() -> int:
                event.set()
                return await task

            task = runner.run(begin())
            assert not task.done()
            return runner.run(end())

    assert within(main) == 7


def test_a_loop_that_is_thrown_away_while_a_task_is_suspended_harms_nobody() -> None:
    result = python("""
        import asyncio, gc, warnings
        import ipyportal

        async def wait():
            asyncio.get_running_loop().run_until_complete(asyncio.Event().wait())

        async def main():
            tasks.append(asyncio.create_task(wait()))
            for _ in range(3):
                await asyncio.sleep(0)

        warnings.simplefilter("ignore")
        tasks = []
        with ipyportal.patch_asyncio():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
            tasks.clear()
            del loop
            gc.collect()
        print("went on", asyncio.run(asyncio.sleep(0, "here")))
    """)
    assert (result.returncode, result.stdout) == (0, "went on here\n"), result.stderr


def test_the_loop_ends_while_tasks_are_suspended() -> None:
    cleaned: list[int] = []

    async def library(n: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(n)

    async def call(n: int) -> None:
        asyncio.get_running_loop().run_until_complete(library(n))

    async def main() -> None:
        main.tasks = [asyncio.create_task(call(n)) for n in range(3)]  # type: ignore[attr-defined]
        for _ in range(3):
            await asyncio.sleep(0)

    with patch_asyncio():
        asyncio.run(main())
    assert sorted(cleaned) == [0, 1, 2]


def wild_tasks(seed: int) -> None:
    """Tasks that wait in both ways, are cancelled at any time, and count what began and ended."""
    rng = random.Random(seed)
    open_ones: collections.Counter[str] = collections.Counter()

    async def library(depth: int) -> None:
        open_ones["library"] += 1
        try:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            if depth:
                call(depth - 1)
        finally:
            open_ones["library"] -= 1
            await asyncio.sleep(0)

    def call(depth: int) -> None:
        asyncio.get_running_loop().run_until_complete(library(depth))

    async def task(depth: int) -> int:
        open_ones["task"] += 1
        try:
            for _ in range(rng.randrange(3)):
                call(depth)
                await asyncio.sleep(0)
            return depth
        finally:
            open_ones["task"] -= 1
            await asyncio.sleep(0)

    async def main() -> None:
        tasks = [asyncio.create_task(task(rng.randrange(3))) for _ in range(20)]
        while not all(one.done() for one in tasks):
            await asyncio.sleep(0)
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
        assert all(one.cancelled() or one.exception() is None for one in tasks)

    with patch_asyncio():
        asyncio.run(main())
    assert +open_ones == collections.Counter()


def test_cancels_at_any_time_lose_nothing() -> None:
    for seed in range(10):
        wild_tasks(seed)


@pytest.mark.storm
def test_cancels_at_any_time_lose_nothing_in_a_storm() -> None:
    for seed in range(10, 500):
        wild_tasks(seed)


# --- on and off ------------------------------------------------------------------------------------------------------


def test_leaving_puts_every_attribute_back() -> None:
    before = attributes()
    with patch_asyncio():
        assert all(now is not was for now, was in zip(attributes(), before, strict=True))
    assert all(now is was for now, was in zip(attributes(), before, strict=True))


def test_leaving_by_an_exception_puts_every_attribute_back() -> None:
    before = attributes()
    with pytest.raises(KeyError), patch_asyncio():
        raise KeyError
    assert attributes() == before


def test_tasks_and_futures_stay_those_of_c() -> None:
    kinds = asyncio.Task, asyncio.Future, asyncio.tasks.Task, asyncio.futures.Future
    assert asyncio.Task.__module__ == "_asyncio"

    async def main() -> None:
        task = asyncio.create_task(double(1))
        assert type(task) is kinds[0]
        assert type(asyncio.get_running_loop().create_future()) is kinds[1]
        await task

    with patch_asyncio():
        assert (asyncio.Task, asyncio.Future, asyncio.tasks.Task, asyncio.futures.Future) == kinds
        asyncio.run(main())


def test_blocks_are_counted_also_those_of_other_threads() -> None:
    before = attributes()
    inside, leave = Gate(), Gate()

    def other() -> None:
        with patch_asyncio():
            inside.set()
            leave.pass_through()

    thread = threading.Thread(target=other)
    with patch_asyncio():
        on = attributes()
        with patch_asyncio():
            assert attributes() == on
        thread.start()
        inside.pass_through()
    assert attributes() == on  # the other thread's block is open
    leave.set()
    thread.join(PATIENCE)
    assert attributes() == before
    assert not patching.patched()


def test_what_somebody_else_put_in_ours_place_is_left_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(main: Any, **options: Any) -> Any: ...

    original = asyncio.run
    with patch_asyncio():
        asyncio.run = theirs
    try:
        assert asyncio.run is theirs
    finally:
        asyncio.run = original


def test_off_means_off_also_for_code_that_kept_ours() -> None:
    with patch_asyncio():
        kept = asyncio.run

    async def main() -> None:
        coroutine = double(1)
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            kept(coroutine)
        coroutine.close()

    asyncio.run(main())
    assert kept(double(2)) == 4


def test_a_suspended_task_goes_on_after_the_patch_was_taken_off() -> None:
    async def main() -> int:
        with patch_asyncio():
            await asyncio.sleep(0)
            task = asyncio.create_task(call())
            for _ in range(3):
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        go_on.set()
        return await task

    async def call() -> int:
        asyncio.get_running_loop().run_until_complete(go_on.wait())
        return 5

    go_on = asyncio.Event()
    assert asyncio.run(main()) == 5


def test_where_no_loop_runs_the_originals_run() -> None:
    async def where() -> threading.Thread:
        return threading.current_thread()

    with patch_asyncio():
        assert asyncio.run(where()) is threading.current_thread()
        with asyncio.Runner() as runner:
            assert runner.run(where()) is threading.current_thread()
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(where()) is threading.current_thread()
        loop.close()
    assert patching.report() == "asyncio is not patched: %portal patch on"


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(call: Callable[..., Any], work: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks which
        call(work)
    if asyncio.iscoroutine(work):
        work.close()
    return caught.value


def test_it_works_in_callbacks_and_in_tasks_that_are_older_than_the_patch() -> None:
    results: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with patch_asyncio():
            results.append(reach(1))  # in the very turn in which the patch comes on
            loop.call_soon(lambda: results.append(reach(2)))
            loop.call_later(0.001, lambda: results.append(reach_here(3)))
            while len(results) < 3:
                await asyncio.sleep(0.001)
            results.append(reach_here(4))

    asyncio.run(main())
    assert sorted(results) == [2, 4, 6, 8]  # the timer may be due while the callback waits


def test_what_is_no_awaitable_is_refused_as_ever(within: Callable[..., Any]) -> None:
    async def main() -> None:
        loop, other = asyncio.get_running_loop(), asyncio.new_event_loop()
        assert isinstance(refusal(asyncio.run, 5), ValueError if sys.version_info < (3, 14) else TypeError)
        assert isinstance(refusal(loop.run_until_complete, 5), TypeError)
        assert isinstance(refusal(other.run_until_complete, 5), TypeError)
        foreign = other.create_future()
        assert isinstance(refusal(loop.run_until_complete, foreign), ValueError)
        other.close()
        assert str(refusal(other.run_until_complete, double(1))) == "Event loop is closed"
        awaited = double(1)
        await awaited
        assert isinstance(refusal(asyncio.run, awaited), RuntimeError)
        assert isinstance(refusal(loop.run_until_complete, awaited), RuntimeError)

    within(main)


def test_what_belongs_to_this_loop_is_refused_by_the_loop_of_asyncio_run(within: Callable[..., Any]) -> None:
    async def library(future: asyncio.Future[int]) -> int:
        return await future

    async def main() -> None:
        error = refusal(asyncio.run, library(asyncio.get_running_loop().create_future()))
        assert "attached to a different loop" in str(error)
        (note,) = error.__notes__
        assert "an object made on one event loop was used on another" in note

    within(main)


def test_a_loop_that_runs_in_another_thread_is_refused(within: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        started = asyncio.run_coroutine_threadsafe(double(1), loop)
        await asyncio.wrap_future(started)
        try:
            assert str(refusal(loop.run_until_complete, double(1))) == "This event loop is already running"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)
            loop.close()

    within(main)


def test_the_tasks_of_uvloop_are_refused_and_the_report_says_so(uvloop: Any) -> None:
    said: list[str] = []

    async def main() -> None:
        said.append(patching.report())
        (note,) = refusal(asyncio.run, double(1)).__notes__
        said.append(note)

    with patch_asyncio(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert "tasks and callbacks of uvloop.Loop cannot be suspended, cells can" in said[0]
    assert "uvloop.Loop, which runs here, is not asyncio's own kind of loop" in said[1]


def test_a_call_on_a_uvloop_can_wait_and_leaving_puts_uvloop_back(uvloop: Any) -> None:
    def both() -> tuple[int, int]:
        return reach(1), reach_here(2)

    before = dict(vars(uvloop.Loop))
    with patch_asyncio(), EventLoopThread(loop_factory=uvloop.new_event_loop) as thread:
        assert thread.submit(Call.new(both)).result() == (2, 4)
    assert dict(vars(uvloop.Loop)) == before


def test_without_greenlet_the_refusal_says_so() -> None:
    result = python("""
        import sys
        sys.modules["greenlet"] = None
        import asyncio, ipyportal
        from ipyportal import patching

        async def main():
            coroutine = asyncio.sleep(0)
            try:
                asyncio.run(coroutine)
            except RuntimeError as error:
                print(*error.__notes__)
            coroutine.close()
            print(patching.report())

        with ipyportal.patch_asyncio():
            asyncio.run(main())
    """)
    assert result.stderr == ""
    assert "the package greenlet is not installed" in result.stdout
    assert "nothing can be suspended" in result.stdout


# --- nest_asyncio ----------------------------------------------------------------------------------------------------


def test_nested_needs_nest_asyncio_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nest_asyncio", "nest_asyncio2"):
        monkeypatch.setitem(sys.modules, name, None)
    for start in (run, submit):
        with pytest.raises(ImportError, match=r'pip install "ipyportal\[nest\]"'):
            start(asyncio.sleep, 0, on="nested")


def test_nested_re_enters_the_loop_and_goes_together_with_the_patch() -> None:
    pytest.importorskip(NEST_ASYNCIO)
    result = python("""
        import asyncio, warnings
        from ipyportal import patch_asyncio, run, submit

        async def double(n):
            await asyncio.sleep(0.001)
            return 2 * n

        async def slow():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        try:
            run(asyncio.sleep, 0, on="nested")
        except RuntimeError as error:
            print(error)

        async def main():
            print(run(double(1), on="nested"), run(double, 2, on="nested"), run(lambda: 5, on="nested"))
            call = submit(double, 3, on="nested")
            print(await call)
            try:
                run(slow, on="nested", timeout=0.01)
            except TimeoutError:
                print("timed out")
            nested = asyncio.run
            with patch_asyncio():
                print(asyncio.run is not nested, asyncio.run(double(4)))
                print(asyncio.get_running_loop().run_until_complete(double(5)))
            print(asyncio.run is nested, asyncio.run(double(6)))

        asyncio.run(main())
    """)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        'on="nested" re-enters the loop that runs in this thread, and none runs here: leave on= out',
        "2 4 5",
        "6",
        "cleaned up",
        "timed out",
        "True 8",
        "10",
        "True 12",
    ]


# --- asyncio's insides -----------------------------------------------------------------------------------------------


def test_asyncio_is_inside_as_the_turns_take_it_to_be() -> None:
    # When this fails, `ipyportal.concurrency.turns` has to be looked at: asyncio has changed.
    assert turns_possible()
    loop = asyncio.new_event_loop()
    turn = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]
    counted: list[int] = []

    def counting(self: Any) -> None:
        counted.append(len(self._ready))
        turn(self)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task._must_cancel is False  # type: ignore[attr-defined]
        task.cancel()
        assert task._must_cancel is True  # type: ignore[attr-defined]
        assert isinstance(loop._ready, collections.deque)  # type: ignore[attr-defined]
        assert loop._task_factory is None  # type: ignore[attr-defined]
        assert loop._debug is loop.get_debug()  # type: ignore[attr-defined]
        assert loop._stopping is False  # type: ignore[attr-defined]
        loop.call_soon(loop.stop)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)

    asyncio.BaseEventLoop._run_once = counting  # type: ignore[attr-defined]
    try:
        task = loop.create_task(main())
        loop.run_forever()
        assert loop._stopping is False  # type: ignore[attr-defined]
    finally:
        asyncio.BaseEventLoop._run_once = turn  # type: ignore[attr-defined]
        loop.run_until_complete(task)
        loop.close()
    assert counted[0] == 1
    assert len(counted) == 2
