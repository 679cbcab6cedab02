"""`ExecutorPortal`: calls on executors of threads, of processes, of dask and of ipyparallel; all of them real."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipyportal import Call, ExecutorPortal, enter, iterate, map, run, set_route, submit
from ipyportal.concurrency import State, can_suspend, shutdown
from tests import remote
from tests.concurrency.conftest import often  # noqa: F401 - a fixture
from tests.concurrency.helpers import PATIENCE, Gate, python, soon, until

pytestmark = pytest.mark.timeout(180)  # on a machine that is busy a cluster takes long to start
INTERPRETERS = ["interpreters"] if sys.version_info >= (3, 14) else []
ENGINES = ("threads", "processes", *INTERPRETERS, "dask", "ipyparallel")
ROOT = Path(__file__).parents[1]
local_color: contextvars.ContextVar[str] = contextvars.ContextVar("local_color")
wait = functools.partial(concurrent.futures.wait, timeout=PATIENCE)


# --- the engines -----------------------------------------------------------------------------------------------------


def processes() -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def interpreters() -> Any:
    # They find modules as this interpreter did at its start.
    pool: Any = concurrent.futures.InterpreterPoolExecutor  # type: ignore[attr-defined]
    return pool(2, initializer=_with_path, initargs=(str(ROOT),))


def _with_path(path: str) -> None:
    import sys

    if path not in sys.path:
        sys.path.insert(0, path)


CLUSTER = """
import logging, sys
from distributed import LocalCluster

