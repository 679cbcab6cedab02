"""The calls that were launched: those that run, and a bounded number of those that ran."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ipyportal.concurrency.calls import Call, State
from ipyportal.concurrency.labels import place_name

__all__ = ["History", "Launched", "as_typed"]


def as_typed(name: str) -> str:
    """How a call's name is typed after ``%calls cancel``: in quotes where it would be taken for something else."""
    name = " ".join(name.split())
    odd = name in ("", "all") or name[0] in "\"'" or name[-1] in "?;\\"
    return f'"{name}"' if odd else name


@dataclass(eq=False)
class Launched:
    """What is remembered of a call. It does not keep the call, or its result, alive."""

    last_name: str
    where: str
    cell: int | None
    """The number of the cell that launched it, as in ``In [3]``."""
    call: weakref.ref[Call[Any]]
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    final: State | None = None
    note: str = ""
    """What keeps it from going on, as its card saw it last."""

    @property
    def name(self) -> str:
        """What the call is named now; once it is over and gone, what it was named when it ended."""
        call = self.call()
        return self.last_name if call is None else call.name

    @property
    def state(self) -> State:
        if self.final is not None:
            return self.final
        call = self.call()
        return State.CANCELLED if call is None else call.state

    @property
    def elapsed(self) -> float:
        """Seconds from its launch to its end, or to now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.begun

    def _over(self, call: Call[Any]) -> None:
        self.ended = time.monotonic()
        self.last_name = call.name
        self.final = call.state


class History:
    """Calls launched with `submit()` and ``%%background``. From any thread."""

    LENGTH = 100  # finished calls that are remembered

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Launched] = []
        self._finished: deque[Launched] = deque(maxlen=self.LENGTH)
        self._noted: weakref.WeakKeyDictionary[Call[Any], Launched] = weakref.WeakKeyDictionary()

    def add(self, call: Call[Any], cell: int | None) -> Launched:
        where = "" if call.portal is None else place_name(call.portal)
        launched = Launched(call.name, where, cell, weakref.ref(call))
        with self._lock:
            self._running.append(launched)

        def over(call: Call[Any]) -> None:
            launched._over(call)
            with self._lock:
                if launched in self._running:
                    self._running.remove(launched)
                    self._finished.append(launched)

        call._when_done(over)
        return launched

    def note(self, call: Call[Any], cell: int | None) -> None:
        """Have `of` know a call that is not in the table: one that a cell waits for."""
        with self._lock:
            self._noted[call] = Launched(call.name, "", cell, weakref.ref(call))

    def __iter__(self) -> Iterator[Launched]:
        """The finished ones, oldest first, then those that run."""
        with self._lock:
            return iter([*self._finished, *self._running])

    def running(self) -> list[Launched]:
        with self._lock:
            return list(self._running)

    def named(self, typed: str) -> list[Launched]:
        """Those that run and go by the name that was typed, as it is shown, or in quotes."""
        typed = " ".join(typed.split())
        return [
            one
            for one in self.running()
            if typed in (as_typed(one.name), name := " ".join(one.name.split()), f'"{name}"')
        ]

    def of(self, call: Call[Any]) -> Launched | None:
        for launched in self:
            if launched.call() is call:
                return launched
        with self._lock:
            return self._noted.get(call)

    def clear(self) -> None:
        """Forget the finished ones."""
        with self._lock:
            self._finished.clear()
