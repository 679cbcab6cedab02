"""What somebody may give things for names, reprs and texts, and what it shall be shown as."""

from __future__ import annotations

import array
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, NoReturn

from hypothesis import strategies as st

from ipyportal.concurrency import Call, Portal
from ipyportal.concurrency.labels import LONGEST

anything = st.text(st.characters(codec=None), max_size=300)  # lone surrogates, too

HOSTILE_TEXTS = [
    "",
    " \t ",
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "]]><!-- --><![CDATA[",
    "two\nlines\r\nand\u2028a\x85third",
    "\x1b[31mred\x1b]0;title\x07",
    "left \u202e thgir \u2066 \u200f",
    "lone \ud800 and \udc80",
    "nul \0 bell \a back \b\b\b return \r",
    "&amp;lt; {x} $HOME %s \\ ' \"",
    "e" + "\u0301" * 500,
    "x" * 10**6,
    "\n" * 10**6 + "x",
    "\ud800" * 10**6,
]


class Text(str):
    """A str whose methods are somebody's."""

    def no(self, *_: Any) -> NoReturn:
        raise ZeroDivisionError

    __str__ = __repr__ = __len__ = __getitem__ = __iter__ = __format__ = __contains__ = no  # type: ignore[assignment]
    replace = splitlines = isprintable = no  # type: ignore[assignment]


class Meta(type):
    """Has attributes of its own for what every type has."""

    __name__ = __doc__ = property(lambda cls: 1 / 0)  # type: ignore[assignment]

    def __repr__(cls) -> NoReturn:
        raise ZeroDivisionError


class NoName(metaclass=Meta):
    pass


class Place(Portal):
    """A portal whose name is a function's result."""

    def __init__(self, name: Any) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name()  # type: ignore[no-any-return]

    def submit(self, call: Call[Any]) -> Call[Any]:
        self._claim(call)
        call.run()
        return call


class MyList(list[int]):
    pass


def large() -> dict[str, Any]:
    recursive: list[Any] = [1]
    recursive.append(recursive)
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    many = range(10**5)
    return {
        "bytes": b"x" * 10**7,
        "bytearray": bytearray(10**7),
        "str": "x" * 10**7,
        "list": [0] * 10**6,
        "list of large": [b"x" * 10**7] * 100,
        "tuple": (0,) * 10**6,
        "dict": dict.fromkeys(many),
        "set": set(many),
        "frozenset": frozenset(many),
        "deque": deque(many),
        "array": array.array("b", bytes(10**6)),
        "subclass": MyList(many),
        "ordered dict": OrderedDict.fromkeys(many),
        "counter": Counter(many),
        "defaultdict": defaultdict(list, dict.fromkeys(many)),
        "keys": dict.fromkeys(many).keys(),
        "values": dict.fromkeys(many).values(),
        "items": dict.fromkeys(many).items(),
        "int": 1 << 10**6,
        "negative int": -(1 << 10**6),
        "recursive": recursive,
        "deep": deep,
        "nested": [[[[[["abc"] * 6] * 6] * 6] * 6] * 6] * 6,
    }


def raising(exc: BaseException) -> Any:
    class Raising:
        def __repr__(self) -> str:
            raise exc

    return Raising()


class Recursing:
    def __repr__(self) -> str:
        return repr(self)


class NoText:
    def __repr__(self) -> Any:
        return 5


class OddText:
    def __repr__(self) -> str:
        return Text("odd\n\ud800")


class Class:
    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise ValueError


class BadLen(list[int]):
    def __len__(self) -> int:
        raise ValueError


class Endless(list[int]):
    def __iter__(self) -> Any:
        while True:
            yield 1


class ReprOfMeta(type):
    def __getattribute__(cls, name: str) -> NoReturn:
        raise ZeroDivisionError


class Untouchable(metaclass=ReprOfMeta):
    pass


class RaisesOddly:
    def __repr__(self) -> str:
        raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0, "__repr__": lambda self: 1 / 0})


def hostile_values() -> dict[str, Any]:
    """Made in the test: pytest looks at what a module holds."""
    exceptions = (
        ValueError("no"),
        SystemExit("no"),
        GeneratorExit(),
        BaseException("x"),
        RecursionError(),
        MemoryError(),
    )
    return {
        **{f"raises {type(exc).__name__}": raising(exc) for exc in exceptions},
        "recurses": Recursing(),
        "gives no text": NoText(),
        "gives an odd text": OddText(),
        "is an odd text": Text("odd"),
        "class": Class(),
        "name of its type": NoName(),
        "type": NoName,
        "length": BadLen([1]),
        "endless": Endless([1]),
        "metaclass": Untouchable(),
        "metaclass's type": Untouchable,
        "raises what raises": RaisesOddly(),
        "name with HTML": type("<b>", (), {})(),
    }


def harmless(text: str) -> bool:
    """Whether it is short, printable, and can be sent."""
    return type(text) is str and len(text) <= LONGEST and text.isprintable() and text.encode() is not None
