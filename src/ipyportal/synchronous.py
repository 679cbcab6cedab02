"""`syncify`: the synchronous twin of an asynchronous function or class."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from ipyportal.concurrency.calls.execution import name_of
from ipyportal.concurrency.cancellation.clock import check_timeout
from ipyportal.concurrency.portals.loops import LoopPortal
from ipyportal.concurrency.suspension.suspending import can_suspend
from ipyportal.routes import Route, check_route
from ipyportal.streams import Entered, Iteration, enter, iterate
from ipyportal.sync import run

__all__ = ["SyncFunction", "Twin", "TwinClass", "syncify"]

T = TypeVar("T")
P = ParamSpec("P")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Q = ParamSpec("Q")


class SyncFunction(Generic[P, A_co, T_co]):
    """The synchronous twin of a function; in a class, of a method.

    Attributes:
        aio: The function itself.
    """

    def __init__(self, aio: Callable[P, A_co], twin: Callable[P, T_co]) -> None:
        self.aio = aio
        self._twin = twin
        functools.update_wrapper(self, aio)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        __tracebackhide__ = True
        return self._twin(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> SyncFunction[P, A_co, T_co]: ...
    @overload
    def __get__(
        self: SyncFunction[Concatenate[Any, Q], A_co, T_co], instance: object, owner: type | None = None
    ) -> SyncFunction[Q, A_co, T_co]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        aio: Any = self.aio
        return SyncFunction(aio.__get__(instance, owner), functools.partial(self._twin, instance))

    def __getattr__(self, name: str) -> Any:
        if name == "__annotations__":  # since CPython 3.14 they are evaluated when they are asked for, and not copied
            return self.aio.__annotations__
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<synchronous twin of {self.aio!r}>"


class Twin(Generic[C_co]):
    """The synchronous twin of an object: what is asynchronous in it is used without ``await``.

    It runs on the loop where the object was made, whatever thread it is used from.

    Attributes:
        aio: The object itself; of the twin class, the class.
    """

    aio: C_co
    _how: _How

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls: Any = type(self).aio

        async def make() -> tuple[Any, asyncio.AbstractEventLoop]:  # on the loop that it may ask for
            return cls(*args, **kwargs), asyncio.get_running_loop()

        aio, loop = run(make, timeout=self._how.timeout, on=self._how.on)
        self._adopt(aio, self._how.at(loop))

    def _adopt(self, aio: Any, how: _How) -> None:
        self.__dict__.update(aio=aio, _how=how, _entered=[])

    def __getattr__(self, name: str) -> Any:
        if name == "aio":
            raise AttributeError(name)  # of a twin that is being made, or copied
        return getattr(self.aio, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.aio, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.aio, name)

    if TYPE_CHECKING:  # of those whose original is an async context manager or iterable

        def __enter__(self) -> Any: ...
        def __exit__(self, *exc_info: object) -> Any: ...
        def __iter__(self) -> Any: ...

    def __dir__(self) -> list[str]:
        return sorted({"aio", *dir(type(self)), *dir(self.aio)})

    def __repr__(self) -> str:
        return f"<synchronous twin of {self.aio!r}>"


class TwinClass(Protocol[C_co]):
    """The synchronous twin of a class: called, it makes a `Twin`."""

    @property
    def aio(self) -> type[C_co]:
        """The class itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Twin[C_co]: ...
    def __getattr__(self, name: str, /) -> Any: ...


class _How:
    """How the calls of a twin are made."""

    def __init__(
        self, timeout: float | None, on: Route | None, loop: asyncio.AbstractEventLoop | None = None, twin: Any = None
    ) -> None:
        self.timeout = timeout
        self.on = on
        self._loop = loop  # where the object was made; None for functions
        self.twin = twin  # the class whose instances are given and taken as twins

    def at(self, loop: asyncio.AbstractEventLoop) -> _How:
        return self if self.on is not None else _How(self.timeout, self.on, loop, self.twin)

    def _route(self) -> Route | None:
        if self._loop is None or (asyncio._get_running_loop() is self._loop and can_suspend()):
            return self.on
        return LoopPortal(self._loop, "the loop where the object was made")

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], owner: Any = None) -> Any:
        """Call a function, and give what it returns as synchronous code takes it."""
        __tracebackhide__ = True
        if self.twin is not None:
            args = tuple(arg.aio if isinstance(arg, Twin) else arg for arg in args)
            kwargs = {name: arg.aio if isinstance(arg, Twin) else arg for name, arg in kwargs.items()}
        if inspect.isasyncgenfunction(fn):
            return iterate(fn(*args, **kwargs), timeout=self.timeout, on=self._route())
        work: Any = _produce(fn, args, kwargs)
        work.__qualname__ = name_of(fn)
        value, awaited, loop = run(work, timeout=self.timeout, on=self._route())
        if owner is not None and value is owner.aio:
            return owner
        if self.twin is not None and isinstance(value, self.twin.aio):
            twin = object.__new__(self.twin)
            twin._adopt(value, self.at(loop))
            return twin
        return value if awaited else self.of(value)

    def of(self, value: Any) -> Any:
        """What a synchronous function returned, or an attribute is, as synchronous code takes it."""
        __tracebackhide__ = True
        if inspect.isawaitable(value):
            return run(value, timeout=self.timeout, on=self._route())
        if hasattr(type(value), "__aenter__"):
            return enter(value, timeout=self.timeout, on=self._route())
        if hasattr(type(value), "__aiter__"):
            return iterate(value, timeout=self.timeout, on=self._route())
        return value

    def enter(self, manager: Any) -> Entered[Any]:
        return enter(manager, timeout=self.timeout, on=self._route())

    def iterate(self, iterable: Any) -> Iteration[Any]:
        return iterate(iterable, timeout=self.timeout, on=self._route())


