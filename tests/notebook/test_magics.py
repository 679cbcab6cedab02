"""The magics: values, the namespace, where output lands, how they fail, how they are cancelled and described."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from IPython.core.magic_arguments import argument, magic_arguments

from ipyportal.notebook.magics import CELL_MAGICS, PortalMagics

from .kernel import Error, Kernel, Pending, Reply

PRELUDE = """
import asyncio, sys, threading, time
from ipyportal import run, submit
from ipyportal.concurrency import EventLoopThread

async def double(n):
    await asyncio.sleep(0)
    return 2 * n

async def fail():
    secret = "of fail"
    await asyncio.sleep(0)
    raise LookupError("not here")  # the line that raised

async def linger(say="waiting"):
    try:
        print(say)  # the stop button may be pressed as soon as that is seen
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("cleaned up")

def fail_in_sync():
    raise LookupError("not here")  # the line that raised
"""

# What waits: each magic with a body that lingers, and one that fails, in the ways that it can be written.
LINGERING = {
    "%await": "%await linger()",
    "%%await": "%%await\nawait linger()",
    "%await --on loop": "%await --on loop linger()",
    "%%await --on loop": "%%await --on loop\nawait linger()",
    "%%thread": """%%thread
try:
    print("waiting")
    while True:
        time.sleep(0.01)
finally:
    print("cleaned up")""",
    "%%thread --name": """%%thread --name one
try:
    print("waiting")
    time.sleep(0.01)
    while True:
        pass
