"""What makes loops itself, or refuses to run where one runs: other frameworks, tests, a broker's client, browsers."""

from .library import Library

LAUNCH = 'executable_path="CHROMIUM", handle_sigint=False, args=["--no-sandbox", "--disable-gpu"]'

LIBRARIES = {
    "anyio": Library(
        package="anyio",
        does="`anyio.run`",
        setup="""
import anyio

async def work(seconds):
    async with anyio.create_task_group():
        return await wait(seconds)

def use(seconds):
    return anyio.run(work, seconds)
""",
        gives="waited",
        by=("%%thread",),
    ),
    "trio": Library(
        package="trio",
        does="`trio.run`",
        setup="""
import trio

async def work(seconds):
    try:
        if seconds > 10:
            print("waits", flush=True)
        await trio.sleep(seconds)
    finally:
        ended.append(seconds)
    return "waited"

def use(seconds):
    return trio.run(work, seconds)
""",
        gives="waited",
        by=("%%thread",),
        goes_on=True,
    ),
    "asgiref": Library(
        package="asgiref",
        does="`async_to_sync`",
        setup="""
from asgiref.sync import async_to_sync

def use(seconds):
    return async_to_sync(wait)(seconds)
""",
        gives="waited",
        by=("%%thread",),
        goes_on=True,
    ),
    "unittest": Library(
        package="",
        does="`IsolatedAsyncioTestCase`",
        setup="""
import io, unittest

def use(seconds):
    class Tests(unittest.IsolatedAsyncioTestCase):
        async def test(self):
            await wait(seconds)

    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Tests)
    return unittest.TextTestRunner(stream=io.StringIO()).run(tests).wasSuccessful()
""",
        gives=True,
        by=("%%thread", "the patch"),
    ),
    "pytest": Library(
        package="pytest",
        does="`pytest.main` with async tests of anyio's plugin",
        setup="""
import pathlib, pytest
tests = pathlib.Path("FOLDER", "test_it.py")

def use(seconds):
    tests.write_text(f"import __main__\\n\\nasync def test(): await __main__.wait({seconds})")
    sys.modules.pop("test_it", None)
    options = ["-o", "anyio_mode=auto", "-k", "asyncio", "-p", "no:cacheprovider"]
    return int(pytest.main(["-q", "-s", *options, str(tests)]))
""",
        gives=0,
        by=("%%thread", "the patch"),
        stops_quietly=True,
    ),
    "ib_async": Library(
        package="ib_async",
        does="`util.run`, by which its synchronous methods wait",
        setup="""
from ib_async import util

def use(seconds):
    return util.run(wait(seconds))
""",
        gives="waited",
        by=("%%thread", "the patch"),
    ),
    "Playwright": Library(
        package="playwright",
        does="`sync_playwright`",
        setup=f"""
from playwright.sync_api import sync_playwright

def use(seconds):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch({LAUNCH})
        try:
            page = browser.new_page()
            page.goto(f"ADDRESS/wait/{{seconds}}", timeout=100_000)
            return page.evaluate("1 + 1")
        finally:
            browser.close()
""",
        gives=2,
        by=("%%thread",),
        cleans_up=False,
    ),
    "Playwright, async": Library(
        package="playwright",
        does="`async_playwright`",
        setup=f"""
from playwright.async_api import async_playwright

async def use(seconds):
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch({LAUNCH})
        page = await browser.new_page()
        await page.goto(f"ADDRESS/wait/{{seconds}}", timeout=100_000)
        return await page.evaluate("1 + 1")
""",
        gives=2,
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
}
