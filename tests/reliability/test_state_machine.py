"""The engine's life as a state machine of hypothesis, against the model of `tests.reliability.model`.

Here a call lasts until it is told to go on: nothing but a cancel, a deadline, a scope or a shutdown ends it before, so
that one of these which is lost is seen. Calls wait for calls and send calls back; they stand in scopes and shields;
callbacks raise or submit again; portals are shut down and made anew, processes forked. What some steps do is done by as
many threads at once, and a failure says which steps. For sheer numbers of events at once, see `test_interleavings`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ipyportal.concurrency import (
    Call,
    Cancelled,
    CancelScope,
    EventLoopThread,
    State,
    SyncWaiter,
    WorkerThread,
    cancel_async_after,
    cancel_sync_after,
    from_async,
    from_sync,
    get_global_loop,
    get_worker_thread,
    shield,
    shutdown,
)
from ipyportal.concurrency.cancellation.scopes import GRACE
from ipyportal.concurrency.greenlets import greenlets_available
from tests.concurrency.helpers import PATIENCE, until
from tests.conftest import open_files
from tests.reliability import model


class OnPurpose(Exception):
    """What a callback raises."""


# --- what a call does ------------------------------------------------------------------------------------------------

Where = Literal["loop", "worker", "global loop", "named worker", "new thread"]
OWN: list[Where] = ["loop", "worker"]
SHARED: list[Where] = ["global loop", "named worker", "new thread"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the function of a call does: one thing, perhaps around another."""

    do: Literal["return", "fail", "spin", "hold", "insist", "shield", "scope", "task", "callback", "wait", "back"]
    is_async: bool
    inner: Plan | None = None
    where: Where = "new thread"
    seconds: float | None = None

    def __repr__(self) -> str:
        mode = "async " if self.is_async else ""
        where = f" {self.where}" if self.do == "wait" else ""
        limit = "" if self.seconds is None else f" {self.seconds:g} s"
        return f"<{mode}{self.do}{where}{limit}{'' if self.inner is None else f' {self.inner}'}>"

    def fails(self) -> bool:
        """Whether the call itself does, and not one that it waits for."""
        if self.do in ("scope", "task", "callback"):
            return self.inner is not None and self.inner.fails()
        return self.do == "fail"

    def ends_by_itself(self) -> bool:
        if self.do in ("hold", "insist"):
            return False
        return self.seconds is not None or self.inner is None or self.inner.ends_by_itself()


TIMEOUTS = st.sampled_from([None, None, 0.0, 0.001, 0.003, 0.01])


@st.composite
def plans(draw: st.DrawFn, depth: int = 3, on_loop: bool = False, sent_back: bool = False) -> Plan:
    """A plan for a call of a thread with a loop or without; without greenlets nothing blocks a loop."""
    kinds = ["hold", "return", "fail", "spin", "insist", "shield"]
    if depth:
        # What is sent back cannot be waited for by what is sent back: both are run by one thread.
        kinds += ["wait", "scope"] if sent_back else ["wait", "back", "scope"]
        if on_loop and greenlets_available():
            kinds += ["task", "callback"]
    do = draw(st.sampled_from(kinds))
    is_async = do in ("hold", "insist", "task", "callback") or draw(st.booleans())
    if do in ("wait", "back", "scope") and on_loop and not greenlets_available():
        is_async = True
    if do == "wait":
        where: Where = draw(st.sampled_from(["global loop", "new thread"]))
        inner = draw(plans(depth - 1, on_loop=where == "global loop"))
        return Plan(do, is_async, inner, where, draw(TIMEOUTS))
    if do == "back":  # perhaps to a thread with a loop
        return Plan(do, is_async, draw(plans(depth - 1, on_loop=True, sent_back=True)))
    if do in ("task", "callback"):  # synchronous code of the call's own loop, which waits there
        inner = draw(plans(depth - 1, on_loop, sent_back).filter(lambda plan: not plan.is_async))
        return Plan(do, is_async, inner)
    if do == "scope":
        inner = draw(plans(depth - 1, on_loop, sent_back).filter(lambda plan: plan.is_async == is_async))
        return Plan(do, is_async, inner, seconds=draw(TIMEOUTS))
    return Plan(do, is_async)


