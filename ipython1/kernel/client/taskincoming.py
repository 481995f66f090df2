"""What arrives of tasks, put in order before it is delivered; see `incoming` for commands.

A task can be tried several times. What belongs to an earlier attempt than the
latest one known is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipython1.kernel.client.incoming import Arrival
from ipython1.kernel.client.taskstate import OutBatch, OutTask
from ipython1.kernel.wire.blobs import Buffer, ChunkStore, gather_parts
from ipython1.kernel.wire.records import BlobRef, Event, Grant, Outcomes, Parts, Record, Result, Seek, Work

#: Called with what a task came to; it is not waited for any more.
Ended = Callable[[OutBatch, int, OutTask, Result, Sequence[Any]], None]


class TaskIncoming:
    """Takes the records of tasks; reactor thread only.

    Parameters
    ----------
    batches : mapping
        What is waited for, by batch id.
    blobs : ChunkStore
        Receives the parts that travel by themselves.
    send : callable
        Sends a record.
    ended : callable
        Takes each outcome, once.
    settled : callable
        Told of a batch after some of those.
    """

    def __init__(
        self,
        batches: Mapping[str, OutBatch],
        blobs: ChunkStore,
        send: Callable[[Record], None],
        ended: Ended,
        settled: Callable[[OutBatch], None],
    ) -> None:
        self._batches = batches
        self._blobs = blobs
        self._send = send
        self._ended = ended
        self._settled = settled

    def outcomes(self, record: Outcomes) -> None:
        """Tasks have ended."""
        batch = self._batches.get(record.batch)
        if batch is None:
            for end in record.items:
                self._refuse(end[6])
            return
        head = batch.head
        op = head.op if head is not None else ""
        prefix = f"{batch.id}#"
        for index, attempt, status, started, completed, events, parts in record.items:
            task = batch.tasks.get(index)
            if task is None or (attempt < task.attempt and record.engine >= 0):
                self._refuse(parts)
                continue
            if status == "unknown" and task.parts is not None:
                continue  # said to another client, that has asked
            if status == "later":
                self._ask_for(batch, index, task)
                continue
            result = Result(f"{prefix}{index}", record.engine, op, status, started, completed, events, parts)
            if record.engine < 0:  # made up by the controller: nothing came before
                self._refuse_arriving(task)
                self._ended(batch, index, task, result, parts)
            elif (
                task.arriving is None
                and task.events == events
                and (attempt == task.attempt or not events)
                and not _has_blobs(parts)
            ):
                self._ended(batch, index, task, result, parts)
            else:
                self._arrive(batch, index, task, attempt, result)
        self._settled(batch)

    def event(self, event: Event) -> None:
        """A running task gave out something."""
        id, _, number = event.id.partition("#")
        batch = self._batches.get(id)
        task = batch.tasks.get(int(number)) if batch is not None else None
        if batch is None or task is None or event.attempt < task.attempt:
            self._refuse(event.parts)
            return
        self._arrive(batch, int(number), task, event.attempt, event)

    def _arrive(
        self, batch: OutBatch, index: int, task: OutTask, attempt: int, record: Event | Result
    ) -> None:
        """Take a record, or hold it until its blobs and those before it are here."""
        if attempt > task.attempt:
            if task.events:
                for pending in (task.pending, *task.also):
                    pending.restart_slot(index)
            self._refuse_arriving(task)
            task.attempt, task.events = attempt, 0
        waiting = task.arriving if task.arriving is not None else deque()
        expected = task.events + len(waiting)
        number = record.index if isinstance(record, Event) else record.events
        if any(arrival.record == record for arrival in waiting):  # a replay of what is on its way here
            for part in record.parts:
                if isinstance(part, BlobRef):
                    self._blobs.ask_again(part.blob)
            return
        if number != expected or (waiting and isinstance(waiting[-1].record, Result)):
            self._refuse(record.parts)
            if isinstance(record, Result) and number > expected:  # events were lost with a controller
                self._ask_for(batch, index, task)
            return
        arrival = Arrival(record)
        task.arriving = waiting
        waiting.append(arrival)

        def complete(parts: list[Buffer]) -> None:
            arrival.parts = parts
            self._deliver_arrived(batch, index, task)

        def failed(error: Exception) -> None:
            if isinstance(record, Result) and not isinstance(error, MemoryError) and task.parts is not None:
                task.arriving = None  # its engine died with it: it runs again
                self._ask_for(batch, index, task)
                return
            arrival.lost(error)
            self._deliver_arrived(batch, index, task)

        gather_parts(self._blobs, record.parts, complete, failed)

    def _ask_for(self, batch: OutBatch, index: int, task: OutTask) -> None:
        """What came of a task is needed once more. One of ours runs again, where that is lost."""
        if task.parts is None:
            self._send(Seek(batch.id, (index,)))
            return
        self._send(Work(batch.id, ((index, task.attempt, task.parts),)))
        for blob, data in task.blobs.items():
            self._blobs.offer(blob, data)

    def _deliver_arrived(self, batch: OutBatch, index: int, task: OutTask) -> None:
        waiting = task.arriving
        while waiting and waiting[0].parts is not None:
            arrival = waiting.popleft()
            assert arrival.parts is not None
            if isinstance(arrival.record, Event):
                task.events += 1
                for pending in (task.pending, *task.also):
                    pending.deliver_event(arrival.record, arrival.parts, index)
            else:
                self._ended(batch, index, task, arrival.record, arrival.parts)
                self._settled(batch)
                return
        if not waiting:
            task.arriving = None

    def _refuse_arriving(self, task: OutTask) -> None:
        for arrival in task.arriving or ():
            self._refuse(arrival.record.parts)
        task.arriving = None

    def _refuse(self, parts: Parts) -> None:
        for part in parts:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)
                self._send(Grant(part.blob, -1))


def _has_blobs(parts: Parts) -> bool:
    return any(type(part) is BlobRef for part in parts)
