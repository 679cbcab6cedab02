"""`map` in scripts, threads and calls: order, limits, failures, interrupts, memory."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import math
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import ipyportal
from ipyportal import EventLoopThread, WorkerThread, iterate, map, mapping, run, set_route, submit
from ipyportal.concurrency import get_global_loop, shield

from .concurrency.conftest import often  # noqa: F401 - a fixture
from .concurrency.helpers import Gate, press_stop, press_stop_in_a_wait, soon, until
from .hostile import hostile_values
from .places import every_place, in_a_call, in_main

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


async def trivial(n: int) -> int:
    return n


class Crowd:
    """An async function that knows how many of it are in flight."""

    def __init__(self, hang_from: int = 10**9) -> None:
        self.hang_from = hang_from
        self.now = self.most = 0
        self.cleaned_up: list[int] = []
        self.begun = 0
        self.changed = threading.Condition()

    async def __call__(self, n: int) -> int:
        with self.changed:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
        try:
            await asyncio.sleep(3600 if n >= self.hang_from else 0)
            return n
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            raise
        finally:
            self.cleaned_up.append(n)
            self.now -= 1

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 10)


# --- results ---------------------------------------------------------------------------------------------------------


@every_place
def test_results_are_in_the_order_of_the_items(place: Any) -> None:
    async def later_first(n: int) -> int:
        await asyncio.sleep((3 - n) * 0.01)
        return n

    assert place(lambda: map(later_first, range(4))) == [0, 1, 2, 3]
    assert place(lambda: list(map.unordered(later_first, range(4)))) == [3, 2, 1, 0]


@every_place
@pytest.mark.parametrize("fn", [double, lambda n: 2 * n, lambda n: double(n)])
def test_functions_of_every_kind(place: Any, fn: Any) -> None:
    assert place(lambda: map(fn, range(50), limit=7)) == [2 * n for n in range(50)]
    assert sorted(place(lambda: list(map.unordered(fn, range(50), limit=7)))) == [2 * n for n in range(50)]
    assert place(lambda: map(fn, [])) == []


def test_several_iterables_end_with_the_shortest() -> None:
    async def add(*numbers: int) -> int:
        return sum(numbers)

    assert map(add, [1, 2, 3], itertools.count(10), (100, 200)) == [111, 213]
    assert map(max, [1, 5], [2, 3]) == [2, 5]


def test_it_takes_what_iterate_gives() -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    assert map(double, iterate(numbers)) == [0, 2, 4, 6, 8]

    async def in_a_task() -> list[int]:
        return map(double, iterate(numbers))

    assert run(in_a_task) == [0, 2, 4, 6, 8]


def test_calls_of_run_nest_inside_items() -> None:
    async def outer(n: int) -> list[int]:
        return map(double, range(run(double(n))))

    assert map(outer, range(3)) == [[], [0, 2], [0, 2, 4, 6]]


# --- where -----------------------------------------------------------------------------------------------------------


def test_each_kind_of_function_runs_where_it_should() -> None:
    async def here(_: int) -> str:
        return threading.current_thread().name

    def there(_: int) -> str:
        return threading.current_thread().name

    with EventLoopThread("a loop") as loop, WorkerThread("a worker") as worker:
        assert map(here, [0]) == ["ipyportal-loop"]
        assert map(here, [0, 1], on=loop) == ["a loop"] * 2
        assert map(here, [0, 1], on=worker) == ["a worker"] * 2
        assert map(there, [0, 1], on=loop) == ["a loop"] * 2
        assert map(there, [0, 1], on=worker, limit=10) == ["a worker"] * 2
        assert map(there, [0])[0].startswith("ipyportal-thread-")
        assert map(here, [0], on="thread")[0].startswith("ipyportal-thread-")
        for route, name in ((loop, "a loop"), (worker, "a worker")):
            set_route(route)
            try:
                assert map(here, [0]) == map(there, [0]) == [name]
            finally:
                set_route(None)


def test_the_input_is_drawn_in_the_thread_and_context_of_the_caller() -> None:
    color.set("the caller's")

    def items() -> Iterator[int]:
        for n in range(30):
            seen.add((threading.current_thread(), color.get()))
            yield n

    for fn in (double, abs):
        seen: set[Any] = set()
        map(fn, items(), limit=3)
        assert seen == {(threading.current_thread(), "the caller's")}


def test_each_item_has_a_context_of_its_own() -> None:
    color.set("the caller's")

    async def paint(n: int) -> str:
        before = color.get()
        color.set(str(n))
        await asyncio.sleep(0)
        assert color.get() == str(n)
        return before

    def paint_in_a_thread(n: int) -> str:
        before = color.get()
        color.set(str(n))
        return before

    assert set(map(paint, range(20), limit=2)) == {"the caller's"}
    assert set(map(paint_in_a_thread, range(20), limit=2)) == {"the caller's"}
    assert color.get() == "the caller's"


# --- the limit -------------------------------------------------------------------------------------------------------


@every_place
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_no_more_than_the_limit_are_in_flight(place: Any, limit: int) -> None:
    crowd = Crowd()
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for n in range(50):
            assert drawn - len(crowd.cleaned_up) < limit
            drawn += 1
            yield n

    assert place(lambda: map(crowd, items(), limit=limit)) == list(range(50))
    assert crowd.most <= limit


def test_items_that_wait_for_each_other_are_all_in_flight() -> None:
    barrier = asyncio.Barrier(500)

    async def meet(_: int) -> None:
        async with asyncio.timeout(10):
            await barrier.wait()

    map(meet, range(1000))
    map(meet, range(1000), limit=500)
    map(meet, range(1000), limit=math.inf)


@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.storm)])
def test_threads_that_wait_for_each_other_are_all_in_flight(often: None, times: int) -> None:  # noqa: F811
    # A thread that has just found nothing to do and is about to say so must be woken, or not be needed.
    for _ in range(times):
        barrier = threading.Barrier(4, timeout=10)

        def meet(_: int, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)

        map(meet, range(20), limit=4)


def test_threads_are_no_more_than_the_limit() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.001)
        with lock:
            now -= 1

    map(work, range(30), limit=3)
    assert most == 3


def test_slow_input_is_started_as_it_comes() -> None:
    begun = Gate()

    async def begin(_: int) -> None:
        begun.set()

    def items() -> Iterator[int]:
        yield 1
        time.sleep(0.01)
        yield 2
        begun.pass_through()  # the first has not waited for what comes after it
        yield 3

    assert len(map(begin, items())) == 3


def test_a_million_items_are_flat_in_memory() -> None:
    def items() -> Iterator[int]:
        for n in range(6_000):
            yield n
            if n in (1_000, 5_900):
                sizes.append(tracemalloc.get_traced_memory()[0])

    async def nothing(_: int) -> None:
        pass

    for fn in (nothing, lambda _: None):
        sizes: list[int] = []
        tracemalloc.start()
        try:
            for _ in map.unordered(fn, items(), limit=100):
                pass
        finally:
            tracemalloc.stop()
        assert sizes[1] - sizes[0] < 60_000, sizes  # what was drawn between would take 170,000 bytes


def test_an_endless_input_is_drawn_as_far_as_it_is_needed() -> None:
    drawn = itertools.count()
    first = [n for n, _ in zip(map.unordered(trivial, drawn, limit=10), range(25), strict=False)]
    assert sorted(first)[:15] == list(range(15))
    assert next(drawn) <= 25 + 1 + 10


# --- failures --------------------------------------------------------------------------------------------------------


@every_place
def test_the_first_failure_cancels_the_rest_and_says_which_item_failed(place: Any) -> None:
    crowd = Crowd(hang_from=5)

    async def work(n: int, name: str) -> int:
        if n == 3:
            while crowd.begun < 9 or len(crowd.cleaned_up) < 4:
                await asyncio.sleep(0)
            raise ValueError("no")
        return await crowd(n)

    with pytest.raises(ValueError, match="no") as caught:
        place(lambda: map(work, range(10), "abcdefghij"))
    assert crowd.now == 0
    assert sorted(crowd.cleaned_up) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    which, kept = caught.value.__notes__[-2:]
    assert "item 3 of map" in which
    assert "work(3, 'd')" in which
    assert kept.startswith("ipyportal: 4 results are kept")
    assert caught.value.finished == {0: 0, 1: 1, 2: 2, 4: 4}  # type: ignore[attr-defined]


def test_a_failure_in_a_thread_cancels_the_others() -> None:
    ended = []

    def work(n: int) -> None:
        if n == 2:
            raise ValueError
        try:
            run(asyncio.sleep, 3600)
        finally:
            ended.append(n)

    with soon(), pytest.raises(ValueError) as caught:  # noqa: PT011
        map(work, range(3), limit=3)
    assert sorted(ended) == [0, 1]
    assert "item 2 of map" in caught.value.__notes__[0]


@every_place
def test_exceptions_can_be_results(place: Any) -> None:
    async def odd_fails(n: int) -> int:
        await asyncio.sleep(0)
        if n % 2:
            raise ValueError(n)
        return n

    def odd_fails_in_a_thread(n: int) -> int:
        return run(odd_fails(n))

    for fn in (odd_fails, odd_fails_in_a_thread):
        results = place(lambda fn=fn: map(fn, range(4), return_exceptions=True))
        assert [repr(result) for result in results] == ["0", "ValueError(1)", "2", "ValueError(3)"]


def test_an_item_that_is_cancelled_is_a_failure_and_cancels_nobody_else() -> None:
    async def cancelled(n: int) -> int:
        if n == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)
        return n

    with pytest.raises(concurrent.futures.CancelledError, match="item 1 of map was cancelled"):
        map(cancelled, range(3))
    results = map(cancelled, range(3), limit=1, return_exceptions=True)
    assert results[::2] == [0, 2]
    assert isinstance(results[1], asyncio.CancelledError)


def test_stop_iteration_of_an_item_does_not_end_the_iteration() -> None:
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(map.unordered(next, [iter([])]))


def test_input_that_fails_cancels_what_is_in_flight() -> None:
    crowd = Crowd(hang_from=1)

    def items() -> Iterator[int]:
        yield 0
        yield 1
        time.sleep(0.002)  # what was drawn is started meanwhile
        yield 2
        raise OSError("no more")

    with pytest.raises(OSError, match="no more") as caught:
        map(crowd, items())
    assert caught.value.__notes__[0] == "ipyportal: raised by what map was given, asked for item 3"
    assert crowd.now == 0
    assert caught.value.finished in ({}, {0: 0})  # type: ignore[attr-defined]


@every_place
def test_the_time_is_for_all_of_it(place: Any) -> None:
    crowd = Crowd(hang_from=3)
    with pytest.raises(TimeoutError, match=r"map of .*Crowd timed out after 0.1 s") as caught:
        place(lambda: map(crowd, range(6), timeout=0.1))
    assert crowd.now == 0
    assert caught.value.finished == {0: 0, 1: 1, 2: 2}  # type: ignore[attr-defined]


# --- interrupts and ends ---------------------------------------------------------------------------------------------


def test_ctrl_c_cancels_what_is_in_flight_and_keeps_what_is_finished() -> None:
    crowd = Crowd(hang_from=7)

    def stop() -> None:
        crowd.wait_until(lambda: crowd.begun == 10)
        until(lambda: len(crowd.cleaned_up) == 7)
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        map(crowd, range(10))
    thread.join()
    assert crowd.now == 0
    assert sorted(crowd.cleaned_up) == list(range(10))
    assert caught.value.finished == {n: n for n in range(7)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("times", [15, pytest.param(200, marks=pytest.mark.storm)])
def test_ctrl_c_at_any_moment_loses_no_result(often: None, times: int) -> None:  # noqa: F811
    # Whatever was finished is in `finished`: an interrupt may come between two bytecodes of the caller.
    for delay in range(times):
        done: list[int] = []

        async def work(n: int, done: list[int] = done) -> int:
            with shield():
                await asyncio.sleep(0)
                done.append(n)
            return n

        def stop(delay: int = delay, done: list[int] = done) -> None:
            until(lambda: len(done) > 5 + delay)
            press_stop()

        thread = threading.Thread(target=stop)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt) as caught:
                map(work, itertools.count(), limit=5)
        finally:
            thread.join()
        finished = caught.value.finished  # type: ignore[attr-defined]
        assert finished == {n: n for n in finished}
        assert len(done) - len(finished) <= 5  # those that were told to end as they ended


def test_ctrl_c_ends_threads_too() -> None:
    begun = threading.Barrier(4, timeout=10)
    ended = []

    def work(n: int) -> None:
        begun.wait()
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.append(n)

    def stop() -> None:
        begun.wait()
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with soon(), pytest.raises(KeyboardInterrupt):
        map(work, range(3), limit=3)
    thread.join()
    assert sorted(ended) == [0, 1, 2]


@every_place
def test_a_break_cancels_what_is_in_flight(place: Any) -> None:
    crowd = Crowd(hang_from=2)

    def loop() -> int:
        for n in map.unordered(crowd, itertools.count(), limit=6):
            if n == 1:
                break
        return crowd.now

    assert place(loop) == 0
    assert crowd.most <= 6


def test_what_was_finished_when_an_unordered_map_ended_can_still_be_taken() -> None:
    async def work(n: int) -> int:
        if n == 2:
            raise ValueError
        return n

    results = map.unordered(work, range(5), limit=5)
    taken = []
    with pytest.raises(ValueError):  # noqa: PT011
        taken.extend(results)
    assert [*taken, *results] in ([0, 1], [0, 1, 3, 4])
    assert list(results) == []


def test_close_from_another_thread_ends_a_wait() -> None:
    crowd = Crowd(hang_from=0)
    results = map.unordered(crowd, range(3))

    def close() -> None:
        crowd.wait_until(lambda: crowd.begun == 3)
        results.close()

    closing = submit(close, on="thread")
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    closing.result()
    assert crowd.now == 0


def test_a_cancelled_call_cancels_its_map() -> None:
    crowd = Crowd(hang_from=0)
    for on in ("thread", "loop"):
        call = submit(lambda: map(crowd, range(3)), on=on)  # type: ignore[arg-type]
        crowd.wait_until(lambda: crowd.now == 3)
        call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        assert crowd.now == 0


def test_a_map_in_a_thread_that_must_run_it_itself_raises_and_does_not_hang() -> None:
    with WorkerThread() as worker:
        for fn in (abs, double):
            with pytest.raises(RuntimeError, match="would never end"):
                run(lambda fn=fn: map(fn, [1], on=worker), on=worker)


# --- the bar ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm keeps a thread for good that looks after its bars."""
    from tqdm import tqdm

    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.mark.usefixtures("no_monitor")
