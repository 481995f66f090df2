"""Hostile peers at the door of a real controller: the cluster answers, and the log stays short."""

from __future__ import annotations

import random
import resource
import socket
import ssl
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from foolscap.api import RemoteException
from zope.interface import implementer

from ipython1 import __version__
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.files import FURL_FILES, ClusterFiles
from ipython1.kernel.interfaces import ILinkSink
from ipython1.kernel.wire import tubs
from ipython1.kernel.wire.codec import decode, encode, pack
from ipython1.kernel.wire.links import FoolscapDialer
from ipython1.kernel.wire.records import (
    PROTOCOL,
    RECORD_LIMIT,
    Ask,
    Batch,
    BlobRef,
    Cancel,
    Chunk,
    Fetch,
    Grant,
    Hello,
    Record,
    Refusal,
    Seek,
    Submit,
    Taken,
    Welcome,
    Withdraw,
    Work,
)
from ipython1.kernel.wire.serving import LANE, serve
from ipython1.kernel.wire.session import BATCH_LIMIT
from ipython1.kernel.wire.sniffing import MAGIC
from tests.conftest import ReactorThread

from .conftest import PATIENCE, Rig, until
from .tally import TALLY

#: Lines that one test may add to the log of the controller.
LINES = 80


@implementer(ILinkSink)
class Hostile:
    """A peer that speaks the protocol by hand, in the reactor's thread.

    Parameters
    ----------
    thread : ReactorThread
    furl : str
    kind : str
    lanes : tuple of str
        Which lanes it moves to.
    session : str
        The session that it claims.
    """

    def __init__(
        self, thread: ReactorThread, furl: str, kind: str, lanes: tuple[str, ...] = (), **hello: Any
    ) -> None:
        TALLY.fault("hostile peers")
        self.links: list[Any] = []
        self.lost = 0
        self.number = 0
        self._thread = thread
        self._dialer = FoolscapDialer(furl, lanes=lanes)
        #: The lanes that were offered, where it moves to none: path, whether there is TLS, ticket.
        self.offers: list[tuple[str, bool, bytes]] = []
        if not lanes:
            self._dialer._move = lambda offer, link, sink: self.offers.append(offer)  # type: ignore[method-assign]
        self.fresh = uuid.uuid4().hex
        self.client = hello.pop("client", uuid.uuid4().hex[:12])
        detail = {"client": self.client, **hello.pop("detail", {})}
        first = Hello(PROTOCOL, __version__, kind, hello.pop("session", ""), self.fresh, 0, pack(detail))
        raw, link = thread.call(self._dialer.dial, hello.pop("raw", encode(first)), self)
        self.answer = decode(raw)
        self.links += [link] * (link is not None)

    def batch_received(self, batch: bytes) -> None:
        """Whatever it is."""

    @property
    def received(self) -> int:
        """It claims to have nothing."""
        return 0

    def attach(self, link: Any, received: int) -> None:
        """It moved to a lane."""
        self.links.append(link)

    def link_lost(self, link: Any) -> None:
        """It was shown out."""
        self.lost += 1

    def say(self, *parts: bytes) -> None:
        """A batch of records."""
        batch = msgpack.packb((self.number + 1, 0, parts))
        self.number += len(parts)
        self.raw(batch)

    def raw(self, batch: bytes) -> None:
        """Any bytes in place of a batch."""
        self._thread.call(self.links[-1].send, batch)

    def close(self) -> None:
        """It leaves."""
        self._thread.call(self._dialer.close)


@pytest.fixture
def hostile(reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Callable[..., Hostile]]:
    """Makes hostile peers."""
    made: list[Hostile] = []

    def make(kind: str, lanes: tuple[str, ...] = (), furl: str = "", **hello: Any) -> Hostile:
        text = files.furl(furl or kind).read_text()
        made.append(Hostile(reactor_thread, text, kind, lanes, **hello))
        return made[-1]

    yield make
    for each in made:
        each.close()


def log_of(rig: Rig) -> list[str]:
    """The lines in the controller's log."""
    return (rig.files.log / "ipcontroller.log").read_text().splitlines()


