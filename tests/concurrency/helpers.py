"""What the engine's tests share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ipyportal.concurrency import Call, Portal

PATIENCE = 10.0
"""Seconds after which something that should have happened has not."""


class By(Portal):
    """A portal that submits calls by a function."""

    name = "a function"

    def __init__(self, submit: Callable[[Call[Any]], object]) -> None:
        self._submit = submit

    def submit(self, call: Call[Any]) -> Call[Any]:
        self._submit(call)
        return call


class Gate(threading.Event):
    """An event that does not wait for ever."""

    def pass_through(self) -> None:
        assert self.wait(PATIENCE), "nobody opened the gate"


@contextlib.contextmanager
def soon(seconds: float = 3.0) -> Iterator[None]:
    """The block ends well before what it must not wait for; `seconds` is no measure of speed."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < seconds, f"took {took:.2f} s"


NEST_ASYNCIO = "nest_asyncio" if sys.version_info < (3, 14) else "nest_asyncio2"
"""The module of nest-asyncio, or of its fork where it does not run: what the extra `nest` installs."""


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread is about to do and tells nobody of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.001)


def spin(stop: threading.Event | None = None) -> None:
    """Run bytecode, until `stop` is set or an interrupt ends it."""
    deadline = time.monotonic() + PATIENCE
    while stop is None or not stop.is_set():
        assert time.monotonic() < deadline, "nothing interrupted it"


def blocked_in_c(seconds: float) -> None:
    """Block this thread where no interrupt reaches it, except on the main thread."""
    time.sleep(seconds)


def python(script: str, *args: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run `script` in an interpreter of its own, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def blocked_in_a_wait(thread: threading.Thread) -> bool:
    """Whether `thread` is in the engine's one blocking wait now."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "block"


def press_stop() -> None:
    """Send this process what Ctrl-C and the stop button send, from a thread that is not the main one."""
    assert threading.current_thread() is not threading.main_thread()
    os.kill(os.getpid(), signal.SIGINT)


def press_stop_in_a_wait() -> None:
    """`press_stop` when the main thread is in the engine's wait, and not about to block.

    Python's handler runs between two bytecodes: a signal that comes after the last of them does not end the wait.
    """
    until(lambda: blocked_in_a_wait(threading.main_thread()))
    time.sleep(0.02)
    press_stop()
