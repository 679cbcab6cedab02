"""What the project says in several places is the same in all of them."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ipyportal import __version__

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))
RECIPE: dict[str, Any] = yaml.safe_load(ROOT.joinpath("conda/recipe.yaml").read_text(encoding="utf-8"))
HEADING = re.compile(r"^## (?:\[?(\d[^] ]*)\]? - \d{4}-\d\d-\d\d|(Unreleased))$", re.M)


def bounds(requirements: list[str]) -> dict[str, str]:
    """The names of requirements, normalized, with their bounds."""
    parsed = map(Requirement, requirements)
    return {one.name.lower().replace("_", "-"): str(one.specifier) for one in parsed}


# --- the version -----------------------------------------------------------------------------------------------------


def test_the_version_is_written_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/ipyportal/_version.py"
    assert RECIPE["context"]["version"] == __version__


def test_the_version_is_that_of_the_changelog() -> None:
    text = ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    headings = HEADING.findall(text)
    assert len(headings) == len(re.findall(r"^## ", text, re.M)), "each is Unreleased, or a version and a date"
    released = [Version(number) for number, _ in headings if number]
    assert released == sorted(released, reverse=True)
    if headings[0][1]:  # what is not released yet is newer than what is
        assert not released or Version(__version__) > released[0]
    else:
        assert Version(__version__) == released[0]


# --- the table of dependencies ---------------------------------------------------------------------------------------


def test_the_table_of_dependencies_names_what_pyproject_names() -> None:
    project = PROJECT["project"]
    needs = {"ipyportal": project["dependencies"], "the build": PROJECT["build-system"]["requires"]}
    expected: dict[str, set[str]] = {}
    for extra, requirements in {**needs, **project["optional-dependencies"]}.items():
        for name in bounds(requirements).keys() - {project["name"]}:
            expected.setdefault(name, set()).add(extra)
    text = ROOT.joinpath("docs/dependencies.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["package", "needed by", "MB", "why this one", "without it"]
    assert all(len(row) == len(rows[0]) and all(row) for row in rows)
    table = {name.replace("_", "-"): set(extras.split(", ")) for name, extras, *_ in rows[2:]}
    assert len(table) == len(rows) - 2
    assert table == expected


# --- the conda recipe ------------------------------------------------------------------------------------------------


def test_the_conda_recipe_needs_what_the_wheel_needs() -> None:
    project, requirements = PROJECT["project"], RECIPE["requirements"]
    python, *run = requirements["run"]
    assert python == "python >=${{ python_min }}"
    assert ">=" + RECIPE["context"]["python_min"] == project["requires-python"]
    assert bounds(run) == bounds(project["dependencies"])
    host = [one for one in requirements["host"] if one != "pip" and not one.startswith("python ")]
    assert bounds(host) == bounds(PROJECT["build-system"]["requires"])


def test_the_conda_recipe_says_of_the_project_what_pyproject_says() -> None:
    project, about = PROJECT["project"], RECIPE["about"]
    assert RECIPE["context"]["name"] == project["name"]
    assert about["summary"] == project["description"]
    assert about["license"] == project["license"]
    assert [about["license_file"]] == project["license-files"]
    assert {about["homepage"], about["repository"]} == {project["urls"]["Source"]}
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    assert RECIPE["build"]["python"]["entry_points"] == scripts


# --- JupyterLite, Binder and Colab -----------------------------------------------------------------------------------


def test_the_badges_open_the_notebooks() -> None:
    text = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    name = PROJECT["project"]["urls"]["Source"].removeprefix("https://github.com/")
    lite, binder, colab = (unquote(link) for link in re.findall(r"^\[!\[.*\)\]\((\S+)\)$", text, re.M))
    # Where docs/conf.py puts it on Read the Docs.
    assert lite == "https://ipyportal.readthedocs.io/en/latest/lite/lab/index.html?path=try.ipynb"
    assert f"]({lite})" in ROOT.joinpath("docs/browser.md").read_text(encoding="utf-8")
    assert ROOT.joinpath("docs/lite/files/try.ipynb").is_file()
    assert binder == f"https://mybinder.org/v2/gh/{name}/main?labpath=notebooks/quickstart.ipynb"
    assert colab == f"https://colab.research.google.com/github/{name}/blob/main/notebooks/quickstart.ipynb"


def test_binder_installs_what_the_notebooks_need() -> None:
    folder = ROOT / "binder"
    checkout, *packages = folder.joinpath("requirements.txt").read_text(encoding="utf-8").split()
    match = re.fullmatch(r"\.\[(.+)\]", checkout)
    assert match is not None
    # The first four are what the notebooks import, `nest` what one of them speaks of.
    extras = {"agents", "browser", "dask", "demo", "nest"}
    assert set(match[1].split(",")) == extras <= PROJECT["project"]["optional-dependencies"].keys()
    assert bounds(packages).items() <= bounds(PROJECT["project"]["optional-dependencies"]["test"]).items()
    version = folder.joinpath("runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]
    assert os.access(folder / "postBuild", os.X_OK)
