"""`iterate`, `enter`, `syncify` and `map` in cells: the cell's own task, a live kernel, and the stop button."""

from __future__ import annotations

import inspect
import time

import pytest

from tests import web

from .kernel import Error, Kernel, Pending

PRELUDE = """
    import itertools
    import ipyportal
    from ipyportal import EventLoopThread, WorkerThread, enter, iterate, syncify
    from ipyportal import map as many

    alive = set()  # what has begun and not cleaned up

    async def work(seconds=60):
        me = object()
        alive.add(me)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            raise
        finally:
            alive.discard(me)
        return seconds

    tasks_seen = []

    async def stream(count=10**9, seconds=0.0, closing=0.0):
        me = object()
        alive.add(me)
        tasks_seen[:] = [asyncio.current_task()]
        try:
            for n in range(count):
                await asyncio.sleep(seconds)
                tasks_seen.append(asyncio.current_task())
                yield n
        finally:
            tasks_seen.append(asyncio.current_task())
            await asyncio.sleep(closing)
            alive.discard(me)

    class Manager:
        async def __aenter__(self):
            self.tasks = [asyncio.current_task()]
            alive.add(self)
            return self
        async def __aexit__(self, kind, exc, tb):
            await asyncio.sleep(0)
            self.tasks.append(asyncio.current_task())
            self.kind = kind
            alive.discard(self)

    async def fails():
        await asyncio.sleep(0.01)
        1 / 0

    def blocks():
        me = object()
        alive.add(me)
        try:
            while True:
                time.sleep(0.01)
        finally:
            alive.discard(me)
"""


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    live_kernel.value(PRELUDE)
    return live_kernel


def test_a_cell_iterates_and_enters_in_its_own_task(shared: Kernel) -> None:
    assert shared.value("""
        here = await_free = None
        async def task(): return asyncio.current_task()
        here = run(task())
        numbers = list(iterate(stream(3)))
        with enter(Manager()) as manager:
            run(asyncio.sleep(0))
        numbers, {*tasks_seen, *manager.tasks} == {here}, manager.kind
    """) == ([0, 1, 2], True, None)


@pytest.mark.parametrize("on", ["'loop'", "'kernel'", "'thread'"])
def test_with_on_it_has_a_task_of_its_own_there(shared: Kernel, on: str) -> None:
    assert shared.value(f"""
        numbers = list(iterate(stream(3), on={on}))
        with enter(Manager(), on={on}) as manager:
            run(asyncio.sleep(0))
        (numbers, len(set(tasks_seen)), len(set(manager.tasks)), len({{*tasks_seen, *manager.tasks}}),
         (manager.tasks[0].get_loop() is asyncio.get_running_loop()) == ({on} == "kernel"))
    """) == ([0, 1, 2], 1, 1, 2, True)


@pytest.mark.parametrize("on", ["None", "'loop'", "'kernel'"])
def test_a_loop_that_breaks_has_closed_when_it_ends(shared: Kernel, on: str) -> None:
    assert shared.value(f"""
        for n in iterate(stream(), on={on}):
            if n == 3:
                break
        len(alive), len(set(tasks_seen)), n
    """) == (0, 1, 3)


def test_the_kernel_lives_while_a_cell_iterates_enters_and_maps(shared: Kernel) -> None:
    assert (
        shared.value("""
        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.001)
        counts = []
        background = asyncio.get_running_loop().create_task(tick())
        def counted(fn):
            global ticks
            ticks = []
            fn()
            return len(ticks) > 3
        def iterates():
            for _ in iterate(stream()):
                if len(ticks) > 3:
                    return
        async def ticked(_=None):
            while len(ticks) <= 3:
                await asyncio.sleep(0.001)
        def enters():
            with enter(Manager()):
                run(ticked())
        def blocks_until_ticked(_):
            while len(ticks) <= 3:
                time.sleep(0.001)
        counts = [
            counted(iterates),
            counted(enters),
            counted(lambda: many(ticked, range(3))),
            counted(lambda: many(blocks_until_ticked, range(3))),
            counted(lambda: list(many.unordered(ticked, range(3), on="loop"))),
        ]
        background.cancel()
        counts
    """)
        == [True] * 5
    )


