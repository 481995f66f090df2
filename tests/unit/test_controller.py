"""The controller with recorders for neighbours: what goes where, and what each peer may do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.internet.task import Clock

from ipython1.kernel.client.enginetable import EngineTable
from ipython1.kernel.controller import facets, registry
from ipython1.kernel.controller.lifecycle import ENGINE_GRACE, LAST_WORDS, RESTART_GRACE
from ipython1.kernel.controller.questions import LABEL_SHOWN
from ipython1.kernel.controller.queue import HAND
from ipython1.kernel.controller.scaling import START_TIME
from ipython1.kernel.controller.service import (
    CLIENT_GRACE,
    RETURN_GRACE,
    Controller,
)
from ipython1.kernel.error import (
    ConnectionFailed,
    IPython1Error,
    NobodyListening,
    NotAllowed,
    VersionMismatch,
)
from ipython1.kernel.wire import codec, records
from ipython1.kernel.wire.blobs import LOST
from ipython1.kernel.wire.codec import decode_failure, pack, unpack, unpack_map
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.memory import MemoryDialer
from ipython1.kernel.wire.records import (
    Answer,
    Ask,
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    Engines,
    Event,
    Exited,
    Fetch,
    Forget,
    Grant,
    Input,
    Interrupt,
    Order,
    Record,
    Result,
    Submit,
    Usage,
)


class Peer:
    """A client, engine or nanny that records what it is told."""

    def __init__(self, world: World, furl: str, kind: str, detail: dict[str, Any]) -> None:
        self.heard: list[Record] = []
        self.welcomes: list[tuple[dict[str, Any], bool]] = []
        self.errors: list[Exception] = []
        self.detail = detail
        self.dialer = MemoryDialer(
            world.clock, lambda: world.controller.door(furl) if world.controller else None
        )
        self.connection = Connection(
            world.clock,
            self.dialer,
            kind,
            detail=lambda: self.detail,
            receive=lambda record, raw: self.heard.append(record),
            welcomed=lambda detail, resumed: self.welcomes.append((detail, resumed)),
            lost=self.errors.append,
            grace=1000.0,
        )
        self.connection.start()
        world.turn()

    def hear(self, kind: type[Record]) -> list[Any]:
        return [record for record in self.heard if isinstance(record, kind)]

    def vanish(self) -> None:
        """The process is gone: nothing will dial again."""
        self.connection._stopped = True
        self.dialer.cut()


class World:
    """A controller and its clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.notices: list[dict[str, Any]] = []
        self.controller: Controller | None = Controller(self.clock, self.notices.append, self.clock.seconds)
        self.peers: list[Peer] = []

    def turn(self, seconds: float = 0.1) -> None:
        for _ in range(10):
            self.clock.advance(seconds / 10)

    def peer(self, furl: str, kind: str, **detail: Any) -> Peer:
        peer = Peer(self, furl, kind, detail)
        self.peers.append(peer)
        return peer

    def client(self, name: str = "c1", kind: str = "multiengine") -> Peer:
        return self.peer(kind, kind, client=name)

    def engine(self, uuid: str, wanted: int = -1, nanny: str = "n", **detail: Any) -> Peer:
        facts = {"host": "h", "pid": 1, "replaces": {}, "held": [], "clients": [], **detail}
        return self.peer("engine", "engine", uuid=uuid, wanted=wanted, nanny=nanny, **facts)

    def nanny(self, uuid: str = "n", engines: tuple[str, ...] = ()) -> Peer:
        return self.peer("engine", "nanny", uuid=uuid, engines=list(engines), exited=[])


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for peer in world.peers:
        peer.connection.stop()
    if world.controller is not None:
        world.controller.stop()


def submit(id: str, *targets: int, parts: records.Parts = (), stop: int = -1) -> Submit:
    return Submit(id, targets, "execute", f"label {id}", stop, 0.0, b"", parts)


def ok(id: str, engine: int, parts: records.Parts = ()) -> Result:
    return Result(id, engine, "execute", "ok", 1.0, 2.0, 0, parts)


def failure(result: Result) -> str:
    assert result.status == "error"
    (raw,) = result.parts
    assert isinstance(raw, bytes)
    return decode_failure(raw, 0, "").ename


def ask(client: Peer, world: World, what: str, **body: Any) -> Any:
    client.connection.send(Ask("q", what, pack(body)))
    world.turn()
    answer = client.hear(Answer)[-1]
    return unpack(answer.body) if answer.ok else decode_failure(answer.body, -1, what)


# -- arrivals ----------------------------------------------------------------------


def known(client: Peer) -> EngineTable:
    """What a client knows of the engines."""
    table = EngineTable()
    table.first(client.welcomes[-1][0])
    for record in client.hear(Engines):
        table.take(unpack_map(record.table))
    return table


def test_ids_are_the_lowest_free_and_clients_hear_of_them(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "abc"]
    assert [engine.welcomes[0][0]["id"] for engine in engines] == [0, 1, 2]
    assert [row["id"] for row in known(client).engines] == [0, 1, 2]
    assert world.notices[-1] == {"event": "engines", "ids": [0, 1, 2]}
    nanny = world.nanny()
    nanny.connection.send(Exited("b", "exit status 1", "", False))
    world.turn(LAST_WORDS + 0.1)
    assert [row["id"] for row in known(client).engines] == [0, 2]
    assert world.engine("d").welcomes[0][0]["id"] == 1
    assert [row["uuid"] for row in known(client).engines] == ["a", "d", "c"]
    assert world.engine("e", wanted=7).welcomes[0][0]["id"] == 7
    assert world.engine("f", wanted=0).welcomes[0][0]["id"] == 3


