"""Output that nobody takes: a frontend that reads nothing, and ipykernel's thread that sends output held up.

Whatever is printed, displayed or sent to a widget goes through one thread of ipykernel, and from there to a socket that
drops what a frontend does not take. Nothing of ipyportal may wait for either, and no printed text may be lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from tests.notebook.kernel import Kernel

HANG = 30.0
"""Seconds after which something has waited for the output. ipykernel itself would give that up after 10; not here."""

LINES = 5000

PRELUDE = """
    import contextlib, pathlib
    import ipyportal
    from ipyportal.notebook import display as cards

    released = threading.Event()

    @contextlib.contextmanager
    def held_up():
        # What is sent from now on waits behind this, in order.
        released.clear()
        sys.stdout.pub_thread.schedule(lambda: released.wait(60))
        sys.stdout.flush_timeout = sys.stderr.flush_timeout = 600
        try:
            yield
        finally:
            released.set()
            del sys.stdout.flush_timeout, sys.stderr.flush_timeout

    async def double(n):
        await asyncio.sleep(0)
        print("double", n)
        return 2 * n

    def say(name, count):
        for n in range(count):
            print(name, n)

    async def say_all(name, count):
        for n in range(count):
            print(name, n)
            if n % 100 == 0:
                await asyncio.sleep(0)

    def told(name, count):
        return "".join(f"{name} {n}\\n" for n in range(count))

    async def wait(flag):
        try:
            if flag:
                pathlib.Path(flag).touch()
            await asyncio.sleep(600)
        finally:
            print("cleaned up")

    def wait_in_thread(flag):
        try:
            pathlib.Path(flag).touch()
            while True:
                time.sleep(0.001)
        finally:
            print("cleaned up")

    def fill(flag):
        print("cleaned up")  # when it is full, this would wait, too
        thread = sys.stdout.pub_thread

        def watch():
            # It is full with 1000 to 2000.
            length = 0
            while length < 1000 or length < len(thread._events):
                length = len(thread._events)
                time.sleep(0.01)
            pathlib.Path(flag).touch()

        submit(watch, on="thread")
        while True:
            thread.schedule(int)  # as all that is sent, but without a message to the frontend, which would be flooded

    job = None
