"""ipyportal's engine: run functions in other threads and event loops, without blocking either.

A `Call` is a function with its arguments and a copy of the context, which runs once. A `Portal` is a place where calls
run: a `WorkerThread`, an `EventLoopThread`, an executor, or the thread that waits. A `Waiter` waits for a call. It is
also a portal: the call can send other calls back to it, and they run in the thread that waits.

How a call travels::

    main thread                                             loop thread
    -----------                                             -----------
    call = Call.new(fetch, url)      context captured
    waiter = SyncWaiter(call)
    get_global_loop().submit(call)   ── inbox, one wake-up ──>   a task runs fetch(url)
    waiter.wait()                                                 │ needs the main thread:
      runs ask("Password?")  <── call_soon_in_waiting_thread ─────┤   from_async.call_soon_in_waiting_thread(...)
      its result             ─────────────────────────────────>   │   await it
      wakes                  <───────── the call is over ─────────┘
    call.result()

`from_sync` (for synchronous code) and `from_async` (for asynchronous code) do this in one line:

    >>> import threading
    >>> from ipyportal.concurrency import create_call, from_async, from_sync
    >>> def ask(question):  # on the thread that waits
    ...     return question, threading.current_thread().name
    >>> async def login(user):  # on the loop thread
    ...     return await from_async.call_soon_in_waiting_thread(create_call(ask, f"Password of {user}?"))
    >>> from_sync.wait_for_call_in_loop_thread(create_call(login, "ada"), timeout=60)
    ('Password of ada?', 'MainThread')

You can cancel everything, from any thread or at a deadline: a call, with the calls that it sent back (`Call.cancel`),
or a block of code (`cancel_sync_after`, `cancel_async_after`). Synchronous code that waits in a task or a callback of a
loop is *suspended*: it stands still, and the loop goes on (`can_suspend`, `suspend`).

The engine does not import IPython. Its packages are `cancellation`, `suspension`, `calls`, `portals`, `waiters` and
`api`. Each imports only those named before it.
"""

from ipyportal.concurrency.api import cast_to_call, create_call, from_async, from_sync
from ipyportal.concurrency.calls import Call, Portal, State, current_call
from ipyportal.concurrency.cancellation import (
    AsyncCancelScope,
    Cancelled,
    CancelScope,
    SyncCancelScope,
    cancel_async_after,
    cancel_async_at,
    cancel_sync_after,
    cancel_sync_at,
    shield,
)
from ipyportal.concurrency.labels import show_unquoted
from ipyportal.concurrency.portals import (
    EventLoopThread,
    ExecutorPortal,
    WorkerThread,
    get_global_loop,
    get_worker_thread,
    in_global_loop,
    shutdown,
    wait_for_global_loop_exit,
)
from ipyportal.concurrency.suspension import can_suspend, suspend, suspended_stacks
from ipyportal.concurrency.waiters import AsyncWaiter, SyncWaiter, Waiter

__all__ = [
    "AsyncCancelScope",
    "AsyncWaiter",
    "Call",
    "CancelScope",
    "Cancelled",
    "EventLoopThread",
    "ExecutorPortal",
    "Portal",
    "State",
    "SyncCancelScope",
    "SyncWaiter",
    "Waiter",
    "WorkerThread",
    "can_suspend",
    "cancel_async_after",
    "cancel_async_at",
    "cancel_sync_after",
    "cancel_sync_at",
    "cast_to_call",
    "create_call",
    "current_call",
    "from_async",
    "from_sync",
    "get_global_loop",
    "get_worker_thread",
    "in_global_loop",
    "shield",
    "shutdown",
    "suspend",
    "suspended_stacks",
    "wait_for_global_loop_exit",
]

show_unquoted(globals()[name] for name in __all__)
