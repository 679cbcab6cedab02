"""Synchronous libraries that refuse to run where a loop does, from cells: Django's ORM, and Playwright's sync API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import need_browser

from .kernel import Kernel, Pending

# --- Django ----------------------------------------------------------------------------------------------------------

DJANGO = """
    from ipyportal import get_worker_thread
    import django
    from django.conf import settings
    settings.configure(
        DATABASES={{
            "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            "file": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {path!r}}},
        }}
    )
    django.setup()
    from django.db import connection, connections, models, transaction

    class City(models.Model):
        name = models.CharField(max_length=50)
        class Meta:
            app_label = "tests"

    def create_table(using="default"):
        with connections[using].schema_editor() as editor:
            editor.create_model(City)

    def names(using="default"):
        return sorted(City.objects.using(using).values_list("name", flat=True))
"""


@pytest.fixture(scope="module")
def django(live_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with a model of Django's, and its table in the memory of the thread "db"."""
    live_kernel.value(DJANGO.format(path=str(tmp_path_factory.mktemp("django") / "cities.sqlite")))
    live_kernel.value("%%thread --name db\ncreate_table()")
    yield live_kernel
    live_kernel.value("%%thread --name db\nconnections.close_all()")


@pytest.mark.parametrize("cell", ["names()", "await asyncio.sleep(0)\nnames()"])
def test_django_refuses_a_cell(django: Kernel, cell: str) -> None:
    error = django.execute(cell).error
    assert error is not None
    assert error.ename == "SynchronousOnlyOperation"


def test_cells_and_functions_share_a_connection_of_django(django: Kernel) -> None:
    # The database is in the memory of one connection, and each thread has its own.
    django.value("%%thread --name db\noslo = City.objects.create(name='Oslo')")
    assert django.value("%%thread --name db\noslo.pk, City.objects.get() == oslo") == (1, True)
    assert django.value("run(names, on=get_worker_thread('db'))") == ["Oslo"]
    assert django.value("await asyncio.sleep(0)\nrun(names, on=get_worker_thread('db'))") == ["Oslo"]
    assert django.value("%%thread\nrun(names, on=get_worker_thread('db'))") == ["Oslo"]
    error = django.execute("run(names, on='thread')").error
    assert error is not None
    assert error.evalue == "no such table: tests_city"


def test_a_transaction_of_django_spans_cells(django: Kernel) -> None:
    begin = "atomic = transaction.atomic(); atomic.__enter__()"
    django.value(f"%%thread --name db\nbefore = names(); {begin}\nNone")
    assert django.value("%%thread --name db\nCity.objects.create(name='Riga')\n'Riga' in names()") is True
    django.value("%%thread --name db\ntransaction.set_rollback(True); atomic.__exit__(None, None, None)")
    assert django.value("%%thread --name db\nnames() == before") is True


def test_a_thread_for_one_call_is_enough_for_a_database_in_a_file(django: Kernel) -> None:
    assert django.value("""
        def add(name):
            try:
                City.objects.using("file").create(name=name)
                return names("file")
            finally:
                connections.close_all()
        run(create_table, "file", on="thread")
        run(add, "Oslo", on="thread"), run(add, "Lima", on="thread")
    """) == (["Oslo"], ["Lima", "Oslo"])


def test_an_error_of_django_reaches_the_cell(django: Kernel) -> None:
    error = django.execute("%%thread --name db\nCity.objects.get(name='nowhere')").error
    assert error is not None
    assert (error.ename, error.evalue) == ("DoesNotExist", "City matching query does not exist.")


# --- Playwright ------------------------------------------------------------------------------------------------------

PLAYWRIGHT = """
    from ipyportal import get_worker_thread
    from playwright.sync_api import Error, sync_playwright
    options = dict(
        executable_path={path!r},
        handle_sigint=False,  # the stop button is for the cell, and not for the browser
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
    )
    html = "<h1>Hello</h1><button onclick='this.textContent = 1 + +this.textContent'>0</button>"

    def title():
        return page.text_content("h1")

    def never():
        try:
            print("begun")
            page.wait_for_selector("#never", timeout=60_000)
        finally:
            cleaned.append(title())

    cleaned = []
"""

