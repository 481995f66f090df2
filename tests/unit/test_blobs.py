"""Chunked blobs between two stores: any loss, repeat or restart ends in the same bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from ipython1.kernel.interfaces import IBlobStore
from ipython1.kernel.wire import blobs as blobs_module
from ipython1.kernel.wire.blobs import ACTIVE, LOST, WINDOW, ChunkStore, gather_parts
from ipython1.kernel.wire.records import CHUNK_SIZE, BlobRef, Chunk, Grant, Record


class Ends:
    """A sender and a receiver with a wire that the test can break."""

    def __init__(self) -> None:
        self.to_receiver: list[Record] = []
        self.to_sender: list[Record] = []
        self.sender = ChunkStore(self.to_receiver.append)
        self.receiver = ChunkStore(self.to_sender.append)

    def turn(self) -> None:
        chunks, self.to_receiver[:] = list(self.to_receiver), []
        for record in chunks:
            assert isinstance(record, Chunk)
            self.receiver.chunk_received(record)
        grants, self.to_sender[:] = list(self.to_sender), []
        for grant in grants:
            assert isinstance(grant, Grant)
            self.sender.grant_received(grant)

    def settle(self) -> None:
        while self.to_receiver or self.to_sender:
            self.turn()


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 7 * CHUNK_SIZE - 3])
def test_a_blob_arrives_whole_and_writable(size: int) -> None:
    ends, got = Ends(), []
    ends.receiver.expect("b", size).addCallback(got.append)
    ends.sender.offer("b", memoryview(content(size)))
    ends.settle()
    if size:
        assert bytes(got[0]) == content(size)
        got[0][0] = 1
    ends.sender.release("b")
    assert verifyObject(IBlobStore, ends.sender)


def test_no_more_than_the_window_is_on_its_way() -> None:
    ends = Ends()
    for i in range(20):
        ends.sender.offer(f"c-{i}", memoryview(content(10 * CHUNK_SIZE)))
    on_the_way = sum(len(chunk.data) for chunk in ends.to_receiver if isinstance(chunk, Chunk))
    assert on_the_way == ACTIVE * WINDOW


def test_what_has_arrived_is_counted() -> None:
    ends, size = Ends(), 6 * CHUNK_SIZE
    for i in range(ACTIVE + 1):
        ends.receiver.expect(f"c-{i}", size)
        ends.sender.offer(f"c-{i}", memoryview(content(size)))
    assert (ends.sender.sent("c-0"), ends.sender.sent(f"c-{ACTIVE}")) == (0, 0)
    ends.turn()
    assert ends.sender.sent("c-0") == WINDOW
    ends.settle()
    assert [ends.sender.sent(f"c-{i}") for i in range(ACTIVE + 1)] == [size] * (ACTIVE + 1)
    ends.sender.release("c-0")
    assert ends.sender.sent("c-0") == 0  # of nothing


STEPS = st.lists(
    st.sampled_from(["turn", "lose", "expect again", "offer again", "refuse", "repeat"]), max_size=30
)


@given(STEPS, st.integers(1, 12))
def test_whatever_happens_on_the_way_the_bytes_are_right(steps: list[str], chunks: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs_module, "CHUNK_SIZE", 10)
        patch.setattr(blobs_module, "WINDOW", 40)
        data = content(chunks * 10 - 3)
        ends, got = Ends(), []
        ends.receiver.expect("b", len(data)).addCallback(got.append)
        ends.sender.offer("b", memoryview(data))
        for step in steps:
            if step == "turn":
                ends.turn()
            elif step == "lose":  # the controller died: what was on the way is gone
                ends.to_receiver.clear()
                ends.to_sender.clear()
                ends.sender.session_lost()
                ends.sender.offer("b", memoryview(data))
                ends.receiver.ask_again("b")
            elif step == "expect again":
                ends.receiver.ask_again("b")
            elif step == "offer again":
                ends.sender.offer("b", memoryview(data))
            elif step == "refuse":
                ends.sender.grant_received(Grant("b", -1))
            else:
                ends.to_receiver.extend(list(ends.to_receiver[:2]))
        ends.receiver.ask_again("b")
        ends.settle()
        assert [bytes(item) for item in got] == [data]


def test_a_blob_nobody_expects_is_refused_until_it_is_expected() -> None:
    ends, got = Ends(), []
    data = content(5 * CHUNK_SIZE)
    ends.sender.offer("b", memoryview(data))
    ends.settle()
    ends.receiver.expect("b", len(data)).addCallback(got.append)
    ends.settle()
    assert [bytes(item) for item in got] == [data]


def test_chunks_past_the_end_are_dropped() -> None:
    ends, got = Ends(), []
    ends.receiver.expect("b", 4).addCallback(got.append)
    ends.receiver.chunk_received(Chunk("b", 0, b"12345"))
    ends.receiver.chunk_received(Chunk("b", 2, b"34"))
    assert not got
    ends.receiver.chunk_received(Chunk("b", 0, b"1234"))
    assert [bytes(item) for item in got] == [b"1234"]


def test_large_parts_leave_the_record_and_all_is_copied() -> None:
    large, small = bytearray(content(100_000)), bytearray(b"small")
    parts, blobs = Ends().sender.split([small, memoryview(large)], "id/s0", 64 * 1024)
    assert parts == (b"small", BlobRef("id/s0/0", 100_000))
    large[:] = bytes(100_000)
    assert bytes(blobs["id/s0/0"]) == content(100_000)


def test_many_middling_parts_do_not_make_a_huge_record() -> None:
    parts, blobs = Ends().sender.split([bytes(30_000)] * 10, "id", 64 * 1024)
    inline = sum(len(part) for part in parts if isinstance(part, bytes))
    assert inline < 64 * 1024
    assert len(blobs) == 8


def test_parts_are_gathered_in_their_order() -> None:
    ends, got = Ends(), []
    gather_parts(ends.receiver, (b"x", BlobRef("b", 3), b"y", BlobRef("c", 2)), got.append, got.append)
    ends.receiver.chunk_received(Chunk("c", 0, b"cc"))
    assert not got
    ends.receiver.chunk_received(Chunk("b", 0, b"bbb"))
    assert [[bytes(part) for part in parts] for parts in got] == [[b"x", b"bbb", b"y", b"cc"]]
    gather_parts(ends.receiver, (b"x",), got.append, got.append)
    assert got[1] == [b"x"]


def test_a_blob_without_bytes_is_there_at_once() -> None:
    ends, got = Ends(), []
    ends.receiver.expect("b", 0).addCallback(got.append)
    assert got == [bytearray()]
    assert not ends.receiver._incoming


def test_parts_that_cannot_be_had_are_told_once_and_the_rest_is_dropped() -> None:
    ends, got, errors = Ends(), [], []
    parts = (BlobRef("a", 3), BlobRef("b", 3), BlobRef("c", 3))
    gather_parts(ends.receiver, parts, got.append, errors.append)
    ends.receiver.chunk_received(Chunk("b", LOST, b""))
    ends.receiver.chunk_received(Chunk("a", LOST, b""))
    ends.receiver.chunk_received(Chunk("c", 0, b"ccc"))
    gather_parts(ends.receiver, (BlobRef("d", 3), BlobRef("e", 2**62)), got.append, errors.append)
    gather_parts(ends.receiver, (BlobRef("f", 2**64), BlobRef("g", 3)), got.append, errors.append)
    assert not got
    assert [type(error) for error in errors] == [ConnectionError, MemoryError, MemoryError]
    assert not ends.receiver._incoming


def test_what_was_released_does_not_wait_to_be_sent() -> None:
    ends = Ends()
    for i in range(ACTIVE + 3):
        ends.sender.offer(f"c-{i}", memoryview(content(10)))
    for i in range(ACTIVE + 3):
        ends.sender.release(f"c-{i}")
    assert not ends.sender._waiting
    assert not ends.sender._active


def test_a_client_that_takes_none_of_its_blobs_does_not_hold_up_others() -> None:
    ends = Ends()
    for i in range(2 * ACTIVE):
        ends.sender.offer(f"stopped-{i}", memoryview(content(10)))
    ends.sender.offer("other-1", memoryview(content(10)))
    names = [chunk.blob for chunk in ends.to_receiver if isinstance(chunk, Chunk)]
    assert names == [*(f"stopped-{i}" for i in range(ACTIVE)), "other-1"]
    ends.sender.grant_received(Grant("stopped-0", 10))
    assert ends.to_receiver[-1] == Chunk(f"stopped-{ACTIVE}", 0, content(10))


def test_a_receiver_can_ask_for_all_that_it_lacks() -> None:
    ends = Ends()
    for blob, size in (("a", 3), ("b", 4)):
        ends.receiver.expect(blob, size)
    ends.receiver.chunk_received(Chunk("b", 0, b"bb"))
    ends.to_sender.clear()
    ends.receiver.ask_for_all()
    assert ends.to_sender == [Grant("a", 0), Grant("b", 2)]
