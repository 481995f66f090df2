"""Work that is being detached: written down, piece by piece, until it is safe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.custodian import Custodian
from ipython1.kernel.controller.holdings import Holding
from ipython1.kernel.controller.ledger import Ledger
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.error import DetachFailed, RemoteFailure, WireError
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.records import Answer, Ask, BlobRef, Chunk, Detach

#: Calls a slow function, and returns a Deferred of what it returns.
InThread = Callable[[Callable[[], Any]], "Deferred[Any]"]


class Intake:
    """Takes parcels from clients.

    Parameters
    ----------
    ledger : Ledger
    routes : BlobRoutes
        The ways of bulk bytes through the controller.
    in_thread : callable
        Calls a slow function.
    begun : callable
        Told of a parcel of which a piece is here; returns the custodian of its client.
    kept : callable
        Told of one that is safe; it then calls `answer`.
    answered : callable
        Told of one whose client knows that.
    """

    def __init__(
        self,
        ledger: Ledger,
        routes: BlobRoutes,
        in_thread: InThread,
        begun: Callable[[Holding], Custodian],
        kept: Callable[[Holding], None],
        answered: Callable[[Holding], None],
    ) -> None:
        self._routes = routes
        self._in_thread = in_thread
        self._begun = begun
        self._on_kept = kept
        self._answered = answered
        self._ledger = ledger

    def detach(self, peer: Peer, record: Detach, raw: bytes) -> None:
        """A piece of a parcel."""
        if record.parcel.partition("-")[0] != peer.key:
            raise WireError(reason=f"parcel {record.parcel!r} belongs to another client")
        held = self._ledger.parcels.get(record.parcel)
        folder = self._ledger.folder
        if folder is None or (held is not None and (held.safe or held.keeping)):
            return
        if record.number == 0:
            if held is not None:
                self._ledger.drop(held)
            held = Holding(folder.path, record.parcel)
            self._ledger.add(held)
        if held is None or held.failed or held.pieces != record.number:
            return
        try:
            self._take(held, peer, record)
        except OSError as error:
            self._fail(held, error)
        except WireError:
            self._ledger.drop(held)
            raise

    def _take(self, held: Holding, peer: Peer, record: Detach) -> None:
        if not held.pieces:
            held.parcel.create()
        held.peer, held.pieces = peer, held.pieces + 1
        size = sum(part.size if isinstance(part, BlobRef) else 0 for part in record.blobs)
        size += sum(map(len, record.records))
        if not self._ledger.make_room(size):
            limit = self._ledger.folder.limit if self._ledger.folder is not None else 0
            held.failed = f"the controller keeps at most {limit / 1e6:,.0f} MB of such work"
            return
        blobs = held.add(peer.kind, record)
        self._ledger.add(held)
        custodian = self._begun(held)
        self._routes.open(blobs, f"{held.parcel.name}/", peer, [custodian.peer])

    def filled(self, custodian: Custodian, chunk: Chunk) -> None:
        """Bytes that belong into a parcel."""
        held = self._ledger.parcels.get(chunk.blob.partition("/")[0])
        if held is None or held.failed:
            custodian.grant(chunk.blob, -1)
            return
        try:
            have = held.filled(chunk.blob, chunk.offset, chunk.data)
        except (OSError, WireError) as error:
            custodian.grant(chunk.blob, -1)
            self._fail(held, error)
            return
        custodian.grant(chunk.blob, have)
        self._keep_if_whole(held)

    def _fail(self, held: Holding, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        held.failed = f"the controller cannot write it down ({reason})"
        self._keep_if_whole(held)

    def ask(self, peer: Peer, ask: Ask) -> None:
        """A parcel is whole: answered when it is safe."""
        held = self._ledger.parcels.get(ask.id)
        if held is None or held.parcel.client != peer.key:
            nowhere = "this controller has no folder for it" if self._ledger.folder is None else ""
            self._refuse(peer, ask.id, nowhere or "not all of it has arrived")
        else:
            held.peer, held.asked = peer, True
            self._keep_if_whole(held)

    def _refuse(self, peer: Peer, id: str, reason: str) -> None:
        failure = RemoteFailure("DetachFailed", str(DetachFailed(reason=reason)))
        peer.send(Answer(id, False, encode_failure(failure)))

    def _keep_if_whole(self, held: Holding) -> None:
        if not held.asked or held.keeping or held.peer is None:
            return
        if held.failed:
            self._refuse(held.peer, held.parcel.name, held.failed)
            self._ledger.drop(held)
        elif held.safe:
            self.answer(held)
        elif not held.arriving:
            held.keeping = True
            self._in_thread(held.parcel.keep).addCallbacks(
                lambda _: self._kept(held), lambda failure: self._not_kept(held, failure)
            )

    def _kept(self, held: Holding) -> None:
        held.keeping, held.safe, held.sent = False, True, True
        self._ledger.note(held)
        self._on_kept(held)

    def _not_kept(self, held: Holding, failure: Failure) -> None:
        held.keeping = False
        self._fail(held, failure.value)  # type: ignore[arg-type]

    def answer(self, held: Holding) -> None:
        """Tell its client that a parcel is safe."""
        if held.peer is not None:
            held.peer.send(Answer(held.parcel.name, True, b"\xc0"))
            held.peer = None
        self._answered(held)

    def client_gone(self, peer: Peer) -> None:
        """A peer is gone: what it has begun to detach will not become whole."""
        for held in self._ledger.of(peer.key):
            if held.peer is peer and not held.safe and not held.keeping:
                self._ledger.drop(held)
