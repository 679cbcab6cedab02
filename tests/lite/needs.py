"""Whether there is what the tests in this folder need: the extra ``lite``, npm, Chromium and playwright."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

from tests.browser import need_browser

EXTRA = ("jupyterlite_core", "jupyterlite_pyodide_kernel", "pyodide_lock", "jupyter_server")


def need_lite() -> str:
    """The path of Chromium. Skips the module where something is missing, and fails it where IPYPORTAL_LITE is set."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    missing = [f'{", ".join(missing)} (pip install -e ".[lite]")'] if missing else []
    missing += _without_npm()
    if not missing:
        return need_browser()
    if os.environ.get("IPYPORTAL_LITE"):
        _fail(missing)
    pytest.skip(f"needs {' and '.join(missing)}", allow_module_level=True)


def need_node() -> None:
    """Skips the module where IPYPORTAL_LITE is not set, and fails it where that is set and npm is missing."""
    if not os.environ.get("IPYPORTAL_LITE"):
        pytest.skip("IPYPORTAL_LITE is not set: this downloads node and Pyodide", allow_module_level=True)
    if missing := _without_npm():
        _fail(missing)


def _without_npm() -> list[str]:
    return [] if shutil.which("npm") else ["npm"]


def _fail(missing: list[str]) -> NoReturn:
    pytest.fail(f"IPYPORTAL_LITE is set, and needs {' and '.join(missing)}", pytrace=False)
