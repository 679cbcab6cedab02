"""The magics."""

from __future__ import annotations

import ast
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from ipyportal.sync import run

__all__ = ["PortalMagics"]


@magics_class
class PortalMagics(Magics):
    """What ``%load_ext ipyportal`` adds."""

    @line_magic("await")  # type: ignore[untyped-decorator, arg-type, unused-ignore]
    @no_var_expand
    def await_(self, line: str) -> Any:
        """Wait for an expression's value: ``%await EXPR``, also as ``x = %await EXPR``.

        EXPR is evaluated in the notebook's namespace, and may contain ``await``. What it gives is awaited if it can
        be. As with `run`, the notebook stays alive meanwhile, and the stop button cancels it.
        """
        if not line.strip():
            raise UsageError("%await needs an expression: %await fetch(url)")
        code = compile(line.strip(), "<%await>", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        assert self.shell is not None
        namespace = self.shell.user_ns
        value = eval(code, namespace)
        if code.co_flags & 0x180:  # CO_COROUTINE, CO_ITERABLE_COROUTINE: it contains `await`
            value = run(value)
        return run(value) if hasattr(value, "__await__") else value
