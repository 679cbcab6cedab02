"""`run` and `submit`: asynchronous code from synchronous code, wherever that is.

The rule of where a call runs and how its caller waits is the table in `run`'s docstring.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import inspect
import signal
import sys
import threading
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal, TypeVar, cast, overload

from ipyportal.concurrency.api import wait_for
from ipyportal.concurrency.calls import Call, State, name_of
from ipyportal.concurrency.cancellation import cancel_async_after, cancel_sync_after
from ipyportal.concurrency.deadlines import check_timeout
from ipyportal.concurrency.portals import Portal
from ipyportal.concurrency.primitives import add_note
from ipyportal.concurrency.suspension import suspend, suspendable_here, why_no_greenlets
from ipyportal.concurrency.texts import short_repr, type_name
from ipyportal.concurrency.threads import LoopPortal, get_global_loop, submit_to_new_thread
from ipyportal.concurrency.turns import in_a_toolkits_loop

__all__ = ["HERE", "RULE", "Route", "get_route", "on_kernel_thread", "run", "set_route", "submit"]

T = TypeVar("T")

Route = Literal["kernel", "loop", "thread", "nested"] | Portal
"""Where a call runs: the kernel's thread, the global `EventLoopThread`, a thread for itself, or a portal.

``"nested"`` is the route of last resort: the loop that runs in this thread, re-entered by nest-asyncio.
"""

_NAMES = ("kernel", "loop", "thread", "nested")

RULE: Any = object()
"""For ``on=``: the rule, whatever `set_route` says."""


class KeyboardInterrupts:
    """A block of code in which SIGINT raises KeyboardInterrupt; `handler` is put back afterwards.

    No generator: `contextlib` sets attributes of what passes through one, and a frozen dataclass refuses that.

    Args:
        handler: The handler of SIGINT that was found.
        as_cancel: KeyboardInterrupt leaves the block as `concurrent.futures.CancelledError`, for a loop's callback or
            task that is no cell: KeyboardInterrupt would end that loop.
    """

    def __init__(self, handler: Any, *, as_cancel: bool = False) -> None:
        self._handler = handler
        self._as_cancel = as_cancel

    def __enter__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, exc_type: Any, exc: BaseException | None, traceback: object) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if self._as_cancel and isinstance(exc, KeyboardInterrupt):
            raise concurrent.futures.CancelledError(
                "the stop button has ended this wait, which blocked the kernel"
            ) from None


class Host:
    """What surrounds the synchronous code: nothing in particular. The notebook extension replaces it by a kernel."""

    kernel_portal: Portal | None = None
    interrupt_owed = False

    def blocking(self) -> AbstractContextManager[object]:
        """Around a wait that blocks its thread: there KeyboardInterrupt must be raised, whatever the handler.

        A loop's own handler of SIGINT, as ipykernel has for asynchronous cells, only asks the loop to cancel a task.
        A loop that is blocked never does. And between cells ipykernel ignores SIGINT: nobody could end the wait.
        """
        handler: Any = None
        if asyncio._get_running_loop() is not None and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
        if handler is None or handler in (signal.default_int_handler, signal.SIG_DFL):
            return nullcontext()
        return KeyboardInterrupts(handler, as_cancel=handler is signal.SIG_IGN)

    def interrupted(self) -> BaseException | None:
        """What is to be raised in place of the CancelledError that comes out of a suspended wait, which is taken back.

        None if that is no interrupt.
        """
        return None

    def launched(self, call: Call[Any]) -> object:
        """Told of each call that `submit` started."""

    def raise_owed(self) -> None:
        """Raise the KeyboardInterrupt that came while it could not be raised."""


class _Here(Portal):
    """As ``on=``: this thread's own loop, in the very task of the caller, which can be suspended."""

    name = "the caller's own task"

    def submit(self, call: Call[T]) -> Call[T]:
        raise RuntimeError("what is submitted cannot run in the task of the caller, which goes on")


HERE = _Here()
host = Host()
_route: Route | None = None
_warned = False


def get_route() -> Route | None:
    """The session's default for ``on=``; None for the rule.

    Example:
        >>> from ipyportal import get_route, set_route
        >>> set_route("loop")
        >>> get_route()
        'loop'
        >>> set_route(None)
    """
    return _route


def set_route(on: Route | None) -> None:
    """Set the session's default for ``on=`` of `run` and `submit`; None goes back to the rule.

    Example:
        >>> import asyncio, threading
        >>> from ipyportal import run, set_route
        >>> async def where():
        ...     return threading.current_thread().name
        >>> set_route("thread")
        >>> run(where())  # doctest: +ELLIPSIS
        'ipyportal-thread-...'
        >>> set_route(None)
        >>> run(where())
        'ipyportal-loop'
    """
    global _route
    _check_route(on)
    _route = on


