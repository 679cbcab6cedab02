"""Clients and servers of HTTP."""

from .library import Library

LIBRARIES = {
    "httpx": Library(
        package="httpx",
        does="`AsyncClient`",
        setup="""
import httpx

async def use(seconds):
    async with httpx.AsyncClient(timeout=100) as client:
        return (await client.get(f"ADDRESS/wait/{seconds}")).status_code
""",
        gives=200,
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "aiohttp": Library(
        package="aiohttp",
        does="`ClientSession`",
        setup="""
import aiohttp

async def use(seconds):
    async with aiohttp.ClientSession() as client, client.get(f"ADDRESS/wait/{seconds}") as answer:
        return answer.status
""",
        gives=200,
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "aiohttp, a server": Library(
        package="aiohttp",
        does="`web.run_app`",
        setup="""
from aiohttp import web

async def app_that_ends_after(seconds):
    app = web.Application()

    async def ends(app):
        async def end():
            await wait(seconds)
            raise web.GracefulExit
        app["end"] = asyncio.create_task(end())

    app.on_startup.append(ends)
    return app

def use(seconds):
    said = []
    web.run_app(app_that_ends_after(seconds), host="127.0.0.1", port=0, handle_signals=False, print=said.append)
    return len(said)
""",
        gives=1,
        by=("%%thread", "the patch"),
        stops_quietly=True,
    ),
    "uvicorn and FastAPI": Library(
        package="uvicorn",
        does="`Server.serve`, and a client that asks it",
        setup="""
import fastapi, httpx, uvicorn

app = fastapi.FastAPI()

@app.get("/wait/{seconds}")
async def answer(seconds: float):
    return await wait(seconds)

async def use(seconds):
    options = dict(host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(uvicorn.Config(app, **options))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(timeout=100) as client:
            return (await client.get(f"http://127.0.0.1:{port}/wait/{seconds}")).json()
    finally:
        server.should_exit = True
        await serving
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "uvicorn, over several cells": Library(
        package="uvicorn",
        does="a server that `submit` starts in one cell, asked in the next",
        setup="""
import fastapi, httpx, uvicorn
from ipyportal import submit

app = fastapi.FastAPI()

@app.get("/wait/{seconds}")
async def answer(seconds: float):
    return await wait(seconds)

options = dict(host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1)
server = uvicorn.Server(uvicorn.Config(app, **options))
serving = submit(server.serve())
while not server.started:
    time.sleep(0.01)
address = "http://127.0.0.1:{}".format(server.servers[0].sockets[0].getsockname()[1])

async def use(seconds):
    async with httpx.AsyncClient(timeout=100) as client:
        return (await client.get(f"{address}/wait/{seconds}")).json()
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
        ends="server.should_exit = True\nserving.result(20)",
    ),
    "gql": Library(
        package="gql",
        does="`Client.execute` with an async transport",
        setup="""
from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport

def use(seconds):
    client = Client(transport=AIOHTTPTransport(url=f"ADDRESS/graphql/{seconds}", timeout=100))
    return client.execute(gql("query { said }"))
""",
        gives={"said": "waited"},
        by=("%%thread",),
        cleans_up=False,
    ),
}
