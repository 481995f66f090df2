"""One port for two protocols: who gets which bytes, and who waits too long."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger

from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.sniffing import MAGIC, SNIFF_TIME, Sniffing

PEER = IPv4Address("TCP", "192.0.2.1", 1)
GET = b"GET /id/asqfzluqrtrz7n5vwetuphbm7hvhenqx HTTP/1.1\r\nUpgrade: TLS/1.0\r\n\r\n"
#: Guests that may be here.
LIMIT = 20


class Transport(StringTransport):
    """When it is aborted its protocol hears of it a turn of the reactor later."""

    protocol: Any = None

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def abortConnection(self) -> None:
        if not self.disconnecting:
            super().abortConnection()
            self._clock.callLater(0, self.protocol.connectionLost)


class Recorder(Protocol):
    """Knows its transport, and what it heard."""

    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        assert data
        self.heard += data


class World:
    """The two factories, and connections to both."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lanes: list[Recorder] = []
        self.others: list[Recorder] = []
        self.sniffing = Sniffing(
            self.clock,
            self._factory(self.lanes),
            self._factory(self.others),
            Complaints(Logger(), self.clock),
            Guests(LIMIT),
        )

    def _factory(self, made: list[Recorder]) -> Factory:
        def make() -> Recorder:
            made.append(Recorder())
            return made[-1]

        return Factory.forProtocol(make)

    def connect(self) -> Transport:
        transport = Transport(self.clock)
        transport.protocol = self.sniffing.buildProtocol(PEER)
        transport.protocol.makeConnection(transport)
        return transport

    def got(self) -> tuple[list[bytes], list[bytes]]:
        return [r.heard for r in self.lanes], [r.heard for r in self.others]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces, none of them empty."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


def expected(data: bytes) -> tuple[list[bytes], list[bytes]]:
    if data.startswith(MAGIC):
        return [data[len(MAGIC) :]], []
    return ([], []) if MAGIC.startswith(data) else ([], [data])


beginnings = st.one_of(
    st.just(b""),
    st.just(GET),
    st.builds(lambda n: MAGIC[:n], st.integers(0, len(MAGIC))),
    st.builds(lambda n: GET[:n], st.integers(0, len(GET))),
)


@given(beginnings, st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=12))
@example(GET, b"", list(range(200)))
@example(MAGIC, b"\x16\x03\x01", list(range(200)))
@example(MAGIC[:-1], b"x", [])
def test_all_bytes_reach_the_right_one(beginning: bytes, rest: bytes, cuts: list[int]) -> None:
    world = World()
    transport = world.connect()
    for piece in pieces(beginning + rest, cuts):
        transport.protocol.dataReceived(piece)
    assert world.got() == expected(beginning + rest)
    decided = world.got() != ([], [])
    assert len(world.sniffing.guests) == int(not decided)
    assert transport.value() == b""
    world.clock.advance(SNIFF_TIME)
    assert transport.disconnecting == (not decided)
    world.clock.advance(0)
    assert world.clock.getDelayedCalls() == []


@given(st.binary(min_size=1), st.lists(st.integers(0, 200), max_size=12))
def test_any_bytes_at_all(data: bytes, cuts: list[int]) -> None:
    world = World()
    transport = world.connect()
    for piece in pieces(data, cuts):
        transport.protocol.dataReceived(piece)
    assert world.got() == expected(data)


def test_who_decides_has_the_transport() -> None:
    world = World()
    for said in (MAGIC, b"G"):
        transport = world.connect()
        transport.protocol.dataReceived(said)
        [recorder] = world.lanes if said == MAGIC else world.others
        assert recorder.transport is transport
        assert transport.protocol is recorder


def test_bytes_in_drops_do_not_prolong_the_time() -> None:
    world = World()
    transport = world.connect()
    for byte in MAGIC[:8]:
        transport.protocol.dataReceived(bytes([byte]))
        assert not transport.disconnecting
        world.clock.advance(SNIFF_TIME / 8)
    assert transport.disconnecting


def test_who_hangs_up_is_forgotten() -> None:
    world = World()
    transport = world.connect()
    transport.protocol.connectionLost()
    assert len(world.sniffing.guests) == 0
    assert world.clock.getDelayedCalls() == []


def test_the_silent_make_room_for_others() -> None:
    world = World()
    silent = [world.connect() for _ in range(LIMIT + 5)]
    assert [transport.disconnecting for transport in silent] == [True] * 5 + [False] * LIMIT
    late = world.connect()
    late.protocol.dataReceived(GET)
    assert world.got() == ([], [GET])
    world.clock.advance(0)
    assert len(world.sniffing.here) == LIMIT - 1


def test_stop_ends_those_that_wait() -> None:
    world = World()
    waiting, decided = world.connect(), world.connect()
    decided.protocol.dataReceived(b"GET")
    stopped: list[None] = []
    world.sniffing.stop().addCallback(stopped.append)
    assert (waiting.disconnecting, decided.disconnecting, stopped) == (True, False, [])
    world.clock.advance(0)
    assert stopped == [None]
    assert world.clock.getDelayedCalls() == []
