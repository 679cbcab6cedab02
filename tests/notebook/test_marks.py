"""What a press of the stop button may not tear apart: each module that says so, and what happens without its word."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest

import ipyportal
from ipyportal import mapping, other_loops, patching, stepwise, streams, sync
from ipyportal.concurrency.cancellation.frames import Mark
from ipyportal.concurrency.suspension import steps, suspending
from ipyportal.concurrency.suspension.loops import turns_possible
from ipyportal.hosts import Host
from ipyportal.notebook.interrupts import Interrupts
from tests.concurrency.helpers import PATIENCE, python

pytestmark = pytest.mark.skipif(not turns_possible(), reason="nothing can be suspended here")

RUN = "run(asyncio.sleep(0), timeout=9)"
CODE = {
    sync: RUN,
    suspending: RUN,
    steps: RUN,
    mapping.pool: "ipyportal.map(asyncio.sleep, [0, 0])",
    mapping.results: "ipyportal.map(asyncio.sleep, [0, 0])",
    sys.modules["ipyportal.mapping.map"]: "ipyportal.map(asyncio.sleep, [0, 0])",
    stepwise: "list(ipyportal.iterate(numbers()))",
    streams: "list(ipyportal.iterate(numbers()))",
    patching: "asyncio.run(asyncio.sleep(0))",
    other_loops: "asyncio.run(asyncio.sleep(0))",
}


async def numbers() -> Any:
    yield 1


def pressed_in(module: Any, code: str) -> list[bool]:
    """Whether a press of the stop button would be raised at once, in each function of `module` that `code` calls."""
    namespace = {"asyncio": asyncio, "ipyportal": ipyportal, "run": ipyportal.run, "numbers": numbers}
    interrupts = Interrupts(Host(), namespace)
    raises: list[bool] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_globals is vars(module):
            raises.append(interrupts._may_raise(frame))

    async def cell() -> None:
        sys.setprofile(profile)
        try:
            exec(code, namespace)
        finally:
            sys.setprofile(None)

    with ipyportal.patch_asyncio():
        asyncio.run(asyncio.wait_for(steps.suspendable(cell()), PATIENCE))
    return raises


def check(name: str) -> None:
    """Fails if the mark of a module is missing, and if the module would be as well off without it."""
    module: Any = sys.modules[name]
    assert module.__ipyportal_mark__ is Mark.NOT_BY_THE_STOP_BUTTON
    raises = pressed_in(module, CODE[module])
    assert raises
    assert not any(raises)
    del module.__ipyportal_mark__
    assert any(pressed_in(module, CODE[module]))
    print("checked")


# In a process of its own: it profiles the thread where greenlets of other tests may stand still.


@pytest.mark.parametrize("module", CODE, ids=lambda module: module.__name__)
def test_the_stop_button_does_not_tear_apart(module: Any) -> None:
    result = python(f"from tests.notebook.test_marks import check\ncheck({module.__name__!r})")
    assert result.stdout == "checked\n", result.stderr


def test_a_function_that_was_given_to_ipyportal_is_the_users() -> None:
    result = python("""
        from ipyportal.concurrency import primitives
        from tests.notebook.test_marks import pressed_in
        print(pressed_in(primitives, "run(int, '5', on=ipyportal.routes.HERE)"))
    """)
    assert result.stdout == "[True]\n", result.stderr
