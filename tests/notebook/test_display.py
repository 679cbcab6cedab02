"""How calls look: the card as it is stored in `snapshots/`, and what hostile names, results and errors do to it.

``python -m tests.notebook.test_display`` writes the snapshots anew.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ipyportal.concurrency import Call, EventLoopThread
from ipyportal.concurrency.calls import current_call
from ipyportal.notebook.display import CallsTable, CallView, _pause
from ipyportal.notebook.history import History, Launched

FOLDER = Path(__file__).parent / "snapshots"


class Page(HTMLParser):
    """What a browser would make of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class RaisingRepr:
    def __repr__(self) -> str:
        raise ValueError("no repr")


class RaisingStr(Exception):
    def __str__(self) -> str:
        raise ValueError("no str")


class NoString:
    def __repr__(self) -> Any:
        return 5


class Hostile:
    def __repr__(self) -> str:
        return "<script>alert('repr')</script>\n</div>"


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def raising(exc: BaseException) -> Callable[[], Any]:
    def fn() -> None:
        raise exc

    return fn


def called(fn: Callable[[], Any], name: str = "job", timeout: float | None = None) -> Call[Any]:
    """A call that was run."""
    call = Call.new(fn)
    call.name = name
    call.set_timeout(timeout)
    call.run()
    call._mark_retrieved()  # what it raised is shown, and not taken
    return call


def cancelled() -> Call[Any]:
    call = Call.new(returning(1))
    call.name = "job"
    call.cancel()
    return call


def named(call: Call[Any]) -> Call[Any]:
    call.name = "job"
    return call


def view(call: Call[Any]) -> CallView:
    """The view of a call that was launched 12.34 seconds ago."""
    return CallView(call, Launched(call.name, "ipyportal-loop", 3, weakref.ref(call), begun=0.0, ended=12.34))


def running() -> CallView:
    """The view of a call as it was when the call was running."""
    views: list[CallView] = []

    def look() -> None:
        call = current_call()
        assert call is not None
        views.append(Frozen(view(call)))

    called(look)
    return views[0]


class Frozen(CallView):
    """A view that does not change any more."""

    def __init__(self, view: CallView) -> None:
        self._stored = view.bundle()

    def bundle(self) -> dict[str, str]:
        return self._stored

    def text(self) -> str:
        return self._stored["text/plain"]

    def html(self) -> str:
        return self._stored["text/html"]


STATES: dict[str, Callable[[], CallView]] = {
    "pending": lambda: view(named(Call.new(returning(1)))),
    "running": running,
    "finished": lambda: view(called(returning({"a": [1, 2, 3]}))),
    "failed": lambda: view(called(raising(ValueError("what went wrong\nin its last line")))),
    "cancelled": lambda: view(cancelled()),
    "timed-out": lambda: view(called(returning(1), timeout=0.0)),
}


def as_stored(view: CallView) -> str:
    """The text and the HTML of a view, one element a line."""
    text = view.text() + "\n\n" + view.html().replace("><", ">\n<") + "\n"
    return re.sub(r"at \d\d:\d\d:\d\d", "at (now)", text)


