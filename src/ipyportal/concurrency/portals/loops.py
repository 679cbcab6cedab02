"""`EventLoopThread`: a thread that runs an event loop; and `LoopPortal`, a loop that somebody else runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.calls.execution import Execution
from ipyportal.concurrency.calls.tasks import call_of, start_on_loop
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.cancellation.interruption import ThreadState, thread_state
from ipyportal.concurrency.portals.life import Phase, ThreadPortal
from ipyportal.concurrency.suspension.loop_internals import close_descriptors
from ipyportal.concurrency.suspension.steps import per_thread
from ipyportal.concurrency.suspension.suspending import drop_idle_greenlets

__all__ = ["EventLoopThread", "LoopPortal"]

T = TypeVar("T")


def _factory_beside_a_gui() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """asyncio's own, where the policy may be a GUI's, whose loops run in the GUI's thread alone; else None."""
    if sys.version_info >= (3, 14):
        return None  # policies are deprecated, and GUIs bring a `loop_factory`
    policy = asyncio.get_event_loop_policy()
    made_by = type(policy).new_event_loop.__module__.partition(".")[0]
    return None if made_by in ("asyncio", "uvloop", "winloop") else asyncio.DefaultEventLoopPolicy().new_event_loop


class EventLoopThread(ThreadPortal):
    """A thread with its own event loop, which runs calls as tasks of that loop.

    You can use it as a context manager. At the end of the block, it waits for the calls that were submitted. If the
    block raises an exception, it cancels them. Tasks that the calls left behind are cancelled.

    Args:
        name: The thread's name.
        daemon: If True, the interpreter may exit while calls run. They are then cancelled, and have a second to clean
            up. If False, the exit of the interpreter waits for the calls, and the thread ends.
        run_once: Take one call, and end when it is over.
        loop_factory: A function that makes the loop; ``uvloop.new_event_loop`` works. If None, it is
            `asyncio.new_event_loop`. If the event loop policy is not one of asyncio's, uvloop's or winloop's, it is
            asyncio's own default, because a GUI's policy (qasync's) makes loops that run only in the GUI's thread.

    If a call stops the loop (``loop.stop()``), the thread and all its calls end. The global loop is then made again
    when it is needed.

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
        self._waker: LoopWaker | None = None
        self._record: ThreadState | None = None

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
        return self._phase is Phase.RUNNING and self._thread is not None and self._thread.is_alive()

    def submit(self, call: Call[T]) -> Call[T]:
        if self._run_once:
            return self._submit_once(call)
        if self._phase is not Phase.RUNNING:
            self.start()
        self._claim(call)
        self._inbox.append(call)
        # One wake-up serves all calls that come before the loop has looked. `_drain` clears the flag before it
        # empties the inbox, so a call appended after it looked finds the flag cleared and wakes it again.
        if not self._woken:
            waker = self._waker
            try:
                self._woken = True
                if waker is not None:
                    waker.wake()
            except BaseException:
                # Ctrl-C in here. From now on others count on the loop having been woken.
                if waker is not None:
                    waker.wake()
                raise
        if self._phase is not Phase.RUNNING:
            # Shut down meanwhile. Either the last `_drain` has taken the call, or it is still here and nobody will.
            try:
                self._inbox.remove(call)
            except ValueError:
                pass
            else:
                self._unclaim(call)
                raise self._refusal()
        return call

    def _submit_once(self, call: Call[T]) -> Call[T]:
        """Take one call and no more, whoever else submits at the same time."""
        with self._lock:
            if self._phase is not Phase.RUNNING:
                self.start()
            self._claim(call)
            self._inbox.append(call)
            self._close(cancel=False)
        return call

    def _drain(self, *, at_once: bool = True) -> None:
        self._woken = False
        if self._phase is Phase.CLOSED:
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
            if self._phase in (Phase.CLOSING, Phase.CLOSED):
                raise self._refusal()
            self._claim(call)
            self._shutdown_calls.append(call)
        return call

    def shutdown(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more calls, wait for those that run, run the shutdown calls, and end the thread. From any thread.

        In the loop's own thread it asks for all that and returns at once.

        Args:
            cancel: Cancel the calls that run, and wait for their clean-up.
            timeout: Seconds to wait for the end of the thread; None for as long as it takes.

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
            if self._phase is Phase.NEW:
                self._phase = Phase.CLOSED
                for call in self._shutdown_calls:
                    call.cancel()
            elif self._phase is Phase.RUNNING:
                self._phase = Phase.CLOSING
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

    def _calls(self) -> list[Execution[Any]]:
        starting = [] if self._starting is None else [self._starting]
        return [*starting, *self._inbox, *filter(None, map(call_of, list(self._running))), *self._shutdown_calls]

    def _close_in_child(self) -> None:
        if self._waker is not None:
            self._waker.close_in_child()
        if self._loop is not None:
            close_descriptors(self._loop)

    def _main(self, ready: concurrent.futures.Future[None]) -> None:
        per_thread.here.ends_its_greenlets = True
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
                            self._phase = Phase.CLOSED
        finally:
            if ready.done():
                self._over()

    def _over(self) -> None:
        # Also when the loop died of something: what waits here would wait for ever.
        with self._lock:
            self._loop = None
            if self._waker is not None:
                self._waker.close()
            left, self._inbox = list(self._inbox), deque()
        for call in [*left, *self._shutdown_calls]:
            call.cancel()
        self._shutdown_calls.clear()

    async def _serve(self, loop: asyncio.AbstractEventLoop, ready: concurrent.futures.Future[None]) -> None:
        self._loop = loop
        self._waker = LoopWaker(loop, self._drain)
        self._record = thread_state()
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
            self._phase = Phase.CLOSED
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
                f"waiting here for {call!r} would never end: it has to run on the loop of this thread, "
                f"{self._name!r}, and the wait blocks this thread. In asynchronous code, await the call"
            )


def _cancel_call_of(task: asyncio.Task[None]) -> None:
    # Through the call, if that can be: it is interrupted once, and not by others, too, in the middle of its clean-up.
    if (call := call_of(task)) is None:
        task.cancel()
    else:
        call.cancel()


class LoopWaker:
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

    def wake(self) -> None:
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
        self._claim(call)
        try:
            # Raises RuntimeError if the loop is closed.
            self._loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:
            self._unclaim(call)
            raise
        return call

    def _start(self, call: Call[Any]) -> None:
        start_on_loop(call, self._loop, self._running, at_once=True)

    def _check_wait(self, call: Call[Any]) -> None:
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(
                f"waiting here for {call!r} would never end: it has to run on the loop of this thread, and the "
                "wait blocks this thread. In asynchronous code, await the call"
            )
