"""``asyncio.run()`` and ``run_until_complete()`` in the cells of a kernel, and ``%portal patch``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.concurrency.helpers import NEST_ASYNCIO

from .kernel import Kernel

LIBRARY = """
    import asyncio, threading

    log = []

    async def double(n):
        await asyncio.sleep(0.001)
        return 2 * n

    def library(n):  # somebody else's synchronous function
        return asyncio.run(double(n))

    def here(awaitable):
        return asyncio.get_event_loop().run_until_complete(awaitable)

    async def slow():
        try:
            print("begun")
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            log.append("cleaned up")

    async def stubborn():
        try:
            print("begun")
            await asyncio.sleep(3600)
        finally:
            print("cleaning")
            while not released.is_set():
                await asyncio.sleep(0.001)
            log.append("cleaned up")

    released = threading.Event()
"""


@pytest.fixture(scope="module")
def patched_kernel(live_kernel: Kernel) -> Kernel:
    """The module's kernel; each test begins with the patch on."""
    live_kernel.value(LIBRARY)
    return live_kernel


@pytest.fixture
def patched(patched_kernel: Kernel) -> Iterator[Kernel]:
    patched_kernel.value("%portal patch on\nlog.clear()")
    yield patched_kernel
    assert patched_kernel.answers_within(10)


