"""Lanes without sockets: frames, the handshake of both ends, signs of life, closing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire import moving, tickets
from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.lanes import LINGER, LaneLink
from ipython1.kernel.wire.moving import FAILURES, LASTING, MOVE_TIME, PAUSE, Move, Trust, unix_way
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER, SIGNS
from ipython1.kernel.wire.session import BATCH_LIMIT
from ipython1.kernel.wire.tickets import HANDSHAKE_TIME, TICKET_TIME, LaneServer
from tests.conftest import LoggedErrors


def frame(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


class Transport(StringTransport):
    """What a lane needs of a socket."""

    aborted = False

    def doWrite(self) -> None:
        """All is written at once."""

    def abortConnection(self) -> None:
        self.aborted = True


#: Seconds between signs of life.
PERIOD = DEAD_LINK_AFTER / SIGNS


@implementer(ILinkSink)
class Sink:
    """Keeps what it hears; sends a batch as soon as it is attached."""

    def __init__(self, received: int) -> None:
        self.received = received
        self.batches: list[bytes] = []
        self.attached: list[tuple[Any, int]] = []
        self.lost: list[Any] = []
        self.error: Exception | None = None

    def attach(self, link: ILink, peer_received: int) -> None:
        self.attached.append((link, peer_received))
        link.send(b"from %d" % self.received)

    def batch_received(self, batch: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.batches.append(batch)

    def link_lost(self, link: ILink | None) -> None:
        self.lost.append(link)


class Old:
    """The Foolscap link."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def hold(self) -> None:
        self.said.append("hold")

    def release(self) -> None:
        self.said.append("release")


class Connector:
    def __init__(self, move: Move) -> None:
        self._move = move

    def disconnect(self) -> None:
        self._move.not_connected(Failure(OSError("given up")))


class World:
    """Both ends of a lane, and the bytes between them, which flow when told to."""

    def __init__(self, ways: int = 1) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        self.server = LaneServer(
            self.clock, Complaints(Logger(observer=self.events.append), self.clock), Guests(100)
        )
        self.near, self.far = Sink(3), Sink(7)
        self.old = Old()
        self.ended: list[Move] = []
        self.ticket = self.server.ticket(self.far)
        self.dialled = 0
        self.move = Move(self.clock, self.old, self.near, self.ticket, [self.dial] * ways, self.ended.append)
        self.move.start()

    def dial(self, move: Move) -> Connector:
        self.dialled += 1
        return Connector(move)

    def connect(self) -> World:
        self.near_lane = self.move.new_lane(LaneLink)
        self.far_lane = self.server._visit(LaneLink)
        for lane in (self.near_lane, self.far_lane):
            lane.makeConnection(Transport())
        return self

    def flow(self, lane: LaneLink) -> bytes:
        """Bring what is on its way to `lane`."""
        other = self.near_lane if lane is self.far_lane else self.far_lane
        data: bytes = other.transport.value()
        other.transport.clear()
        if data:
            lane.dataReceived(data)
        return data

    def shake(self, frames: int = 4) -> World:
        for number in range(frames):
            self.flow(self.near_lane if number % 2 else self.far_lane)
        return self

    def cut(self) -> None:
        for lane in (self.near_lane, self.far_lane):
            lane.connectionLost(Failure(OSError("cut")))


# -- the handshake -------------------------------------------------------------------


