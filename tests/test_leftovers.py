"""The check that every test leaves nothing behind, on tests that do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CULPRITS = """
import asyncio, os, signal, threading

release = threading.Event()

def test_thread():
    threading.Thread(target=release.wait, name="lingering", daemon=True).start()

def test_clean_between():
    pass

def test_task():
    global loop, task
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.sleep(0), name="unfinished")

def test_file():
    global pipe
    pipe = os.pipe()

def test_handler():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

def test_patch():
    asyncio.run = print

def test_clean_after():
    assert asyncio.run is not print
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_a_test_that_leaves_something_behind_fails_and_no_other_does(
    pytester: pytest.Pytester,
) -> None:
    conftest = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(conftest.replace("GRACE = 2.0", "GRACE = 0.1"))
    pytester.makepyfile(CULPRITS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=7, errors=5)
    failed = re.findall(r" ERROR at teardown of (\w+) ", result.stdout.str())
    assert failed == ["test_thread", "test_task", "test_file", "test_handler", "test_patch"]
    result.stdout.fnmatch_lines(
        [
            "*<Thread(lingering, started daemon *",
            "*in wait*",
            "*<Task pending name='unfinished' *",
            "file descriptor *: pipe:*",
            "handler of SIGINT: <built-in function default_int_handler> became *SIG_IGN*",
            "patched asyncio.run: <function run at *> became <built-in function print>",
        ]
    )
