"""What cells look at to see whether a kernel has grown."""

from __future__ import annotations

OPEN_FILES = """
    import contextlib, os

    # IPython's own thread writes the history now and then, and SQLite opens files, and their folder, for that.
    history = get_ipython().history_manager
    history.writeout_cache()
    history.enabled = False

    def open_files():
        folder = "/proc/self/fd"
        for number in os.listdir(folder) if os.path.exists(folder) else ():
            with contextlib.suppress(FileNotFoundError):  # the one that listed them
                yield os.readlink(f"{folder}/{number}").split("[")[0]
"""