def test_the_handshake() -> None:
    world = World().connect()
    near, far = world.near_lane, world.far_lane
    verifyObject(ILink, near)
    assert world.flow(far) == frame(world.ticket)
    assert world.flow(near) == frame(struct.pack("!Q", 7))
    assert (world.near.attached, world.far.attached) == ([(near, 7)], [])
    assert world.old.said == ["hold"]
    assert world.flow(far) == frame(struct.pack("!Q", 3)) + frame(b"from 3")
    assert world.far.attached == [(far, 3)]
    assert world.far.batches == [b"from 3"]
    assert world.flow(near) == frame(b"") + frame(b"from 7")
    assert world.near.batches == [b"from 7"]
    assert world.old.said == ["hold", "release"]
    assert (world.move.settled, world.ended) == (True, [])
    world.cut()
    assert (world.near.lost, world.far.lost) == ([near], [far])
    assert world.ended == [world.move]
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("frames", range(6))
@pytest.mark.parametrize("how", ["cut", "too late", "old lost", "closed here"])
def test_the_end_at_each_step(frames: int, how: str) -> None:
    world = World().connect().shake(frames)
    moved, settled = frames >= 2, frames >= 4
    ends: dict[str, Callable[[], None]] = {
        "cut": lambda: None,
        "too late": lambda: world.clock.advance(MOVE_TIME),
        "old lost": world.move.old_lost,
        "closed here": world.move.close,
    }
    ends[how]()
    gone = world.near_lane.transport.aborted or world.near_lane.transport.disconnecting
    expected = {"cut": False, "too late": not settled, "old lost": not moved, "closed here": True}
    assert gone == expected[how]
    world.cut()
    assert world.near.lost == ([world.near_lane] if moved else [])
    assert world.far.lost == ([world.far_lane] if frames >= 3 else [])
    assert len(world.far.attached) == int(frames >= 3)
    assert world.old.said == (["hold", "release"] if moved else [])
    assert world.ended == [world.move]
    assert len(world.server._tickets) == int(frames == 0)  # nobody has seen it
    world.server.withdraw(world.ticket)
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("frames", range(5))
def test_a_ticket_that_is_withdrawn_at_each_step(frames: int) -> None:
    """As by a session that has gone on over another link meanwhile."""
    world = World().connect().shake(frames)
    world.server.withdraw(world.ticket)
    assert world.far_lane.transport.aborted == (1 <= frames < 3)
    world.shake()
    assert len(world.far.attached) == int(frames >= 3)
    world.cut()
    assert world.clock.getDelayedCalls() == []


def test_a_ticket_expires() -> None:
    world = World().connect()
    world.clock.advance(TICKET_TIME)
    assert world.server._tickets == {}
    assert world.near_lane.transport.aborted
    assert world.far_lane.transport.aborted
    world.cut()
    assert world.clock.getDelayedCalls() == []


def test_a_visitor_has_not_for_ever() -> None:
    world = World().connect().shake(2)
    world.clock.advance(HANDSHAKE_TIME)
    assert world.far_lane.transport.aborted
    world.cut()
    assert "not within" in str(world.events)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (0, b""),
        (0, bytes(32)),
        (0, bytes(31)),
        (1, b""),
        (1, bytes(7)),
        (1, bytes(9)),
        (1, bytes(32)),
    ],
)
def test_what_is_no_handshake_ends_the_far_end(frames: int, said: bytes) -> None:
    world = World().connect().shake(frames)
    world.near_lane.transport.clear()
    world.far_lane.dataReceived(frame(said))
    assert world.far_lane.transport.aborted
    assert world.far.attached == []
    world.cut()
    assert world.server._tickets.keys() <= ({world.ticket} if frames == 0 else set())


@pytest.mark.parametrize(("frames", "said"), [(1, b""), (1, bytes(9)), (3, b"batch")])
def test_what_is_no_handshake_ends_the_near_end(frames: int, said: bytes) -> None:
    world = World().connect().shake(frames)
    world.far_lane.transport.clear()
    world.near_lane.dataReceived(frame(said))
    assert world.near_lane.transport.aborted
    assert world.near.batches == []
    world.cut()
    assert world.ended == [world.move]


def test_the_next_way_where_one_fails() -> None:
    world = World(ways=3)
    assert world.dialled == 1
    world.move.not_connected(Failure(OSError("refused")))
    world.connect()
    world.cut()
    assert world.dialled == 3
    world.connect().shake()
    assert world.move.settled


def test_no_way_is_left() -> None:
    world = World(ways=2)
    for _ in range(2):
        assert world.ended == []
        world.move.not_connected(Failure(OSError("refused")))
    assert world.ended == [world.move]
    assert world.move.why == "refused"
    assert world.near.attached == []


def test_too_late_while_it_connects() -> None:
    world = World(ways=2)
    world.clock.advance(MOVE_TIME)
    assert (world.dialled, world.ended) == (1, [world.move])
    assert "not within" in world.move.why


def test_the_unix_way_needs_a_socket_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    assert unix_way(str(tmp_path / "nothing"), world.move) is None
    assert unix_way("\x00", world.move) is None
    (tmp_path / "other").touch()
    monkeypatch.setattr(moving.os, "getuid", lambda: -1)
    assert unix_way(str(tmp_path / "other"), world.move) is None


