"""Signals wake the kernel's loop, also those that come in the very moment in which it goes to sleep."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import socket
import threading
from collections.abc import Callable

__all__ = ["wake_on_signals"]


def wake_on_signals(loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    """Have each signal wake `loop`, which runs in this thread; return what undoes that.

    The race: a signal comes after the loop's last bytecode, and before its thread sleeps in ``select``. The interpreter
    notes it, and calls its handler at the next bytecode: when something else wakes the loop. A press of the stop button
    was not seen then, if it came as a cell had just begun to wait. For this, CPython writes a byte to a file for each
    signal (`signal.set_wakeup_fd`); the loop reads it. asyncio does the same for its own ``add_signal_handler``.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)

    def close() -> None:
        if not loop.is_closed():
            loop.remove_reader(receiver)
        receiver.close()
        sender.close()

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            receiver.recv(4096)

    try:
        contextvars.Context().run(loop.add_reader, receiver, drain)
    except NotImplementedError:  # a loop that waits for no files
        receiver.close()
        sender.close()
        return lambda: None
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    if before != -1:  # somebody's loop is woken so already: most likely this one
        signal.set_wakeup_fd(before)
        close()
        return lambda: None

    def undo() -> None:
        current = signal.set_wakeup_fd(-1)
        if current != sender.fileno():
            signal.set_wakeup_fd(current)  # somebody else's, since
        close()

    return undo
