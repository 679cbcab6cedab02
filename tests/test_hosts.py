"""Servers, test frameworks and bots: synchronous helpers that call `run` where somebody else runs the loop."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import io
import os
import sys
import threading
import unittest
from typing import Any

import pytest

from ipyportal import map, patch_asyncio, run

from .concurrency.helpers import PATIENCE, python, soon
from .web import web

pytest.importorskip("greenlet")

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


async def double(n: int) -> int:
    await asyncio.sleep(0.001)
    return 2 * n


def need(*packages: str) -> None:
    """Skip where one of these is not installed. CI's job of the default interpreter must have them all."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("IPYPORTAL_CI") and not os.environ.get("IPYPORTAL_NO_BROWSER"):
        pytest.fail(f"CI needs {', '.join(missing)}: pip install -e '.[hosts]'")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


# --- without the patch -----------------------------------------------------------------------------------------------


def test_handlers_of_a_server_wait_side_by_side() -> None:
    # The barrier opens when all ten wait: a handler that blocked the loop would keep the others from coming to it.
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def helper() -> int:
            return run(barrier.wait()) and 1

        await reader.readline()
        helper()
        writer.write(b"%d\n" % sum(map(double, range(3))))
        await writer.drain()
        writer.close()

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"go\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main() -> list[bytes]:
        nonlocal barrier
        barrier = asyncio.Barrier(10)
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(asyncio.gather(*(ask(port) for _ in range(10))), PATIENCE)

    barrier: asyncio.Barrier
    assert asyncio.run(main()) == [b"6\n"] * 10


def test_an_http_client_in_a_synchronous_helper_of_a_task() -> None:
    httpx = pytest.importorskip("httpx")

    async def main() -> list[str]:
        async with web() as address, httpx.AsyncClient(base_url=address, trust_env=False) as client:

            def fetch(path: str) -> str:
                return str(run(client.get(path)).text)

            async def task(n: int) -> str:
                return fetch(f"/{n}")

            return await asyncio.gather(*(task(n) for n in range(5)))

    assert asyncio.run(main()) == [f"/{n}" for n in range(5)]


def test_an_async_view_of_django() -> None:
    pytest.importorskip("django")
    result = python("""
        import asyncio, sys, warnings
        warnings.simplefilter("ignore")
        import django
        from django.conf import settings
        from django.http import HttpResponse
        from django.urls import path
        from ipyportal import run

        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
        django.setup()

        async def meet():
            await barrier.wait()
            return "met"

        def helper():
            return run(meet())

        async def view(request):
            return HttpResponse(helper())

        urlpatterns = [path("", view)]

        from django.test import AsyncClient

        async def main():
            global barrier
            barrier = asyncio.Barrier(3)
            answers = await asyncio.wait_for(asyncio.gather(*(AsyncClient().get("/") for _ in range(3))), 10)
            print(*(answer.content.decode() for answer in answers))

        asyncio.run(main())
    """)
    assert result.stdout == "met met met\n", result.stderr


FASTAPI = """
import asyncio, socket, warnings
import httpx, uvicorn
from fastapi import FastAPI
from ipyportal import run

app = FastAPI()
barrier = None

async def meet():
    global barrier
    barrier = barrier or asyncio.Barrier(3)
    await barrier.wait()
    return "met"

def helper(work):
    return run(work)

@app.get("/meet")
async def view():
    return helper(meet())

@app.get("/alone")
async def alone():
    return helper(asyncio.sleep(0.01, "alone"))

@app.get("/thread")
def thread():
    return helper(asyncio.sleep(0.01, "in a thread"))

async def main(*paths):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([sock]))
        base = "http://127.0.0.1:%d" % sock.getsockname()[1]
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=10) as client:
            answers = await asyncio.gather(*map(client.get, paths))
        server.should_exit = True
        await serving
    print(*(answer.json() for answer in answers), sep=", ")

"""


def test_handlers_of_fastapi_wait_side_by_side() -> None:
    need("fastapi", "uvicorn", "httpx")
    result = python(FASTAPI + 'asyncio.run(main("/meet", "/meet", "/thread", "/meet"))')
    assert result.stdout == "met, met, in a thread, met\n", result.stderr
    assert "RuntimeWarning" not in result.stderr


