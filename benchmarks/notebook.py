"""Rows of the notebook, each measured in the cells of a real kernel."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

import ipyportal
from benchmarks.measure import Sides, row

__all__ = ["CellError", "Kernel", "environment"]

TIMEOUT = 120.0


def environment() -> dict[str, str]:
    """The environment of a child that shall import the very ipyportal that is imported here, compiled as usual."""
    source = str(Path(ipyportal.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    child = {**os.environ, "PYTHONPATH": path}
    child.pop("PYTHONDONTWRITEBYTECODE", None)  # an import that compiles each time is not what users have
    return child


class CellError(RuntimeError):
    """A cell raised; the message is its traceback."""


class Kernel:
    """A fresh kernel of this interpreter, without the user's profile. Cells run one after the other."""

    def __init__(self, stack: ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        manager = KernelManager(connection_file=str(Path(folder) / "kernel.json"))
        manager._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
            display_name="benchmarks",
            language="python",
        )
        manager.start_kernel(env={**environment(), "IPYTHONDIR": folder})
        stack.callback(manager.shutdown_kernel, now=True)
        self._client: BlockingKernelClient = manager.client()
        self._client.start_channels()
        stack.callback(self._client.stop_channels)
        self._client.wait_for_ready(timeout=TIMEOUT)
        self._printed: list[str] = []

    def run(self, code: str) -> str | None:
        """Run a cell to its end, and give the text of its last expression's value."""
        request = self._client.execute(code, store_history=False)
        result: str | None = None
        error: list[str] = []
        while True:
            message = self._next_message()
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != request:
                continue
            if kind == "execute_result":
                result = content["data"]["text/plain"]
            elif kind == "error":
                error = content["traceback"]
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while self._client.get_shell_msg(timeout=TIMEOUT)["parent_header"].get("msg_id") != request:
            pass
        if error:
            raise CellError("\n".join(error))
        return result

    def value(self, code: str) -> float:
        """Run a cell, and give its last expression's value, a number."""
        result = self.run(code)
        assert result is not None
        return float(result)

    def printed_number(self) -> float:
        """Wait for a line that is a number, from whatever cell or task."""
        while True:
            line, newline, rest = "".join(self._printed).partition("\n")
            self._printed = [rest] if newline else [line]
            if newline:
                return float(line)
            self._next_message()

    def _next_message(self) -> dict[str, Any]:
        message: dict[str, Any] = self._client.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            self._printed.append(message["content"]["text"])
        return message


NOOP = """
import asyncio, gc, time

async def noop():
    pass
"""

RUN = f"""
{NOOP}
from ipyportal import run

def measure(calls):
    gc.collect()
    begin = time.perf_counter()
    for _ in range(calls):
        run(noop())
    return (time.perf_counter() - begin) / calls * 1e6
"""

RUN_UNTIL_COMPLETE = f"""
{NOOP}
import nest_asyncio

nest_asyncio.apply()

def measure(calls):
    loop = asyncio.get_running_loop()
    gc.collect()
    begin = time.perf_counter()
    for _ in range(calls):
        loop.run_until_complete(noop())
    return (time.perf_counter() - begin) / calls * 1e6
"""


@row("cell", "run(noop()) in a cell", bar=0.2, calls=2_000, most_rounds=31, needs=("nest_asyncio",))
def cell(stack: ExitStack, calls: int) -> Sides:
    """`run(noop())` with the extension loaded / nest_asyncio's `loop.run_until_complete(noop())`, in synchronous cells.

    Fair: two fresh kernels, and each tool as its documentation has it used. The same loop around the same function.
    """
    ours, peer = Kernel(stack), Kernel(stack)
    ours.run("%load_ext ipyportal")
    ours.run(RUN)
    peer.run(RUN_UNTIL_COMPLETE)
    return (lambda: ours.value(f"measure({calls})")), (lambda: peer.value(f"measure({calls})"))


TASKS = f"""
{NOOP}
async def measure(calls):
    loop = asyncio.get_running_loop()
    gc.collect()
    begin = time.perf_counter()
    for _ in range(calls):
        await loop.create_task(noop())
    return (time.perf_counter() - begin) / calls * 1e6
"""

IN_BACKGROUND = """
requests = asyncio.Queue()

async def serve():
    while True:
        calls = await requests.get()
        await asyncio.sleep(0.05)  # the cell that asked for it ends, and is answered
        print(await measure(calls))

server = asyncio.get_running_loop().create_task(serve())
"""

LOAD, UNLOAD = "%load_ext ipyportal", "%unload_ext ipyportal"


@row("kernel-task", "a task on the kernel's loop, extension loaded", bar=1.05, calls=3_000, most_rounds=31)
def kernel_task(stack: ExitStack, calls: int) -> Sides:
    """`await loop.create_task(noop())` with the extension loaded / not loaded, in the same kernel.

    Fair: measured by a background task that was made before the extension was ever loaded, while no cell runs. The
    extension is loaded and unloaded in turn, so that both sides share a process.
    """
    return background_tasks(stack, calls, LOAD, UNLOAD)


