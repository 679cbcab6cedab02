"""What a row of docs/libraries.md is made of: a library, and how people use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """A library, and code that does with it what people do with it.

    Args:
        package: by which it is installed.
        does: what of it is called, for the table.
        setup: a cell that defines ``use(seconds)``, which uses the library and waits that long for it.
            It finds `PRELUDE` run before it. In it ``ADDRESS``, ``POSTGRES``, ``REDIS`` and ``ORCHESTRATOR`` stand for
            those of servers on loopback, ``CHROMIUM`` for a path, and ``FOLDER`` for one to write to.
        gives: what ``use`` returns.
        by: the ways that the page names, the best first; see `WAYS`.
        asynchronous: whether ``use`` is a coroutine function.
        cleans_up: whether its wait is in a coroutine of ours, which is to be cancelled if it is stopped.
        goes_on: whether it waits in a way of its own, so that a stop ends the wait alone, and that goes on.
        stops_quietly: whether it takes a KeyboardInterrupt for the wish to end, and ends without one.
        ends: a cell that closes what `setup` opened.
    """

    package: str
    does: str
    setup: str
    gives: Any
    by: tuple[str, ...]
    asynchronous: bool = False
    cleans_up: bool = True
    goes_on: bool = False
    stops_quietly: bool = False
    ends: str = ""


PRELUDE = """
import asyncio, sys, threading, time

ticks, ended = [], []

async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0.01)

async def wait(seconds):
    try:
        if seconds > 10:
            print("waits", flush=True)  # the stop button may come before this has returned
        await asyncio.sleep(seconds)
    finally:
        ended.append(seconds)
    return "waited"

ticker = asyncio.get_running_loop().create_task(tick())
tasks_before = set(asyncio.all_tasks())

def left():
    # Tasks that are new on the kernel's loop, beside those of the kernel itself.
    tasks = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
    return [repr(task) for task in tasks if "zmq" not in repr(task) and "ipykernel" not in repr(task)]
"""

WAYS: dict[str, tuple[str, str]] = {
    "as in a script": ("", "{call}"),
    "nest_asyncio": ("import nest_asyncio\nnest_asyncio.apply()", "{call}"),
    "the patch": ("%load_ext ipyportal\n%portal patch on", "{call}"),
    "%%thread": ("%load_ext ipyportal", "%%thread\n{call}"),
    "run": ("%load_ext ipyportal\nfrom ipyportal import run", "run(use({seconds}))"),
    'run(on="loop")': ("%load_ext ipyportal\nfrom ipyportal import run", 'run(use({seconds}), on="loop")'),
}
"""Ways to call it from a cell: what is typed before, and the cell."""


def cell(library: Library, way: str, seconds: float) -> str:
    """The cell that calls it so, and waits for so long."""
    call = f"asyncio.run(use({seconds}))" if library.asynchronous else f"use({seconds})"
    return WAYS[way][1].format(call=call, seconds=seconds)
