"""`run` in every place to which a kernel's thread gets: tasks, callbacks, timers, the cell that loads the extension."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .kernel import Kernel

pytest.importorskip("greenlet")

PRELUDE = """
    import contextlib, contextvars, signal, socket
    import ipyportal
    from ipyportal import enter, iterate, syncify

    loop = asyncio.get_running_loop()
    log = []
    color = contextvars.ContextVar("color", default="none")

    async def work(value, seconds=0.01):
        await asyncio.sleep(seconds)
        return value

    async def slow(name, seconds=60):
        try:
            log.append(f"{name} begun")
            await asyncio.sleep(seconds)
            log.append(f"{name} went on")
        finally:
            await asyncio.sleep(0)
            log.append(f"{name} cleaned up")

    async def when(condition):
        while not condition():
            await asyncio.sleep(0.001)

    async def meet(barrier, n):
        await barrier.wait()
        return n

    def helper(barrier, n):  # a plain function
        return run(meet(barrier, n))

    @contextlib.asynccontextmanager
    async def painted(value):
        token = color.set(value)
        try:
            yield asyncio.current_task()
        finally:
            color.reset(token)

    async def numbers():
        async with painted("inside"):
            for n in range(3):
                await asyncio.sleep(0.001)
                yield n

    class Station:
        async def __aenter__(self):
            return self
        async def __aexit__(self, *exc_info):
            await asyncio.sleep(0)
        async def measure(self):
            return await work(7)

    def everything():
        seen = []
        with enter(painted("red")):
            seen.append(color.get())
            seen.append(run(work(1)))
        seen.append(color.get())
        try:
            with enter(asyncio.timeout, 0.02):
                run(asyncio.sleep(60))
        except TimeoutError:
            seen.append("timed out")
        async def start(group):
            group.create_task(work(2))
        with enter(asyncio.TaskGroup) as group:
            run(start(group))
        seen += iterate(numbers())
        with syncify(Station)() as station:
            seen.append(station.measure())
        seen += ipyportal.map(work, [4, 5])
        return seen

    EVERYTHING = ["red", 1, "none", "timed out", 0, 1, 2, 7, 4, 5]

    def in_a_callback(function, *, delay=None):
        future = loop.create_future()
        def callback():
            try:
                future.set_result(function())
            except BaseException as exc:
                future.set_exception(exc)
        loop.call_soon(callback) if delay is None else loop.call_later(delay, callback)
        return future

    async def in_a_task(function):
        return function()
"""


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    live_kernel.value(PRELUDE)
    return live_kernel


@pytest.fixture(params=["patch off", "patch on"])
def kernel_with(request: pytest.FixtureRequest, shared: Kernel) -> Iterator[Kernel]:
    """The module's kernel, with asyncio as it is, and patched."""
    patched = request.param == "patch on"
    shared.value(f"%portal patch {'on' if patched else 'off'}\nlog.clear()")
    yield shared
    shared.value("%portal patch off")
    assert shared.answers_within(10)


# --- tasks and callbacks go on side by side --------------------------------------------------------------------------


def test_tasks_of_a_gather_wait_at_once(kernel_with: Kernel) -> None:
    # The barrier opens when all five wait: none of them blocks the others.
    cell = """
        barrier = asyncio.Barrier(5)
        async def task(n):
            return helper(barrier, n)
        await asyncio.wait_for(asyncio.gather(*map(task, range(5))), 10)
    """
    assert kernel_with.value(cell) == [0, 1, 2, 3, 4]


def test_a_task_and_a_timer_wait_for_what_a_later_cell_brings(kernel_with: Kernel) -> None:
    kernel_with.value("""
        queue = asyncio.Queue()
        task = asyncio.create_task(in_a_task(lambda: run(queue.get())))
        timer = in_a_callback(lambda: run(queue.get()), delay=0.001)
        None
    """)
    assert kernel_with.value("1 + 1") == 2  # the kernel answers meanwhile
    kernel_with.value("queue.put_nowait('a')\nqueue.put_nowait('b')")
    assert kernel_with.value("sorted([await task, await timer])") == ["a", "b"]


