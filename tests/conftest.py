"""The check that every test leaves the process as it found it; and, for CI, a line that says what it ran with."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import gc
import io
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

_VERSIONS = os.environ.pop("IPYPORTAL_VERSIONS", None)  # not for tests that run pytest themselves

GRACE = 2.0
"""Seconds that something may take to go away by itself after a test: a thread's last steps, say."""

PATCHABLE: tuple[tuple[Any, str], ...] = (
    (asyncio, "run"),
    (asyncio, "Runner"),
    (asyncio.Runner, "run"),
    (asyncio.Runner, "__init__"),
    (asyncio, "Task"),
    (asyncio.tasks, "Task"),
    (asyncio, "Future"),
    (asyncio.futures, "Future"),
    (asyncio, "get_event_loop"),
    (asyncio, "get_running_loop"),
    (asyncio, "new_event_loop"),
    (asyncio, "set_event_loop"),
    (asyncio.events, "get_event_loop"),
    (asyncio.events, "get_running_loop"),
    (asyncio.events, "_get_running_loop"),
    (asyncio.events, "_set_running_loop"),
    (asyncio.events, "new_event_loop"),
    (asyncio.events, "_event_loop_policy"),
    (asyncio, "create_task"),
    (asyncio, "ensure_future"),
    (asyncio, "current_task"),
    (asyncio.tasks, "_enter_task"),
    (asyncio.tasks, "_leave_task"),
    (asyncio, "sleep"),
    (asyncio, "to_thread"),
    (asyncio, "run_coroutine_threadsafe"),
    (asyncio.Handle, "_run"),
    (asyncio.BaseEventLoop, "run_forever"),
    (asyncio.BaseEventLoop, "run_until_complete"),
    (asyncio.BaseEventLoop, "_run_once"),
    (asyncio.BaseEventLoop, "_check_running"),
    (asyncio.BaseEventLoop, "create_task"),
    (asyncio.BaseEventLoop, "call_soon"),
    (asyncio.BaseEventLoop, "call_soon_threadsafe"),
    (threading, "excepthook"),
    (threading.Thread, "start"),
    (threading.Thread, "run"),
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (sys, "displayhook"),
    (sys, "breakpointhook"),
    (time, "sleep"),
    (time, "monotonic"),
    (signal, "signal"),
    (signal, "getsignal"),
    (builtins, "input"),
    (builtins, "print"),
    (builtins, "__import__"),
)

# asyncio.Task is the C type; libraries that patch asyncio make tasks of the Python one.
TASK_TYPES = (asyncio.Task, asyncio.tasks._PyTask)  # type: ignore[attr-defined]

# A shell starts what it runs in the background with Ctrl-C ignored, and so would every kernel be that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The event loop policy is made at the first use of it, which is no patch.
if sys.platform != "emscripten":  # where a new loop takes the place of the page's own
    asyncio.new_event_loop().close()


class Snapshot:
    """What a test must leave as it was."""

    def __init__(self, kept_open: tuple[str, ...] = ()) -> None:
        self.kept_open = kept_open
        self.threads = set(threading.enumerate())
        self.tasks = pending_tasks()
        self.files = open_files()
        self.handlers = signal_handlers()
        self.attributes = attributes()

    def leaks(self) -> list[str]:
        """One text for each thing that is here now and was not, or not so, at the snapshot."""
        threads = [one for one in threading.enumerate() if one not in self.threads]
        tasks = [one for one in pending_tasks() if one not in self.tasks]
        files = {
            (number, target)
            for number, target in open_files().items() - self.files.items()
            if not target.startswith(self.kept_open)
        }
        return [
            *map(describe_thread, threads),
            *map(describe_task, tasks),
            *(f"file descriptor {number}: {target}{describe_socket(target)}" for number, target in sorted(files)),
            *changes("handler of", self.handlers, signal_handlers()),
            *changes("patched", self.attributes, attributes()),
        ]

    def settle(self) -> list[str]:
        """Wait until nothing is left over, for `GRACE` seconds at most; return what still is."""
        leaks = self.leaks()
        if leaks:
            gc.collect()  # what is garbage already has not leaked
        deadline = time.monotonic() + GRACE
        while (leaks := leaks and self.leaks()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return leaks

    def restore(self) -> None:
        """Put back what can be, so that a leak fails the test that has it and no other."""
        for number, handler in self.handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for owner, name in PATCHABLE:
            before = self.attributes[qualified(owner, name)]
            if before is not MISSING and raw_attribute(owner, name) is not before:
                setattr(owner, name, before)


MISSING = object()


def raw_attribute(owner: Any, name: str) -> Any:
    # From __dict__: getattr makes a new bound method each time, which has no identity to compare.
    return vars(owner).get(name, MISSING)


def qualified(owner: Any, name: str) -> str:
    module = f"{owner.__module__}." if isinstance(owner, type) else ""
    return f"{module}{owner.__name__}.{name}"


def attributes() -> dict[str, Any]:
    return {qualified(owner, name): raw_attribute(owner, name) for owner, name in PATCHABLE}


def signal_handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in signal.Signals}


