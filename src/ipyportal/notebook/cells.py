"""Compiling and running the body of a cell magic, with top-level ``await``."""

from __future__ import annotations

import ast
import codeop
import inspect
import io
import re
import sys
import tokenize
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Body", "cell_number", "contains_await", "in_a_cell", "running_cell", "without_await"]

_FLAG = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
# codeop's flag, which IPython's compiler has set for its prompt: with it an unclosed bracket raises another error.
_INCOMPLETE: int = getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)


class Body:
    """A cell's body as IPython would run it, but returning the last expression's value.

    IPython's own syntax (``!ls``, magics, ``?``), the registered AST transformers and
    ``ast_node_interactivity`` are honoured; code runs in the user's namespace. Made in the shell's thread.

    Args:
        source: The body, below the line of the magic.
        first_line: The number of its first line in the cell.
        interactivity: In place of ``ast_node_interactivity``.

    Raises:
        SyntaxError: With the line of the cell. Nothing has run then.
    """

    def __init__(
        self, shell: InteractiveShell, source: str, first_line: int = 2, *, interactivity: str | None = None
    ) -> None:
        # The line numbers of errors and tracebacks are then those of the cell. IPython drops empty lines at the start.
        empty = re.match(r"(?:\s*\n)?", source)
        assert empty is not None
        above = "\n" * (first_line - 1 + empty[0].count("\n"))
        body = source[empty.end() :]
        transformed = shell.transform_cell(body)
        if (before := _above_in_request(shell, body)) is None:
            raw, shown = above + body, above + transformed
        else:
            # By the name of the whole cell, which its frontend knows: for the breakpoints in it. It stands for that
            # cell's own line, too, which is that of the magic.
            above = "\n" * before.count("\n")
            raw, shown = _request(shell), before + transformed
        code = above + transformed
        name = shell.compile.cache(shown, cell_number(shell), raw_code=raw)
        flags = shell.compile.flags & ~_INCOMPLETE | _FLAG
        tree = _compile(code, name, "exec", flags | ast.PyCF_ONLY_AST)
        assert isinstance(tree, ast.Module)
        tree = shell.transform_ast(tree)
        shown, kept = _what_is_shown(tree, interactivity or shell.ast_node_interactivity)
        self.is_expression = len(tree.body) == 1 and tree.body[0] is kept
        self._silent = _ends_in_semicolon(code)
        self.namespace: dict[str, Any] = shell.user_ns
        self._codes: list[types.CodeType] = []
        for node in tree.body:
            if node is kept:
                assert isinstance(node, ast.Expr)
                part: Any = ast.Expression(node.value)
                mode = "eval"
            elif node in shown:
                part, mode = ast.Interactive([node]), "single"
            else:
                part, mode = ast.Module([node], []), "exec"
            self._codes.append(_compile(ast.fix_missing_locations(part), name, mode, flags))
        self.is_async = any(code.co_flags & inspect.CO_COROUTINE for code in self._codes)

    def shown(self, value: Any) -> Any:
        """What the magic is to return: the value, but None if a semicolon at the end says not to show it."""
        return None if self._silent else value

    async def run(self) -> Any:
        """Run it; give the value of the last expression, or None."""
        __tracebackhide__ = True
        value = None
        for code in self._codes:
            value = eval(code, self.namespace)
            if code.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value

    def run_sync(self) -> Any:
        """Run one without ``await``; give the value of the last expression, or None."""
        __tracebackhide__ = True
        value = None
        for code in self._codes:
            value = eval(code, self.namespace)
        return value


def cell_number(shell: InteractiveShell) -> int:
    """The number of the cell that is running, as in ``In [3]``. IPython counts on before or after, by its version."""
    manager = shell.history_manager
    return shell.execution_count if manager is None else len(manager.input_hist_raw) - 1


def running_cell(shell: InteractiveShell) -> tuple[int, object]:
    """What tells the cell that is running from others: its number; and its request, for cells that are not counted."""
    header = _parent(shell).get("header")
    return cell_number(shell), header.get("msg_id") if isinstance(header, dict) else None


def _parent(shell: InteractiveShell) -> dict[str, Any]:
    """The message that a kernel is handling; outside of kernels nothing."""
    parent = getattr(shell, "parent_header", None)
    return parent if isinstance(parent, dict) else {}