@pytest.mark.parametrize("state", STATES)
def test_a_calls_views_are_those_that_are_stored(state: str) -> None:
    assert as_stored(STATES[state]()) == (FOLDER / f"call-{state}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("state", STATES)
def test_the_state_is_said_in_words_and_not_by_colour_alone(state: str) -> None:
    shown = STATES[state]()
    page = Page(shown.html())
    word = state.replace("-", " ")
    assert page.open == []
    assert f"{word}" in page.text
    assert word in shown.text()
    assert "role" in page.attributes
    assert "12.3 s" in page.text
    assert "\n" not in shown.text()


@pytest.mark.parametrize(
    "call",
    [
        called(returning(1), name="<script>alert('name')</script>"),
        called(returning(1), name="\"><img src=x onerror='alert(1)'>"),
        called(returning("<script>alert('result')</script>")),
        called(returning(Hostile())),
        called(returning(RaisingRepr())),
        called(returning(NoString())),
        called(returning(type("<b>", (), {})())),
        called(returning([RaisingRepr(), Hostile()])),
        called(raising(ValueError("<script>alert('error')</script>"))),
        called(raising(ValueError("</div></div>&amp;'\""))),
        called(raising(RaisingStr())),
        called(raising(type("<script>", (Exception,), {})("x"))),
        called(raising(KeyError(Hostile()))),
        called(raising(KeyError(RaisingRepr()))),
        called(raising(ExceptionGroup("several <b>", [ValueError("<i>")]))),
        called(raising(ValueError("\n \n"))),
    ],
)
def test_what_comes_from_the_user_is_escaped_or_survived(call: Call[Any]) -> None:
    shown = view(call)
    page = Page(shown.html())
    assert page.open == []
    assert set(page.tags) <= {"div", "code", "strong", "span"}
    assert page.attributes <= {"aria-live", "role", "style"}
    # The page's text says the same as the line of text.
    words = re.sub(r"[·:]", " ", shown.text()).split()
    assert sorted(words) == sorted(re.sub(r"[·:]", " ", page.text).split())


def test_a_call_goes_by_the_name_that_it_is_given_after_its_launch_and_keeps_the_last() -> None:
    history = History()
    call = Call.new(returning(1))
    history.add(call, 3)
    call.name = "new"
    assert repr(CallsTable(history)).splitlines()[1].split()[:2] == ["new", "pending"]
    assert [one.call() for one in history.named("new")] == [call]
    call.run()
    del call
    assert repr(CallsTable(history)).splitlines()[1].split()[:2] == ["new", "finished"]


def test_names_in_the_table_are_escaped() -> None:
    history = History()
    call = called(returning(1), name="<script>")
    history.add(call, 3)
    page = Page(CallsTable(history)._repr_html_())
    assert page.open == []
    assert "script" not in page.tags
    assert "<script>" in page.text
    assert "<script>" in repr(CallsTable(history))


@pytest.mark.parametrize(
    "call",
    [
        called(returning(1), name="lone \ud800"),
        called(raising(ValueError("lone \ud800"))),
    ],
)
def test_what_cannot_be_sent_is_shown_escaped(call: Call[Any]) -> None:
    history = History()
    history.add(call, 3)
    table = CallsTable(history)
    for text in (view(call).text(), view(call).html(), repr(table), table._repr_html_()):
        text.encode()
    assert r"lone \ud800" in view(call).text()


def test_long_results_and_errors_are_cut() -> None:
    for call in (
        called(returning("x" * 10**6)),
        called(raising(ValueError("x" * 10**6))),
        called(returning([[]] * 10**6)),
    ):
        assert len(view(call).text()) < 400


def test_a_table_without_calls_says_so() -> None:
    table = CallsTable([])
    assert repr(table) == "no calls"
    assert Page(table._repr_html_()).text == "no calls"


def test_the_table_has_headings_and_a_row_for_each_call() -> None:
    history = History()
    calls = [called(returning(n), name=f"job {n}") for n in range(3)]
    for call in calls:
        history.add(call, 7)
    lines = repr(CallsTable(history)).splitlines()
    assert lines[0].split() == ["name", "state", "elapsed", "where", "cell"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["job 0", "job 1", "job 2"]
    assert all(line.endswith("In [7]") for line in lines[1:])
    assert Page(CallsTable(history)._repr_html_()).tags.count("tr") == 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (59.99, "60.0 s"), (61, "1:01 min"), (3725, "1:02:05")]
)
def test_elapsed_times_read_well(seconds: float, text: str) -> None:
    call = called(returning(None))
    launched = Launched(call.name, "", None, weakref.ref(call), begun=0.0, ended=seconds)
    assert CallView(call, launched).text() == f"✓ job: finished · {text}"


def test_a_card_is_updated_the_less_often_the_longer_its_call_runs() -> None:
    elapsed, updates = 0.0, 0
    while elapsed < 24 * 3600:
        elapsed += _pause(elapsed)
        updates += 1
    assert _pause(59) == 1
    assert updates < 600


def test_the_history_keeps_a_hundred_finished_calls_and_none_of_their_results() -> None:
    class Result:
        pass

    history = History()
    results = []
    with EventLoopThread() as thread:
        for _ in range(History.LENGTH + 20):
            call = Call.new(Result)
            thread.submit(call)
            history.add(call, 1)
            results.append(weakref.ref(call.result()))
        del call
    assert len(list(history)) == History.LENGTH
    assert history.running() == []
    assert [result() for result in results] == [None] * len(results)
    history.clear()
    assert list(history) == []


def test_the_history_keeps_running_calls_however_many_and_forgets_none_on_clear() -> None:
    history = History()
    calls = [Call.new(returning(1)) for _ in range(History.LENGTH + 20)]
    for call in calls:
        history.add(call, 1)
    history.clear()
    assert len(history.running()) == len(calls)
    for call in calls:
        call.run()
    assert history.running() == []
    assert len(list(history)) == History.LENGTH


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in STATES.items():
        (FOLDER / f"call-{name}.html").write_text(as_stored(make()), encoding="utf-8")