"""


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    live_kernel.value(PRELUDE)
    return live_kernel


def told(name: str, count: int) -> str:
    return "".join(f"{name} {n}\n" for n in range(count))


# A cell, and what it prints.
CELLS = {
    "run": ("print(run(double(21)))", "double 21\n42\n"),
    "run on the loop thread": ("print(run(double(21), on='loop'))", "double 21\n42\n"),
    "await": ("print(await double(21))", "double 21\n42\n"),
    "map": ("print(sum(ipyportal.map(double, range(100))))", told("double", 100) + "9900\n"),
    "map in threads": ("print(ipyportal.map(int, ['5'] * 100) == [5] * 100)", "True\n"),
    "a lot from the loop thread": (f"submit(say_all('loop', {LINES})).result()", told("loop", LINES)),
    "a lot from a worker thread": (f"run(say, 'worker', {LINES}, on='thread')", told("worker", LINES)),
    "a lot from here": (f"say('here', {LINES})", told("here", LINES)),
}
cells = pytest.mark.parametrize("cell", CELLS)


@cells
def test_no_cell_waits_for_output_that_is_held_up_and_none_is_lost(shared: Kernel, cell: str) -> None:
    code, printed = CELLS[cell]
    pending = shared.execute_async(f"with held_up():\n    {code}")
    reply = pending.reply(HANG)
    assert reply.error is None, reply.error.traceback
    assert pending.stdout_so_far() == printed


def test_a_bar_of_a_map_waits_for_nothing(shared: Kernel) -> None:
    # It is displayed before the hold-up begins: whoever displays something in a cell waits, with ipykernel, for what
    # was printed before to be sent.
    pending = shared.execute_async("""
        def numbers():
            yield 0
            with held_up():
                yield from range(1, 100)
        sum(ipyportal.map(double, numbers(), progress=True))
    """)
    assert pending.reply(HANG).result == "9900"
    assert pending.stdout_so_far() == told("double", 100)


def test_a_card_waits_for_nothing_and_is_sent_once_when_it_can_be(shared: Kernel, tmp_path: Path) -> None:
    # A card that waited for its output would block the loop thread, on which all calls run; and one that did not, but
    # sent all that it has to say, would fill the queue of ipykernel, which blocks who adds to a full one.
    shared.value("""
        go, interval, cards.INTERVAL, updates, update = threading.Event(), cards.INTERVAL, 0, [], cards._Shown.update

        def counted(self, *args):
            updates.append(1)
            update(self, *args)

        def after(number):
            # What waits to be sent after so many more updates of the card.
            number += len(updates)
            while len(updates) < number:
                time.sleep(0.001)
            return len(sys.stdout.pub_thread._events)

        cards._Shown.update = counted
    """)
    pending = shared.execute_async("%%background job\nawait asyncio.to_thread(go.wait)\nprint('ended')\n5")
    pending.reply()
    try:
        held = shared.execute(
            """
            with held_up():
                # The first may be in the middle of being sent, the second waits.
                before, later = after(3), after(50)
                go.set()
                ended = job.result(timeout=20)
            ended, later - before
            """,
            HANG,
        )
    finally:
        shared.value("cards.INTERVAL, cards._Shown.update = interval, update")
    assert held.error is None, held.error.traceback
    assert held.result == "(5, 0)"
    shared.wait_for(lambda: "ended" in pending.stdout_so_far(), HANG)
    shared.wait_for(lambda: "finished" in last_word(shared), HANG)


def last_word(kernel: Kernel) -> str:
    """What the card that was updated last says."""
    updates = [
        message["content"]["data"]["text/plain"]
        for pending in kernel.requests()
        for message in list(pending.messages)
        if message["msg_type"] == "update_display_data" and "job: " in message["content"]["data"]["text/plain"]
    ]
    return str(updates[-1]) if updates else ""


@pytest.mark.parametrize(
    "code",
    [
        "run(wait(FLAG))",
        "await wait(FLAG)",
        "run(wait(FLAG), on='loop')",
        "run(wait_in_thread, FLAG, on='thread')",
        "ipyportal.map(wait, ['', '', FLAG])",
        "fill(FLAG)",  # the queue of ipykernel: who sends more than it takes is blocked
    ],
)
def test_the_stop_button_ends_a_cell_whose_output_is_held_up(shared: Kernel, tmp_path: Path, code: str) -> None:
    flag = tmp_path / "begun"
    pending = shared.execute_async("with held_up():\n    " + code.replace("FLAG", repr(str(flag))))
    shared.wait_for(flag.exists)
    shared.interrupt()
    reply = pending.reply(HANG)
    assert reply.error is not None
    assert reply.error.ename == "KeyboardInterrupt"
    assert pending.stdout_so_far() == "cleaned up\n" * (3 if "map" in code else 1)
    assert shared.answers_within(HANG)


def test_what_a_frontend_does_not_read_for_a_while_it_gets_later(shared: Kernel) -> None:
    with shared.unread():
        pending = {name: shared.execute_async(code) for name, (code, _) in CELLS.items()}
        thread = shared.execute_async("%%thread\nsay('in a thread', 10)\n7")
        background = shared.execute_async("%%background job\nawait say_all('in the background', 10)")
        for one in (*pending.values(), thread, background):
            shared.wait_for(one.answered, HANG)
    assert {name: one.reply(HANG).stdout for name, one in pending.items()} == {
        name: printed for name, (_, printed) in CELLS.items()
    }
    assert (thread.reply(HANG).stdout, thread.reply(HANG).result) == (told("in a thread", 10), "7")
    shared.wait_for(lambda: background.stdout_so_far() == told("in the background", 10), HANG)
    shared.wait_for(lambda: "finished" in last_word(shared), HANG)


def test_a_frontend_that_reads_nothing_keeps_nobody_waiting(shared: Kernel) -> None:
    assert shared._manager is not None
    with shared._manager.context.socket(zmq.SUB) as idler:
        idler.rcvhwm = 1
        idler.subscribe(b"")
        idler.connect(f"tcp://127.0.0.1:{shared._manager.iopub_port}")
        # More messages than its socket takes in the kernel, 1000, and more bytes than the system takes on their way. In
        # parts, which the frontend of this test takes even if it gets little of the processor.
        for _ in range(12):
            shared.value("for n in range(100): display({'text/plain': 'x' * 10_000}, raw=True)")
        for code, printed in CELLS.values():
            assert shared.execute(code, HANG).stdout == printed
        pending = shared.begin("print('waiting')\nrun(wait(''))")
        shared.interrupt()
        assert pending.reply(HANG).error is not None
        taken = 0
        while idler.poll(200):
            idler.recv_multipart()
            taken += 1
        assert taken < 1200, "it was no obstacle"
