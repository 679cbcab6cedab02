"""The documentation: pages, docstrings and the executed notebooks, by Sphinx.

``pip install -e ".[docs]" && sphinx-build -W docs docs/_build`` builds it, without network. With network,
``IPYPORTAL_INTERSPHINX=1`` before it adds links to the documentation of Python, IPython and ipykernel, and
``IPYPORTAL_DOCS_LITE=1`` the notebook that runs in the browser (with the extra ``lite``). Read the Docs has both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import quote

from docutils import nodes
from IPython.lib.lexers import IPython3Lexer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

import ipyportal
from ipyportal import concurrency
from ipyportal.notebook.magics import CELL_MAGICS, PortalMagics

HERE = Path(__file__).parent
ON_READTHEDOCS = os.environ.get("READTHEDOCS") == "True"
MODULES = ("ipyportal", "ipyportal.concurrency", "ipyportal.routes")  # as which public names are described

# Sphinx reads no notebooks outside of this folder.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "ipyportal"
author = "ipyportal contributors"
project_copyright = author
release = version = ipyportal.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon", "sphinx_copybutton"]
# myst-nb makes the second beside the first; the third is for the site that runs in the browser
exclude_patterns = ["_build", "jupyter_execute", "lite"]

nb_execution_mode = "off"  # they are stored with their outputs, which tests/notebook/test_notebooks.py compares
myst_heading_anchors = 3
smartquotes = False  # -- is an option's

# Names of Python (asyncio's among them), IPython and ipykernel are links to their documentation. For that Sphinx reads
# a list of names from each site, and warns if it cannot. CI builds without network, and takes warnings for errors. So
# it is done only on Read the Docs, which sets READTHEDOCS, and where IPYPORTAL_INTERSPHINX=1 asks for it. Elsewhere
# these names are plain text. Do not use the role `external`: without the lists it causes a warning.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
if ON_READTHEDOCS or os.environ.get("IPYPORTAL_INTERSPHINX") == "1":
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "IPython": ("https://ipython.readthedocs.io/en/stable", None),
        "ipykernel": ("https://ipykernel.readthedocs.io/en/stable", None),
    }

# A button for what is typed, not for what is shown. The prompts of docstrings, and their outputs, are not copied.
copybutton_selector = "div:not(.output):not(.highlight-text) > div.highlight > pre"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "py:obj"  # `name` in a docstring is a link, where there is one
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Route": "ipyportal.Route"}
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "inherited-members": "BaseException, Enum, object",  # but not of these
}

repository = "ipyportal/ipyportal"
html_theme = "furo"
html_title = f"ipyportal {release}"
html_theme_options: dict[str, Any] = {
    "source_repository": f"https://github.com/{repository}",
    "source_branch": "main",
    "source_directory": "docs/",
}


class MagicsDirective(SphinxDirective):
    """What the magics say of themselves, each under its name."""

    def run(self) -> list[nodes.Node]:
        magics = {f"%{name}": method for name, method in PortalMagics.magics["line"].items()}
        magics |= {f"%%{name}": method for name, method in CELL_MAGICS.items()}
        return [self.section(name, getattr(PortalMagics, method).__doc__) for name, method in magics.items()]

    def section(self, name: str, text: str) -> nodes.Node:
        # IPython appends the options, as argparse prints them.
        prose, options = re.match(r"(.*?)((?:positional arguments|options):.*)", text, re.S).groups()
        section = nodes.section(ids=[nodes.make_id("cell-magic " * name.startswith("%%") + name)])
        section += nodes.title("", "", nodes.literal(text=name))
        section += self.parse_text_to_nodes(f"```{{eval-rst}}\n{prose}\n```")
        section += nodes.literal_block(text=options.rstrip(), language="text")
        return section


def add_launch_buttons(app: Sphinx, page: str, source: list[str]) -> None:
    """Open a notebook in Binder or in Colab: below its title, on its page alone. The file itself has no buttons."""
    if not page.startswith("notebooks/"):
        return
    binder = f"https://mybinder.org/v2/gh/{repository}/main?labpath={quote(f'{page}.ipynb', safe='')}"
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/{page}.ipynb"
    buttons = (
        f"[![Open it in Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
        f"[![Open it in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    )
    notebook = json.loads(source[0])
    first = notebook["cells"][0]
    title, _, rest = "".join(first["source"]).partition("\n")
    first["source"] = f"{title}\n\n{buttons}\n{rest}"
    source[0] = json.dumps(notebook)


def name_its_file(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The source of a notebook's page, and its button to edit it, are the notebook where it is stored."""
    if page.startswith("notebooks/"):
        context["theme_source_directory"] = ""


def find_name(app: Sphinx, env: BuildEnvironment, node: Any, content: Any) -> Any:
    """What a docstring names may stand on the page of the other package."""
    domain = env.domains.python_domain
    for module in MODULES:
        name = f"{module}.{node['reftarget']}"
        if node["refdomain"] == "py" and name in domain.objects:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that no page describes."""
    described = env.domains.python_domain.objects
    for name in {*ipyportal.__all__, *concurrency.__all__, "map", "map.unordered"} - {"__version__"}:
        if not any(f"{module}.{name}" in described for module in MODULES):
            getLogger(__name__).warning("%s is not described", name)


def drop_empty_outputs(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """A widget is stored without a text."""
    for block in list(doctree.findall(nodes.literal_block)):
        if not block.astext().strip():
            block.parent.remove(block)


def public_bases(app: Sphinx, name: str, of: object, options: object, bases: list[Any]) -> None:
    """Name no class from which others inherit but which no page describes: their members are shown with each."""
    public = {*ipyportal.__all__, *concurrency.__all__}
    for base in bases[:]:
        kind = get_origin(base) or base
        if kind.__module__.startswith("ipyportal.") and kind.__name__ not in public:
            bases.remove(base)
            bases += [one for one in kind.__bases__ if one.__name__ in public]
    if not bases:
        bases.append(object)


def build_lite(app: Sphinx, exception: Exception | None) -> None:
    """Put JupyterLite into a folder of the pages. It downloads, so it is done only where it is asked for."""
    asked = ON_READTHEDOCS or os.environ.get("IPYPORTAL_DOCS_LITE") == "1"
    if asked and exception is None and app.builder.name in ("html", "dirhtml"):
        subprocess.run([sys.executable, HERE / "lite/build.py", app.outdir / "lite"], check=True)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-bases", public_bases)
    app.add_lexer("python", IPython3Lexer)  # for blocks with magics
    app.add_directive("magics", MagicsDirective)
    app.connect("source-read", add_launch_buttons)
    app.connect("html-page-context", name_its_file)
    app.connect("missing-reference", find_name, priority=400)  # before intersphinx: `map` is ours, not Python's
    app.connect("doctree-resolved", drop_empty_outputs)
    app.connect("env-check-consistency", check_names)
    app.connect("build-finished", build_lite)
