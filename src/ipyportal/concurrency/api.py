"""`from_sync` and `from_async`: moving work between threads and loops, from synchronous and asynchronous code.

The two have the same functions, by the same names. What waits is a plain function in `from_sync` and a coroutine
function in `from_async`. All take a `Call`, or a function without arguments (`create_call` makes a call with them),
and a `timeout` in seconds for the call to be over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, ExitStack
from threading import Thread
from typing import Any, TypeVar, overload

from ipyportal.concurrency.calls import Call, Portal, current_call
from ipyportal.concurrency.calls.call import around
from ipyportal.concurrency.cancellation.interruption import thread_state
from ipyportal.concurrency.cancellation.targets import Wait
from ipyportal.concurrency.portals.shared import get_global_loop, get_thread_pool
from ipyportal.concurrency.suspension.suspending import Suspends, suspendable_here
from ipyportal.concurrency.waiters.awaiting import AsyncWaiter
from ipyportal.concurrency.waiters.blocking import SyncWaiter
from ipyportal.concurrency.waiters.waiter import Waiter, waiters_of

__all__ = [
    "await_for",
    "cast_to_call",
    "create_call",
    "from_async",
    "from_sync",
    "wait_blocked",
    "wait_for",
    "wait_suspended",
]

T = TypeVar("T")

DoneCallbacks = Iterable["Call[Any] | Callable[[], Any]"] | None
Contexts = Iterable[AbstractContextManager[Any]] | None


@overload
def create_call(fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> Call[T]: ...
@overload
def create_call(fn: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> Call[T]: ...
@overload
def create_call(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Call[T]: ...
def create_call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """The same as `Call.new`: a call of ``fn(*args, **kwargs)`` in a copy of the current context.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync
        >>> from_sync.call_in_loop_thread(create_call(asyncio.sleep, 0.01, result="slept"))
        'slept'
    """
    return Call.new(fn, *args, **kwargs)


@overload
def cast_to_call(call: Call[T] | Callable[[], Coroutine[Any, Any, T]]) -> Call[T]: ...
@overload
def cast_to_call(call: Callable[[], T]) -> Call[T]: ...
def cast_to_call(call: Any) -> Call[Any]:
    """`call` itself if it is a `Call`; a new call of it if it is a function without arguments.

    Raises:
        TypeError: It is neither.

    Example:
        >>> from ipyportal.concurrency import cast_to_call
        >>> call = cast_to_call(dict)
        >>> cast_to_call(call) is call
        True
    """
    return call if isinstance(call, Call) else Call(call)


def _with_timeout(work: Any, timeout: float | None) -> Call[Any]:
    if isinstance(work, Call):
        work.set_timeout(timeout)
        return work
    call: Call[Any] = Call(work)
    if timeout is not None:
        call.set_timeout(timeout)
    return call


def _waiter_of_current_call(thread: Thread | None) -> Waiter[Any]:
    """The waiter of the innermost call around this code that is waited for, in `thread` if that is given."""
    first = current_call()
    for call in around(first):
        for waiter in waiters_of(call):
            if not waiter.closed and thread in (None, waiter.thread):
                return waiter
    if first is None:
        raise RuntimeError(
            "nothing can be sent back from here: this code was not started by a call. Start it with "
            "wait_for_call_in_loop_thread or wait_for_call_in_new_thread"
        )
    nobody = "no thread waits" if thread is None else f"the thread {thread.name!r} does not wait"
    raise RuntimeError(
        f"{first.name} cannot send calls back, because {nobody} for it. Start it with "
        "wait_for_call_in_loop_thread or wait_for_call_in_new_thread"
    )


def wait_for(
    portal: Portal | None,
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """Submit `call` to `portal`, and wait for it in synchronous code: suspended where that is possible, else blocked.

    Without a portal it has been submitted before.
    """
    __tracebackhide__ = True
    caller = suspendable_here()
    if caller is None:
        return wait_blocked(portal, call, done_callbacks, contexts)
    return wait_suspended(caller, portal, call, done_callbacks, contexts)


def wait_suspended(
    caller: Suspends,
    portal: Portal | None,
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """`wait_for`, in code that `caller` can suspend."""
    __tracebackhide__ = True
    waiting = await_for(portal, call, done_callbacks, contexts)
    waiting.__qualname__ = call.name  # type: ignore[attr-defined]  # what messages call it
    thread = thread_state()
    if not thread.depth:  # nothing runs here that could be asked to end
        return caller.drive(waiting)  # type: ignore[no-any-return]
    # Else an interrupt could find the call submitted, and nobody waiting yet who would cancel it.
    mark = Wait(call.cancel)
    thread.enter(mark)
    try:
        return caller.drive(waiting)  # type: ignore[no-any-return]
    finally:
        thread.leave(mark)
        thread.checkpoint()


def wait_blocked(
    portal: Portal | None,
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """`wait_for`, in code that cannot be suspended: its thread is blocked."""
    __tracebackhide__ = True
    waiter = SyncWaiter(call)
    for callback in done_callbacks or ():
        waiter.add_done_callback(cast_to_call(callback))
    if contexts is None:
        waiter.wait(portal)
        return call._take()
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        waiter.wait(portal)
        return call._take()


async def await_for(
    portal: Portal | None,
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """`wait_for`, in asynchronous code."""
    __tracebackhide__ = True
    waiter = AsyncWaiter(call)
    for callback in done_callbacks or ():
        waiter.add_done_callback(cast_to_call(callback))
    with ExitStack() as stack:
        for context in contexts or ():
            stack.enter_context(context)
        try:
            if portal is not None:
                portal.submit(call)
        except KeyboardInterrupt:
            call.cancel()  # it may run by now
            await waiter.wait()
            raise
        await waiter.wait()
        return await call


class _Soon:
    """What needs no waiting, and is the same in synchronous and asynchronous code."""

    @overload
    @staticmethod
    def call_soon_in_loop_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        *,
        portal: Portal | None = None,
    ) -> Call[T]: ...
    @overload
    @staticmethod
    def call_soon_in_loop_thread(
        call: Callable[[], T], timeout: float | None = None, *, portal: Portal | None = None
    ) -> Call[T]: ...
    @staticmethod
    def call_soon_in_loop_thread(call: Any, timeout: float | None = None, *, portal: Portal | None = None) -> Call[Any]:
        """Start `call` on the global loop (or another `portal`), and return it at once. From any thread."""
        made = _with_timeout(call, timeout)
        return (get_global_loop() if portal is None else portal).submit(made)

    @overload
    @staticmethod
    def call_soon_in_new_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> Call[T]: ...
    @overload
    @staticmethod
    def call_soon_in_new_thread(call: Callable[[], T], timeout: float | None = None) -> Call[T]: ...
    @staticmethod
    def call_soon_in_new_thread(call: Any, timeout: float | None = None) -> Call[Any]:
        """Start `call` in a thread of its own, and return it at once. From any thread."""
        return get_thread_pool().submit(_with_timeout(call, timeout))

    @overload
    @staticmethod
    def call_soon_in_waiting_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        *,
        thread: Thread | None = None,
    ) -> Call[T]: ...
    @overload
    @staticmethod
    def call_soon_in_waiting_thread(
        call: Callable[[], T], timeout: float | None = None, *, thread: Thread | None = None
    ) -> Call[T]: ...
    @staticmethod
    def call_soon_in_waiting_thread(
        call: Any, timeout: float | None = None, *, thread: Thread | None = None
    ) -> Call[Any]:
        """Send `call` back to the thread that waits for the current call, and return it at once.

        Args:
            thread: Send it to this thread, which waits for a call around the current one.

        Raises:
            RuntimeError: This is not the code of a call, or nobody waits for it (there).
        """
        waiter = _waiter_of_current_call(thread)
        return waiter.submit(_with_timeout(call, timeout))


class from_sync(_Soon):
    """For synchronous code of any thread.

    If `can_suspend()` is true, a wait suspends its caller, and the loop of its thread goes on. Otherwise a wait blocks
    the thread. If the call could then never run, RuntimeError is raised.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync
        >>> call = from_sync.call_soon_in_new_thread(create_call(pow, 2, 10))
        >>> from_sync.wait_for_call_in_loop_thread(create_call(asyncio.sleep, 0.01, "slept"), timeout=5)
        'slept'
        >>> call.result()
        1024
    """

    @overload
    @staticmethod
    def wait_for_call_in_loop_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @overload
    @staticmethod
    def wait_for_call_in_loop_thread(
        call: Callable[[], T],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @staticmethod
    def wait_for_call_in_loop_thread(
        call: Any, timeout: float | None = None, done_callbacks: DoneCallbacks = None, contexts: Contexts = None
    ) -> Any:
        """Run `call` on the global loop, run here the calls that it sends back, and return its result.

        Args:
            call: A `Call`, or a function that takes no arguments.
            timeout: Seconds until the call is cancelled.
            done_callbacks: Calls or functions to run in this thread when it is over, however it ended.
            contexts: Context managers to enter in this thread for the time of the wait.

        Raises:
            TimeoutError: The call timed out.
            concurrent.futures.CancelledError: The call was cancelled.
            RuntimeError: This is the loop's own thread, and its code cannot be suspended.
            BaseException: What the call raised.
        """
        return wait_for(get_global_loop(), _with_timeout(call, timeout), done_callbacks, contexts)

    @overload
    @staticmethod
    def wait_for_call_in_new_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @overload
    @staticmethod
    def wait_for_call_in_new_thread(
        call: Callable[[], T],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @staticmethod
    def wait_for_call_in_new_thread(
        call: Any, timeout: float | None = None, done_callbacks: DoneCallbacks = None, contexts: Contexts = None
    ) -> Any:
        """Run `call` in a thread of its own. Otherwise like `wait_for_call_in_loop_thread`."""
        return wait_for(get_thread_pool(), _with_timeout(call, timeout), done_callbacks, contexts)

    @overload
    @staticmethod
    def call_in_loop_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> T: ...
    @overload
    @staticmethod
    def call_in_loop_thread(call: Callable[[], T], timeout: float | None = None) -> T: ...
    @staticmethod
    def call_in_loop_thread(call: Any, timeout: float | None = None) -> Any:
        """Run `call` on the global loop, and return its result. The call cannot send other calls back."""
        return get_global_loop().submit(_with_timeout(call, timeout)).result()

    @overload
    @staticmethod
    def call_in_new_thread(call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T: ...
    @overload
    @staticmethod
    def call_in_new_thread(call: Callable[[], T], timeout: float | None = None) -> T: ...
    @staticmethod
    def call_in_new_thread(call: Any, timeout: float | None = None) -> Any:
        """Run `call` in a thread of its own, and return its result. The call cannot send other calls back."""
        return get_thread_pool().submit(_with_timeout(call, timeout)).result()


class from_async(_Soon):
    """For asynchronous code of any loop. A cancelled wait cancels the call, and lasts until it has cleaned up.

    Example:
        >>> import asyncio, threading
        >>> from ipyportal.concurrency import from_async
        >>> async def ask():  # on the loop thread
        ...     return await from_async.call_soon_in_waiting_thread(threading.current_thread)
        >>> async def main():
        ...     return await from_async.wait_for_call_in_loop_thread(ask, timeout=5)
        >>> asyncio.run(main()) is threading.current_thread()
        True
    """

    @overload
    @staticmethod
    async def wait_for_call_in_loop_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @overload
    @staticmethod
    async def wait_for_call_in_loop_thread(
        call: Callable[[], T],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @staticmethod
    async def wait_for_call_in_loop_thread(
        call: Any, timeout: float | None = None, done_callbacks: DoneCallbacks = None, contexts: Contexts = None
    ) -> Any:
        """Run `call` on the global loop, run here the calls that it sends back, and return its result.

        Args:
            call: A `Call`, or a function that takes no arguments.
            timeout: Seconds until the call is cancelled.
            done_callbacks: Calls or functions to run in this loop when it is over, however it ended.
            contexts: Context managers to enter in this task for the time of the wait.

        Raises:
            TimeoutError: The call timed out.
            asyncio.CancelledError: The call was cancelled.
            BaseException: What the call raised.
        """
        __tracebackhide__ = True
        return await await_for(get_global_loop(), _with_timeout(call, timeout), done_callbacks, contexts)

    @overload
    @staticmethod
    async def wait_for_call_in_new_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @overload
    @staticmethod
    async def wait_for_call_in_new_thread(
        call: Callable[[], T],
        timeout: float | None = None,
        done_callbacks: DoneCallbacks = None,
        contexts: Contexts = None,
    ) -> T: ...
    @staticmethod
    async def wait_for_call_in_new_thread(
        call: Any, timeout: float | None = None, done_callbacks: DoneCallbacks = None, contexts: Contexts = None
    ) -> Any:
        """Run `call` in a thread of its own. Otherwise like `wait_for_call_in_loop_thread`."""
        return await await_for(get_thread_pool(), _with_timeout(call, timeout), done_callbacks, contexts)

    @overload
    @staticmethod
    async def call_in_loop_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> T: ...
    @overload
    @staticmethod
    async def call_in_loop_thread(call: Callable[[], T], timeout: float | None = None) -> T: ...
    @staticmethod
    async def call_in_loop_thread(call: Any, timeout: float | None = None) -> Any:
        """Run `call` on the global loop, and return its result. The call cannot send other calls back."""
        __tracebackhide__ = True
        return await get_global_loop().submit(_with_timeout(call, timeout))

    @overload
    @staticmethod
    async def call_in_new_thread(
        call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> T: ...
    @overload
    @staticmethod
    async def call_in_new_thread(call: Callable[[], T], timeout: float | None = None) -> T: ...
    @staticmethod
    async def call_in_new_thread(call: Any, timeout: float | None = None) -> Any:
        """Run `call` in a thread of its own, and return its result. The call cannot send other calls back."""
        return await get_thread_pool().submit(_with_timeout(call, timeout))
