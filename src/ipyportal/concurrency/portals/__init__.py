"""Portals: places where calls run.

`workers` and `loops` are threads that run calls, and share their `life`; `pool` lends threads for a call each;
`tasks` is one task; `executors` somebody else's pool, with what is `pickling` for it. `shared` has what the process has
one of, ends it, and starts anew after a fork.
"""

from ipyportal.concurrency.calls import Portal
from ipyportal.concurrency.portals.executors import ExecutorPortal
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
    "ExecutorPortal",
    "LoopPortal",
    "Portal",
    "WorkerThread",
    "get_global_loop",
    "get_thread_pool",
    "get_worker_thread",
    "in_global_loop",
    "shutdown",
    "wait_for_global_loop_exit",
]
