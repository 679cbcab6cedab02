"""Loading and unloading the extension, and kernels in which nothing can be suspended."""

from __future__ import annotations

import time
from importlib.util import find_spec

import pytest

from .kernel import Kernel

STATE = """
    import asyncio, signal, sys, threading

    def state():
        # What the extension may touch. Compared by identity or, where Python makes a new object at each look (bound
        # methods), by equality.
        shell = get_ipython()
        kernel = shell.kernel
        loop = asyncio.get_running_loop()
        manager = getattr(getattr(kernel, "shell_channel_thread", None), "manager", None)
        return {
            "handlers": dict(kernel.shell_handlers),
            "the kernel's own": {name: vars(kernel).get(name) for name in ("shell_main", "dispatch_shell")},
            "the shell's own": {name: vars(shell).get(name) for name in SHELL},
            "registry": dict(shell.magics_manager.registry),
            "magics": {(kind, name): magic for kind, magics in shell.magics_manager.magics.items()
                       for name, magic in magics.items() if not repr(magic).startswith("<unloaded")},
            "asyncio": {name: id(value) for name, value in vars(asyncio).items()},
            "asyncio's loops": {name: id(value) for name, value in vars(asyncio.BaseEventLoop).items()},
            "asyncio's tasks": {name: id(value) for name, value in vars(asyncio.tasks).items() if name[0] != "_"},
            "task factory": loop.get_task_factory(),
            "the loop's own": sorted(name for name in vars(loop) if not name.startswith("_")),
            "signals": {number: signal.getsignal(number) for number in signal.Signals if number != signal.SIGINT},
            "streams": (type(sys.stdout), type(sys.stderr), type(shell.displayhook), type(shell.display_pub)),
            "events": {name: len(callbacks) for name, callbacks in shell.events.callbacks.items()},
            "transformers": (list(shell.input_transformers_post), list(shell.ast_transformers)),
            "formatters": [len(formatter.type_printers) for formatter in shell.display_formatter.formatters.values()],
            "deferred": [len(f.deferred_printers) for f in shell.display_formatter.formatters.values()],
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "callback": None if manager is None else getattr(manager, "_on_recv_callback", None),
        }

    SHELL = ("run_cell_async", "run_code", "showtraceback", "run_cell", "run_cell_magic", "transform_cell")

    def changed(before, after):
        differences = {}
        for key, old in before.items():
            new = after[key]
            if isinstance(old, dict) and isinstance(new, dict):
                names = {name for name in {*old, *new} if old.get(name) != new.get(name)}
                if names:
                    differences[key] = {name: (old.get(name), new.get(name)) for name in names}
            elif old != new:
                differences[key] = (old, new)
        return differences

    for name in ("load_ext", "time", "timeit", "prun", "capture"):
        get_ipython().find_magic(name)  # IPython 9 imports a magic when it is first looked up
    before = state()
    None
"""