if __name__ == "__main__":
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()  # until the tests close it
"""


@contextlib.contextmanager
def dask_client() -> Iterator[Any]:
    """A client of a LocalCluster in a process of its own: its tasks are not those of a test."""
    distributed = pytest.importorskip("distributed")
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as cluster:
        assert cluster.stdout is not None
        with distributed.Client(cluster.stdout.readline().strip()) as client:
            yield client


def python_path() -> str:
    """For other processes, so that they find this module's neighbours."""
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@contextlib.contextmanager
def ipyparallel_client() -> Iterator[Any]:
    ipyparallel = pytest.importorskip("ipyparallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        cluster = ipyparallel.Cluster(n=2, delay=0, log_level=logging.CRITICAL)
        client = cluster.start_and_connect_sync(activate=False)
    try:
        yield client
    finally:
        client.close()
        cluster.stop_cluster_sync()


def held_by_dask(dask_scheduler: Any) -> int:
    return sum(key.startswith("hold-") for key in dask_scheduler.tasks)


def held_by_worker(dask_worker: Any) -> int:
    return sum(key.startswith("hold-") for key in dask_worker.state.tasks)


class Engine:
    """An executor, and what is different about it."""

    def __init__(self, kind: str, executor: concurrent.futures.Executor, client: Any = None) -> None:
        self.kind = kind
        self.executor = executor
        self.client = client
        self.doomed: Call[str] | None = None

    def settle(self, portal: ExecutorPortal) -> None:
        """Wait until the workers know what was cancelled."""
        if self.kind in ("threads", "processes", "interpreters"):
            return
        until(lambda: portal._cancelling is None)
        if self.kind == "dask":
            until(lambda: not self.client.run_on_scheduler(held_by_dask))
            until(lambda: max(self.client.run(held_by_worker).values()) <= 1)
        else:
            self.client.abort([], targets=[1], block=True)  # an engine takes them one after the other


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "threads":
        with concurrent.futures.ThreadPoolExecutor(2) as executor:
            wait([executor.submit(time.sleep, 0.01) for _ in range(2)])  # starts its threads
            yield Engine("threads", executor)
    elif request.param == "processes":
        with processes() as executor:
            wait([executor.submit(time.sleep, 0.05) for _ in range(2)])
            yield Engine("processes", executor)
    elif request.param == "interpreters":
        with interpreters() as executor:
            wait([executor.submit(time.sleep, 0.05) for _ in range(2)])
            yield Engine("interpreters", executor)
    elif request.param == "dask":
        with dask_client() as client:
            engine = Engine("dask", client.get_executor(pure=False), client)
            wait([engine.executor.submit(int)])  # starts threads that it keeps
            yield engine
    else:
        with ipyparallel_client() as client:
            engine = Engine("ipyparallel", client.load_balanced_view([1]).executor, client)
            # The controller waits 5 seconds for what an engine that died may have sent. The tests go on meanwhile.
            doomed = ExecutorPortal(client.load_balanced_view([0]).executor)
            engine.doomed = submit(remote.die_once, tmp_path_factory.mktemp("doomed"), on=doomed)
            yield engine
    shutdown()


@pytest.fixture
def kept_open(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What clusters open at a time of their own: ipyparallel to watch its processes, a client of dask connections."""
    if "engine" in request.fixturenames and request.getfixturevalue("engine").kind == "dask":
        return "anon_inode:[pidfd]", "socket:"
    return ("anon_inode:[pidfd]",)


@pytest.fixture(scope="module", autouse=True)
def resource_tracker() -> None:
    """Started with the first process that is spawned, and kept."""
    if sys.platform != "win32":
        multiprocessing.resource_tracker.ensure_running()


@pytest.fixture
def portal(engine: Engine) -> Iterator[ExecutorPortal]:
    with ExecutorPortal(engine.executor) as portal:
        yield portal


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where `remote.hold` looks. What is held there is released at the end, whatever the test did."""
    yield tmp_path
    tmp_path.joinpath("release").touch()


def begun(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"release"}


# --- results ---------------------------------------------------------------------------------------------------------


def test_functions_of_both_kinds_run_there(portal: ExecutorPortal) -> None:
    assert run(remote.double, 21, on=portal) == 42
    assert run(remote.adouble, 20, plus=2, on=portal) == 42
    assert run(functools.partial(remote.adouble, plus=2), 20, on=portal) == 42
    call = submit(remote.double, 4, on=portal)
    assert call.portal is portal
    assert call.result(PATIENCE) == 8


def test_a_function_that_returns_an_awaitable_in_the_pools_of_the_standard_library(
    engine: Engine, portal: ExecutorPortal
) -> None:
    if engine.kind in ("threads", "processes"):
        assert run(remote.gives_awaitable, 21, on=portal) == 42


def test_a_future_of_dask_among_the_arguments_is_its_value(engine: Engine, portal: ExecutorPortal) -> None:
    if engine.kind == "dask":
        future = engine.client.scatter(20)
        assert run(remote.double, future, on=portal) == 40
        assert run(remote.adouble, future, plus=2, on=portal) == 42


def test_they_run_in_another_process(engine: Engine, portal: ExecutorPortal) -> None:
    assert (run(os.getpid, on=portal) == os.getpid()) == (engine.kind in ("threads", "interpreters"))


def test_arguments_may_have_the_names_of_the_executors_own(portal: ExecutorPortal) -> None:
    names = {"fn": 1, "key": 2, "workers": 3, "pure": 4, "self": 5}
    assert run(remote.keywords, 0, on=portal, **names) == ((0,), names)


def test_from_asynchronous_code(portal: ExecutorPortal) -> None:
    async def inside() -> int:
        suspended = run(remote.adouble, 1, on=portal) if can_suspend() else 2  # else it would block the loop
        return await submit(remote.double, 21, on=portal) + suspended

    assert run(inside) == 44


def test_map_gives_results_in_order(portal: ExecutorPortal) -> None:
    assert map(remote.double, range(12), on=portal, limit=3) == [2 * n for n in range(12)]
    assert map(remote.adouble, range(4), [1] * 4, on=portal) == [1, 3, 5, 7]
    assert sorted(map.unordered(remote.double, range(4), on=portal)) == [0, 2, 4, 6]


def test_map_keeps_what_was_finished(engine: Engine, portal: ExecutorPortal) -> None:
    with pytest.raises(Exception, match="no 3, please") as failure:
        map(remote.fails, range(6), on=portal, limit=1)
    assert failure.value.finished == {0: 0, 1: 1, 2: 2}  # type: ignore[attr-defined]
    assert "item 3 of map: fails(3)" in str(failure.value.__notes__)
    results = map(remote.fails_late, range(5), on=portal, return_exceptions=True)
    assert results[:3] == [0, 1, 2]
    assert "no 3, please" in str(results[3])


def test_a_session_can_be_routed_there(portal: ExecutorPortal) -> None:
    set_route(portal)
    try:
        assert run(remote.double, 2) == 4
        assert map(remote.double, range(3)) == [0, 2, 4]
    finally:
        set_route(None)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [remote.fails, remote.fails_late])
def test_an_exception_comes_with_the_traceback_of_there(engine: Engine, portal: ExecutorPortal, fn: Any) -> None:
    with pytest.raises(Exception, match="no 3, please") as failure:
        run(fn, 3, on=portal)
    if engine.kind == "ipyparallel":
        assert type(failure.value).__name__ == "RemoteError"
        assert (failure.value.ename, failure.value.evalue) == ("ValueError", "no 3, please")  # type: ignore[attr-defined]
    else:
        assert type(failure.value) is ValueError
    text = "".join(traceback.format_exception(failure.value))
    assert 'raise ValueError(f"no {n}, please")' in text
    assert "\x1b" not in text


def test_an_exception_that_cannot_be_pickled_does_not_break_the_pool() -> None:
    with ExecutorPortal(processes(), owner=True) as portal:
        with pytest.raises(RuntimeError, match=r"Picky: 418 teapot \(which cannot be pickled\)") as failure:
            run(remote.refuses, on=portal)
        assert "raise Picky(418" in "".join(traceback.format_exception(failure.value))
        assert run(remote.double, 1, on=portal) == 2


def test_code_that_cancels_itself_cancels_its_call(engine: Engine, portal: ExecutorPortal) -> None:
    call = wait([submit(remote.cancels_itself, on=portal).future]).done.pop()
    # With ipyparallel it is a RemoteError as any other.
    assert call.cancelled() or (engine.kind == "ipyparallel" and call.exception() is not None)


def test_a_coroutine_is_refused(portal: ExecutorPortal) -> None:
    with pytest.raises(TypeError, match=r"a coroutine belongs to this process.*run\(fetch, url, on=portal\)"):
        run(remote.adouble(1), on=portal)
    with pytest.raises(TypeError, match=r"a coroutine belongs to this process"):
        submit(remote.double, remote.adouble(1), on=portal)

    async def with_a_task() -> None:
        task = asyncio.ensure_future(remote.adouble(1))
        with pytest.raises(TypeError, match=r"a _?\w*Task belongs to this process"):
            submit(task, on=portal)
        assert await task == 2

    asyncio.run(with_a_task())


def test_iterate_and_enter_are_refused(portal: ExecutorPortal) -> None:
    async def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match=r"cannot run on \w+, which only runs functions: use run"):
        next(iterate(numbers, on=portal))
    with pytest.raises(TypeError, match="which only runs functions"), enter(asyncio.timeout, 1, on=portal):
        pass


