"""Commands for chosen engines: what `MultiEngineClient` and its views have in common."""

from __future__ import annotations

import operator
import os
import tokenize
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.completions import names
from ipython1.kernel.client.control import EngineControl
from ipython1.kernel.client.debugging import DebugCalls
from ipython1.kernel.client.functions import FunctionCalls
from ipython1.kernel.client.namespaces import NamespaceCalls
from ipython1.kernel.client.results import ResultList
from ipython1.kernel.client.targets import TargetSpec, resolve_targets
from ipython1.kernel.client.whole import WholeClient

if TYPE_CHECKING:
    from ipython1.kernel.client.executors import EngineExecutor
    from ipython1.kernel.client.multiengine import MultiEngineClient


class TargetView(NamespaceCalls, FunctionCalls, EngineControl, DebugCalls, WholeClient):
    """Runs things on some engines of a cluster; made by indexing a client.

    Every call takes `targets` (an engine id, several, a slice, or ``'all'``)
    and `block`; None takes the attribute of that name. A blocking call returns
    its result, one entry a target, in target order. With ``block=False`` a
    `PendingResult` comes at once.

    Raises
    ------
    InvalidEngineID, NoEnginesRegistered
        From every call with targets that do not exist, before anything is sent.
    CompositeError
        From every blocking call that failed on one engine or more.
    """

    def __init__(self, client: MultiEngineClient, targets: TargetSpec, block: bool) -> None:
        super().__init__(client._core, targets, block)
        self._client = client  # the connection lasts as long as a view of it

    def _owner(self) -> MultiEngineClient:
        return self._client

    # -- code ---------------------------------------------------------------

    def execute(
        self,
        code: str,
        targets: TargetSpec | None = None,
        block: bool | None = None,
        *,
        silent: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Run code, in IPython syntax.

        Parameters
        ----------
        code : str
            What could stand in one notebook cell.
        targets, block
            See the class.
        silent : bool
            Without a number, and without a result value.
        timeout : float, optional
            Seconds of running after which it is interrupted (`CommandTimeout`).

        Returns
        -------
        ResultList
        """
        if not isinstance(code, str):
            raise TypeError(f"execute takes the code as a str, not {type(code).__name__}.")
        return self._code("execute", code, {"silent": bool(silent)}, code, targets, block, timeout)

    def run(
        self,
        filename: str | os.PathLike[str],
        targets: TargetSpec | None = None,
        block: bool | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run the text of a file that is here.

        Parameters
        ----------
        filename : str or path
            A Python file on this computer.
        targets, block, timeout
            As for `execute`.

        Returns
        -------
        ResultList

        Raises
        ------
        FileNotFoundError
            There is no such file here.
        """
        path = os.path.expanduser(os.fspath(filename))
        with tokenize.open(path) as file:
            code = file.read()
        return self._code("run", code, {"filename": path}, f"run {path}", targets, block, timeout)

    def _code(
        self,
        op: str,
        code: str,
        args: dict[str, Any],
        label: str,
        targets: TargetSpec | None,
        block: bool | None,
        timeout: float | None,
        attended: bool = False,
    ) -> Any:
        parts = [code.encode("utf-8", "surrogatepass")]
        return self._command(
            op,
            op,
            args,
            parts,
            targets=targets,
            block=block,
            finish=ResultList,
            label=label,
            timeout=timeout,
            attended=attended,
        )

    def get_result(
        self, i: int | None = None, targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """What a numbered command gave.

        Parameters
        ----------
        i : int, optional
            Number of the command, as in ``In [i]``, from 1; each engine counts
            its own. Nothing: the last one.

        Returns
        -------
        ResultList
        """
        if i is not None and operator.index(i) < 1:
            raise ValueError(f"commands are numbered from 1, there is no number {i}.")
        return self._command(
            "get_result",
            "get_result",
            {"number": None if i is None else operator.index(i)},
            targets=targets,
            block=block,
            finish=ResultList,
        )

    # -- names, as in a dict ----------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        """Push one variable; always waits."""
        self.push({key: value}, block=True)

    def __getitem__(self, key: Any) -> Any:
        """A variable's values, for a str; else a view of those engines."""
        if isinstance(key, str):
            return self.pull(key, block=True)
        chosen = resolve_targets(key, self._own_ids())
        single = not isinstance(key, slice) and not isinstance(key, Iterable)
        return self.view(chosen[0] if single else chosen)

    def _ipython_key_completions_(self) -> list[str]:
        """What ``mec['<TAB>`` offers: the user's names on the first target."""
        return names(self)

    def __delitem__(self, key: str) -> None:
        """Delete a variable; always waits."""
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        """Whether all targets have a variable; always waits. For an int: whether there is such an engine."""
        if isinstance(key, str):
            return self._has(key)
        return key in self._own_ids()

    # -- engines ----------------------------------------------------------------

    def __len__(self) -> int:
        """The number of engines."""
        return len(self._own_ids())

    def __bool__(self) -> bool:
        """True, also without engines."""
        return True

    def __iter__(self) -> Iterator[TargetView]:
        """A view of each engine by itself."""
        return (self.view(id) for id in self._own_ids())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} targets={self.targets!r} block={self.block}>"

    def get_ids(self) -> list[int]:
        """The engine ids, sorted."""
        return self._own_ids()

    @property
    def ids(self) -> list[int]:
        """The engine ids, sorted."""
        return self._own_ids()

    def _own_ids(self) -> list[int]:
        return sorted(self._chosen(None))

    def view(self, targets: TargetSpec = "all", block: bool | None = None) -> TargetView:
        """The same client with other defaults, over the same connection.

        Parameters
        ----------
        targets : int, sequence of int, slice or 'all'
            Resolved when a call is made.
        block : bool, optional
            Taken over from here where not given.
        """
        return TargetView(self._owner(), targets, self._blocks(block))

    # -- neighbours -------------------------------------------------------------------

    def executor(self, targets: TargetSpec | None = None) -> EngineExecutor:
        """A `concurrent.futures.Executor` over the targets.

        Parameters
        ----------
        targets : int, sequence of int, slice or 'all', optional
            Where its functions may run.
        """
        from ipython1.kernel.client.executors import EngineExecutor

        return EngineExecutor(self.view(self.targets if targets is None else targets))

    def activate(self, suffix: str = "") -> None:
        """Make ``%px``, ``%%px``, ``%autopx``, ``%result`` and ``%pxconfig`` work on this client.

        Parameters
        ----------
        suffix : str
            Goes at the end of their names, so that several clients can have
            their own.
        """
        from ipython1.kernel.client.magics import activate  # imports IPython: only where it is used

        activate(self, suffix)
