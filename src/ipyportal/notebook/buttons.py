"""The cancel buttons of cards and tables: plain HTML, and one widget without a view, which hears the clicks.

A button that is a widget is a display of its own, and an error where its file is opened without its kernel.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from html import escape
from pathlib import Path
from typing import Any

from ipyportal.concurrency.calls import Call
from ipyportal.notebook.history import as_typed
from ipyportal.notebook.kernel import on_output_thread

__all__ = ["CancelButtons", "cancel_buttons"]

_BUTTON = (
    "font: inherit; font-size: 90%; white-space: nowrap; padding: 0 0.8em; margin: -1px 0; cursor: pointer; "
    "border-radius: 3px; color: var(--jp-ui-font-color1, inherit); background: var(--jp-layout-color2, #eee); "
    "border: 1px solid var(--jp-border-color1, #bbb)"
)
_TYPED = "color: var(--jp-ui-font-color2, #666); font-size: 90%"


class CancelButtons:
    """Those of this kernel. From any thread."""

    def __init__(self) -> None:
        self._mark = f"ipyportal-{os.urandom(16).hex()}"
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._values: weakref.WeakKeyDictionary[Call[Any], str] = weakref.WeakKeyDictionary()
        self._over: dict[str, str] = {}  # the last cards of calls that are over
        self._widget: Any = None

    def html(self, call: Call[Any], before: str = "") -> str:
        """What cancels `call`: the button where a click is heard, what to type elsewhere. Nothing if it is over.

        Args:
            call: Which.
            before: What is said before what to type.
        """
        if call.done():
            return ""
        typed = f"<code>{escape(f'%calls cancel {as_typed(call.name)}')}</code>"
        if self._widget is None:
            return f'<span style="{_TYPED}">{before}{typed}</span>'
        with self._lock:
            value = self._values.setdefault(call, str(next(self._numbers)))
        name = escape(call.name)
        return (
            f'<span class="{self._mark}-typed" style="{_TYPED}">{before}{typed}</span>'
            f'<button type="button" hidden class="{self._mark}" value="{value}" title="Cancel {name}" '
            f'aria-label="Cancel {name}" style="{_BUTTON}">Cancel</button>'
        )

    def listen(self) -> None:
        """Have the frontend hear clicks, if anywidget is installed. In a cell, before a button is shown."""
        if self._widget is not None and self._widget.comm is not None:
            return
        try:
            import anywidget
            import traitlets
        except ImportError:
            return

        class Clicks(anywidget.AnyWidget):
            _esm = Path(__file__).with_name("buttons.js").read_text()
            mark = traitlets.Unicode(self._mark).tag(sync=True)

        self._widget = Clicks()
        self._widget.on_msg(self._on_message)

    def over(self, call: Call[Any], html: str) -> None:
        """Tell the frontend what the card of a call shows now that it is over."""
        with self._lock:
            value = self._values.get(call)
            if value is None:
                return
            self._over[value] = html
            if len(self._over) > 200:
                del self._over[next(iter(self._over))]
        widget = self._widget
        if widget is not None:
            on_output_thread(lambda: widget.send({"over": {value: html}}))

    def _on_message(self, widget: Any, content: dict[str, str], _: object) -> None:
        if "cancel" not in content:  # the frontend asks whether there is anybody who hears
            with self._lock:
                over = dict(self._over)
            widget.send({"over": over})
            return
        with self._lock:
            chosen = [call for call, value in self._values.items() if value == content["cancel"]]
        for call in chosen:
            call.cancel()

    def close(self) -> None:
        """Take all buttons away."""
        widget, self._widget = self._widget, None
        if widget is not None:
            widget.close()
            widget.layout.close()


cancel_buttons = CancelButtons()
