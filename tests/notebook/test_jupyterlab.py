"""ipyportal in JupyterLab, in a real browser: what a user sees there, clicks, and stops."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.browser import need_browser

CHROMIUM = need_browser("jupyterlab")

from playwright.sync_api import expect  # noqa: E402 - where there is one

from . import pictures  # noqa: E402
from .jupyterlab import Lab, Notebook, Theme, have_done  # noqa: E402
from .test_display import STATES  # noqa: E402
from .test_notebooks import FOLDER, code_cells, lasting, read  # noqa: E402

pytestmark = pytest.mark.timeout(240)  # the first test waits for the server, too, and for the browser

PRELUDE = """
%load_ext ipyportal
import asyncio, threading
import ipywidgets
from ipyportal import run, submit

gate = threading.Event()

async def opened():
    await asyncio.to_thread(gate.wait, 30)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(CHROMIUM) as lab:
        try:
            yield lab
        finally:
            print(f"the server's own output:\n{lab.server.log()}")


def texts(notebook: Notebook, number: int) -> list[str]:
    return notebook.outputs(number).all_inner_texts()


def test_the_quickstart_gives_the_outputs_that_are_stored_in_it(lab: Lab) -> None:
    stored = read(FOLDER / "quickstart.ipynb")
    fresh = read(FOLDER / "quickstart.ipynb")
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    with lab.notebook("quickstart", fresh.cells) as notebook:
        notebook.run_all()
        expect(notebook.outputs(-1)).to_have_text("False")
        for shown, kept in zip(code_cells(notebook.saved()), code_cells(stored), strict=True):
            assert lasting(shown.outputs) == lasting(kept.outputs), f"this cell gave other outputs:\n{kept.source}"


def test_a_click_is_handled_while_a_synchronous_cell_waits_and_releases_it(lab: Lab) -> None:
    ask = """
def ask(question):
    clicked = asyncio.get_running_loop().create_future()

    def answer(button):
        run(asyncio.sleep(0.01))  # a callback may wait as well
        clicked.set_result(threading.current_thread().name)

    button = ipywidgets.Button(description=question)
    button.on_click(answer)
    display(button)
    return run(clicked)

ask("Go on?")
"""
    with lab.notebook("click", [PRELUDE, ask]) as notebook:
        notebook.run(0)
        notebook.begin(1)
        button = notebook.outputs(1).get_by_role("button", name="Go on?")
        expect(button).to_be_visible()
        assert notebook.is_running(1)
        button.click()
        notebook.wait_for_the_end(1)
        assert texts(notebook, 1)[-1] == "'MainThread'"


def test_a_question_waits_beside_a_background_call_as_in_the_pictures(lab: Lab) -> None:
    with lab.notebook("pictures", pictures.CELLS) as notebook:
        pictures.ask(notebook)
        card = notebook.cell(1).get_by_role("status")
        expect(card).to_contain_text("download ▶ running")
        expect(notebook.outputs(1).last).to_contain_text("part 1")
        assert notebook.is_running(2)
        notebook.outputs(2).get_by_role("button", name="Riga").click()
        notebook.wait_for_the_end(2)
        assert texts(notebook, 2)[-1] == "'Riga'"
        notebook.cell(1).get_by_role("button", name="Cancel").click()
        expect(card).to_contain_text("download ■ cancelled")


def test_the_stop_button_ends_a_wait_after_its_clean_up_and_the_kernel_answers(lab: Lab) -> None:
    patient = """
async def patient():
    try:
        print("waits")
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up")

run(patient())
print("went on")
"""
    with lab.notebook("stop", [PRELUDE, patient, "6 * 7"]) as notebook:
        notebook.run(0)
        notebook.begin(1)
        expect(notebook.outputs(1)).to_have_text("waits\n")
        notebook.stop()
        notebook.wait_for_the_end(1)
        printed, error = texts(notebook, 1)
        assert printed == "waits\ncleaned up\n"
        assert error.endswith("KeyboardInterrupt: ")
        notebook.run(2)
        assert texts(notebook, 2) == ["42"]


