"""Whether there is a browser to test with: Chromium, and playwright to drive it."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str | None:
    """The path of a Chromium: that of IPYPORTAL_CHROMIUM, or one of the usual names."""
    given = os.environ.get("IPYPORTAL_CHROMIUM")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


def need_browser(*packages: str) -> str:
    """The path of Chromium. Skips the test, or the module, where there is none, and fails it in CI.

    Args:
        packages: what else is needed beside playwright, by the names of import.
    """
    if os.environ.get("IPYPORTAL_NO_BROWSER"):
        reason = "IPYPORTAL_NO_BROWSER is set: of CI's jobs, that of the default interpreter alone has a browser"
        pytest.skip(reason, allow_module_level=True)
    path = chromium()
    missing = [] if path else [f"Chromium ({', '.join(NAMES)})"]
    missing += [
        f"{name} (pip install {name})" for name in ("playwright", *packages) if importlib.util.find_spec(name) is None
    ]
    if path is not None and not missing:
        return path
    if os.environ.get("IPYPORTAL_CI"):
        pytest.fail(f"CI needs {' and '.join(missing)}")
    pytest.skip(f"needs {' and '.join(missing)}", allow_module_level=True)
