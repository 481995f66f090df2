"""Sessions that move between Foolscap and a lane while they talk: every record once, in order."""

from __future__ import annotations

import contextlib
import math
import os
import random
import socket
import ssl
import stat
import struct
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from foolscap.api import flushEventualQueue
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from zope.interface.verify import verifyObject

from ipython1.kernel.controller.service import Controller
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.interfaces import ILink
from ipython1.kernel.wire import links, moving, sniffing, tickets
from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.lanes import KINDS, TICKET_SIZE, LaneLink, UnixLane
from ipython1.kernel.wire.links import FoolscapDialer, FoolscapLink
from ipython1.kernel.wire.moving import Move
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.records import Event, Record, Result, Submit
from ipython1.kernel.wire.serving import PATH_LIMIT, Listener, serve
from ipython1.kernel.wire.sniffing import MAGIC, Sniffing
from ipython1.kernel.wire.tlslane import TLSLane, tls_server
from ipython1.kernel.wire.tubs import make_certificate

from .conftest import ReactorThread

#: Seconds to wait for what must happen.
PATIENCE = 20.0


class World:
    """A controller on a port of its own, one engine and one client; all run in the reactor thread.

    The engine answers each command with an event and a result.
    """

    def __init__(
        self,
        thread: ReactorThread,
        root: Path,
        kind: str,
        offered: Container[str] = KINDS,
        middle: Callable[[World], Middle] | None = None,
        ip: str = "127.0.0.1",
        dead_after: float = DEAD_LINK_AFTER,
    ) -> None:
        self.call = thread.call
        self.reactor = thread.reactor
        self.kinds = (kind,)
        self.files = ClusterFiles(root=root)
        self.heard: dict[str, list[Record]] = {"engine": [], "multiengine": []}
        self.sent = 0
        self.controller: Controller = self.call(Controller, self.reactor)
        doors = {kind: self.controller.door(kind) for kind in ("engine", "multiengine")}
        self.listener: Listener = self.call(
            serve, self.reactor, self.files, doors, ip=ip, port=0, lanes=offered, dead_after=dead_after
        )
        self.port = self.listener.port
        self.middle = middle(self) if middle is not None else None
        engine = {"uuid": "e", "host": "h", "pid": 1, "nanny": "n", "wanted": 0, "replaces": {}}
        self.engine = self.connect("engine", {**engine, "held": [], "clients": []})
        self.wait(lambda: self.controller.status())
        self.client = self.connect("multiengine", {"client": "c", "engines": []})

    def connect(self, kind: str, detail: dict[str, Any]) -> Connection:
        def receive(record: Record, raw: bytes) -> None:
            self.heard[kind].append(record)
            if isinstance(record, Submit):
                self.engine.send(Event(record.id, 0, 0, "stdout", "x", ()))
                self.engine.send(Result(record.id, 0, "execute", "ok", 1.0, 2.0, 1, ()))

        def make() -> Connection:
            furl = self.listener.furls[kind]
            if self.middle is not None:
                furl = furl.replace(f":{self.port}/", f":{self.middle.port}/")
            connection = Connection(
                self.reactor,
                FoolscapDialer(furl, lanes=self.kinds),
                kind,
                detail=lambda: detail,
                receive=receive,
                welcomed=lambda detail, resumed: None,
                lost=lambda reason: None,
                grace=30.0,
            )
            connection.start()
            return connection

        return self.call(make)

    def wait(self, done: Callable[[], Any]) -> None:
        """Until `done()`, which is looked at in every turn of the reactor."""
        ended: Deferred[None] = Deferred()

        def look() -> None:
            if ended.called:
                return
            if done():
                ended.callback(None)
            else:
                self.reactor.callLater(0.001, look)

        try:
            self.call(lambda: (look(), ended)[1])
        except TimeoutError:
            self.call(ended.callback, None)  # looks no more
            raise

    @property
    def links(self) -> list[Any]:
        """The links at this end of the two sessions."""
        return [connection._session._link for connection in (self.engine, self.client)]

    def on_lanes(self) -> bool:
        """Both sessions are there, with both ends."""
        kind = {"unix": UnixLane, "tls": TLSLane}[self.kinds[0]]
        return all(type(link) is kind and link.sink is not None for link in self.links)

    def on_foolscap(self) -> bool:
        """Both sessions are there, and nothing is on its way to a lane."""
        moves = [move for c in (self.engine, self.client) for move in c._dialer._moves]  # type: ignore[attr-defined]
        return not moves and all(isinstance(link, FoolscapLink) for link in self.links)

    def submit(self, count: int = 1, size: int = 10) -> None:
        """Send commands."""

        def send() -> None:
            for _ in range(count):
                id = f"c-{self.sent}"
                self.client.send(Submit(id, (0,), "execute", "", -1, 0.0, b"", (bytes(size),)))
                self.sent += 1

        self.call(send)

    def check(self) -> None:
        """All commands came to the engine, and all results to the client, once and in order."""
        answers = self.heard["multiengine"]
        self.wait(lambda: sum(isinstance(r, Result) for r in answers) >= self.sent)
        expected = [f"c-{i}" for i in range(self.sent)]
        assert [r.id for r in self.heard["engine"]] == expected  # type: ignore[attr-defined]
        assert [r.id for r in answers if isinstance(r, Result)] == expected
        assert [r.id for r in answers if isinstance(r, Event)] == expected

    def close(self) -> None:
        for connection in (self.client, self.engine):
            self.call(connection.stop)
        self.call(self.controller.stop)
        self.call(self.listener.stop)
        if self.middle is not None:
            self.call(self.middle.close)
        self.call(flushEventualQueue)  # what Foolscap still has to say


