"""How a call travels to another process: what is pickled for it, what says why it cannot be, and what runs it there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any

from ipyportal.concurrency.labels import short_repr

__all__ = ["Variable", "culprit", "dumps_by_name", "run_in_context", "run_pickled"]

dumps_by_name = pickle.dumps


def culprit(fn: Any, args: tuple[Any, ...], dumps: Callable[[Any], bytes] | None) -> str | None:
    """What of a call cannot be pickled, why, and what to do about it; None if that is not known."""
    if dumps is None:  # as dask does it; ipyparallel has ways of its own for functions
        dumps = getattr(sys.modules.get("cloudpickle"), "dumps", None)
    values: list[tuple[Variable, Any]] = []
    if fn is run_in_context:
        values, fn, *args = args  # type: ignore[assignment]
    keywords: dict[str, Any] = {}
    if isinstance(fn, functools.partial):
        fn, keywords = fn.func, fn.keywords
    parts = [(f"argument {number}, {short_repr(value)},", value) for number, value in enumerate(args)]
    parts += [(f"the argument {name}={short_repr(value)}", value) for name, value in keywords.items()]
    parts += [(f"the context variable {pair[0].variable.name} with its value", pair) for pair in values]
    for what, value in parts:
        if (exc := _failure(dumps or pickle.dumps, value)) is not None:
            return f"{what} cannot be pickled ({exc}): have the function make it there, or pass what it is made of"
    if dumps is None or (exc := _failure(dumps, fn)) is None:
        return None
    advice = "what it refers to is sent with it; have it make that where it runs"
    if dumps is dumps_by_name:
        advice = (
            "define it at the top level of a module that can be imported there, or, with the package cloudpickle, make "
            "the portal with dumps=cloudpickle.dumps"
        )
    return f"the function cannot be pickled ({exc}): {advice}"


def _failure(dumps: Callable[[Any], bytes], value: object) -> Exception | None:
    """What pickling `value` raises."""
    try:
        dumps(value)
    except Exception as exc:  # noqa: BLE001 - whatever somebody's __reduce__ raises
        return exc
    return None


# --- what runs in the worker -----------------------------------------------------------------------------------------


def _find(module: str, name: str) -> Variable:
    return Variable(getattr(importlib.import_module(module), name))


class Variable:
    """A context variable that is pickled as where it is to be found. It cannot be pickled itself."""

    __slots__ = ("variable",)

    def __init__(self, variable: contextvars.ContextVar[Any]) -> None:
        if not isinstance(variable, contextvars.ContextVar):
            raise TypeError(f"context= takes context variables (contextvars.ContextVar), not {type(variable).__name__}")
        self.variable = variable

    def __reduce__(self) -> tuple[Any, ...]:
        for module in list(sys.modules.values()):
            if (name := getattr(module, "__name__", "__main__")) == "__main__":
                continue
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is self.variable:
                    return _find, (name, attribute)
        raise pickle.PicklingError(
            f"the context variable {self.variable.name} is no global name of a module that can be imported elsewhere: "
            "move it to one"
        )


def run_in_context(values: list[tuple[Variable, Any]], fn: Callable[..., Any], /, *args: Any) -> Any:
    """Call `fn` with context variables set, and await what it returns."""
    return contextvars.copy_context().run(_run, values, fn, args)


def _run(values: list[tuple[Variable, Any]], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    for sent, value in values:
        sent.variable.set(value)
    result = fn(*args)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    if asyncio._get_running_loop() is None:
        return asyncio.run(wait())
    # An engine of ipyparallel runs a loop in this thread.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, wait()).result()


def run_pickled(pickled: bytes) -> Any:
    """Call a function that was pickled with its arguments."""
    try:
        fn, args = pickle.loads(pickled)
    except Exception as exc:
        raise TypeError(
            f"what was sent to this process cannot be unpickled here: {exc}. A function that was defined in a notebook "
            "or at a prompt exists only in the process where you defined it. Put it into a module and import it; or, "
            "with the package cloudpickle: ExecutorPortal(..., dumps=cloudpickle.dumps)"
        ) from exc
    try:
        return fn(*args)
    except Exception as exc:
        try:
            pickle.loads(pickle.dumps(exc))
        except Exception:  # noqa: BLE001 - it would break the pool when it arrives
            raise RuntimeError(f"{type(exc).__qualname__}: {exc} (which cannot be pickled)") from exc
        raise