def test_handlers_of_fastapi_on_uvloop_block_it_with_one_warning() -> None:
    need("fastapi", "uvicorn", "httpx", "uvloop")
    result = python(
        FASTAPI
        + """
import uvloop
with warnings.catch_warnings(record=True) as caught, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    warnings.simplefilter("always", RuntimeWarning)
    runner.run(main("/alone", "/thread", "/alone"))
print(*(warning.message for warning in caught))
"""
    )
    answers, _, warned = result.stdout.partition("\n")
    assert answers == "alone, in a thread, alone", result.stderr
    assert warned.count("blocks the event loop") == 1
    assert "this is uvloop.Loop. Use await; or await asyncio.to_thread(function)" in warned
    assert "load_ext" not in warned


@pytest.mark.parametrize("made_by", ["qasync.run(main())", "loop.run_until_complete(main())"], ids=["policy", "loop"])
def test_a_gui_whose_loop_is_qasync_s_is_blocked_with_one_warning(made_by: str) -> None:
    # `qasync.run` has its policy make all loops, also those of other threads, where Qt cannot run them.
    need("qasync", "PySide6")
    result = python(f"""
        import os, sys, warnings
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
        import asyncio, qasync
        from PySide6.QtWidgets import QApplication
        from ipyportal import run

        async def main():
            def helper():
                return run(asyncio.sleep(0.01, asyncio.get_running_loop))()
            return type(helper()).__name__, run(asyncio.sleep(0.01, 5))

        app = QApplication([])
        loop = qasync.QEventLoop(app)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            print({made_by})
        print(*(warning.message for warning in caught))
    """)
    assert result.stdout.startswith("('QSelectorEventLoop', 5)\nrun() blocks the event loop"), result.stderr
    assert result.stdout.count("blocks the event loop") == 1


def test_unittest_s_asynchronous_test_case() -> None:
    class Case(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self) -> None:
            color.set("set up")
            self.future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: self.future.set_result(run(double(1))))

        async def test_a_helper_waits(self) -> None:
            assert color.get() == "set up"
            assert run(self.future) == 2
            assert await asyncio.create_task(double(run(double(1)))) == 4

        async def asyncTearDown(self) -> None:
            assert run(double(3)) == 6
            assert color.get() == "set up"

    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(Case))
    assert result.wasSuccessful(), result.errors + result.failures


# --- with the patch --------------------------------------------------------------------------------------------------


def test_a_bot_that_runs_for_ever_in_the_running_loop_until_it_is_stopped() -> None:
    log: list[Any] = []

    def bot() -> None:  # the shape of python-telegram-bot's `run_polling`
        loop = asyncio.get_event_loop()
        log.append(loop.run_until_complete(double(1)))
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        log.append(loop.run_until_complete(double(2)))

    async def main() -> None:
        ticks = asyncio.create_task(asyncio.sleep(0.001, "ticked"))
        bot()
        log.append(ticks.done())

    with patch_asyncio(), soon():
        asyncio.run(main())
    assert log == [2, 4, True]


def test_another_loop_runs_for_ever_in_a_thread_until_it_is_stopped() -> None:
    async def main() -> tuple[bool, bool]:
        loop = asyncio.new_event_loop()
        where: list[threading.Thread] = []
        loop.call_soon(lambda: where.append(threading.current_thread()))
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        elsewhere = where[0] is not threading.current_thread()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        return elsewhere, loop.is_closed()

    with patch_asyncio(), soon():
        assert asyncio.run(main()) == (True, True)


def test_a_cancel_stops_another_loop_that_runs_for_ever() -> None:
    async def call(loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()

    async def main() -> None:
        loop = asyncio.new_event_loop()
        running = asyncio.Event()
        loop.call_soon(asyncio.get_running_loop().call_soon_threadsafe, running.set)
        task = asyncio.create_task(call(loop))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.is_running()
        loop.close()

    with patch_asyncio(), soon():
        asyncio.run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="no loop handles signals there anyway")
