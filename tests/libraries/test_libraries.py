"""The libraries that people fight with, each in a fresh kernel, in the ways that docs/libraries.md recommends.

``python -m tests.libraries.test_libraries`` writes the table of that page anew, with what was found and the versions.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ipyportal import submit
from ipyportal.concurrency import EventLoopThread
from tests.browser import chromium
from tests.notebook.kernel import Kernel
from tests.web import web

from . import agents, databases, loops, programs, tools
from . import web as over_http
from .library import PRELUDE, WAYS, Library, cell

PAGE = Path(__file__).parents[2] / "docs/libraries.md"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")

LIBRARIES: dict[str, Library] = {
    **agents.LIBRARIES,
    **over_http.LIBRARIES,
    **databases.LIBRARIES,
    **tools.LIBRARIES,
    **loops.LIBRARIES,
}

PATIENCE = 60.0
WAITS = 0.5
"""Seconds that a library waits, in which the test counts the turns of the kernel's loop."""


class Servers:
    """What the libraries talk to, each started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._known: dict[str, str] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def fill_in(self, text: str) -> str:
        """The text, with addresses and paths in place of the words in capitals."""
        for name in ("ADDRESS", "POSTGRES", "REDIS", "ORCHESTRATOR", "CHROMIUM"):
            if name in text:
                text = text.replace(name, self._address(name))
        return text.replace("FOLDER", str(self._folder))

    def _address(self, name: str) -> str:
        if name not in self._known:
            folder = self._folder / name.lower()
            folder.mkdir()
            if name == "CHROMIUM":
                self._known[name] = str(chromium())
            elif name == "ADDRESS":
                self._known[name] = self._open.enter_context(loopback())
            else:
                self._known[name] = self._open.enter_context(programs.STARTED[name](folder))
        return self._known[name]


@contextmanager
def loopback() -> Iterator[str]:
    """The server of tests/web.py, in a thread of its own."""
    with EventLoopThread(name="web") as portal:
        began, where = threading.Event(), []
        serving = submit(served, began, where, on=portal)
        began.wait(10)
        yield where[0]
        serving.cancel()  # and leaving the block waits for its end


async def served(began: threading.Event, where: list[str]) -> None:
    async with web() as address:
        where.append(address)
        began.set()
        await asyncio.Event().wait()


@pytest.fixture
def servers() -> Iterator[Servers]:
    # Not pytest's tmp_path: each run of pytest closes the folder above for other users, as PostgreSQL's may be.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with Servers(Path(folder)) as servers:
            yield servers


def installed(requirement: str) -> bool:
    try:
        metadata.version(requirement.partition("==")[0])
    except metadata.PackageNotFoundError:
        return False
    return True


def missing() -> list[str]:
    """What is needed and is not there. With some of it the tests would take minutes, and say little."""
    packages = [line for line in REQUIREMENTS.read_text("utf-8").splitlines() if "==" in line and not installed(line)]
    servers = [name for name, shows in programs.PROGRAMS.items() if programs.find(shows) is None]
    return [*packages, *servers, *([] if chromium() else ["Chromium"])]


if missing() and __name__ != "__main__":
    if os.environ.get("IPYPORTAL_LIBRARIES"):
        pytest.fail(f"CI needs {', '.join(missing())}", pytrace=False)
    pytest.skip(
        f"needs {', '.join(missing())}: pip install -r tests/libraries/requirements.txt", allow_module_level=True
    )


def prepare(kernel: Kernel, library: Library, way: str, servers: Servers) -> None:
    for code in (PRELUDE, WAYS[way][0], servers.fill_in(library.setup)):
        reply = kernel.execute(code, PATIENCE)
        assert reply.error is None, reply.error.traceback


def outcome(kernel: Kernel, library: Library, way: str) -> str:
    """``works``, ``blocks the kernel`` if it works, ``fails`` if it gives something else, or the error."""
    kernel.value("ticks.clear()")
    reply = kernel.execute(cell(library, way, WAITS), PATIENCE)
    ticks = kernel.value("len(ticks)")
    if reply.error is not None:
        return f"{reply.error.ename}: {reply.error.evalue}".partition("\n")[0]
    if reply.result != (None if library.gives is None else repr(library.gives)):
        return "fails"
    return "works" if ticks > WAITS / 0.01 / 3 else "blocks the kernel"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "way"), [(name, way) for name, library in LIBRARIES.items() for way in library.by])
def test_a_library_works_and_is_stopped(name: str, way: str, servers: Servers) -> None:
    library = LIBRARIES[name]
    with Kernel() as kernel:
        prepare(kernel, library, way, servers)
        assert outcome(kernel, library, way) == "works"
        before = kernel.value("len(ended)")
        pending = kernel.execute_async(cell(library, way, 60))
        if library.cleans_up:
            kernel.wait_for(lambda: "waits" in pending.stdout_so_far() or pending.done(), PATIENCE)
        else:
            # What is waited for has begun, or is about to: the button must end either.
            kernel.wait_for(lambda: any("busy" in str(one["content"]) for one in pending.messages), PATIENCE)
            threading.Event().wait(1)
        assert not pending.done(), pending.reply()
        kernel.interrupt()
        error = pending.reply(PATIENCE).error
        assert error.ename == "KeyboardInterrupt" if error is not None else library.stops_quietly
        if library.cleans_up:
            assert (kernel.value("len(ended)") > before) is not library.goes_on
        assert outcome(kernel, library, way) == "works"
        if library.ends:
            assert kernel.execute(library.ends).error is None
        assert kernel.value("left()") == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["as in a script", "nest_asyncio"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_page_says_what_happens_without_ipyportal(name: str, way: str, servers: Servers) -> None:
    row = next(row for row in listed() if row[0] == name)
    assert without(name, way, servers) == row[3 if way == "as in a script" else 4]


def test_the_page_lists_all_of_them_with_the_versions_of_ci() -> None:
    assert [(row[0], row[1], row[2], row[5]) for row in listed()] == [
        (name, version(library), library.does, ", ".join(map(said, library.by))) for name, library in LIBRARIES.items()
    ]
    text = PAGE.read_text(encoding="utf-8")
    assert summary(listed()) in text
    assert ", ".join(name for name, library in LIBRARIES.items() if library.goes_on) in text


def without(name: str, way: str, servers: Servers) -> str:
    """How it behaves without ipyportal, in a word."""
    library = LIBRARIES[name]
    if "ipyportal" in library.setup:
        return ""
    with Kernel() as kernel:
        prepare(kernel, library, way, servers)
        found = outcome(kernel, library, way)
    return found if found in ("works", "blocks the kernel", "fails") else f"`{found.partition(':')[0]}`"


def said(way: str) -> str:
    """A way, as the page names it."""
    return way if way == "the patch" else f"`{way}`"


def version(library: Library) -> str:
    """The version that CI uses."""
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text("utf-8").split() if "==" in line)
    return pins[library.package] if library.package else "Python's own"


def listed() -> list[list[str]]:
    """The rows of the table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def summary(rows: list[list[str]]) -> str:
    """How many work, and block nothing. What has no meaning without ipyportal is not counted."""
    alone, nested = ([row[column] for row in rows if row[column]] for column in (3, 4))
    return (
        f"Of {len(alone)} uses, {alone.count('works')} work in a cell as in a script and let the kernel go on; "
        f"{nested.count('works')} do with nest_asyncio, and all with ipyportal."
    )


def main() -> None:
    rows = []
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for number, (name, library) in enumerate(LIBRARIES.items()):
            Path(folder, str(number)).mkdir()
            with Servers(Path(folder, str(number))) as servers:
                found = [without(name, way, servers) for way in ("as in a script", "nest_asyncio")]
            row = [name, version(library), library.does, *found, ", ".join(map(said, library.by))]
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    table = ["| library | version | what is called | as in a script | with nest_asyncio | with ipyportal |"]
    table.append("|---|---|---|---|---|---|")
    table += [f"| {' | '.join(row)} |" for row in rows]
    before, _, rest = PAGE.read_text("utf-8").partition("<!-- libraries -->")
    after = rest.rpartition("<!-- end of libraries -->")[2]
    made = "\n".join([summary(rows), "", *table])
    PAGE.write_text(f"{before}<!-- libraries -->\n{made}\n<!-- end of libraries -->{after}", "utf-8")


if __name__ == "__main__":
    main()
