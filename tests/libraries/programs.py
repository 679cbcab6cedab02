"""Servers that some libraries need: started for a test, on loopback, with data in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"
"""Who runs PostgreSQL where the tests are root, which it refuses."""


def find(name: str) -> str | None:
    """Where the program is; Debian keeps PostgreSQL's out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


PROGRAMS = {"postgres": "initdb", "redis": "redis-server"}
"""What is needed beside Python packages, and the program that shows whether it is there."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, log: Path, **options: object) -> Iterator[None]:
    """A server, from when it listens."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, **options)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not listen: {log.read_text()}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server. Gives its URL."""
    initdb, server = find("initdb"), find("postgres")
    assert initdb is not None
    assert server is not None
    data, port = folder / "data", free_port()
    data.mkdir()
    options: dict[str, object] = {}
    if os.geteuid() == 0:
        shutil.chown(data, USER)
        options = {"user": USER, "group": USER, "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "cwd": "/"}
    settings = ["-A", "trust", "-U", "tests", "-E", "UTF8", "--no-sync"]
    subprocess.run([initdb, "-D", str(data), *settings], check=True, **quiet, **options)  # type: ignore[call-overload]
    command = [server, "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1", "-F"]
    with running(command, port, folder / "log", cwd="/", **options):
        yield f"postgresql://tests@127.0.0.1:{port}/postgres"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis server that keeps nothing. Gives its URL."""
    server = find("redis-server")
    assert server is not None
    port = free_port()
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with running(command, port, folder / "log"):
        yield f"redis://127.0.0.1:{port}"


@contextmanager
def prefect(folder: Path) -> Iterator[str]:
    """A Prefect server. Gives its URL."""
    port = free_port()
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_HOME": str(folder)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port, folder / "log", env={**os.environ, **quiet}):
        yield f"http://127.0.0.1:{port}"


STARTED = {"POSTGRES": postgres, "REDIS": redis, "ORCHESTRATOR": prefect}
"""By the word that stands for its URL in a setup."""
