"""Functions that the tests have run in other processes, which import them from here."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


class Thing:
    """Something to be referred to, weakly."""


class Stubborn:
    """One that refuses to be pickled as the locks of multiprocessing do."""

    def __reduce__(self) -> str:
        raise RuntimeError("stays where it is")


class Picky(Exception):
    """One that pickle cannot make anew, as so many: its arguments are not those of its base."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")


def double(n: int) -> int:
    return 2 * n


async def adouble(n: int, plus: int = 0) -> int:
    await asyncio.sleep(0)
    return 2 * n + plus


def gives_awaitable(n: int) -> Coroutine[Any, Any, int]:
    return adouble(n)


def keywords(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fails(n: int) -> int:
    if n == 3:
        raise ValueError(f"no {n}, please")
    return n


async def fails_late(n: int) -> int:
    await asyncio.sleep(0)
    return fails(n)


async def cancels_itself() -> None:
    raise asyncio.CancelledError("by itself")


def refuses() -> None:
    raise Picky(418, "teapot")


def hold(folder: Path, name: str) -> str:
    """Say in `folder` that it has begun, and return when the file ``release`` is there."""
    folder.joinpath(name).touch()
    deadline = time.monotonic() + 20
    while not folder.joinpath("release").exists():
        assert time.monotonic() < deadline, "nobody released it"
        time.sleep(0.002)
    return name


def get_color() -> str:
    return color.get()


async def aget_color() -> str:
    await asyncio.sleep(0)
    return color.get()


def make_thing() -> Thing:
    return Thing()


def die_once(folder: Path) -> str:
    """End the process that runs this, the first time."""
    if not (scar := folder / "scar").exists():
        scar.touch()
        os._exit(1)
    return "survived"


def die_at(n: int, fatal: int) -> int:
    if n == fatal:
        os._exit(1)
    return n


async def aget_color_of(n: int) -> str:
    return f"{await aget_color()} {n}"
