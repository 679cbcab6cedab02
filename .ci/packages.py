"""The sdist and the wheel, as their users get them: ``python .ci/packages.py FOLDER``, which is made.

Both are built, the wheel from the sdist. The wheel is installed without the checkout, runs in a real kernel, and is
checked by mypy and pyright. The tests that read files of the project pass in the unpacked sdist. The interpreter that
runs this has the extras ``dev`` and ``package``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
SDIST_FOLDERS = ("benchmarks", "binder", "conda", "docs", "notebooks", "src", "tests")

CELLS = (
    "%load_ext ipyportal",
    "import asyncio, ipyportal\npassed = []",
    "asyncio.get_running_loop().call_soon(passed.append, 'the loop went on')",
    "ipyportal.run(asyncio.sleep(0.01))\nprint(*passed, 'with', ipyportal.__file__)",
)


def command(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command outside of the checkout's import path, show what it printed if it fails, and return that."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [*map(str, arguments)], cwd=cwd, env={**environment, **variables}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(otherwise)


def build(folder: Path) -> tuple[Path, Path]:
    """The paths of the sdist and of the wheel that is built from it."""
    command(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def version_of(sdist: Path, wheel: Path) -> str:
    """The version that both are of: that of ``_version.py``."""
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        version: str = Parser().parsestr(archive.read(name).decode())["Version"]
    expected = f'__version__ = "{version}"\n'
    check((ROOT / "src/ipyportal/_version.py").read_text() == expected, f"the wheel's version is {version}")
    check(sdist.name == f"ipyportal-{version}.tar.gz", f"{sdist.name} is not of the wheel's version, {version}")
    return version


def use(wheel: Path, version: str, folder: Path) -> Path:
    """Install the wheel in a virtual environment of its own, run it in a kernel, and return the Python of there."""
    command(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    program = folder / "venv/bin/ipyportal"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    command(*install, wheel, cwd=folder)
    found = json.loads(command(program, "doctor", "--json", cwd=folder))
    check(found["ipyportal"] == version, f"{found['ipyportal']} is installed, not {version}")

    command(*install, f"{wheel}[demo]", cwd=folder)
    shown = command(program, "demo", cwd=folder)
    check("quickstart.ipynb: " in shown, f"ipyportal demo printed:\n{shown}")
    path = folder / "installed.ipynb"
    nbformat.write(new_notebook(cells=list(map(new_code_cell, CELLS))), path)
    shown = command(program, "demo", path, cwd=folder)
    check(f"\nthe loop went on with {folder / 'venv'}{os.sep}" in shown, f"not from the installed wheel:\n{shown}")
    return python


def check_types(python: Path, folder: Path) -> None:
    """As somebody sees them who has installed the wheel, with mypy and with pyright, both strict."""
    folder.mkdir()
    shutil.copy(ROOT / "tests/typed.py", folder)
    command(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "typed.py", cwd=folder)
    # As mypy's strict does: what is ignored must be an error.
    strict = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error", "include": ["typed.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(strict))
    command(sys.executable, "-m", "basedpyright", "--warnings", "--pythonpath", python, cwd=folder)


def check_sdist(sdist: Path, folder: Path) -> None:
    """That nothing is missing which the tests read."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    listed = command("git", "ls-files", *SDIST_FOLDERS, cwd=ROOT).splitlines()
    missing = [name for name in listed if not (unpacked / name).exists()]
    check(not missing, f"not in the sdist: {missing}")
    tests = ("tests/test_project.py", "tests/test_readme.py")  # those that read files of the project
    command(sys.executable, "-m", "pytest", *tests, cwd=unpacked, PYTHONPATH=str(unpacked / "src"))


def main() -> None:
    begin = time.monotonic()

    def done(what: str) -> None:
        nonlocal begin
        print(f"{what}: {time.monotonic() - begin:.1f} s", flush=True)
        begin = time.monotonic()

    folder = Path(sys.argv[1]).resolve()
    folder.mkdir()
    sdist, wheel = build(folder)
    version = version_of(sdist, wheel)
    done(f"{sdist.name} and {wheel.name} built")
    python = use(wheel, version, folder)
    done("the wheel installed, and run in a kernel")
    check_types(python, folder / "consumer")
    done("the wheel's types checked with mypy and pyright")
    check_sdist(sdist, folder / "sdist")
    done("the sdist's tests run")


if __name__ == "__main__":
    main()
