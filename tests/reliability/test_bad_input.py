"""Bad input, given to every public function that could be given it: refused before anything runs, and in words.

The tables hold a row for each parameter of this kind in the public names. One without a row fails a test. What one
function alone refuses is tested beside that function; the magics in tests/notebook/test_magics.py.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ipyportal
from ipyportal import concurrency, enter, iterate, map, on_kernel_thread, run, set_route, submit, syncify
from ipyportal.concurrency import (
    AsyncWaiter,
    Call,
    EventLoopThread,
    ExecutorPortal,
    SyncWaiter,
    WorkerThread,
    cancel_async_after,
    cancel_async_at,
    cancel_sync_after,
    cancel_sync_at,
    cast_to_call,
    create_call,
    from_async,
    from_sync,
    get_global_loop,
    get_worker_thread,
    shutdown,
    wait_for_global_loop_exit,
)
from tests.concurrency.helpers import PATIENCE

ran: list[object] = []

few = settings(max_examples=10, deadline=None, database=None)


@pytest.fixture(autouse=True)
def nothing_has_run() -> Iterator[None]:
    ran.clear()
    yield
    assert not ran


async def work(*_: Any) -> None:
    ran.append(1)


def plain(*_: Any) -> None:
    ran.append(1)


Row = Callable[[Any], object]


def awaited(name: str) -> Row:
    return lambda timeout: asyncio.run(getattr(from_async, name)(plain, timeout))


def within(portal: Any, use: Callable[[Any], object]) -> object:
    """Use a portal, which the use must leave as it was."""
    try:
        with portal:
            return use(portal)
    finally:
        with pytest.raises(RuntimeError, match="was shut down"):
            portal.submit(Call.new(plain))


def refuses_and_goes_on(portal: Any, timeout: Any) -> None:
    try:
        portal.shutdown(timeout=timeout)
    finally:
        assert portal.submit(Call.new(int)).result(PATIENCE) == 0


def executor() -> ExecutorPortal:
    return ExecutorPortal(ThreadPoolExecutor(1), owner=True)


SOON = ("call_soon_in_loop_thread", "call_soon_in_new_thread", "call_soon_in_waiting_thread")
WAITS = (
    "call_in_loop_thread",
    "call_in_new_thread",
    "wait_for_call_in_loop_thread",
    "wait_for_call_in_new_thread",
)

TIMES: dict[str, Row] = {
    "run": lambda it: run(plain, timeout=it),
    "submit": lambda it: submit(work, timeout=it),
    "iterate": lambda it: iterate(work, timeout=it),  # type: ignore[arg-type]
    "enter": lambda it: enter(work, timeout=it),  # type: ignore[arg-type]
    "syncify": lambda it: syncify(work, timeout=it),
    "map": lambda it: map(work, [1], timeout=it),
    "map.unordered": lambda it: map.unordered(work, [1], timeout=it),
    "Call.set_timeout": lambda it: Call.new(plain).set_timeout(it),
    "Call.result": lambda it: Call.new(plain).result(it),
    "Call.exception": lambda it: Call.new(plain).exception(it),
    "EventLoopThread.shutdown": lambda it: within(EventLoopThread(), lambda one: refuses_and_goes_on(one, it)),
    "WorkerThread.shutdown": lambda it: within(WorkerThread(), lambda one: refuses_and_goes_on(one, it)),
    "ExecutorPortal.shutdown": lambda it: within(executor(), lambda one: refuses_and_goes_on(one, it)),
    "shutdown": shutdown,
    "wait_for_global_loop_exit": wait_for_global_loop_exit,
    "cancel_sync_after": cancel_sync_after,
    "cancel_sync_at": cancel_sync_at,
    "cancel_async_after": cancel_async_after,
    "cancel_async_at": cancel_async_at,
    **{f"from_sync.{name}": functools.partial(getattr(from_sync, name), plain) for name in WAITS},
    **{f"from_async.{name}": awaited(name) for name in WAITS},
    **{f"from_sync.{name}": functools.partial(getattr(from_sync, name), plain) for name in SOON[:2]},
    **{f"from_async.{name}": functools.partial(getattr(from_async, name), plain) for name in SOON[:2]},
    # From the code of a call: elsewhere there is nobody to send it to, which is said first.
    **{
        f"{way.__name__}.{SOON[2]}": lambda it, way=way: from_sync.wait_for_call_in_new_thread(  # type: ignore[misc]
            lambda: way.call_soon_in_waiting_thread(plain, it)
        )
        for way in (from_sync, from_async)
    },
}
AT = ("cancel_sync_at", "cancel_async_at")  # a moment, of which one that is past is as good as any

ROUTES: dict[str, Row] = {
    "run": lambda it: run(work, on=it),
    "submit": lambda it: submit(work, on=it),
    "iterate": lambda it: iterate(work, on=it),  # type: ignore[arg-type]
    "enter": lambda it: enter(work, on=it),  # type: ignore[arg-type]
    "syncify": lambda it: syncify(work, on=it),
    "map": lambda it: map(work, [1], on=it),
    "map.unordered": lambda it: map.unordered(work, [1], on=it),
    "set_route": set_route,
}

LIMITS: dict[str, Row] = {
    "map": lambda it: map(work, [1], limit=it),
    "map.unordered": lambda it: map.unordered(work, [1], limit=it),
}

NAMES: dict[str, Row] = {
    "EventLoopThread": EventLoopThread,
    "WorkerThread": WorkerThread,
    "ExecutorPortal": lambda it: within(executor(), lambda one: ExecutorPortal(one.executor, name=it)),
    "get_worker_thread": get_worker_thread,
    "Call.name": lambda it: setattr(Call.new(plain), "name", it),
}

WORK: dict[str, Row] = {
    "run": run,
    "submit": submit,
    "iterate": iterate,
    "enter": enter,
    "syncify": syncify,
    "map": lambda it: map(it, [1]),
    "map.unordered": lambda it: map.unordered(it, [1]),
    "on_kernel_thread": on_kernel_thread,
    "Call": Call,
    "Call.new": Call.new,
    "create_call": create_call,
    "cast_to_call": cast_to_call,
    **{f"from_sync.{name}": getattr(from_sync, name) for name in (*WAITS, *SOON[:2])},
    **{f"from_async.{name}": lambda it, name=name: asyncio.run(getattr(from_async, name)(it)) for name in WAITS},  # type: ignore[misc]
    **{f"from_async.{name}": getattr(from_async, name) for name in SOON[:2]},
    **{
        f"{way.__name__}.{SOON[2]}": lambda it, way=way: from_sync.wait_for_call_in_new_thread(  # type: ignore[misc]
            lambda: way.call_soon_in_waiting_thread(it)
        )
        for way in (from_sync, from_async)
    },
}

CALLS: dict[str, Row] = {
    "EventLoopThread.submit": lambda it: get_global_loop().submit(it),
    "EventLoopThread.add_shutdown_call": lambda it: get_global_loop().add_shutdown_call(it),
    "WorkerThread.submit": lambda it: get_worker_thread("bad input").submit(it),
    "ExecutorPortal.submit": lambda it: within(executor(), lambda one: one.submit(it)),
    "SyncWaiter": SyncWaiter,
    "AsyncWaiter": AsyncWaiter,
    "SyncWaiter.submit": lambda it: SyncWaiter(Call.new(plain)).submit(it),
    "AsyncWaiter.submit": lambda it: AsyncWaiter(Call.new(plain)).submit(it),
    "SyncWaiter.add_done_callback": lambda it: SyncWaiter(Call.new(plain)).add_done_callback(it),
    "AsyncWaiter.add_done_callback": lambda it: AsyncWaiter(Call.new(plain)).add_done_callback(it),
}

TABLES: dict[str, dict[str, Row]] = {
    **dict.fromkeys(("timeout", "seconds", "deadline"), TIMES),
    "on": ROUTES,
    "limit": LIMITS,
    "name": NAMES,
    "work": WORK,
    "fn": WORK,
    "call": WORK | CALLS,
}
OTHER = {
    # what any object is good for
    *("args", "kwargs", "progress", "return_exceptions", "cancel", "daemon", "run_once", "owner"),
    # tested beside their functions, or refused by Python in its own words
    *("iterables", "done_callbacks", "contexts", "thread", "portal", "loop_factory", "executor", "context", "dumps"),
    *("awaitable", "submit"),
}
# Abstract; or made by functions that have checked; or its callback, which is reported if it fails.
ELSEWHERE = {
    *("Portal", "Waiter", "CancelScope", "AsyncCancelScope", "SyncCancelScope", "Cancelled", "State"),
    "Call.add_done_callback",
}


def rows(table: dict[str, Row]) -> Any:
    return pytest.mark.parametrize("give", table.values(), ids=table)


# --- the tables are whole --------------------------------------------------------------------------------------------


def public_functions() -> Iterator[tuple[str, Any]]:
    """All that can be called: functions, constructors, methods; each by the name under which the tables have it."""
    things = {name: getattr(module, name) for module in (ipyportal, concurrency) for name in module.__all__}
    things["map"] = ipyportal.map
    for name, thing in things.items():
        if name in ELSEWHERE or not (callable(thing) and getattr(thing, "__module__", "").startswith("ipyportal")):
            continue
        yield name, thing
        if not inspect.isfunction(thing):
            for method in dir(thing):
                if not method.startswith("_") and callable(one := getattr(thing, method)):
                    yield f"{name}.{method}", one


def missing_rows() -> list[str]:
    return [
        f"{name}({parameter})"
        for name, function in public_functions()
        if name not in ELSEWHERE
        for parameter in inspect.signature(function).parameters
        if parameter != "self" and parameter not in OTHER and name not in TABLES.get(parameter, {})
    ]


def test_each_parameter_of_each_public_function_has_a_row() -> None:
    assert missing_rows() == [], "give bad input to these, too: a row in a table above, by the parameter's kind"


def test_a_parameter_without_a_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def new(timeout: float, colour: str) -> None: ...

    new.__module__ = "ipyportal.new"
    monkeypatch.setattr(ipyportal, "new", new, raising=False)
    monkeypatch.setattr(ipyportal, "__all__", [*ipyportal.__all__, "new"])
    assert missing_rows() == ["new(timeout)", "new(colour)"]


# --- times -----------------------------------------------------------------------------------------------------------


class NotFloat:
    def __float__(self) -> Any:
        return None


negative = (
    st.floats(max_value=-1e-300)
    | st.integers(max_value=-1)
    | st.decimals(max_value=-1, allow_nan=False)
    | st.fractions(max_value=-1)
)
no_time = (
    st.booleans()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.lists(st.integers())
    | st.sampled_from([object(), object, NotFloat(), time.sleep, {}, Decimal("sNaN")])
)


@rows(TIMES)
def test_a_time_that_is_no_number_is_refused(give: Row) -> None:
    @few
    @given(no_time)
    @example("5")
    @example(True)
    def refused(timeout: Any) -> None:
        with pytest.raises(TypeError, match="must be a number of seconds or None, not "):
            give(timeout)

    refused()


@pytest.mark.parametrize("name", [name for name in TIMES if name not in AT])
def test_a_negative_time_is_refused(name: str) -> None:
    @few
    @given(negative)
    @example(-(10**400))
    @example(Fraction(-(10**400)))
    @example(-math.inf)
    def refused(timeout: Any) -> None:
        with pytest.raises(ValueError, match="must be 0 or more seconds, not -"):
            TIMES[name](timeout)

    refused()


@rows(TIMES)
@pytest.mark.parametrize("nan", [math.nan, Decimal("NaN")])
def test_a_time_that_is_not_a_number_of_seconds_is_refused(give: Row, nan: Any) -> None:
    with pytest.raises(ValueError, match="must be 0 or more seconds, not nan"):
        give(nan)


@pytest.mark.parametrize("timeout", [math.inf, 9e9, 10**10, 10**400, Fraction(10**400), Decimal("1e999"), 1.7e308])
def test_a_time_beyond_what_clocks_count_is_no_limit(timeout: Any) -> None:
    # The race that shows it: who waits must get to its wait before the call is over.
    async def late() -> int:
        await asyncio.sleep(0.001)
        return 5

    assert run(late, timeout=timeout) == 5
    assert run(late, timeout=timeout, on="thread") == 5
    assert submit(late).result(timeout) == 5
    assert from_sync.wait_for_call_in_loop_thread(late, timeout) == 5
    assert asyncio.run(from_async.wait_for_call_in_loop_thread(late, timeout)) == 5
    assert map(lambda _: 5, [1], timeout=timeout) == [5]
    with cancel_sync_after(timeout), cancel_sync_at(timeout):
        pass
    for portal in (WorkerThread(), EventLoopThread()):
        portal.submit(Call.new(late))
        assert portal.shutdown(timeout=timeout)
    assert wait_for_global_loop_exit(timeout)
    shutdown(timeout)


# --- places, limits, names -------------------------------------------------------------------------------------------


class Refusing:
    """Refuses to be compared and to be shown, as arrays and proxies do."""

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


@rows(ROUTES)
def test_a_place_that_is_none_is_refused(give: Row) -> None:
    @few
    @given(st.text().filter(lambda text: text not in ("kernel", "loop", "thread", "nested")))
    def refused(on: str) -> None:
        with pytest.raises(ValueError, match='on= must be "kernel", "loop", "thread", "nested" or a Portal'):
            give(on)

    refused()
    for on in (5, True, b"loop", WorkerThread, Refusing(), ["loop"], object()):
        with pytest.raises(TypeError, match="on= must be"):
            give(on)
    assert ipyportal.get_route() is None


@rows(LIMITS)
def test_a_limit_below_one_is_refused(give: Row) -> None:
    @few
    @given(st.integers(max_value=0) | st.floats(max_value=0.99) | st.just(1.5) | st.just(math.nan))
    def refused(limit: Any) -> None:
        with pytest.raises(ValueError, match="limit must be a whole number of 1 or more, not "):
            give(limit)

    @few
    @given(st.text() | st.booleans() | st.decimals() | st.just(Refusing()))
    def no_number(limit: Any) -> None:
        with pytest.raises(TypeError, match="limit must be a whole number or None, not "):
            give(limit)

    refused()
    no_number()


def test_a_limit_may_be_as_large_as_any_number() -> None:
    assert map(str, [1], limit=10**400) == ["1"]


@rows(NAMES)
@pytest.mark.parametrize("name", [5, b"db", ["db"], Refusing(), str], ids=lambda name: type(name).__name__)
def test_a_name_that_is_no_text_is_refused(give: Row, name: Any) -> None:
    with pytest.raises(TypeError, match="name"):
        give(name)


# --- work ------------------------------------------------------------------------------------------------------------


def no_work() -> dict[str, Any]:
    class NoneAwait:
        __await__ = None

    return {"number": 5, "text": "fetch", "list": [work], "awaitable in name": NoneAwait(), "refusing": Refusing()}


@rows(WORK)
@pytest.mark.parametrize("kind", no_work())
def test_what_is_no_work_is_refused(give: Row, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"(needs? an?|takes? one) .*\bnot (a )?{type(no_work()[kind]).__name__}"):
        give(no_work()[kind])


@pytest.mark.parametrize("give", [run, submit], ids=["run", "submit"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_async_generator_function_is_refused_also_in_partials(give: Row, depth: int) -> None:
    async def numbers(*_: Any) -> Any:
        yield ran.append(1)

    fn: Any = numbers
    for _ in range(depth):
        fn = functools.partial(fn, 1)
    with pytest.raises(TypeError, match="numbers is an async generator function, which cannot be awaited: collect it"):
        give(fn)


@pytest.mark.parametrize("bad", [{"timeout": -1}, {"timeout": "1"}, {"on": "nowhere"}, {"on": 5}])
@pytest.mark.parametrize("place", [lambda fn: fn(), from_sync.call_in_loop_thread], ids=["main", "call"])
@pytest.mark.parametrize("give", [run, submit], ids=["run", "submit"])
def test_a_coroutine_that_is_refused_is_left_as_it_was(give: Any, place: Any, bad: Any) -> None:
    # Not closed: who corrects the mistake can give it again. None of ours is left over, which would warn.
    async def five() -> int:
        return 5

    coroutine = five()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises((TypeError, ValueError)):
            place(lambda: give(coroutine, **bad))
        gc.collect()
    assert said == []
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    assert place(lambda: run(coroutine)) == 5


@pytest.mark.parametrize("place", [lambda fn: fn(), from_sync.call_in_loop_thread], ids=["main", "call"])
@pytest.mark.parametrize("give", [run, submit], ids=["run", "submit"])
@pytest.mark.parametrize("many", [False, True])
def test_a_coroutine_that_is_refused_and_has_no_name_is_not_warned_of(give: Any, place: Any, many: bool) -> None:
    async def five() -> int:
        return 5

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises((TypeError, ValueError)):
            place(lambda: give([five(), five()] if many else five(), on="elsewhere" if not many else None))
        gc.collect()
    assert said == []


# --- calls -----------------------------------------------------------------------------------------------------------


@rows(CALLS)
@pytest.mark.parametrize("thing", [5, None, plain, "call"], ids=lambda thing: type(thing).__name__)
def test_what_is_no_call_is_refused_with_what_to_type(give: Row, thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"a Call, not {type(thing).__name__}: .*\(Call\.new\(fn"):
        give(thing)


def test_a_hostile_metaclass_does_not_keep_a_call_from_its_name() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> NoReturn:
            raise ZeroDivisionError

    class Hostile(metaclass=Meta):
        def __call__(self) -> int:
            return 5

    call = get_global_loop().submit(Call.new(Hostile()))
    assert call.result(PATIENCE) == 5
    assert call.name.endswith("Hostile")
