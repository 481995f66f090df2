"""Tells clients what came of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ipython1.kernel.controller.batches import NOWHERE, Batch
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import BlobRef, End, Event, Outcomes

#: Outcomes in one record that the controller makes up.
OUTCOMES_COUNT = 1000


class Telling:
    """Sends outcomes and events to the owners of a batch, and to those who asked for its tasks.

    Parameters
    ----------
    batches : mapping
        All batches, by id.
    blobs : BlobRoutes
        The ways of bulk bytes through the controller.
    now : callable
        Wall-clock time in seconds.
    """

    def __init__(self, batches: Mapping[str, Batch], blobs: BlobRoutes, now: Callable[[], float]) -> None:
        self._batches = batches
        self._blobs = blobs
        self._now = now
        self._seekers: dict[str, list[Peer]] = {}  # who asks for tasks that are not here

    def add_seeker(self, id: str, client: Peer) -> None:
        """A client asks for tasks of a batch that are not here."""
        seekers = self._seekers.setdefault(id, [])
        if client not in seekers:
            seekers.append(client)

    def drop_seekers(self, id: str) -> None:
        """All who asked have their answers."""
        self._seekers.pop(id, None)

    def seekers_stay(self, batch: Batch) -> None:
        """The batch is here now: those who have asked hear what comes of it."""
        batch.owners += [peer for peer in self._seekers.get(batch.id, ()) if peer not in batch.owners]

    def owners_left(self, batch: Batch) -> bool:
        """A batch is over for its client. Whether others still ask for its tasks."""
        for peer in batch.owners:
            if peer.key != batch.client:
                self.add_seeker(batch.id, peer)
        return batch.id in self._seekers

    def client_gone(self, client: Peer) -> None:
        """Nothing can be sent to this peer any more."""
        for batch in self._batches.values():
            if client in batch.owners:
                batch.owners.remove(client)
        for id, seekers in list(self._seekers.items()):
            if client in seekers:
                seekers.remove(client)
                if not seekers:
                    del self._seekers[id]

    def outcomes(self, peer: Peer, record: Outcomes, ends: Sequence[End], raw: bytes) -> None:
        """Pass on `ends`, which are all or some of an engine's record; as it came, where they are all."""
        listeners = [
            listener
            for listener in self._listeners(record.batch)
            if listener.wants_ends(record.batch, record.engine, ends)
        ]
        if not listeners:
            return
        for end in ends:
            if any(type(part) is BlobRef for part in end[6]):
                self._blobs.open(end[6], f"{record.batch}#{end[0]}/", peer, listeners)
        if len(ends) < len(record.items):
            raw = encode(Outcomes(record.batch, record.engine, tuple(ends)))
        for listener in listeners:
            listener.post(raw)

    def event(self, id: str, event: Event, peer: Peer, raw: bytes) -> None:
        """Pass on what a task of a batch gave out."""
        index = int(event.id.partition("#")[2])
        listeners = [listener for listener in self._listeners(id) if listener.wants_event(id, index)]
        if event.parts and listeners:
            self._blobs.open(event.parts, f"{event.id}/", peer, listeners)
        for listener in listeners:
            listener.post(raw)

    def made_up(self, batch: Batch, indexes: Sequence[int]) -> None:
        """Tell of tasks that ended with the failures in `batch.made_up`."""
        for start in range(0, len(indexes), OUTCOMES_COUNT):
            some = indexes[start : start + OUTCOMES_COUNT]
            self._post(batch.id, [(index, "error", self._now(), (batch.made_up[index],)) for index in some])

    def unknown(self, id: str, indexes: Iterable[int]) -> None:
        """Nobody knows these tasks, or not any more."""
        self._post(id, [(index, "unknown", 0.0, ()) for index in indexes])

    def _post(self, id: str, ends: Iterable[tuple[int, str, float, tuple[bytes, ...]]]) -> None:
        items = tuple(
            (index, 0, status, 0.0, completed, 0, parts) for index, status, completed, parts in ends
        )
        raw = encode(Outcomes(id, NOWHERE, items))
        for listener in self._listeners(id):
            listener.tell(raw, [(id, item[0]) for item in items])

    def _listeners(self, id: str) -> list[Peer]:
        batch = self._batches.get(id)
        owners = batch.owners if batch is not None else []
        return [*owners, *(peer for peer in self._seekers.get(id, ()) if peer not in owners)]
