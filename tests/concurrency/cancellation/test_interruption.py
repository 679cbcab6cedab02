"""Synchronous code that runs an event loop of its own, and is cancelled while it does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest

from ipyportal.concurrency import Call, Cancelled, EventLoopThread, WorkerThread, cancel_sync_after
from ipyportal.concurrency.cancellation import interruption
from ipyportal.concurrency.cancellation.delivery import innermost_frame
from ipyportal.concurrency.cancellation.frames import uninterruptible
from ipyportal.concurrency.cancellation.interruption import thread_state
from tests.concurrency.helpers import PATIENCE, Gate, python, soon, spin, until

LONG = 30.0


def in_main(fn: Callable[[], Any], begun: Gate) -> None:
    with cancel_sync_after(None) as scope:
        canceller = threading.Thread(target=lambda: (begun.pass_through(), scope.cancel()))
        canceller.start()
        try:
            fn()
        finally:
            canceller.join()


def in_worker(fn: Callable[[], Any], begun: Gate) -> None:
    with WorkerThread() as worker:
        call = worker.submit(Call.new(fn))
        begun.pass_through()
        call.cancel()
        call.result()


everywhere = pytest.mark.parametrize("cancelled", [in_main, in_worker])


def with_run(main: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(main)


def with_run_until_complete(main: Coroutine[Any, Any, Any]) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


def with_uvloop(main: Coroutine[Any, Any, Any]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


@pytest.fixture(scope="module", params=[with_run, with_run_until_complete, with_uvloop])
def way(request: pytest.FixtureRequest) -> Any:
    if request.param is with_uvloop:
        request.getfixturevalue("uvloop")
    return request.param


@everywhere
def test_its_main_task_is_cancelled_and_its_clean_up_runs(
    cancelled: Callable[..., Any], way: Callable[..., Any]
) -> None:
    begun = Gate()
    cleaned = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(begun.set)
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(True)

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(lambda: way(main()), begun)
    assert cleaned == [True]


@everywhere
def test_a_task_that_spins_in_it_does_not_take_the_request_for_its_own(
    cancelled: Callable[..., Any], way: Callable[..., Any]
) -> None:
    # The race: the loop does not get to the request, so the exception is raised where the loop is: in a task that is
    # not the main one, and whose cancellation a task group takes for a task that is done.
    begun = Gate()
    ended: list[str] = []

    async def busy() -> None:
        begun.set()
        try:
            spin()
        except asyncio.CancelledError:
            ended.append("busy")
            raise

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(busy())
                group.create_task(asyncio.sleep(LONG))
        finally:
            ended.append("main")

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(lambda: way(main()), begun)
    assert ended == ["busy", "main"]


@everywhere
def test_a_main_task_that_spins_is_cancelled_once(cancelled: Callable[..., Any]) -> None:
    begun = Gate()
    cleaned = []

    async def main() -> None:
        begun.set()
        try:
            spin()
        finally:
            for _ in range(10):  # where a second request would hit
                await asyncio.sleep(0.001)
            cleaned.append(True)

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(lambda: asyncio.run(main()), begun)
    assert cleaned == [True]


@everywhere
def test_a_loop_without_a_main_task_is_woken_and_left(cancelled: Callable[..., Any]) -> None:
    begun = Gate()
    left = []

    def forever() -> None:
        loop = asyncio.new_event_loop()
        loop.call_soon(begun.set)
        try:
            loop.run_forever()
        finally:
            left.append(True)
            loop.close()

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(forever, begun)
    assert left == [True]


@everywhere
def test_code_that_cancels_a_loop_at_its_end_goes_on_or_is_cancelled_but_never_waits(
    cancelled: Callable[..., Any], often: None
) -> None:
    # The race: the loop ends between the look for it and the callback, which then never runs.
    for _ in range(30):
        begun = Gate()
        over = []

        async def main(begun: Gate) -> None:
            begun.set()
            await asyncio.sleep(0)

        def work(begun: Gate, over: list[bool]) -> None:
            asyncio.run(main(begun))
            over.append(True)
            spin()

        with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
            cancelled(lambda begun=begun, over=over: work(begun, over), begun)


def test_the_loop_below_the_code_is_not_the_one_that_it_runs(loop_thread: EventLoopThread) -> None:
    begun = Gate()

    async def bystander() -> str:
        await asyncio.sleep(0.1)
        return "unharmed"

    def work() -> None:
        begun.set()
        with cancel_sync_after(None) as scope:
            threading.Timer(0.02, scope.cancel).start()
            time.sleep(0.05)
            for _ in range(10_000_000):
                pass

    other = loop_thread.submit(Call.new(bystander))
    call = loop_thread.submit(Call.new(work))
    with soon(), pytest.raises(concurrent.futures.CancelledError):
        call.result()
    assert other.result() == "unharmed"


class Fiber:
    """A loop that runs in a greenlet for as long as it is open, as that of Playwright's sync API does."""

    def __init__(self) -> None:
        greenlet = pytest.importorskip("greenlet")
        self._getcurrent = greenlet.getcurrent
        self.loop = asyncio.new_event_loop()
        self._closing = self.loop.create_future()
        self._fiber = greenlet.greenlet(lambda: self.loop.run_until_complete(self._closing))

    def wait_for(self, coro: Coroutine[Any, Any, Any]) -> Any:
        here = self._getcurrent()
        task = self.loop.create_task(coro)

        def resume(_: object) -> None:
            here.switch()

        task.add_done_callback(resume)
        try:
            while not task.done():
                assert not self._fiber.dead, "the loop has ended"
                self._fiber.switch()
        except BaseException:
            task.remove_done_callback(resume)
            task.cancel()
            raise
        return task.result()

    def close(self) -> str:
        closed = "dead"
        if not self._closing.done():
            self._closing.set_result("closed as always")
        while not self._fiber.dead:
            closed = self._fiber.switch()
        asyncio._set_running_loop(None)
        self.loop.close()
        return str(closed)


