"""``await`` in ``%time``, ``%timeit``, ``%prun`` and ``%%capture``, where IPython has none.

In front of IPython's magics stand ours. Code without ``await`` goes to IPython's as it is. In code with it,
``await x`` is written as a call that waits for x in synchronous code, which every magic can run; the body of a
``%%time``, ``%%prun`` or ``%%capture`` cell becomes one such call, so that its own lines show in tracebacks.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyportal.notebook.cells import Body, contains_await, without_await
from ipyportal.sync import run

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["AwaitInMagics"]


class AwaitInMagics:
    """The magics put in front of IPython's, and their taking away."""

    NAMES = ("time", "timeit", "prun", "capture")

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._originals: dict[tuple[str, str], Any] = {}
        self._numbers = itertools.count(1)

    @property
    def on(self) -> bool:
        """Whether our magics stand in front."""
        return bool(self._originals)

    def switch(self, on: bool) -> None:
        """Put our magics in front, or take them away. Twice is once."""
        table = self._shell.magics_manager.magics
        if not on:
            for (kind, name), original in self._originals.items():
                table[kind][name] = original
            self._originals.clear()
        elif not self._originals:
            for name in self.NAMES:
                self._shell.find_magic(name)  # newer IPythons import a magic when it is first looked up
                for kind, wrap in (("line", self._line), ("cell", self._cell)):
                    if (original := table[kind].get(name)) is not None:
                        self._originals[kind, name] = original
                        table[kind][name] = wrap(name, original)

    def _with_name(self, value: Any, magic: Callable[[str], Any]) -> Any:
        """Call a magic with a name that stands for `value` in the user's namespace, and is not there before or after.

        Each time another name: timed code may itself be timing, also in another thread.
        """
        __tracebackhide__ = True
        name = f"__ipyportal_{next(self._numbers)}__"
        self._shell.user_ns[name] = value
        try:
            return magic(name)
        finally:
            self._shell.user_ns.pop(name, None)

    def _line(self, name: str, original: Any) -> Any:
        # The same object has to serve as line and as cell magic: IPython's are one function, too.
        @functools.wraps(original)
        def magic(line: str = "", cell: str | None = None, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if cell is not None:
                return self._run_cell(name, functools.partial(original, **kwargs), line, cell)
            options, code = _split(name, line)
            code = self._shell.transform_cell(code)
            if not contains_await(code):
                return original(line, **kwargs)
            if kwargs.get("local_ns") is self._shell.user_ns:
                # As local variables %timeit would set them back at its end to what they were, also those that other
                # code has set while it waited.
                kwargs["local_ns"] = None

            def rewritten(run_it: str) -> Any:
                __tracebackhide__ = True
                text = without_await(code, run_it)
                if name == "timeit" and "\n" not in text:
                    return original(options + text, **kwargs)  # where it sees the caller's local variables
                return original(options, text, **kwargs)

            return self._with_name(run, rewritten)

        return magic

    def _cell(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def magic(line: str, cell: str | None = None, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if cell is None:
                return original(line, **kwargs)
            return self._run_cell(name, functools.partial(original, **kwargs), line, cell)

        return magic

    def _run_cell(self, name: str, original: Any, line: str, cell: str) -> Any:
        __tracebackhide__ = True
        code = self._shell.transform_cell(cell)
        if name == "timeit":
            # Its line is set-up code, whose variables the body sees: both are rewritten.
            options, setup = _split(name, line)
            if not contains_await(code) and not contains_await(setup):
                return original(line, cell)

            def rewritten(run_it: str) -> Any:
                __tracebackhide__ = True
                # The body starts in the cell's second line.
                body = without_await("\n" + code, run_it)
                return original(options + without_await(setup, run_it), body)

            return self._with_name(run, rewritten)
        if not contains_await(code):
            return original(line, cell)
        body = Body(self._shell, cell)

        def body_of_the_cell() -> Any:
            __tracebackhide__ = True
            return run(body.run)

        def call_it(body_it: str) -> Any:
            __tracebackhide__ = True
            return original(line, f"{body_it}()")

        return self._with_name(body_of_the_cell, call_it)


# The letters of those options that have a value.
_WITH_VALUE = {"time": "", "timeit": "nrpv", "prun": "DlsT"}


def _split(name: str, line: str) -> tuple[str, str]:
    """A magic's options, and the code after them."""
    letters = _WITH_VALUE[name]
    with_value = rf"-[a-zA-Z]*?[{letters}]\s*\S+|" if letters else ""
    match = re.match(rf"\s*(?:(?:{with_value}--?[a-zA-Z][\w-]*)(?:\s+|$))*", line)
    assert match is not None
    return line[: match.end()], line[match.end() :]
