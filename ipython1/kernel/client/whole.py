"""The calls that concern a whole cluster or client, whatever the targets are."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.ids import parse_id
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.progress import Bar
from ipython1.kernel.client.results import Result, ResultList
from ipython1.kernel.error import LaunchError, UnknownResult

#: One thread at a time looks whether a result is asked for already, and asks.
_fetching = threading.Lock()


class WholeClient(Calls):
    """How many engines there are, and what is outstanding: the same for a client and its views."""

    # -- engines ----------------------------------------------------------------------

    def wait_for_engines(self, n: int, timeout: float | None = 60.0) -> None:
        """Wait until there are at least `n` engines; shows a progress bar.

        Parameters
        ----------
        n : int
        timeout : float or None
            Seconds to wait; None: for ever.

        Raises
        ------
        LaunchError
            An engine died while starting, or died for good; has its own output.
        TimeoutError
            There are fewer after `timeout`.
        """
        n = _count(n)
        self._core.check_usable()
        if _staying(self._core.engines()) >= n:
            return
        with Bar("wait_for_engines", n) as bar:

            def enough(table: Any) -> bool:
                found = _staying(table)
                bar.show(min(n, found), f"{found} of {n} engines")
                self._check_failures()
                return found >= n

            if not self._until(enough, timeout):
                found = len(self._core.engines())
                raise TimeoutError(
                    f"There are {found} engines after {timeout:g} s, not {n}. Look with: ipcluster logs"
                )

    def _check_failures(self) -> None:
        failures, owner = self._core.table.start_failures, self._owner()
        told, owner._failures_told = owner._failures_told, failures
        if failures and failures != told:
            raise LaunchError(what="An engine", reason=failures[-1])

    def scale(self, n: int, *, wait: bool = False, timeout: float | None = 60.0) -> None:
        """Order the cluster to have `n` engines.

        Of more than that, those go that have the least to do; of several, those with the highest ids.
        What they have then fails with `EngineDied`, but tasks run elsewhere.

        Parameters
        ----------
        n : int
        wait : bool
            Return when there are `n`. `wait_for_engines` waits for new ones later.
        timeout : float or None
            Seconds to wait; None: for ever.

        Raises
        ------
        LaunchError
            Nothing is there that could start or stop them.
        TimeoutError
            There are more or fewer after `timeout`.
        """
        self._core.check_usable()
        self._owner()._failures_told = self._core.table.start_failures  # later waits are about later engines
        future = self._core.ask("scale", n=_count(n))
        self._core.wait(future, None)
        future.result()
        if wait:
            end = None if timeout is None else time.monotonic() + timeout
            self.wait_for_engines(n, timeout)
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._until(lambda table: len(table) <= n, left):
                raise TimeoutError(
                    f"There still are {len(self._core.engines())} engines after {timeout:g} s, not {n}. "
                    "Look with: mec.status()"
                )

    # -- results that are outstanding -------------------------------------------------

    @property
    def stop_on_error(self) -> bool:
        """Whether a failure cancels what this client has queued behind it on that engine (False)."""
        return self._owner()._stop_on_error

    @stop_on_error.setter
    def stop_on_error(self, stop: bool) -> None:
        if not isinstance(stop, bool):
            raise TypeError(f"stop_on_error must be True or False, not {stop!r}.")
        self._owner()._stop_on_error = stop

    @property
    def pending(self) -> list[PendingResult]:
        """The results that are outstanding, oldest first."""
        return list(self._core.pending.values())

    def get_pending(self, id: str) -> PendingResult:
        """A result by its id, also that of another client of this cluster.

        Parameters
        ----------
        id : str
            What `PendingResult.id` says.

        Raises
        ------
        ValueError
            It is not the id of a result.
        UnknownResult
            When it is read, where nothing is known of it.
        """
        command_id, targets = parse_id(id)
        core, owner = self._core, self._owner()
        # What another client sent keeps this one open, too; but its questions are not for our input_handler.
        kept = owner if command_id.startswith(f"{core.client_id}-") else (owner,)
        with _fetching:
            known = core.pending.get(command_id)
            if known is not None:
                return known
            pending = PendingResult(core, command_id, "get_pending", targets, _as_results, owner=kept)
            core.fetch(pending, targets)
        return pending

    def barrier(
        self, pending: PendingResult | Iterable[PendingResult] | None = None, timeout: float | None = None
    ) -> None:
        """Wait until results are there. Their errors are raised where they are read.

        Parameters
        ----------
        pending : PendingResult or iterable of them, optional
            Nothing: all that are outstanding.
        timeout : float, optional
            Seconds to wait in all.

        Raises
        ------
        TimeoutError
            Some are outstanding after `timeout`; the work goes on.
        """
        outstanding = self.pending if pending is None else pending
        results = [outstanding] if isinstance(outstanding, PendingResult) else list(outstanding)
        for result in results:
            if not isinstance(result, PendingResult):
                raise TypeError(f"barrier takes PendingResults, not {type(result).__name__}.")
        end = None if timeout is None else time.monotonic() + timeout
        for result in reversed(results):  # the last one first: then most of the others need no waiting
            self._core.wait(result, None if end is None else max(0.0, end - time.monotonic()))

    def detach(self) -> list[str]:
        """Have all that is outstanding go on without this client; returns when that is safe.

        See `PendingResult.detach`. Results of other clients, which this one has
        only asked for, are left to them.

        Returns
        -------
        list of str
            The ids, for `get_pending` in any session of the cluster.
        """
        core = self._core
        return core.detach(list(filter(core.is_own, self.pending)))

    def flush(self) -> None:
        """Forget all results that are outstanding; the work itself goes on."""
        for pending in self.pending:
            self._core.forget(pending)
            # Whoever waits for it shall not wait for ever.
            pending.fail(UnknownResult(f"The result {pending.id} was forgotten: flush() was called."))


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, SupportsIndex) or operator.index(n) < 0:
        raise ValueError(f"a number of engines is 0 or more, not {n!r}.")
    return operator.index(n)


def _staying(table: Sequence[Mapping[str, Any]]) -> int:
    """How many engines of a table were not told to stop."""
    return sum(row["state"] != "leaving" for row in table)


def _as_results(values: list[Any]) -> list[Any]:
    """The values of a command of any kind."""
    return ResultList(values) if all(isinstance(value, Result) for value in values) else values
