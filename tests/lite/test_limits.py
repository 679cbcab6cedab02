"""What docs/browser.md says does not work in JupyterLite. If a test of these fails, change the page: it works now."""

from __future__ import annotations

import pytest

from .needs import need_lite

need_lite()

from .jupyterlite import LiteKernel  # noqa: E402 - where there is playwright

pytestmark = pytest.mark.timeout(300)  # the first test waits for the build, the browser and a kernel


@pytest.fixture(scope="module")
def kernel(lite_kernel: LiteKernel) -> LiteKernel:
    lite_kernel.execute("%load_ext ipyportal")
    lite_kernel.execute("import asyncio, time, ipywidgets\nfrom ipyportal import run, submit")
    return lite_kernel


def test_the_stop_button_does_not_end_a_cell_but_drops_those_that_follow(kernel: LiteKernel) -> None:
    waiting = kernel.execute_async("print('waits')\nrun(asyncio.sleep(5, 'over'))")
    queued = kernel.execute_async("ran = True")
    kernel.wait_for(lambda: "waits" in str(waiting.messages))
    kernel.interrupt()
    assert waiting.reply().result == "'over'"
    assert queued.reply().status == "error"
    assert kernel.value("'ran' in globals()") is False


def test_a_click_comes_when_the_cell_is_over(kernel: LiteKernel) -> None:
    shown = kernel.execute(
        """
        clicked = []
        button = ipywidgets.Button()
        button.on_click(lambda _: clicked.append(time.monotonic()))
        print(button.model_id)
        """
    )
    waiting = kernel.execute_async("print('waits')\nrun(asyncio.sleep(3))\nend = time.monotonic()\nclicked")
    kernel.wait_for(lambda: "waits" in str(waiting.messages))
    kernel.click(shown.stdout.strip())
    assert waiting.reply().result == "[]"
    kernel.wait_for(lambda: kernel.value("len(clicked)") == 1)
    assert kernel.value("clicked[0] >= end") is True


def test_code_that_computes_is_not_timed_out(kernel: LiteKernel) -> None:
    reply = kernel.execute(
        """
        def compute():
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                pass
            return "done"
        run(compute, timeout=0.1)
        """
    )
    assert reply.result == "'done'"


@pytest.mark.parametrize(
    "code", ["run(asyncio.sleep(0), on='thread')", "submit(print, on='thread')", "%%thread\n1", "%%thread --name db\n1"]
)
def test_there_are_no_threads(kernel: LiteKernel, code: str) -> None:
    error = kernel.execute(code).error
    assert error is not None
    assert "Python in a browser has one thread, and no other can be started" in error.evalue
