"""Which sessions there are, found by what is known of a peer: thousands may be of engines."""

from __future__ import annotations

from collections.abc import Iterator

from ipython1.kernel.controller.peers import Peer


class Peers:
    """The other ends of all sessions, linked or away."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}  # by session id
        self._clients: dict[str, Peer] = {}  # of these
        self._nannies: dict[str, Peer] = {}
        self._engines: dict[str, Peer] = {}  # by uuid

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, session: str) -> Peer | None:
        """The peer with this session."""
        return self._peers.get(session)

    def clients(self) -> list[Peer]:
        """All but engines and nannies."""
        return list(self._clients.values())

    def nannies(self) -> list[Peer]:
        """The nannies that are linked."""
        return [peer for peer in self._nannies.values() if peer.session.linked]

    def engines(self) -> list[Peer]:
        """The engines."""
        return list(self._engines.values())

    def add(self, peer: Peer) -> None:
        """There is a new session."""
        id = peer.session.id
        self._peers[id] = peer
        if peer.kind == "engine":
            self._engines[peer.key] = peer
        elif peer.kind == "nanny":
            self._nannies[id] = peer
        else:
            self._clients[id] = peer

    def remove(self, peer: Peer) -> None:
        """A session is over; it may have been gone before."""
        id = peer.session.id
        self._peers.pop(id, None)
        self._nannies.pop(id, None)
        self._clients.pop(id, None)
        if self._engines.get(peer.key) is peer:
            del self._engines[peer.key]

    def end_engine(self, uuid: str) -> None:
        """End the session of an engine process, if it has one."""
        peer = self._engines.get(uuid)
        if peer is not None:
            self.remove(peer)
            peer.end()

    def end_all(self) -> None:
        """End every session."""
        for peer in self:
            peer.end()
            self.remove(peer)