def test_what_cannot_be_pickled_is_named_at_once(engine: Engine, portal: ExecutorPortal) -> None:
    if engine.kind == "threads":
        pytest.skip("nothing is pickled for a thread")
    lock = threading.Lock()
    for work in (run, submit):
        with pytest.raises(
            TypeError, match=r"double cannot be sent to \w+: argument 0, <unlocked .*>, cannot be pickled"
        ):
            work(remote.double, lock, on=portal)
        with pytest.raises(TypeError, match=r"keywords cannot be sent to \w+: the argument key=<unlocked .*> cannot"):
            work(remote.keywords, 1, key=lock, on=portal)
        with pytest.raises(TypeError) as failure:
            work(lambda: lock, on=portal)
        assert "<lambda>" in str(failure.value) + str(getattr(failure.value, "__notes__", ""))
    with pytest.raises(TypeError, match=r"argument 0, .*, cannot be pickled \(stays where it is\)"):
        run(remote.double, remote.Stubborn(), on=portal)
    with pytest.raises(TypeError, match="argument 0, <unlocked") as failure:
        map(remote.double, [1, lock], on=portal)
    assert "item 1 of map" in str(failure.value.__notes__)


def test_a_function_without_a_name(engine: Engine, portal: ExecutorPortal) -> None:
    if engine.kind not in ("processes", "interpreters"):
        assert run(lambda n: n + 1, 3, on=portal) == 4