def test_a_card_counts_until_its_call_ends(lab: Lab) -> None:
    with lab.notebook("card", [PRELUDE, "%%background job\nawait opened()\n6 * 7", "gate.set()"]) as notebook:
        notebook.run(0)
        notebook.run(1)
        card = notebook.cell(1).get_by_role("status")
        for seconds in "01":
            expect(card).to_contain_text(re.compile(rf"job ▶ running · on ipyportal-loop · {seconds}\.\d s"))
        notebook.run(2)
        expect(card).to_have_text(re.compile(r"job ✓ finished · on ipyportal-loop · \d\.\d s · int: 42"))
        expect(notebook.cell(1).get_by_role("button", name="Cancel")).to_have_count(0)


def test_the_button_of_a_card_cancels_its_call(lab: Lab) -> None:
    job = "%%background job\ntry:\n    await asyncio.sleep(3600)\nfinally:\n    print('cleaned up')"
    with lab.notebook("cancel", [PRELUDE, job, "job.cancelled()"]) as notebook:
        notebook.run(0)
        notebook.run(1)
        button = notebook.cell(1).get_by_role("button", name="Cancel")
        button.click()
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("job ■ cancelled")
        expect(button).to_have_count(0)
        expect(notebook.outputs(1).last).to_have_text("cleaned up\n")
        notebook.run(2)
        assert texts(notebook, 2) == ["True"]


JOB = "%%background job\nawait opened()"


def test_a_press_may_begin_on_a_card_and_end_on_the_one_that_has_taken_its_place(lab: Lab) -> None:
    # The race: a card is replaced each second, and a browser sends no click if the button under the pointer changes.
    with lab.notebook("press", [PRELUDE, JOB]) as notebook:
        notebook.run(0)
        notebook.run(1)
        button = notebook.cell(1).get_by_role("button", name="Cancel job")
        button.hover()
        button.evaluate("button => { window.pressed = button; }")
        lab.page.mouse.down()
        lab.page.wait_for_function("!window.pressed.isConnected")
        lab.page.mouse.up()
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("job ■ cancelled")


def test_a_press_that_is_let_go_elsewhere_cancels_nothing(lab: Lab) -> None:
    with lab.notebook("elsewhere", [PRELUDE, JOB, "gate.set()\njob.result()"]) as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.cell(1).get_by_role("button", name="Cancel job").hover()
        lab.page.mouse.down()
        notebook.cell(0).hover()
        lab.page.mouse.up()
        notebook.run(2)
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("job ✓ finished")


def test_the_button_keeps_the_focus_when_its_card_is_replaced_and_a_key_presses_it(lab: Lab) -> None:
    with lab.notebook("keys", [PRELUDE, JOB]) as notebook:
        notebook.run(0)
        notebook.run(1)
        button = notebook.cell(1).get_by_role("button", name="Cancel job")
        button.focus()
        button.evaluate("button => { window.focused = button; }")
        lab.page.wait_for_function("!window.focused.isConnected")
        expect(button).to_be_focused()
        lab.page.keyboard.press("Enter")
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("job ■ cancelled")


def test_nothing_moves_when_a_call_ends_and_a_card_is_as_wide_as_its_cell(lab: Lab) -> None:
    with lab.notebook("layout", [PRELUDE, JOB, "gate.set()\njob.result()"]) as notebook:
        notebook.run(0)
        notebook.run(1)
        expect(notebook.cell(1).get_by_role("button", name="Cancel job")).to_be_visible()

        def sizes() -> list[dict[str, float]]:
            boxes = [output.bounding_box() for output in notebook.outputs(1).all()]
            return [{"y": box["y"], "width": box["width"], "height": box["height"]} for box in boxes if box is not None]

        before = sizes()
        notebook.run(2)
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("finished")
        assert sizes() == before
        assert before[1]["height"] == 0  # where its value would be
        card = notebook.cell(1).get_by_role("status").bounding_box()
        assert card is not None
        assert card["width"] > 0.95 * before[0]["width"]


def test_the_table_of_calls_has_buttons_and_shows_the_end(lab: Lab) -> None:
    with lab.notebook("calls", [PRELUDE, JOB, "%calls"]) as notebook:
        for number in range(3):
            notebook.run(number)
        row = notebook.cell(2).get_by_role("row", name="job")
        row.get_by_role("button", name="Cancel job").click()
        expect(row).to_contain_text("cancelled")
        expect(row.get_by_role("button")).to_have_count(0)


