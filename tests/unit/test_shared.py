"""Blobs through shared memory, and what happens where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.blobs import ChunkStore, gather_parts
from ipython1.kernel.wire.records import BlobRef, Chunk, Grant, Record
from ipython1.kernel.wire.segments import user_folder
from ipython1.kernel.wire.shared import SharedMemory

pytestmark = pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")

LARGE = os.urandom(300_000)


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    shared = SharedMemory(Arena())
    yield shared
    shared.close()


class Ends:
    """A sender with shared memory, and a receiver with or without."""

    def __init__(self, shared: SharedMemory, theirs: SharedMemory | None) -> None:
        self.to_receiver: list[Record] = []
        self.to_sender: list[Record] = []
        self.clock = Clock()
        self.sender = ChunkStore(self.to_receiver.append, shared, self.clock)
        self.receiver = ChunkStore(self.to_sender.append, theirs, self.clock)
        self.got: list[list] = []

    def send(self, *parts: bytes) -> tuple[list[BlobRef], dict[str, memoryview]]:
        split, blobs = self.sender.split(parts, "id", 64 * 1024)
        for blob, data in blobs.items():
            self.sender.offer(blob, data)
        gather_parts(self.receiver, split, self.got.append, self.got.append)  # type: ignore[arg-type]
        return [part for part in split if isinstance(part, BlobRef)], blobs

    def settle(self) -> None:
        while self.to_receiver or self.to_sender:
            chunks, self.to_receiver[:] = list(self.to_receiver), []
            for chunk in chunks:
                assert isinstance(chunk, Chunk)
                self.receiver.chunk_received(chunk)
            grants, self.to_sender[:] = list(self.to_sender), []
            for grant in grants:
                assert isinstance(grant, Grant)
                self.sender.grant_received(grant)


def test_a_receiver_on_this_host_takes_it_at_once(shared: SharedMemory) -> None:
    ends = Ends(shared, SharedMemory(Arena()))
    refs, _ = ends.send(b"small", LARGE, LARGE[::-1])
    assert [bytes(part) for part in ends.got[0]] == [b"small", LARGE, LARGE[::-1]]
    assert not ends.to_receiver
    assert ends.to_sender == [Grant(ref.blob, ref.size) for ref in refs]
    ends.got[0][1][0] ^= 1  # writable, and its own
    assert bytes(shared.take(refs[0].place, refs[0].size) or b"") == LARGE


def test_another_host_asks_for_chunks(shared: SharedMemory) -> None:
    ends = Ends(shared, None)
    ends.send(LARGE)
    assert not ends.got
    ends.settle()
    assert [bytes(part) for part in ends.got[0]] == [LARGE]


def test_what_was_released_is_found_no_more_and_lives_on_where_it_was_taken(shared: SharedMemory) -> None:
    ends = Ends(shared, SharedMemory(Arena()))
    refs, blobs = ends.send(LARGE, LARGE)
    ends.sender.release(refs[0].blob)
    assert shared.take(refs[1].place, refs[1].size) is not None
    ends.sender.release(refs[1].blob)
    assert shared.take(refs[0].place, refs[0].size) is None
    blobs.clear()
    for _ in range(5):
        again, _ = ends.send(bytes(300_000))
        ends.sender.release(again[0].blob)
    assert [bytes(part) for part in ends.got[0]] == [LARGE, LARGE]


@pytest.mark.parametrize(
    "place",
    [
        "",
        ":",
        "::",
        "x:../../etc/passwd:0",
        "{host}:../token:0",
        "{host}:a/b:0",
        "{host}:a/b:-1",
        "{host}:a/b:x",
        "{host}",
    ],
)
def test_a_place_that_is_none_is_refused(shared: SharedMemory, place: str) -> None:
    assert shared.take(place.format(host=shared._host), 10) is None


def test_idle_memory_is_given_back_and_closing_leaves_no_timer(shared: SharedMemory) -> None:
    ends = Ends(shared, SharedMemory(Arena()))
    refs, blobs = ends.send(LARGE)
    assert shared._arena.held
    blobs.clear()
    ends.got.clear()
    ends.sender.release(refs[0].blob)
    for _ in range(60):
        ends.clock.advance(1)
    assert shared.idle
    assert not ends.clock.getDelayedCalls()
    ends.send(LARGE)
    ends.sender.close()
    assert not ends.clock.getDelayedCalls()


def test_without_room_it_goes_in_chunks() -> None:
    notes: list[str] = []
    full = SharedMemory(Arena(limit=1, note=notes.append))
    ends = Ends(full, full)
    refs, _ = ends.send(LARGE)
    assert refs[0].place == ""
    ends.settle()
    assert [bytes(part) for part in ends.got[0]] == [LARGE]
    assert len(notes) == 1
    full.close()
