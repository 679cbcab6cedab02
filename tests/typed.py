"""What a type checker sees of the public names. It is not run.

`test_twins` has mypy check it, and CI has mypy and pyright check it against an installed wheel. A ``type: ignore``
marks what a checker must refuse: both say so where nothing is to be ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, assert_type

from ipyportal import EventLoopThread, enter, get_worker_thread, iterate, map, run, set_route, submit, syncify
from ipyportal.concurrency import (
    AsyncWaiter,
    Call,
    Portal,
    State,
    SyncWaiter,
    cast_to_call,
    create_call,
    from_async,
    from_sync,
    suspend,
)
from ipyportal.synchronous import Twin


@syncify
async def fetch(url: str, *, retries: int = 3) -> bytes:
    return url.encode() * retries


@syncify(timeout=5)
async def count(n: int) -> AsyncIterator[int]:
    yield n


@syncify
@asynccontextmanager
async def opened(path: str) -> AsyncGenerator[float, None]:
    yield float(path)


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    @syncify
    async def get(self, path: str) -> bytes:
        return (self.base + path).encode()


async def numbers(n: int) -> AsyncIterator[int]:
    yield n


async def double(n: int) -> int:
    return 2 * n


async def asynchronous() -> None:
    assert_type(await fetch.aio("x"), bytes)
    assert_type(await Client("x").get.aio("y"), bytes)


def synchronous() -> None:
    assert_type(fetch("x", retries=2), bytes)
    fetch(1)  # type: ignore[arg-type]
    fetch("x", tries=2)  # type: ignore[call-arg]
    assert_type(list(count(3)), list[int])
    with opened("x") as value:
        assert_type(value, float)
    assert_type(Client("x").get("y"), bytes)
    Client("x").get(3)  # type: ignore[arg-type]

    twin = syncify(Client)
    assert_type(twin.aio, type[Client])
    assert_type(twin("x"), Twin[Client])
    assert_type(twin("x").aio, Client)
    with twin("x") as client:
        client.get("y")

    assert_type(list(iterate(numbers(3))), list[int])
    assert_type(list(iterate(numbers, 3)), list[int])
    with enter(asyncio.timeout, 3) as timeout:
        assert_type(timeout, asyncio.Timeout)
    with enter(asyncio.TaskGroup()) as group:
        assert_type(group, asyncio.TaskGroup)

    assert_type(map(double, [1]), list[int])
    assert_type(map(len, ["a"]), list[int])
    assert_type(map(double, [1], return_exceptions=True), list[int | BaseException])
    for n in map.unordered(double, [1]):
        assert_type(n, int)


def waiting() -> None:
    assert_type(run(double(1)), int)
    assert_type(run(double, 1, timeout=5, on="loop"), int)
    assert_type(run(len, "a", on=get_worker_thread("db")), int)
    run(double(1), on="elsewhere")  # type: ignore[call-overload]
    set_route(5)  # type: ignore[arg-type]

    call = submit(double, 1, on="thread")
    assert_type(call, Call[int])
    assert_type(call.result(timeout=5), int)
    assert_type(call.state, State)
    call.result("soon")  # type: ignore[arg-type]


def engine(portal: Portal) -> None:
    assert_type(create_call(double, 1), Call[int])
    assert_type(create_call(len, "a"), Call[int])
    assert_type(cast_to_call(create_call(len, "a")), Call[int])
    assert_type(portal.submit(create_call(len, "a")), Call[int])
    with EventLoopThread(name="mine") as thread:
        assert_type(thread.submit(Call.new(double, 1)).result(), int)
    assert_type(SyncWaiter(create_call(len, "a")).wait(), Call[int])
    assert_type(from_sync.wait_for_call_in_loop_thread(create_call(double, 1), timeout=5), int)
    assert_type(from_sync.call_soon_in_new_thread(create_call(len, "a")), Call[int])
    assert_type(suspend(double(1)), int)


async def asynchronous_engine() -> None:
    assert_type(await AsyncWaiter(create_call(len, "a")).wait(), Call[int])
    assert_type(await create_call(double, 1), int)
    assert_type(await from_async.wait_for_call_in_new_thread(create_call(len, "a")), int)


coroutine: Coroutine[Any, Any, bytes] = fetch.aio("x")
