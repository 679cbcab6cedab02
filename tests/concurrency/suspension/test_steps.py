"""Suspending synchronous code in a task: what it sees, what passes through it, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import queue
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    SyncWaiter,
    can_suspend,
    from_sync,
    get_global_loop,
    suspend,
)
from ipyportal.concurrency.calls.tasks import CallCoroutine
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.suspension import steps
from ipyportal.concurrency.suspension.steps import per_thread, suspendable
from tests.concurrency.helpers import PATIENCE, Gate, soon, until

greenlet = pytest.importorskip("greenlet")

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


def started_on(portal: Any, fn: Callable[..., Any], *args: Any) -> Call[Any]:
    return portal.submit(Call.new(fn, *args))


def step_by_step(test: Any) -> Any:
    """A test of that mechanism alone; the others are run with both."""
    test.step_by_step = True
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ways = ["step by step"] if hasattr(metafunc.function, "step_by_step") else ["step by step", "in turns"]
    metafunc.parametrize("way", ways, indirect=True)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How synchronous code is suspended: in a task that was made so, step by step; or in any task, in turns."""
    if request.param == "in turns":
        monkeypatch.setattr("tests.concurrency.suspension.test_steps.suspendable", lambda coro: coro)
    return str(request.param)


@pytest.fixture
def loop_thread(way: str, request: pytest.FixtureRequest) -> Iterator[EventLoopThread]:
    """Calls are suspended step by step on loops that have no turns, as uvloop's."""
    factory = None if way == "in turns" else request.getfixturevalue("uvloop").new_event_loop
    with EventLoopThread(loop_factory=factory) as thread:
        yield thread


async def make_task(coro: Any) -> Any:
    return await asyncio.get_running_loop().create_task(suspendable(coro))


def run_suspendable(fn: Callable[[], Any]) -> Any:
    """Run a synchronous function in a suspendable task of a loop of its own, in this thread."""

    async def call() -> Any:
        return fn()

    return asyncio.run(make_task(call()))


# --- where ----------------------------------------------------------------------------------------------------------


@step_by_step
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_every_caller_on_a_loop_can_be_suspended_and_on_uvloop_the_tasks_made_for_it(kind: str, uvloop: Any) -> None:
    answers = {}
    own = kind == "asyncio"

    async def foreign() -> None:
        answers["foreign task"] = can_suspend()

    async def suspendable_one() -> None:
        answers["task"] = can_suspend()
        called = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: called.set_result(can_suspend()))
        answers["callback"] = await called
        await asyncio.create_task(foreign())
        answers["thread"] = await asyncio.to_thread(can_suspend)
        answers["gathered"] = (await asyncio.gather(asyncio.sleep(0, 1), ask()))[1]
        answers["task afterwards"] = can_suspend()

    async def ask() -> bool:
        return can_suspend()

    answers["no loop"] = can_suspend()
    with asyncio.Runner(loop_factory=asyncio.new_event_loop if own else uvloop.new_event_loop) as runner:
        runner.run(make_task(suspendable_one()))
        runner.run(foreign())
    assert answers == {
        "no loop": False,
        "task": True,
        "callback": own,
        "foreign task": own,
        "thread": False,
        "gathered": own,
        "task afterwards": True,
    }


@step_by_step
def test_suspending_where_that_cannot_be_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be suspended here.*ipyportal\.run\(\)"):
        suspend(asyncio.sleep)  # type: ignore[arg-type]


def test_calls_on_a_loop_thread_can_be_suspended_and_calls_on_a_worker_cannot(loop_thread: EventLoopThread) -> None:
    assert started_on(loop_thread, can_suspend).result()
    assert not from_sync.call_in_new_thread(can_suspend)


