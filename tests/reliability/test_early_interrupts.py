"""The stop button pressed before a cell's code has begun, and just after its end: moments that a storm rarely hits.

Each is hit for certain here: a hook that the kernel or IPython calls at that moment raises the signal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.notebook.kernel import Kernel

# Run in a namespace of its own: KeyboardInterrupt is raised at once where one of the notebook's functions runs.
HOOKS = """
import asyncio, functools, signal, sys
shell = get_ipython()
kernel = shell.kernel
press = functools.partial(signal.raise_signal, signal.SIGINT)  # of C: no frame of its own

def before_ipython():
    # In the kernel, on its way to IPython: an asynchronous cell has no task yet.
    def transform(lines):
        shell.input_transformers_cleanup.remove(transform)
        press()
        return lines
    shell.input_transformers_cleanup.append(transform)

def before_the_code():
    # In IPython, on its way to the code.
    def hook(info):
        shell.events.unregister("pre_run_cell", hook)
        press()
    shell.events.register("pre_run_cell", hook)

def before_it_is_watched():
    # In the kernel, which has called our handler, and does not await it yet.
    ours = kernel.shell_handlers["execute_request"]
    def handler(*args):
        kernel.shell_handlers["execute_request"] = ours
        handling = ours(*args)
        press()
        return handling
    kernel.shell_handlers["execute_request"] = handler

def in_the_dispatcher():
    # In the kernel, which has made ready for an interrupt of the handler that it is about to call.
    ours = kernel.pre_handler_hook
    def pre_handler_hook():
        kernel.pre_handler_hook = ours
        ours()
        press()
    kernel.pre_handler_hook = pre_handler_hook

def between_two_turns():
    # The cell has a task, and the loop has not come to it.
    wrapper = shell.run_cell_async
    def run_cell_async(*args, **kwargs):
        shell.run_cell_async = wrapper
        asyncio.get_running_loop().call_soon(press)
        return wrapper(*args, **kwargs)
    shell.run_cell_async = run_cell_async

def cancelled():
    # By somebody else, before it has begun.
    wrapper = kernel._cancel_on_sigint
    def cancel_on_sigint(future):
        kernel._cancel_on_sigint = wrapper
        future.cancel()
        return wrapper(future)
    kernel._cancel_on_sigint = cancel_on_sigint

def after_a_statement():
    # IPython runs them one by one.
    run_code = shell.run_code
    async def run_and_press(*args, **options):
        failed = await run_code(*args, **options)
        shell.run_code = run_code
        press()
        return failed
    shell.run_code = run_and_press

def while_it_cancels_its_items():
    # Each that is cancelled calls this, in the middle of the loop over them.
    loop = asyncio.get_running_loop()
    genuine = loop.call_soon
    def call_soon(*args, **options):
        caller = sys._getframe(1)
        if caller.f_globals["__name__"] == "ipyportal.mapping.pool" and caller.f_code.co_name == "close":
            del loop.call_soon
            press()
        return genuine(*args, **options)
    loop.call_soon = call_soon

def while_it_is_submitted():
    # The call has been sent to the loop's thread, and nobody waits for it yet.
    from ipyportal.concurrency.portals import loops
    wake = loops.LoopWaker.wake
    def wake_and_press(waker):
        loops.LoopWaker.wake = wake
        wake(waker)
        press()
    # As a function of the engine's own: the signal is noticed in it.
    ours = {**vars(loops), "press": press}
    loops.LoopWaker.wake = type(wake)(wake_and_press.__code__, ours, closure=wake_and_press.__closure__)
