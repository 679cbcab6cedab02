"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import ipyportal
from ipyportal import cli
from ipyportal.notebook.environment import Report, detect

from .terminal import PseudoTerminal


def ipyportal_command(
    *arguments: str | Path, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipyportal", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, **(variables or {})},
    )


def save(path: Path, *cells: nbformat.NotebookNode) -> Path:
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def test_version() -> None:
    run = ipyportal_command("--version")
    assert (run.returncode, run.stdout) == (0, f"ipyportal {ipyportal.__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("demo", "--timeout", "0"), ("demo", "--timeout", "soon")])
def test_a_wrong_command_line_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    run = ipyportal_command(*arguments)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: ipyportal")


def test_the_doctor_says_what_a_kernel_of_this_python_is() -> None:
    run = ipyportal_command("doctor")
    assert run.returncode == 0, run.stderr
    assert re.search(r"^this is +a Jupyter kernel\b", run.stdout, re.MULTILINE)
    assert re.search(r"^a waiting cell is +suspended", run.stdout, re.MULTILINE)
    assert re.search(r"^widgets meanwhile +live", run.stdout, re.MULTILINE)
    assert re.search(r"^subshells +(a waiting cell is suspended there|not known)", run.stdout, re.MULTILINE)
    assert re.search(r"^to do +nothing$", run.stdout, re.MULTILINE)
    assert re.search(r"^nest_asyncio +not applied$", run.stdout, re.MULTILINE)


def test_the_doctor_speaks_json() -> None:
    run = ipyportal_command("doctor", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["ipyportal"] == ipyportal.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["executable"] == sys.executable
    assert found["packages"]["ipykernel"] == metadata.version("ipykernel")
    assert (found["kind"], found["cells_are_suspended"], found["calls_running"]) == ("kernel", True, 0)
    assert (found["threads"], found["to_do"]) == ([], [])
    assert all(re.fullmatch("[a-z_]+", key) for key in found)


def in_a_terminal(*arguments: str, columns: int) -> str:
    """What the command shows in a terminal of this width, with its escape sequences."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "ipyportal", *arguments]
    with PseudoTerminal(command, columns=columns, env=environment) as terminal:
        return terminal.read_to_the_end()


def test_the_doctor_breaks_no_word_in_a_terminal() -> None:
    shown = in_a_terminal("doctor", columns=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "the stop button does not reach it" in " ".join(shown.split()) or "not known" in shown


def test_the_demo_shows_markdown_and_colours_in_a_terminal(tmp_path: Path) -> None:
    words = "Prose with **bold** words and `code` in it, longer than the terminal is wide."
    path = save(
        tmp_path / "shown.ipynb",
        new_markdown_cell(f"# A title\n\n{words}"),
        new_code_cell("async def f():\n    return 6 * 7\n\nawait f()"),
    )
    shown = in_a_terminal("demo", str(path), columns=40)
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", shown)
    lines = [line.rpartition("\r")[2].rstrip() for line in plain.splitlines()]
    assert "Prose with bold words and code in it," in lines
    assert lines[lines.index("Prose with bold words and code in it,") + 1] == "longer than the terminal is wide."
    assert "In [1]: async def f():" in lines
    assert "   ...:     return 6 * 7" in lines
    assert "Out[1]: 42" in lines
    assert max(map(len, lines)) <= 40


def test_who_reads_no_further_sees_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ipyportal", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def hide(package: str, folder: Path) -> dict[str, str]:
    """The variables with which `package` cannot be imported."""
    (folder / f"{package}.py").write_text(f"raise ImportError('{package} is hidden')")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def test_the_doctor_says_what_is_missing(tmp_path: Path) -> None:
    run = ipyportal_command("doctor", variables=hide("greenlet", tmp_path))
    assert run.returncode == 0, run.stderr
    assert re.search(r"^a waiting cell is +blocked: .*greenlet", run.stdout, re.MULTILINE)
    assert re.search(r"^widgets meanwhile +not live", run.stdout, re.MULTILINE)
    assert re.search(r"^to do +pip install greenlet", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("variable", "frontend"),
    [("COLAB_RELEASE_TAG", "Colab"), ("JPY_SESSION_NAME", "JupyterLab"), ("VSCODE_PID", "VS Code")],
)
def test_the_doctor_says_who_started_the_kernel(monkeypatch: pytest.MonkeyPatch, variable: str, frontend: str) -> None:
    for name in ("COLAB_RELEASE_TAG", "VSCODE_PID", "BINDER_SERVICE_HOST", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    assert frontend in Report(detect(None), 0).lines()[0][1]


def test_the_doctor_fails_where_no_kernel_starts(tmp_path: Path) -> None:
    run = ipyportal_command("doctor", variables=hide("ipykernel_launcher", tmp_path))
    assert run.returncode == 1
    assert "does not work in a kernel" in run.stderr


def test_the_demo_shows_each_cell_with_its_outputs(tmp_path: Path) -> None:
    path = save(
        tmp_path / "shown.ipynb",
        new_markdown_cell("# A title"),
        new_code_cell("def f():\n    print('said')\n    return 6 * 7\nf()"),
        new_code_cell("import sys, os\nprint(sys.prefix)\nprint(os.getcwd())"),
    )
    run = ipyportal_command("demo", path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(
        "# A title\n"
        "\n"
        "In [1]: def f():\n"
        "   ...:     print('said')\n"
        "   ...:     return 6 * 7\n"
        "   ...: f()\n"
        "said\n"
        "Out[1]: 42\n"
        "\n"
    )
    # The kernel runs this interpreter, in the notebook's folder.
    assert f"\n{sys.prefix}\n{tmp_path}\n" in run.stdout
    assert "shown.ipynb: 2 code cells ran in " in run.stdout
    assert run.stderr == ""


def test_a_progress_bar_of_a_cell_shows_its_last_state(tmp_path: Path) -> None:
    path = save(tmp_path / "bar.ipynb", new_code_cell("print('1 of 2', end='\\r2 of 2\\n')"))
    assert "In [1]: print('1 of 2', end='\\r2 of 2\\n')\n2 of 2\n" in (ipyportal_command("demo", path).stdout)


def test_a_failing_cell_shows_its_traceback_and_ends_the_demo(tmp_path: Path) -> None:
    path = save(
        tmp_path / "failing.ipynb",
        new_code_cell("'before'"),
        new_code_cell("1 / 0"),
        new_code_cell("'after'"),
    )
    run = ipyportal_command("demo", path)
    assert run.returncode == 1
    assert "Out[1]: 'before'" in run.stdout
    assert "ZeroDivisionError" in run.stdout
    assert "'after'" not in run.stdout
    assert run.stderr.endswith("failing.ipynb: code cell 2 of 3 failed: ZeroDivisionError: division by zero\n")
    assert "\x1b" not in run.stdout + run.stderr


def test_a_cell_that_takes_too_long_fails_the_demo(tmp_path: Path) -> None:
    path = save(tmp_path / "slow.ipynb", new_code_cell("import time; time.sleep(30)"))
    run = ipyportal_command("demo", "--timeout", "1", path)
    assert run.returncode == 1
    assert "code cell 1 of 1 failed: it took more than 1 seconds" in run.stderr


def test_a_kernel_that_dies_fails_the_demo(tmp_path: Path) -> None:
    path = save(
        tmp_path / "deadly.ipynb",
        new_code_cell("get_ipython().kernel.log.critical('last words'); import os; os._exit(1)"),
    )
    run = ipyportal_command("demo", path)
    assert run.returncode == 1
    assert "last words" in run.stderr  # of the process, which no cell shows
    assert "code cell 1 of 1 failed: the kernel died" in run.stderr


def test_a_kernel_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit('no kernel here')")
    path = save(tmp_path / "some.ipynb", new_code_cell("1"))
    run = ipyportal_command("demo", path, variables={"PYTHONPATH": str(tmp_path)})
    assert run.returncode == 1
    assert run.stderr.startswith("no kernel here\nno kernel starts with ")
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("content", [None, "not JSON", '{"cells": 5}'])
def test_what_is_no_notebook_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "other.ipynb"
    if content is not None:
        path.write_text(content)
    run = ipyportal_command("demo", path)
    assert run.returncode == 1
    assert f"{path} cannot be read as a notebook" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nbclient", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "ipyportal demo needs nbclient and tqdm, not installed here. "
        'Install what it needs with: pip install "ipyportal[demo]"\n'
    )
