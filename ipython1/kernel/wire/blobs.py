"""Bulk bytes: parts too large for a record, through shared memory or in chunks.

Where there is shared memory, the sender copies a blob into it once, and the
record says where; every receiver on that host maps it from there, writable
and private. A receiver that cannot asks with a `Grant` for the blob to be
sent. The sender then keeps a few chunks of it on the way and goes on as the
final receiver grants more, so that control records stand between the chunks
and nothing in the middle has to store a whole blob. Without shared memory the
sender begins at once.

What several engines of another host are sent goes to one of them, which
shares it with the others; the controller says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import SerializationError
from ipython1.kernel.interfaces import IBlobStore
from ipython1.kernel.wire.arriving import Arriving
from ipython1.kernel.wire.arriving import Buffer as Buffer
from ipython1.kernel.wire.records import CHUNK_SIZE, BlobRef, Chunk, Grant, Part, Record, Share
from ipython1.kernel.wire.shared import SharedMemory

#: Bytes of one blob on the way, at most.
WINDOW = 4 * CHUNK_SIZE
#: Blobs of one sender's for one client on the way at the same time, at most.
ACTIVE = 8
#: Parts of one record, at most: it must stay small.
PARTS_LIMIT = 20_000
#: Seconds between two looks at shared memory that may be given back.
TRIM_INTERVAL = 1.0
#: Offset of the `Chunk` that tells that a blob will never be whole.
LOST = -1


class _Outgoing:
    """A blob on its way: all before `sent` is with the session, all before `granted` with the receiver."""

    __slots__ = ("data", "granted", "sent")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.sent = 0
        self.granted = 0


@implementer(IBlobStore)
class ChunkStore:
    """Sends and receives blobs as `Chunk` records over one session.

    Parameters
    ----------
    send : callable
        Takes a record for the peer.
    shared : SharedMemory, optional
        Used where it is given and there is room; closed by `close`.
    clock : IReactorTime, optional
        Needed with `shared`, which is given back when it lies idle.
    """

    def __init__(
        self, send: Callable[[Record], None], shared: SharedMemory | None = None, clock: Any = None
    ) -> None:
        self._send = send
        self._shared = shared
        self._clock = clock
        self._trim_call: Any = None
        self._places: dict[str, str] = {}  # of the blobs that lie in shared memory
        self._held: dict[str, memoryview] = {}
        self._outgoing: dict[str, _Outgoing] = {}
        self._waiting: dict[str, dict[str, None]] = {}  # by client
        self._active: dict[str, int] = {}  # of `_outgoing`, by client
        self._incoming: dict[str, Arriving] = {}
        self._carried: dict[str, str] = {}  # places of what came here for others of this host as well

    # -- sending --------------------------------------------------------------

    def split(
        self, parts: Iterable[Buffer], name: str, inline_limit: int
    ) -> tuple[tuple[Part, ...], dict[str, memoryview]]:
        """Record parts, and the blobs to `offer` for those that are large; any thread.

        Everything is copied once: what the caller does to its objects
        afterwards changes nothing. Blobs are called ``name/0``, ``name/1``, ...
        Each must be offered, or released.

        Raises
        ------
        SerializationError
            There are more than `PARTS_LIMIT` parts.
        """
        split, large = _split(parts, inline_limit)
        if not large:
            return tuple(split), {}
        blobs: dict[str, memoryview] = {}
        found = self._shared.put([split[index] for index in large]) if self._shared is not None else None
        for number, index in enumerate(large):
            blob, place = f"{name}/{number}", ""
            if found is not None:
                place, blobs[blob] = found[number]
                self._places[blob] = place
            else:
                blobs[blob] = memoryview(bytes(split[index]))
            split[index] = BlobRef(blob, len(blobs[blob]), place)
        return tuple(split), blobs

    def offer(self, blob: str, data: memoryview) -> None:
        """Send `data` (not changed any more) as `blob`, and hold it until `release`.

        What lies in shared memory is sent only where a receiver asks for it.
        """
        self._held[blob] = data
        if blob in self._places:
            self._plan_trim()
            return
        self._ends(blob)
        client = _client(blob)
        self._waiting.setdefault(client, {})[blob] = None
        self._start_waiting(client)

    def release(self, blob: str) -> None:
        """Nobody will want `blob` any more."""
        self._held.pop(blob, None)
        place = self._places.pop(blob, None)
        if place is not None and self._shared is not None:
            self._shared.release(place)
        client = _client(blob)
        self._waiting.get(client, {}).pop(blob, None)
        self._ends(blob)
        self._start_waiting(client)

    def sent(self, blob: str) -> int:
        """Bytes of an offered blob that the receiver has, or takes out of shared memory; any thread."""
        if blob in self._waiting.get(_client(blob), ()):
            return 0
        outgoing, data = self._outgoing.get(blob), self._held.get(blob, b"")
        return len(data) if outgoing is None else outgoing.granted

    def close(self) -> None:
        """Give back the shared memory; what was taken of it lives on."""
        if self._trim_call is not None:
            self._trim_call.cancel()
            self._trim_call = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _plan_trim(self) -> None:
        if self._shared is not None and self._trim_call is None and not self._shared.idle:
            self._trim_call = self._clock.callLater(TRIM_INTERVAL, self._trim)

    def _trim(self) -> None:
        self._trim_call = None
        if self._shared is not None:
            self._shared.trim(self._clock.seconds())
            self._plan_trim()

    def session_lost(self) -> None:
        """The peer knows nothing any more: what is held will be offered anew."""
        self._outgoing.clear()
        self._active.clear()
        self._waiting.clear()
        for blob in list(self._carried):
            self._end_sharing(blob)

    def grant_received(self, grant: Grant) -> None:
        """The receiver took all before an offset (less than before: it begins anew), or stops."""
        if grant.offset < 0:
            self._end_sharing(grant.blob)
        data = self._held.get(grant.blob)
        if data is None:
            return
        outgoing = self._outgoing.get(grant.blob)
        if grant.offset < 0 or grant.offset >= len(data):
            if self._ends(grant.blob):
                self._start_waiting(_client(grant.blob))
            return
        if outgoing is None:
            outgoing = self._begins(grant.blob, data)
        if grant.offset < outgoing.granted:
            outgoing.sent = grant.offset
        outgoing.granted = grant.offset
        outgoing.sent = max(outgoing.sent, grant.offset)
        self._go_on(grant.blob, outgoing)

    def _start_waiting(self, client: str) -> None:
        # Each client by itself: one that does not take its own must not hold up the others.
        waiting = self._waiting.get(client)
        while waiting and self._active.get(client, 0) < ACTIVE:
            blob = next(iter(waiting))
            del waiting[blob]
            if blob not in self._outgoing:
                self._go_on(blob, self._begins(blob, self._held[blob]))
        if not waiting:
            self._waiting.pop(client, None)

    def _begins(self, blob: str, data: memoryview) -> _Outgoing:
        client = _client(blob)
        self._active[client] = self._active.get(client, 0) + 1
        self._outgoing[blob] = outgoing = _Outgoing(data)
        return outgoing

    def _ends(self, blob: str) -> bool:
        """Whether `blob` was on its way."""
        if self._outgoing.pop(blob, None) is None:
            return False
        client = _client(blob)
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]
        return True

    def _go_on(self, blob: str, outgoing: _Outgoing) -> None:
        while outgoing.sent < len(outgoing.data) and outgoing.sent - outgoing.granted < WINDOW:
            data = bytes(outgoing.data[outgoing.sent : outgoing.sent + CHUNK_SIZE])
            self._send(Chunk(blob, outgoing.sent, data))
            outgoing.sent += len(data)

    # -- receiving --------------------------------------------------------------

    def expect(self, blob: str, size: int, place: str = "") -> Deferred[Buffer]:
        """The `size` bytes of `blob`: those at `place`, or else it asks for them, also again.

        The Deferred fails with a `MemoryError` where there is no room for
        them, and with a `ConnectionError` where the sender is gone.
        """
        deferred: Deferred[Buffer] = Deferred()
        incoming = self._incoming.get(blob)
        if incoming is None:
            data = self._shared.take(place, size) if place and self._shared is not None else None
            if data is not None:
                self._send(Grant(blob, size))
                deferred.callback(data)
                return deferred
            try:
                incoming = Arriving(size)
            except (MemoryError, OverflowError):
                deferred.errback(MemoryError(f"no room for {size} bytes"))
                return deferred
            if not size:
                deferred.callback(bytearray())
                return deferred
            self._incoming[blob] = incoming
        incoming.deferreds.append(deferred)
        self.ask_again(blob)
        return deferred

    def ask_again(self, blob: str) -> bool:
        """Tell the sender how far a blob is; False: it is not expected."""
        incoming = self._incoming.get(blob)
        if incoming is not None:
            self._send(Grant(blob, incoming.have))
        return incoming is not None

    def ask_for_all(self) -> None:
        """Tell the sender how far all expected blobs are: it may have lost count while the link was."""
        for blob in self._incoming:
            self.ask_again(blob)

    def drop(self, blob: str) -> None:
        """Expect `blob` no longer."""
        incoming = self._incoming.pop(blob, None)
        if incoming is not None:
            incoming.drop()

    def chunk_received(self, chunk: Chunk) -> None:
        """Take a chunk; one of a blob not expected is refused, a repeated one dropped."""
        incoming = self._incoming.get(chunk.blob)
        if chunk.offset == LOST:
            self._lost(chunk.blob)
            return
        if incoming is None:
            self._send(Grant(chunk.blob, -1))
            return
        if chunk.offset == incoming.have and chunk.offset + len(chunk.data) <= incoming.size:
            if not incoming.add(chunk.data):
                self._send(Share(chunk.blob, ""))
            if incoming.have == incoming.size:
                self._finish(chunk.blob, incoming)
                return
        self._send(Grant(chunk.blob, incoming.have))

    def share_received(self, share: Share) -> None:
        """Share a blob that arrives with others of this host; or it lies at a place there already."""
        incoming = self._incoming.get(share.blob)
        if incoming is None:  # not expected any more: another one will have to
            self._send(Grant(share.blob, -1))
        elif not share.place:
            if not incoming.share(self._shared):
                self._send(Share(share.blob, ""))
        else:
            data = self._shared.take(share.place, incoming.size) if self._shared is not None else None
            if data is None:
                self._send(Share(share.blob, ""))
                self.ask_again(share.blob)
            else:
                incoming.drop()
                self._arrived(share.blob, incoming, data)

    def _finish(self, blob: str, incoming: Arriving) -> None:
        """All its bytes are here."""
        found = incoming.finish(self._shared)
        if found is None:
            self._send(Share(blob, ""))
            self.ask_again(blob)
            return
        place, data = found
        if place:
            self._end_sharing(blob)
            self._carried[blob] = place
            self._send(Share(blob, place))
        self._arrived(blob, incoming, data)

    def _arrived(self, blob: str, incoming: Arriving, data: Buffer) -> None:
        del self._incoming[blob]
        self._send(Grant(blob, incoming.size))
        for deferred in incoming.deferreds:
            deferred.callback(data)

    def _end_sharing(self, blob: str) -> None:
        place = self._carried.pop(blob, None)
        if place is not None and self._shared is not None:
            self._shared.release(place)
            self._plan_trim()

    def _lost(self, blob: str) -> None:
        incoming = self._incoming.pop(blob, None)
        if incoming is not None:
            incoming.drop()
            for deferred in incoming.deferreds:
                deferred.errback(ConnectionError("its sender died before all of it was here"))


def _client(blob: str) -> str:
    """Who sent the command that a blob belongs to: names begin with its id."""
    return blob.partition("-")[0]


def _split(parts: Iterable[Buffer], inline_limit: int) -> tuple[list[Any], list[int]]:
    """The parts, small ones copied; and the indices of the large ones."""
    split: list[Any] = []
    large: list[int] = []
    inline = 0
    for part in parts:
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        if size + inline >= inline_limit and size > 1024:
            large.append(len(split))
            split.append(part)
        else:
            inline += size
            split.append(bytes(part))
        if len(split) > PARTS_LIMIT:
            reason = f"it holds more than {PARTS_LIMIT} large arrays; put them into one"
            raise SerializationError(what="The object", reason=reason)
    return split, large


def gather_parts(
    store: Any,
    parts: Sequence[Part],
    done: Callable[[list[Buffer]], None],
    failed: Callable[[Exception], None],
) -> None:
    """Call `done` with all `parts` as buffers, at once where no blob is among them.

    Where one of them cannot be had, `failed` is called, once.
    """
    buffers: list[Any] = list(parts)
    missing = [i for i, part in enumerate(parts) if isinstance(part, BlobRef)]
    if not missing:
        done(buffers)
        return
    left = len(missing)

    def arrived(data: Buffer, index: int) -> None:
        nonlocal left
        buffers[index] = data
        left -= 1
        if left == 0:
            done(buffers)

    def lost(failure: Failure) -> None:
        nonlocal left
        if left > 0:
            left = -1  # none of the others counts any more
            for index in missing:
                store.drop(parts[index].blob)  # type: ignore[union-attr]
            failed(cast(Exception, failure.value))

    for index in missing:
        if left > 0:
            store.expect(*parts[index]).addCallbacks(arrived, lost, (index,))
