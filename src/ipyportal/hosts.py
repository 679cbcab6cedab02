"""`Host`: what surrounds synchronous code that waits. The notebook extension is one, and takes the place of this."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ipyportal.concurrency.calls import Call, Portal

__all__ = ["Host", "KeyboardInterrupts", "is_kernel_thread", "replace_host"]


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

    def shows_widgets(self) -> bool:
        """Whether widgets are shown where the code that asks sends its output, if that is a kernel."""
        return True

    def raise_owed(self) -> None:
        """Raise the KeyboardInterrupt that came while it could not be raised."""


current: Host = Host()
"""The host of this process."""


def replace_host(host: Host) -> Host:
    """Have `host` stand in the place of the present one, which is returned."""
    global current
    before, current = current, host
    return before


def is_kernel_thread() -> bool:
    """Whether this is the thread of a kernel whose extension is loaded."""
    return current.kernel_portal is not None and threading.current_thread() is threading.main_thread()
