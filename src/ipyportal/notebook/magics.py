"""The magics: ``%await``, ``%%await``, ``%%background``, ``%%thread``, ``%calls``, ``%portal``."""

from __future__ import annotations

import builtins
import contextvars
import inspect
import keyword
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class, needs_local_scope, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from ipyportal import hosts
from ipyportal.concurrency import suspended_stacks
from ipyportal.concurrency.calls import Call, Portal, current_call
from ipyportal.concurrency.cancellation.clock import Timer, check_timeout, clock
from ipyportal.concurrency.labels import one_line, sendable, short_repr
from ipyportal.concurrency.portals.shared import get_worker_thread
from ipyportal.concurrency.portals.workers import WorkerThread
from ipyportal.concurrency.reporting import report
from ipyportal.notebook.cells import Body, cell_number
from ipyportal.notebook.display import CallsTable, CallView, _seconds
from ipyportal.notebook.environment import Report
from ipyportal.notebook.history import History, Launched, as_typed
from ipyportal.notebook.kernel import on_output_thread
from ipyportal.routes import get_route, portal_of, set_route
from ipyportal.sync import run

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


__all__ = ["PortalMagics", "completions"]

PATIENCE = 1.0
"""Seconds for which a cell waits for a thread that is busy without saying so."""

_ROUTES = ("kernel", "loop", "thread")
_OPTION = re.compile(r"\s*(-t|--timeout|--on|--as|--name)(?:\s+|=)(\S+)")


def _portal_option(function: Callable[..., Any]) -> Callable[..., Any]:
    timeout = argument("-t", "--timeout", metavar="SECONDS", help="Cancel it after this many seconds.")
    on = argument(
        "--on", metavar="ROUTE", help="Where it runs: kernel, loop, thread, or the name of a Portal of yours."
    )
    return timeout(on(function))  # type: ignore[no-any-return]


class Switches(Protocol):
    """What the magics need of the `Extension`."""

    history: History

    def launched(self, call: Call[Any]) -> Launched: ...
    def switch(self, name: str, on: bool) -> None: ...
    def report(self) -> Report: ...


