"""JupyterLab in a browser: a real server on loopback, and Chromium, in which notebooks are used as by a user."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

Theme = Literal["light", "dark"]

START_TIMEOUT = 60.0
"""Seconds that the server may take until it listens."""

PATIENCE = 60.0
"""Seconds that anything on the page may take."""

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}

SETTINGS: dict[str, dict[str, Any]] = {
    # The theme is that of the system, which Playwright sets for the page.
    "apputils-extension/themes": {"adaptive-theme": True},
    # No look at the network, and no question whether there may be one.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
"""What is set in JupyterLab. All else is as after its installation."""


class Server:
    """A server of JupyterLab, or of Notebook 7, in a process of its own, on a port of loopback. A context manager.

    It neither reads nor writes the user's settings. Its kernels run this interpreter.
    """

    def __init__(self, module: str = "jupyterlab", app: str = "LabApp") -> None:
        self._module = module
        self._app = app

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ipyportal-lab-", ignore_cleanup_errors=True)
        home = Path(self._folder.name)
        self.notebooks = home / "notebooks"
        """The folder that it serves."""
        self.notebooks.mkdir()
        kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], **KERNELSPEC}
        _write_json(home / "path/kernels/python3/kernel.json", kernel)
        for name, setting in SETTINGS.items():
            _write_json(home / f"settings/@jupyterlab/{name}.jupyterlab-settings", setting)
        self._log = home / "log"
        # Of the extensions in this environment the widgets' alone: ipyparallel's asks its server, and shows a dialog.
        extensions = home / "labextensions"
        extensions.mkdir()
        for name in ("@jupyter-widgets", "anywidget"):
            (extensions / name).symlink_to(Path(sys.prefix, "share", "jupyter", "labextensions", name))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", self._module, "--no-browser", "--allow-root"),
                    *("--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=", "--ServerApp.password="),
                    *("--ServerApp.terminals_enabled=False", f"--{self._app}.expose_app_in_browser=True"),
                    *(f"--ServerApp.root_dir={self.notebooks}", f"--{self._app}.labextensions_path={extensions}"),
                ],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")},
                    "HOME": str(home),
                    "IPYTHONDIR": str(home / "ipython"),
                    "JUPYTER_NO_CONFIG": "1",
                    "JUPYTER_PATH": str(home / "path"),  # goes before the environment's own kernels
                    "JUPYTER_CONFIG_DIR": str(home / "config"),
                    "JUPYTER_DATA_DIR": str(home / "data"),
                    "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
                    "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
                    "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
                    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                },
                cwd=home,
                stdout=log,
                stderr=log,
            )
        try:
            self.url = self._wait_until_it_listens(home / f"runtime/jpserver-{self._process.pid}.json")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def log(self) -> str:
        """What the server and its kernels have written to their own stdout and stderr."""
        return self._log.read_text(errors="replace")

    def _wait_until_it_listens(self, said: Path) -> str:
        """The server's address, from the file that it writes when it listens."""
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return str(json.loads(said.read_text())["url"])
            time.sleep(0.05)
        raise RuntimeError(f"{self._module} did not start:\n{self.log()}")

    def _stop(self) -> None:
        self._process.terminate()  # it ends its kernels
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@contextmanager
def launched(chromium: str) -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.chromium.launch(executable_path=chromium, args=arguments) as browser:
            expect.set_options(timeout=PATIENCE * 1000)
            yield browser


class Lab:
    """JupyterLab in a page of the browser. A context manager, for the thread that enters it alone.

    Args:
        chromium: the path of the browser.
        viewport: width and height of the page, in its pixels.
        scale: pixels of the screen for one of the page.
    """

    def __init__(self, chromium: str, viewport: tuple[int, int] = (1000, 1200), scale: float = 1) -> None:
        self._chromium = chromium
        self._viewport = viewport
        self._scale = scale
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server = stack.enter_context(Server())
            browser = stack.enter_context(launched(self._chromium))
            width, height = self._viewport
            self.page = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=self._scale, color_scheme="light"
            )
            self.page.set_default_timeout(PATIENCE * 1000)
            self.load()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def load(self) -> None:
        """Load the page, also anew."""
        self.page.goto(f"{self.server.url}lab?reset")
        expect(self.page.locator(".jp-Launcher")).to_be_visible()  # the last to come

    def set_theme(self, theme: Theme) -> None:
        """Have JupyterLab follow a system of this theme."""
        self.page.emulate_media(color_scheme=theme)
        is_light = "true" if theme == "light" else "false"
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-light", is_light)

    @contextmanager
    def notebook(self, name: str, cells: Sequence[str | NotebookNode]) -> Iterator[Notebook]:
        """Open a notebook of these cells (texts are code) with a kernel of its own; close both at the end."""
        path = self.server.notebooks / f"{name}.ipynb"
        nodes = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        nbformat.write(new_notebook(cells=nodes, metadata={"kernelspec": KERNELSPEC}), path)
        # A cell that is run before its kernel is there is not run at all.
        have_done(
            self.page,
            """async path => {
                const panel = await jupyterapp.commands.execute("docmanager:open", {path});
                await panel.context.ready;
                await panel.sessionContext.ready;
                await panel.sessionContext.session.kernel.info;
            }""",
            path.name,
        )
        try:
            yield Notebook(self.page, path)
        finally:
            have_done(
                self.page,
                """async () => {
                    const panel = jupyterapp.shell.currentWidget;
                    await panel.context.save();  // or it asks whether to
                    await panel.sessionContext.shutdown();
                    panel.dispose();
                }""",
            )


def have_done(page: Page, function: str, argument: Any = None) -> None:
    """Call an async function of the page, and wait until it is over.

    The page is asked whether it is: of a promise that is waited for, Chromium says on a busy machine now and then that
    it was garbage collected.
    """
    page.evaluate(
        f"""argument => {{
            window.outcome = null;
            ({function})(argument).then(() => window.outcome = "done", error => window.outcome = String(error));
        }}""",
        argument,
    )
    outcome = page.wait_for_function("window.outcome").json_value()
    assert outcome == "done", outcome


class Notebook:
    """The notebook that is open in JupyterLab. Its code cells are counted from 0."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self._path = path

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def outputs(self, number: int) -> Locator:
        """What is shown below a cell, one element for each output."""
        return self.cell(number).locator(".jp-OutputArea-output")

    def begin(self, number: int) -> None:
        """Click into a cell, and press Ctrl+Enter."""
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        expect(self._prompt(number)).not_to_have_text("[ ]:")

    def run(self, number: int) -> None:
        """Run a cell, and wait for its end."""
        self.begin(number)
        self.wait_for_the_end(number)

    def is_running(self, number: int) -> bool:
        return self._prompt(number).inner_text() == "[*]:"

    def wait_for_the_end(self, number: int) -> None:
        expect(self._prompt(number)).to_have_text(re.compile(r"\[\d+\]:"))

    def run_all(self) -> None:
        """Choose "Run All Cells" in the menu, and wait for the end of the last one."""
        for entry in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=entry, exact=True).click()
        self.wait_for_the_end(-1)

    def stop(self) -> None:
        """Press the stop button."""
        self.page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()

    def saved(self) -> NotebookNode:
        """Save it, and read what was saved."""
        have_done(self.page, "() => jupyterapp.shell.currentWidget.context.save()")
        return nbformat.read(self._path, as_version=4)

    def _prompt(self, number: int) -> Locator:
        return self.cell(number).locator(".jp-InputPrompt")
