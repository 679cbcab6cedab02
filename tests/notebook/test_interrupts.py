"""The stop button: what was awaited cleans up, the cell ends with KeyboardInterrupt, the kernel goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kernel import Error, Kernel, Pending

PRELUDE = """
    import collections, signal

    alive = set()  # the coroutines that were opened and have not cleaned up

    async def work(seconds=60):
        me = object()
        try:
            alive.add(me)
            await asyncio.sleep(seconds)
        finally:
            await asyncio.sleep(0)
            alive.discard(me)

    async def group():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(work())
            await work()

    async def nested(depth):
        me = object()
        try:
            alive.add(me)
            return run(nested(depth - 1) if depth else work())
        finally:
            await asyncio.sleep(0)
            alive.discard(me)

    async def noop():
        pass

    def blocks():
        me = object()
        try:
            alive.add(me)
            while True:
                time.sleep(0.01)
        finally:
            alive.discard(me)

    def tasks():
        # Counted by name: the kernel has some of its own, which are new ones in each cell.
        return collections.Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())

    tasks_before = tasks()
"""

CELLS = {
    "run": "run(work())  # here",
    "run with a timeout": "run(work(), timeout=60)  # here",
    "await": "await work()  # here",
    "run in an async cell": "await asyncio.sleep(0)\nrun(work())  # here",
    "gather of 20": "run(asyncio.gather(*(work() for _ in range(20))))  # here",
    "await gather of 20": "await asyncio.gather(*(work() for _ in range(20)))  # here",
    "task group": "run(group())  # here",
    "await task group": "await group()  # here",
    "nested 5 deep": "run(nested(5))  # here",
    "await nested 5 deep": "await nested(5)  # here",
    "tight loop of sleep(0)": "while True: run(asyncio.sleep(0))  # here",
    "await tight loop of sleep(0)": "while True: await asyncio.sleep(0)  # here",
    "tight loop of what does not suspend": "while True: run(noop())  # here",
    "time.sleep": "time.sleep(60)  # here",
    "time.sleep in an async cell": "await asyncio.sleep(0)\ntime.sleep(60)  # here",
    "pure Python": "while True: 1  # here",
    "pure Python after a wait": "run(asyncio.sleep(0))\nwhile True: 1  # here",
    "on the loop thread": "run(work(), on='loop')  # here",
    "on the loop thread in an async cell": "await asyncio.sleep(0)\nrun(work(), on='loop')  # here",
    "in a thread": "run(blocks, on='thread')  # here",
    "the magic": "%await work()",
    "a future": "run(asyncio.get_running_loop().create_future())  # here",
    "a task": "task = asyncio.ensure_future(work())\nrun(task)  # here",
}


@pytest.fixture(scope="module", params=["patch off", "patch on"])
def shared(request: pytest.FixtureRequest, live_kernel: Kernel) -> Iterator[Kernel]:
    """The module's kernel, with asyncio as it is, and patched."""
    live_kernel.value(PRELUDE)
    live_kernel.value(f"%portal {request.param}")
    yield live_kernel
    live_kernel.value("%portal patch off")


@pytest.fixture
def fresh(kernel: Kernel) -> Iterator[Kernel]:
    """A kernel that has not loaded ipyportal yet."""
    kernel.value("import asyncio, threading, time\nfrom ipyportal import run, submit\n" + dedented(PRELUDE))
    yield kernel
    assert kernel.answers_within(10)
    assert kernel.value("len(alive)") == 0


def dedented(code: str) -> str:
    return code.replace("\n    ", "\n")


def interrupt(kernel: Kernel, pending: Pending, *, within: float = 10.0) -> Error:
    """Press the stop button once the cell waits for what it awaits; return how it ended."""
    time.sleep(0.1)  # from its first output to the wait
    return interrupt_now(kernel, pending, within=within)


def interrupt_now(kernel: Kernel, pending: Pending, *, within: float = 10.0) -> Error:
    kernel.interrupt()
    error = pending.reply(timeout=within).error
    assert error is not None
    return error


def assert_nothing_is_left(kernel: Kernel) -> None:
    assert kernel.answers_within(10)
    assert kernel.value("len(alive)") == 0
    left: list[str] = []
    for _ in range(20):  # the kernel's own task of the cell before may be at its last step
        left = kernel.value("list(tasks() - tasks_before)")
        if not left:
            break
        time.sleep(0.02)
    assert left == []


