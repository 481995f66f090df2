"""joblib on a cluster: ``with joblib.parallel_config('ipython1'): ...``.

Importing both joblib and ``ipython1.kernel.client`` imports this module, which
registers itself. It connects by itself; `register_joblib_backend` of a client
puts that client behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from joblib.parallel import (
    AutoBatchingMixin,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from ipython1.kernel.client.task import TaskClient
from ipython1.kernel.client.taskexecutor import TaskFuture
from ipython1.kernel.wire.runners import call

NAME = "ipython1"


class ClusterBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the calls of `joblib.Parallel` as tasks.

    Those inside of a task run one after the other.

    Parameters
    ----------
    client : TaskClient, optional
        Else one is made, for `furl`, `cluster` and `ssh`.
    furl, cluster, ssh
        As for `TaskClient`.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        client: TaskClient | None = None,
        furl: Any = None,
        cluster: str = "default",
        ssh: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.client = TaskClient(furl, cluster=cluster, ssh=ssh) if client is None else client
        self._outstanding: set[TaskFuture] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time: at most one an engine; -1 means all engines, -2 all but one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning; -1 means all engines.")
        engines = max(1, len(self.client.ids))
        if n_jobs is None:
            return 1
        return min(n_jobs, engines) if n_jobs > 0 else max(1, engines + 1 + n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> TaskFuture:
        """Send a batch of calls."""
        future = self.client._submit(TaskFuture, call, (func,), {})
        self._outstanding.add(future)
        future._when_over(lambda: self._outstanding.discard(future))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    #: What joblib before 1.5 calls.
    apply_async = submit

    def retrieve_result_callback(self, out: TaskFuture) -> Any:
        """The results of a batch."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Something failed, or nobody wants the rest."""
        self.client.abort(list(self._outstanding), interrupt=True)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """What a `Parallel` inside of a task uses."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def register(client: TaskClient | None = None, name: str = NAME) -> None:
    """Make ``joblib.parallel_config(name)`` known.

    Parameters
    ----------
    client : TaskClient, optional
        Used for all calls; else each ``with`` connects by itself.
    name : str
    """
    factory = ClusterBackend if client is None else functools.partial(ClusterBackend, client)
    register_parallel_backend(name, factory)


register()
