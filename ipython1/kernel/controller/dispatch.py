"""Hands tasks to engines, and calls them back where another engine has nothing to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipython1.kernel.controller.batches import Batch, TaskKey
from ipython1.kernel.controller.hands import Hand
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.interfaces import IScheduler
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import Withdraw, Work

#: Seconds between looks at tasks behind a long one, while an engine has nothing to do.
REBALANCE_DELAY = 0.02


class Dispatcher:
    """Keeps the engines busy with what is ready.

    Engines without commands come first. Where these have enough, one that has
    commands gets a task behind them, one at a time, so that neither waits for
    ever for the other.

    Parameters
    ----------
    clock : IReactorTime
    registry : Registry
        The engines.
    scheduler : IScheduler
        Says what goes first, and where.
    """

    def __init__(self, clock: Any, registry: Registry, scheduler: IScheduler) -> None:
        self._clock = clock
        self._registry = registry
        self._scheduler = scheduler
        self._hands: dict[int, Hand] = {}
        self._peers: dict[int, Peer] = {}
        self._waiting: dict[str, int] = {}  # batch -> tasks ready, where there are any
        self._ready = 0
        self._handed = 0
        self._rebalance_call: Any = None
        self._look = False  # once more, when that is due
        self._dispatch_call: Any = None

    def stop(self) -> None:
        """End the timers."""
        for call in (self._rebalance_call, self._dispatch_call):
            if call is not None:
                call.cancel()
        self._rebalance_call = self._dispatch_call = None

    # -- engines ------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """How many tasks could be handed to some engine."""
        return self._ready

    @property
    def engines(self) -> Iterable[int]:
        """Ids of the engines that can be asked."""
        return self._peers.keys()

    def send(self, engine: int, raw: bytes) -> None:
        """Send a record to an engine, if it is there."""
        peer = self._peers.get(engine)
        if peer is not None:
            peer.session.send(raw)

    def send_all(self, raw: bytes) -> None:
        """Send a record to every engine."""
        for peer in self._peers.values():
            peer.session.send(raw)

    def engine_ready(self, engine: int, peer: Peer) -> None:
        """A process is there for an engine id."""
        self._peers[engine] = peer
        self._hands[engine] = Hand()

    def engine_died(self, engine: int) -> list[tuple[Batch, int]]:
        """An engine is gone. Returns what it had, in order."""
        self._peers.pop(engine, None)
        hand = self._hands.pop(engine, None)
        tasks = hand.drain() if hand is not None else []
        self._handed -= len(tasks)
        return tasks

    def peer(self, engine: int) -> Peer | None:
        """The other end of an engine's session."""
        return self._peers.get(engine)

    def hand(self, engine: int) -> Hand | None:
        """What an engine has."""
        return self._hands.get(engine)

    # -- tasks ---------------------------------------------------------------------------

    def adopt(self, engine: int, batch: Batch, index: int) -> None:
        """An engine has a task that this controller did not hand over."""
        self._hands[engine].add(batch, (index,), self._clock.seconds())
        self._handed += 1

    def done(self, engine: int, keys: Iterable[TaskKey]) -> None:
        """An engine has these tasks no longer."""
        hand = self._hands[engine]
        before = len(hand)
        hand.remove(keys, self._clock.seconds())
        self._handed += len(hand) - before

    def changed(self, batch: Batch) -> None:
        """More or fewer tasks of a batch may be ready than before."""
        waiting, before = batch.waiting, self._waiting.get(batch.id, 0)
        if waiting == before:
            return
        self._ready += waiting - before
        if waiting:
            self._waiting[batch.id] = waiting
            self._scheduler.add(batch)
        else:
            del self._waiting[batch.id]
            self._scheduler.remove(batch)

    # -- handing over ----------------------------------------------------------------------

    def dispatch(self, engine: int | None = None) -> None:
        """Hand over what there is room for: to one engine, or to all."""
        if self._ready:
            ids = [engine] if engine is not None else self._free()
            while ids and self._ready:
                # In turn, so that none gets all of the few there are.
                loads = {id: len(self._hands[id]) for id in ids}
                ids = [id for id in self._scheduler.engines(loads) if self._feed(id)]
            for id in self._with_commands(engine) if self._ready else ():
                self._feed(id, most=1)
        if engine is None or not len(self._hands.get(engine, ())):
            self.rebalance()

    def dispatch_soon(self) -> None:
        """Hand over to all what there is room for; once, where many engines die in a turn of the reactor."""
        if self._dispatch_call is None:
            self._dispatch_call = self._clock.callLater(0, self._dispatch_due)

    def _dispatch_due(self) -> None:
        self._dispatch_call = None
        self.dispatch()

    def _free(self) -> list[int]:
        return [engine.id for engine in self._registry if not len(engine.queue) and self._is_ready(engine)]

    def _with_commands(self, id: int | None) -> list[int]:
        """Engines (all, or this one) that have commands and no tasks, the least busy first."""
        engines = self._registry if id is None else filter(None, [self._registry.get(id)])
        busy = [engine for engine in engines if len(engine.queue) and self._is_ready(engine)]
        busy.sort(key=lambda engine: len(engine.queue))
        return [engine.id for engine in busy if not len(self._hands[engine.id])]

    def _is_ready(self, engine: Engine) -> bool:
        return engine.state == "ready" and engine.id in self._hands and not engine.leaving

    def _feed(self, id: int, most: int | None = None) -> bool:
        """Hand tasks of one batch to an engine. Whether there may be room for more."""
        engine = self._registry.get(id)
        if engine is None or not self._is_ready(engine) or (most is None and len(engine.queue)):
            return False
        batch: Batch | None = self._scheduler.next(id)
        if batch is None:
            return False
        hand, peer = self._hands[id], self._peers[id]
        room = most or hand.room(batch, -(-(self._ready + self._handed) // len(self._hands)))
        if room <= 0:
            return False
        if id not in batch.engines:
            batch.engines.add(id)
            peer.session.send(batch.raw)
        items = batch.take(id, room)
        self._scheduler.served(batch)
        hand.add(batch, [item[0] for item in items], self._clock.seconds(), behind=bool(len(engine.queue)))
        self._handed += len(items)
        peer.session.send(encode(Work(batch.id, tuple(items))))
        self.changed(batch)
        return len(items) < room

    # -- calling back ------------------------------------------------------------------------

    def rebalance(self) -> None:
        """Where an engine has nothing to do, call back tasks that wait behind others."""
        if not self._handed:
            return
        if self._rebalance_call is not None:  # it looks at all engines: not for each that has nothing to do
            self._look = True
            return
        idle = [id for id in self._free() if not len(self._hands[id])]
        if not idle:
            return
        now = self._clock.seconds()
        ready = [engine.id for engine in self._registry if self._is_ready(engine)]
        busy = [id for id in ready if self._hands[id].waiting]
        busy.sort(key=lambda id: len(self._hands[id]), reverse=True)
        for id in busy[: len(idle)]:
            hand = self._hands[id]
            spare = [
                (batch, index)
                for batch, index in hand.spare(now)
                if any(batch.could_run(other, index) for other in idle)
            ]
            self._recall(id, spare)
        # The first task of a hand may turn out to be a long one.
        self._look = bool(busy)
        self._rebalance_call = self._clock.callLater(REBALANCE_DELAY, self._look_again)

    def call_back(self, engine: int) -> None:
        """Call back all that an engine has not started."""
        hand = self._hands.get(engine)
        if hand is not None:
            self._recall(engine, hand.unstarted())

    def _recall(self, engine: int, tasks: list[tuple[Batch, int]]) -> None:
        self._hands[engine].recall(tasks)
        by_batch: dict[str, list[int]] = {}
        for batch, index in tasks:
            by_batch.setdefault(batch.id, []).append(index)
        for id, indexes in by_batch.items():
            self.send(engine, encode(Withdraw(id, tuple(indexes), "recall")))

    def _look_again(self) -> None:
        self._rebalance_call = None
        if self._look:
            self.rebalance()
