"""What is the user's in a line of text: names, portals, values; whatever their code does."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import threading
import time
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipyportal.concurrency import Call, ExecutorPortal, WorkerThread, get_global_loop
from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.labels import LONGEST, one_line, place_name, short_repr, shown_name, type_name
from tests.hostile import (
    HOSTILE_TEXTS,
    MyList,
    NoName,
    Place,
    Recursing,
    Text,
    anything,
    harmless,
    hostile_values,
    large,
    raising,
)

from .helpers import PATIENCE

some = settings(max_examples=50, deadline=None, database=None)

# --- texts and names -------------------------------------------------------------------------------------------------


@some
@given(anything)
def test_any_text_is_one_short_printable_line(text: str) -> None:
    shown = one_line(text)
    assert harmless(shown)
    assert one_line(shown) == shown
    if len(text) <= LONGEST and text.isprintable():
        assert shown == text
    assert one_line(Text(text)) == shown


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_a_hostile_text_is_one_short_printable_line(text: str) -> None:
    began = time.monotonic()
    assert harmless(one_line(text))
    assert time.monotonic() - began < 0.5


def test_what_is_not_printable_is_shown_as_in_a_repr_and_lines_are_joined() -> None:
    assert one_line("a\x1b[1m\u202e\ud800\U000e0001") == r"a\x1b[1m\u202e\ud800\U000e0001"
    assert one_line("array([[1],\n       [2]])\n") == "array([[1], [2]])"
    assert one_line("x" * (LONGEST + 1)) == "x" * (LONGEST - 1) + "…"


def named(name: str) -> Any:
    def fn() -> None: ...

    fn.__qualname__ = name
    return fn


class Named:
    def __init__(self, name: Any) -> None:
        self.__qualname__ = name

    def __call__(self) -> None: ...


@some
@given(anything)
def test_the_name_of_a_call_is_harmless_whatever_it_was_set_to(text: str) -> None:
    given_name = Call.new(int)
    given_name.name = text
    assert given_name.name == shown_name(text)
    for one in (given_name, Call.new(named(text)), Call.new(named(Text(text))), Call.new(Named(text))):
        assert harmless(one.name)
        one.run()
        assert harmless(one.name)
        assert repr(one) == f"<Call {one.name} finished>"
        assert harmless(name_of(one))


@pytest.mark.parametrize("name", [5, b"name", NoName(), NoName, object(), ["x"]], ids=type_name)
def test_a_function_whose_name_is_no_text_goes_by_its_type(name: Any) -> None:
    call = Call.new(Named(name))
    assert call.name == "Named"
    call.run()
    assert repr(call) == "<Call Named finished>"


@pytest.mark.parametrize("name", [lambda: 1 / 0, lambda: 5, NoName, lambda: None], ids=type_name)
def test_a_portal_without_a_name_goes_by_its_type(name: Any) -> None:
    place = Place(name)
    assert place_name(place) == "Place"
    assert repr(place.submit(Call.new(int))) == "<Call int finished on Place>"


@some
@given(anything)
def test_the_name_of_a_portal_is_harmless(text: str) -> None:
    assert harmless(place_name(Place(lambda: text)))
    assert harmless(place_name(Place(lambda: Text(text))))
    assert harmless(repr(WorkerThread(name=text))[:LONGEST])
    executor = ThreadPoolExecutor()
    assert harmless(ExecutorPortal(executor, name=text).name)


def test_a_done_callback_that_fails_is_reported_also_where_the_portal_has_no_name(reported: list[Any]) -> None:
    # The report names the call and its portal: that must not keep the callbacks that follow from being called.
    told: list[str] = []
    call = Call.new(int)
    call.add_done_callback(lambda _: 1 / 0)
    call.add_done_callback(lambda _: told.append("second"))
    Place(lambda: 1 / 0).submit(call)
    assert told == ["second"]
    assert [report.err_msg for report in reported] == [
        "ipyportal: a done callback of <Call int finished on Place> failed"
    ]


def test_a_blocked_call_is_given_up_also_where_the_portal_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock's thread says where: with what the name raises it would end, and no deadline would hold any more.
    monkeypatch.setattr("ipyportal.concurrency.calls.execution.GRACE", 0.01)
    release = threading.Event()
    begun = threading.Event()

    class Elsewhere(Place):
        def submit(self, call: Call[Any]) -> Call[Any]:
            self._claim(call)
            self.thread = threading.Thread(target=call.run)
            self.thread.start()
            return call

    class Deaf:
        """Code that no request can reach, as if it were blocked in C."""

        def __call__(self) -> None:
            begun.set()
            while not release.is_set():
                try:
                    release.wait(PATIENCE)
                except BaseException:  # noqa: BLE001 - the cancel
                    pass

    place = Elsewhere(lambda: 1 / 0)
    call = place.submit(Call.new(Deaf()))
    try:
        assert begun.wait(PATIENCE)
        call.cancel()
        call._interrupt = type(call._interrupt).SENT  # as of code that has not noticed
        call._abandon()
        with pytest.raises(Exception, match=r"could not be interrupted: \S*\.Elsewhere is blocked"):
            call.result(PATIENCE)
    finally:
        release.set()
        place.thread.join()


# --- values ----------------------------------------------------------------------------------------------------------


Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Data:
    name: str
    numbers: list[int]


class Shown(list[int]):
    def __repr__(self) -> str:
        return "Shown!"


USUAL = [
    *(None, True, 5, -1.5, 1j, "text", b"bytes", bytearray(b"x"), ..., int, len, range(5), slice(1, 2)),
    *([], [1, "a", None], (), (1,), (1, 2), {}, {"b": 1, "a": [2]}, set(), {3, 1, 2}, frozenset(), frozenset({1})),
    *(deque([1, 2]), array.array("i", [1, 2]), array.array("i"), OrderedDict(a=1), Counter("aab"), {"k": 1}.keys()),
    *(defaultdict(list, a=[1]), UserDict(a=1), Point(1, 2), Data("x", [1, 2]), MyList([1, 2]), Shown([1])),
    *({1: 2}.items(), {1: 2}.values(), ValueError("no"), [[[[[1]]]]], {"a": {"b": {"c": (1, [2])}}}, 2**64),
    *("it's", 'both \' and "', "\n\t", "é漢字👍"),
]  # fmt: skip


@pytest.mark.parametrize("value", USUAL, ids=repr)
def test_a_usual_value_is_shown_as_its_repr(value: Any) -> None:
    assert short_repr(value) == repr(value)


containers = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5) | st.binary(max_size=5),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3) | st.tuples(some),
    max_leaves=6,
)


@settings(some, max_examples=25)
@given(containers)
def test_small_containers_are_shown_as_their_repr(value: Any) -> None:
    shown = short_repr(value)
    assert harmless(shown)
    if len(repr(value)) <= LONGEST:
        assert shown == repr(value)


class Watched:
    """Counts how often it is shown."""

    shown = 0

    def __repr__(self) -> str:
        Watched.shown += 1
        return "w"


def test_a_large_value_is_shown_by_its_beginning_and_nothing_of_its_size_is_made() -> None:
    import tracemalloc

    values = large()
    tracemalloc.start()
    try:
        for kind, value in values.items():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            shown = short_repr(value)
            assert harmless(shown), kind
            assert tracemalloc.get_traced_memory()[1] - before < 100_000, kind
    finally:
        tracemalloc.stop()
        while values["deep"]:
            values["deep"] = values["deep"][0]  # each by itself: the interpreter would recurse
    assert short_repr(b"x" * 999).startswith("b'xxxxxxx")
    assert short_repr(Counter(range(999))) == "<Counter of 999 items>"
    assert short_repr(1 << 10**5) == "<int of 100001 bits>"


def test_no_more_parts_of_a_container_are_shown_than_there_is_room_for() -> None:
    short_repr([[[[[[Watched()] * 6] * 6] * 6] * 6] * 6] * 6)
    assert Watched.shown <= LONGEST


@pytest.mark.parametrize("kind", hostile_values())
def test_a_hostile_value_is_shown_all_the_same(kind: str) -> None:
    value = hostile_values()[kind]
    for one in (value, [value], {"k": (value,)}):
        assert harmless(short_repr(one))
    assert harmless(type_name(value))


def test_a_repr_that_fails_is_said_to_and_the_parts_beside_it_are_shown() -> None:
    assert short_repr([1, raising(ValueError()), 2]).startswith("[1, <")
    assert short_repr([1, raising(ValueError()), 2]).endswith("Raising: repr failed with ValueError>, 2]")
    assert short_repr(Recursing()) == "<Recursing: repr failed with RecursionError>"
    assert short_repr(NoName()).startswith("<NoName: repr failed with") or "NoName object at" in short_repr(NoName())


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_who_is_to_end_while_a_value_is_shown_ends(exc: BaseException) -> None:
    with pytest.raises(type(exc)):
        short_repr([raising(exc)])


def test_a_call_of_odd_names_runs_and_its_errors_can_be_sent() -> None:
    call = Call.new(asyncio.sleep, 60)
    call.name = "lone \ud800\nline"
    call.set_timeout(0.01)
    get_global_loop().submit(call)
    error = call.exception(PATIENCE)
    assert str(error) == r"lone \ud800 line timed out after 0.01 s"
