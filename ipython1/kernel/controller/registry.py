"""Which engines there are: ids, arrivals, absences, departures.

=============  =============================  =====================================
state          input                          next state
=============  =============================  =====================================
(none)         register                       ready, with the wanted or lowest id
(none)         await_return (old id)          awaited
ready          link lost                      away
away, awaited  register (same id)             ready
away           link back                      ready
ready, away    died, to be replaced           restarting, keeps its id
any            died                           gone, its id is free
restarting     register (same id)             ready
=============  =============================  =====================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ipython1.kernel.controller.queue import EngineQueue
from ipython1.kernel.wire.records import ENGINES_LIMIT

#: Engines that died for good, remembered for clients that wait for engines.
FAILURES_KEPT = 10
#: Past so many engines none is waited for that an earlier controller may have had: a client may tell of any.
AWAITED_LIMIT = 10_000
#: Uuids of dead engines remembered, so that a death is told once.
DEATHS_KEPT = 1000


@dataclass(slots=True)
class Engine:
    """One engine id and the process behind it."""

    id: int
    queue: EngineQueue
    uuid: str = ""
    host: str = ""
    pid: int = 0
    nanny: str = ""
    state: str = "ready"
    since: float = 0.0  # when the state began, wall clock
    restarts: int = 0
    cpu: float = 0.0  # percent
    rss: int = 0  # bytes
    stuck: float = 0.0  # since when it does not react to an interrupt, its nanny's clock; 0: it does
    leaving: bool = False  # it was told to stop
    vouched: bool = True  # whether its nanny knew it when it last told of its engines
    send: Callable[[bytes], None] | None = None
    #: For how many seconds nothing can be heard of it.
    absent: Callable[[], float] = lambda: 0.0
    #: Encoded `Fetch` records that wait for an engine of an earlier controller.
    asked: list[bytes] = field(default_factory=list)

    def may_become(self, nanny: str) -> bool:
        """Whether a new process of this nanny may take over the id."""
        return self.state == "awaited" or (self.state == "restarting" and self.nanny == nanny)

    def away_since(self, now: float) -> float:
        """Since when it is out of reach; 0 where it is not."""
        if self.state in ("away", "awaited"):
            return self.since
        absent = self.absent() if self.state == "ready" else 0.0
        return now - absent if absent else 0.0

    def facts(self) -> dict[str, Any]:
        """What clients may know."""
        return {
            "id": self.id,
            "uuid": self.uuid,
            "host": self.host,
            "pid": self.pid,
            "state": "leaving" if self.leaving and self.state == "ready" else self.state,
            "restarts": self.restarts,
        }


@dataclass
class Registry:
    """The engine table.

    Parameters
    ----------
    now : callable
        Wall-clock time in seconds.
    changed : callable
        Called after each change of the table, with the id of the engine that changed, if it is one.
    """

    now: Callable[[], float]
    changed: Callable[[int | None], None]
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    _engines: dict[int, Engine] = field(default_factory=dict)
    _order: list[Engine] | None = None  # by id; None: to be sorted again
    _by_uuid: dict[str, Engine] = field(default_factory=dict)
    _by_nanny: dict[str, dict[int, Engine]] = field(default_factory=dict)
    _deaths: dict[str, None] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)  # ids of engines that were here
    _expected: set[str] = field(default_factory=set)  # uuids that nannies tell of
    _failure_count: int = 0
    _taken: int = 0  # all ids below are in use

    def __iter__(self) -> Iterator[Engine]:
        if self._order is None:
            self._order = [self._engines[id] for id in sorted(self._engines)]
        return iter(self._order)  # a change makes a new list

    def __len__(self) -> int:
        return len(self._engines)

    def get(self, id: int) -> Engine | None:
        """The engine with this id."""
        return self._engines.get(id)

    def by_uuid(self, uuid: str) -> Engine | None:
        """The engine that is this process."""
        return self._by_uuid.get(uuid)

    def of_nanny(self, nanny: str) -> list[Engine]:
        """The engines that a nanny has started."""
        return list(self._by_nanny.get(nanny, {}).values())

    def is_dead(self, uuid: str) -> bool:
        """Whether the death of this process was told."""
        return uuid in self._deaths

    def await_return(self, id: int) -> Engine | None:
        """The engine with this id; room for it, where it was there before this controller was."""
        if id in self._engines or id in self._seen or not 0 <= id < ENGINES_LIMIT:
            return self._engines.get(id)
        if len(self._engines) >= AWAITED_LIMIT:
            return None
        engine = self._new(id)
        engine.state, engine.since = "awaited", self.now()
        self.changed(id)
        return engine

    def expect(self, uuids: set[str]) -> None:
        """These processes live, and are not here yet."""
        self._expected |= uuids - self._deaths.keys()

    def return_over(self) -> list[Engine]:
        """None that an earlier controller had is waited for any more. Returns those that did not come."""
        self._expected.clear()
        return [engine for engine in self if engine.state == "awaited"]

    @property
    def incomplete(self) -> bool:
        """Whether engines are known of that are not here yet."""
        return bool(self._expected) or any(engine.state == "awaited" for engine in self._engines.values())

    def register(
        self, *, uuid: str, wanted: int, host: str, pid: int, nanny: str, send: Callable[[bytes], None]
    ) -> Engine:
        """An engine process is there, new or again."""
        self._expected.discard(uuid)
        engine = self._by_uuid.get(uuid)
        if engine is None:
            engine = self._engines.get(wanted)
            if engine is None or not engine.may_become(nanny):
                id = wanted if wanted >= 0 and engine is None else self._lowest_free()
                engine = self._new(id)
            engine.uuid, engine.host, engine.pid, engine.nanny = uuid, host, pid, nanny
            self._by_uuid[uuid] = engine
            self._by_nanny.setdefault(nanny, {})[engine.id] = engine
            engine.leaving = False
            self._seen.add(engine.id)
        engine.send = send
        self._set(engine, "ready")
        return engine

    def away(self, engine: Engine) -> None:
        """The engine's link is gone; the engine may come back."""
        if engine.state == "ready":
            self._set(engine, "away")

    def died(self, uuid: str, replaced: bool) -> Engine | None:
        """The process is gone. Returns its engine, the first time this is told."""
        if uuid in self._deaths:
            return None
        self._deaths[uuid] = None
        self._expected.discard(uuid)
        if len(self._deaths) > DEATHS_KEPT:
            del self._deaths[next(iter(self._deaths))]
        engine = self._by_uuid.pop(uuid, None)
        if engine is None:
            return None
        engine.send = None
        engine.cpu, engine.rss, engine.stuck = 0.0, 0, 0.0
        if replaced:
            engine.restarts += 1
            self._set(engine, "restarting")
        else:
            self.remove(engine)
        return engine

    def leaves(self, engine: Engine) -> None:
        """The engine ends soon: it gets no more tasks."""
        engine.leaving = True
        self.changed(engine.id)

    def remove(self, engine: Engine) -> None:
        """The engine id is free again."""
        if self._engines.get(engine.id) is engine:
            del self._engines[engine.id]
            self._order = None
            self._taken = min(self._taken, engine.id)
            self._by_uuid.pop(engine.uuid, None)
            brothers = self._by_nanny.get(engine.nanny, {})
            brothers.pop(engine.id, None)
            if not brothers:
                self._by_nanny.pop(engine.nanny, None)
            self.changed(engine.id)

    def given_up(self, cause: str, output: str) -> None:
        """An engine died, at its start or later, and nothing takes its place."""
        self._failure_count += 1
        self.failures = [*self.failures, (self._failure_count, cause, output)][-FAILURES_KEPT:]
        self.changed(None)

    def _lowest_free(self) -> int:
        while self._taken in self._engines:
            self._taken += 1
        return self._taken

    def _new(self, id: int) -> Engine:
        engine = self._engines[id] = Engine(id, EngineQueue(self.now))
        self._order = None
        return engine

    def _set(self, engine: Engine, state: str) -> None:
        engine.state = state
        engine.since = self.now()
        self.changed(engine.id)
