"""`run` and `submit`: asynchronous code from synchronous code, wherever that is.

The rule of where a call runs and how its caller waits is in `run`'s docstring; its table is in docs/which-loop.md.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast, overload

from ipyportal import hosts
from ipyportal.concurrency.api import wait_blocked, wait_suspended
from ipyportal.concurrency.calls import Call, State
from ipyportal.concurrency.calls.call import awaiting, close_unbegun
from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.scopes import cancel_async_after, cancel_sync_after
from ipyportal.concurrency.greenlets import why_not_suspended
from ipyportal.concurrency.labels import type_name
from ipyportal.concurrency.portals import LoopPortal, get_global_loop
from ipyportal.concurrency.primitives import call_users
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.reporting import add_note
from ipyportal.concurrency.suspension.loops import in_a_toolkits_loop
from ipyportal.concurrency.suspension.suspending import Suspends, steps_of, suspendable_here
from ipyportal.hosts import is_kernel_thread
from ipyportal.routes import HERE, Route, check_route, chosen_route, get_route, nested_loop, portal_of

__all__ = ["on_kernel_thread", "run", "submit"]

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # it has made a call, and is about to wait for it

T = TypeVar("T")


_warned = False


@overload
def run(
    work: Callable[..., Coroutine[Any, Any, T]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> T: ...
@overload
def run(work: Awaitable[T], /, *, timeout: float | None = None, on: Route | None = None) -> T: ...
@overload
def run(
    work: Callable[..., T], /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any
) -> T: ...
def run(work: Any, /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any) -> Any:
    """Wait for `work` in synchronous code, as ``await work`` does in async code. From any thread.

    It returns the result. Use it in a function, in a property, in ``df.apply``, in a widget's callback.

    Example:
        >>> import asyncio
        >>> from ipyportal import run
        >>> async def double(n):
        ...     await asyncio.sleep(0.01)
        ...     return 2 * n
        >>> run(double(21))
        42
        >>> run(double, 21, timeout=5, on="thread")
        42

    In a thread whose event loop runs (a cell, a callback, any task), the work runs on that loop. The caller is
    suspended: it stands still, and the loop goes on. In any other thread, the work runs on the global
    `EventLoopThread`. The calling thread blocks, and runs the calls that the work sends back to it. The same happens,
    with one warning, on a loop whose code cannot be suspended: uvloop's, or any loop without the package greenlet. A
    Task or Future is awaited on the loop to which it belongs.

    Args:
        work: An awaitable, or a function, or a `Call`. A function, asynchronous or not, is called with `args` and
            `kwargs` where the work runs; if it returns an awaitable, that is awaited there. A `Call` is submitted if
            it has not been submitted yet.
        timeout: Seconds until the work is cancelled.
        on: Overrides where the work runs: ``"kernel"``, ``"loop"``, ``"thread"`` or a `Portal`. ``"nested"`` re-enters
            the loop that runs in this thread with nest-asyncio, which patches asyncio until the process ends.

    Raises:
        TimeoutError: The work was not over in time, and was cancelled.
        concurrent.futures.CancelledError: The work was cancelled.
        KeyboardInterrupt: The stop button or Ctrl-C. The work was cancelled, and has cleaned up.
        TypeError: `work` cannot be awaited or called.
        ValueError: `timeout` is negative, or `on` is not a route.
        RuntimeError: The wait could never end.
        ImportError: `on` is ``"nested"``, and nest-asyncio is not installed.
        BaseException: What `work` raised.
    """
    __tracebackhide__ = True
    caller = suspendable_here()
    try:
        if (
            type(work) is types.CoroutineType
            and timeout is None
            and (get_route() is None if on is None else on is HERE and caller is not None)
            and not args
            and not kwargs
        ):
            # What the lines below come to, for the commonest case, and for the steps of what is entered or iterated.
            return _run_there(None, work, (), {}, None, None) if caller is None else caller.drive(work)
        references = _references(work)
        timeout = _checked(work, args, kwargs, timeout, on, references)
        on = chosen_route(on)
        if on == "nested":
            return _run_nested(work, args, kwargs, timeout)
        if asyncio.isfuture(work) and on is None:
            return _run_future(work, timeout, caller)
        at_home = on is None or on is HERE or (on == "kernel" and is_kernel_thread())
        if caller is not None and at_home and not isinstance(work, Call):
            return _run_here(caller, work, args, kwargs, timeout)
        if on == "kernel" and caller is None and is_kernel_thread() and not inspect.isawaitable(work):
            work, args, kwargs = _call_here(work, args, kwargs, timeout), (), {}
            if not inspect.isawaitable(work):
                return work
            # Only this thread's loop could run it, and it cannot run while we wait: the line below says so.
        return _run_there(caller, work, args, kwargs, timeout, on)
    except asyncio.CancelledError:
        if caller is not None and (interrupt := hosts.current.interrupted()) is not None:
            raise interrupt from None
        raise
    except RuntimeError as exc:
        _note_foreign_loop(exc)
        raise
    finally:
        if hosts.current.interrupt_owed and caller is not None:
            hosts.current.raise_owed()


_FOREIGN_LOOP = ("attached to a different loop", "is bound to a different event loop")
_FOREIGN_LOOP_NOTE = (
    "ipyportal: an object made on one event loop was used on another. Make it where it is used, inside "
    'the call; or choose the loop it was made on: run(..., on="kernel") for objects made in a cell with '
    'await, on="loop" for those made by submit(); %portal shows the loops'
)


_FOREIGN_LIBRARY_NOTE = (
    "ipyportal: what was awaited is not written for asyncio, on whose loop run() runs it. A coroutine of trio runs in "
    'a loop of trio: run(trio.run, function, on="thread")'
)


def _note_foreign_loop(exc: BaseException | None) -> None:
    if not isinstance(exc, RuntimeError):
        return
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - it is the exception itself that is to be raised
        return
    notes = getattr(exc, "__notes__", ())
    if any(part in text for part in _FOREIGN_LOOP) and _FOREIGN_LOOP_NOTE not in notes:
        add_note(exc, _FOREIGN_LOOP_NOTE)
    if "Task got bad yield" in text and not IN_PYODIDE and _FOREIGN_LIBRARY_NOTE not in notes:
        add_note(exc, _FOREIGN_LIBRARY_NOTE)


def _note_failure(call: Call[Any]) -> None:
    if call.state is State.FAILED:
        _note_foreign_loop(call._value)  # it is not taken by that


# What `sys.getrefcount` is in CPython. Elsewhere (PyPy) it is missing, and everything is taken to have a name.
_references: Callable[[object], float] = getattr(sys, "getrefcount", lambda thing: math.inf)


def _calibrate(work: object) -> float:
    return _references(work)


_IF_UNNAMED = _calibrate(object())
"""The references to an argument, as the function counts them that has it, if nobody else has."""


def _checked(
    work: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
    on: Route | None,
    references: float,
) -> float | None:
    """The time-out in seconds, if all that was given can be used.

    What is refused is left as it was, and can be given again; but ``run(fetch(url), on="lop")`` has given a coroutine
    that nobody else has. Python would warn that it was never awaited, below an error that says what is wrong.
    """
    try:
        check_route(on)
        _check_work(work, args, kwargs, on)
        return check_timeout(timeout)
    except BaseException:
        for one in work if type(work) in (list, tuple, set) else (work,):
            if references <= _IF_UNNAMED and isinstance(one, types.CoroutineType):
                close_unbegun(one)
        raise


def _check_work(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on: Route | None) -> None:
    if isinstance(work, Call) or inspect.isawaitable(work):
        if args or kwargs:
            raise TypeError("arguments go with a function: run(fn, *args), not run(fn(...), *args)")
        return
    if inspect.isasyncgen(work):
        raise TypeError(
            "an async generator cannot be awaited: collect it in an async function, "
            "run(collect) with `async def collect(): return [x async for x in gen]`"
        )
    if isinstance(work, (list, tuple, set, types.GeneratorType)):
        raise TypeError(
            f"run() and submit() take one awaitable or function, not a {type(work).__name__} of them: for many, "
            "ipyportal.map(fetch, urls); or `await asyncio.gather(...)` in an async function, and run that"
        )
    if not callable(work):
        raise TypeError(
            f"run() and submit() need an awaitable or a function, not {type(work).__name__}: "
            "run(fetch(url)) or run(fetch, url)"
        )
    if inspect.isasyncgenfunction(work):
        raise TypeError(
            f"{name_of(work)} is an async generator function, which cannot be awaited: collect it in an async "
            "function, run(collect) with `async def collect(): return [x async for x in ...]`"
        )
    if on is None and not args and not kwargs and isinstance(work, types.BuiltinFunctionType):
        raise TypeError(
            f"{work.__qualname__} is synchronous, there is nothing to await: call it, {work.__name__}()"
            + ("" if IN_PYODIDE else ', or run(..., on="thread") to run it in a thread')
        )


# --- suspended, on this thread's own loop ----------------------------------------------------------------------------


def _run_here(caller: Suspends, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    __tracebackhide__ = True
    if timeout is not None:
        return caller.drive(_within(work, args, kwargs, timeout))
    if callable(work) and not inspect.isawaitable(work):
        work = call_users(work, *args, **kwargs)
        if not inspect.isawaitable(work):
            return work
    return caller.drive(steps_of(work))


async def _within(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> Any:
    __tracebackhide__ = True
    with cancel_async_after(timeout) as scope:
        scope.name = name_of(work)
        if callable(work) and not inspect.isawaitable(work):
            work = _call_here(work, args, kwargs, timeout)
        return await work if inspect.isawaitable(work) else work


def _call_here(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    """Call a function in this thread; its synchronous part is interrupted when the time is over."""
    __tracebackhide__ = True
    if timeout is None:
        return call_users(work, *args, **kwargs)
    with cancel_sync_after(timeout) as scope:
        scope.name = name_of(work)
        return call_users(work, *args, **kwargs)


# --- the last resort -------------------------------------------------------------------------------------------------


def _run_nested(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    """Run the loop of this thread inside of itself until `work` is over. If that is interrupted, `work` cleans up."""
    __tracebackhide__ = True
    return _run_on(nested_loop(asyncio._get_running_loop()), work, args, kwargs, timeout)


def _run_on(
    loop: asyncio.AbstractEventLoop, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
) -> Any:
    """Run a loop of this thread until `work` is over, and its clean-up with it."""
    __tracebackhide__ = True
    task = loop.create_task(_all_of(work, args, kwargs, timeout))
    with hosts.current.blocking():
        try:
            return loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    loop.run_until_complete(task)
            raise


async def _all_of(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    __tracebackhide__ = True
    if timeout is not None:
        return await _within(work, args, kwargs, timeout)
    if not inspect.isawaitable(work):
        work = call_users(work, *args, **kwargs)
    return await work if inspect.isawaitable(work) else work


# --- elsewhere -------------------------------------------------------------------------------------------------------


def _as_call(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Call[Any]:
    if isinstance(work, Call):
        call: Call[Any] = work
    elif inspect.isawaitable(work):
        call = awaiting(work)
    else:
        call = Call(work, args, kwargs or None)
    if timeout is not None and call.portal is None:
        call.set_timeout(timeout)
    return call


def _run_there(
    caller: Suspends | None,
    work: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
    on: Route | None,
) -> Any:
    __tracebackhide__ = True
    if isinstance(work, Call) and work.portal is not None:
        return _wait_for_submitted(caller, work, timeout)
    call = _as_call(work, args, kwargs, timeout)
    portal = get_global_loop() if on is None else portal_of(on)
    if caller is not None:
        return wait_suspended(caller, portal, call)
    if not IN_PYODIDE and (asyncio._get_running_loop() is not None or _trio_runs()):
        _warn_that_the_loop_blocks()
    with hosts.current.blocking():
        return wait_blocked(portal, call)


def _wait_for_submitted(caller: Suspends | None, call: Call[T], timeout: float | None) -> T:
    """Wait for a call that runs already. As with any other work, the stop button and the time-out end it."""
    __tracebackhide__ = True
    if caller is not None:
        return cast(T, _run_here(caller, call, (), {}, timeout))
    with cancel_sync_after(timeout), hosts.current.blocking():
        return wait_blocked(None, call)


def _run_future(future: asyncio.Future[T], timeout: float | None, caller: Suspends | None) -> T:
    __tracebackhide__ = True
    loop = future.get_loop()
    if caller is not None and loop is asyncio._get_running_loop():
        return cast(T, _run_here(caller, future, (), {}, timeout))
    if future.done():
        return future.result()
    if loop.is_closed():
        raise RuntimeError("Event loop is closed")
    if caller is None and loop is asyncio._get_running_loop():
        raise RuntimeError(
            f"waiting here for a {type(future).__name__} of this thread's own loop would never end: the wait would "
            f"block that loop, because its caller cannot be suspended here. {_advice()}"
        )
    if not loop.is_running() and asyncio._get_running_loop() is None:
        # Nobody else runs it: a task made by an `await` cell of terminal IPython, say.
        return cast(T, _run_on(loop, future, (), {}, timeout))
    there = LoopPortal(loop, "the loop of the awaited future")
    return cast(T, _run_there(caller, future, (), {}, timeout, there))


def _warn_that_the_loop_blocks() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"run() blocks the event loop that runs in this thread: its caller cannot be suspended here. {_advice()}",
            RuntimeWarning,
            stacklevel=4,
        )


def _trio_runs() -> bool:
    """Whether the code that asks runs in a task of trio."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _advice() -> str:
    """What to do about a caller that cannot be suspended."""
    if _trio_runs():
        return "Use await; or await trio.to_thread.run_sync(function), and run() in that function"
    if why_not := why_not_suspended():
        return f"It could be, but {why_not}. In async code, use await"
    if in_a_toolkits_loop():
        return "It is called by a GUI toolkit. Start the work with submit(), and take its result in a done callback"
    loop = asyncio._get_running_loop()
    return (
        f"It could be on asyncio's own event loop, and this is {type(loop).__module__}.{type_name(loop)}. Use await; "
        "or await asyncio.to_thread(function), and run() in that function"
    )


