"""Threads that submit, cancel, wait, send back, time out, shut down and start anew at random, against a simple model.

Here all calls end by themselves within milliseconds, and threads hit the engine as fast as they can: thousands of
orders of events in a second, but no order can be told from its seed, and a cancel or a deadline that is lost goes
unnoticed.
For that, and for callbacks, scopes, shields and forks, see `test_state_machine`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import faulthandler
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ipyportal.concurrency import (
    Call,
    EventLoopThread,
    State,
    WorkerThread,
    from_async,
    from_sync,
    get_global_loop,
    get_worker_thread,
    shutdown,
)
from tests.concurrency.helpers import PATIENCE
from tests.reliability import model


class Watched(model.Watched):
    """A call of one of a few kinds, all of which end by themselves."""

    def __init__(self, kind: str, number: int, storm: Storm) -> None:
        self.kind = kind
        self.storm = storm
        super().__init__(getattr(self, kind), number)

    def may_end_as(self, state: State) -> bool:
        if state is State.CANCELLED:
            return self.cancelled or self.storm.shut_down
        if state is State.TIMEDOUT:
            return self.timed
        if state is State.FAILED:
            return self.kind == "fail" or self.storm.shut_down
        return self.kind != "fail"

    def quick(self) -> int:
        self.begun += 1
        self.cleaned_up += 1
        return self.number

    def spin(self) -> int:
        try:
            try:
                self.begun = 1
                model.spend(0.002)
                return self.number
            finally:
                self.cleaned_up = 1
        finally:  # the one interrupt may come anywhere, also in the clause above
            self.cleaned_up = 1

    async def sleep(self) -> int:
        self.begun += 1
        try:
            try:
                await asyncio.sleep(0.002)
                return self.number
            except asyncio.CancelledError:
                self.interrupted += 1
                raise
            finally:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self.interrupted += 1
                    raise
        finally:
            self.cleaned_up += 1

    async def back(self) -> int:
        self.begun += 1
        try:
            try:
                sent = from_async.call_soon_in_waiting_thread(lambda: self.number)
            except RuntimeError:  # nobody waits
                return self.number
            return await sent
        finally:
            self.cleaned_up += 1

    def nested(self) -> int:
        try:
            try:
                self.begun = 1
                return from_sync.wait_for_call_in_new_thread(lambda: self.number)
            finally:
                self.cleaned_up = 1
        finally:
            self.cleaned_up = 1

    async def fail(self) -> int:
        self.begun += 1
        self.cleaned_up += 1
        await asyncio.sleep(0)
        raise ZeroDivisionError


KINDS = ["quick", "spin", "sleep", "back", "nested", "fail"]


class Storm:
    """One run: `threads` threads do `steps` random things each."""

    def __init__(self, seed: int, threads: int = 3, steps: int = 12, shutdowns: bool = True) -> None:
        self.seed = seed
        self.steps = steps
        self.portals: list[Any] = [EventLoopThread(), WorkerThread()]
        self.replacing = threading.Lock()
        self.watched: list[Watched] = []
        self.errors: list[BaseException] = []
        self.shut_down = False
        self.shutdowns = shutdowns
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"seed {self.seed}: a thread hangs"
        for portal in self.portals:
            assert portal.shutdown(timeout=PATIENCE), f"seed {self.seed}: {portal!r} does not end"
        if self.errors:
            raise self.errors[0]
        for watched in list(self.watched):
            if not watched.refused:
                concurrent.futures.wait([watched.call.future], PATIENCE)
        deadline = time.monotonic() + PATIENCE
        # The callback runs after the waits have ended.
        while any(not one.refused and not one.told for one in self.watched) and time.monotonic() < deadline:
            time.sleep(0.001)
        for watched in self.watched:
            watched.check()

    def _run(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        try:
            for step in range(self.steps):
                self._step(chance, 1000 * number + step)
        except BaseException as exc:  # noqa: BLE001
            self.errors.append(exc)

    def _step(self, chance: random.Random, number: int) -> None:
        what = chance.random()
        if what < 0.55 or not self.watched:
            self._start(chance, number)
        elif what < 0.75:
            watched = chance.choice(self.watched)
            watched.cancelled = True
            watched.call.cancel()
        elif what < 0.97 or not self.shutdowns:
            watched = chance.choice(self.watched)
            if not watched.refused and watched.call.portal is not None:
                concurrent.futures.wait([watched.call.future], PATIENCE)
                assert watched.call.done()
        elif what < 0.985:
            self.shut_down = True
            shutdown()
        else:
            self.shut_down = True
            portal = chance.choice([0, 1])
            ended = self.portals[portal]
            ended.shutdown(cancel=True, timeout=PATIENCE)
            with self.replacing:
                if self.portals[portal] is ended:  # else one who has shut it down, too, has replaced it
                    self.portals.append(ended)
                    self.portals[portal] = [EventLoopThread, WorkerThread][portal]()

    def _start(self, chance: random.Random, number: int) -> None:
        watched = Watched(chance.choice(KINDS), number, self)
        if chance.random() < 0.3:
            watched.timed = True
            watched.call.set_timeout(chance.choice([0.0, 0.001, 0.002, 0.003, 5.0]))
        submit: Callable[[Call[Any]], Any] = chance.choice(
            [
                self.portals[0].submit,
                self.portals[1].submit,
                lambda call: get_global_loop().submit(call),
                lambda call: get_worker_thread("storm").submit(call),
                from_sync.call_soon_in_new_thread,
                from_sync.wait_for_call_in_loop_thread,
                from_sync.wait_for_call_in_new_thread,
                lambda call: asyncio.run(from_async.wait_for_call_in_loop_thread(call)),
                lambda call: asyncio.run(from_async.wait_for_call_in_new_thread(call)),
            ]
        )
        self.watched.append(watched)
        try:
            submit(watched.call)
        except (TimeoutError, concurrent.futures.CancelledError, asyncio.CancelledError, ZeroDivisionError):
            assert watched.call.done()
        except RuntimeError as exc:
            if "takes no more calls" not in str(exc):
                raise
            watched.refused = watched.call.portal is None
            watched.call.cancel()


@pytest.fixture
def watchdog() -> Any:
    """All stacks on stderr, if a test hangs."""
    faulthandler.dump_traceback_later(50, exit=False)
    yield
    faulthandler.cancel_dump_traceback_later()


# The interrupt may come when a function has just given its coroutine, which is then nobody's.
never_awaited = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")


@never_awaited
def test_no_call_is_lost_whatever_threads_do_at_once(often: None, watchdog: None) -> None:
    for seed in range(12):
        Storm(seed).run()


@never_awaited
@pytest.mark.storm
@pytest.mark.timeout(0)
def test_ten_thousand_storms(often: None) -> None:
    for seed in range(10_000):
        faulthandler.dump_traceback_later(60, exit=True)
        sys.setswitchinterval(random.Random(seed).choice([1e-6, 1e-5, 1e-4, 5e-3]))
        Storm(seed, threads=random.Random(seed).choice([2, 3, 5])).run()
    faulthandler.cancel_dump_traceback_later()
