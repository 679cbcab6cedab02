"""The extension in the Pyodide kernel of JupyterLite."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from .needs import need_lite

need_lite()

from .jupyterlite import Lite, LiteKernel  # noqa: E402 - where there is playwright

pytestmark = pytest.mark.timeout(300)  # the first test waits for the build, the browser and a kernel

PRELUDE = """
import asyncio
import ipyportal
from ipyportal import iterate, map, on_kernel_thread, run, submit
async def double(n):
    await asyncio.sleep(0.02)
    return 2 * n
def doubled(n):
    return run(double(n))
"""


@pytest.fixture(scope="module")
def kernel(lite_kernel: LiteKernel) -> LiteKernel:
    assert lite_kernel.execute("%load_ext ipyportal").stdout == ""
    lite_kernel.execute(PRELUDE)
    return lite_kernel


def test_a_cell_waits_and_tasks_go_on(kernel: LiteKernel) -> None:
    reply = kernel.execute(
        """
        ticks = 0
        async def tick():
            global ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1
        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0.05)
        ticks = 0
        values = [doubled(n) for n in range(10)]
        ticking.cancel()
        values, ticks > 5
        """
    )
    assert reply.result == "([0, 2, 4, 6, 8, 10, 12, 14, 16, 18], True)"


def test_a_time_out_cleans_up(kernel: LiteKernel) -> None:
    reply = kernel.execute(
        """
        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up")
        run(work(), timeout=0.05)
        """
    )
    assert reply.stdout == "cleaned up\n"
    assert reply.error is not None
    assert reply.error.evalue == "work timed out after 0.05 s"
    assert "ipyportal/" not in reply.error.traceback


def test_output_of_a_call_goes_to_its_own_cell(kernel: LiteKernel) -> None:
    first = kernel.execute_async(
        """
        async def speak():
            for n in range(3):
                await asyncio.sleep(0.5)
                print("call", n)
        call = submit(speak)
        """
    )
    first.reply()
    second = kernel.execute("assert not call.done()\nprint('cell')\nrun(asyncio.sleep(0.7))\nprint('cell')")
    assert second.error is None
    third = kernel.execute("call.result()\nprint('third')")
    kernel.wait_for(lambda: first.reply().stdout.count("\n") == 3)
    assert first.reply().stdout == "call 0\ncall 1\ncall 2\n"
    assert second.stdout == "cell\ncell\n"
    assert third.stdout == "third\n"


def test_a_background_card_counts_up_and_ends(kernel: LiteKernel) -> None:
    cell = kernel.execute_async("%%background job\nawait asyncio.sleep(2.5)\nprint('printed')\n'the value'")
    assert cell.reply().elapsed < 2
    kernel.wait_for(lambda: re.search(r"running.*\b[12]\.\d s", kernel.html(cell)[0]))
    assert kernel.execute("run(job)").result == "'the value'"
    kernel.wait_for(lambda: "finished" in kernel.html(cell)[0])
    assert cell.reply().stdout == "printed\n"
    assert "'the value'" in [shown.get("text/plain") for shown in kernel.shown(cell)]


def test_the_magics(kernel: LiteKernel) -> None:
    assert kernel.execute("x = %await double(4)\nx").result == "8"
    assert kernel.execute("%%await --as y\nawait double(5)").error is None
    assert kernel.execute("y").result == "10"
    assert "Wall time" in kernel.execute("%time await double(1)").stdout
    assert "job" in str(kernel.execute("%calls").displays) + str(kernel.execute("%calls").result)
    refused = kernel.execute("%%thread\n1")
    assert refused.error is not None
    assert "one thread, and no other can be started" in refused.error.evalue
    late = kernel.execute("%%await -t 0.05\nawait asyncio.sleep(60)")
    assert late.error is not None
    assert "timed out after 0.05 s" in late.error.evalue


def test_many_at_once(kernel: LiteKernel) -> None:
    assert kernel.execute("map(double, range(100)) == [2 * n for n in range(100)]").result == "True"
    assert kernel.execute("map(doubled, range(10))").result == str([2 * n for n in range(10)])
    assert kernel.execute("on_kernel_thread(doubled, 4), run(doubled, 3, on='kernel')").result == "(8, 6)"


def test_a_widgets_callback_waits(kernel: LiteKernel) -> None:
    shown = kernel.execute(
        """
        import ipywidgets
        clicked = []
        def on_click(button):
            clicked.append(run(double(3)))
        button = ipywidgets.Button()
        button.on_click(on_click)
        print(button.model_id)
        """
    )
    kernel.click(shown.stdout.strip())
    kernel.wait_for(lambda: kernel.value("clicked") == [6])


def test_a_failure_that_nobody_takes_is_reported_in_its_cell(kernel: LiteKernel) -> None:
    cell = kernel.execute_async(
        """
        async def fails():
            raise KeyError("nobody takes this")
        lost = submit(fails)
        """
    )
    cell.reply()
    kernel.execute("run(asyncio.sleep(0.05))\ndel lost\nimport gc; _ = gc.collect()")
    kernel.wait_for(lambda: "nobody takes this" in cell.reply().stderr)


def test_a_bar_and_what_waits_and_a_patch(kernel: LiteKernel) -> None:
    bar = kernel.execute("map(double, range(5), progress=True)")
    assert (bar.result, bar.stderr) == ("[0, 2, 4, 6, 8]", "")
    where = kernel.execute("waiting = submit(lambda: doubled(1))\nawait asyncio.sleep(0)\n%calls where\nrun(waiting)")
    assert "in double" in where.stdout
    left = kernel.execute(
        """
        %portal patch on
        async def leaves():
            async def forever():
                try: await asyncio.sleep(60)
                finally: print("ended")
            global kept
            kept = asyncio.ensure_future(forever())
            return await double(2)
        print(asyncio.run(leaves()))
        %portal patch off
        """
    )
    assert "ended\n4\n" in left.stdout


def test_tracebacks_show_the_users_frames(kernel: LiteKernel) -> None:
    reply = kernel.execute("with ipyportal.enter(asyncio.timeout(0.05)):\n    run(asyncio.sleep(60))")
    assert reply.error is not None
    assert "run(asyncio.sleep(60))" in reply.error.traceback
    assert "ipyportal/" not in reply.error.traceback


def test_portal_says_what_this_is(kernel: LiteKernel) -> None:
    report = kernel.execute("print(repr(get_ipython().run_line_magic('portal', '')))").stdout
    assert "a Pyodide kernel of JupyterLite, in the browser" in report
    assert "suspended: the loop goes on" in report
    assert "the stop button does not end a cell that runs" in report
    facts = json.loads(
        kernel.execute("import json; print(json.dumps(get_ipython().run_line_magic('portal', '').facts()))").stdout
    )
    assert facts["kind"] == "page"
    assert len(facts["limits"]) == 3


def test_unloading_puts_everything_back(lite: Lite) -> None:
    with lite.kernel() as kernel:
        state = (
            "kernel = get_ipython().kernel\n"
            "(type(kernel).__mro__, sorted(vars(kernel)), sorted(vars(kernel.comm_manager)), kernel._parent_header is "
            "not None)"
        )
        before = kernel.execute(state).result
        kernel.execute("%load_ext ipyportal")
        assert kernel.execute(state).result != before
        kernel.execute("%unload_ext ipyportal")
        assert kernel.execute(state).result == before
        assert kernel.execute("print('here')").stdout == "here\n"


@pytest.fixture(scope="module", autouse=True)
def nothing_runs_at_the_end(kernel: LiteKernel) -> Iterator[None]:
    yield
    assert kernel.execute("%calls cancel all").stdout == "cancelled 0\n"
