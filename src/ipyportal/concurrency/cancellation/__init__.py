"""Cancelling: scopes, shields, deadlines, and how synchronous code is interrupted, whatever its thread is doing.

`scopes` has what users enter; `interruption` the record of what a thread has entered, and the ways to reach it;
`frames` when it may be interrupted; `delivery` the signal or exception that is sent; `targets` what it is sent to;
`clock` the deadlines; `blocking` the engine's one way to block.
"""

from ipyportal.concurrency.cancellation.interruption import Cancelled
from ipyportal.concurrency.cancellation.scopes import (
    GRACE,
    AsyncCancelScope,
    CancelScope,
    SyncCancelScope,
    cancel_async_after,
    cancel_async_at,
    cancel_sync_after,
    cancel_sync_at,
    cancel_task,
    shield,
)

__all__ = [
    "GRACE",
    "AsyncCancelScope",
    "CancelScope",
    "Cancelled",
    "SyncCancelScope",
    "cancel_async_after",
    "cancel_async_at",
    "cancel_sync_after",
    "cancel_sync_at",
    "cancel_task",
    "shield",
]
