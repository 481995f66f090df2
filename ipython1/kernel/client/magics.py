"""IPython magics that run code on engines: ``%px``, ``%%px``, ``%autopx``, ``%result``, ``%pxconfig``.

Registered by ``mec.activate()`` or ``%load_ext ipython1``.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.magic import no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from ipython1.kernel.client import streaming
from ipython1.kernel.client.calls import wait_for
from ipython1.kernel.client.completions import continuations, make_matcher
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.error import ClientClosed, IPython1Error
from ipython1.kernel.wire.objects import variable_name

if TYPE_CHECKING:
    from ipython1.kernel.client.pending import PendingResult
    from ipython1.kernel.client.targets import TargetSpec
    from ipython1.kernel.client.views import TargetView

NO_CLIENT = (
    "No client is active here; type: "
    "from ipython1.kernel import client; mec = client.MultiEngineClient(); mec.activate()"
)
#: Seconds after which a progress bar shows.
PROGRESS_AFTER = 2.0
_NAMES = ("px", "autopx", "result", "pxconfig")
#: Cells that autopx leaves to the local shell, or there would be no way out of it.
_LOCAL = re.compile(rf"\s*(%%?({'|'.join(_NAMES)})\w*\b|(autopx\w*|(exit|quit)(\(\))?)\s*$)")


def activate(view: TargetView, suffix: str = "", shell: Any = None) -> ParallelMagics:
    """Register the magics in an IPython shell, on `view`.

    Parameters
    ----------
    view : TargetView
        A client, or a view of one.
    suffix : str
        Goes at the end of the names of the magics.
    shell : InteractiveShell, optional
        The running one where not given.

    Raises
    ------
    RuntimeError
        This is not IPython.
    """
    magics = _registered(_shell(shell), suffix)
    magics.view = view
    return magics


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext ipython1``: the magics work on the newest client of the session."""
    _registered(shell, "")


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext ipython1``"""
    _registered(shell, "").unregister()


def _shell(shell: Any) -> Any:
    shell = get_ipython() if shell is None else shell
    if shell is None:
        raise RuntimeError("The magics need IPython. Start ipython or a notebook, and activate there.")
    return shell


def _registered(shell: Any, suffix: str) -> ParallelMagics:
    if not f"px{suffix}".isidentifier():
        raise ValueError(f"suffix must consist of letters, digits and underscores, not {suffix!r}.")
    known = getattr(shell.magics_manager.magics["line"].get(f"px{suffix}"), "__self__", None)
    if isinstance(known, ParallelMagics):
        return known
    magics = ParallelMagics(shell, suffix)
    magics.register()
    return magics


class ParallelMagics:
    """The magics of one client in one shell.

    Parameters
    ----------
    shell : InteractiveShell
    suffix : str
        Goes at the end of the names of the magics.

    Attributes
    ----------
    view : TargetView or None
        Where they run code. None: the newest client of the session.
    targets, block
        Set by ``%pxconfig``; None takes those of the view.
    """

    def __init__(self, shell: Any, suffix: str = "") -> None:
        self.shell = shell
        self.suffix = suffix
        self.view: TargetView | None = None
        self.targets: TargetSpec | None = None
        self.block: bool | None = None
        self._autopx = _AutoPX(suffix)
        self._matcher = make_matcher(suffix, self._is_auto, self._continuations)

    def register(self) -> None:
        """Make the magics known to the shell."""
        for name in _NAMES:
            self.shell.register_magic_function(getattr(self, name), "line", name + self.suffix)
        self.shell.register_magic_function(self.px_cell, "cell", "px" + self.suffix)
        self.shell.Completer.custom_matchers.append(self._matcher)

    def unregister(self) -> None:
        """Take the magics out of the shell."""
        self._autopx.leave(self.shell)
        for name in _NAMES:
            self.shell.magics_manager.magics["line"].pop(name + self.suffix, None)
        self.shell.magics_manager.magics["cell"].pop("px" + self.suffix, None)
        if self._matcher in self.shell.Completer.custom_matchers:
            self.shell.Completer.custom_matchers.remove(self._matcher)

    # -- the magics ----------------------------------------------------------------

    @no_var_expand
    def px(self, line: str) -> PendingResult | None:
        """Run a line on the engines.

        Its output is shown as it comes, each line with its engine. Where the
        client does not block, the `PendingResult` is returned. Ctrl-C
        interrupts the engines, TAB completes names that live there. ``%%px``
        runs a cell, and has options: ``%%px?`` shows them.

        Examples
        --------
        ::

            %px a = 5
            %px print(a + engine_id)
            %px !hostname
        """
        return self._run(line, self.targets, self.block)

    @magic_arguments()
    @argument("--targets", "-t", help="engines: 0, 0,2, 1:3 or all")
    @argument("--block", dest="block", action="store_true", default=None, help="wait for the result")
    @argument("--noblock", dest="block", action="store_false", help="return a PendingResult at once")
    @argument("--local", action="store_true", help="run the cell here as well")
    @argument("--out", "-o", metavar="NAME", help="keep the PendingResult in this variable")
    @argument("--silent", action="store_true", help="without a number, and without a result value")
    @argument(
        "--group-outputs",
        choices=streaming.GROUPINGS,
        help="show the output when all has come: all of one engine together, all of one type, "
        "or the first output of each, then the second",
    )
    @argument(
        "--progress-after",
        type=float,
        default=PROGRESS_AFTER,
        metavar="SECONDS",
        help="when to show a progress bar",
    )
    @argument("--timeout", type=float, metavar="SECONDS", help="interrupt what runs longer")
    @no_var_expand
    def px_cell(self, line: str, cell: str) -> PendingResult | None:
        """Run a cell on the engines.

        Output is shown as it comes, each line with its engine, figures under
        theirs. Ctrl-C interrupts the engines.

        Examples
        --------
        ::

            %%px --targets 0,2
            import os
            print(os.getpid())

            %%px --noblock --out later
            simulate()

            %%px --group-outputs=engine
            report()
        """
        options: argparse.Namespace = parse_argstring(self.px_cell, line)
        if options.out is not None and not options.out.isidentifier():
            raise UsageError(f"--out needs the name of a variable, not {options.out!r}")
        targets = self.targets if options.targets is None else parse_targets(options.targets)
        block = self.block if options.block is None else options.block
        return self._run(
            cell,
            targets,
            block,
            silent=options.silent,
            timeout=options.timeout,
            out=options.out,
            local=options.local,
            progress_after=options.progress_after,
            group=options.group_outputs,
        )

    def autopx(self, line: str) -> None:
        """Switch on, or off again, that every cell runs on the engines.

        Cells that begin with one of these magics, and ``exit``, stay local.
        """
        if self._autopx.leave(self.shell):
            print(f"%autopx{self.suffix} disabled")
            return
        self._active()
        self._autopx.enter(self.shell)
        print(f"%autopx{self.suffix} enabled")

    def result(self, line: str) -> Any:
        """What a numbered command of the engines gave: ``%result 3``, or ``%result`` for the last one."""
        number = line.strip()
        try:
            i = int(number) if number else None
        except ValueError:
            raise UsageError(f"%result takes the number of a command, not {number!r}") from None
        return self._active().get_result(i, targets=self.targets, block=True)

    @magic_arguments()
    @argument("--targets", "-t", help="engines: 0, 0,2, 1:3 or all")
    @argument("--block", dest="block", action="store_true", default=None, help="wait for results")
    @argument("--noblock", dest="block", action="store_false", help="return PendingResults at once")
    def pxconfig(self, line: str) -> None:
        """Set where the other magics run code, and whether they wait. Without options: show it."""
        options: argparse.Namespace = parse_argstring(self.pxconfig, line)
        if options.targets is not None:
            self.targets = parse_targets(options.targets)
        if options.block is not None:
            self.block = options.block
        if options.targets is None and options.block is None:
            view = self._active()
            targets = view.targets if self.targets is None else self.targets
            block = view.block if self.block is None else self.block
            print(f"targets: {targets!r}\nblock: {block}")

    # -- what they do ----------------------------------------------------------------

    def _run(
        self,
        code: str,
        targets: TargetSpec | None,
        block: bool | None,
        *,
        silent: bool = False,
        timeout: float | None = None,
        out: str | None = None,
        local: bool = False,
        progress_after: float = PROGRESS_AFTER,
        group: str | None = None,
    ) -> PendingResult | None:
        view = self._active()
        wait = view.block if block is None else block
        args = {"silent": silent}
        pending: PendingResult = view._code("execute", code, args, code, targets, False, timeout, wait)
        if out is not None:
            self.shell.user_ns[variable_name(out)] = pending
        if local:
            _run_locally(self.shell, code)
        if not wait:
            return pending
        wait_for(view._core, pending, lambda: pending.stream(progress_after, group))
        return None

    def _is_auto(self) -> bool:
        return self._autopx in self.shell.input_transformers_cleanup

    def _continuations(self, code: str) -> tuple[str, list[str]]:
        try:
            return continuations(self._active(), self.targets, code)
        except UsageError:  # no client
            return "", []

    def _active(self) -> TargetView:
        view = self._newest_client() if self.view is None else self.view
        if view is None:
            raise UsageError(NO_CLIENT)
        again = f"mec.activate({self.suffix!r})" if self.suffix else "mec.activate()"
        try:
            view._core.check_usable()
        except ClientClosed as closed:
            raise UsageError(f"{closed} Then type: {again}") from None
        except IPython1Error as lost:
            text = f"This client has lost its controller. Create a new one, then type {again}. {lost}"
            raise UsageError(text) from None
        return view

    def _newest_client(self) -> TargetView | None:
        names = [name for name in self.shell.user_ns if not name.startswith("_")]
        clients = [self.shell.user_ns[name] for name in names]
        return next((c for c in reversed(clients) if isinstance(c, MultiEngineClient) and _usable(c)), None)


def _usable(client: MultiEngineClient) -> bool:
    try:
        client._core.check_usable()
    except IPython1Error:
        return False
    return True


class _AutoPX:
    """An input transformer of IPython that puts ``%%px`` before every cell."""

    #: Tells IPython to leave it out where it only asks whether an input is complete.
    has_side_effects = True

    def __init__(self, suffix: str) -> None:
        self._magic = f"px{suffix}"

    def __call__(self, lines: list[str]) -> list[str]:
        code = "".join(lines).strip("\n")
        if not code.strip() or _LOCAL.match(code):
            return lines
        return [f"get_ipython().run_cell_magic({self._magic!r}, '', {code!r})\n"]

    def enter(self, shell: Any) -> None:
        """From the next cell on. Only one client at a time gets the cells."""
        _take_out_autopx(shell)
        shell.input_transformers_cleanup.append(self)

    def leave(self, shell: Any) -> bool:
        """Returns whether it was on."""
        was_on = self in shell.input_transformers_cleanup
        if was_on:
            shell.input_transformers_cleanup.remove(self)
        return was_on


def _take_out_autopx(shell: Any) -> list[_AutoPX]:
    transformers = shell.input_transformers_cleanup
    taken = [transformer for transformer in transformers if isinstance(transformer, _AutoPX)]
    transformers[:] = [transformer for transformer in transformers if transformer not in taken]
    return taken


def _run_locally(shell: Any, code: str) -> None:
    taken = _take_out_autopx(shell)
    try:
        shell.run_cell(code, store_history=False)
    finally:
        shell.input_transformers_cleanup.extend(taken)


def parse_targets(text: str) -> TargetSpec:
    """Targets as they are typed: ``all``, ``0``, ``-1``, ``0,2`` or ``1:3``.

    Raises
    ------
    UsageError
        It is none of these.
    """
    text = text.strip()
    if text == "all":
        return text
    try:
        if ":" in text:
            bounds = [int(bound) if bound.strip() else None for bound in text.split(":")]
            if len(bounds) <= 3:
                return slice(*bounds)
        elif "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        else:
            return int(text)
    except ValueError:
        pass
    raise UsageError(f"--targets takes engines as in 0 or 0,2 or 1:3 or all, not {text!r}")
