"""`patch_asyncio`: ``asyncio.run()`` and ``loop.run_until_complete()`` where a loop runs already.

asyncio refuses both there, because who calls them would block the loop that runs. A caller that can be suspended does
not, so while the patch is on

- ``loop.run_until_complete(x)`` of the loop that runs is ``run(x)``: x is awaited there, the caller suspended; and
  ``loop.run_forever()`` suspends its caller until ``loop.stop()``;
- ``asyncio.run``, ``Runner.run``, and ``run_until_complete`` and ``run_forever`` of *another* loop mean what they
  always mean. They run in a thread that is lent for it, in which no loop runs, while the caller is suspended.

Everything else goes to what stood in their place before. Loops run their turns in workers meanwhile
(`ipyportal.concurrency.suspension.turns`), so that one can be stopped whoever stands still.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import functools
import inspect
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, TypeVar

from ipyportal.concurrency.calls.call import await_it
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.greenlets import why_not_suspended
from ipyportal.concurrency.labels import type_name
from ipyportal.concurrency.private import RUN_ONCE, RUNNERS_LOOP
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.suspension.loops import loop_has_turns, turns_possible
from ipyportal.concurrency.suspension.suspending import can_suspend
from ipyportal.concurrency.suspension.turns import run_once
from ipyportal.other_loops import end_all_threads, end_thread, run_elsewhere, thread_of
from ipyportal.page_runs import NO_RUNNER, run_as_asyncio
from ipyportal.routes import RULE
from ipyportal.sync import run

__all__ = ["PatchSwitch", "loop_name", "patch_asyncio", "patched", "report"]

__ipyportal_mark__ = Mark.NOT_BY_THE_STOP_BUTTON  # it has made a call, and is about to wait for it


F = TypeVar("F", bound=Callable[..., Any])


# --- what stands in asyncio's places ---------------------------------------------------------------------------------


class _Replaced:
    """One attribute that was replaced, and the way back."""

    def __init__(self, owner: Any, name: str, replacement: Any, *, own: bool = True) -> None:
        self.owner = owner
        self.name = name
        self.before = vars(owner)[name] if own else None
        self.replacement = replacement
        setattr(owner, name, replacement)

    def put_back(self) -> None:
        if vars(self.owner).get(self.name) is not self.replacement:
            return  # somebody else has replaced ours, and keeps it
        if self.before is None:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)


_lock = threading.RLock()
_users = 0
_replaced: list[_Replaced] = []
_pid = os.getpid()  # of the process that has patched

_REFUSALS = ("from a running event loop", "event loop is already running", "another loop is running")
_NOTE = (
    "ipyportal: asyncio is patched, but this caller cannot be suspended: {why}. In asynchronous code type `await`; "
    'or %%thread above a cell, or run(fn, on="thread"), runs the code where no loop runs'
)
_NOTE_IN_PAGE = "ipyportal: this caller cannot be suspended: {why}. In asynchronous code type `await`"


def _refused(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what stood here before. Where it refuses because a loop runs, say why the patch is of no help."""
    __tracebackhide__ = True
    try:
        return original(*args, **kwargs)
    except RuntimeError as exc:
        if patched() and asyncio._get_running_loop() is not None and any(text in str(exc) for text in _REFUSALS):
            exc.add_note((_NOTE_IN_PAGE if IN_PYODIDE else _NOTE).format(why=_why_not()))
        raise


def _why_not() -> str:
    if why_not := why_not_suspended():
        return why_not
    return (
        f"{loop_name(asyncio._get_running_loop())}, which runs here, is not asyncio's own kind of loop. Its cells and "
        "its calls can be suspended, other tasks and callbacks cannot"
    )


def loop_name(loop: Any) -> str:
    """What messages call the kind of a loop."""
    return f"{type(loop).__module__}.{type_name(loop)}"


def _suspends() -> bool:
    return _users > 0 and asyncio._get_running_loop() is not None and can_suspend()