def _check_route(on: Any) -> None:
    if on is None or on is RULE or isinstance(on, Portal):
        return
    if not isinstance(on, str) or on not in _NAMES:  # what is no text may refuse to be compared
        raise (ValueError if isinstance(on, str) else TypeError)(
            'on= must be "kernel", "loop", "thread", "nested" or a Portal, as get_worker_thread("db") is, not '
            + short_repr(on)
        )


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
    """``await work``, in synchronous code. From any thread.

    ================================================== ============================ =================================
    where `run()` is called                            where the call runs          how the caller waits
    ================================================== ============================ =================================
    anywhere, with a Task or Future                    the loop it belongs to       as below for this caller
    in a thread whose loop runs: a cell, a widget      this thread's own loop       suspended; the loop goes on
    callback, any task, callback or timer
    in any other thread                                the global EventLoopThread   blocked, running what is sent back
    in a thread whose loop runs, without greenlets, or the global EventLoopThread   blocked, and that loop with it: one
    in a task of uvloop that ipyportal did not make                                 warning says so
    ================================================== ============================ =================================

    Args:
        work: An awaitable; or a function, asynchronous or not, called with `args` and `kwargs` where the call runs,
            where what it returns is awaited if it can be; or a `Call`, which is submitted if it has not been.
        timeout: Seconds for it to be over.
        on: Overrides where it runs: ``"kernel"``, ``"loop"``, ``"thread"`` or a `Portal`. ``"nested"`` re-enters the
            loop that runs in this thread with nest-asyncio, which patches asyncio for good.

    Raises:
        TimeoutError: It was not over in time, and was cancelled.
        concurrent.futures.CancelledError: It was cancelled.
        KeyboardInterrupt: The stop button or Ctrl-C; the call was cancelled, and its clean-up waited for.
        TypeError: `work` is nothing that can be awaited or called.
        ValueError: `timeout` is negative, or `on` is no route.
        RuntimeError: The wait could never end.
        ImportError: `on` is ``"nested"``, and nest-asyncio is not installed.
        BaseException: What `work` raised.

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
    """
    __tracebackhide__ = True
    current = suspendable_here()
    here = current is not None
    try:
        if (
            current is not None
            and type(work) is types.CoroutineType
            and timeout is None
            and on is None
            and _route is None
            and not args
            and not kwargs
        ):
            return current.drive(work)  # what the lines below come to, for the commonest case
        timeout = check_timeout(timeout)
        _check_route(on)
        _check_work(work, args, kwargs, on)
        on = _chosen(on)
        if on == "nested":
            return _run_nested(work, args, kwargs, timeout)
        if asyncio.isfuture(work) and on is None:
            return _run_future(work, timeout, here)
        at_home = on is None or on is HERE or (on == "kernel" and _on_kernel_thread())
        if here and at_home and not isinstance(work, Call):
            return _run_here(work, args, kwargs, timeout)
        if on == "kernel" and not here and _on_kernel_thread() and not inspect.isawaitable(work):
            work, args, kwargs = _call_here(work, args, kwargs, timeout), (), {}
            if not inspect.isawaitable(work):
                return work
            # Only this thread's loop could run it, and it cannot run while we wait: the line below says so.
        return _run_there(work, args, kwargs, timeout, on, here)
    except asyncio.CancelledError:
        if here and (interrupt := host.interrupted()) is not None:
            raise interrupt from None
        raise
    except RuntimeError as exc:
        _note_foreign_loop(exc)
        raise
    finally:
        if host.interrupt_owed and here:
            host.raise_owed()


def _chosen(on: Any) -> Route | None:
    """The route that `on` means; None for the rule."""
    if on is None:
        return _route
    return None if on is RULE else on


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
    if "Task got bad yield" in text and _FOREIGN_LIBRARY_NOTE not in notes:
        add_note(exc, _FOREIGN_LIBRARY_NOTE)


def _note_failure(call: Call[Any]) -> None:
    if call.state is State.FAILED:
        _note_foreign_loop(call.exception())


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
            f"{work.__qualname__} is synchronous, there is nothing to await: call it, {work.__name__}(), "
            'or run(..., on="thread") to run it in a thread'
        )


def _on_kernel_thread() -> bool:
    return host.kernel_portal is not None and threading.current_thread() is threading.main_thread()


# --- suspended, on this thread's own loop ----------------------------------------------------------------------------