def open_files() -> dict[int, str]:
    """What each file descriptor of this process points at; nothing where there is no /proc."""
    files = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return files
    for number in numbers:
        try:
            files[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the descriptor that listed the folder
            continue
    return files


def pending_tasks() -> list[asyncio.Task[Any]]:
    """The unfinished tasks of all loops of all threads."""
    # asyncio.all_tasks() knows one loop at a time, and a loop that leaked is not at hand.
    return [
        candidate for candidate in gc.get_objects() if issubclass(type(candidate), TASK_TYPES) and not candidate.done()
    ]


def changes(title: str, before: dict[Any, Any], after: dict[Any, Any]) -> Iterator[str]:
    for key, value in after.items():
        if value is not before[key]:
            name = key.name if isinstance(key, signal.Signals) else key
            yield f"{title} {name}: {before[key]!r} became {value!r}"


def describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else "  (no Python frame)\n"
    return f"{thread!r}\n{stack}"


def describe_socket(target: str) -> str:
    """What the system says of a socket: its addresses in hexadecimal digits and its state, or its path."""
    inode = target.removeprefix("socket:[").removesuffix("]")
    for table in ("tcp", "tcp6", "udp", "udp6", "unix"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines():
                if inode in line.split():
                    return f" ({table}: {line.strip()})"
    return ""


def describe_task(task: asyncio.Task[Any]) -> str:
    stack = io.StringIO()
    task.print_stack(file=stack)
    return f"{task!r}\n{stack.getvalue()}"


def shut_down_engine() -> None:
    """End the threads that ipyportal keeps on purpose: the global loop, idle workers, the clock."""
    engine = sys.modules.get("ipyportal.concurrency")
    if engine is not None:
        engine.shutdown()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Add a line to the table of CI, in the file that IPYPORTAL_VERSIONS names: what ran, and with what."""
    if _VERSIONS is None:
        return
    stats = terminalreporter.stats
    tests = "all" if config.args == config.getini("testpaths") else ", ".join(Path(name).stem for name in config.args)
    packages = ("ipykernel", "ipython", "greenlet", "ipywidgets", "tqdm")
    counts = [str(len(stats.get(outcome, ()))) for outcome in ("passed", "skipped")]
    with open(_VERSIONS, "a", encoding="utf-8") as file:
        file.write(f"| {' | '.join([platform.python_version(), *map(_version_of, packages), tests, *counts])} |\n")


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@pytest.fixture
def kept_open() -> tuple[str, ...]:
    """How the targets of file descriptors begin that may be left open; for a module to override."""
    return ()


@pytest.fixture(autouse=True)
def nothing_is_left_over(kept_open: tuple[str, ...]) -> Iterator[None]:
    """Fail a test that left a thread, a task, a descriptor, a signal handler or a patch behind.

    Fixtures of a wider scope are set up before this one: what they hold is not held against a test.
    """
    gc.collect()  # what the test before has left, its fixtures included
    if hasattr(gc, "freeze"):  # not on PyPy
        # Set aside what is there: looking for tasks, and collecting garbage, does not go through it each time.
        gc.freeze()
    before = Snapshot(kept_open)
    yield
    shut_down_engine()
    leaks = before.settle()
    before.restore()
    gc.collect()  # what is garbage has its say now, and not in another test
    if leaks:
        pytest.fail("the test left behind:\n\n" + "\n".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def uvloop() -> Any:
    module = pytest.importorskip("uvloop")
    module.new_event_loop().close()  # the first makes a pipe that the process keeps
    return module
