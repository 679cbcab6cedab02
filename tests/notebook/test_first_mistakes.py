"""What people type first and wrong: each answer says what to type instead, and shows their lines and not ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from .kernel import Error, Kernel

PRELUDE = """
    import asyncio, sys, ipyportal
    from ipyportal import submit
    async def fetch(n=5):
        await asyncio.sleep(0.01)
        return n
    async def fails(n):
        1 / 0
    def divide(n):
        return 1 / n
"""


@pytest.fixture
def shared(live_kernel: Kernel) -> Iterator[Kernel]:
    live_kernel.value(PRELUDE)
    yield live_kernel
    live_kernel.execute("%portal route rule\n%calls cancel all\n%calls clear")
    live_kernel.value("from ipyportal import run")


def answer(kernel: Kernel, code: str) -> Error:
    reply = kernel.execute(code)
    assert reply.error is not None, reply
    assert "never awaited" not in reply.stderr
    return reply.error


def notes(kernel: Kernel) -> str:
    """The notes of the last error, which newer IPythons show below it."""
    return str(kernel.value("'\\n'.join(getattr(sys.last_value, '__notes__', []))"))


def test_run_without_its_import_is_told_what_to_import(shared: Kernel) -> None:
    shared.value("globals().pop('run', None) and None")
    said = shared.execute("run(fetch())")
    assert "run is not imported: from ipyportal import run" in said.stderr
    assert "not found" not in said.stderr
    shared.value("import pathlib, tempfile\nfile = pathlib.Path(tempfile.mkdtemp(), 'a.py')\nfile.write_text('b = 7')")
    assert shared.execute("%run $file").error is None
    assert shared.value("b") == 7
    shared.value("from ipyportal import run")
    assert shared.value("run(fetch())") == 5


MISTAKES = {
    "run(5)": ("TypeError", "need an awaitable or a function, not int"),
    "run([fetch(), fetch()])": ("TypeError", r"ipyportal\.map\(fetch, urls\).*asyncio\.gather"),
    "run(fetch(), on='elsewhere')": ("ValueError", "on= must be"),
    "submit(fetch(), timeout=-1)": ("ValueError", "timeout must be 0 or more seconds"),
    "run(asyncio.sleep(60), timeout=0.01)": ("TimeoutError", r"sleep timed out after 0\.01 s"),
    "run(asyncio.sleep, 60, timeout=0.01, on='thread')": ("TimeoutError", r"sleep timed out after 0\.01 s"),
    "ipyportal.map(fetch, 5)": ("TypeError", r"needs iterables, such as lists, and 5 is not one: map\(fetch, urls\)"),
    "ipyportal.map(fails, [0, 1])": ("ZeroDivisionError", "division by zero"),
    "ipyportal.map(divide, [0, 1])": ("ZeroDivisionError", "division by zero"),
}


@pytest.mark.parametrize("code", MISTAKES)
def test_the_error_says_what_to_type_and_shows_the_users_lines_alone(shared: Kernel, code: str) -> None:
    name, text = MISTAKES[code]
    error = answer(shared, f"from ipyportal import run\n{code}  # here")
    assert error.ename == name
    assert re.search(text, error.evalue)
    assert "# here" in error.traceback
    assert "ipyportal/" not in error.traceback
    assert "most recent call last" not in error.traceback.split("most recent call last", 1)[1]  # one traceback


def test_what_is_not_shown_is_still_there(shared: Kernel) -> None:
    # For %debug, for a report of a bug of ours, and for whoever asks for it afterwards.
    answer(shared, "from ipyportal import run\nrun(asyncio.sleep(60), timeout=0.01)")
    assert shared.value("""
        import traceback
        last = traceback.extract_tb(sys.last_value.__traceback__)[-1].filename
        "ipyportal" in last, type(sys.last_value.__cause__).__name__
    """) == (True, "CancelledError")


@pytest.mark.parametrize("place", ["waits()", "await asyncio.create_task(in_a_task())"])
def test_what_led_to_an_error_shows_the_users_lines_alone_too(shared: Kernel, place: str) -> None:
    error = answer(
        shared,
        f"""
        from ipyportal import run
        def waits():
            with ipyportal.enter(asyncio.timeout(0.01)):
                run(asyncio.sleep(60))  # here
        async def in_a_task():
            waits()
        {place}
        """,
    )
    assert error.ename == "TimeoutError"
    cancel, timeout = error.traceback.split("was the direct cause of")
    assert "# here" in cancel
    assert "# here" in timeout
    assert "ipyportal/" not in error.traceback
    assert "ipyportal" in shared.value("""
        import traceback
        str(traceback.extract_tb(sys.last_value.__cause__.__traceback__))
    """)


def test_verbose_tracebacks_show_all(shared: Kernel) -> None:
    shared.execute("%xmode verbose")
    try:
        assert "_check_work" in answer(shared, "from ipyportal import run\nrun(5)").traceback
    finally:
        shared.execute("%xmode context")


def test_a_map_of_which_nothing_was_finished_does_not_say_that_something_is_kept(shared: Kernel) -> None:
    answer(shared, "ipyportal.map(fails, [0])")
    assert "results are kept" not in notes(shared)
    answer(shared, "async def second(n): return n if n == 0 else 1 / 0\nipyportal.map(second, [0, 1], limit=1)")
    assert "1 results are kept" in notes(shared)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("asyncio.run(fetch())", r"%%thread at the top of the cell, or type %portal patch on.*run\(x\)"),
        ("asyncio.get_event_loop().run_until_complete(fetch())", r"%%thread at the top of the cell, or type"),
    ],
)
def test_a_library_that_refuses_a_running_loop_is_explained(shared: Kernel, code: str, says: str) -> None:
    reply = shared.execute(code)
    assert reply.error is not None
    assert re.search(f"ipyportal: .*{says}", notes(shared))
    assert notes(shared).count("ipyportal: ") == 1


@pytest.mark.parametrize(
    "code",
    [
        "raise Exception('It looks like you are using Playwright Sync API inside the asyncio loop.')",
        "raise Exception('You cannot call this from an async context - use a thread or sync_to_async.')",
        "raise RuntimeError('Cannot use a synchronous streaming method from within an async context or ...')",
        "raise RuntimeError('AgentRunner.run_sync() cannot be called when an event loop is already running.')",
        "raise AssertionError('Cannot run client.execute(query) if an asyncio loop is running.')",
        "import anyio\nanyio.run(fetch)",
    ],
    ids=["Playwright", "Django", "pydantic-ai", "openai-agents", "gql", "anyio"],
)
def test_a_library_that_looks_for_a_loop_itself_is_not_helped_by_the_patch(shared: Kernel, code: str) -> None:
    assert shared.execute(code).error is not None
    assert notes(shared).startswith("ipyportal: put %%thread at the top of the cell: it runs where no event loop does.")
    assert "patch" not in notes(shared)


def test_what_it_is_told_to_type_works(shared: Kernel) -> None:
    shared.value("import anyio")
    assert shared.value("%%thread\nanyio.run(fetch)") == 5
    assert shared.value("run(anyio.run, fetch, on='thread')") == 5


@pytest.mark.parametrize(
    "manager",
    ["anyio.create_task_group()", "sets_a_variable()"],
)
def test_what_is_left_in_the_task_of_another_cell_is_explained(shared: Kernel, manager: str) -> None:
    shared.value("""
        import anyio, contextlib, contextvars
        from ipyportal import enter
        variable = contextvars.ContextVar("variable")
        @contextlib.asynccontextmanager
        async def sets_a_variable():
            token = variable.set(5)
            yield
            variable.reset(token)
    """)
    shared.value(f"entered = enter({manager})\nentered.__enter__() and None")
    # A cell with `await` has a task of its own on each ipykernel.
    assert shared.execute("await fetch()\nentered.__exit__(None, None, None)").error is not None
    assert 'as in another cell. Pass on="kernel" or on="loop": then it has a task of its own' in notes(shared)
    shared.value(f"entered = enter({manager}, on='kernel')\nentered.__enter__() and None")
    assert shared.value("await fetch()\nentered.__exit__(None, None, None)") is False


def test_with_the_patch_on_it_is_not_told_to_switch_it_on(shared: Kernel) -> None:
    shared.execute("%portal patch on")
    try:
        answer(shared, "raise RuntimeError('This event loop is already running')")
        assert "%%thread at the top of the cell. In your own code" in notes(shared)
    finally:
        shared.execute("%portal patch off")


def test_a_name_of_pythons_own_is_refused(shared: Kernel) -> None:
    assert "'print' is a builtin of Python: choose another name" in shared.execute("%%background print\n5").stderr
    assert "not a valid variable name" in shared.execute("%%background class\n5").stderr
    assert shared.execute("print('still')").stdout == "still\n"


def test_a_call_that_still_runs_is_not_lost_from_sight(shared: Kernel) -> None:
    shared.execute("%%background job\nawait asyncio.sleep(60)")
    said = shared.execute("%%background job\nawait asyncio.sleep(60)")
    assert said.stdout == "the earlier call job still runs: %calls cancel job ends them\n"
    assert shared.execute("%calls cancel job").stdout == "cancelled 2\n"
    shared.execute("job = submit(asyncio.sleep(60))")
    said = shared.execute("%%background job\n5")
    assert said.stdout == "the earlier call job still runs: %calls cancel sleep ends it\n"
    assert shared.execute("%calls cancel sleep").stdout == "cancelled 1\n"


def test_seconds_that_are_missing_are_asked_for(shared: Kernel) -> None:
    assert (
        "-t needs a number of seconds, 0 or more, as in -t 5, not 'fetch()'"
        in shared.execute("%await -t fetch()").stderr
    )
    assert shared.value("%await -t 5 fetch()") == 5