@everywhere
def test_code_that_waits_for_a_loop_in_another_greenlet_is_interrupted_and_that_loop_lives(
    cancelled: Callable[..., Any],
) -> None:
    begun = Gate()
    seen: list[Any] = []

    async def long() -> None:
        try:
            begun.set()
            await asyncio.sleep(LONG)
        finally:
            seen.append("cancelled")

    def work() -> None:
        fiber = Fiber()
        try:
            fiber.wait_for(asyncio.sleep(0))
            fiber.wait_for(long())
        finally:
            try:
                seen.append(fiber.wait_for(asyncio.sleep(0, "usable")))
            finally:
                seen.append(fiber.close())

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(work, begun)
    assert seen == ["cancelled", "usable", "closed as always"]


@everywhere
def test_a_loop_in_the_greenlet_of_the_code_itself_is_that_codes_own(cancelled: Callable[..., Any]) -> None:
    greenlet = pytest.importorskip("greenlet")
    begun = Gate()
    cleaned = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(begun.set)
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaned.append(True)

    def work() -> None:
        asyncio.run(main())

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        greenlet.greenlet(lambda: cancelled(work, begun)).switch()
    assert cleaned == [True]


@everywhere
def test_code_whose_module_has_no_name_is_interrupted(cancelled: Callable[..., Any]) -> None:
    begun = Gate()

    def work() -> None:
        exec("begun.set()\nspin()", {"__name__": 5, "begun": begun, "spin": spin})

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(work, begun)