def test_one_bar_counts_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert map(double, [1, 2, 3], progress=True) == [2, 4, 6]
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert map(double, iter([1, 2]), progress=True) == [2, 4]
    assert "2it" in capsys.readouterr().err
    assert sorted(map.unordered(double, [1, 2], progress=True)) == [2, 4]
    assert "2/2" in capsys.readouterr().err


@pytest.mark.usefixtures("no_monitor")
def test_a_length_that_cannot_be_told_keeps_no_item_from_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Lazy(list[int]):
        def __len__(self) -> int:
            raise ConnectionError

    assert map(double, Lazy([1, 2]), progress=True) == [2, 4]
    assert "2it" in capsys.readouterr().err
    assert map(lambda n, _: n, [1, 2], range(10**30), progress=True) == [1, 2]
    assert "2it" in capsys.readouterr().err


def test_an_items_note_is_short_whatever_the_item_is() -> None:
    def fail(*_: Any) -> None:
        raise LookupError("not here")

    for kind, value in hostile_values().items():
        with pytest.raises(LookupError, match="not here") as failed:
            map(fail, [value], ["x" * 10**6], limit=1)
        notes = [note for note in failed.value.__notes__ if "item 0 of map" in note]
        assert len(notes) == 1, kind
        assert notes[0].isprintable(), kind
        assert len(notes[0]) < 500, kind


