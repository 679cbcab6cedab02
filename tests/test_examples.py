"""Every public name has an example in its docstring, and gives what the example shows."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import ipyportal
from ipyportal import concurrency
from tests.test_readme import blocks

MODULES = (ipyportal, concurrency)
# What has no docstring of its own has its example in that of the package.
WITHOUT_DOCSTRING = ("Route", "__version__")
# Needs a kernel: the cells of the documentation are run in one.
IN_A_KERNEL = ("on_kernel_thread",)

PARSER = doctest.DocTestParser()


def documented() -> Iterator[Any]:
    """Whatever has a docstring to look into, once."""
    seen = set()
    for module in MODULES:
        names = {*module.__all__} - {*WITHOUT_DOCSTRING, *IN_A_KERNEL}
        for one in [module, *(getattr(module, name) for name in sorted(names))]:
            if id(one) not in seen:
                seen.add(id(one))
                yield one
    yield ipyportal.map  # in no __all__


def example_of(one: Any) -> doctest.DocTest:
    return PARSER.get_doctest(inspect.getdoc(one) or "", {}, one.__name__, None, None)


def names_in(code: str) -> set[str]:
    """The names that code uses, also as attributes of a package."""
    nodes = list(ast.walk(ast.parse(code)))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("one", list(documented()), ids=lambda one: one.__name__)
def test_the_example_gives_what_it_shows(one: Any) -> None:
    test = example_of(one)
    assert test.examples
    used = set().union(*(names_in(example.source) for example in test.examples))
    expected = {*WITHOUT_DOCSTRING} if one is ipyportal else set() if one is concurrency else {one.__name__}
    assert expected <= used, "the example does not use what it is the example of"
    doctest.DebugRunner().run(test)


@pytest.mark.parametrize("name", IN_A_KERNEL)
def test_what_needs_a_kernel_is_shown_by_a_cell_of_the_readme(name: str) -> None:
    cells = [block.code for block in blocks("cell") if not block.code.startswith("%")]
    assert any(name in names_in(code) for code in cells)