def test_a_web_server_is_told_that_it_can_have_no_signals_and_goes_on() -> None:
    import signal

    told: list[str] = []

    async def serve() -> int:  # as aiohttp's web.run_app and hypercorn do it
        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, int)
        except NotImplementedError as exc:
            told.append(str(exc))
        return await double(3)

    async def main() -> int:
        return asyncio.run(serve())

    with patch_asyncio():
        assert asyncio.run(main()) == 6
    assert "signals reach the main thread alone" in told[0]


SERVED = """
import asyncio, socket, urllib.request
from ipyportal import patch_asyncio, run

async def double(n):
    await asyncio.sleep(0.001)
    return 2 * n

def helper():
    return str(run(double(4)))  # on the loop of the server

def ask(path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open("http://127.0.0.1:%d%s" % (sock.getsockname()[1], path), timeout=10).read().decode()

async def ask_twice():
    return await asyncio.gather(asyncio.to_thread(ask, "/"), asyncio.to_thread(ask, "/"))

"""


def test_a_server_of_aiohttp_is_run_from_a_task() -> None:
    need("aiohttp")
    result = python(
        SERVED
        + """
from aiohttp import web

async def view(request):
    return web.Response(text=helper())

async def stop(request):
    asyncio.get_running_loop().call_later(0.05, exit_gracefully)
    return web.Response(text="")

def exit_gracefully():
    raise web.GracefulExit

async def main():
    answers = asyncio.create_task(ask_twice())
    answers.add_done_callback(lambda _: stopped.append(asyncio.ensure_future(asyncio.to_thread(ask, "/stop"))))
    app = web.Application()
    app.add_routes([web.get("/", view), web.get("/stop", stop)])
    web.run_app(app, sock=sock, print=None)
    print(await answers)
    await stopped[0]

stopped = []
with socket.create_server(("127.0.0.1", 0)) as sock, patch_asyncio():
    asyncio.run(main())
"""
    )
    assert result.stdout == "['8', '8']\n", result.stderr


def test_a_server_of_hypercorn_is_run_from_a_task() -> None:
    need("hypercorn")
    result = python(
        SERVED
        + """
from hypercorn.asyncio import serve
from hypercorn.config import Config

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": helper().encode()})

async def ask_and_stop():  # hypercorn has no other way to be stopped in a thread
    print(await ask_twice())

async def main():
    config = Config()
    config.bind = ["fd://%d" % sock.fileno()]
    config.loglevel = "CRITICAL"
    asyncio.run(serve(app, config, shutdown_trigger=ask_and_stop))

sock = socket.create_server(("127.0.0.1", 0))
with patch_asyncio():
    asyncio.run(main())
"""
    )
    assert result.stdout == "['8', '8']\n", result.stderr


def test_a_kind_of_loop_that_is_imported_after_the_patch_came_on() -> None:
    if sys.platform == "win32":
        pytest.skip("uvloop is not for Windows")
    pytest.importorskip("uvloop")
    result = python("""
        import asyncio, threading
        from ipyportal import patch_asyncio

        async def where():
            await asyncio.sleep(0)
            return type(asyncio.get_running_loop()).__module__

        async def main():
            import uvloop
            loop = uvloop.new_event_loop()
            try:
                return loop.run_until_complete(where())
            finally:
                loop.close()

        with patch_asyncio():
            print(asyncio.run(main()))
    """)
    assert result.stdout == "uvloop\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_of_a_task() -> None:
    result = python("""
        import asyncio, os, warnings
        warnings.simplefilter("ignore")
        from ipyportal import patch_asyncio

        async def double(n):
            await asyncio.sleep(0.001)
            return 2 * n

        async def main():
            loop = asyncio.get_event_loop()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = 0 if (loop.run_until_complete(double(2)), asyncio.run(double(3))) == (4, 6) else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            return os.waitstatus_to_exitcode(status), loop.run_until_complete(double(4))

        with patch_asyncio():
            print(asyncio.run(main()))
    """)
    assert result.stdout == "(0, 8)\n", result.stderr
