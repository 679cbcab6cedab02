"""Kernels that are shut down and restarted while calls are in flight: they end soon, and what can clean up does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.notebook.kernel import Kernel

HANG = 20.0
"""Seconds after which a kernel does not end any more. No measure of speed."""

PRELUDE = """
    import os, pathlib
    import ipyportal

    folder = pathlib.Path({folder!r})

    def note(name):
        (folder / name).touch()

    async def work(name):
        try:
            # In here: the stop button may be pressed as soon as the file is there.
            note(name + " begun")
            print("begun")
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            note(name + " cleaned up")

    def blocked(name):
        try:
            note(name + " begun")
            print("begun")
            while True:
                time.sleep(0.01)
        finally:
            note(name + " cleaned up")
"""

# What is in flight, and the names of what cleans up.
IN_THE_BACKGROUND = """
    for n in range(5):
        submit(work(f"call {n}"))
        submit(blocked, f"thread {n}", on="thread")
"""
BACKGROUND_NAMES = [f"{kind} {n}" for kind in ("call", "thread") for n in range(5)] + ["job"]
CELLS = {
    "suspended": ("run(work('here'))", ["here"]),
    "asynchronous": ("await work('here')", ["here"]),
    "waits for the loop thread": ("run(work('there'), on='loop')", ["there"]),
    "%%thread": ("%%thread\nblocked('there')", ["there"]),
    "map": ("ipyportal.map(work, [f'item {n}' for n in range(10)])", [f"item {n}" for n in range(10)]),
    "map in threads": (
        "ipyportal.map(blocked, [f'item {n}' for n in range(4)], limit=4)",
        [f"item {n}" for n in range(4)],
    ),
    "asyncio.run()": ("with ipyportal.patch_asyncio():\n    asyncio.run(work('patched'))", ["patched"]),
}
ALWAYS = ("suspended", "asynchronous", "map in threads")  # each takes a kernel

# A cell that ends after ipykernel has closed its sockets, for it cleans up or its traceback takes long to be made,
# cannot be answered any more, and ipykernel says so with a traceback: it does without ipyportal, too.
NOISE = ("Task was destroyed", "never awaited", "Event loop is closed", "Exception ignored", "Fatal Python")


def begin(kernel: Kernel, folder: Path, kind: str) -> list[str]:
    """Start a cell of this kind, above calls of all kinds; return what will clean up."""
    kernel.value(PRELUDE.format(folder=str(folder)))
    kernel.value(IN_THE_BACKGROUND)
    kernel.execute("%%background job\nawait work('job')")
    cell, names = CELLS[kind]
    kernel.execute_async(cell)
    names = [*names, *BACKGROUND_NAMES]
    kernel.wait_for(lambda: all((folder / f"{name} begun").exists() for name in names), HANG)
    time.sleep(0.05)  # from its first line to its wait
    return names


def cells(always: tuple[str, ...]) -> list[ParameterSet]:
    return [pytest.param(kind, marks=[pytest.mark.storm] * (kind not in always)) for kind in CELLS]


def assert_ended_well(log: str, folder: Path, names: list[str]) -> None:
    assert [words for words in NOISE if words in log] == [], log
    assert [name for name in names if not (folder / f"{name} cleaned up").exists()] == []


def end_soon(kernel: Kernel, folder: Path, names: list[str]) -> None:
    """Shut the kernel down when all of these have begun: they clean up, and it is not killed."""
    kernel.wait_for(lambda: all((folder / f"{name} begun").exists() for name in names), HANG)
    began = time.monotonic()
    log = kernel.end(HANG)
    took = time.monotonic() - began
    print(f"{took:.2f} s")
    assert_ended_well(log, folder, names)
    assert took < HANG / 2  # after that it is killed


@pytest.mark.parametrize("kind", cells(ALWAYS))
def test_a_kernel_that_is_shut_down_ends_soon_and_what_is_in_flight_cleans_up(
    loaded_kernel: Kernel, tmp_path: Path, kind: str
) -> None:
    end_soon(loaded_kernel, tmp_path, begin(loaded_kernel, tmp_path, kind))


@pytest.mark.parametrize("kind", cells(("suspended",)))
def test_a_kernel_that_is_restarted_is_a_new_one(loaded_kernel: Kernel, tmp_path: Path, kind: str) -> None:
    names = begin(loaded_kernel, tmp_path, kind)
    assert_ended_well(loaded_kernel.restart(HANG), tmp_path, names)
    assert loaded_kernel.value("'ipyportal' in __import__('sys').modules") is False
    loaded_kernel.value("%load_ext ipyportal")
    assert loaded_kernel.value("import asyncio, ipyportal\nipyportal.run(asyncio.sleep(0, 'alive'))") == "alive"


# What is in flight on the kernel's own loop, between cells, and the names of what cleans up.
ON_THE_KERNEL = """
    import contextlib
    from ipyportal import enter, iterate

    @contextlib.asynccontextmanager
    async def entered(name):
        note(name + " begun")
        try:
            yield
        finally:
            await asyncio.sleep(0)
            note(name + " cleaned up")

    async def items(name):
        async with entered(name):
            yield 1
            yield 2

    async def stepping(name):
        await work(name)
        yield

    async def waits(name):
        run(work(name))

    def opened(comm, message):
        run(work("comm"))

    get_ipython().kernel.comm_manager.register_target("opened", opened)
    call = submit(work("call"), on="kernel")
    client = enter(entered("entered"), on="kernel")
    client.__enter__()
    iteration = iterate(items("iterated"), on="kernel")
    next(iteration)
    mapping = submit(lambda: list(ipyportal.map(work, ["mapped 0", "mapped 1"], on="kernel")), on="thread")
    task = asyncio.create_task(waits("task"))
    timer = asyncio.get_running_loop().call_soon(lambda: run(work("timer")))
    step = submit(lambda: next(iterate(stepping("step"), on="kernel")), on="thread")  # its step waits
    None
