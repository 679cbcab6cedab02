"""The debugger of ipykernel, over its protocol, as JupyterLab speaks it: with the extension all is as without it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from .kernel import ESCAPE_SEQUENCE, Kernel

pytest.importorskip("debugpy", reason="ipykernel has no debugger without it")

from ipykernel.debugger import Debugger as KernelsDebugger

HIDES = "kernel_modules" in inspect.signature(KernelsDebugger).parameters
hides = pytest.mark.skipif(not HIDES, reason="this ipykernel hides no frames from its debugger, also none of its own")

SETUP = """
import asyncio

async def work(x):
    await asyncio.sleep(0.01)
    return x
"""

FUNCTION = """def f():
    a = 1
    return a
x = f()
y = 2
z = 3"""

AWAIT = """x = await work(1)
y = 2
z = 3"""

RUN = """def g():
    x = run(work(1))
    y = 2
    return y
g()
z = 3"""

CALL = """async def w():
    x = 1
    await asyncio.sleep(0.01)
    return x
submit(w()).result()
z = 3"""

Stack = list[tuple[str, int]]


class Debugger:
    """What a frontend does when its user turns the debugger on."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._number = 0
        self._seen = 0
        self.ask(
            "initialize",
            clientID="tests",
            adapterID="",
            linesStartAt1=True,
            columnsStartAt1=True,
            pathFormat="path",
        )
        self.ask("attach")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        request = {"type": "request", "seq": self._number, "command": command, "arguments": arguments}
        pending = self._kernel.request("debug_request", request, channel="control")
        self._kernel.wait_for(pending.answered, 30)
        (reply,) = [message["content"] for message in pending.messages if message["msg_type"] == "debug_reply"]
        body: dict[str, Any] = reply.get("body") or {}
        return body

    def stop_in(self, cell: str, *lines: int) -> None:
        """Set breakpoints in a cell."""
        path = self.ask("dumpCell", code=cell)["sourcePath"]
        self.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": line} for line in lines])
        self.ask("configurationDone")

    def stopped(self) -> int | None:
        """The thread that has stopped; None if the cell has ended. Waits for either, unless that ends at once."""
        self._kernel.wait_for(
            lambda: len(self._events()) > self._seen or (self._cell.done() and not self._ends_at_once), 20
        )
        events = self._events()[self._seen :]
        self._seen += len(events)
        return events[-1]["body"]["threadId"] if events else None

    def _events(self) -> list[dict[str, Any]]:
        messages = [*self._kernel.unclaimed, *(m for one in self._kernel.requests() for m in list(one.messages))]
        events = [message["content"] for message in messages if message["msg_type"] == "debug_event"]
        return [event for event in events if event["event"] == "stopped"]

    def walk(self, cell: str, line: int, steps: list[str]) -> list[Stack | None]:
        """Run a cell to a breakpoint, and go on step by step: the stacks on the way, and None after its end."""
        self.stop_in(cell, line)
        self._cell = self._kernel.execute_async(cell)
        self._ends_at_once = cell.startswith("%%background")
        stacks: list[Stack | None] = []
        for step in [*steps, "continue"]:
            thread = self.stopped()
            if thread is None:
                stacks.append(None)
                return stacks
            frames = self.ask("stackTrace", threadId=thread)["stackFrames"]
            assert not HIDES or not any("ipyportal" in Path(frame["source"]["path"]).parts for frame in frames), frames
            stacks.append([(frame["name"], frame["line"]) for frame in frames])
            self.ask(step, threadId=thread)
        self.ask("setBreakpoints", source={"path": self.ask("dumpCell", code=cell)["sourcePath"]}, breakpoints=[])
        assert self._cell.reply(30).error is None
        return stacks


@pytest.fixture
def debugger(loaded_kernel: Kernel) -> Debugger:
    loaded_kernel.execute(SETUP)
    return Debugger(loaded_kernel)


STEPS = {
    "a function": (FUNCTION, 2, "next"),
    "out of a function": (FUNCTION, 2, "stepOut"),
    "into a function": (FUNCTION, 4, "stepIn"),
    "a line that awaits": (AWAIT, 1, "next"),
}


@hides
@pytest.mark.parametrize("name", STEPS)
def test_stacks_and_steps_are_those_without_the_extension(debugger: Debugger, name: str) -> None:
    cell, line, step = STEPS[name]
    with_it = debugger.walk(cell, line, [step] * 3)
    with Kernel() as bare:
        bare.execute(SETUP)
        assert Debugger(bare).walk(cell, line, [step] * 3) == with_it


@hides
def test_run_is_stepped_over_as_any_function(debugger: Debugger) -> None:
    with_it = debugger.walk(RUN, 2, ["next"] * 3)
    assert with_it[:2] == [[("g", 2), ("<module>", 5)], [("g", 3), ("<module>", 5)]]
    with Kernel() as bare:
        assert Debugger(bare).walk(RUN.replace("run(work(1))", "max(1, 2)"), 2, ["next"] * 3) == with_it


@hides
def test_a_call_on_the_loop_thread_is_stepped_through(debugger: Debugger) -> None:
    assert debugger.walk(CALL, 2, ["next", "next"]) == [[("w", 2)], [("w", 3)], [("w", 4)]]


@pytest.mark.parametrize(
    "magic", ["%%thread", "%%thread --name db", "%%await", "%%background", "%%background job --on thread"]
)
def test_breakpoints_in_the_body_of_a_magic_are_hit(debugger: Debugger, magic: str) -> None:
    first, second = debugger.walk(f"{magic}\nx = 1\ny = 2\nz = x + y", 3, ["next"])
    assert first is not None
    assert first[0] == ("<module>", 3)
    if HIDES:  # or else the next line is one of the function that runs the cell's statements, one by one
        assert second is not None
        assert second[0] == ("<module>", 4)


@hides
def test_unloading_has_the_debugger_know_nothing_of_us(kernel: Kernel) -> None:
    known = "[path for path in get_ipython().kernel.debugger.kernel_modules if 'ipyportal' in path]"
    before = kernel.value(f"import ipyportal\n{known}")
    kernel.execute("%load_ext ipyportal")
    assert len(kernel.value(known)) > len(before) + 50
    kernel.execute("%unload_ext ipyportal")
    assert kernel.value(known) == before


PDB = """from IPython.core.debugger import set_trace
async def w():
    set_trace()
    x = await work(1)
    return x
def g():
    x = run(w())
    return x
g()"""


def test_pdb_gets_from_a_coroutine_to_the_line_after_its_run(loaded_kernel: Kernel) -> None:
    loaded_kernel.value(f"{SETUP}\nfrom ipyportal import run\nNone")
    # Where a coroutine ends, `next` stops once in our code, and `up` finds the line that called run.
    reply = loaded_kernel.execute(PDB, answers=["until 5", "next", "up", "next", "continue"])
    assert reply.error is None
    stops = re.findall(r"^> (\S+)\((\d+)\)(\w+)\(", ESCAPE_SEQUENCE.sub("", reply.stdout), re.MULTILINE)
    assert [f"{function}:{line}" for _, line, function in stops][1:] == ["w:5", f"drive:{stops[2][1]}", "g:7", "g:8"]