@magics_class
class PortalMagics(Magics):
    """What ``%load_ext ipyportal`` adds."""

    def __init__(self, shell: InteractiveShell, extension: Switches) -> None:
        super().__init__(shell)
        self._shell: InteractiveShell = shell
        self._extension = extension

    # --- reading what was typed --------------------------------------------------------------------------------------

    def _parse(self, magic: Any, line: str) -> Namespace:
        """The options of a magic. What is wrong with them is a UsageError."""
        try:
            return parse_argstring(magic, line)  # type: ignore[no-any-return]
        except ValueError as exc:  # of shlex
            raise UsageError(f"{exc}: {one_line(line)}") from None

    def _timeout(self, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            return check_timeout(float(text))
        except ValueError:
            raise UsageError(f"-t needs a number of seconds, 0 or more, as in -t 5, not {text!r}") from None

    def _route(self, text: str | None) -> Any:
        if text is None or text in _ROUTES:
            return text
        portal = self._shell.user_ns.get(text)
        if not isinstance(portal, Portal):
            raise UsageError(f"--on needs kernel, loop, thread or the name of a Portal, not {text!r}")
        return portal

    # --- waiting -----------------------------------------------------------------------------------------------------

    @line_magic("await")
    @needs_local_scope
    @no_var_expand
    @magic_arguments("await")
    @_portal_option
    @argument("expression", nargs="*", help="What to evaluate and wait for; it may contain await.")
    def await_(self, line: str, local_ns: dict[str, Any] | None = None) -> Any:
        """Wait for an expression's value: ``%await [-t SECONDS] [--on ROUTE] EXPR``, also as ``x = %await EXPR``.

        EXPR is evaluated where you write the magic: with the notebook's variables, and in a function also with the
        function's variables. If its value is an awaitable, that is awaited. As with run(), the notebook stays alive
        meanwhile, and the stop button cancels it.
        """
        __tracebackhide__ = True
        end = 0
        while option := _OPTION.match(line, end):
            end = option.end()
        expression = line[end:].strip()
        options = self._parse(
            self.await_, line[:end] + (" x" if not re.match(r"-[a-zA-Z-]", expression) else line[end:])
        )
        timeout, on = self._timeout(options.timeout), self._route(options.on)
        if not expression:
            raise UsageError("%await needs an expression: %await fetch(url)")
        namespace = self._shell.user_ns
        body = Body(self._shell, expression, _line_in_cell(namespace), interactivity="last_expr")
        if local_ns is not None and local_ns is not namespace:
            body.namespace = {**namespace, **local_ns}
        if not body.is_expression:
            raise UsageError("%await needs an expression, not a statement: x = %await fetch(url)")

        async def evaluate() -> Any:
            __tracebackhide__ = True
            value = await body.run()
            return await value if inspect.isawaitable(value) else value

        return body.shown(run(_named(evaluate, "%await"), timeout=timeout, on=on))

    @magic_arguments("%await")
    @_portal_option
    @argument("--as", dest="name", metavar="NAME", help="Keep the last expression's value in NAME, do not show it.")
    def await_cell(self, line: str, cell: str) -> Any:
        """Run the cell, with await at its top level: ``%%await [-t SECONDS] [--on ROUTE] [--as NAME]``.

        As in any cell, its variables are the notebook's, and the value of its last expression is shown and kept in
        ``_`` and ``Out``. The stop button cancels it, and waits for its clean-up.
        """
        __tracebackhide__ = True
        options = self._parse(self.await_cell, line)
        timeout, on = self._timeout(options.timeout), self._route(options.on)
        name = None if options.name is None else _identifier(options.name)
        body = Body(self._shell, cell)
        value = run(_named(body.run, "%%await"), timeout=timeout, on=on)
        if name is None:
            return body.shown(value)
        self._shell.user_ns[name] = value
        return None

    @magic_arguments("%background")
    @_portal_option
    @argument("name", nargs="?", help="The variable that will hold the Call.")
    def background(self, line: str, cell: str) -> None:
        """Start the cell's code, and return at once: ``%%background [NAME] [-t SECONDS] [--on ROUTE]``.

        The variable NAME will hold its Call. NAME.result() waits for it, and returns the value of the last expression.
        NAME.cancel() cancels it. A card below the cell shows its state. Its output, its value and its error appear
        there, too. The code runs on the EventLoopThread. For code that blocks without await, use %%thread, or
        --on thread.
        """
        options = self._parse(self.background, line)
        timeout, on = self._timeout(options.timeout), self._route(options.on)
        name = None if options.name is None else _identifier(options.name)
        body = Body(self._shell, cell)

        async def run_and_show() -> Any:
            __tracebackhide__ = True
            value = await body.run()
            try:
                view.show_value(body.shown(value))
            except Exception as exc:  # noqa: BLE001 - somebody's `_repr_html_`: the value is that of the call all the same
                report(exc, f"the value of {call.name} could not be shown")
            return value

        call = Call.new(run_and_show)
        call.name = name or f"cell {cell_number(self._shell)}"
        call.set_timeout(timeout)
        portal = portal_of(on if on is not None else get_route())
        view = CallView(call, None)
        view.show(value=True)  # first, so that it stands above what the body prints
        try:
            portal.submit(call)
        except BaseException:
            call.cancel()
            view.follow(None)
            raise
        view.follow(self._extension.launched(call))
        if name is not None:
            before = self._shell.user_ns.get(name)
            if isinstance(before, Call) and not before.done():
                # A call of submit() has a name of its own.
                which = "them" if before.name == name else "it"
                print(f"the earlier call {name} still runs: %calls cancel {one_line(before.name)} ends {which}")  # noqa: T201
            self._shell.user_ns[name] = call

    @magic_arguments("%thread")
    @argument("-t", "--timeout", metavar="SECONDS", help="Cancel it after this many seconds.")
    @argument(
        "--name",
        metavar="NAME",
        help="Run in the thread of this name, the same for each cell that names it.",
    )
    def thread(self, line: str, cell: str) -> Any:
        """Run a synchronous cell in a thread where no event loop runs: ``%%thread [-t SECONDS] [--name NAME]``.

        Use it for libraries that refuse to work where a loop runs. The variables are the notebook's. The value of the
        last expression, the output, ``input()`` and the stop button work as in any cell. The notebook stays alive.
        To use the same thread in a function, write run(fn, on=get_worker_thread("NAME")).
        """
        __tracebackhide__ = True
        options = self._parse(self.thread, line)
        timeout = self._timeout(options.timeout)
        body = Body(self._shell, cell)
        if body.is_async:
            raise UsageError("%%thread cannot run await: use %%await or %%background")
        if options.name is None:
            return body.shown(run(_named(body.run_sync, "%%thread"), timeout=timeout, on="thread"))
        name = options.name.strip("\"'")
        if not name:
            raise UsageError("--name needs a name")
        worker = get_worker_thread(name)
        number = cell_number(self._shell)

        def run_sync() -> Any:
            __tracebackhide__ = True
            if (call := current_call()) is not None:
                self._extension.history.note(call, number)
            return body.run_sync()

        work = _named(run_sync, "%%thread")
        reminder = _say_if_busy(worker, name, work, self._extension.history)
        try:
            return body.shown(run(work, timeout=timeout, on=worker))
        finally:
            if reminder is not None:
                clock.cancel(reminder)

    # --- looking -----------------------------------------------------------------------------------------------------

    @line_magic
    @no_var_expand  # names are text
    @magic_arguments()
    @argument(
        "action",
        nargs="?",
        choices=["cancel", "clear", "where"],
        help="cancel NAME or all; clear the finished ones; where shows the stacks of code that waits.",
    )
    @argument("name", nargs="*", help="Which to cancel, or all.")
    def calls(self, line: str) -> Any:
        """Show calls, running or over, or cancel them: ``%calls``, ``%calls cancel NAME|all``, ``%calls clear|where``.

        It lists the calls started with submit() and %%background. It remembers the last hundred that are over, without
        their results. NAME is the name in the list. Put it in quotes if it is ``all``.
        """
        action, name = (*line.strip().split(maxsplit=1), "", "")[:2]  # no more of it is parsed: a name is any text
        options = self._parse(self.calls, action)
        history = self._extension.history
        if name and options.action != "cancel":
            raise UsageError(f"%calls {action} takes no further arguments: {one_line(name)}")
        if options.action == "clear":
            history.clear()
            return None
        if options.action == "where":
            stacks = [f"suspended:\n{self._with_cells(stack)}" for stack in suspended_stacks()]
            print("\n".join(stacks) or "nothing is suspended")  # noqa: T201 - a magic's answer
            return None
        if options.action == "cancel":
            if not name:
                raise UsageError("say which call to cancel: %calls cancel NAME, or %calls cancel all")
            chosen = history.running() if name == "all" else history.named(name)
            if not chosen and name != "all":
                raise UsageError(f"no running call is named {short_repr(name)}; %calls lists the running calls")
            for one in chosen:
                if (call := one.call()) is not None:
                    call.cancel()
            print(f"cancelled {len(chosen)}")  # noqa: T201 - a magic's answer
            return None
        return CallsTable(history)

    def _with_cells(self, stack: traceback.StackSummary) -> str:
        """A stack as text, in which cells are called as in tracebacks, by IPythons that have a way to ask."""
        text = sendable("".join(stack.format()))
        name_of = getattr(self._shell.compile, "format_code_name", None)
        for frame in stack:
            if name_of is not None and (name := name_of(frame.filename)) is not None:
                text = text.replace(f'File "{frame.filename}"', " ".join(name))
        return text

    @line_magic
    @magic_arguments()
    @argument(
        "what", nargs="?", choices=["route", "await", "patch"], help="What to set; without, what was found is shown."
    )
    @argument("value", nargs="?", help="route: rule, kernel, loop or thread; await, patch: on or off.")
    def portal(self, line: str) -> Any:
        """Show what ipyportal found in this kernel, and your settings: ``%portal``.

        ``%portal route rule|kernel|loop|thread`` sets where calls without ``on=`` run.
        ``%portal await off`` restores IPython's own %time, %timeit, %prun and %%capture, which do not accept await.
        ``%portal patch on`` makes asyncio.run() and loop.run_until_complete() work in cells, for libraries that call
        them. ``%portal patch off`` restores asyncio's own.
        """
        options = self._parse(self.portal, line)
        if options.what == "route":
            if options.value not in ("rule", *_ROUTES):
                raise UsageError("%portal route needs rule, kernel, loop or thread")
            set_route(None if options.value == "rule" else options.value)
            print(_ROUTE_SET[options.value])  # noqa: T201 - a magic's answer
            return None
        if options.what in ("await", "patch"):
            if options.value not in ("on", "off"):
                raise UsageError(f"%portal {options.what} needs on or off")
            self._extension.switch(options.what, options.value == "on")
            print(_SWITCHED[options.what, options.value])  # noqa: T201
            return None
        return self._extension.report()


_ROUTE_SET = {
    "rule": "calls run by the rule again: in a cell on its own loop, elsewhere on the EventLoopThread",
    "kernel": "calls without on= run on the kernel's thread now; to undo, type %portal route rule",
    "loop": "calls without on= run on the EventLoopThread now; to undo, type %portal route rule",
    "thread": "calls without on= run in a thread each now; to undo, type %portal route rule",
}
_SWITCHED = {
    ("await", "on"): "%time, %timeit, %prun and %%capture know await again",
    ("await", "off"): "%time, %timeit, %prun and %%capture are IPython's own now; to undo, type %portal await on",
    ("patch", "on"): "asyncio.run() and loop.run_until_complete() work in cells now; to undo, type %portal patch off",
    ("patch", "off"): "asyncio is as it was",
}

# Registered by hand: IPython's decorators name a cell magic after its function, which the line magic has taken.
CELL_MAGICS = {"await": "await_cell", "background": "background", "thread": "thread"}


def _named(function: Callable[[], Any], name: str) -> Any:
    """`function`, by the name under which its call is shown."""

    def call() -> Any:
        __tracebackhide__ = True
        return function()

    call.__name__ = call.__qualname__ = name
    return call


def _say_if_busy(worker: WorkerThread, name: str, work: Any, history: History) -> Timer | None:
    """If `worker` is busy, and still is after `PATIENCE`, have a line say with what; what is given can be cancelled."""

    def say() -> None:
        call = worker._current
        if call is None or call.fn is work:
            return
        what = call.name
        if (launched := history.of(call)) is not None:
            cell = "" if launched.cell is None else f" of In [{launched.cell}]"
            what += f"{cell}, for {_seconds(launched.elapsed)}"
        print(f"the thread {name!r} is busy with {what}; this cell starts when that is over")  # noqa: T201

    if worker._current is None:  # as nearly always: then the engine's clock is not troubled
        return None
    context = contextvars.copy_context()  # of the cell, in which it is said
    return clock.remind(PATIENCE, lambda: context.run(on_output_thread, say))


def _line_in_cell(namespace: dict[str, Any]) -> int:
    """The number of the line of the cell, or of a function of the user's, that is running."""
    frame = sys._getframe(1)
    while frame.f_globals is not namespace:
        if frame.f_back is None:
            return 1
        frame = frame.f_back
    return frame.f_lineno


def _identifier(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} is not a valid variable name")
    if hasattr(builtins, name):
        raise UsageError(f"{name!r} is a builtin of Python: choose another name")
    return name


_WORDS = {
    "%calls": ["cancel", "clear", "where"],
    "%portal": ["route", "await", "patch"],
    "%await": ["-t", "--timeout", "--on"],
    "%%await": ["-t", "--timeout", "--on", "--as"],
    "%%background": ["-t", "--timeout", "--on"],
    "%%thread": ["-t", "--timeout", "--name"],
}


def completions(_: Any, event: Any) -> list[str]:
    """Options of the magics, for IPython's completer."""
    words = event.line.split()
    if not words:
        return []
    if words[-1] == "--on" or (len(words) > 1 and words[-2] == "--on" and not event.line.endswith(" ")):
        return list(_ROUTES)
    if words[:2] == ["%portal", "route"]:
        return ["rule", *_ROUTES]
    if words[:2] in (["%portal", "await"], ["%portal", "patch"]):
        return ["on", "off"]
    if words[:2] == ["%calls", "cancel"]:
        host = hosts.current
        running = getattr(host, "history", None)
        return ["all", *(as_typed(one.name) for one in running.running())] if running is not None else ["all"]
    return _WORDS.get(words[0], [])