def _patched_run(original: Callable[..., Any]) -> Callable[..., Any]:
    genuine = asyncio.runners.run  # also where nest_asyncio has put its own into asyncio.run

    @functools.wraps(original)
    def run(main: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if not _suspends() or (IN_PYODIDE and options.get("loop_factory") is not None):
            return _refused(original, main, **options)
        if IN_PYODIDE:
            return run_as_asyncio(main, debug=options.get("debug"))
        return run_elsewhere("thread", lambda main: genuine(main, **options), main)

    return run


def _patched_runner_run(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: asyncio.Runner, coro: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if not _suspends():
            return _refused(original, self, coro, **options)
        if not _runs_here(self):
            return run_elsewhere(thread_of(self), lambda coro: original(self, coro, **options), coro)
        if sys.version_info >= (3, 14) and inspect.isawaitable(coro) and not asyncio.iscoroutine(coro):
            coro = await_it(coro)
        if not asyncio.iscoroutine(coro):
            # To be refused in this Python's own words, elsewhere: CPython 3.14 first refuses the loop that runs here.
            return run_elsewhere("thread", lambda coro: original(self, coro, **options), coro)
        return _await_here(self.get_loop().create_task(coro, **options))

    return run


def _refused_runner_run(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: asyncio.Runner, coro: Any, **options: Any) -> Any:
        raise RuntimeError(NO_RUNNER)

    return run


def _patched_runner_close(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: asyncio.Runner) -> None:
        __tracebackhide__ = True
        if not _suspends() or getattr(self, RUNNERS_LOOP, self) is None or _runs_here(self):
            # With nothing to close it takes no turn: finalizers call it, in the middle of anything (unittest's do).
            original(self)
            return
        try:
            run_elsewhere(thread_of(self), lambda _: original(self))
        finally:
            end_thread(self)
            # It may have been made current by `Runner.__enter__`, in this thread; it is closed now.
            asyncio.set_event_loop(asyncio.get_running_loop())

    return close


def _runs_here(runner: asyncio.Runner) -> bool:
    # Not get_loop(), which would make the loop, and make it this thread's current one.
    return getattr(runner, RUNNERS_LOOP, None) is asyncio.get_running_loop()


def _await_here(awaitable: Any) -> Any:
    __tracebackhide__ = True
    return run(awaitable, on=RULE)


def _patched_run_until_complete(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_until_complete(self: asyncio.AbstractEventLoop, future: Any) -> Any:
        __tracebackhide__ = True
        if self.is_closed() or not _suspends():
            if _users and os.getpid() != _pid and asyncio._get_running_loop() is None and self.is_running():
                # In a forked child the loop of the parent looks as if it ran. It shares that one's selector, and may
                # not be touched.
                return asyncio.run(_of_loop(self, future))
            return _refused(original, self, future)
        if self is asyncio.get_running_loop():
            return _await_here(_of_loop(self, future))
        if self.is_running():
            return original(self, future)  # in another thread: refused
        return run_elsewhere(thread_of(self), lambda future: original(self, future), future)

    return run_until_complete


_forever: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = weakref.WeakKeyDictionary()
"""What ``stop()`` of a loop ends that runs: the waits of ``run_forever()`` in its own callers, the innermost last."""


def _patched_run_forever(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_forever(self: asyncio.AbstractEventLoop) -> None:
        __tracebackhide__ = True
        if self.is_closed() or not _suspends():
            _refused(original, self)
        elif self is asyncio.get_running_loop():
            stopped = self.create_future()
            waits = _forever.setdefault(self, [])
            waits.append(stopped)
            try:
                _await_here(stopped)
            finally:
                waits.remove(stopped)
        elif self.is_running():
            original(self)  # in another thread: refused
        else:
            run_elsewhere(thread_of(self), lambda _: original(self), stop=lambda: self.call_soon_threadsafe(self.stop))

    return run_forever


def _patched_stop(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def stop(self: asyncio.AbstractEventLoop) -> None:
        for stopped in reversed(_forever.get(self, ())):
            if not stopped.done():
                stopped.set_result(None)
                return
        original(self)

    return stop


def _patched_add_signal_handler(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def add_signal_handler(self: asyncio.AbstractEventLoop, sig: int, callback: Any, *args: Any) -> None:
        __tracebackhide__ = True
        try:
            original(self, sig, callback, *args)
        except (RuntimeError, ValueError) as exc:
            if threading.current_thread() is threading.main_thread():
                raise
            # What libraries expect where signals cannot be had, as on Windows: they go on without.
            raise NotImplementedError(
                "signals reach the main thread alone, and this loop runs in another one while asyncio is patched; the "
                "stop button cancels its main task"
            ) from exc

    return add_signal_handler


def _of_loop(loop: asyncio.AbstractEventLoop, future: Any) -> Any:
    """`future` if it can be awaited on `loop`; what cannot is refused as asyncio does it."""
    if asyncio.isfuture(future) or not inspect.isawaitable(future):
        return asyncio.ensure_future(future, loop=loop)
    return future


# --- on and off ------------------------------------------------------------------------------------------------------


class _Patch(ContextDecorator):
    """A block in which asyncio is patched."""

    _used = False

    def __enter__(self) -> None:
        self._used = True
        _enter()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _leave()

    def __call__(self, func: F) -> F:
        self._used = True
        return super().__call__(func)

    def __repr__(self) -> str:
        return f"<patch_asyncio(): {_UNUSED if not self._used else 'for a `with` block, or a function'}>"

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(f"patch_asyncio() alone {_UNUSED}", RuntimeWarning, stacklevel=2)


_UNUSED = "does nothing; type `with patch_asyncio():`, or %portal patch on for all cells that follow"


def patch_asyncio() -> _Patch:
    """Make ``asyncio.run()`` work in a ``with`` block where an event loop is already running. From any thread.

    The patch is for the whole process. It covers `asyncio.run`, `asyncio.Runner.run`, ``loop.run_until_complete`` and
    ``loop.run_forever``. If they are called in a task or a callback of a running loop, they suspend their caller
    instead of raising RuntimeError, and the loop goes on. ``loop.stop()`` ends the innermost ``run_forever()`` of that
    loop. Tasks and futures are not patched. Where no loop runs, nothing changes. Blocks may be nested and overlap.
    After the last one, everything is put back. In a notebook: ``%portal patch on`` and ``%portal patch off``.

    If the call makes or uses another loop, that loop runs in another thread meanwhile. Signals do not reach that
    thread, so ``loop.add_signal_handler`` raises NotImplementedError there, as it does on Windows.

    In a browser (Pyodide), ``asyncio.run`` and ``loop.run_until_complete`` work without the patch. With it,
    ``asyncio.run`` also ends the tasks that it leaves, and `asyncio.Runner` says what to type instead.

    Some callers cannot be suspended: without the package greenlet, on a Python other than CPython, and in tasks and
    callbacks of a loop that is not asyncio's own (uvloop). They get asyncio's RuntimeError, with a note that says why
    and what to type instead. Code that did ``from asyncio import run`` before the patch keeps asyncio's own function.

    Example:
        >>> import asyncio
        >>> from ipyportal import patch_asyncio
        >>> def library():  # somebody else's
        ...     return asyncio.run(asyncio.sleep(0.01, "slept"))
        >>> async def main():
        ...     return library()
        >>> with patch_asyncio():
        ...     asyncio.run(main())
        'slept'
    """
    return _Patch()


class PatchSwitch:
    """One user of the patch, which it turns on and off: ``%portal patch``."""

    def __init__(self) -> None:
        self.on = False

    def switch(self, on: bool) -> None:
        """Turn it on or off. Twice is once."""
        if on is not self.on:
            self.on = on
            (_enter if on else _leave)()


def _enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            try:
                _install()
            except BaseException:  # interrupted
                _leave()
                raise


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            while _replaced:
                _replaced.pop().put_back()
            end_all_threads()


def _install() -> None:
    global _pid
    _pid = os.getpid()
    loops = asyncio.BaseEventLoop
    _replaced.append(_Replaced(asyncio, "run", _patched_run(asyncio.run)))
    if IN_PYODIDE:  # its loop's own run_until_complete() suspends its caller
        _replaced.append(_Replaced(asyncio.Runner, "run", _refused_runner_run(asyncio.Runner.run)))
        return
    _replaced.append(_Replaced(asyncio.Runner, "run", _patched_runner_run(asyncio.Runner.run)))
    _replaced.append(_Replaced(asyncio.Runner, "close", _patched_runner_close(asyncio.Runner.close)))
    _replaced.append(_Replaced(loops, "run_until_complete", _patched_run_until_complete(loops.run_until_complete)))
    _replaced.append(_Replaced(loops, "run_forever", _patched_run_forever(loops.run_forever)))
    _replaced.append(_Replaced(loops, "stop", _patched_stop(loops.stop)))
    if "add_signal_handler" in vars(asyncio.SelectorEventLoop):  # not on Windows
        unix: Any = asyncio.SelectorEventLoop
        _replaced.append(_Replaced(unix, "add_signal_handler", _patched_add_signal_handler(unix.add_signal_handler)))
    if (uvloop := sys.modules.get("uvloop")) is not None:
        _patch_kind(uvloop.Loop)
    _replaced.append(
        _Replaced(asyncio.AbstractEventLoop, "__init_subclass__", classmethod(_patch_kind_made_later), own=False)
    )
    if turns_possible():
        _replaced.append(_Replaced(loops, RUN_ONCE, run_once))


def _patch_kind(kind: Any) -> None:
    """Patch a kind of loop that has a `run_until_complete` of its own."""
    try:
        patched = _patched_run_until_complete(kind.run_until_complete)
        _replaced.append(_Replaced(kind, "run_until_complete", patched, own="run_until_complete" in vars(kind)))
    except TypeError:
        pass  # a type of C: `report` says so


def _patch_kind_made_later(kind: Any) -> None:
    """What `asyncio.AbstractEventLoop.__init_subclass__` is while the patch is on: uvloop may be imported by then."""
    super(asyncio.AbstractEventLoop, kind).__init_subclass__()
    with _lock:
        if _users and not issubclass(kind, asyncio.BaseEventLoop):
            _patch_kind(kind)


def patched() -> bool:
    """Whether asyncio is patched now. From any thread."""
    return _users > 0


def report() -> str:
    """What ``%portal`` says of the patch: whether it is on, and what it could not patch for the loop that runs here."""
    if IN_PYODIDE and (why_not := why_not_suspended()):
        return f"nothing can wait: {why_not}"
    if not patched():
        if IN_PYODIDE:
            return "Pyodide's own, which leaves tasks running that its coroutine has made: %portal patch on"
        return "asyncio is not patched: %portal patch on"
    said = ["asyncio.run() and run_until_complete() suspend their callers"]
    loop = asyncio._get_running_loop()
    if why_not := why_not_suspended():
        said.append(f"but nothing can be suspended: {why_not}")
    elif IN_PYODIDE:
        return "suspends its caller, and ends the tasks that it leaves; asyncio.Runner is refused"
    elif loop is not None:
        if not any(type(loop).run_until_complete is one.replacement for one in _replaced):
            said.append(f"run_until_complete() of {loop_name(loop)} is not patched")
        if not loop_has_turns(loop):
            said.append(f"tasks and callbacks of {loop_name(loop)} cannot be suspended, cells can")
    return "; ".join(said)
