"""Sessions that move between Foolscap and a lane while they talk: every record once, in order."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import pytest
from foolscap.api import flushEventualQueue
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from ipython1.kernel.controller.service import Controller
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.interfaces import ILink
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.lanes import KINDS, TICKET_SIZE, LaneLink, UnixLane
from ipython1.kernel.wire.links import FoolscapDialer, FoolscapLink
from ipython1.kernel.wire.records import Event, Record, Result, Submit
from ipython1.kernel.wire.serving import PATH_LIMIT, Listener, serve
from ipython1.kernel.wire.tlslane import TLSLane

from .conftest import ReactorThread


class World:
    """A controller on a port of its own, one engine and one client; all run in the reactor thread."""

    def __init__(
        self,
        thread: ReactorThread,
        root: Path,
        kind: str,
        *,
        offered: Container[str] = KINDS,
        furls: Callable[[str], str] = lambda furl: furl,
    ) -> None:
        self.kind = kind
        self._furls = furls
        self.call = thread.call
        self.reactor = thread.reactor
        self.files = ClusterFiles(root=root)
        self.heard: dict[str, list[Record]] = {"engine": [], "multiengine": []}
        self.controller: Controller = self.call(Controller, self.reactor)
        doors = {kind: self.controller.door(kind) for kind in ("engine", "multiengine")}
        self.listener: Listener = self.call(serve, self.reactor, self.files, doors, port=0, lanes=offered)
        engine = {"uuid": "e", "host": "h", "pid": 1, "nanny": "n", "wanted": 0, "replaces": {}}
        self.engine = self.connect("engine", {**engine, "held": [], "clients": []})
        self.wait(lambda: self.controller.status())
        self.client = self.connect("multiengine", {"client": "c", "engines": []})

    def connect(self, kind: str, detail: dict[str, Any]) -> Connection:
        def make() -> Connection:
            connection = Connection(
                self.reactor,
                FoolscapDialer(self._furls(self.listener.furls[kind]), lanes=(self.kind,)),
                kind,
                detail=lambda: detail,
                receive=lambda record, raw: self.heard[kind].append(record),
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
            if done():
                ended.callback(None)
            else:
                self.reactor.callLater(0.001, look)

        self.call(lambda: (look(), ended)[1])

    @property
    def links(self) -> list[Any]:
        """The links at this end of the two sessions."""
        return [connection._session._link for connection in (self.engine, self.client)]

    def on_lanes(self) -> bool:
        """Both sessions are there, and neither end has anything of the way left."""
        kind = {"unix": UnixLane, "tls": TLSLane}[self.kind]
        return all(type(link) is kind and link.sink is not None for link in self.links)

    def close(self) -> None:
        for connection in (self.client, self.engine):
            self.call(connection.stop)
        self.call(self.controller.stop)
        self.call(self.listener.stop)
        self.call(flushEventualQueue)  # what Foolscap still has to say


@pytest.fixture(params=KINDS)
def world(request: Any, reactor_thread: ReactorThread, ipython1_dir: Path) -> Iterator[World]:
    world = World(reactor_thread, ipython1_dir, request.param)
    yield world
    world.close()
    assert reactor_thread.call(reactor_thread.reactor.getDelayedCalls) == []


def test_peers_on_this_host_move_to_lanes(world: World) -> None:
    world.wait(world.on_lanes)
    for link in world.links:
        assert verifyObject(ILink, link)
    world.wait(lambda: not world.listener._lanes._tickets)  # type: ignore[union-attr]
    path = world.files.run / "lane.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_whatever_is_cut_while_they_move_all_arrives_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for delay in ("FIRST_DELAY", "MAX_DELAY"):  # many cuts, and no long pauses after them
        monkeypatch.setattr(f"ipython1.kernel.wire.connection.{delay}", 0.005)
    rng = random.Random(1)
    stages = (lambda: True, lambda: all(world.links), world.on_lanes)
    moved = sent = 0
    answered: list[Record] = []
    results = lambda: [r.id for r in world.heard["multiengine"] if isinstance(r, Result)]  # noqa: E731

    def answer() -> None:
        for record in world.heard["engine"][len(answered) :]:
            assert isinstance(record, Submit)
            answered.append(record)
            world.call(world.engine.send, Event(record.id, 0, 0, "stdout", "x", ()))
            world.call(world.engine.send, Result(record.id, 0, "execute", "ok", 1.0, 2.0, 1, ()))

    def cut() -> None:
        link = rng.choice([link for link in world.links if link is not None] or [None])
        if isinstance(link, LaneLink):
            link.transport.abortConnection()
        elif isinstance(link, FoolscapLink):
            link.close()

    for _ in range(60):
        for _ in range(rng.randrange(8)):
            submit = Submit(f"c-{sent}", (0,), "execute", "", -1, 0.0, b"", (bytes(rng.randrange(2000)),))
            world.call(world.client.send, submit)
            sent += 1
        answer()
        world.wait(rng.choice(stages))
        moved += world.call(world.on_lanes)
        if rng.random() < 0.5:
            world.call(cut)
    while len(answered) < sent:  # no more than a handful comes before the first are answered
        world.wait(lambda: len(world.heard["engine"]) > len(answered))
        answer()
    world.wait(lambda: len(results()) >= sent)
    assert [record.id for record in answered] == [f"c-{i}" for i in range(sent)]  # type: ignore[attr-defined]
    assert results() == [f"c-{i}" for i in range(sent)]
    assert world.heard["engine"] == answered
    assert moved
    world.wait(world.on_lanes)


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x00\x00\x28" + bytes(40),  # a ticket nobody gave out
        b"\xff\xff\xff\xff" + bytes(100),
        b"\x00\x00\x00\x05short",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_strangers_on_the_lane_are_shown_out(world: World, said: bytes) -> None:
    world.wait(world.on_lanes)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(os.fspath(world.files.run / "lane.sock"))
        stranger.sendall(said)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass
    assert world.call(world.on_lanes)


def test_a_ticket_is_good_once(world: World) -> None:
    world.wait(world.on_lanes)
    lanes = world.listener._lanes
    assert lanes is not None
    peer = next(iter(world.controller._peers.values()))
    ticket = world.call(lanes.ticket, peer)
    world.call(lanes.withdraw, ticket)
    with socket.socket(socket.AF_UNIX) as thief:
        thief.settimeout(10)
        thief.connect(os.fspath(lanes.path))
        thief.sendall(b"\x00\x00\x00\x28" + ticket + bytes(8))
        try:
            assert thief.recv(100) == b""
        except ConnectionResetError:
            pass
    assert len(ticket) == TICKET_SIZE


def test_a_folder_with_a_long_path_has_no_lane(reactor_thread: ReactorThread, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * PATH_LIMIT)
    world = World(reactor_thread, folder, "unix")
    try:
        world.wait(lambda: all(isinstance(link, FoolscapLink) for link in world.links))
        assert world.listener._lanes is None
    finally:
        world.close()
