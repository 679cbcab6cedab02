"""`PerTask`: where the record of a thread is kept in Pyodide, whose one thread stands still in many places at once."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Generic, TypeVar

__all__ = ["PerTask"]

Record = TypeVar("Record")


class PerTask(Generic[Record]):
    """A record for each task: code stands still there also by other means than ours, as by ``time.sleep``.

    Callbacks, which have no task, share one.
    """

    def __init__(self) -> None:
        self._of_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Record] = weakref.WeakKeyDictionary()
        self._of_callbacks: Record | None = None

    @property
    def interruptible(self) -> Record | None:
        """The record of the code that asks, if it has one."""
        task = _current_task()
        return self._of_callbacks if task is None else self._of_tasks.get(task)

    @interruptible.setter
    def interruptible(self, record: Record) -> None:
        task = _current_task()
        if task is None:
            self._of_callbacks = record
        else:
            self._of_tasks[task] = record


def _current_task() -> asyncio.Task[Any] | None:
    return None if asyncio._get_running_loop() is None else asyncio.current_task()
