"""The engine's tests that need no second thread, in Pyodide. It runs in node, which takes seconds and no browser."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from .needs import need_node

need_node()

ROOT = Path(__file__).parents[2]
PYODIDE: str = runpy.run_path(str(ROOT / "docs/lite/build.py"))["PYODIDE"]
NODE = "24"
"""The first version that has JSPI without an option."""

PACKAGES = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
"""What pytest needs, all of it written in Python: taken from the environment that runs this test."""

PATIENCE = 120.0
"""Seconds that the tests in Pyodide may take. They take about ten."""

pytestmark = pytest.mark.timeout(PATIENCE + 180)  # with the downloads


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with node and Pyodide: in that of IPYPORTAL_LITE_NODE, or in one that is removed."""
    given = os.environ.get("IPYPORTAL_LITE_NODE")
    folder = Path(given) if given else tmp_path_factory.mktemp("node")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-save", "--prefix", folder, f"node@{NODE}", f"pyodide@{PYODIDE}"],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return folder / "node_modules"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `PACKAGES` and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in PACKAGES:
        for file in metadata.files(name) or ():
            if file.suffix != ".pyc" and ".." not in file.parts:  # where the programs are
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)
    return folder


def test_the_engine_works_in_pyodide(node_modules: Path, packages: Path, tmp_path: Path) -> None:
    mounts = {"/project": str(ROOT), "/packages": str(packages), "/report": str(tmp_path)}
    command: list[str | Path] = [
        *(node_modules / "node/bin/node", ROOT / "tests/lite/node.mjs"),
        *((node_modules / "pyodide/pyodide.mjs").as_uri(), json.dumps(mounts)),
        *("-v", "-p", "tests.lite.no_timeout", "-p", "no:cacheprovider", "--junitxml=/report/junit.xml"),
        "tests/test_one_thread.py",
    ]
    log = tmp_path / "log"  # which has the test that hangs, if one does
    try:
        with log.open("wb") as file:
            status = subprocess.run(command, stdout=file, stderr=file, timeout=PATIENCE, check=False).returncode
    finally:
        print(log.read_text(errors="replace"))  # shown by pytest if this test fails
    assert status == 0
    outcomes = Counter(
        child.tag if (child := next(iter(case), None)) is not None else "passed"
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    )
    assert set(outcomes) == {"passed"}, outcomes
    assert outcomes["passed"] >= 100
