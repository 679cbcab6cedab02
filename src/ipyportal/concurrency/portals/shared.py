"""What the process has one of: the global loop, worker threads by their names, the pool; their end, and forks."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ipyportal.concurrency.calls.execution import Execution, cancel_in_child
from ipyportal.concurrency.cancellation import interruption
from ipyportal.concurrency.cancellation.clock import check_timeout, clock
from ipyportal.concurrency.cancellation.frames import uninterruptible
from ipyportal.concurrency.portals.life import Phase, ThreadPortal, all_threads
from ipyportal.concurrency.portals.loops import EventLoopThread
from ipyportal.concurrency.portals.page import the_page
from ipyportal.concurrency.portals.pool import ThreadPool
from ipyportal.concurrency.portals.tasks import steps_in_flight
from ipyportal.concurrency.portals.workers import WorkerThread
from ipyportal.concurrency.private import register_atexit
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.reporting import forget_unretrieved, report_unretrieved

__all__ = [
    "calls_in_threads",
    "endings",
    "get_global_loop",
    "get_thread_pool",
    "get_worker_thread",
    "in_global_loop",
    "shutdown",
    "wait_for_global_loop_exit",
]

T = TypeVar("T")

_globals_lock = threading.RLock()

_global_loop: EventLoopThread | None = None

_workers: dict[str, WorkerThread] = {}

_pool = ThreadPool()

endings: list[Callable[[], object]] = []
"""Functions to call first when the interpreter ends, before it waits for threads: these may wait in `run`."""


@uninterruptible
def get_global_loop() -> EventLoopThread:
    """Return the global `EventLoopThread` of the process. It starts when needed, and again if it was shut down or died.

    In a browser (Pyodide) it is a portal of the page's own loop, which has no thread to shut down.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import Call, get_global_loop
        >>> get_global_loop().submit(Call.new(asyncio.sleep, 0.01, "slept")).result()
        'slept'
    """
    global _global_loop
    if IN_PYODIDE:
        return cast("EventLoopThread", the_page())
    portal = _global_loop
    if portal is not None and portal._phase is Phase.RUNNING:
        return portal
    with _globals_lock:
        portal = _global_loop
        if portal is None or (portal._phase is not Phase.NEW and not portal.running()):
            portal = _global_loop = EventLoopThread(name="ipyportal-loop")
        return portal.start()  # which raises a Ctrl-C that came meanwhile


def in_global_loop() -> bool:
    """True in the thread of the global loop.

    Example:
        >>> from ipyportal.concurrency import from_sync, in_global_loop
        >>> in_global_loop(), from_sync.call_in_loop_thread(in_global_loop)
        (False, True)
    """
    if IN_PYODIDE:
        return asyncio._get_running_loop() is the_page().loop
    portal = _global_loop
    return portal is not None and portal.thread is threading.current_thread()


def wait_for_global_loop_exit(timeout: float | None = None) -> bool:
    """Shut down the global loop, cancel its calls, and wait for its end, for at most `timeout` seconds.

    The next call that needs a global loop starts a new one.

    Returns:
        False if it had not ended by then.

    Raises:
        RuntimeError: Called in the global loop's thread, or in a browser, where that loop is the page's.
        TypeError, ValueError: `timeout` is not a number, or is negative.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync, wait_for_global_loop_exit
        >>> call = from_sync.call_soon_in_loop_thread(create_call(asyncio.sleep, 60))
        >>> wait_for_global_loop_exit(timeout=5)
        True
        >>> call.cancelled()
        True
    """
    global _global_loop
    if IN_PYODIDE:
        return the_page().shutdown()
    if in_global_loop():
        raise RuntimeError("the global loop's own thread cannot wait for that thread's end")
    timeout = check_timeout(timeout)
    with _globals_lock:
        portal, _global_loop = _global_loop, None
    return portal is None or portal.shutdown(cancel=True, timeout=timeout)


def get_worker_thread(name: str) -> WorkerThread:
    """Return the `WorkerThread` with this name: the same one each time. From any thread.

    Use it for objects that belong to the thread that made them. ``%%thread --name db`` runs in
    ``get_worker_thread("db")``. The thread starts with its first call. If it was shut down, a new one is made.

    Args:
        name: Any text that is not empty.

    Raises:
        TypeError, ValueError: `name` is not such a text.

    Example:
        >>> import sqlite3
        >>> from ipyportal.concurrency import Call, get_worker_thread
        >>> thread = get_worker_thread("db")
        >>> db = thread.submit(Call.new(sqlite3.connect, ":memory:")).result()  # refuses any other thread
        >>> thread.submit(Call.new(lambda: db.execute("select 1 + 1").fetchone())).result()
        (2,)
        >>> thread.submit(Call.new(db.close)).result()
    """
    if not isinstance(name, str):
        raise TypeError(f"a worker thread's name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError('a worker thread needs a name: get_worker_thread("db")')
    with _globals_lock:
        worker = _workers.get(name)
        if worker is None or worker._phase in (Phase.CLOSING, Phase.CLOSED):
            worker = _workers[name] = WorkerThread(name=f"ipyportal-{name}")
        return worker


def get_thread_pool() -> ThreadPool:
    """The portal that runs each call in a thread that it shares with no other meanwhile. From any thread.

    Threads whose call is over are lent again; one that was idle for 10 seconds ends.
    """
    return _pool


def shutdown(timeout: float | None = 5.0) -> None:
    """End the engine's shared threads: the global loop, workers, the clock. The calls that they run are cancelled.

    Do not call it from one of these threads. They start again when they are needed. When the interpreter exits, this
    happens by itself. In a browser, this cancels the calls on the page's loop, and does not wait for their clean-up.

    Args:
        timeout: Seconds to wait for all of them together; None for as long as it takes.

    Raises:
        RuntimeError: Called in the global loop's thread.
        TypeError, ValueError: `timeout` is not a number, or is negative.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import from_sync, shutdown
        >>> thread = from_sync.call_in_loop_thread(threading.current_thread)
        >>> shutdown()
        >>> thread.is_alive()
        False
    """
    global _pool, _global_loop
    if IN_PYODIDE:
        the_page().cancel_calls()
        return
    if in_global_loop():
        raise RuntimeError("the global loop's own thread cannot wait for that thread's end")
    timeout = check_timeout(timeout)
    with _globals_lock:
        lender, _pool = _pool, ThreadPool()
        loop, _global_loop = _global_loop, None
        portals: list[ThreadPortal] = [*_workers.values()]
        _workers.clear()
    if loop is not None:
        portals.append(loop)
    _end(portals, lender, timeout)


def _end(portals: list[ThreadPortal], lender: ThreadPool, timeout: float | None) -> None:
    """Cancel what runs there, in all of them before the first is waited for."""
    for portal in portals:
        portal.shutdown(cancel=True, timeout=0)
    threads = [*lender.stop(), *(portal.thread for portal in portals)]
    until = None if timeout is None else time.monotonic() + timeout
    for thread in threads:
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            # Ends after what is left of `timeout`, whatever runs there.
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
    clock.stop()


def _at_exit() -> None:
    """Before the interpreter goes away under them: also threads that were not shut down run their clean-ups."""
    _end(list(all_threads), _pool, 1.0)
    report_unretrieved()


def calls_in_threads() -> list[Execution[Any]]:
    """The calls in the engine's threads, except non-daemon threads: for their calls the interpreter waits."""
    calls: list[Execution[Any]] = [call for lent in list(_pool.all) if (call := lent.current) is not None]
    for portal in list(all_threads):
        if portal._daemon:
            calls += portal._calls()
    return [*calls, *steps_in_flight()]


