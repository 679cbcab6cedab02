"""`ExecutorPortal`: calls on a `concurrent.futures.Executor`, of threads, of processes, of a cluster.

The executor does the work, and its future and the `Call` tell each other: a future that is over ends its call, in the
executor's own thread, and a call that is over before, cancelled or timed out, cancels its future. No thread waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ipyportal.concurrency.calls import Call, Portal, State
from ipyportal.concurrency.calls.execution import cancel_in_child
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.labels import one_line
from ipyportal.concurrency.portals.shared import get_thread_pool
from ipyportal.concurrency.reporting import report

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ExecutorPortal", "is_async_function"]

T = TypeVar("T")


def is_async_function(fn: Any) -> bool:
    """Whether `fn`, also a partial or an object that is called, is an ``async def``."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


class ExecutorPortal(Portal):
    """Run calls with a `concurrent.futures.Executor`: a pool of threads or processes, or a cluster.

    For a dask cluster, write ``ExecutorPortal(client.get_executor(pure=False))``. (Without ``pure=False``, dask treats
    two calls with equal arguments as one.) For an ipyparallel cluster, write ``ExecutorPortal(client.executor())``.

    The executor runs a function with its arguments. An asynchronous function runs in its own loop, as in
    `asyncio.run`. The executor decides how functions and results are sent. dask and ipyparallel pickle functions of a
    notebook by value. A `ProcessPoolExecutor` and an `InterpreterPoolExecutor` (CPython 3.14) pickle them by name, so
    the functions, and ipyportal, must be in modules that can be imported there. Asynchronous functions, and `context`,
    need ipyportal wherever they run. (If a plain function returns an awaitable, only the standard library's pools
    await it.)

    A call stays pending until it is over, because executors do not tell when they begin. If a call is cancelled or
    reaches its deadline, it is over at once. If it waits in the executor's queue, it is cancelled there, too. If it has
    begun, the function goes on until it returns, and its result is dropped. The call's exception has a note that says
    so.

    Done callbacks of a call run in the thread in which the executor reports results. It needs that thread for other
    calls, so callbacks must not wait. In a forked child, a portal is as dead as its executor, and its calls are over.

    You can use it as a context manager. At the end of the block, it waits for the calls that were submitted. If the
    block raises an exception, it cancels them.

    Args:
        executor: The executor. `shutdown` does not end it, unless `owner` is true.
        name: The name in messages; if None, the executor's class.
        context: Context variables (`contextvars`) to send with each call, if they are set. No others are sent. For
            another process, each must be a global name of a module that can be imported there.
        dumps: A function that pickles a function and its arguments for `pickle.loads`, in the thread that submits.
            With ``cloudpickle.dumps``, you can send functions of a notebook to a `ProcessPoolExecutor`. If None, it is
            `pickle.dumps` for that one and an `InterpreterPoolExecutor`. Other executors pickle in their own way.
        owner: If True, `shutdown` ends the executor, too.

    Raises:
        TypeError: `executor` is not an executor, or `context` holds something other than context variables.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from ipyportal.concurrency import Call, ExecutorPortal
        >>> with ExecutorPortal(ThreadPoolExecutor(2), owner=True) as portal:
        ...     calls = [portal.submit(Call.new(pow, 2, n)) for n in range(4)]
        >>> [call.result() for call in calls]
        [1, 2, 4, 8]
    """

    def __init__(
        self,
        executor: concurrent.futures.Executor,
        *,
        name: str | None = None,
        context: Iterable[contextvars.ContextVar[Any]] = (),
        dumps: Callable[[Any], bytes] | None = None,
        owner: bool = False,
    ) -> None:
        if not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(
                f"ExecutorPortal needs a concurrent.futures.Executor, not {type(executor).__name__}: for dask, "
                "pass client.get_executor(pure=False); for ipyparallel, client.executor()"
            )
        if not isinstance(name, str | None):
            raise TypeError(f"the name of an ExecutorPortal must be a str or None, not {type(name).__name__}")
        # Imported here, and not with the engine: both take long.
        from ipyportal.concurrency.portals.pickling import Variable, dumps_by_name

        # An InterpreterPoolExecutor (CPython 3.14) is one of threads, but shares nothing with them.
        isolated = (
            concurrent.futures.ProcessPoolExecutor,
            getattr(concurrent.futures, "InterpreterPoolExecutor", concurrent.futures.ProcessPoolExecutor),
        )
        if dumps is None and isinstance(executor, isolated):
            dumps = dumps_by_name
        self._is_pool = isinstance(executor, (concurrent.futures.ThreadPoolExecutor, *isolated))
        self._executor = executor
        self._name = one_line(name or type(executor).__name__)
        self._variables = [Variable(variable) for variable in context]
        self._dumps = dumps
        self._owner = owner
        # Reentrant: a signal handler may cancel a call of this portal while its thread holds it.
        self._lock = threading.RLock()
        self._calls: set[Call[Any]] = set()
        self._closed = False
        self._ending: Call[None] | None = None
        self._cancelled: deque[concurrent.futures.Future[Any]] = deque()
        self._cancelling: Call[None] | None = None
        _portals.add(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def executor(self) -> concurrent.futures.Executor:
        """The executor."""
        return self._executor

    def __repr__(self) -> str:
        return f"<ExecutorPortal {self._name}{' shut down' if self._closed else ''}>"

    def submit(self, call: Call[T]) -> Call[T]:
        """Give `call` to the executor, and return it. From any thread.

        Raises:
            TypeError: The function or an argument cannot be sent, for example a coroutine, or it cannot be pickled.
            RuntimeError: The portal or the executor was shut down, or the call was submitted before.
            concurrent.futures.BrokenExecutor: A worker of the pool has died, and the pool with it.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(
                    f"ExecutorPortal {self._name!r} was shut down and takes no more calls; make a new one"
                )
            self._claim(call)
            self._calls.add(call)
        try:
            future = self._send(call)
        except BaseException:
            self._unclaim(call)
            self._forget(call)
            raise
        if future is None:
            self._forget(call)
            return call
        _Flight(self, call, future)
        return call

    def _send(self, call: Call[Any]) -> concurrent.futures.Future[Any] | None:
        """The executor's future for `call`, or None if that has been cancelled meanwhile."""
        from ipyportal.concurrency.portals import pickling

        with call._lock:
            fn, args, kwargs, context = call.fn, call.args, call.kwargs, call._context
        if fn is None or args is None or context is None:
            return None
        _refuse_awaitables(call.name, (*args, *(kwargs or {}).values()))
        if kwargs:
            fn = functools.partial(fn, **kwargs)  # the executor may have parameters by these names
        values = [(sent, context[sent.variable]) for sent in self._variables if sent.variable in context]
        if values or self._is_pool or is_async_function(fn):
            fn, args = pickling.run_in_context, (values, fn, *args)
        if self._dumps is not None:
            try:
                pickled = self._dumps((fn, args))
            except Exception as exc:
                what = pickling.culprit(fn, args, self._dumps) or str(exc)
                raise TypeError(f"{call.name} cannot be sent to {self._name}: {what}") from exc
            fn, args = pickling.run_pickled, (pickled,)
        try:
            return self._executor.submit(fn, *args)
        except concurrent.futures.BrokenExecutor as exc:
            _explain(exc, self._name)
            raise
        except Exception as exc:
            if not self._is_pool and (unsendable := pickling.culprit(fn, args, None)) is not None:
                raise TypeError(f"{call.name} cannot be sent to {self._name}: {unsendable}") from exc
            if type(exc) is RuntimeError:
                raise RuntimeError(
                    f"{self._name} does not take {call.name}: {exc}. If it was shut down, make a new executor, and an "
                    "ExecutorPortal of that"
                ) from exc
            _note(exc, f"{self._name} refused {call.name}")
            raise

    def _forget(self, call: Call[Any]) -> None:
        with self._lock:
            self._calls.discard(call)
            ending = None if self._calls else self._ending
        if ending is not None:
            self._start(ending)

    def _start(self, ending: Call[None]) -> None:
        with self._lock:
            if ending.portal is None:
                get_thread_pool().submit(ending)

    # --- cancelling --------------------------------------------------------------------------------------------------

    def _cancel(self, future: concurrent.futures.Future[Any]) -> None:
        """Have the executor cancel what it has not begun. In whatever thread cancelled the call."""
        if self._is_pool:
            future.cancel()
            return
        # That of a cluster waits for its client's loop, whose thread this may be; and there may be a thousand.
        with self._lock:
            self._cancelled.append(future)
            if self._cancelling is None:
                self._cancelling = Call(self._cancel_there)
                get_thread_pool().submit(self._cancelling)

    def _cancel_there(self) -> None:
        while True:
            with self._lock:
                futures = list(self._cancelled)
                self._cancelled.clear()
                if not futures:
                    self._cancelling = None
                    return
            try:
                # ipyparallel's cancel() tells its engines nothing.
                if (view := getattr(self._executor, "view", None)) is not None:
                    messages = [message for future in futures for message in getattr(future, "msg_ids", ())]
                    view.client.abort(messages, targets=view.targets, block=False)
                while futures:
                    futures.pop().cancel()
            except Exception as exc:  # noqa: BLE001 - the calls are over, and nobody waits
                report(exc, f"{self._name} could not cancel {len(futures) + 1} calls")

    # --- the end -----------------------------------------------------------------------------------------------------

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, and wait for those that were submitted. From any thread except the executor's own.

        The executor goes on, unless the portal is its `owner`. In that case it is shut down when the last call is over.
        Then this waits for the executor's end, which comes when everything that it has begun has returned.

        Args:
            cancel: Cancel the calls.
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            False if it had not ended by then. It goes on to do so.
        """
        timeout = check_timeout(timeout)
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._closed = True
            if self._ending is None:
                self._ending = Call(self._end)
            ending, calls = self._ending, list(self._calls)
        if not calls:
            self._start(ending)
        if cancel:
            for call in calls:
                call.cancel()
        try:
            ending._wait(None if until is None else max(0.0, until - time.monotonic()))
        except TimeoutError:
            return False
        ending._take()
        return True

    def _end(self) -> None:
        cancelling = self._cancelling
        if cancelling is not None:
            cancelling._wait(None)  # ends when all are cancelled: there are no more calls
        if self._owner:
            self._executor.shutdown(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.shutdown(cancel=exc_type is not None)


class _Flight:
    """A call and the executor's future for it. The one that is over first ends the other, and both are let go."""

    __slots__ = ("_call", "_future", "_portal")

    def __init__(self, portal: ExecutorPortal, call: Call[Any], future: concurrent.futures.Future[Any]) -> None:
        self._portal = portal
        self._call: Call[Any] | None = call
        self._future: concurrent.futures.Future[Any] | None = future
        with call._lock:
            # Before those of who waits: they are to find the note.
            if not (over := call._over):
                call._callbacks = [self._on_call_done, *(call._callbacks or ())]
        if over:
            self._on_call_done(call)
        else:
            future.add_done_callback(self._on_future_done)

    def _on_future_done(self, future: concurrent.futures.Future[Any]) -> None:
        """The future is over. In the executor's thread."""
        call, self._call, self._future = self._call, None, None
        if call is None:
            return
        name = self._portal._name
        try:
            error = None if future.cancelled() else future.exception()
        except BaseException as exc:  # noqa: BLE001 - an executor's own kind of future
            error = exc
        try:
            if future.cancelled():
                call._finish(State.CANCELLED, f"{call.name} was cancelled by {name}: was that, or its client, closed?")
            elif error is None:
                call._finish(State.FINISHED, future.result())
            elif isinstance(error, (asyncio.CancelledError, concurrent.futures.CancelledError)):
                call._finish(State.CANCELLED, error)
            else:
                _explain(error, name)
                call._finish(State.FAILED, error)
        finally:
            self._portal._forget(call)  # not before: its done callbacks have run
            del call, error, future

    def _on_call_done(self, call: Call[Any]) -> None:
        """The call is over. In the thread that ended it."""
        future, self._call, self._future = self._future, None, None
        if future is None:
            return  # delivered
        try:
            if not future.done():
                name = self._portal._name
                if future.running():
                    _note(
                        call._value, f"{name} had begun it, where it goes on until it returns: it cannot be interrupted"
                    )
                elif not self._portal._is_pool:
                    _note(call._value, f"if {name} had begun it, it goes on there until it returns")
                self._portal._cancel(future)
        finally:
            self._portal._forget(call)


# --- what is said of failures ----------------------------------------------------------------------------------------


def _note(exc: Any, text: str) -> None:
    text = f"ipyportal: {text}"
    # A pool that breaks has one exception for all of its futures.
    if isinstance(exc, BaseException) and text not in getattr(exc, "__notes__", ()):
        exc.add_note(text)


def _explain(exc: BaseException, name: str) -> None:
    """Say with an exception of the executor what its text leaves out."""
    if isinstance(exc, concurrent.futures.BrokenExecutor):
        _note(
            exc,
            f"a worker of {name} died, and the pool with it: all of its calls that were not over have failed. It may "
            "have been killed (by the system, when memory ran out; by a stop button), have crashed in C, or have "
            'failed to start (in a script, what starts processes stands under `if __name__ == "__main__":`). Make a '
            "new executor, and an ExecutorPortal of that",
        )
    elif isinstance(remote := getattr(exc, "traceback", None), str):
        _note(exc, f"the traceback of {name}:\n{_without_colours(remote)}")  # ipyparallel's RemoteError


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


_portals: weakref.WeakSet[ExecutorPortal] = weakref.WeakSet()


def _after_fork() -> None:
    for portal in list(_portals):
        cancel_in_child(portal._calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _refuse_awaitables(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if inspect.iscoroutine(value) or asyncio.isfuture(value):
            if inspect.iscoroutine(value):
                value.close()  # it will not be awaited, which is said here and need not be warned of
            raise TypeError(
                f"{name}: a {type(value).__name__} belongs to this process and cannot be sent to an executor. Pass the "
                "function and its arguments, run(fetch, url, on=portal), not what the function returned, "
                "run(fetch(url), on=portal)"
            )
