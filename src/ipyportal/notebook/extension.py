"""`Extension`: what is done to a shell and its kernel while the extension is loaded, and undone."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from ipyportal.concurrency.calls import Call, Portal
from ipyportal.concurrency.portals.shared import endings, get_global_loop
from ipyportal.concurrency.waiters.blocking import ThreadInbox
from ipyportal.hosts import Host, KeyboardInterrupts, replace_host
from ipyportal.notebook.await_in_magics import AwaitInMagics
from ipyportal.notebook.buttons import cancel_buttons
from ipyportal.notebook.cells import cell_number, in_a_cell
from ipyportal.notebook.debugger import hide_from_debugger
from ipyportal.notebook.display import register_formatters, tell_ended
from ipyportal.notebook.environment import Environment, Kind, Report, detect, other_kernel, shows_widgets
from ipyportal.notebook.history import History, Launched
from ipyportal.notebook.interrupts import Interrupts
from ipyportal.notebook.kernel import LiveKernel
from ipyportal.notebook.lite import attend_page
from ipyportal.notebook.magics import CELL_MAGICS, PortalMagics, completions
from ipyportal.notebook.tracebacks import show_users_frames
from ipyportal.patching import PatchSwitch

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Extension"]


class Extension(Host):
    """The loaded extension of one shell. The first one's is what surrounds `run()` while it is loaded.

    Args:
        shell: The shell.
        first: The extension of the shell that had it before; it keeps the engine.
    """

    def __init__(self, shell: InteractiveShell, first: Extension | None = None) -> None:
        self.shell = shell
        self.environment: Environment = detect(shell)
        self._first = first
        self.interrupts = Interrupts(self, shell.user_global_ns)
        self.kernel_portal: Portal | None = None
        self.history: History = History() if first is None else first.history
        self.timing = AwaitInMagics(shell)
        self.patch = PatchSwitch()
        self._live: LiveKernel | None = None
        self._magics: dict[tuple[str, str], Any] = {}  # with what they hide
        self._undo: list[Callable[[], object]] = []

    def load(self) -> None:
        self._undo.append(show_users_frames(self.shell))
        kernel = self.environment.kernel
        if self._first is not None:
            kernel = None  # it has been taken care of
        if self.environment.kind is Kind.OTHER_KERNEL:
            print(f"ipyportal: {other_kernel(self.shell)}")  # noqa: T201 - where output of the cell goes
        if self.environment.kind is Kind.PAGE and self._first is None:
            self.kernel_portal = get_global_loop()
            self._undo.append(attend_page(getattr(self.shell, "kernel", None)))
        if kernel is not None:
            portal = self.kernel_portal = ThreadInbox(threading.main_thread(), "the kernel's thread")
            self._undo.append(lambda: portal.close("the extension was unloaded"))
            self._undo.append(hide_from_debugger(kernel))
            self._live = LiveKernel(self.shell, kernel, portal, self.interrupts)
            self._live.install()
            endings.append(self._live.finish)  # before ipykernel closes its sockets
            self._undo.append(functools.partial(_remove, endings, self._live.finish))
            if asyncio._get_running_loop() is not None and threading.current_thread() is threading.main_thread():
                self._live.attach()
        if self._first is None:
            replace_host(self)
            self._undo.append(cancel_buttons.close)
        magics = PortalMagics(self.shell, self)
        table = self.shell.magics_manager.magics
        names = [("line", name) for name in magics.magics["line"]] + [("cell", name) for name in CELL_MAGICS]
        self._magics = {(kind, name): table[kind].get(name) for kind, name in names}
        registry = self.shell.magics_manager.registry
        self._undo.append(lambda: registry.pop(type(magics).__name__, None))
        self._undo.append(lambda: _remove(self.shell.configurables, magics))  # IPython adds whatever has magics
        self.shell.register_magics(magics)
        for name, method in CELL_MAGICS.items():
            self.shell.register_magic_function(getattr(magics, method), "cell", name)
        self.shell.events.register("post_run_cell", tell_ended)
        self._undo.append(lambda: self.shell.events.unregister("post_run_cell", tell_ended))
        self._undo.append(_explain_run(self.shell))
        self.timing.switch(True)
        self._undo.append(register_formatters(self.shell, self.history))
        self._undo.append(_add_completions(self.shell))

    def unload(self) -> None:
        if self._first is None:
            replace_host(Host())
        if self._live is not None:
            self._live.uninstall()
        self.timing.switch(False)
        self.patch.switch(False)
        table = self.shell.magics_manager.magics
        for (kind, name), before in self._magics.items():
            if before is None:
                table[kind].pop(name, None)
            else:
                table[kind][name] = before
        while self._undo:
            self._undo.pop()()

    def settings(self) -> dict[str, bool]:
        """What ``%portal`` has set that an unloading takes away."""
        return {"await": self.timing.on, "patch": self.patch.on}

    def put_back(self, settings: dict[str, bool]) -> None:
        """Set what was set before a reload, and say so."""
        kept = [name for name, on in settings.items() if on != self.settings()[name]]
        for name in kept:
            self.switch(name, settings[name])
        if kept:
            said = ", ".join(f"%portal {name} {'on' if settings[name] else 'off'}" for name in kept)
            print(f"ipyportal: still {said}")  # noqa: T201 - a magic's answer

    def switch(self, name: str, on: bool) -> None:
        """Turn ``%portal await`` or ``%portal patch`` on or off. Twice is once."""
        (self.timing if name == "await" else self.patch).switch(on)

    def launched(self, call: Call[Any]) -> Launched:
        return self.history.add(call, cell_number(self.shell))

    def report(self) -> Report:
        """What ``%portal`` shows."""
        return Report(self.environment, len(self.history.running()))

    def blocking(self) -> AbstractContextManager[object]:
        # Without greenlets. KeyboardInterrupt that leaves a callback or a task, and no cell, would end the kernel.
        if (
            self.environment.kernel is None
            or asyncio._get_running_loop() is None
            or threading.current_thread() is not threading.main_thread()
            or in_a_cell()
        ):
            return super().blocking()
        return KeyboardInterrupts(signal.getsignal(signal.SIGINT), as_cancel=True)

    def shows_widgets(self) -> bool:
        return self.environment.kernel is None or shows_widgets(self.shell)

    def interrupted(self) -> BaseException | None:
        return self.interrupts.take()

    def raise_owed(self) -> None:
        self.interrupts.raise_owed()


def _remove(things: list[Any], thing: object) -> None:
    if thing in things:
        things.remove(thing)


def _explain_run(shell: InteractiveShell) -> Callable[[], object]:
    """Without its import, IPython takes ``run(x)`` for ``%run (x)``: say what is missing. Gives what undoes that."""
    shell.find_magic("run")  # newer IPythons import a magic when it is first looked up
    table: dict[str, Any] = shell.magics_manager.magics["line"]
    original = table["run"]

    @functools.wraps(original)
    def run_file(line: str = "", *args: Any, **kwargs: Any) -> Any:
        if line.lstrip().startswith("(") and "run" not in shell.user_ns:
            raise UsageError("run is not imported: from ipyportal import run")
        return original(line, *args, **kwargs)

    table["run"] = run_file

    def undo() -> None:
        if table.get("run") is run_file:
            table["run"] = original

    return undo


def _add_completions(shell: InteractiveShell) -> Callable[[], object]:
    """Complete the magics' options; return what undoes that."""
    pattern = r"%{1,2}(await|background|thread|calls|portal)"
    shell.set_hook("complete_command", completions, re_key=pattern)

    def undo() -> None:
        hooks = shell.strdispatchers["complete_command"].regexs
        for key in [key for key in hooks if getattr(key, "pattern", key) == pattern]:
            del hooks[key]

    return undo
