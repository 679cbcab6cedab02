"""A kernel in which the extension is loaded again and again, and one that is used all day: nothing grows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.notebook.kernel import Kernel

from .looks import OPEN_FILES

LOOK = """
    import asyncio, collections, gc, threading

    def held():
        gc.collect()
        objects = collections.Counter(
            type(one).__qualname__ for one in gc.get_objects() if str(type(one).__module__).startswith("ipyportal")
        )
        return {
            "objects": dict(objects),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "files": dict(collections.Counter(open_files())),
        }

    def memory():
        # Of all objects that the garbage collector knows; the pages of a process scatter.
        gc.collect()
        return len(gc.get_objects())
"""


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=[pytest.mark.storm, pytest.mark.timeout(300)])])
def test_loading_and_unloading_again_and_again_leaves_nothing(kernel: Kernel, count: int) -> None:
    kernel.value(OPEN_FILES)
    kernel.value(LOOK)
    kernel.value("""
        import ipyportal, signal
        shell = get_ipython()
        def again(count):
            for _ in range(count):
                shell.run_line_magic("load_ext", "ipyportal")
                ipyportal.submit(asyncio.sleep, 0).result()
                shell.run_line_magic("unload_ext", "ipyportal")
    """)
    kernel.value("again(3)")
    before, objects = kernel.value("held(), memory()")
    kernel.value(f"again({count})", timeout=240)
    after, more_objects = kernel.value("held(), memory()")
    assert {kind: after[kind] for kind in after if after[kind] != before[kind]} == {}, before["objects"]
    assert more_objects - objects < 5 * count, "objects are kept"


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=[pytest.mark.storm, pytest.mark.timeout(300)])])
def test_a_days_worth_of_background_calls_leaves_nothing_but_a_bounded_history(
    loaded_kernel: Kernel, count: int
) -> None:
    kernel = loaded_kernel
    kernel.value(OPEN_FILES)
    kernel.value(LOOK)
    kernel.value("""
        shell = get_ipython()
        def calls(count):
            for number in range(count):
                shell.run_cell_magic("background", "job", "await asyncio.sleep(0)\\n[0] * 1000")
                job.result(timeout=30)
                if number % 50 == 0:
                    repr(shell.run_line_magic("calls", ""))
    """)
    kernel.value("calls(150)", timeout=120)  # more than the history holds
    before, objects = settled(kernel)
    kernel.value(f"calls({count})", timeout=240)
    after, more_objects = settled(kernel)
    assert {kind: after[kind] for kind in after if after[kind] != before[kind]} == {}, before["objects"]
    assert more_objects - objects < count, "objects are kept"


def settled(kernel: Kernel) -> tuple[dict[str, Any], int]:
    """What the kernel holds when the last cards have taken their leave: when two looks see the same."""
    looks: list[Any] = [None]
    for _ in range(100):
        looks.append(kernel.value("time.sleep(0.1)\nheld(), memory()"))
        if looks[-2] is not None and looks[-1][0] == looks[-2][0]:
            break
    return looks[-1]  # type: ignore[no-any-return]
