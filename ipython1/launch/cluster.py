"""A cluster that belongs to a Python program."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, SupportsIndex

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import exit_words
from ipython1.launch.local import environment, module_command
from ipython1.launch.state import clean, private_name

if TYPE_CHECKING:
    from ipython1.kernel.client import MultiEngineClient

#: Seconds that a cluster has to stop in order.
GRACE = 20.0


class Cluster:
    """Starts a controller and engines on this host, and stops them.

    Use it in a ``with`` (or ``async with``), which gives a connected client::

        with Cluster(n=4) as mec:
            mec.execute("a = 5")

    Nothing of it outlives this process, not even one that is killed.

    Parameters
    ----------
    n : int, optional
        Number of engines; one for each CPU where not given.
    cluster : str, optional
        Name of the cluster. Without one it is private, and its files are removed at the end.
    restart : bool
        Restart engines and controllers that die.
    timeout : float
        Seconds in which the engines have to be there.
    options : sequence of str
        Further options of ``ipcluster start``.
    command : sequence of str, optional
        What to run instead of ``ipcluster``.

    Attributes
    ----------
    cluster : str
        Name of the cluster, as the option ``--cluster`` of `ipcluster` takes it.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        cluster: str | None = None,
        restart: bool = True,
        timeout: float = 60.0,
        options: Sequence[str] = (),
        command: Sequence[str] | None = None,
    ) -> None:
        self.cluster = private_name("cluster") if cluster is None else cluster
        self._files = ClusterFiles(self.cluster)
        self._command = list(command) if command else module_command("ipython1.scripts.ipcluster")
        self._options = ["start", "--cluster", self.cluster, "--timeout", f"{timeout:g}", *options]
        self._options += ["--restart" if restart else "--no-restart", "--die-with-parent", str(os.getpid())]
        self._options += [] if n is None else ["-n", str(_engines(n))]
        self._temporary = cluster is None
        self._options += ["--temporary", "--port", "0"] if self._temporary else []
        self._end: weakref.finalize | None = None
        self._client: MultiEngineClient | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self.cluster!r}: {'running' if self.running else 'not running'}>"

    @property
    def running(self) -> bool:
        """Whether it is started, and not stopped."""
        return self._end is not None and self._end.alive

    def start(self) -> MultiEngineClient:
        """Start it, wait for the engines, and connect.

        Returns
        -------
        MultiEngineClient
            Belongs to this cluster: `stop` closes it.

        Raises
        ------
        LaunchError
            It did not start; the message has what its processes wrote.
        """
        if self.running:
            raise LaunchError(what=f"Cluster {self.cluster}", reason="it runs already")
        ready, theirs = os.pipe()
        # In a session of its own, so that a Ctrl-C here does not stop it.
        with tempfile.TemporaryFile() as output, open(ready, "rb") as pipe:
            try:
                process = subprocess.Popen(
                    [*self._command, *self._options, "--ready-fd", str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=output,
                    env=environment(),
                    pass_fds=[theirs],
                    start_new_session=True,
                )
            finally:
                os.close(theirs)
            files = self._files if self._temporary else None
            self._end = weakref.finalize(self, _stop, process, os.getpid(), files)
            try:
                from ipython1.kernel.client import MultiEngineClient  # its imports take as long as the start

                if not pipe.readline():
                    raise LaunchError(what=f"Cluster {self.cluster}", reason=_reason(process, output))
                self._client = MultiEngineClient(os.fspath(self._files.furl("multiengine")))
            except BaseException:
                self.stop()
                raise
        return self._client

    def stop(self) -> None:
        """Close the client and stop the cluster; returns when nothing of it is left."""
        client, self._client = self._client, None
        try:
            if client is not None:
                client.close()
        finally:
            if self._end is not None:
                self._end()

    def __enter__(self) -> MultiEngineClient:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> MultiEngineClient:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def _engines(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, SupportsIndex):
        raise TypeError(f"n is a number of engines, not {n!r}.")
    if operator.index(n) < 1:
        raise ValueError(f"a cluster starts with 1 engine or more, not with n={n}.")
    return operator.index(n)


def _reason(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    """Why it ended without ever being ready, in its own words."""
    status = process.wait()
    output.seek(0)
    words = output.read().decode("utf-8", "replace").strip().removeprefix("ipcluster: ")
    return words.removesuffix(".") or exit_words(status)


def _stop(process: subprocess.Popen[bytes], owner: int, temporary: ClusterFiles | None) -> None:
    if os.getpid() != owner:  # a fork of the process whose cluster this is
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.returncode < 0 and temporary is not None and temporary.folder.exists():
        # It was killed, and could not do this. What it had started is just about to end.
        deadline = time.monotonic() + GRACE
        while not clean(temporary, everything=True) and time.monotonic() < deadline:
            time.sleep(0.02)
