"""What several rooms use: a coroutine around another, the start of a thread, a call of a user's function."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from ipyportal.concurrency.pyodide import IN_PYODIDE, NO_THREADS

__all__ = ["CoroutineWrapper", "as_exception", "call_users", "start_thread"]

T = TypeVar("T")


def as_exception(typ: Any, val: Any = None, tb: Any = None) -> BaseException:
    """The exception that the arguments of a coroutine's ``throw`` mean."""
    exc = val if isinstance(val, BaseException) else typ if val is None else typ(val)
    if isinstance(exc, type):
        exc = exc()
    assert isinstance(exc, BaseException)
    return exc if tb is None else exc.with_traceback(tb)


def call_users(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """``fn(*args, **kwargs)``, for code that must not be interrupted itself.

    A function that is written in C has no frame: who looks whether the thread may be interrupted sees the frame of its
    caller, which is this one then.
    """
    __tracebackhide__ = True
    return fn(*args, **kwargs)


def start_thread(thread: threading.Thread) -> None:
    """``thread.start()``.

    Raises:
        RuntimeError: No thread can be started (any more).
    """
    # Where modules are being torn down, CPython 3.11 would wait for ever for the thread to begin.
    if sys.is_finalizing():
        raise RuntimeError("no thread can be started: the interpreter is ending")
    if IN_PYODIDE:
        raise RuntimeError(NO_THREADS)
    thread.start()


class CoroutineWrapper(Coroutine[Any, Any, T]):
    """A coroutine around another. Subclasses give `send`, `throw` and `close`.

    A class and no ``async def``, because it must act also where a coroutine's code would not run: before the first
    step, and between the loop and each step.
    """

    __slots__ = ("_inner",)
    _inner: Any

    def __await__(self) -> Generator[Any, None, T]:
        __tracebackhide__ = True
        yielded: Any
        advance, argument = self.send, None
        while True:
            try:
                yielded = advance(argument)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            try:
                argument = yield yielded
                advance = self.send
            except GeneratorExit:
                self.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - thrown in by who awaits this, and passed on
                advance, argument = self.throw, exc

    # asyncio's and debuggers' views of a task look at its coroutine: they see the code that runs in it. These are
    # properties, because with a `__getattr__` the interpreter would look up each attribute the long way. There can be
    # none for `__qualname__`, which is the class's own; without that they take `__name__`.

    @property
    def __name__(self) -> str:
        inner = self._inner
        if inner is None:  # it is over, or has no coroutine yet
            return type(self).__qualname__
        return getattr(inner, "__qualname__", None) or inner.__name__  # type: ignore[no-any-return]

    @property
    def cr_await(self) -> Any:
        return self._inner.cr_await

    @property
    def cr_code(self) -> Any:
        return self._inner.cr_code

    @property
    def cr_frame(self) -> Any:
        return self._inner.cr_frame

    @property
    def cr_running(self) -> Any:
        return self._inner.cr_running
