"""`TaskPending`: what comes of tasks of one batch."""

from __future__ import annotations

from ipython1.kernel.client.ids import TASKS, format_id
from ipython1.kernel.client.pending import PendingResult


class TaskPending(PendingResult):
    """The result of tasks, now or later: a `PendingResult` whose targets are numbers of tasks."""

    @property
    def id(self) -> str:
        """The id of this result; valid in other sessions of this cluster."""
        return format_id(self.command_id, self.targets, TASKS)

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the tasks that have not ended."""
        return [slot for slot in self.targets if not self.has(slot)]

    def restart_slot(self, slot: int) -> None:
        """A task is tried again: drop what the last attempt gave out. Reactor thread."""
        self._arrivals.restart(slot)
