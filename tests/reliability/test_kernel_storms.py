"""The stop button pressed at random moments, over every kind of cell, in one kernel that must live through it all.

Each cell ends with KeyboardInterrupt, or had ended before; whatever was opened in it is closed exactly once; the kernel
answers; and at the end it has no more tasks, threads and file descriptors than at the beginning.

The long form says what it measured: ``pytest -m storm -s tests/reliability``. A failure names the seed of its
moments, to be tried again with ``IPYPORTAL_SEED=...``.
"""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
import time
from dataclasses import dataclass, field

import pytest

from tests.notebook.kernel import Kernel, Pending

from .looks import OPEN_FILES

HANG = 30.0
"""Seconds after which a cell that was interrupted does not end any more. No measure of speed."""

PRELUDE = """
    import collections, concurrent.futures, contextlib, gc, os
    import ipyportal, ipywidgets
    from ipyportal import enter, iterate, patch_asyncio
    from ipyportal.concurrency.portals import pool

    pool.ThreadPool.IDLE = 0.5  # seconds after which idle threads end, which are counted at the end

    # Methods of C: an interrupt is seen after they have returned, and so never between what they do and what they say.
    # Loops are functions of their own: in CPython 3.13 a `try` does not cover the jump at the end of a loop.
    opened, closed = [], []
    open_, close = opened.append, closed.append

    async def work(seconds=60):
        me = object()
        try:
            open_(me)
            await asyncio.sleep(seconds)
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                close(me)

    async def group(seconds):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(work(seconds))
            await work(seconds)

    async def nested(depth, seconds):
        me = object()
        try:
            open_(me)
            return run(nested(depth - 1, seconds) if depth else work(seconds))
        finally:
            close(me)

    def repeat(wait, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            wait()

    def blocked(seconds=60, wait=lambda: time.sleep(0.001)):
        me = object()
        try:
            open_(me)
            repeat(wait, seconds)
        finally:
            close(me)

    def asleep(seconds):
        me = object()
        try:
            open_(me)
            time.sleep(seconds)
        finally:
            close(me)

    @contextlib.asynccontextmanager
    async def entered():
        me = object()
        try:
            open_(me)
            yield
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                close(me)

    class stream:
        def __init__(self, seconds):
            self.deadline = time.monotonic() + seconds
            self.opened = False

        def __aiter__(self):
            return self

        async def __anext__(self):
            self.opened = self.opened or open_(self) is None
            await asyncio.sleep(0.001)
            if time.monotonic() < self.deadline:
                return 1
            await self.aclose()
            raise StopAsyncIteration

        async def aclose(self):
            close(self)

    async def noop():
        pass

    async def in_a_task(seconds):
        run(work(seconds))

    class Beside:
        # A task and a timer that wait all the time. No interrupt is for them.
        waits, failures = 0, []

        def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.task = asyncio.create_task(self.in_a_task())
            self.in_a_timer()

        def wait(self):
            try:
                run(asyncio.sleep(0.002))
                self.waits += 1
            except BaseException as exc:
                self.failures.append(repr(exc))
                raise

        async def in_a_task(self):
            while True:
                self.wait()
                await asyncio.sleep(0.001)

        def in_a_timer(self):
            self.timer = self.loop.call_later(0.003, self.in_a_timer)
            self.wait()

        def end(self):
            self.task.cancel()
            self.timer.cancel()
            return self.waits, self.failures

    class Switch:
        on = False
    def library(seconds):
        return asyncio.run(work(seconds))

    button = ipywidgets.Button()
    @button.on_click
    def callback(_):
        print("begun")
        run(work(button_seconds))
    button_seconds = 60

    def left_open():
        counts = collections.Counter(map(id, opened))
        counts.subtract(map(id, closed))
        return sum(map(abs, counts.values()))

    def held():
        # By kind: the kernel's own tasks, for one, are new ones in each cell.
        gc.collect()
        tasks = collections.Counter(task.get_coro().__name__ for task in asyncio.all_tasks())
        threads = collections.Counter(thread.name.rstrip("0123456789") for thread in threading.enumerate())
        return {"tasks": dict(tasks), "threads": dict(threads), "files": dict(collections.Counter(open_files()))}
"""