def background_tasks(stack: ExitStack, calls: int, ours: str, peer: str) -> Sides:
    """Two cells that are run in turn in one kernel; after each a background task measures while no cell runs."""
    kernel = Kernel(stack)
    kernel.run(TASKS)
    kernel.run(IN_BACKGROUND)

    def side(change: str) -> float:
        kernel.run(change)
        kernel.run(f"requests.put_nowait({calls})")
        return kernel.printed_number()

    return (lambda: side(ours)), (lambda: side(peer))


# Without what the magic says: the lines that are printed are numbers.
SILENTLY = "from IPython.utils.io import capture_output\nwith capture_output():\n    %portal patch"
PATCH, UNPATCH = f"{LOAD}\n{SILENTLY} on", f"{SILENTLY} off"


@row("patched-task", "a task on the kernel's loop, asyncio patched", bar=1.3, calls=3_000, most_rounds=31)
def patched_task(stack: ExitStack, calls: int) -> Sides:
    """`await loop.create_task(noop())` after `%portal patch on` / before `%load_ext ipyportal`.

    Fair: as kernel-task.
    """
    return background_tasks(stack, calls, PATCH, UNLOAD)


@row("unpatched-task", "a task on the kernel's loop, patch taken off", bar=1.05, calls=3_000, most_rounds=31)
def unpatched_task(stack: ExitStack, calls: int) -> Sides:
    """`await loop.create_task(noop())` after `%portal patch on` and `off` / before `%load_ext ipyportal`.

    Fair: as kernel-task.
    """
    return background_tasks(stack, calls, f"{PATCH}\n{UNPATCH}", UNLOAD)


@row(
    "nested-task",
    "a task on the kernel's loop, nest_asyncio",
    group="informative",
    calls=3_000,
    most_rounds=31,
    needs=("nest_asyncio",),
)
def nested_task(stack: ExitStack, calls: int) -> Sides:
    """`await loop.create_task(noop())` after `nest_asyncio.apply()` / without it.

    nest_asyncio cannot be taken back, so the sides are two fresh kernels; ipyportal is in neither.
    """
    nested, plain = Kernel(stack), Kernel(stack)
    for kernel in (nested, plain):
        kernel.run(TASKS)
        kernel.run(IN_BACKGROUND)
    nested.run("import nest_asyncio\nnest_asyncio.apply()")

    def side(kernel: Kernel) -> float:
        kernel.run(f"requests.put_nowait({calls})")
        return kernel.printed_number()

    return (lambda: side(nested)), (lambda: side(plain))


WAITS = """
import asyncio, gc, time

async def waits(calls):
    gc.collect()
    begin = time.perf_counter()
    for _ in range(calls):
        wait(asyncio.sleep(0))
    return (time.perf_counter() - begin) / calls * 1e6
"""


@row(
    "task-waits",
    "run(asyncio.sleep(0)) in a task that others made",
    bar=1.5,
    calls=3_000,
    most_rounds=31,
    needs=("nest_asyncio",),
)
def task_waits(stack: ExitStack, calls: int) -> Sides:
    """`run(asyncio.sleep(0))` in a task of the notebook / nest_asyncio's `loop.run_until_complete(...)` there.

    Fair: two fresh kernels, and the same task in both. Either lets the loop go on for a turn.
    """
    ours, peer = Kernel(stack), Kernel(stack)
    ours.run("%load_ext ipyportal\nfrom ipyportal import run as wait")
    peer.run("import asyncio, nest_asyncio\nnest_asyncio.apply()\nwait = asyncio.get_running_loop().run_until_complete")
    for kernel in (ours, peer):
        kernel.run(WAITS)

    def side(kernel: Kernel) -> float:
        return kernel.value(f"await asyncio.create_task(waits({calls}))")

    return (lambda: side(ours)), (lambda: side(peer))


@row("cell-task", "a task awaited in a cell, extension loaded", group="informative", calls=3_000, most_rounds=31)
def cell_task(stack: ExitStack, calls: int) -> Sides:
    """`await loop.create_task(noop())` in an asynchronous cell, with the extension loaded / not loaded.

    Here the measuring cell is one that ipyportal made suspendable, so each of its steps pays for that.
    """
    kernel = Kernel(stack)
    kernel.run(TASKS)

    def side(change: str) -> float:
        kernel.run(change)
        return kernel.value(f"await measure({calls})")

    return (lambda: side(LOAD)), (lambda: side(UNLOAD))


@row("load-ext", "%load_ext ipyportal in a fresh kernel", bar=60.0, unit="ms", calls=1, most_rounds=7)
def load_ext(stack: ExitStack, calls: int) -> Sides:
    """The time of `%load_ext ipyportal` as the first thing that a fresh kernel does. The bar is absolute."""

    def ours() -> float:
        with ExitStack() as one:
            kernel = Kernel(one)
            return kernel.value(
                "import time\nbegin = time.perf_counter()\n%load_ext ipyportal\n(time.perf_counter() - begin) * 1e3"
            )

    return ours, None
