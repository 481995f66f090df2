"""Work that shall go on without its client: given to the controller, which writes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

from ipython1.kernel.client.batches import WORK_BYTES, WORK_COUNT, Batches
from ipython1.kernel.client.incoming import Outstanding
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.questions import Questions
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import Ask, Batch, BlobRef, Detach, Item, Parts, Record, Submit, Work

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore

#: Bytes of records in one piece of a parcel, about.
PIECE_BYTES = 512 * 1024

#: A record, and the large parts that it names.
Packed = tuple[Union[Submit, Batch, Work], Mapping[str, memoryview]]


@dataclass(eq=False)
class _Parcel:
    """What is being detached in one go; `future` is done when it is safe."""

    name: str
    pendings: Sequence[PendingResult]
    future: Future[Any]
    blobs: tuple[str, ...] = ()
    sent: bool = False


class Detaching:
    """What is being detached; reactor thread only.

    Parameters
    ----------
    send : callable
        Sends a record.
    linked : callable
        Whether there is a connection now.
    outstanding : mapping
        The commands on their way, by id.
    tasks : Batches
    blobs : ChunkStore
    questions : Questions
    """

    def __init__(
        self,
        send: Callable[[Record], None],
        linked: Callable[[], bool],
        outstanding: Mapping[str, Outstanding],
        tasks: Batches,
        blobs: ChunkStore,
        questions: Questions,
    ) -> None:
        self._send = send
        self._linked = linked
        self._outstanding = outstanding
        self._tasks = tasks
        self._blobs = blobs
        self._questions = questions
        self._open: list[_Parcel] = []
        self._error: Exception | None = None

    def detach(self, name: str, pendings: Sequence[PendingResult], future: Future[Any]) -> None:
        """Detach what is outstanding of `pendings`; `future` is done when that is safe."""
        if self._error is not None:
            future.set_exception(self._error)
            return
        parcel = _Parcel(name, pendings, future)
        self._open.append(parcel)
        future.add_done_callback(lambda _: self._over(parcel))
        if self._linked():  # else it is not known yet which engines the work has gone to
            self._go(parcel)

    def welcomed(self, resumed: bool) -> None:
        """There is a connection; where it is not the same session as before, its end knows nothing."""
        for parcel in list(self._open):
            if not parcel.sent:
                self._go(parcel)
            elif not resumed:
                self._send_pieces(parcel)

    def fail(self, error: Exception) -> None:
        """Nothing can be sent any more."""
        self._error = error
        for parcel in list(self._open):
            if not parcel.future.done():
                parcel.future.set_exception(error)

    def _go(self, parcel: _Parcel) -> None:
        parcel.sent = True
        self._send_pieces(parcel)
        self._questions.ask(Ask(parcel.name, "detach", b"\x80"), parcel.future)

    def _over(self, parcel: _Parcel) -> None:
        self._open.remove(parcel)
        for blob in parcel.blobs:
            self._blobs.release(blob)

    # -- what is outstanding --------------------------------------------------------------

    def _send_pieces(self, parcel: _Parcel) -> None:
        """Send what has not ended of a parcel by now."""
        self._tasks.flush()  # what has not been sent at all goes first
        number, size = 0, 0
        records: list[bytes] = []
        blobs: dict[str, memoryview] = {}
        for record, large in self._packed(parcel.pendings):
            raw = encode(record)
            if records and size + len(raw) > PIECE_BYTES:
                self._send_piece(parcel, number, records, blobs)
                number, size, records, blobs = number + 1, 0, [], {}
            records.append(raw)
            size += len(raw)
            blobs.update(large)
        self._send_piece(parcel, number, records, blobs)

    def _send_piece(
        self, parcel: _Parcel, number: int, records: Sequence[bytes], blobs: Mapping[str, memoryview]
    ) -> None:
        named = {f"{parcel.name}/{blob}": data for blob, data in blobs.items()}
        refs = tuple(BlobRef(blob, len(data)) for blob, data in named.items())
        self._send(Detach(parcel.name, number, tuple(records), refs))
        for blob, data in named.items():
            self._blobs.offer(blob, data)
        parcel.blobs = (*parcel.blobs, *named)

    def _packed(self, pendings: Sequence[PendingResult]) -> Iterator[Packed]:
        batches: dict[str, list[int]] = {}
        for pending in pendings:
            if isinstance(pending, TaskPending):
                batches.setdefault(pending.command_id, []).extend(pending.unfinished)
            else:
                yield from self._commands(pending)
        for id, indexes in batches.items():
            yield from self._batch(id, indexes)

    def _commands(self, pending: PendingResult) -> Iterator[Packed]:
        out = self._outstanding.get(pending.command_id)
        if out is None:
            return
        out.detached = True
        for record in out.unresolved():
            yield replace(record, parts=_placeless(record.parts)), _named(record.parts, out.blobs or {})

    def _batch(self, id: str, indexes: Sequence[int]) -> Iterator[Packed]:
        batch = self._tasks.get(id)
        tasks = batch.unresolved(indexes) if batch is not None else []
        if batch is None or not tasks:
            return
        batch.detached = True
        head = self._tasks.head_of(batch)
        yield replace(head, parts=_placeless(head.parts)), batch.blobs
        items: list[Item] = []
        large: dict[str, memoryview] = {}
        size = 0
        for index, task in tasks:
            parts = _placeless(task.parts or ())
            items.append((index, task.attempt, parts))
            large.update(task.blobs)
            size += sum(len(part) for part in parts if isinstance(part, bytes))
            if len(items) >= WORK_COUNT or size >= WORK_BYTES:
                yield Work(id, tuple(items), True), large
                items, large, size = [], {}, 0
        if items:
            yield Work(id, tuple(items), True), large


def detach_all(core: ClientCore, pendings: Sequence[PendingResult]) -> list[str]:
    """Detach what is outstanding of `pendings`, and wait until that is safe; any thread.

    Returns
    -------
    list of str
        Their ids.

    Raises
    ------
    DetachFailed
        The controller cannot keep it.
    ValueError
        Some of it was sent by another client, or cannot be detached.
    """
    core.check_usable()
    foreign = [each.id for each in pendings if not core.is_own(each)]
    if foreign:
        raise ValueError(f"{foreign[0]} was sent by another client, which alone can detach it.")
    transfers = [each.id for each in pendings if each.method == "transfer"]
    if transfers:
        raise ValueError(f"{transfers[0]} is a transfer, which cannot be detached. Wait for it.")
    future: Future[Any] = Future()
    core.tasks.call(core.detaching.detach, core.new_id(), pendings, future)
    core.wait(future, None)
    future.result()
    return [each.id for each in pendings]


def _placeless(parts: Parts) -> Parts:
    """Parts whose bytes lie in no memory of this client, which may be gone."""
    return tuple(BlobRef(part.blob, part.size) if isinstance(part, BlobRef) else part for part in parts)


def _named(parts: Parts, blobs: Mapping[str, memoryview]) -> Mapping[str, memoryview]:
    return {part.blob: blobs[part.blob] for part in parts if isinstance(part, BlobRef)}
