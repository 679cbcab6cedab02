"""Threads that run calls: `WorkerThread`, `EventLoopThread`, the global loop, and workers that are lent for a call.

All of them start on first use. What a forked child inherits of them has no thread: there they start anew.
"""

from __future__ import annotations

import abc
import asyncio
import atexit
import concurrent.futures
import contextvars
import enum
import itertools
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ipyportal.concurrency import interruption
from ipyportal.concurrency.asyncio_inside import close_descriptors
from ipyportal.concurrency.calls import Call, call_of, leave_to_parent, start_on_loop
from ipyportal.concurrency.deadlines import check_timeout, clock
from ipyportal.concurrency.interruption import InterruptibleThread, interruptible_thread, undisturbed
from ipyportal.concurrency.portals import Portal
from ipyportal.concurrency.primitives import start_thread
from ipyportal.concurrency.suspension import drop_idle_greenlets
from ipyportal.concurrency.texts import one_line

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "EventLoopThread",
    "LoopPortal",
    "WorkerThread",
    "get_global_loop",
    "get_worker_thread",
    "in_global_loop",
    "shutdown",
    "submit_to_new_thread",
    "wait_for_global_loop_exit",
]

T = TypeVar("T")


class _Phase(enum.Enum):
    """Where a thread is in its life."""

    NEW = "not started"
    RUNNING = "running"
    CLOSING = "shutting down"
    CLOSED = "shut down"


_threads: weakref.WeakSet[_ThreadPortal] = weakref.WeakSet()  # told of a fork


class _ThreadPortal(Portal):
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
        _threads.add(self)  # not before: a fork in another thread would meet half a portal, and stop at it

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._phase = _Phase.NEW
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

    @undisturbed  # a thread that nobody knows would never end
    def start(self) -> Self:
        """Start the thread, if it has not been. From any thread; `submit` does it by itself.

        Raises:
            RuntimeError: It was shut down.
            BaseException: What starting it raised, from a `loop_factory` for instance. It can be tried again.
        """
        with self._lock:
            if self._phase is _Phase.RUNNING:
                return self
            if self._phase is not _Phase.NEW:
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
            self._phase = _Phase.RUNNING
            if interrupt is not None:
                raise interrupt
            return self

    def _close_in_child(self) -> None:
        """In a forked child: close the descriptors of the thread that does not exist there."""

    @abc.abstractmethod
    def _calls(self) -> list[Call[Any]]:
        """The calls that run or wait here. In a forked child, before `_reset`."""

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


