"""What the README and the pages of the documentation show is what happens.

Their Python blocks say after the language what they are: a ``cell`` (all of a page are typed into one kernel, in order,
with the extension loaded), a ``script``, a ``config`` of IPython, or an ``error``: a cell that fails with the text of
the heading above it. A ``text`` block that follows one is its output.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.notebook.conftest import loop_of_jupyter_client  # noqa: F401 - a fixture of the session
from tests.notebook.kernel import BESIDE_ANOTHER_CLUSTER, Kernel

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```python(?P<kind>[^\n]*)\n(?P<code>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?", re.M | re.S)


class Block(NamedTuple):
    """A Python block of a page."""

    page: Path
    heading: str
    kind: str
    code: str
    output: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        heading = re.findall(r"^#+ (.*)$", text[: match.start()], re.M)[-1]
        yield Block(page, heading, match["kind"].strip(), match["code"], match["output"] or "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def test_each_python_block_says_how_it_is_run() -> None:
    assert {block.kind for block in BLOCKS} == {"cell", "script", "config", "error"}
    assert len(BLOCKS) == sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES)


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("cell")}), ids=lambda page: page.stem)
def test_the_cells_give_the_outputs_shown_below_them(page: Path) -> None:
    with Kernel(env=BESIDE_ANOTHER_CLUSTER) as kernel:
        if page not in (README, TUTORIAL):  # which show that themselves
            kernel.value("%load_ext ipyportal")
        for block in blocks_of(page):
            reply = kernel.execute(block.code)
            if block.kind == "error":
                assert reply.error is not None, block.code
                assert block.heading in reply.error.evalue
                continue
            assert reply.error is None, f"{block.code}\n{reply.error.traceback}"
            # On a busy machine dask says that a worker takes its time to end. A coroutine that an error has left behind
            # is warned of when the next error takes its place.
            stderr = [line for line in reply.stderr.splitlines() if "distributed.nanny - WARNING" not in line]
            assert stderr == [] or blocks("error")[0].page == page
            value = "" if reply.result is None else reply.result + "\n"
            # What a background cell prints comes when it comes.
            assert reply.stdout + value == block.output or block.code.startswith("%%background"), block.code


@pytest.mark.parametrize("script", blocks("script"), ids=lambda block: block.output.splitlines()[-1])
def test_a_script_prints_what_is_shown_below_it(script: Block, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script.code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, script.output, "")


def test_the_config_loads_the_extension_before_the_first_cell(tmp_path: Path) -> None:
    (config,) = blocks("config")
    profile = tmp_path / "profile_default"
    profile.mkdir()
    profile.joinpath("ipython_config.py").write_text(config.code, encoding="utf-8")
    with Kernel(env={"IPYTHONDIR": str(tmp_path)}) as kernel:
        reply = kernel.execute(
            "import asyncio\n"
            "from ipyportal import run\n"
            "passed = []\n"
            "asyncio.get_running_loop().call_soon(passed.append, 'the loop went on')\n"
            "run(asyncio.sleep(0.01))\n"
            "passed"
        )
    assert reply.result == "['the loop went on']", f"{reply.stderr}\n{kernel.log()}"


def test_each_promise_names_a_test_that_there_is() -> None:
    section = ROOT.joinpath("docs/promises.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    for _, test in rows:
        path, name = test.split("::")
        assert f"\ndef {name}(" in ROOT.joinpath(path).read_text(encoding="utf-8"), test


def test_the_readme_is_short() -> None:
    assert len(TEXT.split()) < 900


def test_the_files_that_it_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not ROOT.joinpath(link).exists()] == []