class Root:
    """What the calls of one family share: when they may go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.released = False

    async def hold(self) -> None:
        loop, go_on = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self.released:
                return
            self._held.append((loop, go_on))
        await go_on.wait()  # no polling, which would hide a wake-up that is lost

    def release(self) -> None:
        with self._lock:
            self.released = True
            held, self._held = self._held, []
        for loop, go_on in held:
            with contextlib.suppress(RuntimeError):  # its call was cancelled, and the loop ended
                loop.call_soon_threadsafe(go_on.set)


class Work(model.Watched):
    """A call with a plan, and the calls that it makes."""

    def __init__(self, machine: Machine, number: int, plan: Plan, place: Place | None, parent: Work | None) -> None:
        self.machine = machine
        self.plan = plan
        self.place = place
        self.parent = parent
        self.root: Root = Root() if parent is None else parent.root
        self.inner: list[Work] = []
        self.scopes: list[CancelScope] = []
        self.scope_cancelled = False
        self.must_end = False  # it was asked to, after it had been submitted
        self.abandoned = False
        self.shielded = self.shielded_steps = 0
        self.after = 0
        self.over_at = 0.0
        super().__init__(self._run_async if plan.is_async else self._run_sync, number)
        self.call.name = repr(plan)
        machine.works.append(self)

    def _tell(self, call: Call[Any]) -> None:
        self.over_at = time.monotonic()
        if call.cancelled() or call.timedout():
            try:
                call.result()
            except (TimeoutError, concurrent.futures.CancelledError) as exc:
                self.abandoned = "could not be interrupted" in str(exc)
        super()._tell(call)
        if self.abandoned:
            self.over_before_clean_up = False

    def submitted(self) -> bool:
        return self.call.portal is not None

    def tell_after(self) -> None:
        self.after += 1

    # --- its function ---

    def _run_sync(self) -> int:
        try:
            try:
                self.begun = 1
                return self._sync(self.plan)
            finally:
                self.cleaned_up = 1
        finally:  # the one interrupt may come anywhere, also in the clause above
            self.cleaned_up = 1

    async def _run_async(self) -> int:
        self.begun += 1
        try:
            try:
                return await self._async(self.plan)
            except asyncio.CancelledError:
                # Else it may be that of a scope, or of a call that it waited for.
                self.interrupted += self.plan.do == "hold"
                raise
            finally:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self.interrupted += 1
                    raise
        finally:
            self.cleaned_up += 1

    def _make_inner(self, plan: Plan) -> Work:
        assert plan.inner is not None
        place = self.machine.places[plan.where] if plan.do == "wait" else None
        inner = Work(self.machine, self.number, plan.inner, place, self)
        inner.timed = plan.do == "wait" and plan.seconds is not None
        self.inner.append(inner)
        return inner

    def _sync(self, plan: Plan) -> int:
        if plan.do == "fail":
            raise ZeroDivisionError
        if plan.do == "spin":
            model.spend(0.001)
        elif plan.do == "shield":
            with shield():
                self.shielded += 1
                for _ in range(3):
                    model.spend(0.0002)
                    self.shielded_steps += 1
        elif plan.do == "scope":
            assert plan.inner is not None
            try:
                with cancel_sync_after(plan.seconds) as scope:
                    self.scopes.append(scope)
                    return self._sync(plan.inner)
            except TimeoutError:
                pass
        elif plan.do == "wait":
            inner = self._make_inner(plan)
            submit = (
                from_sync.wait_for_call_in_loop_thread
                if plan.where == "global loop"
                else from_sync.wait_for_call_in_new_thread
            )
            return submit(inner.call, plan.seconds, done_callbacks=[inner.tell_after])
        elif plan.do == "back":
            inner = self._make_inner(plan)
            try:
                sent = from_sync.call_soon_in_waiting_thread(inner.call)
            except RuntimeError:  # nobody waits
                return self.number
            return sent.result()
        return self.number

    async def _async(self, plan: Plan) -> int:
        if plan.do == "fail":
            await asyncio.sleep(0)
            raise ZeroDivisionError
        if plan.do == "spin":
            for _ in range(10):
                await asyncio.sleep(0)
        elif plan.do == "hold":
            await self.root.hold()
        elif plan.do == "insist":
            try:
                await self.root.hold()
            except asyncio.CancelledError:
                pass
        elif plan.do == "shield":
            with shield():
                self.shielded += 1
                for _ in range(3):
                    await asyncio.sleep(0)
                    self.shielded_steps += 1
        elif plan.do == "task":
            assert plan.inner is not None
            return await asyncio.create_task(self._in_a_task(plan.inner))
        elif plan.do == "callback":
            assert plan.inner is not None
            return await self._in_a_callback(plan.inner)
        elif plan.do == "scope":
            assert plan.inner is not None
            try:
                with cancel_async_after(plan.seconds) as scope:
                    self.scopes.append(scope)
                    return await self._async(plan.inner)
            except TimeoutError:
                pass
        elif plan.do == "wait":
            inner = self._make_inner(plan)
            submit = (
                from_async.wait_for_call_in_loop_thread
                if plan.where == "global loop"
                else from_async.wait_for_call_in_new_thread
            )
            return await submit(inner.call, plan.seconds, done_callbacks=[inner.tell_after])
        elif plan.do == "back":
            inner = self._make_inner(plan)
            try:
                sent = from_async.call_soon_in_waiting_thread(inner.call)
            except RuntimeError:  # nobody waits
                return self.number
            return await sent
        return self.number

    async def _in_a_task(self, plan: Plan) -> int:
        return self._sync(plan)

    async def _in_a_callback(self, plan: Plan) -> int:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[int] = loop.create_future()

        def callback() -> None:
            try:
                result = self._sync(plan)
            except BaseException as exc:  # noqa: BLE001 - the call's, if that still waits for it
                if not outcome.done():
                    outcome.set_exception(exc)
            else:
                if not outcome.done():
                    outcome.set_result(result)

        loop.call_soon(callback)
        return await asyncio.shield(outcome)

    # --- what may come of it ---

    def may_be_asked(self) -> bool:
        """Whether something may have asked it to end, other than its own deadline."""
        return (
            self.cancelled
            or self.scope_cancelled
            or (self.place is not None and self.place.cancelled)
            or (self.place is not None and self.place.shut_down and not self.begun)
            or (self.parent is not None and self.parent.may_have_given_up())
        )

    def may_have_given_up(self) -> bool:
        return self.timed or self.plan.do == "scope" or self.may_be_asked()

    def may_end_as(self, state: State) -> bool:
        inner = {one.call.state for one in self.inner}
        if state is State.CANCELLED:
            if self.plan.do == "insist" and self.begun and not self.interrupted and not self.abandoned:
                return False  # it was not in its clean-up yet
            return self.may_be_asked() or State.CANCELLED in inner
        if state is State.TIMEDOUT:
            return self.timed and self.call.deadline is not None and self.over_at >= self.call.deadline
        if state is State.FAILED:
            exc = self.call.exception()
            ended_by_themselves = (one for one in self.inner if one.call.done() and not one.call.cancelled())
            if any(one.call.exception() is exc for one in ended_by_themselves):
                return True
            if isinstance(exc, ZeroDivisionError):
                return self.plan.fails()
            if isinstance(exc, concurrent.futures.CancelledError):
                return State.CANCELLED in inner
            return "takes no more calls" in str(exc) and self.machine.places["global loop"].shut_down
        if self.plan.do == "fail":
            return False
        if self.plan.do == "hold":
            return self.root.released
        if self.plan.do == "wait":
            return inner == {State.FINISHED}
        if self.plan.do == "back":
            return inner in ({State.FINISHED}, {State.PENDING}, {State.CANCELLED})
        return True

    def must_end_now(self) -> bool:
        """Whether it must come to its end though nobody has released it."""
        if not self.submitted():
            return False
        if self.must_end:
            return True
        if self.place is not None and self.place.own and self.place.cancelled:
            return True
        return self.timed or (bool(self.begun) and self.plan.ends_by_itself())

    def was_lost_by_its_caller(self) -> bool:
        """Whether it was sent back by a caller that was interrupted while it did so."""
        return (
            self.call.state is State.PENDING
            and self.parent is not None
            and self.place is None
            and self.parent.may_have_given_up()
        )

    def is_over(self) -> bool:
        return self.call.done() and self.begun == self.cleaned_up

    def must_be_over(self) -> bool:
        return self.submitted() and not self.was_lost_by_its_caller()

    def check(self) -> None:
        if not self.must_be_over():
            assert self.begun == 0, str(self)
            return
        super().check()
        if self.shielded:
            assert self.shielded_steps == 3, f"{self} was interrupted in a shield"
        if self.place is not None and self.parent is not None:
            assert self.after == 1, f"{self} {self.after} callbacks of the wait"

    def __str__(self) -> str:
        return (
            f"{super().__str__()} interrupted {self.interrupted} asked {self.may_be_asked()} must {self.must_end} "
            f"released {self.root.released} of {self.parent} inner {[one.call for one in self.inner]}"
        )

    __repr__ = model.Watched.__str__


class Callback:
    """A done callback."""

    def __init__(self, machine: Machine, work: Work, what: str, place: Place) -> None:
        self.machine, self.work, self.what, self.place = machine, work, what, place
        self.told = 0

    def __call__(self, call: Call[Any]) -> None:
        assert call is self.work.call
        assert call.done()
        try:
            if self.what == "raises":
                raise OnPurpose
            if self.what == "submits again":
                self.machine.submit_now(Work(self.machine, self.work.number, Plan("return", False), self.place, None))
        finally:
            self.told += 1  # last: the machine's end waits for this, and then for what was submitted


class Place:
    """Where calls are submitted."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.own = where in OWN
        self.shut_down = self.cancelled = False
        self.portal: EventLoopThread | WorkerThread | None = None
        if where == "loop":
            self.portal = EventLoopThread("of the machine")
        elif where == "worker":
            self.portal = WorkerThread("of the machine")

    def submit(self, call: Call[Any]) -> None:
        if self.portal is not None:
            self.portal.submit(call)
        elif self.where == "global loop":
            get_global_loop().submit(call)
        elif self.where == "named worker":
            get_worker_thread("states").submit(call)
        else:
            from_sync.call_soon_in_new_thread(call)


