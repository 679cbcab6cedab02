"""The tools around a notebook, each with the extension and without: what they print and show is the same, or better.

``python -m tests.notebook.test_tools`` writes the table of docs/tools.md anew, with the versions that are installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from IPython import version_info

from .kernel import Kernel, Reply

PAGE = Path(__file__).parents[2] / "docs/tools.md"

PRELUDE = """
import asyncio, os
from ipyportal import run

async def work(x=1):
    await asyncio.sleep(0.02)
    return x

def waits(x=1):
    y = run(work(x))
    z = y + 1
    return z
"""

# Without the extension the loop runs in another thread, and from CPython 3.12 on cProfile mixes up the threads: some
# calls are missing then, now and again.
PROFILED = """
import sys
alone = "ipyportal" in get_ipython().extension_manager.loaded or sys.version_info < (3, 12)
"waits" in open("calls.txt").read() or not alone
"""

CELLS: dict[str, list[str]] = {
    "line_profiler": [
        "%load_ext line_profiler",
        "%lprun -T profile.txt -f waits waits()",
        r"import re; re.sub(r'[\d.]+e?-?\d*', 'N', open('profile.txt').read().split('======')[-1])",
    ],
    "pyinstrument": [
        "def computes():\n    waits()\n    return sum(range(5_000_000))",
        "from pyinstrument import Profiler\nwith Profiler() as profiler:\n    computes()",
        "'computes' in profiler.output_text()",
    ],
    "coverage": [
        "code = 'from ipyportal import run\\n\\ndef f(work):\\n    x = run(work())\\n    return x + 1'",
        "written = open('covered.py', 'w').write(code)",
        "import coverage\ncover = coverage.Coverage(concurrency=['thread', 'greenlet'], include=['covered.py'])",
        "cover.start()\nimport covered\ncovered.f(work)\ncover.stop()",
        "cover.analysis('covered.py')[1:3]  # the lines of code, and those that were missed",
    ],
    "tqdm": ["from tqdm import tqdm", "[waits(n) for n in tqdm(range(3))]"],
    "rich": [
        "from rich import print as show",
        "show('[bold]bold[/bold]', waits())",
        "from rich.progress import track",
        "[waits(n) for n in track(range(3))]",
    ],
    "wurlitzer": [
        "from wurlitzer import pipes",
        "with pipes() as (out, err):\n    waits()\n    os.system('echo from a process')\nout.read()",
    ],
    "ipywidgets": [
        "import ipywidgets\nslider, seen = ipywidgets.IntSlider(), []",
        "slider.observe(lambda change: seen.append(waits(change.new)), 'value')",
        "slider.value = 5\nseen",
    ],
    "ipympl": ["%matplotlib widget\nimport matplotlib.pyplot as plt", "plt.plot([1, 2])", "waits()"],
    "ipytest": [
        "import ipytest\nipytest.autoconfig()",
        "%%ipytest -qq --color=no\ndef test_waits():\n    assert waits(5) == 6",
        "%%ipytest -qq --color=no\ndef test_fails():\n    assert waits(5) == 5",
    ],
    "ipython-autotime": ["%load_ext autotime", "waits()"],
    "jupysql": ["%load_ext sql\n%sql sqlite://", "n = waits(4)\n%sql SELECT {{n}} AS five"],
    "IPython: %run": ["written = open('script.py', 'w').write('print(waits(3))')", "%run -i script.py"],
    "IPython: %autoreload": [
        "written = open('reloaded.py', 'w').write('async def f(): return 1')",
        "import reloaded\n%load_ext autoreload\n%autoreload 2",
        "run(reloaded.f())",
        "written = open('reloaded.py', 'w').write('async def f(): return 22')",
        "run(reloaded.f())",
    ],
    "IPython: %prun": ["%prun -q -T calls.txt waits()", PROFILED],
    "IPython: %timeit": ["%timeit -n 2 -r 2 waits()"],
    "IPython: %%capture": ["%%capture said\nprint(waits())", "said.stdout"],
}
"""Cells of which all that they print and show is compared."""

VERDICTS = {
    "coverage": "same, with the setting below",
    "pyinstrument": "same, but a wait stands beside the function that waits",
}
"""Of those that are not just the same."""

PACKAGES = {"ipython-autotime": "autotime", "jupysql": "sql"}
"""Where they are imported by another name than that which they are installed by."""

ELSEWHERE = {
    "ipykernel: the debugger": ("same", "tests/notebook/test_debugger.py"),
    "IPython: %time, %timeit, %prun, %%capture of a line with await": (
        "better: without, they know no await",
        "tests/notebook/test_await_in_magics.py",
    ),
    "nbclient": ("same, and cards that are true", "tests/notebook/test_saved.py"),
    "nbconvert": ("same, and cards that are true", "tests/notebook/test_frontends.py"),
    "papermill": ("same, and cards that are true", "tests/notebook/test_frontends.py"),
    "voila": ("same; cards show their ends alone", "tests/notebook/test_frontends.py"),
    "jupyter_console": ("same", "tests/notebook/test_frontends.py"),
    "ipyparallel": ("same; clusters as a place for calls", "tests/notebook/test_executors.py"),
    "xeus-python": ("works, without what is ipykernel's own", "tests/notebook/test_other_kernels.py"),
    "async-kernel": ("works, without what is ipykernel's own", "tests/notebook/test_other_kernels.py"),
    "spyder-kernels": ("same", "tests/notebook/test_other_kernels.py"),
    "FastAPI": ("better: run does not block its loop", "tests/test_hosts.py"),
    "Django": ("better: in %%thread its ORM works as it is", "tests/notebook/test_sync_libraries.py"),
}
"""What other tests hold."""


def need(package: str) -> None:
    if importlib.util.find_spec(PACKAGES.get(package, package)) is not None:
        return
    if os.environ.get("IPYPORTAL_TOOLS"):
        pytest.fail(f"CI needs {package}")
    pytest.skip(f'needs {package}: pip install "ipyportal[tools]"')


def shown(cells: list[str], folder: Path, *, load: bool) -> list[list[str]]:
    """What each cell prints and shows, without what differs from one time to the next."""
    with Kernel(cwd=folder) as kernel:
        if load:
            assert kernel.execute("%load_ext ipyportal").error is None
        return [lasting(kernel.execute(cell, 60)) for cell in [PRELUDE, *cells]]


def lasting(reply: Reply) -> list[str]:
    assert reply.error is None, reply.error.traceback
    texts = [f"out: {reply.stdout}", f"err: {reply.stderr}"]
    texts += [
        str(message["content"]["data"].get("text/plain"))
        for message in reply.messages
        if message["msg_type"] in ("display_data", "execute_result")
    ]
    return [re.sub(" +", " ", CHANGING.sub("~", text)) for text in texts]


CHANGING = re.compile(
    r"""
    ipykernel_\d+ | 0x[0-9a-f]+ | [0-9a-f]{32}         # of this process, or this object
    | \d+(\.\d+)?[ ]?([num\u03bc\xb5]?s\b | it/s) | \d+(:\d\d)+ | \d+-\d\d-\d\d   # times
    | \r.*?(?=\r)                                       # of a bar all but its last state
    """,
    re.VERBOSE,
)


@pytest.mark.parametrize("tool", CELLS)
def test_a_tool_prints_and_shows_the_same(tool: str, tmp_path: Path) -> None:
    if ":" not in tool:
        need(tool)
    if "autoreload" in tool and version_info[0] < 8 and importlib.util.find_spec("imp") is None:
        pytest.skip("IPython 7.34 imports a module for it that CPython 3.12 has no more")
    without, loaded = (shown(CELLS[tool], tmp_path, load=load) for load in (False, True))
    assert any(text not in ("out: ", "err: ") for texts in without[1:] for text in texts)
    assert loaded == without


# --- tools that run notebooks or processes of their own --------------------------------------------------------------


def python(folder: Path, code: str, timeout: float = 50) -> str:
    """What a script prints."""
    (folder / "script.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def write(folder: Path, *sources: str) -> Path:
    path = folder / "notebook.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("%load_ext ipyportal", PRELUDE, *sources)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_nbval_compares_the_outputs_of_a_notebook_that_waits(tmp_path: Path) -> None:
    need("nbval")
    write(tmp_path, "waits(5)", "await work(7)")
    execute = "import nbclient.cli; nbclient.cli.NbClientApp.launch_instance(['--inplace', 'notebook.ipynb'])"
    for command in (["-c", execute], ["-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider", "notebook.ipynb"]):
        ran = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "4 passed" in ran.stdout


def test_testbook_calls_functions_of_a_notebook_that_wait(tmp_path: Path) -> None:
    need("testbook")
    write(tmp_path)
    code = """