def _request(shell: InteractiveShell) -> str:
    """The whole cell, as the frontend has sent it; empty if there is none."""
    content = _parent(shell).get("content")
    code = content.get("code") if isinstance(content, dict) else None
    return code if isinstance(code, str) else ""


def _above_in_request(shell: InteractiveShell, body: str) -> str | None:
    """What stands above the body of a cell magic in its cell; None if it is not the body of the cell that runs."""
    cell, body = _request(shell), body.rstrip()
    if not (body and cell.startswith("%%") and cell.rstrip().endswith(body)):
        return None
    above = cell.rstrip()[: -len(body)]
    return above if above.endswith("\n") else None


def in_a_cell() -> bool:
    """Whether the code that asks is that of a cell, and not a callback or another task beside it."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_code" and frame.f_globals.get("__name__") == "IPython.core.interactiveshell":
            return True
        frame = frame.f_back
    return False


def _what_is_shown(tree: ast.Module, interactivity: str) -> tuple[list[ast.stmt], ast.stmt | None]:
    """The statements whose values are shown as they run, and the one whose value is returned."""
    nodes = tree.body
    if interactivity == "none" or not nodes:
        return [], None
    last = nodes[-1]
    if interactivity == "last_expr_or_assign" and not isinstance(last, ast.Expr):
        target = _assigned(last)
        if target is not None:
            nodes.append(ast.copy_location(ast.Expr(ast.copy_location(ast.Name(target, ast.Load()), last)), last))
        last = nodes[-1]
    shown: list[ast.stmt] = (
        [node for node in nodes[:-1] if isinstance(node, ast.Expr)] if interactivity == "all" else []
    )
    return shown, last if isinstance(last, ast.Expr) else None


def _ends_in_semicolon(code: str) -> bool:
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(code).readline))):
        if token.type not in (tokenize.ENDMARKER, tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.DEDENT):
            return token.string == ";"
    return False


def _assigned(node: ast.stmt) -> str | None:
    """The name that a statement assigns to, if it is one."""
    target = None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        target = node.target
    return target.id if isinstance(target, ast.Name) else None


def _compile(code: Any, name: str, mode: str, flags: int) -> Any:
    try:
        return compile(code, name, mode, flags, dont_inherit=True)
    except SyntaxError as exc:
        exc.of_a_cell_body = True  # type: ignore[attr-defined]  # shown without the frames that lead here
        raise


def contains_await(source: str) -> bool:
    """Whether source has ``await``, ``async for`` or the like outside of functions; or the word, if it is no Python."""
    try:
        code = compile(source, "<magic>", "exec", _FLAG, dont_inherit=True)
    except SyntaxError:
        return re.search(r"\bawait\b", source) is not None
    except ValueError:
        return False
    return bool(code.co_flags & inspect.CO_COROUTINE)


class _Awaits(ast.NodeTransformer):
    """``await x`` outside of functions becomes ``FUNCTION(x)``."""

    def __init__(self, function: str) -> None:
        self._function = function

    def visit_Await(self, node: ast.Await) -> ast.AST:
        self.generic_visit(node)
        function = ast.copy_location(ast.Name(self._function, ast.Load()), node)
        return ast.copy_location(ast.Call(function, [node.value], []), node)

    def _leave_alone(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _leave_alone


def without_await(source: str, function: str) -> str:
    """Source in which each ``await x`` outside of functions is ``function(x)``.

    Raises:
        SyntaxError: It is no Python; or it has ``async for``, ``async with`` or an asynchronous comprehension, which
            cannot be written so.
    """
    tree = _compile(source, "<magic>", "exec", _FLAG | ast.PyCF_ONLY_AST)
    assert isinstance(tree, ast.Module)
    nodes = ast.fix_missing_locations(_Awaits(function).visit(tree)).body
    # On one line where that is possible: a line magic can then take it.
    text = ("\n" if any(hasattr(node, "body") for node in nodes) else "; ").join(map(ast.unparse, nodes))
    if contains_await(text):
        raise SyntaxError(
            "`async for`, `async with` and asynchronous comprehensions cannot be timed like this; "
            "put them into an async function and await that"
        )
    return text