class Forward(Protocol):  # type: ignore[misc]
    """Passes a connection on to `port`, until so many bytes have come back; then it stays silent."""

    def __init__(self, reactor: Any, port: int, preface: bytes = b"", budget: float = math.inf) -> None:
        self._reactor = reactor
        self._port = port
        self._waiting = preface
        self._budget = budget
        self.behind = Protocol()
        self.behind.dataReceived = self.came_back  # type: ignore[method-assign]
        self.behind.connectionMade = lambda: self.dataReceived(b"")  # type: ignore[method-assign]
        self.behind.connectionLost = lambda reason: self.transport.loseConnection()  # type: ignore[method-assign]

    def connectionMade(self) -> None:
        TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._port).connect(
            Factory.forProtocol(lambda: self.behind)
        )

    def dataReceived(self, data: bytes) -> None:
        self._waiting += data
        if self.behind.transport is not None and self._budget > 0:
            data, self._waiting = self._waiting, b""
            self.behind.transport.write(data)

    def came_back(self, data: bytes) -> None:
        self._budget -= len(data)
        if self._budget > 0:
            self.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        if self.behind.transport is not None:
            self.behind.transport.loseConnection()


class Slow(Forward):
    """Takes a second for a megabyte on its way to `port`."""

    _timer: Any = None

    def dataReceived(self, data: bytes) -> None:
        self._waiting += data
        if self._timer is None:
            self._trickle()

    def _trickle(self) -> None:
        self._timer = None
        if self._waiting and self.behind.transport is not None:
            piece, self._waiting = self._waiting[:10_000], self._waiting[10_000:]
            self.behind.transport.write(piece)
            self._timer = self._reactor.callLater(0.01, self._trickle)

    def connectionLost(self, reason: Any = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connectionLost(reason)


class Mute(Forward):
    """Passes nothing on while it is muted, and closes nothing."""

    muted = False

    def dataReceived(self, data: bytes) -> None:
        if not self.muted:
            super().dataReceived(data)

    def came_back(self, data: bytes) -> None:
        if not self.muted:
            super().came_back(data)

    def connectionLost(self, reason: Any = None) -> None:
        if not self.muted:
            super().connectionLost(reason)


class Middle:
    """Sits between dialler and controller; Foolscap passes, TLS lanes go to a factory of its own."""

    def __init__(self, lanes: Callable[[World], Any], world: World, passes: type[Forward] = Forward) -> None:
        foolscap = Factory.forProtocol(partial(passes, world.reactor, world.port))
        complaints = Complaints(moving.log, world.reactor)
        factory = Sniffing(world.reactor, lanes(world), foolscap, complaints, Guests())
        listen = partial(world.reactor.listenTCP, interface="127.0.0.1")
        self._port = world.call(listen, 0, factory)
        self.port = self._port.getHost().port

    def close(self) -> Any:
        return self._port.stopListening()


@pytest.fixture
def make_world(reactor_thread: ReactorThread, ipython1_dir: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(kind: str = "tls", **options: Any) -> World:
        worlds.append(World(reactor_thread, options.pop("root", ipython1_dir), kind, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
    assert reactor_thread.call(reactor_thread.reactor.getDelayedCalls) == []


@pytest.fixture(params=KINDS)
def world(request: Any, make_world: Callable[..., World]) -> World:
    return make_world(request.param)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many cuts, and neither long pauses after them nor an end of the attempts."""
    for delay in ("FIRST_DELAY", "MAX_DELAY"):
        monkeypatch.setattr(f"ipython1.kernel.wire.connection.{delay}", 0.005)
    monkeypatch.setattr(moving, "FAILURES", 10**9)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What our log says, from info on."""
    texts: list[str] = []

    def observe(event: Any) -> None:
        if event["log_namespace"].startswith("ipython1") and event["log_level"].name != "debug":
            texts.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


# -- the good case -------------------------------------------------------------------


def test_peers_move_to_lanes(world: World) -> None:
    world.submit(5)
    world.wait(world.on_lanes)
    world.submit(5)
    world.check()
    for link in world.links:
        assert verifyObject(ILink, link)
    world.wait(lambda: not world.listener._lanes._tickets)
    world.wait(lambda: not world.listener._tub.brokers)  # nobody needs Foolscap now
    path = world.files.run / "lane.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_large_batches(world: World) -> None:
    world.wait(world.on_lanes)
    for size in (0, 64 * 1024, 200_000):
        world.submit(20, size)
    world.check()
    assert world.call(world.on_lanes)


@pytest.mark.parametrize("offered", [("tls",), KINDS])
def test_who_cannot_use_the_unix_lane_takes_tls(
    make_world: Callable[..., World], offered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "unix" in offered:  # as on another host, which may see the file over NFS
        monkeypatch.setattr("ipython1.kernel.wire.tickets.LaneServer.listen", only_a_file)
    world = make_world("tls", offered=offered)
    world.kinds = KINDS
    other = world.connect("multiengine", {"client": "d", "engines": []})
    world.wait(lambda: isinstance(other._session._link, TLSLane))
    world.call(other.stop)
    world.kinds = ("tls",)
    world.wait(world.on_lanes)


def only_a_file(lanes: Any, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as nobody:
        path.unlink(missing_ok=True)
        nobody.bind(os.fspath(path))
    lanes.path = path


def test_tls_lanes_over_ipv6(make_world: Callable[..., World]) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    world = make_world("tls", ip="::1")
    world.wait(world.on_lanes)


@pytest.mark.parametrize("offered", [(), ("unix",)])
def test_without_an_offer_they_stay(make_world: Callable[..., World], offered: tuple[str, ...]) -> None:
    world = make_world("tls", offered=offered)
    world.submit(3)
    world.check()
    assert world.call(world.on_foolscap)


def test_a_folder_with_a_long_path_has_no_unix_lane(make_world: Callable[..., World], tmp_path: Path) -> None:
    world = make_world("unix", root=tmp_path / ("x" * PATH_LIMIT))
    world.submit()
    world.check()
    assert world.call(world.on_foolscap)
    assert world.listener._lanes.path is None


# -- cuts ------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_whatever_is_cut_while_they_move_all_arrives_once(world: World) -> None:
    rng = random.Random(1)
    stages = (lambda: True, lambda: all(world.links), world.on_lanes)
    moved = 0

    def cut() -> None:
        link = rng.choice([link for link in world.links if link is not None] or [None])
        if isinstance(link, LaneLink):
            link.transport.abortConnection()
        elif isinstance(link, FoolscapLink):
            link.transport.abortConnection() if rng.random() < 0.5 else link.close()

    for _ in range(60):
        world.submit(rng.randrange(8), rng.randrange(2000))
        world.wait(rng.choice(stages))
        moved += world.call(world.on_lanes)
        if rng.random() < 0.5:
            world.call(cut)
    world.check()
    assert moved
    world.wait(world.on_lanes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 9])
@pytest.mark.parametrize("side", ["far", "near"])
@pytest.mark.usefixtures("quick")
def test_a_cut_at_each_step_of_the_move(
    make_world: Callable[..., World],
    kind: str,
    side: str,
    number: int,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two frames that each side takes are the handshake; then come batches."""
    frames: dict[LaneLink, int] = {}
    cuts: list[LaneLink] = []
    take = LaneLink._take

    def cutting(lane: LaneLink, frame: bytes) -> None:
        frames[lane] = frames.get(lane, 0) + 1
        is_near = isinstance(lane._owner, Move)
        hit = is_near == (side == "near") and frames[lane] == number and len(cuts) < 2
        if not hit or when == "after":
            take(lane, frame)
        if hit:
            cuts.append(lane)
            lane.abort("cut")

    monkeypatch.setattr(LaneLink, "_take", cutting)
    world = make_world(kind)
    while len(cuts) < 2:
        world.submit()
    world.check()
    world.submit(3)
    world.check()
    assert world.call(lambda: all(world.links))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.usefixtures("quick")
def test_a_cut_in_the_tls_handshake(
    make_world: Callable[..., World], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[TLSLane] = []

    def cut(lane: TLSLane) -> None:
        if isinstance(lane._owner, Move) == bool(side):
            cuts.append(lane)
            lane.transport.transport.abortConnection()

    monkeypatch.setattr(TLSLane, "handshakeCompleted", cut)
    world = make_world("tls")
    world.submit(5)
    world.wait(lambda: len(cuts) == 2)
    world.wait(world.on_foolscap)
    world.submit(5)
    world.check()


def test_a_dialler_that_is_closed_on_its_way(world: World) -> None:
    """The fixture looks whether anything is left."""
    for client in ("d", "e"):
        other = world.connect("multiengine", {"client": client, "engines": []})
        world.wait(lambda other=other: len(other._dialer._moves))  # type: ignore[attr-defined]
        world.call(other.stop)


# -- strangers -----------------------------------------------------------------------


@contextlib.contextmanager
def stranger(world: World) -> Iterator[socket.socket]:
    """A connection to the lane's port, where that takes tickets."""
    if world.kinds == ("unix",):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(PATIENCE)
            plain.connect(os.fspath(world.files.run / "lane.sock"))
            yield plain
        return
    with socket.create_connection(("127.0.0.1", world.port), PATIENCE) as plain:
        plain.sendall(MAGIC)
        with any_certificate().wrap_socket(plain) as encrypted:
            yield encrypted


def any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def until_closed(connection: socket.socket) -> bytes:
    """All that still comes."""
    heard = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(65536):
            heard += data
    return heard


def frame(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


@pytest.mark.parametrize(
    "said",
    [
        frame(bytes(TICKET_SIZE)),  # nobody gave that out
        frame(b""),
        frame(b"short"),
        b"\xff\xff\xff\xff" + bytes(100),
        b"\x00\x00\x00\x21" + bytes(TICKET_SIZE + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_strangers_on_the_lane_are_shown_out(world: World, said: bytes, warnings: list[str]) -> None:
    world.wait(world.on_lanes)
    with stranger(world) as connection:
        connection.sendall(said)
        assert until_closed(connection) == b""
    world.wait(lambda: [text for text in warnings if "did not get onto a lane" in text])
    world.submit()
    world.check()
    assert world.call(world.on_lanes)


def test_a_ticket_is_good_once(world: World) -> None:
    world.wait(world.on_lanes)
    lanes = world.listener._lanes
    peer = world.controller.peers[0]
    ticket = world.call(lanes.ticket, peer)
    with stranger(world) as first, stranger(world) as second:
        first.sendall(frame(ticket))
        assert first.recv(100) == frame(struct.pack("!Q", peer.received))
        second.sendall(frame(ticket))
        assert until_closed(second) == b""
        first.sendall(frame(b"no number"))
        assert until_closed(first) == b""
    with stranger(world) as third:
        third.sendall(frame(ticket))
        assert until_closed(third) == b""
    assert world.call(world.on_lanes)


def test_a_ticket_that_was_withdrawn_is_good_no_more(world: World) -> None:
    world.wait(world.on_lanes)
    lanes = world.listener._lanes
    peer = world.controller.peers[0]
    early, late = world.call(lanes.ticket, peer), world.call(lanes.ticket, peer)
    with stranger(world) as thief:
        thief.sendall(frame(late))
        thief.recv(100)
        for ticket in (early, late):
            world.call(lanes.withdraw, ticket)
        assert until_closed(thief) == b""
    with stranger(world) as thief:
        thief.sendall(frame(early))
        assert until_closed(thief) == b""
    assert world.call(world.on_lanes)


@pytest.mark.parametrize("shown", [b"", b"\x00\x00\x00\x20" + bytes(5)])
def test_who_says_too_little_is_shown_out(
    world: World, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.wait(world.on_lanes)
    monkeypatch.setattr(tickets, "HANDSHAKE_TIME", 0.2)
    with stranger(world) as connection:
        connection.sendall(shown)
        assert until_closed(connection) == b""
    assert world.call(world.on_lanes)


@pytest.mark.parametrize("said", [b"", MAGIC[:1], MAGIC[:-1], MAGIC, MAGIC + b"\x16\x03\x01\x02\x00"])
def test_who_says_too_little_on_the_port_is_shown_out(
    make_world: Callable[..., World], said: bytes, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    world = make_world("tls")
    world.wait(world.on_lanes)
    monkeypatch.setattr(tickets, "HANDSHAKE_TIME", 0.1)
    monkeypatch.setattr(sniffing, "SNIFF_TIME", 0.1)
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", world.port), PATIENCE))
            for _ in range(30)
        ]
        for connection in crowd:
            connection.sendall(said)
        world.submit(5)
        world.check()
        assert [until_closed(connection) for connection in crowd] == [b""] * len(crowd)
    assert world.call(world.on_lanes)
    world.wait(lambda: warnings)
    assert len(warnings) <= 10


@pytest.mark.parametrize("garbage", [bytes(2000), b"\x16\x03\x01\x02\x00" + bytes(600), frame(bytes(32))])
def test_no_tls_after_the_magic(make_world: Callable[..., World], garbage: bytes) -> None:
    world = make_world("tls")
    world.wait(world.on_lanes)
    with socket.create_connection(("127.0.0.1", world.port), PATIENCE) as plain:
        plain.sendall(MAGIC + garbage)
        assert len(until_closed(plain)) < 100  # an alert
    assert world.call(world.on_lanes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("version", "good"), [("TLSv1_3", True), ("TLSv1_2", True), ("TLSv1_1", False)])
def test_old_tls_is_refused(make_world: Callable[..., World], version: str, good: bool) -> None:
    world = make_world("tls")
    context = any_certificate()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not ourselves who refuse
    with socket.create_connection(("127.0.0.1", world.port), PATIENCE) as plain:
        plain.sendall(MAGIC)
        expected = (
            contextlib.nullcontext() if good else pytest.raises(ssl.SSLError, match=r"(?i)alert protocol")
        )
        with expected, context.wrap_socket(plain) as encrypted:
            assert encrypted.version() == version.replace("_", ".")


# -- in between -----------------------------------------------------------------------


class Listening(Protocol):  # type: ignore[misc]
    """Keeps what it hears; reads nothing into it."""

    def __init__(self, heard: list[bytes], hang_up: bool) -> None:
        self._heard = heard
        self._hang_up = hang_up

    def connectionMade(self) -> None:
        self._heard.append(b"")
        if self._hang_up:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._heard.append(data)


def test_another_certificate_is_refused_before_the_ticket_is_shown(
    make_world: Callable[..., World], warnings: list[str]
) -> None:
    heard: list[bytes] = []
    forged = tls_server(make_certificate(), lambda: Listening(heard, False))  # type: ignore[arg-type,return-value]
    world = make_world("tls", middle=partial(Middle, lambda world: forged))
    world.submit(5)
    world.wait(lambda: len(heard) >= 2)
    world.wait(world.on_foolscap)
    world.submit(5)
    world.check()
    assert b"".join(heard) == b""
    world.wait(lambda: sum("somebody is in between" in text for text in warnings) == 2)  # one a session


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_firewall_between_leaves_them_on_foolscap(
    make_world: Callable[..., World], hangs_up: bool, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "MOVE_TIME", 0.2)
    heard: list[bytes] = []
    wall = Factory.forProtocol(lambda: Listening(heard, hangs_up))
    world = make_world("tls", middle=partial(Middle, lambda world: wall))
    world.submit(5)
    world.wait(lambda: len(heard) >= 2)
    world.wait(world.on_foolscap)
    world.submit(5)
    world.check()
    world.wait(lambda: sum("no lane to" in text for text in warnings) == 2)


@pytest.mark.parametrize("budget", [1, 300, 700, 800, 850, 900, 950, 1000, 1100, 1500])
def test_a_way_that_falls_silent_is_given_up(
    make_world: Callable[..., World], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "MOVE_TIME", 0.1)
    monkeypatch.setattr(links, "SHORTEST", 0.1)
    for delay in ("FIRST_DELAY", "MAX_DELAY"):
        monkeypatch.setattr(f"ipython1.kernel.wire.connection.{delay}", 0.005)

    def narrow(world: World) -> Any:
        return Factory.forProtocol(partial(Forward, world.reactor, world.port, MAGIC, budget))

    world = make_world("tls", middle=partial(Middle, narrow), dead_after=0.1)
    world.submit(20)
    world.check()
    world.wait(world.on_foolscap)
    world.submit(5)
    world.check()


def test_a_peer_that_says_nothing_more_is_noticed(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SHORTEST", 0.5)
    world = make_world("tls", dead_after=0.5)
    world.wait(world.on_lanes)
    lane = world.links[1]
    far = next(v.lane for v in world.listener._lanes._visits if v._sink.kind == "multiengine")
    world.call(far.transport.transport.stopReading)
    world.call(far._pulse.stop)  # as if its process was stopped
    world.wait(lambda: world.links[1] not in (lane, None))
    world.submit(3)
    world.check()


def test_on_one_host_a_peer_that_says_nothing_is_only_seen(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SHORTEST", 0.2)
    world = make_world("unix", dead_after=0.2)
    world.wait(world.on_lanes)
    lane = world.links[1]
    far = next(v.lane for v in world.listener._lanes._visits if v._sink.kind == "multiengine")
    assert (lane.silent, far.silent) == (0.0, 0.0)
    world.call(far.transport.stopReading)
    world.call(far._pulse.stop)
    world.wait(lambda: lane.silent >= 0.2)
    world.call(far.transport.startReading)
    world.submit(3)
    world.check()
    assert (world.links[1], lane.silent) == (lane, 0.0)


def test_both_ends_of_a_foolscap_link_notice_silence(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SHORTEST", 0.2)
    monkeypatch.setattr("ipython1.kernel.wire.connection.MAX_DELAY", 0.1)
    world = make_world(offered=(), middle=partial(Middle, lambda world: None, passes=Mute), dead_after=0.3)
    world.wait(world.on_foolscap)
    monkeypatch.setattr(Mute, "muted", True)
    far = [peer.session for peer in world.controller.peers]
    world.wait(lambda: not any(session.linked for session in far))
    world.wait(lambda: not world.engine.linked and not world.client.linked)
    monkeypatch.setattr(Mute, "muted", False)
    world.wait(world.on_foolscap)
    world.submit(3)
    world.check()


def test_the_receiver_of_a_long_upload_is_heard(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Foolscap too, where the bytes go on for longer than silence may."""
    monkeypatch.setattr(links, "SHORTEST", 0.2)
    world = make_world(offered=(), middle=partial(Middle, lambda world: None, passes=Slow), dead_after=0.4)
    world.wait(world.on_foolscap)
    link = world.links[1]
    world.submit(1, size=1_000_000)
    world.check()
    assert world.links[1] is link
