"""A cluster as an object of a Python program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.adapting import Adapter, Policy
from ipython1.launch.added import Engines, number_of
from ipython1.launch.background import clean_killed, end_own, start_command, stop_cluster
from ipython1.launch.keywords import OF_ENGINES, OF_START, command_options
from ipython1.launch.local import environment, module_command
from ipython1.launch.logs import log_lines
from ipython1.launch.state import NotRunning, State, is_running, private_name, running

if TYPE_CHECKING:
    from typing_extensions import Self

    from ipython1.kernel.client import MultiEngineClient


class Cluster:
    """Starts a controller and engines, and stops them; looks after those that run.

    Use it in a ``with`` (or ``async with``), which gives a connected client::

        with Cluster(n=4) as mec:
            mec.execute("a = 5")

    Nothing of it outlives this process, not even one that is killed, unless it is started with
    ``daemonize``. Such a one, and one that ran already (`named`, `from_dict`), goes on after the ``with``.

    Parameters
    ----------
    n : int, optional
        Number of engines; as many as `ipcluster start` takes where not given.
    cluster : str, optional
        Name of the cluster. Without one it is private, and its files are removed at the end.
    engines : str
        What starts them: ``'local'``, ``'ssh'``, ``'slurm'`` and so on, as ``ipcluster start --engines``.
    daemonize : bool
        It goes on when this process ends, until somebody stops it. It has to have a name then.
    options : sequence of str
        Further options of ``ipcluster start``, as on a command line.
    command : sequence of str, optional
        What to run instead of ``ipcluster``.
    **keywords
        The options of ``ipcluster start`` as keywords: ``walltime='1:00:00'``, ``hosts=['a:4', 'b:8']``,
        ``env={'A': '1'}``, ``tunnel=True``, ``port=0``, ``dashboard=False`` and so on.

    Raises
    ------
    TypeError, ValueError
        There is no such option, or not for these engines; the message says which there are.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        cluster: str | None = None,
        engines: str = "local",
        daemonize: bool = False,
        options: Sequence[str] = (),
        command: Sequence[str] | None = None,
        **keywords: Any,
    ) -> None:
        if daemonize and cluster is None:
            raise ValueError("a cluster that outlives its program needs a name: cluster='…'.")
        self._files = ClusterFiles(private_name("cluster") if cluster is None else cluster)
        self._n = None if n is None else number_of(n)
        self._kind = engines
        self._temporary = cluster is None
        self._daemonize = daemonize
        self._is_found = False  # and was not started by this object
        self._command = list(command) if command else module_command("ipython1.scripts.ipcluster")
        self._options = command_options(engines, self._files, keywords, (*OF_ENGINES, *OF_START))
        self._options += options
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        #: The cluster that runs, or ran.
        self._state: State | None = None
        self._client: MultiEngineClient | None = None
        self._adapter: Adapter | None = None
        self._added: list[Engines] = []

    @classmethod
    def named(cls, cluster: str = "default") -> Self:
        """A cluster that runs already, by its name.

        Raises
        ------
        NotRunning
            There is none.
        """
        files = ClusterFiles(cluster)
        return cls._of(files, running(files))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The cluster that `to_dict` told of, from any process of the same user on the same host.

        Raises
        ------
        NotRunning
            It has ended.
        ValueError
            This is nothing that `to_dict` returns.
        """
        kinds = {"cluster": str, "root": str, "pid": int, "created": float}
        if not isinstance(data, Mapping) or any(type(data.get(key)) is not kinds[key] for key in kinds):
            raise ValueError("this is nothing that Cluster.to_dict() returns.")
        files = ClusterFiles(data["cluster"], Path(data["root"]))
        found = running(files)
        if not found.is_same(State(data["pid"], data["created"])):
            raise NotRunning(files.cluster)
        return cls._of(files, found)

    @classmethod
    def _of(cls, files: ClusterFiles, state: State) -> Self:
        found = cls(state.n or None, cluster=files.cluster)
        found._files, found._state, found._kind, found._is_found = files, state, state.launcher, True
        return found

    def to_dict(self) -> dict[str, Any]:
        """What another process needs to find this cluster, as JSON can have it. There is no secret in it.

        Raises
        ------
        LaunchError
            It does not run.
        """
        state = self._running_state()
        names = {"cluster": self.cluster, "root": os.fspath(self._files.root)}
        return {**names, "engines": self._kind, "n": state.n, "pid": state.pid, "created": state.created}

    # -- looking ----------------------------------------------------------------

    @property
    def cluster(self) -> str:
        """Its name, as the option ``--cluster`` of `ipcluster` takes it."""
        return self._files.cluster

    @property
    def running(self) -> bool:
        """Whether it is started, and has not ended."""
        if self._process is not None:
            return self._process.poll() is None
        return self._state is not None and is_running(self._files) and self._now().is_same(self._state)

    @property
    def engines(self) -> list[int]:
        """Ids of the engines that are there."""
        if self._client is not None and not self._client.closed and self.running:
            return [engine["id"] for engine in self._client._core.engines()]  # it knows first
        return self._now().engines if self.running else []

    def logs(self, lines: int = 50) -> str:
        """The last lines of what controller and engines wrote, of each file."""
        folder = self._files.log
        return "\n".join(log_lines(folder, lines, {})) if folder.is_dir() else ""

    def __repr__(self) -> str:
        kind = f"{self._kind} engine{'' if self._n == 1 else 's'}"
        count, state = "" if self._n is None else f"{self._n} ", "not started"
        if self.running:
            now, state = self._now(), "running"
            there = len(self.engines)
            count = f"{there} of {now.wanted} " if there < now.wanted else f"{there} "
            kind = f"{now.launcher} engine{'' if max(there, now.wanted) == 1 else 's'}"
        elif self._state is not None:
            state = "stopped"
        if self._adapter is not None:
            policy = self._adapter.policy
            state += f", adapts from {policy.minimum} to {policy.maximum}"
            state += f" (not now: {self._adapter.problem})" if self._adapter.problem else ""
        return f"<Cluster {self.cluster!r}: {count}{kind}, {state}>"

    def _now(self) -> State:
        return State.read(self._files)

    def _running_state(self) -> State:
        if not self.running or self._state is None:
            text = f"Cluster {self.cluster} does not run. Start it with start(), or in a with statement."
            raise LaunchError(text)
        return self._state

    # -- starting and stopping ----------------------------------------------------

    def start(self) -> MultiEngineClient:
        """Start it, wait for the engines, and connect.

        Returns
        -------
        MultiEngineClient
            Belongs to this object: `stop` closes it.

        Raises
        ------
        LaunchError
            It did not start; the message has what its processes wrote.
        NotRunning
            It was found by its name or `from_dict`, and has ended.
        """
        what = f"Cluster {self.cluster}"
        if self.running:
            raise LaunchError(what=what, reason="it runs already")
        if self._is_found:  # it was started with options that are not known here
            raise NotRunning(self.cluster)
        self.stop()  # what is left of a cluster that ended by itself
        line = [*self._command, "start", "--cluster", self.cluster]
        line += [] if self._n is None else ["-n", str(self._n)]
        line += ["--temporary", "--port", "0"] if self._temporary else []
        line += self._options  # may have another port
        line += ["--daemonize"] if self._daemonize else ["--die-with-parent", str(os.getpid())]
        temporary = self._files if self._temporary else None
        try:
            process = start_command(what, line, self._environment(), daemonize=self._daemonize)
        except BaseException:
            if temporary is not None:
                clean_killed(temporary)
            raise
        if not self._daemonize:
            self._process = process
            self._end = weakref.finalize(self, end_own, process, os.getpid(), temporary)
        try:
            self._state = self._now()
            return self.client()
        except BaseException:
            self.stop()
            raise

    def client(self) -> MultiEngineClient:
        """The client of this object, connected; `stop` closes it.

        Raises
        ------
        LaunchError
            The cluster does not run.
        """
        from ipython1.kernel.client import MultiEngineClient  # takes as long as a start

        self._running_state()
        if self._client is None or self._client.closed:
            self._client = MultiEngineClient(os.fspath(self._files.furl("multiengine")))
        return self._client

    def stop(self) -> None:
        """Close the client and stop the cluster; returns when nothing of it is left."""
        try:
            self._leave()
        finally:
            added, self._added = self._added, []
            for engines in added:
                engines.stop()
            if self._end is not None:
                self._end()
            elif self.running:
                stop_cluster(self._files, self._state)

    def _leave(self) -> None:
        self.adapt()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _environment(self) -> dict[str, str]:
        return environment(IPYTHON1_DIR=os.fspath(self._files.root))

    def __enter__(self) -> MultiEngineClient:
        return self.client() if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:  # it goes on without this process
            self._leave()
        else:
            self.stop()

    async def __aenter__(self) -> MultiEngineClient:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    # -- more and fewer engines -----------------------------------------------------

    def scale(self, n: int, wait: bool = True, timeout: float | None = 60.0) -> None:
        """Have `n` engines from now on; ends `adapt`.

        Parameters
        ----------
        n : int
            How many, of all kinds together.
        wait : bool
            Return when that many are there.
        timeout : float or None
            Seconds to wait; None: for ever.

        Raises
        ------
        TimeoutError
            They are not there in time; what was ordered still comes.
        """
        self.adapt()
        self.client().scale(n, wait=wait, timeout=timeout)

    def adapt(
        self,
        minimum: int | None = None,
        maximum: int | None = None,
        *,
        queue: float = 1.0,
        after: float = 1.0,
        idle: float = 30.0,
    ) -> None:
        """Have the number of engines follow the tasks that wait; without arguments, no longer.

        Parameters
        ----------
        minimum, maximum : int
            The bounds.
        queue : float
            How many tasks may wait for each engine (1).
        after : float
            Seconds that more wait before there are more engines (1).
        idle : float
            Seconds that an engine has nothing to do before it is stopped (30). Never one that runs
            something, or has something queued.
        """
        policy = None
        if minimum is not None and maximum is not None:
            policy = Policy(minimum, maximum, queue, after, idle)
        elif minimum is not None or maximum is not None:
            raise TypeError("adapt takes a minimum and a maximum, or neither to end it.")
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            adapter.stop()
        if policy is not None:
            self._running_state()
            from ipython1.kernel.client import MultiEngineClient

            furl = os.fspath(self._files.furl("multiengine"))
            self._adapter = Adapter(policy, partial(MultiEngineClient, furl))
            weakref.finalize(self, self._adapter.stop)
            self._adapter.start()

    def add(self, engines: str, n: int | None = None, **keywords: Any) -> Engines:
        """Start more engines, of any kind; returns when they are there.

        Parameters
        ----------
        engines : str
            What starts them, as for the cluster.
        n : int, optional
            How many.
        **keywords
            As for the cluster, but for what concerns the controller.

        Returns
        -------
        Engines
            Stops them. They also end with the cluster.
        """
        self._running_state()
        options = command_options(engines, self._files, keywords, OF_ENGINES)
        line = [*self._command, "engines", "--cluster", self.cluster, *options]
        line += [] if n is None else ["-n", str(number_of(n))]
        what = f"{engines} engines for cluster {self.cluster}"
        added = Engines(what, start_command(what, line, self._environment()))
        self._added = [*(each for each in self._added if each.running), added]
        return added
