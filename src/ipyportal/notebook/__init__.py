"""The IPython extension: pairs the engine with the kernel, or with terminal IPython.

`load` makes an `Extension` (`extension`), which finds out what this process is (`environment`), makes the kernel's
cells and callbacks suspendable (`kernel`), takes over the stop button while they run (`interrupts`), and adds the
magics (`magics`), which show what they do (`display`, `html`, `buttons`). In JupyterLite, `lite` is what `kernel` is
elsewhere. `unload` puts back everything exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipyportal.concurrency import shutdown
from ipyportal.notebook.cells import running_cell
from ipyportal.notebook.extension import Extension

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]

_loaded: list[Extension] = []
"""Those of the shells of this process in which it is loaded. The first has the engine."""

_left: tuple[object, dict[str, bool]] | None = None
"""The cell that has unloaded the extension, and its settings."""


def _of(shell: InteractiveShell) -> Extension | None:
    return next((extension for extension in _loaded if extension.shell is shell), None)


def load(shell: InteractiveShell) -> None:
    """Load the extension into `shell`. In the kernel's thread. If that fails, all is as it was.

    A second shell of the process (that of ``IPython.embed()``) gets the magics and the displays.
    """
    global _left
    if _of(shell) is not None:
        return
    extension = Extension(shell, _loaded[0] if _loaded else None)
    try:
        extension.load()
    except BaseException:
        extension.unload()
        raise
    _loaded.append(extension)
    left, _left = _left, None
    # A %reload_ext unloads and loads: who has it in the first cell of a notebook, and runs that again, has turned
    # nothing off. Who has typed %unload_ext in an earlier cell has.
    if left is not None and left[0] == running_cell(shell):
        extension.put_back(left[1])


def unload(shell: InteractiveShell) -> None:
    """Undo `load`. The last one ends the engine's threads; what they run is cancelled."""
    global _left
    extension = _of(shell)
    if extension is not None:
        _loaded.remove(extension)
        _left = running_cell(shell), extension.settings()
        extension.unload()
        if not _loaded:
            shutdown()
