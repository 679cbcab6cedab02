"""What a type checker sees of the public names. `test_twins` has mypy check this file; it is not run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, assert_type

from ipyportal import enter, iterate, map, syncify
from ipyportal.twins import Twin


@syncify
async def fetch(url: str, *, retries: int = 3) -> bytes:
    return url.encode() * retries


@syncify(timeout=5)
async def count(n: int) -> AsyncIterator[int]:
    yield n


@syncify
@asynccontextmanager
async def opened(path: str) -> AsyncIterator[float]:
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


coroutine: Coroutine[Any, Any, bytes] = fetch.aio("x")