finally:
    print("cleaned up")""",
    "%time": "%time await linger()",
    "%%time": "%%time\nawait linger()",
    "%timeit": "%timeit -n 1 -r 1 await linger()",
    "%prun": "%prun -q await linger()",
    "%%prun": "%%prun -q\nawait linger()",
    "%await in %time": "%time %await linger()",
}
FAILING = {
    "%await": "1\n%await fail()",
    "%await with await": "1\n%await [await fail()]",
    "%%await": "%%await\n1\nawait fail()",
    "%%await --on loop": "%%await --on loop\n1\nawait fail()",
    "%%thread": "%%thread\n1\nfail_in_sync()",
    "%%thread --name": "%%thread --name one\n1\nfail_in_sync()",
    "%time": "1\n%time await fail()",
    "%%time": "%%time\n1\nawait fail()",
    "%timeit": "1\n%timeit -n 1 -r 1 await fail()",
    "%%timeit": "%%timeit -n 1 -r 1\n1\nawait fail()",
    "%prun": "1\n%prun -q await fail()",
    "%%prun": "%%prun -q\n1\nawait fail()",
}
FAIL_AT_A_LINE_OF_THE_CELL = ("%%await", "%%await --on loop", "%%thread", "%%thread --name", "%%time", "%%prun")


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    assert live_kernel.execute(PRELUDE).error is None
    return live_kernel


def usage_error(reply: Reply) -> str:
    """What the UsageError of a cell says. IPython prints it without a traceback, and some versions without a reply."""
    assert reply.status == "error" or "UsageError" in reply.stderr
    assert "Traceback" not in reply.stderr
    return reply.stderr.strip() or (reply.error.evalue if reply.error else "")


def end_of(pending: Pending, within: float = 10.0) -> Error:
    error = pending.reply(within).error
    assert error is not None
    return error


# --- values and the namespace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("double(1)", 2),
        ("await double(2)", 4),
        ("[await double(n) for n in range(3)]", [0, 2, 4]),
        ("3 + await double(await double(1))", 7),
        ("'not awaitable'", "not awaitable"),
        ("-t 5 double(1)", 2),
        ("--timeout=5 double(1)", 2),
        ("--on loop double(1)", 2),
        ("--on thread -t 5 double(1)", 2),
        ("--on kernel double(1)", 2),
        ("asyncio.gather(double(1), double(2))", [2, 4]),
        ("asyncio.sleep(0, {'a': 1}) # {x} $y", {"a": 1}),
    ],
)
def test_await_gives_the_value_of_its_expression(shared: Kernel, line: str, value: Any) -> None:
    assert shared.value(f"%await {line}") == value
    assert shared.value(f"x = %await {line}\nx") == value


def test_await_takes_an_object_that_is_awaitable_only_by_its_method(shared: Kernel) -> None:
    shared.value(
        "class Ready:\n    def __await__(self):\n        yield from asyncio.sleep(0).__await__()\n        return 5"
    )
    assert shared.value("%await Ready()") == 5


def test_await_runs_where_it_is_told_to(shared: Kernel) -> None:
    shared.value("async def where(): return threading.current_thread().name")
    shared.value("mine = EventLoopThread(name='mine')")
    names = [shared.value(f"%await --on {on} where()") for on in ("kernel", "loop", "thread", "mine")]
    assert names[0] == "MainThread"
    assert names[1] == "ipyportal-loop"
    assert names[2].startswith("ipyportal-thread")
    assert names[3] == "mine"
    assert shared.value("%%await --on mine\nthreading.current_thread().name") == "mine"
    shared.value("mine.shutdown()")


@pytest.mark.parametrize("magic", ["%%await", "%%await --on loop", "%%thread", "%%thread --name one"])
def test_a_cells_value_is_shown_and_kept_as_that_of_any_cell(shared: Kernel, magic: str) -> None:
    reply = shared.execute(f"{magic}\nn = 20\nn + 1")
    assert reply.result == "21"
    assert shared.value("_, n") == (21, 20)
    assert shared.value("sorted(Out)[-1] == len(In) - 2 and __") == 21


def test_a_cell_shares_the_notebooks_namespace(shared: Kernel) -> None:
    shared.value("before = 1")
    shared.value(
        "%%await\nimport json as imported\nfor n in range(3):\n    before += await double(n)\ndef made(): return before"
    )
    assert shared.value("before, n, made(), imported.dumps(1)") == (7, 2, 7, "1")


def test_as_keeps_the_value_in_a_variable_and_shows_nothing(shared: Kernel) -> None:
    assert shared.execute("%%await --as kept\nawait double(4)").result is None
    assert shared.value("kept") == 8


@pytest.mark.parametrize("magic", ["%%await", "%%thread", "%%await --on loop", "%%time"])
@pytest.mark.parametrize("end", ["n;", "n ; # with a comment", "n;\n\n# below"])
def test_a_semicolon_at_the_end_hides_the_value(shared: Kernel, magic: str, end: str) -> None:
    if magic == "%%time" and not shared.value(
        "hasattr(__import__('IPython.core.magic').core.magic, 'output_can_be_silenced')"
    ):
        pytest.skip("this IPython hides no magic's value")
    wait = "n = 5" if magic == "%%thread" else "n = await double(3)"
    assert shared.execute(f"{magic}\n{wait}\n{end}").result is None


def test_a_semicolon_after_awaits_expression_hides_the_value(shared: Kernel) -> None:
    reply = shared.execute("%await double(3);")
    assert (reply.error, reply.result) == (None, None)


@pytest.mark.parametrize("magic", ["%%await", "%%thread", "%%background job"])
def test_ipythons_own_syntax_is_accepted_in_a_body(shared: Kernel, magic: str) -> None:
    if shared.execute("listing = !echo listed").error is not None:
        pytest.skip("IPython 7 on Python 3.12 does not know its own syntax either")
    reply = shared.execute(f"{magic}\n!echo from the shell\nlisting = !echo listed\n%alias_magic t time\nlisting[0]")
    if "background" in magic:
        assert shared.value("job.result()") == "listed"
    else:
        assert reply.result == "'listed'"
        assert "from the shell" in reply.stdout
    assert shared.execute(f"{magic}\nlen?").error is None


@pytest.mark.parametrize(
    ("interactivity", "body", "shown", "printed"),
    [
        ("all", "1\nawait double(1)\n3", "3", ["1", "2"]),
        ("last_expr_or_assign", "1\nm = await double(2)", "4", []),
        ("last_expr_or_assign", "m: int = 5", "5", []),
        ("last_expr", "1\nm = await double(2)", None, []),
        ("none", "await double(2)", None, []),
    ],
)
def test_ast_node_interactivity_is_honoured(
    shared: Kernel, interactivity: str, body: str, shown: str | None, printed: list[str]
) -> None:
    shared.value(f"get_ipython().ast_node_interactivity = {interactivity!r}")
    try:
        reply = shared.execute(f"%%await\n{body}")
    finally:
        shared.execute("get_ipython().ast_node_interactivity = 'last_expr'")
    results = [m["content"]["data"]["text/plain"] for m in reply.messages if m["msg_type"] == "execute_result"]
    assert results == printed + ([shown] if shown is not None else [])


@pytest.mark.parametrize("magic", ["%%await\n", "%%thread\n", "%await ", "%%time\nawait double(1)\n"])
def test_ast_transformers_are_honoured(shared: Kernel, magic: str) -> None:
    shared.value("""
        import ast
        class Wrap(ast.NodeTransformer):
            def visit_Constant(self, node):
                return ast.copy_location(ast.Constant(node.value * 10), node) if isinstance(node.value, int) else node
        get_ipython().ast_transformers.append(Wrap())
    """)
    try:
        assert shared.execute(f"{magic}7").result == "70"
    finally:
        shared.execute("get_ipython().ast_transformers.pop()")


def test_the_future_statements_of_the_notebook_hold_in_a_body(shared: Kernel) -> None:
    shared.value("from __future__ import annotations")
    assert shared.value("%%await\ndef annotated(x: undefined_name): pass\nannotated.__annotations__") == {
        "x": "undefined_name"
    }


def test_magics_work_inside_functions_of_the_user(shared: Kernel) -> None:
    shared.value("def fetch():\n    %await double(21)\n    value = %await double(21)\n    return value")
    assert shared.value("fetch()") == 42


@pytest.mark.parametrize("magic", ["%await ", "%time "])
def test_magics_in_functions_see_their_local_variables(shared: Kernel, magic: str) -> None:
    shared.value("n = 'global'")
    shared.value(f"def quadruple(n):\n    twice = {magic}await double(n)\n    return twice * 2")
    shared.value(
        "def several(n):\n    values = %await asyncio.gather(*(double(n + i) for i in range(2)))\n    return values"
    )
    assert shared.value("quadruple(5)") == 20
    assert shared.value("several(1), n") == ([2, 4], "global")


# --- output and input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magic", ["%%await", "%%await --on loop", "%%thread", "%%thread --name one"])
def test_what_a_body_prints_and_displays_lands_in_its_cell(shared: Kernel, magic: str) -> None:
    reply = shared.execute(f"{magic}\nprint('out')\nprint('err', file=sys.stderr)\ndisplay('shown')\n'value'")
    assert (reply.stdout, reply.stderr, reply.result) == ("out\n", "err\n", "'value'")
    assert [data["text/plain"] for data in reply.displays] == ["'shown'"]


@pytest.mark.parametrize("magic", ["%%await", "%%thread", "%%thread --name one"])
def test_input_asks_in_the_cell_and_gets_the_answer(shared: Kernel, magic: str) -> None:
    pending = shared.execute_async(f"{magic}\ninput('who? ')", answers=["me"])
    assert pending.reply().result == "'me'"
    assert pending.prompts() == ["who? "]


def test_input_in_a_thread_can_be_interrupted(shared: Kernel) -> None:
    pending = shared.execute_async("%%thread\ninput('who? ')", answers=[])
    shared.wait_for(pending.prompts, 10)
    time.sleep(0.1)
    shared.interrupt()
    assert end_of(pending).ename == "KeyboardInterrupt"
    assert shared.answers_within(10)


# --- %%thread --------------------------------------------------------------------------------------------------------


def test_in_thread_no_loop_runs_so_libraries_may_run_their_own(shared: Kernel) -> None:
    assert shared.value("%%thread\nasyncio.run(double(4))") == 8
    assert shared.value("%%thread\nrun(double(5))") == 10
    assert shared.value("%%thread\nthreading.current_thread() is threading.main_thread()") is False


def test_the_notebook_goes_on_while_a_thread_works(shared: Kernel) -> None:
    shared.value("""
        ticks = []
        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.01)
        ticker = asyncio.get_running_loop().create_task(tick())
        None
    """)
    try:
        shared.value("%%thread\ngoal = len(ticks) + 5\nwhile len(ticks) < goal:\n    time.sleep(0.01)\nNone")
    finally:
        shared.execute("ticker.cancel()")


@pytest.mark.parametrize("name", ["my-db", "'my db'"])
def test_a_thread_may_have_any_name(shared: Kernel, name: str) -> None:
    shared.execute(f"%%thread --name {name}\nimport threading\nhere = threading.get_ident()")
    shared.execute("from ipyportal import get_worker_thread")
    text = name.strip("'")
    assert shared.value(f"run(threading.get_ident, on=get_worker_thread({text!r})) == here") is True


def test_a_named_thread_is_the_same_each_time(shared: Kernel) -> None:
    shared.value("%%thread --name db\nimport sqlite3\nconnection = sqlite3.connect(':memory:')")
    shared.value("%%thread --name db\nconnection.execute('create table t (x)')\nNone")
    shared.value("%%thread --name=db\nconnection.execute('insert into t values (42)')\nNone")
    assert shared.value("%%thread --name db\nconnection.execute('select x from t').fetchall()") == [(42,)]
    other = shared.execute("%%thread --name other\nconnection.execute('select 1')")
    assert other.error is not None
    assert other.error.ename == "ProgrammingError"
    assert shared.value("%%thread --name db\nconnection.close()\nthreading.current_thread().name") == "ipyportal-db"


def test_thread_refuses_await_before_anything_runs(shared: Kernel) -> None:
    reply = shared.execute("%%thread\nran_in_thread = True\nawait double(1)")
    assert "%%thread cannot run await: use %%await" in usage_error(reply)
    assert shared.value("'ran_in_thread' in globals()") is False


BUSY = {
    # What keeps the thread busy, as it is told; those that are cells are stopped, while their code is blocked in C.
    "a cell": ("%%thread --name busy\nprint('begun')\nheld()", r"%%thread of In \[\d+\], for \d+\.\d s"),
    "submit": (
        "job = submit(held, on=get_worker_thread('busy'))\nprint('begun')",
        r"held of In \[\d+\], for \d+\.\d s",
    ),
    "run": ("run(held, on=get_worker_thread('busy'))", "held"),
}


@pytest.mark.parametrize("way", BUSY)
def test_a_cell_that_waits_for_a_busy_thread_says_so(shared: Kernel, way: str) -> None:
    code, told = BUSY[way]
    shared.value("""
        from ipyportal import get_worker_thread
        from ipyportal.notebook import magics
        go, blocked = threading.Lock(), threading.Event()
        go.acquire()
        def held():
            print("begun")
            blocked.set()
            go.acquire()  # in C: no interrupt of a thread gets there
        patience, magics.PATIENCE = magics.PATIENCE, 0
    """)
    try:
        holding = shared.begin(code)
        if way != "submit":
            shared.interrupt()
        # Waited for each time: ipykernel 7.3.0, also without ipyportal, may never take a request that comes at the very
        # end of a cell.
        error = holding.reply().error
        assert (None if error is None else error.ename) == (None if way == "submit" else "KeyboardInterrupt")
        assert shared.value("blocked.wait(5)")
        waiting = shared.begin("%%thread --name busy\n'ran'")
        assert re.fullmatch(
            rf"the thread 'busy' is busy with {told}; this cell starts when that is over\n", waiting.stdout_so_far()
        )
        assert not waiting.done()
        shared.interrupt()
        assert waiting.reply().error is not None
        shared.value("go.release()")
        # Nothing is said where there is nothing to wait for.
        assert shared.value("run(threading.get_ident, on=get_worker_thread('busy')) > 0")
        reply = shared.execute("%%thread --name busy\n'ran'")
        assert (reply.result, reply.stdout) == ("'ran'", "")
    finally:
        shared.value("magics.PATIENCE = patience")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", FAILING)
def test_an_error_comes_as_it_is_with_the_users_lines(shared: Kernel, way: str) -> None:
    error = shared.execute(FAILING[way]).error
    assert error is not None
    assert (error.ename, error.evalue) == ("LookupError", "not here")
    assert re.search(r"-> *\d+ +raise LookupError\(\"not here\"\)  # the line that raised", error.traceback)
    if way in FAIL_AT_A_LINE_OF_THE_CELL:
        assert re.search(r"-> 3 +(await fail|fail_in_sync)\(\)", error.traceback)
    if way == "%await with await":
        assert re.search(r"-> 2 +\[await fail\(\)\]", error.traceback)
    assert not re.search(r"ipyportal/", error.traceback), error.traceback


@pytest.mark.parametrize("way", ["%await", "%%await", "%%thread", "%%background"])
def test_the_exception_is_the_original_object(shared: Kernel, way: str) -> None:
    shared.value(
        "original = ValueError('the one')\nasync def raise_it(): raise original\ndef raise_sync(): raise original"
    )
    body = "raise_sync()" if way == "%%thread" else "raise_it()"
    if way == "%%background":
        shared.execute("%%background job\nawait raise_it()")
        assert shared.value("job.exception() is original") is True
        assert (
            shared.value("try:\n    job.result()\nexcept ValueError as exc:\n    same = exc is original\nsame") is True
        )
        return
    shared.execute(f"%await {body}" if way == "%await" else f"{way}\n{'await ' * (way == '%%await')}{body}")
    assert shared.value("sys.last_value is original") is True


BOTH_BAD = """
async def bad(text):
    raise ValueError(text)
