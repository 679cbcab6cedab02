"""Fixtures of the tests that run code in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyter_core.utils import ensure_event_loop

from .kernel import Kernel


@pytest.fixture(scope="session", autouse=True)
def loop_of_jupyter_client() -> Iterator[None]:
    """Make the loop that jupyter_client keeps for good, before any test is looked at for leaks."""
    loop = ensure_event_loop()
    yield
    loop.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A fresh kernel, without ipyportal loaded."""
    yield from _running(Kernel())


@pytest.fixture(scope="module")
def live_kernel() -> Iterator[Kernel]:
    """A kernel that the tests of a module share, with ipyportal loaded.

    For tests that leave no more behind than names of their own and a kernel that answers.
    """
    for kernel in _running(Kernel()):
        _load(kernel)
        yield kernel


@pytest.fixture
def loaded_kernel(kernel: Kernel) -> Kernel:
    """A fresh kernel with ipyportal loaded."""
    _load(kernel)
    return kernel


def _load(kernel: Kernel) -> None:
    """Load the extension, and import in a cell what nearly every other cell uses."""
    assert kernel.execute("%load_ext ipyportal").error is None
    reply = kernel.execute("import asyncio, sys, threading, time\nfrom ipyportal import on_kernel_thread, run, submit")
    assert reply.error is None, reply.error.traceback


def _running(kernel: Kernel) -> Iterator[Kernel]:
    with kernel:
        try:
            yield kernel
        finally:
            print(f"the kernel's own output:\n{kernel.log()}")  # shown by pytest if the test failed