class WorkerThread(_ThreadPortal):
    """A thread that runs calls one after the other.

    An asynchronous call runs in an event loop of its own there, as in `asyncio.run`. As a context manager, leaving
    it waits for the calls that were submitted, or, if an exception leaves it, cancels them.

    Args:
        name: The thread's name.
        daemon: Whether the interpreter may exit while calls run. They are cancelled then, and have a second for their
            clean-up. If False, its exit waits for them, and the thread ends.
        run_once: Take one call, and end.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import Call, WorkerThread
        >>> with WorkerThread("files") as thread:
        ...     call = thread.submit(Call.new(threading.current_thread))
        >>> call.result().name
        'files'
    """

    _kind = "worker"

    def __init__(self, name: str | None = None, daemon: bool = True, run_once: bool = False) -> None:
        super().__init__(name, daemon, run_once)

    def _reset(self) -> None:
        super()._reset()
        self._inbox: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._current: Call[Any] | None = None
        self._queued: deque[Call[Any]] = deque()  # as the inbox, and until they are `_current`: for a fork
        self._cancel_at_end = False

    def submit(self, call: Call[T]) -> Call[T]:
        with self._lock:
            if self._phase is not _Phase.RUNNING:
                self.start()
            self._adopt(call)
            self._queued.append(call)
            self._inbox.put(call)
            if self._run_once:
                self._close()
        return call

    def _close(self) -> None:
        self._phase = _Phase.CLOSING
        self._inbox.put(None)

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, run those that were submitted, and end the thread. From any thread.

        Args:
            cancel: Cancel the calls instead.
            timeout: Seconds to wait for the thread's end; None for as long as it takes.

        Returns:
            False if the thread had not ended by then.

        Raises:
            TypeError, ValueError: `timeout` is not a number, or is negative. Then nothing was done.
        """
        timeout = check_timeout(timeout)
        with self._lock:
            if self._phase is _Phase.RUNNING:
                self._close()
            elif self._phase is _Phase.NEW:
                self._phase = _Phase.CLOSED
            if cancel:
                self._cancel_at_end = True
                try:
                    # The thread takes calls meanwhile, so that the inbox may be empty at any time.
                    while (call := self._inbox.get_nowait()) is not None:
                        self._queued.remove(call)
                        call.cancel()
                    self._inbox.put(None)
                except queue.Empty:
                    pass
                if (current := self._current) is not None:
                    current.cancel()
        return self._join(timeout)

    def _calls(self) -> list[Call[Any]]:
        return [*([] if self._current is None else [self._current]), *self._queued]

    def _main(self, ready: concurrent.futures.Future[None]) -> None:
        interruptible_thread().ends_its_greenlets = True
        ready.set_result(None)
        inbox = self._inbox
        try:
            # Each wait ends: with a call, or with the None of the shutdown.
            while (call := inbox.get()) is not None:
                self._current = call
                self._queued.remove(call)
                if self._cancel_at_end:  # a shutdown that came when the call was neither in the inbox nor here
                    call.cancel()
                _run_alone(call)
                self._current = None
                del call
        finally:
            # Also when the thread dies of something: what waits here would wait for ever.
            with self._lock:
                self._phase = _Phase.CLOSED
            _cancel_all(inbox)
            self._queued.clear()
            drop_idle_greenlets()

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it is to run in this very thread, {self._name!r}, "
                "after the code that waits. Submit it to another thread, or call the function directly"
            )


def _factory_beside_a_gui() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """asyncio's own, where the policy may be a GUI's, whose loops run in the GUI's thread alone; else None."""
    if sys.version_info >= (3, 14):
        return None  # policies are deprecated, and GUIs bring a `loop_factory`
    policy = asyncio.get_event_loop_policy()
    made_by = type(policy).new_event_loop.__module__.partition(".")[0]
    return None if made_by in ("asyncio", "uvloop", "winloop") else asyncio.DefaultEventLoopPolicy().new_event_loop