def idle_handler(kernel: Kernel) -> str:
    """The SIGINT handler that is in place while no cell runs, as text."""
    kernel.value("""
        seen = []
        timer = threading.Timer(0.05, lambda: seen.append(repr(signal.getsignal(signal.SIGINT))))
        timer.start()
    """)
    time.sleep(0.15)
    return str(kernel.value("timer.join()\nseen[0]"))


@pytest.mark.parametrize("name", CELLS)
def test_an_interrupted_cell_ends_with_keyboard_interrupt_after_its_clean_up(shared: Kernel, name: str) -> None:
    error = interrupt(shared, shared.begin(f"print('begun')\n{CELLS[name]}"))
    assert error.ename == "KeyboardInterrupt"
    assert CELLS[name].splitlines()[-1].replace("%await work()", "run_line_magic('await', 'work()')") in error.traceback
    assert_nothing_is_left(shared)


def test_the_traceback_of_an_interrupted_wait_shows_the_users_line_and_nothing_of_the_kernel(shared: Kernel) -> None:
    error = interrupt(shared, shared.begin("def waits():\n    run(work())  # inner\nprint('begun')\nwaits()  # outer"))
    assert "# inner" in error.traceback
    assert "# outer" in error.traceback
    assert "kernelbase.py" not in error.traceback
    assert "suspension" not in error.traceback


def test_a_press_that_comes_as_the_loop_goes_to_sleep_is_seen(shared: Kernel, tmp_path: Path) -> None:
    # The race: the signal comes after the loop's last bytecode and before its thread sleeps. Nothing would wake it.
    shared.value("""
        import pathlib
        def begins(flag):
            pathlib.Path(flag).touch()  # as the cell begins to wait
            while True:
                time.sleep(0.001)
    """)
    for n in range(40):
        flag = tmp_path / str(n)
        # As a cell whose failure aborts none behind it: the next one may come before the kernel has got over this one.
        pending = shared.execute_async(f"run(begins, {str(flag)!r}, on='thread')", stop_on_error=False)
        shared.wait_for(flag.exists)
        shared.interrupt()
        error = pending.reply(10).error
        assert error is not None
        assert error.ename == "KeyboardInterrupt"


IN_C = {
    "run": 'run(time.sleep, 60, on="kernel")',
    "run with a time-out": 'run(time.sleep, 60, on="kernel", timeout=60)',
    "an item of map": 'ipyportal.map(time.sleep, [60], on="kernel")',
    "what map draws from": "ipyportal.map(work, map(time.sleep, [60]))",
}


@pytest.mark.parametrize("cell", IN_C.values(), ids=IN_C.keys())
def test_a_function_in_c_that_was_given_to_ipyportal_is_interrupted(shared: Kernel, cell: str) -> None:
    # It has no frame: the innermost one is of ipyportal's own code, which is not interrupted elsewhere.
    error = interrupt(shared, shared.begin(f"import ipyportal\nprint('begun')\n{cell}"))
    assert cell in error.traceback
    assert_nothing_is_left(shared)


def test_the_original_sigint_handler_is_back_after_interrupts(fresh: Kernel) -> None:
    before = idle_handler(fresh)
    fresh.value("%load_ext ipyportal")
    for name in ("run", "await", "run in an async cell", "time.sleep", "on the loop thread"):
        interrupt(fresh, fresh.begin(f"print('begun')\n{CELLS[name]}"))
        assert idle_handler(fresh) == before
    fresh.value("%unload_ext ipyportal")
    assert idle_handler(fresh) == before


def test_a_cell_may_catch_the_interrupt_and_wait_again(shared: Kernel) -> None:
    pending = shared.begin("""
        try:
            print("begun")
            run(work())
        except KeyboardInterrupt:
            print("caught", len(alive))
        run(work(0.01))
        print("waited again")
    """)
    time.sleep(0.1)
    shared.interrupt()
    reply = pending.reply(timeout=10)
    assert reply.error is None
    assert reply.stdout == "begun\ncaught 0\nwaited again\n"
    assert_nothing_is_left(shared)


def test_an_interrupt_of_result_stops_the_wait_and_the_call_goes_on(shared: Kernel) -> None:
    error = interrupt(shared, shared.begin("call = submit(work())\nprint('begun')\ncall.result()  # here"))
    assert error.ename == "KeyboardInterrupt"
    assert "# here" in error.traceback
    assert shared.value("call.done(), len(alive)") == (False, 1)
    shared.value("call.cancel()\ntry: call.result()\nexcept BaseException as exc: pass")
    assert_nothing_is_left(shared)


