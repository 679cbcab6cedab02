"""The kernel: its cells and callbacks made suspendable, its thread as a `Portal`, and comms during a wait.

This is the one module that touches what is ipykernel's own. Seen to work with ipykernel 6.17.1, 6.29.5, 7.3.0, 7.4.0:

- ``kernel.shell_handlers``: a dict from message types to handlers, called by ``dispatch_shell``, which awaits what
  they return. The entries for cells and comms are replaced by suspendable ones.
- ``shell.run_cell_async``: ipykernel runs asynchronous cells in a task of their own, made of what this returns.
- ipykernel 7.4 lets comm messages pass while a cell is suspended. 7.0 to 7.3 hold them back in ``kernel.shell_main``,
  called for each message; 6 in a queue filled by ``kernel.shell_stream.on_recv``. There a callback is put in front,
  which handles comm messages itself while a cell is suspended, and hands on everything else.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ipyportal.concurrency.calls import Call
from ipyportal.concurrency.portals import LoopPortal
from ipyportal.concurrency.primitives import CoroutineWrapper, as_exception
from ipyportal.concurrency.suspension import suspendable
from ipyportal.concurrency.waiters import SyncWaiter
from ipyportal.notebook.attribution import attribute_output
from ipyportal.notebook.interrupts import Interrupts

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["KernelPortal", "LiveKernel"]

T = TypeVar("T")

_COMMS = ("comm_open", "comm_msg", "comm_close")


class KernelPortal(LoopPortal):
    """The kernel's thread. While it waits blocked, its waiter runs what is submitted; else its loop does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, "the kernel's thread")
        self._thread = threading.main_thread()

    def submit(self, call: Call[T]) -> Call[T]:
        waiter = SyncWaiter.of_thread(self._thread)
        if waiter is not None and waiter.lend(call, self):
            return call
        return super().submit(call)


class _Cell(CoroutineWrapper[Any]):
    """The coroutine that runs a cell.

    ipykernel makes a task of that of an asynchronous cell: then it is suspendable, and can be interrupted. IPython
    steps through that of a synchronous cell by hand, within the kernel's handler, which is suspendable itself.
    """

    __slots__ = ("_begun", "_interrupts")

    def __init__(self, cell: Coroutine[Any, Any, Any], interrupts: Interrupts) -> None:
        self._inner: Coroutine[Any, Any, Any] = cell
        self._interrupts = interrupts
        self._begun = False

    async def _watched(self, cell: Coroutine[Any, Any, Any]) -> Any:
        with self._interrupts.watch(is_cell=True):
            return await cell

    def send(self, value: Any) -> Any:
        if not self._begun:
            self._begun = True
            task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
            if task is not None and task.get_coro() is self:
                self._inner = suspendable(self._watched(self._inner))
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._inner.throw(as_exception(typ, val, tb))

    def close(self) -> None:
        self._inner.close()


def _end_at_users_line(traceback: TracebackType | None) -> None:
    """Cut off the frames at the end that are ipyportal's: IPython hides such frames, but never the last one."""
    last = None
    while traceback is not None:
        if not traceback.tb_frame.f_globals.get("__name__", "").startswith("ipyportal."):
            last = traceback
        traceback = traceback.tb_next
    if last is not None:
        last.tb_next = None


class LiveKernel:
    """The changes made to a running kernel, and their undoing. All in the kernel's thread."""

    def __init__(self, shell: InteractiveShell, kernel: Any, interrupts: Interrupts) -> None:
        self._shell = shell
        self._kernel = kernel
        self._interrupts = interrupts
        self._handlers: dict[str, Any] = {}
        self._open_cells = 0
        self._undo: list[Callable[[], object]] = []
        self._loop = asyncio.get_running_loop()
        self._comm_tasks: set[asyncio.Task[None]] = set()

    def install(self) -> None:
        """Make every later cell, comm message and widget callback suspendable."""
        handlers = self._kernel.shell_handlers
        for name in ("execute_request", *_COMMS):
            if name in handlers:
                self._handlers[name] = handlers[name]
                handlers[name] = self._suspendable_handler(handlers[name], name == "execute_request")
        self._wrap_async_cells()
        self._let_comms_pass()
        put_back = attribute_output(self._shell)
        if put_back is not None:
            self._undo.append(put_back)

    def uninstall(self) -> None:
        """Put everything back as it was."""
        for name, handler in self._handlers.items():
            self._kernel.shell_handlers[name] = handler
        self._handlers.clear()
        while self._undo:
            self._undo.pop()()

    def _suspendable_handler(self, original: Any, executes: bool) -> Any:
        async def handle(*args: Any) -> Any:
            self._open_cells += executes
            try:
                with self._interrupts.watch(is_cell=False):
                    result = original(*args)
                    return await result if inspect.isawaitable(result) else result
            finally:
                self._open_cells -= executes

        @functools.wraps(original)
        def handler(*args: Any) -> Any:
            return suspendable(handle(*args))

        return handler

    def _wrap_async_cells(self) -> None:
        shell: Any = self._shell
        original = shell.run_cell_async

        @functools.wraps(original)
        def run_cell_async(*args: Any, **kwargs: Any) -> Any:
            return _Cell(original(*args, **kwargs), self._interrupts)

        self._replace(shell, "run_cell_async", run_cell_async)
        self._show_interrupts()

    def _show_interrupts(self) -> None:
        """An asynchronous cell that is interrupted ends with KeyboardInterrupt, not with CancelledError."""
        shell: Any = self._shell
        show, run_code = shell.showtraceback, shell.run_code
        shown: list[BaseException] = []

        @functools.wraps(show)
        def showtraceback(exc_tuple: Any = None, *args: Any, **kwargs: Any) -> Any:
            exc = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
            if isinstance(exc, asyncio.CancelledError) and self._interrupts.take():
                exc = KeyboardInterrupt().with_traceback(exc.__traceback__)
                shown.append(exc)
                exc_tuple = (KeyboardInterrupt, exc, exc.__traceback__)
            if isinstance(exc, KeyboardInterrupt):
                _end_at_users_line(exc.__traceback__)
            return show(exc_tuple, *args, **kwargs)

        @functools.wraps(run_code)
        async def run_code_and_convert(code_obj: Any, result: Any = None, **kwargs: Any) -> Any:
            failed = await run_code(code_obj, result, **kwargs)
            if shown:
                interrupt = shown.pop()
                if result is not None:
                    result.error_in_exec = interrupt
            return failed

        self._replace(shell, "showtraceback", showtraceback)
        self._replace(shell, "run_code", run_code_and_convert)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of one object; undone by what was there, or by deleting it if that was the class's."""
        own = vars(owner)
        if name in own:
            before = own[name]
            self._undo.append(lambda: setattr(owner, name, before))
        else:
            self._undo.append(lambda: delattr(owner, name))
        setattr(owner, name, value)

    # --- comm messages while a cell is suspended ---------------------------------------------------------------------

    def _let_comms_pass(self) -> None:
        kernel = self._kernel
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread is not None and getattr(thread, "manager", None) is not None:
            from ipyportal.notebook.environment import version_of

            if version_of("ipykernel") >= (7, 4):
                return  # it does so itself

            async def shell_main(subshell_id: str | None, msg: Any) -> None:
                if subshell_id is None and self._is_comm_of_open_cell(msg):
                    await self._handle_comm(msg)
                else:
                    await kernel.shell_main(subshell_id, msg)

            thread.manager.set_on_recv_callback(shell_main)
            self._undo.append(lambda: thread.manager.set_on_recv_callback(kernel.shell_main))
        elif getattr(kernel, "shell_stream", None) is not None and hasattr(kernel, "schedule_dispatch"):
            schedule = functools.partial(kernel.schedule_dispatch, kernel.dispatch_shell)

            def on_recv(msg: Any) -> None:
                if self._is_comm_of_open_cell(msg):
                    task = self._loop.create_task(self._handle_comm(msg), context=contextvars.copy_context())
                    self._comm_tasks.add(task)
                    task.add_done_callback(self._comm_tasks.discard)
                else:
                    schedule(msg)

            kernel.shell_stream.on_recv(on_recv, copy=False)
            self._undo.append(lambda: kernel.shell_stream.on_recv(schedule, copy=False))

    def _is_comm_of_open_cell(self, msg: Any) -> bool:
        if not self._open_cells:
            return False
        session = self._kernel.session
        try:
            _, frames = session.feed_identities(msg, copy=False)
            # Without the signature's check, which refuses a message that it has seen: it is checked on dispatch.
            header = session.unpack(frames[1].bytes)
        except Exception:  # noqa: BLE001 - the kernel says what is wrong with it
            return False
        return header.get("msg_type") in _COMMS

    async def _handle_comm(self, msg: Any) -> None:
        """Do what ``dispatch_shell`` does for a comm message, and put the cell's parent header back."""
        kernel = self._kernel
        try:
            idents, frames = kernel.session.feed_identities(msg, copy=False)
            message = kernel.session.deserialize(frames, content=True, copy=False)
        except Exception:
            kernel.log.exception("Invalid comm message")
            return
        parent, ident = kernel.get_parent("shell"), self._parent_ident()
        kernel.set_parent(idents, message, channel="shell")
        kernel._publish_status("busy", "shell", parent=message)
        try:
            handler = kernel.shell_handlers.get(message["header"]["msg_type"])
            if handler is not None:
                result = handler(getattr(kernel, "shell_stream", None), idents, message)
                if inspect.isawaitable(result):
                    await result
        except Exception:
            kernel.log.exception("Exception in a comm handler")
        except KeyboardInterrupt:
            kernel.log.error("KeyboardInterrupt in a comm handler")
        finally:
            kernel._publish_status("idle", "shell", parent=message)
            kernel.set_parent(ident, parent, channel="shell")

    def _parent_ident(self) -> Any:
        kernel = self._kernel
        if hasattr(kernel, "_get_shell_context_var"):  # ipykernel 7
            return kernel._get_shell_context_var(kernel._shell_parent_ident)
        return kernel._parent_ident["shell"]