class EventLoopThread(_ThreadPortal):
    """A thread that runs an event loop, and calls in it as tasks.

    As a context manager, leaving it waits for the calls that were submitted, or, if an exception leaves it, cancels
    them. Tasks that the calls left behind are cancelled.

    Args:
        name: The thread's name.
        daemon: Whether the interpreter may exit while calls run. They are cancelled then, and have a second for their
            clean-up. If False, its exit waits for them, and the thread ends.
        run_once: Take one call, and end when it is over.
        loop_factory: Makes the loop; ``uvloop.new_event_loop`` works. If None, `asyncio.new_event_loop`; or asyncio's
            own default, if the event loop policy is none of asyncio's, uvloop's or winloop's: a GUI's policy, as
            qasync's, makes loops that run in the GUI's thread alone.

    A call that stops the loop (``loop.stop()``) ends the thread and all calls in it; the global loop is made anew.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import Call, EventLoopThread
        >>> with EventLoopThread("network") as thread:
        ...     call = thread.submit(Call.new(asyncio.sleep, 0.01, "slept"))
        >>> call.result()
        'slept'
    """

    _kind = "loop"

    def __init__(
        self,
        name: str | None = None,
        daemon: bool = True,
        run_once: bool = False,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self._loop_factory = loop_factory
        super().__init__(name, daemon, run_once)

    def _reset(self) -> None:
        super()._reset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[Call[Any]] = deque()
        self._woken = False
        self._starting: Call[Any] | None = None  # between the inbox and `_running`, where a fork would miss it
        self._running: set[asyncio.Task[None]] = set()
        self._shutdown_calls: list[Call[Any]] = []
        self._cancel_at_end = False
        self._bell: _Bell | None = None
        self._record: InterruptibleThread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The thread's loop; starts the thread if need be."""
        loop = self._loop
        if loop is None:
            loop = self.start()._loop
            assert loop is not None
        return loop

    def running(self) -> bool:
        """True while it takes calls."""
        return self._phase is _Phase.RUNNING and self._thread is not None and self._thread.is_alive()

    def submit(self, call: Call[T]) -> Call[T]:
        if self._run_once:
            return self._submit_once(call)
        if self._phase is not _Phase.RUNNING:
            self.start()
        self._adopt(call)
        self._inbox.append(call)
        # One wake-up serves all calls that come before the loop has looked. `_drain` clears the flag before it
        # empties the inbox, so a call appended after it looked finds the flag cleared and wakes it again.
        if not self._woken:
            bell = self._bell
            try:
                self._woken = True
                if bell is not None:
                    bell.ring()
            except BaseException:
                # Ctrl-C in here. From now on others count on the loop having been woken.
                if bell is not None:
                    bell.ring()
                raise
        if self._phase is not _Phase.RUNNING:
            # Shut down meanwhile. Either the last `_drain` has taken the call, or it is still here and nobody will.
            try:
                self._inbox.remove(call)
            except ValueError:
                pass
            else:
                self._give_back(call)
                raise self._refusal()
        return call

    def _submit_once(self, call: Call[T]) -> Call[T]:
        """Take one call and no more, whoever else submits at the same time."""
        with self._lock:
            if self._phase is not _Phase.RUNNING:
                self.start()
            self._adopt(call)
            self._inbox.append(call)
            self._close(cancel=False)
        return call

    def _drain(self, *, at_once: bool = True) -> None:
        self._woken = False
        if self._phase is _Phase.CLOSED:
            return  # the loop is being closed, and would not run them to their end: `_main` cancels them
        inbox = self._inbox
        loop = self._loop
        assert loop is not None
        # Not what is submitted meanwhile, which has woken the loop again: the loop has other things to do, too.
        waiting = len(inbox)
        for _ in range(waiting):
            try:
                self._starting = inbox[0]
                self._starting = inbox.popleft()
            except IndexError:
                return  # a `submit` that saw the shutdown has taken its call back
            try:
                # Of several, the others would wait while the first stands still.
                start_on_loop(self._starting, loop, self._running, at_once=at_once and waiting == 1)
            finally:
                self._starting = None

    def add_shutdown_call(self, call: Call[T]) -> Call[T]:
        """Have `call` run on the loop when the thread is shut down, after the last call. From any thread.

        Several run one after the other, the last added first.

        Raises:
            RuntimeError: The thread was shut down.
        """
        with self._lock:
            if self._phase in (_Phase.CLOSING, _Phase.CLOSED):
                raise self._refusal()
            self._adopt(call)
            self._shutdown_calls.append(call)
        return call

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, wait for those that run, run the shutdown calls, and end the thread. From any thread.

        In the loop's own thread it asks for all that and returns at once.

        Args:
            cancel: Cancel the calls that run, and wait for their clean-up.
            timeout: Seconds to wait for the thread's end; None for as long as it takes.

        Returns:
            False if the thread had not ended by then.

        Raises:
            TypeError, ValueError: `timeout` is not a number, or is negative. Then nothing was done.
        """
        timeout = check_timeout(timeout)
        self._close(cancel)
        return self._join(timeout)

    def _close(self, cancel: bool) -> None:
        with self._lock:
            if cancel:
                self._cancel_at_end = True
            if self._phase is _Phase.NEW:
                self._phase = _Phase.CLOSED
                for call in self._shutdown_calls:
                    call.cancel()
            elif self._phase is _Phase.RUNNING:
                self._phase = _Phase.CLOSING
            loop = self._loop
        if cancel:
            # Synchronous code, which blocks the loop. What it suspended is cancelled by the loop.
            for target in list(self._record._stack if self._record is not None else ()):
                if isinstance(target, Call):
                    target.cancel()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wake_main)
            except RuntimeError:
                pass  # it has ended

    def _calls(self) -> list[Call[Any]]:
        starting = [] if self._starting is None else [self._starting]
        return [*starting, *self._inbox, *filter(None, map(call_of, self._running)), *self._shutdown_calls]

    def _close_in_child(self) -> None:
        if self._bell is not None:
            self._bell.close_in_child()
        if self._loop is not None:
            close_descriptors(self._loop)

    def _main(self, ready: concurrent.futures.Future[None]) -> None:
        interruptible_thread().ends_its_greenlets = True
        try:
            self._run(ready)
        except BaseException as exc:
            if ready.done():
                raise
            # The starter gets it, and may try again. It holds our lock meanwhile.
            self._loop = None
            ready.set_exception(exc)
        finally:
            drop_idle_greenlets()

    def _run(self, ready: concurrent.futures.Future[None]) -> None:
        runner = asyncio.Runner(loop_factory=self._loop_factory or _factory_beside_a_gui())
        loop: Any = runner.get_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"loop_factory must return a new event loop, not {type(loop).__name__}")
        if loop.is_closed() or loop.is_running():
            raise ValueError("loop_factory must return a new event loop, not one that runs or is closed")
        try:
            with runner:
                serve = loop.create_task(self._serve(loop, ready))
                try:
                    while not serve.done():
                        try:
                            loop.run_until_complete(serve)
                        except (KeyboardInterrupt, SystemExit):
                            # asyncio lets these out of the loop, too, when a task raises them; who awaits the task gets
                            # them. A Ctrl-C in what was sent back must not end the calls of all others.
                            continue
                finally:
                    if ready.done():
                        with self._lock:
                            self._phase = _Phase.CLOSED
        finally:
            if ready.done():
                self._over()

    def _over(self) -> None:
        # Also when the loop died of something: what waits here would wait for ever.
        with self._lock:
            self._loop = None
            if self._bell is not None:
                self._bell.close()
            left, self._inbox = list(self._inbox), deque()
        for call in [*left, *self._shutdown_calls]:
            call.cancel()
        self._shutdown_calls.clear()

    async def _serve(self, loop: asyncio.AbstractEventLoop, ready: concurrent.futures.Future[None]) -> None:
        self._loop = loop
        self._bell = _Bell(loop, self._drain)
        self._record = interruptible_thread()
        self._ending = asyncio.Event()
        ready.set_result(None)
        await self._ending.wait()
        self._drain(at_once=False)
        await self._finish_calls()
        for call in reversed(self._shutdown_calls):
            start_on_loop(call, loop, self._running)
            if self._running:
                await asyncio.wait(list(self._running))
        with self._lock:
            self._phase = _Phase.CLOSED
        # Calls that came in the last moment. They too are waited for: the Runner would cancel them in their clean-up.
        await self._finish_calls()

    async def _finish_calls(self) -> None:
        while self._running:
            if self._cancel_at_end:
                for task in list(self._running):
                    _cancel_call_of(task)
                while self._running:
                    await asyncio.wait(list(self._running))
                break
            self._ending.clear()
            stop = asyncio.ensure_future(self._ending.wait())  # woken by a shutdown(cancel=True) after a patient one
            await asyncio.wait([*self._running, stop], return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()

    def _wake_main(self) -> None:
        self._ending.set()

    def _check_wait(self, call: Call[Any]) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it runs on the loop of this very thread, "
                f"{self._name!r}, which the wait blocks. In asynchronous code, await the call"
            )


def _cancel_call_of(task: asyncio.Task[None]) -> None:
    # Through the call, if that can be: it is interrupted once, and not by others, too, in the middle of its clean-up.
    if (call := call_of(task)) is None:
        task.cancel()
    else:
        call.cancel()


class _Bell:
    """Has an event loop call a function soon, from any thread, at less cost than ``call_soon_threadsafe``.

    That makes a handle and a copy of the context each time, and reads the loop's own socket until it is empty. An
    eventfd (Linux) is read once, and its handle is made once. Elsewhere, and on loops without `add_reader`, it is
    ``call_soon_threadsafe``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fn: Callable[[], object]) -> None:
        self._loop = loop
        self._fn = fn
        self._context = contextvars.Context()  # one for all times
        # Against a write to a number that is another file's meanwhile. Reentrant: a signal handler may submit.
        self._lock = threading.RLock()
        self._fd: int | None = None
        if hasattr(os, "eventfd"):
            try:
                fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                return  # no more files may be open
            try:
                self._context.run(loop.add_reader, fd, self._answer)
                self._fd = fd
            except NotImplementedError:  # the loop waits for no files
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise

    def ring(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)
                return
        try:
            self._loop.call_soon_threadsafe(self._fn, context=self._context)
        except RuntimeError:
            pass  # the loop is closed

    def _answer(self) -> None:
        assert self._fd is not None
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return  # a task whose KeyboardInterrupt left the loop was before us, and the loop has looked anew since
        self._fn()

    def close_in_child(self) -> None:
        # Without the lock, which a thread may hold that does not exist there.
        if self._fd is not None:
            os.close(self._fd)

    def close(self) -> None:
        """After the loop's end, or before; in its thread."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
            os.close(fd)


class LoopPortal(Portal):
    """A loop that runs already, in whatever thread: calls run on it as tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "an event loop") -> None:
        self._loop = loop
        self._name = name
        self._running: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def submit(self, call: Call[T]) -> Call[T]:
        self._adopt(call)
        try:
            # Raises RuntimeError if the loop is closed.
            self._loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:
            self._give_back(call)
            raise
        return call

    def _start(self, call: Call[Any]) -> None:
        start_on_loop(call, self._loop, self._running, at_once=True)

    def _check_wait(self, call: Call[Any]) -> None:
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it runs on the loop of this very thread, which the "
                "wait blocks. In asynchronous code, await the call"
            )


