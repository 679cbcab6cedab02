"""What a cell that calls async code gets: values, output in its own place, the loop's own objects."""

from __future__ import annotations

import pytest

from .kernel import Kernel


def test_a_sync_function_calls_async_code(live_kernel: Kernel) -> None:
    assert (
        live_kernel.value("""
        async def double(n):
            await asyncio.sleep(0.01)
            return 2 * n

        def quadruple(n):
            return run(double(run(double(n))))

        quadruple(3)
    """)
        == 12
    )


def test_await_gives_the_value_of_an_expression(live_kernel: Kernel) -> None:
    live_kernel.value("async def double(n): await asyncio.sleep(0); return 2 * n")
    assert live_kernel.value("%await double(4)") == 8
    assert live_kernel.value("x = %await double(await double(5))\nx") == 20


def test_await_of_nothing_is_a_usage_error(live_kernel: Kernel) -> None:
    reply = live_kernel.execute("%await")
    assert "UsageError: %await needs an expression" in reply.stderr + (reply.error.evalue if reply.error else "")


def test_an_exception_comes_out_of_run_at_the_line_of_the_call(live_kernel: Kernel) -> None:
    error = live_kernel.execute("""
        async def fail():
            await asyncio.sleep(0)
            1 / 0
        run(fail())  # the call
    """).error
    assert error is not None
    assert error.ename == "ZeroDivisionError"
    assert "run(fail())  # the call" in error.traceback


def test_a_thousand_calls_in_a_loop(live_kernel: Kernel) -> None:
    assert (
        live_kernel.value("""
        async def double(n):
            await asyncio.sleep(0)
            return 2 * n

        sum(run(double(n)) for n in range(1000))
    """)
        == 999_000
    )


def test_a_call_runs_in_the_context_of_its_cell(live_kernel: Kernel) -> None:
    assert live_kernel.value("""
        import contextvars
        variable = contextvars.ContextVar("variable", default="unset")

        async def set_it():
            await asyncio.sleep(0)
            variable.set("set inside")

        variable.set("set outside")
        seen = [variable.get()]
        run(set_it())
        seen + [variable.get()]
    """) == ["set outside", "set inside"]


@pytest.mark.parametrize("ends_in", ["sync", "async"])
def test_the_output_of_a_background_call_lands_in_its_own_cell(live_kernel: Kernel, ends_in: str) -> None:
    live_kernel.value("""
        async def talk(name):
            print(name, "begins")
            await asyncio.wrap_future(gates[name])
            print(name, "ends")

        from concurrent.futures import Future
        gates = {"one": Future(), "two": Future()}
    """)
    end = "await asyncio.sleep(0)" if ends_in == "async" else ""
    one = live_kernel.execute_async(f"one = submit(talk('one'))\n{end}")
    two = live_kernel.execute_async(f"two = submit(talk('two'))\n{end}")
    assert one.reply().status == two.reply().status == "ok"
    later = [live_kernel.execute("print('later')")]
    later += [live_kernel.execute(f"gates[{name!r}].set_result(None)\n{name}.result()") for name in ("two", "one")]
    later.append(live_kernel.execute("print('later')"))
    live_kernel.wait_for(lambda: "ends" in one.stdout_so_far() and "ends" in two.stdout_so_far(), 10)
    assert one.stdout_so_far() == "one begins\none ends\n"
    assert two.stdout_so_far() == "two begins\ntwo ends\n"
    assert [reply.stdout for reply in later] == ["later\n", "", "", "later\n"]


def test_run_waits_for_a_task_of_the_kernels_loop(live_kernel: Kernel) -> None:
    live_kernel.value("""
        async def answer():
            await asyncio.sleep(0.05)
            return 42
        task = asyncio.ensure_future(answer())
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, future.set_result, "set")
        None
    """)
    assert live_kernel.value("run(task), run(future), run(task)") == (42, "set", 42)


def test_run_with_a_timeout_leaves_what_it_did_not_wait_for_cancelled(live_kernel: Kernel) -> None:
    reply = live_kernel.execute("""
        async def linger():
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up")
        run(linger(), timeout=0.1)
    """)
    assert reply.error is not None
    assert reply.error.ename == "TimeoutError"
    assert reply.stdout == "cleaned up\n"


def test_an_object_of_the_kernels_loop_works_with_await_and_with_run(live_kernel: Kernel) -> None:
    live_kernel.value("""
        async def serve(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        async def ask(text):
            async with lock:
                writer.write(text.encode() + b"\\n")
                return (await reader.readline()).decode().strip()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        lock = asyncio.Lock()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    """)
    assert live_kernel.value("await ask('awaited')") == "AWAITED"
    assert live_kernel.value("run(ask('run'))") == "RUN"
    assert live_kernel.value("%await ask('magic')") == "MAGIC"
    assert live_kernel.value("await asyncio.gather(ask('a'), ask('b'))") == ["A", "B"]
    assert live_kernel.value("run(asyncio.wait_for(ask('c'), 5))") == "C"
    live_kernel.value("writer.close()\nserver.close()")


def test_one_http_client_serves_await_cells_and_sync_cells(live_kernel: Kernel) -> None:
    live_kernel.value("""
        import http.server, httpx
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.path)))
                self.end_headers()
                self.wfile.write(self.path.encode())
            def log_message(self, *args): pass
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, daemon=True).start()
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.server_port}", trust_env=False)
        None
    """)
    assert live_kernel.value("(await client.get('/one')).text") == "/one"
    assert live_kernel.value("run(client.get('/two')).text") == "/two"
    assert live_kernel.value("(await client.get('/three')).text") == "/three"
    assert live_kernel.value("[r.text for r in run(asyncio.gather(*map(client.get, ['/4', '/5'])))]") == ["/4", "/5"]
    live_kernel.value("run(client.aclose())\nweb.shutdown()\nweb.server_close()")
