"""MPI: ranks that are started by this process and wait for calls. A yardstick, not a cluster.

The module is also what a rank runs: ``python -m benchmarks.systems.mpi``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

# In the namespace everyone is root. Spawned ranks reach their parent by TCP only, and shared memory
# would just leave its files behind; all share few cores.
os.environ.setdefault("OMPI_MCA_btl", "self,tcp")
os.environ.setdefault("OMPI_MCA_btl_tcp_if_include", "lo")
os.environ.setdefault("PRTE_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
os.environ.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")

from mpi4py import MPI as mpi  # type: ignore[import-not-found]  # noqa: N811
from mpi4py.util import pkl5  # type: ignore[import-not-found]

from benchmarks.systems.base import NotOffered, System


class MPI(System):
    """Ranks spawned from here, and pickled messages with their buffers apart."""

    distribution = "mpi4py"
    note = "spawned ranks: TCP over loopback, and polling while they wait"

    def start(self) -> None:
        arguments = ["-m", "benchmarks.systems.mpi"]
        self.comm = pkl5.Intercomm(mpi.COMM_SELF.Spawn(sys.executable, arguments, maxprocs=self.n))
        self.sent: list[Any] = []

    def stop(self) -> None:
        for engine in range(self.n):
            self.comm.send(None, dest=engine)
        self.comm.Disconnect()

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.collect([self.submit(engine, f, *args)])[0]

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        return self.collect([self.submit(i, f, *args) for i in range(self.n)])

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        self.sent.append(self.comm.isend((f, args), dest=engine))
        return engine

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        values = [self.comm.recv(source=engine) for engine in handles]
        for request in self.sent:
            request.wait()
        self.sent.clear()
        return values

    def background(self, engine: int, f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        raise NotOffered("the whole job ends")


def serve() -> None:
    """Call what comes, until nothing does."""
    comm = pkl5.Intercomm(mpi.Comm.Get_parent())
    while (call := comm.recv(source=0)) is not None:
        f, args = call
        comm.send(f(*args), dest=0)
    comm.Disconnect()


if __name__ == "__main__":
    serve()
