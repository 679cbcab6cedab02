"""Turns on demand: any task and callback of asyncio's loops waits in synchronous code, and asyncio notices nothing."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import gc
import os
import random
import re
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipyportal import patch_asyncio, run
from ipyportal.concurrency import cancel_sync_after, shield, suspend
from ipyportal.concurrency.suspension.workers import greenlets
from tests.concurrency.helpers import NEST_ASYNCIO, PATIENCE, python, soon

pytest.importorskip("greenlet")

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


async def called_back(function: Callable[[], Any]) -> Any:
    """What `function` gives in a callback of the loop."""
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        try:
            outcome.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - it is raised where the test is
            outcome.set_exception(exc)

    asyncio.get_running_loop().call_soon(callback)
    return await outcome


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- what asyncio must not notice -----------------------------------------------------------------------------------


def test_nothing_is_left_in_the_loop_or_in_the_task() -> None:
    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        other = asyncio.create_task(asyncio.sleep(0))
        own = {name: getattr(other, name) for name in ("cancel", "cancelling", "uncancel")}
        waiting = asyncio.create_task(wait())
        await turns()
        assert "_run_once" in vars(loop)
        waiting.cancel()
        await asyncio.wait([waiting])
        await turns()
        assert "_run_once" not in vars(loop)
        for name, method in own.items():
            assert type(getattr(waiting, name)) is type(method) or name != "cancel"

    async def wait() -> None:
        try:
            suspend(asyncio.sleep(PATIENCE))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 1
            assert task.uncancel() == 0
            assert task.uncancel.__self__ is task  # type: ignore[attr-defined]

    asyncio.run(main())


def test_tasks_that_share_a_context_wait_at_once() -> None:
    async def main() -> list[str]:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        seen: list[str] = []

        async def sets(name: str) -> str:
            color.set(name)
            await turns()
            return color.get()

        async def call(name: str) -> str:
            return suspend(sets(name))

        # As ipykernel does it with all its messages.
        tasks = [loop.create_task(call(name), context=context) for name in ("red", "green")]
        loop.call_soon(lambda: seen.append(suspend(sets("blue"))), context=context)
        loop.call_soon(lambda: seen.append(color.get()), context=context)
        await asyncio.gather(*tasks)
        await turns(9)
        assert context[color] in ("red", "green", "blue")
        assert color.get() == "none"
        return seen

    assert len(asyncio.run(main())) == 2


@pytest.mark.parametrize("place", ["task", "callback"])
def test_what_is_awaited_runs_in_the_callers_context(place: str) -> None:
    async def sets() -> contextvars.Token[str]:
        token = color.set("red")
        await asyncio.sleep(0)
        return token

    def caller() -> tuple[str, str]:
        token = suspend(sets())
        inside = color.get()
        color.reset(token)
        return inside, color.get()

    async def main() -> Any:
        return caller() if place == "task" else await called_back(caller)

    assert asyncio.run(main()) == ("red", "none")


def test_code_in_a_context_of_its_own_keeps_it() -> None:
    own = contextvars.copy_context()

    async def sets() -> None:
        await asyncio.sleep(0)
        color.set("own")

    async def main() -> None:
        task = asyncio.create_task(outer())
        await turns()
        assert color.get() == "none"
        await task

    async def outer() -> None:
        color.set("outer")
        own.run(suspend, sets())
        assert color.get() == "outer"

    asyncio.run(main())
    assert own[color] == "own"


def test_the_current_task_is_the_callers_while_its_awaitable_runs_and_none_for_others() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []

        async def look() -> Any:
            loop.call_soon(lambda: seen.append(asyncio.current_task()))
            await turns()
            return asyncio.current_task()

        async def call() -> None:
            assert suspend(look()) is asyncio.current_task()

        await asyncio.create_task(call())
        assert seen == [None]

    asyncio.run(main())


@pytest.mark.parametrize("by_run", [True, False])
def test_who_waits_goes_on_in_the_turn_in_which_it_would_with_await(by_run: bool) -> None:
    # The first that waits does so on the loop's own stack. When it goes on, the rest of its turn is run there, in which
    # the others are to go on, too: they did so one turn later, after what was to come after them.
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(4)]
        order: list[str] = []

        async def wait(n: int) -> None:
            if by_run:
                run(futures[n])
            else:
                await futures[n]
            order.append(f"task {n}")
            loop.call_soon(order.append, f"after task {n}")

        tasks = [asyncio.create_task(wait(n)) for n in range(4)]
        await turns()
        for n in (0, 2, 1, 3):
            futures[n].set_result(None)
            loop.call_soon(order.append, f"after future {n}")
        await asyncio.wait(tasks)
        return order

    order = (0, 2, 1, 3)
    assert asyncio.run(main()) == [
        *(f"{what} {n}" for n in order for what in ("task", "after future")),
        *(f"after task {n}" for n in order),
    ]


def test_ctrl_c_reaches_the_code_for_which_the_rest_of_a_turn_stands_still() -> None:
    # That rest must not take the signal for itself, which it would lose.
    async def main() -> list[str]:
        first, second = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
        seen: list[str] = []

        async def on_the_loops_stack() -> None:
            run(first)

        async def for_whom_it_stands_still() -> None:
            run(second)
            try:
                signal.raise_signal(signal.SIGINT)
                seen.append("nothing")
            except KeyboardInterrupt:
                seen.append("Ctrl-C")

        tasks = [asyncio.create_task(on_the_loops_stack()), asyncio.create_task(for_whom_it_stands_still())]
        await turns()
        first.set_result(None)
        second.set_result(None)
        await asyncio.wait(tasks)
        return seen

    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == ["Ctrl-C"]
    finally:
        loop.close()


def test_what_a_task_refuses_is_refused_in_the_same_words() -> None:
    class Yields:
        def __init__(self, what: Any) -> None:
            self.what = what

        def __await__(self) -> Iterator[Any]:
            yield self.what

    other_loop = asyncio.new_event_loop()
    foreign = other_loop.create_future()

    async def texts(what: Any, awaited: bool) -> str:
        async def waits() -> None:
            await Yields(what() if callable(what) else what)

        async def suspends() -> None:
            suspend(waits())

        with pytest.raises(RuntimeError) as caught:
            await asyncio.create_task(waits() if awaited else suspends())
        return re.sub("<.*>", "<>", str(caught.value))

    async def main() -> None:
        foreign._asyncio_future_blocking = True
        for what in (5, (n for n in ()), asyncio.Future, foreign):
            assert await texts(what, False) == await texts(what, True)

    asyncio.run(main())
    other_loop.close()


def test_asyncio_s_debug_mode_calls_no_wait_slow(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0.03

        async def call() -> None:
            suspend(asyncio.sleep(0.06))

        await asyncio.create_task(call())
        await called_back(lambda: suspend(asyncio.sleep(0.06)))
        await turns()
        assert loop.slow_callback_duration == 0.03

    asyncio.run(main(), debug=True)
    assert "took" not in caplog.text


# --- cancels ---------------------------------------------------------------------------------------------------------


def test_a_cancel_is_told_once_and_counted_once() -> None:
    log: list[Any] = []

    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            suspend(asyncio.sleep(PATIENCE))
        except asyncio.CancelledError as exc:
            log.append((exc.args, task.cancelling()))
            await asyncio.sleep(0)  # a cancel that asyncio had noted would be raised here
            suspend(asyncio.sleep(0))
            log.append(task.cancelling())
            assert task.uncancel() == 0
            assert task.uncancel() == 0
            assert task.cancelling() == 0

    async def main() -> None:
        task = asyncio.create_task(call())
        await turns()
        task.cancel("why")
        await task
        assert not task.cancelled()

    asyncio.run(main())
    assert log == [(("why",), 1), 1]


def test_a_second_cancel_while_the_first_is_on_its_way_is_counted_and_told_with_it() -> None:
    async def call() -> int:
        try:
            suspend(asyncio.sleep(PATIENCE))
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()
        return 0

    async def main() -> int:
        task = asyncio.create_task(call())
        await turns()
        task.cancel()
        task.cancel()
        return await task

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize("other", [False, True])
def test_asyncio_s_timeout_tells_its_own_cancel_from_another(other: bool) -> None:
    async def call() -> str:
        try:
            async with asyncio.timeout(0.01):
                try:
                    suspend(asyncio.sleep(PATIENCE))
                finally:
                    if other:
                        task.cancel()
                    await asyncio.sleep(0 if not other else 0.001)
        except TimeoutError:
            return "timed out"
        except asyncio.CancelledError:
            return "cancelled"
        return "neither"

    async def main() -> str:
        nonlocal task
        task = asyncio.create_task(call())
        return await task

    task: asyncio.Task[str]
    assert asyncio.run(main()) == ("cancelled" if other else "timed out")


@pytest.mark.skipif(sys.version_info < (3, 13), reason="an older task cannot forget a cancel, and tells it twice")
def test_a_cancel_of_before_the_wait_is_told_once() -> None:
    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            suspend(asyncio.sleep(PATIENCE))
        await asyncio.sleep(0)
        assert task.cancelling() == 1

    asyncio.run(call())


def test_a_callback_is_ended_by_a_deadline_of_its_own() -> None:
    cleaned: list[int] = []

    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    def caller() -> None:
        with cancel_sync_after(0.01):
            suspend(work())

    with soon(), pytest.raises(TimeoutError):
        asyncio.run(called_back(caller))
    assert cleaned == [1]


def test_a_shield_in_a_callback_holds_its_deadline_back() -> None:
    slept: list[int] = []

    def caller() -> None:
        with cancel_sync_after(0.01), shield():
            suspend(asyncio.sleep(0.05))
            slept.append(1)

    with pytest.raises(TimeoutError):
        asyncio.run(called_back(caller))
    assert slept == [1]


def wild(seed: int) -> None:
    """Tasks and callbacks that wait, nested, and are cancelled at any time; what began ends, and in the same place."""
    rng = random.Random(seed)
    open_ones: collections.Counter[str] = collections.Counter()

    async def library(depth: int) -> None:
        open_ones["library"] += 1
        task = asyncio.current_task()
        color.set(f"{id(task)} {depth}")
        try:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
                assert asyncio.current_task() is task
            if depth:
                suspend(library(depth - 1))
        finally:
            open_ones["library"] -= 1
            await asyncio.sleep(0)

    async def in_a_task(depth: int) -> None:
        open_ones["task"] += 1
        task = asyncio.current_task()
        try:
            for _ in range(rng.randrange(3)):
                suspend(library(depth))
                assert asyncio.current_task() is task
                await asyncio.sleep(0)
        finally:
            open_ones["task"] -= 1
            await asyncio.sleep(0)

    def in_a_callback(depth: int) -> None:
        open_ones["callback"] += 1
        try:
            suspend(library(depth))
            assert asyncio.current_task() is None
        finally:
            open_ones["callback"] -= 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(in_a_task(rng.randrange(3))) for _ in range(15)]
        for _ in range(10):
            if rng.random() < 0.5:
                loop.call_soon(in_a_callback, rng.randrange(3))
            else:
                loop.call_later(rng.random() / 1000, in_a_callback, rng.randrange(3))
        while not all(one.done() for one in tasks):
            await asyncio.sleep(0)
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
        assert all(one.cancelled() or one.exception() is None for one in tasks)
        await asyncio.sleep(0.002)
        while open_ones.total():
            await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("patched", [False, True])
def test_waits_of_tasks_and_callbacks_end_in_any_order_whatever_is_cancelled(patched: bool) -> None:
    for seed in range(10):
        if patched:
            with patch_asyncio():
                wild(seed)
        else:
            wild(seed)


@pytest.mark.storm
@pytest.mark.timeout(600)
def test_waits_of_tasks_and_callbacks_end_in_any_order_in_a_storm() -> None:
    for seed in range(10, 1000):
        wild(seed)


# --- readers, signals ------------------------------------------------------------------------------------------------


def test_a_reader_that_waits_is_not_called_inside_of_itself() -> None:
    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        received: list[bytes] = []
        inside: list[int] = []
        ours, theirs = socket.socketpair()
        done = loop.create_future()

        def read() -> None:
            assert not inside
            inside.append(1)
            suspend(turns(5))  # what can be read is there all the time
            received.append(ours.recv(1))
            inside.clear()
            if len(received) == 3:
                loop.remove_reader(ours)
                done.set_result(None)

        with ours, theirs:
            ours.setblocking(False)
            loop.add_reader(ours, read)
            theirs.send(b"abc")
            await done
        return received

    assert asyncio.run(main()) == [b"a", b"b", b"c"]


def test_the_data_of_a_protocol_that_waits_stay_in_order() -> None:
    class Protocol(asyncio.Protocol):
        def __init__(self) -> None:
            self.received: list[bytes] = []

        def data_received(self, data: bytes) -> None:
            suspend(turns(5))
            self.received.append(data)

        def connection_lost(self, exc: Exception | None) -> None:
            over.set_result(None)

    async def main() -> bytes:
        nonlocal over
        over = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        transport, protocol = await asyncio.get_running_loop().create_connection(Protocol, sock=ours)
        with theirs:
            for n in range(5):
                theirs.send(b"%d" % n)
                await asyncio.sleep(0)
        await over
        transport.close()
        return b"".join(protocol.received)

    over: asyncio.Future[None]
    assert asyncio.run(main()) == b"01234"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a POSIX system")
def test_a_signal_that_comes_while_its_callback_waits_is_handled_afterwards() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        handled: list[int] = []
        twice = loop.create_future()

        def handle() -> None:
            if not handled:
                os.kill(os.getpid(), signal.SIGUSR1)
            suspend(asyncio.sleep(0.01))
            handled.append(1)
            if len(handled) == 2:
                twice.set_result(None)

        loop.add_signal_handler(signal.SIGUSR1, handle)
        os.kill(os.getpid(), signal.SIGUSR1)
        try:
            await asyncio.wait_for(twice, PATIENCE)
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)
        return len(handled)

    assert asyncio.run(main()) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("where", ["first", "later"])
def test_what_a_signals_handler_raises_is_raised_in_the_code_that_waited_first(where: str) -> None:
    result = python(f"""
        import asyncio, signal
        from ipyportal import run

        class Alarm(Exception): pass

        def alarm(*args):
            raise Alarm

        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        async def main():
            if {where!r} == "later":
                run(asyncio.sleep(0))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                run(work())
            except Alarm:
                print("alarm")

        signal.signal(signal.SIGALRM, alarm)
        asyncio.run(main())
    """)
    assert (result.stdout, result.returncode) == ("cleaned up\nalarm\n", 0), result.stderr


def test_ctrl_c_ends_the_wait_where_python_raises_it_itself() -> None:
    result = python("""
        import asyncio, os, signal, threading
        from ipyportal import run

        async def work():
            try:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        async def main():
            run(work())

        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        loop.close()
    """)
    assert result.stdout == "cleaned up\ninterrupted True\n", result.stderr


def test_a_second_ctrl_c_gives_up_the_wait_for_the_clean_up_which_goes_on() -> None:
    result = python("""
        import asyncio, os, signal, threading
        from ipyportal import run

        def press():
            os.kill(os.getpid(), signal.SIGINT)

        async def stubborn(go_on):
            try:
                threading.Timer(0.05, press).start()
                await asyncio.sleep(60)
            finally:
                threading.Timer(0.05, press).start()
                await go_on.wait()
                print("cleaned up")

        async def work(go_on):
            await asyncio.create_task(stubborn(go_on))

        async def main():
            go_on = asyncio.Event()
            try:
                run(work(go_on))
            except KeyboardInterrupt as exc:
                print("interrupted")
                go_on.set()
                try:
                    await exc.task
                except asyncio.CancelledError:
                    print("cancelled")

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    """)
    assert result.stdout == "interrupted\ncleaned up\ncancelled\n", result.stderr


# --- loops -----------------------------------------------------------------------------------------------------------


def test_a_loop_that_is_stopped_waits_for_what_stands_on_its_own_stack_for_a_while() -> None:
    log: list[str] = []

    def callback() -> None:
        suspend(asyncio.sleep(0.01))
        log.append("callback")

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
        log.append("main")

    with asyncio.Runner() as runner:
        runner.run(main())
        runner.run(turns())
    assert log == ["main", "callback"]


def test_a_loop_that_is_stopped_ends_the_wait_on_its_own_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipyportal.concurrency.suspension.turns.GRACE", 0.01)
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    def callback() -> None:
        try:
            suspend(work())
        except asyncio.CancelledError:
            ended.append("callback")

    async def main() -> str:
        asyncio.get_running_loop().call_soon(callback)
        await turns()
        return "returned"

    with soon():
        assert asyncio.run(main()) == "returned"
    assert ended == ["work", "callback"]


def test_tasks_that_wait_are_cancelled_with_all_others_at_the_end() -> None:
    cleaned: list[int] = []

    async def work(n: int) -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            cleaned.append(n)

    async def call(n: int) -> None:
        suspend(work(n))

    async def main() -> None:
        main.tasks = [asyncio.create_task(call(n)) for n in range(5)]  # type: ignore[attr-defined]
        await turns()

    with soon():
        asyncio.run(main())
    assert sorted(cleaned) == list(range(5))


def test_a_kind_of_loop_with_turns_of_its_own() -> None:
    counted: list[int] = []

    class Loop(asyncio.SelectorEventLoop):
        def _run_once(self) -> None:
            counted.append(1)
            super()._run_once()  # type: ignore[misc]

    async def call(n: int) -> int:
        return suspend(asyncio.sleep(0.001, n))

    async def main() -> list[int]:
        return await asyncio.gather(*map(call, range(5)))

    for patched in (False, True):
        with asyncio.Runner(loop_factory=Loop) as runner:
            if patched:
                with patch_asyncio():
                    assert runner.run(main()) == [0, 1, 2, 3, 4]
            else:
                assert runner.run(main()) == [0, 1, 2, 3, 4]
    assert len(counted) > 5


def test_loops_that_nest_asyncio_runs_inside_of_each_other() -> None:
    pytest.importorskip(NEST_ASYNCIO)
    # Each of them looks for what it waits for after a turn, while others run the turns: none may be forgotten.
    result = python(f"""
        import asyncio, random, warnings
        warnings.simplefilter("ignore")
        import {NEST_ASYNCIO} as nest_asyncio
        nest_asyncio.apply()
        from ipyportal import run

        async def work(n):
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(dice.choice([0, 0.001, 0.003, 0.01]))
            return n

        async def suspended(n, depth):
            if depth and dice.random() < 0.5:
                return run(suspended(n, depth - 1))
            if depth and dice.random() < 0.5:
                return await nested(n, depth - 1)
            return run(work(n))

        async def nested(n, depth):
            await asyncio.sleep(0)
            return asyncio.get_event_loop().run_until_complete(suspended(n, depth))

        async def main():
            return await asyncio.gather(*(dice.choice([suspended, nested])(n, 2) for n in range(6)))

        for seed in range(20):
            dice = random.Random(seed)
            assert asyncio.run(main()) == list(range(6)), seed
        print("all")
    """)
    assert result.stdout == "all\n", result.stderr


def test_a_loop_that_is_thrown_away_while_code_waits_harms_nobody() -> None:
    result = python("""
        import asyncio, gc, warnings
        from ipyportal import run

        async def wait():
            run(asyncio.Event().wait())

        async def main():
            run(asyncio.sleep(0))  # from now on turns are run in workers
            tasks.append(asyncio.create_task(wait()))
            for _ in range(3):
                await asyncio.sleep(0)
                run(asyncio.sleep(0))

        warnings.simplefilter("ignore")
        tasks = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        tasks.clear()
        del loop
        gc.collect()
        print("went on", asyncio.run(asyncio.sleep(0, "here")))
    """)
    assert (result.returncode, result.stdout) == (0, "went on here\n"), result.stderr


# --- many, deep, and what is kept ------------------------------------------------------------------------------------


def test_a_thousand_wait_at_once_from_deep_in_the_stack() -> None:
    # Each worker that were started where the one before stands still would begin deeper in the stack.
    async def call(n: int) -> int:
        return suspend(asyncio.sleep(0.01, n))

    async def main() -> list[int]:
        return await asyncio.gather(*map(call, range(1000)))

    def deep(depth: int) -> Any:
        return deep(depth - 1) if depth else asyncio.run(main())

    assert deep(500) == list(range(1000))


def test_twenty_deep() -> None:
    async def deeper(depth: int) -> int:
        await asyncio.sleep(0)
        if depth == 0:
            return 0
        return 1 + (suspend(deeper(depth - 1)) if depth % 2 else suspend(asyncio.create_task(deeper(depth - 1))))

    assert asyncio.run(deeper(20)) == 20


def test_what_waited_and_what_it_got_are_not_kept() -> None:
    class Result:
        pass

    class Failure(Exception):
        pass

    kept: list[weakref.ref[Any]] = []

    async def work() -> Result:
        await asyncio.sleep(0)
        result = Result()
        kept.append(weakref.ref(result))
        return result

    async def fails() -> None:
        error = Failure()
        kept.append(weakref.ref(error))
        await asyncio.sleep(0)
        raise error

    async def call() -> None:
        suspend(work())
        with contextlib.suppress(Failure):
            suspend(fails())

    async def main() -> None:
        task = asyncio.create_task(call())
        kept.append(weakref.ref(task))
        await task
        del task
        await called_back(lambda: suspend(work()) and None)
        gc.collect()
        assert [one() for one in kept] == [None] * 4

    asyncio.run(main())


def test_workers_are_used_again() -> None:
    async def call() -> None:
        for _ in range(20):
            suspend(asyncio.sleep(0))

    async def main() -> int:
        for _ in range(5):
            await asyncio.gather(*(call() for _ in range(4)))
        return len(greenlets.idle)

    assert 1 <= run(main) <= 5  # on the loop thread


def test_a_thread_of_others_is_left_without_greenlets() -> None:
    async def main() -> None:
        await asyncio.gather(*(call() for _ in range(4)))
        suspend(asyncio.sleep(0))

    async def call() -> None:
        suspend(asyncio.sleep(0))

    left: list[Any] = []

    def thread() -> None:
        asyncio.run(main())
        left.extend([*greenlets.idle, greenlets.spawner])

    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert left == [None]
