"""The kernel's end: what is in flight is cancelled, and has a second to clean up.

The frontend that ends a kernel presses the stop button first. Then the kernel stops its loop, maybe before that has got
to the clean-ups, and Python waits for the threads that are no daemons: those of ``asyncio.to_thread``, for instance. If
one of them waits in `run`, for the kernel's loop or for another, the process would not end. So this is done before.
"""

from __future__ import annotations

import asyncio
import threading
import time

from ipyportal.concurrency.portals.shared import calls_in_threads
from ipyportal.concurrency.portals.tasks import give_up, in_flight_on
from ipyportal.concurrency.waiters.blocking import ThreadInbox
from ipyportal.notebook.interrupts import Interrupts

__all__ = ["end_kernel"]

_CLEAN_UP = 1.0  # seconds

_ANSWER = 0.25
"""Seconds in which a thread whose wait was ended brings its result to the loop.

A thread of anyio's ends when the task that awaits it has taken the result, and not before.
"""


def end_kernel(loop: asyncio.AbstractEventLoop | None, portal: ThreadInbox, interrupts: Interrupts) -> None:
    """Cancel what is in flight, and run the loop on until it has cleaned up. In the kernel's thread, after its loop."""
    if loop is not None and not (loop.is_running() or loop.is_closed()):
        interrupts.end()
        portal.cancel_waiting()
        for one in in_flight_on(loop):
            one.cancel()
        threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.current_thread()]
        # The others are cancelled at the interpreter's exit, as in a script: its handlers may still need them.
        calls = calls_in_threads() if threads else []
        for call in calls:
            call.cancel()
        ends = time.monotonic() + _CLEAN_UP
        while time.monotonic() < ends and (
            interrupts.watching() or in_flight_on(loop) or not all(call.done() for call in calls)
        ):
            _run_on(loop)
        ends = min(ends, time.monotonic() + _ANSWER)
        while time.monotonic() < ends and any(one.is_alive() for one in threads):
            _run_on(loop)
        give_up(loop)
    portal.close("the kernel is being shut down")


def _run_on(loop: asyncio.AbstractEventLoop) -> None:
    # The task of a cell may be one that runs all cells. And the kernel may stop the loop once more.
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
