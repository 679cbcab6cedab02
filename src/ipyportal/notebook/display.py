"""How calls look: a line of text, a card in the notebook that follows a running call, a table."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from html import escape
from types import TracebackType
from typing import Any

from ipyportal.concurrency.calls import Call, State
from ipyportal.concurrency.calls.tasks import call_of
from ipyportal.concurrency.cancellation.clock import Timer, clock
from ipyportal.concurrency.labels import one_line, place_name, sendable, short_repr, type_name
from ipyportal.concurrency.portals.loops import EventLoopThread
from ipyportal.concurrency.reporting import traceback_of
from ipyportal.notebook.buttons import cancel_buttons
from ipyportal.notebook.history import History, Launched
from ipyportal.notebook.html import frame, table
from ipyportal.notebook.kernel import on_output_thread
from ipyportal.notebook.tracebacks import add_remedy, in_kernel

__all__ = ["CallView", "CallsTable", "tell_ended"]

INTERVAL = 1.0
"""Seconds between two looks at a call whose card is shown, in its first minute; see `_pause`."""

_SOON = 0.1  # seconds until the first look, by which it has begun

_COLOURS = {
    State.PENDING: "var(--jp-ui-font-color2, #666)",
    State.RUNNING: "var(--jp-brand-color1, #1976d2)",
    State.FINISHED: "var(--jp-success-color1, #2e7d32)",
    State.FAILED: "var(--jp-error-color1, #c62828)",
    State.CANCELLED: "var(--jp-ui-font-color2, #666)",
    State.TIMEDOUT: "var(--jp-error-color1, #c62828)",
}
_SIGNS = {
    State.PENDING: "…",
    State.RUNNING: "▶",
    State.FINISHED: "✓",
    State.FAILED: "✗",
    State.CANCELLED: "■",
    State.TIMEDOUT: "✗",
}


_NOTHING = {"text/plain": "", "text/html": ""}  # which takes no room

_TIMES = " \N{MULTIPLICATION SIGN} "


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02} min"


def _outcome(call: Call[Any]) -> str:
    """What came of a call, in a few words: the result's type and short repr, or the exception's last line."""
    if not call.done():
        return ""
    value = call._value
    if call.state is State.FINISHED:
        if value is None:
            return ""
        kind = _kind(value)
        return kind if _TIMES in kind else one_line(f"{kind}: {short_repr(value)}")  # a table has many lines
    if call.state is State.CANCELLED and value.args == (f"{call.name} was cancelled",):
        return ""  # its state says so
    text = _last_line(value)
    return one_line(f"{_kind(value)}: {text}") if text else _kind(value)


def _kind(value: object) -> str:
    """The type of a value, and its shape, as of a DataFrame."""
    kind = type_name(value).rpartition(".")[2]
    try:
        shape = getattr(value, "shape", None)
        sizes = [int.__index__(size) for size in shape] if type(shape) is tuple else []
    except Exception:  # noqa: BLE001 - somebody's property
        return kind
    return f"{kind} {_TIMES.join(map(str, sizes))}" if sizes else kind


def _last_line(exc: BaseException) -> str:
    try:
        return str.__str__(str(exc)).strip().rpartition("\n")[2]
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise  # as `short_repr` does
    except BaseException:  # noqa: BLE001 - somebody's __str__
        return ""


def _pause(elapsed: float) -> float:
    """Seconds until the next look at a call that has run for so many.

    A server keeps what its frontend does not take, all night if need be: the number of updates grows with the logarithm
    of the time, to some 500 in a day.
    """
    return max(INTERVAL, elapsed / 60)


class _Shown:
    """Something that is displayed in the cell that is running, and can change."""

    def __init__(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        self._handle: Any = display(bundle, raw=True, display_id=True)
        self._lock = threading.Lock()
        self._next: tuple[dict[str, Any], dict[str, Any]] | None = None

    def update(self, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Show something else. From any thread, which does not wait until it is sent.

        Where output is held up, what has not been sent is replaced: there is never more than one to send.
        """
        with self._lock:
            to_be_sent = self._next is not None
            self._next = bundle, metadata or {}
        if not to_be_sent:
            on_output_thread(self._send)

    def _send(self) -> None:
        with self._lock:
            following, self._next = self._next, None
        if following is not None:
            bundle, metadata = following
            self._handle.update(bundle, metadata=metadata, raw=True)