"""
ON_THE_KERNEL_NAMES = ["call", "job", "entered", "iterated", "mapped 0", "mapped 1", "task", "timer", "step", "comm"]


def test_what_is_in_flight_on_the_kernels_own_loop_cleans_up(loaded_kernel: Kernel, tmp_path: Path) -> None:
    loaded_kernel.value(PRELUDE.format(folder=str(tmp_path)))
    loaded_kernel.value(ON_THE_KERNEL)
    loaded_kernel.execute("%%background job --on kernel\nawait work('job')")
    loaded_kernel.comm_open("opened", {})
    end_soon(loaded_kernel, tmp_path, ON_THE_KERNEL_NAMES)


# Python waits for these threads, which are no daemons, and they wait in `run`.
IN_THREADS = """
    import contextlib, threading
    import anyio.to_thread
    from ipyportal import iterate

    async def items(name):
        await work(name)
        yield

    def keep(awaitable):
        tasks.append(asyncio.ensure_future(awaitable))

    tasks = []
    keep(asyncio.to_thread(lambda: run(work("to_thread"), on="kernel")))
    keep(asyncio.to_thread(lambda: run(work("to_thread, elsewhere"))))
    keep(asyncio.get_running_loop().run_in_executor(None, lambda: run(blocked, "executor", on="thread")))
    keep(anyio.to_thread.run_sync(lambda: run(work("anyio"), on="kernel")))
    keep(anyio.to_thread.run_sync(lambda: run(work("anyio, elsewhere"))))
    threading.Thread(target=lambda: run(work("thread"), on="kernel")).start()
    threading.Thread(target=submit(work("result"), on="kernel").result).start()
    threading.Thread(target=lambda: next(iterate(items("iterated"), on="kernel"))).start()
    threading.Thread(target=lambda: next(iterate(items("iterated, elsewhere")))).start()
"""
THREADS_NAMES = [
    *("to_thread", "to_thread, elsewhere", "executor", "anyio", "anyio, elsewhere"),
    *("thread", "result", "iterated", "iterated, elsewhere"),
]


def test_threads_that_wait_keep_no_kernel_from_ending(loaded_kernel: Kernel, tmp_path: Path) -> None:
    loaded_kernel.value(PRELUDE.format(folder=str(tmp_path)))
    loaded_kernel.value("threading.excepthook = lambda args: None  # it says that their waits were cancelled")
    loaded_kernel.value(IN_THREADS)
    end_soon(loaded_kernel, tmp_path, THREADS_NAMES)


def test_a_thread_that_waits_for_the_loop_of_a_kernel_that_has_ended_is_told_so(
    loaded_kernel: Kernel, tmp_path: Path
) -> None:
    loaded_kernel.value(PRELUDE.format(folder=str(tmp_path)))
    loaded_kernel.value("""
        async def stubborn():
            note("stubborn begun")
            while True:
                with __import__("contextlib").suppress(asyncio.CancelledError):
                    await asyncio.sleep(600)
                note("stubborn cleaned up")

        def waits():
            try:
                run(stubborn(), on="kernel")
            except BaseException as exc:
                (folder / "first").write_text(str(exc))
            try:
                run(work("too late"), on="kernel")
            except BaseException as exc:
                (folder / "second").write_text(str(exc))

        threading.Thread(target=waits).start()
    """)
    end_soon(loaded_kernel, tmp_path, ["stubborn"])
    assert (tmp_path / "first").read_text() == (
        "stubborn was not over when its event loop was stopped, and cannot be any more"
    )
    assert (tmp_path / "second").read_text() == "the kernel's thread takes no more calls: the kernel is being shut down"
