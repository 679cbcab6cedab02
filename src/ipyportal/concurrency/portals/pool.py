"""Threads that are lent for one call each, and lent again."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import deque
from typing import Any, TypeVar

from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.cancellation.frames import uninterruptible
from ipyportal.concurrency.portals.workers import cancel_all, run_alone
from ipyportal.concurrency.primitives import start_thread
from ipyportal.concurrency.suspension.steps import per_thread
from ipyportal.concurrency.suspension.suspending import drop_idle_greenlets

__all__ = ["ThreadPool"]

T = TypeVar("T")


class PooledThread(Portal):
    """A thread of the pool. It runs one call at a time, and is idle, in the pool, in between."""

    _counter = itertools.count(1)

    def __init__(self, pool: ThreadPool) -> None:
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
        self._claim(call)
        self.current = call
        self._inbox.put(call)
        if self._ended:
            # A shutdown came between the choice of this thread and here. Either its end found the call, or we do.
            cancel_all(self._inbox)
        return call

    def stop(self) -> None:
        self._inbox.put(None)

    def _main(self) -> None:
        per_thread.here.ends_its_greenlets = True
        try:
            self._serve()
        finally:
            self._pool.all.discard(self)
            self._ended = True
            cancel_all(self._inbox)
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
            run_alone(call)
            # Not before: the callbacks of the call run here, too, and may wait for a call in a new thread.
            self.current = None
            del call
            if pool.closed:
                return
            if asyncio._get_running_loop() is not None:
                return  # the call left it behind, and the next call would be refused a loop of its own
            pool.idle.append(self)


class ThreadPool(Portal):
    """Threads that are lent for one call each: as many as there are calls at one time."""

    IDLE = 10.0  # seconds after which an idle thread ends
    name = "a thread for itself"

    def __init__(self) -> None:
        self.closed = False
        self.idle: deque[PooledThread] = deque()
        self.all: set[PooledThread] = set()

    @uninterruptible
    def submit(self, call: Call[T]) -> Call[T]:
        try:
            lent = self.idle.pop()
        except IndexError:
            lent = PooledThread(self)
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

    def retire(self, lent: PooledThread) -> bool:
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
