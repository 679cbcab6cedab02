"""Output goes to the cell that launched it, also on kernels that do not see to that themselves.

Since ipykernel 7 the parent header of what is printed or displayed is a context variable, and a call runs in a copy of
its launcher's context. On ipykernel 6.17 it is one attribute of each stream, which every new cell overwrites; on 6.29
that of the display publisher is. There the class of these objects is replaced, while the extension is loaded, by a
subclass whose ``parent_header`` is a context variable, too.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["attribute_output"]

_parent: ContextVar[dict[str, Any] | None] = ContextVar("ipyportal_parent_header", default=None)


Sinks = list[tuple[Any, type]]


def attribute_output(shell: Any) -> Callable[[], None] | None:
    """Make each output of `shell` go to the cell that launched it; return what undoes that, or None if it does."""
    sinks: Sinks = [(stream, _AttributedStream) for stream in (sys.stdout, sys.stderr)]
    sinks += [(publisher, _AttributedPublisher) for publisher in (shell.displayhook, shell.display_pub)]
    undo = [_swap_class(sink, mixin) for sink, mixin in sinks if _keeps_one_parent(sink)]

    def undo_all() -> None:
        for put_back in undo:
            put_back()

    return undo_all if undo else None


def _keeps_one_parent(sink: Any) -> bool:
    return hasattr(sink, "parent_header") and not isinstance(getattr(sink, "_parent_header", None), ContextVar)


def _swap_class(sink: Any, mixin: type) -> Callable[[], None]:
    original: Any = type(sink)
    latest = sink.parent_header
    sink.__class__ = type(original)(original.__name__, (mixin, original), {})
    sink._latest_parent = latest

    def put_back() -> None:
        if vars(sink).get("_written"):
            sink.flush()
        latest = sink._latest_parent
        sink.__class__ = original
        del sink._latest_parent
        sink.parent_header = latest
        for _, string in vars(sink).pop("_written", ()):  # the thread that sends is held up
            sink.write(string)

    return put_back


class _AttributedPublisher:
    _latest_parent: Any

    @property
    def parent_header(self) -> Any:
        parent = _parent.get()
        return self._latest_parent if parent is None else parent

    @parent_header.setter
    def parent_header(self, value: Any) -> None:
        self._latest_parent = value
        _parent.set(value)


class _AttributedStream(_AttributedPublisher):
    """A stream of ipykernel 6.17, whose one buffer another thread sends, for one parent.

    What is written is kept with its parent, and gets into the buffer in that thread. Nobody who writes waits for it: it
    may be held up.
    """

    _sent_for: Any = None
    pub_thread: Any
    _is_master_process: Callable[[], bool]
    _schedule_flush: Callable[[], None]

    @property
    def parent_header(self) -> Any:
        if self._sent_for is not None and threading.current_thread() is self.pub_thread.thread:
            return self._sent_for
        parent = _parent.get()
        return self._latest_parent if parent is None else parent

    @parent_header.setter
    def parent_header(self, value: Any) -> None:
        self._latest_parent = value
        _parent.set(value)

    def write(self, string: Any) -> Any:
        if not isinstance(string, str) or self.pub_thread is None or not self._is_master_process():
            return super().write(string)  # type: ignore[misc]
        vars(self).setdefault("_written", deque()).append((self.parent_header, string))
        self._schedule_flush()
        return len(string)

    def _flush(self) -> None:
        # This comes first, for it lets the next write ask for another flush: what is written while we look below is
        # either seen there, or has been asked for.
        super()._flush()  # type: ignore[misc]
        if not self._is_master_process():
            return  # what had been written when this process was forked is its parent's
        written = vars(self).get("_written", ())
        try:
            while written:
                parent, string = written.popleft()
                if self._sent_for is not parent:
                    super()._flush()  # type: ignore[misc]
                    self._sent_for = parent
                super().write(string)  # type: ignore[misc]
            super()._flush()  # type: ignore[misc]
        finally:
            self._sent_for = None