def _run_here(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    __tracebackhide__ = True
    if timeout is not None:
        return suspend(_within(work, args, kwargs, timeout))
    if callable(work) and not inspect.isawaitable(work):
        work = work(*args, **kwargs)
        if not inspect.isawaitable(work):
            return work
    return suspend(work)


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
        return work(*args, **kwargs)
    with cancel_sync_after(timeout) as scope:
        scope.name = name_of(work)
        return work(*args, **kwargs)


# --- the last resort -------------------------------------------------------------------------------------------------


def _nest_asyncio(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Have nest-asyncio, or one of its forks, patch the loop that runs in this thread."""
    # The maintained forks: nest-asyncio2, and anest-asyncio, which has nest-asyncio's own module name.
    found = [name for name in ("nest_asyncio2", "nest_asyncio") if importlib.util.find_spec(name) is not None]
    if not found:
        raise ImportError('on="nested" needs nest-asyncio, which is not installed: pip install "ipyportal[nest]"')
    if loop is None:
        raise RuntimeError('on="nested" re-enters the loop that runs in this thread, and none runs here: leave on= out')
    name = next((name for name in found if name in sys.modules), found[0])  # the one that may have patched it already
    importlib.import_module(name).apply(loop)
    return loop


def _run_nested(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
    """Run the loop of this thread inside of itself until `work` is over. If that is interrupted, `work` cleans up."""
    __tracebackhide__ = True
    return _run_on(_nest_asyncio(asyncio._get_running_loop()), work, args, kwargs, timeout)


def _run_on(
    loop: asyncio.AbstractEventLoop, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
) -> Any:
    """Run a loop of this thread until `work` is over, and its clean-up with it."""
    __tracebackhide__ = True
    task = loop.create_task(_all_of(work, args, kwargs, timeout))
    with host.blocking():
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
        work = work(*args, **kwargs)
    return await work if inspect.isawaitable(work) else work


# --- elsewhere -------------------------------------------------------------------------------------------------------


async def _await(work: Awaitable[T]) -> T:
    __tracebackhide__ = True
    return await work


def _as_call(work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Call[Any]:
    if isinstance(work, Call):
        call: Call[Any] = work
    elif inspect.isawaitable(work):
        call = Call.new(_await, work)
        call.name = name_of(work)
        if isinstance(work, types.CoroutineType):
            call._when_done(lambda _: _close_unbegun(work))
    else:
        call = Call(work, args, kwargs or None)
    if timeout is not None and not (call.portal is not None):
        call.set_timeout(timeout)
    return call


def _close_unbegun(coroutine: types.CoroutineType[Any, Any, Any]) -> None:
    """As a task does whose first step is cancelled: Python would warn that it was never awaited."""
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()


def _submitter(on: Route | None) -> Callable[[Call[Any]], Call[Any]]:
    if on is None or on == "loop":
        return get_global_loop().submit
    if on == "thread":
        return submit_to_new_thread
    if on == "nested":
        return LoopPortal(_nest_asyncio(asyncio._get_running_loop()), "this thread's loop").submit
    if on == "kernel":
        if host.kernel_portal is None:
            raise RuntimeError(
                'on="kernel" needs a Jupyter kernel with the extension: type %load_ext ipyportal in a cell'
            )
        return host.kernel_portal.submit
    assert isinstance(on, Portal)
    return on.submit


def _run_there(
    work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None, on: Route | None, here: bool
) -> Any:
    __tracebackhide__ = True
    call = _as_call(work, args, kwargs, timeout)
    if call.portal is not None:
        return _wait_for_submitted(call, timeout, here)
    if here:
        return wait_for(_submitter(on), call)
    if asyncio._get_running_loop() is not None or _trio_runs():
        _warn_that_the_loop_blocks()
    with host.blocking():
        return wait_for(_submitter(on), call)


def _wait_for_submitted(call: Call[T], timeout: float | None, here: bool) -> T:
    """Wait for a call that runs already. As with any other work, the stop button and the time-out end it."""
    __tracebackhide__ = True
    if here:
        return cast(T, _run_here(call, (), {}, timeout))
    with cancel_sync_after(timeout), host.blocking():
        return wait_for(lambda call: call, call)


def _run_future(future: asyncio.Future[T], timeout: float | None, here: bool) -> T:
    __tracebackhide__ = True
    loop = future.get_loop()
    if here and loop is asyncio._get_running_loop():
        return cast(T, _run_here(future, (), {}, timeout))
    if future.done():
        return future.result()
    if loop.is_closed():
        raise RuntimeError("Event loop is closed")
    if not here and loop is asyncio._get_running_loop():
        raise RuntimeError(
            f"waiting here for a {type(future).__name__} of this thread's own loop would never end: the wait would "
            f"block that loop, because its caller cannot be suspended here. {_advice()}"
        )
    if not loop.is_running() and asyncio._get_running_loop() is None:
        # Nobody else runs it: a task made by an `await` cell of terminal IPython, say.
        return cast(T, _run_on(loop, future, (), {}, timeout))
    return cast(T, _run_there(future, (), {}, timeout, LoopPortal(loop, "the loop of the awaited future"), here))


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
    if why_not := why_no_greenlets():
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

    It runs on the global `EventLoopThread`, or `on` another route, or, a Task or Future, on its own loop. In a
    notebook what it prints and displays goes to the cell that launched it, also after that cell has ended.

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
    timeout = check_timeout(timeout)
    _check_route(on)
    _check_work(work, args, kwargs, on)
    on = _chosen(on)
    if asyncio.isfuture(work) and on is None:
        on = LoopPortal(work.get_loop(), "the loop of the awaited future")
    call = _as_call(work, args, kwargs, timeout)
    call._when_done(_note_failure)
    _submitter(on)(call)
    host.launched(call)
    return call


def on_kernel_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``fn(*args, **kwargs)`` on the kernel's thread and return its result. From any thread.

    For what belongs to that thread: matplotlib, sqlite3 connections, ``input()``, widgets. While a cell runs
    synchronous code that does not wait, the call waits for it.

    Raises:
        RuntimeError: The extension is not loaded in a Jupyter kernel.
        BaseException: What `fn` raised.
    """
    return run(fn, *args, on="kernel", **kwargs)
