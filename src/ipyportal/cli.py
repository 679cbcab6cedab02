"""The ``ipyportal`` command.

``ipyportal demo`` executes a notebook in a real kernel and shows it in the terminal, cell by cell.
``ipyportal doctor`` says what is found in such a kernel, and what therefore works. The kernel is
started with the interpreter that runs this program, so that what is shown is what this environment
does, whatever environment the installed kernelspecs point at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from ipyportal._version import __version__
from ipyportal.doctor import examine, this_interpreter

if TYPE_CHECKING:
    import nbclient
    from nbformat import NotebookNode

__all__ = ["main"]

_DEMO_PACKAGES = ("nbclient", "nbformat", "jupyter_client", "tqdm", "httpx", "rich")
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the program's name; ``sys.argv`` gives it when omitted.

    Returns:
        0 if all went well, 1 if a cell failed or could not be run, or nobody read what it wrote, 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 for a wrong command line, 0 after ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser(
        prog="ipyportal",
        description="Run async code from synchronous code in a live notebook.",
        epilog="In a notebook: %load_ext ipyportal, then %portal says what ipyportal doctor says here.",
    )
    parser.add_argument("--version", action="version", version=f"ipyportal {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="execute a notebook in a real kernel and show it here",
        description="Execute a notebook in a real kernel, started with this Python, and show "
        "each cell with its outputs. The exit status is 1 if a cell fails.",
    )
    demo.add_argument(
        "notebook",
        nargs="?",
        type=Path,
        metavar="NOTEBOOK",
        help="a notebook file (default: the quickstart that comes with ipyportal)",
    )
    demo.add_argument(
        "--timeout",
        type=_seconds,
        default=120,
        metavar="SECONDS",
        help="how long one cell may take (default: %(default)s)",
    )
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser(
        "doctor",
        help="say what is found here, and what therefore works",
        description="Start a kernel with this Python, load the extension in it, and show what it says of itself: what "
        "%%portal says in a notebook. The exit status is 1 if that could not be done.",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON, for programs and bug reports")
    doctor.set_defaults(command=_doctor)
    options = parser.parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # who reads it has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        status = 1
    return status


def _seconds(text: str) -> int:
    seconds = int(text)
    if seconds < 1:
        raise ValueError
    return seconds


def _demo(options: argparse.Namespace) -> int:
    missing = [name for name in _DEMO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            f"ipyportal demo needs {' and '.join(missing)}, not installed here. "
            'Install what it needs with: pip install "ipyportal[demo]"'
        )
    import nbformat

    path: Path = options.notebook or _quickstart()
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # noqa: BLE001 - what is no notebook makes nbformat raise anything
        return _fail(f"{path} cannot be read as a notebook: {error}")
    try:
        return _execute(notebook, path, options.timeout)
    except _KernelDidNotStart as error:
        return _fail(f"no kernel starts with {sys.executable}: {error}. What it wrote is above")


def _doctor(options: argparse.Namespace) -> int:
    try:
        lines, facts = examine()
    except RuntimeError as error:
        return _fail(f"ipyportal does not work in a kernel of {sys.executable}: {error}")
    if options.json:
        print(json.dumps({"ipyportal": __version__, **facts}, indent=2))
        return 0
    lines = [("ipyportal", __version__), *lines]
    width = max(len(subject) for subject, _ in lines)
    # As wide as the terminal, where there is one: no word is broken.
    columns = max(shutil.get_terminal_size().columns, width + 30) if sys.stdout.isatty() else 10_000
    for subject, text in lines:
        wrapper = textwrap.TextWrapper(columns, subject.ljust(width + 2), " " * (width + 2))
        wrapper.break_long_words = wrapper.break_on_hyphens = False
        print(wrapper.fill(text))
    return 0


def _quickstart() -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "notebooks" / "quickstart.ipynb"
    if installed.exists():
        return installed
    return package.parents[1] / "notebooks" / "quickstart.ipynb"  # an editable checkout


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _execute(notebook: NotebookNode, path: Path, timeout: int) -> int:
    """Execute `notebook` up to the first cell that fails, and show every cell as it finishes."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from tqdm import tqdm

    begin = time.monotonic()
    total = sum(_is_code(cell) for cell in notebook.cells)
    done = 0
    client = _client(notebook, path, timeout)
    with (
        _kernel(client) as said,
        # disable=None: no bar unless it goes to a terminal.
        tqdm(total=total, unit="cell", file=sys.stderr, disable=None, leave=False) as bar,
    ):
        for index, cell in enumerate(notebook.cells):
            failure = None
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                failure = f"{error.ename}: {error.evalue}"
            except CellTimeoutError:
                failure = f"it took more than {timeout} seconds"
            except DeadKernelError:
                _print_stderr_of_kernel(said)
                failure = "the kernel died"
            with bar.external_write_mode(file=sys.stdout):
                _show(cell, sys.stdout)
            if failure is not None:
                return _fail(f"{path.name}: code cell {done + 1} of {total} failed: {failure}")
            if _is_code(cell):
                done += 1
                bar.update()
    print(f"{path.name}: {done} code cells ran in {time.monotonic() - begin:.1f} s")
    return 0


