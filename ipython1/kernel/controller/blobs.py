"""Where the chunks of each blob on its way through the controller go.

A route lives as long as the command that names the blob, or until all who
wait for a result have it. Chunks are forwarded as they came; grants go back
as the least that all receivers have, so nothing is stored here beyond the
window of the sender.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.error import WireError
from ipython1.kernel.wire.blobs import LOST
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import BlobRef, Chunk, Grant, Part


@dataclass(slots=True)
class _Route:
    source: Peer
    size: int
    taken: dict[Peer, int]  # receiver -> offset granted
    may_read: Callable[[Peer], bool]
    readers: set[Peer] | None  # who has not all of it yet; None: lives until `close`
    granted: int = 0  # what the source was told last
    passed: int = 0  # all before this came by; who joins later has missed it


class BlobRoutes:
    """All blobs that pass through."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def open(
        self,
        parts: Sequence[Part],
        prefix: str,
        source: Peer,
        receivers: Sequence[Peer],
        may_read: Callable[[Peer], bool] | None = None,
    ) -> list[str]:
        """Route the blobs among `parts`, whose names are returned; one opened again starts anew.

        Parameters
        ----------
        parts : sequence of Part
        prefix : str
            What the names of blobs of this source begin with.
        source : Peer
        receivers : list of Peer
            Those who wait for them now.
        may_read : callable, optional
            Who may join later; the routes then live until `close`. Without
            it, they live until the last of `receivers` has all.

        Raises
        ------
        WireError
            A name belongs to someone else.
        """
        blobs = [part for part in parts if isinstance(part, BlobRef)]
        for ref in blobs:
            if not ref.blob.startswith(prefix):
                raise WireError(reason=f"blob {ref.blob!r} is not one of {prefix!r}")
        for ref in blobs:
            readers = set(receivers) if may_read is None else None
            allowed = may_read or set(receivers).__contains__
            if ref.place:  # in shared memory: it comes this way only where a receiver asks for it
                route = _Route(source, ref.size, {}, allowed, readers, granted=-1)
            else:
                route = _Route(source, ref.size, dict.fromkeys(receivers, 0), allowed, readers)
            self._routes[ref.blob] = route
        return [ref.blob for ref in blobs]

    def close(self, blobs: Sequence[str]) -> None:
        """Nobody needs these blobs any more."""
        for blob in blobs:
            self._routes.pop(blob, None)

    def chunk(self, source: Peer, chunk: Chunk, raw: bytes) -> None:
        """Forward a chunk; what nobody waits for now is refused."""
        route = self._routes.get(chunk.blob)
        if route is None or route.source is not source:
            source.send(Grant(chunk.blob, -1))
            return
        route.passed = max(route.passed, chunk.offset + len(chunk.data))
        if not route.taken:
            route.granted = -1
            source.send(Grant(chunk.blob, -1))
            return
        for receiver in list(route.taken):
            if receiver.behind:
                self._pause(chunk.blob, route, receiver)
            else:
                receiver.session.send(raw)

    def grant(self, receiver: Peer, grant: Grant) -> None:
        """A receiver has taken more, wants the blob (again) from an offset on, or wants no more."""
        route = self._routes.get(grant.blob)
        if route is None or not (receiver in route.taken or route.may_read(receiver)):
            return
        if grant.offset < 0 or grant.offset >= route.size:
            self._leaves(grant.blob, route, receiver)
            return
        if receiver not in route.taken and grant.offset < route.passed and route.granted >= 0:
            # A grant alone would not make the source go back to what is on its way: begin anew.
            route.granted = -1
            route.source.send(Grant(grant.blob, -1))
        route.taken[receiver] = grant.offset
        self._pass_on(grant.blob, route)

    def _pause(self, blob: str, route: _Route, receiver: Peer) -> None:
        """Too much waits for a receiver: it has this from there on when it has caught up."""
        offset = route.taken.pop(receiver)
        receiver.when_caught_up(lambda: self._resume(receiver, Grant(blob, offset)))
        self._pass_on(blob, route)

    def _resume(self, receiver: Peer, grant: Grant) -> None:
        route = self._routes.get(grant.blob)
        if route is not None and receiver not in route.taken:
            self.grant(receiver, grant)

    def away(self, peer: Peer) -> None:
        """The link to a peer is gone: others don't wait for it. Back, it asks for what it lacks."""
        for blob, route in self._routes.items():
            if route.taken.pop(peer, None) is not None:
                self._pass_on(blob, route)

    def gone(self, peer: Peer) -> None:
        """A peer is gone for good, as source and as receiver."""
        for blob, route in list(self._routes.items()):
            if route.source is peer:
                del self._routes[blob]
                if peer.kind == "engine":  # a client may yet come back, and send its commands again
                    lost = encode(Chunk(blob, LOST, b""))
                    for receiver in route.readers or ():
                        receiver.session.send(lost)
            else:
                self._leaves(blob, route, peer)

    def _leaves(self, blob: str, route: _Route, receiver: Peer) -> None:
        taking = route.taken.pop(receiver, None) is not None
        if route.readers is not None:
            route.readers.discard(receiver)
            if not route.readers:
                del self._routes[blob]
        if taking:
            self._pass_on(blob, route)

    def _pass_on(self, blob: str, route: _Route) -> None:
        least = min(route.taken.values(), default=-1)
        if least != route.granted:
            route.granted = least
            route.source.send(Grant(blob, least))