def test_callbacks_of_every_kind_wait(kernel_with: Kernel) -> None:
    cell = """
        import tornado.ioloop
        barrier = asyncio.Barrier(5)
        met = []
        def callback(n):
            met.append(helper(barrier, n))
        loop.call_soon(callback, 0)
        loop.call_later(0.001, callback, 1)
        future = loop.create_future()
        future.add_done_callback(lambda _: callback(2))
        future.set_result(None)
        ours, theirs = socket.socketpair()
        def read():
            loop.remove_reader(ours)
            callback(3)
        loop.add_reader(ours, read)
        theirs.send(b"x")
        def every_millisecond():
            periodic.stop()
            callback(4)
        periodic = tornado.ioloop.PeriodicCallback(every_millisecond, 1)
        periodic.start()
        run(asyncio.wait_for(when(lambda: len(met) == 5), 10))
        ours.close(); theirs.close()
        sorted(met)
    """
    assert kernel_with.value(cell) == [0, 1, 2, 3, 4]


def test_a_task_that_is_older_than_the_extension_waits(kernel: Kernel) -> None:
    kernel.value("""
        import asyncio
        go = asyncio.Event()
        async def old():
            await go.wait()
            from ipyportal import run
            return run(asyncio.sleep(0.01, "waited"))
        task = asyncio.create_task(old())
        None
    """)
    kernel.value("%load_ext ipyportal")
    assert kernel.value("go.set()\nawait task") == "waited"


@pytest.mark.parametrize("cell", ["", "await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_the_cell_that_loads_the_extension_lets_the_loop_go_on(kernel: Kernel, cell: str) -> None:
    reply = kernel.execute(f"""
%load_ext ipyportal
import asyncio
from ipyportal import run
{cell}
barrier = asyncio.Barrier(3)
async def meet():
    await barrier.wait()
    return "met"
async def task():
    return run(meet())
tasks = [asyncio.create_task(task()) for _ in range(2)]
run(asyncio.wait_for(meet(), 10)), run(asyncio.wait_for(tasks[0], 10)), await tasks[1]
""")
    assert reply.error is None
    assert reply.stderr == ""
    assert reply.result == "('met', 'met', 'met')"


# --- all of a `with` and a `for` in one task -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "everything()",
        "await asyncio.create_task(in_a_task(everything))",
        "(await asyncio.gather(in_a_task(everything), asyncio.sleep(0)))[0]",
        "await in_a_callback(everything)",
        "await in_a_callback(everything, delay=0.001)",
        "submit(in_a_task, everything).result()",
    ],
    ids=["cell", "task", "gather", "callback", "timer", "loop thread"],
)
def test_managers_generators_and_twins_work(kernel_with: Kernel, place: str) -> None:
    assert kernel_with.value(f"result = {place}\nresult == EVERYTHING or result") is True


# --- output ----------------------------------------------------------------------------------------------------------


def test_what_a_task_and_a_timer_print_belongs_to_the_cell_that_made_them(shared: Kernel) -> None:
    first = shared.begin("""
        print("begun")
        def prints():
            run(gate.wait())
            print("printed")
        gate = asyncio.Event()
        task = asyncio.create_task(in_a_task(prints))
        timer = in_a_callback(prints, delay=0.001)
        None
    """)
    assert first.reply().error is None
    second = shared.execute("gate.set()\nawait task\nawait timer")
    assert second.stdout == ""
    shared.wait_for(lambda: first.stdout_so_far() == "begun\nprinted\nprinted\n", 10)


# --- the stop button -------------------------------------------------------------------------------------------------