@pytest.mark.parametrize("cell", ["", "await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_a_library_that_calls_asyncio_run_works_while_the_kernel_s_tasks_go_on(patched: Kernel, cell: str) -> None:
    patched.value("""
        async def tick():
            while True:
                await asyncio.sleep(0)
                log.append("tick")
        ticking = asyncio.get_running_loop().create_task(tick())
    """)
    assert patched.value(cell + "log.clear()\nlibrary(4), log.count('tick') > 1") == (8, True)
    assert patched.value(cell + "log.clear()\nhere(double(5)), log.count('tick') > 1") == (10, True)
    patched.value("ticking.cancel()\nNone")


def test_a_task_and_a_future_of_the_kernel_s_loop_can_be_waited_for(patched: Kernel) -> None:
    patched.value("""
        loop = asyncio.get_running_loop()
        task, future = loop.create_task(double(3)), loop.create_future()
        loop.call_later(0.001, future.set_result, "the future's")
        None
    """)
    assert patched.value("here(task), here(future), here(asyncio.gather(double(1), double(2)))") == (
        6,
        "the future's",
        [2, 4],
    )


def test_it_works_in_tasks_gathers_and_callbacks_of_comms(patched: Kernel) -> None:
    assert patched.value("""
        async def call(n):
            await asyncio.sleep(0)
            return library(n) + here(double(n))
        await asyncio.wait_for(asyncio.create_task(call(1)), 10), await asyncio.gather(*map(call, range(5)))
    """) == (4, [0, 4, 8, 12, 16])
    patched.value("""
        def opened(comm, message):
            log.append((library(1), here(double(2))))
        get_ipython().kernel.comm_manager.register_target("patched", opened)
        None
    """)
    patched.comm_open("patched", {})[1].reply(10)
    assert patched.value("log") == [(2, 4)]


def test_nested_twenty_deep_in_a_cell(patched: Kernel) -> None:
    assert patched.value("""
        async def nested(depth, wait):
            await asyncio.sleep(0)
            return 0 if depth == 0 else 1 + wait(nested(depth - 1, wait))
        asyncio.run(nested(20, asyncio.run)), here(nested(20, lambda rest: here(rest)))
    """) == (20, 20)


def test_a_widget_s_message_is_handled_meanwhile(patched: Kernel) -> None:
    patched.value("""
        def opened(comm, message):
            released.set()
        get_ipython().kernel.comm_manager.register_target("release", opened)
        released.clear()
        async def until_released():
            print("begun")
            while not released.is_set():
                await asyncio.sleep(0.001)
            return "released"
    """)
    pending = patched.begin("asyncio.run(until_released())")
    patched.comm_open("release", {})
    assert pending.reply(10).result == "'released'"


def test_what_it_prints_and_asks_belongs_to_the_cell(patched: Kernel) -> None:
    reply = patched.execute(
        """
        async def ask():
            print("from the library")
            return input("name? ")
        asyncio.run(ask())
        """,
        answers=["ada"],
    )
    assert (reply.stdout, reply.result) == ("from the library\n", "'ada'")


@pytest.mark.parametrize(
    "cell",
    [
        "asyncio.run(slow())",
        "await asyncio.sleep(0)\nasyncio.run(slow())",
        "here(slow())",
        "await asyncio.sleep(0)\nhere(slow())",
        "with asyncio.Runner() as runner:\n    runner.run(double(1))\n    runner.run(slow())",
        "async def task():\n    asyncio.run(slow())\nawait asyncio.gather(task())",
        "async def task():\n    here(slow())\nawait asyncio.gather(task())",
        "async def nested():\n    asyncio.run(slow())\nasyncio.run(nested())",
    ],
)
def test_the_stop_button_cleans_up_and_the_kernel_lives(patched: Kernel, cell: str) -> None:
    pending = patched.begin(cell)
    patched.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert patched.value("log") == ["cleaned up"]
    assert patched.value("library(1), here(double(2))") == (2, 4)


def test_a_second_press_gives_up_the_wait_for_the_clean_up(patched: Kernel) -> None:
    patched.value("released.clear()")
    pending = patched.begin("asyncio.run(stubborn())")
    patched.interrupt()
    patched.wait_for(lambda: "cleaning" in pending.stdout_so_far(), 10)
    patched.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert patched.value("log") == []
    assert patched.value("""
        async def cleaned():
            while not log:
                await asyncio.sleep(0.001)
            return log
        released.set()
        here(asyncio.wait_for(cleaned(), 10))
    """) == ["cleaned up"]


# --- %portal patch ---------------------------------------------------------------------------------------------------

PLACES = """
    def places():
        return [vars(owner)[name] for owner, name in (
            (asyncio, "run"), (asyncio.Runner, "run"), (asyncio.Runner, "close"),
            (asyncio.BaseEventLoop, "run_until_complete"), (asyncio.BaseEventLoop, "_run_once"),
            (asyncio.BaseEventLoop, "stop"), (asyncio, "Task"), (asyncio, "Future"))]
    def same():
        return [now is was for now, was in zip(places(), before)]
"""


def test_portal_patch_is_put_on_and_taken_off(patched_kernel: Kernel) -> None:
    kernel = patched_kernel
    kernel.value("%portal patch off\n%portal patch off")
    kernel.value(PLACES)
    kernel.value("before = places()")
    assert "asyncio is not patched: %portal patch on" in str(kernel.execute("%portal").result)
    error = kernel.execute("coroutine = double(1)\nasyncio.run(coroutine)").error
    assert error is not None
    assert "cannot be called from a running event loop" in error.evalue
    kernel.value("coroutine.close()")
    kernel.value("%portal patch on\n%portal patch on")
    assert kernel.value("same()") == [False] * 6 + [True] * 2
    assert "run_until_complete() suspend their callers" in str(kernel.execute("%portal").result)
    assert kernel.value("import ipyportal\nwith ipyportal.patch_asyncio():\n    pass\nlibrary(1)") == 2
    kernel.value("%portal patch off")
    assert kernel.value("same()") == [True] * 8
    assert kernel.value("with ipyportal.patch_asyncio():\n    result = library(1)\nresult, all(same())") == (2, True)


@pytest.mark.parametrize("line", ["%portal patch", "%portal patch maybe"])
def test_portal_patch_needs_on_or_off(patched_kernel: Kernel, line: str) -> None:
    reply = patched_kernel.execute(line)
    assert "%portal patch needs on or off" in reply.stderr + str(reply.error)


def test_unloading_takes_the_patch_off(loaded_kernel: Kernel) -> None:
    kernel = loaded_kernel
    kernel.value(LIBRARY)
    kernel.value(PLACES)
    kernel.value("before = places()\n%portal patch on")
    assert kernel.value("library(1), any(same()[:6])") == (2, False)
    kernel.value("%unload_ext ipyportal")
    assert kernel.value("all(same())") is True
    kernel.value("%load_ext ipyportal")
    assert kernel.value("all(same())") is True


def test_without_the_extension_it_works_in_cells_too_and_the_stop_button_ends_them(kernel: Kernel) -> None:
    kernel.value(LIBRARY)
    kernel.value("import ipyportal\npatch = ipyportal.patch_asyncio()\npatch.__enter__()")
    assert kernel.value("library(2), here(double(3))") == (4, 6)
    for cell in ("asyncio.run(slow())", "here(slow())", "await asyncio.sleep(0)\nhere(slow())"):
        waiting = kernel.begin(cell)
        kernel.wait_for(lambda waiting=waiting: "begun" in waiting.stdout_so_far(), 10)  # type: ignore[misc]
        kernel.interrupt()
        error = waiting.reply(timeout=10).error
        assert error is not None
        assert error.ename == "KeyboardInterrupt"
        assert kernel.value("log.pop()") == "cleaned up"
    kernel.value("%load_ext ipyportal")
    assert kernel.value("library(2)") == 4
    kernel.value("patch.__exit__(None, None, None)")


def test_it_works_in_the_cell_that_loads_the_extension(kernel: Kernel) -> None:
    kernel.value(LIBRARY)
    reply = kernel.execute("""
        %load_ext ipyportal
        %portal patch on
        print(library(1), here(double(2)))
        await asyncio.sleep(0)
        print(library(3), here(double(4)))
    """)
    assert reply.stdout.endswith("to undo, type %portal patch off\n2 4\n6 8\n")
    assert kernel.value("library(2)") == 4


def test_nest_asyncio_is_told_and_works_together_with_the_patch(loaded_kernel: Kernel) -> None:
    pytest.importorskip(NEST_ASYNCIO)
    kernel = loaded_kernel
    kernel.value(LIBRARY)
    assert kernel.value("run(double(1), on='nested')") == 2  # which applies it
    said = str(kernel.execute("%portal").result)
    assert "applied: run_until_complete() is its own" in said
    kernel.value("nested = asyncio.run\n%portal patch on")
    assert kernel.value("library(2), here(double(3)), run(double(4)), run(double, 5, on='nested')") == (4, 6, 8, 10)
    assert kernel.value("await asyncio.sleep(0)\nlibrary(2), here(double(3)), run(double(4))") == (4, 6, 8)
    pending = kernel.begin("asyncio.run(slow())")
    kernel.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert kernel.value("log") == ["cleaned up"]
    kernel.value("%portal patch off")
    assert kernel.value("asyncio.run is nested, library(6)") == (True, 12)


def test_the_stop_button_ends_a_nested_run_with_its_clean_up(loaded_kernel: Kernel) -> None:
    pytest.importorskip(NEST_ASYNCIO)
    loaded_kernel.value(LIBRARY)
    pending = loaded_kernel.begin("run(slow, on='nested')")
    loaded_kernel.interrupt()
    error = pending.reply(timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert loaded_kernel.value("log") == ["cleaned up"]