START = """%%thread --name browser
playwright = sync_playwright().start()
browser = playwright.chromium.launch(**options)
page = browser.new_page()
page.set_content(html)
"""


@pytest.fixture(scope="module")
def page(live_kernel: Kernel) -> Iterator[Kernel]:
    """A kernel with a page in a real browser, which belongs to the thread "browser"."""
    live_kernel.value(PLAYWRIGHT.format(path=need_browser()))
    live_kernel.value(START, timeout=50)
    yield live_kernel
    live_kernel.value("%%thread --name browser\nbrowser.close(); playwright.stop()")


def stop(kernel: Kernel, pending: Pending) -> None:
    """Press the stop button, with the effect that it shall have."""
    kernel.interrupt()
    error = pending.reply().error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"


def test_playwright_refuses_a_cell(page: Kernel) -> None:
    error = page.execute("sync_playwright().start()").error
    assert error is not None
    assert "inside the asyncio loop" in error.evalue


def test_cells_and_functions_share_a_page(page: Kernel) -> None:
    for n in (1, 2):
        assert page.value("%%thread --name browser\npage.click('button'); page.text_content('button')") == str(n)
    assert page.value("run(title, on=get_worker_thread('browser'))") == "Hello"
    assert page.value("await asyncio.sleep(0)\nrun(title, on=get_worker_thread('browser'))") == "Hello"


def test_a_browser_for_one_call(page: Kernel) -> None:
    title = page.value("""
        def alone():
            with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
                page = browser.new_page()
                page.set_content(html)
                return page.text_content("h1")
        run(alone, on="thread")
    """)
    assert title == "Hello"


IN_A_CELL = "%%thread --name browser\nprint('begun')\n"
WAITS = {
    "a cell in wait_for_timeout": IN_A_CELL + "page.wait_for_timeout(60_000)",
    "a cell in wait_for_selector": IN_A_CELL + "page.wait_for_selector('#never', timeout=0)",
    "a cell in evaluate": IN_A_CELL + "page.evaluate('new Promise(() => 0)')",
    "a function": "run(never, on=get_worker_thread('browser'))",
    "an async cell": "await asyncio.sleep(0)\nrun(never, on=get_worker_thread('browser'))",
}


@pytest.mark.parametrize("way", WAITS)
def test_the_stop_button_ends_the_wait_and_the_page_can_be_used_again(page: Kernel, way: str) -> None:
    page.value("cleaned.clear()")
    stop(page, page.begin(WAITS[way]))
    assert page.value("%%thread --name browser\ntitle()") == "Hello"
    assert page.value("cleaned") == (["Hello"] if "never, on" in WAITS[way] else [])


def test_a_time_out_ends_the_wait_and_the_page_can_be_used_again(page: Kernel) -> None:
    error = page.execute("run(never, on=get_worker_thread('browser'), timeout=0.2)").error
    assert error is not None
    assert error.ename == "TimeoutError"
    assert page.value("%%thread --name browser\ntitle()") == "Hello"


def test_a_page_that_is_used_outside_of_its_thread_does_no_harm_to_the_kernel(page: Kernel) -> None:
    # Playwright leaves its own loop in the kernel's thread as the one that runs there.
    error = page.execute("title()").error
    assert error is not None
    assert "different thread" in error.evalue
    assert page.value("await asyncio.sleep(0.01)\nrun(asyncio.sleep(0.01, 'alive'))") == "alive"
    assert page.value("%%thread --name browser\ntitle()") == "Hello"


def test_async_code_runs_in_the_thread_of_a_browser(page: Kernel) -> None:
    assert page.value("run(asyncio.sleep, 0.01, 'done', on=get_worker_thread('browser'))") == "done"
    assert page.value("%%thread --name browser\ntitle()") == "Hello"
