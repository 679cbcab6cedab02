"""How a thread of the engine blocks."""

from __future__ import annotations

import math
import queue
import sys
import time
from typing import TypeVar

from ipyportal.concurrency.cancellation.frames import Mark

__all__ = ["block"]

T = TypeVar("T")

__ipyportal_mark__ = Mark.WHOLE  # who is interrupted in a wait of the engine's is woken instead

# Seconds between looks for Ctrl-C. On Windows a thread that acquires a lock does not see it; elsewhere it wakes.
_SLICE = 0.1 if sys.platform == "win32" else None


def block(inbox: queue.SimpleQueue[T], timeout: float | None) -> T:
    """Block this thread for the next item of `inbox`, without looking at what its code is asked.

    It ends with an item or after `timeout`: who calls it sees to it that one of them comes.
    """
    if _SLICE is None:
        return inbox.get(True, timeout)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            return inbox.get(True, max(0.0, min(left, _SLICE)))
        except queue.Empty:
            if left <= _SLICE:
                raise
