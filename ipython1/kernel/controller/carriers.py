"""A blob that several engines of one host want goes to one of them, the carrier, which shares it there.

==========  ===========================  ====================================================
state       input                        next state, and what happens
==========  ===========================  ====================================================
(none)      one asks, others may         carried; it is told to share, and gets the chunks
carried     another one asks             carried; it waits; but where it has more of the blob
                                         than the carrier it carries from there on
carried     the carrier is away, or      carried by the one that has most of it; (none) where
            wants it no more             nobody waits
carried     the carrier shares it        shared; those who wait are told the place
carried     it cannot share it           alone; each gets chunks of its own
shared      another one asks             shared; it is told the place
shared      who was told cannot map it   shared; it gets chunks of its own when it asks
shared      who shares it is dead        (none); those who were told ask again
shared      the blob is closed           who shares it is told that nobody wants it any more
==========  ===========================  ====================================================

So nothing is lost with a carrier but time: the next one begins where it had
come to. A host is whoever names the same shared memory.
"""

from __future__ import annotations

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.wire.records import Grant, Share


class HostGroup:
    """Those on one host who want a blob.

    Parameters
    ----------
    blob : str

    Attributes
    ----------
    carrier : Peer, optional
        Who gets the chunks, and then shares it.
    """

    def __init__(self, blob: str) -> None:
        self.carrier: Peer | None = None
        self._blob = blob
        self._place = ""
        self._alone = False
        self._waiting: dict[Peer, int] = {}  # up to where each has it
        self._told: set[Peer] = set()
        self._refused: set[Peer] = set()

    def asks(self, receiver: Peer, offset: int, carried: int) -> bool:
        """A receiver that gets no chunks asks for the blob from `offset` on.

        It may become the carrier; `carried`: up to where the one before has it.

        Returns
        -------
        bool
            Whether it has to wait; else it shall get chunks.
        """
        if self._alone or receiver in self._refused:
            return False
        if self._place:
            if receiver not in self._told:  # else this was under way before it heard of it
                self._tell(receiver)
            return True
        if self.carrier is not None and offset <= carried:
            self._waiting[receiver] = offset
            return True
        if self.carrier is not None:
            self._waiting[self.carrier] = max(0, carried)
        self._waiting.pop(receiver, None)
        self._carry(receiver)
        return False

    def shares(self, peer: Peer, place: str) -> dict[Peer, int]:
        """`peer` has it at `place`, or cannot share it. Returns who gets chunks now, and from where on."""
        if peer is not self.carrier or self._place:
            if place:
                peer.send(Grant(self._blob, -1))
            elif peer in self._told:
                self._refused.add(peer)
            return {}
        waiting, self._waiting = self._waiting, {}
        self._place = place
        self._alone = not place
        if self._alone:
            self.carrier = None
            return waiting
        for receiver in waiting:
            self._tell(receiver)
        return {}

    def leaves(self, receiver: Peer) -> dict[Peer, int]:
        """A receiver wants nothing for now: it has all, or is away. Returns as `shares`."""
        self._waiting.pop(receiver, None)
        self._told.discard(receiver)
        if receiver is not self.carrier or self._place:
            return {}
        self.carrier = None
        if not self._waiting:
            return {}
        next = max(self._waiting, key=self._waiting.__getitem__)
        self._carry(next)
        return {next: self._waiting.pop(next)}

    def gone(self, peer: Peer) -> dict[Peer, int]:
        """A peer is dead, and what it shared with it. Returns as `shares`."""
        if peer is self.carrier and self._place:
            self._place = ""
            self._told.clear()
        return self.leaves(peer)

    def close(self) -> None:
        """Nobody wants the blob any more."""
        if self.carrier is not None and self._place:
            self.carrier.send(Grant(self._blob, -1))

    def _carry(self, receiver: Peer) -> None:
        self.carrier = receiver
        receiver.send(Share(self._blob, ""))

    def _tell(self, receiver: Peer) -> None:
        self._told.add(receiver)
        receiver.send(Share(self._blob, self._place))
