"""A small HTTP server of asyncio, for the tests of asynchronous clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """``/lines/N`` gives N lines, one chunk each; ``/slow`` nothing for an hour; any other path is given back."""
    try:
        while line := await reader.readline():
            path = line.split()[1].decode()
            while (await reader.readline()).strip():
                pass
            if path == "/slow":
                await asyncio.sleep(3600)
            if path.startswith("/lines/"):
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for number in range(int(path.rpartition("/")[2])):
                    text = f"line {number}\n".encode()
                    writer.write(b"%x\r\n%s\r\n" % (len(text), text))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path.encode()))
            await writer.drain()
    except ConnectionError:
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
