"""The pictures of the README: ``python -m tests.notebook.pictures`` takes them anew, in JupyterLab (it needs Pillow).

What they show is tested in `test_jupyterlab`.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import get_args

from playwright.sync_api import expect

from tests.browser import need_browser

from .jupyterlab import Lab, Notebook, Theme

FOLDER = Path(__file__).parents[2] / "docs/images"

CELLS = [
    """
%load_ext ipyportal
import asyncio
from concurrent.futures import Future
from ipyportal import run
from ipywidgets import Button, HBox
""".strip(),
    """
%%background download
for part in range(1, 31):
    await asyncio.sleep(1.5)
    print(f"part {part} of 30")
""".strip(),
    """
def ask(question, *answers):  # a plain function: no async, no await
    clicked = Future()
    buttons = [Button(description=answer) for answer in answers]
    for button in buttons:
        button.on_click(lambda button: clicked.set_result(button.description))
    print(question)
    display(HBox(buttons))
    return run(asyncio.wrap_future(clicked))  # waits, and the notebook stays alive

ask("Which city is next?", "Oslo", "Lisbon", "Riga")
""".strip(),
]
"""A call in the background, and a cell that waits for a click."""


def ask(notebook: Notebook) -> None:
    """Run the notebook up to the question, which waits for an answer while the download goes on."""
    notebook.run(0)
    notebook.run(1)
    notebook.begin(2)
    expect(notebook.outputs(2).get_by_role("button")).to_have_count(3)


def take(lab: Lab, theme: Theme) -> bytes:
    """A PNG of the notebook while the question waits."""
    lab.set_theme(theme)
    with lab.notebook("notebook", CELLS) as notebook:
        ask(notebook)
        expect(notebook.outputs(1).last).to_contain_text("part 2")
        expect(notebook.cell(1).get_by_role("status")).to_contain_text(re.compile(r"[4-9]\.\d s"))
        panel = lab.page.locator(".jp-NotebookPanel").bounding_box()
        last = notebook.cell(2).bounding_box()
        assert panel is not None
        assert last is not None
        panel["height"] = last["y"] + last["height"] + 8 - panel["y"]
        picture = lab.page.screenshot(clip=panel)
        notebook.stop()
        notebook.wait_for_the_end(2)
    return picture


def main() -> None:
    from PIL import Image  # for small files; no test needs it

    with Lab(need_browser("jupyterlab"), viewport=(860, 900), scale=1.5) as lab:
        lab.page.keyboard.press("Control+b")  # without the file browser
        for theme in get_args(Theme):
            picture = Image.open(BytesIO(take(lab, theme)))
            picture.quantize(256).save(FOLDER / f"jupyterlab-{theme}.png", optimize=True)


if __name__ == "__main__":
    main()
