"""Nobody keeps what a call came to, wherever it was waited for, by whatever way."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal import map, run, submit
from ipyportal.concurrency import from_sync
from tests.concurrency.helpers import PATIENCE, spin, until
from tests.places import every_place


class Thing:
    """What can be referred to weakly."""


async def make(_: object = None) -> Thing:
    await asyncio.sleep(0)
    return Thing()


async def fail() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


def failure(work: Callable[[], object]) -> Thing:
    """Something that the exception holds which `work` raises."""
    try:
        work()
    except BaseException as exc:  # noqa: BLE001 - what the call came to
        exc.thing = thing = Thing()  # type: ignore[attr-defined]
        return thing
    raise AssertionError("it did not fail")


def sent_back() -> Any:
    return from_sync.wait_for_call_in_new_thread(lambda: from_sync.call_soon_in_waiting_thread(Thing).result())


def interrupted() -> Thing:
    begun = threading.Event()

    def work() -> None:
        begun.set()
        spin()

    call = submit(work, on="thread")
    begun.wait(PATIENCE)
    call.cancel()
    return failure(call.result)


PATHS: dict[str, Callable[[], Any]] = {
    "run": lambda: run(make),
    "run on a thread": lambda: run(Thing, on="thread"),
    "run on the loop": lambda: run(make, on="loop"),
    "run with a time-out": lambda: run(make, timeout=PATIENCE),
    "submit": lambda: submit(make).result(),
    "wait for the loop": lambda: from_sync.wait_for_call_in_loop_thread(make),
    "wait for a thread": lambda: from_sync.wait_for_call_in_new_thread(Thing),
    "sent back": sent_back,
    "map": lambda: map(make, [0])[0],
    "failure": lambda: failure(lambda: run(fail)),
    "failure on the loop": lambda: failure(lambda: run(fail, on="loop")),
    "failure of a wait": lambda: failure(lambda: from_sync.wait_for_call_in_loop_thread(fail)),
    "time-out": lambda: failure(lambda: run(asyncio.sleep, PATIENCE, timeout=0.001)),
    "cancel": interrupted,
}


@every_place
@pytest.mark.parametrize("path", PATHS)
def test_nobody_keeps_what_a_call_came_to(place: Callable[..., Any], path: str) -> None:
    came_to: list[weakref.ref[Any]] = []
    place(lambda: came_to.append(weakref.ref(PATHS[path]())))

    def is_gone() -> bool:
        gc.collect()
        return came_to[0]() is None

    until(is_gone)
