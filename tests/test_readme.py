"""What the README shows is what happens.

Its Python blocks say after the language what they are: a ``cell`` (all of them are typed into one kernel, in order), a
``script``, or a ``config`` of IPython. A ``text`` block that follows one is its output.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.notebook.conftest import loop_of_jupyter_client  # noqa: F401 - a fixture of the session
from tests.notebook.kernel import BESIDE_ANOTHER_CLUSTER, Kernel

ROOT = Path(__file__).parents[1]
TEXT = ROOT.joinpath("README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python(?P<kind>[^\n]*)\n(?P<code>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?", re.M | re.S)


class Block(NamedTuple):
    """A Python block of the README."""

    kind: str
    code: str
    output: str


BLOCKS = [Block(match["kind"].strip(), match["code"], match["output"] or "") for match in BLOCK.finditer(TEXT)]


def blocks(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def test_each_python_block_says_how_it_is_run() -> None:
    assert {block.kind for block in BLOCKS} == {"cell", "script", "config"}
    assert len(BLOCKS) == TEXT.count("```python")


def test_the_cells_give_the_outputs_shown_below_them() -> None:
    with Kernel(env=BESIDE_ANOTHER_CLUSTER) as kernel:
        for block in blocks("cell"):
            reply = kernel.execute(block.code)
            assert reply.error is None, f"{block.code}\n{reply.error.traceback}"
            # On a busy machine dask says that a worker takes its time to end.
            assert [line for line in reply.stderr.splitlines() if "distributed.nanny - WARNING" not in line] == []
            value = "" if reply.result is None else reply.result + "\n"
            assert reply.stdout + value == block.output, block.code


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
    section = TEXT.partition("## What it promises\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    for _, test in rows:
        path, name = test.split("::")
        assert f"\ndef {name}(" in ROOT.joinpath(path).read_text(encoding="utf-8"), test


def test_the_files_that_it_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not ROOT.joinpath(link).exists()] == []