class CallView:
    """The views of one call. What comes from the user is a short printable line by `labels`, and escaped in HTML."""

    def __init__(self, call: Call[Any], launched: Launched | None) -> None:
        self._call = call
        self._launched = launched
        self._shown: _Shown | None = None
        self._below: _Shown | None = None
        self._place: str | None = None
        self._note = ""

    def _facts(self, outcome: str) -> list[str]:
        call = self._call
        facts = []
        if self._place is None and call.portal is not None:
            self._place = place_name(call.portal)
        if self._place is not None:
            facts.append(f"on {self._place}")
        if self._launched is not None:
            elapsed = _seconds(self._launched.elapsed)
            # What is saved while it runs stays true when its kernel is gone.
            facts.append(elapsed if call.done() else f"{elapsed} at {time.strftime('%H:%M:%S')}")
        return [*facts, *filter(None, (outcome, self._note))]

    def text(self) -> str:
        return self._text(self._facts(_outcome(self._call)))

    def html(self) -> str:
        return self._html(self._facts(_outcome(self._call)))

    def _text(self, facts: list[str]) -> str:
        call = self._call
        return " · ".join([f"{_SIGNS[call.state]} {call.name}: {call.state.value}", *facts])

    def _html(self, facts: list[str]) -> str:
        call = self._call
        colour = _COLOURS[call.state]
        spans = "".join(f"<span> · {escape(fact)}</span>" for fact in facts)
        # The colour is the sign's alone: as that of a word some would be hard to read on their background.
        said = (
            '<span style="flex: 1; overflow-wrap: anywhere">'
            f'<code style="background: none; color: inherit; padding: 0">{escape(call.name)}</code> '
            f'<strong><span style="color: {colour}">{_SIGNS[call.state]}</span> {call.state.value}</strong>'
            f"{spans}</span>"
        )
        return frame(
            said + cancel_buttons.html(call, "to cancel it: "),
            f"border-left: 4px solid {colour}; padding: 4px 10px; display: flex; flex-wrap: wrap; "
            "align-items: baseline; gap: 0 1em",
            # A screen reader is told how the call ended, and not each second how long it has run.
            f'role="status" aria-live="{"polite" if call.done() else "off"}" ',
        )

    def bundle(self, *, over: bool = True) -> dict[str, str]:
        """What the card shows. Unless the call is `over`, that runs no code of the user."""
        try:
            outcome = _outcome(self._call) if over else ""
        except BaseException:  # noqa: BLE001 - the stop button in somebody's slow repr: the state is shown all the same
            outcome = ""
        facts = self._facts(outcome)
        return {"text/plain": self._text(facts), "text/html": self._html(facts)}

    def show(self, *, value: bool = False) -> None:
        """Show a card in the cell that is running, and keep a place below it for the call's value."""
        if in_kernel():
            cancel_buttons.listen()
        self._shown = _Shown(self.bundle())
        if value and in_kernel():
            self._below = _Shown(_NOTHING)

    def show_value(self, value: Any) -> None:
        """Show below the card what the call has given, as a cell shows its last value. In the call, or after it.

        It takes the place that was kept: a change of an earlier display reaches nbclient too, a new one does not.
        """
        from IPython import get_ipython

        shell: Any = get_ipython()
        if value is None or self._below is None:
            return
        bundle, metadata = shell.display_formatter.format(value)
        if bundle:  # or else it has shown itself
            bundle = {kind: sendable(data) if isinstance(data, str) else data for kind, data in bundle.items()}
            _last_word(self._below, bundle, metadata)

    def follow(self, launched: Launched | None) -> None:
        """Keep the card up to date until the call is over. What it raised is shown below, as that of a cell.

        A terminal, where nothing that was shown can change, gets one more line, at the end.
        """
        self._launched = launched
        shown = self._shown
        assert shown is not None
        context = contextvars.copy_context()  # which says where output goes
        heartbeat = _Heartbeat.of(self._call)
        timer: Timer | None = None
        lock = threading.Lock()

        def look() -> None:
            # On the clock's thread, and not on the loop: that may be what is blocked. It runs no code of the user, and
            # waits for none: `over` has the lock while it makes the repr of a result.
            if not lock.acquire(blocking=False):
                return
            try:
                if self._call.done():
                    return
                self._note = "" if heartbeat is None else heartbeat.look(self._call)
                if launched is not None:
                    launched.note = self._note
                _by_the_cell_that_runs(shown.update, self.bundle(over=False))
            finally:
                lock.release()
            again(_pause(0.0 if launched is None else launched.elapsed))

        def again(seconds: float) -> None:
            nonlocal timer
            timer = clock.remind(seconds, look)

        def over(_: object) -> None:
            # With the lock, so that the last word is not that it runs.
            with lock:
                self._note = ""
                if timer is not None:
                    clock.cancel(timer)
                bundle = self.bundle()
                _last_word(shown, bundle)
            cancel_buttons.over(self._call, bundle["text/html"])
            context.copy().run(_show_failure, self._call)

        if in_kernel():
            shown.update(self.bundle())
            again(_SOON)
        self._call.add_done_callback(over)