def test_a_press_ends_the_cell_and_what_waits_beside_it_goes_on(kernel_with: Kernel) -> None:
    kernel_with.value("""
        gate = asyncio.Event()
        async def beside(name):
            await gate.wait()
            log.append(name)
        task = asyncio.create_task(in_a_task(lambda: run(beside("task"))))
        timer = in_a_callback(lambda: run(beside("timer")), delay=0.001)
        None
    """)
    for cell in ("run(slow('cell'))", "await slow('cell')"):
        kernel_with.value("log.clear()")
        waiting = kernel_with.begin(f"loop.call_later(0.01, print, 'waits')\n{cell}")
        kernel_with.wait_for(lambda waiting=waiting: "waits" in waiting.stdout_so_far(), 10)  # type: ignore[misc]
        kernel_with.interrupt()
        error = waiting.reply(timeout=10).error
        assert error is not None
        assert error.ename == "KeyboardInterrupt"
        assert kernel_with.value("log, task.done(), timer.done()") == (["cell begun", "cell cleaned up"], False, False)
    kernel_with.value("gate.set()\nawait task\nawait timer")
    assert kernel_with.value("sorted(log[2:])") == ["task", "timer"]


def test_a_press_cancels_the_tasks_that_the_cell_waits_for(kernel_with: Kernel) -> None:
    waiting = kernel_with.begin("""
        loop.call_later(0.02, print, "waits")
        await asyncio.gather(*(in_a_task(lambda n=n: run(slow(f"task {n}"))) for n in range(3)))
    """)
    kernel_with.wait_for(lambda: "waits" in waiting.stdout_so_far(), 10)
    kernel_with.interrupt()
    error = waiting.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    kernel_with.value("run(asyncio.wait_for(when(lambda: len(log) == 6), 10))")
    assert kernel_with.value("sorted(log)") == sorted(
        [f"task {n} {what}" for n in range(3) for what in ("begun", "cleaned up")]
    )


def test_a_press_while_no_cell_runs_leaves_what_waits_alone(kernel_with: Kernel) -> None:
    kernel_with.value("""
        gate = asyncio.Event()
        task = asyncio.create_task(in_a_task(lambda: run(gate.wait())))
        timer = in_a_callback(lambda: run(gate.wait()), delay=0.001)
        run(work(None))
    """)
    kernel_with.interrupt()
    assert kernel_with.answers_within(10)
    assert kernel_with.value("task.done(), timer.done()") == (False, False)
    assert kernel_with.value("gate.set()\nawait task, await timer") == (True, True)


@pytest.mark.skipif("not hasattr(__import__('signal'), 'SIGALRM')")
@pytest.mark.parametrize("cell", ["run(slow('cell'))", "await slow('cell')", "submit(slow, 'cell').result()"])
def test_what_a_signals_handler_raises_is_raised_in_the_cell_that_waits(kernel_with: Kernel, cell: str) -> None:
    error = kernel_with.execute(f"""
        class Alarm(Exception): pass
        def alarm(*args): raise Alarm("it is time")
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        {cell}  # here
    """).error
    assert error is not None
    assert (error.ename, error.evalue) == ("Alarm", "it is time")
    assert "# here" in error.traceback
    kernel_with.value("signal.signal(signal.SIGALRM, signal.SIG_DFL)\nNone")
    if "submit" not in cell:
        assert kernel_with.value("log") == ["cell begun", "cell cleaned up"]


def test_a_kernel_that_is_shut_down_while_tasks_and_callbacks_wait_ends_soon(loaded_kernel: Kernel) -> None:
    loaded_kernel.value(PRELUDE)
    loaded_kernel.value("""
        task = asyncio.create_task(in_a_task(lambda: run(slow("task"))))
        timer = in_a_callback(lambda: run(slow("timer")), delay=0.001)
        run(asyncio.wait_for(when(lambda: len(log) == 2), 10))
    """)
    begin = time.monotonic()
    loaded_kernel.end(timeout=10)
    assert time.monotonic() - begin < 8


def test_unloading_leaves_the_kernels_loop_as_it_was(kernel: Kernel) -> None:
    kernel.value("import asyncio\nloop = asyncio.get_running_loop()\nbefore = set(vars(loop))")
    kernel.value("%load_ext ipyportal")
    assert kernel.value("set(vars(loop)) - before") == {"_run_once"}
    kernel.value("from ipyportal import run\nrun(asyncio.sleep(0))\n%unload_ext ipyportal")
    assert kernel.value("set(vars(loop)) - before") == set()
