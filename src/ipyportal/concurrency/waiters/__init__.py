"""Waiting for a call, and running meanwhile what is sent back to the thread that waits.

A `Waiter` is a `Portal`: code of the call, wherever it runs, submits to it. `SyncWaiter` blocks its thread and runs one
call after the other; `AsyncWaiter` awaits in a loop, and runs them there as tasks.
"""

from ipyportal.concurrency.waiters.awaiting import AsyncWaiter
from ipyportal.concurrency.waiters.blocking import SyncWaiter, ThreadInbox
from ipyportal.concurrency.waiters.waiter import Waiter

__all__ = ["AsyncWaiter", "SyncWaiter", "ThreadInbox", "Waiter"]