# --- what is done ----------------------------------------------------------------------------------------------------

Together = st.booleans()


class Machine(RuleBasedStateMachine):
    """The rules. Each makes an action; those that go `together` with the next begin at once, each in a thread."""

    works_: Bundle[Work] = Bundle("works_")
    reported: list[Any]

    def __init__(self) -> None:
        super().__init__()
        faulthandler.dump_traceback_later(4 * PATIENCE)
        self.threads, self.files = set(threading.enumerate()), open_files()
        self.interval = sys.getswitchinterval()
        self.works: list[Work] = []
        self.callbacks: list[Callback] = []
        self.places: dict[Where, Place] = {where: Place(where) for where in (*OWN, *SHARED)}
        self.old_places: list[Place] = []
        self.together: list[tuple[Callable[[], None], bool]] = []
        self.actors: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.history: list[str] = []
        del Machine.reported[:]

    @initialize(interval=st.sampled_from([1e-6, 1e-5, 1e-4, 5e-3]))
    def set_switch_interval(self, interval: float) -> None:
        sys.setswitchinterval(interval)

    def do(self, action: Callable[[], None], what: str, together: bool, blocks: bool = False) -> None:
        """Do it, and what has waited for it. The step is over when those that do not block are."""
        self.history.append(f"{what}, together with" if together else what)
        self.together.append((action, blocks))
        if not together or len(self.together) == 4:
            with self.explained():
                self.do_together()

    def do_together(self) -> None:
        actions, self.together = self.together, []
        if not actions:
            return
        start = threading.Barrier(len(actions), timeout=10)

        def act(action: Callable[[], None]) -> None:
            try:
                start.wait(PATIENCE)
                action()
            except BaseException as exc:  # noqa: BLE001
                self.errors.append(exc)

        threads = [threading.Thread(target=act, args=(action,), name="actor", daemon=True) for action, _ in actions]
        for thread in threads:
            thread.start()
        for thread, (_, blocks) in zip(threads, actions, strict=True):
            if blocks:
                self.actors.append(thread)
            else:
                self.join(thread)
        self.raise_errors()

    def join(self, thread: threading.Thread) -> None:
        thread.join(PATIENCE)
        if thread.is_alive():
            faulthandler.dump_traceback()
            raise AssertionError("an action hangs")

    def raise_errors(self) -> None:
        if self.errors:
            raise self.errors[0]

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say what was done, also where hypothesis does not: because it is not seen again."""
        try:
            yield
        except BaseException as exc:
            exc.add_note("\n".join(["What was done:", *self.history, "What became of it:", *map(str, self.works)]))
            raise

    # --- calls ---

    def submit_now(self, work: Work) -> None:
        assert work.place is not None
        try:
            work.place.submit(work.call)
        except RuntimeError as exc:
            self.refuse(work, exc)

    def refuse(self, work: Work, exc: RuntimeError) -> None:
        """A portal refuses calls if it was shut down, and for no other reason."""
        assert work.place is not None
        if "takes no more calls" not in str(exc) or not work.place.shut_down:
            raise exc
        assert not work.submitted(), work
        work.call.cancel()

    def make(self, plan: Plan, where: Where, timeout: float | None) -> Work:
        work = Work(self, len(self.works), plan, self.places[where], None)
        work.timed = timeout is not None
        work.call.set_timeout(timeout)
        return work

    @rule(target=works_, data=st.data(), where=st.sampled_from(OWN + SHARED), timeout=TIMEOUTS, together=Together)
    def submit(self, data: st.DataObject, where: Where, timeout: float | None, together: bool) -> Work:
        plan = data.draw(plans(on_loop="loop" in where))
        work = self.make(plan, where, timeout)
        self.do(lambda: self.submit_now(work), f"submit {work.number} {plan} to {where}, time-out {timeout}", together)
        return work

    @rule(
        target=works_,
        data=st.data(),
        where=st.sampled_from(["global loop", "new thread"]),
        timeout=TIMEOUTS,
        in_loop=st.booleans(),
        together=Together,
    )
    def submit_and_wait(
        self, data: st.DataObject, where: Where, timeout: float | None, in_loop: bool, together: bool
    ) -> Work:
        plan = data.draw(plans(on_loop=where == "global loop"))
        work = self.make(plan, where, None)
        work.timed = timeout is not None

        name = "wait_for_call_in_loop_thread" if where == "global loop" else "wait_for_call_in_new_thread"

        def wait() -> Any:
            waiting = getattr(from_async if in_loop else from_sync, name)(
                work.call, timeout, done_callbacks=[work.tell_after]
            )
            return asyncio.run(waiting) if in_loop else waiting

        def wait_or_be_refused() -> None:
            try:
                self.agree(work, wait)
            except RuntimeError as exc:
                if "has begun" in str(exc):  # a time-out for a call that was cancelled before
                    assert not work.submitted(), work
                else:
                    self.refuse(work, exc)
            assert work.after == work.submitted(), work

        self.do(
            wait_or_be_refused,
            f"submit {work.number} {plan} to {where} and wait, time-out {timeout}",
            together,
            blocks=True,
        )
        return work

    @rule(work=works_, through=st.sampled_from(["call", "future"]), together=Together)
    def cancel(self, work: Work, through: str, together: bool) -> None:
        work.cancelled = True

        def cancel() -> None:
            submitted = work.submitted()
            asked = work.call.cancel() if through == "call" else work.call.future.cancel()
            if submitted and asked:
                work.must_end = True

        self.do(cancel, f"cancel {work.number}", together)

    @rule(work=works_, together=Together)
    def cancel_scopes(self, work: Work, together: bool) -> None:
        work.scope_cancelled = True

        def cancel() -> None:
            for scope in list(work.scopes):
                scope.cancel()

        self.do(cancel, f"cancel the scopes of {work.number}", together)

    @rule(work=works_, together=Together)
    def release(self, work: Work, together: bool) -> None:
        self.do(work.root.release, f"release {work.number}", together)

    # --- waits ---

    def agree(self, work: Work, wait: Callable[[], Any]) -> None:
        """Whoever waits is given what the call came to."""
        call = work.call
        try:
            value = wait()
        except (asyncio.CancelledError, Exception) as exc:
            if call.cancelled():
                # Or the wait's own time-out came first.
                explained = isinstance(exc, (concurrent.futures.CancelledError, asyncio.CancelledError, TimeoutError))
            else:
                explained = call.done() and call.exception() is exc
            if not explained:
                raise
        else:
            assert call.state is State.FINISHED, work
            assert value == work.number, work

    @rule(
        work=works_,
        timeout=st.sampled_from([None, 0.0, 0.001, 0.01]),
        how=st.sampled_from(["result", "exception", "aresult", "wait", "waiter"]),
        together=Together,
    )
    def wait(self, work: Work, timeout: float | None, how: str, together: bool) -> None:
        call = work.call
        if how == "aresult" and timeout is not None:
            work.cancelled = True  # as a wait that is given up does

        async def aresult() -> Any:
            return await asyncio.wait_for(call.aresult(), timeout)

        def wait() -> None:
            if how == "wait":
                concurrent.futures.wait([call.future], timeout)
                assert timeout is not None or call.done(), work
                return
            if how == "waiter":  # a second one, it may be
                self.agree(work, lambda: SyncWaiter(call).wait().result())
                return
            try:
                if how == "result":
                    self.agree(work, lambda: call.result(timeout))
                elif how == "aresult":
                    self.agree(work, lambda: asyncio.run(aresult()))
                else:
                    with contextlib.suppress(concurrent.futures.CancelledError):
                        call.exception(timeout)
            except TimeoutError:
                assert timeout is not None, work

        self.do(
            wait,
            f"{how} of {work.number}, time-out {timeout}",
            together,
            blocks=timeout is None or how in ("aresult", "waiter"),
        )

    @rule(
        work=works_,
        what=st.sampled_from(["counts", "raises", "submits again"]),
        where=st.sampled_from(OWN + SHARED),
        together=Together,
    )
    def add_done_callback(self, work: Work, what: str, where: Where, together: bool) -> None:
        callback = Callback(self, work, what, self.places[where])
        self.callbacks.append(callback)
        self.do(lambda: work.call.add_done_callback(callback), f"callback of {work.number} that {what}", together)

    # --- ends and beginnings ---

    @rule(
        where=st.sampled_from(OWN), cancel=st.booleans(), timeout=st.sampled_from([None, 0.0, 0.01]), together=Together
    )
    def shut_down(self, where: Where, cancel: bool, timeout: float | None, together: bool) -> None:
        """Shut a portal of the machine down; another of its name takes its place."""
        place = self.places[where]
        portal = place.portal
        assert portal is not None
        place.shut_down = True
        place.cancelled = place.cancelled or cancel
        self.old_places.append(place)
        self.places[where] = Place(where)

        def shut_down() -> None:
            assert portal.shutdown(cancel=cancel, timeout=timeout) or timeout is not None

        self.do(shut_down, f"shut the {where} down, cancel {cancel}, time-out {timeout}", together, timeout is None)

    @rule(together=Together)
    def shut_all_down(self, together: bool) -> None:
        """Shut down what is shared; it starts anew with the next call."""
        self.do_together()
        for where in SHARED:
            self.places[where].shut_down = self.places[where].cancelled = True
        for work in list(self.works):
            if work.place is not None and not work.place.own and work.submitted() and not work.call.done():
                work.must_end = True
        self.do(shutdown, "shut all down", together)

    @precondition(lambda self: hasattr(os, "fork"))
    @rule(together=Together)
    def fork(self, together: bool) -> None:
        """What is in flight stays the parent's; in the child all portals start anew."""
        portals = [place.portal for place in self.places.values() if place.portal is not None]

        def fork() -> None:
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(int(PATIENCE))
                    assert from_sync.call_in_loop_thread(Call.new(asyncio.sleep, 0, 5)) == 5
                    assert from_sync.wait_for_call_in_new_thread(lambda: 6, timeout=PATIENCE) == 6
                    assert [portal.submit(Call.new(int, "7")).result() for portal in portals] == [7, 7]
                    status = 0
                except BaseException:  # noqa: BLE001
                    os.write(2, traceback.format_exc().encode())
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        self.do(fork, "fork", together)

    # --- the end ---

    def teardown(self) -> None:
        try:
            with self.explained():
                self.end()
        except BaseException:
            for work in list(self.works):  # so that the next example is not about these, too
                work.root.release()
                work.call.cancel()
            for place in [*self.old_places, *self.places.values()]:
                if place.portal is not None:
                    place.portal.shutdown(cancel=True, timeout=1)
            shutdown()
            raise
        finally:
            sys.setswitchinterval(self.interval)
            faulthandler.cancel_dump_traceback_later()

    def end(self) -> None:
        self.do_together()
        for work in list(self.works):
            if work.must_end_now():
                self.until(work.is_over, f"{work} does not end, and should")
        for work in list(self.works):
            work.root.release()
        for actor in self.actors:
            self.join(actor)
        self.until(self.all_is_over, "not all is over, or told")
        for place in [*self.old_places, *self.places.values()]:
            if place.portal is not None:
                assert place.portal.shutdown(timeout=PATIENCE), f"{place.portal} does not end"
        shutdown()
        self.raise_errors()
        for work in self.works:
            work.check()
        for callback in self.callbacks:
            assert callback.told == callback.work.call.done(), callback.work
        # The interpreter also reports an interrupt that arrived where it drops it, and from where it is sent again: in
        # `__del__`, and in the callbacks of weak collections and of the garbage collector (hypothesis has one). Any
        # other is a failure.
        dropping = ("__del__", "remove", "_remove")
        reported = [
            one
            for one in self.reported
            if not isinstance(one.exc_value, Cancelled)
            or not (getattr(one.object, "__name__", "") in dropping or one.object in gc.callbacks)
        ]
        raised = [one.exc_value for one in reported]
        assert all(isinstance(exc, OnPurpose) for exc in raised), [
            (one.err_msg, one.object, traceback.format_exception(one.exc_value)) for one in reported
        ]
        assert len(raised) == sum(one.told for one in self.callbacks if one.what == "raises")
        # Tasks are looked for when the whole test is over: each look goes through all objects.
        self.until(lambda: set(threading.enumerate()) <= self.threads, "threads are left")
        self.until(lambda: open_files().items() <= self.files.items(), "files are left open")
        for state in {work.call.state for work in self.works}:
            event(f"a call that ended as {state.value}")
        if any(work.abandoned for work in self.works):
            event(f"a call that was abandoned after {GRACE} s")

    def all_is_over(self) -> bool:
        known = list(self.works)
        works = [work for work in known if work.must_be_over()]
        callbacks = [one for one in self.callbacks if one.work.call.done()]
        over = all(one.is_over() for one in works) and all(one.told for one in [*works, *callbacks])
        return over and known == self.works  # else the callbacks have submitted others

    def until(self, condition: Callable[[], Any], text: str) -> None:
        try:
            until(condition)
        except AssertionError:
            faulthandler.dump_traceback()
            raise AssertionError(text) from None


@pytest.fixture
def machine(reported: list[Any], monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    monkeypatch.setattr(Machine, "reported", reported, raising=False)
    return Machine


@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited",  # an interrupt came when a function had just given its coroutine
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)
@pytest.mark.parametrize(
    "examples", [30, pytest.param(10_000, marks=[pytest.mark.storm, pytest.mark.timeout(0)])], ids=["short", "long"]
)
def test_every_call_ends_once_as_it_was_asked_to(examples: int, machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # A hang takes too long to be tried again in the time of a test. The long form finds the example in
            # hypothesis's database, and makes it small.
            phases=[Phase.reuse, Phase.generate] if examples < 1000 else [Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )
