"""Rows of work that notebooks do for real, each in the cells of real kernels, beside what people write today.

One call of a row is one request, one row of a table or of a database, one move of a slider.
"""

from __future__ import annotations

import ast
from contextlib import ExitStack

from benchmarks.measure import Sides, row
from benchmarks.notebook import Kernel

__all__: list[str] = []

TIMED = """
import asyncio, gc, inspect, time

def timed(begin, calls):
    return (time.perf_counter() - begin) / calls * 1e6
"""

OURS = "%load_ext ipyportal\nimport ipyportal\nfrom ipyportal import run"
NESTED = "import nest_asyncio\nnest_asyncio.apply()\nrun = asyncio.get_running_loop().run_until_complete"


def in_kernels(stack: ExitStack, calls: int, ours: tuple[str, ...], peer: tuple[str, ...]) -> Sides:
    """The sides of two kernels. The cells define `measure(calls)`, which may be a coroutine function."""
    kernels = Kernel(stack), Kernel(stack)
    for kernel, cells in zip(kernels, (ours, peer), strict=True):
        for cell in (TIMED, *cells):
            kernel.run(cell)
    waits = ["await " if kernel.run("inspect.iscoroutinefunction(measure)") == "True" else "" for kernel in kernels]

    def side(number: int) -> float:
        # A function is called in a synchronous cell, as users have it.
        return kernels[number].value(f"gc.collect()\n{waits[number]}measure({calls})")

    return (lambda: side(0)), (lambda: side(1))


# --- requests ---------------------------------------------------------------------------------------------------------


def server(stack: ExitStack) -> str:
    """The address of a server in a process of its own, on loopback."""
    kernel = Kernel(stack)
    kernel.run("from tests.web import web\nopened = web()")
    address = kernel.run("await opened.__aenter__()")
    assert address is not None
    return str(ast.literal_eval(address))


CLIENT = """
import httpx
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=50, max_keepalive_connections=50))

async def get(number):
    return (await client.get(f"{address}/{number}")).text

def check(texts, calls):
    assert texts == [f"/{number}" for number in range(calls)]
"""

MAPPED = """
def measure(calls):
    begin = time.perf_counter()
    texts = ipyportal.map(get, range(calls), limit=50)
    cost = timed(begin, calls)
    check(texts, calls)
    return cost
"""

GATHERED = """
async def gathered(calls):
    limit = asyncio.Semaphore(50)
    async def one(number):
        async with limit:
            return await get(number)
    return await asyncio.gather(*map(one, range(calls)))

async def measure(calls):
    begin = time.perf_counter()
    texts = await gathered(calls)
    cost = timed(begin, calls)
    check(texts, calls)
    return cost
"""

GATHERED_BY_RUN = GATHERED.replace("async def measure", "def measure").replace(
    "await gathered(calls)", "run(gathered(calls))"
)

IN_THREADS = """
import concurrent.futures, httpx
blocking = httpx.Client(limits=httpx.Limits(max_connections=50, max_keepalive_connections=50))

def check(texts, calls):
    assert texts == [f"/{number}" for number in range(calls)]

def measure(calls):
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(lambda number: blocking.get(f"{address}/{number}").text, range(calls)))
    cost = timed(begin, calls)
    check(texts, calls)
    return cost
"""


@row("gets", "GETs by map, 50 at a time", group="work", calls=300, most_rounds=7, needs=("httpx",))
def gets(stack: ExitStack, calls: int) -> Sides:
    """`ipyportal.map(get, range(300), limit=50)` in a cell / `await` of a `gather` with a semaphore, written by hand.

    Fair: the same client of httpx with as many connections, and the same server in a third process.
    """
    where = f"address = {server(stack)!r}"
    return in_kernels(stack, calls, (OURS, where, CLIENT, MAPPED), (where, CLIENT, GATHERED))


@row("gets-nested", "the same", group="work", calls=300, most_rounds=7, needs=("httpx", "nest_asyncio"))
def gets_nested(stack: ExitStack, calls: int) -> Sides:
    """As gets / the same `gather` by nest_asyncio's `loop.run_until_complete` in a function."""
    where = f"address = {server(stack)!r}"
    return in_kernels(stack, calls, (OURS, where, CLIENT, MAPPED), (NESTED, where, CLIENT, GATHERED_BY_RUN))


@row("gets-threads", "the same", group="work", calls=300, most_rounds=7, needs=("httpx",))
def gets_threads(stack: ExitStack, calls: int) -> Sides:
    """As gets / a `ThreadPoolExecutor` of 50 threads that ask httpx's synchronous client."""
    where = f"address = {server(stack)!r}"
    return in_kernels(stack, calls, (OURS, where, CLIENT, MAPPED), (where, IN_THREADS))


IN_TURN = """
def ask(number):
    return run(get(number))

def measure(calls):
    begin = time.perf_counter()
    texts = [ask(number) for number in range(calls)]
    cost = timed(begin, calls)
    check(texts, calls)
    return cost
"""

IN_TURN_BY_AWAIT = """
async def measure(calls):
    begin = time.perf_counter()
    texts = [await get(number) for number in range(calls)]
    cost = timed(begin, calls)
    check(texts, calls)
    return cost
"""


@row("turns", "GETs in turn from a function", group="work", bar=1.05, calls=200, most_rounds=7, needs=("httpx",))
def turns(stack: ExitStack, calls: int) -> Sides:
    """`run(get(n))` in a function that a cell calls 200 times / `await get(n)` in an asynchronous function.

    Fair: as gets. It is what `run` promises to be.
    """
    where = f"address = {server(stack)!r}"
    return in_kernels(stack, calls, (OURS, where, CLIENT, IN_TURN), (where, CLIENT, IN_TURN_BY_AWAIT))


@row(
    "turns-nested",
    "the same",
    group="work",
    calls=200,
    most_rounds=7,
    needs=("httpx", "nest_asyncio"),
)
def turns_nested(stack: ExitStack, calls: int) -> Sides:
    """As turns / nest_asyncio's `loop.run_until_complete(get(n))` in the same function."""
    where = f"address = {server(stack)!r}"
    return in_kernels(stack, calls, (OURS, where, CLIENT, IN_TURN), (NESTED, where, CLIENT, IN_TURN))


# --- a table, a database, a slider ------------------------------------------------------------------------------------

APPLY = """
import pandas
frame = pandas.DataFrame({"n": range(10_000)})

async def work(n):
    WAITS
    return n + 1

def measure(calls):
    begin = time.perf_counter()
    done = frame["n"][:calls].apply(lambda n: run(work(n)))
    cost = timed(begin, calls)
    assert done.sum() == calls * (calls + 1) // 2
    return cost
"""


@row(
    "apply",
    "df.apply of what need not wait",
    group="work",
    bar=0.5,
    calls=10_000,
    most_rounds=7,
    needs=("pandas", "nest_asyncio"),
)
def apply(stack: ExitStack, calls: int) -> Sides:
    """`frame["n"].apply(lambda n: run(work(n)))` / the same by nest_asyncio's `loop.run_until_complete`.

    `work` is a coroutine function that returns at once, as from a cache.
    """
    cell = APPLY.replace("WAITS", "pass")
    return in_kernels(stack, calls, (OURS, cell), (NESTED, cell))


@row(
    "apply-waits",
    "df.apply of what waits once",
    group="work",
    calls=10_000,
    most_rounds=7,
    needs=("pandas", "nest_asyncio"),
)
def apply_waits(stack: ExitStack, calls: int) -> Sides:
    """As apply, but `work` waits once, for `asyncio.sleep(0)`: the loop goes on for a turn."""
    cell = APPLY.replace("WAITS", "await asyncio.sleep(0)")
    return in_kernels(stack, calls, (OURS, cell), (NESTED, cell))


ROWS = """
import aiosqlite
db = await aiosqlite.connect(":memory:")
await db.execute("create table numbers (n integer)")
await db.executemany("insert into numbers values (?)", [(n,) for n in range(10_000)])

async def rows():
    async with db.execute("select n from numbers") as cursor:
        async for row in cursor:
            yield row[0]
"""

ITERATED = """
def measure(calls):
    begin = time.perf_counter()
    total = sum(ipyportal.iterate(rows()))
    cost = timed(begin, calls)
    assert total == calls * (calls - 1) // 2
    return cost
"""

ASYNC_FOR = """
async def measure(calls):
    begin = time.perf_counter()
    total = 0
    async for n in rows():
        total += n
    cost = timed(begin, calls)
    assert total == calls * (calls - 1) // 2
    return cost
"""


@row("rows", "rows of a database by iterate", group="work", calls=10_000, most_rounds=7, needs=("aiosqlite",))
def rows(stack: ExitStack, calls: int) -> Sides:
    """`for n in iterate(rows())` in a cell / `async for n in rows()` in a coroutine: 10,000 rows of aiosqlite."""
    return in_kernels(stack, calls, (OURS, ROWS, ITERATED), (ROWS, ASYNC_FOR))


SLIDER = """
import ipywidgets
slider, seen = ipywidgets.IntSlider(max=1_000_000), []

async def work(n):
    await asyncio.sleep(0)
    return n

slider.observe(lambda change: seen.append(run(work(change["new"]))), "value")

def measure(calls):
    first = slider.value + 1
    del seen[:]
    begin = time.perf_counter()
    for n in range(first, first + calls):
        slider.value = n
    cost = timed(begin, calls)
    assert seen == list(range(first, first + calls))
    return cost
"""


@row(
    "slider",
    "a slider that calls run in its callback",
    group="work",
    calls=100,
    most_rounds=7,
    needs=("ipywidgets", "nest_asyncio"),
)
def slider(stack: ExitStack, calls: int) -> Sides:
    """A slider is moved 100 times, and its callback waits once in `run` / in nest_asyncio's `run_until_complete`.

    Most of it is what ipywidgets does with a move.
    """
    return in_kernels(stack, calls, (OURS, SLIDER), (NESTED, SLIDER))
