"""A real ipykernel, driven over its sockets as a frontend drives it.

`Kernel` starts one with the interpreter that runs the tests. A thread of the harness, the pump,
owns all sockets and files each message that arrives under the request that it answers (its parent's
``msg_id``). So what a cell prints is told apart from what other cells print, also when it comes
after the cell has ended:

    with Kernel() as kernel:
        assert kernel.execute("1 + 1").result == "2"
        pending = kernel.execute_async("import time; time.sleep(60)")
        kernel.interrupt()
        assert pending.reply().error.ename == "KeyboardInterrupt"
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from zmq.utils.monitor import recv_monitor_message

__all__ = ["BESIDE_ANOTHER_CLUSTER", "Error", "Kernel", "KernelDied", "Message", "Pending", "Reply"]

Message = dict[str, Any]
"""A message of the Jupyter protocol, as ``jupyter_client.session.Session`` reads it."""

ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
BESIDE_ANOTHER_CLUSTER = {"PYTHONWARNINGS": "ignore:Port 8787 is already in use:UserWarning"}
"""The environment of a kernel that starts a dask cluster: where another runs, dask says that its port is taken."""

START_TIMEOUT = 60.0
LIVENESS_INTERVAL = 0.25


class KernelDied(RuntimeError):
    """The kernel's process ended while something was expected of it; a note holds what it wrote."""


@dataclass(frozen=True)
class Error:
    """An exception as the kernel reports it, without colours."""

    ename: str
    evalue: str
    traceback: str


@dataclass(frozen=True)
class Reply:
    """All that a finished request had got from the kernel at one moment."""

    msg_id: str
    status: str
    """``ok``, ``error`` or ``aborted``."""
    stdout: str
    stderr: str
    result: str | None
    """The text of the cell's value, if it has one."""
    displays: list[dict[str, Any]]
    """What was displayed: a dict from MIME type to data for each ``display_data``."""
    error: Error | None
    messages: list[Message]
    elapsed: float
    """Seconds from the request to its end."""


class Pending:
    """A request on its way. Its methods may be called from any thread."""

    def __init__(self, kernel: Kernel, request: Message, answers: Sequence[str]) -> None:
        self.msg_id: str = request["header"]["msg_id"]
        self.messages: list[Message] = []
        """What the kernel has sent for this request so far, in the order of arrival."""
        self.answers = deque(answers)
        """What will be answered to calls of ``input()``; a call that finds none here waits."""
        self._kernel = kernel
        self._request = request
        self._sent_at = time.monotonic()
        self._ended_at: float | None = None
        # A comm message has no reply: the kernel's "idle" is all that ends it.
        self._awaited = {"idle"}
        if request["header"]["msg_type"].endswith("_request"):
            self._awaited.add("reply")

    def done(self) -> bool:
        """Whether both the reply and the kernel's "idle" have come. Output may still come later."""
        return not self._awaited

    def answered(self) -> bool:
        """Whether the reply has come, or none is due, as for comm messages."""
        return "reply" not in self._awaited

    def stdout_so_far(self) -> str:
        return self._stream("stdout")

    def stderr_so_far(self) -> str:
        return self._stream("stderr")

    def prompts(self) -> list[str]:
        """The prompts of the inputs that were asked for."""
        return [content["prompt"] for content in self._contents("input_request")]

    def reply(self, timeout: float = 30) -> Reply:
        """Wait until the request is done, and return what it got.

        Raises:
            TimeoutError: it is not done after `timeout` seconds.
            KernelDied: the kernel's process ended.
        """
        self._kernel.wait_for(self.done, timeout, what=self._describe)
        assert self._ended_at is not None
        replies = self._contents("execute_reply")
        reply = replies[0] if replies else {"status": "ok"}
        errors = self._contents("error") or [reply] * (reply["status"] == "error")
        results = self._contents("execute_result")
        return Reply(
            msg_id=self.msg_id,
            status=reply["status"],
            stdout=self.stdout_so_far(),
            stderr=self.stderr_so_far(),
            result=results[0]["data"].get("text/plain") if results else None,
            displays=[content["data"] for content in self._contents("display_data")],
            error=_error(errors[0]) if errors else None,
            messages=list(self.messages),
            elapsed=self._ended_at - self._sent_at,
        )

    def _file(self, message: Message) -> None:
        """Take a message of this request; called by the pump with the kernel's lock held."""
        self.messages.append(message)
        if message["msg_type"].endswith("_reply"):
            self._awaited.discard("reply")
        elif message["content"].get("execution_state") == "idle":
            self._awaited.discard("idle")
        if self.done() and self._ended_at is None:
            self._ended_at = time.monotonic()

    def _contents(self, msg_type: str) -> list[dict[str, Any]]:
        return [message["content"] for message in self.messages if message["msg_type"] == msg_type]

    def _stream(self, name: str) -> str:
        return "".join(content["text"] for content in self._contents("stream") if content["name"] == name)

    def _describe(self) -> str:
        return (
            f"{' and '.join(sorted(self._awaited))} of {self._request['header']['msg_type']} "
            f"{self._request['content']}\n"
            f"stdout so far: {self.stdout_so_far()!r}\nstderr so far: {self.stderr_so_far()!r}\n"
            f"asked for input: {self.prompts()}"
        )


