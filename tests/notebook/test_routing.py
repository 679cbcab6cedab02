"""Where a call runs: the kernel's thread, the loop thread, subshells; nesting; and what bad input gets."""

from __future__ import annotations

import os
import time

import pytest

from .kernel import Kernel

NEST = """
    async def nest(depth, *ons):
        await asyncio.sleep(0)
        if not depth:
            return 0
        return 1 + run(nest, depth - 1, *ons[1:], *ons[:1], on=ons[0] if ons else None)
"""

WHERE = """
    async def where():
        await asyncio.sleep(0)
        return threading.current_thread().name
    def thread_name():
        return threading.current_thread().name
    main = threading.main_thread().name
"""


def test_each_route_leads_where_it_says(live_kernel: Kernel) -> None:
    live_kernel.value(WHERE)
    assert live_kernel.value("[run(where(), on=on) == main for on in (None, 'kernel', 'loop', 'thread')]") == [
        True,
        True,
        False,
        False,
    ]
    assert live_kernel.value("""
        from ipyportal import EventLoopThread, WorkerThread
        with EventLoopThread("a loop") as loop, WorkerThread("a worker") as worker:
            names = [run(where(), on=loop), run(where, on=worker), run(thread_name, on=worker)]
            names.append(submit(where(), on=loop).result())
        names
    """) == ["a loop", "a worker", "a worker", "a loop"]


def test_the_sessions_route_holds_until_it_is_taken_back(live_kernel: Kernel) -> None:
    live_kernel.value(WHERE)
    assert live_kernel.value("""
        import ipyportal
        ipyportal.set_route("loop")
        try:
            names = [run(where()) == main, run(where(), on="kernel") == main]
        finally:
            ipyportal.set_route(None)
        names + [run(where()) == main]
    """) == [False, True, True]


# --- nesting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ons", ["", "'loop'", "None, 'loop'", "'loop', 'kernel'", "'loop', 'thread', 'kernel', None"])
def test_run_nests_50_deep_in_a_cell(live_kernel: Kernel, ons: str) -> None:
    live_kernel.value(NEST)
    assert live_kernel.value(f"run(nest(50, {ons}))") == 50
    assert live_kernel.value(f"await nest(50, {ons})") == 50


def test_run_nests_50_deep_on_the_loop_thread(live_kernel: Kernel) -> None:
    live_kernel.value(NEST)
    assert live_kernel.value("run(nest(50), on='loop')") == 50
    assert live_kernel.value("submit(nest(50)).result()") == 50


def test_run_nests_50_deep_in_a_widget_callback(live_kernel: Kernel) -> None:
    live_kernel.value(NEST)
    button = live_kernel.value("""
        import ipywidgets
        button = ipywidgets.Button()
        done = asyncio.Event()
        def clicked(button):
            print(run(nest(50)), run(nest(50), on="loop"), run(nest(50, "loop", None)))
            done.set()
        button.on_click(clicked)
        button.model_id
    """)
    assert live_kernel.click(button).reply().stdout == "50 50 50\n"
    cell = live_kernel.begin("done.clear()\nprint('waits')\nrun(asyncio.wait_for(done.wait(), 8))\nrun(nest(50))")
    click = live_kernel.click(button)
    assert cell.reply().result == "50"
    assert click.reply().stdout == "50 50 50\n"


# --- back to the kernel's thread -------------------------------------------------------------------------------------

SENDERS = {
    "a worker thread": "submit(lambda: on_kernel_thread(thread_name), on='thread')",
    "the loop thread": "submit(sends_back())",
    "a plain thread": "plain_thread()",
}

SENDING = """
    import concurrent.futures
    async def sends_back():
        await asyncio.sleep(0)
        return on_kernel_thread(thread_name)
    def plain_thread():
        future = concurrent.futures.Future()
        def target():
            try:
                future.set_result(on_kernel_thread(thread_name))
            except BaseException as exc:
                future.set_exception(exc)
        threading.Thread(target=target).start()
        return future
"""


@pytest.mark.parametrize("sender", SENDERS)
def test_the_kernel_thread_is_reached_while_it_idles(live_kernel: Kernel, sender: str) -> None:
    live_kernel.value(WHERE)
    live_kernel.value(SENDING)
    live_kernel.value(f"sent = {SENDERS[sender]}")
    time.sleep(0.3)  # no cell runs
    assert live_kernel.value("sent.done() and sent.result() == main")


@pytest.mark.parametrize(
    ("sender", "wait"),
    [
        *((sender, wait) for sender in SENDERS for wait in ("run(wrap(sent))", "await wrap(sent)")),
        ("a worker thread", "sent.result()"),
        ("the loop thread", "sent.result()"),
    ],
)
def test_the_kernel_thread_is_reached_while_a_cell_waits(live_kernel: Kernel, sender: str, wait: str) -> None:
    live_kernel.value(WHERE)
    live_kernel.value(SENDING)
    live_kernel.value("def wrap(sent): return asyncio.wrap_future(sent.future if hasattr(sent, 'future') else sent)")
    assert live_kernel.value(f"sent = {SENDERS[sender]}\n{wait} == main", timeout=10)


