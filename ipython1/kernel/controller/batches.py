"""One batch of tasks: which of them wait, are with an engine, have ended.

=========  =========================  ==========================================
state      input                      next state, and what happens
=========  =========================  ==========================================
(new)      add                        ready
(new)      seek, engines may have it  sought; nothing is known of it yet
sought     nobody has it              ready
sought     an engine holds it         handed
sought     an engine has run it       ended; its outcome goes to the client
sought     withdraw                   sought; what is decided then ends or stops it
ready      take                       handed, as the next attempt
ready      withdraw                   ended, with `TaskAborted`
handed     ok                         ended; its outcome goes to the client
handed     error, retries are left    ready
handed     error                      ended; its outcome goes to the client
handed     rejected                   ready for the other engines
handed     withdraw                   handed; its engine is told, and it is not tried again
handed     back                       ready, before the others
handed     its engine died            ready; ended the third time it ran there
ended      lost with its engine       ready
ended      taken                      gone
=========  =========================  ==========================================
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ipython1.kernel.controller.load import OVERHEAD, Load
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.error import WireError
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import unpack_map
from ipython1.kernel.wire.records import Item, Parts

#: Deaths of engines under one task that end it.
DEATHS_LIMIT = 3
#: Bytes of arguments handed over in one record.
HAND_BYTES = 256 * 1024
#: Instead of the engine that has an outcome: the controller made it up, or the engine died since.
NOWHERE, GONE = -1, -2
#: Seconds that tasks take at least, for the mean.
SHORTEST = 1e-6
#: Seconds that a batch may wait, at most: what a timer can do.
WAIT_MOST = 1_000_000
#: How much the length of the newest task weighs in the mean.
MEAN_WEIGHT = 0.3

TaskKey = tuple[str, int]
_WHEN = frozenset({"success", "failure", "completion"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a client wants of the controller for a batch."""

    retries: int = 0
    priority: int = 0
    after: tuple[TaskKey, ...] = ()
    follow: tuple[TaskKey, ...] = ()
    all: bool = True
    when: str = "success"
    wait: float = 0.0  # seconds; 0: no limit
    #: What the client knows of these tasks: [batch, index, ok, engine].
    known: tuple[tuple[str, int, bool, int], ...] = ()

    @classmethod
    def unpack(cls, raw: bytes) -> Rules:
        """The rules in a msgpack map, each checked."""
        given = unpack_map(raw)
        rules = cls(**{name: given[name] for name in cls.__slots__ if name in given})
        numbers = type(rules.retries) is type(rules.priority) is int and type(rules.all) is bool
        waits = type(rules.wait) in (int, float) and 0 <= rules.wait <= WAIT_MOST
        if not numbers or not waits or type(rules.when) is not str or rules.when not in _WHEN:
            raise WireError(reason="rules of a batch are of the wrong type")
        for key in (*_array(rules.after), *_array(rules.follow)):
            if type(key) is not tuple or tuple(map(type, key)) != (str, int):
                raise WireError(reason="a task is named by [batch, index]")
        for end in _array(rules.known):
            if type(end) is not tuple or tuple(map(type, end)) != (str, int, bool, int):
                raise WireError(reason="the end of a task is [batch, index, ok, engine]")
        return rules


