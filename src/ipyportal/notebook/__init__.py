"""The IPython extension: pairs the engine with the kernel, or with terminal IPython.

`load` makes an `Extension` (`extension`), which finds out what this process is (`environment`), makes the kernel's
cells and callbacks suspendable (`kernel`), takes over the stop button while they run (`interrupts`), and adds the
magics (`magics`), which show what they do (`display`, `html`, `buttons`). `unload` puts back everything exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipyportal.notebook.cells import running_cell
from ipyportal.notebook.extension import Extension

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]

_loaded: Extension | None = None

_left: tuple[object, dict[str, bool]] | None = None
"""The cell that has unloaded the extension, and its settings."""


def load(shell: InteractiveShell) -> None:
    """Load the extension into `shell`. In the kernel's thread."""
    global _loaded, _left
    if _loaded is None:
        extension = Extension(shell)
        extension.load()
        _loaded, left, _left = extension, _left, None
        # A %reload_ext unloads and loads: who has it in the first cell of a notebook, and runs that again, has turned
        # nothing off. Who has typed %unload_ext in an earlier cell has.
        if left is not None and left[0] == running_cell(shell):
            extension.put_back(left[1])


def unload(shell: InteractiveShell) -> None:
    """Undo `load`, and end the engine's threads; what they run is cancelled."""
    global _loaded, _left
    extension, _loaded = _loaded, None
    if extension is not None:
        _left = running_cell(shell), extension.settings()
        extension.unload()