def test_stopping_the_server_ends_all_lanes() -> None:
    world = World().connect().shake()
    waiting = world.server._visit(LaneLink)
    waiting.makeConnection(Transport())
    stopped: list[None] = []
    world.server.stop().addCallback(stopped.append)
    assert waiting.transport.aborted
    assert world.far_lane.transport.disconnecting
    world.cut()
    assert stopped == []
    waiting.connectionLost()
    assert stopped == [None]
    assert world.clock.getDelayedCalls() == []


# -- frames --------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_batches_in_any_pieces(batches: list[bytes], cuts: list[int]) -> None:
    world = World().connect().shake()
    world.near.batches.clear()
    data = b"".join(map(frame, batches))
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for a, b in pairwise(ends):
        world.near_lane.dataReceived(data[a:b])
    assert world.near.batches == [batch for batch in batches if batch]


@pytest.mark.parametrize("frames", [0, 1, 4])
def test_a_frame_that_is_too_large_ends_the_lane_at_its_length(frames: int) -> None:
    world = World().connect().shake(frames)
    limit = BATCH_LIMIT if frames == 4 else 32
    world.far_lane.dataReceived(struct.pack("!I", limit + 1))
    assert world.far_lane.transport.aborted
    world.far_lane.dataReceived(bytes(1000))
    assert len(b"".join(world.far_lane._pieces)) < 10


def test_a_malformed_batch_ends_the_lane(logged_errors: LoggedErrors) -> None:
    for error in (WireError(reason="no"), RuntimeError("a mistake")):
        world = World().connect().shake()
        world.far.error = error
        world.far_lane.dataReceived(frame(b"one") + frame(b"two"))
        assert world.far_lane.transport.aborted
        world.cut()
    assert len(logged_errors.flush(RuntimeError)) == 1


# -- signs of life ------------------------------------------------------------------


def test_silent_sides_send_signs_of_life() -> None:
    world = World().connect().shake()
    for _ in range(20):
        world.clock.advance(PERIOD)
        world.flow(world.near_lane)
        world.flow(world.far_lane)
    assert not world.near_lane.transport.aborted
    assert not world.far_lane.transport.aborted
    world.cut()


def test_who_speaks_sends_no_signs_of_life() -> None:
    world = World().connect().shake()
    world.near_lane.send(b"batch")
    world.near_lane.transport.clear()
    world.clock.advance(PERIOD)
    assert world.near_lane.transport.value() == b""
    world.clock.advance(PERIOD)
    assert world.near_lane.transport.value() == frame(b"")
    world.cut()


def test_who_hears_nothing_gives_up() -> None:
    world = World().connect().shake()
    for _ in range(SIGNS - 1):
        world.clock.advance(PERIOD)
        assert not world.near_lane.transport.aborted
    world.clock.advance(PERIOD)
    assert world.near_lane.transport.aborted
    world.cut()
    assert world.clock.getDelayedCalls() == []


# -- closing ------------------------------------------------------------------------


def test_closing_is_polite_but_not_for_ever() -> None:
    world = World().connect().shake()
    lane = world.near_lane
    lane.close()
    assert (lane.transport.disconnecting, lane.transport.aborted) == (True, False)
    lane.send(b"too late")
    lane.close()
    assert lane.transport.value() == b""
    world.clock.advance(LINGER)
    assert lane.transport.aborted
    world.cut()
    lane.abort("again")
    assert world.clock.getDelayedCalls() == []


# -- is it worth while? ----------------------------------------------------------------


def test_lanes_that_fail_again_and_again_are_not_tried_for_a_while() -> None:
    clock = Clock()
    trust = Trust(clock)
    for _ in range(2):
        for _ in range(FAILURES):
            assert trust
            trust.ended(clock.seconds() - LASTING / 2)
        assert not trust
        clock.advance(PAUSE)
    assert trust


def test_a_lane_that_has_lasted_makes_good() -> None:
    clock = Clock()
    trust = Trust(clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            trust.ended(clock.seconds())
        began = clock.seconds()
        clock.advance(LASTING)
        trust.ended(began)
    assert trust


def test_the_times_fit() -> None:
    """Who dials gives up first: the other end never waits for somebody who is gone."""
    assert moving.MOVE_TIME < tickets.HANDSHAKE_TIME < tickets.TICKET_TIME
