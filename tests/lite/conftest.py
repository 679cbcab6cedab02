"""The site, the browser, and kernels in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .needs import need_lite

if TYPE_CHECKING:  # needs playwright
    from .jupyterlite import Lite, LiteKernel

BUILD = Path(__file__).parents[2] / "docs/lite/build.py"
FILES = BUILD.parent / "files"


def texts(folder: Path) -> dict[str, str]:
    """The texts of the files in a folder and in those below it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the site: that of IPYPORTAL_LITE_SITE, with ipyportal as it is here, or one that is built.

    It is built anew where its notebook or what lies beside that is no longer the same.
    """
    given = os.environ.get("IPYPORTAL_LITE_SITE")
    folder = Path(given) if given else tmp_path_factory.mktemp("lite") / "site"
    options = ["--wheel-only"] if texts(folder / "files") == texts(FILES) else ["--expose"]
    done = subprocess.run([sys.executable, BUILD, folder, *options], text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return folder


# Not for the whole session: while it lasts, an event loop counts as running in this thread.
@pytest.fixture(scope="package")
def lite(site: Path) -> Iterator[Lite]:
    """JupyterLite in a page of the browser."""
    chromium = need_lite()
    from .jupyterlite import Lite

    with Lite(chromium, site) as lite:
        yield lite
        assert lite.server.outside() == [], "asked of other machines"


@pytest.fixture(scope="module")
def lite_kernel(lite: Lite) -> Iterator[LiteKernel]:
    """A kernel that the tests of a module share, without ipyportal loaded."""
    with lite.kernel() as kernel:
        try:
            yield kernel
        finally:
            print(lite.log())  # shown by pytest if the test failed