@pytest.mark.parametrize("sender", ["a worker thread", "the loop thread"])
def test_the_kernel_thread_is_reached_while_it_is_blocked(kernel: Kernel, sender: str) -> None:
    work = {
        "a worker thread": "run(lambda: on_kernel_thread(thread_name), on='thread')",
        "the loop thread": "run(sends_back())",
    }
    code = f"import asyncio, threading\n%load_ext ipyportal\nfrom ipyportal import *\n{WHERE}\n{SENDING}"
    code = code.replace("\n    ", "\n")
    assert kernel.value(f"{code}\n{work[sender]} == main", timeout=10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_calls_for_the_kernels_thread_in_a_forked_child(kernel: Kernel) -> None:
    # The child of a worker thread has no kernel thread. That of a cell has one, and the calls of its parent are over.
    kernel.value("%load_ext ipyportal")
    assert kernel.value("""
        import os, threading, time, warnings
        from ipyportal import run, submit
        from ipyportal.concurrency import from_sync
        warnings.simplefilter("ignore", DeprecationWarning)

        def fork(ask):
            if not (child := os.fork()):
                try:
                    ask()
                except BaseException as exc:
                    os._exit(7 if "there is no such thread" in str(exc) or "goes on there" in str(exc) else 1)
                os._exit(2)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        ask = lambda: from_sync.call_in_new_thread(lambda: run(int, on="kernel"))
        by_a_thread = from_sync.call_in_new_thread(lambda: fork(ask))
        calls = []
        thread = threading.Thread(target=lambda: calls.append(submit(int, on="kernel")))
        thread.start()
        thread.join()
        by_the_cell = fork(lambda: calls[0].result(5))
        by_a_thread, by_the_cell
    """) == (7, 7)
    assert kernel.value("calls[0].result()") == 0


def test_an_exception_of_what_ran_on_the_kernel_thread_comes_back(live_kernel: Kernel) -> None:
    error = live_kernel.execute("run(lambda: on_kernel_thread(lambda: 1 / 0), on='thread')").error
    assert error is not None
    assert error.ename == "ZeroDivisionError"


def test_a_sqlite_connection_of_a_cell_is_used_from_another_thread(live_kernel: Kernel) -> None:
    assert live_kernel.value("""
        import sqlite3
        connection = sqlite3.connect(":memory:")
        def select():
            return connection.execute("select 7").fetchone()[0]
        async def in_loop():
            return on_kernel_thread(select)
        run(lambda: on_kernel_thread(select), on="thread"), run(in_loop(), on="loop"), select()
    """) == (7, 7, 7)


def test_another_thread_asks_for_input(live_kernel: Kernel) -> None:
    reply = live_kernel.execute(
        "first = run(lambda: on_kernel_thread(input, 'name? '), on='thread')\n"
        "first + run(asyncio.to_thread(on_kernel_thread, input, 'and? '))",
        answers=["Ada", "Bob"],
    )
    assert reply.error is None, reply.error.traceback
    assert reply.result == "'AdaBob'"


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "5": ("TypeError", "not int"),
    "None": ("TypeError", "not NoneType"),
    "print": ("TypeError", "print is synchronous"),
    "agen()": ("TypeError", "async generator cannot be awaited"),
    "agen": ("TypeError", "agen is an async generator function"),
    "zero(), 1": ("TypeError", "arguments go with a function"),
    "zero(), timeout=-1": ("ValueError", "-1"),
    "zero(), timeout=float('nan')": ("ValueError", "nan"),
    "zero(), timeout='1'": ("TypeError", "str"),
    "zero(), on='nowhere'": ("ValueError", "nowhere"),
    "zero(), on=5": ("TypeError", "5"),
}


@pytest.mark.parametrize("work", BAD)
@pytest.mark.parametrize("function", ["run", "submit"])
def test_bad_input_is_refused_with_its_reason(live_kernel: Kernel, function: str, work: str) -> None:
    live_kernel.value("""
        async def agen():
            yield 1
        async def zero():
            ran.append(1)
        ran = []
        None
    """)
    ename, text = BAD[work]
    error = live_kernel.execute(f"{function}({work})").error
    assert error is not None
    assert error.ename == ename
    assert text in error.evalue
    assert live_kernel.value("ran") == []


def test_a_sync_function_is_run(live_kernel: Kernel) -> None:
    assert live_kernel.value("run(sorted, [2, 1]), run(lambda: 3), run(max, 1, 4, on='thread')") == ([1, 2], 3, 4)