def _run_alone(call: Call[Any]) -> None:
    """Run a call in a thread that runs no loop."""
    rest = call._run_submitted()
    del call  # this frame may be in the traceback of its exception
    if rest is not None:
        # Playwright's sync API leaves its loop behind as the one that runs. It stands still: nobody would run the rest.
        left_behind = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            asyncio.run(rest)
        finally:
            rest.close()  # where no loop could be made
            asyncio._set_running_loop(left_behind)


def _cancel_all(inbox: queue.SimpleQueue[Call[Any] | None]) -> None:
    """Cancel what waits in a thread that takes no more calls."""
    try:
        while True:
            if (call := inbox.get_nowait()) is not None:
                call.cancel()
    except queue.Empty:
        pass


# --- the global loop -------------------------------------------------------------------------------------------------

_globals_lock = threading.RLock()
_global_loop: EventLoopThread | None = None


@undisturbed
def get_global_loop() -> EventLoopThread:
    """The `EventLoopThread` of the process, started on demand, and anew if it was shut down or died.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import Call, get_global_loop
        >>> get_global_loop().submit(Call.new(asyncio.sleep, 0.01, "slept")).result()
        'slept'
    """
    global _global_loop
    portal = _global_loop
    if portal is not None and portal._phase is _Phase.RUNNING:
        return portal
    with _globals_lock:
        portal = _global_loop
        if portal is None or (portal._phase is not _Phase.NEW and not portal.running()):
            portal = _global_loop = EventLoopThread(name="ipyportal-loop")
        return portal.start()  # which raises a Ctrl-C that came meanwhile


