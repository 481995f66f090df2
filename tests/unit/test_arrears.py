"""Clients that do not read: what the controller stores for them is bounded, and they get everything."""

from __future__ import annotations

import pytest

from ipython1.kernel.controller import arrears
from ipython1.kernel.controller.peers import Peer as Held
from ipython1.kernel.controller.service import CLIENT_GRACE
from ipython1.kernel.wire.records import (
    Answer,
    Ask,
    Batch,
    BlobRef,
    Chunk,
    Engines,
    Event,
    Fetch,
    Grant,
    Outcomes,
    Result,
    Work,
)
from ipython1.kernel.wire.session import PEER_ACK_DELAY

from . import test_controller
from .test_controller import Peer, World, ok, submit

world = test_controller.world
LIMIT = 10_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrears, "BEHIND", LIMIT)
    monkeypatch.setattr(arrears, "CAUGHT_UP", LIMIT // 4)
    monkeypatch.setattr(arrears, "ASK_BYTES", LIMIT // 2)
    monkeypatch.setattr("ipython1.kernel.controller.peers.OUTBOX_LIMIT", 4 * LIMIT)


class Stopped:
    """A client that is stopped, its connection open, until `go_on`."""

    def __init__(self, client: Peer) -> None:
        self._connection = client.connection
        self._held: list[bytes] = []
        self._connection.batch_received = self._held.append  # type: ignore[method-assign]

    def go_on(self) -> None:
        del self._connection.batch_received
        for batch in self._held:
            self._connection.batch_received(batch)


def held(world: World, client: Peer) -> Held:
    """The controller's end of a client's session."""
    assert world.controller is not None
    return next(peer for peer in world.controller.peers if peer.key == client.detail["client"])


def answer(engine: Peer, said: list[Event | Result], asked: Fetch) -> None:
    """What an engine does with a `Fetch`."""
    for record in said:
        if record.id == asked.id and (isinstance(record, Result) or record.index >= asked.first):
            engine.connection.send(record)


def test_a_stopped_client_is_told_to_ask(world: World) -> None:
    client, other, engine = world.client(), world.client("c2"), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    other.connection.send(submit("c2-1", 0))
    world.turn()
    stopped = Stopped(client)
    said: list[Event | Result] = [Event("c1-1", 0, i, "stdout", "x" * 1000, ()) for i in range(40)]
    said.append(Result("c1-1", 0, "execute", "ok", 1.0, 2.0, 40, ()))
    for record in [*said, ok("c2-1", 0)]:
        engine.connection.send(record)
    world.turn()
    assert LIMIT <= held(world, client).session.outbox_bytes < LIMIT + 2000
    assert other.hear(Result) == [ok("c2-1", 0)]  # the others are not held up
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    events = client.hear(Event)
    assert 8 < len(events) < 12
    [later] = client.hear(Result)
    assert (later.id, later.status) == ("c1-1", "later")
    while client.hear(Result)[-1].status == "later":
        first = len(client.hear(Event))
        client.connection.send(Fetch("c1-1", (0,), first))
        world.turn()
        assert engine.hear(Fetch)[-1].first == first
        answer(engine, said, engine.hear(Fetch)[-1])
        world.turn()
    assert [event.index for event in client.hear(Event)] == list(range(40))
    assert client.hear(Result)[-1] == said[-1]
    assert not held(world, client).arrears.any


def test_debts_are_told_a_few_at_a_time(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    ids = [f"c1-{i}" for i in range(30)]
    for id in ids:
        client.connection.send(submit(id, 0))
    world.turn()
    stopped = Stopped(client)
    for id in ids:
        engine.connection.send(ok(id, 0, (b"x" * 1000,)))
    world.turn()
    assert len(held(world, client).arrears) == 20
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    later = [result.id for result in client.hear(Result) if result.status == "later"]
    assert later == ids[10:15]
    client.connection.send(submit("c1-new", 0))
    engine.connection.send(ok("c1-new", 0))  # what has no debts has its way
    world.turn()
    assert client.hear(Result)[-1] == ok("c1-new", 0)
    for id in later:
        client.connection.send(Fetch(id, (0,)))
        engine.connection.send(ok(id, 0, (b"x" * 1000,)))
    world.turn(2 * PEER_ACK_DELAY)
    assert [r.id for r in client.hear(Result) if r.status == "later"] == ids[10:20]
    world.turn(arrears.ASK_TIME + 1)  # it has no use for these
    assert [r.id for r in client.hear(Result) if r.status == "later"] == ids[10:25]


def test_an_engine_that_dies_ends_what_was_left_with_it(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    for id in ("c1-1", "c1-2"):
        client.connection.send(submit(id, 0))
    world.turn()
    stopped = Stopped(client)
    for id in ("c1-1", "c1-2"):
        engine.connection.send(ok(id, 0, (b"x" * LIMIT,)))
    world.turn()
    assert world.controller is not None
    registered = world.controller.registry.get(0)
    assert registered is not None
    world.controller.router.engine_died(registered, "killed", "")
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    assert [(result.id, result.status) for result in client.hear(Result)] == [
        ("c1-1", "ok"),
        ("c1-2", "error"),
    ]
    assert not held(world, client).arrears.any


def test_a_client_that_is_away_is_told_to_ask_when_it_is_back(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    for id in ("c1-1", "c1-2"):
        client.connection.send(submit(id, 0))
    world.turn()
    door, client.dialer._door = client.dialer._door, lambda: None
    client.dialer.cut()
    for id in ("c1-1", "c1-2"):
        engine.connection.send(ok(id, 0, (b"x" * LIMIT,)))
    world.turn(1)
    client.dialer._door = door
    world.turn(10)
    assert [resumed for _, resumed in client.welcomes] == [False, True]
    assert [(result.id, result.status) for result in client.hear(Result)] == [
        ("c1-1", "ok"),
        ("c1-2", "later"),
    ]


def test_outcomes_of_tasks_are_asked_for(world: World) -> None:
    client, engine = world.client(kind="task"), world.engine("a")
    client.connection.send(Batch("c1-1", "call", "", 0.0, b"\x80", b"", ()))
    client.connection.send(Work("c1-1", tuple((i, 0, ()) for i in range(4))))
    world.turn()
    stopped = Stopped(client)

    def end(index: int) -> None:
        end = (index, 1, "ok", 1.0, 2.0, 0, (b"x" * 6000,))
        engine.connection.send(Outcomes("c1-1", 0, (end,)))

    engine.connection.send(Event("c1-1#3", 0, 0, "stdout", "hi", (), 1))
    for index in range(4):
        end(index)
    world.turn()
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    ends = [end for record in client.hear(Outcomes) for end in record.items]
    assert [(index, status) for index, _, status, *_ in ends] == [(0, "ok"), (1, "ok"), (2, "later")]
    client.connection.send(Work("c1-1", ((2, 1, ()),)))
    world.turn()
    end(2)
    world.turn()
    ends = [end for record in client.hear(Outcomes) for end in record.items]
    assert [(end[0], end[2]) for end in ends][3:] == [(3, "later"), (2, "ok")]


def test_of_engine_tables_only_the_last_counts(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    stopped = Stopped(client)
    engine.connection.send(ok("c1-1", 0, (b"x" * LIMIT,)))
    world.turn()
    before = len(client.hear(Engines))
    for i in range(20):
        world.engine(f"b{i}")
        world.turn()
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    assert len(client.hear(Engines)) == before + 1
    assert client.hear(Engines)[-1].table.count(b"uuid") == 21


@pytest.mark.parametrize("end", ["grace", "stop"])
def test_of_a_client_that_never_reads_again_nothing_stays(world: World, end: str) -> None:
    client, engine = world.client(), world.engine("a")
    ids = [f"c1-{i}" for i in range(30)]
    for id in ids:
        client.connection.send(submit(id, 0))
    world.turn()
    stopped = Stopped(client)
    for id in ids[:20]:
        engine.connection.send(ok(id, 0, (b"x" * 1000,)))
    world.turn()
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)  # it is told to ask, and does not
    Stopped(client)
    for id in ids[20:]:
        engine.connection.send(ok(id, 0, (b"x" * LIMIT,)))
    world.turn()
    world.engine("b")
    peer, controller = held(world, client), world.controller
    assert controller is not None
    assert peer in controller._tables._owed
    assert peer.arrears._asked
    client.vanish()
    if end == "stop":
        controller.stop()
        world.controller = None
        for each in world.peers:
            each.connection.stop()
        world.turn()
        assert not world.clock.getDelayedCalls()
    else:
        for call in world.clock.getDelayedCalls():
            if call.func == peer.arrears._go_on:
                call.reset(10 * CLIENT_GRACE)
        world.turn(CLIENT_GRACE + 1)
        assert not controller._tables._owed
        assert not [call for call in world.clock.getDelayedCalls() if call.func == peer.arrears._go_on]
    assert not len(peer.arrears)


def test_a_blob_waits_until_its_receiver_has_caught_up(world: World) -> None:
    client, other, engine = world.client(), world.client("c2"), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    name, size = "c1-1/a/r/0", 40_000
    engine.connection.send(ok("c1-1", 0, (BlobRef(name, size),)))
    world.turn()
    client.connection.send(Grant(name, 0))
    world.turn()
    stopped = Stopped(client)
    for offset in range(0, size, 4000):
        engine.connection.send(Chunk(name, offset, bytes(4000)))
    world.turn()
    assert held(world, client).session.outbox_bytes < LIMIT + 5000
    assert engine.hear(Grant)[-1] == Grant(name, -1)  # and its place is free for blobs of others
    stopped.go_on()
    world.turn(2 * PEER_ACK_DELAY)
    assert engine.hear(Grant)[-1] == Grant(name, 0)
    assert other.hear(Chunk) == []


def test_who_asks_without_end_and_does_not_read_loses_the_session(world: World) -> None:
    client = world.client()
    for i in range(60):
        world.engine(f"b{i}")
    Stopped(client)
    for i in range(60):
        client.connection.send(Ask(str(i), "status", b"\x80"))
    world.turn()
    assert client.hear(Answer) == []
    world.turn(5)
    assert [resumed for _, resumed in client.welcomes] == [False, False]
