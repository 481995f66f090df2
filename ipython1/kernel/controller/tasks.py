"""The task book: which tasks there are, and what is said of them.

Records and the clock drive it; it does no I/O. The states of a task stand in
`batches`; which goes next, and where, is the matter of `dispatch`; what comes of
it that of `endings`.

Soft state: clients send what is unresolved to a new controller, which asks the
engines (`seeking`) before it lets anything run.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from ipython1.kernel.controller.batches import GONE, Batch, Rules, TaskKey
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.dependencies import Dependencies
from ipython1.kernel.controller.dispatch import Dispatcher
from ipython1.kernel.controller.endings import Endings
from ipython1.kernel.controller.load import Load
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.seeking import Searches
from ipython1.kernel.controller.taskstatus import TaskStatus
from ipython1.kernel.controller.telling import Telling
from ipython1.kernel.controller.timers import Timers
from ipython1.kernel.error import ImpossibleDependency, RemoteFailure, TaskTimeout, WireError
from ipython1.kernel.interfaces import IScheduler
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import encode, encode_failure
from ipython1.kernel.wire.records import BlobRef, End, Event, Outcomes, Parts, Seek, Taken, Withdraw, Work

_ANSWERS = frozenset({"held", "unknown"})
_OUTCOMES = frozenset({"ok", "error"})
#: Numbers of tasks and attempts are below this.
COUNT_LIMIT = 2**31
#: Digits in the number of a task, at most.
INDEX_DIGITS = 18
#: Labels of tasks whose length is remembered.
MEANS_KEPT = 1000


class TaskBook:
    """All tasks of all clients.

    Parameters
    ----------
    clock : IReactorTime
    registry : Registry
        The engines.
    scheduler : IScheduler
        Says which tasks go first, and where.
    blobs : BlobRoutes
        The ways of bulk bytes through the controller.
    returning : callable
        Whether engines and clients of an earlier controller may still come.
    load : Load, optional
        How much work there may be.
    """

    def __init__(
        self,
        clock: Any,
        registry: Registry,
        scheduler: IScheduler,
        blobs: BlobRoutes,
        returning: Callable[[], bool],
        load: Load | None = None,
    ) -> None:
        self._load = load or Load()
        self._blobs = blobs
        self._returning = returning
        self._taken: list[bytes] = []  # what clients have, for engines that come later
        self._clock = clock
        self._numbers = itertools.count()
        self._batches: dict[str, Batch] = {}
        #: How long tasks take, by client and label: what one expects of the next batch.
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._timers = Timers(clock)
        self._dispatcher = Dispatcher(clock, registry, scheduler)
        self._telling = Telling(self._batches, blobs, registry.now)
        self._dependencies = Dependencies(
            self._batches.get, returning, lambda: [engine.id for engine in registry]
        )
        self._endings = Endings(registry, self._dispatcher, self._dependencies, self._telling, blobs)
        #: Whether nobody can tell which engines have tasks of a batch from before this controller.
        self.untold: Callable[[str], bool] = lambda id: False
        self.status = TaskStatus(self._batches, self._dispatcher)
        #: Called with an engine, a batch, and the ends of those of its tasks that ran there.
        self.ran: Callable[[int, Batch, list[End]], None] = lambda engine, batch, ends: None
        self._searches = Searches(
            self._batches,
            self._dispatcher,
            self._endings,
            self._telling,
            lambda id: returning() and (registry.incomplete or self.untold(id)),
        )

    def stop(self) -> None:
        """End the timers."""
        self._dispatcher.stop()
        self._timers.stop_all()

    def when_interrupted(self, call: Callable[[dict[int, records.Ids]], None]) -> None:
        """Have `call` called with the ids of tasks that engines are told to interrupt, by engine."""
        self._endings.interrupted = call

    # -- from clients ------------------------------------------------------------------

    def batch(self, client: Peer, record: records.Batch, raw: bytes) -> None:
        """A batch is opened, or its client is back."""
        _check_own(client, record.id)
        batch = self._batches.get(record.id)
        if batch is not None:
            if client not in batch.owners:
                batch.owners.append(client)
            if batch.blobs:
                batch.blobs = self._open_blobs(record.parts, f"{batch.id}/", client)
                for engine in batch.engines:
                    self._dispatcher.send(engine, batch.raw)
            return
        batch = Batch(record, raw, Rules.unpack(record.rules), next(self._numbers), [client], load=self._load)
        batch.blobs = self._open_blobs(record.parts, f"{batch.id}/", client)
        batch.mean = self._means.get((batch.client, record.label), 0.0)
        self._batches[batch.id] = batch
        self._endings.judge([batch])
        if batch.rules.wait > 0:
            self._timers.start("wait", batch.id, batch.rules.wait, self._waited, batch)

    def work(self, client: Peer, record: Work, raw: bytes) -> None:
        """More tasks of a batch."""
        _check_own(client, record.batch)
        batch = self._batches.get(record.batch)
        if batch is None:
            raise WireError(reason=f"tasks of {record.batch!r}, which was not opened")
        for index, attempt, parts in record.items:  # all of it is good, or nothing is taken
            if not (0 <= index < COUNT_LIMIT and 0 <= attempt < COUNT_LIMIT):
                raise WireError(reason=f"{index} is no task, or {attempt} no attempt")
            for part in parts:
                if type(part) is BlobRef and not part.blob.startswith(f"{batch.id}#{index}/"):
                    raise WireError(reason=f"blob {part.blob!r} is not one of task {batch.id}#{index}")
        batch.again = batch.again or record.again
        admitted = record.again or self._load.admits(len(raw))  # engines may have what is sent again
        new: list[int] = []
        for index, attempt, parts in record.items:
            if any(type(part) is BlobRef for part in parts):
                blobs = self._open_blobs(parts, f"{batch.id}#{index}/", client, common=False)
                self._endings.item_blobs[batch.id, index] = blobs
            if index in batch.ended:
                self._endings.tell_again(batch, index, parts)
            elif index in batch.items:
                self._endings.send_again(batch, index)
            else:
                batch.add(index, parts, record.again, attempt)
                new.append(index)
        if record.again and new:
            self._searches.start(batch.id, new)
        elif not admitted:
            failure = encode_failure(self._load.refusal())
            self._endings.make_up(batch, batch.withdraw(new), failure)
        self._endings.apply_verdict(batch)
        self._changed(batch)

    def withdraw(self, client: Peer, record: Withdraw, raw: bytes) -> None:
        """A client does not want tasks any more."""
        batch = self._batches.get(record.batch)
        if batch is None or client not in batch.owners:
            return
        if record.how not in ("abort", "interrupt"):
            raise WireError(reason=f"{record.how!r} is no way to withdraw a task")
        self._endings.withdraw(batch, record.items or tuple(batch.items), record.how)
        self._changed(batch)

    def seek(self, client: Peer, record: Seek, raw: bytes) -> None:
        """A client asks for the outcomes of tasks that it, or another one, has sent."""
        batch = self._batches.get(record.batch)
        if batch is not None and client not in batch.owners:
            batch.owners.append(client)
        missing: list[int] = []
        for index in record.items:
            if batch is None or not batch.knows(index):
                missing.append(index)
            elif index in batch.ended:
                self._endings.tell_again(batch, index, None)
        if missing:
            self._telling.add_seeker(record.batch, client)
            self._searches.start(record.batch, missing)

    def taken(self, client: Peer, record: Taken, raw: bytes) -> None:
        """A client has outcomes; the engines need not keep them for it."""
        _check_own(client, record.batch)
        batch = self._batches.get(record.batch)
        if batch is None:  # of an earlier controller: whoever has them
            self._dispatcher.send_all(raw)
            self._tell_late_ones(raw)
            return
        self._endings.remember(batch, record.items)
        self._endings.close_blobs(batch, [index for index in record.items if index in batch.ended])
        asked = [index for index in record.items if index in batch.asked]
        for engine, indexes in batch.taken(record.items).items():
            self._dispatcher.send(engine, encode(Taken(batch.id, tuple(indexes), False)))
        if record.last:
            self._close(batch, asked)
        elif asked and self._telling.owners_left(batch):
            self._searches.start(batch.id, asked)

    def client_gone(self, client: Peer) -> None:
        """Nothing can be sent to this peer any more; its client may come back as another one."""
        self._telling.client_gone(client)

    def detach(self, keeper: Peer, id: str) -> None:
        """Tasks of a batch outlive their client: `keeper` hears of it, and engines keep the outcomes."""
        batch = self._batches.get(id)
        if batch is None or (keeper in batch.owners and batch.head.detached):
            return
        if keeper not in batch.owners:
            batch.owners.append(keeper)
        batch.head = replace(batch.head, detached=True)
        batch.raw = encode(batch.head)
        for engine in batch.engines:
            self._dispatcher.send(engine, batch.raw)

    def cancel_client(self, client: str, kept: Callable[[str], Collection[int]] = lambda id: ()) -> None:
        """A client is gone for good, and its tasks with it; but for those that are detached."""
        for batch in [batch for batch in self._batches.values() if batch.client == client]:
            spared = kept(batch.id)
            if spared:
                others = [index for index in batch.items if index not in spared]
                self._endings.withdraw(batch, others, "abort")
                self._changed(batch)
            else:
                self._close(batch)

    # -- from engines -------------------------------------------------------------------

    def engine_ready(self, engine: Engine, peer: Peer) -> None:
        """An engine process is here for the first time in this controller's life."""
        self._dispatcher.engine_ready(engine.id, peer)
        for raw in self._taken:
            peer.session.send(raw)
        self._searches.engine_ready(engine.id)
        ready = self._dispatcher.ready
        self._searches.settle()
        self._dispatcher.dispatch(engine.id if self._dispatcher.ready <= ready else None)

    def engine_free(self, engine: int) -> None:
        """An engine can take tasks (again): its link is back, or its commands are done."""
        self._dispatcher.dispatch(engine)

    def engine_leaves(self, engine: int) -> None:
        """An engine ends soon: what it has not begun is called back."""
        self._dispatcher.call_back(engine)

    def engine_died(self, engine: int, running: str, failure: RemoteFailure) -> None:
        """An engine is gone: its tasks go elsewhere. `running`: id of what ran on it, where that is known."""
        behind = self.status.running(engine) is None
        tasks = self._dispatcher.engine_died(engine)
        self._searches.engine_died(engine)
        self._dependencies.engine_died(engine)
        for batch in self._batches.values():
            batch.engine_gone(engine)
        for place, (batch, index) in reversed(list(enumerate(tasks))):
            if self._batches.get(batch.id) is batch:
                ran = running == f"{batch.id}#{index}" if running else not (place or behind)
                self._endings.engine_died(batch, index, ran, failure)
        self._without({engine})

    def engines_lost(self, engines: Collection[int]) -> None:
        """Engines of an earlier controller did not come: they had no tasks of this one."""
        self._without(engines)
        self.engines_removed()

    def _without(self, engines: Collection[int]) -> None:
        """Nothing can run on these engines any more, and what they knew is lost."""
        for batch in list(self._batches.values()):
            for index in [index for index in batch.asked if batch.ended.get(index) == GONE]:
                self._endings.tell_again(batch, index, batch.asked.pop(index))
            if batch.allowed is not None:
                batch.allowed.difference_update(engines)
                if not batch.allowed and not batch.verdict:
                    reason = "the engine it has to run on is gone"
                    self._endings.fail_all(batch, ImpossibleDependency(reason=reason))
            self._endings.apply_verdict(batch)
            self._dispatcher.changed(batch)
        self._searches.settle()
        self._dispatcher.dispatch_soon()

    def engines_removed(self) -> None:
        """Ids of engines are free: some tasks can run nowhere now."""
        for batch in list(self._batches.values()):
            for index in list(batch.choosy):
                self._endings.end_if_refused(batch, index)
            self._dispatcher.changed(batch)

    def properties_changed(self, engine: int) -> None:
        """What an engine rejected it may take now."""
        for batch in self._batches.values():
            for refusals in batch.refusals.values():
                refusals.discard(engine)
        self._dispatcher.dispatch()

    def outcomes(self, engine: Engine, peer: Peer, record: Outcomes, raw: bytes) -> None:
        """An engine tells of tasks."""
        if record.engine != engine.id:
            raise WireError(reason=f"engine {engine.id} speaks for engine {record.engine}")
        id, batch = record.batch, self._batches.get(record.batch)
        gone: list[TaskKey] = []
        passed: list[End] = []
        ran: list[End] = []
        ready = self._dispatcher.ready
        for end in record.items:
            index, attempt, status, started = end[:4]
            if batch is None and status not in _ANSWERS:
                gone.append((id, index))
            if self._searches.told(id, engine.id, end):
                continue  # decided when all engines have answered
            if batch is None:
                if status in _OUTCOMES:
                    passed.append(end)
            elif batch.handed.get(index) == engine.id and batch.attempts.get(index) == attempt:
                if status in _ANSWERS:
                    continue
                gone.append((id, index))
                if started:
                    ran.append(end)
                if self._endings.attempted(batch, engine.id, end):
                    passed.append(end)
                elif status == "rejected" and batch.rules.wait > 0 and index in batch.choosy:
                    batch.refused.setdefault(index, self._clock.seconds())
            elif index in batch.sought and status == "ok":
                batch.attempts[index] = attempt
                self._endings.attempted(batch, engine.id, end)
                passed.append(end)
            elif index not in batch.items and status in _OUTCOMES:  # asked for again, or by someone else
                batch.asked.pop(index, None)
                passed.append(end)
        if gone:
            self._dispatcher.done(engine.id, gone)
        if ran and batch is not None:
            batch.took(sum([end[4] - end[3] for end in ran]), len(ran))
            self._learn(batch)
            self.ran(engine.id, batch, ran)
        if passed:
            self._telling.outcomes(peer, record, passed, raw)
        self._searches.settle()
        if batch is not None:
            self._endings.apply_verdict(batch)
            self._watch_refused(batch)
            self._dispatcher.changed(batch)
        # What has become ready may be for others: they may have nothing that would make them ask for it.
        self._dispatcher.dispatch(engine.id if self._dispatcher.ready <= ready else None)

    def event(self, event: Event, peer: Peer, raw: bytes) -> None:
        """A task gave out something."""
        id, _, index = event.id.partition("#")
        batch = self._batches.get(id)
        if not (index.isdecimal() and len(index) <= INDEX_DIGITS):
            raise WireError(reason=f"{event.id!r} is no task")
        if batch is not None and event.attempt < batch.attempts.get(int(index), 0):
            return
        self._telling.event(id, event, peer, raw)

    # -- after a controller --------------------------------------------------------------

    def settle(self) -> None:
        """Less is waited for than before."""
        self._searches.settle()
        self._dispatcher.dispatch()

    def return_over(self) -> None:
        """Nobody from before this controller is waited for any more."""
        self._taken.clear()
        self.settle()
        self._endings.judge(self._dependencies.all_waiting())

    # -- inside -------------------------------------------------------------------------

    def _changed(self, batch: Batch) -> None:
        self._dispatcher.changed(batch)
        self._dispatcher.dispatch()

    def _learn(self, batch: Batch) -> None:
        self._means[batch.client, batch.head.label] = batch.mean
        self._means.move_to_end((batch.client, batch.head.label))
        if len(self._means) > MEANS_KEPT:
            self._means.popitem(last=False)

    def _waited(self, batch: Batch) -> None:
        """The time is up that a batch may wait for what its tasks depend on."""
        if batch.blocked:
            self._dependencies.forget(batch)
            reason = "waited for the tasks it depends on"
            self._endings.fail_all(batch, TaskTimeout(reason=reason, timeout=batch.rules.wait))

    def _watch_refused(self, batch: Batch) -> None:
        """Limit the time in which an engine must be found for what others have rejected."""
        wait = batch.rules.wait
        if wait <= 0 or not batch.choosy or ("refused", batch.id) in self._timers:
            return
        now = self._clock.seconds()
        since = min(batch.refused.setdefault(index, now) for index in batch.choosy)
        self._timers.start("refused", batch.id, max(0.0, since + wait - now), self._refused, batch)

    def _refused(self, batch: Batch) -> None:
        now, wait = self._clock.seconds(), batch.rules.wait
        late = [index for index in batch.choosy if batch.refused.setdefault(index, now) + wait <= now]
        reason = "waited for an engine that takes it"
        self._endings.fail_some(batch, late, TaskTimeout(reason=reason, timeout=wait))
        self._dispatcher.changed(batch)
        self._watch_refused(batch)

    def _close(self, batch: Batch, asked: Iterable[int] = ()) -> None:
        """The client wants nothing more of a batch; others may have `asked` for some."""
        del self._batches[batch.id]
        self._timers.stop("wait", batch.id)
        self._timers.stop("refused", batch.id)
        left = {*self._searches.end(batch.id), *batch.items, *batch.asked, *asked}
        self._endings.close(batch)
        if left and self._telling.owners_left(batch):  # other clients: what engines know, they shall hear
            self._searches.start(batch.id, left)
        batch.close()
        if batch.again:
            self._tell_late_ones(encode(Taken(batch.id, (), True)))

    def _tell_late_ones(self, taken: bytes) -> None:
        """Engines that are not back yet may have what is not needed any more."""
        if self._returning():
            self._taken.append(taken)

    def _open_blobs(self, parts: Parts, prefix: str, client: Peer, common: bool = True) -> list[str]:
        return self._blobs.open(parts, prefix, client, (), lambda peer: peer.kind == "engine", common)


def _check_own(client: Peer, id: str) -> None:
    if id.partition("-")[0] != client.key:
        raise WireError(reason=f"batch {id!r} belongs to another client")
