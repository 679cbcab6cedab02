"""The notebook of the site, run from top to bottom as its reader does it. The tests belong together, in this order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .needs import need_lite

need_lite()

from playwright.sync_api import expect  # noqa: E402

from tests.notebook.jupyterlab import Notebook  # noqa: E402

from .jupyterlite import Lite  # noqa: E402

pytestmark = pytest.mark.timeout(300)  # the first test waits for the build, the browser and a kernel

NAME = "try.ipynb"
PATH = Path(__file__).parents[2] / "docs/lite/files" / NAME
CELLS = [cell["id"] for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
"""The names of the code cells."""


class Cells:
    """The code cells of the open notebook, by their names."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.ran: list[str] = []

    def run(self, name: str) -> str:
        """Run a cell, wait for its end, and return the text that is below it then."""
        self.ran.append(name)
        self.notebook.run(CELLS.index(name))
        return self.text(name)

    def text(self, name: str) -> str:
        """The text that is below a cell now."""
        return "\n".join(self.notebook.outputs(CELLS.index(name)).all_inner_texts())


@pytest.fixture(scope="module")
def cells(lite: Lite) -> Iterator[Cells]:
    lite.server.forget()
    with lite.notebook(NAME) as notebook:
        yield Cells(notebook)


def test_the_extension_is_loaded_and_says_nothing(cells: Cells) -> None:
    assert cells.run("load") == ""


def test_a_plain_function_waits_where_it_is_a_key(cells: Cells, lite: Lite) -> None:
    assert cells.run("plain-code") == "['Perth', 'Lima', 'Nairobi', 'Lisbon', 'Riga', 'Oslo']"
    assert "/files/cities/Riga.json" in lite.server.requests()


def test_a_task_goes_on_meanwhile(cells: Cells) -> None:
    said = cells.run("tick-code")
    assert (found := re.fullmatch(r"\(\[-12.05, 38.72, .*, 56.95\], (\d+)\)", said)), said
    assert int(found[1]) > 10  # of about 60


def test_many_at_once_come_in_order(cells: Cells) -> None:
    lines = cells.run("many-code").splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("Lima -12.05 -77.04", "Riga 56.95 24.11", 6)


def test_the_clean_up_comes_before_the_error(cells: Cells) -> None:
    assert cells.run("time-out-code") == "clean-up\nTimeoutError: take_long timed out after 0.5 s\n"


def test_the_card_counts_up_and_ends_and_the_output_comes_below_its_cell(cells: Cells) -> None:
    cells.run("background-code")
    outputs = cells.notebook.outputs(CELLS.index("background-code"))
    expect(outputs.first).to_contain_text(re.compile(r"running.* [123]\.\d s"))
    assert cells.run("wait-code") == "'lift-off'"
    expect(outputs.first).to_contain_text(re.compile(r"finished.* [3-9]\.\d s"))
    expect(outputs.last).to_have_text("3\n2\n1\n")


def test_a_plain_loop_takes_from_an_async_generator(cells: Cells) -> None:
    assert cells.run("iterate-code") == "'Lima, Nairobi, Perth'"


def test_a_click_calls_a_function_that_waits(cells: Cells) -> None:
    assert cells.run("widget-code").endswith("Where is it?")
    output = cells.notebook.outputs(CELLS.index("widget-code"))
    for city, place in {"Riga": "56.95, 24.11", "Lima": "-12.05, -77.04"}.items():
        output.get_by_role("button", name=city, exact=True).click()
        expect(output).to_contain_text(f"{city} lies at {place}")


def test_all_cells_were_run_and_no_other_machine_was_asked(cells: Cells, lite: Lite) -> None:
    assert cells.ran == CELLS
    assert lite.server.outside() == []
