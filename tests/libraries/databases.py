"""Drivers of databases, and what maps objects on them: SQLite, a real PostgreSQL, a real Redis."""

from .library import Library

LIBRARIES = {
    "aiosqlite": Library(
        package="aiosqlite",
        does="`connect`, `execute`",
        setup="""
import aiosqlite

async def use(seconds):
    async with aiosqlite.connect(":memory:") as db:
        await wait(seconds)
        async with db.execute("select 'waited'") as rows:
            return (await rows.fetchone())[0]
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
    ),
    "SQLAlchemy": Library(
        package="SQLAlchemy",
        does="its asyncio extension, on asyncpg",
        setup="""
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

async def use(seconds):
    engine = create_async_engine("POSTGRES".replace("postgresql:", "postgresql+asyncpg:"))
    try:
        async with engine.connect() as db:
            return (await db.execute(text(f"select 'waited' from pg_sleep({seconds})"))).scalar_one()
    finally:
        await engine.dispose()
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "asyncpg": Library(
        package="asyncpg",
        does="a pool",
        setup="""
import asyncpg

async def use(seconds):
    async with asyncpg.create_pool("POSTGRES", min_size=1) as pool:
        return await pool.fetchval(f"select 'waited' from pg_sleep({seconds})")
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "psycopg": Library(
        package="psycopg",
        does="`AsyncConnection`",
        setup="""
import psycopg

async def use(seconds):
    async with await psycopg.AsyncConnection.connect("POSTGRES") as db:
        return (await (await db.execute(f"select 'waited' from pg_sleep({seconds})")).fetchone())[0]
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "Redis": Library(
        package="redis",
        does="`redis.asyncio`",
        setup="""
import redis.asyncio

async def use(seconds):
    async with redis.asyncio.from_url("REDIS") as db:
        return await db.blpop("nothing", timeout=seconds)
""",
        gives=None,
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "Tortoise ORM": Library(
        package="tortoise-orm",
        does="`run_async`",
        setup="""
from tortoise import Tortoise, run_async

from tortoise import fields, models

class City(models.Model):
    id = fields.IntField(primary_key=True)

said = []

def use(seconds):
    async def work():
        await Tortoise.init(db_url="sqlite://:memory:", modules={"models": ["__main__"]})
        await Tortoise.get_connection("default").execute_query("select 1")
        said.append(await wait(seconds))
    run_async(work())
    return said.pop()
""",
        gives="waited",
        by=("%%thread",),
        goes_on=True,
    ),
    "Django": Library(
        package="Django",
        does="the ORM",
        setup="""
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "FOLDER/cities.sqlite"}})
django.setup()
from django.db import connection

def use(seconds):
    with connection.cursor() as rows:
        if seconds > 10:
            print("waits", flush=True)
        for _ in range(int(seconds * 100)):
            rows.execute("select 'waited'")
            time.sleep(0.01)
        return rows.fetchone()[0]
""",
        gives="waited",
        by=("%%thread",),
        cleans_up=False,
    ),
}
