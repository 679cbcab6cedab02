"""JupyterLite with ipyportal: a site of plain files, whose notebooks run in the browser.

``pip install -e ".[lite]" && python docs/lite/build.py FOLDER`` makes the site in FOLDER. It needs npm, and the
registries of pip and npm. The site asks no other server, unless a cell does: JupyterLab, Python (Pyodide) and the
packages are in it. Any web server can serve it; ``python -m http.server --directory FOLDER`` is one. Do not send the
headers that isolate a page (COOP and COEP): the kernel then loses replies.

A FOLDER that has such a site is replaced. ``--wheel-only`` replaces only ipyportal in it, in a few seconds.
``--contents OTHER`` shows the notebooks of another folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PYODIDE = "314.0.7"  # as jupyterlite-pyodide-kernel in pyproject.toml, which names 314.0.6, can use it
PYODIDE_FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "package.json")

KERNEL_EXTENSION = "@jupyterlite/pyodide-kernel-extension"
EXTENSIONS = (KERNEL_EXTENSION, "@jupyter-widgets/jupyterlab-manager", "anywidget")
"""Extensions of JupyterLab that the site has. Others may be installed here, and do not belong there."""

LOCK = "static/pyodide-lock/pyodide-lock.json"
"""The list of the packages in the site, which no other site has there."""

LOADED = ("ipyportal", "ipywidgets", "anywidget", "tqdm", "micropip", "piplite")
"""Packages that a kernel of the site has from its start. Others are loaded from the site or installed with %pip."""

NEEDED = ("jupyterlite_core", "jupyterlite_pyodide_kernel", "pyodide_lock", "jupyter_server", "uv", "wheel", "pip")
"""Modules that the build imports or runs."""


def build(folder: Path, *, contents: Sequence[Path] = (HERE / "files",), expose: bool = False) -> None:
    """Make the site in the folder. What is there must be such a site, or nothing.

    Args:
        folder: where the site will be. It appears when the site is complete.
        contents: folders with the notebooks and files that the site shows.
        expose: whether scripts in the page find JupyterLab as ``window.jupyterapp``, as tests do.
    """
    if folder.exists() and any(folder.iterdir()) and not folder.joinpath(LOCK).is_file():
        raise SystemExit(f"{folder} is not empty, and has no site: give another folder")
    npm = _find_tools()
    with tempfile.TemporaryDirectory(prefix="ipyportal-lite-") as temporary:
        work = Path(temporary)
        site = work / "site"
        _unpack_pyodide(npm, work, site / "static/pyodide")
        wheel = _build_wheel(work)
        _write_json(site / "jupyter_lite_config.json", _config(wheel, contents))
        _write_json(
            site / "jupyter-lite.json",
            {
                "jupyter-lite-schema-version": 0,
                "jupyter-config-data": {"appName": "ipyportal", "exposeAppInBrowser": expose},
            },
        )
        _run(sys.executable, "-m", "jupyterlite_core", "build", cwd=site)
        _check(site / "_output")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(site / "_output", folder)


def replace_wheel(folder: Path) -> None:
    """Put ipyportal as it is in this checkout into a site that was built before.

    What ipyportal requires must be the same as then.
    """
    lock_file = folder / LOCK
    if not lock_file.is_file():
        raise SystemExit(f"{folder} has no site: build it first, without --wheel-only")
    with tempfile.TemporaryDirectory(prefix="ipyportal-lite-") as temporary:
        wheel = _build_wheel(Path(temporary))
        lock = json.loads(lock_file.read_text(encoding="utf-8"))
        entry = lock["packages"]["ipyportal"]
        old = lock_file.parent / Path(entry["file_name"]).name
        if wheel.name != old.name:
            raise SystemExit(f"the site has {old.name}, this is {wheel.name}: build the site anew")
        shutil.copyfile(wheel, old)
        entry["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()  # which Pyodide compares
        _write_json(lock_file, lock)


def _find_tools() -> str:
    """The path of npm. Raises SystemExit where that, or a package, is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    missing += [name for name in EXTENSIONS if not _extension(name).is_dir()]
    if missing:
        raise SystemExit(f'{", ".join(missing)} missing in {sys.prefix}: pip install -e ".[lite]"')
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed to download Pyodide: install Node.js")
    return npm


def _extension(name: str) -> Path:
    return Path(sys.prefix, "share/jupyter/labextensions", name)


def _unpack_pyodide(npm: str, work: Path, folder: Path) -> None:
    """Python, compiled for the browser, with a list of packages that is empty."""
    _run(npm, "pack", "--silent", f"pyodide@{PYODIDE}", cwd=work)
    folder.mkdir(parents=True)
    with tarfile.open(work / f"pyodide-{PYODIDE}.tgz") as archive:
        for name in (*PYODIDE_FILES, "pyodide-lock.json"):
            content = archive.extractfile(f"package/{name}")
            if content is None:
                raise SystemExit(f"pyodide {PYODIDE} has no file {name}")
            folder.joinpath(name).write_bytes(content.read())
    # Its own list names hundreds of packages on a server of its own. Ours come from pip's registry, into the site.
    lock = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))
    info = {**lock["info"], "version": PYODIDE}  # which pyodide-lock requires
    _write_json(folder / "pyodide-lock.json", {"info": info, "packages": {}})


def _build_wheel(work: Path) -> Path:
    """The wheel of this checkout."""
    folder = work / "wheels"
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=work)
    return next(folder.glob("ipyportal-*.whl"))


def _config(wheel: Path, contents: Sequence[Path]) -> dict[str, object]:
    """What ``jupyter lite build`` is told."""
    # The kernel brings an empty stand-in for the widgets' files of the classic notebook: 2 MB less to load.
    (stand_in,) = _extension(KERNEL_EXTENSION).glob("static/pypi/widgetsnbextension-4*.whl")
    return {
        "LiteBuildConfig": {
            "apps": ["lab", "notebooks"],
            "contents": [str(path.resolve()) for path in contents],
            "federated_extensions": [str(_extension(name)) for name in EXTENSIONS],
            "ignore_sys_prefix": True,
            "no_sourcemaps": True,
            "no_unused_shared_packages": True,
            "output_dir": "_output",
        },
        "PyodideLockAddon": {
            "enabled": True,
            "wheels": [str(wheel), str(stand_in)],
            "specs": [name for name in LOADED if name not in ("ipyportal", "piplite")],
            "prefetch_extra": list(LOADED),
        },
    }


def _check(site: Path) -> None:
    """That nothing is missing which fails only in the browser."""
    lock = json.loads((site / LOCK).read_text(encoding="utf-8"))
    missing = [name for name in LOADED if name not in lock["packages"]]
    elsewhere = [one["file_name"] for one in lock["packages"].values() if "://" in one["file_name"]]
    if missing or elsewhere:
        raise SystemExit(f"the site is not complete: without {missing}, elsewhere {elsewhere}")


def _run(*command: str | Path, cwd: Path) -> None:
    """Run a command, and show what it printed if it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the site will be")
    parser.add_argument(
        "--contents", type=Path, metavar="OTHER", default=HERE / "files", help="the folder with the notebooks"
    )
    parser.add_argument("--expose", action="store_true", help="let scripts use window.jupyterapp, for tests")
    parser.add_argument("--wheel-only", action="store_true", help="replace only ipyportal in a site that is there")
    options = parser.parse_args()
    if options.wheel_only:
        replace_wheel(options.folder)
    else:
        build(options.folder, contents=[options.contents], expose=options.expose)


if __name__ == "__main__":
    main()