class Kernel:
    """A kernel in a process of its own. A context manager that starts it and shuts it down.

    Args:
        cwd: the folder that the kernel runs in; the tests' own when omitted.
        env: variables to set in its environment beside those of this process.
        arguments: more arguments for its command line.
    """

    def __init__(
        self,
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.unclaimed: list[Message] = []
        """Messages that name no request of this harness as their parent."""
        self._cwd = cwd
        self._env = dict(env or {})
        self._arguments = list(arguments)
        self._manager: KernelManager | None = None
        self._arrival = threading.Condition()
        self._reads_output = True
        self._reset()

    def _reset(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ipyportal-kernel-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "log")
        self._requests: dict[str, Pending] = {}
        self._outbox: deque[tuple[str, Message]] = deque()
        self._stopping = False
        self._can_be_asked = False

    # Life

    def start(self) -> Self:
        """Start the kernel and wait until it answers, `START_TIMEOUT` seconds at most."""
        try:
            return self._start()
        except KernelDied as exc:
            # jupyter_client looks for free ports, and another process may take one before the kernel does.
            if "Address already in use" not in "".join(exc.__notes__):
                raise
        self._reset()
        return self._start()

    def _start(self) -> Self:
        # pydevd warns about frozen modules on stderr; a user's IPython profile must not count here.
        env = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "IPYTHONDIR": self._folder.name}
        self._manager = _ThisInterpreter(
            # A context that the manager made itself it destroys as soon as the kernel has ended,
            # and with it the sockets, while the pump polls them.
            context=self._new_context(),
            connection_file=str(Path(self._folder.name, "connection.json")),
        )
        with self._log.open("wb") as log:
            self._manager.start_kernel(
                cwd=self._cwd,
                env={**os.environ, **env, **self._env},
                extra_arguments=self._arguments,
                stdout=log,
                stderr=log,
            )
        self._wake, wake = socket.socketpair()
        # The kernel asks for input on stdin from the identity that sent the cell on shell.
        identity = self._manager.session.bsession
        sockets = {
            "shell": self._manager.connect_shell(identity=identity),
            "control": self._manager.connect_control(identity=identity),
            "stdin": self._stdin_socket(identity),
            "iopub": self._manager.connect_iopub(),
        }
        # Watched before it connects, so that no event is missed.
        events = sockets["stdin"].get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        sockets["stdin"].connect(f"{self._manager.transport}://{self._manager.ip}:{self._manager.stdin_port}")
        pump = threading.Thread(target=self._pump, args=(sockets, events, wake), name="kernel pump", daemon=True)
        self._pump_thread = pump
        pump.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.shutdown(now=True)
            raise
        return self

    def _new_context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return zmq.Context()

    def _stdin_socket(self, identity: bytes) -> zmq.Socket[bytes]:
        assert self._manager is not None
        stdin = self._manager.context.socket(zmq.DEALER)
        stdin.linger = 1000
        stdin.identity = identity
        return stdin

    def shutdown(self, *, now: bool = False) -> None:
        """Ask the kernel to end, kill it if it does not within five seconds (`now`: at once)."""
        if self._manager is None:
            return
        self._manager.shutdown_kernel(now=now)
        self._stopping = True
        self._wake.send(b"x")
        self._pump_thread.join()
        self._wake.close()
        self._manager.context.destroy(linger=0)
        self._manager = None
        self._folder.cleanup()

    def end(self, timeout: float) -> str:
        """Shut the kernel down as a frontend does, kill it after `timeout` seconds; return `log` as of its end."""
        assert self._manager is not None, "the kernel is not started"
        self._manager.shutdown_wait_time = timeout
        self._manager.shutdown_kernel()
        return self.log()

    def restart(self, timeout: float) -> str:
        """Restart the kernel as a frontend does; return `log` as of the end of the first, and wait for the second."""
        assert self._manager is not None, "the kernel is not started"
        log = self.end(timeout)
        with self._log.open("wb") as file:
            self._manager.start_kernel(**{**self._manager._launch_args, "stdout": file, "stderr": file})
        self._wait_until_ready()
        return log

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def is_alive(self) -> bool:
        """Whether the kernel's process runs."""
        return self._manager is not None and self._manager.is_alive()

    def _exit_status(self) -> int | None:
        # As `subprocess` says it: that of a process killed by a signal is the signal's negative number.
        assert self._manager is not None
        return getattr(getattr(self._manager.provisioner, "process", None), "returncode", None)

    def log(self) -> str:
        """What the kernel's process has written to its own stdout and stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # Requests

    def execute(self, code: str, timeout: float = 30, *, answers: Sequence[str] | None = None) -> Reply:
        """Execute a cell and wait for it; see `execute_async` and `Pending.reply`.

        One that is aborted is sent again: ipykernel, 6.17 above all, aborts also what comes just after the reply of a
        cell that failed.
        """
        deadline = time.monotonic() + timeout
        # Nothing waits behind it; and it shall not have what comes next aborted either, by whatever that is sent.
        while (
            reply := self.execute_async(code, answers=answers, stop_on_error=False).reply(timeout)
        ).status == "aborted":
            if (timeout := deadline - time.monotonic()) <= 0:
                break
        return reply

    def value(self, code: str, timeout: float = 30) -> Any:
        """Execute a cell that ends in an expression, and return its value, a literal.

        Raises:
            AssertionError: the cell failed; the message holds its traceback.
        """
        reply = self.execute(code, timeout)
        assert reply.error is None, reply.error.traceback
        return None if reply.result is None else ast.literal_eval(reply.result)

    def begin(self, code: str, timeout: float = 30) -> Pending:
        """Send a cell and return when it has printed something: its own code runs by then.

        One that is aborted is sent again, as by `execute`.
        """
        deadline = time.monotonic() + timeout
        while True:
            pending = self.execute_async(code)
            self.wait_for(lambda: pending.stdout_so_far() or pending.done(), timeout, what=pending._describe)  # noqa: B023
            if pending.stdout_so_far():
                return pending
            reply = pending.reply()
            assert reply.status == "aborted", f"ended before it printed: {reply.error}"
            assert time.monotonic() < deadline, "it was aborted, time and again"

    def click(self, widget_id: str, *, subshell_id: str | None = None) -> Pending:
        """Click an ipywidgets button, as its view does."""
        return self.send_to_widget(widget_id, {"event": "click"}, subshell_id=subshell_id)

    def send_to_widget(self, widget_id: str, content: dict[str, Any], *, subshell_id: str | None = None) -> Pending:
        """Send what its handlers of messages are called with."""
        return self.comm_msg(widget_id, {"method": "custom", "content": content}, subshell_id=subshell_id)

    def execute_async(
        self,
        code: str,
        *,
        answers: Sequence[str] | None = None,
        silent: bool = False,
        stop_on_error: bool = True,
        subshell_id: str | None = None,
    ) -> Pending:
        """Send a cell and return at once.

        Args:
            code: the cell.
            answers: what to answer to its calls of ``input()``, in turn; a call beyond them is left
                waiting, as by a user who does not type. Without `answers` the cell may not ask.
            silent: as in the protocol: no output of its value, no history.
            stop_on_error: as in the protocol: cells that wait behind it are aborted if it fails.
            subshell_id: the subshell to execute it in, on ipykernel 7.
        """
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": answers is not None,
            "stop_on_error": stop_on_error,
        }
        return self.request("execute_request", content, answers=answers or (), subshell_id=subshell_id)

    def create_subshell(self) -> str:
        """Create a subshell, and return its id. Raises TimeoutError where ipykernel knows none."""
        pending = self.request("create_subshell_request", {}, channel="control")
        pending.reply(timeout=10)
        return str(pending._contents("create_subshell_reply")[0]["subshell_id"])

    def comm_open(self, target: str, data: Mapping[str, Any], *, comm_id: str | None = None) -> tuple[str, Pending]:
        """Open a comm as a frontend does; return its id and the request."""
        comm_id = comm_id or uuid.uuid4().hex
        content = {"comm_id": comm_id, "target_name": target, "data": dict(data)}
        return comm_id, self.request("comm_open", content)

    def comm_msg(self, comm_id: str, data: Mapping[str, Any], *, subshell_id: str | None = None) -> Pending:
        """Send a message on a comm, as a widget's view does when it is clicked."""
        return self.request("comm_msg", {"comm_id": comm_id, "data": dict(data)}, subshell_id=subshell_id)

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
        assert self._manager is not None, "the kernel is not started"
        request = self._manager.session.msg(msg_type, dict(content))
        if subshell_id is not None:
            request["header"]["subshell_id"] = subshell_id
        pending = Pending(self, request, answers)
        self._requests[pending.msg_id] = pending  # before it is sent: the answer may be quick
        self._send(channel, request)
        return pending

    def requests(self) -> list[Pending]:
        """All requests of this kernel, in the order in which they were sent."""
        return list(self._requests.values())

    def interrupt(self) -> None:
        """Press the stop button: SIGINT to the kernel's process."""
        assert self._manager is not None, "the kernel is not started"
        self._manager.interrupt_kernel()

    def answers_within(self, seconds: float) -> bool:
        """Whether the kernel executes a trivial cell in that time."""
        try:
            return self.execute("1", timeout=seconds).result == "1"
        except (TimeoutError, KernelDied):
            return False

    def wait_for(
        self,
        condition: Callable[[], object],
        timeout: float = 30,
        *,
        what: Callable[[], str] | None = None,
    ) -> None:
        """Wait until `condition()` is true; it is asked after each message, and every now and then.

        Raises:
            TimeoutError: it is not true after `timeout` seconds.
            KernelDied: the kernel's process ended before it was.
        """
        deadline = time.monotonic() + timeout
        with self._arrival:
            while not condition():
                problem: Exception | None = None
                if (left := deadline - time.monotonic()) <= 0:
                    problem = TimeoutError(f"waited {timeout:g} seconds")
                elif not self.is_alive():
                    problem = KernelDied(f"the kernel died: its process ended with {self._exit_status()}")
                if problem is not None:
                    problem.add_note(f"waiting for {what() if what else condition}")
                    problem.add_note(f"the kernel's own output: {self.log()!r}")
                    raise problem
                self._arrival.wait(min(left, LIVENESS_INTERVAL))

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """A block in which nothing is read of what the kernel publishes: output, and "idle"."""
        self._reads_output = False
        self._wake.send(b"x")
        try:
            yield
        finally:
            self._reads_output = True
            self._wake.send(b"x")

    # The pump

    def _send(self, channel: str, message: Message) -> None:
        self._outbox.append((channel, message))
        self._wake.send(b"x")

    def _pump(
        self, sockets: dict[str, zmq.Socket[bytes]], events_of_stdin: zmq.Socket[bytes], wake: socket.socket
    ) -> None:
        """Own the sockets, which one thread alone may use: send, receive and file messages."""
        assert self._manager is not None
        session = self._manager.session
        poller = zmq.Poller()
        for pollable in (wake, events_of_stdin, *sockets.values()):
            poller.register(pollable, zmq.POLLIN)
        while not self._stopping:
            if wake.fileno() in dict(poller.poll()):
                wake.recv(4096)
            while events_of_stdin.poll(0):
                event = recv_monitor_message(events_of_stdin)["event"]
                with self._arrival:
                    self._can_be_asked = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                    self._arrival.notify_all()
            poller.modify(sockets["iopub"], zmq.POLLIN if self._reads_output else 0)
            for channel, channel_socket in sockets.items():
                if channel == "iopub" and not self._reads_output:
                    continue
                while (message := session.recv(channel_socket, zmq.NOBLOCK)[1]) is not None:
                    self._take(message)
            while self._outbox:
                channel, message = self._outbox.popleft()
                session.send(sockets[channel], message)
        sockets["stdin"].disable_monitor()
        for channel_socket in (events_of_stdin, *sockets.values()):
            channel_socket.close(linger=0)
        wake.close()

    def _take(self, message: Message) -> None:
        assert self._manager is not None
        pending = self._requests.get(message["parent_header"].get("msg_id", ""))
        with self._arrival:
            if pending is None:
                self.unclaimed.append(message)
            else:
                pending._file(message)
                if message["msg_type"] == "input_request" and pending.answers:
                    answer = {"value": pending.answers.popleft()}
                    reply = self._manager.session.msg("input_reply", answer, parent=message)
                    self._outbox.append(("stdin", reply))
            self._arrival.notify_all()

    def _wait_until_ready(self) -> None:
        # The subscription to iopub takes effect at some moment after connecting. Only a request
        # whose "idle" came back proves that no output will be missed, so ask until one does; one
        # question at a time, for ipykernel 7.0 to 7.3 may overlook, until the next client connects,
        # a request that arrives while it sends the reply to another.
        ready = False
        while not ready:
            question = self.request("kernel_info_request", {})
            self.wait_for(question.answered, START_TIMEOUT)
            with contextlib.suppress(TimeoutError):
                self.wait_for(question.done, timeout=0.2)
            ready = question.done()
        # Each socket connects when it comes to try again, stdin maybe last; and the kernel's drops what it is to ask
        # somebody who has not connected: the cell would wait for ever.
        self.wait_for(lambda: self._can_be_asked, START_TIMEOUT, what=lambda: "the connection of stdin")
        # Nobody has asked anything on control yet. What connects later looks as if it were left behind by a test.
        self.wait_for(self._controls, START_TIMEOUT, what=lambda: "the connections of control")

    def _controls(self) -> bool:
        # Two sockets: the manager has one of its own.
        assert self._manager is not None
        address = (self._manager.ip, self._manager.control_port)
        connections = psutil.Process().net_connections("tcp4")
        return sum(one.raddr == address and one.status == psutil.CONN_ESTABLISHED for one in connections) == 2


class _ThisInterpreter(KernelManager):
    """Starts the interpreter that runs the tests, whatever the installed kernelspecs point at."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="the tests' Python",
            language="python",
        )


def _error(content: Mapping[str, Any]) -> Error:
    traceback = ESCAPE_SEQUENCE.sub("", "\n".join(content["traceback"]))
    return Error(content["ename"], content["evalue"], traceback)
