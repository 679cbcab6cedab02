"""What is the user's, in a line of text: a name, a value. Messages and views show it like this, whatever it raises."""

from __future__ import annotations

import array
import asyncio
import reprlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

__all__ = [
    "LONGEST",
    "one_line",
    "place_name",
    "sendable",
    "short_repr",
    "show_unquoted",
    "shown_name",
    "type_name",
]

LONGEST = 200
"""Characters of a name, a value or a message that are shown."""

_BEGINNING = 10 * LONGEST  # of a text that is looked at: most of it may be white space


def one_line(text: str) -> str:
    """`text` on one line, cut, and with what cannot be printed escaped as in a `repr`.

    So it can be sent to a frontend, which takes no lone surrogates, and it does nothing where it is shown: it moves no
    cursor, colours nothing, and does not turn around the text beside it.

    Raises:
        TypeError: It is no str.
    """
    text = str.__str__(text)  # methods of a subclass may do anything
    if len(text) <= LONGEST and text.isprintable():
        return text
    lines = text[:_BEGINNING].splitlines()
    shown = "".join(map(_printable, " ".join(line.strip() for line in lines)))
    return shown if len(shown) <= LONGEST and len(text) <= _BEGINNING else shown[: LONGEST - 1] + "…"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def sendable(text: str) -> str:
    """`text` with lone surrogates escaped, which no stream and no frontend takes: one would hold up all that follow."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown_name(name: str) -> str:
    """A qualified name as messages and views show it."""
    return one_line(str.replace(name, "<locals>.", ""))


def type_name(thing: object) -> str:
    """The qualified name of a thing's type, also of one whose metaclass has an attribute of its own by that name."""
    return shown_name(_qualname_of(type(thing)))


_qualname_of: Callable[[type], str] = vars(type)["__qualname__"].__get__


def place_name(portal: Any) -> str:
    """What messages call a portal, also one of the user's whose name raises or is no text."""
    try:
        return one_line(portal.name)
    except Exception:  # noqa: BLE001 - somebody's property
        return type_name(portal)


def short_repr(value: object) -> str:
    """The `repr` of `value` on one line, cut. Of what is built in, however large, no more than that is made.

    Raises:
        KeyboardInterrupt, asyncio.CancelledError: Raised in somebody's `__repr__`: it is who asked for it that is to
            end. Nothing else that a `__repr__` raises comes out.
    """
    return one_line(_ShortRepr().repr(value))


class _Unquoted(str):
    __slots__ = ()
    __repr__ = str.__str__


def show_unquoted(things: Iterable[Any]) -> None:
    """Have signatures show annotations without quotes: those of functions, and of what is defined in classes.

    Here annotations are not evaluated, and `inspect` shows them as what they are: texts.
    """
    for thing in things:
        kinds = (thing if isinstance(thing, type) else type(thing)).__mro__
        ours = [kind for kind in kinds if kind.__module__.startswith("ipyportal")]
        for function in [thing, *(value for kind in ours for value in vars(kind).values())]:
            while hasattr(function, "__wrapped__") or hasattr(function, "__func__"):
                function = getattr(function, "__wrapped__", None) or function.__func__
            # On PyPy functions of the interpreter's own are of this type, too, and cannot be changed.
            if isinstance(function, types.FunctionType) and str(function.__module__).startswith("ipyportal"):
                quoted = function.__annotations__
                function.__annotations__ = {name: _Unquoted(text) for name, text in quoted.items()}


class _ShortRepr(reprlib.Repr):
    """The repr of one value. `reprlib` makes all of that of bytes, sorts dicts, and goes by the names of types."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self._left = LONGEST  # parts that may yet be shown: each has one character or more

    def repr1(self, x: Any, level: int) -> str:
        self._left -= 1
        if self._left < 0:
            return "..."
        try:
            own = type.__getattribute__(type(x), "__repr__")
            # A subclass that has inherited its repr is shown as what it is a subclass of.
            show = next((show for kind, show in _SHOW if own is kind.__repr__), _ShortRepr._cut)
            return show(self, x, level)
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException as exc:  # noqa: BLE001 - whatever somebody's code raises
            return f"<{type_name(x)}: repr failed with {type_name(exc)}>"

    def _cut(self, x: Any, level: int) -> str:
        text = str.__str__(repr(x))
        half = self.maxother // 2
        return text if len(text) <= self.maxother else f"{text[: half - 2]}...{text[1 - half :]}"

    def repr_int(self, x: int, level: int) -> str:
        bits = int.bit_length(x)
        return super().repr_int(x, level) if bits < 10_000 else f"<int of {bits} bits>"  # Python may refuse the digits

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        first = list(islice(dict.items(x), self.maxdict)) if level > 0 else []
        pieces = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in first]
        if len(pieces) < dict.__len__(x):
            pieces.append("...")
        return f"{{{', '.join(pieces)}}}"

    def _set(self, x: Any, level: int) -> str:
        if len(x) > LONGEST:  # not sorted, which takes long
            x = type(x)(islice(x, LONGEST))
        return self.repr_set(x, level) if isinstance(x, set) else self.repr_frozenset(x, level)

    def _if_small(self, x: Any, level: int) -> str:
        return self._cut(x, level) if len(x) <= LONGEST else f"<{type_name(x)} of {len(x)} items>"


_DICT: dict[str, str] = {}
_SHOW: list[tuple[type, Callable[[Any, Any, int], str]]] = [
    *((kind, _ShortRepr.repr_str) for kind in (str, bytes, bytearray)),
    (int, _ShortRepr.repr_int),
    (list, _ShortRepr.repr_list),
    (tuple, _ShortRepr.repr_tuple),
    (dict, _ShortRepr.repr_dict),
    (set, _ShortRepr._set),
    (frozenset, _ShortRepr._set),
    (deque, _ShortRepr.repr_deque),
    (array.array, _ShortRepr.repr_array),
    *((kind, _ShortRepr._if_small) for kind in (OrderedDict, defaultdict, Counter)),
    *((type(view), _ShortRepr._if_small) for view in (_DICT.keys(), _DICT.values(), _DICT.items())),
]
