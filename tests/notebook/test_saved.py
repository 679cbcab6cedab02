"""What a notebook holds that was executed and saved: cards that are true, also of calls that ended between cells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

pytest.importorskip("nbclient", reason="nbclient executes the notebooks: pip install nbclient")

PATIENCE = 60

PRELUDE = "%load_ext ipyportal\nimport asyncio\nfrom ipyportal import submit"


def executed(folder: Path, *sources: str) -> list[list[NotebookNode]]:
    """The outputs of cells, executed as ``jupyter execute``, nbconvert and papermill do it, by nbclient."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (PRELUDE, *sources)]
    nbformat.write(notebook, folder / "notebook.ipynb")
    code = "import nbclient.cli; nbclient.cli.NbClientApp.launch_instance(['--inplace', 'notebook.ipynb'])"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    return [cell.outputs for cell in nbformat.read(folder / "notebook.ipynb", as_version=4).cells[1:]]


def texts(outputs: list[NotebookNode]) -> list[str]:
    return [output["data"]["text/plain"] for output in outputs if "data" in output]


def test_a_card_says_what_has_come_of_a_call_that_ended_while_a_later_cell_ran(tmp_path: Path) -> None:
    background, *_ = executed(tmp_path, "%%background job\nawait asyncio.sleep(0.05)\n[5]", "await asyncio.sleep(0.3)")
    card, value = texts(background)
    assert re.fullmatch(r"✓ job: finished · on ipyportal-loop · \d\.\d s · list: \[5\]", card)
    assert value == "[5]"


def test_and_of_one_that_ended_between_cells(tmp_path: Path) -> None:
    background, *_ = executed(
        tmp_path, "%%background job\nawait asyncio.sleep(0)\n1 / 0", "import time; time.sleep(0.3)", "5"
    )
    card, value = texts(background)
    assert re.fullmatch(r"✗ job: failed · on ipyportal-loop · \d\.\d s · ZeroDivisionError: division by zero", card)
    assert value == ""


def test_a_call_as_a_value_is_followed_there_too(tmp_path: Path) -> None:
    shown, *_ = executed(tmp_path, "call = submit(asyncio.sleep, 0.05, 5)\ncall", "await asyncio.sleep(0.3)")
    assert re.fullmatch(r"✓ sleep: finished · on ipyportal-loop · \d\.\d s · int: 5", texts(shown)[0])


def test_a_card_of_a_call_that_runs_when_its_kernel_ends_says_when_it_ran(tmp_path: Path) -> None:
    (shown,) = executed(tmp_path, "%%background job\nawait asyncio.sleep(60)")
    card = texts(shown)[0]
    assert re.fullmatch(r". job: (pending|running) · on ipyportal-loop · \d\.\d s at \d\d:\d\d:\d\d", card)
