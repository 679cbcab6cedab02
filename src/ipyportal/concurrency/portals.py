"""`Portal`: a place where calls run."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ipyportal.concurrency.calls import Call

__all__ = ["Portal"]

T = TypeVar("T")


class Portal(abc.ABC):
    """A place where calls run: a thread, an event loop, the thread that waits for a call, an executor.

    Example:
        >>> from ipyportal.concurrency import Call, Portal
        >>> class Here(Portal):
        ...     name = "here"
        ...     def submit(self, call):
        ...         call.run()
        ...         return call
        >>> Here().submit(Call.new(len, "Oslo")).result()
        4
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abc.abstractmethod
    def submit(self, call: Call[T]) -> Call[T]:
        """Have `call` run here, soon, after those submitted before. From any thread. Returns the call.

        Raises:
            RuntimeError: The portal takes no more calls, or the call was submitted before.
            TypeError: `call` is no `Call`.
        """

    def _adopt(self, call: Call[Any]) -> None:
        """Note that `call` is to run here, once."""
        # Without the call's lock: of two threads that submit one call, both may get here, and `Call._begin` sees to
        # it that it runs once.
        try:
            submitted = call._portal is not None or call.running()
        except AttributeError:
            raise TypeError(
                f"a portal runs a Call, not {type(call).__name__}: portal.submit(Call.new(fn, *args)), or "
                "ipyportal.submit(fn, *args, on=portal)"
            ) from None
        if submitted:
            raise RuntimeError(f"{call!r} was submitted before; make a new call for each run")
        call._portal = self
        # From now on, in the queue. A waiter keeps the time of its call by itself, at less cost.
        if call._deadline is not None and call._waiter is None:
            call._keep_time()

    def _give_back(self, call: Call[Any]) -> None:
        """Undo `_adopt`: the call is not to run here after all."""
        call._portal = None
        call._drop_timer()

    def _check_wait(self, call: Call[Any]) -> None:  # noqa: B027 - most portals have nothing to check
        """Raise RuntimeError if this thread, by blocking for `call`, would keep it from ever being run."""
