"""The tasks of an engine: records in, jobs out, outcomes back. All in the reactor thread.

A task is here from its `Work` until its client has what came of it (`Taken`);
then it is in the history for a while.

=========  ==================================  =========================================
a task is  and there comes                     next, and what is answered
=========  ==================================  =========================================
not here   Work                                held
any        Work with a higher attempt          held; what was known is forgotten
any        Work with a lower attempt           the same, nothing
held       Work with the same attempt          held, nothing: it will end
held       Withdraw, abort or interrupt        ended: TaskAborted
held       Withdraw, recall                    not here: ``back``
running    Withdraw, abort or recall           the same: it will end
running    Withdraw, interrupt                 the same: KeyboardInterrupt ends it, or not
running    its end                             ended: ``ok`` or ``error``
running    its end, by TaskRejected            not here: ``rejected``
ended      Work with the same attempt          ended: the outcome again
ended      Taken                               in the history, where it counts as ended
=========  ==================================  =========================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from ipython1.kernel.engine.jobs import AnyJob, Common, Task
from ipython1.kernel.engine.kept import Buffer, History
from ipython1.kernel.engine.mainloop import MainLoop
from ipython1.kernel.engine.outbox import Outbox, Outcome
from ipython1.kernel.error import RemoteFailure, UnknownResult, own_failure
from ipython1.kernel.wire.blobs import ChunkStore, gather_parts
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.records import (
    Batch,
    BlobRef,
    Departed,
    End,
    Outcomes,
    Part,
    Seek,
    Taken,
    Withdraw,
    Work,
)

#: Bytes of outcomes in one record, about.
OUTCOMES_SIZE = 512 * 1024
#: What an outcome counts besides its parts.
END_SIZE = 64

_PLAIN = frozenset({bytes})
_NO_BLOBS: Mapping[str, memoryview] = {}


class EngineTasks:
    """Takes tasks from the controller, and tells what came of them.

    Parameters
    ----------
    loop : MainLoop
    outbox : Outbox
    blobs : ChunkStore
    """

    def __init__(self, loop: MainLoop[AnyJob], outbox: Outbox, blobs: ChunkStore) -> None:
        self._loop = loop
        self._outbox = outbox
        self._blobs = blobs
        self._batches: dict[str, Common] = {}
        self._history: History[Task] = History()
        self._ends: dict[str, list[tuple[End, Task | None, Mapping[str, memoryview]]]] = {}  # to be sent

    @property
    def clients(self) -> set[str]:
        """The ids of the clients that something is kept for."""
        return {common.client for common in self._batches.values()}

    # -- records ------------------------------------------------------------------------

    def batch(self, batch: Batch) -> None:
        """What the tasks of a batch have in common; it may be known."""
        known = self._batches.get(batch.id)
        if known is not None and batch.detached:
            known.detached = True
        if known is None:
            known = self._batches[batch.id] = Common(batch)
        elif not known.dropped and known.failure is None:
            for part in batch.parts:
                if isinstance(part, BlobRef):
                    self._blobs.ask_again(part.blob)
            return
        known.dropped, known.failure = False, None
        common = known

        def arrived(parts: list[Buffer]) -> None:
            common.parts = parts
            waiting, common.waiting = common.waiting, []
            for task, own in waiting:
                self._loop.ready(task, own)

        def lost(error: Exception) -> None:
            common.failure = RemoteFailure(type(error).__name__, str(error))
            for task, _ in common.waiting:
                self._not_ready(task, common.failure)
            common.waiting = []
            self.send()

        gather_parts(self._blobs, batch.parts, arrived, lost)

    def work(self, work: Work) -> None:
        """Tasks to run."""
        common = self._batches.get(work.batch)
        if common is None:
            text = "its batch is not known to the engine"
            for index, attempt, _ in work.items:
                self._refuse(work.batch, index, attempt, RemoteFailure("TaskAborted", text))
            self.send()
            return
        tasks, known = common.tasks, self._history
        new: list[Task] = []
        large: list[Task] = []
        for index, attempt, parts in work.items:
            task = Task(common, index, attempt, parts)
            before = tasks.get(index) or known.get(task.id)
            if before is not None:
                if attempt <= before.attempt:
                    self._repeat(before, attempt, parts)
                    continue
                self._replace(before)
            elif known.had(task.id):
                self._refuse(common.id, index, attempt, _lost_sight_of(task.id))
                continue
            tasks[index] = task
            new.append(task)
            if common.parts is not None and _PLAIN.issuperset(map(type, parts)):
                task.parts = parts  # type: ignore[assignment]  # bytes, all of them
            else:
                large.append(task)
        self._loop.put(*new)
        for task in large:  # only now: who cannot be had must be found in the queue
            self._gather(task)
        if self._ends:
            self.send()

    def _gather(self, task: Task) -> None:
        common = task.common

        def arrived(parts: list[Buffer]) -> None:
            if common.parts is not None:
                self._loop.ready(task, parts)
            elif common.failure is None:
                common.waiting.append((task, parts))
            else:
                lost(common.failure)

        def lost(failure: RemoteFailure) -> None:
            self._not_ready(task, failure)
            self.send()

        gather_parts(
            self._blobs,
            task.sent,
            arrived,
            lambda error: lost(RemoteFailure(type(error).__name__, str(error))),
        )

    def _repeat(self, task: Task, attempt: int, parts: Iterable[Part]) -> None:
        """Work that is known comes again."""
        if attempt < task.attempt:
            return
        for part in parts:
            if isinstance(part, BlobRef):
                self._blobs.ask_again(part.blob)
        if task.answer is not None:
            self._tell_again(task)

    def _replace(self, task: Task) -> None:
        """A later attempt takes the place of `task`, which may be running."""
        if task.answer is None:
            self._loop.cancel(lambda it: it is task)
            self._expect_no_longer(task)
        self._history.remove(task.id)
        self._forget(task)

    def _forget(self, task: Task) -> None:
        if task.common.tasks.get(task.index) is task:
            del task.common.tasks[task.index]
        self._release(task.blobs)

    def withdraw(self, withdraw: Withdraw) -> None:
        """Do not start tasks."""
        match = _of(withdraw.batch, withdraw.items)
        for task in self._loop.cancel(match):
            assert isinstance(task, Task)
            if withdraw.how == "recall":
                self._expect_no_longer(task)
                self._forget(task)
                self._tell(withdraw.batch, _end(task, "back"))
            else:
                self.end_unstarted(task, "TaskAborted")
        running = self._loop.running
        if running is not None and match(running):
            if withdraw.how == "interrupt":
                self._loop.interrupt(running.id)
            elif withdraw.how == "abort":  # who aborts it need not wait for its end
                self._outbox.event(running, "started")
        self.send()

    def seek(self, seek: Seek) -> None:
        """Tell what is known of tasks."""
        common = self._batches.get(seek.batch)
        tasks = common.tasks if common is not None else {}
        for index in seek.items:
            id = f"{seek.batch}#{index}"
            task = tasks.get(index) or self._history.get(id)
            if task is not None:
                self._tell_again(task)
            elif self._history.had(id):
                self._refuse(seek.batch, index, 0, _lost_sight_of(id))
            else:
                self._tell(seek.batch, (index, 0, "unknown", 0.0, 0.0, 0, ()))
        self.send()

    def _tell_again(self, task: Task) -> None:
        self._outbox.repeat_events(task)
        answer = task.answer
        if isinstance(answer, tuple):
            self._tell(task.common.id, answer, task, task.blobs)
        else:
            self._tell(task.common.id, _end(task, "held"))

    def taken(self, taken: Taken) -> None:
        """The client has these outcomes."""
        common = self._batches.get(taken.batch)
        if common is None:
            return
        for index in taken.items:
            task = common.tasks.get(index)
            if task is not None and task.answer is not None:
                self._archive(task)
        if taken.last:
            self._drop(common, lambda task: self._leave(task))

    def departed(self, departed: Departed) -> None:
        """A client is gone for good: its tasks are not run, and what it left is not kept for it."""
        over = [it for it in self._batches.values() if it.client == departed.client]
        for common in [it for it in over if it.id not in departed.but]:
            self._drop(common, lambda task: self.end_unstarted(task, "TaskAborted"))
        self.send()

    def _drop(self, common: Common, end: Callable[[Task], None]) -> None:
        """Forget a batch, but for a task that runs."""
        for job in self._loop.cancel(_of(common.id, ())):
            assert isinstance(job, Task)
            end(job)
        for part in common.sent:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)
        common.drop()
        for task in list(common.tasks.values()):
            task.abandoned = True
            if task.answer is not None:
                self._archive(task)
        self._close(common)

    def _leave(self, task: Task) -> None:
        """Nobody wants to hear of a task that has not started."""
        self._expect_no_longer(task)
        self._forget(task)

    def _close(self, common: Common) -> None:
        if common.dropped and not common.tasks and self._batches.get(common.id) is common:
            del self._batches[common.id]

    def _archive(self, task: Task) -> None:
        if task.common.tasks.get(task.index) is task:
            del task.common.tasks[task.index]
        task.detached = task.common.detached
        self._release(self._history.add(task))

    def _release(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            self._blobs.release(blob)

    # -- ends -----------------------------------------------------------------------------

    def finish(self, task: Task, outcome: Outcome) -> None:
        """A task has run; what came of it waits for `send`."""
        common = task.common
        if common.tasks.get(task.index) is not task:  # a later attempt has taken its place
            self._release([*outcome.blobs, *task.blobs])
            return
        end = _end(task, outcome.status, task.started, task.completed, outcome.parts)
        self._tell(common.id, end, task, outcome.blobs)
        if outcome.status == "rejected":
            self._forget(task)
        else:
            task.close(end, outcome.parts)
            if task.abandoned:
                self._archive(task)
        if common.dropped:
            self._close(common)

    def _not_ready(self, task: Task, failure: RemoteFailure) -> None:
        """The parts of a task cannot be had: it must not keep the others waiting."""
        if self._loop.cancel(lambda it: it is task):
            self.end_unstarted(task, failure.ename, failure.evalue)

    def end_unstarted(self, task: Task, ename: str, evalue: str = "") -> None:
        """A task that was taken out of the queue fails."""
        self._expect_no_longer(task)
        failure = encode_failure(RemoteFailure(ename, evalue) if evalue else own_failure(ename))
        end = _end(task, "error", 0.0, time.time(), (failure,))
        task.close(end, end[6])
        self._tell(task.common.id, end)

    def _expect_no_longer(self, task: Task) -> None:
        for part in task.sent:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)

    def _refuse(self, batch: str, index: int, attempt: int, failure: RemoteFailure) -> None:
        end = (index, attempt, "error", 0.0, time.time(), 0, (encode_failure(failure),))
        self._tell(batch, end)

    def _tell(
        self,
        batch: str,
        end: End,
        task: Task | None = None,
        blobs: Mapping[str, memoryview] = _NO_BLOBS,
    ) -> None:
        self._ends.setdefault(batch, []).append((end, task, blobs))

    def send(self) -> None:
        """Send the outcomes that wait, those of a batch together."""
        if not self._ends:
            return
        ends, self._ends = self._ends, {}
        for batch, items in ends.items():
            start, size = 0, 0
            for stop, (end, _, _) in enumerate(items, 1):
                size += END_SIZE + sum([len(part) for part in end[6] if type(part) is bytes])
                if size >= OUTCOMES_SIZE or stop == len(items):
                    some = items[start:stop]
                    self._outbox.send(
                        Outcomes(batch, self._outbox.engine, tuple([end for end, _, _ in some]))
                    )
                    for _, task, blobs in some:
                        if blobs and task is not None:
                            self._outbox.offer(task, blobs)
                    start, size = stop, 0


def _end(
    task: Task,
    status: str,
    started: float = 0.0,
    completed: float = 0.0,
    parts: Sequence[Part] = (),
) -> End:
    return task.index, task.attempt, status, started, completed, len(task.events), tuple(parts)


def _of(batch: str, items: Sequence[int]) -> Callable[[AnyJob], bool]:
    wanted = frozenset(items)
    return lambda job: (
        isinstance(job, Task) and job.common.id == batch and (not wanted or job.index in wanted)
    )


def _lost_sight_of(id: str) -> RemoteFailure:
    return RemoteFailure("UnknownResult", str(UnknownResult(id=id)))