@pytest.mark.parametrize(
    ("furl", "kind"),
    [
        (furl, kind)
        for furl in facets.ADMITTED
        for kind in facets.RECORDS
        if kind not in facets.ADMITTED[furl]
    ],
)
def test_the_wrong_furl_is_refused(world: World, furl: str, kind: str) -> None:
    peer = world.peer(furl, kind, client="x", uuid="x")
    assert [type(error) for error in peer.errors] == [NotAllowed]


def test_who_never_was_here_is_told_that_the_name_is_taken(world: World) -> None:
    world.client("c1")
    (error,) = world.client("c1").errors
    assert type(error) is ConnectionFailed
    assert str(error) == "The controller has this client already, in another session."


def test_another_version_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipython1.kernel.wire.connection.__version__", "0.9.1")
    client = world.client()
    (error,) = client.errors
    assert isinstance(error, VersionMismatch)
    assert "0.9.1" in str(error)


@pytest.mark.parametrize("hello", [b"", b"\xc1garbage", codec.encode(Grant("x", 1)), b"\x90", b"\x91" * 100])
def test_a_malformed_hello_is_refused(world: World, hello: bytes) -> None:
    assert world.controller is not None
    answer, sink = world.controller.door("multiengine").knock(hello, object())  # type: ignore[arg-type]
    assert isinstance(codec.decode(answer), records.Refusal)
    assert sink is None


EXAMPLES: dict[type[Record], Record] = {
    Submit: submit("c1-1", 0),
    Cancel: Cancel((), (0,), "QueueCleared"),
    Interrupt: Interrupt((0,), ""),
    Input: Input((0,), "c1-1", 1, "line", "x"),
    Fetch: Fetch("c1-1", (0,)),
    Forget: Forget(("c1-1",), (0,)),
    Departed: Departed("c1"),
    Result: ok("c1-1", 0),
    Event: Event("c1-1", 0, 0, "stdout", "x", ()),
    Chunk: Chunk("b", 0, b"x"),
    Grant: Grant("b", 0),
    Engines: Engines(pack({"engines": [], "failures": []})),
    Ask: Ask("q", "status", pack({})),
    Answer: Answer("q", True, b""),
    Exited: Exited("victim", "said so", "", False),
    Usage: Usage(pack({})),
    Order: Order("quit", "", 0),
}


