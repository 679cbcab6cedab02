"""Fixtures of the reliability tests."""

from __future__ import annotations

from tests.concurrency.conftest import often, reported, worker
from tests.notebook.conftest import kernel, live_kernel, loaded_kernel, loop_of_jupyter_client

__all__ = ["kernel", "live_kernel", "loaded_kernel", "loop_of_jupyter_client", "often", "reported", "worker"]
