"""Tells clients which engines there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Registry
from ipython1.kernel.wire.codec import encode, pack
from ipython1.kernel.wire.records import Engines

#: Seconds in which changes of the engine table are collected.
TABLE_DELAY = 0.005


class Tables:
    """Sends the engine table after changes.

    Parameters
    ----------
    clock : IReactorTime
    registry : Registry
        What the table says.
    peers : callable
        All that may want it.
    notify : callable
        Hears the ids, where they have changed, as an event ``engines``.
    """

    def __init__(
        self,
        clock: Any,
        registry: Registry,
        peers: Callable[[], Iterable[Peer]],
        notify: Callable[[dict[str, Any]], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._peers = peers
        self._notify = notify
        self._call: Any = None
        self._told: list[int] = []
        self._owed: set[Peer] = set()  # who is behind

    def contents(self) -> dict[str, Any]:
        """The table as it is now."""
        return {
            "engines": [engine.facts() for engine in self._registry],
            "failures": self._registry.failures,
        }

    def changed(self) -> None:
        """Tell of it soon."""
        if self._call is None:
            self._call = self._clock.callLater(TABLE_DELAY, self._send)

    def now(self) -> None:
        """Tell first which engines are gone, then what fails with them: else more could be sent there."""
        if self._call is not None:
            self._call.cancel()
            self._send()

    def stop(self) -> None:
        """Tell no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _send(self) -> None:
        self._call = None
        raw = encode(Engines(pack(self.contents())))
        for peer in self._peers():
            if peer.kind not in ("engine", "nanny"):
                self._send_to(peer, raw)
        ids = [engine.id for engine in self._registry if engine.state == "ready"]
        if ids != self._told:
            self._told = ids
            self._notify({"event": "engines", "ids": ids})

    def _send_to(self, peer: Peer, raw: bytes) -> None:
        if not peer.behind:
            peer.post(raw)
        elif peer not in self._owed:  # of all that it has missed only the last counts
            self._owed.add(peer)
            peer.when_caught_up(lambda: self._send_owed(peer))

    def _send_owed(self, peer: Peer) -> None:
        self._owed.discard(peer)
        self._send_to(peer, encode(Engines(pack(self.contents()))))
