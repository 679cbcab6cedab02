"""What IPython shows of an exception: the user's frames.

Frames of ours that lie between theirs have ``__tracebackhide__``, which IPython leaves out itself. Three things it does
not: it never hides the last frame, it shows where a body that does not compile was given to `compile`, and it leaves
exception groups to the standard library's `traceback`, which hides nothing.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ipyportal.concurrency.pyodide import IN_PYODIDE
from ipyportal.concurrency.reporting import add_note, traceback_of
from ipyportal.notebook.patches import replace
from ipyportal.patching import patched

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["add_remedy", "in_kernel", "show_users_frames"]


def show_users_frames(shell: InteractiveShell) -> Callable[[], object]:
    """Have `shell` show the user's frames only, but with ``%xmode verbose``; return what undoes that."""
    show = shell.showtraceback

    @functools.wraps(show)
    def showtraceback(exc_tuple: Any = None, *args: Any, **kwargs: Any) -> Any:
        exc = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
        if isinstance(exc, SyntaxError) and getattr(exc, "of_a_cell_body", False):
            kwargs["running_compiled_code"] = False  # nothing ran: IPython then shows only where the error is
        if exc is None:
            return show(exc_tuple, *args, **kwargs)
        add_remedy(exc)
        verbose = shell.InteractiveTB.mode == "Verbose"
        if not verbose:
            _tidy_groups(exc)
        with nullcontext() if verbose and not isinstance(exc, KeyboardInterrupt) else _ending_at_users_line(exc):
            return show(exc_tuple, *args, **kwargs)

    return replace(shell, "showtraceback", showtraceback)


# What libraries say that refuse to run where a loop does, and what helps: the first is asyncio's own.
_REFUSALS = (
    "cannot be called from a running event loop",
    "event loop is already running",
    "Cannot run the event loop while another loop is running",
)
# And of those that the patch does not help: they look for a loop themselves.
_SYNC_ONLY = (
    "Sync API inside the asyncio loop",  # Playwright
    "You cannot call this from an async context",  # Django
    "Cannot use a synchronous streaming method from within an async context",  # pydantic-ai
    "cannot be called when an event loop is already running",  # openai-agents
    "if an asyncio loop is running",  # gql
    "Already running asyncio in this thread",  # anyio.run
)
_REMEDY = (
    "ipyportal: put %%thread at the top of the cell{patch}. In your own code, type run(x) in place of asyncio.run(x) "
    "or loop.run_until_complete(x)"
)
_REMEDY_IN_PAGE = "ipyportal: in a browser, type run(x) in place of Runner().run(x)"
_REMEDY_INPUT = (
    "ipyportal: input() can ask while a cell runs, and none did. Ask in the cell, before the work begins, or by a "
    "widget"
)
_REMEDY_SYNC = (
    "ipyportal: put %%thread at the top of the cell: it runs where no event loop does. In a function, type "
    'run(fn, *args, on="thread") in place of fn(*args)'
)


def add_remedy(exc: BaseException) -> None:
    """Say with an error that comes of where the code runs what to type: a library refuses to run where a loop does."""
    try:
        text, notes = str(exc), list(getattr(exc, "__notes__", ()))
    except Exception:  # noqa: BLE001 - somebody's __str__
        return
    if any(str(note).startswith("ipyportal: ") for note in notes):
        return  # it has said what is the matter
    if IN_PYODIDE:
        if "cannot be called from a running event loop" in text:
            add_note(exc, _REMEDY_IN_PAGE)
    elif any(part in text for part in _SYNC_ONLY):
        add_note(exc, _REMEDY_SYNC)
    elif type(exc) is EOFError and text == "EOF when reading a line" and in_kernel():
        add_note(exc, _REMEDY_INPUT)
    elif isinstance(exc, Exception) and any(part in text for part in _REFUSALS):
        add_note(exc, _REMEDY.format(patch="" if patched() else ", or type %portal patch on"))


def in_kernel() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _is_ours(traceback: TracebackType) -> bool:
    return str(traceback.tb_frame.f_globals.get("__name__")).startswith("ipyportal.")


@contextmanager
def _ending_at_users_line(exc: BaseException) -> Iterator[None]:
    """Leave out the frames at the end that are ipyportal's, if there are others, for as long as `exc` is shown.

    Of what led to it, too. And the cancel by which a time-out of ours has come about: its traceback would stand above
    that of the time-out.
    """
    cut: dict[int, tuple[TracebackType, TracebackType]] = {}
    for one in _with_what_led_to(exc):
        last = _last_of_others(traceback_of(one))
        if last is not None and last.tb_next is not None:
            cut[id(one)] = last, last.tb_next
            last.tb_next = None
    cause = _cause_of(exc)
    is_ours = id(exc) in cut and isinstance(cause, asyncio.CancelledError)
    if is_ours:
        _set_cause(exc, None)
    try:
        yield
    finally:
        for last, rest in cut.values():
            last.tb_next = rest  # for %debug, and for whoever shows it again
        if is_ours:
            _set_cause(exc, cause)


def _last_of_others(traceback: TracebackType | None) -> TracebackType | None:
    """The last frame that is not ipyportal's."""
    last = None
    while traceback is not None:
        if not _is_ours(traceback):
            last = traceback
        traceback = traceback.tb_next
    return last


def _with_what_led_to(exc: BaseException) -> list[BaseException]:
    """An exception, its causes and contexts, and what groups among them hold."""
    seen: dict[int, BaseException] = {}
    todo: list[BaseException | None] = [exc]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen[id(one)] = one
            todo += [_cause_of(one), _context_of(one)]
            if isinstance(one, BaseExceptionGroup):  # others may have anything by that name
                todo += _exceptions_of(one)
    return list(seen.values())


def _tidy_groups(exc: BaseException) -> None:
    """Take our frames out of the tracebacks of an exception group, of what it holds and of what led to it."""
    exceptions = _with_what_led_to(exc)
    if any(isinstance(one, BaseExceptionGroup) for one in exceptions):
        for one in exceptions:
            BaseException.with_traceback(one, _without_ours(traceback_of(one)))


# Also of classes that have attributes of their own by these names, and of those whose attributes cannot be set.
_cause_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__cause__"].__get__
_set_cause: Callable[[BaseException, BaseException | None], None] = vars(BaseException)["__cause__"].__set__
_context_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__context__"].__get__
_exceptions_of: Callable[[BaseException], tuple[BaseException, ...]] = vars(BaseExceptionGroup)["exceptions"].__get__


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    kept = []
    while traceback is not None:
        if not _is_ours(traceback):
            kept.append(traceback)
        traceback = traceback.tb_next
    for before, after in zip(kept, [*kept[1:], None], strict=False):
        before.tb_next = after
    return kept[0] if kept else None
