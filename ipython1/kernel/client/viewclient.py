"""`ViewClient`: one connection to a cluster, to look at it."""

from __future__ import annotations

import os
from typing import Any

from ipython1.kernel.client.connect import DEFAULT_CLUSTER, FURLSpec, _open
from ipython1.kernel.client.life import ClientLife
from ipython1.kernel.client.status import QueueStatus, Status, fetch_status, fetch_task_status, rows_of
from ipython1.kernel.client.timeline import Timeline, fetch_timeline


class ViewClient(ClientLife):
    """Sees what runs, and changes nothing: all that the view FURL allows.

    Parameters
    ----------
    furl, cluster, timeout, ssh
        As of `MultiEngineClient`; the FURL is the one for views.

    Raises
    ------
    ConnectionFailed
        One of its kinds says what was tried, and why it failed.

    Examples
    --------
    >>> with ViewClient('ipcontroller-view.furl') as view:
    ...     print(view.status())
    """

    def __init__(
        self,
        furl: FURLSpec = None,
        *,
        cluster: str = DEFAULT_CLUSTER,
        timeout: float = 10.0,
        ssh: str | None = None,
    ) -> None:
        self._attach(_open(furl, cluster, timeout, "view", ssh))

    def status(self) -> Status:
        """A table of the engines; see `MultiEngineClient.status`."""
        return fetch_status(self._core, self.ids)

    def queue_status(self) -> QueueStatus:
        """What waits and what runs on each engine; see `MultiEngineClient.queue_status`."""
        ids = self.ids
        answer = self._core.ask("queue_status", targets=ids)
        self._core.wait(answer, None)
        return QueueStatus(rows_of(ids)(answer.result()))

    def task_status(self, verbose: bool = False) -> dict[str, Any]:
        """How many tasks are in which state; see `TaskClient.queue_status`."""
        return fetch_task_status(self._core, verbose)

    def timeline(self, path: str | os.PathLike[str] | None = None) -> Timeline:
        """What ran where; see `MultiEngineClient.timeline`."""
        return fetch_timeline(self._core, path)
