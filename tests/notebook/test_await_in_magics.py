"""``await`` in %time, %timeit, %prun and %%capture; and these magics as they were, for all else."""

from __future__ import annotations

import re

import pytest

from .kernel import Kernel

PRELUDE = """
import asyncio, pstats, statistics, sys, threading, time

async def double(n):
    await asyncio.sleep(0)
    return 2 * n

async def numbers(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number

async def spin_after_a_switch():
    await asyncio.sleep(0)
    spin()

async def spin_at_once():
    spin()

def spin():
    end = time.perf_counter() + 100e-6
    while time.perf_counter() < end:
        pass
"""

PER_LOOP = re.compile(r"per loop \(mean ± std\. dev\. of (\d+) runs?, (\d+) loops? each\)")


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    assert live_kernel.execute(PRELUDE).error is None
    return live_kernel


@pytest.mark.parametrize(
    ("cell", "result"),
    [
        ("%time await double(2)", "4"),
        ("%time [await double(n) for n in range(3)]", "[0, 2, 4]"),
        ("%time (await double(2)) + len('two  spaces')", "15"),
        ("%%time\nn = await double(2)\nn", "4"),
        ("%%time\n[n async for n in numbers(3)]", "[0, 1, 2]"),
        ("%%time\nasync with asyncio.timeout(5):\n    n = await double(5)\nn", "10"),
        ("%%time\nx = %await double(3)\nx + await double(1)", "8"),
    ],
)
def test_time_times_await_and_gives_the_value(shared: Kernel, cell: str, result: str) -> None:
    reply = shared.execute(cell)
    assert reply.error is None, reply.error.traceback
    assert reply.result == result
    assert "Wall time" in reply.stdout


def test_time_assigns_in_the_notebooks_namespace(shared: Kernel) -> None:
    shared.execute("%time assigned = await double(4)")
    shared.execute("%%time\nalso = await double(5)")
    shared.execute("%time one = await double(1); two = await double(one)")
    shared.execute("%time for n in range(3): last = await double(n)")
    assert shared.value("assigned, also, one, two, last") == (8, 10, 2, 4, 4)


@pytest.mark.parametrize(
    ("line", "runs", "loops"),
    [
        ("%timeit -n 5 -r 2 await double(1)", 2, 5),
        ("%timeit -n5 -r2 (await double(1))", 2, 5),
        ("%timeit -r 3 -n 4 -p 2 [await double(1)]", 3, 4),
        ("%timeit -n 2 -r 2 a = await double(1); await double(a)", 2, 2),
        ("%timeit -n 2 -r 2 for n in range(3): await double(n)", 2, 2),
        ("%%timeit -n 3 -r 2\nfor n in range(3):\n    await double(n)", 2, 3),
        ("%%timeit -n 3 -r 2 a = await double(1)\nawait double(a)", 2, 3),
        ("%%timeit -n 3 -r 2 a = await double(1)\na + 1", 2, 3),
        ("%%timeit -n 3 -r 2\nasync def own():\n    return await double(1)\nawait own()", 2, 3),
    ],
)
def test_timeit_times_await_with_its_options(shared: Kernel, line: str, runs: int, loops: int) -> None:
    reply = shared.execute(line)
    assert reply.error is None, reply.error.traceback
    found = PER_LOOP.search(reply.stdout)
    assert found is not None, reply.stdout
    assert (int(found[1]), int(found[2])) == (runs, loops)


def test_timeit_gives_its_result_object(shared: Kernel) -> None:
    shared.value("timed = %timeit -o -q -n 5 -r 2 await asyncio.sleep(0.002)\nNone")
    assert shared.value("timed.loops, timed.repeat, 0.002 <= timed.best < 0.1") == (5, 2, True)


def test_timeit_chooses_the_number_of_loops_by_itself(shared: Kernel) -> None:
    reply = shared.execute("%timeit -r 1 await asyncio.sleep(0.05)")
    assert reply.error is None
    found = PER_LOOP.search(reply.stdout)
    assert found is not None
    assert int(found[2]) in (1, 5, 10)


def test_timed_code_sees_the_local_variables_of_its_function(shared: Kernel) -> None:
    shared.value("""
        def measured(local):
            value = get_ipython().run_line_magic("time", "await double(local)")
            get_ipython().run_line_magic("timeit", "-n 1 -r 1 await double(local)")
            return value
    """)
    assert shared.value("measured(7)") == 14


@pytest.mark.parametrize("cell", ["%prun -q -r await double(3)", "%%prun -q -r\nn = await double(3)\nawait double(n)"])
def test_prun_profiles_what_is_awaited(shared: Kernel, cell: str) -> None:
    shared.execute("stats = get_ipython().run_line_magic('prun', '-q -r await double(3)')")
    reply = shared.execute(cell)
    assert reply.error is None, reply.error.traceback
    assert shared.value("any(name == 'double' for _, _, name in (_ or stats).stats)") is True


def test_prun_writes_the_report_that_it_is_told_to(shared: Kernel, tmp_path: object) -> None:
    reply = shared.execute(f"%prun -q -T {tmp_path}/report.txt await double(3)\nopen('{tmp_path}/report.txt').read()")
    assert reply.error is None, reply.error.traceback
    assert "(double)" in (reply.result or "")


