"""What goes on in a notebook while one of its cells waits."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .kernel import Kernel, Pending

TICKER = """
    ticks = []
    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.02)
    ticker = asyncio.ensure_future(tick())
    async def ticked(goal):
        while len(ticks) < goal:
            await asyncio.sleep(0.02)
    None
"""

BUTTON = """
    import ipywidgets
    button = ipywidgets.Button()
    clicks = []
    released = asyncio.Event()

    def clicked(button):
        print("clicked")
        clicks.append(time.monotonic())
        released.set()

    button.on_click(clicked)
    button.model_id
"""

WAITS = {
    "sync": "run(%s)",
    "magic": "%%await %s",
    "nested": "(lambda: run(wrapped(%s)))()",
    "async": "await %s",
}


@pytest.mark.parametrize("way", ["sync", "magic", "nested"])
def test_a_task_of_an_earlier_cell_ticks_while_a_cell_waits(live_kernel: Kernel, way: str) -> None:
    live_kernel.value("async def inner(coro): return await coro\nasync def wrapped(coro): return run(inner(coro))")
    live_kernel.value(TICKER)
    try:
        live_kernel.value("goal = len(ticks) + 20\nNone")
        live_kernel.value(WAITS[way] % "ticked(goal)" + "\nNone")
        assert live_kernel.value("len(ticks) >= goal")
    finally:
        live_kernel.value("ticker.cancel()\nNone")


def test_a_click_is_handled_while_a_cell_waits_and_releases_it(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    cell = live_kernel.begin("""
        print("waiting")
        run(asyncio.wait_for(released.wait(), 8))
        print("released")
    """)
    click = live_kernel.click(button)
    cell_reply = cell.reply(timeout=10)
    assert cell_reply.error is None
    assert cell_reply.stdout == "waiting\nreleased\n"
    assert cell_reply.elapsed < 10
    assert click.reply().stdout == "clicked\n"


def test_clicks_are_handled_in_order_while_a_cell_waits_and_after_it(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("""
        order = []
        gate = asyncio.Event()
        def count(button):
            order.append(len(order))
            print("click", len(order))
            if len(order) == 5:
                gate.set()
        button.on_click(count)
    """)
    cell = live_kernel.begin("print('waiting')\nrun(asyncio.wait_for(gate.wait(), 8))\nprint('after', len(order))")
    clicks = [live_kernel.click(button) for _ in range(5)]
    assert cell.reply().stdout == "waiting\nafter 5\n"
    assert [click.reply().stdout for click in clicks] == [f"clicked\nclick {n}\n" for n in range(1, 6)]
    assert live_kernel.click(button).reply().stdout == "clicked\nclick 6\n"


def test_the_cells_later_output_of_every_kind_is_its_own_after_a_click(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    cell = live_kernel.begin("""
        print("waiting")
        run(asyncio.wait_for(released.wait(), 8))
        print("out")
        print("err", file=sys.stderr)
        display({"text/plain": "shown"}, raw=True)
        "result"
    """)
    live_kernel.click(button).reply()
    reply = cell.reply()
    assert (reply.stdout, reply.stderr, reply.result) == ("waiting\nout\n", "err\n", "'result'")
    assert reply.displays == [{"text/plain": "shown"}]


def test_a_widget_callback_may_wait_while_a_cell_waits(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("""
        async def slow():
            await asyncio.sleep(0.2)
            return "slow result"
        answers = asyncio.Queue()
        def ask(button):
            print("asking")
            answers.put_nowait(run(slow()))
            print("asked")
        button.on_click(ask)
    """)
    cell = live_kernel.begin("print('waiting')\nanswer = run(asyncio.wait_for(answers.get(), 8))\nprint(answer)")
    click = live_kernel.click(button)
    assert cell.reply().stdout == "waiting\nslow result\n"
    live_kernel.wait_for(lambda: "asked" in click.stdout_so_far(), 10)
    assert click.reply().stdout == "clicked\nasking\nasked\n"


def test_a_widget_callback_that_waits_while_no_cell_runs_lets_the_loop_go_on(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value(TICKER)
    live_kernel.value("""
        def wait(button):
            before = len(ticks)
            run(ticked(before + 6))
            print(len(ticks) - before)
        button.on_click(wait)
    """)
    try:
        said = live_kernel.click(button).reply().stdout
        assert int(said.split()[-1]) >= 6
    finally:
        live_kernel.value("ticker.cancel()\nNone")


def test_a_widget_made_by_the_frontend_reaches_a_waiting_cell(live_kernel: Kernel) -> None:
    live_kernel.value("""
        opened = asyncio.Queue()
        def target(comm, message):
            comm.on_msg(lambda message: opened.put_nowait(message["content"]["data"]["n"]))
            opened.put_nowait("opened")
        get_ipython().kernel.comm_manager.register_target("of_test", target)
    """)
    cell = live_kernel.begin("print('waiting')\n[run(asyncio.wait_for(opened.get(), 8)) for _ in range(3)]")
    comm_id, _ = live_kernel.comm_open("of_test", {})
    for n in range(2):
        live_kernel.comm_msg(comm_id, {"n": n})
    assert cell.reply().result == "['opened', 0, 1]"


@pytest.mark.parametrize("way", ["sync", "async"])
def test_cells_sent_during_a_wait_run_after_it_in_order(live_kernel: Kernel, way: str) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("ran = []")
    wait = WAITS[way] % "asyncio.wait_for(released.wait(), 8)"
    cell = live_kernel.begin(f"print('waiting')\n{wait}\nran.append('first')")
    later = [live_kernel.execute_async(f"ran.append({n})\nprint({n})\nrun(asyncio.sleep(0.01))") for n in range(5)]
    assert not any(one.messages for one in later)
    live_kernel.click(button).reply()
    assert cell.reply().error is None
    assert [one.reply().stdout for one in later] == [f"{n}\n" for n in range(5)]
    assert live_kernel.value("ran") == ["first", 0, 1, 2, 3, 4]


def reply_to(pending: Pending) -> dict[str, Any]:
    (content,) = [m["content"] for m in pending.reply(10).messages if m["msg_type"].endswith("_reply")]
    found: dict[str, Any] = content
    return found


@pytest.mark.parametrize("way", ["sync", "async"])
def test_completion_and_tooltips_are_answered_while_a_cell_waits(live_kernel: Kernel, way: str) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("def documented():\n    'What it says.'\nNone")
    wait = WAITS[way] % "asyncio.wait_for(released.wait(), 8)"
    cell = live_kernel.begin(f"print('waiting')\n{wait}\nprint('after')\n1 / 0")
    behind = live_kernel.execute_async("print('behind')")
    for _ in range(3):
        completed = live_kernel.request("complete_request", {"code": "documen", "cursor_pos": 7})
        assert "documented" in reply_to(completed)["matches"]
        told = live_kernel.request("inspect_request", {"code": "documented", "cursor_pos": 10, "detail_level": 0})
        assert "What it says." in reply_to(told)["data"]["text/plain"]
        assert [one.stdout_so_far() for one in (completed, told)] == ["", ""]
    assert not cell.done()
    assert not behind.messages
    live_kernel.click(button).reply()
    reply = cell.reply()
    assert reply.stdout == "waiting\nafter\n"
    assert reply.error is not None  # which is the cell's own, with its own parent
    assert reply.error.ename == "ZeroDivisionError"
    behind.reply()


def test_the_kernel_says_idle_for_a_click_during_a_wait(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    cell = live_kernel.begin("print('waiting')\nrun(asyncio.wait_for(released.wait(), 8))\nrun(asyncio.sleep(0.1))")
    click = live_kernel.click(button)
    click.reply()
    assert [m["content"]["execution_state"] for m in click.messages if m["msg_type"] == "status"] == ["busy", "idle"]
    assert cell.reply().error is None


def test_a_failing_callback_does_not_end_the_cell_that_waits(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("def fail(button): 1 / 0\nbutton.on_click(fail)")
    cell = live_kernel.begin("print('waiting')\nrun(asyncio.wait_for(released.wait(), 8))\nprint('went on')")
    live_kernel.click(button).reply()
    assert cell.reply().stdout == "waiting\nwent on\n"


def test_a_background_call_of_a_callback_prints_to_the_callbacks_own_message(live_kernel: Kernel) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("""
        go = threading.Event()
        async def late():
            await asyncio.to_thread(go.wait)
            print("late")
        calls = []
        button.on_click(lambda button: calls.append(submit(late())))
    """)
    click = live_kernel.click(button)
    click.reply()
    assert live_kernel.execute("go.set()\ncalls[0].result()\nprint('newest')").stdout == "newest\n"
    live_kernel.wait_for(lambda: "late" in click.stdout_so_far(), 10)


def test_a_callback_that_waits_longer_than_its_cell_takes_nothing_from_the_cells_that_go_on(
    live_kernel: Kernel,
) -> None:
    button = live_kernel.value(BUTTON)
    live_kernel.value("""
        gate = asyncio.Event()
        def wait(button):
            print("waits")
            run(asyncio.wait_for(gate.wait(), 8))
            print("waited")
        button.on_click(wait)
    """)
    show = "print('out'); print('err', file=sys.stderr); display({'text/plain': 'shown'}, raw=True)\n'result'"
    first = live_kernel.begin(f"print('begun')\nrun(asyncio.wait_for(released.wait(), 8))\n{show}")
    click = live_kernel.click(button)
    replies = [first.reply()]
    replies.append(live_kernel.execute(f"print('begun')\n{show}"))
    replies.append(live_kernel.execute(f"print('begun')\ngate.set()\nrun(asyncio.sleep(0.1))\n{show}"))
    replies.append(live_kernel.execute(f"print('begun')\n{show}"))
    for reply in replies:
        assert (reply.stdout, reply.stderr, reply.result) == ("begun\nout\n", "err\n", "'result'")
        assert reply.displays == [{"text/plain": "shown"}]
    assert click.reply().stdout == "clicked\nwaits\nwaited\n"


def test_a_click_releases_a_callback_that_waits_while_no_cell_runs(live_kernel: Kernel) -> None:
    waiter, releaser = live_kernel.value("""
        import ipywidgets
        buttons = ipywidgets.Button(), ipywidgets.Button()
        gate = asyncio.Event()
        def wait(button):
            print("waits")
            run(asyncio.wait_for(gate.wait(), 8))
            print("released")
        buttons[0].on_click(wait)
        buttons[1].on_click(lambda button: (print("releases"), gate.set()))
        buttons[0].model_id, buttons[1].model_id
    """)
    first = live_kernel.click(waiter)
    live_kernel.wait_for(first.stdout_so_far)
    assert live_kernel.click(releaser).reply(timeout=10).stdout == "releases\n"
    assert first.reply(timeout=10).stdout == "waits\nreleased\n"


def test_where_a_cell_waits_and_for_what_is_shown_by_a_magic(live_kernel: Kernel) -> None:
    assert live_kernel.execute("%calls where").stdout == "nothing is suspended\n"
    button = live_kernel.value(BUTTON)
    live_kernel.value("""
        async def innermost():
            await released.wait()
        def helper():
            return run(innermost())
        button.on_click(lambda _: get_ipython().run_line_magic("calls", "where"))
    """)
    cell = live_kernel.begin("print('waiting')\nhelper()  # here")
    said = live_kernel.click(button).reply().stdout
    assert cell.reply().error is None
    assert re.findall(r"line \d+, in (\w+)\n", said) == ["helper", "innermost", "wait"]  # below the cell's own code
    assert "helper()  # here" in said
    assert "ipyportal" not in said.replace("ipyportal-loop", "")
