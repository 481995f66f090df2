"""Where the chunks of each blob on its way through the controller go.

A route lives as long as the command that names the blob, or until all who
wait for a result have it. Chunks are forwarded as they came; grants go back
as the least that all receivers have, so nothing is stored here beyond the
window of the sender. Of the engines of one host only one gets the chunks
where it can share them with the others, see `carriers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ipython1.kernel.controller.carriers import HostGroup
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.error import WireError
from ipython1.kernel.wire.blobs import LOST
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import BlobRef, Chunk, Grant, Part, Share

#: Blobs of fewer bytes go to each engine by itself: to share them takes longer.
SHARED_FROM = 256 * 1024


@dataclass(slots=True)
class _Taker:
    """A receiver that chunks go to: it has all before `have`, and was sent all before `sent`."""

    have: int
    sent: int
    behind: bool = False  # it is sent nothing before it has caught up


@dataclass(slots=True)
class _Route:
    source: Peer
    size: int
    taken: dict[Peer, _Taker]
    may_read: Callable[[Peer], bool] | None
    readers: set[Peer]  # who has not all of it yet; where `may_read` is not given it lives as long as these
    common: bool
    granted: int  # what the source was told last; -1: to stop
    at: int = 0  # all before this came by; who joins later has missed it
    rewound: int = -1  # from where on the source was told to begin anew, until it does
    groups: dict[str, HostGroup] = field(default_factory=dict)  # by the memory of the host

    def admits(self, peer: Peer) -> bool:
        """Whether a peer may have it."""
        return peer in self.readers if self.may_read is None else self.may_read(peer)


class BlobRoutes:
    """All blobs that pass through."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}
        self._neighbours: dict[str, set[Peer]] = {}  # engines, by the memory of their host

    def __len__(self) -> int:
        return len(self._routes)

    def engine_ready(self, peer: Peer) -> None:
        """An engine can share blobs with others of its host, until it is `gone`."""
        if peer.memory:
            self._neighbours.setdefault(peer.memory, set()).add(peer)

    def open(
        self,
        parts: Sequence[Part],
        prefix: str,
        source: Peer,
        receivers: Sequence[Peer],
        may_read: Callable[[Peer], bool] | None = None,
        common: bool = True,
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
        common : bool
            Whether more than one of those who may read them will want them.

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
            known = self._routes.get(ref.blob)
            route = _Route(source, ref.size, {}, may_read, set(receivers), common, -1)
            if known is not None and known.source is source:  # others are still on it
                route.groups = known.groups
                route.readers |= known.readers
                route.taken, route.granted, route.at = known.taken, known.granted, known.at
            elif known is not None:
                _close_groups(known)
            self._routes[ref.blob] = route
            if not ref.place:  # else it comes this way only where a receiver asks for it
                route.granted = route.at = 0
                alone = [peer for peer in receivers if not self._has_neighbours(route, peer)]
                route.taken.update({peer: _Taker(0, 0) for peer in alone if peer not in route.taken})
                if not route.taken:
                    route.granted = -1
        return [ref.blob for ref in blobs]

    def close(self, blobs: Sequence[str]) -> None:
        """Nobody needs these blobs any more."""
        for blob in blobs:
            self._end(blob)

    def chunk(self, source: Peer, chunk: Chunk, raw: bytes) -> None:
        """Forward a chunk; what nobody waits for now is refused."""
        route = self._routes.get(chunk.blob)
        if route is None or route.source is not source:
            source.send(Grant(chunk.blob, -1))
            return
        route.at = chunk.offset + len(chunk.data)
        if chunk.offset == route.rewound:
            route.rewound = -1
        missed = False
        for receiver, taker in list(route.taken.items()):
            if receiver.behind:
                self._pause(chunk.blob, route, receiver, taker)
            elif chunk.offset == taker.sent:
                receiver.session.send(raw)
                taker.sent = route.at
            elif chunk.offset > taker.sent and not taker.behind:
                missed = True
        if route.granted < 0 or all(taker.behind for taker in route.taken.values()):
            route.granted = -1
            source.send(Grant(chunk.blob, -1))
        elif missed and route.rewound < 0:
            self._rewind(chunk.blob, route)

    def grant(self, receiver: Peer, grant: Grant) -> None:
        """A receiver has taken more, wants the blob (again) from an offset on, or wants no more."""
        route = self._routes.get(grant.blob)
        if route is None or not (receiver in route.taken or route.admits(receiver)):
            return
        if grant.offset < 0 or grant.offset >= route.size:
            self._leaves(grant.blob, route, receiver)
            return
        taker = route.taken.get(receiver)
        if taker is not None and grant.offset >= taker.have:
            taker.have = grant.offset
            taker.sent = max(taker.sent, taker.have)  # it may have been sent more before it joined anew
            self._pass_on(grant.blob, route)
        elif taker is not None or not self._waits(grant.blob, route, receiver, grant.offset):
            self._join(grant.blob, route, {receiver: grant.offset})

    def share(self, peer: Peer, share: Share) -> None:
        """An engine tells where others of its host find a blob, or that they do not."""
        route = self._routes.get(share.blob)
        group = route.groups.get(peer.memory) if route is not None else None
        if route is not None and group is not None:
            self._join(share.blob, route, group.shares(peer, share.place))
        elif share.place:
            peer.send(Grant(share.blob, -1))

    def away(self, peer: Peer) -> None:
        """The link to a peer is gone: others don't wait for it. Back, it asks for what it lacks."""
        for blob, route in self._routes.items():
            self._stop(blob, route, peer)

    def gone(self, peer: Peer) -> None:
        """A peer is gone for good, as source and as receiver."""
        neighbours = self._neighbours.get(peer.memory, set())
        neighbours.discard(peer)
        if not neighbours:
            self._neighbours.pop(peer.memory, None)
        for blob, route in list(self._routes.items()):
            group = route.groups.get(peer.memory)
            if group is not None:
                self._join(blob, route, group.gone(peer))
            if route.source is not peer:
                self._leaves(blob, route, peer)
                continue
            self._end(blob)
            if peer.kind == "engine":  # a client may yet come back, and send its commands again
                lost = encode(Chunk(blob, LOST, b""))
                for receiver in route.readers:
                    receiver.session.send(lost)

    # -- one blob -----------------------------------------------------------------------

    def _has_neighbours(self, route: _Route, peer: Peer) -> bool:
        """Whether others on the host of `peer` will want the blob, and it is worth sharing."""
        return (
            route.common
            and route.size >= SHARED_FROM
            and any(
                other is not peer and route.admits(other) for other in self._neighbours.get(peer.memory, ())
            )
        )

    def _waits(self, blob: str, route: _Route, receiver: Peer, offset: int) -> bool:
        """Whether a receiver need not get chunks, because another one of its host does."""
        group = route.groups.get(receiver.memory)
        if group is None:
            if not self._has_neighbours(route, receiver):
                return False
            group = route.groups[receiver.memory] = HostGroup(blob)
        before = group.carrier
        taker = route.taken.get(before) if before is not None else None
        waits = group.asks(receiver, offset, -1 if taker is None else taker.have)
        if before is not None and before is not group.carrier:
            route.taken.pop(before, None)
        return waits

    def _join(self, blob: str, route: _Route, receivers: Mapping[Peer, int]) -> None:
        """Receivers get chunks from these offsets on."""
        if not receivers:
            return
        for receiver, offset in receivers.items():
            route.taken[receiver] = _Taker(offset, offset)
        if route.granted >= 0 and min(receivers.values()) < route.at:
            self._rewind(blob, route)
        else:
            self._pass_on(blob, route)

    def _rewind(self, blob: str, route: _Route) -> None:
        """A grant alone would not make the source go back to what is on its way: begin anew."""
        route.granted = -1
        route.source.send(Grant(blob, -1))
        self._pass_on(blob, route)

    def _pause(self, blob: str, route: _Route, receiver: Peer, taker: _Taker) -> None:
        """Too much waits for a receiver: it has this from there on when it has caught up."""
        if not taker.behind:
            taker.behind = True
            receiver.when_caught_up(lambda: self._resume(blob, receiver, taker))
            self._pass_on(blob, route)

    def _resume(self, blob: str, receiver: Peer, taker: _Taker) -> None:
        taker.behind = False
        route = self._routes.get(blob)
        if route is not None and route.taken.get(receiver) is taker:
            self._join(blob, route, {receiver: taker.have})

    def _leaves(self, blob: str, route: _Route, receiver: Peer) -> None:
        route.readers.discard(receiver)
        self._stop(blob, route, receiver)
        if route.may_read is None and not route.readers:
            self._end(blob)

    def _stop(self, blob: str, route: _Route, receiver: Peer) -> None:
        """A receiver gets no more chunks for now."""
        taking = route.taken.pop(receiver, None) is not None
        group = route.groups.get(receiver.memory)
        joining = group.leaves(receiver) if group is not None else {}
        if joining:
            self._join(blob, route, joining)
        elif taking:
            self._pass_on(blob, route)

    def _pass_on(self, blob: str, route: _Route) -> None:
        least = min([taker.have for taker in route.taken.values() if not taker.behind], default=-1)
        if least != route.granted:
            if route.granted < 0:
                route.at = route.rewound = least
            route.granted = least
            route.source.send(Grant(blob, least))

    def _end(self, blob: str) -> None:
        route = self._routes.pop(blob, None)
        if route is not None:
            _close_groups(route)


def _close_groups(route: _Route) -> None:
    for group in route.groups.values():
        group.close()
