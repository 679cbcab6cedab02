"""How what we show is dressed: a frame in the theme's colours, as wide as the cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["frame", "table"]

_FRAME = (
    "box-sizing: border-box; border: 1px solid var(--jp-border-color2, #ccc); border-radius: 3px; margin: 2px 0; "
    "color: var(--jp-ui-font-color1, inherit); background: var(--jp-layout-color1, transparent); "
    "font-family: var(--jp-ui-font-family, sans-serif)"
)
_LEFT = "text-align: left; vertical-align: baseline"


def frame(content: str, style: str = "", attributes: str = "") -> str:
    """Some HTML in a frame."""
    return f'<div {attributes}style="{_FRAME}; {style}">{content}</div>'


def table(rows: Iterable[tuple[Sequence[str], str]], header: Sequence[str] = ()) -> str:
    """A table in a frame: of each row the texts, the first of which says what the row is of, and some HTML."""
    head = "".join(f'<th scope="col" style="{_LEFT}">{escape(text)}</th>' for text in header)
    lines = []
    for (first, *texts), last in rows:
        cells = "".join(f'<td style="{_LEFT}">{escape(text)}</td>' for text in texts)
        html = f'<td style="{_LEFT}">{last}</td>' if header else ""
        lines.append(f'<tr><th scope="row" style="{_LEFT}; font-weight: normal">{escape(first)}</th>{cells}{html}</tr>')
    top = f"<thead><tr>{head}<td></td></tr></thead>" if header else ""
    return frame(
        f'<table style="margin: 0; border: none; color: inherit">{top}<tbody>{"".join(lines)}</tbody></table>',
        "overflow-x: auto",
    )