async def both():
    async with asyncio.TaskGroup() as group:
        group.create_task(bad("one thing"))
        group.create_task(bad("another thing"))
"""


@pytest.mark.parametrize("way", ["await both()", "run(both())", 'run(both(), on="loop")', "run(run, both())"])
def test_an_exception_group_shows_each_of_its_errors_and_the_users_frames(shared: Kernel, way: str) -> None:
    shared.execute(BOTH_BAD)
    reply = shared.execute(f"%%await\n{way}")
    assert reply.error is not None
    assert reply.error.ename == "ExceptionGroup"
    shown = reply.stderr + reply.error.traceback
    if "sub-exceptions" not in shown:
        pytest.skip("this IPython shows no exception groups")
    assert "(2 sub-exceptions)" in shown
    if "+---------------- 1" in shown:
        assert "one thing" in shown
        assert "another thing" in shown
    assert "in both" in shown
    assert "ipyportal" not in shown


@pytest.mark.parametrize("way", ["run(fail())", "%await fail()", "%%await\nawait fail()", "%%thread\nrun(fail())"])
def test_debug_looks_at_the_frame_that_failed(shared: Kernel, way: str) -> None:
    assert shared.execute(way).error is not None
    assert "'of fail'" in shared.execute("%debug", answers=["p secret", "q"]).stdout
    assert shared.answers_within(10)


BAD_SYNTAX = [
    ("%%await\nran = True\nif (:", 3),
    ("%%await\n\n\nran = True\ndef f(:", 5),
    ("%%background job\nran = True\nif (:", 3),
    ("%%thread\nran = True\nif (:", 3),
    ("ran_before = True\n%await double(", 2),
    ("%%time\nran = True\nawait double(", 3),
    ("%%prun\nran = True\nawait double(", 3),
    ("%%capture\nran = True\nawait double(", 3),
    ("%%timeit\nran = True\nawait double(", 3),
    ("%%await\nran = True\nreturn 5", 3),
    ("%%await\nran = True\n  indented", 3),
    ("%%thread\nran = True\n'unclosed", 3),
    ("%%background job\nran = True\nawait", 3),
    ("ran_before = True\n%await 1 +", 2),
    ("ran_before = True\n%await two words", 2),
]
WRONG_USE = [
    ("%await", "needs an expression"),
    ("%await -t 1", "needs an expression"),
    ("%await -t", "-t"),
    ("%await -t soon double(1)", "number of seconds"),
    ("%await -t -1 double(1)", "number of seconds"),
    ("%await --on mars double(1)", "kernel, loop, thread or the name of a Portal"),
    ("%await --unknown double(1)", "--unknown"),
    ("%await x = double(1)", "needs an expression"),
    ("%%await --unknown\nran = True", "--unknown"),
    ("%%await --as 5x\nran = True", "'5x'"),
    ("%%await -t x\nran = True", "number of seconds"),
    ("%%background two names\nran = True", "names"),
    ("%%background not-a-name\nran = True", "'not-a-name'"),
    ("%%background --on mars\nran = True", "mars"),
    ("%%thread --name\nran = True", "--name"),
    ("%%thread --name ''\nran = True", "--name needs a name"),
    ("%%thread --on loop\nran = True", "--on"),
    ("%await -t 'unclosed double(1)", "No closing quotation"),
    ("%%await -t\nran = True", "-t"),
    ("%%await -t nan\nran = True", "number of seconds"),
    ("%%await --on mars\nran = True", "mars"),
    ("%%await --on sys\nran = True", "'sys'"),
    ("%%await --as\nran = True", "--as"),
    ("%%await --as class\nran = True", "'class'"),
    ("%%await --as 'unclosed\nran = True", "No closing quotation"),
    ("%%await words\nran = True", "words"),
    ("%%background --unknown\nran = True", "--unknown"),
    ("%%background job -t -1\nran = True", "number of seconds"),
    ("%%background for\nran = True", "'for'"),
    ("%%background 'unclosed\nran = True", "No closing quotation"),
    ("%%thread --unknown\nran = True", "--unknown"),
    ("%%thread -t soon\nran = True", "number of seconds"),
    ("%%thread --name 'unclosed\nran = True", "No closing quotation"),
    ("%%thread words\nran = True", "words"),
    ("%calls destroy", "destroy"),
    ("%calls --unknown", "--unknown"),
    ("%calls 'unclosed", "No closing quotation"),
    ("%calls clear all", "takes no further arguments: all"),
    ("%calls where all", "takes no further arguments: all"),
    ("%calls cancel --unknown", "no running call is named '--unknown'"),
    ("%calls cancel", "say which call to cancel"),
    ("%calls cancel nobody", "'nobody'"),
    ("%portal route", "rule, kernel, loop or thread"),
    ("%portal route mars", "rule, kernel, loop or thread"),
    ("%portal await maybe", "on or off"),
    ("%portal await", "on or off"),
    ("%portal patch", "on or off"),
    ("%portal patch maybe", "on or off"),
    ("%portal route kernel loop", "loop"),
    ("%portal --unknown", "--unknown"),
    ("%portal 'unclosed", "No closing quotation"),
    ("%portal what", "what"),
]
EMPTY = [
    *("%await", "%await -t 5", "%%await", "%%await --as x\n", "%%background", "%%background job\n", "%%thread"),
    *("%%calls", "%%calls\nran = True", "%%portal\nran = True", "%background", "%thread ran = True"),
]


@pytest.mark.parametrize(("cell", "line"), BAD_SYNTAX)
def test_a_syntax_error_names_the_line_of_the_cell_and_nothing_runs(shared: Kernel, cell: str, line: int) -> None:
    shared.execute("ran = False; job = None")
    error = shared.execute(cell).error
    assert error is not None
    assert error.ename in ("SyntaxError", "IndentationError")
    assert re.search(rf"(line |:){line}\b", error.traceback), error.traceback
    assert "ipyportal/" not in error.traceback
    assert shared.value("ran, job") == (False, None)


@pytest.mark.parametrize(("cell", "says"), WRONG_USE)
def test_wrong_use_is_a_usage_error_and_nothing_runs(shared: Kernel, cell: str, says: str) -> None:
    shared.execute("ran = False")
    assert says in usage_error(shared.execute(cell))
    assert shared.value("ran") is False


@pytest.mark.parametrize("cell", EMPTY)
def test_a_magic_without_code_or_of_the_other_kind_is_a_usage_error_that_names_it(shared: Kernel, cell: str) -> None:
    shared.execute("ran = False")
    assert cell.split()[0].lstrip("%") in usage_error(shared.execute(cell))
    assert shared.value("ran") is False


@pytest.mark.parametrize("magic", ["%%await", "%%background job", "%%thread"])
@pytest.mark.parametrize("body", ["# nothing", "\n\n", "pass", "  "])
def test_a_body_that_does_nothing_has_no_value(shared: Kernel, magic: str, body: str) -> None:
    reply = shared.execute(f"{magic}\n{body}\n")
    if reply.error is not None:  # IPython says that there is none
        assert "cell body is empty" in usage_error(reply)
    else:
        assert reply.result is None
        if "background" in magic:
            assert shared.value("job.result()") is None


def magics() -> dict[str, Any]:
    """All that the extension adds, by the name that is typed."""
    return {f"%{name}": getattr(PortalMagics, method) for name, method in PortalMagics.magics["line"].items()} | {
        f"%%{name}": getattr(PortalMagics, method) for name, method in CELL_MAGICS.items()
    }


def missing_rows() -> list[str]:
    """What of the magics no table above gives bad input to."""
    missing = []
    for name, method in magics().items():
        wrong = [cell.splitlines()[0] for cell, _ in WRONG_USE if cell.split()[0] == name]
        words = {word.partition("=")[0] for line in wrong for word in line.split()}
        for action in method.parser._actions:
            if action.option_strings and not words & set(action.option_strings):
                missing.append(f"{name} {action.option_strings[-1]}")
            missing += [f"{name} {choice}" for choice in action.choices or () if choice not in words]
        if not words & {"--unknown"}:
            missing.append(f"{name} --unknown")
        if not any("'unclosed" in line for line in wrong):
            missing.append(f"{name} 'unclosed")
        if name not in ("%calls", "%portal"):  # which take no code
            if not any(f"{name} " in f"{cell} ".replace("\n", " ") for cell, _ in BAD_SYNTAX):
                missing.append(f"{name}: a syntax error")
            if not any(cell.split()[0] == name for cell in EMPTY):
                missing.append(f"{name}: no code")
    return missing


def test_each_magic_and_each_of_its_options_is_given_bad_input() -> None:
    assert missing_rows() == [], "a row for each in WRONG_USE, BAD_SYNTAX, EMPTY"


def test_a_magic_and_an_option_without_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    @magic_arguments()
    @argument("--colour")
    @argument("what", choices=["red"])
    def new(self: Any, line: str) -> None: ...

    monkeypatch.setitem(PortalMagics.magics["line"], "new", "new")
    monkeypatch.setattr(PortalMagics, "new", new, raising=False)
    assert missing_rows() == [f"%new {what}" for what in ("--colour", "red", "--unknown", "'unclosed")] + [
        "%new: a syntax error",
        "%new: no code",
    ]


# --- the end before the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", LINGERING)
def test_the_stop_button_ends_a_magic_after_its_clean_up(shared: Kernel, way: str) -> None:
    pending = shared.begin(LINGERING[way])
    time.sleep(0.1)
    shared.interrupt()
    assert end_of(pending).ename == "KeyboardInterrupt"
    assert pending.stdout_so_far().startswith("waiting\ncleaned up\n")
    assert shared.answers_within(10)


def test_the_stop_button_ends_a_loop_that_a_thread_runs_itself(shared: Kernel) -> None:
    """What %%thread is for: a library that calls asyncio.run()."""
    pending = shared.begin(
        "%%thread\n"
        "import asyncio\n"
        "async def library():\n"
        "    try:\n"
        "        print('waiting')\n"
        "        await asyncio.sleep(30)\n"
        "    finally:\n"
        "        await asyncio.sleep(0.01)\n"
        "        print('cleaned up')\n"
        "asyncio.run(library())"
    )
    shared.interrupt()
    assert end_of(pending).ename == "KeyboardInterrupt"
    assert pending.stdout_so_far().startswith("waiting\ncleaned up\n")
    assert shared.answers_within(10)


@pytest.mark.parametrize(
    ("magic", "way"),
    [
        ("%await", "%await -t 0.1 linger()"),
        ("%await", "%await --timeout=0.1 --on loop linger()"),
        ("%%await", "%%await -t 0.1\nawait linger()"),
        ("%%await", "%%await -t 0.1 --on loop\nawait linger()"),
        (
            "%%thread",
            "%%thread -t 0.1\nprint('waiting')\ntry:\n    while True: time.sleep(0.01)\nfinally: print('cleaned up')",
        ),
    ],
)
def test_a_time_out_ends_a_magic_after_its_clean_up(shared: Kernel, magic: str, way: str) -> None:
    reply = shared.execute(way, timeout=10)
    assert reply.error is not None
    assert reply.error.ename == "TimeoutError"
    assert reply.stdout == "waiting\ncleaned up\n"


@pytest.mark.parametrize("way", ["%time %await double(3)", "%time x = %await double(3)\nx", "%%time\n%await double(3)"])
def test_magics_nest(shared: Kernel, way: str) -> None:
    if "x = %" in way:
        pytest.skip("IPython has no assignment from a magic inside a line magic")
    reply = shared.execute(way)
    assert reply.error is None
    assert reply.result == "6"
    assert "Wall time" in reply.stdout


def test_a_body_may_hold_other_magics_that_wait(shared: Kernel) -> None:
    assert shared.value("%%await\na = %await double(1)\nb = await double(a)\n(a, b)") == (2, 4)
    assert shared.value("%%thread\na = %await double(2)\na") == 4


# --- help and completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("%await?", ["%await [-t SECONDS]", "--on ROUTE", "Wait for an expression"]),
        ("%%await?", ["%%await [-t SECONDS]", "--as NAME", "last expression"]),
        ("%%background?", ["%%background [-t SECONDS]", "NAME.result()", "NAME.cancel()"]),
        ("%%thread?", ["%%thread [-t SECONDS]", "--name NAME", "no event loop runs"]),
        ("%calls?", ["%calls cancel NAME|all", "%calls clear"]),
        ("%portal?", ["%portal route rule|kernel|loop|thread", "%portal await off"]),
        ("%time?", ["Time execution of a Python statement"]),
    ],
)
def test_the_help_of_a_magic_stands_alone(shared: Kernel, asked: str, says: list[str]) -> None:
    reply = shared.execute(asked)
    (text,) = [
        page["data"]["text/plain"]
        for message in reply.messages
        if message["msg_type"] == "execute_reply"
        for page in message["content"]["payload"]
    ]
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for words in says:
        assert words in text
    assert "await_cell" not in text


def completions(kernel: Kernel, code: str) -> list[str]:
    request = kernel.request("complete_request", {"code": code, "cursor_pos": len(code)})
    request.reply()
    (content,) = [m["content"] for m in request.messages if m["msg_type"] == "complete_reply"]
    return content["matches"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("%awa", "%await"),
        ("%%backg", "%%background"),
        ("%%thr", "%%thread"),
        ("%port", "%portal"),
        ("%await --o", "--on"),
        ("%await --on k", "kernel"),
        ("%%await --a", "--as"),
        ("%%background job --time", "--timeout"),
        ("%%thread --n", "--name"),
        ("%calls ca", "cancel"),
        ("%calls cancel a", "all"),
        ("%portal r", "route"),
        ("%portal route l", "loop"),
        ("%portal await o", "off"),
        ("%await doub", "double"),
        ("%%await\ndoub", "double"),
    ],
)
def test_names_and_options_are_completed(shared: Kernel, code: str, expected: str) -> None:
    assert expected in completions(shared, code)


# --- %portal ---------------------------------------------------------------------------------------------------------


def test_portal_shows_what_was_found(shared: Kernel) -> None:
    text = shared.execute("%portal").result
    assert text is not None
    assert "a Jupyter kernel" in text
    assert "by the rule" in text


def test_portal_route_sets_where_calls_run(shared: Kernel) -> None:
    shared.value("async def where(): return threading.current_thread().name")
    shared.value("%portal route loop")
    try:
        assert shared.value("run(where())") == "ipyportal-loop"
        assert "on loop" in (shared.execute("%portal").result or "")
    finally:
        shared.value("%portal route rule")
    assert shared.value("run(where())") == "MainThread"


# --- after unloading -------------------------------------------------------------------------------------------------

SNAPSHOT = """
def snapshot():
    shell = get_ipython()
    for name in ("time", "timeit", "prun", "capture", "load_ext", "unload_ext", "reload_ext"):
        shell.find_magic(name)
    table = {kind: dict(names) for kind, names in shell.magics_manager.magics.items()}
    printers = {kind: dict(one.type_printers) for kind, one in shell.display_formatter.formatters.items()}
    hooks = sorted(map(str, shell.strdispatchers["complete_command"].regexs))
    return table, printers, hooks, sorted(name for name in shell.user_ns if "ipyportal" in name)
"""


def test_after_unload_all_is_ipythons_own(kernel: Kernel) -> None:
    kernel.value(SNAPSHOT)
    kernel.value("before = snapshot()")
    for _ in range(2):
        assert kernel.execute("%load_ext ipyportal").error is None
        assert kernel.execute("import asyncio\n%time await asyncio.sleep(0)").error is None
        kernel.execute("%portal await off\n%portal await on")
        assert kernel.value("before[0] == snapshot()[0]") is False
        assert kernel.execute("%unload_ext ipyportal").error is None
        after = [kernel.value(f"before[{n}] == snapshot()[{n}]") for n in range(4)]
        assert after == [True] * 4
    assert "SyntaxError" in str(kernel.execute("%time await asyncio.sleep(0)").error)
    for line in ("%await 1", "%calls", "%portal", "%%background\n1", "%%thread\n1"):
        reply = kernel.execute(line)
        assert "not found" in reply.stderr + str(reply.error)
