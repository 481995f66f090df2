"""Blobs through shared memory, and what happens where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.arriving import Arriving
from ipython1.kernel.wire.blobs import ChunkStore, gather_parts
from ipython1.kernel.wire.drafts import Draft
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
    assert shared.take(place.format(host=shared.host), 10) is None


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


# -- what arrives bit by bit -------------------------------------------------------------


def test_a_draft_is_seen_by_others_when_it_is_published(shared: SharedMemory) -> None:
    draft = shared.draft(len(LARGE))
    assert draft is not None
    for offset in range(0, len(LARGE), 100_000):
        draft.write(offset, LARGE[offset : offset + 100_000])
    assert draft.read(1000) == LARGE[:1000]
    published = shared.publish(draft)
    assert published is not None
    place, own = published
    theirs = SharedMemory(Arena()).take(place, len(LARGE))
    assert bytes(own) == bytes(theirs or b"") == LARGE
    own[0] ^= 1
    assert theirs is not None
    assert theirs[0] == LARGE[0]
    shared.release(place)
    assert shared.take(place, 10) is None


def test_a_draft_that_is_discarded_gives_its_memory_back(shared: SharedMemory) -> None:
    draft = shared.draft(1_000_000)
    assert draft is not None
    draft.write(0, LARGE)
    assert shared._arena.held >= 1_000_000
    draft.discard()
    assert not shared._arena.held
    assert shared.draft(0) is None
    shared.close()
    assert shared.draft(10) is None


def test_memory_that_is_used_again_for_less_holds_only_that(shared: SharedMemory) -> None:
    for size in (len(LARGE), len(LARGE) - 100_000):
        draft = shared.draft(size)
        assert draft is not None
        draft.write(0, LARGE[:size])
        published = shared.publish(draft)
        assert published is not None
        assert bytes(published[1]) == LARGE[:size]
        shared.release(published[0])
        del published
        shared.trim(0.0)


class Lost:
    """Fails at what a draft does, from some moment on."""

    def __init__(self, draft: Draft, *failing: str) -> None:
        for name in ("write", "read", "publish", "discard"):
            setattr(self, name, getattr(draft, name))
        for name in failing:
            setattr(self, name, self._fail)

    def _fail(self, *args: object) -> bytes:
        raise OSError(2, "No such file or directory")


@pytest.mark.parametrize("failing", [("write",), ("write", "read")])
@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_without_room_it_goes_on_in_memory_of_its_own(
    shared: SharedMemory, failing: tuple[str, ...], chunks: int
) -> None:
    arriving = Arriving(5)
    for i in range(chunks):
        arriving.add(b"%d" % i)
    assert arriving.share(shared)
    assert arriving.share(shared)
    assert arriving.add(b"%d" % chunks)
    assert arriving._draft is not None
    arriving._draft = Lost(arriving._draft, *failing)  # type: ignore[assignment]
    assert not arriving.add(b"%d" % (chunks + 1))
    assert arriving.have == (0 if "read" in failing else chunks + 2)
    for i in range(arriving.have, 5):
        assert arriving.add(b"%d" % i)
    assert arriving.finish(shared) == ("", b"01234")
    assert not shared._arena.held


def test_it_begins_anew_where_its_folder_is_lost(shared: SharedMemory) -> None:
    arriving = Arriving(3)
    assert arriving.share(shared)
    arriving.add(b"abc")
    shutil.rmtree(shared._arena._home)  # type: ignore[arg-type]
    assert arriving.finish(shared) is None
    assert arriving.have == 0
    arriving.add(b"abc")
    assert arriving.finish(shared) == ("", b"abc")


def test_what_cannot_be_shared_at_all_is_as_before(shared: SharedMemory) -> None:
    arriving = Arriving(3)
    assert not arriving.share(None)
    shared.close()
    assert not arriving.share(shared)
    arriving.add(b"abc")
    assert arriving.finish(None) == ("", b"abc")