def test_a_callback_that_waits_while_no_cell_runs_is_interrupted(shared: Kernel) -> None:
    button = shared.value("""
        import ipywidgets
        button = ipywidgets.Button()
        def wait(button):
            print("begun")
            run(work())
            print("not reached")
        button.on_click(wait)
        button.model_id
    """)
    click = shared.click(button)
    shared.wait_for(click.stdout_so_far)
    time.sleep(0.1)
    shared.interrupt()
    assert click.reply(timeout=10).stdout == "begun\n"
    assert_nothing_is_left(shared)


@pytest.mark.parametrize("waiting", ["sync", "async"])
def test_a_callback_that_waits_and_the_cell_that_waits_are_both_interrupted(shared: Kernel, waiting: str) -> None:
    button = shared.value("""
        import ipywidgets
        button = ipywidgets.Button()
        def wait(button):
            print("begun")
            run(work())
            print("not reached")
        button.on_click(wait)
        button.model_id
    """)
    cell = shared.begin("print('begun')\n" + ("run(work())" if waiting == "sync" else "await work()"))
    click = shared.click(button)
    shared.wait_for(click.stdout_so_far)
    error = interrupt(shared, cell)
    assert error.ename == "KeyboardInterrupt"
    assert_nothing_is_left(shared)
    assert click.stdout_so_far() == "begun\n"


@pytest.mark.parametrize("cell", ["run(asyncio.sleep(0.3))", "await asyncio.sleep(0.3)"], ids=["sync", "async"])
@pytest.mark.parametrize("ending", ["interrupted", "by itself"])
def test_a_callback_that_outlives_its_cell_ends_and_leaves_the_original_handler(
    fresh: Kernel, cell: str, ending: str
) -> None:
    before = idle_handler(fresh)
    fresh.value("%load_ext ipyportal")
    button = fresh.value("""
        import ipywidgets
        button = ipywidgets.Button()
        def wait(button):
            print("begun")
            run(work(0.8))
            print("ended by itself")
        button.on_click(wait)
        button.model_id
    """)
    waiting = fresh.begin(f"print('begun')\n{cell}")
    click = fresh.click(button)
    assert waiting.reply().error is None
    time.sleep(0.1)  # no cell runs
    if ending == "interrupted":
        fresh.interrupt()
    ended_by_itself = "ended by itself" in click.reply(timeout=10).stdout
    assert ended_by_itself is (ending == "by itself")
    assert fresh.answers_within(10)
    assert idle_handler(fresh) == before