@pytest.mark.parametrize("on", ["None", "'loop'", "'kernel'", "'thread'"])
def test_timeouts_and_task_groups_end_the_wait_of_the_body(shared: Kernel, on: str) -> None:
    assert shared.value(f"""
        outcomes = []
        try:
            with enter(asyncio.timeout, 0.05, on={on}):
                run(work())
        except TimeoutError:
            outcomes.append("timed out")
        try:
            with enter(asyncio.TaskGroup, on={on}) as group:
                submit(lambda: group.create_task(fails()), on=ipyportal.routes.LoopPortal(group._loop)).result()
                run(work())
        except* ZeroDivisionError:
            outcomes.append("failed")
        outcomes, len(alive)
    """) == (["timed out", "failed"], 0)


def test_an_iteration_goes_on_in_later_cells(shared: Kernel) -> None:
    for on in ("None", "'kernel'", "'loop'"):
        shared.value(f"numbers = iterate(stream(), on={on})")
        assert [shared.value("next(numbers)") for _ in range(3)] == [0, 1, 2]
        assert shared.value("numbers.close()\nlen(alive), list(numbers)") == (0, [])


def test_a_cell_a_task_and_a_thread_take_turns_with_an_iteration(shared: Kernel) -> None:
    # After steps in one place, those in another are not taken for the same.
    assert shared.value("""
        async def numbers():
            for n in range(100):
                await asyncio.sleep(0)
                yield n

        items = iterate(numbers())
        def two(): return [next(items), next(items)]
        async def in_task(): return two()

        got = [two(), await asyncio.create_task(in_task()), two(), await asyncio.to_thread(two), two()]
        items.close()
        got
    """) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_an_iteration_that_a_later_cell_forgets_is_closed_on_its_loop(shared: Kernel) -> None:
    for on in ("None", "'loop'"):
        shared.value(f"numbers = iterate(stream(), on={on})\nnext(numbers)")
        shared.value("del numbers")
        assert shared.value("await asyncio.sleep(0.05)\nlen(alive)") == 0


def test_what_was_entered_is_left_in_its_task_by_a_later_cell(shared: Kernel) -> None:
    shared.value("""
        import contextlib
        stack = contextlib.ExitStack()
        manager = stack.enter_context(enter(Manager(), on="kernel"))
    """)
    shared.value("run(asyncio.sleep(0))")
    assert shared.value("stack.close()\nlen(set(manager.tasks)), len(alive), run(work(0))") == (1, 0, 0)


def test_cells_with_await_and_callbacks_iterate_enter_and_map_as_well(shared: Kernel) -> None:
    assert shared.value("""
        await asyncio.sleep(0)
        with enter(asyncio.timeout, 5):
            numbers = list(iterate(stream(3)))
        numbers, many(work, [0, 0])
    """) == ([0, 1, 2], [0, 0])
    assert shared.value("""
        async def deep(depth):
            await asyncio.sleep(0)
            return 1 + many(deep, [depth - 1])[0] if depth else 0
        run(deep(10)), await deep(10), run(deep(10), on="loop")
    """) == (10, 10, 10)


def test_a_map_returns_its_results_in_order_whatever_runs_it(shared: Kernel) -> None:
    assert (
        shared.value("""
        with EventLoopThread() as loop, WorkerThread() as worker:
            results = [many(work, [0.02, 0.0], on=on) for on in (None, "kernel", "loop", "thread", loop, worker)]
            results += [many(abs, [-1, 2], on=on) for on in (None, "kernel", "loop", "thread", loop, worker)]
        results
    """)
        == [[0.02, 0.0]] * 6 + [[1, 2]] * 6
    )


def test_a_bar_is_shown_by_the_cell(shared: Kernel) -> None:
    reply = shared.execute("many(work, [0.0] * 4, progress=True)")
    assert reply.result == "[0.0, 0.0, 0.0, 0.0]"
    assert reply.displays or "4/4" in reply.stderr


INTERRUPTED = {
    "iterate": "for _ in iterate(stream(9, 60)): pass",
    "iterate on the loop thread": "for _ in iterate(stream(9, 60), on='loop'): pass",
    "a tight loop": "for _ in iterate(stream()): pass",
    "a tight loop over the loop thread": "for _ in iterate(stream(), on='loop'): pass",
    "a tight loop over a task of the kernel": "for _ in iterate(stream(), on='kernel'): pass",
    "iterate in an async cell": "await asyncio.sleep(0)\nfor _ in iterate(stream()): pass",
    "the body of a loop": "for _ in iterate(stream()): time.sleep(60)",
    "enter": "with enter(Manager()): run(work())",
    "enter on the loop thread": "with enter(Manager(), on='loop'): run(work())",
    "a body that blocks": "with enter(Manager()): time.sleep(60)",
    "a task group": "with enter(asyncio.TaskGroup()) as group:\n    group.create_task(work())\n    run(work())",
    "map": "many(work, [60] * 5)",
    "map on the loop thread": "many(work, [60] * 5, on='loop')",
    "map in threads": "many(lambda _: blocks(), range(3))",
    "map over an endless input": "many(work, itertools.repeat(0), limit=5)",
    "an item that blocks the kernel": "async def blocking(n): time.sleep(60)\nmany(blocking, range(3))",
    "unordered": "for _ in many.unordered(work, itertools.repeat(0.001), limit=5): pass",
    "unordered on the loop thread": "for _ in many.unordered(work, itertools.repeat(0), limit=5, on='loop'): pass",
    "the input of a map": "def slow():\n    yield 60\n    time.sleep(60)\nmany(work, slow())",
}