async def _produce(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, bool, asyncio.AbstractEventLoop]:
    """What `fn` comes to, whether it had to be awaited, and where."""
    __tracebackhide__ = True
    value = fn(*args, **kwargs)
    awaited = inspect.isawaitable(value)
    return await value if awaited else value, awaited, asyncio.get_running_loop()


# --- classes ---------------------------------------------------------------------------------------------------------


class _Method:
    """A method of a twin: of the class if it is asked there, as static and class methods are."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> SyncFunction[..., Any, Any]:
        how = owner._how if instance is None else instance._how
        aio = getattr(owner.aio if instance is None else instance.aio, self._name)

        def twin(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return how.call(aio, args, kwargs, instance)

        return SyncFunction(aio, twin)


def _attribute(name: str, doc: str | None) -> property:
    def get(self: Any) -> Any:
        __tracebackhide__ = True
        value = getattr(self.aio, name)
        # Of an asynchronous property it is a coroutine. What an attribute holds otherwise is itself.
        return self._how.of(value) if inspect.isawaitable(value) and not asyncio.isfuture(value) else value

    def set_(self: Any, value: Any) -> None:
        setattr(self.aio, name, value)

    def delete(self: Any) -> None:
        delattr(self.aio, name)

    return property(get, set_, delete, doc)


class _Manager:
    """The part of the twin of an async context manager."""

    def __enter__(self: Any) -> Any:
        __tracebackhide__ = True
        entered = self._how.enter(self.aio)
        value = entered.__enter__()
        self._entered.append(entered)
        return self if value is self.aio else value

    def __exit__(self: Any, *exc_info: Any) -> bool:
        __tracebackhide__ = True
        return bool(self._entered.pop().__exit__(*exc_info))


class _Iterable:
    """The part of the twin of an async iterable."""

    def __iter__(self: Any) -> Any:
        return self._how.iterate(self.aio)


class _TwinType(type):
    @property
    def __signature__(cls) -> inspect.Signature | None:
        aio = getattr(cls, "aio", None)
        try:
            return None if aio is None else inspect.signature(aio)
        except (TypeError, ValueError):  # of a builtin
            return None
        except NameError:  # an annotation names what is not defined yet, or for type checkers alone
            if sys.version_info >= (3, 14):
                import annotationlib

                return inspect.signature(aio, annotation_format=annotationlib.Format.FORWARDREF)
            raise

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.__dict__["aio"], name) if "aio" in cls.__dict__ else type.__getattribute__(cls, name)


_NOT_FORWARDED = {
    *dir(Twin),
    *("__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__", "__del__", "__enter__", "__exit__", "__iter__"),
    *("__next__", "__slots__", "__annotations__", "__abstractmethods__", "__match_args__", "__orig_bases__"),
    *("__parameters__", "__getattr__", "__final__", "__dataclass_fields__", "__dataclass_params__"),
    *("__static_attributes__", "__firstlineno__", "__annotate_func__", "__annotations_cache__"),
} - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__str__", "__format__"}


def _twin_of_class(cls: type, how: _How) -> Any:
    namespace: dict[str, Any] = {"aio": cls, "__doc__": cls.__doc__, "__module__": cls.__module__}
    for name in dir(cls):
        static = inspect.getattr_static(cls, name)
        if name in _NOT_FORWARDED or static is getattr(object, name, None) or isinstance(static, type):
            continue
        if inspect.isroutine(static) or isinstance(static, (staticmethod, classmethod, functools.partialmethod)):
            namespace[name] = _Method(name)
        elif name == "__hash__":
            namespace[name] = None
        elif hasattr(type(static), "__get__"):
            namespace[name] = _attribute(name, getattr(static, "__doc__", None))
    bases: list[type] = [Twin]
    if hasattr(cls, "__aenter__"):
        bases.insert(0, _Manager)
    if hasattr(cls, "__aiter__"):
        bases.insert(0, _Iterable)
    twin = _TwinType(cls.__name__, tuple(bases), namespace)
    twin.__qualname__ = cls.__qualname__
    how.twin = twin
    twin._how = how  # type: ignore[attr-defined]
    return twin


# --- syncify ---------------------------------------------------------------------------------------------------------


class _Decorator(Protocol):
    """What `syncify` with options alone returns: itself, with these options."""

    @overload
    def __call__(self, work: type[C], /) -> TwinClass[C]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, work: Callable[P, Coroutine[Any, Any, T]], /) -> SyncFunction[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, work: Callable[P, AsyncIterator[T]], /) -> SyncFunction[P, AsyncIterator[T], Iteration[T]]: ...
    @overload
    def __call__(self, work: Callable[P, Awaitable[T]], /) -> SyncFunction[P, Awaitable[T], T]: ...
    @overload
    def __call__(
        self, work: Callable[P, AbstractAsyncContextManager[T, Any]], /
    ) -> SyncFunction[P, AbstractAsyncContextManager[T, Any], Entered[T]]: ...


@overload
def syncify(work: None = None, /, *, timeout: float | None = None, on: Route | None = None) -> _Decorator: ...
@overload
def syncify(  # type: ignore[overload-overlap]
    work: type[C],
    /,
    *,
    timeout: float | None = None,
    on: Route | None = None,
) -> TwinClass[C]: ...
@overload
def syncify(
    work: Callable[P, Coroutine[Any, Any, T]],
    /,
    *,
    timeout: float | None = None,
    on: Route | None = None,
) -> SyncFunction[P, Coroutine[Any, Any, T], T]: ...
@overload
def syncify(
    work: Callable[P, AsyncIterator[T]],
    /,
    *,
    timeout: float | None = None,
    on: Route | None = None,
) -> SyncFunction[P, AsyncIterator[T], Iteration[T]]: ...
@overload
def syncify(
    work: Callable[P, Awaitable[T]],
    /,
    *,
    timeout: float | None = None,
    on: Route | None = None,
) -> SyncFunction[P, Awaitable[T], T]: ...
@overload
def syncify(
    work: Callable[P, AbstractAsyncContextManager[T, Any]],
    /,
    *,
    timeout: float | None = None,
    on: Route | None = None,
) -> SyncFunction[P, AbstractAsyncContextManager[T, Any], Entered[T]]: ...
def syncify(work: Any = None, /, *, timeout: float | None = None, on: Route | None = None) -> Any:
    """Make a synchronous version, the twin, of an async function or class. Also a decorator, with or without options.

    ============================================ ==================================================
    `work`                                       its twin
    ============================================ ==================================================
    an async function, or one that returns an    a function that waits for it as `run` does
    awaitable
    an async generator function                  a function that returns an iterator, as `iterate`
    a function that returns an async context     a function that returns a context manager, as
    manager                                      `enter`
    a class                                      a class whose methods are such twins, and whose
                                                 async properties give their values; it is a
                                                 context manager, an iterable, if that is an async
                                                 one
    ============================================ ==================================================

    ``twin.aio`` is the original: the function, the method, the class, or the object in an instance of a twin class. The
    twin has the name, docstring and signature of the original.

    A twin class makes its object on the loop where `run` would run it. All methods and attributes of the instance run
    on that same loop, whatever thread uses them. This includes synchronous methods. A method that returns an instance
    of the class, for example itself, returns the twin of that instance. Instances of other classes are returned as
    they are.

    Args:
        work: The function or class.
        timeout: Seconds for each call, for each item of an iterator, and for entering a context manager.
        on: As for `run`.

    Raises:
        TypeError: `work` is neither a function nor a class.
        TypeError, ValueError: As for `run`, for `timeout` and `on`.

    Example:
        >>> import asyncio
        >>> from ipyportal import run, syncify
        >>> @syncify
        ... async def double(n):
        ...     await asyncio.sleep(0.01)
        ...     return 2 * n
        >>> double(4)
        8
        >>> run(double.aio(4))
        8
    """
    timeout = check_timeout(timeout)
    check_route(on)
    if work is None:
        return functools.partial(syncify, timeout=timeout, on=on)
    how = _How(timeout, on)
    if inspect.isclass(work):
        return _twin_of_class(work, how)
    if inspect.isawaitable(work) or not callable(work):
        raise TypeError(
            f"syncify() needs a function or a class, not {type(work).__name__}"
            + (": run() waits for an awaitable" if inspect.isawaitable(work) else "")
        )

    def twin(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return how.call(work, args, kwargs)

    return SyncFunction(work, twin)
