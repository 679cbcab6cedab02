"""`ThreadPortal`: the life of a thread that is started by its first call, that ends, and is not there after a fork."""

from __future__ import annotations

import abc
import concurrent.futures
import enum
import itertools
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ipyportal.concurrency.calls import Portal
from ipyportal.concurrency.calls.execution import Execution
from ipyportal.concurrency.cancellation.frames import uninterruptible
from ipyportal.concurrency.labels import one_line
from ipyportal.concurrency.primitives import start_thread

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Phase", "ThreadPortal", "all_threads"]


class Phase(enum.Enum):
    """Where a thread is in its life."""

    NEW = "not started"
    RUNNING = "running"
    CLOSING = "shutting down"
    CLOSED = "shut down"


all_threads: weakref.WeakSet[ThreadPortal] = weakref.WeakSet()  # told of a fork


class ThreadPortal(Portal):
    """What both kinds of thread share: the life of a thread that is started by its first call."""

    _counter = itertools.count(1)
    _kind = "thread"

    def __init__(self, name: str | None, daemon: bool, run_once: bool) -> None:
        if not isinstance(name, str | None):
            raise TypeError(f"the name of a {type(self).__name__} must be a str or None, not {type(name).__name__}")
        self._name = one_line(name) if name else f"ipyportal-{self._kind}-{next(self._counter)}"
        self._daemon = daemon
        self._run_once = run_once
        self._reset()
        all_threads.add(self)  # not before: a fork in another thread would meet half a portal, and stop at it

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._phase = Phase.NEW
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, or None before it was started."""
        return self._thread

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._phase.value}>"

    @uninterruptible  # a thread that nobody knows would never end
    def start(self) -> Self:
        """Start the thread, if it has not been. From any thread; `submit` does it by itself.

        Raises:
            RuntimeError: It was shut down.
            BaseException: What starting it raised, from a `loop_factory` for instance. It can be tried again.
        """
        with self._lock:
            if self._phase is Phase.RUNNING:
                return self
            if self._phase is not Phase.NEW:
                raise self._refusal()
            ready: concurrent.futures.Future[None] = concurrent.futures.Future()
            thread = threading.Thread(target=self._main, args=(ready,), name=self._name, daemon=self._daemon)
            start_thread(thread)
            # Ends: `_main` sets it whether it succeeds or not, and needs no lock of ours before.
            interrupt: BaseException | None = None
            try:
                error = ready.exception()
            except BaseException as exc:  # noqa: BLE001 - raised below: a thread that nobody knows would never end
                interrupt = exc
                error = ready.exception()
            if error is not None:
                thread.join()
                try:
                    raise error
                finally:
                    del error
            self._thread = thread
            self._phase = Phase.RUNNING
            if interrupt is not None:
                raise interrupt
            return self

    def _close_in_child(self) -> None:
        """In a forked child: close the descriptors of the thread that does not exist there."""

    @abc.abstractmethod
    def _calls(self) -> list[Execution[Any]]:
        """The calls that run or wait here. From any thread; in a forked child before `_reset`."""

    @abc.abstractmethod
    def _main(self, ready: concurrent.futures.Future[None]) -> None:
        """What the thread runs. It sets `ready` when calls can be submitted, or to what kept it from that."""

    def _refusal(self) -> RuntimeError:
        return RuntimeError(
            f"{type(self).__name__} {self._name!r} was shut down and takes no more calls; make a new one"
        )

    @abc.abstractmethod
    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, and end the thread."""

    def _join(self, timeout: float | None) -> bool:
        thread = self._thread
        if timeout == 0:  # also from a finalizer, in a thread that is ending
            return thread is None or not thread.is_alive()
        if thread is None or thread is threading.current_thread():
            return True
        # Ends when the calls that run there do, or after `timeout`; who shuts down chose which.
        thread.join(timeout)
        return not thread.is_alive()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.shutdown(cancel=exc_type is not None)
