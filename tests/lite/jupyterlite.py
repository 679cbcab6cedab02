"""JupyterLite in a browser: the site of ``docs/lite/build.py`` on loopback, and Chromium, in which kernels run.

`LiteKernel` is driven as the kernel of ``tests.notebook.kernel`` is, with the same methods and the same replies:

    with Lite(chromium, site) as lite, lite.kernel() as kernel:
        assert kernel.execute("1 + 1").result == "2"
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from playwright.sync_api import ConsoleMessage

from tests.notebook.jupyterlab import PATIENCE, Notebook, launched
from tests.notebook.kernel import Kernel, KernelDied, Message, Pending

OWN_HOST = "content-autofill.googleapis.com"
"""What Chromium asks by itself about each form that it sees."""

PLACE = "/docs/lite/"
"""Where on the server the site is."""

START_TIMEOUT = 120.0
"""Seconds that the page may take until it is complete, and a kernel until it answers."""

POLL_INTERVAL = 0.02
"""Seconds between two looks at what a kernel has sent."""

# What the page's scripts do. A message that cannot be copied as it is, with parts in binary, is copied without these.
PAGE_SCRIPT = """() => {
window.kernels = {};
window.startKernel = async name => {
    await jupyterapp.restored;
    // Without its comms: JupyterLab closes those whose target it does not know.
    const connection = await jupyterapp.serviceManager.kernels.startNew({name: "python"}, {handleComms: false});
    const received = [];
    connection.anyMessage.connect((sender, {msg, direction}) => {
        if (direction === "recv") {
            received.push({...msg, buffers: (msg.buffers ?? []).length});
        }
    });
    window.kernels[name] = {connection, received};
    await connection.info;
};
window.sendToKernel = (name, message) => {
    const {connection} = window.kernels[name];
    message.header.session = connection.clientId;
    if (message.channel === "control") {
        connection.sendControlMessage(message, true, false);
    } else if (message.header.msg_type.endsWith("_request")) {
        connection.sendShellMessage(message, true, false);
    } else if (message.channel === "stdin") {
        connection.sendInputReply(message.content, message.parent_header);
    } else {
        connection.sendShellMessage(message, false, true);
    }
};
window.takeFromKernel = name => {
    const {connection, received} = window.kernels[name];
    return JSON.stringify({messages: received.splice(0), status: connection.status});
};
window.endKernel = async name => {
    const {connection} = window.kernels[name];
    delete window.kernels[name];
    await connection.shutdown();
    connection.dispose();
};
window.openNotebook = async path => {
    await jupyterapp.restored;
    window.panel = await jupyterapp.commands.execute("docmanager:open", {path});
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
};
window.closeNotebook = async () => {
    await panel.sessionContext.shutdown();
    panel.context.model.dirty = false;  // or it asks whether to save
    panel.dispose();
};
}"""


class Server:
    """A plain web server in a process of its own, on a port of loopback. A context manager.

    The site is not at its root but in a folder, ``/docs/lite/``, as it is where the documentation is.

    The page's browser takes it for its proxy as well. So what the page, its workers and its service worker ask of any
    other machine comes here too, is refused, and can be seen in `outside`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forgotten = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="ipyportal-lite-"))
            self._log = Path(home, "log")
            place = Path(home, "served", PLACE.strip("/"))
            place.parent.mkdir(parents=True)
            place.symlink_to(self._folder.resolve(), target_is_directory=True)
            # A thread for each connection, some of which Chromium only opens: not in the process of the tests, which
            # count their threads.
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"),
                        *("--directory", str(Path(home, "served"))),
                    ],
                    stdout=log,
                    stderr=log,
                )
            stack.callback(self._stop)
            self.port = self._wait_until_it_listens()
            self.url = f"http://127.0.0.1:{self.port}{PLACE}"
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def log(self) -> str:
        """What the server has written: a line for each request."""
        return self._log.read_text(errors="replace")

    def requests(self) -> list[str]:
        """What was asked for since `forget`: the path of a file of the site, or the address of another machine."""
        targets: list[str] = re.findall(r'"[A-Z]+ (\S+) HTTP/[\d.]+" \d+ ', self.log())[self._forgotten :]
        return [f"/{one.removeprefix(PLACE)}" if one.startswith(PLACE) else one for one in targets]

    def forget(self) -> None:
        """Leave out of `requests` and `outside` what was asked for until now."""
        self._forgotten += len(self.requests())

    def outside(self) -> list[str]:
        """What was asked of other machines."""
        return [target for target in self.requests() if not target.startswith(("/", OWN_HOST))]

    def _wait_until_it_listens(self) -> int:
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            if match := re.search(r"port (\d+)", self.log()):
                return int(match[1])
            time.sleep(0.02)
        raise RuntimeError(f"the web server did not start:\n{self.log()}")

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Lite:
    """JupyterLite in a page of the browser. A context manager, for the thread that enters it alone.

    Args:
        chromium: the path of the browser.
        site: the folder with the site, which was built with ``--expose``.
    """

    def __init__(self, chromium: str, site: Path) -> None:
        self._chromium = chromium
        self._site = site
        self.console: list[str] = []
        """What scripts of the page have written to the browser's console so far."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server = stack.enter_context(Server(self._site))
            browser = stack.enter_context(launched(self._chromium))
            self.page = browser.new_page(
                viewport={"width": 1000, "height": 1200},
                color_scheme="light",
                # For the page alone: Chromium asks its makers for updates.
                proxy={"server": f"127.0.0.1:{self.server.port}", "bypass": "127.0.0.1"},
            )
            self.page.set_default_timeout(PATIENCE * 1000)
            self.page.on("console", self._keep)
            self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
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
        """Load the page, also anew. Its kernels end."""
        self.page.goto(f"{self.server.url}lab/index.html?reset")
        self.page.wait_for_function(
            "window.jupyterapp?.serviceManager?.kernelspecs?.specs?.kernelspecs?.python", timeout=START_TIMEOUT * 1000
        )
        self.page.evaluate(PAGE_SCRIPT)

    def kernel(self) -> LiteKernel:
        """A kernel that is not started: a context manager, which starts and ends it."""
        return LiteKernel(self)

    @contextlib.contextmanager
    def notebook(self, name: str) -> Iterator[Notebook]:
        """Open a notebook of the site, with a kernel of its own. At the end that ends, and nothing is saved."""
        self.call("openNotebook", name, timeout=START_TIMEOUT)
        try:
            yield Notebook(self.page, Path(name))
        finally:
            self.call("closeNotebook")

    def log(self) -> str:
        """What helps to find out why something failed."""
        refused = [line for line in self.server.log().splitlines() if '" 200 ' not in line and '" 304 ' not in line]
        return "\n".join(["the browser's console:", *self.console, "the server, without what it served:", *refused])

    def call(self, function: str, *arguments: Any, timeout: float = PATIENCE) -> None:
        """Call an async function of the page, and wait until it is over, in the way of `have_done`."""
        self.page.evaluate(
            """([name, args]) => {
                window.outcome = null;
                window[name](...args).then(
                    () => window.outcome = "done",
                    error => window.outcome = String(error?.stack ?? error),
                );
            }""",
            [function, list(arguments)],
        )
        outcome = self.page.wait_for_function("window.outcome", timeout=timeout * 1000).json_value()
        assert outcome == "done", f"{outcome}\n{self.log()}"

    def _keep(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")


class LiteKernel(Kernel):
    """A kernel in the browser: Pyodide, in a worker of the page. A context manager, for the page's thread alone."""

    def __init__(self, lite: Lite) -> None:
        super().__init__()
        self._lite = lite
        self._name = ""
        self._status = "unknown"

    def _reset(self) -> None:
        self._requests: dict[str, Pending] = {}

    def start(self) -> Self:
        """Start the kernel and wait until it answers, `START_TIMEOUT` seconds at most."""
        self._reset()
        self._name = uuid.uuid4().hex
        self._lite.call("startKernel", self._name, timeout=START_TIMEOUT)
        self.execute("1", START_TIMEOUT)
        return self

    def shutdown(self, *, now: bool = False) -> None:
        """End the kernel. What runs there is not asked."""
        name, self._name = self._name, ""
        if name:
            self._lite.call("endKernel", name)

    def is_alive(self) -> bool:
        return bool(self._name) and self._status not in ("dead", "terminating")

    def log(self) -> str:
        return self._lite.log()

    def interrupt(self) -> None:
        """Press the stop button, which does not reach the cell that runs: JupyterLite cannot do that."""
        self._lite.page.evaluate("name => { window.kernels[name].connection.interrupt() }", self._name)

    def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        answers: Sequence[str] = (),
        channel: str = "shell",
        subshell_id: str | None = None,
    ) -> Pending:
        """Send any message, on the shell channel or on another (``control``)."""
        assert self._name, "the kernel is not started"
        assert subshell_id is None, "there are none"
        message = _message(msg_type, content, channel)
        pending = Pending(self, message, answers)
        self._requests[pending.msg_id] = pending
        self._lite.page.evaluate("([name, message]) => sendToKernel(name, message)", [self._name, message])
        return pending

    def wait_for(
        self,
        condition: Callable[[], object],
        timeout: float = 30,
        *,
        what: Callable[[], str] | None = None,
    ) -> None:
        """Wait until `condition()` is true; it is asked after each look at what the kernel has sent.

        Raises:
            TimeoutError: it is not true after `timeout` seconds.
            KernelDied: the kernel has ended before it was.
        """
        deadline = time.monotonic() + timeout
        self.look()
        while not condition():
            problem: Exception | None = None
            if time.monotonic() > deadline:
                problem = TimeoutError(f"waited {timeout:g} seconds")
            elif not self.is_alive():
                problem = KernelDied(f"the kernel is {self._status}")
            if problem is not None:
                problem.add_note(f"waiting for {what() if what else condition}")
                problem.add_note(self.log())
                raise problem
            self._lite.page.wait_for_timeout(POLL_INTERVAL * 1000)
            self.look()

    def look(self) -> None:
        """File what the kernel has sent until now."""
        assert self._name, "the kernel is not started"
        for message in self._taken():
            # As ``jupyter_client`` has it.
            message["msg_type"] = message["header"]["msg_type"]
            pending = self._requests.get(message["parent_header"].get("msg_id", ""))
            if pending is None:
                self.unclaimed.append(message)
                continue
            pending._file(message)
            if message["msg_type"] == "input_request" and pending.answers:
                self._answer(message, pending.answers)

    def shown(self, pending: Pending) -> list[dict[str, Any]]:
        """What is displayed below a cell now: a dict from MIME type to data for each output that is no text stream.

        Unlike `Reply.displays` it heeds updates, also those that another cell has made, and `clear_output`.
        """
        self.look()
        shown: list[tuple[str | None, dict[str, Any]]] = []
        clears = False
        for message in pending.messages:
            kind, content = message["msg_type"], message["content"]
            if kind == "clear_output":
                clears = bool(content.get("wait"))
                shown = shown if clears else []
            elif kind in ("display_data", "execute_result"):
                shown = [] if clears else shown
                clears = False
                shown.append(((content.get("transient") or {}).get("display_id"), content["data"]))
        updates = {
            message["content"]["transient"]["display_id"]: message["content"]["data"]
            for message in (*self.unclaimed, *(one for each in self._requests.values() for one in each.messages))
            if message["msg_type"] == "update_display_data"
        }
        return [updates.get(display_id, data) if display_id else data for display_id, data in shown]

    def html(self, pending: Pending) -> list[str]:
        """The HTML of what is displayed below a cell now; see `shown`."""
        return [data["text/html"] for data in self.shown(pending) if "text/html" in data]

    def _taken(self) -> list[Message]:
        taken = json.loads(self._lite.page.evaluate("name => takeFromKernel(name)", self._name))
        self._status = taken["status"]
        messages: list[Message] = taken["messages"]
        return messages

    def _answer(self, request: Message, answers: deque[str]) -> None:
        message = _message("input_reply", {"status": "ok", "value": answers.popleft()}, "stdin")
        message["parent_header"] = request["header"]
        self._lite.page.evaluate("([name, message]) => sendToKernel(name, message)", [self._name, message])


def _message(msg_type: str, content: Mapping[str, Any], channel: str) -> Message:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "username": "",
        "session": "",  # the page's, which fills it in
        "date": datetime.now(UTC).isoformat(),
        "version": "5.3",
    }
    return {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": dict(content),
        "channel": channel,
        "buffers": [],
    }
