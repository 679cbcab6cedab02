"""What people see of the public names: in completion, and in signatures."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any, get_type_hints

import pytest

import ipyportal
from ipyportal import concurrency


@pytest.mark.parametrize("module", [ipyportal, concurrency], ids=lambda module: module.__name__)
def test_signatures_are_shown_without_quotes_and_mean_the_same(module: Any) -> None:
    for name in dir(module) if module is ipyportal else module.__all__:
        thing = getattr(module, name)
        if callable(thing) and name != "Route":  # a type
            with contextlib.suppress(ValueError):  # an enum has none
                assert not re.search("[:>] '", str(inspect.signature(thing))), name
    assert get_type_hints(ipyportal.Call.set_timeout) == {"timeout": float | None, "return": type(None)}
    assert set(dir(ipyportal)) == {*ipyportal.__all__, "map"}
