"""The IPython extension: pairs the engine with the kernel, or with terminal IPython.

`load` finds out what this process is (`environment`), makes the kernel's cells and callbacks suspendable (`kernel`),
takes over the stop button while they run (`interrupts`), and adds the magics (`magics`). `unload` puts back
everything exactly.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ipyportal import concurrency, sync
from ipyportal.concurrency.portals import Portal
from ipyportal.notebook.environment import Environment, detect
from ipyportal.notebook.interrupts import Interrupts
from ipyportal.notebook.kernel import KernelPortal, LiveKernel
from ipyportal.notebook.magics import PortalMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Extension", "load", "unload"]


class Extension(sync.Host):
    """The loaded extension of one shell. It is what surrounds `run()` while it is loaded."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.environment: Environment = detect(shell)
        self.interrupts = Interrupts(self, shell.user_module.__dict__)
        self.kernel_portal: Portal | None = None
        self._live: LiveKernel | None = None
        self._magics: dict[str, Any] = {}

    def load(self) -> None:
        kernel = self.environment.kernel
        if kernel is not None:
            self.kernel_portal = KernelPortal(asyncio.get_running_loop())
            if self.environment.can_suspend:
                self._live = LiveKernel(self.shell, kernel, self.interrupts)
                self._live.install()
        sync.host = self
        magics = PortalMagics(self.shell)
        self._magics = dict(magics.magics["line"])
        self.shell.register_magics(magics)

    def unload(self) -> None:
        sync.host = sync.Host()
        if self._live is not None:
            self._live.uninstall()
        for name in self._magics:
            self.shell.magics_manager.magics["line"].pop(name, None)
        concurrency.shutdown()

    def blocking(self) -> AbstractContextManager[object]:
        return self.interrupts.blocking()

    def interrupted(self) -> bool:
        return self.interrupts.take()

    def raise_owed(self) -> None:
        self.interrupts.raise_owed()


_loaded: Extension | None = None


def load(shell: InteractiveShell) -> None:
    """Load the extension into `shell`. In the kernel's thread."""
    global _loaded
    if _loaded is None:
        extension = Extension(shell)
        extension.load()
        _loaded = extension


def unload(shell: InteractiveShell) -> None:
    """Undo `load`, and end the engine's threads; what they run is cancelled."""
    global _loaded
    extension, _loaded = _loaded, None
    if extension is not None:
        extension.unload()
