"""The row of what importing the engine costs."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from benchmarks.measure import Sides, row
from benchmarks.notebook import environment

__all__: list[str] = []

IMPORT = """
import asyncio, time
begin = time.perf_counter()
import ipyportal.concurrency
print((time.perf_counter() - begin) * 1e3)
"""


@row("import", "import ipyportal.concurrency, beyond asyncio", bar=30.0, unit="ms", calls=1, most_rounds=15)
def import_engine(stack: ExitStack, calls: int) -> Sides:
    """The time of the import in a fresh process that has imported asyncio. The bar is absolute."""
    child = environment()

    def ours() -> float:
        done = subprocess.run([sys.executable, "-c", IMPORT], env=child, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return ours, None
