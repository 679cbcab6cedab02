"""Kernels that are not ipykernel itself: xeus-python, async-kernel, and that of Spyder.

In the first two the extension does what needs no ipykernel. Spyder's is made of ipykernel, and all of it works there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

PACKAGES = {"xpython": "xpython", "async": "async_kernel"}
"""Kernelspecs, and what is imported for them."""

PATIENCE = 60.0


class OtherKernel:
    """A kernel by the name of its kernelspec, or Spyder's. A context manager."""

    def __init__(self, name: str, folder: Path) -> None:
        manager = _SpyderManager if name == "spyder" else KernelManager
        self._manager = manager(kernel_name=name, connection_file=str(folder / "connection.json"))
        self._log = (folder / "log").open("wb")
        self._environment = {**os.environ, "IPYTHONDIR": str(folder), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

    def __enter__(self) -> OtherKernel:
        self._manager.start_kernel(stdout=self._log, stderr=self._log, env=self._environment)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        self._log.close()

    def execute(self, code: str) -> str:
        """What the cell has printed and shown, as text. It must not fail."""
        said: list[str] = []

        def take(message: Any) -> None:
            content = message["content"]
            said.append(content.get("text", content.get("data", {}).get("text/plain", "")))

        reply = self._client.execute_interactive(code, timeout=PATIENCE, output_hook=take)
        assert reply["content"]["status"] == "ok", f"{code}\n{reply['content']}"
        return "".join(said)


class _SpyderManager(KernelManager):
    """Spyder starts its kernel by itself, and has no kernelspec."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "spyder_kernels.console", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Spyder", language="python")


@pytest.fixture
def spyder(tmp_path: Path) -> Iterator[OtherKernel]:
    if importlib.util.find_spec("spyder_kernels") is None:
        if os.environ.get("IPYPORTAL_SPYDER"):
            pytest.fail("CI needs spyder-kernels")
        pytest.skip("needs spyder-kernels, which needs ipykernel 6: pip install spyder-kernels")
    with OtherKernel("spyder", tmp_path) as kernel:
        yield kernel


@pytest.fixture(params=PACKAGES)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OtherKernel]:
    package = PACKAGES[request.param]
    if importlib.util.find_spec(package) is None:
        if os.environ.get("IPYPORTAL_CI") and not os.environ.get("IPYPORTAL_NO_BROWSER"):
            pytest.fail(f"CI needs {package}")
        pytest.skip(f'needs {package}: pip install "ipyportal[kernels]"')
    with OtherKernel(request.param, tmp_path) as kernel:
        yield kernel


def test_the_extension_works_there_and_says_what_is_missing(other: OtherKernel) -> None:
    other.execute("before = get_ipython().showtraceback")
    said = other.execute("%load_ext ipyportal")
    assert "is not ipykernel: run, submit and the magics work" in said
    assert said.count("\n") == 1
    other.execute("""
import asyncio, threading
from ipyportal import run, submit

ticks = []

async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0.01)

task = asyncio.get_running_loop().create_task(tick())
""")
    portal = other.execute("%portal")
    assert "a Jupyter kernel that is not ipykernel" in portal
    other.execute("del ticks[:]")
    waited = other.execute("run(asyncio.sleep(0.3, 'waited'))")
    if re.search("the loop of this thread +uvloop", portal):  # async-kernel takes it if it is installed
        assert "blocked: they run in no task of asyncio's own loop" in portal
        assert "run() blocks the event loop that runs in this thread" in waited
        assert waited.endswith("'waited'")
    else:
        # Cells are tasks of a loop there, too: one that waits is suspended, and the loop goes on.
        assert "suspended: the loop goes on" in portal
        assert waited == "'waited'"
        assert int(other.execute("print(len(ticks))")) > 5
    assert other.execute("%await asyncio.sleep(0.01, 'awaited')") == "'awaited'"
    assert other.execute("%%thread\nasyncio.run(asyncio.sleep(0.01, 'alone'))") == "'alone'"
    other.execute("%%background job\nawait asyncio.sleep(0.01)\n'in the background'")
    assert "in the background" in other.execute("job.result()")
    assert "job   finished" in other.execute("%calls")
    assert other.execute("%unload_ext ipyportal") == ""
    assert other.execute("print(get_ipython().showtraceback == before)") == "True\n"
    assert other.execute("task.cancel()\nrun(asyncio.sleep(0.01, 'still'))").endswith("'still'")


def test_its_stop_button_ends_a_wait(other: OtherKernel) -> None:
    other.execute("%load_ext ipyportal\nimport asyncio")
    other.execute("from ipyportal import run\nended = []")
    client, manager = other._client, other._manager
    request = client.execute(
        "async def work():\n    try: await asyncio.sleep(60)\n    finally: ended.append(1)\n"
        "print('begun')\nrun(work())",
        stop_on_error=False,  # a kernel may abort what comes just after a cell that failed
    )
    while not client.get_iopub_msg(PATIENCE)["content"].get("text", "").startswith("begun"):
        pass
    time.sleep(0.1)
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=10))["parent_header"].get("msg_id") != request:
        pass
    assert reply["content"]["status"] == "error"
    assert other.execute("print(ended)") == "[1]\n"


def test_spyders_kernel_has_all_of_it(spyder: OtherKernel) -> None:
    prelude = """
import asyncio, threading
from ipyportal import run

async def work(x):
    await asyncio.sleep(0.05)
    return x

def waits(x):
    return run(work(x)), threading.current_thread() is threading.main_thread()
"""
    cells = ["waits(1)", "print(await work(2))", "%time 3", "def f():\n    1 / 0\nf"]
    spyder.execute(prelude)
    before = spyder.execute("[get_ipython().showtraceback, get_ipython().kernel.dispatch_shell]")
    duration = r"[\d.]+(e\+\d+)? (ns|μs|us|ms|s)\b"
    without = [re.sub(duration, "some time", spyder.execute(cell)) for cell in cells]
    assert spyder.execute("%load_ext ipyportal") == ""
    assert [re.sub(duration, "some time", spyder.execute(cell)) for cell in cells] == without
    portal = spyder.execute("%portal")
    assert "suspended: the loop goes on" in portal
    assert "live: their messages are handled" in portal
    assert spyder.execute("%%thread\nasyncio.run(work(5))") == "5"
    spyder.execute("%%background job\nawait work(6)")
    assert "the result: 6" in spyder.execute("print('the result:', run(job))")
    assert spyder.execute("%unload_ext ipyportal") == ""
    assert spyder.execute("[get_ipython().showtraceback, get_ipython().kernel.dispatch_shell]") == before
    assert spyder.execute("waits(7)") == "(7, True)"
