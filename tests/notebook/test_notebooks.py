"""The notebooks of `notebooks/` give the outputs that are stored in them.

``python -m tests.notebook.test_notebooks`` executes them and stores their outputs anew.

They are driven by the harness and not by nbclient, which takes what a cell prints only while that cell runs. Here late
output is filed under the cell that launched it, as a frontend shows it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

from tests.browser import need_browser
from tests.notebook.kernel import BESIDE_ANOTHER_CLUSTER, Kernel, Message, Pending

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELL_TIMEOUT = 30.0
WITH_A_BROWSER = ("sync_libraries",)
WITH_LIBRARIES = {"agents": ("mcp", "pydantic_ai")}
"""What some notebooks import that is not among the tests' own packages."""
PACKAGES = {"pydantic_ai": "pydantic-ai-slim"}
"""The names to install, where they are not those of import."""
OUTPUTS = ("stream", "display_data", "execute_result", "error")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def missing(path: Path) -> list[str]:
    """The packages that a notebook needs and that are not installed here."""
    names = [name for name in WITH_LIBRARIES.get(path.stem, ()) if importlib.util.find_spec(name) is None]
    return [PACKAGES.get(name, name) for name in names]


def need_libraries(path: Path) -> None:
    """Skip the test where packages of the notebook are missing, and fail it in the job of CI that has them."""
    packages = " and ".join(missing(path))
    if packages and os.environ.get("IPYPORTAL_LIBRARIES"):
        pytest.fail(f"CI needs {packages}")
    if packages:
        pytest.skip(f'needs {packages}: pip install "ipyportal[{path.stem}]"')


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def executed(notebook: NotebookNode) -> list[list[NotebookNode]]:
    """Execute a notebook in a kernel of its own, and return the outputs of each code cell.

    Raises:
        AssertionError: A cell failed.
    """
    pending: list[Pending] = []
    with Kernel(cwd=FOLDER, env=BESIDE_ANOTHER_CLUSTER) as kernel:
        for cell in code_cells(notebook):
            pending.append(kernel.execute_async(cell.source))
            reply = pending[-1].reply(CELL_TIMEOUT)
            assert reply.error is None, f"this cell failed:\n{cell.source}\n\n{reply.error.traceback}"
        # What was printed before the last cell ended may be on its way; the answer to one more request comes behind it.
        kernel.request("kernel_info_request", {}).reply(CELL_TIMEOUT)
    latest: dict[str, Message] = {}
    for message in sorted((m for one in pending for m in one.messages), key=lambda message: message["header"]["date"]):
        if message["msg_type"] in ("display_data", "update_display_data") and (shown := display_id(message)):
            latest[shown] = message
    return [outputs(one.messages, latest) for one in pending]


def display_id(message: Message) -> str:
    return str(message["content"].get("transient", {}).get("display_id", ""))


def outputs(messages: list[Message], latest: dict[str, Message]) -> list[NotebookNode]:
    """The outputs of a cell as a notebook file holds them; successive pieces of one stream are one."""
    found: list[NotebookNode] = []
    for message in messages:
        if message["msg_type"] not in OUTPUTS:
            continue
        output = output_from_msg(message)
        if (update := latest.get(display_id(message))) is not None:
            output.data = update["content"]["data"]
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    for output in found:
        if output.output_type == "stream":  # as a terminal shows it: a bar's last state
            output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    return found


def store(path: Path) -> None:
    """Execute a notebook and write it with its outputs."""
    notebook = read(path)
    cells = code_cells(notebook)
    for count, (cell, found) in enumerate(zip(cells, executed(notebook), strict=True), 1):
        cell.execution_count = count
        cell.outputs = found
    nbformat.write(notebook, path)


def test_there_are_notebooks() -> None:
    assert FOLDER / "quickstart.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_the_outputs_that_are_stored_in_it(path: Path) -> None:
    if path.stem in WITH_A_BROWSER:
        need_browser()
    need_libraries(path)
    notebook = read(path)
    cells = code_cells(notebook)
    for cell, found in zip(cells, executed(notebook), strict=True):
        assert lasting(found) == lasting(cell.outputs), f"this cell gave other outputs:\n{cell.source}"


def lasting(found: list[NotebookNode]) -> list[str]:
    """Without the cards of calls, which may be of one that runs, and without elapsed times."""
    kept = [json.dumps(last_line_of_traceback(output), sort_keys=True) for output in found if not is_card(output)]
    return [re.sub(r"\b\d+\.\d s\b|\[\d\d:\d\d<.*?it/s\]", "(elapsed)", output) for output in kept]


def last_line_of_traceback(output: NotebookNode) -> NotebookNode | str:
    """Of a traceback that was printed, what does not depend on the version of IPython."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.get("text", ""))
    return text.splitlines()[-1] if "Traceback (most recent call last)" in text else output


def is_card(output: NotebookNode) -> bool:
    data = output.get("data", {})
    if data.get("text/plain") == "":  # as it is stored
        return True
    return 'role="status"' in data.get("text/html", "") or "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_executed_once_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    # Times of execution and the like would change with each run.
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


FIRST_CELL = re.compile(r"""try:
    %load_ext ipyportal
except ModuleNotFoundError:  # on Colab, say
    %pip install -q ipyportal@git\+https://github\.com/ipyportal/ipyportal(?P<packages>.*)
    %load_ext ipyportal""")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_what_it_imports_where_ipyportal_is_missing(path: Path) -> None:
    first, *others = code_cells(read(path))
    match = FIRST_CELL.fullmatch(first.source)
    assert match is not None
    imported = {
        PACKAGES.get(name, name)
        for cell in others
        for name in re.findall(r"^ *(?:from|import) (\w+)", cell.source, re.M)
        if name not in sys.stdlib_module_names and name != "ipyportal"
    }
    if any("progress=True" in cell.source for cell in others):
        imported.add("tqdm")
    assert set(match["packages"].split()) == imported


if __name__ == "__main__":
    for one in NOTEBOOKS:
        if missing(one):
            print(f"{one.name}: left as it is, for it needs {' and '.join(missing(one))}")
            continue
        begin = time.monotonic()
        store(one)
        print(f"{one.name}: stored in {time.monotonic() - begin:.1f} s")
