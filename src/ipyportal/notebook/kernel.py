"""The kernel: its cells and callbacks made suspendable, its thread as a `Portal`, and what is answered during a wait.

This is the one module that touches what is ipykernel's own. Seen to work with ipykernel 6.17.1, 6.29.5, 7.3.0, 7.4.0:

- ``kernel.shell_handlers``: a dict from message types to handlers, called by ``dispatch_shell``, which awaits what
  they return. The entries for cells and comms are replaced by suspendable ones.
- ``shell.run_cell_async``: ipykernel runs asynchronous cells in a task of their own, made of what this returns.
- ``kernel.pre_handler_hook``: called before each handler, it keeps the handler of SIGINT for ``post_handler_hook`` in
  ``kernel.saved_sigint_handler``, and sets Python's own, whose KeyboardInterrupt would end the kernel if it came before
  the message's handler is called.
- ``kernel._cancel_on_sigint``: ipykernel's handler of SIGINT for that task. It would cancel a cell that has begun
  with a CancelledError of which `Interrupts` knows nothing, so ours stays in place.
- ipykernel 7.0 to 7.3 hold comm messages back while a cell is suspended, in ``kernel.shell_main``, called for each
  message; 6 in a queue filled by ``kernel.shell_stream.on_recv``. 7.4 lets them pass, but says neither "busy" nor
  "idle" for them, and a widget's view keeps back all further changes until the one before is "idle". So a callback is
  put in front, which handles comm messages itself while a cell is suspended, and requests for completion and tooltips,
  which ipykernel answers when the cell is over; it hands on everything else.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from ipyportal.concurrency.greenlets import greenlets_available
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception
from ipyportal.concurrency.reporting import report
from ipyportal.concurrency.suspension.loop_internals import has_handles_ready
from ipyportal.concurrency.suspension.loops import keep, let_go, waits_of
from ipyportal.concurrency.suspension.steps import suspendable
from ipyportal.concurrency.waiters.blocking import ThreadInbox
from ipyportal.notebook.ending import end_kernel
from ipyportal.notebook.gui import keep_windows_live
from ipyportal.notebook.interrupts import Interrupts
from ipyportal.notebook.output import attribute_output
from ipyportal.notebook.patches import replace
from ipyportal.notebook.wakeups import wake_on_signals

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["LiveKernel", "on_output_thread"]

T = TypeVar("T")

_COMMS = ("comm_open", "comm_msg", "comm_close")
_QUESTIONS = ("complete_request", "inspect_request")

_INTERRUPTED = compile("raise KeyboardInterrupt", "<the stop button>", "exec")


def on_output_thread(function: Callable[[], object]) -> None:
    """Call `function` in the kernel's thread that sends output, when what was printed before is sent. From any thread.

    For what displays or flushes: elsewhere that waits for that thread, up to 10 seconds for each stream, which on an
    event loop would hold up all its calls. Where there is no such thread, `function` is called at once.
    """
    from IPython import get_ipython

    thread = getattr(getattr(get_ipython(), "kernel", None), "iopub_thread", None)
    if thread is None:
        function()
        return
    context = contextvars.copy_context()

    def call() -> None:
        try:
            context.run(function)
        except Exception as exc:  # noqa: BLE001 - it would keep back what others send
            report(exc, "what was to be displayed could not be")

    thread.schedule(call)


class _Cell(CoroutineWrapper[Any]):
    """The coroutine that runs a cell.

    ipykernel makes a task of that of an asynchronous cell: then it is suspendable, and can be interrupted. IPython
    steps through that of a synchronous cell by hand, within the kernel's handler, which is suspendable itself.
    """

    __slots__ = ("_begun", "_interrupts", "handler")

    def __init__(self, cell: Coroutine[Any, Any, Any], interrupts: Interrupts) -> None:
        self._inner: Coroutine[Any, Any, Any] = cell
        self._interrupts = interrupts
        self._begun = False
        self.handler: Any = None
        """What is watched until it begins."""

    async def _watched(self, cell: Coroutine[Any, Any, Any], early: bool) -> Any:
        with self._interrupts.watch(handler=self.handler, is_cell=True, early=early):
            return await cell

    def _begin(self, early: bool = False) -> None:
        self._begun = True
        task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
        if task is not None and task.get_coro() is self:
            self._inner = suspendable(self._watched(self._inner, early))

    def send(self, value: Any) -> Any:
        if not self._begun:
            self._begin()
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        exc = as_exception(typ, val, tb)
        if not self._begun and isinstance(exc, asyncio.CancelledError):
            # The kernel takes the end of this task for its own: on ipykernel 6 it would answer no more. So the cell
            # ends as one that was interrupted; its code does not run.
            self._begin(early=True)
            return self._inner.send(None)
        return self._inner.throw(exc)

    def close(self) -> None:
        self._inner.close()


class _WithParent(CoroutineWrapper[Any]):
    """A comm's handler, in each step of which its message is the kernel's parent.

    Between its steps the parent is again what it was: the cell's, which goes on meanwhile, and whose error and "idle"
    would else be taken for the comm's; or that of a later cell.
    """

    __slots__ = ("_idents", "_kernel", "_message")

    def __init__(self, handling: Coroutine[Any, Any, Any], kernel: Any, idents: Any, message: Any) -> None:
        self._inner: Coroutine[Any, Any, Any] = handling
        self._kernel = kernel
        self._idents = idents
        self._message = message

    def _step(self, step: Callable[[Any], Any], value: Any) -> Any:
        idents, parent = self._latest()
        self._kernel.set_parent(self._idents, self._message, channel="shell")
        try:
            return step(value)
        finally:
            self._kernel.set_parent(idents, parent, channel="shell")

    def _latest(self) -> tuple[Any, Any]:
        kernel = self._kernel
        if hasattr(kernel, "_shell_context"):  # ipykernel 7
            context = kernel._shell_context
            return context.get(kernel._shell_parent_ident), context.get(kernel._shell_parent)
        return kernel._parent_ident["shell"], kernel.get_parent("shell")

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._step(self._inner.throw, as_exception(typ, val, tb))

    def close(self) -> None:
        self._step(lambda _: self._inner.close(), None)


class LiveKernel:
    """The changes made to a running kernel, and their undoing. All in the kernel's thread."""

    def __init__(self, shell: InteractiveShell, kernel: Any, portal: ThreadInbox, interrupts: Interrupts) -> None:
        self._shell = shell
        self._kernel = kernel
        self._interrupts = interrupts
        self._handlers: dict[str, Any] = {}
        self._open = 0  # cells and callbacks that have begun and not ended
        self._undo: list[Callable[[], object]] = []
        self._portal = portal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks_beside: set[asyncio.Task[None]] = set()

    def install(self) -> None:
        """Make every later cell, comm message and widget callback suspendable."""
        handlers = self._kernel.shell_handlers
        for name in ("execute_request", *_COMMS):
            if name in handlers:
                self._handlers[name] = handlers[name]
                handlers[name] = self._suspendable_handler(handlers[name])
        self._guard_dispatch()
        self._wrap_async_cells()
        for put_back in attribute_output(self._shell), keep_windows_live(self._kernel, self._is_open):
            if put_back is not None:
                self._undo.append(put_back)

    def _is_open(self) -> bool:
        """Whether code of a cell or a callback may be waiting on the kernel's loop, or is about to be run there."""
        return self._open > 0 or (
            self._loop is not None and (bool(waits_of(self._loop)) or has_handles_ready(self._loop))
        )

    def attach(self) -> None:
        """What needs the kernel's loop: at once in a cell; in the first one, if the kernel's configuration loads us."""
        self._loop = asyncio.get_running_loop()
        self._portal.attach(self._loop)
        self._undo.append(wake_on_signals(self._loop))
        self._let_pass()
        if keep(self._loop, self._interrupts.catch):
            self._undo.append(functools.partial(let_go, self._loop))

    def finish(self) -> None:
        """What is in flight ends with the kernel."""
        end_kernel(self._loop, self._portal, self._interrupts)

    def uninstall(self) -> None:
        """Put everything back as it was."""
        for name, handler in self._handlers.items():
            self._kernel.shell_handlers[name] = handler
        self._handlers.clear()
        while self._undo:
            self._undo.pop()()

    def _suspendable_handler(self, original: Any) -> Any:
        async def handle(*args: Any) -> Any:
            in_main_thread = threading.current_thread() is threading.main_thread()  # and not in a subshell's
            if self._loop is None and in_main_thread:
                self.attach()
            self._open += in_main_thread
            try:
                with self._interrupts.watch():
                    result = original(*args)
                    return await result if inspect.isawaitable(result) else result
            finally:
                self._open -= in_main_thread

        @functools.wraps(original)
        def handler(*args: Any) -> Any:
            self._interrupts.expect()
            return suspendable(handle(*args))

        return handler

    def _guard_dispatch(self) -> None:
        kernel = self._kernel
        original: Any = getattr(kernel, "pre_handler_hook", None)
        if not greenlets_available() or getattr(original, "__module__", None) != "ipykernel.kernelbase":
            return  # without greenlets nothing is watched; and what another kernel does there is its own affair

        @functools.wraps(original)
        def pre_handler_hook() -> None:
            kernel.saved_sigint_handler = self._interrupts.begin_dispatch()

        self._undo.append(replace(kernel, "pre_handler_hook", pre_handler_hook))

    def _wrap_async_cells(self) -> None:
        shell: Any = self._shell
        original = shell.run_cell_async

        @functools.wraps(original)
        def run_cell_async(*args: Any, **kwargs: Any) -> Any:
            return _Cell(original(*args, **kwargs), self._interrupts)

        self._undo.append(replace(shell, "run_cell_async", run_cell_async))
        cancel_on_sigint = getattr(self._kernel, "_cancel_on_sigint", None)
        if cancel_on_sigint is not None:

            @functools.wraps(cancel_on_sigint)
            def keep_our_handler(future: Any) -> AbstractContextManager[None]:
                cell = future.get_coro() if isinstance(future, asyncio.Task) else None
                if isinstance(cell, _Cell):
                    cell.handler = self._interrupts.await_cell()
                    if cell.handler is not None:
                        return nullcontext()
                return cancel_on_sigint(future)  # type: ignore[no-any-return]

            self._undo.append(replace(self._kernel, "_cancel_on_sigint", keep_our_handler))
        self._show_interrupts()

    def _show_interrupts(self) -> None:
        """An asynchronous cell that is interrupted ends with KeyboardInterrupt, not with CancelledError."""
        shell: Any = self._shell
        show, run_code = shell.showtraceback, shell.run_code
        shown: list[BaseException] = []

        @functools.wraps(show)
        def showtraceback(exc_tuple: Any = None, *args: Any, **kwargs: Any) -> Any:
            exc = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
            if isinstance(exc, asyncio.CancelledError) and (interrupt := self._interrupts.take()) is not None:
                exc = interrupt.with_traceback(exc.__traceback__)
                shown.append(exc)
                exc_tuple = (type(exc), exc, exc.__traceback__)
            return show(exc_tuple, *args, **kwargs)

        @functools.wraps(run_code)
        async def run_code_and_convert(code_obj: Any, result: Any = None, **kwargs: Any) -> Any:
            if self._interrupts.take():  # before this code could begin: it does not
                code_obj, kwargs = _INTERRUPTED, {}
            try:
                failed = await run_code(code_obj, result, **kwargs)
            finally:
                self._put_loop_back()
            if shown:
                interrupt = shown.pop()
                if result is not None:
                    result.error_in_exec = interrupt
            return failed

        self._undo.append(replace(shell, "showtraceback", showtraceback))
        self._undo.append(replace(shell, "run_code", run_code_and_convert))

    def _put_loop_back(self) -> None:
        """Have the kernel's loop be the one that runs in its thread, whatever the cell did.

        Objects of Playwright's sync API that are used outside of their thread leave theirs there: all later cells
        would hang.
        """
        if self._loop is not None and threading.current_thread() is threading.main_thread():
            asyncio._set_running_loop(self._loop)

    # --- what is answered while a cell is suspended: comm messages, completion, tooltips ------------------------------

    def _let_pass(self) -> None:
        kernel, loop = self._kernel, self._loop
        assert loop is not None
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread is not None and getattr(thread, "manager", None) is not None:

            async def shell_main(subshell_id: str | None, msg: Any) -> None:
                if subshell_id is None and self._is_for_a_cell_that_waits(msg):
                    # In a context of its own: ipykernel runs all messages in one and the same.
                    await loop.create_task(self._handle_beside(msg), context=contextvars.copy_context())
                else:
                    await kernel.shell_main(subshell_id, msg)

            thread.manager.set_on_recv_callback(shell_main)
            self._undo.append(lambda: thread.manager.set_on_recv_callback(kernel.shell_main))
        elif getattr(kernel, "shell_stream", None) is not None and hasattr(kernel, "schedule_dispatch"):
            schedule = functools.partial(kernel.schedule_dispatch, kernel.dispatch_shell)

            def on_recv(msg: Any) -> None:
                if self._is_for_a_cell_that_waits(msg):
                    task = loop.create_task(self._handle_beside(msg), context=contextvars.copy_context())
                    self._tasks_beside.add(task)
                    task.add_done_callback(self._tasks_beside.discard)
                else:
                    schedule(msg)

            kernel.shell_stream.on_recv(on_recv, copy=False)
            self._undo.append(lambda: kernel.shell_stream.on_recv(schedule, copy=False))

    def _is_for_a_cell_that_waits(self, msg: Any) -> bool:
        if not self._open:
            return False
        session = self._kernel.session
        try:
            _, frames = session.feed_identities(msg, copy=False)
            # Without the signature's check, which refuses a message that it has seen: it is checked on dispatch.
            header = session.unpack(frames[1].bytes)
        except Exception:  # noqa: BLE001 - the kernel says what is wrong with it
            return False
        return header.get("msg_type") in (*_COMMS, *_QUESTIONS)

    async def _handle_beside(self, msg: Any) -> None:
        """Do what ``dispatch_shell`` does for a message, beside the cell that waits."""
        kernel = self._kernel
        try:
            idents, frames = kernel.session.feed_identities(msg, copy=False)
            message = kernel.session.deserialize(frames, content=True, copy=False)
        except Exception:
            kernel.log.exception("Invalid message")
            return
        kernel._publish_status("busy", "shell", parent=message)
        try:
            handler = kernel.shell_handlers.get(message["header"]["msg_type"])
            if handler is not None:
                result = handler(self._reply_stream(), idents, message)
                await _WithParent(result, kernel, idents, message)
        except Exception:
            kernel.log.exception("Exception in a handler")
        except KeyboardInterrupt:
            kernel.log.error("KeyboardInterrupt in a handler")
        finally:

            def publish_idle() -> None:
                sys.stdout.flush()  # what it printed comes before its "idle"
                sys.stderr.flush()
                kernel._publish_status("idle", "shell", parent=message)

            on_output_thread(publish_idle)

    def _reply_stream(self) -> Any:
        thread = getattr(self._kernel, "shell_channel_thread", None)
        if thread is not None and getattr(thread, "manager", None) is not None:
            return thread.manager.get_subshell_to_shell_channel_socket(None)
        return getattr(self._kernel, "shell_stream", None)