from testbook import testbook

with testbook("notebook.ipynb", execute=True) as book:
    print(book.ref("waits")(5))
"""
    assert python(tmp_path, code) == "6\n"


def test_marimo_runs_cells_that_wait(tmp_path: Path) -> None:
    need("marimo")
    code = """
import marimo

app = marimo.App()

@app.cell
def _():
    import asyncio
    from ipyportal import map, run
    return asyncio, map, run

@app.cell
async def _(asyncio, map, run):
    await asyncio.sleep(0.01)
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.01)

    task = asyncio.get_running_loop().create_task(tick())
    waited = run(asyncio.sleep(0.2, "waited"))
    print(waited, len(ticks) > 5, map(lambda n: n + 1, [1, 2]))
    task.cancel()
    return

if __name__ == "__main__":
    app.run()
"""
    assert python(tmp_path, code) == "waited True [2, 3]\n"


def test_celerys_workers_in_threads_may_wait(tmp_path: Path) -> None:
    need("celery")
    code = """
import asyncio

from celery import Celery
from celery.contrib.testing.worker import start_worker

from ipyportal import map, run

app = Celery("tests", broker="memory://", backend="cache+memory://")
app.conf.worker_hijack_root_logger = False

@app.task
def waits(n):
    return run(asyncio.sleep(0.01, n)), map(lambda one: one + 1, [n])

