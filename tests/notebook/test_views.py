"""What hostile names, reprs, texts and portals do to each view: nothing. Without a kernel, then one of each in one.

A view's HTML must have the tags and attributes that it has for a harmless name; all that is shown must be printable and
short; and it must go over the wire.
"""

from __future__ import annotations

import ast
import re
import types
import warnings
import weakref
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.session import json_packer

from ipyportal import hosts, set_route
from ipyportal.concurrency import Call, EventLoopThread, WorkerThread, shutdown
from ipyportal.concurrency.labels import LONGEST, one_line
from ipyportal.notebook.display import CallsTable, CallView
from ipyportal.notebook.environment import Report, detect
from ipyportal.notebook.history import History, Launched
from ipyportal.notebook.magics import PortalMagics, completions
from ipyportal.notebook.tracebacks import _tidy_groups
from tests.hostile import HOSTILE_TEXTS, Place, Text, anything, harmless, hostile_values

from .kernel import Kernel

some = settings(max_examples=30, deadline=None, database=None)
each_text = pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))


class Outline(HTMLParser):
    """The tags of some HTML with their attributes, without its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


# --- what is the user's in a view: a row for each, with a call that has the text there --------------------------------


class Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def raises(exc: BaseException) -> Callable[[], None]:
    def fn() -> None:
        raise exc

    return fn


def over(fn: Callable[[], Any]) -> Call[Any]:
    call = Call.new(fn)
    call.name = "job"
    call.run()
    call._mark_retrieved()  # what it raised is shown, and not taken
    return call


def named(text: str) -> Call[Any]:
    call = Call.new(int)
    call.name = text
    return call


def cancelled(text: str) -> Call[Any]:
    call = named(text)
    call.cancel()
    return call


def of_function(text: str) -> Call[Any]:
    def fn() -> None: ...

    fn.__qualname__ = Text(text)
    return Call.new(fn)


def on_portal(name: Callable[[], Any]) -> Call[Any]:
    return Place(name).submit(named("job"))


def typed(text: str, *bases: type) -> Any:
    kind = type("Kind", bases, {"__repr__": lambda self: "kind", "__str__": lambda self: "kind"})
    kind.__qualname__ = text
    return kind()


PLACES: dict[str, Callable[[str], Call[Any]]] = {
    "name": named,
    "name of one that is cancelled": cancelled,
    "name of its function": of_function,
    "name of its portal": lambda text: on_portal(lambda: text),
    "name of its portal, an odd str": lambda text: on_portal(lambda: Text(text)),
    "name of its portal's type": lambda text: typed_place(text).submit(named("job")),
    "repr of the result": lambda text: over(lambda: Shown(text)),
    "repr in the result": lambda text: over(lambda: [{"key": (Shown(text),)}]),
    "repr of the result, an odd str": lambda text: over(lambda: Shown(Text(text))),
    "text as the result": lambda text: over(lambda: text),
    "name of the result's type": lambda text: over(lambda: typed(text)),
    "text of the exception": lambda text: over(raises(ValueError(text))),
    "argument of the exception": lambda text: over(raises(KeyError(Shown(text)))),
    "name of the exception's type": lambda text: over(raises(typed(text, Exception))),
}
each_place = pytest.mark.parametrize("place", PLACES)


def typed_place(text: str) -> Place:
    place = type("Kind", (Place,), {})
    place.__qualname__ = text
    return place(lambda: 1 / 0)


def view(call: Call[Any]) -> CallView:
    return CallView(call, Launched(call.name, "ipyportal-loop", 3, weakref.ref(call), begun=0.0, ended=12.34))


def table(*calls: Call[Any]) -> CallsTable:
    history = History()
    for call in calls:
        history.add(call, 3)
    shown = CallsTable(history)
    vars(shown)["calls"] = calls  # as a notebook's variables hold them
    return shown


def check(make: Callable[[str], Call[Any]], text: str) -> None:
    shown, usual = view(make(text)), view(make("usual"))
    bundle = {**shown.bundle(), "text": shown.text(), "html": shown.html()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        json_packer(bundle)
    assert all(text.isprintable() for text in bundle.values())
    assert len(bundle["text/plain"]) < 3 * LONGEST
    assert len(bundle["text/html"]) < len(usual.html()) + 2 * 6 * LONGEST
    assert Outline(bundle["text/html"]).tags == Outline(usual.html()).tags

    listed = table(make(text), make("usual"))
    lines = repr(listed).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() and len(line) < 3 * LONGEST for line in lines)
    assert listed._repr_html_().isprintable()
    assert Outline(listed._repr_html_()).tags == Outline(table(make("usual"), make("usual"))._repr_html_()).tags
    json_packer({"text/plain": repr(listed), "text/html": listed._repr_html_()})


@each_text
@each_place
def test_a_hostile_text_changes_no_view(place: str, text: str) -> None:
    check(PLACES[place], text)


@each_place
def test_no_text_changes_a_view(place: str) -> None:
    @some
    @given(anything)
    def unchanged(text: str) -> None:
        check(PLACES[place], text)

    unchanged()


@pytest.mark.parametrize("kind", hostile_values())
def test_a_hostile_value_or_name_changes_no_view(kind: str) -> None:
    value = hostile_values()[kind]
    check(lambda text: over(lambda: 1 if text == "usual" else value), kind)
    check(lambda text: over(lambda: [1] if text == "usual" else [value]), kind)
    check(lambda text: over(raises(KeyError(1 if text == "usual" else value))), kind)
    check(lambda text: on_portal(lambda: "usual" if text == "usual" else value), kind)
    if issubclass(type(value), str):
        check(lambda text: named(text if text == "usual" else value), kind)


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit, GeneratorExit, ZeroDivisionError, RecursionError])
def test_an_exception_whose_text_fails_is_shown_by_its_type(exc: type[BaseException]) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise exc

    call = over(raises(Odd("x")))
    assert call.exception() is not None
    shown = view(call).bundle()["text/plain"]
    # The stop button ends what shows a call, but not a card.
    assert shown == "✗ job: failed · 12.3 s" + (" · Odd" if exc is not KeyboardInterrupt else "")


def test_what_shows_a_value_ends_by_the_stop_button_and_a_card_shows_how_the_call_ended() -> None:
    class Slow:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    shown = view(over(Slow))
    with pytest.raises(KeyboardInterrupt):
        shown.html()
    assert shown.bundle()["text/plain"] == "✓ job: finished · 12.3 s"


def test_a_value_is_shown_once_for_both_forms_of_a_card() -> None:
    shown: list[int] = []

    class Counted:
        def __repr__(self) -> str:
            shown.append(1)
            return "counted"

    view(over(Counted)).bundle()
    assert shown == [1]


# --- %calls cancel NAME ----------------------------------------------------------------------------------------------

ODD_NAMES = [
    *("all", '"all"', "'all'", "", " ", '"', "''", '"quoted"', "it's", "what?", "what??", "?", "a;", ";", "back\\"),
    *("-t", "--on loop", "-", "cancel", "clear", "$HOME", "{x}", "{{x}}", "a  b", "%time", "!ls", "f(", "a = %b"),
    *("# no comment", "a # b", ",a", "/a", "a\\\nb", "<lambda>", "make.<locals>.fn", "%calls cancel all", '"""', "\\"),
]  # fmt: skip


