"""CPython's own tests of asyncio, with asyncio as it is and with ipyportal's patch on: the patch must fail none.

    python .ci/asyncio_tests.py

Each side is a process of its own, in which unittest runs the modules. A test that passes without the patch and not with
it fails this program, apart from those in `ABOUT_NESTING`. Where a Python comes without its tests, that is said.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

TIMEOUT = 300.0  # seconds

MODULES = [
    "tasks",
    "futures",
    "futures2",
    "locks",
    "queues",
    "taskgroups",
    "timeouts",
    "waitfor",
    "streams",
    "subprocess",
    "sock_lowlevel",
    "events",
    "selector_events",
    "server",
    "threads",
    "eager_task_factory",
]

ABOUT_NESTING = {
    "test_run_until_complete_nesting": "that a loop cannot be run in its own task",
    "test_running_loop_within_a_loop": "that a loop cannot be run in a task of another",
    "test_get_running_loop_already_running": "that a loop cannot be run for ever in a task of another",
}
"""What each of these tests, by the last part of its name: that loops cannot be nested, which the patch is there for."""

ENDLESS = "test_get_running_loop_already_running"
"""With the patch that loop does run for ever."""


class Result(unittest.TextTestResult):
    """Keeps what became of each test."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.outcomes: dict[str, str] = {}

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.outcomes.setdefault(test.id(), "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.outcomes[test.id()] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[test.id()] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = self._exc_info_to_string(err, subtest)  # type: ignore[attr-defined]

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[test.id()] = "skipped"


def each_of(tests: Any) -> Iterator[unittest.TestCase]:
    if isinstance(tests, unittest.TestCase):
        yield tests
    else:
        for some in tests:
            yield from each_of(some)


def run(patched: bool, tests: list[str]) -> dict[str, str]:
    """Run these tests, or else all modules, in this process."""
    from test import support

    support.use_resources = []  # nothing that needs a network
    names = [f"test.test_asyncio.test_{name}" for name in MODULES]
    names = tests or [name for name in names if importlib.util.find_spec(name)]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    if patched:
        suite = unittest.TestSuite(test for test in each_of(suite) if not test.id().endswith(ENDLESS))
    runner = unittest.TextTestRunner(io.StringIO(), resultclass=Result, warnings="default")
    with contextlib.redirect_stderr(io.StringIO()):
        if not patched:
            return runner.run(suite).outcomes  # type: ignore[attr-defined, no-any-return]
        import ipyportal

        with ipyportal.patch_asyncio():
            return runner.run(suite).outcomes  # type: ignore[attr-defined, no-any-return]


def outcomes(*sides: str, tests: Sequence[str] = ()) -> list[dict[str, str]]:
    """What became of the tests on each side. They run at the same time."""
    children = [subprocess.Popen([sys.executable, __file__, side, *tests], stdout=subprocess.PIPE) for side in sides]
    results = []
    try:
        for side, child in zip(sides, children, strict=True):
            output, _ = child.communicate(timeout=TIMEOUT)
            if child.returncode:
                raise SystemExit(f"asyncio's own tests, {side}: ended with {child.returncode}")
            results.append(dict(json.loads(output.splitlines()[-1])))
    finally:
        for child in children:
            child.kill()
            child.wait()
    return results


def broken(plain: dict[str, str], patched: dict[str, str]) -> Iterator[tuple[str, str]]:
    for test, outcome in plain.items():
        with_patch = patched.get(test, "did not run")
        if outcome == "passed" and with_patch != "passed" and test.rpartition(".")[2] not in ABOUT_NESTING:
            yield test, with_patch


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1] == "patched", sys.argv[2:])))
        return 0
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_asyncio") is None:
        print(f"CPython {sys.version.split()[0]} comes without its own tests of asyncio: not run")
        return 0
    plain, patched = outcomes("plain", "patched")
    failed = list(broken(plain, patched))
    if failed:
        # Some count on timers (test_taskgroup_25). What fails by itself, too, with the machine less busy, is a fault.
        for test, what in failed:
            print(f"{test} is run again, by itself; it ended with:\n{what}")
        (alone,) = outcomes("patched", tests=[test for test, _ in failed])
        failed = list(broken({test: "passed" for test, _ in failed}, alone))
    for test, what in failed:
        print(f"{test} passes without the patch, and not with it:\n{what}")
    excepted = sum(
        outcome == "passed" and patched.get(test) != "passed" and test.rpartition(".")[2] in ABOUT_NESTING
        for test, outcome in plain.items()
    )
    counts = [list(side.values()).count("passed") for side in (plain, patched)]
    print(
        f"asyncio's own tests of CPython {sys.version.split()[0]}: {counts[0]} pass without the patch, {counts[1]} "
        f"with it; {len(failed)} fail because of it, beside {excepted} that test that loops cannot be nested"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