def _client(notebook: NotebookNode, path: Path, timeout: int) -> nbclient.NotebookClient:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    return NotebookClient(
        notebook,
        kernel_manager_class=this_interpreter(AsyncKernelManager),
        timeout=timeout,
        coalesce_streams=True,  # and a progress bar's last state only
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )


class _KernelDidNotStart(Exception):
    """With what jupyter_client says of it."""


@contextmanager
def _kernel(client: nbclient.NotebookClient) -> Iterator[IO[bytes]]:
    """Start the kernel, and end it. Gives what its process writes to stderr, and no cell.

    It is shown where the kernel dies or does not start, and else not: ipykernel may complain at its end, of sockets
    that it has closed itself.
    """
    with tempfile.TemporaryFile() as said, ExitStack() as stack:
        try:
            stack.enter_context(client.setup_kernel(stderr=said))
        except RuntimeError as error:
            _print_stderr_of_kernel(said)
            raise _KernelDidNotStart(error) from error
        yield said


def _print_stderr_of_kernel(said: IO[bytes]) -> None:
    said.seek(0)
    sys.stderr.write(said.read().decode(errors="replace"))


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(cell.source.strip())


def _show(cell: NotebookNode, file: TextIO) -> None:
    """Write a cell as a terminal shows it: prose, or code behind a prompt and its outputs below."""
    if file.isatty() and "NO_COLOR" not in os.environ:
        _show_in_colour(cell, file)
        return
    if _is_code(cell):
        lines = _behind_prompt(f"In [{cell.execution_count or ' '}]: ", cell.source)
        lines += [line for output in cell.outputs for line in _output_lines(output)]
    else:
        lines = cell.source.strip().splitlines()
    file.write(_ESCAPE_SEQUENCE.sub("", "\n".join([*lines, "", ""])))
    file.flush()


def _show_in_colour(cell: NotebookNode, file: TextIO) -> None:
    """The same for a terminal, as wide as that is: prose as Markdown is meant, code in colours, no word broken."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, highlight=False)
    if _is_code(cell):
        prompt = f"In [{cell.execution_count or ' '}]: "
        code = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(cell.source)
        code.rstrip()
        grid = Table.grid()
        grid.add_column(style="green", no_wrap=True)
        grid.add_column(overflow="fold")
        for number, line in enumerate(code.split("\n", allow_blank=True)):
            grid.add_row(prompt if number == 0 else "...: ".rjust(len(prompt)), line)
        console.print(grid)
        for output in cell.outputs:
            console.print(Text.from_ansi("\n".join(_output_lines(output))))
    else:
        console.print(Markdown(cell.source))
    console.print()


def _output_lines(output: NotebookNode) -> Iterable[str]:
    if output.output_type == "stream":
        return _lines(output.text)
    if output.output_type == "error":
        return _lines("\n".join(output.traceback))
    text = _lines(output.data.get("text/plain", ""))
    if output.output_type == "execute_result":
        return _behind_prompt(f"Out[{output.execution_count}]: ", "\n".join(text))
    return text


def _lines(text: Any) -> list[str]:
    # Notebook files may hold a text as a list of its lines, and executed cells as one string.
    return (text if isinstance(text, str) else "".join(text)).splitlines()


def _behind_prompt(prompt: str, text: str) -> list[str]:
    first, *rest = text.splitlines() or [""]
    indent = "...: ".rjust(len(prompt)) if prompt.startswith("In") else " " * len(prompt)
    return [prompt + first, *(indent + line for line in rest)]
