"""%%background and %calls: a call that goes on after its cell, its card, its output, its end."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from .kernel import Error, Kernel, Message, Pending

PRELUDE = """
import asyncio, gc, sys, threading, time, weakref
from ipyportal import run, submit

gates = {}

async def gate(name):
    # Waits, in whatever loop, until open_gate(name).
    await asyncio.to_thread(gates.setdefault(name, threading.Event()).wait, 20)

def open_gate(name):
    gates.setdefault(name, threading.Event()).set()
"""


@pytest.fixture
def shared(live_kernel: Kernel) -> Kernel:
    assert live_kernel.execute(PRELUDE).error is None
    return live_kernel


def display_id(message: Message) -> str:
    return message["content"].get("transient", {}).get("display_id", "")


def is_card(message: Message) -> bool:
    return 'role="status"' in message["content"]["data"].get("text/html", "")


def card(pending: Pending) -> Message:
    (found,) = [m for m in pending.messages if m["msg_type"] == "display_data" and is_card(m)]
    return found


def place_of_the_value(pending: Pending) -> Message:
    """What is below the card, and empty until its call has given something."""
    (found,) = [m for m in pending.messages if m["msg_type"] == "display_data" and m["content"]["data"] == NOTHING]
    return found


NOTHING = {"text/plain": "", "text/html": ""}


def html_of(pending: Pending) -> str:
    text: str = card(pending)["content"]["data"]["text/html"]
    return text


def button(html: str) -> tuple[str, str]:
    """The class and the value of the one button in some HTML."""
    (found,) = re.findall(r'<button type="button" hidden class="([\w-]+)" value="(\d+)"', html)
    mark, value = found
    return mark, value


def press(kernel: Kernel, html: str) -> None:
    """Press the button in some HTML, as the widget does that hears it."""
    mark, value = button(html)
    model, its_mark = kernel.value(f"({WIDGET}.model_id, {WIDGET}.mark)")
    assert mark == its_mark
    kernel.send_to_widget(model, {"cancel": value}).reply()


WIDGET = "__import__('ipyportal.notebook.buttons').notebook.buttons.cancel_buttons._widget"


def updates(kernel: Kernel, shown: Message) -> list[str]:
    """The texts that a card has shown since it was displayed, whichever cell they were sent for."""
    found = [
        message
        for pending in kernel.requests()
        for message in list(pending.messages)
        if message["msg_type"] == "update_display_data" and display_id(message) == display_id(shown)
    ]
    return [message["content"]["data"]["text/plain"] for message in found]


def wait_for_update(kernel: Kernel, shown: Message, pattern: str, timeout: float = 5) -> str:
    kernel.wait_for(lambda: any(re.search(pattern, text) for text in updates(kernel, shown)), timeout)
    return next(text for text in updates(kernel, shown) if re.search(pattern, text))


def raised(kernel: Kernel, code: str) -> Error:
    error = kernel.execute(code).error
    assert error is not None
    return error


# --- starting --------------------------------------------------------------------------------------------------------


def test_background_returns_at_once_and_its_value_is_the_calls_result(shared: Kernel) -> None:
    started = shared.execute("%%background job\nawait gate('value')\nn = 20\nn + 1")
    assert started.error is None
    assert started.result is None
    assert shared.value("job.done()") is False
    shared.value("open_gate('value')")
    assert shared.value("job.result(), n, await job") == (21, 20, 21)


@pytest.mark.parametrize("end", ["7;", "7 ; # hidden"])
def test_a_semicolon_does_not_take_the_value_from_the_call(shared: Kernel, end: str) -> None:
    shared.execute(f"%%background job\n{end}")
    assert shared.value("job.result()") == 7


def test_without_a_name_it_goes_by_the_number_of_its_cell(shared: Kernel) -> None:
    pending = shared.execute_async("%%background\nawait gate('nameless')")
    number = next(m["content"]["execution_count"] for m in pending.reply().messages if m["msg_type"] == "execute_reply")
    assert f"cell {number}" in card(pending)["content"]["data"]["text/plain"]
    # What is said in place of the button, where nothing hears it, is what can be typed.
    assert f"to cancel it: <code>%calls cancel cell {number}</code>" in html_of(pending)
    assert shared.execute(f"%calls cancel cell {number}").stdout == "cancelled 1\n"
    wait_for_update(shared, card(pending), "cancelled")


def test_without_anywidget_a_card_has_no_button_and_says_what_to_type(loaded_kernel: Kernel) -> None:
    kernel = loaded_kernel
    kernel.value("import sys\nsys.modules['anywidget'] = None  # as if not installed")
    pending = kernel.execute_async("%%background job\nimport asyncio\nawait asyncio.sleep(60)")
    assert pending.reply().error is None
    assert "to cancel it: <code>%calls cancel job</code>" in html_of(pending)
    assert "<button" not in html_of(pending)
    assert "<code>%calls cancel job</code>" in str(kernel.execute("%calls").messages)


def test_buttons_are_closed_with_the_extension_and_come_back_with_it(loaded_kernel: Kernel) -> None:
    kernel = loaded_kernel
    models = "get_ipython().kernel.comm_manager.comms"
    for _ in range(2):
        pending = kernel.execute_async("%%background job\nimport asyncio\nawait asyncio.sleep(60)")
        assert pending.reply().error is None
        assert kernel.value(f"len({models})") == 2  # with its layout
        press(kernel, html_of(pending))
        assert raised(kernel, "job.result()").ename == "CancelledError"
        kernel.execute("%unload_ext ipyportal")
        assert kernel.value(f"len({models})") == 0
        kernel.execute("%load_ext ipyportal")


def test_who_closes_all_widgets_gets_buttons_with_the_next_card(loaded_kernel: Kernel) -> None:
    kernel = loaded_kernel
    kernel.execute("%%background first\nimport asyncio\nawait asyncio.sleep(60)")
    kernel.value("import ipywidgets\nipywidgets.Widget.close_all()")
    pending = kernel.execute_async("%%background second\nawait asyncio.sleep(60)")
    assert pending.reply().error is None
    press(kernel, html_of(pending))
    assert raised(kernel, "second.result()").ename == "CancelledError"
    assert kernel.value("first.done()") is False


def test_it_runs_where_it_is_told_to(shared: Kernel) -> None:
    places = {"": "ipyportal-loop", "--on loop": "ipyportal-loop", "--on kernel": "MainThread"}
    for option, thread in places.items():
        shared.execute(f"%%background job {option}\nawait asyncio.sleep(0)\nthreading.current_thread().name")
        assert shared.value("await job") == thread
    shared.execute("%%background job --on thread\nthreading.current_thread().name")
    assert shared.value("job.result()").startswith("ipyportal-thread")


def test_it_follows_the_route_of_the_session(shared: Kernel) -> None:
    shared.value("%portal route kernel")
    try:
        shared.execute("%%background job\nthreading.current_thread().name")
        assert shared.value("await job") == "MainThread"
    finally:
        shared.value("%portal route rule")


# --- output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["", "--on thread", "--on kernel"])
def test_its_output_lands_in_its_own_cell_also_after_later_cells(shared: Kernel, option: str) -> None:
    wait = "gates.setdefault('output', threading.Event()).wait(20)" if "thread" in option else "await gate('output')"
    pending = shared.execute_async(
        f"%%background job {option}\nprint('begins')\n{wait}\nprint('ends')\n"
        "print('err', file=sys.stderr)\ndisplay('shown')"
    )
    pending.reply()
    assert shared.execute("print('later')").stdout == "later\n"
    during = shared.execute(
        "open_gate('output')\nwhile_it_ends = await asyncio.wrap_future(job.future)\nprint('newest')"
    )
    assert during.stdout == "newest\n"
    shared.wait_for(lambda: "'shown'" in str(pending.messages) and "err" in pending.stderr_so_far(), 10)
    assert pending.stdout_so_far() == "begins\nends\n"
    assert pending.stderr_so_far() == "err\n"


def test_the_card_stands_above_what_the_body_says(shared: Kernel) -> None:
    for _ in range(10):
        pending = shared.execute_async("%%background job\nprint('said at once')\ndisplay('shown at once')")
        pending.reply()
        shared.wait_for(lambda one=pending: "'shown at once'" in str(one.messages) and one.stdout_so_far(), 10)
        shown = [m for m in pending.messages if m["msg_type"] in ("display_data", "stream")]
        assert is_card(shown[0])
        assert shown[1] is place_of_the_value(pending)


def test_a_call_that_cannot_be_started_is_an_error_and_its_card_says_so(shared: Kernel) -> None:
    shared.value("from ipyportal.concurrency import EventLoopThread\nclosed = EventLoopThread(name='closed')")
    shared.value("closed.shutdown()\nnever = None")
    pending = shared.execute_async("%%background never --on closed\nprint('ran')")
    reply = pending.reply()
    assert reply.error is not None
    assert "was shut down" in reply.error.evalue
    wait_for_update(shared, card(pending), "cancelled")
    assert shared.value("never") is None
    assert pending.stdout_so_far() == ""


def test_two_at_a_time_keep_their_outputs_apart(shared: Kernel) -> None:
    pending = [
        shared.execute_async(
            f"%%background {name}\nfor n in range(20):\n    print('{name}', n)\n    await asyncio.sleep(0)"
        )
        for name in ("one", "two")
    ]
    shared.value("one.result(), two.result()")
    for name, one in zip(("one", "two"), pending, strict=True):
        text = "".join(f"{name} {n}\n" for n in range(20))
        shared.wait_for(lambda one=one, text=text: one.stdout_so_far() == text, 10)


# --- its end ---------------------------------------------------------------------------------------------------------


def test_its_error_is_that_of_the_result_with_the_cells_line(shared: Kernel) -> None:
    pending = shared.execute_async("%%background job\nx = 1\nawait asyncio.sleep(0)\n1 / 0  # here")
    assert pending.reply().error is None
    assert "ZeroDivisionError: division by zero" in wait_for_update(shared, card(pending), "failed")
    error = raised(shared, "job.result()")
    assert error.ename == "ZeroDivisionError"
    assert re.search(r"-> 4 +1 / 0  # here", error.traceback)
    assert "ipyportal/" not in error.traceback
    assert raised(shared, "await job").ename == "ZeroDivisionError"


def test_a_time_out_ends_it_after_its_clean_up(shared: Kernel) -> None:
    pending = shared.execute_async(
        "%%background job -t 0.1\ntry:\n    await asyncio.sleep(60)\nfinally:\n    print('cleaned up')"
    )
    pending.reply()
    wait_for_update(shared, card(pending), "timed out")
    assert raised(shared, "job.result()").ename == "TimeoutError"
    shared.wait_for(lambda: pending.stdout_so_far() == "cleaned up\n", 10)


@pytest.mark.parametrize("how", ["%calls cancel job", "%calls cancel all", "job.cancel()", "the button"])
def test_it_can_be_cancelled_and_cleans_up(shared: Kernel, how: str) -> None:
    pending = shared.execute_async(
        "%%background job\nprint('waiting')\ntry:\n    await asyncio.sleep(60)\nfinally:\n    print('cleaned up')"
    )
    shared.wait_for(lambda: pending.done() and pending.stdout_so_far(), 10)
    if how == "the button":
        press(shared, html_of(pending))
    else:
        shared.execute(how)
    wait_for_update(shared, card(pending), "cancelled")
    shared.wait_for(lambda: pending.stdout_so_far() == "waiting\ncleaned up\n", 10)
    assert raised(shared, "job.result()").ename == "CancelledError"


def test_the_stop_button_ends_the_wait_for_it_and_the_call_with_it_or_not_at_all(shared: Kernel) -> None:
    shared.execute("%%background job\nawait gate('interrupted')\n5")
    pending = shared.begin("print('waiting')\njob.result()")
    time.sleep(0.1)
    shared.interrupt()
    error = pending.reply(3).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.answers_within(10)
    shared.value("open_gate('interrupted')")
    assert shared.value("job.result()") == 5


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_shows_the_call_live_with_one_display_id(shared: Kernel) -> None:
    pending = shared.execute_async("%%background job\nawait gate('card')\n'the result'")
    pending.reply()
    shown = card(pending)
    assert display_id(shown)
    wait_for_update(shared, shown, r"job: running · on ipyportal-loop · 0\.\d s at \d\d:\d\d:\d\d$")
    wait_for_update(shared, shown, r"job: running · on ipyportal-loop · [1-9]\.\d s")
    shared.value("open_gate('card')")
    wait_for_update(shared, shown, r"job: finished .* str: 'the result'")
    time.sleep(0.1)
    assert "finished" in updates(shared, shown)[-1]


def test_a_card_has_its_button_until_its_end_and_the_same_each_time(shared: Kernel) -> None:
    pending = shared.execute_async("%%background job\nawait gate('button')")
    pending.reply()
    first = html_of(pending)
    wait_for_update(shared, card(pending), "running")
    shared.value("open_gate('button')")
    wait_for_update(shared, card(pending), "finished")
    place = display_id(card(pending))
    later = [m["content"]["data"] for m in of_type(shared, "update_display_data") if display_id(m) == place]
    assert {button(data["text/html"]) for data in later if "finished" not in data["text/plain"]} == {button(first)}
    assert "cancel" not in later[-1]["text/html"].lower()


def test_the_last_word_of_a_card_is_how_the_call_ended(shared: Kernel) -> None:
    """Calls of other threads end while their card is being updated."""
    pending = [shared.execute_async(f"%%background job --on thread\ntime.sleep({n} * 0.0005)") for n in range(20)]
    cards = [(one.reply(), card(one))[1] for one in pending]
    for shown in cards:
        wait_for_update(shared, shown, "finished")
    shared.value("await asyncio.sleep(0.1)")
    assert all("finished" in updates(shared, shown)[-1] for shown in cards)


def test_a_call_as_a_value_is_shown_as_a_card(shared: Kernel) -> None:
    reply = shared.execute("%%background job\n5")
    shared.value("job.result()")
    reply = shared.execute("job")
    (message,) = [m for m in reply.messages if m["msg_type"] == "execute_result"]
    assert re.fullmatch(
        r"✓ job: finished · on ipyportal-loop · \d\.\d s · int: 5", message["content"]["data"]["text/plain"]
    )
    assert 'role="status"' in message["content"]["data"]["text/html"]
    assert shared.value("repr(job)") == "<Call job finished on ipyportal-loop>"


@pytest.mark.parametrize(
    "body",
    [
        "class Bad:\n    def __repr__(self): raise ValueError('no')\nBad()",
        "class Bad(Exception):\n    def __str__(self): raise ValueError('no')\nraise Bad",
        "raise ValueError('<script>alert(1)</script>')",
        "'<script>alert(1)</script>'",
        "raise SystemExit('end')",
        "raise KeyboardInterrupt",
    ],
)
def test_a_hostile_outcome_does_no_harm(shared: Kernel, body: str) -> None:
    pending = shared.execute_async(f"%%background job\nawait gate('hostile')\n{body}")
    pending.reply()
    shared.value("open_gate('hostile')")
    wait_for_update(shared, card(pending), "finished|failed")
    assert "<script" not in str([m["content"]["data"].get("text/html") for m in of_type(shared, "update_display_data")])
    assert shared.execute("job").error is None
    assert shared.answers_within(10)


def of_type(kernel: Kernel, msg_type: str) -> list[Message]:
    return [m for one in kernel.requests() for m in list(one.messages) if m["msg_type"] == msg_type]


# --- %calls ----------------------------------------------------------------------------------------------------------


def rows(kernel: Kernel) -> list[list[str]]:
    text = shown(kernel.execute_async("%calls"))["text/plain"]
    return [re.split(r"  +", line.strip()) for line in text.splitlines()[1:]]


def shown(pending: Pending) -> dict[str, str]:
    pending.reply()
    (found,) = [m for m in pending.messages if m["msg_type"] in ("execute_result", "display_data")]
    data: dict[str, str] = found["content"]["data"]
    return data


def test_calls_has_a_button_for_each_that_runs_and_shows_its_end(shared: Kernel) -> None:
    shared.execute("%calls clear")
    shared.value("calls = [submit(gate, name) for name in ('first', 'second')]\nNone")
    shared.value("for call, name in zip(calls, ('first', 'second')): call.name = name")
    pending = shared.execute_async("%calls")
    buttons = shown(pending)["text/html"].split("</tr>")[1:3]  # after the header
    table = next(m for m in pending.messages if m["msg_type"] == "display_data")
    press(shared, buttons[0])
    wait_for_update(shared, table, r"first +cancelled +\d\.\d s +ipyportal-loop.*\nsecond +running +\d\.\d s at ")
    shared.value("open_gate('second')")
    wait_for_update(shared, table, r"first +cancelled.*\nsecond +finished +\d\.\d s +ipyportal-loop")
    assert raised(shared, "calls[0].result()").ename == "CancelledError"
    shared.execute("del calls, call")


def test_calls_lists_what_runs_and_what_ran(shared: Kernel) -> None:
    shared.execute("%calls clear")
    shared.execute("%%background first\nawait gate('list')")
    shared.value("async def second():\n    await gate('list')\nother = submit(second())\nNone")
    # The thread that runs them may come to it later than the cell to its end.
    shared.value("while not (first.running() and other.running()): time.sleep(0.001)")
    assert [(row[0], row[1], row[3]) for row in rows(shared)] == [
        ("first", "running", "ipyportal-loop"),
        ("second", "running", "ipyportal-loop"),
    ]
    shared.value("open_gate('list')\n(first.result(), other.result())")
    assert [row[1] for row in rows(shared)] == ["finished", "finished"]
    assert all(re.fullmatch(r"In \[\d+\]", row[4]) for row in rows(shared))
    shared.execute("%calls clear")
    assert shared.execute("%calls").result == "no calls"


def test_clear_keeps_what_runs(shared: Kernel) -> None:
    shared.execute("%%background keeps\nawait gate('clear')")
    shared.execute("%calls clear")
    assert [row[0] for row in rows(shared)] == ["keeps"]
    shared.value("open_gate('clear')\nkeeps.result()")


def test_cancel_all_cancels_those_that_run_and_says_how_many(shared: Kernel) -> None:
    shared.execute("%calls clear")
    assert shared.execute("%calls cancel all").stdout == "cancelled 0\n"
    shared.value("jobs = [submit(asyncio.sleep, 60) for _ in range(3)]\nNone")
    assert shared.execute("%calls cancel all").stdout == "cancelled 3\n"
    shared.value("import concurrent.futures\nconcurrent.futures.wait([job.future for job in jobs], 5)\nNone")
    assert [row[1] for row in rows(shared)] == ["cancelled"] * 3


def test_the_history_is_bounded(shared: Kernel) -> None:
    shared.value("async def quick(): return 1\nsum(submit(quick()).result() for _ in range(150))")
    assert len(rows(shared)) == 100


@pytest.mark.parametrize("kind", ["magic", "magic in a thread", "submit"])
def test_a_result_lives_only_as_long_as_the_user_holds_the_call(shared: Kernel, kind: str) -> None:
    shared.value("class Result: pass")
    if kind == "submit":
        shared.execute("job = submit(Result)")
    else:
        shared.execute(f"%%background job {'--on thread' * (kind != 'magic')}\nResult()")
    shared.value("reference = weakref.ref(job.result())\nreference() is not None")
    assert shared.value("""
        del job
        for _ in range(50):  # the card may be taking its leave
            gc.collect()
            if reference() is None: break
            await asyncio.sleep(0.1)
        reference() is None
    """)


def test_the_kernel_keeps_no_thread_and_no_task_for_calls_that_are_over(shared: Kernel) -> None:
    shared.value("async def quick(): return 1\nsubmit(quick()).result()")

    def count() -> Any:
        return shared.value("threading.active_count(), len(asyncio.all_tasks(run(own_loop, on='loop')))")

    shared.value("async def own_loop(): return asyncio.get_running_loop()")
    before = count()
    for _ in range(5):
        shared.execute("%%background job\n1")
    shared.value("job.result()\nawait asyncio.sleep(0.1)")
    for _ in range(20):  # idle threads of calls before this test may end, the last card's task is about to
        after = count()
        if after[0] <= before[0] and after[1] <= before[1]:
            return
    pytest.fail(f"{before} threads and tasks became {after}")


# --- what has come of it ---------------------------------------------------------------------------------------------

TABLE = "class Table:\n    shape = (3, 2)\n    def _repr_html_(self): return '<table>3 by 2</table>'"


def test_its_last_value_is_shown_below_its_card_in_its_own_cell(shared: Kernel) -> None:
    shared.value(TABLE)
    pending = shared.execute_async("%%background job\nprint('before')\nawait gate('value')\nTable()")
    pending.reply()
    other = shared.execute_async("open_gate('value')\njob.result() and None")
    other.reply()
    wait_for_update(shared, card(pending), "finished .* · Table 3 \N{MULTIPLICATION SIGN} 2$")
    place = display_id(place_of_the_value(pending))
    values = [m for m in of_type(shared, "update_display_data") if display_id(m) == place]
    assert {m["content"]["data"].get("text/html") for m in values} == {"<table>3 by 2</table>"}


def test_what_is_said_of_how_to_show_a_value_comes_with_it(shared: Kernel) -> None:
    shared.value("class Sized:\n    def _repr_html_(self): return '<b>x</b>', {'width': 5}\nNone")
    pending = shared.execute_async("%%background job\nSized()")
    pending.reply()
    wait_for_update(shared, card(pending), "finished")
    place = display_id(place_of_the_value(pending))
    shared.wait_for(lambda: [m for m in of_type(shared, "update_display_data") if display_id(m) == place], 10)
    values = [m for m in of_type(shared, "update_display_data") if display_id(m) == place]
    assert values[-1]["content"]["metadata"] == {"text/html": {"width": 5}}


def html(pending: Pending) -> list[str]:
    return [
        m["content"]["data"].get("text/html", "") for m in list(pending.messages) if m["msg_type"] == "display_data"
    ]


@pytest.mark.parametrize("body", ["5;", "x = 5", "None"])
def test_what_a_cell_would_not_show_is_not_shown(shared: Kernel, body: str) -> None:
    pending = shared.execute_async(f"%%background job\n{body}")
    pending.reply()
    wait_for_update(shared, card(pending), "finished")
    shared.value("await asyncio.sleep(0.1)")
    assert [text for text in html(pending) if "<div" not in text and text] == []


def test_a_value_whose_formatter_fails_is_that_of_the_call_all_the_same(shared: Kernel) -> None:
    shared.value("class Odd:\n    def _repr_html_(self): raise KeyError('no')\n    def __repr__(self): return 'odd'")
    pending = shared.execute_async("%%background job\nOdd()")
    pending.reply()
    wait_for_update(shared, card(pending), "finished .* Odd: odd")
    assert shared.value("repr(job.result())") == "odd"


@pytest.mark.parametrize("option", ["", "--on thread"])
def test_its_failure_is_shown_at_once_in_its_own_cell_with_the_cells_line(shared: Kernel, option: str) -> None:
    pending = shared.execute_async(f"%%background job {option}\nawait gate('fails')\n1 / 0  # here")
    pending.reply()
    other = shared.execute_async("open_gate('fails')\nawait asyncio.sleep(0.3)")
    other.reply()
    shared.wait_for(lambda: "ZeroDivisionError: division by zero" in plain(pending.stderr_so_far()), 10)
    assert re.search(r"-> 3 .*1 / 0.*# here", plain(pending.stderr_so_far()))
    assert "ipyportal/" not in pending.stderr_so_far()
    assert other.stderr_so_far() == ""
    shared.value("del job\ngc.collect()\nNone")
    assert plain(pending.stderr_so_far()).count("ZeroDivisionError: ") == 1  # it is not reported once more


@pytest.mark.parametrize("option", ["", "--on thread", "--on kernel"])
def test_a_question_when_no_cell_runs_is_refused_with_a_sentence(shared: Kernel, option: str) -> None:
    # A frontend shows no question of a cell that is over, and the kernel reads from a stdin that is empty.
    pending = shared.execute_async(f"%%background job {option}\nrun(gate('question'))\ninput('name? ')")
    pending.reply()
    # The gate opens when the cell that opens it is over, too: ipykernel has taken its own input() away by then.
    shared.value(
        "import builtins, time\n"
        "def opens_when_no_cell_runs():\n"
        "    while builtins.input == get_ipython().kernel.raw_input:\n"
        "        time.sleep(0.01)\n"
        "    open_gate('question')\n"
        "threading.Thread(target=opens_when_no_cell_runs).start()"
    )
    shared.wait_for(lambda: "EOFError" in pending.stderr_so_far(), 10)
    # Older IPythons do not show it.
    assert "input() can ask while a cell runs, and none did" in shared.value("str(job.exception().__notes__)")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_failure_that_nobody_takes_is_reported_in_the_cell_that_launched_it(shared: Kernel) -> None:
    shared.value("async def lost():\n    await gate('lost')\n    raise ValueError('lost')")
    pending = shared.execute_async("call = submit(lost())")
    pending.reply()
    shared.value("open_gate('lost')\nawait asyncio.sleep(0.1)")
    assert pending.stderr_so_far() == ""
    other = shared.execute_async("del call")
    other.reply()
    shared.wait_for(lambda: "ValueError: lost" in pending.stderr_so_far(), 10)
    assert "lost failed on ipyportal-loop, and its exception was never retrieved" in pending.stderr_so_far()
    assert "ipyportal/" not in pending.stderr_so_far()
    assert other.stderr_so_far() == ""


def test_a_call_as_the_last_line_of_a_cell_is_a_card_that_follows_it(shared: Kernel) -> None:
    shared.value("async def work():\n    await gate('live')\n    return 5")
    pending = shared.execute_async("call = submit(work())\ncall")
    pending.reply()
    shown = card(pending)
    wait_for_update(shared, shown, "work: running · on ipyportal-loop")
    shared.value("open_gate('live')")
    wait_for_update(shared, shown, "work: finished .* int: 5")
    assert shared.value("_ is not None and call.result()") == 5


def test_a_body_that_blocks_the_loop_thread_says_so_and_what_to_type(shared: Kernel) -> None:
    shared.value("begun, go_on = threading.Event(), threading.Event()")
    blocks = shared.execute_async("%%background blocker\nbegun.set()\ngo_on.wait(20)\nawait asyncio.sleep(0.5)")
    blocks.reply()
    shared.value("begun.wait(10)")
    waits = shared.execute_async("%%background job\n5")
    waits.reply()
    wait_for_update(
        shared,
        card(blocks),
        'running .* it blocks the EventLoopThread, .* belongs in a thread, with --on thread or on="thread"',
    )
    wait_for_update(shared, card(waits), "pending .* it waits: blocker blocks the EventLoopThread")
    assert "running, it blocks the EventLoopThread" in str(rows(shared))
    shared.value("go_on.set()")
    wait_for_update(shared, card(waits), r"job: finished .* int: 5$")
    wait_for_update(shared, card(blocks), "finished")
    assert "blocks" not in updates(shared, card(blocks))[-1]
    assert "blocks" not in str(rows(shared))


def test_what_awaits_for_long_is_not_said_to_block(shared: Kernel) -> None:
    pending = shared.execute_async("%%background job\nawait gate('long')")
    pending.reply()
    wait_for_update(shared, card(pending), r"running .* 2\.\d s")
    shared.value("open_gate('long')")
    wait_for_update(shared, card(pending), "finished")
    assert not any("block" in text or "waits" in text for text in updates(shared, card(pending)))


@pytest.mark.parametrize("body", ["raise ValueError('lone \\ud800')", "'lone \\ud800'"])
def test_what_cannot_be_sent_is_escaped_and_keeps_nothing_back(shared: Kernel, body: str) -> None:
    # A stream that is to send a lone surrogate fails, and with it the next display, which flushes the streams first.
    for _ in range(20):
        pending = shared.execute_async(f"%%background job --on thread\n{body}")
        pending.reply()
        wait_for_update(shared, card(pending), "finished|failed")
        shared.wait_for(lambda pending=pending: "\\ud800" in said(shared, pending), 10)
    assert shared.execute("print('still')").stdout == "still\n"


def said(kernel: Kernel, pending: Pending) -> str:
    place = display_id(place_of_the_value(pending))
    values = [m["content"]["data"] for m in of_type(kernel, "update_display_data") if display_id(m) == place]
    return pending.stderr_so_far() + str(values).replace("\\\\", "\\")
