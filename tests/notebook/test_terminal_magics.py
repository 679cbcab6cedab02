"""The magics in terminal IPython, where no loop runs while a line runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_terminal import Terminal


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal that the tests of this module share, with ipyportal loaded."""
    terminal = Terminal(tmp_path_factory.mktemp("ipython"))
    try:
        terminal.run("import asyncio, threading, time")
        terminal.run("%load_ext ipyportal")
        terminal.run("async def double(n): await asyncio.sleep(0); return 2 * n\n")
        terminal.run("async def fail(): await asyncio.sleep(0); raise LookupError('not here')\n")
        yield terminal
    finally:
        terminal.close()


def cell(*lines: str) -> str:
    """A cell of several lines, as it is typed: two empty lines end it."""
    return "\n".join(lines) + "\n\n"


def test_await_waits_in_a_line_and_in_a_cell(shared: Terminal) -> None:
    assert re.search(r"Out\[\d+\]: 4\b", shared.run("%await double(2)"))
    shared.run("x = %await double(3)")
    assert "(6, 6)" in shared.run("(x, _oh and x)")
    assert re.search(r"Out\[\d+\]: 14\b", shared.run(cell("%%await", "y = await double(x)", "y + 2")))
    assert re.search(r"Out\[\d+\]: \(14, 12\)", shared.run("(_, y)"))
    assert "Out[" not in shared.run(cell("%%await", "await double(x);")).split("===end")[0]


def test_thread_runs_where_a_library_may_run_a_loop(shared: Terminal) -> None:
    said = shared.run(cell("%%thread --name one", "threading.current_thread().name, asyncio.run(double(4))"))
    assert "('ipyportal-one', 8)" in said


def test_await_is_timed_profiled_and_captured(shared: Terminal) -> None:
    said = shared.run("%time await double(5)")
    assert "Wall time" in said
    assert re.search(r"Out\[\d+\]: 10\b", said)
    assert "2 loops each" in shared.run("%timeit -n 2 -r 2 await double(5)")
    shared.run(cell("%%capture captured", "print(await double(6))"))
    assert r"'12\n'" in shared.run("captured.stdout")


def test_a_background_call_goes_on_at_the_prompt(shared: Terminal) -> None:
    shared.run("go = threading.Event()")
    said = shared.run(cell("%%background job", "await asyncio.to_thread(go.wait)", "41 + 1"))
    assert "job: pending" in said
    assert "job: running" not in shared.run("time.sleep(1.2)")  # a terminal has no card that could be kept up to date
    assert re.search(r"job +running", shared.run("%calls"))
    shared.run("go.set()")
    assert re.search(r"Out\[\d+\]: 42\b", shared.run("job.result()"))
    assert re.search(r"job: finished .* int: 42", shared.run("job"))
    assert re.search(r"job +finished", shared.run("%calls"))


def test_errors_show_the_users_lines(shared: Terminal) -> None:
    said = shared.run(cell("%%await", "z = 1", "await fail()"))
    assert "LookupError: not here" in said
    assert re.search(r"-> 3 +await fail\(\)", said)
    assert "UsageError" in shared.run("%await --unknown 1")
    said = shared.run(cell("%%await", "z = 2", "if (:"))
    assert "SyntaxError" in said
    assert re.search(r"line 3\b|:3\b", said)
    assert "ipyportal" not in said
    assert re.search(r"Out\[\d+\]: 1\b", shared.run("z"))


def test_a_time_out_and_ctrl_c_end_a_magic(shared: Terminal) -> None:
    assert "TimeoutError" in shared.run("%await -t 0.1 asyncio.sleep(60)")
    shared.type(
        cell("%%thread", "print('beg' + 'un')", "try:", "    while True: time.sleep(0.01)", "finally: ended = 1")
    )
    shared.read_until("begun")
    time.sleep(0.1)
    shared.interrupt()
    shared.read_until("KeyboardInterrupt", timeout=10)
    assert re.search(r"Out\[\d+\]: 1\b", shared.run("ended"))


def test_portal_says_that_this_is_a_terminal(shared: Terminal) -> None:
    assert "terminal IPython" in shared.run("%portal")


def test_what_portal_says_is_what_a_line_with_await_does(shared: Terminal) -> None:
    pytest.importorskip("greenlet")
    shared.run("async def where(): return threading.current_thread().name\n")
    waits = "(await asyncio.sleep(0), ipyportal.run(where()), asyncio.run(where()))"
    shared.run("import ipyportal")

    said = shared.run("%portal")
    assert "blocked: no loop runs; in a line with await one does, and goes on" in said
    assert "on the EventLoopThread; in a line with await on its own loop" in said
    assert "works: no loop is running. In a line with await, type %portal patch on" in said
    assert "(None, 'MainThread')" in shared.run("(await asyncio.sleep(0), ipyportal.run(where()))")
    assert "asyncio.run() cannot be called from a running event loop" in shared.run(waits)

    shared.run("%portal patch on")
    try:
        said = shared.run("%portal")
        assert re.search(r"works: no loop is running\. In a line with await: .* suspend their callers", said)
        assert re.search(r"\(None, 'MainThread', 'ipyportal-thread-\d+'\)", shared.run(waits))
        assert "'MainThread'" in shared.run("asyncio.run(where())")
        assert "'ipyportal-loop'" in shared.run("ipyportal.run(where())")
    finally:
        shared.run("%portal patch off")


def test_after_unload_they_are_gone(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    try:
        terminal.run("%load_ext ipyportal")
        terminal.run("import asyncio")
        assert "Error" not in terminal.run("%unload_ext ipyportal")
        assert "not found" in terminal.run("%await 1")
        assert "SyntaxError" in terminal.run("%time await asyncio.sleep(0)")
    finally:
        terminal.close()
