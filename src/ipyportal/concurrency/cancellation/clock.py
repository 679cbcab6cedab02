"""Deadlines: what a time-out may be, and the clock that keeps those of synchronous code.

Deadlines are times of `time.monotonic()`, in seconds. Those of asynchronous code are timers of its loop. Those of
synchronous code are kept by one clock thread for the whole process, started when the first is set; no deadline ever
starts a thread of its own. Who is told that a deadline has ended a call is told in a second thread. In Pyodide, the
clock is a `LoopClock`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.cancellation.loop_clock import LoopClock
from ipyportal.concurrency.primitives import start_thread
from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.reporting import report

__all__ = ["Clock", "Timer", "check_timeout", "clock"]

__ipyportal_mark__ = Mark.WHOLE  # what waits for its lock would wait for ever

_LONGEST = 9e9
"""Seconds, 285 years: a deadline that is further away is none. The system's clocks overflow soon after."""


def check_timeout(timeout: float | None, what: str = "timeout") -> float | None:
    """`timeout` in seconds as a deadline's distance, or None for none; raises on what cannot be one.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not a number of seconds (NaN).
    """
    if timeout is None:
        return None
    if type(timeout) in (int, float) and 0 <= timeout <= _LONGEST:
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        try:
            if isinstance(timeout, bool):
                raise TypeError
            timeout = float(timeout.__float__())  # type: ignore[unreachable]  # numpy scalars, Fraction, Decimal
        except OverflowError:
            timeout = math.inf if timeout > 0 else -math.inf
        except (AttributeError, TypeError, ValueError):
            raise TypeError(f"{what} must be a number of seconds or None, not {type(timeout).__name__}") from None
    if timeout != timeout or timeout < 0:  # NaN is the one number that differs from itself
        raise ValueError(f"{what} must be 0 or more seconds, not {timeout!r}")
    return None if timeout > _LONGEST else float(timeout)


_PATIENCE = 0.05
"""Seconds that one done callback may hold up others, which are told by the same thread."""

_IDLE = 1.0
"""Seconds after which that thread ends if nobody is to be told, and the clock's own if there is no deadline."""

Timer = list[Any]
"""A deadline: its time, a number that orders equal times, and its function, which is None if it was cancelled."""