def test_a_file_that_was_saved_while_a_call_ran_says_since_when_and_has_no_button(lab: Lab) -> None:
    with lab.notebook("dead", [PRELUDE, JOB, "%calls"]) as notebook:
        for number in range(3):
            notebook.run(number)
        expect(notebook.cell(1).get_by_role("button", name="Cancel job")).to_be_visible()
        card = re.compile(
            r"job ▶ running · on ipyportal-loop · \d+\.\d s at \d\d:\d\d:\d\dto cancel it: %calls cancel job"
        )
        expect(notebook.cell(1).get_by_role("status")).to_have_text(card)
        cells = notebook.saved().cells
    lab.load()
    with lab.notebook("reopened", cells) as notebook:  # with another kernel, in which nothing runs
        # Nobody trusts this file here: what is left of the card is that.
        expect(notebook.outputs(1).first).to_have_text(card)
        expect(notebook.cell(1).get_by_text("%calls cancel job")).to_be_visible()
        assert not lab.page.get_by_role("button", name="Cancel job").count()
        assert "Error" not in "".join(texts(notebook, 1))


def test_a_restart_of_the_kernel_takes_the_buttons_away(lab: Lab) -> None:
    with lab.notebook("restart", [PRELUDE, JOB]) as notebook:
        notebook.run(0)
        notebook.run(1)
        button = notebook.cell(1).get_by_role("button", name="Cancel job")
        expect(button).to_be_visible()
        have_done(lab.page, "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        expect(button).to_have_count(0)


def test_after_a_reload_of_the_page_a_button_is_heard_again(lab: Lab) -> None:
    with lab.notebook("reload", [PRELUDE, JOB, "job.cancelled()"]) as notebook:
        notebook.run(0)
        notebook.run(1)
        button = notebook.cell(1).get_by_role("button", name="Cancel job")
        expect(button).to_be_visible()
        notebook.saved()
        lab.page.reload()
        button.click()
        # JupyterLab does not know any more which display the card was: that it has ended is told by the widget.
        expect(notebook.cell(1).get_by_role("status")).to_contain_text("job ■ cancelled")
        notebook.run(2)
        assert texts(notebook, 2) == ["True"]


def test_late_output_appears_below_the_cell_that_launched_it(lab: Lab) -> None:
    cells = [
        PRELUDE,
        "%%background job\nprint('begins')\nawait opened()\nprint('ends')\ndisplay('shown')",
        "async def late():\n    await opened()\n    print('submitted')\n\ncall = submit(late)",
        "print('later')",
        "gate.set()\njob.result(), call.result()",
    ]
    with lab.notebook("late", cells) as notebook:
        for number in range(len(cells)):
            notebook.run(number)
        expect(notebook.outputs(1).last).to_have_text("'shown'")
        assert texts(notebook, 1)[2:] == ["begins\nends\n", "'shown'"]
        expect(notebook.outputs(2)).to_have_text("submitted\n")
        assert [texts(notebook, number) for number in (3, 4)] == [["later\n"], ["(None, None)"]]


CONTRASTS = """
() => {
    const rgba = colour => colour.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
    const luminance = colour => colour
        .map(part => part / 255)
        .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const background = element => element
        ? over(rgba(getComputedStyle(element).backgroundColor), background(element.parentElement))
        : [255, 255, 255];
    const contrasts = [];
    for (const card of document.querySelectorAll(".jp-Notebook [role=status]")) {
        const texts = document.createTreeWalker(card, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            const element = texts.currentNode.parentElement, below = background(element);
            const both = [over(rgba(getComputedStyle(element).color), below), below].map(luminance);
            contrasts.push([texts.currentNode.textContent, (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)]);
        }
    }
    return contrasts;
}
"""
"""Each text in the cards of a page, and the contrast of its colour to its background as the WCAG define it."""


def test_cards_can_be_read_in_the_light_and_in_the_dark_theme(lab: Lab) -> None:
    themes: tuple[Theme, ...] = ("dark", "light")  # the page's own last
    show = "".join(f"display({make().bundle()!r}, raw=True)\n" for make in STATES.values())
    with lab.notebook("themes", [show]) as notebook:
        notebook.run(0)
        expect(notebook.cell(0).get_by_role("status")).to_have_count(len(STATES))
        for theme in themes:
            lab.set_theme(theme)
            contrasts = lab.page.evaluate(CONTRASTS)
            assert len(contrasts) > 3 * len(STATES)
            for text, contrast in contrasts:
                # What the guidelines ask of text, and of signs.
                assert contrast >= (3 if text in "…▶✓✗■" else 4.5), f"{text!r} in the {theme} theme: {contrast:.1f}"
