"""`MultiEngineClient`: one connection to a cluster, and the calls that concern all of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client import dask
from ipython1.kernel.client.asking import InputHandler
from ipython1.kernel.client.benchmark import Benchmark, run_benchmark
from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.completions import QuickAnswers
from ipython1.kernel.client.connect import DEFAULT_CLUSTER, FURLSpec, _open
from ipython1.kernel.client.life import ClientLife
from ipython1.kernel.client.status import Status, fetch_status
from ipython1.kernel.client.targets import TargetSpec
from ipython1.kernel.client.timeline import Timeline, fetch_timeline
from ipython1.kernel.client.views import TargetView

if TYPE_CHECKING:
    import distributed

    from ipython1.kernel.client.core import ClientCore
    from ipython1.kernel.client.task import TaskClient


class MultiEngineClient(ClientLife, TargetView):
    """Drives the engines of a cluster.

    Parameters
    ----------
    furl : str, path or (host, port), optional
        A FURL, the path of a FURL file, or the address of a cluster whose FURL
        file is known here. ``ssh://[user@]host[:port]/[cluster]`` is a cluster
        on another host, which is reached through ssh. Nothing: the variable
        ``IPYTHON1_FURL``, else the FURL file of `cluster`.
    cluster : str
        Name of the cluster.
    timeout : float
        Seconds to wait for the controller.
    ssh : str, optional
        ``[user@]host[:port]`` of a host to go through with ssh, where only that
        one can reach the controller.

    Attributes
    ----------
    targets : int, sequence of int, slice or 'all'
        Where calls go that do not say so (``'all'``).
    block : bool
        Whether calls that do not say so wait for their result (True).
    input_handler : callable, optional
        ``input_handler(engine, prompt, password)`` returns the line that
        ``input()`` on an engine gets. None: the user is asked in the terminal
        or notebook that waits for the command.

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

    input_handler: InputHandler | None

    def __init__(
        self,
        furl: FURLSpec = None,
        *,
        cluster: str = DEFAULT_CLUSTER,
        timeout: float = 10.0,
        ssh: str | None = None,
    ) -> None:
        self._attach(_open(furl, cluster, timeout, ssh=ssh))
        self._where: tuple[FURLSpec, str, float, str | None] = furl, cluster, timeout, ssh

    def _attach(self, core: ClientCore) -> None:
        super()._attach(core)
        Calls.__init__(self, core, "all", True)
        self.input_handler = None
        self.quick_answers = QuickAnswers()
        self._stop_on_error = False
        self._failures_told: list[str] = []
        self._dask: dict[str, Any] = {}  # clients of Dask clusters, by the address of the scheduler

    def _owner(self) -> MultiEngineClient:
        return self

    def _state(self) -> str:
        return f"{super()._state()}, targets={self.targets!r}, block={self.block}"

    # -- engines -------------------------------------------------------------------

    def _own_ids(self) -> list[int]:
        return self._all_ids()

    def status(self) -> Status:
        """A table of all engines: host, process, load, what runs and waits.

        Returns
        -------
        Status
            A list of dicts that shows as a table.
        """
        return fetch_status(self._core, self._all_ids())

    def timeline(self, path: str | os.PathLike[str] | None = None) -> Timeline:
        """What ran where on all engines, and what runs now: as far back as the controller remembers.

        Parameters
        ----------
        path : str or path, optional
            Where to save it: ``.svg`` or ``.png`` as a picture, ``.json`` as a Chrome trace.

        Returns
        -------
        Timeline
        """
        return fetch_timeline(self._core, path)

    def task_client(self) -> TaskClient:
        """A `TaskClient` of the same cluster, with a connection of its own."""
        from ipython1.kernel.client.task import TaskClient

        furl, cluster, timeout, ssh = self._where
        return TaskClient(furl, cluster=cluster, timeout=timeout, ssh=ssh)

    def register_joblib_backend(self, name: str = "ipython1") -> None:
        """Let joblib use this client; see `TaskClient.register_joblib_backend`."""
        self.task_client().register_joblib_backend(name)

    def become_dask(
        self, targets: TargetSpec | None = None, *, dashboard: bool = False, **options: Any
    ) -> distributed.Client:
        """Make engines workers of a Dask cluster; they go on as engines, too.

        Engines that are workers already stay, and the others join them. The scheduler is a child
        process of the first target.

        Parameters
        ----------
        targets
            As in every call.
        dashboard : bool
            Whether a new scheduler serves Dask's dashboard, which knows no passwords, on the
            loopback address of its host.
        **options
            For `distributed.Worker`; one thread each, where ``nthreads`` is not given.

        Returns
        -------
        distributed.Client

        Raises
        ------
        ImportError, CompositeError
            The package ``distributed`` is missing, here or there, or a worker did not start.
        LaunchError
            The scheduler cannot be reached from here.
        """
        return dask.become_dask(self, targets, dashboard, options)

    def stop_dask(self, targets: TargetSpec | None = None) -> None:
        """End what `become_dask` began: workers, and the scheduler with its engine; close its client.

        Parameters
        ----------
        targets
            As in every call.
        """
        dask.stop_dask(self, targets)

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