def test_what_is_no_awaitable_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="needs an awaitable, not int"):
        run_suspendable(lambda: suspend(5))  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_a_task_that_starts_eagerly_inside_another_waits_as_itself() -> None:
    tasks: list[Any] = []

    async def look() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    async def eager() -> None:
        suspend(look())

    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(eager())
        await task
        assert tasks == [task, task]
        suspend(look())
        assert tasks[2:] == [asyncio.current_task()] * 2

    asyncio.run(make_task(main()))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_an_eager_task_can_be_suspended_in_its_first_step() -> None:
    async def call() -> str:
        return suspend(asyncio.sleep(0.001, "eager"))

    async def main() -> str:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await make_task(call())

    assert asyncio.run(main()) == "eager"


# --- what is awaited -------------------------------------------------------------------------------------------------


class Plain:
    """An awaitable whose ``__await__`` is a generator."""

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(0).__await__()
        return "plain"


class Bare:
    """An awaitable whose ``__await__`` gives a mere iterator."""

    def __await__(self) -> Any:
        return iter([None, None])


def test_everything_that_can_be_awaited_can_be_waited_for() -> None:
    async def coroutine() -> str:
        await asyncio.sleep(0.001)
        return "coroutine"

    async def quick() -> str:
        return "quick"

    def future() -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        made = loop.create_future()
        loop.call_later(0.001, made.set_result, "future")
        return made

    def work() -> list[Any]:
        return [
            suspend(coroutine()),
            suspend(quick()),
            suspend(future()),
            suspend(asyncio.ensure_future(coroutine())),
            suspend(asyncio.gather(coroutine(), quick())),
            suspend(asyncio.wait_for(coroutine(), PATIENCE)),
            suspend(Plain()),
            suspend(Bare()),
            suspend(from_sync.call_soon_in_new_thread(lambda: "call")),
        ]

    assert run_suspendable(work) == [
        "coroutine",
        "quick",
        "future",
        "coroutine",
        ["coroutine", "quick"],
        "coroutine",
        "plain",
        None,
        "call",
    ]


def test_an_exception_passes_through() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("passed")

    def work() -> None:
        try:
            suspend(fail())
        finally:
            suspend(asyncio.sleep(0))  # also while it is handled

    with pytest.raises(ValueError, match="passed"):
        run_suspendable(work)


def test_the_loop_goes_on_meanwhile() -> None:
    ticks: list[int] = []

    async def tick() -> None:
        for number in range(5):
            ticks.append(number)
            await asyncio.sleep(0)
        event.set()

    async def main() -> None:
        nonlocal event
        event = asyncio.Event()
        ticking = asyncio.create_task(tick())
        await make_task(work())
        await ticking

    async def work() -> None:
        suspend(event.wait())
        assert ticks == [0, 1, 2, 3, 4]

    event: asyncio.Event
    asyncio.run(main())


def test_an_async_generator_can_be_stepped_through() -> None:
    async def numbers() -> Any:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    def work() -> list[int]:
        generator = numbers()
        got = []
        while True:
            try:
                got.append(suspend(anext(generator)))
            except StopAsyncIteration:
                return got

    assert run_suspendable(work) == [0, 1, 2]


# --- context variables -----------------------------------------------------------------------------------------------


def test_context_variables_are_as_in_an_await() -> None:
    async def awaited() -> str:
        before = color.get()
        await asyncio.sleep(0)
        color.set("set inside")
        await asyncio.sleep(0)
        return before

    async def main() -> None:
        color.set("set outside")
        assert suspend(awaited()) == "set outside"
        assert color.get() == "set inside"
        await asyncio.sleep(0)
        assert color.get() == "set inside"
        color.set("again")
        suspend(asyncio.sleep(0))
        assert color.get() == "again"

    asyncio.run(make_task(main()))
    assert color.get() == "none"


def test_a_token_of_before_can_be_reset_afterwards() -> None:
    def work() -> str:
        token = color.set("for a while")
        suspend(asyncio.sleep(0))
        color.reset(token)
        return color.get()

    assert run_suspendable(work) == "none"


