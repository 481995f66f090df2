"""Links over real Tubs: every way in, every way out, and nothing left behind."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from foolscap.api import flushEventualQueue
from foolscap.pb import Listener as FoolscapListener
from twisted.logger import globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipython1.kernel.error import (
    BadFURL,
    ConnectionFailed,
    LaunchError,
    NobodyListening,
    NotAllowed,
    Unreachable,
    WireError,
    WrongController,
)
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.interfaces import IDialer, IDoor, ILink, ILinkSink
from ipython1.kernel.wire import attempts, serving, sniffing, tubs
from ipython1.kernel.wire.bounds import LINES
from ipython1.kernel.wire.links import ARGUMENT_LIMIT, FoolscapDialer
from ipython1.kernel.wire.serving import Listener, serve
from tests.conftest import LoggedErrors
from tests.integration.conftest import ReactorThread

KINDS = ("multiengine", "task", "view", "engine")
#: Seconds to wait for what must happen.
PATIENCE = 20.0


@implementer(ILinkSink)
class Sink:
    """Keeps what it hears; raises `error` for every batch where there is one."""

    received = 0

    def __init__(self) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()
        self.error: Exception | None = None

    def batch_received(self, batch: bytes) -> None:
        self.heard.put(batch)
        if self.error is not None:
            raise self.error

    def link_lost(self, link: ILink | None) -> None:
        self.heard.put(link)

    def attach(self, link: ILink, peer_received: int) -> None:
        self.heard.put(("attached", link))

    def next(self) -> Any:
        return self.heard.get(timeout=PATIENCE)


@implementer(IDoor)
class Door:
    """Welcomes everybody but those who say 'no'."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.came: queue.Queue[tuple[Any, Sink]] = queue.Queue()
        self.error: Exception | None = None

    def knock(self, hello: bytes, link: ILink) -> tuple[bytes, ILinkSink | None]:
        if self.error is not None:
            raise self.error
        if hello == b"no":
            return b"refusal", None
        sink = Sink()
        self.came.put((link, sink))
        return b"welcome to " + self.kind.encode(), sink


class World:
    """A controller's doors, and those who dial them."""

    def __init__(self, thread: ReactorThread, root: Path) -> None:
        self.call = thread.call
        self.reactor = thread.reactor
        self.files = ClusterFiles(root=root)
        self.doors = {kind: Door(kind) for kind in KINDS}
        self.listeners: list[Listener] = []
        self.dialers: list[FoolscapDialer] = []

    def serve(self, port: int = 0, **options: Any) -> Listener:
        listener: Listener = self.call(serve, self.reactor, self.files, self.doors, port=port, **options)
        self.listeners.append(listener)
        return listener

    def dialer(self, furl: str, timeout: float = 10.0) -> FoolscapDialer:
        dialer = FoolscapDialer(furl, connect_timeout=timeout, lanes=())
        self.dialers.append(dialer)
        return dialer

    def dial(self, dialer: FoolscapDialer, hello: bytes = b"hello") -> tuple[bytes, Any, Sink]:
        sink = Sink()
        answer, link = self.call(dialer.dial, hello, sink)
        return answer, link, sink

    def link(self, kind: str = "engine") -> tuple[Any, Sink, Any, Sink]:
        """A new link: our end and our sink, the controller's end and sink."""
        listener = self.listeners[-1] if self.listeners else self.serve()
        _, link, sink = self.dial(self.dialer(listener.furls[kind]))
        return (link, sink, *self.doors[kind].came.get(timeout=PATIENCE))

    def settle(self) -> None:
        """Let Foolscap say what it still has to say."""
        self.call(flushEventualQueue)

    def close(self) -> None:
        for closing in [*(d.close for d in self.dialers), *(x.stop for x in self.listeners)]:
            self.call(closing)