@pytest.mark.parametrize("kind", ["processes", *INTERPRETERS])
def test_it_can_be_sent_to_a_pool_with_cloudpickle(kind: str) -> None:
    dumps = pytest.importorskip("cloudpickle").dumps
    pool = processes() if kind == "processes" else interpreters()
    with ExecutorPortal(pool, owner=True, dumps=dumps) as portal:
        assert run(lambda n: n + 1, 3, on=portal) == 4


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_what_waits_is_cancelled_and_what_runs_is_let_go(engine: Engine, portal: ExecutorPortal, folder: Path) -> None:
    calls = [submit(remote.hold, folder, f"{n:02}", on=portal) for n in range(10)]
    until(lambda: begun(folder))
    with soon():
        for call in calls:
            assert call.cancel()
        assert all(call.cancelled() for call in calls)
    with pytest.raises(concurrent.futures.CancelledError) as cancelled:
        calls[int(min(begun(folder)))].result()
    assert "had begun it" in cancelled.value.__notes__[0]
    engine.settle(portal)
    folder.joinpath("release").touch()
    # Two run at a time, and a ProcessPoolExecutor has handed three more to its processes.
    assert map(remote.double, range(8), on=portal) == [2 * n for n in range(8)]
    assert len(begun(folder)) <= (5 if engine.kind == "processes" else 2)


def test_a_time_out_needs_nobody_who_waits(portal: ExecutorPortal, folder: Path) -> None:
    over = Gate()
    call = submit(remote.hold, folder, "held", on=portal, timeout=0.05)
    call.add_done_callback(lambda call: over.set())
    over.pass_through()
    assert call.timedout()
    with pytest.raises(TimeoutError, match=r"hold timed out after 0.05 s"):
        run(remote.hold, folder, "another", on=portal, timeout=0.05)
    until(lambda: not portal._calls)  # who waits may be told first


def test_map_on_a_time_out_cancels_what_is_in_flight(portal: ExecutorPortal, folder: Path) -> None:
    with pytest.raises(TimeoutError, match="map of hold timed out"):
        map(remote.hold, [folder] * 30, [f"{n:02}" for n in range(30)], on=portal, timeout=0.1)
    until(lambda: not portal._calls)  # who waits may be told first


def test_a_call_that_was_cancelled_before_is_not_sent(portal: ExecutorPortal, folder: Path) -> None:
    folder.joinpath("release").touch()
    call = Call.new(remote.hold, folder, "cancelled")
    call.cancel()
    assert portal.submit(call).cancelled()
    assert run(remote.double, 1, on=portal) == 2
    assert begun(folder) == set()


def test_no_call_has_a_thread_of_its_own(portal: ExecutorPortal, folder: Path) -> None:
    run(remote.double, 1, on=portal)
    before = threading.active_count()
    calls = [submit(remote.hold, folder, str(n), on=portal) for n in range(50)]
    assert threading.active_count() <= before + 1  # the executor's own
    folder.joinpath("release").touch()
    wait([call.future for call in calls])
    assert {call.state for call in calls} == {State.FINISHED}


def test_time_outs_start_no_threads_of_their_own() -> None:
    gate = Gate()
    counts: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool, ExecutorPortal(pool) as portal:
        held = submit(gate.wait, PATIENCE, on=portal)
        before = threading.active_count()
        calls = [submit(int, on=portal, timeout=0.1) for _ in range(500)]
        for call in calls:
            call.add_done_callback(lambda call: counts.append(threading.active_count()))
        until(lambda: len(counts) == 500)
        assert all(call.timedout() for call in calls)
        # The clock and who tells; more of those on a machine that stands still at times.
        assert max(counts) < before + 20
        gate.set()
        assert held.result(PATIENCE)


# --- context variables -----------------------------------------------------------------------------------------------


def test_context_variables_are_sent_if_they_are_chosen(engine: Engine, portal: ExecutorPortal) -> None:
    with ExecutorPortal(engine.executor, context=[remote.color]) as sending:
        assert run(remote.get_color, on=sending) == "none"  # it is not set
        token = remote.color.set("red")
        try:
            assert run(remote.get_color, on=portal) == "none"
            assert run(remote.get_color, on=sending) == "red"
            assert run(remote.aget_color, on=sending) == "red"
            assert map(remote.aget_color_of, [0, 1], on=sending) == ["red 0", "red 1"]
        finally:
            remote.color.reset(token)
        assert run(remote.get_color, on=sending) == "none"