@pytest.mark.parametrize("kind", sorted(facets.RECORDS))
@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_each_kind_sends_only_its_records(
    world: World, kind: str, cls: type[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.controller is not None
    taken: list[Record] = []
    for handled in world.controller._handlers:
        monkeypatch.setitem(
            world.controller._handlers,  # type: ignore[arg-type]
            handled,
            lambda peer, record, raw: taken.append(record),
        )
    if kind == "engine":
        peer = world.engine("e")
    elif kind == "nanny":
        peer = world.nanny()
    else:
        peer = world.client(kind=kind)
    peer.connection.send(EXAMPLES[cls])
    world.turn()
    assert [type(record) for record in taken] == ([cls] if cls in facets.RECORDS[kind] else [])
    if cls is Submit and kind != "multiengine":
        assert [failure(result) for result in peer.hear(Result)] == ["NotAllowed"]


@pytest.mark.parametrize("kind", ["task", "view"])
@pytest.mark.parametrize("what", sorted(facets.QUESTIONS["multiengine"]))
def test_each_kind_asks_only_its_questions(world: World, kind: str, what: str) -> None:
    world.engine("e")
    answer = ask(world.client(kind=kind), world, what, targets=[0], id="x", n=0, number=2)
    refused = getattr(answer, "ename", "") == "NotAllowed"
    assert refused == (what not in facets.QUESTIONS[kind])


# -- commands -------------------------------------------------------------------------


def test_a_command_goes_to_its_targets_and_the_results_come_back(world: World) -> None:
    client, other = world.client(), world.client("c2")
    engines = [world.engine(uuid) for uuid in "abc"]
    client.connection.send(submit("c1-1", 0, 2))
    world.turn()
    assert [len(engine.hear(Submit)) for engine in engines] == [1, 0, 1]
    engines[0].connection.send(Event("c1-1", 0, 0, "stdout", "hello", ()))
    engines[0].connection.send(ok("c1-1", 0))
    engines[2].connection.send(ok("c1-1", 2))
    world.turn()
    assert [event.text for event in client.hear(Event)] == ["hello"]
    assert [result.engine for result in client.hear(Result)] == [0, 2]
    assert not other.hear(Result)
    client.connection.send(Forget(("c1-1",), (0, 2)))
    world.turn()
    assert [len(engine.hear(Forget)) for engine in engines] == [1, 0, 1]


def test_queue_status_and_clear_queue(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    for i in range(70):
        client.connection.send(submit(f"c1-{i}", 0))
    world.turn()
    ((_, status),) = ask(client, world, "queue_status", targets=[0])
    assert status["pending"] == "label c1-0"
    assert status["queue"] == tuple(f"label c1-{i}" for i in range(1, 70))
    ask(client, world, "clear_queue", targets=[0])
    assert {failure(result) for result in client.hear(Result)} == {"QueueCleared"}
    assert len(client.hear(Result)) == 6
    assert engine.hear(Cancel) == [Cancel((), (0,), "QueueCleared")]


def test_interrupt_ends_what_waits_and_reaches_what_runs(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    for i in range(70):
        client.connection.send(submit(f"c1-{i}", 0))
    world.turn()
    client.connection.send(Interrupt((0,), "c1-69"))
    client.connection.send(Interrupt((0,), "c1-0"))
    world.turn()
    assert [(result.id, failure(result)) for result in client.hear(Result)] == [
        ("c1-69", "KeyboardInterrupt")
    ]
    assert Interrupt((0,), "c1-0") in engine.heard


def test_answers_reach_the_engine_that_asked(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    answer = Input((0, 7), "c1-1", 1, "line", "x")
    client.connection.send(answer)
    world.turn()
    assert engine.hear(Input) == [answer]


def test_answers_wait_for_an_engine_that_comes_back_to_a_new_controller(world: World) -> None:
    client = world.client()
    client.connection.send(submit("c1-1", 0))
    answer = Input((0,), "c1-1", 1, "line", "x")
    client.connection.send(answer)
    world.turn()
    engine = world.engine("a", wanted=0, held=[("c1-1", "execute", "")])
    world.turn()
    assert engine.hear(Input) == [answer]


def test_the_nanny_hears_of_interrupts(world: World) -> None:
    client = world.client()
    world.engine("a", nanny="n1")
    world.engine("b", nanny="n2")
    first, second = world.nanny("n1", ("a",)), world.nanny("n2", ("b",))
    client.connection.send(submit("c1-1", 0))
    client.connection.send(Interrupt((0, 1, 5), "", "restart"))
    client.connection.send(Interrupt((0,), "c1-1"))
    world.turn()
    assert first.hear(Order) == [
        Order("interrupt", "a", 2, (), "restart"),  # the second record of that session, after the Submit
        Order("interrupt", "a", 3, ("c1-1",), ""),
    ]
    assert second.hear(Order) == [Order("interrupt", "b", 1, (), "restart")]


def test_an_interrupt_says_what_can_be_done(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(Interrupt((0,), "", "explode"))
    world.turn()
    assert engine.hear(Interrupt) == []


def test_blobs_are_forwarded_and_granted_at_the_pace_of_the_slowest(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "ab"]
    client.connection.send(submit("c1-1", 0, 1, parts=(BlobRef("c1-1/0", 10),)))
    client.connection.send(Chunk("c1-1/0", 0, b"01234"))
    world.turn()
    assert [engine.hear(Chunk) for engine in engines] == [[Chunk("c1-1/0", 0, b"01234")]] * 2
    engines[0].connection.send(Grant("c1-1/0", 5))
    world.turn()
    assert not client.hear(Grant)
    engines[1].connection.send(Grant("c1-1/0", 5))
    world.turn()
    assert client.hear(Grant) == [Grant("c1-1/0", 5)]
    # A receiver that begins anew takes the sender back.
    engines[1].connection.send(Grant("c1-1/0", 0))
    world.turn()
    assert client.hear(Grant)[-1] == Grant("c1-1/0", 0)
    for engine in engines:
        engine.connection.send(ok("c1-1", engines.index(engine)))
    world.turn()
    assert world.controller is not None
    assert len(world.controller.router.blobs) == 0
    client.connection.send(Chunk("c1-1/0", 5, b"56789"))
    world.turn()
    assert client.hear(Grant)[-1] == Grant("c1-1/0", -1)


def test_chunks_from_a_stranger_are_refused(world: World) -> None:
    client, stranger, engine = world.client(), world.client("c2"), world.engine("a")
    client.connection.send(submit("c1-1", 0, parts=(BlobRef("c1-1/0", 10),)))
    stranger.connection.send(Chunk("c1-1/0", 0, b"evil!"))
    world.turn()
    assert not engine.hear(Chunk)
    assert stranger.hear(Grant) == [Grant("c1-1/0", -1)]


# -- deaths ------------------------------------------------------------------------------


def test_a_dead_engine_fails_what_it_had_and_others_go_on(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "ab"]
    nanny = world.nanny(engines=("a", "b"))
    for i in range(3):
        client.connection.send(submit(f"c1-{i}", 0, 1))
    world.turn()
    engines[1].vanish()
    nanny.connection.send(Exited("b", "killed by signal 9 (SIGKILL)", "oh no", True))
    nanny.connection.send(Exited("b", "killed by signal 9 (SIGKILL)", "oh no", True))
    world.turn()
    results = client.hear(Result)
    assert [(result.id, result.engine) for result in results] == [("c1-0", 1), ("c1-1", 1), ("c1-2", 1)]
    first = decode_failure(results[0].parts[0], 1, "execute").exception()
    assert "killed by signal 9 (SIGKILL)" in str(first)
    assert first.output == "oh no"  # type: ignore[attr-defined]
    assert "before it ran" in str(decode_failure(results[1].parts[0], 1, "execute").exception())
    # The id is kept, and commands wait for the successor.
    client.connection.send(submit("c1-9", 0, 1))
    world.turn()
    assert ask(client, world, "status")[1]["state"] == "restarting"
    death = {"uuid": "b", "cause": "killed", "output": ""}
    successor = world.engine("b2", wanted=1, replaces=death)
    assert successor.welcomes[0][0] == {"id": 1}
    assert [record.id for record in successor.hear(Submit)] == ["c1-9"]
    assert [row["restarts"] for row in ask(client, world, "status")] == [0, 1]


def test_the_successor_may_arrive_before_the_nannys_word(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    death = {"uuid": "a", "cause": "exit status 3", "output": "bye"}
    assert world.engine("a2", wanted=0, replaces=death).welcomes[0][0] == {"id": 0}
    world.turn()
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]
    engine.connection.send(ok("c1-1", 0))
    world.turn()
    assert len(client.hear(Result)) == 1


def test_a_restart_that_fails_frees_the_id(world: World) -> None:
    client = world.client()
    world.engine("a")
    nanny = world.nanny(engines=("a",))
    nanny.connection.send(Exited("a", "exit status 1", "", True))
    world.turn(LAST_WORDS + 0.1)
    client.connection.send(submit("c1-1", 0))
    world.turn(RESTART_GRACE + 1)
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]
    assert ask(client, world, "status") == ()


def test_an_engine_that_dies_while_starting_is_told_to_all_who_wait(world: World) -> None:
    client, nanny = world.client(), world.nanny()
    nanny.connection.send(Exited("z", "exit status 1", "ImportError: no numpy", False))
    world.turn()
    assert world.notices[-1]["event"] == "failed"
    table = unpack_map(client.hear(Engines)[-1].table)
    assert table["failures"] == ((1, "exit status 1", "ImportError: no numpy"),)


def test_a_silent_engine_lives_as_long_as_its_nanny_vouches(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    nanny = world.nanny(engines=("a",))
    client.connection.send(submit("c1-1", 0))
    world.turn()
    engine.vanish()
    world.turn(ENGINE_GRACE * 5)
    assert ask(client, world, "status")[0]["state"] == "away"
    assert not client.hear(Result)
    nanny.vanish()
    world.turn(ENGINE_GRACE + 2)
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]


def test_a_nanny_that_said_hello_before_its_engine_was_there_still_tells_why_it_died(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    engine.vanish()
    nanny = world.nanny(engines=())
    world.turn(1)
    assert not client.hear(Result)
    nanny.connection.send(Exited("a", "exit status 3", "", False))
    world.turn()
    (result,) = client.hear(Result)
    assert "exit status 3" in str(decode_failure(result.parts[0], 0, "execute").exception())


def test_an_engine_its_nanny_does_not_know_any_more_is_dead(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    nanny = world.nanny(engines=("a",))
    client.connection.send(submit("c1-1", 0))
    world.turn()
    engine.vanish()
    nanny.connection.send(Usage(pack({"b": [0.0, 1, 0.0]})))
    world.turn(ENGINE_GRACE + 2)
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]


def test_a_link_that_is_cut_loses_nothing(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    engine.dialer.cut()
    client.dialer.cut()
    client.connection.send(submit("c1-2", 0))
    engine.connection.send(ok("c1-1", 0))
    world.turn(5)
    assert [record.id for record in engine.hear(Submit)] == ["c1-1", "c1-2"]
    assert [result.id for result in client.hear(Result)] == ["c1-1"]
    assert [resumed for _, resumed in client.welcomes] == [False, True]


# -- clients that leave ---------------------------------------------------------------------


def test_a_vanished_clients_queued_work_is_dropped_after_its_grace_time(world: World) -> None:
    client, other, engine = world.client(), world.client("c2"), world.engine("a")
    for i in range(70):
        client.connection.send(submit(f"c1-{i}", 0))
    other.connection.send(submit("c2-1", 0))
    world.turn()
    client.vanish()
    world.turn(CLIENT_GRACE - 2)
    assert ask(other, world, "status")[0]["queue"] == 70
    world.turn(4)
    assert ask(other, world, "status")[0]["queue"] == 64
    assert engine.hear(Departed) == [Departed("c1")]
    engine.connection.send(ok("c1-0", 0))
    world.turn()
    assert [record.id for record in engine.hear(Submit)][-1] == "c2-1"


# -- controllers that die ----------------------------------------------------------------------


def test_a_new_controller_learns_all_from_its_peers(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "ab"]
    client.connection.send(submit("c1-1", 0, 1))
    world.turn()
    assert world.controller is not None
    world.controller.stop()
    world.controller = None
    for peer in world.peers:
        peer.dialer.cut()
    world.turn(2)
    engines[1].detail.update(wanted=1, held=[["c1-1", "execute", "label c1-1"]])
    engines[0].vanish()
    world.controller = Controller(world.clock, world.notices.append, world.clock.seconds)
    world.turn(8)
    assert client.welcomes[-1][1] is False
    assert engines[1].welcomes[-1] == ({"id": 1}, False)
    client.connection.send(submit("c1-1", 0, 1))
    world.turn()
    # The engine that has it hears it again, and knows what to do.
    assert [record.id for record in engines[1].hear(Submit)] == ["c1-1", "c1-1"]
    engines[1].connection.send(ok("c1-1", 1))
    world.turn()
    assert [result.engine for result in client.hear(Result)] == [1]
    world.turn(RETURN_GRACE)
    assert [failure(result) for result in client.hear(Result)[1:]] == ["EngineDied"]


def test_engines_hear_of_clients_that_never_came_to_the_new_controller(world: World) -> None:
    here = world.client("c1")
    engine = world.engine("a", clients=["c1", "c2"])
    world.turn(CLIENT_GRACE + 1)
    assert engine.hear(Departed) == [Departed("c2")]
    assert here.connection.linked


def test_a_new_controller_waits_for_the_engines_its_clients_know(world: World) -> None:
    client = world.peer("multiengine", "multiengine", client="c1", engines=[0, 1])
    assert [row["id"] for row in client.welcomes[0][0]["engines"]] == [0, 1]
    assert world.engine("a", wanted=1).welcomes[0][0] == {"id": 1}
    client.connection.send(submit("c1-1", 0))
    world.turn(RETURN_GRACE + 1)
    assert [row["id"] for row in ask(client, world, "status")] == [1]
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]


def test_what_clients_say_of_engines_is_believed_within_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "AWAITED_LIMIT", 10)
    for i in range(3):
        world.peer("task", "task", client=f"c{i}", engines=list(range(7 * i, 7 * i + 7)))
    client = world.client()
    assert [row["id"] for row in ask(client, world, "status")] == list(range(10))
    assert world.engine("a").welcomes[0][0] == {"id": 10}
    assert world.engine("b", wanted=9).welcomes[0][0] == {"id": 9}
    world.turn(RETURN_GRACE)
    assert [row["id"] for row in ask(client, world, "status")] == [9, 10]


def test_engines_that_do_not_come_back_are_given_up_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.peer("multiengine", "multiengine", client="c1", engines=list(range(50)))
    for target in range(50):
        client.connection.send(submit(f"c1-{target}", target))
        client.connection.send(Fetch(f"c9-{target}", (target,)))
    world.turn()
    assert world.controller is not None
    routes, book = world.controller.router._routes, world.controller.tasks
    looks: list[str] = []

    class Counted(dict[str, Any]):
        def items(self) -> Any:
            looks.append("routes")
            return super().items()

        def values(self) -> Any:
            looks.append("batches")
            return super().values()

    monkeypatch.setattr(world.controller.router, "_routes", Counted(routes))
    monkeypatch.setattr(book, "_batches", Counted(book._batches))
    world.turn(RETURN_GRACE)
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"] * 100
    assert not world.controller.router._routes
    assert len(looks) < 10


def test_engines_that_never_came_are_not_expected_for_ever(world: World) -> None:
    world.nanny(engines=("a", "b")).vanish()
    assert world.controller is not None
    assert world.controller.registry.incomplete
    world.turn(RETURN_GRACE + 1)
    world.nanny("n2", engines=("c", "d")).vanish()
    assert not world.controller.registry.incomplete


def test_a_command_for_an_engine_that_just_left_fails(world: World) -> None:
    client = world.client()
    world.turn(RETURN_GRACE + 1)
    client.connection.send(submit("c1-1", 5))
    world.turn()
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]


def test_a_new_controller_does_not_wait_for_an_engine_it_saw_die(world: World) -> None:
    client, nanny = world.client(), world.nanny(engines=("a",))
    world.engine("a")
    nanny.connection.send(Exited("a", "exit status 1", "", False))
    world.turn(LAST_WORDS + 0.1)
    client.connection.send(submit("c1-1", 0))
    world.turn()
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"]
    assert world.engine("b", nanny="n2").welcomes[0][0] == {"id": 0}


# -- orders ----------------------------------------------------------------------------------------


def test_orders_go_to_the_nanny_of_the_engine(world: World) -> None:
    client = world.client()
    world.engine("a", nanny="n1")
    world.engine("b", nanny="n2")
    first, second = world.nanny("n1", ("a",)), world.nanny("n2", ("b",))
    ask(client, world, "signal", targets=[1], number=10)
    ask(client, world, "restart", targets=[0])
    ask(client, world, "scale", n=5)
    ask(client, world, "scale", n=1)
    assert [notice["n"] for notice in world.notices if notice["event"] == "scaled"] == [5, 1]
    ask(client, world, "kill", targets=[0])
    assert first.hear(Order)[0] == Order("restart", "a", 0)
    assert second.hear(Order)[0] == Order("signal", "b", 10)
    started = [order for nanny in (first, second) for order in nanny.hear(Order) if order.what == "start"]
    assert sum(order.number for order in started) == 3
    assert second.hear(Order)[-1] == Order("stop", "b", 0)
    assert first.hear(Order)[-1] == Order("stop", "a", 0)


def test_what_no_engine_has_is_cancelled_at_once(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    for n in range(HAND + 1):
        client.connection.send(submit(f"c1-{n}", 0))
    world.turn()
    for id in ("c1-1", f"c1-{HAND}"):
        client.connection.send(Cancel((id,), (0,), "TaskAborted"))
    world.turn()
    assert engine.hear(Cancel) == [Cancel(("c1-1",), (0,), "TaskAborted")]
    [result] = client.hear(Result)
    assert (result.id, failure(result)) == (f"c1-{HAND}", "TaskAborted")


def test_what_a_dead_engine_had_sent_counts(world: World) -> None:
    client, engine, nanny = world.client(), world.engine("a"), world.nanny(engines=("a",))
    for n in range(3):
        client.connection.send(submit(f"c1-{n}", 0))
    world.turn()
    nanny.connection.send(Exited("a", "exit status 1", "", False, "c1-1"))
    world.turn(LAST_WORDS / 2)
    engine.connection.send(ok("c1-0", 0))
    world.turn(LAST_WORDS / 10)
    engine.vanish()
    world.turn(LAST_WORDS / 10)
    results = client.hear(Result)
    assert [result.status for result in results] == ["ok", "error", "error"]
    texts = [str(decode_failure(result.parts[0], 0, "execute").exception()) for result in results[1:]]
    assert ["before it ran" in text for text in texts] == [False, True]


def started(*nannies: Peer) -> int:
    return sum(order.number for nanny in nannies for order in nanny.hear(Order) if order.what == "start")


def test_engines_that_were_ordered_are_not_ordered_again(world: World) -> None:
    client, nanny, other = world.client(), world.nanny(), world.nanny("m")
    for _ in range(2):
        ask(client, world, "scale", n=4)
    assert [started(nanny), started(other)] == [2, 2]
    world.engine("a")
    world.engine("b", nanny="m")
    ask(client, world, "scale", n=5)
    assert started(nanny, other) == 5
    nanny.connection.send(Exited("x", "exit status 1", "", True))  # its successor is still to come
    world.turn()
    ask(client, world, "scale", n=5)
    assert started(nanny, other) == 5
    nanny.connection.send(Exited("y", "exit status 1", "", False))
    world.turn()
    ask(client, world, "scale", n=5)
    assert started(nanny, other) == 6
    world.turn(START_TIME + 1)
    ask(client, world, "scale", n=5)
    assert started(nanny, other) == 9


def test_engines_that_a_nanny_starts_by_itself_are_counted(world: World) -> None:
    client, nanny = world.client(), world.nanny("n", ("a", "b"))
    ask(client, world, "scale", n=2)
    assert started(nanny) == 0
    world.engine("a")
    world.engine("b")
    ask(client, world, "scale", n=3)
    assert started(nanny) == 1


def test_engines_that_are_leaving_do_not_count(world: World) -> None:
    client, nanny = world.client(), world.nanny()
    for uuid in "abc":
        world.engine(uuid)
    ask(client, world, "scale", n=1)
    ask(client, world, "scale", n=1)
    assert nanny.hear(Order) == [Order("stop", "c", 0), Order("stop", "b", 0)]
    ask(client, world, "scale", n=2)
    assert started(nanny) == 1


def test_bad_questions_get_an_error(world: World) -> None:
    client = world.client()
    world.engine("a")
    assert ask(client, world, "scale").ename == "WireError"
    assert ask(client, world, "scale", n=-1).ename == "WireError"
    assert ask(client, world, "signal", targets=[0], number=9999).ename == "WireError"
    error = ask(client, world, "restart", targets=[0])
    assert error.ename == "LaunchError"
    assert isinstance(error.exception(), IPython1Error)


def test_shutting_down_waits_for_the_nannies(world: World) -> None:
    client, nanny = world.client(), world.nanny()
    ask(client, world, "kill", targets=[], controller=True)
    assert nanny.hear(Order) == [Order("quit", "", 0)]
    assert {"event": "shutdown"} not in world.notices
    nanny.vanish()
    world.turn()
    assert world.notices[-1] == {"event": "shutdown"}


def test_usage_is_taken_only_from_the_engines_own_nanny(world: World) -> None:
    client = world.client()
    world.engine("a", nanny="n1")
    mine, other = world.nanny("n1", ("a",)), world.nanny("n2")
    mine.connection.send(Usage(pack({"a": [12.5, 1000, 7.0]})))
    other.connection.send(Usage(pack({"a": [99.0, 9, 0.0]})))
    world.turn()
    (row,) = ask(client, world, "status")
    assert (row["cpu"], row["rss"], row["stuck"]) == (12.5, 1000, 7.0)


@pytest.mark.parametrize(
    "row",
    [
        [12.5, 1e300, 0.0],
        [12.5, 2**64 - 1, 0.0],
        [float("nan"), 1000, 0.0],
        [12.5, 1000, float("inf")],
        [-1.0, 1000, 0.0],
        ["12.5", 1000, 0.0],
        [True, 1000, 0.0],
        [12.5, 1000],
        [12.5, 1000, 0.0, 0.0],
        {"cpu": 1, "rss": 2, "stuck": 3},
        "abc",
        7,
        None,
    ],
    ids=str,
)
def test_absurd_usage_costs_its_nanny_the_link_and_nobody_else_anything(world: World, row: Any) -> None:
    client = world.client()
    world.engine("a", nanny="n1")
    world.engine("b", nanny="n1")
    nanny = world.nanny("n1", ("a", "b"))
    nanny.connection.send(Usage(pack({"a": [12.5, 1000, 7.0], "b": row})))
    world.turn(1)
    status = ask(client, world, "status")
    assert [(each["cpu"], each["rss"], each["stuck"]) for each in status] == [(0.0, 0, 0.0)] * 2
    assert len(nanny.welcomes) > 1, "it had to dial again"


def test_stopping_leaves_no_timer(world: World) -> None:
    client = world.client()
    world.engine("a").vanish()
    client.vanish()
    world.turn()
    assert world.controller is not None
    world.controller.stop()
    for peer in world.peers:
        peer.connection.stop()
    world.turn()
    assert not world.clock.getDelayedCalls()


# -- trouble between peers ------------------------------------------------------------------------


def test_a_welcome_that_is_lost_does_no_harm(world: World) -> None:
    client, engine = world.client(), world.engine("a")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    assert world.controller is not None
    world.controller.stop()
    world.controller = Controller(world.clock, world.notices.append, world.clock.seconds)
    for peer in (engine, client):
        real = peer.dialer.dial

        def losing(hello: bytes, sink: Any, peer: Peer = peer, real: Any = real) -> Any:
            peer.dialer.dial = real  # type: ignore[method-assign]
            real(hello, sink)  # heard, but its answer never comes
            peer.dialer.cut()
            return fail(NobodyListening(address="memory", reason="hung up"))

        peer.dialer.dial = losing  # type: ignore[method-assign]
        peer.dialer.cut()
    engine.detail.update(wanted=0, held=[["c1-1", "execute", "x"]])
    world.turn(5)
    for peer in (engine, client):
        assert [resumed for _, resumed in peer.welcomes] == [False, False]
    client.connection.send(submit("c1-2", 0))
    engine.connection.send(ok("c1-1", 0))
    world.turn(1)
    assert [record.id for record in engine.hear(Submit)] == ["c1-1", "c1-2"]
    client.dialer.cut()
    world.turn(5)
    assert [resumed for _, resumed in client.welcomes] == [False, False, True]


def test_links_that_never_last_are_not_dialled_without_a_pause(world: World) -> None:
    client = world.client()
    dialled = []
    real = client.dialer.dial
    client.dialer.dial = lambda *args: dialled.append(world.clock.seconds()) or real(*args)  # type: ignore
    for _ in range(1000):
        client.dialer.cut()
        world.clock.advance(0.01)
    assert 1 < len(dialled) < 20
    world.turn(10)
    del dialled[:]
    client.dialer.cut()  # it has lasted
    world.clock.advance(0)
    assert len(dialled) == 1


def test_an_engine_speaks_for_itself_only(world: World) -> None:
    client, engine, rogue = world.client(), world.engine("a"), world.engine("b")
    client.connection.send(submit("c1-1", 0))
    world.turn()
    rogue.connection.send(ok("c1-1", 0))
    world.turn(1)
    rogue.connection.send(Event("c1-1", 0, 0, "stdout", "lies", ()))
    world.turn(1)
    rogue.connection.send(Event("c1-1", 1, 0, "stdout", "", (BlobRef("c1-2/s0/0", 100),)))
    world.turn(1)
    assert not client.hear(Result)
    assert not client.hear(Event)
    assert world.controller is not None
    assert len(world.controller.router.blobs) == 0
    engine.connection.send(ok("c1-1", 0))
    world.turn()
    assert [result.engine for result in client.hear(Result)] == [0]


def test_an_engine_cannot_pose_as_another(world: World) -> None:
    client = world.client()
    world.engine("a")
    assert [type(error) for error in world.engine("a").errors] == [NotAllowed]
    other = world.nanny("other")
    other.connection.send(Exited("a", "I say so", "", False))
    thief = world.engine("c", nanny="other", replaces={"uuid": "a", "cause": "", "output": ""}, wanted=0)
    world.turn()
    assert thief.welcomes[0][0] == {"id": 1}
    assert [row["uuid"] for row in ask(client, world, "status")] == ["a", "c"]


def test_an_id_under_restart_is_for_the_same_nanny(world: World) -> None:
    world.client()
    world.engine("a")
    world.nanny().connection.send(Exited("a", "exit status 1", "", True))
    world.turn(LAST_WORDS + 0.1)
    assert world.engine("x", wanted=0, nanny="other").welcomes[0][0] == {"id": 1}
    assert world.engine("b", wanted=0).welcomes[0][0] == {"id": 0}


def test_each_restart_has_its_own_time(world: World) -> None:
    client = world.client()
    world.engine("a")
    nanny = world.nanny()
    nanny.connection.send(Exited("a", "exit status 1", "", True))
    world.turn(LAST_WORDS + 0.1)
    world.turn(RESTART_GRACE - 2)
    world.engine("b", wanted=0)
    nanny.connection.send(Exited("b", "exit status 1", "", True))
    world.turn(LAST_WORDS + 0.1)
    world.turn(RESTART_GRACE - 2)
    assert [row["state"] for row in ask(client, world, "status")] == ["restarting"]
    world.turn(4)
    assert not ask(client, world, "status")


def test_a_timer_has_nothing_to_do_with_how_an_engine_calls_itself(world: World) -> None:
    client = world.peer("multiengine", "multiengine", client="c1", engines=[1])
    world.engine("return").dialer.cut()
    world.turn(1)
    assert [row["id"] for row in ask(client, world, "status")] == [0, 1]
    world.turn(RETURN_GRACE)
    assert [row["id"] for row in ask(client, world, "status")] == [0]


@pytest.mark.parametrize(
    "changed",
    [
        {"uuid": 7},
        {"wanted": 1.5},
        {"wanted": 2**63},
        {"wanted": -2},
        {"wanted": True},
        {"held": [["id", "op"]]},
        {"held": None},
        {"clients": "c1"},
        {"pid": []},
        {"replaces": {"uuid": "a"}},
        {"nanny": {}},
    ],
)
def test_a_hello_is_checked_before_anything_is_done(world: World, changed: dict[str, Any]) -> None:
    client = world.client()
    facts = {"host": "h", "pid": 1, "nanny": "", "replaces": {}, "held": [], "clients": [], "wanted": -1}
    engine = world.peer("engine", "engine", **{"uuid": "e", **facts, **changed})
    assert [type(error) for error in engine.errors] == [NotAllowed]
    assert not ask(client, world, "status")
    assert world.controller is not None
    assert len(world.controller.peers) == 1


def test_a_view_cannot_make_up_engines(world: World) -> None:
    view = world.peer("view", "view", client="v", engines=[3, 4])
    assert not ask(view, world, "status")


def test_targets_that_can_be_no_engine_make_none(world: World) -> None:
    client = world.client()
    client.connection.send(submit("c1-1", -5, 2**40))
    world.turn()
    assert [failure(result) for result in client.hear(Result)] == ["EngineDied"] * 2
    assert not ask(client, world, "status")


def test_a_fetch_is_answered_for_each_of_its_engines(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "ab"]
    nanny = world.nanny(engines=("a", "b"))
    world.turn(RETURN_GRACE)
    client.connection.send(Fetch("c9-1", (7, 0, 1)))  # 7 is not there, 1 will die
    world.turn()
    assert [result.engine for result in client.hear(Result)] == [7]
    engines[0].connection.send(ok("c9-1", 0))
    engines[1].vanish()
    nanny.connection.send(Exited("b", "killed", "", False))
    world.turn()
    assert [(result.engine, result.status) for result in client.hear(Result)] == [
        (7, "unknown"),
        (0, "ok"),
        (1, "error"),
    ]
    assert world.controller is not None
    assert not world.controller.router._routes


def test_a_fetch_waits_for_an_engine_that_comes_back(world: World) -> None:
    client = world.peer("multiengine", "multiengine", client="c1", engines=[0, 1])
    client.connection.send(Fetch("c9-1", (0, 1)))
    world.turn()
    assert not client.hear(Result)
    engine = world.engine("a", wanted=0)
    assert engine.hear(Fetch) == [Fetch("c9-1", (0, 1))]
    engine.connection.send(ok("c9-1", 0))
    world.turn(RETURN_GRACE)
    assert [(result.engine, result.status) for result in client.hear(Result)] == [(0, "ok"), (1, "error")]


def test_nobody_is_told_unknown_of_a_command_that_came_meanwhile(world: World) -> None:
    asker, sender, engine = world.client("c2"), world.client("c1"), world.engine("a")
    asker.connection.send(Fetch("c1-1", (0,)))
    world.turn()
    sender.connection.send(submit("c1-1", 0))
    world.turn()
    engine.connection.send(Result("c1-1", 0, "", "unknown", 0.0, 0.0, 0, ()))
    engine.connection.send(ok("c1-1", 0))
    world.turn()
    for client in (asker, sender):
        assert [result.status for result in client.hear(Result)] == ["ok"]


def test_only_receivers_may_ask_for_a_blob(world: World) -> None:
    client, engine, spy = world.client(), world.engine("a"), world.engine("b")
    client.connection.send(submit("c1-1", 0, parts=(BlobRef("c1-1/0", 10),)))
    client.connection.send(Chunk("c1-1/0", 0, b"01234"))
    world.turn()
    spy.connection.send(Grant("c1-1/0", 0))
    engine.connection.send(Grant("c1-1/0", 5))
    world.turn()
    assert client.hear(Grant) == [Grant("c1-1/0", 5)]
    client.connection.send(Chunk("c1-1/0", 5, b"56789"))
    world.turn()
    assert not spy.hear(Chunk)


def test_routes_of_results_end_when_all_have_them(world: World) -> None:
    clients = [world.client(name) for name in ("c1", "c2")]
    engine = world.engine("a")
    clients[0].connection.send(submit("c1-1", 0))
    clients[1].connection.send(Fetch("c1-1", (0,)))
    world.turn()
    engine.connection.send(ok("c1-1", 0, parts=(BlobRef("c1-1/a/r/0", 5),)))
    engine.connection.send(Chunk("c1-1/a/r/0", 0, b"01234"))
    world.turn()
    assert world.controller is not None
    for client, left in ((clients[0], 1), (clients[1], 0)):
        client.connection.send(Grant("c1-1/a/r/0", 5))
        world.turn()
        assert len(world.controller.router.blobs) == left


def test_who_waits_for_bytes_of_a_dead_engine_is_told(world: World) -> None:
    client, engine, nanny = world.client(), world.engine("a"), world.nanny()
    client.connection.send(submit("c1-1", 0))
    world.turn()
    engine.connection.send(ok("c1-1", 0, parts=(BlobRef("c1-1/a/r/0", 10),)))
    engine.connection.send(Chunk("c1-1/a/r/0", 0, b"01234"))
    world.turn()
    engine.vanish()
    nanny.connection.send(Exited("a", "killed", "", False))
    world.turn()
    assert client.hear(Chunk)[-1] == Chunk("c1-1/a/r/0", LOST, b"")


def test_an_engine_that_is_away_does_not_hold_up_the_others(world: World) -> None:
    client = world.client()
    engines = [world.engine(uuid) for uuid in "ab"]
    world.nanny(engines=("a", "b"))
    client.connection.send(submit("c1-1", 0, 1, parts=(BlobRef("c1-1/0", 10),)))
    client.connection.send(Chunk("c1-1/0", 0, b"01234"))
    world.turn()
    engines[0].connection.send(Grant("c1-1/0", 5))
    engines[1].vanish()
    world.turn()
    assert client.hear(Grant) == [Grant("c1-1/0", 5)]


@pytest.mark.parametrize("reason", ["inspect", "EngineDied", "RemoteFailure", ""])
def test_only_known_reasons_cancel(world: World, reason: str) -> None:
    client = world.client()
    world.engine("a")
    for i in range(70):
        client.connection.send(submit(f"c1-{i}", 0))
    client.connection.send(Cancel((), (0,), reason))
    world.turn(1)
    assert ask(client, world, "status")[0]["queue"] == 69


def test_long_texts_of_a_death_are_cut(world: World) -> None:
    client = world.client()
    world.engine("a")
    for i in range(100):
        client.connection.send(submit(f"c1-{i}", 0))
    world.nanny().connection.send(Exited("a", "c" * 100_000, "o" * 3_000_000, False))
    world.turn(5)
    results = client.hear(Result)
    assert len(results) == 100
    assert sum(len(codec.encode(result)) for result in results) < 500_000


def test_odd_numbers_in_questions_are_answered(world: World) -> None:
    client = world.client()
    world.engine("a")
    world.nanny()
    for body in ({"n": float("inf")}, {"n": 10**9}, {"n": "many"}):
        assert ask(client, world, "scale", **body).ename == "WireError"
    assert ask(client, world, "queue_status", targets=[float("inf")]).ename == "WireError"
    for i in range(12):
        long = Submit(f"c1-{i}", (0,), "execute", "x" * 300_000, -1, 0.0, b"", ())
        client.connection.send(long)
    ((_, status),) = ask(client, world, "queue_status", targets=[0] * 1000)
    assert {len(label) for label in (status["pending"], *status["queue"])} == {LABEL_SHOWN}
    for i in range(11_000):
        client.connection.send(Submit(f"c1-x{i}", (0,), "execute", "x" * 300, -1, 0.0, b"", ()))
    assert "too long" in ask(client, world, "queue_status", targets=[0]).evalue


def test_shutting_down_twice_is_told_once(world: World) -> None:
    client, nanny = world.client(), world.nanny()
    for _ in range(2):
        ask(client, world, "kill", targets=[], controller=True)
    nanny.vanish()
    world.turn(1)
    assert world.notices.count({"event": "shutdown"}) == 1


def test_nannies_that_are_gone_are_forgotten(world: World) -> None:
    world.nanny().vanish()
    world.turn(CLIENT_GRACE + 1)
    assert world.controller is not None
    assert not world.controller.peers


def test_a_fetch_through_a_view_is_refused_with_an_answer(world: World) -> None:
    view = world.client(kind="view")
    view.connection.send(Fetch("c1-1", (0,)))
    world.turn()
    assert [failure(result) for result in view.hear(Result)] == ["NotAllowed"]
