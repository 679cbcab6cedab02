"""A plugin of pytest for Pyodide: what pytest-timeout, whose watch is a thread, lets pyproject.toml and the tests say.

It does nothing else. The process that runs the tests has a time limit as a whole.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    for name in ("timeout", "timeout_method"):
        parser.addini(name, "ignored here")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): ignored here")
