"""What a client knows of the tasks it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from ipython1.kernel.client.incoming import Arrival
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
