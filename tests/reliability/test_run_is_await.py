"""``run(x)`` means ``await x``, by comparison: random programs that wait, each run with `run` and with `await`.

A program is a tree of steps. Each part of a loop that waits (a task, a callback, a timer) stands there twice, once with
`run` in synchronous code and once with `await`, with futures of its own; both are told the same in the same turn of the
loop. What they see (values, exceptions, cancels and their count, context variables, the current task) must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ipyportal import patch_asyncio, run
from ipyportal.concurrency import EventLoopThread
from tests.concurrency.helpers import PATIENCE

pytest.importorskip("greenlet")

FUTURES = 3  # of each part


class OnPurpose(Exception):
    """What a future may be given."""


# --- programs --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do, perhaps around others."""

    do: Literal[
        "wait", "sleep", "coroutine", "shield", "limit", "task", "group", "gather", "catch", "finally", "var", "then"
    ]
    future: int = 0
    inner: tuple[Step, ...] = ()

    def __repr__(self) -> str:
        future = self.future if self.do in ("wait", "coroutine", "shield", "limit") else ""
        return f"{self.do}{future}{list(self.inner) or ''}"


_futures = st.integers(0, FUTURES - 1)
_leaves = st.one_of(
    st.builds(Step, st.sampled_from(["wait", "coroutine", "shield", "limit"]), _futures), st.just(Step("sleep"))
)
programs = st.recursive(
    _leaves,
    lambda steps: st.one_of(
        st.builds(Step, st.sampled_from(["task", "catch", "finally", "var"]), st.just(0), st.tuples(steps)),
        st.builds(Step, st.sampled_from(["group", "gather", "then"]), st.just(0), st.tuples(steps, steps)),
    ),
    max_leaves=6,
)

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


