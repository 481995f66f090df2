"""Where the chunks of each blob on its way through the controller go.

A route lives as long as the command or result that names the blob. Chunks are
forwarded as they came; grants go back as the least that all receivers have, so
nothing is stored here beyond the window of the sender.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.wire.records import BlobRef, Chunk, Grant, Part


@dataclass(slots=True)
class _Route:
    source: Peer
    size: int
    taken: dict[Peer, int]  # receiver -> offset granted
    granted: int = 0


class BlobRoutes:
    """All blobs that pass through."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def open(self, parts: tuple[Part, ...], source: Peer, receivers: list[Peer]) -> list[str]:
        """Route the blobs among `parts`, whose names are returned; one opened again starts anew."""
        blobs = [part for part in parts if isinstance(part, BlobRef)]
        for ref in blobs:
            self._routes[ref.blob] = _Route(source, ref.size, dict.fromkeys(receivers, 0))
        return [ref.blob for ref in blobs]

    def close(self, blobs: list[str]) -> None:
        """Nobody needs these blobs any more."""
        for blob in blobs:
            self._routes.pop(blob, None)

    def chunk(self, source: Peer, chunk: Chunk, raw: bytes) -> None:
        """Forward a chunk; what nobody waits for now is refused."""
        route = self._routes.get(chunk.blob)
        if route is None or route.source is not source or not route.taken:
            source.send(Grant(chunk.blob, -1))
            return
        for receiver in route.taken:
            receiver.session.send(raw)

    def grant(self, receiver: Peer, grant: Grant) -> None:
        """A receiver has taken more, wants the blob (again) from an offset on, or wants no more."""
        route = self._routes.get(grant.blob)
        if route is None or receiver is route.source:
            return
        if grant.offset < 0:
            route.taken.pop(receiver, None)
        else:
            route.taken[receiver] = grant.offset
        self._pass_on(grant.blob, route)

    def gone(self, peer: Peer) -> None:
        """A peer is gone for good, as source and as receiver."""
        for blob, route in list(self._routes.items()):
            if route.source is peer:
                del self._routes[blob]
            elif route.taken.pop(peer, None) is not None:
                self._pass_on(blob, route)

    def _pass_on(self, blob: str, route: _Route) -> None:
        least = min(route.taken.values(), default=-1)
        if least != route.granted:
            route.granted = least
            route.source.send(Grant(blob, least))
