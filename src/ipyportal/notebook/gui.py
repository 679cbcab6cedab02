"""GUI event loops (``%gui qt``, ``%gui tk``, ``%matplotlib qt``): a cell waits, and its windows stay live.

Between messages ipykernel hands its thread to the toolkit, from a timer: ``kernel.eventloop(kernel)`` returns when the
next message comes. While a cell waits, no message need come, and the kernel's own loop, which runs what the cell waits
for, would never get its thread back. So the functions that ipykernel calls are wrapped. While a cell or a callback of
ours is open, the toolkit handles what is due and returns at once; else it has the thread until the next message.

A message that the kernel's loop has received already waits in a task, for a cell's end or for the next turn: the
toolkit, which looks at the socket, would not see it. So it gets the thread when nothing has been open, and nothing was
ready to be called, for some turns. Qt gives it back after a while, message or not: ipykernel may miss one that comes
while Qt gets the thread, until the next one comes. And so tasks of the kernel's loop go on between cells.

What is ipykernel's: ``eventloops.loop_map``, from the names of toolkits to these functions; ``kernel.eventloop``, the
one in use; that ipykernel calls it again after a millisecond as long as it is that; for Qt, ``app.qt_event_loop`` and
``_qt_notifier`` of the kernel. Seen in ipykernel 6.29.5 to 7.4.0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.suspension.loops import TOOLKITS_CALLERS

__all__ = ["keep_windows_live"]

TOOLKITS_CALLERS.add(__name__)

_INTERVAL = 0.01  # seconds between two looks of the toolkit at its events while a cell waits
_AT_MOST = 0.1  # seconds for which Qt has the thread
_QUIET = 5  # calls, each in another turn of the kernel's loop, in which nothing was open


class LiveEventLoop:
    """In place of one of ipykernel's functions that run a toolkit's event loop. It has all its attributes."""

    def __init__(self, original: Any, is_open: Callable[[], bool]) -> None:
        self.original = original
        self._is_open = is_open
        self._next = 0.0
        self._quiet = _QUIET

    def __call__(self, kernel: Any) -> None:
        self._quiet = 0 if self._is_open() else self._quiet + 1
        if self._quiet >= _QUIET:
            # `kernel.app` is still Qt's where another toolkit was chosen later.
            timer = _timer_of_qt(kernel) if "qt" in getattr(self.original, "__name__", "") else None
            try:
                self.original(kernel)
            finally:
                if timer is not None:
                    timer.stop()
            self._quiet = 0  # it returns for a message
        elif (now := time.monotonic()) >= self._next:
            self._next = now + _INTERVAL
            _handle_events(kernel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _timer_of_qt(kernel: Any) -> Any:
    """Start a timer that ends Qt's loop, which is about to run; None if there is no such loop."""
    loop = getattr(getattr(kernel, "app", None), "qt_event_loop", None)
    if loop is None:
        return None
    from IPython.external.qt_for_kernel import QtCore  # the binding that is in use

    def give_back() -> None:
        if (notifier := getattr(kernel, "_qt_notifier", None)) is not None:
            notifier.setEnabled(False)  # as ipykernel does; it is enabled again when Qt gets the thread
        loop.quit()

    timer = QtCore.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(give_back)
    timer.start(int(1000 * _AT_MOST))
    return timer


def _handle_events(kernel: Any) -> None:
    """Have the toolkits that are in use handle what is due. Of others the windows stand still while a cell waits."""
    if (process_events := getattr(getattr(kernel, "app", None), "processEvents", None)) is not None:  # Qt
        process_events()
    elif (tkinter := sys.modules.get("tkinter")) is not None and tkinter._default_root is not None:
        tkinter._default_root.update()


def keep_windows_live(kernel: Any, is_open: Callable[[], bool]) -> Callable[[], object] | None:
    """Wrap the event loops of all toolkits; return what undoes that. In the kernel's thread.

    Args:
        is_open: Whether a cell or a callback has begun and not ended, which may wait.
    """
    try:
        from ipykernel.eventloops import loop_map
    except ImportError:  # another kernel than ipykernel's
        return None
    originals: dict[Any, Any] = dict(loop_map)
    wrapped: dict[Any, Any] = {}  # one for each function: some toolkits have several names
    for name, original in originals.items():
        if original is not None:
            loop_map[name] = wrapped.setdefault(original, LiveEventLoop(original, is_open))
    if kernel.eventloop in wrapped:
        kernel.eventloop = wrapped[kernel.eventloop]

    def undo() -> None:
        for name, original in originals.items():
            if loop_map.get(name) is wrapped.get(original):
                loop_map[name] = original
        if isinstance(kernel.eventloop, LiveEventLoop):
            kernel.eventloop = kernel.eventloop.original

    return undo