def interrupt(kernel: Kernel, pending: Pending) -> Error:
    time.sleep(0.05)  # from its first output to the wait
    kernel.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    return error


@pytest.mark.parametrize("name", INTERRUPTED)
def test_the_stop_button_ends_it_with_its_clean_up(shared: Kernel, name: str) -> None:
    error = interrupt(shared, shared.begin(f"print('begun')\n{INTERRUPTED[name]}"))
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("len(alive)") == 0
    assert shared.value("run(work(0))") == 0


def test_the_stop_button_while_a_break_closes_ends_the_clean_up_and_the_cell(shared: Kernel) -> None:
    cell = "print('begun')\nfor _ in iterate(stream(9, 0, closing=60)): break\nfor _ in range(300): time.sleep(0.1)"
    error = interrupt(shared, shared.begin(cell))
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("alive.clear()\nrun(work(0))") == 0


def test_an_interrupted_map_keeps_what_was_finished(shared: Kernel) -> None:
    error = interrupt(shared, shared.begin("print('begun')\nmany(work, [0.0, 60, 0.0, 61])"))
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("sys.last_value.finished, len(alive)") == ({0: 0.0, 2: 0.0}, 0)


def test_a_failed_map_says_which_item_it_was(shared: Kernel) -> None:
    shared.value("async def inverse(n): return 1 / n")
    error = shared.execute("many(inverse, [2, 1, 0, 1])").error
    assert error is not None
    assert error.ename == "ZeroDivisionError"
    assert shared.value("sys.last_value.__notes__[0]") == "ipyportal: item 2 of map: inverse(0)"


def test_a_million_items_do_not_keep_the_kernel_from_answering(shared: Kernel) -> None:
    # Items that are over at once never make the loop wait: between two exchanges it must run all the same.
    assert shared.value("""
        async def nothing(n): pass
        ticked = []
        asyncio.get_running_loop().call_later(0.01, ticked.append, 1)
        done = sum(1 for _ in many.unordered(nothing, range(20_000), limit=100) if not ticked)
        done < 20_000, len(ticked)
    """) == (True, 1)


LIBRARIES = """
    import aiosqlite, httpx
    await asyncio.sleep(0)
    servers = contextlib.ExitStack()
    address = servers.enter_context(enter(web(), on="kernel"))
"""


def test_a_client_a_stream_and_a_database_from_plain_functions(shared: Kernel, tmp_path: object) -> None:
    source = inspect.getsource(web).replace("from __future__ import annotations\n", "import contextlib\n")
    assert shared.execute(source).error is None
    assert shared.execute(inspect.cleandoc(LIBRARIES)).error is None
    assert shared.value("""
        def page(path):
            with syncify(httpx.AsyncClient)(base_url=address, trust_env=False) as client:
                return client.get(path).text
        def lines(n):
            with enter(httpx.AsyncClient(base_url=address, trust_env=False)) as client:
                with enter(client.stream("GET", f"/lines/{n}")) as response:
                    return list(iterate(response.aiter_lines()))
        page("/x"), lines(3)
    """) == ("/x", ["line 0", "line 1", "line 2"])
    assert shared.value("""
        client = httpx.AsyncClient(base_url=address, trust_env=False)
        texts = [response.text for response in many(client.get, ["/a", "/b", "/c"], limit=2)]
        run(client.aclose())
        texts
    """) == ["/a", "/b", "/c"]
    assert shared.value(f"""
        with enter(aiosqlite.connect({str(tmp_path)!r} + "/a.sqlite")) as db:
            run(db.execute("create table t (n integer)"))
            many(lambda n: db.execute("insert into t values (?)", (n,)), range(3))
            with enter(db.execute("select n from t order by n")) as cursor:
                rows = [n for n, in iterate(cursor)]
        servers.close()
        rows
    """) == [0, 1, 2]
