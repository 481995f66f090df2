"""A peer without a network, which stands for a client that may be gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.parcels import Parcel
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import BlobRef, Chunk, Grant, Parts, Record
from ipython1.kernel.wire.session import Session


class _Inward(Session):
    """What would go to a client is taken here, in the next turn."""

    def __init__(self, clock: Any, receive: Callable[[bytes], None]) -> None:
        super().__init__(clock, receive)
        self._inbox: list[bytes] = []
        self._inbox_call: Any = None

    @property
    def linked(self) -> bool:
        """Always here."""
        return True

    def send(self, record: bytes) -> None:
        """Take a record."""
        self._inbox.append(record)
        if self._inbox_call is None:
            self._inbox_call = self.clock.callLater(0, self._take)

    def _take(self) -> None:
        self._inbox_call = None
        inbox, self._inbox = self._inbox, []
        for record in inbox:
            try:
                self._receive(record)
            except Exception:  # noqa: BLE001 -- one bad record must not stop the others
                self.complaints.failure("a record was not handled")

    def end(self) -> None:
        """Take nothing more."""
        super().end()
        self._inbox.clear()
        if self._inbox_call is not None:
            self._inbox_call.cancel()
            self._inbox_call = None


class Custodian:
    """Stands for one client.

    Parameters
    ----------
    clock : IReactorTime
    client : str
        Its id.
    routes : BlobRoutes
        The ways of bulk bytes through the controller.
    heard : callable
        Called with this custodian and each record that the client would get, but for grants.
    """

    def __init__(
        self,
        clock: Any,
        client: str,
        routes: BlobRoutes,
        heard: Callable[[Custodian, Record], None],
    ) -> None:
        self._routes = routes
        self._heard = heard
        session = _Inward(clock, lambda raw: self.peer.receive(raw))
        self.peer = Peer("custody", client, session, self._handle, _nothing, _nothing)
        self._store = ChunkStore(self._say)
        self._offered: dict[str, list[str]] = {}

    def stop(self) -> None:
        """Hear nothing more."""
        self.peer.end()

    def _handle(self, peer: Peer, record: Record, raw: bytes) -> None:
        if isinstance(record, Grant):
            self._store.grant_received(record)
        else:
            self._heard(self, record)

    def _say(self, record: Record) -> None:
        if isinstance(record, Chunk):
            self._routes.chunk(self.peer, record, encode(record))

    # -- bulk bytes -----------------------------------------------------------------------

    def refuse(self, parts: Parts) -> None:
        """The bytes of a result are for others."""
        for part in parts:
            if isinstance(part, BlobRef):
                self.grant(part.blob, -1)

    def grant(self, blob: str, offset: int) -> None:
        """All before `offset` is here."""
        self._routes.grant(self.peer, Grant(blob, offset))

    def offer(self, unit: str, parts: Parts, parcel: Parcel) -> None:
        """Send what is large of a unit of work to who asks for it."""
        for part in parts:
            data = parcel.blob(part.blob) if isinstance(part, BlobRef) else None
            if isinstance(part, BlobRef) and data is not None:
                self._offered.setdefault(unit, []).append(part.blob)
                self._store.offer(part.blob, data)

    def release(self, unit: str) -> None:
        """A unit of work has ended."""
        for blob in self._offered.pop(unit, ()):
            self._store.release(blob)


def _nothing(peer: Peer) -> None:
    """It has no link that could be lost, and is never behind."""