@pytest.mark.parametrize(
    "cell",
    [
        "%%capture captured\nprint('said', await double(2))\nprint('err', file=sys.stderr)\ndisplay('shown')",
        "%%capture captured\nasync for n in numbers(2):\n    if n: print('said', 4)\n"
        "print('err', file=sys.stderr)\ndisplay('shown')",
    ],
)
def test_capture_captures_what_an_awaiting_body_says(shared: Kernel, cell: str) -> None:
    reply = shared.execute(cell)
    assert (reply.error, reply.stdout, reply.stderr, reply.displays) == (None, "", "", [])
    assert shared.value("captured.stdout, captured.stderr, len(captured.outputs)") == ("said 4\n", "err\n", 1)


def test_capture_with_its_options_lets_the_rest_through(shared: Kernel) -> None:
    reply = shared.execute("%%capture --no-stderr captured\nprint('out')\nprint(await double(1), file=sys.stderr)")
    assert (reply.stdout, reply.stderr) == ("", "2\n")


def test_capture_keeps_the_namespace(shared: Kernel) -> None:
    shared.execute("%%capture\nset_under_capture = await double(8)")
    assert shared.value("set_under_capture") == 16


@pytest.mark.parametrize(
    ("cell", "result", "says"),
    [
        ("%time 1 + 1", "2", "Wall time"),
        ("%time 'await'", "'await'", "Wall time"),
        ("%%time\nx = 3\nx", "3", "Wall time"),
        ("%timeit -n 2 -r 2 'await ' + 'x'", None, "2 loops each"),
        ("%timeit -n2 -r2 -q 1", None, ""),
        ("%%timeit -n 2 -r 2 a = 1\na + 1", None, "2 loops each"),
        ("t = %timeit -n 2 -r 2 -o -q 1\nt.loops", "2", ""),
        ("%%capture plain\nprint('said')\n", None, ""),
        ("%%capture\nasync def f():\n    await asyncio.sleep(0)", None, ""),
        ("%%time\nasync def f():\n    await asyncio.sleep(0)", None, "Wall time"),
        ("%prun -q len('a')", None, ""),
        ("%%prun -q\nlen('a')", None, ""),
    ],
)
def test_without_await_they_are_as_ever(shared: Kernel, cell: str, result: str | None, says: str) -> None:
    reply = shared.execute(cell)
    assert (reply.error, reply.result) == (None, result)
    assert says in reply.stdout


def test_without_await_they_see_local_variables_as_ever(shared: Kernel) -> None:
    shared.value("""
        def measured(local):
            get_ipython().run_line_magic("timeit", "-n 1 -r 1 -q local + 1")
            return get_ipython().run_line_magic("time", "local + 1")
    """)
    assert shared.value("measured(7)") == 8


def test_what_cannot_be_timed_says_how_it_can(shared: Kernel) -> None:
    error = shared.execute("%timeit [n async for n in numbers(3)]").error
    assert error is not None
    assert error.ename == "SyntaxError"
    assert "put them into an async function and await that" in error.evalue


def test_timing_inside_of_what_is_timed(shared: Kernel) -> None:
    shared.value("""
        async def timing():
            get_ipython().run_line_magic("time", "await double(1)")
            return 5
    """)
    reply = shared.execute("%timeit -n 2 -r 2 await timing()")
    assert reply.error is None, reply.error.traceback
    assert shared.execute("%%time\nawait timing() + await timing()").result == "10"


def test_timing_in_the_background_does_not_disturb_that_of_a_cell(shared: Kernel) -> None:
    shared.value("%%background job\nfor _ in range(20):\n    %timeit -n 5 -r 1 -q await double(1)\n'done'")
    for _ in range(5):
        assert shared.execute("%timeit -n 5 -r 1 -q await double(1)").error is None
    assert shared.value("job.result()") == "done"


def test_what_other_code_sets_meanwhile_stays_set(shared: Kernel) -> None:
    shared.value("count = 0\nasync def counting():\n    global count\n    count += 1")
    shared.execute("%timeit -n 5 -r 2 await counting()")
    shared.execute("%time await counting()")
    assert shared.value("count") == 11


def test_nothing_of_ours_stays_in_the_namespace(shared: Kernel) -> None:
    # Others may be timing in threads of this kernel: what was there before is theirs.
    before = shared.value("[name for name in globals() if 'ipyportal' in name]")
    shared.execute("%time await double(1)\n%timeit -n 1 -r 1 await double(1)")
    shared.execute("%%time\nawait double(1)")
    after = shared.value("[name for name in globals() if 'ipyportal' in name]")
    assert set(after) <= set(before)


@pytest.mark.storm  # a ratio of times, which a busy machine spoils
@pytest.mark.parametrize("work", ["spin_after_a_switch", "spin_at_once"])
def test_timeit_measures_what_a_loop_by_hand_does(shared: Kernel, work: str) -> None:
    by_hand = f"""
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(100):
                await {work}()
            times.append((time.perf_counter() - begin) / 100)
        statistics.median(times)
    """
    magic = f"timed = %timeit -o -q -n 100 -r 5 await {work}()\nstatistics.median(timed.timings)"
    ratios = []
    for _ in range(3):  # the machine may be busy with something else
        ratios.append(shared.value(magic) / shared.value(by_hand))
        if 0.8 < ratios[-1] < 1.25:
            return
    pytest.fail(f"{work}: %timeit / by hand = {ratios}")


def test_await_in_these_magics_can_be_switched_off_and_on(shared: Kernel) -> None:
    shared.value("%portal await off")
    try:
        error = shared.execute("%time await double(1)").error
        assert error is not None
        assert error.ename == "SyntaxError"
        assert shared.value("'ipyportal' in (get_ipython().find_magic('time').__code__.co_filename)") is False
    finally:
        shared.value("%portal await on")
    assert shared.value("%time await double(1)") == 2