@everywhere
def test_an_interrupt_waits_until_a_thread_that_is_being_started_has_begun(
    cancelled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The race: the interrupt comes when `threading` has noted a new thread, and has not started it.
    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
    start = getattr(threading, name)
    begun = Gate()
    ran: list[bool] = []
    new = threading.Thread(target=ran.append, args=(True,))

    def work() -> None:
        record = thread_state()

        def start_late(*args: Any, **kwargs: Any) -> Any:
            if thread_state() is record:
                begun.set()
                until(record.cancel_pending)
                for _ in range(10):  # where it would be raised
                    time.sleep(0.01)
            return start(*args, **kwargs)

        monkeypatch.setattr(threading, name, start_late)
        new.start()
        spin()

    with soon(), pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        cancelled(work, begun)
    new.join()
    assert ran == [True]


def test_no_thread_stands_still_for_ever_when_garbage_is_collected_while_one_is_looked_for() -> None:
    # The race, in CPython 3.11 to 3.11.8: who cancels asks the interpreter where all threads are; a garbage collection
    # begins in the middle of that, and gives other threads a turn; one of them begins or ends.
    done = python("""
        import gc, sys, threading, time
        from concurrent.futures import CancelledError
        from ipyportal.concurrency import Call, WorkerThread

        def begin_threads():
            while not stop.is_set():
                threading.Thread(target=int).start()

        def spin():
            while True:
                pass

        stop = threading.Event()
        beginning = threading.Thread(target=begin_threads, daemon=True)
        beginning.start()
        gc.callbacks.append(lambda *what: time.sleep(0))  # another thread's turn
        gc.set_threshold(1)
        sys.setswitchinterval(1e-5)
        with WorkerThread() as worker:
            for number in range(60):
                call = worker.submit(Call.new(spin))
                while not call.running():
                    time.sleep(0)
                call.cancel()
                try:
                    call.result(10)
                except CancelledError:
                    print(end=".")
        stop.set()
        beginning.join()
        print(gc.isenabled())
    """)
    assert (done.stdout, done.stderr) == (60 * "." + "True\n", "")


def test_a_look_at_a_thread_enables_no_garbage_collection_that_was_disabled() -> None:
    def look() -> bool:
        frame = innermost_frame(threading.get_ident())
        assert frame is not None
        assert frame.f_back is sys._getframe()
        return gc.isenabled()

    assert look()
    gc.disable()
    try:
        assert not look()
    finally:
        gc.enable()


def test_an_interrupt_is_not_sent_to_where_the_thread_has_gone_since_it_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The race: the thread stands in code that may be interrupted, and is in code that may not be when it is sent.
    looked, moved, over = threading.Event(), Gate(), threading.Event()
    torn = []
    is_delicate = interruption.is_delicate

    def look(frame: FrameType | None) -> bool:
        answer = is_delicate(frame)
        if threading.current_thread() is threading.main_thread() and not over.is_set():
            if not looked.is_set():
                assert not answer
                looked.set()
                moved.pass_through()
            else:
                time.sleep(0.05)  # the thread goes on, and would be hit, until what was sent is taken back
        return answer

    @uninterruptible
    def go_on_elsewhere() -> None:
        try:
            moved.set()
            while not over.is_set():
                pass
        except asyncio.CancelledError:
            torn.append(True)
            raise

    def work() -> None:
        begun.set()
        while not looked.is_set():
            pass
        go_on_elsewhere()
        spin()

    begun = Gate()
    monkeypatch.setattr(interruption, "is_delicate", look)
    with soon(), WorkerThread() as worker:
        call = worker.submit(Call.new(work))
        begun.pass_through()
        call.cancel()
        over.set()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
    assert torn == []


class Freed:
    def __del__(self) -> None:
        raise Cancelled


class Forgotten(dict[Any, Any]):
    def __delitem__(self, key: Any) -> None:
        raise Cancelled


def finalized() -> object:
    return Freed()


HOLDER: Any = weakref.WeakKeyDictionary()
HOLDER.data = Forgotten()  # what its callback deletes from


def weakly_held() -> object:
    held = threading.Event()
    HOLDER[held] = True
    return held


class Watcher:
    """One of the callbacks of the garbage collector, as those that measure how long that takes."""

    def __init__(self, raises: bool) -> None:
        self.raises = raises

    def tell(self, phase: str, info: dict[str, int]) -> None:
        if self.raises:
            self.raises = False
            raise Cancelled


def collected() -> object:
    gc.disable()  # but when it is asked for
    gc.callbacks.append(Watcher(True).tell)
    return None


@pytest.fixture
def collector() -> Iterator[None]:
    callbacks = gc.callbacks[:]
    yield
    gc.callbacks[:] = callbacks
    gc.enable()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("make", [finalized, weakly_held, collected])
def test_an_interrupt_that_arrives_in_a_finalizer_is_sent_again(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The race: it is sent to code in which an object is about to be freed, and arrives at the entry of its finalizer.
    begun, dropped = Gate(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))

    def arrive(ident: int, frame: FrameType | None, exception: type[BaseException]) -> bool:
        monkeypatch.setattr(interruption, "send_in_frame", send)
        sent.set()
        return True

    def work() -> None:
        thing = make()
        begun.set()
        while not sent.is_set():
            pass
        del thing
        gc.collect()
        spin()

    sent = threading.Event()
    send = interruption.send_in_frame
    monkeypatch.setattr(interruption, "send_in_frame", arrive)
    with soon(), WorkerThread() as worker:
        call = worker.submit(Call.new(work))
        begun.pass_through()
        call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
    assert dropped == [Cancelled]


@pytest.mark.usefixtures("collector")
def test_an_interrupt_is_not_sent_to_a_callback_of_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, dropped, looks = Gate(), [], []
    is_delicate = interruption.is_delicate
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))

    def look(frame: FrameType | None) -> bool:
        looks.append(is_delicate(frame))
        return looks[-1]

    def tell(phase: str, info: dict[str, int]) -> None:
        begun.set()
        while len(looks) < 3:
            pass

    def work() -> None:
        gc.disable()  # but when it is asked for
        gc.callbacks.append(tell)
        gc.collect()
        spin()

    monkeypatch.setattr(interruption, "is_delicate", look)
    with soon(), WorkerThread() as worker:
        call = worker.submit(Call.new(work))
        begun.pass_through()
        call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
    assert looks[:2] == [True, True]
    assert dropped == []


def test_a_task_in_which_an_interrupt_was_raised_is_not_kept(loop_thread: EventLoopThread) -> None:
    task: list[weakref.ref[Any]] = []
    begun = Gate()

    def work() -> None:
        task.append(weakref.ref(asyncio.current_task()))
        begun.set()
        spin()

    call = loop_thread.submit(Call.new(work))
    begun.pass_through()
    call.cancel()
    until(call.done)
    loop_thread.submit(Call.new(int)).result(PATIENCE)  # the step is over

    def is_gone() -> bool:
        gc.collect()
        return task[0]() is None

    until(is_gone)


AFTER_A_CANCEL = """
import asyncio, sys, threading, time
from ipyportal import run
from ipyportal.concurrency import cancel_sync_after, shield

def work():
    with cancel_sync_after(0.02):
        with shield():
            time.sleep(0.06)
        run(asyncio.sleep(60))

def called():
    pass

try:
    run(work, on="thread")
except TimeoutError:
    print("timed out")
sys.setprofile(lambda *event: None)
called()
sys.setprofile(None)
print("went on")
"""


def test_code_can_be_traced_after_a_cancel_that_was_told_by_a_wait() -> None:
    # In CPython 3.11, code that is profiled or traced stood still for ever: the exception that was sent to the thread
    # had been taken back by a null pointer, as the wait was to tell the cancel.
    result = python(AFTER_A_CANCEL)
    assert result.stdout == "timed out\nwent on\n", result.stderr
