"""The task book: which tasks there are, and what becomes of them.

Records and the clock drive it; it does no I/O. The states of a task stand in
`batches`. Which goes next, and where, is the matter of `dispatch`.

Soft state: clients send what is unresolved to a new controller, which asks the
engines (`seeking`) before it lets anything run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ipython1.kernel.controller.batches import GONE, NOWHERE, Batch, Rules, TaskKey
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.dependencies import Dependencies, Ended
from ipython1.kernel.controller.dispatch import Dispatcher
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.seeking import Search
from ipython1.kernel.error import ImpossibleDependency, RemoteFailure, TaskTimeout, WireError, own_failure
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import encode, encode_failure
from ipython1.kernel.wire.records import (
    ENGINES_LIMIT,
    BlobRef,
    End,
    Event,
    Outcomes,
    Parts,
    Seek,
    Taken,
    Withdraw,
    Work,
)

#: Outcomes in one record that the controller makes up.
OUTCOMES_COUNT = 1000
_FINAL = frozenset({"ok", "error"})
_ANSWERS = frozenset({"held", "unknown"})
_ABORTED = encode_failure(own_failure("TaskAborted"))


class TaskBook:
    """All tasks of all clients.

    Parameters
    ----------
    clock : IReactorTime
    registry : Registry
        The engines.
    dispatcher : Dispatcher
        Hands tasks to engines.
    blobs : BlobRoutes
        The ways of bulk bytes through the controller.
    returning : callable
        Whether engines and clients of an earlier controller may still come.
    """

    def __init__(
        self,
        clock: Any,
        registry: Registry,
        dispatcher: Dispatcher,
        blobs: BlobRoutes,
        returning: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._dispatcher = dispatcher
        self._blobs = blobs
        self._returning = returning
        self._numbers = itertools.count()
        self._batches: dict[str, Batch] = {}
        self._dependencies = Dependencies(self._batches.get, returning)
        self._searches: dict[str, Search] = {}
        self._seekers: dict[str, list[Peer]] = {}  # who asks for tasks that are not here
        self._unwanted: set[TaskKey] = set()  # withdrawn, and with an engine
        self._timers: dict[str, Any] = {}  # of batches that do not wait for ever
        self._item_blobs: dict[TaskKey, list[str]] = {}

    def stop(self) -> None:
        """End the timers."""
        self._dispatcher.stop()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- from clients ------------------------------------------------------------------

    def batch(self, client: Peer, record: records.Batch, raw: bytes) -> None:
        """A batch is opened, or its client is back."""
        _check_own(client, record.id)
        batch = self._batches.get(record.id)
        if batch is not None:
            if client not in batch.owners:
                batch.owners.append(client)
            return
        batch = Batch(record, raw, Rules.unpack(record.rules), next(self._numbers), [client])
        batch.blobs = self._open_blobs(record.parts, f"{batch.id}/", client)
        self._batches[batch.id] = batch
        self._judge([batch])
        if batch.rules.wait > 0:
            self._timers[batch.id] = self._clock.callLater(batch.rules.wait, self._waited, batch)

    def work(self, client: Peer, record: Work, raw: bytes) -> None:
        """More tasks of a batch."""
        _check_own(client, record.batch)
        batch = self._batches.get(record.batch)
        if batch is None:
            raise WireError(reason=f"tasks of {record.batch!r}, which was not opened")
        new: list[int] = []
        for index, _, parts in record.items:
            if index in batch.ended:
                self._tell_again(batch, index, parts)
            elif index not in batch.items:
                if any(type(part) is BlobRef for part in parts):
                    blobs = self._open_blobs(parts, f"{batch.id}#{index}/", client)
                    self._item_blobs[batch.id, index] = blobs
                batch.add(index, parts, record.again)
                new.append(index)
        if batch.verdict:
            self._make_up(batch, new, batch.verdict)
        elif record.again and new:
            self._search(batch.id, new)
        self._changed(batch)

    def withdraw(self, client: Peer, record: Withdraw, raw: bytes) -> None:
        """A client does not want tasks any more."""
        batch = self._batches.get(record.batch)
        if batch is None or client not in batch.owners:
            return
        if record.how not in ("abort", "interrupt"):
            raise WireError(reason=f"{record.how!r} is no way to withdraw a task")
        self._make_up(batch, batch.withdraw(record.items), _ABORTED)
        wanted = set(record.items) or batch.items.keys()
        self._unwanted.update((batch.id, index) for index in batch.sought if index in wanted)
        self._withdraw_handed(batch, [index for index in batch.handed if index in wanted], record.how)
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
                self._tell_again(batch, index, None)
        if missing:
            seekers = self._seekers.setdefault(record.batch, [])
            if client not in seekers:
                seekers.append(client)
            self._search(record.batch, missing)

    def taken(self, client: Peer, record: Taken, raw: bytes) -> None:
        """A client has outcomes; the engines need not keep them for it."""
        _check_own(client, record.batch)
        batch = self._batches.get(record.batch)
        if batch is None:  # of an earlier controller: whoever has them
            self._dispatcher.send_all(raw)
            return
        self._remember_ends(batch, record.items)
        for engine, indexes in batch.taken(record.items).items():
            self._dispatcher.send(engine, encode(Taken(batch.id, tuple(indexes), False)))
        if record.last:
            self._close(batch)

    def client_gone(self, client: Peer) -> None:
        """Nothing can be sent to this peer any more; its client may come back as another one."""
        for batch in self._batches.values():
            if client in batch.owners:
                batch.owners.remove(client)
        for id, seekers in list(self._seekers.items()):
            if client in seekers:
                seekers.remove(client)
                if not seekers:
                    del self._seekers[id]

    def cancel_client(self, client: str) -> None:
        """A client is gone for good, and its tasks with it."""
        for batch in [batch for batch in self._batches.values() if batch.client == client]:
            self._close(batch)

    # -- from engines -------------------------------------------------------------------

    def engine_ready(self, engine: Engine, peer: Peer) -> None:
        """An engine process is here for the first time in this controller's life."""
        self._dispatcher.engine_ready(engine.id, peer)
        for search in self._searches.values():
            for question in search.ask(engine.id):
                peer.send(question)
        self.settle()
        self._dispatcher.dispatch()

    def engine_free(self) -> None:
        """An engine can take tasks (again): its link is back, or its commands are done."""
        self._dispatcher.dispatch()

    def engine_died(self, engine: int, running: str, failure: RemoteFailure) -> None:
        """An engine is gone: its tasks go elsewhere. `running`: id of what ran on it, where that is known."""
        tasks = self._dispatcher.engine_died(engine)
        for search in self._searches.values():
            search.gone(engine)
        changed: dict[str, Batch] = {}
        for place, (batch, index) in reversed(list(enumerate(tasks))):
            if self._batches.get(batch.id) is not batch:
                continue
            changed[batch.id] = batch
            ran = running == f"{batch.id}#{index}" if running else place == 0
            if (batch.id, index) in self._unwanted:
                self._make_up(batch, [index], _ABORTED)
            elif not batch.engine_died(index, ran):
                self._make_up(batch, [index], encode_failure(failure))
        for batch in self._batches.values():
            batch.engine_gone(engine)
        for batch in changed.values():
            self._dispatcher.changed(batch)
        self.settle()
        self._dispatcher.dispatch()

    def engine_removed(self, engine: int) -> None:
        """An engine id is free: some tasks can run nowhere now."""
        for batch in list(self._batches.values()):
            if batch.allowed == {engine}:
                self._fail_all(batch, ImpossibleDependency(reason="the engine it has to run on is gone"))
            elif batch.allowed is not None:
                batch.allowed.discard(engine)
            for index in list(batch.choosy):
                self._end_if_refused(batch, index, None)
            self._changed(batch)

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
        id = record.batch
        batch, search = self._batches.get(id), self._searches.get(id)
        gone: list[TaskKey] = []
        passed: list[End] = []
        seconds = 0.0
        for end in record.items:
            index, attempt, status, started, completed = end[:5]
            if search is not None and search.told(engine.id, end) and status != "ok":
                continue  # decided when all engines have answered
            if batch is None:
                gone.append((id, index))
                passed.append(end)
            elif batch.handed.get(index) == engine.id and batch.attempts.get(index) == attempt:
                if status in _ANSWERS:
                    continue
                gone.append((id, index))
                seconds += completed - started
                if self._take(batch, engine.id, end):
                    passed.append(end)
            elif index in batch.sought and status == "ok":
                batch.attempts[index] = attempt
                self._take(batch, engine.id, end)
                passed.append(end)
            elif index not in batch.items:  # it was asked for again, or by someone else
                passed.append(end)
        if gone:
            self._dispatcher.done(engine.id, gone)
            if batch is not None:
                batch.took(seconds / len(gone))
        if passed:
            self._pass_on(id, batch, peer, record, passed, raw)
        self.settle()
        if batch is not None:
            self._dispatcher.changed(batch)
        self._dispatcher.dispatch(engine.id)

    def event(self, event: Event, peer: Peer, raw: bytes) -> None:
        """A task gave out something."""
        id, _, index = event.id.partition("#")
        batch = self._batches.get(id)
        if batch is not None and index.isdecimal() and event.attempt < batch.attempts.get(int(index), 0):
            return
        owners = self._listeners(id, batch)
        self._blobs.open(event.parts, f"{event.id}/", peer, owners)
        for owner in owners:
            owner.post(raw)

    # -- after a controller --------------------------------------------------------------

    def settle(self) -> None:
        """Conclude the searches that all engines have answered, if no more engines come."""
        if self._searches and not (self._returning() and self._registry.incomplete):
            for search in [search for search in self._searches.values() if search.answered]:
                self._conclude(search)

    def return_over(self) -> None:
        """Nobody from before this controller is waited for any more."""
        self.settle()
        self._judge(self._dependencies.all_waiting())

    # -- looking ------------------------------------------------------------------------

    def running(self, engine: int) -> tuple[str, float] | None:
        """What an engine does for a task: its label, and since when (clock's seconds)."""
        hand = self._dispatcher.hand(engine)
        first = hand.first if hand is not None else None
        if hand is None or first is None:
            return None
        batch, index = first
        return batch.head.label or f"task {batch.id}#{index}", hand.since

    def count(self, engine: int) -> int:
        """How many tasks an engine has."""
        return len(self._dispatcher.hand(engine) or ())

    def counts(self) -> dict[str, int]:
        """How many tasks are in which state."""
        counts = dict.fromkeys(("blocked", "ready", "handed", "ended"), 0)
        for batch in self._batches.values():
            counts["blocked" if batch.blocked else "ready"] += len(batch.items) - len(batch.handed)
            counts["handed"] += len(batch.handed)
            counts["ended"] += len(batch.ended)
        return counts

    def ids(self, limit: int) -> dict[str, list[str]]:
        """The ids of the tasks in each state, up to `limit` each."""
        found: dict[str, list[str]] = {"blocked": [], "ready": [], "handed": [], "ended": []}
        for batch in self._batches.values():
            waiting = (index for index in batch.items if index not in batch.handed)
            for state, indexes in (
                ("blocked" if batch.blocked else "ready", waiting),
                ("handed", batch.handed),
                ("ended", batch.ended),
            ):
                names = (f"{batch.id}#{index}" for index in indexes)
                found[state] += itertools.islice(names, limit - len(found[state]))
        return found

    # -- inside: ends -------------------------------------------------------------------

    def _take(self, batch: Batch, engine: int, end: End) -> bool:
        """Note the end of an attempt. Whether the client is to hear of it."""
        index, _, status, started = end[:4]
        unwanted = bool(self._unwanted) and (batch.id, index) in self._unwanted
        if status == "back":
            batch.back(index)
            if unwanted:
                batch.withdraw([index])
                self._make_up(batch, [index], _ABORTED)
            return False
        if status == "rejected":
            batch.rejected(index, engine)
            self._end_if_refused(batch, index, end[6])
            return False
        if status == "error" and started and not unwanted and batch.fails(index):
            self._dispatcher.send(engine, encode(Taken(batch.id, (index,), False)))
            return False
        self._end(batch, index, engine, status == "ok")
        return True

    def _end(self, batch: Batch, index: int, engine: int, ok: bool) -> None:
        batch.end(index, engine, ok)
        if self._unwanted:
            self._unwanted.discard((batch.id, index))
        if self._item_blobs:
            self._blobs.close(self._item_blobs.pop((batch.id, index), ()))
        if self._dependencies.any_waiting:
            self._judge(self._dependencies.waiting_for((batch.id, index)))

    def _make_up(self, batch: Batch, indexes: Sequence[int], failure: bytes) -> None:
        """End tasks that no engine has, with an encoded failure."""
        for index in indexes:
            batch.made_up[index] = failure
            self._end(batch, index, NOWHERE, False)
        for start in range(0, len(indexes), OUTCOMES_COUNT):
            self._tell_made_up(batch, indexes[start : start + OUTCOMES_COUNT])

    def _tell_made_up(self, batch: Batch, indexes: Iterable[int]) -> None:
        now = self._registry.now()
        ends = tuple((index, 0, "error", 0.0, now, 0, (batch.made_up[index],)) for index in indexes)
        raw = encode(Outcomes(batch.id, NOWHERE, ends))
        for owner in self._listeners(batch.id, batch):
            owner.post(raw)

    def _fail_all(self, batch: Batch, error: Exception) -> None:
        """None of the tasks of a batch can run, now or later."""
        failure = encode_failure(RemoteFailure(type(error).__name__, str(error)))
        batch.verdict, batch.blocked = failure, False
        self._make_up(batch, batch.withdraw(()), failure)
        self._dispatcher.changed(batch)

    def _end_if_refused(self, batch: Batch, index: int, parts: Parts | None) -> None:
        """End a task that every engine has rejected, unless it may wait for a better one."""
        able = {engine.id for engine in self._registry if batch.could_run(engine.id)}
        if batch.rules.wait or not able <= batch.refusals.get(index, set()):
            return
        failure = own_failure("TaskRejected") if not parts else None
        batch.withdraw([index])
        self._make_up(batch, [index], encode_failure(failure) if failure else bytes(parts[0]))  # type: ignore[index,arg-type]

    def _waited(self, batch: Batch) -> None:
        """The time is up that a batch may wait for what its tasks depend on."""
        del self._timers[batch.id]
        wait = batch.rules.wait
        if batch.blocked:
            self._dependencies.forget(batch)
            self._fail_all(batch, TaskTimeout(reason="waited for the tasks it depends on", timeout=wait))
        elif batch.choosy:
            error = TaskTimeout(reason="waited for an engine that takes it", timeout=wait)
            failure = encode_failure(RemoteFailure(type(error).__name__, str(error)))
            self._make_up(batch, batch.withdraw(list(batch.choosy)), failure)
        self._changed(batch)

    def _tell_again(self, batch: Batch, index: int, parts: Parts | None) -> None:
        """Tell an outcome again; with `parts`, run the task again where it is lost."""
        engine = batch.ended[index]
        if index in batch.made_up:
            self._tell_made_up(batch, [index])
        elif engine != GONE:
            self._dispatcher.send(engine, encode(Seek(batch.id, (index,))))
        elif parts is None:
            self._tell_unknown(batch.id, [index])
        elif not batch.lost(index, parts):
            died = RemoteFailure("EngineDied", "engines died with the result of this task")
            self._make_up(batch, [index], encode_failure(died))

    def _tell_unknown(self, id: str, indexes: Iterable[int]) -> None:
        ends = tuple((index, 0, "unknown", 0.0, 0.0, 0, ()) for index in indexes)
        raw = encode(Outcomes(id, NOWHERE, ends))
        for owner in self._listeners(id, self._batches.get(id)):
            owner.post(raw)

    def _listeners(self, id: str, batch: Batch | None) -> list[Peer]:
        owners = batch.owners if batch is not None else []
        seekers = self._seekers.get(id, ())
        return [*owners, *(peer for peer in seekers if peer not in owners)]

    def _pass_on(
        self, id: str, batch: Batch | None, peer: Peer, record: Outcomes, ends: list[End], raw: bytes
    ) -> None:
        """To all who wait for them; as they came, where all of them are passed on."""
        owners = self._listeners(id, batch)
        for end in ends:
            if any(type(part) is BlobRef for part in end[6]):
                self._blobs.open(end[6], f"{id}#{end[0]}/", peer, owners)
        if len(ends) < len(record.items):
            raw = encode(Outcomes(id, record.engine, tuple(ends)))
        for owner in owners:
            owner.post(raw)

    # -- inside: batches -------------------------------------------------------------------

    def _changed(self, batch: Batch) -> None:
        self._dispatcher.changed(batch)
        self._dispatcher.dispatch()

    def _judge(self, batches: Iterable[Batch]) -> None:
        """Look whether what batches depend on is there, or impossible."""
        for batch in batches:
            reason = self._dependencies.judge(batch)
            if reason:
                self._fail_all(batch, ImpossibleDependency(reason=reason))
            self._dispatcher.changed(batch)

    def _withdraw_handed(self, batch: Batch, indexes: Iterable[int], how: str) -> None:
        by_engine: dict[int, list[int]] = {}
        for index in indexes:
            by_engine.setdefault(batch.handed[index], []).append(index)
            self._unwanted.add((batch.id, index))
        for engine, with_it in by_engine.items():
            self._dispatcher.send(engine, encode(Withdraw(batch.id, tuple(with_it), how)))

    def _remember_ends(self, batch: Batch, indexes: Iterable[int]) -> None:
        for index in indexes:
            if index in batch.ended:
                self._dependencies.remember(
                    (batch.id, index), Ended(index not in batch.failed, batch.ended[index])
                )

    def _close(self, batch: Batch) -> None:
        """Nobody wants anything more of a batch."""
        del self._batches[batch.id]
        self._remember_ends(batch, batch.ended)
        waiting = self._dependencies.waiting_for(*((batch.id, index) for index in batch.items))
        self._dependencies.forget(batch)
        timer = self._timers.pop(batch.id, None)
        if timer is not None:
            timer.cancel()
        self._searches.pop(batch.id, None)
        self._withdraw_handed(batch, list(batch.handed), "abort")
        batch.withdraw(())
        self._dispatcher.changed(batch)
        self._unwanted.difference_update([(batch.id, index) for index in batch.items])
        over = encode(Taken(batch.id, tuple(batch.ended)[:ENGINES_LIMIT], True))
        for engine in batch.engines:
            self._dispatcher.send(engine, over)
        self._blobs.close(batch.blobs)
        for index in batch.items if self._item_blobs else ():
            self._blobs.close(self._item_blobs.pop((batch.id, index), ()))
        self._judge(waiting)

    def _open_blobs(self, parts: Parts, prefix: str, client: Peer) -> list[str]:
        return self._blobs.open(parts, prefix, client, (), lambda peer: peer.kind == "engine")

    # -- inside: seeking -----------------------------------------------------------------------

    def _search(self, id: str, indexes: Iterable[int]) -> None:
        search = self._searches.setdefault(id, Search(id))
        for engine, question in search.add(indexes, self._dispatcher.engines):
            self._dispatcher.send(engine, encode(question))
        self.settle()

    def _conclude(self, search: Search) -> None:
        """What the engines know of tasks is known: let the others run."""
        id = search.batch
        del self._searches[id]
        batch = self._batches.get(id)
        unknown: list[int] = []
        awaited = False
        for index in search.indexes:
            best = search.best.get(index)
            if batch is None or index not in batch.sought:
                if best is None:
                    unknown.append(index)
                elif best.end[2] in _ANSWERS:
                    awaited = True
                elif best.end[2] != "ok":  # those that went well were passed on as they came
                    self._pass_best(id, batch, best.engine, best.end)
            elif best is None:
                batch.nobody_has(index)
                if (id, index) in self._unwanted:
                    batch.withdraw([index])
                    self._make_up(batch, [index], _ABORTED)
            else:
                batch.adopt(index, best.engine, best.attempt)
                if best.end[2] in _ANSWERS:
                    self._dispatcher.adopt(best.engine, batch, index)
                    if (id, index) in self._unwanted:
                        self._withdraw_handed(batch, [index], "interrupt")
                elif self._take(batch, best.engine, best.end):
                    self._pass_best(id, batch, best.engine, best.end)
        if unknown:
            self._tell_unknown(id, unknown)
        if not awaited:
            self._seekers.pop(id, None)
        if batch is not None:
            self._changed(batch)

    def _pass_best(self, id: str, batch: Batch | None, engine: int, end: End) -> None:
        peer = self._dispatcher.peer(engine)
        if peer is not None:
            record = Outcomes(id, engine, (end,))
            self._pass_on(id, batch, peer, record, [end], encode(record))


def _check_own(client: Peer, id: str) -> None:
    if id.partition("-")[0] != client.key:
        raise WireError(reason=f"batch {id!r} belongs to another client")