@pytest.mark.usefixtures("no_monitor")
def test_without_tqdm_the_bar_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        map(double, [1], progress=True)


# --- bad input -------------------------------------------------------------------------------------------------------


async def generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5, [1]), {}, TypeError, "needs a function and iterables, map(fetch, urls), not int"),
        ((double,), {}, TypeError, "at least one iterable"),
        ((double, 5), {}, TypeError, "needs iterables, such as lists, and 5 is not one"),
        ((generator, [1]), {}, TypeError, "is an async generator function"),
        ((double, generator()), {}, TypeError, "map(fn, iterate(...))"),
        ((double, [1]), {"limit": 0}, ValueError, "limit must be a whole number of 1 or more, not 0"),
        ((double, [1]), {"limit": -3}, ValueError, "not -3"),
        ((double, [1]), {"limit": 1.5}, ValueError, "not 1.5"),
        ((double, [1]), {"limit": math.nan}, ValueError, "not nan"),
        ((double, [1]), {"limit": "3"}, TypeError, "limit must be a whole number or None, not str"),
        ((double, [1]), {"limit": True}, TypeError, "not bool"),
        ((double, [1]), {"timeout": -1}, ValueError, "timeout must be 0 or more seconds"),
        ((double, [1]), {"timeout": "1"}, TypeError, "timeout must be a number"),
        ((double, [1]), {"on": "nowhere"}, ValueError, "on= must be"),
        ((double, [1]), {"on": 5}, TypeError, "on= must be"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments: Any, options: Any, error: Any, message: str) -> None:
    before = threading.active_count()
    for one in (map, map.unordered):
        with pytest.raises(error) as caught:
            one(*arguments, **options)
        assert message in str(caught.value)
    assert threading.active_count() == before


def test_a_star_import_leaves_the_builtin_map_alone() -> None:
    namespace: dict[str, Any] = {}
    exec("from ipyportal import *", namespace)
    assert "map" not in namespace
    assert ipyportal.map is mapping.map


def test_a_thread_that_is_shut_down_under_a_map_ends_it() -> None:
    begun = Gate()

    def work(_: int) -> None:
        begun.set()
        run(asyncio.sleep, 3600)

    worker = WorkerThread()

    def shut_down() -> None:
        begun.pass_through()
        worker.shutdown(cancel=True)

    shutting = submit(shut_down, on="thread")
    for exceptions in (False, True):
        with soon(), pytest.raises((concurrent.futures.CancelledError, RuntimeError)):
            map(work, range(3), on=worker, return_exceptions=exceptions)
    shutting.result()


def test_leftover_runners_do_not_keep_the_loop_busy() -> None:
    map(double, range(10))
    run(double(1))
    loop = get_global_loop().loop

    async def names() -> list[str]:
        return [str(task.get_coro()) for task in asyncio.all_tasks(loop) if "ipyportal.mapping" in str(task.get_coro())]

    assert run(names) == []
    assert in_main(lambda: 1) == in_a_call(lambda: 1)