def in_global_loop() -> bool:
    """True in the thread of the global loop.

    Example:
        >>> from ipyportal.concurrency import from_sync, in_global_loop
        >>> in_global_loop(), from_sync.call_in_loop_thread(in_global_loop)
        (False, True)
    """
    portal = _global_loop
    return portal is not None and portal.thread is threading.current_thread()


def wait_for_global_loop_exit(timeout: float | None = None) -> bool:
    """Shut the global loop down, cancelling what runs there, and wait for its end, `timeout` seconds at most.

    The next call that needs one starts another.

    Returns:
        False if it had not ended by then.

    Raises:
        RuntimeError: Called in the global loop's thread.
        TypeError, ValueError: `timeout` is not a number, or is negative.

    Example:
        >>> import asyncio
        >>> from ipyportal.concurrency import create_call, from_sync, wait_for_global_loop_exit
        >>> call = from_sync.call_soon_in_loop_thread(create_call(asyncio.sleep, 60))
        >>> wait_for_global_loop_exit(timeout=5)
        True
        >>> call.cancelled()
        True
    """
    global _global_loop
    if in_global_loop():
        raise RuntimeError("the global loop's own thread cannot wait for that thread's end")
    timeout = check_timeout(timeout)
    with _globals_lock:
        portal, _global_loop = _global_loop, None
    return portal is None or portal.shutdown(cancel=True, timeout=timeout)