def test_unloading_puts_back_everything(kernel: Kernel) -> None:
    kernel.value(STATE)
    kernel.value("%load_ext ipyportal")
    kernel.value("from ipyportal import run, submit\nrun(asyncio.sleep(0.01))\nsubmit(asyncio.sleep(0.01)).result()")
    kernel.value("%unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"


def test_loading_and_unloading_a_hundred_times_leaves_nothing(kernel: Kernel) -> None:
    kernel.value(STATE)
    for number in range(100):
        kernel.value("%load_ext ipyportal")
        if number % 10 == 0:
            kernel.value(
                "import ipyportal\nipyportal.run(asyncio.sleep(0))\nipyportal.submit(asyncio.sleep, 0).result()"
            )
        kernel.value("%unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"


def test_loading_and_unloading_a_hundred_times_in_one_cell_leaves_nothing(kernel: Kernel) -> None:
    kernel.value(STATE)
    kernel.value("for _ in range(100):\n    %load_ext ipyportal\n    %unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"


@pytest.mark.parametrize("fails", ["register_magics", "register_magic_function", "set_hook"])
def test_a_load_that_fails_leaves_nothing(kernel: Kernel, fails: str) -> None:
    kernel.value(STATE)
    kernel.value(f"""
        shell = get_ipython()
        def {fails}(*args, **kwargs):
            raise LookupError("no")
        its_own = vars(shell).get("{fails}")
        vars(shell)["{fails}"] = {fails}
    """)
    error = kernel.execute("%load_ext ipyportal").error
    assert error is not None
    assert error.ename == "LookupError"
    kernel.value(f"del shell.{fails}\nif its_own is not None: shell.{fails} = its_own")
    assert kernel.execute("changed(before, state())").result == "{}"
    kernel.value("%load_ext ipyportal")
    assert kernel.value("from ipyportal import run\nrun(asyncio.sleep(0.01, 'waited'))") == "waited"
    kernel.value("%unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"


def test_a_second_shell_has_magics_of_its_own_and_leaves_the_first_ones(kernel: Kernel) -> None:
    kernel.value(STATE)
    kernel.value("""
        import builtins, io
        from contextlib import redirect_stdout
        from IPython.core.interactiveshell import InteractiveShell

        def typed(code):
            said = io.StringIO()
            with redirect_stdout(said):
                result = second.run_cell(code)
            result.raise_error()
            return said.getvalue().strip(), result.result

        own = {name: getattr(builtins, name, None) for name in ("get_ipython", "display")}
        second = InteractiveShell(user_ns={})
        vars(builtins).update(own)  # which the last shell to be made has
        before = state()
    """)
    kernel.value("%load_ext ipyportal")
    kernel.value("import ipyportal")
    kernel.value("typed('%load_ext ipyportal\\nimport asyncio')")
    assert kernel.value("typed('%await asyncio.sleep(0.01, 5)')[1]") == 5
    kernel.value("call = ipyportal.submit(asyncio.sleep, 60)\nNone")
    assert kernel.value("'sleep' in typed('found = %calls\\nprint(found)')[0]") is True  # they have one engine
    kernel.value("typed('%unload_ext ipyportal')")
    assert kernel.value("call.done()") is False
    assert kernel.value("%await asyncio.sleep(0.01, 6)") == 6
    kernel.value("typed('%load_ext ipyportal')")
    kernel.value("%unload_ext ipyportal")
    assert kernel.value("typed('%await asyncio.sleep(0.01, 7)')[1]") == 7
    kernel.value("typed('%unload_ext ipyportal')")
    assert kernel.value("call.cancelled()") is True
    assert kernel.execute("changed(before, state())").result == "{}"


def test_reloading_works_and_unloading_undoes_it(kernel: Kernel) -> None:
    kernel.value(STATE)
    kernel.value("%load_ext ipyportal")
    for _ in range(3):
        kernel.value("%reload_ext ipyportal")
        assert kernel.value("import ipyportal\nipyportal.run(asyncio.sleep(0.01, 'waited'))") == "waited"
    kernel.value("%unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"


def test_reloading_keeps_what_was_set_and_says_so(kernel: Kernel) -> None:
    kernel.value(STATE)
    kernel.value("%load_ext ipyportal")
    assert kernel.execute("%reload_ext ipyportal").stdout == ""
    kernel.value("%portal patch on\n%portal await off\n%portal route loop")
    for _ in range(2):
        said = kernel.execute("%reload_ext ipyportal").stdout
        assert said == "ipyportal: still %portal await off, %portal patch on\n"
        assert kernel.value("import asyncio, ipyportal\nipyportal.patching.patched()") is True
        assert "SyntaxError" in str(kernel.execute("%time await asyncio.sleep(0)").error)
        assert kernel.value("ipyportal.get_route()") == "loop"
    # Who unloads it has turned it off.
    kernel.value("%portal route rule\n%unload_ext ipyportal")
    assert kernel.execute("changed(before, state())").result == "{}"
    assert kernel.execute("%load_ext ipyportal").stdout == ""
    assert kernel.value("ipyportal.patching.patched()") is False
    assert kernel.value("%time await asyncio.sleep(0, 'timed')") == "timed"


def test_a_cell_that_is_not_counted_is_told_from_others_too(kernel: Kernel) -> None:
    for code in ("%load_ext ipyportal\n%portal patch on", "%unload_ext ipyportal", "%load_ext ipyportal"):
        reply = kernel.request("execute_request", {"code": code, "silent": False, "store_history": False}).reply()
        assert reply.status == "ok"
        assert "still" not in reply.stdout  # what a reload keeps it says
    assert kernel.value("import ipyportal\nipyportal.patching.patched()") is False


def test_unloading_brings_back_magics_of_the_same_name(kernel: Kernel) -> None:
    kernel.value("""
        from IPython.core.magic import register_cell_magic, register_line_magic
        @register_line_magic("await")
        @register_cell_magic("thread")
        def mine(line, cell=""):
            return "mine"
    """)
    kernel.value("%load_ext ipyportal")
    kernel.value("%unload_ext ipyportal")
    assert kernel.value("%await x") == "mine"
    assert kernel.value("%%thread x\ny") == "mine"


def test_loading_twice_says_so_and_changes_nothing(kernel: Kernel) -> None:
    kernel.value("%load_ext ipyportal")
    assert "already loaded" in kernel.execute("%load_ext ipyportal").stdout
    assert kernel.value("import asyncio, ipyportal\nipyportal.run(asyncio.sleep(0, 'waited'))") == "waited"


def test_a_cell_that_unloads_the_extension_may_go_on(kernel: Kernel) -> None:
    kernel.value("import asyncio\n%load_ext ipyportal")
    reply = kernel.execute("""
        from ipyportal import run
        run(asyncio.sleep(0.01))
        %unload_ext ipyportal
        run(asyncio.sleep(0.01, "waited"))
    """)
    assert reply.result == "'waited'"
    assert kernel.answers_within(10)


def test_unloading_cancels_what_runs_on_the_loop_thread(loaded_kernel: Kernel) -> None:
    reply = loaded_kernel.execute("""
        async def linger():
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")
        ended = []
        call = submit(linger())
        submit(asyncio.sleep, 0).result()
        %unload_ext ipyportal
        ended, call.cancelled()
    """)
    assert reply.result == "(['cleaned up'], True)"


def test_the_cell_that_loads_the_extension_waits_too(kernel: Kernel) -> None:
    reply = kernel.execute("""
        %load_ext ipyportal
        import asyncio
        from ipyportal import run
        run(asyncio.sleep(0.01)), run(asyncio.sleep(0.01, "waited"))
    """)
    assert reply.result == "(None, 'waited')"
    if find_spec("greenlet"):
        assert reply.stderr == ""
    else:
        assert reply.stderr.count("RuntimeWarning") == 1
        assert "greenlet is not installed" in reply.stderr


def test_a_kernel_without_the_extension_waits_too(kernel: Kernel) -> None:
    reply = kernel.execute("import asyncio\nfrom ipyportal import run\nrun(asyncio.sleep(0.01, 'waited'))")
    assert reply.result == "'waited'"
    assert reply.stderr == "" if find_spec("greenlet") else "greenlet is not installed" in reply.stderr


@pytest.fixture
def without_greenlet(kernel: Kernel) -> Kernel:
    kernel.value("import sys\nsys.modules['greenlet'] = None")
    kernel.value("import asyncio, time\n%load_ext ipyportal")
    kernel.value("from ipyportal import run, submit")
    return kernel


def test_without_greenlet_run_works_blocked_and_warns_once(without_greenlet: Kernel) -> None:
    kernel = without_greenlet
    replies = [kernel.execute("run(asyncio.sleep(0.01, 'waited'))") for _ in range(3)]
    assert [reply.result for reply in replies] == ["'waited'"] * 3
    assert "".join(reply.stderr for reply in replies).count("RuntimeWarning") == 1
    assert kernel.value("await asyncio.sleep(0)\nrun(asyncio.sleep(0.01, 'waited'))") == "waited"
    assert kernel.value("submit(asyncio.sleep, 0.01, 'submitted').result()") == "submitted"
    assert kernel.value("%await asyncio.sleep(0.01, 'awaited')") == "awaited"


@pytest.mark.parametrize("loaded", [True, False])
def test_without_greenlet_a_callback_that_blocks_the_kernel_between_cells_is_ended_by_the_stop_button(
    kernel: Kernel, loaded: bool
) -> None:
    kernel.value("import sys\nsys.modules['greenlet'] = None")
    kernel.value(f"import asyncio\n{'%load_ext ipyportal' if loaded else 'pass'}\nfrom ipyportal import run")
    kernel.value("""
        import os, sys
        begun, ended = os.pipe(), []
        async def work():
            try:
                os.write(begun[1], b"x")
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")
        def callback():
            try:
                run(work())
            except BaseException as exc:
                ended.append(type(exc).__name__)
                raise
        asyncio.get_running_loop().call_later(0.2, callback)
        None
    """)
    time.sleep(0.5)  # it blocks the kernel, which can say nothing of it
    kernel.interrupt()
    assert kernel.answers_within(10)
    assert kernel.value("ended") == ["cleaned up", "CancelledError"]
    kernel.value("os.close(begun[0]); os.close(begun[1])")


@pytest.mark.parametrize("cell", ["", "await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_without_greenlet_an_interrupt_cleans_up(without_greenlet: Kernel, cell: str) -> None:
    kernel = without_greenlet
    kernel.value("""
        ended = []
        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")
    """)
    pending = kernel.begin(f"{cell}print('begun')\nrun(work())  # here")
    time.sleep(0.1)
    kernel.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert "# here" in error.traceback
    assert kernel.value("ended") == ["cleaned up"]
