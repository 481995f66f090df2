"""Batches that wait for the ends of other tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ipython1.kernel.controller.batches import GONE, Batch, Rules, TaskKey

#: Ends of tasks that are remembered when their client has the outcome.
ENDS_KEPT = 10_000


class Ended(NamedTuple):
    """How a task ended, and where."""

    ok: bool
    engine: int


class _Wait(NamedTuple):
    """A batch that waits for a task, and what for."""

    batch: Batch
    after: bool
    follow: bool

    def decides(self, end: Ended) -> bool:
        """Whether the end of the task settles the matter, whatever becomes of the others."""
        rules = self.batch.rules
        goes = [_fits(rules, end)] if self.after else []
        if self.follow:
            goes.append(end.ok)
        return not all(goes) if rules.all else any(goes)


class Dependencies:
    """Decides when the rules of batches are met.

    Parameters
    ----------
    find : callable
        The batch with an id, or None.
    returning : callable
        Whether clients of an earlier controller may still tell of tasks.
    engines : callable
        The ids of all engines.
    """

    def __init__(
        self,
        find: Callable[[str], Batch | None],
        returning: Callable[[], bool],
        engines: Callable[[], Iterable[int]],
    ) -> None:
        self._find = find
        self._returning = returning
        self._engines = engines
        self._ends: OrderedDict[TaskKey, Ended] = OrderedDict()
        self._at: dict[int, set[TaskKey]] = {}  # the same, by engine: many may die at once
        self._waiting: dict[TaskKey, dict[str, _Wait]] = {}
        self._left: dict[str, int] = {}  # of each batch that waits: how many tasks it waits for

    def remember(self, key: TaskKey, end: Ended) -> None:
        """The outcome of a task leaves the controller."""
        self._drop_at(key, self._ends.get(key))
        self._ends[key] = end
        self._at.setdefault(end.engine, set()).add(key)
        if len(self._ends) > ENDS_KEPT:
            self._drop_at(*self._ends.popitem(last=False))

    def judge(self, batch: Batch) -> str:
        """Set `batch.blocked` and `batch.allowed` by what is known now; why it can never run, or ''."""
        rules = batch.rules
        told = {(id, index): Ended(ok, engine) for id, index, ok, engine in rules.known}
        after = [self._end(key) or told.get(key) for key in rules.after]
        follow = [self._end(key) or told.get(key) for key in rules.follow]
        self._forget(batch)
        for key, end in zip((*rules.after, *rules.follow), (*after, *follow), strict=True):
            if end is None and not self._known(key) and not self._may_come(key, batch):
                return f"it depends on {_name(key)}, which is not known here"
        met = [None if end is None else _fits(rules, end) for end in after]
        decide = all if rules.all else any
        if met and not decide(fits is not False for fits in met):
            wanted = {"success": "succeed", "failure": "fail", "completion": "end"}[rules.when]
            late = [_name(key) for key, fits in zip(rules.after, met, strict=True) if fits is False]
            return f"{', '.join(late[:3])} did not {wanted}"
        blocked = bool(met) and not decide(fits is True for fits in met)
        if follow:
            failed = [
                key for key, end in zip(rules.follow, follow, strict=True) if end is not None and not end.ok
            ]
            if failed and (rules.all or len(failed) == len(follow)):
                return f"{_name(failed[0])}, which it shall follow, failed"
            known = [{end.engine} for end in follow if end is not None and end.ok]
            blocked = blocked or (len(known) < len(follow) if rules.all else not known)
            if not blocked:
                batch.allowed = set.intersection(*known) if rules.all else set.union(*known)
                if not batch.allowed:
                    return "the tasks it shall follow ran on different engines"
                batch.allowed &= set(self._engines())
                if not batch.allowed:
                    return "the engine it has to run on is gone"
        batch.blocked = blocked
        if blocked:
            awaited = {key for key, end in zip(rules.after, after, strict=True) if end is None}
            followed = {key for key, end in zip(rules.follow, follow, strict=True) if end is None}
            for key in awaited | followed:
                wait = _Wait(batch, key in awaited, key in followed)
                self._waiting.setdefault(key, {})[batch.id] = wait
            self._left[batch.id] = len(awaited | followed)
        return ""

    def engine_died(self, engine: int) -> None:
        """What tasks have left in an engine is gone."""
        for key in self._at.pop(engine, ()):
            self._ends[key] = Ended(self._ends[key].ok, GONE)

    @property
    def any_waiting(self) -> bool:
        """Whether a batch waits for anything."""
        return bool(self._waiting)

    def waiting_for(self, *keys: TaskKey) -> list[Batch]:
        """The batches to judge again, now that these tasks have ended, or will not."""
        found: dict[str, Batch] = {}
        for key in keys if self._waiting else ():
            waits = self._waiting.pop(key, None)
            end = self._end(key) if waits else None
            for id, wait in (waits or {}).items():
                self._left[id] -= 1  # of many, only those that count make it worth to look at all
                if end is None or not self._left[id] or wait.decides(end):
                    found[id] = wait.batch
        return list(found.values())

    def all_waiting(self) -> list[Batch]:
        """Every batch that waits."""
        found: dict[str, Batch] = {}
        for waits in self._waiting.values():
            found.update((id, wait.batch) for id, wait in waits.items())
        return list(found.values())

    def forget(self, batch: Batch) -> None:
        """A batch is over: it waits for nothing."""
        if batch.blocked:
            self._forget(batch)

    def _drop_at(self, key: TaskKey, end: Ended | None) -> None:
        keys = self._at.get(end.engine, set()) if end is not None else set()
        keys.discard(key)
        if end is not None and not keys:
            self._at.pop(end.engine, None)

    def _forget(self, batch: Batch) -> None:
        if self._left.pop(batch.id, None) is None:
            return
        for key in (*batch.rules.after, *batch.rules.follow):
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.pop(batch.id, None)
                if not waiting:
                    del self._waiting[key]

    def _known(self, key: TaskKey) -> bool:
        batch = self._find(key[0])
        return batch is not None and batch.knows(key[1])

    def _may_come(self, key: TaskKey, batch: Batch) -> bool:
        """Whether a task may yet be told of: one of its own the client told of before `batch`."""
        return self._returning() and key[0].partition("-")[0] != batch.client

    def _end(self, key: TaskKey) -> Ended | None:
        id, index = key
        batch = self._find(id)
        if batch is not None and index in batch.ended:
            return Ended(index not in batch.failed, batch.ended[index])
        return self._ends.get(key)


def _fits(rules: Rules, end: Ended) -> bool:
    return rules.when == "completion" or (rules.when == "success") == end.ok


def _name(key: TaskKey) -> str:
    return f"task {key[0]}#{key[1]}"
