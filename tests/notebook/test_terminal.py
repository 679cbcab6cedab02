"""Terminal IPython: no loop runs while a line runs, so calls run on the loop thread."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Terminal:
    """IPython in a process of its own, typed to line by line."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "IPYTHONDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.output = ""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read_until(self, text: str, timeout: float = 20) -> str:
        """What it wrote up to the line that holds `text`."""
        deadline = time.monotonic() + timeout
        said = ""
        while text not in said:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"ended after {said!r}"
            said += line
        return said

    def run(self, line: str) -> str:
        """Type a line and return what it wrote until the next one was run."""
        self.type(line)
        self.type("print('=' * 3 + 'end')")
        return self.read_until("===end")

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join()
            self._process.stdout.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    try:
        terminal.run("import asyncio, time, threading")
        terminal.run("%load_ext ipyportal")
        terminal.run("from ipyportal import run, submit")
        yield terminal
    finally:
        terminal.close()


def test_run_await_and_submit_work_in_terminal_ipython(terminal: Terminal) -> None:
    assert "'ran'" in terminal.run("run(asyncio.sleep(0.01, 'ran'))")
    assert "'awaited'" in terminal.run("%await asyncio.sleep(0.01, 'awaited')")
    assert "'submitted'" in terminal.run("submit(asyncio.sleep, 0.01, 'submitted').result()")
    assert "'top level'" in terminal.run("await asyncio.sleep(0.01, 'top level')")
    assert "Error" not in terminal.run("%unload_ext ipyportal")
    assert "'still runs'" in terminal.run("run(asyncio.sleep(0.01, 'still runs'))")


def test_ctrl_c_ends_a_wait_in_terminal_ipython_after_its_clean_up(terminal: Terminal) -> None:
    terminal.run("ended = []")
    terminal.run("def begin(coro): print('beg' + 'un'); return run(coro)")
    terminal.type("async def work():\n    try: await asyncio.sleep(60)\n    finally: ended.append('cleaned ' + 'up')\n")
    terminal.type("begin(work())")
    terminal.read_until("begun")
    time.sleep(0.2)
    terminal.interrupt()
    terminal.read_until("KeyboardInterrupt", timeout=10)
    assert "cleaned up" in terminal.run("ended")
    assert "'alive'" in terminal.run("run(asyncio.sleep(0, 'alive'))")