def _array(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise WireError(reason="expected an array of tasks")
    return value


@dataclass(slots=True, eq=False)
class Batch:
    """The tasks of one batch. `number` tells which batch came first."""

    head: records.Batch
    raw: bytes  # the head as it came
    rules: Rules
    number: int
    owners: list[Peer]
    #: Arguments of the tasks that have not ended.
    items: dict[int, Parts] = field(default_factory=dict)
    ready: OrderedDict[int, None] = field(default_factory=OrderedDict)
    #: Ready as well, but not everywhere: see `refusals`.
    choosy: dict[int, None] = field(default_factory=dict)
    #: The engines that rejected a task.
    refusals: dict[int, set[int]] = field(default_factory=dict)
    #: When the first one did, controller's clock; only where the rules limit the time for that.
    refused: dict[int, float] = field(default_factory=dict)
    sought: set[int] = field(default_factory=set)
    handed: dict[int, int] = field(default_factory=dict)  # to which engine
    attempts: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)  # on which engine
    failed: set[int] = field(default_factory=set)  # of the ended
    #: Outcomes that no engine knows, by index: an encoded failure.
    made_up: dict[int, bytes] = field(default_factory=dict)
    #: Ended ones whose outcomes an engine was asked for again; with their arguments, where
    #: they are to run again if the outcome is lost.
    asked: dict[int, Parts | None] = field(default_factory=dict)
    #: Engines that have the head.
    engines: set[int] = field(default_factory=set)
    #: Engines it may run on; None: all.
    allowed: set[int] | None = None
    #: Waits for what its rules ask.
    blocked: bool = False
    #: Engines may know of it from an earlier controller.
    again: bool = False
    #: Why none of its tasks can run, encoded.
    verdict: bytes = b""
    #: Mean length of its tasks in seconds; 0: not known.
    mean: float = 0.0
    #: Where its items count.
    load: Load = field(default_factory=Load)
    blobs: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Id of the batch."""
        return self.head.id

    @property
    def client(self) -> str:
        """Id of the client that sent it."""
        return self.head.id.partition("-")[0]

    @property
    def priority(self) -> int:
        """Higher goes first."""
        return self.rules.priority

    @property
    def waiting(self) -> int:
        """Tasks that could be handed to some engine."""
        return 0 if self.blocked else len(self.ready) + len(self.choosy)

    def knows(self, index: int) -> bool:
        """Whether a task is here, ended or not."""
        return index in self.items or index in self.ended

    def add(self, index: int, parts: Parts, sought: bool = False, attempt: int = 0) -> None:
        """A new task; `attempt`: the last one that its client knows of."""
        self.items[index] = parts
        self.load.used += _weight(parts)
        if attempt:
            self.attempts[index] = attempt
        if sought:
            self.sought.add(index)
        else:
            self.ready[index] = None

    def nobody_has(self, index: int) -> None:
        """No engine knows a task that was sought."""
        if index in self.sought:
            self.sought.discard(index)
            self.ready[index] = None

    def admits(self, engine: int) -> bool:
        """Whether a task is ready for this engine."""
        if self.blocked or not self.could_run(engine):
            return False
        return bool(self.ready) or any(engine not in self.refusals[index] for index in self.choosy)

    def could_run(self, engine: int, index: int = -1) -> bool:
        """Whether its tasks may run on this engine; of task `index`, whether that one may."""
        allowed = self.allowed is None or engine in self.allowed
        return allowed and engine not in self.refusals.get(index, ())

    def take(self, engine: int, count: int) -> list[Item]:
        """Hand over up to `count` tasks, as their next attempts."""
        taken: list[Item] = []
        size = 0
        attempts, handed, items, ready = self.attempts, self.handed, self.items, self.ready
        while len(taken) < count and size < HAND_BYTES:
            if ready:
                index, _ = ready.popitem(last=False)
            else:
                found = next((i for i in self.choosy if engine not in self.refusals[i]), None)
                if found is None:
                    break
                index = found
                del self.choosy[index]
            attempt = attempts[index] = attempts.get(index, 0) + 1
            handed[index] = engine
            parts = items[index]
            for part in parts:
                size += len(part)
            taken.append((index, attempt, parts))
        return taken

    def adopt(self, index: int, engine: int, attempt: int) -> None:
        """An engine holds a task that was sought."""
        self.sought.discard(index)
        self.handed[index] = engine
        self.attempts[index] = attempt

    def back(self, index: int) -> None:
        """A task that an engine was handed shall run again, or for the first time."""
        if self.handed.pop(index, None) is None:
            return
        if index in self.refusals:
            self.choosy[index] = None
        else:
            self.ready[index] = None
            self.ready.move_to_end(index, last=False)

    def fails(self, index: int) -> bool:
        """An attempt at a task failed. Whether it gets another one."""
        failures = self.failures[index] = self.failures.get(index, 0) + 1
        if failures > self.rules.retries:
            return False
        self.back(index)
        return True

    def rejected(self, index: int, engine: int) -> set[int]:
        """An engine does not run a task. Returns those that have said so."""
        refusals = self.refusals.setdefault(index, set())
        refusals.add(engine)
        self.back(index)
        return refusals

    def engine_died(self, index: int, running: bool) -> bool:
        """The engine that had a task is gone. Whether the task may run again."""
        self.sought.discard(index)
        if running:
            self.deaths[index] = self.deaths.get(index, 0) + 1
            if self.deaths[index] >= DEATHS_LIMIT:
                return False
        self.back(index)
        return True

    def end(self, index: int, engine: int, ok: bool) -> bool:
        """A task has ended; False where it had before, or is none."""
        parts = self.items.pop(index, None)
        if parts is None:
            return False
        self.load.used -= _weight(parts)
        self.handed.pop(index, None)
        self.sought.discard(index)
        for notes in (self.failures, self.refusals, self.refused, self.choosy):
            if notes:
                notes.pop(index, None)
        self.ended[index] = engine
        if not ok:
            self.failed.add(index)
        return True

    def lost(self, index: int, parts: Parts) -> bool:
        """The outcome of an ended task is gone with its engine. Whether it may run again."""
        self.ended.pop(index, None)
        self.failed.discard(index)
        self.deaths[index] = self.deaths.get(index, 0) + 1
        self.items[index] = parts
        self.load.used += _weight(parts)
        if self.deaths[index] >= DEATHS_LIMIT:
            return False
        self.ready[index] = None
        return True

    def withdraw(self, indexes: Iterable[int] | None = None) -> list[int]:
        """Take out the ready ones among `indexes` (None: all); they are to be ended."""
        wanted = [*self.ready, *self.choosy] if indexes is None else indexes
        chosen = [index for index in wanted if index in self.ready or index in self.choosy]
        for index in chosen:
            self.ready.pop(index, None)
            self.choosy.pop(index, None)
        return chosen

    def taken(self, indexes: Iterable[int]) -> dict[int, list[int]]:
        """The client has these outcomes. Returns the engines that can forget them."""
        by_engine: dict[int, list[int]] = {}
        for index in indexes:
            engine = self.ended.pop(index, None)
            if engine is not None:
                by_engine.setdefault(engine, []).append(index)
                self.attempts.pop(index, None)
                self.deaths.pop(index, None)
                self.failed.discard(index)
                self.made_up.pop(index, None)
                self.asked.pop(index, None)
        return by_engine

    def close(self) -> None:
        """It is over."""
        self.load.used -= sum(map(_weight, self.items.values()))
        self.items.clear()

    def engine_gone(self, engine: int) -> None:
        """What an engine knew of these tasks is lost."""
        self.engines.discard(engine)
        for refusals in self.refusals.values():
            refusals.discard(engine)
        for index in [index for index, where in self.ended.items() if where == engine]:
            self.ended[index] = GONE

    def took(self, seconds: float, count: int) -> None:
        """So many tasks ran so long, all together. (The first one of an engine loads the function, too.)"""
        seconds = max(seconds, SHORTEST)  # clocks may be set back
        weight = 1 - (1 - MEAN_WEIGHT) ** count if self.mean else 1.0
        self.mean += weight * (seconds / count - self.mean)


def _weight(parts: Parts) -> int:
    """What a task takes of memory, about."""
    return OVERHEAD + sum([len(part) for part in parts])
