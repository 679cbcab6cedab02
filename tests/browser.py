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


def need_browser() -> str:
    """The path of Chromium. Skips the test where there is none, and fails it in CI."""
    if os.environ.get("IPYPORTAL_NO_BROWSER"):
        pytest.skip("IPYPORTAL_NO_BROWSER is set: of CI's jobs, that of the default interpreter alone has a browser")
    path = chromium()
    if path is not None and importlib.util.find_spec("playwright") is not None:
        return path
    missing = 'playwright (pip install "ipyportal[browser]")' if path else f"Chromium ({', '.join(NAMES)})"
    if os.environ.get("IPYPORTAL_CI"):
        pytest.fail(f"CI needs {missing}")
    pytest.skip(f"needs {missing}")
