"""The engine's shell: a persistent namespace, and all that a command brings forth."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import getpass
import inspect
import linecache
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from zope.interface import implementer

from ipython1.kernel.engine.asking import TypedInput, input_functions, nobody
from ipython1.kernel.engine.failures import format_traceback
from ipython1.kernel.engine.interactive import QuietShell, bundle
from ipython1.kernel.engine.mainloop import user_code
from ipython1.kernel.engine.output import OUTPUT_LIMIT, OutputBuffer, OutputStream
from ipython1.kernel.engine.plain import ShortCuts
from ipython1.kernel.interfaces import IShell
from ipython1.kernel.wire.codec import pack

#: Cells whose source stays known to tracebacks.
CELLS_KEPT = 5000
#: Numbered commands, and characters and bytes of their output, kept for `EngineShell.recall`.
RECORDS_KEPT, RECORDS_SIZE = 1000, 64 * 1024 * 1024


class _Record:
    """A numbered command and what came of it."""

    def __init__(self, raw: str) -> None:
        self.facts: dict[str, Any] = {"input": {"translated": raw, "raw": raw}, "number": 0}
        self.texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.outputs: list[dict[str, Any]] = []
        self.ending: dict[str, Any] = {}
        self.size = 0

    def room(self, size: int) -> bool:
        self.size += size
        return self.size <= OUTPUT_LIMIT

    def as_dict(self) -> dict[str, Any]:
        whole = {"input": self.facts["input"], "number": self.facts["number"]}
        whole.update((kind, "".join(texts)) for kind, texts in self.texts.items() if texts)
        if "result" in self.facts:
            whole["result"] = self.facts["result"]
        if self.outputs:
            whole["outputs"] = list(self.outputs)
        return {**whole, **self.ending}


class _Active:
    """While entered, ``sys.stdout``, ``get_ipython()`` and so on are those of a shell.

    A class, and entered again inside for nothing: with a generator, entered twice a command, this
    was a fifth of a small command's time. `lasting`: entered once, they stay, for there is no other shell.
    """

    def __init__(
        self,
        ip: InteractiveShell,
        streams: tuple[Any, Any, Any],
        ask_password: Callable[..., str],
        lasting: bool,
    ) -> None:
        self._ip = ip
        self._streams = streams
        self._ask_password = ask_password
        self._lasting = lasting
        self._depth = 0
        self._before: tuple[Any, ...] = (streams, None, None, getpass.getpass)

    def use(self, streams: tuple[Any, Any, Any]) -> None:
        """Forget the streams that user code has put in."""
        self._streams = streams
        if self._depth:
            sys.stdin, sys.stdout, sys.stderr = streams

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._depth += self._lasting
        streams = sys.stdin, sys.stdout, sys.stderr
        self._before = streams, InteractiveShell._instance, QuietShell._instance, getpass.getpass
        sys.stdin, sys.stdout, sys.stderr = self._streams
        InteractiveShell._instance = QuietShell._instance = self._ip
        getpass.getpass = self._ask_password
        self._ip.builtin_trap.__enter__()
        self._ip.display_trap.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._ip.display_trap.__exit__(None, None, None)
        self._ip.builtin_trap.__exit__(None, None, None)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        streams, InteractiveShell._instance, QuietShell._instance, getpass.getpass = self._before
        sys.stdin, sys.stdout, sys.stderr = streams


@implementer(IShell)
class EngineShell:
    """Runs user code in a persistent namespace.

    Parameters
    ----------
    own_main : bool
        The namespace becomes ``__main__`` of this process, as it should where
        the process is an engine. False allows several shells in one process.
    now : callable
        The time in seconds since the epoch.
    """

    def __init__(self, own_main: bool = True, now: Callable[[], float] = time.time) -> None:
        self.own_main = own_main
        self._now = now
        self._output: OutputBuffer | None = None
        self._record: _Record | None = None
        self._records: deque[_Record] = deque()
        self._records_size = 0  # of all but the last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cells: dict[str, None] = {}
        self._silent_cells = 0
        self._engine_id = -1
        self.execution_count = 0
        if own_main:
            os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        self.ip = QuietShell(self.show, own_main)
        self._cuts = ShortCuts(self.ip)
        self._last = self.user_ns.get("_")  # what _ is, unless the user has a _
        self._module_facts = {k: v for k, v in self.user_ns.items() if k.startswith("__")}
        self._asking: Callable[..., str] = nobody
        ask_line, ask_password = input_functions(self._ask)
        self.ip.builtin_trap.auto_builtins["input"] = ask_line
        self._active = _Active(self.ip, self._own_streams(), ask_password, own_main)
        self.engine_id = -1

    @property
    def user_ns(self) -> dict[str, Any]:
        """The persistent namespace."""
        namespace: dict[str, Any] = self.ip.user_ns
        return namespace

    @property
    def engine_id(self) -> int:
        """The engine id, also a name in the namespace."""
        return self._engine_id

    @engine_id.setter
    def engine_id(self, value: int) -> None:
        self._engine_id = value
        self.user_ns["engine_id"] = self.ip.user_ns_hidden["engine_id"] = value

    def set_asking(self, ask: Callable[..., str]) -> None:
        """How to ask the user for a line; see `Asking.ask`."""
        self._asking = ask

    def _ask(self, prompt: str = "", password: bool = False) -> str:
        return self._asking(prompt, password)

    def set_output(self, output: OutputBuffer | None) -> None:
        """Where the output of commands goes; None: to the process's own stdout and stderr."""
        self._output = output

    def user_names(self) -> list[str]:
        """The names that the user made, sorted."""
        hidden = self.ip.user_ns_hidden
        return sorted(
            name
            for name, value in self.user_ns.items()
            if not name.startswith("_") and not (name in hidden and hidden[name] is value)
        )

    # -- running -------------------------------------------------------------------

    def active(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, ``sys.stdout``, ``get_ipython()`` and so on are this shell's."""
        return self._active

    def run_code(self, code: str, silent: bool = False, filename: str = "") -> dict[str, Any]:
        """Run source text with IPython's syntax.

        Parameters
        ----------
        code : str
        silent : bool
            No number, no result value.
        filename : str
            The file the text is from, for tracebacks.

        Returns
        -------
        dict
            ``input``, ``number`` and, where the last line is an expression, ``result``: a MIME bundle.

        Raises
        ------
        BaseException
            What the code raises.
        """
        raw = code.rstrip("\n")
        record = _Record(raw)
        number = None
        if not silent:
            self.execution_count += 1
            number = self.execution_count
            self._keep(record)
        record.facts["number"] = number
        started = self._now()
        try:
            with self.active():
                self._record = None if silent else record
                self._run(code, record, silent, filename)
        except BaseException as error:
            record.ending["traceback"] = format_traceback(error)
            raise
        finally:
            self._record = None
            record.ending.update(started=started, completed=self._now())
        return dict(record.facts)

    def _run(self, code: str, record: _Record, silent: bool, filename: str) -> None:
        # As the attributes of IPython's ExecutionInfo, whose constructor changes between versions.
        info = SimpleNamespace(
            raw_cell=code,
            transformed_cell=code,
            silent=silent,
            store_history=False,
            shell_futures=True,
            cell_id=None,
            cell_meta=None,
        )
        outcome = ExecutionResult(info)
        outcome.execution_count = record.facts["number"]
        self.ip.execution_count = self.execution_count
        self._trigger("pre_execute")
        self._trigger("pre_run_cell", info)
        try:
            cell = self._cuts.translate(code)
            if cell is None:
                cell = user_code(self.ip.transform_cell, code)
            info.transformed_cell = cell
            record.facts["input"]["translated"] = cell.rstrip("\n")
            value = self._evaluate(cell, self._cell_name(record.facts["number"], filename, cell), silent)
            if value is not None and not silent:
                outcome.result = value
                self._remember(value)
                data = self._cuts.format(value)
                if data is None:
                    data, _ = user_code(self.ip.display_formatter.format, value)
                record.facts["result"] = bundle(data)
        except BaseException as error:
            outcome.error_in_exec = error
            raise
        finally:
            self._trigger("post_execute")
            self._trigger("post_run_cell", outcome)
            outcome.error_in_exec = None  # no cycle with the traceback

    def _trigger(self, event: str, *args: Any) -> None:
        if self.ip.events.callbacks[event]:
            user_code(self.ip.events.trigger, event, *args)

    def _evaluate(self, cell: str, filename: str, silent: bool) -> Any:
        """Run a translated cell; returns the value of its last line if that is an expression to show."""
        tree = self.ip.transform_ast(self.ip.compile.ast_parse(cell, filename))
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not silent:
            last = ast.Expression(tree.body.pop().value)
        with self.ip.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
            codes = [self.ip.compile(tree, filename, "exec")] if tree.body else []
            if last is not None:
                codes.append(self.ip.compile(last, filename, "eval"))
        value = None
        for code in codes:
            value = user_code(eval, code, self.user_ns)
            if code.co_flags & inspect.CO_COROUTINE:
                value = self.run_coroutine(value)
        if last is None or (";" in cell and self.ip.displayhook.semicolon_at_end_of_expression(cell)):
            return None
        return value

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, in an event loop that lives as long as the shell."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return user_code(self._loop.run_until_complete, task)
        except BaseException:
            if not task.done():  # interrupted: it must not go on in a later command
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    user_code(self._loop.run_until_complete, task)
            raise

    def _cell_name(self, number: int | None, filename: str, cell: str) -> str:
        if not filename:
            if number is None:
                self._silent_cells += 1
            label = f"In[{number}]" if number is not None else f"silent {self._silent_cells}"
            filename = f"<engine {self.engine_id}, {label}>"
        # Without a modification time linecache does not look for a file.
        linecache.cache[filename] = (len(cell), None, cell.splitlines(keepends=True), filename)
        self._cells.pop(filename, None)  # to the end
        self._cells[filename] = None
        if len(self._cells) > CELLS_KEPT:
            oldest = next(iter(self._cells))
            del self._cells[oldest]
            linecache.cache.pop(oldest, None)
        return filename

    def _remember(self, value: Any) -> None:
        """Move ``_`` and ``__`` on, as IPython does; not where the user has a ``_``."""
        ns = self.user_ns
        if ns.get("_") is self._last:
            ns["___"], ns["__"], ns["_"] = ns.get("__", ""), ns.get("_", ""), value
            self._last = value

    def reset(self) -> None:
        """A fresh namespace, numbering and streams; the engine id stays."""
        with self.active():
            self.ip.reset()
        self.user_ns.update(self._module_facts)
        self.engine_id = self._engine_id
        self._last = self.user_ns.get("_")
        self._active.use(self._own_streams())
        self._records.clear()
        self._records_size = 0
        self.execution_count = 0

    # -- output --------------------------------------------------------------------

    def _own_streams(self) -> tuple[Any, Any, Any]:
        """What user code finds as sys.stdin, stdout and stderr, until it puts in others."""
        return TypedInput(self._ask), OutputStream("stdout", self._emit), OutputStream("stderr", self._emit)

    def _emit(self, kind: str, text: str) -> bool:
        record = self._record
        if record is not None and record.room(len(text)):
            record.texts[kind].append(text)
        return self._output is not None and self._output.write(kind, text)

    def show(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str = "", update: bool = False
    ) -> None:
        """Give out a rich display.

        Parameters
        ----------
        data, metadata : dict
            A MIME bundle, and what is known about it by MIME type.
        display_id : str
            Its name, where it has one.
        update : bool
            It takes the place of the display of that name.
        """
        output: dict[str, Any] = {"data": data, "metadata": metadata}
        if display_id:
            output |= {"display_id": display_id, "update": update}
        packed = pack(output)
        record = self._record
        if record is not None and record.room(len(packed)):
            record.outputs.append(output)
        if self._output is None or not self._output.add("display", "", [packed]):
            print(data.get("text/plain", ""))

    def _keep(self, record: _Record) -> None:
        if self._records:  # it has ended, and grows no more
            self._records_size += self._records[-1].size
        while self._records and (len(self._records) >= RECORDS_KEPT or self._records_size > RECORDS_SIZE):
            self._records_size -= self._records.popleft().size
        self._records.append(record)

    def recall(self, number: int | None = None) -> dict[str, Any] | None:
        """All that is known of numbered command `number`, or of the last; None where it is not kept."""
        for record in reversed(self._records):
            if number is None or record.facts["number"] == number:
                return record.as_dict()
        return None
