"""Fixtures of the engine's tests."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipyportal.concurrency import EventLoopThread, WorkerThread
from ipyportal.concurrency.greenlets import greenlets_available

_NEED_GREENLETS = {
    "suspended": "synchronous code is suspended here",
    "another_greenlet": "code with greenlets of its own runs here",
    "test_uvloop_is_a_loop_factory": "a call of the loop waits for another of the same loop",
    "test_a_sync_scope_inside_an_async_one_leaves_it_alone": "synchronous code is suspended here",
}
"""What must be skipped without greenlets, by a part of its name, and why."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if greenlets_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for part, why in _NEED_GREENLETS.items():
                if part in item.nodeid:
                    item.add_marker(pytest.mark.skip(reason=f"needs the package greenlet: {why}"))


@pytest.fixture
def worker() -> Iterator[WorkerThread]:
    with WorkerThread() as portal:
        yield portal


@pytest.fixture
def loop_thread() -> Iterator[EventLoopThread]:
    with EventLoopThread() as portal:
        yield portal


@pytest.fixture(scope="session")
def uvloop() -> Any:
    module = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))  # the first makes pipes that the process keeps
    return module


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was given to `sys.unraisablehook` during the test."""
    reports: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    return reports


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The exceptions that ended threads during the test."""
    exceptions: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: exceptions.append(args.exc_value))
    return exceptions


@pytest.fixture
def often() -> Iterator[None]:
    """Switch between threads as often as the interpreter can, so that a race has its chances."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
