"""Changes to other people's objects, each with what undoes it exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["replace"]


def replace(owner: Any, name: str, value: Any) -> Callable[[], object]:
    """Set an attribute of one object; return what puts back what was there, or deletes it if that was the class's."""
    own = vars(owner)
    if name in own:
        before = own[name]
        undo: Callable[[], object] = lambda: setattr(owner, name, before)  # noqa: E731
    else:
        undo = lambda: delattr(owner, name)  # noqa: E731
    setattr(owner, name, value)
    return undo
