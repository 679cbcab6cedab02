"""The house: which room may import which, as docs/the-code.md draws it, and how long a file may be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ipyportal.concurrency.cancellation.frames import Mark

from .concurrency.cancellation.test_frames import ITSELF, WHOLE
from .notebook.test_marks import CODE

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
PAGE = (ROOT / "docs" / "the-code.md").read_text("utf-8")
LONGEST = 500  # lines of a file


def modules() -> dict[str, Path]:
    names = {}
    for path in SRC.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports() -> dict[str, set[str]]:
    """Which module imports which, wherever it says so: also in functions, and for the type checker alone."""
    found: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: write imports in full"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            for target in targets:
                while target not in MODULES and "." in target:
                    target = target.rpartition(".")[0]
                if target in MODULES and target != name:
                    found[name].add(target)
    return found


IMPORTS = imports()

# From the roof to the cellar, the rooms of each row.
ROWS = [
    re.findall(r"[a-z_.]+", line.partition("#")[0])
    for line in PAGE.split("<!-- rooms -->")[1].split("```")[1].removeprefix("text\n").splitlines()
]
ROW_OF = {room: number for number, rooms in enumerate(ROWS) for room in rooms}


def room(module: str) -> str:
    """The room where `module` is: the longest of the picture's names that its own begins with."""
    rooms = [name for name in ROW_OF if f"{module}.".startswith(f"ipyportal.{name}.")]
    if module == "ipyportal":
        return "ipyportal"
    assert rooms, f"{module} is not in the picture"
    return max(rooms, key=len)


def test_each_module_imports_from_its_own_room_and_from_rows_below_alone() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if room(module) != room(target) and ROW_OF[room(target)] <= ROW_OF[room(module)]
    ]
    assert wrong == []


def test_all_rooms_of_the_picture_are_there() -> None:
    assert {room(module) for module in MODULES} == set(ROW_OF)


def test_no_circle_of_imports_stands() -> None:
    # What imports nothing that is left is taken away, again and again. What stays is in a circle, or above one.
    left = {name: set(targets) for name, targets in IMPORTS.items()}
    while free := [name for name, targets in left.items() if not targets]:
        for name in free:
            del left[name]
        for targets in left.values():
            targets.difference_update(free)
    assert left == {}


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in MODULES.values()}
    assert {name: length for name, length in lengths.items() if length >= LONGEST} == {}


def test_each_mark_has_a_test_that_fails_without_it() -> None:
    marked = {
        name: Mark[found.group(1)]
        for name, path in MODULES.items()
        if (found := re.search(r"^__ipyportal_mark__ = Mark\.(\w+)", path.read_text("utf-8"), re.M))
    }
    tested = {
        **{module.__name__: Mark.WHOLE for module in WHOLE},
        **{module.__name__: Mark.ITSELF for module in ITSELF},
        **{module.__name__: Mark.NOT_BY_THE_STOP_BUTTON for module in CODE},
    }
    assert marked == tested


def test_what_the_page_names_is_there() -> None:
    """Files, and the functions and classes that stand beside them."""
    source = "\n".join(path.read_text("utf-8") for path in MODULES.values())
    for path in re.findall(r"`((?:notebook|concurrency|tests)/[\w/.]+)`", PAGE):
        assert (SRC / "ipyportal" / path).exists() or (ROOT / path).exists(), path
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE):
        assert re.search(rf"^class {owner}\b", source, re.M), owner
        assert re.search(rf"^    (async )?def {name}\b", source, re.M), name
