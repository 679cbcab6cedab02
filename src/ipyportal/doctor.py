"""``ipyportal doctor``: what a kernel of this Python is, and what therefore works in it.

Nothing is guessed: a kernel is started, loads the extension, and says of itself what ``%portal`` says in a notebook.
"""

from __future__ import annotations

import ast
import json
import queue
import sys
import time
from typing import Any

__all__ = ["examine", "this_interpreter"]

_LOAD = "%load_ext ipyportal"
_REPORT = "__import__('json').dumps([(found := get_ipython().run_line_magic('portal', '')).lines(), found.facts()])"


def this_interpreter(manager: type) -> Any:
    """A kind of kernel manager that starts the interpreter that runs this, whatever the installed kernelspecs are."""
    from jupyter_client.kernelspec import KernelSpec

    class ThisInterpreter(manager):  # type: ignore[misc]
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                # Its own warnings would come between what is shown.
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
                display_name=f"Python ({sys.prefix})",
                language="python",
                # The debugger, which older ipykernels import when they start, would warn on stderr.
                env={"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
            )

    return ThisInterpreter


def examine(timeout: float = 60.0) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Ask a fresh kernel what it found.

    Args:
        timeout: Seconds for the kernel to start and to answer.

    Returns:
        Pairs of a subject and what there is to say about it; and the same for programs.

    Raises:
        RuntimeError: It did not start, or the extension could not be loaded in it; with what it said.
    """
    from jupyter_client.manager import KernelManager

    manager = this_interpreter(KernelManager)()
    deadline = time.monotonic() + timeout
    manager.start_kernel()
    try:
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=timeout)
            # A cell of its own: from the next one on, the extension takes part in the kernel's messages.
            _ask(client, _LOAD, {}, deadline)
            answer = _ask(client, "", {"report": _REPORT}, deadline)["user_expressions"]["report"]
        except queue.Empty:
            raise RuntimeError(f"the kernel did not answer within {timeout:g} s") from None
        finally:
            client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    if answer["status"] != "ok":
        raise RuntimeError(f"the extension did not load: {answer['ename']}: {answer['evalue']}")
    lines, facts = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
    return [(subject, text) for subject, text in lines], facts


def _ask(client: Any, code: str, expressions: dict[str, str], deadline: float) -> Any:
    request = client.execute(code, silent=True, user_expressions=expressions)
    while True:
        reply = client.get_shell_msg(timeout=max(0.0, deadline - time.monotonic()))
        if reply["parent_header"].get("msg_id") == request:
            break
    content = reply["content"]
    if content["status"] != "ok":
        raise RuntimeError(f"{code}: {content.get('ename')}: {content.get('evalue')}")
    return content
