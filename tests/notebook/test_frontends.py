"""Cards, buttons and bars in other frontends than JupyterLab: Notebook 7, Voilà, ``jupyter console``, and saved files
that nbconvert and papermill have made."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from tests.browser import need_browser

CHROMIUM = need_browser("notebook", "voila", "papermill", "jupyter_console", "nbconvert")

from playwright.sync_api import Browser, Page, expect  # noqa: E402 - where there is one

from tests.terminal import PseudoTerminal  # noqa: E402

from .jupyterlab import KERNELSPEC, PATIENCE, Notebook, Server, launched  # noqa: E402

pytestmark = pytest.mark.timeout(120)

LOAD = "%load_ext ipyportal\nimport asyncio\nfrom ipyportal import map, submit"
SHORT = "%%background short\nawait asyncio.sleep(0.05)\n5"
LONG = "%%background long\nawait asyncio.sleep(3600)"
BAR = "map(asyncio.sleep, [0.01] * 4, progress=True) and None"
WAIT = "await asyncio.sleep(0.3)"

FINISHED = re.compile(r"short ✓ finished · on ipyportal-loop · \d\.\d s · int: 5")
RUNNING = re.compile(r"long ▶ running · on ipyportal-loop · \d\.\d s at \d\d:\d\d:\d\d")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched(CHROMIUM) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page(viewport={"width": 700, "height": 900}) as page:
        yield page


def write(folder: Path, *sources: str) -> Path:
    """A notebook of the cell that loads the extension, and these."""
    path = folder / "notebook.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in (LOAD, *sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), path)
    return path


def have_run(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], cwd=folder, check=True, capture_output=True, timeout=PATIENCE)


# --- alive -----------------------------------------------------------------------------------------------------------


def test_notebook_7_shows_cards_with_their_button_and_a_bar(page: Page) -> None:
    with Server("notebook", "JupyterNotebookApp") as server:
        path = write(server.notebooks, SHORT, LONG, BAR)
        page.goto(f"{server.url}notebooks/{path.name}")
        notebook = Notebook(page, path)
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.info")
        for number in range(4):
            notebook.run(number)
        expect(notebook.cell(1).get_by_role("status")).to_have_text(FINISHED)
        expect(notebook.cell(3)).to_contain_text("4/4")
        assert notebook.cell(3).locator(".jupyter-widgets").count()  # tqdm's, for notebooks
        notebook.cell(2).get_by_role("button", name="Cancel long").click()
        expect(notebook.cell(2).get_by_role("status")).to_contain_text("long ■ cancelled")


@contextmanager
def voila(path: Path) -> Iterator[str]:
    """The address of a Voilà server for a notebook."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", path.name, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    log = path.with_suffix(".log")
    with log.open("wb") as file, subprocess.Popen(command, cwd=path.parent, stdout=file, stderr=file) as process:
        url = f"http://127.0.0.1:{port}/"
        try:
            while not answers(f"{url}static/none"):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()  # it ends its kernels


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def test_voila_shows_how_calls_ended_and_has_buttons_for_those_that_run(page: Page, tmp_path: Path) -> None:
    # It shows what a cell has shown by its end, and no change of that: what comes later, the buttons' widget tells.
    with voila(write(tmp_path, SHORT, LONG, BAR, WAIT)) as url:
        page.goto(url)
        short, long = (page.get_by_role("status").filter(has_text=name) for name in ("short", "long"))
        expect(short).to_have_text(FINISHED)
        expect(page.locator(".jupyter-widgets").first).to_contain_text("4/4")
        long.get_by_role("button", name="Cancel long").click()
        expect(long).to_contain_text("long ■ cancelled")
        assert "Error displaying widget" not in page.inner_text("body")


def test_jupyter_console_shows_a_bar_of_text_that_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "JUPYTER_NO_CONFIG": "1"}
    command = [sys.executable, "-m", "jupyter_console", "--simple-prompt"]
    with PseudoTerminal(command, columns=120, env=environment) as console:
        console.read_until(r"In \[1\]: ")
        for line in LOAD.splitlines():
            console.type(line)
        console.type(BAR)
        console.read_until("  0%.*4/4 ")
        console.type("call = submit(asyncio.sleep, 0.01, 5)")
        console.type("call.result() and call")
        console.read_until(r"Out\[\d\]: ✓ sleep: finished · on ipyportal-loop · \d\.\d s · int: 5")
        console.type("exit")
        console.read_to_the_end()


# --- files -----------------------------------------------------------------------------------------------------------


def test_papermill_writes_how_calls_ended_and_a_bar_that_is_full(tmp_path: Path) -> None:
    write(tmp_path, SHORT, LONG, BAR, WAIT)
    have_run(tmp_path, "papermill", "notebook.ipynb", "out.ipynb", "--no-progress-bar", "-k", "python3")
    _, short, long, bar, _ = [cell.outputs for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells]
    assert re.search("✓ short: finished .* int: 5", short[0]["data"]["text/plain"])
    assert re.search(r"▶ long: running .* at \d\d:\d\d:\d\d", long[0]["data"]["text/plain"])
    assert "4/4" in "".join(output["text"] for output in bar)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_html_export_shows_cards_no_wider_than_the_page_and_no_dead_button(
    page: Page, tmp_path: Path, theme: str
) -> None:
    write(tmp_path, SHORT, LONG, BAR, "%calls", "%portal", WAIT)
    have_run(tmp_path, "nbconvert", "--execute", "--to", "html", "--theme", theme, "notebook.ipynb")
    page.goto((tmp_path / "notebook.html").as_uri(), wait_until="domcontentloaded")
    cards = page.get_by_role("status")
    expect(cards.nth(0)).to_have_text(FINISHED)
    expect(cards.nth(1)).to_contain_text(RUNNING)
    assert not page.get_by_role("button", name="Cancel long").count()
    page.set_viewport_size({"width": 400, "height": 900})
    for card in cards.all():
        assert card.evaluate("card => card.scrollWidth <= card.clientWidth")
        assert card.evaluate("card => card.getBoundingClientRect().right <= innerWidth")