class Calm:
    """The cluster before hostilities; `check` says whether it is as it was."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.mec = rig.client()
        self.mec.execute("x = 1")
        self.controller = psutil.Process(rig.state.controller)
        self.lines = len(log_of(rig))
        self.fds = self.controller.num_fds()

    def check(self, lines: int = LINES) -> None:
        """It answers, and the log has few more lines and no traceback."""
        result = self.mec.execute("x + 1", block=False).get_result(timeout=PATIENCE)
        assert {each["result"]["text/plain"] for each in result} == {"2"}
        new = log_of(self.rig)[self.lines :]
        assert len(new) < lines, "\n".join(new[:200])
        assert not any("Traceback" in line for line in new), "\n".join(new[:200])
        assert self.controller.pid == self.rig.state.controller, "it was not restarted"

    def fds_are_back(self, slack: int = 3) -> None:
        """No file is left open."""
        until(lambda: self.controller.num_fds() <= self.fds + slack, "all is closed")


def lane_frame(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


BAD_BATCHES = [
    b"",
    b"\xc1",
    b"\x91" * 5000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    msgpack.packb((0, 0, [])),
    msgpack.packb((1, 2**63, [])),
    msgpack.packb((2**63, 0, [])),
    msgpack.packb((1, 0, [b"\xc1", b"\xdd\xff\xff\xff\xff"])),
    msgpack.packb((1, 0, [b"x" * (RECORD_LIMIT + 1)])),
    b"\x93\x01\x00\xdd\x00\x7f\x00\x00" + b"\x80" * 0x7F0000,  # 8 MiB that would become 500
    random.Random(3).randbytes(100_000),
]


@pytest.mark.parametrize("kind", ["view", "task"])
@pytest.mark.parametrize("lanes", [(), ("unix",), ("tls",)], ids=["foolscap", "unix", "tls"])
def test_malformed_batches(
    start: Callable[..., Rig], hostile: Callable[..., Hostile], lanes: tuple[str, ...], kind: str
) -> None:
    calm = Calm(start(1))
    memory = calm.controller.memory_info().rss
    for batch in BAD_BATCHES:
        bad = hostile(kind, lanes)
        until(lambda bad=bad: len(bad.links) == 1 + len(lanes), "it has moved")
        if batch or not lanes:  # an empty frame of a lane is a sign of life
            bad.raw(batch)
            until(lambda bad=bad: bad.lost, "it is shown out")
        bad.close()
    calm.check()
    calm.fds_are_back()
    assert calm.controller.memory_info().rss - memory < 100e6


def test_malformed_hellos(start: Callable[..., Rig], hostile: Callable[..., Hostile]) -> None:
    calm = Calm(start(1))
    odd = [b"", b"\xc1", encode(Grant("b", 0)), b"\x91" * 5000, b"\xdd\x00\x3f\xff\x00" + b"\x80" * 0x3FFF00]
    for raw in odd:
        assert isinstance(hostile("view", raw=raw).answer, Refusal)
    for detail in ({"client": 7}, {"client": "x", "engines": "y"}, {"engines": [2**63] * 70_000}):
        bad = hostile("task", detail=detail)
        assert isinstance(bad.answer, (Refusal, Welcome))
    for furl, kind in (("view", "multiengine"), ("view", "engine"), ("task", "view"), ("engine", "task")):
        assert isinstance(hostile(kind, furl=furl).answer, Refusal)
    calm.check()


def test_absurd_records(start: Callable[..., Rig], hostile: Callable[..., Hostile]) -> None:
    """Well formed, and as far from reason as the types admit; from those who may send such records."""
    huge = 2**63
    every = tuple(range(65_536))
    none = b"\x80"

    def batch(name: str, number: int, op: str = "call", rules: Any = (), parts: Any = ()) -> Batch:
        return Batch(f"{name}-{number}", op, "x" * 100_000, 1e308, pack(dict(rules)), none, parts)

    tasks: list[Callable[[str], list[Record]]] = [
        lambda me: [batch(me, 1), Work(f"{me}-1", tuple((i, 0, (b"no pickle",)) for i in range(100)))],
        lambda me: [batch(me, 1, rules={"retries": huge}), Work(f"{me}-1", ((0, 0, (b"",)),))],
        lambda me: [batch(me, 1, "no such thing"), Work(f"{me}-1", ((2**31 - 1, 2**31 - 2, ()),))],
        lambda me: [batch(me, 1, "code", parts=(b"\xff\x00",)), Work(f"{me}-1", ((0, 0, (b"",)),))],
        lambda me: [batch(me, 1, rules={"wait": float("inf")}), Work(f"{me}-1", ((0, 0, ()),))],
        lambda me: [batch(me, 1, parts=(BlobRef(f"{me}-1/b0", huge),)), Work(f"{me}-1", ((0, 0, ()),))],
        lambda me: [batch(me, 1), Work(f"{me}-1", ((-1, 0, ()),))],
        lambda me: [batch(me, 1), Work(f"{me}-1", ((0, huge, ()),))],
        lambda me: [batch(me, 1), Withdraw(f"{me}-1", (-1, huge), "interrupt")],
        lambda me: [Seek("nobody-1", every), Seek(f"{me}-1", (-huge, huge))],
        lambda me: [Taken(f"{me}-9", every, True)],
        lambda me: [Chunk("none", -huge, b""), Grant("none", huge)],
        lambda me: [Ask("q" * 100_000, "x" * 100_000, b"\xc1")],
    ]
    views: list[Callable[[str], list[Record]]] = [
        lambda me: [Ask(str(i), "queue_status", pack({"targets": [0] * 100_000})) for i in range(20)],
        lambda me: [Cancel((), (0,), "QueueCleared")] * 2000,
        lambda me: [Fetch("x", every)] * 2,
    ]
    commands: list[Callable[[str], list[Record]]] = [
        lambda me: [
            Submit(f"{me}-1", (0, 1), "no such thing", "x" * 1_000_000, huge, 1e308, b"\xc1", (b"x",))
        ],
        lambda me: [Submit(f"{me}-1", (0,) * 60_000, "execute", "", -1, -1.0, none, (b"\xff\xfe",))],
        lambda me: [Submit(f"{me}-1", (0, -1, huge), "push", "", -1, 0.0, none, (b"\x80\x05no pickle",))],
        lambda me: [Submit("", (0,), "", "", -1, 0.0, b"", ())],
        lambda me: [
            Fetch(f"{me}-404", (0, -1, huge)),
            Ask("q", "signal", pack({"targets": [0], "number": huge})),
        ],
    ]
    calm = Calm(start(2))
    for kind, makes in (("task", tasks), ("view", views), ("multiengine", commands)):
        for make in makes:
            peer = hostile(kind)
            peer.say(*map(encode, make(peer.client)))
            calm.check()
            peer.close()
    assert calm.mec.queue_status() is not None
    assert [row["state"] for row in calm.mec.status()] == ["ready"] * 2


def test_a_ticket_is_good_once_and_for_its_session(
    start: Callable[..., Rig], hostile: Callable[..., Hostile]
) -> None:
    rig = start(1)
    calm = Calm(rig)
    peer = hostile("view")
    until(lambda: peer.offers, "it was offered a lane")
    ((path, tls, ticket),) = peer.offers
    assert Path(path) == rig.files.run / LANE
    assert tls

    def show(ticket: bytes, then: bytes = b"") -> bytes:
        with socket.socket(socket.AF_UNIX) as lane:
            lane.settimeout(PATIENCE)
            lane.connect(path)
            lane.sendall(lane_frame(ticket) + then)
            try:
                return lane.recv(12)
            except ConnectionError:
                return b""

    assert show(bytes(32)) == b""
    assert show(ticket[:-1] + bytes([ticket[-1] ^ 1])) == b""
    assert show(ticket) == lane_frame(bytes(8)), "the first time"
    until(lambda: show(ticket) == b"", "never again")
    other = hostile("view")
    until(lambda: other.offers, "it was offered a lane")
    # A number that was never sent: nothing moves, and the session stays where it was.
    assert show(other.offers[0][2], lane_frame(b"\xff" * 8))[:12] == lane_frame(bytes(8))
    assert not other.lost
    calm.check()
    calm.fds_are_back(6)


def test_a_stolen_session(start: Callable[..., Rig], hostile: Callable[..., Hostile]) -> None:
    calm = Calm(start(1))
    owner = hostile("task")
    for furl, kind, client in (
        ("multiengine", "multiengine", owner.client),
        ("task", "task", "thief"),
        ("view", "view", owner.client),
    ):
        assert isinstance(hostile(kind, furl=furl, session=owner.fresh, client=client).answer, Refusal)
    assert isinstance(hostile("task", client=owner.client).answer, Refusal), "its name is taken as well"
    assert not owner.lost
    calm.check()


def test_downgrades_and_foreign_certificates(start: Callable[..., Rig]) -> None:
    """Old TLS is refused on both paths; without a certificate nobody gets further than that."""
    rig = start(1)
    calm = Calm(rig)
    tub = rig.files.furl("view").read_text()[5:37].encode()
    foolscap = b"GET /id/" + tub + b" HTTP/1.1\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    for hello in (MAGIC, foolscap):
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(("127.0.0.1", rig.state.port), PATIENCE) as plain:
                plain.sendall(hello)
                if hello is not MAGIC:
                    assert b"101" in plain.recv(4096)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(plain)
    calm.check()
    calm.fds_are_back()


# -- many -----------------------------------------------------------------------------------------


@pytest.fixture
def tight(reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Rig]:
    """A cluster whose processes may open 256 files."""
    limit = [resource.getrlimit(resource.RLIMIT_NOFILE)]
    soft, hard = limit[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    prefix = ["prlimit", "--nofile=256:256"]
    rig = Rig(files, ["-n", "1", "--no-dashboard", "--client-grace", "0.3"], prefix).ready()
    try:
        yield rig
        rig.stop()
    finally:
        rig.destroy()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def strangers(port: int, count: int, said: bytes = b"") -> list[socket.socket]:
    """Connections that say something, and then nothing more."""
    made = []
    for _ in range(count):
        guest = socket.create_connection(("127.0.0.1", port), PATIENCE)
        made.append(guest)
        if said:
            try:
                guest.sendall(said)
            except ConnectionError:
                pass
    return made


@pytest.mark.parametrize(
    "said", [b"", b"ipython1", MAGIC, b"GET /id/"], ids=["silent", "half", "lane", "foolscap"]
)
def test_a_thousand_idle_connections(tight: Rig, said: bytes) -> None:
    """With 256 files: strangers make room for each other, and others come in meanwhile."""
    calm = Calm(tight)
    guests = strangers(tight.state.port, 1000, said)
    try:
        assert calm.controller.num_fds() < 256
        calm.check()
        with tight.connect() as late:
            assert late.get_ids() == [0]
            assert late.execute("1 + 1")[0]["result"]["text/plain"] == "2"
        calm.check()
    finally:
        for guest in guests:
            guest.close()
    calm.fds_are_back()
    calm.check()


def test_no_file_is_left_to_open(start: Callable[..., Rig]) -> None:
    """Who is here goes on; who comes is shown out, and served again when there is room."""
    rig = start(1)
    calm = Calm(rig)
    pid = calm.controller.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (calm.fds + 5, before[1]))
    guests = strangers(rig.state.port, 200)
    try:
        for _ in range(10):
            calm.check()
    finally:
        for guest in guests:
            guest.close()
    calm.fds_are_back()
    with rig.connect() as late:
        assert late.get_ids() == [0]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    calm.check()


def test_slow_talkers(start: Callable[..., Rig]) -> None:
    """One byte at a time, and never to an end."""
    rig = start(1)
    calm = Calm(rig)
    tub = rig.files.furl("view").read_text()[5:37].encode()
    line = b"GET /id/" + tub + b" HTTP/1.1\r\nHost: " + b"x" * 200
    guests = strangers(rig.state.port, 60)
    try:
        for i in range(60):
            for guest in guests:
                guest.sendall(line[i : i + 1])
            if i % 20 == 0:
                calm.check()
    finally:
        for guest in guests:
            guest.close()
    calm.check()
    calm.fds_are_back()


def test_a_thousand_clients_come_and_go(
    tight: Rig, hostile: Callable[..., Hostile], reactor_thread: ReactorThread
) -> None:
    calm = Calm(tight)

    def come_and_go(count: int) -> None:
        for i in range(count):
            furl = ("view", "task", "multiengine")[i % 3]
            peer = Hostile(reactor_thread, tight.files.furl(furl).read_text(), furl)
            assert isinstance(peer.answer, Welcome)
            peer.close()

    come_and_go(100)  # what is imported and cached at first does not count
    calm.fds_are_back()
    memory = calm.controller.memory_info().rss
    come_and_go(1000)
    calm.fds_are_back()
    until(lambda: calm.controller.memory_info().rss - memory < 12e6, "memory is as it was", 5)
    calm.check()


def test_who_gets_through_foolscap_has_to_knock(
    ipython1_dir: Path, reactor_thread: ReactorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To get so far takes no FURL: the hash of the certificate is enough, and that is shown to everybody."""
    monkeypatch.setattr(tubs, "KNOCK_TIME", 0.5)
    reactor = reactor_thread.reactor
    controller = reactor_thread.call(Controller, reactor)
    doors = {kind: controller.door(kind) for kind in FURL_FILES}
    listener = reactor_thread.call(serve, reactor, ClusterFiles("knock", ipython1_dir), doors, port=0)
    stranger = tubs.make_tub()
    lost: list[Any] = []
    try:
        reactor_thread.call(stranger.startService)
        furl = listener.furls["view"].rpartition("/")[0] + "/" + "a" * 32
        with pytest.raises(RemoteException):
            reactor_thread.call(stranger.getReference, furl)
        (broker,) = stranger.brokers.values()
        reactor_thread.call(broker.notifyOnDisconnect, lost.append, 1)
        peer = Hostile(reactor_thread, listener.furls["view"], "view")
        until(lambda: lost, "the stranger is shown out")
        assert not peer.lost, "who knocked stays"
        assert len(listener._tub.guests) == 0
        peer.close()
    finally:
        reactor_thread.call(stranger.stopService)
        reactor_thread.call(listener.stop)
        reactor_thread.call(controller.stop)


def test_batches_have_a_limit() -> None:
    """The bomb above is as large as a batch may be."""
    assert max(map(len, BAD_BATCHES)) <= BATCH_LIMIT