def test_code_in_a_context_of_its_own_keeps_it_while_it_is_suspended() -> None:
    async def change() -> None:
        await asyncio.sleep(0)
        color.set("changed")

    def inside() -> list[str]:
        color.set("inner")
        seen = [color.get()]
        suspend(asyncio.sleep(0))
        seen.append(color.get())
        suspend(change())
        seen.append(color.get())
        return seen

    def work() -> list[str]:
        color.set("outer")
        seen = contextvars.copy_context().run(inside)
        seen.append(color.get())
        suspend(asyncio.sleep(0))
        seen.append(color.get())
        return seen

    assert run_suspendable(work) == ["inner", "inner", "changed", "outer", "outer"]


def test_tasks_that_are_suspended_at_once_keep_their_contexts() -> None:
    async def one(name: str) -> None:
        color.set(name)
        for _ in range(10):
            suspend(asyncio.sleep(0))
            assert color.get() == name
            await asyncio.sleep(0)
            assert color.get() == name

    async def main() -> None:
        await asyncio.gather(*(make_task(one(str(number))) for number in range(20)))

    asyncio.run(main())


# --- cancellation ----------------------------------------------------------------------------------------------------


def test_cancelling_the_task_cancels_what_it_waits_for_and_passes_through() -> None:
    order: list[str] = []

    async def awaited() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            order.append("awaited")

    def work() -> None:
        try:
            suspend(awaited())
        finally:
            suspend(asyncio.sleep(0))
            order.append("synchronous code")

    async def call() -> None:
        work()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(suspendable(call()))
        await asyncio.sleep(0.001)
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError, match="why"):
            await task

    with soon():
        asyncio.run(main())
    assert order == ["awaited", "synchronous code"]


def test_what_catches_the_cancelling_goes_on() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return "no"
        return "not asked"

    async def call() -> str:
        return suspend(stubborn())

    async def main() -> str:
        task = asyncio.get_running_loop().create_task(suspendable(call()))
        await asyncio.sleep(0.001)
        task.cancel()
        return await task

    assert asyncio.run(main()) == "no"


def test_asyncio_timeouts_end_suspended_code() -> None:
    async def call() -> None:
        async with asyncio.timeout(0.01):
            suspend(asyncio.sleep(PATIENCE))

    with soon(), pytest.raises(TimeoutError):
        asyncio.run(make_task(call()))


@step_by_step
def test_suspended_code_of_a_task_that_is_given_up_is_ended() -> None:
    ended = []

    async def call() -> None:
        try:
            suspend(asyncio.sleep(PATIENCE))
        finally:
            ended.append(sys.exc_info()[0])

    coro = suspendable(call())

    async def drive() -> None:
        # As a task does that is closed before it ends.
        coro._task = asyncio.current_task()  # type: ignore[attr-defined]
        coro.send(None)
        coro.close()

    asyncio.run(drive())
    assert ended == [GeneratorExit]


# --- many ------------------------------------------------------------------------------------------------------------


def test_a_hundred_tasks_can_be_suspended_at_once() -> None:
    async def main() -> list[int]:
        barrier = asyncio.Barrier(100)

        async def one(number: int) -> int:
            suspend(barrier.wait())
            await asyncio.sleep(0)
            suspend(barrier.wait())
            return number

        return await asyncio.gather(*(make_task(one(number)) for number in range(100)))

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == list(range(100))


def test_sync_in_async_in_sync_fifty_deep_uses_no_new_thread(loop_thread: EventLoopThread) -> None:
    def sync(depth: int) -> int:
        return suspend(asynchronous(depth)) if depth else 0

    async def asynchronous(depth: int) -> int:
        await asyncio.sleep(0)
        return sync(depth - 1) + 1

    started_on(loop_thread, lambda: None).result()
    before = threading.active_count()
    assert started_on(loop_thread, sync, 50).result(PATIENCE) == 50
    assert threading.active_count() == before


