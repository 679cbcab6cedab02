"""`iterate` and `enter` in scripts, threads and calls: where it runs, how it ends, what is left."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from ipyportal import EventLoopThread, WorkerThread, enter, get_global_loop, iterate, run, submit
from ipyportal.concurrency import Call, from_async

from .concurrency.conftest import often, reported  # noqa: F401 - fixtures
from .concurrency.helpers import Gate, press_stop, press_stop_in_a_wait, python, soon, until
from .places import every_place, in_a_task_that_blocks_its_loop, in_main
from .web import web

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


class Watched:
    """An async generator that says where it ran and how it ended."""

    def __init__(self, count: int = 3, *, fail_at: int | None = None, hang_at: int | None = None) -> None:
        self.count = count
        self.fail_at = fail_at
        self.hang_at = hang_at
        self.tasks: list[Any] = []
        self.made: list[int] = []
        self.hanging = Gate()
        self.closed = Gate()

    async def __call__(self) -> AsyncIterator[int]:
        token = color.set("inside")
        try:
            for number in range(self.count):
                self.tasks.append(asyncio.current_task())
                if number == self.hang_at:
                    self.hanging.set()
                    await asyncio.sleep(3600)
                if number == self.fail_at:
                    raise ValueError(number)
                await asyncio.sleep(0)
                self.made.append(number)
                yield number
        finally:
            self.tasks.append(asyncio.current_task())
            color.reset(token)  # raises in another context
            await asyncio.sleep(0)
            self.closed.set()

    @property
    def one_task(self) -> bool:
        return len(set(self.tasks)) == 1


# --- iterate ---------------------------------------------------------------------------------------------------------


@every_place
def test_an_async_generator_is_iterated_in_one_task_and_context(place: Any) -> None:
    source = Watched(5)
    assert place(lambda: list(iterate(source))) == [0, 1, 2, 3, 4]
    assert source.one_task
    assert source.closed.is_set()


@pytest.mark.parametrize("on", ["loop", "thread", EventLoopThread, WorkerThread])
def test_on_chooses_where_it_is_iterated(on: Any) -> None:
    source = Watched()
    if isinstance(on, str):
        assert list(iterate(source, on=on)) == [0, 1, 2]
    else:
        with on("mine") as portal:
            assert list(iterate(source, on=portal)) == [0, 1, 2]
    assert source.one_task
    assert source.tasks[0].get_loop() is not get_global_loop().loop or on == "loop"


@every_place
def test_a_loop_that_breaks_has_closed_its_generator(place: Any) -> None:
    source = Watched(1000)

    def loop() -> bool:
        for number in iterate(source):
            if number == 2:
                break
        return source.closed.is_set()

    assert place(loop)
    assert source.one_task
    assert source.made == [0, 1, 2]  # nothing was asked for ahead


@every_place
def test_a_loop_whose_body_fails_has_closed_its_generator(place: Any) -> None:
    source = Watched(1000)

    def loop() -> None:
        for _ in iterate(source):
            raise KeyError

    with pytest.raises(KeyError):
        place(loop)
    assert source.closed.is_set()


@every_place
def test_what_the_generator_raises_comes_out_of_the_loop(place: Any) -> None:
    source = Watched(fail_at=2)
    seen = []

    def loop() -> None:
        seen.extend(iterate(source))

    with pytest.raises(ValueError, match="2"):
        place(loop)
    assert seen == [0, 1]
    assert source.closed.is_set()


@every_place
def test_an_item_that_does_not_come_in_time_ends_the_iteration(place: Any) -> None:
    source = Watched(hang_at=1)
    iteration = iterate(source, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"timed out after 0.05 s"):
        place(lambda: list(iteration))
    assert source.closed.is_set()
    assert list(iteration) == []


def test_with_closes_it_and_raises_what_the_clean_up_raises() -> None:
    async def source() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"), iterate(source()) as items:
        assert next(items) == 1
    assert list(items) == []


def test_what_the_clean_up_raises_after_a_break_is_reported(reported: list[Any]) -> None:  # noqa: F811
    async def source() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    for _ in iterate(source()):
        break
    assert [str(report.exc_value) for report in reported] == ["cannot close"]


def test_an_iteration_that_never_began_runs_nothing() -> None:
    source = Watched()
    iteration = iterate(source())
    iteration.close()
    assert list(iteration) == []
    assert source.tasks == []


def test_any_async_iterable_can_be_iterated() -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Countdown:
            assert asyncio.get_running_loop()
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async def opened() -> Countdown:
        return Countdown()

    assert list(iterate(Countdown())) == [2, 1, 0]
    assert list(iterate(opened)) == [2, 1, 0]


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.storm)])
def test_close_from_another_thread_cancels_the_item_that_is_in_flight(often: None, times: int) -> None:  # noqa: F811
    # The step in flight never ends by itself: a close that queued up behind it would wait for ever. And the thread that
    # is told of its end may end it all before the one that closes has come to that.
    for _ in range(times):
        source = Watched(hang_at=1)
        iteration = iterate(source)

        def close(source: Watched = source, iteration: Any = iteration) -> None:
            source.hanging.pass_through()
            iteration.close()

        closing = submit(close, on="thread")
        with pytest.raises(BaseException, match="cancelled"):
            list(iteration)
        closing.result()
        assert source.closed.is_set()


def test_an_iteration_dropped_by_another_thread_is_closed_where_it_ran() -> None:
    source = Watched(10)
    kept = [iterate(source)]
    assert next(kept[0]) == 0
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    source.closed.pass_through()
    assert source.one_task


def test_an_iteration_in_a_cycle_is_closed_by_the_garbage_collector_on_the_very_loop() -> None:
    # Waiting there for the close would block the loop that is to run it.
    source = Watched(10)

    async def collect() -> None:
        gc.collect()

    cycle: list[Any] = [iterate(source)]
    cycle.append(cycle)
    gc.disable()
    try:
        assert next(cycle[0]) == 0
        del cycle
        run(collect)
    finally:
        gc.enable()
    source.closed.pass_through()


def test_an_iteration_begun_in_a_call_goes_on_from_other_threads() -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    async def begin() -> Any:
        iteration = iterate(source)
        assert next(iteration) == 0
        return iteration

    iteration = run(begin)
    assert list(iteration) == [1, 2]


def test_what_is_sent_back_runs_in_the_thread_that_waits_for_the_item() -> None:
    async def source() -> AsyncIterator[str]:
        for _ in range(2):
            yield await from_async.call_soon_in_waiting_thread(lambda: threading.current_thread().name)

    assert list(iterate(source)) == [threading.current_thread().name] * 2


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.storm)])
def test_ctrl_c_while_an_item_is_in_flight_cleans_up(times: int) -> None:
    for _ in range(times):
        source = Watched(hang_at=1)

        def stop(source: Watched = source) -> None:
            source.hanging.pass_through()
            press_stop_in_a_wait()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(iterate(source))
        thread.join()
        assert source.closed.is_set()


@pytest.mark.parametrize("times", [20, pytest.param(300, marks=pytest.mark.storm)])
def test_ctrl_c_at_any_moment_of_a_loop_closes_the_generator(often: None, times: int) -> None:  # noqa: F811
    for _ in range(times):
        source = Watched(10**9)

        def stop(source: Watched = source) -> None:
            until(lambda: len(source.made) > 3)
            press_stop()

        thread = threading.Thread(target=stop)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                for _ in iterate(source):
                    pass
        finally:
            thread.join()
        source.closed.pass_through()


def test_ctrl_c_while_a_break_closes_comes_when_it_has_closed() -> None:
    closing, over = Gate(), Gate()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                closing.set()
                await asyncio.sleep(3600)
            finally:
                over.set()

    def stop() -> None:
        closing.pass_through()
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with soon(), pytest.raises(KeyboardInterrupt):
        for _ in iterate(source):
            break
        thread.join()
        time.sleep(10)  # ended by the interrupt, which the finalizer could not raise
    assert over.is_set()


def test_a_shut_down_portal_closes_what_is_iterated_there() -> None:
    source = Watched(10)
    with EventLoopThread("mine") as portal:
        iteration = iterate(source, on=portal)
        assert next(iteration) == 0
    assert source.closed.is_set()
    assert list(iteration) == []


def test_nothing_is_kept_alive_by_a_finished_iteration() -> None:
    class Big:
        pass

    import weakref

    kept: list[Any] = []

    async def source() -> AsyncIterator[Big]:
        big = Big()
        kept.append(weakref.ref(big))
        yield big

    for _ in iterate(source):
        pass
    del _
    until(lambda: gc.collect() is not None and kept[0]() is None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5,), TypeError, "needs an async iterable, not int"),
        (([1, 2],), TypeError, "this one is synchronous, `for` takes it as it is"),
        ((Watched()(), 5), TypeError, "arguments go with a function"),
    ],
)
def test_bad_input_of_iterate(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        iterate(*arguments)


async def fetch() -> None: ...


def test_more_bad_input_of_iterate() -> None:
    coroutine = fetch()
    with pytest.raises(TypeError, match=r"await it first, iterate\(run\(...\)\)"):
        iterate(coroutine)  # type: ignore[call-overload]
    coroutine.close()
    for timeout, error in ((-1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="timeout"):
            iterate(Watched()(), timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on="):
        iterate(Watched()(), on="nowhere")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs an async iterable, not int"):
        list(iterate(lambda: 5))  # type: ignore[arg-type, return-value]


# --- enter -----------------------------------------------------------------------------------------------------------


class Manager:
    def __init__(self, *, suppress: bool = False, hang: bool = False) -> None:
        self.suppress = suppress
        self.hang = hang
        self.entering = Gate()
        self.seen: Any = "not left"
        self.tasks: list[Any] = []

    async def __aenter__(self) -> str:
        self.tasks.append(asyncio.current_task())
        self.entering.set()
        await asyncio.sleep(3600 if self.hang else 0)
        return "value"

    async def __aexit__(self, kind: Any, exc: Any, tb: Any) -> bool:
        await asyncio.sleep(0)
        self.tasks.append(asyncio.current_task())
        self.seen = kind
        return self.suppress


@every_place
def test_a_manager_is_entered_and_left_in_one_task(place: Any) -> None:
    manager = Manager()

    def body() -> Any:
        with enter(manager) as value:
            assert manager.seen == "not left"
            run(asyncio.sleep, 0)
        return value

    assert place(body) == "value"
    assert manager.seen is None
    assert len(set(manager.tasks)) == 1


@every_place
@pytest.mark.parametrize("suppress", [False, True])
def test_what_the_body_raises_reaches_the_manager(place: Any, suppress: bool) -> None:
    manager = Manager(suppress=suppress)
    error = KeyError("mine")

    def body() -> str:
        with enter(manager):
            raise error
        return "went on"

    if suppress:
        assert place(body) == "went on"
    else:
        with pytest.raises(KeyError) as caught:
            place(body)
        assert caught.value is error
    assert manager.seen is KeyError


@every_place
def test_a_timeout_around_the_body_ends_its_wait(place: Any) -> None:
    def body() -> None:
        with enter(asyncio.timeout, 0.05):
            run(asyncio.sleep, 3600)

    with pytest.raises(TimeoutError):
        place(body)


@every_place
def test_a_task_group_around_the_body_waits_for_its_tasks(place: Any) -> None:
    done = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        done.append(number)

    async def start(group: asyncio.TaskGroup) -> None:
        for number in range(3):
            group.create_task(work(number))

    def body() -> None:
        with enter(asyncio.TaskGroup()) as group:
            run(start, group)

    if place is in_a_task_that_blocks_its_loop:
        place = in_main
    place(body)
    assert sorted(done) == [0, 1, 2]


async def fail() -> None:
    await asyncio.sleep(0.01)
    raise ZeroDivisionError


@every_place
def test_a_task_of_a_group_that_fails_ends_the_wait_of_the_body(place: Any) -> None:
    cleaned_up = []

    async def patient() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned_up.append(1)

    async def start(group: asyncio.TaskGroup) -> None:
        group.create_task(fail())

    def body() -> None:
        with enter(asyncio.TaskGroup()) as group:
            run(start, group)
            run(patient)

    with pytest.raises(ExceptionGroup) as caught:
        place(body)
    assert [type(exc) for exc in caught.value.exceptions] == [ZeroDivisionError]
    assert cleaned_up == [1]


def test_a_body_that_ends_before_it_has_noticed_a_cancel_is_told_at_its_end() -> None:
    failed = Gate()

    async def fail_and_say() -> None:
        asyncio.get_running_loop().call_later(0.02, failed.set)
        raise ZeroDivisionError

    async def start(group: asyncio.TaskGroup) -> None:
        group.create_task(fail_and_say())

    with pytest.raises(ExceptionGroup), enter(asyncio.TaskGroup()) as group:
        run(start, group)
        failed.wait(5)  # no wait that could be interrupted
    with pytest.raises(TimeoutError), enter(asyncio.timeout, 0.01):
        time.sleep(0.05)


@every_place
def test_cancel_scopes_and_groups_of_anyio_work_inside(place: Any) -> None:
    @asynccontextmanager  # anyio's own is synchronous, and belongs to a task all the same
    async def move_on_after(seconds: float) -> AsyncIterator[Any]:
        with anyio.move_on_after(seconds) as scope:
            yield scope

    def body() -> Any:
        with enter(move_on_after, 0.05) as scope, enter(anyio.create_task_group):
            run(anyio.sleep, 3600)
        return scope.cancelled_caught

    assert place(body)


def test_what_goes_on_in_another_task_is_explained() -> None:
    async def items() -> AsyncIterator[int]:
        with anyio.CancelScope():
            yield 1

    async def goes_on(iteration: Any) -> None:
        next(iteration)

    async def main() -> None:
        iteration = iterate(items())
        next(iteration)
        with pytest.raises(RuntimeError, match="in a different task") as caught:
            await asyncio.create_task(goes_on(iteration))
        assert [note.rpartition(". ")[2] for note in caught.value.__notes__] == [
            'Pass on="loop": then it has a task of its own'
        ]

    asyncio.run(main())


def test_nested_managers_on_the_loop_thread_each_have_their_task() -> None:
    outer, inner = Manager(), Manager()
    with enter(outer), enter(inner):
        pass
    assert outer.tasks[0] is outer.tasks[1] is not inner.tasks[0] is inner.tasks[1]


def test_entering_that_takes_too_long_times_out() -> None:
    manager = Manager(hang=True)
    with pytest.raises(TimeoutError), enter(manager, timeout=0.05):
        raise AssertionError("it was not entered")
    assert manager.seen == "not left"


def test_leaving_may_take_longer_than_entering() -> None:
    class Slow(Manager):
        async def __aexit__(self, *exc_info: Any) -> bool:
            await asyncio.sleep(0.1)
            return await super().__aexit__(*exc_info)

    manager = Slow()
    with enter(manager, timeout=0.05):
        pass
    assert manager.seen is None


def test_ctrl_c_in_the_body_reaches_the_manager() -> None:
    manager, waiting = Manager(), Gate()

    async def patient() -> None:
        waiting.set()
        await asyncio.sleep(3600)

    def stop() -> None:
        waiting.pass_through()
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt), enter(manager):
        run(patient)
    thread.join()
    assert manager.seen is KeyboardInterrupt


def test_ctrl_c_while_it_is_entered_leaves_nothing() -> None:
    manager = Manager(hang=True)

    def stop() -> None:
        manager.entering.pass_through()
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt), enter(manager):
        raise AssertionError("it was not entered")
    thread.join()
    assert manager.seen == "not left"


def test_a_generators_context_manager_can_swallow_and_replace_errors() -> None:
    @asynccontextmanager
    async def translate() -> AsyncIterator[None]:
        try:
            yield
        except KeyError as exc:
            raise LookupError("translated") from exc

    with pytest.raises(LookupError, match="translated"), enter(translate()):
        raise KeyError


def test_a_manager_is_for_one_use() -> None:
    entered = enter(Manager())
    with entered:
        pass
    with pytest.raises(RuntimeError, match=r"each `with` needs an enter\(\) of its own"), entered:
        pass


@pytest.mark.parametrize("thread", [EventLoopThread, WorkerThread])
def test_a_thread_that_is_shut_down_leaves_what_was_entered_there(thread: Any) -> None:
    manager = Manager()
    portal = thread("mine")
    with pytest.raises(RuntimeError, match="is over, and takes no more calls"), enter(manager, on=portal):
        portal.shutdown(cancel=True)
    assert manager.seen is asyncio.CancelledError
    assert len(set(manager.tasks)) == 1


def test_a_script_that_ends_inside_leaves_the_manager() -> None:
    script = """
        from ipyportal import enter
        class Manager:
            async def __aenter__(self): return self
            async def __aexit__(self, kind, exc, tb): print(kind.__name__)
        entered = enter(Manager())
        entered.__enter__()
    """
    result = python(script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "CancelledError\n", "")


def test_a_call_that_is_cancelled_in_the_body_leaves_the_manager() -> None:
    manager, inside = Manager(), Gate()

    def body() -> None:
        with enter(manager):
            inside.set()
            run(asyncio.sleep, 3600)

    call: Call[None] = submit(body, on="thread")
    inside.pass_through()
    call.cancel()
    until(call.done)
    assert call.cancelled()
    assert manager.seen is asyncio.CancelledError


def test_bad_input_of_enter() -> None:
    with pytest.raises(TypeError, match="needs an async context manager, not int"):
        enter(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="this one is synchronous, `with` takes it as it is"):
        enter(threading.Lock())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="arguments go with a function"):
        enter(Manager(), 5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout"):
        enter(Manager(), timeout=-1)
    with pytest.raises(TypeError, match="on="):
        enter(Manager(), on=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs an async context manager, not int"), enter(lambda: 5):  # type: ignore[arg-type, return-value]
        pass


# --- a real client and a real server ---------------------------------------------------------------------------------


@pytest.fixture
def address() -> Iterator[str]:
    with enter(web()) as address:
        yield address


@every_place
def test_a_streaming_response_is_read_line_by_line(place: Any, address: str) -> None:
    def read() -> list[str]:
        with (
            enter(httpx.AsyncClient, base_url=address, trust_env=False) as client,
            enter(client.stream, "GET", "/lines/50") as response,
        ):
            return list(iterate(response.aiter_lines()))

    assert place(read) == [f"line {number}" for number in range(50)]


def test_a_streaming_response_can_be_left_in_the_middle(address: str) -> None:
    with enter(httpx.AsyncClient, base_url=address, trust_env=False) as client:
        with enter(client.stream, "GET", "/lines/1000") as response:
            for line in iterate(response.aiter_lines()):
                if line == "line 3":
                    break
        assert response.is_closed
        assert run(client.get("/again")).text == "/again"
    assert sys.exc_info() == (None, None, None)
