"""``python -m benchmarks``: the command line."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Measured, Row, all_rows, measure
from ipyportal import concurrency

ROUNDS, QUICK_ROUNDS = 51, 11


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure ipyportal beside its peers, in interleaved rounds."
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds in place of {ROUNDS}")
    parser.add_argument("--growth", action="store_true", help="also with more and more calls and threads")
    parser.add_argument("--bars", action="store_true", help="only rows that have a bar")
    parser.add_argument("--rows", metavar="PATTERN", help="only rows whose key or title this regular expression finds")
    parser.add_argument("--list", action="store_true", help="say what each row compares, and why that is fair")
    parser.add_argument(
        "--check",
        metavar="FACTOR",
        type=float,
        help="exit with 1 if a row is over FACTOR times its bar; if threads take turns in it, in three of four rounds",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="write a PNG file (needs matplotlib)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    # In the order in which they run: importing them adds their rows.
    for name in ("engine", "memory", "many", "waiting", "notebook", "work", "startup", "peers"):
        importlib.import_module(f"benchmarks.{name}")
    pattern = re.compile(options.rows or "", re.IGNORECASE)
    rows = [row for row in all_rows if pattern.search(row.key) or pattern.search(row.title)]
    if options.bars:
        rows = [row for row in rows if row.bar is not None]
    if not options.growth:
        rows = [row for row in rows if row.group != "growth"]
    if options.list:
        for row in rows:
            print(f"{row.key}: {row.title}\n    " + row.why.replace("\n", "\n    ") + "\n")
        return 0
    if not rows:
        print("no row has such a key or title; --list shows them", file=sys.stderr)
        return 2

    about = report.machine()
    print(f"{about['cpu']}, {about['cores']} cores; {about['system']}; {about['python']}")
    print(", ".join(f"{package} {version}" for package, version in about["packages"].items()))
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    skipped = {row.key: missing for row in rows if (missing := row.missing())}
    results = measure_all([row for row in rows if row.key not in skipped], rounds)
    print("\n" + report.table(results))
    for key, missing in skipped.items():
        print(f"skipped: {key}, because {', '.join(missing)} is not installed")
    if options.json:
        options.json.write_text(report.as_json(results, skipped, rounds) + "\n")
    if options.plot:
        try:
            report.plot(results, options.plot)
        except ModuleNotFoundError as exc:
            print(f"no plot: {exc}", file=sys.stderr)
    if options.check is not None:
        too_slow = [measured.row.key for measured in results if measured.fails(options.check)]
        if too_slow:
            print(f"over {options.check:g} times the bar: {', '.join(too_slow)}")
            return 1
    return 0


def measure_all(rows: list[Row], rounds: int) -> list[Measured]:
    """Measure one row after the other, and leave no thread of the engine behind."""
    try:
        return [measure(row, rounds) for row in rows]
    finally:
        concurrency.shutdown()


if __name__ == "__main__":
    sys.exit(main())
