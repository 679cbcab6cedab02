"""``await`` in ``%time``, ``%timeit``, ``%prun`` and ``%%capture``, where IPython has none.

In front of IPython's magics stand ours. Code without ``await`` goes to IPython's as it is. In code with it,
``await x`` is written as a call that waits for x in synchronous code, which every magic can run; the body of a
``%%time``, ``%%prun`` or ``%%capture`` cell becomes one such call, so that its own lines show in tracebacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyportal.notebook.cells import Body, contains_await, without_await
from ipyportal.sync import run

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["AwaitInMagics"]

_RUN = "__ipyportal_run__"
_BODY = "__ipyportal_body__"


class AwaitInMagics:
    """The magics put in front of IPython's, and their taking away."""

    NAMES = ("time", "timeit", "prun", "capture")

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._originals: dict[tuple[str, str], Any] = {}

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

    def _with_names(self, magic: Callable[[], Any], **names: Any) -> Any:
        """Call a magic while the user's namespace has `names`, which are not there before or after."""
        namespace = self._shell.user_ns
        namespace.update(names)
        try:
            return magic()
        finally:
            for name in names:
                namespace.pop(name, None)

    def _line(self, name: str, original: Any) -> Any:
        # The same object has to serve as line and as cell magic: IPython's are one function, too.
        @functools.wraps(original)
        def magic(line: str = "", cell: str | None = None, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if cell is not None:
                return self._run_cell(name, functools.partial(original, **kwargs), line, cell)
            options, code = _split(line)
            if not contains_await(code):
                return original(line, **kwargs)
            rewritten = without_await(code, _RUN).replace("\n", "; ")
            return self._with_names(lambda: original(options + rewritten, **kwargs), **{_RUN: run})

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
            options, setup = _split(line)
            if not contains_await(code) and not contains_await(setup):
                return original(line, cell)
            rewritten = options + (without_await(setup, _RUN).replace("\n", "; ") if setup.strip() else "")
            body = without_await(code, _RUN) if contains_await(code) else code
            return self._with_names(lambda: original(rewritten, body), **{_RUN: run})
        if not contains_await(code):
            return original(line, cell)
        compiled = Body(self._shell, cell)

        def body_of_the_cell() -> Any:
            __tracebackhide__ = True
            return run(compiled.run)

        return self._with_names(lambda: original(line, f"{_BODY}()"), **{_BODY: body_of_the_cell})


def _split(line: str) -> tuple[str, str]:
    """A magic's options, and the code after them: the longest rest of the line that is Python with await."""
    start = 0
    while start < len(line):
        rest = line[start:]
        if contains_await(rest):
            return line[:start], rest
        following = rest.find(" ", 1)
        if following < 0 or not (rest.startswith("-") or start):
            break
        start += following
        start += len(line[start:]) - len(line[start:].lstrip())
    return line, ""