@pytest.fixture
def world(reactor_thread: ReactorThread, tmp_path: Path) -> Iterator[World]:
    """Doors and dialers; afterwards neither timer nor socket of them is left."""
    reactor = reactor_thread.reactor
    before = set(reactor_thread.call(reactor.getReaders))
    world = World(reactor_thread, tmp_path)
    yield world
    world.close()
    world.settle()
    assert reactor_thread.call(reactor.getDelayedCalls) == []
    assert set(reactor_thread.call(reactor.getReaders)) == before


@contextlib.contextmanager
def stranger(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that is no controller; `behave` gets each connection. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    behave(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
    assert not thread.is_alive()


def until_closed(connection: socket.socket) -> None:
    """Read what comes, and say nothing."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass


def furl_to(port: int, tub_id: str = "a" * 32, name: str = "b" * 32) -> str:
    return f"pb://{tub_id}@tcp:127.0.0.1:{port}/{name}"


# -- the good case ---------------------------------------------------------------


def test_interfaces(world: World) -> None:
    link, sink, *_ = world.link()
    verifyObject(ILink, link)
    verifyObject(ILinkSink, sink)
    verifyObject(IDoor, world.doors["task"])
    verifyObject(IDialer, world.dialers[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_furl_opens_its_own_door(world: World, kind: str) -> None:
    listener = world.serve()
    dialer = world.dialer(listener.furls[kind])
    answer, link, _ = world.dial(dialer)
    assert answer == b"welcome to " + kind.encode()
    assert link is not None
    assert {k: door.came.qsize() for k, door in world.doors.items()} == {k: int(k == kind) for k in KINDS}
    assert dialer.address == f"{listener.host}:{listener.port}"


def test_batches_go_both_ways_in_order(world: World) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    batches = [b"", b"\x00\xff", bytes(1024 * 1024), *(b"%d" % i for i in range(500))]

    def send() -> None:
        for batch in batches:
            ours.send(batch)
            theirs.send(batch)

    world.call(send)
    assert [their_sink.next() for _ in batches] == batches
    assert [our_sink.next() for _ in batches] == batches


def test_the_largest_batch(world: World) -> None:
    ours, _, _, their_sink = world.link()
    batch = bytes(ARGUMENT_LIMIT)
    world.call(ours.send, batch)
    assert their_sink.next() == batch


def test_a_subclass_of_bytes_travels(world: World) -> None:
    class Odd(bytes):
        pass

    ours, _, _, their_sink = world.link()
    world.call(ours.send, Odd(b"odd"))
    assert their_sink.next() == b"odd"


def test_many_links_at_once(world: World) -> None:
    links = [world.link(kind) for kind in KINDS * 3]
    for number, (ours, _, theirs, _) in enumerate(links):
        world.call(ours.send, b"to controller %d" % number)
        world.call(theirs.send, b"from controller %d" % number)
    for number, (_, our_sink, _, their_sink) in enumerate(links):
        assert their_sink.next() == b"to controller %d" % number
        assert our_sink.next() == b"from controller %d" % number


def test_a_refusal_comes_without_a_link(world: World) -> None:
    listener = world.serve()
    dialer = world.dialer(listener.furls["task"])
    answer, link, sink = world.dial(dialer, b"no")
    assert (answer, link) == (b"refusal", None)
    world.call(dialer.close)
    world.settle()
    assert sink.heard.empty()
    assert world.doors["task"].came.empty()


# -- files ------------------------------------------------------------------------


def test_the_files_hold_the_furls_and_are_private(world: World) -> None:
    listener = world.serve()
    assert {kind: world.files.furl(kind).read_text() for kind in KINDS} == {
        kind: furl + "\n" for kind, furl in listener.furls.items()
    }
    assert len(set(listener.furls.values())) == len(KINDS)
    assert sorted(p.name for p in world.files.security.iterdir()) == [
        "ipcontroller-engine.furl",
        "ipcontroller-mec.furl",
        "ipcontroller-tc.furl",
        "ipcontroller-view.furl",
        "ipcontroller.pem",
    ]
    assert {stat.S_IMODE(p.stat().st_mode) for p in world.files.security.iterdir()} == {0o600}
    assert b"PRIVATE KEY" in world.files.certificate.read_bytes()


def test_furls_stay_good_when_the_controller_is_restarted(world: World) -> None:
    first = world.serve()
    dialer = world.dialer(first.furls["engine"])
    _, old, sink = world.dial(dialer)
    world.call(first.stop)
    assert sink.next() is old
    second = world.serve(first.port)
    assert (second.furls, second.port) == (first.furls, first.port)
    answer, new, _ = world.dial(dialer)
    assert (answer, new is old) == (b"welcome to engine", False)


def test_secrets_stay_on_another_port(world: World) -> None:
    first = world.serve()
    world.call(first.stop)
    second = world.serve()
    for kind in KINDS:
        one, two = tubs.split_furl(first.furls[kind]), tubs.split_furl(second.furls[kind])
        assert (one[0], one[2]) == (two[0], two[2])
    assert tubs.split_furl(second.furls["task"])[1] == [f"127.0.0.1:{second.port}"]


def test_a_damaged_certificate_is_reported(world: World) -> None:
    world.files.create()
    world.files.certificate.write_text("nonsense")
    with pytest.raises(LaunchError, match=r"ipcontroller\.pem is damaged\. Delete it"):
        world.serve()


@pytest.mark.parametrize("content", ["nonsense", "\x00", "pb://" + "a" * 32 + "@127.0.0.1:1/known\n"])
def test_a_furl_file_that_is_not_ours_is_replaced(world: World, content: str) -> None:
    world.files.create()
    world.files.furl("task").write_text(content)
    furl = world.serve().furls["task"]
    assert world.files.furl("task").read_text() == furl + "\n"
    assert len(tubs.split_furl(furl)[2]) == 32


def test_files_that_cannot_be_written(world: World) -> None:
    world.files.create()
    world.files.furl("task").mkdir()  # even for root
    with pytest.raises(LaunchError, match=r"The controller did not start: .*security cannot be written"):
        world.serve()


def test_folders_that_cannot_be_made(world: World) -> None:
    world.files.folder.touch()
    with pytest.raises(LaunchError, match="cannot be used"):
        world.serve()


# -- the port ----------------------------------------------------------------------


def test_a_busy_port_is_reported_and_the_furl_files_stay(world: World) -> None:
    listener = world.serve()
    with pytest.raises(LaunchError, match=f"port {listener.port} of 127.0.0.1 is in use. Choose another"):
        world.serve(listener.port)
    assert world.dial(world.dialer(world.files.furl("view").read_text()))[0] == b"welcome to view"


def test_an_address_of_another_host(world: World) -> None:
    with pytest.raises(LaunchError, match=r"cannot listen on 192\.0\.2\.1:0 .* with --ip"):
        world.serve(ip="192.0.2.1")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("gate.example.org", ["gate.example.org:{port}"]),
        ("gate.example.org:20000", ["gate.example.org:20000"]),
        ("10.0.0.1, gate:20000", ["10.0.0.1:{port}", "gate:20000"]),
        ("::1", ["[::1]:{port}"]),
        ("[::1]:7", ["[::1]:7"]),
    ],
)
def test_location(world: World, location: str, expected: list[str]) -> None:
    listener = world.serve(location=location)
    expected = [text.format(port=listener.port) for text in expected]
    found = tubs.split_furl(listener.furls["task"])[1]
    assert found == [*expected, f"127.0.0.1:{listener.port}"]  # this host finds it anyway
    assert listener.host == expected[0].rsplit(":", 1)[0]


@pytest.mark.parametrize("location", ["two words", "host:", "host:70000", "a,,b", "host:http"])
def test_bad_locations(world: World, location: str) -> None:
    with pytest.raises(LaunchError, match="is no location"):
        world.serve(location=location)
    assert not world.files.folder.exists()


def test_listening_everywhere_can_be_dialled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"eth0": ["10.0.0.5", "fd00::5"], "lo": ["127.0.0.1"], "docker0": ["172.17.0.1"]}
    monkeypatch.setattr(serving, "interfaces", lambda: table)
    listener = world.serve(ip="0.0.0.0")
    found = tubs.split_furl(listener.furls["task"])[1]
    assert found == [f"{host}:{listener.port}" for host in ("10.0.0.5", "172.17.0.1", "127.0.0.1")]
    assert listener.host == "10.0.0.5"


def test_the_name_of_an_interface(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "interfaces", lambda: {"ib0": ["fd00::5", "127.0.0.1"]})
    listener = world.serve(ip="ib0")
    assert tubs.split_furl(listener.furls["task"])[1] == [f"127.0.0.1:{listener.port}"]
    with pytest.raises(LaunchError, match=r"cannot listen on ib7.*with --ip"):
        world.serve(ip="ib7")


@pytest.mark.parametrize("stagger", [0.0, attempts.STAGGER])
def test_all_places_lead_to_the_controller(
    world: World, stagger: float, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    monkeypatch.setattr(attempts, "STAGGER", stagger)
    listener = world.serve(ip="0.0.0.0", location=",".join(f"127.0.0.{i}" for i in range(2, 8)))
    for _ in range(10):
        dialer = world.dialer(listener.furls["engine"])
        _, link, sink = world.dial(dialer)
        theirs, their_sink = world.doors["engine"].came.get(timeout=PATIENCE)
        world.call(link.send, b"there")
        assert their_sink.next() == b"there"
        world.call(theirs.send, b"back")
        assert sink.next() == b"back"
        world.call(dialer.close)
    assert world.doors["engine"].came.empty()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(world: World) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    listener = world.serve(ip="::1")
    assert world.dial(world.dialer(listener.furls["task"]))[0] == b"welcome to task"


# -- what can be wrong with a FURL -----------------------------------------------------


@pytest.mark.parametrize("furl", ["", "nonsense", "pb://abc@127.0.0.1:1/x"])
def test_no_furl(world: World, furl: str) -> None:
    with pytest.raises(BadFURL, match="is not a FURL"):
        world.dial(world.dialer(furl))


def test_an_unknown_name_is_not_allowed(world: World) -> None:
    furl = world.serve().furls["multiengine"].rsplit("/", 1)[0] + "/" + "a" * 32
    with pytest.raises(NotAllowed, match="This FURL does not allow") as caught:
        world.dial(world.dialer(furl))
    assert "a" * 32 not in str(caught.value)


def test_the_name_of_a_link_is_no_door(world: World) -> None:
    ours, _, theirs, _ = world.link()
    furl = world.call(lambda: ours._remote.tracker.getURL())
    with pytest.raises(NotAllowed):
        world.dial(world.dialer(furl))
    assert world.call(lambda: theirs._remote.isConnected())


def test_an_unknown_tub_is_the_wrong_controller(world: World) -> None:
    listener = world.serve()
    with pytest.raises(
        WrongController, match=f"127.0.0.1:{listener.port} is not the controller of this FURL"
    ):
        world.dial(world.dialer(furl_to(listener.port)))


def test_an_impostor_is_the_wrong_controller(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = world.serve()
    monkeypatch.setattr(FoolscapListener, "lookupTubID", lambda self, tub_id: (self._tub, None))
    furl = furl_to(listener.port, name=tubs.split_furl(listener.furls["task"])[2])
    for _ in range(8):  # who is master in Foolscap's negotiation depends on the certificates
        with pytest.raises(WrongController):
            world.dial(world.dialer(furl))
    assert world.doors["task"].came.empty()


def test_nobody_listening(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NobodyListening, match=rf"Nobody listens at 127.0.0.1:{port} \(connection refused\)"):
        world.dial(world.dialer(furl_to(port)))


def test_one_good_location_is_enough(world: World) -> None:
    listener = world.serve()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = server.getsockname()[1]
    furl = listener.furls["task"].replace("@", f"@tcp:127.0.0.1:{dead},")
    assert world.dial(world.dialer(furl))[0] == b"welcome to task"


def test_each_place_is_named_with_what_failed_there(world: World) -> None:
    with stranger(until_closed) as silent, socket.create_server(("127.0.0.1", 0)) as server:
        refusing = server.getsockname()[1]
        server.close()
        places = f"tcp:127.0.0.1:{refusing},tcp:nowhere.invalid:7,tcp:127.0.0.1:{silent}"
        furl = furl_to(1).replace("tcp:127.0.0.1:1", places)
        dialer = world.dialer(furl, timeout=1.5)
        with pytest.raises(Unreachable) as caught:
            world.dial(dialer)
    assert dict(caught.value.attempts) == {
        f"127.0.0.1:{refusing}": "connection refused",
        "nowhere.invalid:7": "no host of that name is known here",
        f"127.0.0.1:{silent}": "no answer within 1.5 s",
    }
    assert f"from {socket.gethostname()}. Tried were 127.0.0.1:{refusing}: connection refused; " in str(
        caught.value
    )
    assert dialer.trouble()[0] == (f"127.0.0.1:{refusing}", "connection refused")


def test_a_place_that_swallows_all_delays_nobody_and_ends_with_the_dialer(world: World) -> None:
    with stranger(until_closed) as silent:
        listener = world.serve()
        furl = listener.furls["task"].replace("@", f"@tcp:127.0.0.1:{silent},")
        began = time.monotonic()
        dialer = world.dialer(furl)
        assert world.dial(dialer)[0] == b"welcome to task"
        assert time.monotonic() - began < 3.0
        assert dialer.address == f"127.0.0.1:{listener.port}"
        world.call(dialer.close)


def test_somebody_else_at_a_later_place_decides_nothing(world: World) -> None:
    other = world.serve()
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = server.getsockname()[1]
    furl = furl_to(refusing).replace("/b", f",tcp:127.0.0.1:{other.port}/b", 1)
    with pytest.raises(Unreachable, match=r"connection refused; .* its certificate differs"):
        world.dial(world.dialer(furl))
    turned = furl_to(other.port).replace("/b", f",tcp:127.0.0.1:{refusing}/b", 1)
    with pytest.raises(WrongController, match=f"127.0.0.1:{other.port} is not the controller"):
        world.dial(world.dialer(turned))


def test_a_name_that_no_host_has(world: World) -> None:
    with pytest.raises(ConnectionFailed, match=r"The controller at nowhere\.invalid:1 cannot be reached"):
        world.dial(world.dialer(furl_to(1).replace("127.0.0.1", "nowhere.invalid")))


def test_a_server_that_says_nothing(world: World) -> None:
    with stranger(until_closed) as port:
        with pytest.raises(ConnectionFailed, match=r"no answer within 0\.05 s") as caught:
            world.dial(world.dialer(furl_to(port), timeout=0.05))
        assert type(caught.value) is ConnectionFailed


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/1.1 404 Not Found\r\nServer: x\r\n\r\n", WrongController),
        (b"hello\r\n\r\n", WrongController),
        (b"\xff\xfe 101\r\n\r\n", WrongController),
        (b"x" * 5000, WrongController),
        (b"", ConnectionFailed),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionFailed),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\n\r\n" + b"no TLS" * 100,
            WrongController,
        ),
    ],
)
def test_a_server_of_another_kind(world: World, said: bytes, error: type[Exception]) -> None:
    def say(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        until_closed(connection)

    with stranger(say) as port:
        with pytest.raises(ConnectionFailed) as caught:
            world.dial(world.dialer(furl_to(port)))
        assert type(caught.value) is error


def test_a_door_that_fails_tells_no_details(world: World, logged_errors: LoggedErrors) -> None:
    listener = world.serve()
    world.doors["task"].error = RuntimeError("a secret")
    with pytest.raises(ConnectionFailed, match="its log says why") as caught:
        world.dial(world.dialer(listener.furls["task"]))
    assert "secret" not in str(caught.value)
    assert len(logged_errors.flush(RuntimeError)) == 1
    world.doors["task"].error = None
    assert world.dial(world.dialer(listener.furls["task"]))[0] == b"welcome to task"


def test_a_malformed_hello_is_no_error_of_ours(world: World) -> None:
    listener = world.serve()
    world.doors["task"].error = WireError(reason="not a record")
    with pytest.raises(ConnectionFailed, match="could not answer"):
        world.dial(world.dialer(listener.furls["task"]))


# -- how links end ----------------------------------------------------------------


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_close_ends_the_link_on_both_sides(world: World, side: str) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    closing = ours if side == "ours" else theirs
    world.call(closing.close)
    world.call(closing.close)
    assert (our_sink.next(), their_sink.next()) == (ours, theirs)
    world.call(closing.close)
    for link in (ours, theirs):
        world.call(link.send, b"too late")
    world.call(world.dialers[0].close)
    world.settle()
    assert our_sink.heard.empty()
    assert their_sink.heard.empty()


def test_close_drops_the_connection(world: World, reactor_thread: ReactorThread) -> None:
    world.serve()
    before = len(reactor_thread.call(world.reactor.getReaders))
    ours, our_sink, _, their_sink = world.link()
    assert len(reactor_thread.call(world.reactor.getReaders)) == before + 2
    world.call(ours.close)
    our_sink.next()
    their_sink.next()
    world.call(world.dialers[0].close)
    assert len(reactor_thread.call(world.reactor.getReaders)) == before


def test_what_was_sent_before_close_arrives(world: World) -> None:
    ours, _, theirs, their_sink = world.link()

    def send_and_close() -> None:
        ours.send(b"x" * 100_000)
        ours.send(b"goodbye")
        ours.close()

    world.call(send_and_close)
    assert [their_sink.next(), their_sink.next(), their_sink.next()] == [b"x" * 100_000, b"goodbye", theirs]


def test_a_cut_connection_is_heard_on_both_sides_once(world: World) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    world.call(lambda: theirs._remote.tracker.broker.transport.abortConnection())
    assert (our_sink.next(), their_sink.next()) == (ours, theirs)
    world.settle()
    assert our_sink.heard.empty()
    assert their_sink.heard.empty()


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_malformed_batch_closes_its_link_only(world: World, side: str) -> None:
    bystander, _, _, bystander_sink = world.link()
    ours, our_sink, theirs, their_sink = world.link()
    sender, sink = (ours, their_sink) if side == "theirs" else (theirs, our_sink)
    sink.error = WireError(reason="nonsense")

    def send() -> None:
        sender.send(b"one")
        sender.send(b"two")

    world.call(send)
    assert sink.next() == b"one"
    receiver = theirs if side == "theirs" else ours
    assert sink.next() is receiver  # and not b"two"
    assert (our_sink if side == "theirs" else their_sink).next() is sender
    world.call(bystander.send, b"still here")
    assert bystander_sink.next() == b"still here"


def test_a_failing_sink_is_logged_and_its_link_closed(world: World, logged_errors: LoggedErrors) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    their_sink.error = RuntimeError("a mistake")
    world.call(ours.send, b"batch")
    assert [their_sink.next(), their_sink.next()] == [b"batch", theirs]
    assert our_sink.next() is ours
    assert len(logged_errors.flush(RuntimeError)) == 1


def test_a_batch_that_is_too_large_closes_the_link(world: World, logged_errors: LoggedErrors) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    world.call(ours.send, bytes(ARGUMENT_LIMIT + 1))
    assert (our_sink.next(), their_sink.next()) == (ours, theirs)
    assert len(logged_errors.flush()) == 1


def test_a_peer_that_sends_too_much_is_not_heard(world: World) -> None:
    ours, our_sink, _, their_sink = world.link()

    def cheat() -> None:
        ours._remote.callRemoteOnly("deliver", bytes(ARGUMENT_LIMIT + 1), _useSchema=False)
        ours.send(b"afterwards")

    world.call(cheat)
    assert their_sink.next() == b"afterwards"
    assert our_sink.heard.empty()


def test_a_peer_that_speaks_nonsense_is_shown_out(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    world.call(lambda: ours._remote.tracker.broker.transport.write(b"\x01" * 100))
    assert (our_sink.next(), their_sink.next()) == (ours, theirs)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_peer_that_is_stopped_cannot_keep_the_connection_open(
    world: World, side: str, timed_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tubs, "LINGER", 0.05)
    ours, our_sink, theirs, their_sink = world.link()
    closing, stopped = (ours, theirs) if side == "ours" else (theirs, ours)
    transport = world.call(lambda: stopped._remote.tracker.broker.transport)
    world.call(transport.stopReading)
    # What Foolscap does when it has heard nothing for DISCONNECT seconds, or our own close.
    world.call(closing._remote.tracker.broker.connectionTimedOut if timed_out else closing.close)
    assert (our_sink if side == "ours" else their_sink).next() is closing
    world.call(world.dialers[0].close if side == "ours" else world.listeners[0].stop)
    world.call(transport.startReading)
    assert (their_sink if side == "ours" else our_sink).next() is stopped


# -- dialling again, and giving up -------------------------------------------------------


def test_a_lost_link_can_be_dialled_again(world: World) -> None:
    ours, our_sink, theirs, _ = world.link()
    dialer = world.dialers[0]
    for number in range(3):
        world.call(theirs.close)
        assert our_sink.next() is ours
        _, again, our_sink = world.dial(dialer)
        assert again is not ours
        ours = again
        theirs, their_sink = world.doors["engine"].came.get(timeout=PATIENCE)
        world.call(ours.send, b"%d" % number)
        assert their_sink.next() == b"%d" % number


def test_dialling_replaces_a_link_that_is_thought_to_live(world: World) -> None:
    """As after a cut that only one side has noticed."""
    for _ in range(8):  # who is master in Foolscap's negotiation depends on the certificates
        ours, our_sink, theirs, their_sink = world.link()
        _, again, again_sink = world.dial(world.dialers[-1])
        assert (our_sink.next(), their_sink.next()) == (ours, theirs)
        new, _ = world.doors["engine"].came.get(timeout=PATIENCE)
        world.call(new.send, b"here")
        assert again_sink.next() == b"here"
        assert again is not ours


def test_close_while_dialling(world: World) -> None:
    with stranger(until_closed) as port:
        dialer = world.dialer(furl_to(port))
        failures: queue.Queue[Any] = queue.Queue()

        def dial_and_close() -> Any:
            dialer.dial(b"hello", Sink()).addErrback(failures.put)
            return dialer.close()

        world.call(dial_and_close)
        assert failures.get(timeout=PATIENCE).value.reason == "the connection was closed here"
        assert world.call(world.reactor.getDelayedCalls) == []
        with pytest.raises(ConnectionFailed, match="was closed here"):
            world.dial(dialer)


def test_closing_the_dialer_ends_its_link(world: World) -> None:
    ours, our_sink, theirs, their_sink = world.link()
    world.call(world.dialers[0].close)
    assert (our_sink.next(), their_sink.next()) == (ours, theirs)


def test_stop_ends_every_link_and_the_port(world: World) -> None:
    links = [world.link() for _ in range(3)]
    listener = world.listeners[0]
    world.call(listener.stop)
    world.call(listener.stop)
    for ours, our_sink, theirs, their_sink in links:
        assert (our_sink.next(), their_sink.next()) == (ours, theirs)
    with pytest.raises(NobodyListening):
        world.dial(world.dialer(listener.furls["task"]))


def test_the_controller_keeps_nothing_of_those_who_left(world: World) -> None:
    for _ in range(5):
        ours, _, _, their_sink = world.link()
        world.call(ours.close)
        their_sink.next()
        world.call(world.dialers[-1].close)
    world.settle()
    tub = world.listeners[0]._tub
    kept = [tub.brokers, tub.master_table, tub.slave_table, tub.connected, tub.negotiating]
    assert [len(each) for each in kept] == [0] * 5


# -- strangers on the port --------------------------------------------------------------


GET = b"GET /id/%s HTTP/1.1\r\nHost: x\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff" * 2000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /id/\xff\xfe HTTP/1.1\r\nUpgrade: TLS/1.0\r\n\r\n",
        b"GET\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        GET + b"this is not TLS" * 100,
        GET,
        b"",
    ],
)
def test_garbage_disturbs_nobody(world: World, said: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    ours, _, _, their_sink = world.link()
    listener = world.listeners[0]
    tub_id = tubs.split_furl(listener.furls["task"])[0].encode()
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as connection:
        connection.sendall(said.replace(b"%s", tub_id))
        world.call(ours.send, b"while it talks")
        assert their_sink.next() == b"while it talks"
        assert world.dial(world.dialer(listener.furls["view"]))[0] == b"welcome to view"
    world.call(ours.send, b"afterwards")
    assert their_sink.next() == b"afterwards"
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("version", "good"), [("TLSv1_3", True), ("TLSv1_2", True), ("TLSv1_1", False)])
def test_old_tls_is_refused(world: World, version: str, good: bool) -> None:
    listener = world.serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not ourselves who refuse
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as plain:
        plain.sendall(GET % tubs.split_furl(listener.furls["task"])[0].encode())
        plain.recv(4096)
        expected = (
            contextlib.nullcontext() if good else pytest.raises(ssl.SSLError, match=r"(?i)alert protocol")
        )
        with expected, context.wrap_socket(plain) as encrypted:
            assert encrypted.version() == version.replace("_", ".")


@pytest.mark.parametrize("lanes", [(), ("tls",)])
def test_a_half_negotiation_is_ended(
    world: World, lanes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tubs._Negotiation, "SERVER_TIMEOUT", 0.05)
    monkeypatch.setattr(sniffing, "SNIFF_TIME", 0.05)
    listener = world.serve(lanes=lanes)
    tub_id = tubs.split_furl(listener.furls["task"])[0].encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as silent:
        until_closed(silent)
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as plain:
        plain.sendall(GET % tub_id)
        assert plain.recv(4096).startswith(b"HTTP/1.1 101 ")
        with context.wrap_socket(plain) as encrypted, contextlib.suppress(ConnectionError, ssl.SSLError):
            while encrypted.recv(4096):  # its offer; ours never comes
                pass


@pytest.mark.parametrize(("lanes", "said"), [((), b""), (("tls",), b""), (("tls",), b"GET")])
def test_stopping_ends_half_negotiations(world: World, lanes: tuple[str, ...], said: bytes) -> None:
    listener = world.serve(lanes=lanes)
    waiting = listener._tub.negotiating if said or not lanes else listener._sniffing.guests  # type: ignore[union-attr]
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as silent:
        silent.sendall(said)
        while not world.call(lambda: len(waiting)):
            pass  # until the reactor has accepted it
        world.call(listener.stop)
        until_closed(silent)


def test_foolscap_may_come_in_single_bytes(world: World) -> None:
    listener = world.serve()
    with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET % tubs.split_furl(listener.furls["task"])[0].encode():
            plain.sendall(bytes([byte]))
            world.call(lambda: None)  # a turn of the reactor
        assert plain.recv(4096).startswith(b"HTTP/1.1 101 ")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(plain) as encrypted:
            assert b"banana-negotiation-range" in encrypted.recv(4096)


def test_garbage_is_logged_but_not_for_ever(world: World) -> None:
    warnings: list[str] = []

    def observe(event: Any) -> None:
        if event["log_namespace"].startswith("ipython1") and event["log_level"].name == "warn":
            warnings.append(event["log_format"].format(**event))

    listener = world.serve()
    globalLogPublisher.addObserver(observe)
    try:
        for _ in range(LINES + 10):
            with socket.create_connection(("127.0.0.1", listener.port), PATIENCE) as connection:
                connection.sendall(b"\x1b[31mhello\r\n\r\n")
                until_closed(connection)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(warnings) == LINES
    assert all("did not get through" in text for text in warnings)
