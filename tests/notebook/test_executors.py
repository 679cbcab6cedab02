"""`ExecutorPortal` in a kernel: functions of the notebook, cells that are suspended, the stop button."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .kernel import Kernel

pytestmark = pytest.mark.timeout(180)  # on a machine that is busy a cluster takes long to start

POOL = """
    import multiprocessing, operator, signal
    from concurrent.futures import ProcessPoolExecutor
    from ipyportal import ExecutorPortal, map

    def pool():
        spawn = multiprocessing.get_context("spawn")
        # The stop button interrupts the processes of a pool, too.
        return ProcessPoolExecutor(2, spawn, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

    def double(n):
        return 2 * n

    async def adouble(n):
        return 2 * n

    portal = ExecutorPortal(pool(), owner=True)
"""

DASK = """
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None,
        preload="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    )
    client = Client(cluster)
    dask = ExecutorPortal(client.get_executor(pure=False))

    def hold(folder):
        import time
        (folder / "begun").touch()
        while not (folder / "release").exists():
            time.sleep(0.002)
"""


@pytest.fixture(scope="module")
def kernel_with_pool(live_kernel: Kernel) -> Iterator[Kernel]:
    live_kernel.value(POOL)
    yield live_kernel
    live_kernel.value("portal.shutdown()")


def test_a_function_of_the_notebook_is_not_in_a_new_process(kernel_with_pool: Kernel) -> None:
    assert kernel_with_pool.value("run(operator.mul, 6, 7, on=portal)") == 42
    for fn in ("double", "adouble"):
        error = kernel_with_pool.execute(f"run({fn}, 1, on=portal)").error
        assert error is not None
        assert error.ename == "TypeError"
        assert f"attribute '{fn}'" in error.evalue  # in words of pickle that change
        assert "Put it into a module and import it" in error.evalue
    # The pool has not broken.
    assert kernel_with_pool.value("map(operator.neg, range(3), on=portal)") == [0, -1, -2]


def test_with_cloudpickle_it_is(kernel_with_pool: Kernel) -> None:
    pytest.importorskip("cloudpickle")
    code = """
        import cloudpickle
        by_value = ExecutorPortal(portal.executor, dumps=cloudpickle.dumps)
        run(double, 1, on=by_value), map(adouble, range(3), on=by_value)
    """
    assert kernel_with_pool.value(code) == (2, [0, 2, 4])


def test_the_stop_button_and_a_cluster_of_dask(kernel_with_pool: Kernel, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    kernel = kernel_with_pool
    kernel.value(DASK, timeout=90)
    try:
        assert kernel.value("run(double, 1, on=dask), run(adouble, 2, on=dask)") == (2, 4)
        # The cell is suspended meanwhile: its loop goes on.
        code = f"""
            from pathlib import Path
            folder = Path({str(tmp_path)!r})
            async def when_begun(path):
                while not path.exists():
                    await asyncio.sleep(0.002)
                print("begun")
            task = asyncio.ensure_future(when_begun(folder / "begun"))
            run(hold, folder, on=dask)
        """
        held = kernel.begin(code)
        kernel.interrupt()
        error = held.reply(timeout=10).error
        assert error is not None
        assert error.ename == "KeyboardInterrupt"
        tmp_path.joinpath("release").touch()
        # The workers live, and so does the kernel.
        assert kernel.value("map(double, range(3), on=dask)") == [0, 2, 4]
        assert kernel.value("map(operator.neg, range(3), on=portal)") == [0, -1, -2]
    finally:
        tmp_path.joinpath("release").touch()
        assert kernel.execute("dask.shutdown(); client.close(); cluster.close()").error is None
