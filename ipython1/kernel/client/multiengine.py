"""`MultiEngineClient`: one connection to a cluster, and the calls that concern all of it."""

from __future__ import annotations

import contextlib
import operator
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

from ipython1.kernel.client.benchmark import Benchmark, run_benchmark
from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.connect import DEFAULT_CLUSTER, FURLSpec, _open
from ipython1.kernel.client.ids import parse_id
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.results import Result, ResultList
from ipython1.kernel.client.status import Status
from ipython1.kernel.client.views import TargetView
from ipython1.kernel.error import ClientClosed, LaunchError, UnknownResult

if TYPE_CHECKING:
    from typing_extensions import Self

    from ipython1.kernel.client.core import ClientCore


class MultiEngineClient(TargetView):
    """Drives the engines of a cluster.

    Parameters
    ----------
    furl : str, path or (host, port), optional
        A FURL, the path of a FURL file, or the address of a cluster whose FURL
        file is known here. Nothing: the variable ``IPYTHON1_FURL``, else the
        FURL file of `cluster`.
    cluster : str
        Name of the cluster.
    timeout : float
        Seconds to wait for the controller.

    Attributes
    ----------
    targets : int, sequence of int, slice or 'all'
        Where calls go that do not say so (``'all'``).
    block : bool
        Whether calls that do not say so wait for their result (True).

    Raises
    ------
    ConnectionFailed
        One of its kinds says what was tried, and why it failed.

    Examples
    --------
    >>> mec = MultiEngineClient()
    >>> mec.execute('a = 5')
    >>> mec['a']
    [5, 5, 5, 5]
    >>> mec[0].apply(os.getpid)
    [4243]
    """

    def __init__(
        self, furl: FURLSpec = None, *, cluster: str = DEFAULT_CLUSTER, timeout: float = 10.0
    ) -> None:
        self._attach(_open(furl, cluster, timeout))

    @classmethod
    def _from_core(cls, core: ClientCore) -> Self:
        """A client over a connection that is there already."""
        client = cls.__new__(cls)
        client._attach(core)
        return client

    def _attach(self, core: ClientCore) -> None:
        Calls.__init__(self, core, "all", True)
        self._stop_on_error = False
        self._failures_told: list[str] = []
        # Views and pending results keep the client alive; without any of them it closes by itself.
        self._close = weakref.finalize(self, core.close)

    def _owner(self) -> MultiEngineClient:
        return self

    # -- its life -----------------------------------------------------------------

    def close(self) -> None:
        """End the connection; the engines and their namespaces stay. What is outstanding fails."""
        self._close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._close.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            self._core.check_usable()
        except ClientClosed:
            return f"<{type(self).__name__} {self._core.address}: closed>"
        n = len(self._core.engines())
        engines = "1 engine" if n == 1 else f"{n} engines"
        return (
            f"<{type(self).__name__} {self._core.address}: {engines}, "
            f"targets={self.targets!r}, block={self.block}>"
        )

    # -- engines -------------------------------------------------------------------

    def _own_ids(self) -> list[int]:
        return self._all_ids()

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
            An engine died while starting; has the engine's own output.
        TimeoutError
            There are fewer after `timeout`.
        """
        n = _count(n)
        if len(self._all_ids()) >= n:
            return
        with _progress_bar(n) as show:

            def enough(table: Any) -> bool:
                show(len(table))
                self._check_failures()
                return len(table) >= n

            if not self._until(enough, timeout):
                found = len(self._core.engines())
                raise TimeoutError(
                    f"There are {found} engines after {timeout:g} s, not {n}. Look with: ipcluster logs"
                )

    def _check_failures(self) -> None:
        failures = self._core.start_failures()
        told, self._failures_told = self._failures_told, failures
        if failures and failures != told:
            raise LaunchError(what="An engine", reason=failures[-1])

    def scale(self, n: int) -> None:
        """Order the cluster to have `n` engines; `wait_for_engines` waits for new ones.

        The engines with the highest ids go first.
        """
        self._core.check_usable()
        future = self._core.ask("scale", n=_count(n))
        self._core.wait(future, None)
        future.result()

    def status(self) -> Status:
        """A table of all engines: host, process, load, what runs and waits.

        Returns
        -------
        Status
            A list of dicts that shows as a table.
        """
        return self._status(self._all_ids())

    # -- results that are outstanding -------------------------------------------------

    @property
    def stop_on_error(self) -> bool:
        """Whether a failure cancels what this client has queued behind it on that engine (False)."""
        return self._stop_on_error

    @stop_on_error.setter
    def stop_on_error(self, stop: bool) -> None:
        if not isinstance(stop, bool):
            raise TypeError(f"stop_on_error must be True or False, not {stop!r}.")
        self._stop_on_error = stop

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
        known = self._core.pending.get(command_id)
        if known is not None:
            return known
        pending = PendingResult(self._core, command_id, "get_pending", targets, _as_results)
        self._core.fetch(pending, targets)
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
        for result in results:
            self._core.wait(result, None if end is None else max(0.0, end - time.monotonic()))

    def flush(self) -> None:
        """Forget all results that are outstanding; the work itself goes on."""
        for pending in self.pending:
            self._core.forget(pending)
            # Whoever waits for it shall not wait for ever.
            pending.fail(UnknownResult(f"The result {pending.id} was forgotten: flush() was called."))

    # -- how fast it is ---------------------------------------------------------------

    def benchmark(self) -> Benchmark:
        """Measure latency and bandwidth, now; takes about two seconds.

        Returns
        -------
        Benchmark
        """
        return run_benchmark(self)

    def benchmark_report(self) -> str:
        """What `benchmark` measures, as text."""
        return str(self.benchmark())


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, SupportsIndex) or operator.index(n) < 0:
        raise ValueError(f"a number of engines is 0 or more, not {n!r}.")
    return operator.index(n)


def _as_results(values: list[Any]) -> list[Any]:
    """The values of a command of any kind."""
    return ResultList(values) if all(isinstance(value, Result) for value in values) else values


@contextlib.contextmanager
def _progress_bar(n: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many are there; shows a bar on a terminal and in a notebook."""
    from tqdm.auto import tqdm  # only where it is used: in a notebook it looks for widgets

    with tqdm(total=n, desc="engines", unit="", leave=False, disable=None) as bar:

        def show(count: int) -> None:
            bar.n = min(count, n)
            bar.refresh()

        yield show
