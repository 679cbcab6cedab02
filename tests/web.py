"""A small HTTP server of asyncio, for the tests of asynchronous clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """``/lines/N`` gives N lines, one chunk each; ``/slow`` nothing for an hour; any other path is given back.

    ``/wait/N`` waits for N seconds before, and so does ``/graphql/N``, which answers a query of GraphQL.
    """
    try:
        while line := await reader.readline():
            path = line.split()[1].decode()
            length = 0
            while header := (await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            await reader.readexactly(length)
            if path == "/slow":
                await asyncio.sleep(3600)
            if path.startswith(("/wait/", "/graphql/")):
                await asyncio.sleep(float(path.rpartition("/")[2]))
            answer, kind = path, "text/plain"
            if path.startswith("/graphql/"):
                answer, kind = '{"data": {"said": "waited"}}', "application/json"
            if path.startswith("/lines/"):
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for number in range(int(path.rpartition("/")[2])):
                    text = f"line {number}\n".encode()
                    writer.write(b"%x\r\n%s\r\n" % (len(text), text))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
                writer.write(f"{head}{answer}".encode())
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has had enough
    finally:
        writer.close()


@asynccontextmanager
async def web() -> AsyncIterator[str]:
    """A server on loopback, for as long as the block lasts. Gives its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await _answer(reader, writer)
        except asyncio.CancelledError:
            pass  # the server is closing
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(list(tasks))
        await server.wait_closed()