_ended: deque[tuple[_Shown, dict[str, Any], dict[str, Any] | None]] = deque(maxlen=200)
"""The last word of cards whose calls are over, which may have come when no cell ran."""


def _by_the_cell_that_runs(function: Callable[..., object], *args: Any) -> None:
    """Call `function` so that what it sends comes from the cell that runs now, or ran last.

    nbclient, which executes a notebook cell by cell, ignores what comes from an earlier cell. It does take a change of
    an earlier cell's display, if that comes from the cell that runs.
    """
    contextvars.Context().run(function, *args)


def _last_word(shown: _Shown, bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    _by_the_cell_that_runs(shown.update, bundle, metadata)
    if in_kernel():  # a terminal would show it twice
        _ended.append((shown, bundle, metadata))


def tell_ended(_: object = None) -> None:
    """Send once more what has become of calls. At the end of a cell, before it is told to be over."""
    with suppress(IndexError):  # that is the end; another shell's cell may take some, too
        while True:
            shown, bundle, metadata = _ended.popleft()
            shown.update(bundle, metadata)


class _Heartbeat:
    """Whether a loop thread gets to its callbacks, and if not, what keeps it from that."""

    def __init__(self, portal: EventLoopThread) -> None:
        self._portal = portal
        self._asked = self._answered = 0
        self._since = 0.0

    @classmethod
    def of(cls, call: Call[Any]) -> _Heartbeat | None:
        """That of the loop thread where `call` runs; None if it runs elsewhere. The loop is asked at once."""
        if not isinstance(call.portal, EventLoopThread):
            return None
        heartbeat = cls(call.portal)
        heartbeat._ask()
        return heartbeat

    def _ask(self) -> None:
        self._asked += 1
        self._since = time.monotonic()
        if self._portal.running():
            try:
                self._portal.loop.call_soon_threadsafe(self._answer, self._asked)
            except RuntimeError:
                pass  # it has just ended

    def _answer(self, asked: int) -> None:
        self._answered = asked

    def look(self, call: Call[Any]) -> str:
        """What to say of `call`, if the loop has not answered since the look before. From any thread."""
        if self._answered == self._asked or not self._portal.running():
            self._ask()
            return ""
        if time.monotonic() - self._since < INTERVAL:
            return ""  # it may be about to
        task = asyncio.current_task(self._portal.loop)
        blocker = None if task is None else call_of(task)
        if blocker is call:
            return (
                "it blocks the EventLoopThread, and all other calls there wait: code that does not await belongs in a "
                'thread, with --on thread or on="thread"'
            )
        return f"it waits: {'a task' if blocker is None else blocker.name} blocks the EventLoopThread"


def _show_failure(call: Call[Any]) -> None:
    """Print what a call has raised, as it is shown of a cell. From any thread."""
    from IPython import get_ipython

    call.timedout()  # the card says so: it need not be reported
    exc = call._failure()
    shell: Any = get_ipython()
    if exc is None or shell is None:
        return
    add_remedy(exc)
    try:
        part = _users_part(traceback_of(exc))
        lines = shell.InteractiveTB.structured_traceback(type(exc), exc, part, tb_offset=0)
        text = shell.InteractiveTB.stb2text(lines)
    except Exception:  # noqa: BLE001 - its __str__, or what the user has made of IPython's tracebacks
        text = f"{type_name(exc)}: {_last_line(exc)}"
    print(sendable(text), file=sys.stderr)  # noqa: T201 - where output of its cell goes


def _users_part(traceback: TracebackType | None) -> TracebackType | None:
    """Where a traceback comes to the user's code; IPython would count the frames before that."""
    part = traceback
    while part is not None and "__tracebackhide__" in part.tb_frame.f_locals:
        part = part.tb_next
    return part or traceback


class CallsTable:
    """What ``%calls`` shows. In a notebook it follows the calls that run."""

    HEADER = ("name", "state", "elapsed", "where", "cell")

    def __init__(self, calls: Iterable[Launched]) -> None:
        self._calls = list(calls)

    def _rows(self) -> list[tuple[str, ...]]:
        now = time.strftime("%H:%M:%S")
        return [
            (
                one.name,
                f"{one.state.value}, {one.note}" if one.note and one.ended is None else one.state.value,
                _seconds(one.elapsed) if one.ended is not None else f"{_seconds(one.elapsed)} at {now}",
                one.where,
                "" if one.cell is None else f"In [{one.cell}]",
            )
            for one in self._calls
        ]

    def __repr__(self) -> str:
        if not self._calls:
            return "no calls"
        rows = [self.HEADER, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEADER))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        if not self._calls:
            return frame("no calls", "padding: 4px 10px")
        rows = zip(self._rows(), map(self._button, self._calls), strict=True)
        return table(rows, self.HEADER)

    def _button(self, one: Launched) -> str:
        call = one.call()
        return "" if call is None else cancel_buttons.html(call)

    def _bundle(self) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _ipython_display_(self) -> None:
        running = [call for one in self._calls if one.ended is None and (call := one.call()) is not None]
        if not running or not in_kernel():
            raise NotImplementedError  # IPython then asks the methods above
        cancel_buttons.listen()
        shown = _Shown(self._bundle())
        for call in running:
            call.add_done_callback(lambda _: _last_word(shown, self._bundle()))


def register_formatters(shell: Any, history: History) -> Callable[[], None]:
    """Show a `Call` as a card where HTML is shown, as a line elsewhere; return what undoes that.

    In a notebook the card of one that is not over follows it.
    """
    undo: list[Callable[[], object]] = []

    def show_live(call: Call[Any]) -> None:
        if call.done() or not in_kernel():
            raise NotImplementedError  # IPython then asks the formatters below
        view = CallView(call, history.of(call))
        view.show()
        view.follow(history.of(call))

    def register(formatter: Any, show: Callable[..., Any]) -> None:
        before = formatter.for_type(Call, show)
        undo.append(lambda: formatter.pop(Call) if before is None else formatter.for_type(Call, before))

    formatters = shell.display_formatter.formatters
    register(shell.display_formatter.ipython_display_formatter, show_live)
    register(formatters["text/html"], lambda call: CallView(call, history.of(call)).html())
    register(formatters["text/plain"], lambda call, printer, _: printer.text(CallView(call, history.of(call)).text()))

    def undo_all() -> None:
        for put_back in undo:
            put_back()

    return undo_all
