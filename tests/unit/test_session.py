"""The session against a simple model: whatever is cut, all arrives once and in order."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire import session as session_module
from ipython1.kernel.wire.session import ACK_DELAY, WINDOW, Session


@implementer(ILink)
class RecordingLink:
    """Keeps what is sent, for the test to deliver, lose or look at."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.closed = False

    def send(self, batch: bytes) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        self.closed = True

    def contents(self) -> list[tuple[int, int, tuple[bytes, ...]]]:
        return [msgpack.unpackb(batch, use_list=False) for batch in self.batches]


class Pair:
    """Two sessions and the links between them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.got: tuple[list[bytes], list[bytes]] = ([], [])
        self.sides = (Session(self.clock, self.got[0].append), Session(self.clock, self.got[1].append))
        self.links: tuple[RecordingLink, RecordingLink] | None = None

    def connect(self) -> None:
        self.links = (RecordingLink(), RecordingLink())
        received = [side.received for side in self.sides]
        self.sides[0].attach(self.links[0], received[1])
        self.sides[1].attach(self.links[1], received[0])

    def cut(self) -> None:
        if self.links is not None:
            links, self.links = self.links, None
            for side, link in zip(self.sides, links, strict=True):
                side.link_lost(link)

    def deliver(self, to: int, count: int) -> None:
        if self.links is not None:
            batches = self.links[1 - to].batches
            for batch in batches[:count]:
                self.sides[to].batch_received(batch)
            del batches[:count]

    def settle(self) -> None:
        for _ in range(50):
            self.clock.advance(ACK_DELAY)
            self.deliver(0, 100)
            self.deliver(1, 100)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 3)),
        st.tuples(st.just("turn"), st.sampled_from([0.0, ACK_DELAY])),
        st.tuples(st.just("cut")),
        st.tuples(st.just("connect")),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_record_arrives_once_and_in_order(steps: list[tuple]) -> None:
    pair = Pair()
    sent: tuple[list[bytes], list[bytes]] = ([], [])
    for step in steps:
        if step[0] == "send":
            record = b"%d" % len(sent[step[1]])
            sent[step[1]].append(record)
            pair.sides[step[1]].send(record)
        elif step[0] == "deliver":
            pair.deliver(step[1], step[2])
        elif step[0] == "turn":
            pair.clock.advance(step[1])
        elif step[0] == "cut":
            pair.cut()
        else:
            pair.cut()
            pair.connect()
    for side in (0, 1):
        assert pair.got[1 - side] == sent[side][: len(pair.got[1 - side])]
    pair.cut()
    pair.connect()
    pair.settle()
    assert pair.got[1] == sent[0]
    assert pair.got[0] == sent[1]
    assert [side.outbox_bytes for side in pair.sides] == [0, 0]


def test_provides_the_sink_interface() -> None:
    assert verifyObject(ILinkSink, Session(Clock(), lambda raw: None))
    assert verifyObject(ILink, RecordingLink())


def test_one_turn_is_one_batch() -> None:
    clock, link = Clock(), RecordingLink()
    session = Session(clock, lambda raw: None)
    session.attach(link, 0)
    for i in range(1000):
        session.send(b"%d" % i)
    clock.advance(0)
    assert [len(records) for _, _, records in link.contents()] == [1000]


def test_no_more_than_the_window_is_unacknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WINDOW", 3000)
    monkeypatch.setattr(session_module, "BATCH_SIZE", 1000)
    clock, link = Clock(), RecordingLink()
    session = Session(clock, lambda raw: None)
    session.attach(link, 0)
    for _ in range(10):
        session.send(bytes(1000))
    clock.advance(0)
    assert len(link.batches) == 3
    session.batch_received(msgpack.packb((1, 2, [])))
    clock.advance(0)
    assert len(link.batches) == 5
    assert WINDOW > 3000


def test_an_acknowledgement_rides_on_the_next_batch_or_goes_alone() -> None:
    clock, link = Clock(), RecordingLink()
    session = Session(clock, lambda raw: None)
    session.attach(link, 0)
    session.batch_received(msgpack.packb((1, 0, [b"x"])))
    session.send(b"answer")
    clock.advance(0)
    assert link.contents() == [(1, 1, (b"answer",))]
    clock.advance(1)
    assert len(link.batches) == 1
    session.batch_received(msgpack.packb((2, 1, [b"y"])))
    clock.advance(ACK_DELAY)
    assert link.contents()[1:] == [(2, 2, ())]


def test_a_new_link_replaces_the_old_one() -> None:
    clock, old, new = Clock(), RecordingLink(), RecordingLink()
    session = Session(clock, lambda raw: None)
    session.attach(old, 0)
    session.send(b"x")
    clock.advance(0)
    session.attach(new, 0)
    clock.advance(0)
    assert old.closed
    assert new.contents() == [(1, 0, (b"x",))]
    session.link_lost(old)
    assert session.linked


def test_grace_time_ends_the_session_once() -> None:
    clock, ended = Clock(), []
    session = Session(clock, lambda raw: None, grace=10, ended=lambda: ended.append(clock.seconds()))
    link = RecordingLink()
    clock.advance(5)
    session.attach(link, 0)
    clock.advance(100)
    session.link_lost(link)
    clock.advance(9)
    assert not ended
    clock.advance(1)
    assert ended == [115]
    session.send(b"x")
    assert session.outbox_bytes == 0
    late = RecordingLink()
    session.attach(late, 0)
    assert late.closed
    assert not clock.getDelayedCalls()


def test_drained_is_told_when_all_is_acknowledged() -> None:
    clock, link, told = Clock(), RecordingLink(), []
    session = Session(clock, lambda raw: None)
    session.when_drained(lambda: told.append("empty"))
    session.attach(link, 0)
    session.send(b"x")
    session.when_drained(lambda: told.append("sent"))
    clock.advance(0)
    assert told == ["empty"]
    session.batch_received(msgpack.packb((1, 1, [])))
    assert told == ["empty", "sent"]


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb((1, 0)),
        msgpack.packb(("1", 0, [])),
        msgpack.packb((0, 0, [])),
        msgpack.packb((1, -1, [])),
        msgpack.packb((1, 0, ["text"])),
        msgpack.packb((1, 5, [])),  # acknowledges what was never sent
        msgpack.packb((3, 0, [b"x"])),  # a gap
        b"\x91" * 5000,
    ],
)
def test_malformed_batches_are_refused(batch: bytes) -> None:
    session = Session(Clock(), lambda raw: None)
    session.attach(RecordingLink(), 0)
    with pytest.raises(WireError):
        session.batch_received(batch)
    assert session.received == 0


def test_a_peer_cannot_resume_at_what_was_never_sent() -> None:
    session = Session(Clock(), lambda raw: None)
    with pytest.raises(WireError):
        session.attach(RecordingLink(), 3)