@overload
def submit(
    work: Callable[..., Coroutine[Any, Any, T]],
    /,
    *args: Any,
    timeout: float | None = None,
    on: Route | None = None,
    **kwargs: Any,
) -> Call[T]: ...
@overload
def submit(work: Awaitable[T], /, *, timeout: float | None = None, on: Route | None = None) -> Call[T]: ...
@overload
def submit(
    work: Callable[..., T], /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any
) -> Call[T]: ...
def submit(work: Any, /, *args: Any, timeout: float | None = None, on: Route | None = None, **kwargs: Any) -> Call[Any]:
    """Start `work`, and return its `Call` at once. From any thread.

    It runs on the global `EventLoopThread`, or where `on` says. A Task or Future runs on its own loop. In a notebook,
    its output goes to the cell that launched it, even after that cell has ended.

    Args:
        work, args, kwargs, timeout, on: As for `run`.

    Raises:
        TypeError, ValueError: As `run` does, before anything runs.

    Example:
        >>> import asyncio
        >>> from ipyportal import submit
        >>> calls = [submit(asyncio.sleep, 0.01, n) for n in range(3)]
        >>> [call.result(timeout=5) for call in calls]
        [0, 1, 2]
    """
    references = _references(work)
    timeout = _checked(work, args, kwargs, timeout, on, references)
    on = chosen_route(on)
    if asyncio.isfuture(work) and on is None:
        on = LoopPortal(work.get_loop(), "the loop of the awaited future")
    call = _as_call(work, args, kwargs, timeout)
    call._when_done(_note_failure)
    portal_of(on).submit(call)
    hosts.current.launched(call)
    return call


def on_kernel_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``fn(*args, **kwargs)`` on the kernel's thread and return its result. From any thread.

    Use it for things that belong to that thread: matplotlib, sqlite3 connections, ``input()``, widgets. If a cell runs
    synchronous code that does not wait in ipyportal, the call runs after that code.

    Raises:
        RuntimeError: The extension is not loaded in a Jupyter kernel.
        BaseException: What `fn` raised.
    """
    return run(fn, *args, on="kernel", **kwargs)