class Part:
    """Who does the steps: with `run`, or with `await`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # Of its own: a TaskGroup cancels its tasks in no certain order, and one would cancel what another waits for.
        self.futures: list[asyncio.Future[int]] = [loop.create_future() for _ in range(FUTURES)]
        self.parts: list[Part] = []
        self.seen: list[Any] = []
        self.is_a_task = False
        self.task: asyncio.Task[Any] | None = None

    def see(self, what: object) -> None:
        task = asyncio.current_task()
        cancelling = task.cancelling() if task and self.is_a_task else None  # a callback has none to compare
        self.seen.append((what, variable.get(), cancelling))

    def of(self, step: Step) -> Any:
        """What is awaited at a leaf."""
        future = self.futures[step.future]
        if step.do == "wait":
            return future
        if step.do == "sleep":
            return asyncio.sleep(0)
        if step.do == "coroutine":
            return self._through_a_coroutine(future)
        if step.do == "shield":
            return asyncio.shield(future)
        return self._limited(future)

    async def _through_a_coroutine(self, future: asyncio.Future[int]) -> int:
        await asyncio.sleep(0)
        variable.set(variable.get() + 10)  # which the caller sees, as that of a coroutine that is awaited
        return await future

    async def _limited(self, future: asyncio.Future[int]) -> int:
        async with asyncio.timeout(0):
            return await future

    async def _group(self, step: Step) -> None:
        async with asyncio.TaskGroup() as group:
            for inner in step.inner:
                group.create_task(self.part(inner))

    async def _gather(self, step: Step) -> None:
        await asyncio.gather(*(self.part(inner) for inner in step.inner))

    async def _task(self, step: Step) -> None:
        task = asyncio.create_task(self.part(step.inner[0]))
        try:
            await task
        finally:
            self.see(f"the task done {task.done()}")

    def part(self, step: Step) -> Coroutine[Any, Any, None]:
        """What does the step in a task beside this one, which sees what it sees for itself: their order is not ours."""
        part = type(self)()
        part.is_a_task = True
        self.parts.append(part)
        self.seen.append(part.seen)
        return part.main(step)

    def all_parts(self) -> Iterator[Part]:
        yield self
        for part in self.parts:
            yield from part.all_parts()

    async def main(self, step: Step) -> None:
        raise NotImplementedError


class ByAwait(Part):
    async def main(self, step: Step) -> None:
        self.task = asyncio.current_task()
        await self.do(step)

    async def do(self, step: Step) -> None:
        try:
            await self._do(step)
        except BaseException as exc:
            self.see(f"{step.do} raised {type(exc).__name__}")
            raise

    async def _do(self, step: Step) -> None:
        if step.do == "catch":
            try:
                await self.do(step.inner[0])
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
                self.see(f"caught {type(exc).__name__}")
        elif step.do == "finally":
            try:
                await self.do(step.inner[0])
            finally:
                await asyncio.sleep(0)
                self.see("finally")
        elif step.do == "var":
            token = variable.set(variable.get() + 1)
            try:
                await self.do(step.inner[0])
            finally:
                variable.reset(token)
        elif step.do == "then":
            for inner in step.inner:
                await self.do(inner)
        elif step.do == "group":
            await self._group(step)
        elif step.do == "gather":
            await self._gather(step)
        elif step.do == "task":
            await self._task(step)
        else:
            self.see(await self.of(step))


class ByRun(Part):
    async def main(self, step: Step) -> None:
        self.task = asyncio.current_task()
        self.do(step)

    def do(self, step: Step) -> None:
        task = asyncio.current_task()
        try:
            self._do(step)
        except BaseException as exc:
            self.see(f"{step.do} raised {type(exc).__name__}")
            raise
        finally:
            assert asyncio.current_task() is task

    def _do(self, step: Step) -> None:
        if step.do == "catch":
            try:
                self.do(step.inner[0])
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
                self.see(f"caught {type(exc).__name__}")
        elif step.do == "finally":
            try:
                self.do(step.inner[0])
            finally:
                run(asyncio.sleep(0))
                self.see("finally")
        elif step.do == "var":
            token = variable.set(variable.get() + 1)
            try:
                self.do(step.inner[0])
            finally:
                variable.reset(token)
        elif step.do == "then":
            for inner in step.inner:
                self.do(inner)
        elif step.do == "group":
            run(self._group(step))
        elif step.do == "gather":
            run(self._gather(step))
        elif step.do == "task":
            run(self._task(step))
        else:
            self.see(run(self.of(step)))


# --- what is done to them --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Action:
    """Something that is done in one turn of the loop, to both of two twins."""

    do: Literal["task", "callback", "timer", "result", "exception", "cancel future", "cancel"]
    which: int = 0
    part: int = 0
    future: int = 0
    program: Step = Step("sleep")

    def __repr__(self) -> str:
        if self.do in ("task", "callback", "timer"):
            return f"{self.do} {self.program}"
        return f"{self.do} {self.which}.{self.part}.{self.future}"


_beginnings = st.builds(Action, st.sampled_from(["task", "task", "callback", "timer"]), program=programs)
_actions = st.one_of(
    _beginnings,
    st.builds(
        Action,
        st.sampled_from(["result", "result", "exception", "cancel future", "cancel"]),
        st.integers(0, 5),
        st.integers(0, 5),
        _futures,
    ),
)
scripts = st.tuples(
    st.lists(_beginnings, min_size=1, max_size=4), st.lists(st.lists(_actions, min_size=1, max_size=4), max_size=8)
).map(lambda parts: [parts[0], *parts[1]])
"""Actions that are done in the same turn, in lists; between these, the loop comes to rest."""


class World:
    """All parts of one loop, and their twins."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.twins: list[tuple[ByRun, ByAwait]] = []
        self.running = 0

    async def play(self, script: list[list[Action]]) -> None:
        for together in script:
            for action in together:
                self.act(action)
            await self.rest()
            self.compare()
        # Whatever still waits gets what it waits for, the last that began first.
        for n in reversed(range(len(self.twins))):
            for part in itertools.count():
                if part >= len(list(self.twins[n][0].all_parts())):
                    break
                for future in range(FUTURES):
                    self.act(Action("result", n, part, future))
                await self.rest()  # it may begin others
        await asyncio.wait_for(self.all_over(), PATIENCE)
        self.compare()

    async def rest(self) -> None:
        await asyncio.sleep(0.002)
        for _ in range(60):
            await asyncio.sleep(0)

    async def all_over(self) -> None:
        while self.running:
            await asyncio.sleep(0.001)

    def compare(self) -> None:
        for by_run, by_await in self.twins:
            assert by_run.seen == by_await.seen

    def act(self, action: Action) -> None:
        if action.do in ("task", "callback", "timer"):
            twins = ByRun(), ByAwait()
            self.twins.append(twins)
            for part in twins:
                self.begin(part, action)
        elif self.twins:
            for twin in self.twins[action.which % len(self.twins)]:
                parts = list(twin.all_parts())
                self.do(parts[action.part % len(parts)], action)

    def begin(self, part: Part, action: Action) -> None:
        async def of_a_task() -> None:
            try:
                await part.main(action.program)
                part.see("over")
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
                part.see(f"over with {type(exc).__name__}")

        def as_a_callback() -> None:
            assert isinstance(part, ByRun)
            try:
                part.do(action.program)
                part.see("over")
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
                part.see(f"over with {type(exc).__name__}")
            finally:
                self.running -= 1

        self.running += 1
        if action.do == "task" or isinstance(part, ByAwait):
            task = self.loop.create_task(of_a_task())
            task.add_done_callback(self.is_over)
            if action.do == "task":
                part.is_a_task = True
                part.task = task
        elif action.do == "callback":
            self.loop.call_soon(as_a_callback, context=contextvars.copy_context())
        else:
            self.loop.call_later(0.0001, as_a_callback, context=contextvars.copy_context())

    def is_over(self, task: asyncio.Task[Any]) -> None:
        self.running -= 1

    def do(self, part: Part, action: Action) -> None:
        future = part.futures[action.future]
        if action.do == "cancel":
            if part.is_a_task and part.task is not None:
                part.task.cancel()
        elif future.done():
            pass
        elif action.do == "result":
            future.set_result(action.future)
        elif action.do == "exception":
            future.set_exception(OnPurpose())
            future.exception()
        else:
            future.cancel()


# --- the loops -------------------------------------------------------------------------------------------------------


def on_a_loop_of_its_own(play: Callable[[], Any]) -> None:
    asyncio.run(play())


def on_the_loop_thread(play: Callable[[], Any]) -> None:
    with EventLoopThread("of the twins") as thread:

        async def as_a_task() -> None:
            await asyncio.create_task(play())

        run(as_a_task, on=thread, timeout=PATIENCE)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("place", [on_a_loop_of_its_own, on_the_loop_thread])
@pytest.mark.parametrize(
    "examples", [40, pytest.param(1_000, marks=[pytest.mark.storm, pytest.mark.timeout(0)])], ids=["short", "long"]
)
def test_run_sees_what_await_sees(place: Callable[..., None], patched: bool, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate] if examples < 1000 else [Phase.reuse, Phase.generate, Phase.shrink],
    )
    @given(script=scripts)
    def play(script: list[list[Action]]) -> None:
        async def main() -> None:
            world = World(asyncio.get_running_loop())
            try:
                await world.play(script)
            except BaseException as exc:
                for n, twins in enumerate(world.twins):
                    exc.add_note(f"{n} by run {twins[0].seen}\n{n} by await {twins[1].seen}")
                raise

        place(main)

    with patch_asyncio() if patched else contextlib.nullcontext():
        play()
