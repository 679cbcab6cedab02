"""`syncify`: the twins of functions and classes, and twins of real libraries."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import pydoc
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest

from ipyportal import EventLoopThread, enter, iterate, map, run, syncify

from .concurrency.helpers import Gate, press_stop_in_a_wait
from .places import PLACES, every_place, in_a_task_that_blocks_its_loop
from .web import web

ROOT = Path(__file__).parents[1]


@syncify
async def double(n: int, *, times: int = 1) -> int:
    """Double it."""
    await asyncio.sleep(0)
    return 2**times * n


async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@asynccontextmanager
async def opened(log: list[str]) -> AsyncIterator[str]:
    task = asyncio.current_task()
    log.append("opened")
    try:
        yield "value"
    finally:
        assert asyncio.current_task() is task
        log.append("closed")


# --- functions -------------------------------------------------------------------------------------------------------


@every_place
def test_the_twin_of_a_function_waits_for_it(place: Any) -> None:
    assert place(lambda: double(4)) == 8
    assert place(lambda: list(syncify(count)(3))) == [0, 1, 2]
    log: list[str] = []

    def body() -> Any:
        with syncify(opened)(log) as value:
            return value, list(log)

    assert place(body) == ("value", ["opened"])
    assert log == ["opened", "closed"]


def test_a_twin_has_the_name_docstring_and_signature_of_its_original() -> None:
    twin: Any = double
    assert (twin.__name__, twin.__doc__, twin.__module__) == ("double", "Double it.", __name__)
    assert inspect.signature(twin) == inspect.signature(twin.aio)
    assert not inspect.iscoroutinefunction(twin)
    assert inspect.iscoroutinefunction(twin.aio)
    assert run(twin.aio(3)) == 6
    assert "Double it." in pydoc.render_doc(twin)
    assert repr(twin).startswith("<synchronous twin of <function double")


def test_functions_that_return_something_asynchronous_have_twins_too() -> None:
    assert syncify(lambda n: double.aio(n))(2) == 4
    assert syncify(functools.partial(double.aio, times=2))(2) == 8
    assert list(syncify(lambda n: count(n))(2)) == [0, 1]
    assert syncify(len)("abc") == 3  # type: ignore[call-overload]


def test_a_twin_is_for_a_place_and_a_time() -> None:
    async def where() -> str:
        return threading.current_thread().name

    with EventLoopThread("a loop") as loop:
        assert syncify(where, on=loop)() == "a loop"
        assert syncify(on=loop)(where)() == "a loop"

    @syncify(timeout=0.02)
    async def slow() -> None:
        await asyncio.sleep(3600)

    with pytest.raises(TimeoutError, match="slow timed out"):
        slow()


def test_twins_of_methods_are_methods() -> None:
    class Client:
        def __init__(self) -> None:
            self.base = "base/"

        @syncify
        async def get(self, path: str) -> str:
            return self.base + path

        @syncify
        async def lines(self, n: int) -> AsyncIterator[str]:
            for number in range(n):
                yield f"{self.base}{number}"

    client = Client()
    assert client.get("x") == "base/x"
    assert Client.get(client, "x") == "base/x"
    assert run(client.get.aio("x")) == "base/x"
    assert list(client.lines(2)) == ["base/0", "base/1"]
    assert list(inspect.signature(client.get).parameters) == ["path"]


def test_ctrl_c_cancels_what_a_twin_waits_for() -> None:
    waiting, cleaned_up = Gate(), Gate()

    @syncify
    async def patient() -> None:
        try:
            waiting.set()
            await asyncio.sleep(3600)
        finally:
            cleaned_up.set()

    def stop() -> None:
        waiting.pass_through()
        press_stop_in_a_wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        patient()
    thread.join()
    assert cleaned_up.is_set()


# --- classes ---------------------------------------------------------------------------------------------------------


class Store:
    """A store."""

    kind = "memory"
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()  # many libraries ask for it
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.left: Any = "not left"

    @classmethod
    async def create(cls, name: str) -> Store:
        await asyncio.sleep(0)
        return cls(name)

    @staticmethod
    async def version() -> int:
        return 3

    async def get(self, key: str) -> str:
        """Get it."""
        assert asyncio.get_running_loop() is self.loop
        return await self._get(key)

    async def _get(self, key: str) -> str:
        return f"{self.name}.{key}"

    async def keys(self, n: int) -> AsyncIterator[str]:
        for number in range(n):
            yield f"key {number}"

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[str]:
        yield "locked"

    @property
    async def status(self) -> str:
        """How it is."""
        await asyncio.sleep(0)
        return "open"

    @property
    def size(self) -> int:
        return 5

    def put(self, n: int) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.queue.put_nowait(n)

    async def this(self) -> Store:
        return self

    async def is_(self, other: Any) -> bool:
        return other is self

    def __len__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store)

    async def __call__(self, n: int) -> int:
        return n

    async def __aenter__(self) -> Store:
        self.task = asyncio.current_task()
        return self

    async def __aexit__(self, kind: Any, exc: Any, tb: Any) -> bool:
        assert asyncio.current_task() is self.task
        self.left = kind
        return kind is KeyError

    def __aiter__(self) -> AsyncIterator[str]:
        return self.keys(2)


SyncStore: Any = syncify(Store)


@every_place
def test_the_twin_of_a_class_does_what_the_class_does(place: Any) -> None:
    def use() -> None:
        store = SyncStore("a")
        assert store.get("x") == "a.x"
        assert list(store.keys(2)) == list(store) == ["key 0", "key 1"]
        with store.locked() as value:
            assert value == "locked"
        assert (store.status, store.size, len(store), store(4)) == ("open", 5, 7, 4)
        store.put(1)
        assert store.queue.qsize() == 1
        with store as entered:
            assert entered is store
            raise KeyError
        assert store.left is KeyError  # type: ignore[unreachable]

    place(use)


def test_static_and_class_methods_and_constants_of_a_twin_class() -> None:
    assert SyncStore.version() == 3
    assert SyncStore.kind == SyncStore("a").kind == "memory"
    made = SyncStore.create("made")
    assert type(made) is SyncStore
    assert made.get("x") == "made.x"


def test_a_twin_given_and_returned_is_a_twin() -> None:
    store = SyncStore("a")
    assert store.this() is store
    assert store.is_(store)
    assert store == store.aio
    with pytest.raises(TypeError, match="unhashable"):
        hash(store)


def test_attributes_of_a_twin_are_those_of_the_object() -> None:
    store = SyncStore("a")
    store.name = "b"
    assert store.aio.name == "b"
    assert store.get("x") == "b.x"
    del store.name
    with pytest.raises(AttributeError):
        store.name  # noqa: B018
    assert {"get", "queue", "aio", "kind"} <= set(dir(store))
    assert isinstance(store.aio, Store)
    assert SyncStore.aio is Store


def test_twin_classes_are_documented_as_their_originals() -> None:
    store = SyncStore("a")
    assert SyncStore.__name__ == "Store"
    assert SyncStore.__doc__ == "A store."
    assert inspect.signature(SyncStore) == inspect.signature(Store)
    assert inspect.signature(store.get) == inspect.signature(store.aio.get)
    assert store.get.__doc__ == "Get it."
    assert SyncStore.status.__doc__ == "How it is."
    assert run(store.get.aio("x")) == "a.x"
    assert repr(store).startswith("<synchronous twin of <")


def test_a_twin_is_used_from_every_thread_and_runs_where_it_was_made() -> None:
    with EventLoopThread("mine") as loop:
        stores = [SyncStore("a"), syncify(Store, on=loop)("b")]

        async def made_in_a_call() -> Any:
            return SyncStore("c")

        stores.append(run(made_in_a_call, on=loop))
        for place in PLACES[:4]:
            for store, name in zip(stores, "abc", strict=True):
                assert place(lambda store=store: store.get("x")) == f"{name}.x"  # type: ignore[operator]


def test_private_helpers_of_the_class_stay_asynchronous_for_itself() -> None:
    assert SyncStore("a").get("x") == "a.x"  # its `get` awaits its own `_get`


def test_bad_input_of_syncify() -> None:
    coroutine = double.aio(1)
    with pytest.raises(TypeError, match=r"needs a function or a class, not coroutine: run\(\) waits"):
        syncify(coroutine)  # type: ignore[call-overload]
    coroutine.close()
    with pytest.raises(TypeError, match="needs a function or a class, not int"):
        syncify(5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout"):
        syncify(double.aio, timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        syncify(timeout="1")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="on="):
        syncify(double.aio, on="nowhere")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        double()


# --- real libraries --------------------------------------------------------------------------------------------------


@pytest.fixture
def address() -> Iterator[str]:
    with enter(web()) as address:
        yield address


@every_place
def test_the_twin_of_an_http_client(place: Any, address: str) -> None:
    def use() -> Any:
        with syncify(httpx.AsyncClient)(base_url=address, trust_env=False) as client:
            client.headers["x"] = "y"
            pages = [client.get(f"/{n}").text for n in range(3)]
            with client.stream("GET", "/lines/3") as response:
                lines = list(iterate(response.aiter_lines()))
            many = map(client.aio.get, ["/a", "/b"]) if place is not in_a_task_that_blocks_its_loop else None
        assert client.is_closed
        return pages, lines, many and [response.text for response in many]

    pages, lines, many = place(use)
    assert pages == ["/0", "/1", "/2"]
    assert lines == ["line 0", "line 1", "line 2"]
    assert many in (["/a", "/b"], None)


@every_place
def test_an_asynchronous_database_driver(place: Any, tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite"

    def use() -> Any:
        with enter(aiosqlite.connect, path) as db:
            execute = syncify(db.execute)
            execute("create table numbers (n integer)")
            for n in range(5):
                execute("insert into numbers values (?)", (n,))
            run(db.commit)
            with enter(db.execute, "select n from numbers order by n") as cursor:
                streamed = [n for (n,) in iterate(cursor)]
            return streamed, syncify(db.execute_fetchall)("select sum(n) from numbers")

    streamed, summed = place(use)
    assert streamed == [0, 1, 2, 3, 4]
    assert [tuple(row) for row in summed] == [(10,)]


@pytest.mark.filterwarnings("error")
def test_the_twin_of_a_database_connection(tmp_path: Path) -> None:
    async def connect(path: Path) -> aiosqlite.Connection:
        return await aiosqlite.connect(path)

    class Database:
        """A class of one's own over a driver: what a helper's author writes."""

        def __init__(self, path: Path) -> None:
            self._path = path

        async def __aenter__(self) -> Database:
            self._connection = await connect(self._path)
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            await self._connection.close()

        async def query(self, sql: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await self._connection.execute_fetchall(sql)]

        async def rows(self, sql: str) -> AsyncIterator[tuple[Any, ...]]:
            async with self._connection.execute(sql) as cursor:
                async for row in cursor:
                    yield tuple(row)

    with syncify(Database)(tmp_path / "test.sqlite") as db:
        assert db.query("select 1 + 1") == [(2,)]
        for row in db.rows("select 1 union select 2 order by 1"):
            assert row == (1,)
            break


# --- types -----------------------------------------------------------------------------------------------------------


def test_types_are_kept() -> None:
    pytest.importorskip("mypy", reason="the type checker comes with the extra dev")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "tests/typed.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    checked = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert checked.stdout.startswith("Success"), checked.stdout + checked.stderr


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated late since CPython 3.14")
def test_annotations_that_cannot_be_evaluated_yet() -> None:
    names: dict[str, Any] = {"syncify": syncify}
    code = """
@syncify
async def fetch(url: Url) -> Page:
    return url

@syncify
class Client:
    def __init__(self, url: Url) -> None:
        self.url = url
    async def get(self) -> Page:
        return self.url
"""
    exec(compile(code, "module", "exec", dont_inherit=True), names)
    assert names["fetch"]("a") == "a"
    client = names["Client"]("b")
    assert client.get() == "b"
    assert list(inspect.signature(names["Client"]).parameters) == ["url"]
    with pytest.raises(NameError, match="Url"):
        names["fetch"].__annotations__  # noqa: B018 - as of the function itself
    names.update(Url=str, Page=bytes)
    assert names["fetch"].__annotations__ == {"url": str, "return": bytes}
    assert typing.get_type_hints(names["fetch"]) == {"url": str, "return": bytes}
    assert inspect.signature(names["fetch"]) == inspect.signature(names["fetch"].aio)
    assert inspect.signature(client.get).return_annotation is bytes
    assert not hasattr(names["fetch"], "nonsense")
