"""What is made of the rows: a table, a JSON file, a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import ipyportal
from benchmarks.measure import Measured

__all__ = ["as_json", "machine", "plot", "table"]

PACKAGES = (
    "greenlet", "ipykernel", "ipython", "anyio", "asgiref", "fsspec", "greenback", "nest-asyncio", "synchronicity",
    "unsync", "uvloop",
)  # fmt: skip

GROUPS = {
    "bars": "ipyportal beside its peers",
    "pinned": "The same, with all threads on one core",
    "work": "Work in a cell, beside what people write today (few bars)",
    "informative": "More of ipyportal (no bar)",
    "peers": "Peers, beside run_coroutine_threadsafe (no bar)",
    "growth": "Growth (no bar)",
}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {"ipyportal": ipyportal.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "packages": versions,
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cells(measured: Measured) -> list[str]:
    row, judged = measured.row, measured.judged
    ours = f"{_number(statistics.median(measured.ours))} {row.unit}"
    digits = 2 if measured.peer is not None else 1
    spread = f"{judged.low:.{digits}f}-{judged.high:.{digits}f}"
    if measured.peer is None:
        peer, ratio, unit = "", "", f" {row.unit}"
    else:
        peer = f"{_number(statistics.median(measured.peer))} {row.unit}"
        ratio, unit = f"{judged.median:.2f}", ""
    bar = "" if row.bar is None else f"{row.bar:g}{unit}"
    verdict = "" if row.bar is None else "over" if measured.over() else "ok"
    return [row.title, ours, peer, ratio, spread, bar, verdict, row.key]


def table(results: list[Measured]) -> str:
    """The rows as text. The spread is that of the ratios, from the lower to the upper quartile."""
    parts: list[str] = []
    for group, title in GROUPS.items():
        rows = [_cells(measured) for measured in results if measured.row.group == group]
        if not rows:
            continue
        first = ("its", "bare") if group == "peers" else ("ours", "peer")
        rows.insert(0, ["row", *first, "ratio", "spread", "bar", "", "key"])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if column in (0, 6, 7) else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        parts.append("\n".join([title, lines[0], "-" * max(map(len, lines)), *lines[1:]]))
    return "\n\n".join(parts)


def as_json(results: list[Measured], skipped: dict[str, list[str]], rounds: int) -> str:
    """All of it, with every round's numbers."""
    rows = []
    for measured in results:
        row = measured.row
        rows.append(
            {
                "key": row.key,
                "group": row.group,
                "title": row.title,
                "why": row.why,
                "unit": row.unit,
                "calls": row.calls,
                "bar": row.bar,
                "over": measured.over(),
                "relative": measured.peer is not None,
                "judged": asdict(measured.judged),
                "ours": measured.ours,
                "peer": measured.peer,
            }
        )
    return json.dumps({"machine": machine(), "rounds": rounds, "rows": rows, "skipped": skipped}, indent=2)


def plot(results: list[Measured], path: Path) -> None:
    """The ratios of all rows that have a peer, with their quartiles and bars, as a PNG file.

    Rows of growth become lines below: the cost, ours and the peer's, over the number at the end of the row's key.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [measured for measured in results if measured.peer is not None and measured.row.group != "growth"]
    shown.sort(key=lambda measured: list(GROUPS).index(measured.row.group))
    families: dict[str, list[Measured]] = {}
    for measured in results:
        if measured.row.group == "growth":
            families.setdefault(measured.row.key.rpartition("-")[0], []).append(measured)
    heights = [height for height in (0.4 + 0.34 * len(shown) if shown else 0, 2.6 if families else 0) if height]
    figure = pyplot.figure(figsize=(9, 0.8 + sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if shown:
        _plot_ratios(parts.pop(0).subplots(), shown)
    if families:
        for axes, (name, rows) in zip(
            parts[0].subplots(1, len(families), squeeze=False)[0], families.items(), strict=True
        ):
            _plot_growth(axes, name, rows)
    about = machine()
    figure.suptitle(f"{about['cpu']}, {about['cores']} cores, {about['python']}", fontsize="small")
    figure.savefig(path, format="png", dpi=110)
    pyplot.close(figure)


def _plot_ratios(axes: Any, shown: list[Measured]) -> None:
    for position, measured in enumerate(shown):
        judged, row = measured.judged, measured.row
        colour = {"peers": "tab:gray"}.get(row.group, "tab:red" if measured.over() else "tab:blue")
        spread = [[judged.median - judged.low], [judged.high - judged.median]]
        axes.barh(position, judged.median, color=colour, alpha=0.75, xerr=spread, error_kw={"capsize": 2})
        if row.bar is not None:
            axes.plot([row.bar, row.bar], [position - 0.42, position + 0.42], color="black", linewidth=2)
    axes.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(shown)), [measured.row.title for measured in shown], fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("cost relative to the peer (median of interleaved rounds; lower is better)", fontsize="small")


RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def _short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


GROWTH = {
    "flight": "calls in flight",
    "threads": "submitting threads",
    "map": "items of a map",
    "map-held": "held by a map",
    "callers": "callers suspended",
    "callers-held": "held by callers",
    "enters": "open enters",
}


def _plot_growth(axes: Any, name: str, rows: list[Measured]) -> None:
    numbers = [int(measured.row.key.rpartition("-")[2]) for measured in rows]
    axes.plot(numbers, [statistics.median(measured.ours) for measured in rows], "o-", label="ipyportal")
    if all(measured.peer for measured in rows):
        axes.plot(
            numbers, [statistics.median(measured.peer or ()) for measured in rows], "s:", color="gray", label="peer"
        )
    axes.set_xscale("log")
    axes.set_xticks(numbers, [_short(number) for number in numbers])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set_title(GROWTH.get(name, name), fontsize="small")
    axes.set_ylabel("bytes" if rows[0].row.unit == "B" else f"{rows[0].row.unit} each", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.legend(fontsize="x-small")