def test_a_coroutine_that_was_awaited_is_refused_at_once(live_kernel: Kernel) -> None:
    error = live_kernel.execute("coro = asyncio.sleep(0)\nrun(coro)\nrun(coro)").error
    assert error is not None
    assert (error.ename, error.evalue) == ("RuntimeError", "cannot reuse already awaited coroutine")


def test_a_task_of_a_closed_loop_is_refused_at_once(live_kernel: Kernel) -> None:
    live_kernel.value("""
        def make():
            loop = asyncio.new_event_loop()
            global task
            task = loop.create_task(asyncio.sleep(0))
            task._log_destroy_pending = False
            loop.close()
        make()
    """)
    reply = live_kernel.execute("run(task)", timeout=10)
    assert reply.error is not None
    assert (reply.error.ename, reply.error.evalue) == ("RuntimeError", "Event loop is closed")
    reply = live_kernel.execute("submit(task).result()", timeout=10)
    assert reply.error is not None
    assert (reply.error.ename, reply.error.evalue) == ("RuntimeError", "Event loop is closed")


@pytest.mark.parametrize("function", ["run(%s, on='loop')", "submit(%s).result()"])
@pytest.mark.parametrize("thing", ["future", "event"])
def test_an_object_of_another_loop_gets_a_note_that_names_the_remedy(
    live_kernel: Kernel, function: str, thing: str
) -> None:
    live_kernel.value("""
        future = asyncio.get_running_loop().create_future()
        event = asyncio.Event()
        waiter = asyncio.ensure_future(event.wait())
        await asyncio.sleep(0)
        async def use_future():
            await future
        async def use_event():
            await event.wait()
    """)
    notes = live_kernel.value(f"""
        try:
            {function % f"use_{thing}()"}
        except RuntimeError as exc:
            notes = "".join(exc.__notes__)
        event.set()
        notes
    """)
    assert 'on="kernel"' in notes
    assert "%portal" in notes


# --- subshells -------------------------------------------------------------------------------------------------------


@pytest.fixture
def subshell(live_kernel: Kernel) -> str:
    supported = live_kernel.value("getattr(get_ipython().kernel, '_supports_kernel_subshells', False)")
    if not supported:
        pytest.skip("this ipykernel has no subshells")
    return live_kernel.create_subshell()


def test_run_works_in_a_subshell_and_lets_its_loop_go_on(live_kernel: Kernel, subshell: str) -> None:
    live_kernel.value(WHERE)
    reply = live_kernel.execute_async(
        """
        ticks = []
        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.02)
        ticker = asyncio.ensure_future(tick())
        async def ticked():
            while len(ticks) <= 10:
                await asyncio.sleep(0.02)
        run(ticked())
        ticker.cancel()
        print(run(where()) == thread_name(), thread_name() == main, len(ticks) > 10)
        """,
        subshell_id=subshell,
    ).reply()
    assert reply.error is None, reply.error.traceback
    assert reply.stdout == "True False True\n"


def test_a_subshell_runs_while_a_cell_of_the_main_shell_waits(live_kernel: Kernel, subshell: str) -> None:
    live_kernel.value("loop, gate = asyncio.get_running_loop(), asyncio.Event()\nNone")
    cell = live_kernel.begin("print('waits')\nrun(asyncio.wait_for(gate.wait(), 8))\nprint('waited')")
    reply = live_kernel.execute_async(
        "print(run(asyncio.sleep(0.05, 'inside')))\nx = loop.call_soon_threadsafe(gate.set)", subshell_id=subshell
    ).reply()
    assert reply.stdout == "inside\n"
    assert cell.reply().stdout == "waits\nwaited\n"


def test_a_subshell_sends_back_to_the_kernels_thread(live_kernel: Kernel, subshell: str) -> None:
    live_kernel.value(WHERE)
    reply = live_kernel.execute_async("print(on_kernel_thread(thread_name) == main)", subshell_id=subshell).reply()
    assert reply.stdout == "True\n"


def test_a_click_that_comes_over_a_subshell_as_from_jupyterlab_releases_a_waiting_cell(
    live_kernel: Kernel, subshell: str
) -> None:
    # ipykernel 7.4 runs the callback on the kernel's thread all the same, 7.3 on that of the subshell.
    button = live_kernel.value("""
        import ipywidgets
        clicked = asyncio.get_running_loop().create_future()

        def callback(button):
            run(asyncio.sleep(0.01))
            on_kernel_thread(clicked.set_result, "clicked")

        button = ipywidgets.Button()
        button.on_click(callback)
        button.model_id
    """)
    cell = live_kernel.begin("print('waits')\nprint(run(asyncio.wait_for(clicked, 8)))")
    live_kernel.click(button, subshell_id=subshell)
    assert cell.reply().stdout == "waits\nclicked\n"
