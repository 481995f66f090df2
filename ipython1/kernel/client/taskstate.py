"""What a client knows of the tasks it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ipython1.kernel.client.incoming import Arrival
from ipython1.kernel.client.room import OVERHEAD
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.wire import records
from ipython1.kernel.wire.records import Parts

_NO_BLOBS: Mapping[str, memoryview] = {}


class OutTask:
    """One task that has not ended."""

    __slots__ = ("also", "arriving", "attempt", "blobs", "events", "parts", "pending", "withdrawn")

    def __init__(
        self, pending: TaskPending, parts: Parts | None, blobs: Mapping[str, memoryview] = _NO_BLOBS
    ) -> None:
        self.pending = pending
        #: Others that want to know what comes of it.
        self.also: tuple[TaskPending, ...] = ()
        #: None: it was not sent from here, or has ended before; it is only asked for.
        self.parts = parts
        self.blobs = blobs
        #: How the user has said that it is not wanted any more.
        self.withdrawn = ""
        self.attempt = 0
        self.events = 0  # delivered
        #: Records of this attempt that wait for their blobs, and those behind them.
        self.arriving: deque[Arrival] | None = None

    @property
    def weight(self) -> int:
        """What it takes of the controller's memory, about."""
        return 0 if self.parts is None else OVERHEAD + size_of(self.parts)


def size_of(parts: Parts) -> int:
    """Bytes of arguments in a record."""
    return sum([len(part) if type(part) is bytes else 64 for part in parts])


class OutBatch:
    """The tasks of one batch. `head` is None where it is of another client."""

    def __init__(self, id: str, head: records.Batch | None, rules: dict[str, Any]) -> None:
        self.id = id
        self.head = head
        self.rules = rules
        self.blobs: dict[str, memoryview] = {}
        self.number = 0  # of the next task
        self.tasks: dict[int, OutTask] = {}
        self.unsent: list[int] = []
        self.taken: list[int] = []
        self.closed = False
        self.detached = False  # some of its tasks are to go on without this client

    def unresolved(self, indexes: Iterable[int]) -> list[tuple[int, OutTask]]:
        """Which of these tasks were sent from here, and have not ended."""
        tasks = [(index, self.tasks[index]) for index in indexes if index in self.tasks]
        return [(index, task) for index, task in tasks if task.parts is not None]