# SECONDS is replaced by 60, or by some milliseconds: then the interrupt may come when the cell is ending or has ended.
CELLS = {
    "run": "run(work(SECONDS))",
    "run with a time-out": "run(work(SECONDS), timeout=60)",
    "await": "await work(SECONDS)",
    "run in an async cell": "await asyncio.sleep(0)\nrun(work(SECONDS))",
    "%await": "%await work(SECONDS)",
    "%%await": "%%await\nprint('begun')\nawait work(SECONDS)",
    "%%await on the loop thread": "%%await --on loop\nprint('begun')\nawait work(SECONDS)",
    "%%thread": "%%thread\nprint('begun')\nblocked(SECONDS)",
    "%%thread that runs a loop": "%%thread\nprint('begun')\nasyncio.run(work(SECONDS))",
    "%%thread that runs": "%%thread\nprint('begun')\nrun(work(SECONDS))",
    "%%thread with a name": "%%thread --name mine\nprint('begun')\nblocked(SECONDS)",
    "map of 100": "ipyportal.map(work, [SECONDS] * 100)",
    "map of 100, 7 at a time": "ipyportal.map(work, [SECONDS / 14] * 100, limit=7)",
    "map of 100 in threads": "ipyportal.map(blocked, [SECONDS / 8] * 100, limit=8)",
    "map in any order": "for _ in ipyportal.map.unordered(work, [SECONDS] * 100): pass",
    "await a gather": "await asyncio.gather(*(work(SECONDS) for _ in range(20)))",
    "gather": "run(asyncio.gather(*(work(SECONDS) for _ in range(20))))",
    "task group": "run(group(SECONDS))",
    "await a task group": "await group(SECONDS)",
    "nested 5 deep": "run(nested(5, SECONDS))",
    "tasks that wait": "run(asyncio.gather(*(in_a_task(SECONDS) for _ in range(5))))",
    "await tasks that wait": "await asyncio.gather(*(in_a_task(SECONDS) for _ in range(5)))",
    "await nested 5 deep": "await nested(5, SECONDS)",
    "on the loop thread": "run(work(SECONDS), on='loop')",
    "on the loop thread, in an async cell": "await asyncio.sleep(0)\nrun(work(SECONDS), on='loop')",
    "in a thread": "run(blocked, SECONDS, on='thread')",
    "patched": "with patch_asyncio():\n    library(SECONDS)",
    "patched, in an async cell": "await asyncio.sleep(0)\nwith patch_asyncio():\n    library(SECONDS)",
    "patched, the notebook's loop": (
        "with patch_asyncio():\n    asyncio.get_event_loop().run_until_complete(work(SECONDS))"
    ),
    "many short waits": "blocked(SECONDS, lambda: run(asyncio.sleep(0)))",
    "many short waits, in an async cell": "await asyncio.sleep(0)\nblocked(SECONDS, lambda: run(asyncio.sleep(0)))",
    "many waits that do not suspend": "blocked(SECONDS, lambda: run(noop()))",
    "many short trips": "blocked(SECONDS, lambda: run(asyncio.sleep(0), on='loop'))",
    "pure Python": "blocked(SECONDS, lambda: None)",
    "pure Python, in an async cell": "await asyncio.sleep(0)\nblocked(SECONDS, lambda: None)",
    "pure Python after a wait": "run(asyncio.sleep(0))\nblocked(SECONDS, lambda: None)",
    "time.sleep": "asleep(SECONDS)",
    "time.sleep, in an async cell": "await asyncio.sleep(0)\nasleep(SECONDS)",
    "enter": "with enter(entered()):\n    run(work(SECONDS))",
    "enter on the loop thread": "with enter(entered(), on='loop'):\n    run(work(SECONDS))",
    "iterate": "for _ in iterate(stream(SECONDS)): pass",
    "iterate on the loop thread": "for _ in iterate(stream(SECONDS), on='loop'): pass",
    "a callback, no cell": "CLICK",
    "a callback, and a cell": "CLICK run(work(SECONDS))",
    "a callback, and an async cell": "CLICK await work(SECONDS)",
}


@dataclass
class Measured:
    """Seconds from the interrupt to the cell's end, and from there to the answer to the next cell."""

    endings: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    uninterrupted: int = 0
    slowest: tuple[float, str] = (0.0, "")

    def report(self) -> str:
        def line(title: str, times: list[float]) -> str:
            cuts = statistics.quantiles(times, n=100)
            return (
                f"{title}: median {1000 * cuts[49]:.0f} ms, 90 % within {1000 * cuts[89]:.0f} ms, "
                f"99 % within {1000 * cuts[98]:.0f} ms, longest {1000 * max(times):.0f} ms"
            )

        return "\n".join(
            [
                f"{len(self.endings)} interrupts, {self.uninterrupted} of them too late for their cell",
                f"the slowest: {self.slowest[1]}",
                line("from the interrupt to the cell's end", self.endings),
                line("from there to the next cell's answer", self.answers),
            ]
        )


