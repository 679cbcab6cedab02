"""The harness itself: what the other notebook tests take for granted."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client.connect import LocalPortCache

from .kernel import Kernel, KernelDied


def test_a_cell_gives_its_output_its_value_and_what_it_displays(kernel: Kernel) -> None:
    reply = kernel.execute(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay({'text/plain': 'shown'}, raw=True)\n6 * 7"
    )
    assert reply.status == "ok"
    assert reply.error is None
    assert reply.stdout == "out\n"
    assert reply.stderr == "err\n"
    assert reply.displays == [{"text/plain": "shown"}]
    assert reply.result == "42"


def test_the_kernel_runs_the_interpreter_that_runs_the_tests(kernel: Kernel) -> None:
    assert kernel.execute("import sys; sys.prefix").result == repr(sys.prefix)


def test_an_error_is_reported_without_colours(kernel: Kernel) -> None:
    reply = kernel.execute("def fail():\n    1 / 0\nfail()")
    assert reply.status == "error"
    assert reply.error is not None
    assert (reply.error.ename, reply.error.evalue) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in reply.error.traceback
    assert "\x1b" not in reply.error.traceback


def test_cells_behind_a_failed_one_are_aborted(kernel: Kernel) -> None:
    # The kernel aborts the cells that have arrived when the first fails. So the first takes long enough for the other.
    pending = [kernel.execute_async(code) for code in ("import time; time.sleep(1); 1 / 0", "2")]
    assert [one.reply().status for one in pending] == ["error", "aborted"]


def test_an_interrupt_ends_a_sleeping_cell(kernel: Kernel) -> None:
    # Not one long sleep: Python misses a signal that comes just before it enters the system call.
    code = "import time\nprint('asleep', flush=True)\nfor _ in range(3000): time.sleep(0.01)"
    pending = kernel.execute_async(code)
    kernel.wait_for(pending.stdout_so_far)
    kernel.interrupt()
    reply = pending.reply(timeout=10)
    assert reply.error is not None
    assert reply.error.ename == "KeyboardInterrupt"
    assert kernel.answers_within(10)


def test_each_of_two_cells_sent_at_once_gets_its_own_output(kernel: Kernel) -> None:
    first, second = (kernel.execute_async(f"print({name!r})") for name in ("one", "two"))
    assert (first.reply().stdout, second.reply().stdout) == ("one\n", "two\n")


def test_output_that_comes_after_the_cell_has_ended_is_collected(kernel: Kernel) -> None:
    pending = kernel.execute_async(
        "import contextvars, threading\n"
        "go = threading.Event()\n"
        "def late():\n"
        "    go.wait()\n"
        "    print('late')\n"
        "threading.Thread(target=contextvars.copy_context().run, args=(late,)).start()"
    )
    assert pending.reply().stdout == ""
    assert kernel.execute("go.set()").status == "ok"
    # Where the parent header is a global of the kernel, late output goes to the newest cell.
    kernel.wait_for(lambda: any("late" in one.stdout_so_far() for one in kernel.requests()))


def test_input_is_answered_in_turn(kernel: Kernel) -> None:
    pending = kernel.execute_async("input('a? ') + input('b? ')", answers=["x", "y"])
    assert pending.reply().result == "'xy'"
    assert pending.prompts() == ["a? ", "b? "]


class SlowToAnswer(Kernel):
    """Its stdin tries to connect a second later than the other sockets, when the kernel is up for long."""

    def _stdin_socket(self, identity: bytes) -> zmq.Socket[bytes]:
        stdin = super()._stdin_socket(identity)
        stdin.reconnect_ivl = 1500
        return stdin


def test_a_kernel_is_ready_when_it_can_ask() -> None:
    with SlowToAnswer() as kernel:
        assert kernel.execute("input('a? ')", 10, answers=["x"]).result == "'x'"


class FirstIsSlow(zmq.Context[zmq.Socket[bytes]]):
    """Its first socket tries to connect a second later than the others: the manager's, for control."""

    is_slow = True

    def socket(self, *arguments: Any, **options: Any) -> Any:
        made = super().socket(*arguments, **options)
        if self.is_slow:
            made.reconnect_ivl = 1500
            self.is_slow = False
        return made


class SlowToControl(Kernel):
    """Its manager connects late."""

    def _new_context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return FirstIsSlow()


def test_a_kernel_is_ready_when_all_sockets_are_connected() -> None:
    with SlowToControl():
        assert len(psutil.Process().net_connections("tcp4")) == 5  # and no more come: they would count as left behind


def test_a_kernel_whose_port_is_taken_meanwhile_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        find, ports = LocalPortCache.find_available_port, [taken.getsockname()[1]]
        monkeypatch.setattr(
            LocalPortCache, "find_available_port", lambda self, ip: ports.pop() if ports else find(self, ip)
        )
        with Kernel() as kernel:
            assert kernel.execute("6 * 7").result == "42"
        assert ports == []


def test_a_cell_that_may_not_ask_for_input_fails(kernel: Kernel) -> None:
    error = kernel.execute("input()").error
    assert error is not None
    assert error.ename == "StdinNotImplementedError"


def test_comm_messages_reach_the_kernel(kernel: Kernel) -> None:
    kernel.execute(
        "def opened(comm, message):\n"
        "    comm.on_msg(lambda message: comm.send({'echo': message['content']['data']}))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)"
    )
    comm_id, opening = kernel.comm_open("echo", {})
    opening.reply()
    pending = kernel.comm_msg(comm_id, {"n": 1})
    pending.reply()
    assert [m["content"]["data"] for m in pending.messages if m["msg_type"] == "comm_msg"] == [{"echo": {"n": 1}}]


def test_a_cell_that_takes_too_long_is_named(kernel: Kernel) -> None:
    pending = kernel.execute_async("print('begun', flush=True); import time; time.sleep(30)")
    kernel.wait_for(pending.stdout_so_far)
    with pytest.raises(TimeoutError) as raised:
        pending.reply(timeout=0.1)
    assert "time.sleep(30)" in "".join(raised.value.__notes__)
    assert "begun" in "".join(raised.value.__notes__)
    assert not kernel.answers_within(0.1)


def test_a_kernel_that_dies_ends_the_wait_with_its_last_words(kernel: Kernel) -> None:
    pid = int(kernel.execute("import os; os.getpid()").result or "")
    pending = kernel.execute_async(
        "import os, time; os.write(2, b'last words\\n'); print('asleep', flush=True)\ntime.sleep(30)"
    )
    kernel.wait_for(pending.stdout_so_far)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(KernelDied) as raised:
        pending.reply(timeout=10)
    assert "last words" in "".join(raised.value.__notes__)
    assert not kernel.is_alive()
