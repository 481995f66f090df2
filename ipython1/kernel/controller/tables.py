"""Tells clients which engines there are.

A client gets the whole table when it connects, and from then on what changes: a thousand engines
that come one by one would else be a thousand tables of a thousand rows, for each client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Registry
from ipython1.kernel.wire.codec import encode, pack
from ipython1.kernel.wire.records import Engines

#: Seconds in which changes of the engine table are collected, and more for each engine: who starts
#: the controller is told all ids.
TABLE_DELAY = 0.005
DELAY_EACH = 0.00005


class Tables:
    """Sends the changes of the engine table.

    Parameters
    ----------
    clock : IReactorTime
    registry : Registry
        What the table says.
    clients : callable
        Who is told.
    notify : callable
        Hears the ids, where they have changed, as an event ``engines``.
    """

    def __init__(
        self,
        clock: Any,
        registry: Registry,
        clients: Callable[[], Iterable[Peer]],
        notify: Callable[[dict[str, Any]], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._clients = clients
        self._notify = notify
        self._call: Any = None
        self._changed: set[int | None] = set()
        self._last_failure = 0  # number of the last one that was told
        self._told: list[int] = []
        self._owed: set[Peer] = set()  # who is behind

    def contents(self) -> dict[str, Any]:
        """The table as it is now."""
        return {
            "engines": [engine.facts() for engine in self._registry],
            "failures": self._registry.failures,
        }

    def changed(self, id: int | None) -> None:
        """Tell of it soon; `id`: of the engine that changed."""
        self._changed.add(id)
        if self._call is None:
            delay = TABLE_DELAY + DELAY_EACH * len(self._registry)
            self._call = self._clock.callLater(delay, self._due)

    def now(self) -> None:
        """Tell first which engines are gone, then what fails with them: else more could be sent there."""
        if self._changed:
            self._send()

    def client_gone(self, peer: Peer) -> None:
        """Tell this one no more."""
        self._owed.discard(peer)

    def stop(self) -> None:
        """Tell no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _due(self) -> None:
        self._call = None
        self.now()
        ids = [engine.id for engine in self._registry if engine.state == "ready"]
        if ids != self._told:
            self._told = ids
            self._notify({"event": "engines", "ids": ids})

    def _send(self) -> None:
        raw = encode(Engines(pack(self._changes())))
        for client in self._clients():
            self._send_to(client, raw)

    def _changes(self) -> dict[str, Any]:
        """What has changed since this was last called."""
        ids = sorted(id for id in self._changed if id is not None)
        self._changed.clear()
        engines = [self._registry.get(id) for id in ids]
        failures = [failure for failure in self._registry.failures if failure[0] > self._last_failure]
        self._last_failure = failures[-1][0] if failures else self._last_failure
        return {
            "changed": [engine.facts() for engine in engines if engine is not None],
            "gone": [id for id, engine in zip(ids, engines, strict=True) if engine is None],
            "failures": failures,
        }

    def _send_to(self, peer: Peer, raw: bytes) -> None:
        if not peer.behind:
            peer.post(raw)
        elif peer not in self._owed:  # of all that it misses it gets the outcome
            self._owed.add(peer)
            peer.when_caught_up(lambda: self._send_owed(peer))

    def _send_owed(self, peer: Peer) -> None:
        self._owed.discard(peer)
        self._send_to(peer, encode(Engines(pack(self.contents()))))
