"""The public names of `portals` that are threads, by the path that they have always had."""

from ipyportal.concurrency.portals.loops import EventLoopThread, LoopPortal
from ipyportal.concurrency.portals.shared import (
    get_global_loop,
    get_thread_pool,
    get_worker_thread,
    in_global_loop,
    shutdown,
    wait_for_global_loop_exit,
)
from ipyportal.concurrency.portals.workers import WorkerThread

__all__ = [
    "EventLoopThread",
    "LoopPortal",
    "WorkerThread",
    "get_global_loop",
    "get_thread_pool",
    "get_worker_thread",
    "in_global_loop",
    "shutdown",
    "wait_for_global_loop_exit",
]
