"""The harness of these tests: a kernel in the browser is driven, and heard, as others are."""

from __future__ import annotations

import pytest

from .needs import need_lite

need_lite()

from .jupyterlite import Lite, LiteKernel  # noqa: E402 - where there is playwright

pytestmark = pytest.mark.timeout(300)  # the first test waits for the build, the browser and a kernel


def test_a_cell_gives_what_it_prints_and_its_value(lite_kernel: LiteKernel) -> None:
    reply = lite_kernel.execute("import sys\nprint('printed')\nprint('warned', file=sys.stderr)\nsys.platform")
    assert (reply.stdout, reply.stderr, reply.result) == ("printed\n", "warned\n", "'emscripten'")
    assert reply.status == "ok"


def test_a_cell_may_await(lite_kernel: LiteKernel) -> None:
    reply = lite_kernel.execute("import asyncio\nawait asyncio.sleep(0.1, 'slept')")
    assert reply.result == "'slept'"
    assert reply.elapsed >= 0.1


def test_a_cell_that_fails_gives_its_error(lite_kernel: LiteKernel) -> None:
    reply = lite_kernel.execute("1 / 0")
    assert reply.status == "error"
    assert reply.error is not None
    assert reply.error.evalue == "division by zero"
    assert "ZeroDivisionError: division by zero" in reply.error.traceback
    assert lite_kernel.value("1 + 1") == 2


def test_many_cells_get_a_reply_each(lite_kernel: LiteKernel) -> None:
    pending = [lite_kernel.execute_async(f"{number}") for number in range(50)]
    assert [each.reply().result for each in pending] == [str(number) for number in range(50)]


def test_what_is_displayed_is_seen_as_it_is_now(lite_kernel: LiteKernel) -> None:
    pending = lite_kernel.execute_async(
        """
        from IPython.display import HTML, display

        shown = display(HTML("<b>0</b>"), display_id=True)

        async def count():
            for number in (1, 2):
                await asyncio.sleep(0.1)
                shown.update(HTML(f"<b>{number}</b>"))

        counting = asyncio.ensure_future(count())
        """
    )
    pending.reply()
    lite_kernel.wait_for(lambda: lite_kernel.html(pending) == ["<b>2</b>"])
    assert pending.reply().displays[0]["text/html"] == "<b>0</b>"


def test_what_is_cleared_is_not_shown(lite_kernel: LiteKernel) -> None:
    pending = lite_kernel.execute_async(
        """
        from IPython.display import clear_output

        display(1)
        clear_output(wait=True)
        display(2)
        """
    )
    pending.reply()
    assert lite_kernel.shown(pending) == [{"text/plain": "2"}]


def test_a_widget_can_be_clicked(lite_kernel: LiteKernel) -> None:
    created = lite_kernel.execute(
        """
        import ipywidgets

        button = ipywidgets.Button()
        clicks = []
        button.on_click(clicks.append)
        button.model_id
        """
    )
    assert created.result is not None, created.error
    lite_kernel.click(created.result.strip("'"))
    lite_kernel.wait_for(lambda: lite_kernel.value("len(clicks)") == 1)


def test_input_is_answered(lite_kernel: LiteKernel) -> None:
    reply = lite_kernel.execute("input('How many? ')", answers=["three"])
    assert reply.result == "'three'"


def test_a_kernel_begins_with_nothing_of_another(lite: Lite, lite_kernel: LiteKernel) -> None:
    lite_kernel.execute("mine = 1")
    with lite.kernel() as other:
        assert other.value("'mine' in globals()") is False
        assert other.value("'ipyportal' in __import__('sys').modules") is False
    assert lite_kernel.value("mine") == 1


def test_the_page_is_served_as_any_web_server_does_it(lite: Lite) -> None:
    assert lite.page.evaluate("window.crossOriginIsolated") is False


def test_a_request_to_another_machine_is_seen(lite: Lite, lite_kernel: LiteKernel) -> None:
    assert "/static/pyodide/pyodide.asm.wasm" in lite.server.requests()
    assert lite.server.outside() == []
    lite.page.evaluate("fetch('http://page.example/').catch(() => null)")
    lite_kernel.execute("import pyodide.http\nawait pyodide.http.pyfetch('https://worker.example/')")
    assert set(lite.server.outside()) == {"http://page.example/", "worker.example:443"}
    lite.server.forget()
