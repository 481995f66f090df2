"""The reactor's side of tasks: what is on its way, and what came of it.

Methods marked "any thread" are for the classes users see; everything else runs
in the reactor thread.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ipython1.kernel.client.bridge import IBridge
from ipython1.kernel.client.room import Room
from ipython1.kernel.client.taskincoming import TaskIncoming
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.client.taskstate import OutBatch, OutTask, size_of
from ipython1.kernel.wire import records
from ipython1.kernel.wire.blobs import Buffer, ChunkStore
from ipython1.kernel.wire.codec import pack
from ipython1.kernel.wire.records import (
    ENGINES_LIMIT,
    INLINE_LIMIT,
    Item,
    Part,
    Record,
    Result,
    Seek,
    Taken,
    Withdraw,
    Work,
)

#: Tasks and bytes of arguments in one record.
WORK_COUNT, WORK_BYTES = 256, 256 * 1024
#: Outcomes may be told as received together: after so many seconds, or so many of them.
TAKEN_DELAY, TAKEN_COUNT = 0.1, 500
#: Of these records, the last ones: they may be lost with a controller.
TAKENS_KEPT = 50
#: Ends of tasks remembered, for those that depend on them.
ENDS_KEPT = 10_000


class _End(NamedTuple):
    ok: bool
    engine: int


class Batches:
    """All batches of one client.

    Parameters
    ----------
    clock : IReactorTime
    bridge : IBridge
        Carries calls into the reactor thread.
    blobs : ChunkStore
        For bulk bytes.
    send : callable
        Sends a record.
    new_id : callable
        Makes the id of a batch.
    """

    def __init__(
        self,
        clock: Any,
        bridge: IBridge,
        blobs: ChunkStore,
        send: Callable[[Record], None],
        new_id: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._bridge = bridge
        self._blobs = blobs
        self._send = send
        self._new_id = new_id
        #: What is outstanding, of commands too.
        self.room = Room(bridge)
        self._lock = threading.Lock()  # guards `_batches` and the numbers of tasks
        self._batches: dict[str, OutBatch] = {}
        self._coming: dict[int, TaskPending] = {}  # on its way to the reactor thread; any thread
        self._ends: OrderedDict[tuple[str, int], _End] = OrderedDict()
        self._flush_call: Any = None
        self._unsent: dict[str, OutBatch] = {}
        self._taken_call: Any = None
        self._takens: deque[Taken] = deque(maxlen=TAKENS_KEPT)
        self._error: Exception | None = None
        self.incoming = TaskIncoming(self._batches, blobs, send, self._deliver, self._plan_taken)

    # -- any thread --------------------------------------------------------------------

    def open(
        self,
        op: str,
        parts: Sequence[Buffer],
        *,
        label: str = "",
        timeout: float = 0.0,
        rules: Mapping[str, Any] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> str:
        """A new batch.

        Parameters
        ----------
        op : {'call', 'code'}
        parts : list of buffers
            The function, or the source text; copied.
        label : str
            What `status` shows.
        timeout : float
            Seconds that a task may run; 0: as long as it likes.
        rules : dict, optional
            ``retries priority after follow all when wait``, see the records.
        args : dict, optional
            What the engine needs besides.

        Returns
        -------
        str
            The id of the batch.
        """
        id = self._new_id()
        split, blobs = self._blobs.split(parts, f"{id}/b", INLINE_LIMIT)
        head = records.Batch(id, op, label, timeout, b"", pack(dict(args or {})), split)
        batch = OutBatch(id, head, dict(rules or {}))
        batch.blobs = blobs
        with self._lock:
            self._batches[id] = batch
        self._bridge.submit(self._open, batch)
        return id

    def reserve(self, batch: str, n: int = 1) -> range:
        """Numbers for `n` tasks to come."""
        with self._lock:
            known = self._find(batch)
            first = known.number
            known.number += n
        return range(first, first + n)

    def add(
        self,
        pending: TaskPending,
        slots: Sequence[int],
        items: Sequence[Sequence[Buffer]],
        wait: bool = True,
    ) -> None:
        """Send tasks of batch ``pending.command_id``, with these numbers and arguments.

        Where very much is outstanding it waits, unless it must not.
        """
        batch = self._find(pending.command_id)
        tasks = []
        for index, parts in zip(slots, items, strict=True):
            split, blobs = self._blobs.split(parts, f"{batch.id}#{index}/a", INLINE_LIMIT)
            tasks.append((index, OutTask(pending, split, blobs)))
        self.room.take(sum([task.weight for _, task in tasks]), wait)
        self._coming[id(tasks)] = pending
        self._bridge.submit(self._add, batch, tasks)

    def _find(self, id: str) -> OutBatch:
        batch = self._batches.get(id)
        if batch is None:
            error = self._error or KeyError(f"batch {id} is over")
            raise copy.copy(error).with_traceback(None)  # as in `check_usable`
        return batch

    def close(self, batch: str) -> None:
        """No more tasks will be added; the batch is forgotten when all have ended."""
        self._bridge.submit(self._close, batch)

    def withdraw(self, batch: str, indexes: Iterable[int] | None = None, interrupt: bool = False) -> None:
        """Do not start these tasks (None: all there are); interrupt those that run, if asked to."""
        order = None if indexes is None else sorted(indexes)
        self._bridge.submit(self._withdraw, batch, order, "interrupt" if interrupt else "abort")

    def call(self, f: Callable[..., Any], *args: Any) -> None:
        """Call `f` in the reactor thread, soon."""
        self._bridge.submit(f, *args)

    def pending(self) -> list[TaskPending]:
        """What is outstanding, each once."""
        coming = list(self._coming.values())  # first: it may be among the others just after
        found = self._taken_in()
        found.update((id(pending), pending) for pending in coming)
        return list(found.values())

    def _taken_in(self) -> dict[int, TaskPending]:
        with self._lock:
            batches = list(self._batches.values())
        tasks = [task for batch in batches for task in list(batch.tasks.values())]
        return {id(pending): pending for task in tasks for pending in (task.pending, *task.also)}

    def seek(self, pending: TaskPending) -> None:
        """Ask for the outcomes of tasks that this or another client sent."""
        self._coming[id(pending)] = pending
        self._bridge.submit(self._seek, pending)

    # -- sending -------------------------------------------------------------------------

    def _open(self, batch: OutBatch) -> None:
        if self._error is not None:
            return
        if batch.rules.get("after") or batch.rules.get("follow"):
            self.flush()  # the controller must know of these when it hears of the batch
        self._send_head(batch)

    def head_of(self, batch: OutBatch) -> records.Batch:
        """The head of a batch of ours, with what is known by now."""
        assert batch.head is not None
        return dataclasses.replace(batch.head, rules=pack(self._rules(batch)), detached=batch.detached)

    def get(self, id: str) -> OutBatch | None:
        """A batch that is not over."""
        return self._batches.get(id)

    def _send_head(self, batch: OutBatch) -> None:
        self._send(self.head_of(batch))
        for blob, data in batch.blobs.items():
            self._blobs.offer(blob, data)

    def _rules(self, batch: OutBatch) -> dict[str, Any]:
        """The rules, with what this client knows of the tasks they name."""
        named = [tuple(key) for name in ("after", "follow") for key in batch.rules.get(name, ())]
        known = [(*key, *self._ends[key]) for key in named if key in self._ends]
        return {**batch.rules, "known": known} if known else batch.rules

    def _add(self, batch: OutBatch, tasks: Sequence[tuple[int, OutTask]]) -> None:
        for index, task in tasks:
            if self._error is not None:
                self._release(task)
                task.pending.fail(self._error)
                continue
            batch.tasks[index] = task
            batch.unsent.append(index)
        del self._coming[id(tasks)]
        if batch.unsent:
            self._unsent[batch.id] = batch
            if self._flush_call is None:
                self._flush_call = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        """Send what has come together in this turn."""
        self._flush_call = None
        unsent, self._unsent = self._unsent, {}
        for batch in unsent.values():
            indexes, batch.unsent = batch.unsent, []
            self._send_work(batch, indexes)

    def flush(self) -> None:
        """Send now what waits for the end of this turn."""
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush()

    def _send_work(self, batch: OutBatch, indexes: Iterable[int], again: bool = False) -> None:
        items: list[Item] = []
        large: list[OutTask] = []
        size = 0
        for index in indexes:
            task = batch.tasks.get(index)
            if task is None or task.parts is None:
                continue
            if task.blobs:
                large.append(task)
            items.append((index, task.attempt, task.parts))
            size += size_of(task.parts)
            if len(items) >= WORK_COUNT or size >= WORK_BYTES:
                self._send(Work(batch.id, tuple(items), again))
                items, size = [], 0
        if items or again:  # none is left: engines may know of the batch all the same
            self._send(Work(batch.id, tuple(items), again))
        for task in large:  # only now: what nobody has named is refused
            for blob, data in task.blobs.items():
                self._blobs.offer(blob, data)

    def _close(self, id: str) -> None:
        batch = self._batches.get(id)
        if batch is not None:
            batch.closed = True
            self._finish_if_over(batch)

    def _withdraw(self, id: str, indexes: Sequence[int] | None, how: str) -> None:
        batch = self._batches.get(id)
        if batch is None or self._error is not None:
            return
        if batch.unsent:
            self.flush()
        chosen = [index for index in (batch.tasks if indexes is None else indexes) if index in batch.tasks]
        for index in chosen:
            batch.tasks[index].withdrawn = how
        self._send_withdraw(batch, chosen, how)

    def _send_withdraw(self, batch: OutBatch, indexes: Sequence[int], how: str) -> None:
        for start in range(0, len(indexes), ENGINES_LIMIT):
            self._send(Withdraw(batch.id, tuple(indexes[start : start + ENGINES_LIMIT]), how))

    def _seek(self, pending: TaskPending) -> None:
        if self._error is not None:
            pending.fail(self._error)
        else:
            self._ask_of(pending)
        del self._coming[id(pending)]

    def _ask_of(self, pending: TaskPending) -> None:
        id = pending.command_id
        batch = self._batches.get(id)
        if batch is None:
            with self._lock:
                batch = self._batches[id] = OutBatch(id, None, {})
            batch.closed = True
        asked: list[int] = []
        for index in pending.targets:
            task = batch.tasks.get(index)
            if task is not None:  # it will be told anyway
                task.also += (pending,)
            else:
                batch.tasks[index] = OutTask(pending, None)
                asked.append(index)
        self._send_seeks(batch, asked)

    def _send_seeks(self, batch: OutBatch, indexes: Iterable[int]) -> None:
        order = list(indexes)
        for start in range(0, len(order), ENGINES_LIMIT):
            self._send(Seek(batch.id, tuple(order[start : start + ENGINES_LIMIT])))

    # -- the connection ---------------------------------------------------------------------

    def send_again(self) -> None:
        """The controller does not know us: send what is unresolved."""
        for batch in self._batches.values():
            batch.unsent.clear()
            if batch.head is not None:
                self._send_head(batch)
                self._send_work(batch, batch.tasks, again=True)
            self._send_seeks(batch, [index for index, task in batch.tasks.items() if task.parts is None])
            for how in ("abort", "interrupt"):
                order = [index for index, task in batch.tasks.items() if task.withdrawn == how]
                self._send_withdraw(batch, order, how)
        for taken in self._takens:
            self._send(taken)

    def flush_taken(self) -> None:
        """Tell now what is here and need not be kept."""
        if self._taken_call is not None and self._taken_call.active():
            self._taken_call.cancel()
        self._taken_call = None
        for batch in self._batches.values():
            if batch.taken:
                self._send_taken(batch, False)

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        self._error = error
        self.room.end()
        for call in (self._flush_call, self._taken_call):
            if call is not None and call.active():
                call.cancel()
        self._flush_call = self._taken_call = None
        outstanding = self._taken_in()
        with self._lock:
            self._batches.clear()
        for pending in outstanding.values():
            pending.fail(error)

    # -- what came -------------------------------------------------------------------------------

    def _deliver(
        self, batch: OutBatch, index: int, task: OutTask, result: Result, parts: Sequence[Buffer | Part]
    ) -> None:
        del batch.tasks[index]
        self.room.free(task.weight)
        if task.blobs:
            self._release(task)
        batch.taken.append(index)
        self._ends[batch.id, index] = _End(result.status == "ok", result.engine)
        if len(self._ends) > ENDS_KEPT:
            self._ends.popitem(last=False)
        for pending in (task.pending, *task.also):
            pending.deliver_result(result, parts, index)  # type: ignore[arg-type]

    # -- what need not be kept -----------------------------------------------------------------

    def _plan_taken(self, batch: OutBatch) -> None:
        if batch.closed and not batch.tasks:
            self._finish_if_over(batch)
        elif len(batch.taken) >= TAKEN_COUNT:
            self._send_taken(batch, False)
        elif self._taken_call is None and batch.taken:
            self._taken_call = self._clock.callLater(TAKEN_DELAY, self.flush_taken)

    def _finish_if_over(self, batch: OutBatch) -> None:
        if batch.tasks or not batch.closed or self._error is not None:
            return
        with self._lock:
            self._batches.pop(batch.id, None)
        for blob in batch.blobs:
            self._blobs.release(blob)
        if batch.head is not None:
            self._send_taken(batch, True)

    def _send_taken(self, batch: OutBatch, last: bool) -> None:
        indexes, batch.taken = batch.taken, []
        if batch.head is None:
            return  # another client's: it says so itself
        slices = [indexes[i : i + ENGINES_LIMIT] for i in range(0, len(indexes), ENGINES_LIMIT)] or [[]]
        for number, part in enumerate(slices, 1):
            taken = Taken(batch.id, tuple(part), last and number == len(slices))
            self._takens.append(taken)
            self._send(taken)

    def _release(self, task: OutTask) -> None:
        for blob in task.blobs:
            self._blobs.release(blob)