@pytest.mark.parametrize("cell", ["", "await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_a_cell_that_loads_the_extension_and_waits_in_one_breath_is_interrupted(fresh: Kernel, cell: str) -> None:
    error = interrupt(fresh, fresh.begin(f"%load_ext ipyportal\n{cell}print('begun')\nrun(work())  # here"))
    assert error.ename == "KeyboardInterrupt"
    assert "# here" in error.traceback
    error = interrupt(fresh, fresh.begin("print('begun')\nrun(work())  # here"))
    assert error.ename == "KeyboardInterrupt"


@pytest.mark.parametrize("cell", ["", "await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_a_cell_of_a_kernel_without_the_extension_is_interrupted(fresh: Kernel, cell: str) -> None:
    error = interrupt(fresh, fresh.begin(f"{cell}print('begun')\nrun(work())  # here"))
    assert error.ename == "KeyboardInterrupt"


STUBBORN = """
    go = asyncio.Event()
    async def stubborn():
        try:
            await asyncio.sleep(60)
        finally:
            print("cleaning up")
            await go.wait()
            print("cleaned up")
    None
"""

STUBBORN_CELLS = ("run(stubborn())", "run(asyncio.ensure_future(stubborn()))", "run(asyncio.gather(stubborn()))")


@pytest.mark.parametrize("cell", STUBBORN_CELLS)
def test_a_second_interrupt_gives_up_a_long_clean_up_which_goes_on(shared: Kernel, cell: str) -> None:
    shared.value(STUBBORN)
    pending = shared.begin(f"print('begun')\n{cell}  # here")
    time.sleep(0.1)
    shared.interrupt()
    shared.wait_for(lambda: "cleaning up" in pending.stdout_so_far(), 10)
    error = interrupt_now(shared, pending)
    assert error.ename == "KeyboardInterrupt"
    assert "goes on with its clean-up" in error.evalue
    assert "# here" in error.traceback
    assert shared.answers_within(10)
    shared.value("go.set()\nNone")
    shared.wait_for(lambda: "cleaned up" in pending.stdout_so_far(), 10)
    assert_nothing_is_left(shared)


@pytest.mark.parametrize("cell", STUBBORN_CELLS)
def test_a_clean_up_longer_than_the_grace_is_left_to_go_on(shared: Kernel, cell: str) -> None:
    shared.value(STUBBORN)
    shared.value("from ipyportal import notebook\nnotebook._loaded[0].interrupts.grace = 0.3")
    try:
        pending = shared.begin(f"print('begun')\n{cell}  # here")
        error = interrupt(shared, pending, within=8)
    finally:
        shared.value("notebook._loaded[0].interrupts.grace = 10.0")
    assert error.ename == "KeyboardInterrupt"
    assert "goes on with its clean-up" in error.evalue
    shared.value("go.set()\nNone")
    shared.wait_for(lambda: "cleaned up" in pending.stdout_so_far(), 10)
    assert_nothing_is_left(shared)


def test_a_second_interrupt_ends_an_async_cell_whose_clean_up_takes_long(shared: Kernel) -> None:
    shared.value(STUBBORN)
    pending = shared.begin("print('begun')\nawait stubborn()  # here")
    time.sleep(0.1)
    shared.interrupt()
    shared.wait_for(lambda: "cleaning up" in pending.stdout_so_far(), 10)
    assert interrupt_now(shared, pending).ename == "KeyboardInterrupt"
    assert_nothing_is_left(shared)


# What an asynchronous cell does when it is cancelled, and how often the stop button is pressed then. `never` is a
# future that nobody sets.
CLEAN_UPS = {
    "awaits": ("await never", 1),
    "awaits what cannot be cancelled": ("await asyncio.shield(never)", 1),
    "awaits a group": ("async with asyncio.TaskGroup() as group: group.create_task(asyncio.sleep(60))", 1),
    "awaits within a time-out": ("async with asyncio.timeout(60): await asyncio.sleep(60)", 1),
    "blocks": ("time.sleep(60)", 1),
    "computes": ("while True: pass", 1),
    "waits in run": ("run(work())", 1),
    "waits for a task": ("run(asyncio.ensure_future(work()))", 1),
    "waits for the loop thread": ("run(work(), on='loop')", 1),
    "cleans up itself": ("await work()", 1),
    "will not end": (
        "for n in range(3):\n"
        "        try: await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError: print('will not')",
        3,
    ),
}


@pytest.mark.parametrize("clean_up", CLEAN_UPS)
def test_pressed_again_it_ends_the_clean_up_of_an_async_cell(shared: Kernel, clean_up: str) -> None:
    code, presses = CLEAN_UPS[clean_up]
    shared.value("never = asyncio.get_running_loop().create_future()")
    pending = shared.begin(
        f"try:\n    print('begun')\n    await asyncio.sleep(60)\nfinally:\n    print('next')\n    {code}"
    )
    shared.interrupt()
    shared.wait_for(lambda: "next" in pending.stdout_so_far(), 5)
    for n in range(presses):
        shared.wait_for(lambda n=n: pending.stdout_so_far().count("will not") == n, 5)
        shared.interrupt()
    error = pending.reply(5).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.answers_within(5)
    assert_nothing_is_left(shared)


def test_what_a_clean_up_waits_for_is_cancelled_first_and_given_up_then(shared: Kernel) -> None:
    # It began after the cell had been cancelled: giving it up would leave work behind that nobody has told to end.
    shared.value(STUBBORN)
    pending = shared.begin("print('begun')\ntry: await asyncio.sleep(60)\nfinally: run(stubborn())  # here")
    time.sleep(0.1)
    shared.interrupt()
    time.sleep(0.1)
    shared.interrupt()
    shared.wait_for(lambda: "cleaning up" in pending.stdout_so_far(), 5)
    error = interrupt_now(shared, pending)
    assert error.ename == "KeyboardInterrupt"
    assert "goes on with its clean-up" in error.evalue
    shared.value("go.set()\nNone")
    shared.wait_for(lambda: "cleaned up" in pending.stdout_so_far(), 5)
    assert_nothing_is_left(shared)


def test_a_second_interrupt_gives_up_the_clean_up_of_a_call_on_the_loop_thread(shared: Kernel) -> None:
    shared.value("""
        release = threading.Event()
        async def stubborn_there():
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaning up")
                await asyncio.to_thread(release.wait)
                print("cleaned up")
    """)
    pending = shared.begin("print('begun')\nrun(stubborn_there(), on='loop')  # here")
    time.sleep(0.1)
    shared.interrupt()
    shared.wait_for(lambda: "cleaning up" in pending.stdout_so_far(), 10)
    error = interrupt_now(shared, pending)
    assert error.ename == "KeyboardInterrupt"
    shared.value("release.set()")
    shared.wait_for(lambda: "cleaned up" in pending.stdout_so_far(), 10)
    assert_nothing_is_left(shared)


# The press comes in the middle of what asyncio does for the user's code: `gather()` asks `presses` for its loop when it
# has made a task for each coroutine before it, which nobody would cancel; and `event.set()` asks the first who waits
# whether it is done, before it tells the others.
AMID = """
    import functools, itertools, operator

    def pressing(answer):
        # Of methods of C: it has no frame of its own.
        pressed = map(signal.raise_signal, [signal.SIGINT])
        answers = map(operator.itemgetter(1), zip(pressed, [answer]))
        return functools.partial(next, itertools.chain(answers, itertools.repeat(answer)))

    class Future(asyncio.Future): pass

    presses = Future()
    presses.get_loop = pressing(asyncio.get_running_loop())

    event = asyncio.Event()
    event._waiters.append(Future())
    event._waiters[0].done = pressing(False)
    waits = asyncio.ensure_future(event.wait())

    def burn():
        while True: pass
"""

AMID_CELLS = {
    "await gather": "await asyncio.gather(work(), work(), presses, work())",
    "await gather in a function": "async def f(): await asyncio.gather(work(), work(), presses)\nawait f()",
    "gather": "run(asyncio.gather(work(), work(), presses, work()))",
    "gather in a call": "async def f(): await asyncio.gather(work(), work(), presses)\nrun(f())",
    "gather, and no wait": "if True:\n    asyncio.gather(noop(), noop(), presses)\n    burn()  # here",
    "gather, and no wait in an async cell": (
        "if await noop() is None:\n    asyncio.gather(noop(), noop(), presses)\n    burn()  # here"
    ),
    "gather, and the cell's next statement": "asyncio.gather(noop(), noop(), presses)\nburn()",
    "event": "event.set()\nrun(work())",
    "event in an async cell": "event.set()\nawait work()",
}


@pytest.mark.parametrize("name", AMID_CELLS)
def test_an_interrupt_amid_asyncio_leaves_nothing_half_done(shared: Kernel, name: str) -> None:
    shared.value(AMID)
    error = shared.begin(f"print('begun')\n{AMID_CELLS[name]}").reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert "# here" in error.traceback or "here" not in AMID_CELLS[name]
    if "event" not in name:
        shared.value("waits.cancel()")
    assert_nothing_is_left(shared)


def test_an_interrupt_while_no_cell_runs_changes_nothing(shared: Kernel) -> None:
    assert shared.answers_within(10)
    time.sleep(0.1)
    shared.interrupt()
    time.sleep(0.1)
    assert shared.value("run(asyncio.sleep(0, 'alive'))") == "alive"
    assert_nothing_is_left(shared)


STORM = ("run", "await", "run in an async cell", "gather of 20", "await gather of 20", "nested 5 deep")
STORM += ("await nested 5 deep", "tight loop of sleep(0)", "await tight loop of sleep(0)")
STORM += ("tight loop of what does not suspend", "task group", "the magic", "on the loop thread", "pure Python")


@pytest.mark.parametrize(
    "count",
    [60, pytest.param(200, marks=[pytest.mark.storm, pytest.mark.timeout(400)])],
)
def test_a_storm_of_interrupts_at_random_moments(loaded_kernel: Kernel, count: int) -> None:
    kernel = loaded_kernel
    kernel.value(PRELUDE)
    dice = random.Random(20)
    for number in range(count):
        name, delay = dice.choice(STORM), dice.random() * 0.05
        pending = kernel.begin(f"print('begun')\n{CELLS[name]}")
        time.sleep(delay)
        kernel.interrupt()
        told = f"interrupt {number}, {1000 * delay:.1f} ms into {name!r}"
        error = pending.reply(timeout=10).error
        assert error is not None, told
        assert error.ename == "KeyboardInterrupt", f"{told}: {error.traceback}"
        assert kernel.answers_within(10), told
        assert kernel.value("len(alive)") == 0, told
    assert_nothing_is_left(kernel)