def test_a_context_variable_that_cannot_be_found_elsewhere_is_named(engine: Engine) -> None:
    hidden: contextvars.ContextVar[int] = contextvars.ContextVar("hidden")
    hidden.set(1)
    with ExecutorPortal(engine.executor, context=[hidden]) as portal:
        if engine.kind == "threads":
            assert run(lambda: hidden.get(), on=portal) == 1
        else:
            with pytest.raises(TypeError, match="hidden is no global name of a module"):
                run(remote.get_color, on=portal)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_result_is_not_kept(portal: ExecutorPortal) -> None:
    call = submit(remote.make_thing, on=portal)
    thing = weakref.ref(call.result(PATIENCE))
    reference = weakref.ref(call)
    del call

    def is_gone() -> bool:
        gc.collect()  # some executors leave cycles
        return thing() is None and reference() is None

    until(is_gone)


# --- workers that die ------------------------------------------------------------------------------------------------


def test_a_worker_that_dies(engine: Engine, portal: ExecutorPortal, folder: Path) -> None:
    if engine.kind == "dask":
        assert run(remote.die_once, folder, on=portal, timeout=30) == "survived"  # dask runs it again
    elif engine.kind == "ipyparallel":
        assert engine.doomed is not None
        with pytest.raises(Exception, match="EngineError: Engine .* died while running task"):
            engine.doomed.result(30)
        assert run(remote.double, 1, on=portal) == 2


def test_a_process_that_dies_breaks_its_pool_and_loses_no_result() -> None:
    with ExecutorPortal(processes(), owner=True) as portal:
        with pytest.raises(concurrent.futures.BrokenExecutor) as broken:
            map(remote.die_at, range(9), [5] * 9, on=portal, limit=1)
        assert broken.value.finished == {n: n for n in range(5)}  # type: ignore[attr-defined]
        assert "a worker of ProcessPoolExecutor died" in "".join(broken.value.__notes__)
        with pytest.raises(concurrent.futures.BrokenExecutor) as broken:
            run(remote.double, 1, on=portal)
        assert "Make a new executor" in "".join(broken.value.__notes__)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_leaving_it_waits_for_its_calls(engine: Engine, folder: Path) -> None:
    with ExecutorPortal(engine.executor) as portal:
        call = submit(remote.hold, folder, "held", on=portal)
        call.add_done_callback(lambda call: finished.append(call.result()))
        finished: list[str] = []
        threading.Timer(0.05, folder.joinpath("release").touch).start()
    assert finished == ["held"]
    with pytest.raises(RuntimeError, match=r"ExecutorPortal '\w+' was shut down and takes no more calls"):
        run(remote.double, 1, on=portal)
    assert "shut down" in repr(portal)
    assert engine.executor.submit(remote.double, 3).result(PATIENCE) == 6  # it goes on


def test_leaving_it_by_an_exception_cancels_them(engine: Engine, folder: Path) -> None:
    with soon(), pytest.raises(KeyError), ExecutorPortal(engine.executor) as portal:
        calls = [submit(remote.hold, folder, str(n), on=portal) for n in range(3)]
        raise KeyError
    assert all(call.cancelled() for call in calls)


def test_a_shutdown_that_does_not_wait(engine: Engine, folder: Path) -> None:
    portal = ExecutorPortal(engine.executor)
    call = submit(remote.hold, folder, "held", on=portal)
    assert not portal.shutdown(timeout=0)
    folder.joinpath("release").touch()
    assert portal.shutdown()
    assert call.result(0) == "held"
    assert portal.shutdown()


def test_an_executor_that_was_shut_down_says_so(engine: Engine) -> None:
    executor: Any
    if engine.kind == "threads":
        executor = concurrent.futures.ThreadPoolExecutor(1)
    elif engine.kind == "processes":
        executor = processes()
    elif engine.kind == "dask":
        executor = engine.client.get_executor()
    else:
        pytest.skip("there is no end of an executor of ipyparallel")
    executor.shutdown()
    with pytest.raises(RuntimeError, match=r"\w+ does not take double: cannot schedule .*make a new executor"):
        run(remote.double, 1, on=ExecutorPortal(executor))