def hint(call: Call[Any]) -> str:
    """What the card says is to be typed."""
    shown: list[str] = []

    class Code(HTMLParser):
        def handle_data(self, data: str) -> None:
            if self.get_starttag_text() == "<code>":
                shown.append(data)

    Code().feed(view(call).html())
    return next(text for text in shown if text.startswith("%calls"))


def type_(magics: PortalMagics, line: str) -> None:
    """Run a line magic as IPython does, by its own reading of the cell; what is given to the magic is not expanded."""
    (statement,) = ast.parse(TransformerManager().transform_cell(line)).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    name, text = map(ast.literal_eval, statement.value.args)
    assert name == "calls"
    assert vars(PortalMagics)["calls"]._ipython_magic_no_var_expand
    magics.calls(text)


def check_hint(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    history = History()
    extension: Any = types.SimpleNamespace(history=history)
    call, other = named(text), named("other")
    for one in (call, other):
        history.add(one, 3)
    capsys.readouterr()
    type_(PortalMagics(None, extension), hint(call))  # type: ignore[arg-type]
    assert (call.cancelled(), other.cancelled()) == (True, False)
    assert capsys.readouterr().out == "cancelled 1\n"


@pytest.mark.parametrize("text", ODD_NAMES)
def test_what_the_card_says_is_to_be_typed_cancels_the_call_of_an_odd_name(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_hint(text, capsys)


@each_text
def test_what_the_card_says_is_to_be_typed_cancels_the_call_of_a_hostile_name(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_hint(text, capsys)


def test_what_the_card_says_is_to_be_typed_cancels_the_call_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    @settings(some, max_examples=200)
    @given(anything)
    def cancels(text: str) -> None:
        check_hint(text, capsys)

    cancels()


def test_names_are_completed_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    calls = [named(text) for text in ("job", "all", "lone \ud800")]
    for call in calls:
        history.add(call, 3)
    monkeypatch.setattr(hosts, "current", types.SimpleNamespace(history=history))
    event = types.SimpleNamespace(line="%calls cancel ")
    assert completions(None, event) == ["all", "job", '"all"', r"lone \ud800"]


# --- %portal, tracebacks ---------------------------------------------------------------------------------------------


@each_text
def test_portal_shows_hostile_routes_and_threads(text: str) -> None:
    with WorkerThread(name=f"ipyportal-{text}") as worker, EventLoopThread(name=text) as loop:
        worker.submit(Call.new(int)).result()
        set_route(loop)
        try:
            lines = Report(detect(None), 0).lines()
        finally:
            set_route(None)
    assert all(text.isprintable() for line in lines for text in line)
    assert one_line(f"ipyportal-{text}") in dict(lines)["threads"]
    json_packer({"text/plain": repr(Report(detect(None), 0))})
    shutdown()


def test_portal_shows_a_route_whose_repr_fails() -> None:
    class Odd(Place):
        def __repr__(self) -> str:
            raise ZeroDivisionError

    set_route(Odd(lambda: "x"))
    try:
        lines = dict(Report(detect(None), 0).lines())
    finally:
        set_route(None)
    assert harmless(lines["calls run"])
    assert lines["calls run"].endswith("Odd: repr failed with ZeroDivisionError>")


class Attribute:
    """Raises when it is read or set."""

    def __get__(self, *_: Any) -> Any:
        raise ZeroDivisionError

    def __set__(self, *_: Any) -> None:
        raise ZeroDivisionError


ODD_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "exceptions is no list": {"exceptions": 5},
    "exceptions is a list of texts": {"exceptions": ["text"]},
    **{
        f"{name} raises": {name: Attribute()}
        for name in ("exceptions", "__cause__", "__context__", "__traceback__", "__notes__", "of_a_cell_body")
    },
    "each attribute raises": {"__getattr__": lambda self, name: 1 / 0},
}


@pytest.mark.parametrize("kind", ODD_EXCEPTIONS)
@pytest.mark.parametrize("bases", [(Exception,), (ExceptionGroup,)])
def test_the_frames_of_an_odd_exception_can_be_tidied(kind: str, bases: tuple[type, ...]) -> None:
    exc: Any = type("Odd", bases, ODD_EXCEPTIONS[kind])("several", [ValueError("one")])
    group = ExceptionGroup("with it", [exc, ValueError("two")])
    _tidy_groups(group)  # none of them was raised: they have no traceback
    for one in (exc, group):
        try:
            raise one
        except Exception:  # noqa: BLE001
            _tidy_groups(group)


# --- in a kernel: one of each view -----------------------------------------------------------------------------------

PRELUDE = r"""
import asyncio, sys, threading, time
from ipyportal import map, run, submit, set_route
from ipyportal.concurrency import Call, EventLoopThread, Portal, get_worker_thread
hostile = "<script>\"'&\n\x1b[31m\u202e\ud800" + "x" * 1000

class Hostile:
    def __repr__(self): return hostile

class HostileError(Exception):
    def __str__(self): return hostile

class Nameless(Portal):
    name = property(lambda self: 1 / 0)
    def submit(self, call):
        self._claim(call)
        threading.Thread(target=call.run).start()
        return call
    def __repr__(self): raise ZeroDivisionError
"""


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    assert live_kernel.execute(PRELUDE).error is None
    return live_kernel


def shown_by(kernel: Kernel, code: str) -> dict[str, str]:
    """What a cell shows as its value, which must be harmless."""
    reply = kernel.execute(code, timeout=10)
    assert reply.error is None, reply.error.traceback
    shown = [m["content"]["data"] for m in reply.messages if m["msg_type"] in ("execute_result", "display_data")]
    data: dict[str, str] = shown[0]  # a call that runs has a button, too
    assert all(text.replace("\n", "").isprintable() for text in data.values())
    assert "<script" not in data.get("text/html", "")
    return data


@pytest.mark.parametrize("body", ["Hostile()", "[Hostile()]", "raise HostileError", "raise KeyError(Hostile())"])
def test_a_card_of_a_hostile_call_is_kept_up_to_date(shared: Kernel, body: str) -> None:
    pending = shared.execute_async(f"%%background job --on thread\n{body}")
    assert pending.reply(10).error is None

    def cards() -> list[str]:
        found = [
            m["content"]["data"] for one in shared.requests() for m in list(one.messages) if "display" in m["msg_type"]
        ]
        return [data["text/html"] for data in found if "job" in data.get("text/html", "")]

    shared.wait_for(lambda: any(state in cards()[-1] for state in ("finished", "failed")), 10)
    assert all(card.isprintable() and "<script" not in card for card in cards())
    shown_by(shared, "job")


def test_a_card_of_a_portal_without_a_name_is_kept_up_to_date(shared: Kernel) -> None:
    shared.value("nameless = Nameless()\nNone")
    pending = shared.execute_async("%%background job --on nameless\n5")
    assert pending.reply(10).error is None
    assert shared.value("job.result()") == 5
    assert "on Nameless" in shown_by(shared, "job")["text/plain"]
    assert "Nameless" in shown_by(shared, "%calls")["text/plain"]


def test_calls_of_hostile_names_are_listed_printed_and_cancelled(shared: Kernel) -> None:
    shared.value("job = submit(asyncio.sleep, 60, on=EventLoopThread(name=hostile))\njob.name = hostile\nNone")
    shared.value("while not job.running(): time.sleep(0.001)")
    reply = shared.execute("print(job)\njob")
    assert reply.stdout.startswith("<Call <script>\"'& \\x1b[31m\\u202e\\ud800xxx")
    shown_by(shared, "job")
    listed = shown_by(shared, "%calls")["text/plain"]
    name = shared.value("job.name")
    assert re.search(rf"^{re.escape(name)}  running", listed, re.MULTILINE)
    assert shared.execute(f"%calls cancel {name}").stdout == "cancelled 1\n"
    error = shared.execute("job.result()").error
    assert error is not None
    assert error.ename == "CancelledError"
    assert r"\ud800" in error.evalue


def test_portal_shows_a_hostile_route_and_a_hostile_thread(shared: Kernel) -> None:
    shared.value("run(int, on=get_worker_thread(hostile))")
    shared.value("set_route(Nameless())")
    try:
        text = shown_by(shared, "%portal")["text/plain"]
    finally:
        shared.value("set_route(None)")
    assert "Nameless: repr failed with ZeroDivisionError" in text
    assert r"ipyportal-<script>" in text


@pytest.mark.parametrize(
    "attributes",
    ["exceptions = 5", "exceptions = ['text']", "exceptions = property(lambda self: 1 / 0)", "of_a_cell_body = True"],
)
def test_an_odd_exception_of_a_cell_is_shown(shared: Kernel, attributes: str) -> None:
    shared.value(f"class Odd(Exception):\n    {attributes}\nNone")
    for way in ("raise Odd('the text')", "%%thread\nraise Odd('the text')"):
        error = shared.execute(way, timeout=10).error
        assert error is not None
        assert (error.ename, error.evalue) == ("Odd", "the text")


@pytest.mark.parametrize("way", ["", "%%await\n", "%%thread\n"])
def test_an_exception_group_of_what_was_never_raised_is_shown(shared: Kernel, way: str) -> None:
    error = shared.execute(f"{way}raise ExceptionGroup('several', [ValueError('one')])", timeout=10).error
    assert error is not None
    assert error.ename == "ExceptionGroup"


def test_an_item_of_map_whose_repr_fails_keeps_its_error(shared: Kernel) -> None:
    shared.value("""
        class Meta(type):
            __name__ = property(lambda cls: 1 / 0)
        class Item(metaclass=Meta):
            def __repr__(self): raise ZeroDivisionError
        def fail(*items): raise LookupError("not here")
        None
    """)
    error = shared.execute("map(fail, [Item()], [Hostile()], [b'x' * 10**6])", timeout=10).error
    assert error is not None
    assert (error.ename, error.evalue) == ("LookupError", "not here")
    assert len(error.traceback) < 10_000