class Clock:
    """One thread that calls functions at their times. They are the engine's own, short, and never user code.

    One may end a call: those who are told of that are told in another thread, by `elsewhere`.
    """

    _FEW = 512  # timers that are not worth a look for those that were cancelled

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # Reentrant, because a signal handler on the thread that holds it may set a deadline.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._heap: list[Timer] = []
        self._most = self._FEW
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._ending = False  # the thread is to end when no deadline is left
        self._told: deque[Callable[[], object]] = deque()  # what is to be called elsewhere
        self._taken = 0  # how many of them were taken to be called
        self._look: Timer | None = None  # whether one of them takes long
        self._more_to_tell = threading.Condition(self._lock)
        self._teller: threading.Thread | None = None  # who calls that
        self.ident: int | None = None
        """The identity of the clock's thread."""

    def call_at(self, when: float, fn: Callable[[], object]) -> Timer:
        """Call `fn` at the time `when` of `time.monotonic()`, in seconds. From any thread."""
        timer: Timer = [when, next(self._order), fn]
        with self._lock:
            heap = self._heap
            if len(heap) > self._most:
                self._drop_cancelled()
                self._most = max(self._FEW, 2 * len(heap))
            heapq.heappush(heap, timer)
            if self._thread is None:
                thread = threading.Thread(target=self._main, name="ipyportal-clock", daemon=True)
                try:
                    start_thread(thread)
                except BaseException:
                    self.cancel(timer)  # nobody will
                    raise
                self._thread = thread
                self._ending = False
            elif heap[0] is timer:  # only an earliest deadline needs to wake the clock
                self._changed.notify()
        return timer

    def _drop_cancelled(self) -> None:
        self._heap[:] = [timer for timer in self._heap if timer[2] is not None]
        heapq.heapify(self._heap)

    @staticmethod
    def cancel(timer: Timer) -> None:
        """Have the function not called, and drop it. From any thread. The rest stays in the heap for a while."""
        timer[2] = None

    def remind(self, delay: float, fn: Callable[[], object]) -> Timer | None:
        """Call `fn` in `delay` seconds; not if the interpreter is ending, where no thread can be started any more."""
        try:
            return self.call_at(time.monotonic() + delay, fn)
        except RuntimeError:
            return None

    def elsewhere(self, fn: Callable[[], object]) -> None:
        """Call `fn` in another thread: the clock's own must not wait for what it does. In the clock's thread.

        One thread calls them all, one after the other. If one of them takes longer than `_PATIENCE`, those that
        follow get another thread.
        """
        with self._lock:
            self._told.append(fn)
            self._look_later()
            if self._teller is not None:
                self._more_to_tell.notify()
                return
            teller = self._teller = self._new_teller()
        self._start_teller(teller)

    def _new_teller(self) -> threading.Thread:
        return threading.Thread(target=self._tell, name="ipyportal-callbacks", daemon=True)

    def _start_teller(self, teller: threading.Thread) -> None:
        try:
            start_thread(teller)
        except RuntimeError:  # no thread can be started: better late than never
            self._teller = threading.current_thread()
            self._tell()

    def _tell(self) -> None:
        teller = threading.current_thread()
        while True:
            with self._lock:
                # Ends with something to tell, with the clock, or after a while.
                if not self._told and self._thread is not None:
                    self._more_to_tell.wait(_IDLE)
                if self._teller is not teller:
                    return  # another has taken over, or nobody is needed
                if not self._told:
                    self._teller = None
                    return
                fn = self._told.popleft()
                self._taken += 1
            try:
                fn()
            except BaseException as exc:  # noqa: BLE001 - those that follow are told all the same
                report(exc, "a done callback failed")
            del fn

    def _look_later(self) -> None:
        """Have the clock look whether who tells is held up. With the lock, in the clock's thread."""
        # Not if the clock was stopped meanwhile: that would start it anew, for good.
        if self._look is None and self._thread is threading.current_thread():
            taken = self._taken
            self._look = self.call_at(time.monotonic() + _PATIENCE, lambda: self._look_after(taken))

    def _look_after(self, taken: int) -> None:
        """Have another thread tell what is left, if none has been taken since."""
        with self._lock:
            self._look = None
            if not self._told:
                return
            teller = None
            if self._taken == taken:
                teller = self._teller = self._new_teller()
            self._look_later()
        if teller is not None:
            self._start_teller(teller)

    def _main(self) -> None:
        self.ident = threading.get_ident()
        while (timer := self._next()) is not None:
            fn, timer[2] = timer[2], None
            if fn is not None:
                try:
                    fn()
                except Exception as exc:  # noqa: BLE001 - a bug of the engine: say so, and keep the other deadlines
                    report(exc, "a deadline's function failed")
            del fn, timer

    def _next(self) -> Timer | None:
        with self._lock:
            # Not a flag: after a stop another thread may be the clock before this one has looked.
            while self._thread is threading.current_thread():
                # The waits end with an earlier deadline, with `stop`, at the earliest deadline, or after a while.
                if self._ending:
                    self._drop_cancelled()
                if not self._heap:
                    # After a while without deadlines the thread ends. Else one that was set just after `stop`, by a
                    # thread that was still ending, would keep it for ever.
                    if not self._ending and self._changed.wait(_IDLE):
                        continue
                    if self._heap or self._thread is not threading.current_thread():
                        continue  # that came as the wait ended
                    self._thread = self.ident = None
                    self._more_to_tell.notify_all()
                    break
                # One that was cancelled stays until its time: with it gone, the next to be set would be the earliest
                # again, and wake this thread again.
                timer = self._heap[0]
                delay = timer[0] - time.monotonic()
                if delay > 0:
                    self._changed.wait(min(delay, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._heap)
                if timer[2] is not None:
                    return timer
            return None

    def stop(self) -> None:
        """End the thread, when the deadlines that are left have been kept. The next one starts it anew.

        They are those of code that is nobody's here to end: in threads of the user's own, say.
        """
        with self._lock:
            if self._look is not None and not self._told:
                self.cancel(self._look)
                self._look = None
            self._drop_cancelled()
            thread = None
            if self._heap:
                self._ending = True
            else:
                thread, self._thread, self.ident = self._thread, None, None
            self._changed.notify_all()
            self._more_to_tell.notify_all()
        if thread is not None and thread is not threading.current_thread():
            # Ends: what the clock calls is short, and calls no user code.
            thread.join()


clock: Clock | LoopClock = LoopClock() if IN_PYODIDE else Clock()