def _end_first() -> None:
    while endings:
        endings.pop()()


def _before_threads_are_joined() -> None:
    """The interpreter is about to wait for threads that are no daemons: for their calls, and not for more of them."""
    for portal in list(all_threads):
        if not portal._daemon and portal._phase is Phase.RUNNING:
            portal.shutdown(timeout=0)


def _after_fork() -> None:
    # Only the thread that forked lives on here, and locks may be held by threads that do not exist.
    global _globals_lock, _global_loop, _pool
    calls: list[Execution[Any]] = [lent.current for lent in _pool.all if lent.current is not None]
    _globals_lock = threading.RLock()
    _global_loop = None
    _pool = ThreadPool()
    endings.clear()  # a child of multiprocessing calls them, too
    interruption.after_fork()
    forget_unretrieved()
    for portal in list(all_threads):
        calls += portal._calls()
        portal._close_in_child()
        portal._reset()
    cancel_in_child(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

atexit.register(_at_exit)
if register_atexit is not None:
    register_atexit(_before_threads_are_joined)
# Python calls these in reverse order. The import registers the function that waits for the threads of executors. It
# must be registered before ours, so that ours runs first: those threads may wait for what `endings` end.
importlib.import_module("concurrent.futures.thread")
(register_atexit or atexit.register)(_end_first)