with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="ERROR"):
    print([result.get(timeout=20) for result in [waits.delay(n) for n in range(4)]])
"""
    assert python(tmp_path, code) == "[[0, [1]], [1, [2]], [2, [3]], [3, [4]]]\n"


def test_gevents_greenlets_may_wait_in_threads_of_its_pool(tmp_path: Path) -> None:
    # A greenlet of gevent's that waits in `run` blocks all others: it belongs into gevent's own pool of threads.
    need("gevent")
    code = """
import asyncio

import gevent

from ipyportal import run

def waits(n):
    return run(asyncio.sleep(0.2, n))

pool = gevent.get_hub().threadpool
ticks = []

def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)

ticker = gevent.spawn(tick)
print([one.get() for one in [pool.spawn(waits, n) for n in range(3)]], len(ticks) > 5)
ticker.kill()
"""
    assert python(tmp_path, code) == "[0, 1, 2] True\n"


SCRIPTS = {
    "nbval": "same",
    "testbook": "same",
    "marimo": "works, also without an extension: its cells are suspended",
    "celery": "works in its workers' threads",
    "gevent": "works in the threads of its pool; elsewhere run blocks its greenlets",
}


def rows() -> list[tuple[str, str, str, str]]:
    """Those of the table: the tool, the version that was tried, what was found, the test that holds it."""
    here = "tests/notebook/test_tools.py"
    found = [(tool, VERDICTS.get(tool, "same"), here) for tool in CELLS]
    found += [(tool, verdict, here) for tool, verdict in SCRIPTS.items()]
    found += [(tool, *rest) for tool, rest in ELSEWHERE.items()]
    return [(tool, version(tool), verdict, test) for tool, verdict, test in found]


def version(tool: str) -> str:
    try:
        return metadata.version(tool.partition(":")[0])
    except metadata.PackageNotFoundError:
        return ""


def listed() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def test_the_page_lists_what_was_tried_and_found() -> None:
    assert [(tool, verdict, test) for tool, _, verdict, test in listed()] == [
        (tool, verdict, test) for tool, _, verdict, test in rows()
    ]
    assert all(PAGE.parents[1].joinpath(test).is_file() for *_, test in listed())
    assert all(version for _, version, *_ in listed())


def main() -> None:
    known = {tool: version for tool, version, *_ in listed()} if "| " in PAGE.read_text("utf-8") else {}
    table = ["| tool | version | with the extension | held by |", "|---|---|---|---|"]
    for tool, version, verdict, test in rows():
        table.append(f"| {tool} | {version or known.get(tool, '')} | {verdict} | `{test}` |")
    before, _, rest = PAGE.read_text("utf-8").partition("<!-- tools -->")
    after = rest.rpartition("<!-- end of tools -->")[2]
    PAGE.write_text(f"{before}<!-- tools -->\n" + "\n".join(table) + f"\n<!-- end of tools -->{after}", "utf-8")


if __name__ == "__main__":
    main()
