"""Programs in a pseudo-terminal, typed to and read from."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import pytest

PATIENCE = 60.0


class PseudoTerminal:
    """A program in a pseudo-terminal. A context manager, which kills the program at its end.

    It is started by `subprocess`: ``pty.fork`` is warned of in a process that has threads.
    """

    def __init__(self, command: Sequence[str], *, columns: int, env: Mapping[str, str]) -> None:
        pytest.importorskip("pty", reason="there are no pseudo-terminals", exc_type=ImportError)
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        try:
            self._process = subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), start_new_session=True
            )
        finally:
            os.close(theirs)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def read_until(self, pattern: str) -> str:
        """What it has shown up to the end of what matches `pattern`."""
        deadline = time.monotonic() + PATIENCE
        while (match := re.search(pattern, shown := self._unread.decode(errors="replace"), re.DOTALL)) is None:
            assert self._read(deadline), f"it ended, or showed no {pattern!r}:\n{shown}"
        self._unread = shown[match.end() :].encode()
        return shown[: match.end()]

    def read_to_the_end(self) -> str:
        """What it has shown. It must end, and well."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        shown = self._unread.decode(errors="replace").replace("\r\n", "\n")
        assert self._process.wait(PATIENCE) == 0, shown
        return shown

    def _read(self, deadline: float) -> bool:
        """Read some more; False at the end, or when it is too late."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        try:
            more = os.read(self._ours, 65536) if ready else b""
        except OSError:  # so Linux says that the other side is closed
            more = b""
        self._unread += more
        return bool(more)