def test_calls_of_the_same_loop_can_be_waited_for_fifty_deep_in_synchronous_code() -> None:
    portal = get_global_loop()

    def nested(depth: int) -> int:
        if not depth:
            return 0
        if depth % 2:
            return from_sync.wait_for_call_in_loop_thread(lambda: nested(depth - 1)) + 1
        return started_on(portal, nested, depth - 1).result() + 1

    before = threading.active_count()
    assert started_on(portal, nested, 50).result(PATIENCE) == 50
    assert threading.active_count() == before


@step_by_step
def test_greenlets_are_used_again(loop_thread: EventLoopThread) -> None:
    made: list[Any] = []
    new = steps._new_greenlet

    def work() -> None:
        suspend(asyncio.sleep(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_new_greenlet", lambda: made.append(1) or new())
        for _ in range(50):
            started_on(loop_thread, work).result()
    assert len(made) <= 2


@step_by_step
def test_the_pool_holds_no_more_greenlets_than_were_needed_at_once() -> None:
    async def main() -> int:
        async def one() -> None:
            suspend(asyncio.sleep(0.001))

        for _ in range(5):
            await asyncio.gather(*(make_task(one()) for _ in range(20)))
        return len(per_thread.here.idle)

    per_thread.here.idle.clear()
    assert asyncio.run(main()) <= 21


@step_by_step
def test_a_task_without_synchronous_waits_shares_one_greenlet_with_all_others() -> None:
    async def main() -> int:
        async def one() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        await asyncio.gather(*(make_task(one()) for _ in range(50)))
        return len(per_thread.here.idle)

    per_thread.here.idle.clear()
    assert asyncio.run(main()) <= 2


@step_by_step
def test_an_idle_greenlet_holds_nothing() -> None:
    class Thing:
        pass

    def work(thing: Thing) -> Thing:
        suspend(asyncio.sleep(0))
        return thing

    def fail(thing: Thing) -> None:
        suspend(asyncio.sleep(0))
        raise ValueError(thing)

    async def main() -> None:
        for fn in work, fail:

            async def call(fn: Callable[..., Any], thing: Thing) -> Any:
                return fn(thing)

            thing = Thing()
            reference = weakref.ref(thing)
            task = asyncio.get_running_loop().create_task(suspendable(call(fn, thing)))
            await asyncio.wait([task])
            task.exception()
            del task, thing
            gc.collect()
            assert reference() is None
        assert per_thread.here.idle

    asyncio.run(main())


@step_by_step
def test_a_greenlet_does_not_keep_its_first_step() -> None:
    class Over:
        def send(self, value: None) -> None:
            raise StopIteration

    over: Any = Over()
    reference = weakref.ref(over)
    per_thread.here.idle.clear()

    async def main() -> None:
        nonlocal over
        suspended = suspendable(over)
        over = None
        await asyncio.get_running_loop().create_task(suspended)

    asyncio.run(main())
    assert per_thread.here.idle
    assert reference() is None


@step_by_step
def test_a_cancel_reaches_suspended_code_while_a_greenlet_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """greenlet 3.0 to 3.3 end those that other threads have dropped in the middle of a switch, and clear what `throw`
    was given together with what ending them raises."""
    real = steps.current_greenlet

    def getcurrent() -> Any:
        current = real()
        dropped = [greenlet.greenlet(lambda: real().parent.switch())]
        dropped[0].switch()
        other = threading.Thread(target=dropped.clear)
        other.start()
        other.join()
        return current

    seen: list[type[BaseException]] = []

    def work() -> None:
        try:
            suspend(asyncio.sleep(PATIENCE))
        except asyncio.CancelledError as exc:
            seen.append(type(exc))
            raise

    async def call() -> None:
        work()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(suspendable(call()))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(steps, "current_greenlet", getcurrent)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert seen == [asyncio.CancelledError]


def test_the_traceback_of_what_passes_through_shows_no_greenlet() -> None:
    def work() -> None:
        suspend(asyncio.sleep(0))
        raise ValueError

    with pytest.raises(ValueError, match=r"^$") as caught:
        run_suspendable(work)
    assert "_run_steps" not in [entry.name for entry in caught.traceback]


def test_the_record_of_the_thread_is_as_it_was_after_suspensions(loop_thread: EventLoopThread) -> None:
    def work() -> None:
        suspend(asyncio.sleep(0.001))

    for call in [started_on(loop_thread, work) for _ in range(20)]:
        call.result()

    async def depth() -> int:
        return thread_state().depth

    assert started_on(loop_thread, depth).result() == 0


def test_suspended_calls_resume_in_any_order(loop_thread: EventLoopThread) -> None:
    # The stacks of what runs in the thread interleave: the first that is suspended is the first to be resumed.
    gates = [Gate() for _ in range(4)]
    order: list[int] = []

    def work(number: int) -> None:
        from_sync.call_in_new_thread(gates[number].pass_through)
        order.append(number)
        from_sync.call_in_new_thread(lambda: None)

    calls = [started_on(loop_thread, work, number) for number in range(4)]
    for number in 2, 0, 3, 1:
        gates[number].set()
        calls[number].result(PATIENCE)
    assert order == [2, 0, 3, 1]


# --- beside others that use greenlets --------------------------------------------------------------------------------


def test_code_in_a_greenlet_of_its_own_can_be_suspended() -> None:
    def inside() -> str:
        return suspend(asyncio.sleep(0.001, "inside"))

    def work() -> str:
        return greenlet.greenlet(inside).switch()  # type: ignore[no-any-return]

    assert run_suspendable(work) == "inside"


def test_sqlalchemy_and_suspensions_share_a_task(tmp_path: Path, loop_thread: EventLoopThread) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    sqlalchemy_asyncio = pytest.importorskip("sqlalchemy.ext.asyncio")
    pytest.importorskip("aiosqlite")

    async def later(value: Any) -> Any:
        await asyncio.sleep(0.001)
        return value

    async def session(number: int, engine: Any) -> list[Any]:
        seen = []

        def inside(connection: Any) -> Any:
            # Within SQLAlchemy's greenlet: its own waits and ours take turns.
            first = connection.execute(sqlalchemy.text("select :n"), {"n": number}).scalar()
            mine = suspend(later(number * 10))
            second = connection.execute(sqlalchemy.text("select :n"), {"n": number * 100}).scalar()
            return [first, mine, second]

        async with engine.connect() as connection:
            seen += await connection.run_sync(inside)
            seen.append(suspend(later(number * 1000)))
            seen.append((await connection.execute(sqlalchemy.text("select 7"))).scalar())
            seen += await connection.run_sync(inside)
        return seen

    async def main() -> list[list[Any]]:
        engine = sqlalchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        try:
            return await asyncio.gather(*(make_task(session(number, engine)) for number in range(8)))
        finally:
            await engine.dispose()

    rows = [[n, n * 10, n * 100] for n in range(8)]
    expected = [[*row, n * 1000, 7, *row] for n, row in enumerate(rows)]
    assert started_on(loop_thread, main).result(PATIENCE) == expected
    assert asyncio.run(make_task(main())) == expected


def test_sqlalchemy_can_be_used_from_synchronous_code_that_is_suspended(
    tmp_path: Path, loop_thread: EventLoopThread
) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    sqlalchemy_asyncio = pytest.importorskip("sqlalchemy.ext.asyncio")
    pytest.importorskip("aiosqlite")

    async def query(number: int) -> Any:
        engine = sqlalchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        async with engine.connect() as connection:
            value = (await connection.execute(sqlalchemy.text("select :n"), {"n": number})).scalar()
        await engine.dispose()
        return value

    def work(number: int) -> Any:
        return suspend(query(number))

    calls = [started_on(loop_thread, work, number) for number in range(5)]
    assert [call.result(PATIENCE) for call in calls] == list(range(5))


@pytest.mark.parametrize("waits", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("through", ["result", "waiter"])
def test_who_waits_is_woken_when_the_step_that_ends_the_call_is_over(
    waits: bool, through: str, way: str, uvloop: Any
) -> None:
    # Woken before, a thread on another core runs into the interpreter's lock, which the rest of the step holds. The
    # functions that run in the moment in which it is woken say where that is.
    running: list[list[str]] = []

    def profile(frame: FrameType | None, event: str, arg: Any) -> None:
        if event == "c_call" and arg.__name__ == "put":
            running.append([one.f_code.co_name for one, _ in traceback.walk_stack(frame)])

    async def work() -> int:
        if waits:
            await asyncio.sleep(0)
        until(lambda: call._callbacks)
        return 5

    threading.setprofile(profile)
    try:
        portal = EventLoopThread(loop_factory=None if way == "in turns" else uvloop.new_event_loop).start()
    finally:
        threading.setprofile(None)
    with portal:
        call = Call.new(work)
        if through == "result":
            assert portal.submit(call).result() == 5
        else:
            assert SyncWaiter(call).wait(portal).result() == 5
    [names] = running
    assert names[0] == "send"
    assert "_step" not in names


@step_by_step
@pytest.mark.parametrize("end", ["closed", "thrown away"])
def test_suspended_code_that_is_ended_from_outside_and_returns_tells_who_waits(end: str, uvloop: Any) -> None:
    # Thrown away it ends in no step, at the end of which who waits could be woken.
    def work() -> str:
        try:
            suspend(asyncio.get_running_loop().create_future())
        except (GeneratorExit, greenlet.GreenletExit):
            return "all the same"
        return "never"

    async def main() -> None:
        call = Call.new(work)
        inbox: queue.SimpleQueue[Call[str]] = queue.SimpleQueue()
        call._when_done(inbox.put)
        coroutine = CallCoroutine(call)
        task = asyncio.get_running_loop().create_task(coroutine)
        while not coroutine.suspended:
            await asyncio.sleep(0)
        if end == "closed":
            coroutine.close()
        else:
            coroutine._greenlet = coroutine._kept = None  # the last that refer to it
        assert inbox.get(timeout=PATIENCE) is call
        assert call.result() == "all the same"
        task.cancel()
        await asyncio.wait([task])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_awaitables_may_be_given_as_what_the_type_says() -> None:
    def work(awaitable: Awaitable[int]) -> int:
        return suspend(awaitable)

    async def five() -> int:
        return 5

    assert run_suspendable(lambda: work(five())) == 5


@step_by_step
def test_a_loop_thread_that_has_ended_keeps_no_greenlets() -> None:
    """A greenlet can be ended by its own thread alone; one that its thread leaves behind stays for good."""

    def greenlets() -> int:
        gc.collect()
        return sum(isinstance(one, greenlet.greenlet) for one in gc.get_objects())

    async def work() -> None:
        await asyncio.sleep(0)

    before = greenlets()
    for _ in range(10):
        with EventLoopThread() as thread:
            thread.submit(Call.new(work)).result()
    # greenlet ends a thread's first one after the system has ended the thread, which is later than `join` returns.
    until(lambda: greenlets() <= before + 1)


@step_by_step
def test_the_coroutine_of_a_task_that_is_over_can_be_asked_for_its_name() -> None:
    async def own() -> Any:
        # Taken while it runs: CPython 3.12.1 crashes when an eager task that is over is asked for its coroutine.
        return asyncio.current_task().get_coro()  # type: ignore[union-attr]

    with EventLoopThread() as thread:
        over = started_on(thread, own).result(PATIENCE)
    assert over.__name__ == "CallCoroutine"


@step_by_step
def test_a_pooled_greenlet_that_is_killed_does_not_keep_its_threads_first_greenlet() -> None:
    """greenlet 3.5 may free that while a garbage collection hides who refers to it."""
    run_suspendable(lambda: None)
    idle = per_thread.here.idle
    frame = idle[-1].gr_frame
    kept = frame.f_locals["target"]
    assert kept is not None
    del kept
    idle.clear()
    assert frame.f_locals.get("target") is None