# --- worker threads with names ---------------------------------------------------------------------------------------

_workers: dict[str, WorkerThread] = {}


def get_worker_thread(name: str) -> WorkerThread:
    """The `WorkerThread` of the process that goes by `name`: the same each time. From any thread.

    For objects that belong to the thread that made them. ``%%thread --name db`` runs in ``get_worker_thread("db")``.
    It is started by its first call, and made anew if it was shut down.

    Args:
        name: Any text that is not empty.

    Raises:
        TypeError, ValueError: `name` is no such text.

    Example:
        >>> import sqlite3
        >>> from ipyportal.concurrency import Call, get_worker_thread
        >>> thread = get_worker_thread("db")
        >>> db = thread.submit(Call.new(sqlite3.connect, ":memory:")).result()  # refuses any other thread
        >>> thread.submit(Call.new(lambda: db.execute("select 1 + 1").fetchone())).result()
        (2,)
        >>> thread.submit(Call.new(db.close)).result()
    """
    if not isinstance(name, str):
        raise TypeError(f"a worker thread's name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError('a worker thread needs a name: get_worker_thread("db")')
    with _globals_lock:
        worker = _workers.get(name)
        if worker is None or worker._phase in (_Phase.CLOSING, _Phase.CLOSED):
            worker = _workers[name] = WorkerThread(name=f"ipyportal-{name}")
        return worker


# --- threads lent for a call -----------------------------------------------------------------------------------------


class _LentThread(Portal):
    """A thread of the pool. It runs one call at a time, and is idle, in the pool, in between."""

    _counter = itertools.count(1)

    def __init__(self, pool: _Lender) -> None:
        self._name = f"ipyportal-thread-{next(self._counter)}"
        self._pool = pool
        self._inbox: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._ended = False
        self.current: Call[Any] | None = None
        self.thread = threading.Thread(target=self._main, name=self._name, daemon=True)

    @property
    def name(self) -> str:
        return self._name

    def submit(self, call: Call[T]) -> Call[T]:
        self._adopt(call)
        self.current = call
        self._inbox.put(call)
        if self._ended:
            # A shutdown came between the choice of this thread and here. Either its end found the call, or we do.
            _cancel_all(self._inbox)
        return call

    def stop(self) -> None:
        self._inbox.put(None)

    def _main(self) -> None:
        interruptible_thread().ends_its_greenlets = True
        try:
            self._serve()
        finally:
            self._pool.all.discard(self)
            self._ended = True
            _cancel_all(self._inbox)
            drop_idle_greenlets()

    def _serve(self) -> None:
        inbox, pool = self._inbox, self._pool
        # Ends: an idle thread is told to when it has been idle for long, and at shutdown.
        while True:
            try:
                call = inbox.get(timeout=pool.IDLE)
            except queue.Empty:
                if pool.retire(self):
                    return
                continue
            if call is None:
                return
            _run_alone(call)
            # Not before: the callbacks of the call run here, too, and may wait for a call in a new thread.
            self.current = None
            del call
            if pool.closed:
                return
            if asyncio._get_running_loop() is not None:
                return  # the call left it behind, and the next call would be refused a loop of its own
            pool.idle.append(self)


class _Lender:
    """Threads that are lent for one call each: as many as there are calls at one time."""

    IDLE = 10.0  # seconds after which an idle thread ends

    def __init__(self) -> None:
        self.closed = False
        self.idle: deque[_LentThread] = deque()
        self.all: set[_LentThread] = set()

    @undisturbed
    def submit(self, call: Call[T]) -> Call[T]:
        try:
            lent = self.idle.pop()
        except IndexError:
            lent = _LentThread(self)
            self.all.add(lent)
            try:
                start_thread(lent.thread)
            except BaseException:  # interrupted: it may have started, and nobody knows it
                self.all.discard(lent)
                lent.stop()
                raise
        lent.submit(call)
        if self.closed:
            # A shutdown came meanwhile. Either it saw the thread and its call, or the call is nobody's to end.
            call.cancel()
        return call

    def retire(self, lent: _LentThread) -> bool:
        """Take an idle thread out of the pool. False if it has just been lent."""
        try:
            self.idle.remove(lent)
        except ValueError:
            return False
        return True

    def stop(self) -> list[threading.Thread]:
        """Cancel what runs, and end the threads; gives those that are about to."""
        # Who adds a thread later finds the flag.
        self.closed = True
        threads = list(self.all)
        self.idle.clear()
        for lent in threads:
            if (call := lent.current) is not None:
                call.cancel()
            lent.stop()
        return [lent.thread for lent in threads]


_lender = _Lender()


def submit_to_new_thread(call: Call[T]) -> Call[T]:
    """Run `call` in a thread that it shares with no other call meanwhile. From any thread.

    Threads whose call is over are lent again; one that was idle for 10 seconds ends.
    """
    return _lender.submit(call)


# --- the end, and forks ----------------------------------------------------------------------------------------------


def shutdown(timeout: float | None = 5.0) -> None:
    """End the engine's shared threads: the global loop, workers, the clock. What they run is cancelled.

    From a thread that is none of them. They start anew when they are needed again; at the interpreter's exit this is
    done by itself.

    Args:
        timeout: Seconds to wait for all of them together; None for as long as it takes.

    Raises:
        RuntimeError: Called in the global loop's thread.
        TypeError, ValueError: `timeout` is not a number, or is negative.

    Example:
        >>> import threading
        >>> from ipyportal.concurrency import from_sync, shutdown
        >>> thread = from_sync.call_in_loop_thread(threading.current_thread)
        >>> shutdown()
        >>> thread.is_alive()
        False
    """
    global _lender, _global_loop
    if in_global_loop():
        raise RuntimeError("the global loop's own thread cannot wait for that thread's end")
    timeout = check_timeout(timeout)
    with _globals_lock:
        lender, _lender = _lender, _Lender()
        loop, _global_loop = _global_loop, None
        portals: list[_ThreadPortal] = [*_workers.values()]
        _workers.clear()
    if loop is not None:
        portals.append(loop)
    _end(portals, lender, timeout)


def _end(portals: list[_ThreadPortal], lender: _Lender, timeout: float | None) -> None:
    """Cancel what runs there, in all of them before the first is waited for."""
    for portal in portals:
        portal.shutdown(cancel=True, timeout=0)
    threads = [*lender.stop(), *(portal.thread for portal in portals)]
    until = None if timeout is None else time.monotonic() + timeout
    for thread in threads:
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            # Ends after what is left of `timeout`, whatever runs there.
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
    clock.stop()


def _at_exit() -> None:
    """Before the interpreter goes away under them: also threads that were not shut down run their clean-ups."""
    _end(list(_threads), _lender, 1.0)


def _before_threads_are_joined() -> None:
    """The interpreter is about to wait for threads that are no daemons: for their calls, and not for more of them."""
    for portal in list(_threads):
        if not portal._daemon and portal._phase is _Phase.RUNNING:
            portal.shutdown(timeout=0)


def _after_fork() -> None:
    # Only the thread that forked lives on here, and locks may be held by threads that do not exist.
    global _globals_lock, _global_loop, _lender
    calls = [lent.current for lent in _lender.all if lent.current is not None]
    _globals_lock = threading.RLock()
    _global_loop = None
    _lender = _Lender()
    interruption._after_fork()
    for portal in list(_threads):
        calls += portal._calls()
        portal._close_in_child()
        portal._reset()
    leave_to_parent(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

atexit.register(_at_exit)
# CPython 3.9 to 3.14, as `concurrent.futures` uses it. Without it, such a thread keeps the interpreter until it is shut
# down.
if (_register_atexit := getattr(threading, "_register_atexit", None)) is not None:
    _register_atexit(_before_threads_are_joined)
