"""`from_sync` and `from_async`: moving work between threads and loops, from synchronous and asynchronous code.

The two have the same functions, by the same names. What waits is a plain function in `from_sync` and a coroutine
function in `from_async`. All take a `Call`, or a function without arguments (`create_call` makes a call with them),
and a `timeout` in seconds for the call to be over.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, ExitStack
from threading import Thread
from typing import Any, TypeVar, overload

from ipyportal.concurrency.calls import Call, current_call
from ipyportal.concurrency.deadlines import check_timeout
from ipyportal.concurrency.interruption import Wait, interruptible_thread
from ipyportal.concurrency.portals import Portal
from ipyportal.concurrency.suspension import can_suspend, suspend
from ipyportal.concurrency.threads import get_global_loop, submit_to_new_thread
from ipyportal.concurrency.waiters import AsyncWaiter, SyncWaiter, Waiter

__all__ = ["cast_to_call", "create_call", "from_async", "from_sync", "wait_for"]

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
    if timeout is not None and (seconds := check_timeout(timeout)) is not None:
        # As `set_timeout` does it for a call that others may know of.
        call._timeout, call._deadline = seconds, time.monotonic() + seconds
    return call


def _to_loop(call: Call[T]) -> Call[T]:
    return get_global_loop().submit(call)


def _waiter_of_current_call(thread: Thread | None) -> Waiter[Any]:
    """The waiter of the innermost call around this code that is waited for, in `thread` if that is given."""
    call = first = current_call()
    while call is not None:
        waiter = call._waiter
        while waiter is not None and (waiter._closed or thread not in (None, waiter.thread)):
            waiter = waiter._earlier
        if waiter is not None:
            return waiter
        call = None if call._parent is None else call._parent()
    if first is None:
        raise RuntimeError(
            "nothing can be sent back from here: this code was not started by a call. Start it with "
            "wait_for_call_in_loop_thread or wait_for_call_in_new_thread"
        )
    place = "" if thread is None else f" in {thread.name!r}"
    raise RuntimeError(
        f"nothing can be sent back from {first.name}: nobody waits for it{place}. Start it with "
        "wait_for_call_in_loop_thread or wait_for_call_in_new_thread"
    )


def wait_for(
    submit: Callable[[Call[T]], Any],
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """Submit `call`, and wait for it in synchronous code: suspended where that is possible, else blocked."""
    __tracebackhide__ = True
    if can_suspend():
        waiting = await_for(submit, call, done_callbacks, contexts)
        waiting.__qualname__ = call.name  # type: ignore[attr-defined]  # what messages call it
        thread = interruptible_thread()
        if not thread._stack:  # nothing runs here that could be asked to end
            return suspend(waiting)
        # Else an interrupt could find the call submitted, and nobody waiting yet who would cancel it.
        mark = Wait(call.cancel)
        thread.enter(mark)
        try:
            return suspend(waiting)
        finally:
            thread.leave(mark)
            thread.checkpoint()
    waiter = SyncWaiter(call)
    for callback in done_callbacks or ():
        waiter.add_done_callback(cast_to_call(callback))
    if contexts is None:
        waiter.wait(submit)
        return call._take()
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        waiter.wait(submit)
        return call._take()


async def await_for(
    submit: Callable[[Call[T]], Any],
    call: Call[T],
    done_callbacks: DoneCallbacks = None,
    contexts: Contexts = None,
) -> T:
    """Submit `call`, and wait for it in asynchronous code."""
    __tracebackhide__ = True
    waiter = AsyncWaiter(call)
    for callback in done_callbacks or ():
        waiter.add_done_callback(cast_to_call(callback))
    with ExitStack() as stack:
        for context in contexts or ():
            stack.enter_context(context)
        try:
            submit(call)
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
        return _to_loop(made) if portal is None else portal.submit(made)

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
        """Start `call` in a thread for itself, and return it at once. From any thread."""
        return submit_to_new_thread(_with_timeout(call, timeout))

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

    A wait suspends its caller where `can_suspend()` is true, and the loop of its thread goes on; elsewhere it
    blocks the thread. Where that would keep the call from ever being run, RuntimeError is raised.

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
        """Run `call` on the global loop; run here what it sends back; return its result.

        Args:
            call: What to run; a function that takes no arguments, or a `Call`.
            timeout: Seconds for it to be over.
            done_callbacks: Calls or functions to run in this thread when it is over, however it ended.
            contexts: Context managers to enter in this thread for the time of the wait.

        Raises:
            TimeoutError: The call timed out.
            concurrent.futures.CancelledError: The call was cancelled.
            RuntimeError: This is the loop's own thread, and its code cannot be suspended.
            BaseException: What the call raised.
        """
        return wait_for(_to_loop, _with_timeout(call, timeout), done_callbacks, contexts)

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
        """Run `call` in a thread for itself; in all else as `wait_for_call_in_loop_thread`."""
        return wait_for(submit_to_new_thread, _with_timeout(call, timeout), done_callbacks, contexts)

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
        """Run `call` on the global loop and return its result. It cannot send anything back."""
        return _to_loop(_with_timeout(call, timeout)).result()

    @overload
    @staticmethod
    def call_in_new_thread(call: Call[T] | Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T: ...
    @overload
    @staticmethod
    def call_in_new_thread(call: Callable[[], T], timeout: float | None = None) -> T: ...
    @staticmethod
    def call_in_new_thread(call: Any, timeout: float | None = None) -> Any:
        """Run `call` in a thread for itself and return its result. It cannot send anything back."""
        return submit_to_new_thread(_with_timeout(call, timeout)).result()


class from_async(_Soon):
    """For asynchronous code of any loop. A cancelled wait cancels the call, and waits for its clean-up.

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
        """Run `call` on the global loop; run here what it sends back; return its result.

        Args:
            call: What to run; a function that takes no arguments, or a `Call`.
            timeout: Seconds for it to be over.
            done_callbacks: Calls or functions to run in this loop when it is over, however it ended.
            contexts: Context managers to enter in this task for the time of the wait.

        Raises:
            TimeoutError: The call timed out.
            asyncio.CancelledError: The call was cancelled.
            BaseException: What the call raised.
        """
        __tracebackhide__ = True
        return await await_for(_to_loop, _with_timeout(call, timeout), done_callbacks, contexts)

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
        """Run `call` in a thread for itself; in all else as `wait_for_call_in_loop_thread`."""
        return await await_for(submit_to_new_thread, _with_timeout(call, timeout), done_callbacks, contexts)

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
        """Run `call` on the global loop and return its result. It cannot send anything back."""
        __tracebackhide__ = True
        return await _to_loop(_with_timeout(call, timeout))

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
        """Run `call` in a thread for itself and return its result. It cannot send anything back."""
        return await submit_to_new_thread(_with_timeout(call, timeout))
