"""docs/lite/build.py says what is wrong before it changes anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .needs import need_lite

BUILD = Path(__file__).parents[2] / "docs/lite/build.py"
LOCK = "static/pyodide-lock/pyodide-lock.json"


def refused(*arguments: str | Path, python: tuple[str, ...] = (), path: str | None = None) -> str:
    """What the script says as it ends with an error.

    Args:
        arguments: of the script.
        python: options of Python.
        path: the folders with programs.
    """
    done = subprocess.run(
        [sys.executable, *python, BUILD, *arguments],
        env={**os.environ, "PATH": os.environ["PATH"] if path is None else path},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.strip()


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("all of it")
    assert refused(tmp_path) == f"{tmp_path} is not empty, and has no site: give another folder"
    assert file.read_text() == "all of it"


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    said = refused(tmp_path / "site", python=("-S",))  # without what is installed
    assert said.startswith("jupyterlite_core, jupyterlite_pyodide_kernel, pyodide_lock, jupyter_server, ")
    assert said.endswith(': pip install -e ".[lite]"')
    assert not (tmp_path / "site").exists()


def test_the_wheel_alone_needs_a_site(tmp_path: Path) -> None:
    said = refused(tmp_path / "site", "--wheel-only")
    assert said == f"{tmp_path / 'site'} has no site: build it first, without --wheel-only"


@pytest.mark.timeout(120)
def test_the_wheel_alone_must_be_of_the_same_version(tmp_path: Path) -> None:
    need_lite()
    lock = tmp_path / LOCK
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"packages": {"ipyportal": {"file_name": "ipyportal-0.0.1-py3-none-any.whl"}}}))
    said = refused(tmp_path, "--wheel-only")
    assert said.startswith("the site has ipyportal-0.0.1-py3-none-any.whl, this is ipyportal-")
    assert said.endswith(": build the site anew")


def test_npm_is_needed(tmp_path: Path) -> None:
    need_lite()
    assert refused(tmp_path / "site", path="") == "npm is needed to download Pyodide: install Node.js"


def test_what_a_command_says_as_it_fails_is_shown_and_the_site_stays(tmp_path: Path) -> None:
    need_lite()
    program(tmp_path / "npm", "echo offline >&2\nexit 1")
    site = tmp_path / "site"
    site.joinpath(LOCK).parent.mkdir(parents=True)
    site.joinpath(LOCK).write_text("{}")
    said = refused(site, path=f"{tmp_path}:{os.environ['PATH']}")
    assert said.splitlines()[0].startswith(f"{tmp_path / 'npm'} pack --silent pyodide@")
    assert said.splitlines()[0].endswith(" failed:")
    assert said.endswith("offline")
    assert site.joinpath(LOCK).read_text() == "{}"