class Storm:
    TWICE = 0.15
    """How many are interrupted twice, the second time while the first one's clean-up may be going on."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel = kernel
        self.dice = random.Random(seed)
        self.measured = Measured()
        self.told = ""
        kernel.value(OPEN_FILES)
        kernel.value(PRELUDE)
        self.button = kernel.value("button.model_id")

    def begin(self, name: str, seconds: float) -> list[Pending]:
        """Start the cell (an endless one: until it runs), and click if it is one with a callback."""
        code = CELLS[name].replace("SECONDS", f"{seconds:g}")
        endless = seconds == 60
        pending = []
        click = code.startswith("CLICK")
        if click:
            code = code.removeprefix("CLICK").strip()
            self.kernel.value(f"button_seconds = {seconds:g}")
        if code:
            code = code if code.startswith("%%") else f"print('begun')\n{code}"
            pending.append(self.kernel.begin(code) if endless else self.kernel.execute_async(code))
        if click:
            pending.append(self.kernel.click(self.button))
            if endless:
                self.kernel.wait_for(pending[-1].stdout_so_far, HANG)
        return pending

    def strike(self, name: str) -> None:
        """Run a cell of this kind, and interrupt it at a random moment, once or twice."""
        dice, kernel = self.dice, self.kernel
        endless = dice.random() < 0.6
        delay = dice.random() * 0.05
        twice = dice.random() < self.TWICE
        seconds = 60 if endless else dice.random() * 0.05
        gap = dice.random() * 0.005
        self.told = f"{name!r} of {seconds:g} s interrupted after {1000 * delay:.1f} ms" + twice * (
            f", and again after {1000 * gap:.1f} ms"
        )
        pending = self.begin(name, seconds)
        time.sleep(delay)
        kernel.interrupt()
        begin = time.monotonic()
        if twice:
            time.sleep(gap)
            kernel.interrupt()
        replies = [one.reply(HANG) for one in pending]
        ended = time.monotonic()
        error = replies[0].error
        if error is not None:
            assert error.ename == "KeyboardInterrupt", error.traceback
        elif not CELLS[name].endswith("CLICK"):
            assert not endless, "it ended by itself"
            self.measured.uninterrupted += 1
        answer = kernel.execute("1", HANG)
        assert answer.result == "1", answer
        self.measured.endings.append(ended - begin)
        self.measured.slowest = max(self.measured.slowest, (ended - begin, self.told))
        self.measured.answers.append(time.monotonic() - ended)
        # After a second interrupt, what cleans up goes on by itself.
        deadline = time.monotonic() + HANG
        while (left := kernel.value("left_open()")) and twice and time.monotonic() < deadline:
            pass
        assert left == 0, f"{left} were opened and not closed, or closed twice"
        kernel.value("opened.clear(), closed.clear()")

    def run(self, count: int) -> None:
        names = list(CELLS)
        if importlib.util.find_spec("greenlet"):
            self.kernel.value("beside = Beside()")
        for name in names:  # each kind once, and only then is looked at what the kernel holds
            self.strike(name)
        before = self.kernel.value("held()")
        for number in range(count - len(names)):
            if number % len(names) == 0:
                self.dice.shuffle(names)
            self.strike(names[number % len(names)])
        self.told = f"after {count} interrupts"
        deadline = time.monotonic() + HANG
        while (grown := self.grown(before)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not grown
        if importlib.util.find_spec("greenlet"):
            waits, failures = self.kernel.value("beside.end()")
            assert failures == []
            assert waits > count

    def grown(self, before: dict[str, dict[str, int]]) -> list[str]:
        return [
            f"{count - before[kind].get(name, 0)} {kind}: {name}"
            for kind, counts in self.kernel.value("held()").items()
            for name, count in counts.items()
            if count > before[kind].get(name, 0)
        ]


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(60, marks=pytest.mark.timeout(240)),
        pytest.param(1000, marks=[pytest.mark.storm, pytest.mark.timeout(1200)]),
    ],
)
def test_a_kernel_lives_through_a_storm_of_interrupts(loaded_kernel: Kernel, count: int) -> None:
    seed = int(os.environ.get("IPYPORTAL_SEED", random.randrange(10**6)))
    storm = Storm(loaded_kernel, seed)
    try:
        storm.run(count)
    except BaseException as exc:
        exc.add_note(f"seed {seed}: {storm.told}")
        raise
    print(storm.measured.report())
