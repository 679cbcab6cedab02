"""What several modules of the engine share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["CoroutineWrapper", "add_note", "as_exception", "start_thread", "traceback_of"]

T = TypeVar("T")


def as_exception(typ: Any, val: Any = None, tb: Any = None) -> BaseException:
    """The exception that the arguments of a coroutine's ``throw`` mean."""
    exc = val if isinstance(val, BaseException) else typ if val is None else typ(val)
    if isinstance(exc, type):
        exc = exc()
    assert isinstance(exc, BaseException)
    return exc if tb is None else exc.with_traceback(tb)


traceback_of: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__
"""``exc.__traceback__``, also of a class that has an attribute of its own by that name."""


def start_thread(thread: threading.Thread) -> None:
    """``thread.start()``.

    Raises:
        RuntimeError: No thread can be started (any more).
    """
    # Where modules are being torn down, CPython 3.11 would wait for ever for the thread to begin.
    if sys.is_finalizing():
        raise RuntimeError("no thread can be started: the interpreter is ending")
    thread.start()


def add_note(exc: BaseException, note: str) -> None:
    """``exc.add_note(note)``, if that can be: a frozen dataclass takes none."""
    try:
        exc.add_note(note)
    except Exception:  # noqa: BLE001 - whatever its own attributes raise; the exception itself matters more
        pass


class CoroutineWrapper(Coroutine[Any, Any, T]):
    """A coroutine around another. Subclasses give `send`, `throw` and `close`.

    A class and no ``async def``, because it must act also where a coroutine's code would not run: before the first
    step, and between the loop and each step.
    """

    __slots__ = ("_inner",)
    _inner: Any

    def __await__(self) -> Generator[Any, None, T]:
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