"""

MOMENTS = {
    "before IPython": "before_ipython()",
    "in IPython": "before_the_code()",
    "before our handler is called": "in_the_dispatcher()",
    "before it is watched": "before_it_is_watched()",
    "before its first step": "between_two_turns()",
    "cancelled before its first step": "cancelled()",
}


@pytest.fixture(scope="module")
def shared(live_kernel: Kernel) -> Kernel:
    live_kernel.value(
        # Named as asyncio's modules are, for what stands in the place of one of its methods.
        "import signal\nran = []\nhooks = {'get_ipython': get_ipython, '__name__': 'asyncio.hooks'}\n"
        f"exec({HOOKS!r}, hooks)\nkernel, press = hooks['kernel'], hooks['press']"
    )
    return live_kernel


@pytest.fixture(autouse=True)
def answers(shared: Kernel) -> Iterator[None]:
    yield
    assert shared.value("run(asyncio.sleep(0, 'alive'))") == "alive"
    assert shared.value("await asyncio.sleep(0, 'alive')") == "alive"


@pytest.mark.parametrize(
    ("moment", "cell"),
    [
        (moment, cell)
        for moment in MOMENTS
        for cell in ("ran.append(1)\ntime.sleep(60)", "ran.append(1)\nawait asyncio.sleep(60)")
        if "await" in cell or "step" not in moment
    ],
)
def test_an_interrupt_before_the_code_has_begun_ends_the_cell(shared: Kernel, moment: str, cell: str) -> None:
    shared.value(f"ran.clear()\neval({MOMENTS[moment]!r}, hooks)")
    error = shared.execute(cell, timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("ran") == []
    assert shared.value("asyncio.current_task().cancelling()") == 0


def test_an_interrupt_between_two_statements_ends_the_cell(shared: Kernel) -> None:
    shared.value("ran.clear()")
    error = shared.execute("eval('after_a_statement()', hooks)\nran.append(1)\nran.append(2)", timeout=10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("ran") == [1]


def test_a_second_press_while_the_kernel_tells_of_the_first_does_not_end_it(shared: Kernel) -> None:
    """ipykernel logs that a widget's callback was interrupted, and there Python's own handler would end the kernel."""
    button = shared.value("""
        import ipywidgets
        pressed = []
        class PressAgain:
            def filter(self, record):
                if "KeyboardInterrupt" in record.msg:
                    pressed.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
                    press()
                return True
        press_again = PressAgain()
        kernel.log.addFilter(press_again)
        button = ipywidgets.Button()
        @button.on_click
        def wait(button):
            print("begun")
            run(asyncio.sleep(60))
        button.model_id
    """)
    click = shared.click(button)
    shared.wait_for(click.stdout_so_far, 10)
    time.sleep(0.05)  # from its output to the wait
    shared.interrupt()
    click.reply(10)
    assert shared.value("kernel.log.removeFilter(press_again)\npressed") == [False]


def test_a_second_press_while_a_map_cancels_its_items_leaves_none_behind(shared: Kernel) -> None:
    pending = shared.execute_async("""
        import ipyportal
        eval("while_it_cancels_its_items()", hooks)
        ran.clear()
        async def work(number):
            try:
                ran.append(number)
                print("begun")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ran.remove(number)
        ipyportal.map(work, range(20))
    """)
    shared.wait_for(lambda: pending.stdout_so_far().count("begun") == 20, 10)
    shared.interrupt()
    error = pending.reply(10).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("for _ in range(100):\n    if not ran: break\n    await asyncio.sleep(0.01)\nran") == []
    assert shared.value("[t for t in asyncio.all_tasks() if 'map' in repr(t) or '_Pool' in repr(t)]") == []


@pytest.mark.parametrize("begin", ["", "await asyncio.sleep(0)"])
def test_an_interrupt_while_a_call_is_submitted_waits_for_its_clean_up(shared: Kernel, begin: str) -> None:
    error = shared.execute(
        f"""
        ran.clear()
        async def work():
            try:
                ran.append("begun")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ran.append("cleaned up")
        {begin}
        eval("while_it_is_submitted()", hooks)
        run(work(), on="loop")
        """,
        timeout=10,
    ).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("ran") in ([], ["begun", "cleaned up"])


def test_a_portal_that_is_interrupted_while_it_submits_has_its_call_cancelled(shared: Kernel) -> None:
    error = shared.execute(
        """
        from ipyportal.concurrency import Portal, get_global_loop
        class Mine(Portal):
            name = "mine"
            def submit(self, call):
                get_global_loop().submit(call)
                begun.wait(5)
                press()
        begun = threading.Event()
        ran.clear()
        async def work():
            try:
                begun.set()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ran.append("cleaned up")
        run(work, on=Mine())
        """,
        timeout=10,
    ).error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    assert shared.value("ran") == ["cleaned up"]


def test_other_handlers_of_the_kernel_are_interrupted_as_ever(shared: Kernel) -> None:
    shared.value("""
        def slow(*args):
            print("begun", flush=True)
            time.sleep(60)
        kernel.shell_handlers["slow_request"] = slow
    """)
    pending = shared.request("slow_request", {})
    shared.wait_for(pending.stdout_so_far, 10)
    shared.interrupt()
    shared.wait_for(lambda: "idle" in [m["content"].get("execution_state") for m in pending.messages], 10)
    shared.value("del kernel.shell_handlers['slow_request']")