def test_its_owner_ends_the_executor() -> None:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    with ExecutorPortal(executor, owner=True) as portal:
        call = submit(remote.double, 1, on=portal)
    assert call.result(0) == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_an_executor_that_is_shut_down_with_calls_cancels_them() -> None:
    gate = Gate()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    portal = ExecutorPortal(executor)
    first, second = (submit(gate.pass_through, on=portal) for _ in range(2))
    executor.shutdown(wait=False, cancel_futures=True)
    wait([second.future])
    with pytest.raises(concurrent.futures.CancelledError, match="was cancelled by ThreadPoolExecutor: was that, or"):
        second.result()
    gate.set()
    assert first.result(PATIENCE) is None


def test_a_call_that_was_refused_can_go_elsewhere() -> None:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.shutdown()
    call = Call.new(remote.double, 1)
    with pytest.raises(RuntimeError, match="does not take double"):
        ExecutorPortal(executor).submit(call)
    with ExecutorPortal(concurrent.futures.ThreadPoolExecutor(1), owner=True) as portal:
        assert portal.submit(call).result(PATIENCE) == 2
        with pytest.raises(RuntimeError, match="submitted before"):
            portal.submit(call)


# --- what is given ---------------------------------------------------------------------------------------------------


def test_what_is_no_executor_is_refused() -> None:
    for wrong in (None, ExecutorPortal, concurrent.futures.ThreadPoolExecutor):
        with pytest.raises(TypeError, match=r"ExecutorPortal needs a concurrent.futures.Executor, not \w+: .*get_exec"):
            ExecutorPortal(wrong)  # type: ignore[arg-type]
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match="context= takes context variables"):
            ExecutorPortal(executor, context=["color"])  # type: ignore[list-item]
        portal = ExecutorPortal(executor, name="mine")
        assert repr(portal) == "<ExecutorPortal mine>"
        assert portal.executor is executor


def test_no_engine_is_imported_before_it_is_used() -> None:
    done = python(
        """
        import sys
        from ipyportal import ExecutorPortal
        print(*{"distributed", "ipyparallel", "cloudpickle", "concurrent.futures.process"} & set(sys.modules))
        """
    )
    assert (done.stdout, done.stderr) == ("\n", "")


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_call_is_over_once_whoever_ends_it(often: None) -> None:  # noqa: F811
    # The executor delivers while another thread cancels: each may find the call over, the future over, or neither, and
    # done callbacks are told once.
    with concurrent.futures.ThreadPoolExecutor(1) as executor, ExecutorPortal(executor) as portal:
        barrier = threading.Barrier(2, timeout=PATIENCE)
        outcomes = set()
        for _ in range(300):
            told: list[State] = []
            call = Call.new(barrier.wait)
            call.add_done_callback(lambda call, told=told: told.append(call.state))  # type: ignore[misc]
            portal.submit(call)
            barrier.wait()
            call.cancel()
            until(lambda: told)  # noqa: B023
            assert told == [call.state]
            outcomes.add(call.state)
        assert outcomes <= {State.CANCELLED, State.FINISHED}
        until(lambda: not portal._calls)


def test_a_call_comes_before_the_shutdown_or_is_refused(often: None) -> None:  # noqa: F811
    # submit() may have looked whether the portal takes calls when the shutdown begins. What it has taken is waited for.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        for _ in range(200):
            portal = ExecutorPortal(executor)
            barrier = threading.Barrier(2, timeout=PATIENCE)
            taken: list[Call[int]] = []

            def submit_one(portal: ExecutorPortal = portal, barrier: Any = barrier, taken: Any = taken) -> None:
                barrier.wait()
                with contextlib.suppress(RuntimeError):
                    taken.append(portal.submit(Call.new(int)))

            thread = threading.Thread(target=submit_one)
            thread.start()
            barrier.wait()
            assert portal.shutdown(timeout=PATIENCE)
            thread.join()
            assert [call.result(0) for call in taken] in ([], [0])
