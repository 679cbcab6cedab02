"""Private names of other packages: each in one file, each in docs/dependencies.md, each still there."""

from __future__ import annotations

import ast
import asyncio
import re
from importlib.metadata import distribution, version
from pathlib import Path

from ipyportal.concurrency import private

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "ipyportal"
TABLE = (ROOT / "docs" / "dependencies.md").read_text("utf-8").split("## Private names of other packages")[1]

# With one underscore, and public all the same: in the `__all__` of asyncio's modules, or in Python's documentation.
PUBLIC = {"_get_running_loop", "_set_running_loop", "_enter_task", "_leave_task", "_getframe", "_current_frames"}


def listed() -> dict[str, set[str]]:
    """The file of each name; two, if two packages have it."""
    found: dict[str, set[str]] = {}
    for line in TABLE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1].startswith("`_"):
            for name in re.findall(r"`(\w+)`", cells[1]):
                found.setdefault(name, set()).add(cells[2].strip("`"))
    return found


def used() -> dict[str, set[str]]:
    """In which files each private name is used that none of ours defines: as an attribute, or as text."""
    trees = {path.relative_to(SRC).as_posix(): ast.parse(path.read_text("utf-8")) for path in SRC.rglob("*.py")}
    ours = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                ours.add(node.attr)
    found: dict[str, set[str]] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            name = (
                node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else ""
            )
            if isinstance(name, str) and re.fullmatch(r"_[a-z]\w*", name) and name not in ours:
                found.setdefault(name, set()).add(file)
    return found


def test_each_private_name_is_listed_and_stands_in_one_file() -> None:
    modules = {"_collections_abc", "_weakrefset"}
    written = {"_written"}  # by us, in an object of ipykernel's
    table = listed()
    unlisted = {name: files for name, files in used().items() if name not in PUBLIC | modules | written}
    assert {name: files for name, files in unlisted.items() if table.get(name) != files} == {}
    for name, file in ((name, file) for name, files in table.items() for file in files):
        assert re.search(rf"\b{name}\b", (SRC / file).read_text("utf-8")), f"{file} does not use {name}"


def test_what_is_called_public_is() -> None:
    assert PUBLIC - {"_getframe", "_current_frames"} <= {*asyncio.events.__all__, *asyncio.tasks.__all__}


def test_what_the_engine_uses_of_asyncio_is_there() -> None:
    # When this fails, `ipyportal.concurrency.private` has to be looked at: asyncio has changed.
    assert private.missing() == ()


def test_what_the_extension_uses_of_ipykernel_is_there() -> None:
    # When this fails, `ipyportal.notebook.kernel` has to be looked at: ipykernel has changed.
    folder = Path(distribution("ipykernel").locate_file("ipykernel"))  # not imported: others would take us for a kernel
    names = ["_publish_status", "_cancel_on_sigint", "pre_handler_hook", "dispatch_shell", "shell_handlers"]
    if int(version("ipykernel").partition(".")[0]) >= 7:
        names += ["shell_main", "_shell_context", "_shell_parent", "_shell_parent_ident"]
    source = "".join(folder.joinpath(file).read_text("utf-8") for file in ("kernelbase.py", "ipkernel.py"))
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []
    assert "parent_header" in folder.joinpath("iostream.py").read_text("utf-8")
