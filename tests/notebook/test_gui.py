"""GUI event loops: a cell waits, the windows stay live, and the stop button works."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from .kernel import Kernel

pytest.importorskip("greenlet")

TIMERS = {
    "qt": """
        from PySide6 import QtCore
        def tick():
            ticks.append(1)
        timer = QtCore.QTimer()
        timer.timeout.connect(tick)
        timer.start(5)
    """,
    "tk": """
        import tkinter
        root = tkinter.Tk()
        def tick():
            ticks.append(1)
            root.after(5, tick)
        tick()
    """,
}


def need(toolkit: str) -> None:
    """Skip where the toolkit is missing; in CI the default interpreter's job must have both."""
    if os.environ.get("IPYPORTAL_NO_BROWSER"):
        pytest.skip("IPYPORTAL_NO_BROWSER is set: of CI's jobs, that of the default interpreter alone has GUI toolkits")
    if toolkit == "qt":
        missing = "" if importlib.util.find_spec("PySide6") else "PySide6 (pip install PySide6-Essentials)"
    elif importlib.util.find_spec("_tkinter") is None:
        missing = "tkinter, without which this Python was built"
    else:
        missing = "" if shutil.which("Xvfb") else "Xvfb, a screen for tkinter (apt-get install xvfb)"
    if missing and os.environ.get("IPYPORTAL_CI") and "built" not in missing:
        pytest.fail(f"CI needs {missing}")
    if missing:
        pytest.skip(f"needs {missing}")


@pytest.fixture(scope="module", autouse=True)  # before each test is looked at for what it leaves
def screen() -> Iterator[str]:
    """A screen of its own, by the name that DISPLAY has; none where there is no Xvfb."""
    if shutil.which("Xvfb") is None or os.environ.get("IPYPORTAL_NO_BROWSER"):
        yield ""
        return
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as number:
        yield f":{number.readline().strip()}"
    server.terminate()
    server.wait(10)


@pytest.fixture(params=["qt", "tk"])
def toolkit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, screen: str) -> str:
    toolkit: str = request.param
    need(toolkit)
    if toolkit == "qt":
        monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    else:
        monkeypatch.setenv("DISPLAY", screen)
    return toolkit


@pytest.fixture
def live(toolkit: str, request: pytest.FixtureRequest) -> Kernel:
    """A kernel with the extension, a toolkit's event loop, and a timer of that toolkit."""
    loaded: Kernel = request.getfixturevalue("loaded_kernel")
    loaded.value(f"%gui {toolkit}")
    loaded.value(f"""
        ticks, log = [], []

        async def ticked(count=10):
            goal = len(ticks) + count
            while len(ticks) < goal:
                await asyncio.sleep(0.001)
            return "ticked"

        async def slow():
            try:
                print("begun")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                log.append("cleaned up")
{TIMERS[toolkit]}
    """)
    return loaded


@pytest.mark.parametrize(
    "cell",
    [
        "run(ticked())",
        "run(ticked(), on='loop')",
        "await ticked()",
        "%await ticked()",
        "await asyncio.create_task(asyncio.sleep(0, run(ticked())))",
    ],
)
def test_a_cell_waits_while_the_toolkits_timers_go_on(live: Kernel, cell: str) -> None:
    for _ in range(3):
        assert live.value(f"await asyncio.sleep(0)\n{cell}" if cell.startswith("await") else cell) in ("ticked", None)


def test_a_cell_waits_for_a_thread_while_the_toolkits_timers_go_on(live: Kernel) -> None:
    live.value("def wait():\n    before = len(ticks)\n    while len(ticks) < before + 10: time.sleep(0.001)")
    reply = live.execute("%%thread\nwait()\nprint('ticked')")
    assert reply.error is None
    assert reply.stdout == "ticked\n"


@pytest.mark.parametrize("cell", ["run(slow())", "await slow()", "run(slow(), on='loop')"])
def test_the_stop_button_ends_the_cell_and_the_kernel_goes_on(live: Kernel, cell: str) -> None:
    for _ in range(3):
        waiting = live.begin(cell)
        live.interrupt()
        error = waiting.reply(timeout=10).error
        assert error is not None
        assert error.ename == "KeyboardInterrupt"
        assert live.value("log.pop()") == "cleaned up"
        assert live.value("run(ticked())") == "ticked"


def test_a_callback_of_the_toolkit_waits_and_blocks_the_kernel_meanwhile(live: Kernel, toolkit: str) -> None:
    # It cannot stand still: the toolkit has pointers to its own frames below it.
    later = "QtCore.QTimer.singleShot(5, clicked)" if toolkit == "qt" else "root.after(5, clicked)"
    reply = live.value(f"""
        import warnings
        def clicked():
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                log.append((run(asyncio.sleep(0.01, "waited")), str(warned[0].message)))
            done.set()
        done = asyncio.Event()
        {later}
        await done.wait()
        log.pop()
    """)
    value, warning = reply
    assert value == "waited"
    assert "It is called by a GUI toolkit. Start the work with submit()" in warning


def test_tasks_of_the_kernel_go_on_between_cells_with_qt(live: Kernel, toolkit: str) -> None:
    if toolkit != "qt":
        pytest.skip("ipykernel makes tk anew each time that it gets the thread, and only a message ends that")
    cell = live.execute_async(
        """
        async def speak():
            for number in range(5):
                await asyncio.sleep(0.01)
                print(number)
        speaking = asyncio.ensure_future(speak())
        """
    )
    cell.reply()
    # No message is sent that would wake the kernel.
    live.wait_for(lambda: cell.reply().stdout == "0\n1\n2\n3\n4\n")


def test_off_and_on_again_and_unloading_leave_what_ipykernel_had(live: Kernel, toolkit: str) -> None:
    live.value("%gui")
    assert live.value("run(asyncio.sleep(0.01, 'waited'))") == "waited"
    live.value(f"%gui {toolkit}")
    assert live.value("run(ticked())") == "ticked"
    # In one cell: without the extension ipykernel misses a message that comes in the turn in which it enters the loop.
    unloaded = live.value("""
        %unload_ext ipyportal
        from ipykernel.eventloops import loop_map
        from types import FunctionType
        kinds = {type(one) for one in loop_map.values()}
        kind = type(get_ipython().kernel.eventloop)
        %gui
        kind is FunctionType, kinds <= {FunctionType, type(None)}
    """)
    assert unloaded == (True, True)


def test_a_toolkit_that_came_before_the_extension(toolkit: str, request: pytest.FixtureRequest) -> None:
    kernel: Kernel = request.getfixturevalue("kernel")
    kernel.value(
        f"%gui {toolkit}\n%load_ext ipyportal\nimport asyncio\nfrom ipyportal import run"
    )  # in one cell: as above
    for _ in range(3):
        assert kernel.value("run(asyncio.sleep(0.01, 'waited'))") == "waited"


def test_a_plot_of_matplotlib_in_a_window_of_qt(loaded_kernel: Kernel) -> None:
    need("qt")
    pytest.importorskip("matplotlib")
    loaded_kernel.value("import os; os.environ['QT_QPA_PLATFORM'] = 'offscreen'")
    loaded_kernel.value("import matplotlib\nmatplotlib.use('qtagg')\nimport matplotlib.pyplot as plt\nplt.ion()\nNone")
    loaded_kernel.value("plt.plot([1, 2])\nplt.pause(0.01)\nNone")
    for _ in range(3):
        assert loaded_kernel.value("run(asyncio.sleep(0.05, 'waited'))") == "waited"
