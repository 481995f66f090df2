"""Who may come in, send and ask what: a test for each cell of the tables; and what absurd records do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.controller import facets
from ipython1.kernel.controller.ledger import Folder
from ipython1.kernel.controller.service import CLIENT_GRACE, RETURN_GRACE
from ipython1.kernel.error import IPython1Error, NotAllowed, WireError
from ipython1.kernel.wire import codec, records
from ipython1.kernel.wire.codec import encode, pack, unpack
from ipython1.kernel.wire.records import (
    Answer,
    Ask,
    Batch,
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    Detach,
    Engines,
    Event,
    Exited,
    Fetch,
    Forget,
    Grant,
    Hello,
    Input,
    Interrupt,
    Leaving,
    Order,
    Outcomes,
    Record,
    Refusal,
    Result,
    Seek,
    Share,
    Submit,
    Taken,
    Usage,
    Welcome,
    Withdraw,
    Work,
)
from tests.conftest import LoggedErrors
from tests.unit.task_peers import FOREVER, Peer, TaskWorld

KINDS = ("multiengine", "task", "view", "engine", "nanny")
#: The policy, said once more: FURL -> who may come in.
FURLS = {
    "multiengine": "multiengine task view",
    "task": "task",
    "view": "view",
    "engine": "engine nanny",
}
#: An example of each record, and who may send it.
CELLS: dict[Record, str] = {
    Hello(1, "0", "view", "", "f" * 32, 0, b"\x80"): "",
    Welcome("0", True, 0, b"\x80"): "",
    Refusal("NotAllowed", b"\x80"): "",
    Submit("c-1", (0,), "execute", "", -1, 0.0, b"\x80", (b"a",)): "multiengine",
    Cancel((), (0,), "QueueCleared"): "multiengine",
    Interrupt((0,), ""): "multiengine",
    Input((0,), "c-1", 1, "line", "x"): "multiengine",
    Fetch("c-1", (0,)): "multiengine engine",
    Forget(("c-1",), (0,)): "multiengine",
    Departed("c"): "",
    Detach("c-9", 0, (), ()): "multiengine task",
    Batch("c-2", "call", "", 0.0, b"\x80", b"\x80", (b"f",)): "task",
    Work("c-2", ((0, 0, (b"x",)),)): "task",
    Withdraw("c-2", (), "abort"): "task",
    Seek("c-2", (0,)): "task",
    Taken("c-2", (0,), True): "task",
    Outcomes("c-2", 0, ()): "engine",
    Result("c-1", 0, "execute", "ok", 1.0, 2.0, 0, ()): "engine",
    Event("c-1", 0, 0, "stdout", "x", ()): "engine",
    Chunk("c-1/0", 0, b"x"): "multiengine task engine",
    Grant("c-1/0", 0): "multiengine task engine",
    Share("c-1/0", ""): "engine",
    Engines(pack({"engines": [], "failures": []})): "",
    Ask("q", "task_status", b"\x80"): "multiengine task view",
    Answer("q", True, b"\xc0"): "",
    Exited("e", "killed", "", False): "nanny",
    Usage(b"\x80"): "nanny",
    Leaving(20.0): "nanny",
    Order("quit", "", 0): "",
}
#: Each question, and who may ask it.
QUESTIONS = {
    "status": "multiengine view",
    "queue_status": "multiengine view",
    "task_status": "multiengine task view",
    "timeline": "multiengine view",
    "links": "multiengine view",
    "load": "multiengine view",
    "clear_queue": "multiengine",
    "signal": "multiengine",
    "restart": "multiengine",
    "kill": "multiengine",
    "scale": "multiengine",
    "detach": "multiengine task",
}


@pytest.fixture
def world() -> Iterator[TaskWorld]:
    world = TaskWorld()
    yield world
    world.close()


def peer(world: TaskWorld, kind: str, furl: str = "", name: str = "c") -> Peer:
    """A peer of any kind."""
    detail: dict[str, Any] = {"client": name}
    if kind == "engine":
        detail = {"uuid": name, "host": "h", "pid": 1, "nanny": "n", "wanted": -1, "replaces": {}}
        detail.update(held=[], clients=[])
    elif kind == "nanny":
        detail = {"uuid": name, "engines": [], "exited": []}
    return Peer(world, furl or {"nanny": "engine"}.get(kind, kind), kind, detail)


def of_kind(world: TaskWorld, kind: str) -> Peer:
    """The same, with an engine in the world, which it may be itself."""
    return peer(world, kind, name="e" if kind == "engine" else "c")


def reported(world: TaskWorld, peer: Peer, record: Record, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """What gets through to the parts of the controller behind the facets."""
    assert world.controller is not None
    taken: list[Record] = []
    for cls in list(world.controller._handlers):
        monkeypatch.setitem(
            world.controller._handlers,  # type: ignore[arg-type]
            cls,
            lambda peer, record, raw: taken.append(record),
        )
    peer.send(record)
    return taken


# -- the tables -----------------------------------------------------------------------


def test_no_record_question_kind_or_furl_was_left_out() -> None:
    assert {type(record) for record in CELLS} == {shape.cls for shape in codec._BY_TAG.values()}
    assert set(facets.RECORDS) == set(facets.QUESTIONS) == set(facets.DETAILS) == set(KINDS)
    assert set(facets.ADMITTED) == set(FURLS)
    assert set().union(*facets.QUESTIONS.values()) == set(QUESTIONS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("furl", FURLS)
def test_each_furl_lets_in_only_its_kinds(world: TaskWorld, furl: str, kind: str) -> None:
    errors: list[Exception] = []
    assert world.controller is not None
    made = peer(world, kind, furl)
    made.connection._on_lost = errors.append
    sessions = [each.kind for each in world.controller.peers if each.key == "c"]
    assert sessions == ([kind] if kind in FURLS[furl].split() else [])
    assert bool(made.welcomes) == (kind in FURLS[furl].split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("record", CELLS, ids=lambda record: type(record).__name__)
def test_each_kind_sends_only_its_records(
    world: TaskWorld, record: Record, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = of_kind(world, kind)
    allowed = kind in CELLS[record].split()
    assert reported(world, sender, record, monkeypatch) == [record] * allowed
    if isinstance(record, (Submit, Fetch)) and not allowed:  # where somebody waits for an answer
        assert [end.status for end in sender.hear(Result)] == ["error"]
    assert sender.connection.linked, "a refusal is no reason to end the session"


@pytest.mark.parametrize("kind", ["multiengine", "task", "view"])
@pytest.mark.parametrize("what", [*QUESTIONS, "", "stop", "__class__", "_kill"])
def test_each_kind_asks_only_its_questions(
    world: TaskWorld, what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.controller is not None
    asked: list[Ask] = []
    monkeypatch.setattr(world.controller.questions, "ask", lambda peer, ask: asked.append(ask))
    monkeypatch.setattr(world.controller.custody.intake, "ask", lambda peer, ask: asked.append(ask))
    asker = peer(world, kind)
    asker.send(Ask("q", what, b"\x80"))
    allowed = kind in QUESTIONS.get(what, "").split()
    assert len(asked) == allowed
    if not allowed:
        (answer,) = asker.hear(Answer)
        assert codec.decode_failure(answer.body, -1, what).ename == "NotAllowed"


def test_a_refusal_is_logged_but_not_for_ever(world: TaskWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    view = peer(world, "view")
    assert world.controller is not None
    (session,) = [each.session for each in world.controller.peers if each.key == "c"]
    lines: list[str] = []
    monkeypatch.setattr(session.complaints._log, "warn", lambda text, **facts: lines.append(text))
    view.send(*[Cancel((), (0,), "QueueCleared")] * 500)
    assert 1 <= len(lines) <= 20


# -- a view looks, and nothing else ------------------------------------------------------


def test_a_view_changes_nothing_and_hears_no_results(world: TaskWorld) -> None:
    engine = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    user = world.client("c1")
    batch = user.open(2)
    commander = world.multiengine("m1")
    commander.send(Submit("m1-1", (0,), "execute", "secret = 1", -1, 0.0, b"\x80", (b"a",)))
    before = len(engine.heard)
    view = peer(world, "view", name="v")
    for record in CELLS:
        if not isinstance(record, Ask):
            view.send(record)
    view.send(Seek(batch, (0, 1)), Withdraw(batch, (), "interrupt"), Fetch("m1-1", (0,)))
    view.send(*[Ask(what, what, pack({"targets": [0], "n": 0, "number": 9})) for what in QUESTIONS])
    assert len(engine.heard) == before
    assert [end.status for end in view.hear(Result)] == ["error"] * 3  # to its Submit and its Fetches
    assert not view.hear(Outcomes)
    assert {answer.id: answer.ok for answer in view.hear(Answer)} == {
        what: "view" in kinds.split() for what, kinds in QUESTIONS.items()
    }
    engine.finish(parts=(b"value",))
    engine.reply()
    world.run(1.0)
    assert not view.hear(Outcomes)
    assert len(view.hear(Result)) == 3
    assert user.ends[batch, 0] == [("ok", 0)]


# -- task clients among each other --------------------------------------------------------


def test_a_task_client_reaches_no_commands(world: TaskWorld) -> None:
    engine = world.engine("e")
    commander = world.multiengine("m1")
    commander.send(Submit("m1-1", (0,), "execute", "", -1, 0.0, b"\x80", (b"a",)))
    user = world.client("c1")
    user.send(Fetch("m1-1", (0,)), Submit("c1-1", (0,), "pull", "", -1, 0.0, b"\x80", ()))
    user.send(Seek("m1-1", (0,)), Withdraw("m1-1", (), "interrupt"), Taken("c1-7", (), True))
    engine.reply()
    assert [result.status for result in user.hear(Result)] == ["error", "error"]
    assert [end[2] for outcomes in user.hear(Outcomes) for end in outcomes.items] == ["unknown"]
    assert [result.status for result in commander.hear(Result)] == ["ok"]
    assert [record.id for record in engine.hear(Submit)] == ["m1-1"]


@pytest.mark.parametrize(
    "record",
    [
        Batch("c1-1", "call", "", 0.0, b"\x80", b"\x80", (b"other",)),
        Batch("c1-9", "call", "", 0.0, b"\x80", b"\x80", (b"other",)),
        Work("c1-1", ((7, 0, (b"mine",)),)),
        Work("c1-1", ((0, 9, (b"mine",)),), True),
        Withdraw("c1-1", (), "interrupt"),
        Taken("c1-1", (0, 1), True),
        Taken("c1-1", (), True),
    ],
    ids=str,
)
def test_a_task_client_cannot_touch_the_batches_of_another(world: TaskWorld, record: Record) -> None:
    engine = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    owner, other = world.client("c1"), world.client("c2")
    batch = owner.open(2)
    before = len(engine.heard)
    other.send(record)
    assert len(engine.heard) == before
    engine.finish()
    engine.finish()
    world.run(1.0)
    assert owner.all_ends(batch) == {"ok": 2}
    assert not other.hear(Outcomes)


@pytest.mark.parametrize(
    ("kind", "parcel", "work"),
    [
        ("task", "c-9", Submit("c-1", (0,), "execute", "", -1, 0.0, b"\x80", (b"a",))),
        ("multiengine", "c-9", Batch("c-2", "call", "", 0.0, b"\x80", b"\x80", (b"f",))),
        ("multiengine", "c-9", Submit("d-1", (0,), "execute", "", -1, 0.0, b"\x80", (b"a",))),
        ("task", "c-9", Work("d-2", ((0, 0, (b"x",)),))),
        ("task", "d-9", Work("c-2", ((0, 0, (b"x",)),))),
        ("task", "c-9", Taken("c-2", (0,), True)),
        ("task", "c-../../x", Work("c-2", ((0, 0, (b"x",)),))),
        ("task", "c-9", Work("c-x", ((0, 0, (b"x",)),))),
    ],
    ids=str,
)
def test_each_detaches_only_what_it_could_send_itself(
    tmp_path: Path, kind: str, parcel: str, work: Record
) -> None:
    world = TaskWorld(detached=Folder(tmp_path / "detached"))
    try:
        sender = peer(world, kind)
        sender.send(Detach(parcel, 0, (encode(work),), ()), Ask(parcel, "detach", b"\x80"))
        assert [answer.ok for answer in sender.hear(Answer)] in ([], [False])
        world.run(CLIENT_GRACE + 1)
        assert not list(tmp_path.rglob("*"))
    finally:
        world.close()


def test_results_of_others_are_to_be_had_by_id_only(world: TaskWorld) -> None:
    """As the docs say: who knows the id of a task may have its result, as with commands."""
    world.engine("e")
    owner, other = world.client("c1"), world.client("c2")
    batch = owner.open(1)
    assert not other.hear(Outcomes)
    other.send(Seek(batch, (0,)))
    world.run(1.0)
    assert other.end(batch, 0) == "ok"
    other.send(Seek("c1-999", (0,)))
    world.run(1.0)
    assert other.ends["c1-999", 0] == [("unknown", -1)]


def test_bulk_bytes_are_only_for_those_they_are_sent_to(world: TaskWorld) -> None:
    engine = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    owner, thief = world.client("c1"), world.client("c2")
    batch = owner.open(0, parts=(BlobRef("c1-1/0", 1000),))
    owner.work(batch, (0,))
    result = BlobRef(f"{batch}#0/e/r/0", 1000)
    engine.finish(parts=(result,))
    world.run(1.0)
    for blob in ("c1-1/0", result.blob):
        thief.send(Grant(blob, 0), Chunk(blob, 0, b"false"))
    engine.send(Grant("c1-1/0", 0))
    owner.send(Chunk("c1-1/0", 0, b"head"))
    engine.send(Chunk(result.blob, 0, b"true"))
    assert not thief.hear(Chunk)
    assert [chunk.data for chunk in engine.hear(Chunk)] == [b"head"]
    assert [chunk.data for chunk in owner.hear(Chunk)] == [b"true"]


def test_blobs_cannot_be_named_like_those_of_others(world: TaskWorld) -> None:
    engine = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    owner, thief = world.client("c1"), world.client("c2")
    owner.open(1, parts=(BlobRef("c1-1/0", 1000),))
    thief.send(Batch("c2-1", "call", "", 0.0, b"\x80", b"\x80", (BlobRef("c1-1/0", 10),)))
    assert [head.id for head in engine.hear(Batch)] == ["c1-1"]
    engine.send(Grant("c1-1/0", 0))
    owner.send(Chunk("c1-1/0", 0, b"x" * 1000))
    assert [chunk.data for chunk in engine.hear(Chunk)] == [b"x" * 1000]


# -- whose session, whose name ---------------------------------------------------------------


def knock(
    world: TaskWorld, furl: str, kind: str, session: str, fresh: str, detail: Any, received: int = 0
) -> Any:
    """A hello by hand; the answer."""
    from ipython1 import __version__

    hello = Hello(records.PROTOCOL, __version__, kind, session, fresh, received, pack(detail))

    class Link:
        def send(self, batch: bytes) -> None:
            """Into the void."""

        def close(self) -> None:
            """It was none."""

    assert world.controller is not None
    answer, _ = world.controller.door(furl).knock(encode(hello), Link())  # type: ignore[arg-type]
    return codec.decode(answer)


@pytest.mark.parametrize("place", ["session", "fresh"])
@pytest.mark.parametrize(
    ("furl", "kind", "client"),
    [
        ("task", "task", "c2"),  # as another client
        ("view", "view", "c1"),  # as another kind
        ("multiengine", "multiengine", "c1"),
        ("multiengine", "view", "c1"),
    ],
)
def test_a_stolen_session_id_is_of_no_use_to_others(
    world: TaskWorld, furl: str, kind: str, client: str, place: str
) -> None:
    owner = world.client("c1")
    id = owner.connection._session.id
    ids = {"session": "", "fresh": "f" * 32, place: id}
    answer = knock(world, furl, kind, detail={"client": client}, **ids)
    assert isinstance(answer, Refusal)
    world.engine("e")
    batch = owner.open(1)
    world.run(1.0)
    assert owner.end(batch) == "ok"


@pytest.mark.parametrize("received", [1, 10**6, 2**63, 2**64 - 1])
def test_nobody_resumes_at_what_was_never_sent(world: TaskWorld, received: int) -> None:
    owner = world.client("c1")
    id = owner.connection._session.id
    last = world.controller._peers.get(id).session._last  # type: ignore[union-attr]
    number = min(last + received, 2**64 - 1)
    assert isinstance(knock(world, "task", "task", id, "f" * 32, {"client": "c1"}, number), Refusal)
    world.engine("e")
    batch = owner.open(1)
    world.run(1.0)
    assert owner.end(batch) == "ok"


@pytest.mark.parametrize(
    ("here", "furl", "kind"),
    [
        ("task", "task", "task"),
        ("multiengine", "task", "task"),
        ("multiengine", "multiengine", "task"),
        ("multiengine", "multiengine", "multiengine"),
    ],
)
def test_nobody_takes_the_name_of_a_client_that_is_here(
    world: TaskWorld, here: str, furl: str, kind: str
) -> None:
    """Else its batches could be ended by whoever reads its ids in ``task_status``."""
    owner = peer(world, here, name="c1")
    answer = knock(world, furl, kind, "", "f" * 32, {"client": "c1"})
    assert isinstance(answer, Refusal)
    assert "already" in str(codec.unpack_map(answer.facts))
    assert owner.connection.linked


def gone(world: TaskWorld, kind: str, name: str) -> tuple[Peer, Callable[[], None]]:
    """A client that the controller has no session of, and what lets it find its way back."""
    client = peer(world, kind, name=name)
    client.dialer._door, door = lambda: None, client.dialer._door
    world.stop_controller()
    client.dialer.cut()
    world.start_controller()
    world.run(RETURN_GRACE)

    def come_back() -> None:
        client.dialer._door = door

    return client, come_back


@pytest.mark.parametrize("kind", ["task", "multiengine"])
def test_a_view_does_not_stand_for_a_client(world: TaskWorld, kind: str) -> None:
    """The ids of clients are shown to views."""
    client, come_back = gone(world, kind, "c1")
    view = peer(world, "view", name="c1")
    assert view.connection.linked
    come_back()
    world.run(10.0)
    assert client.connection.linked
    assert client.welcomes == [False, False]
    assert isinstance(knock(world, kind, kind, "", "f" * 32, {"client": "c1"}), Refusal)


@pytest.mark.parametrize("stays", [True, False])
def test_work_does_not_depend_on_a_view_with_the_name_of_its_client(world: TaskWorld, stays: bool) -> None:
    engine = world.engine("e")
    view, client = peer(world, "view", name="m1"), world.multiengine("m1")
    client.send(Submit("m1-1", (0,), "execute", "", -1, 0.0, b"\x80", (b"a",)))
    assert len(engine.hear(Submit)) == 1
    if not stays:
        view.vanish()
        world.run(CLIENT_GRACE - 10)
    client.vanish()
    assert world.controller is not None
    (held,) = [each for each in world.controller.peers if each.key == "m1" and each.kind == "multiengine"]
    world.controller._overflow(held)  # it may come back within its grace time, and ask for everything
    world.run(CLIENT_GRACE - 1)
    assert not engine.hear(Departed)
    world.run(2)
    assert engine.hear(Departed) == [Departed("m1")]


def test_a_task_furl_keeps_out_nobody_who_may_do_everything(world: TaskWorld) -> None:
    client, come_back = gone(world, "multiengine", "m1")
    engine = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    false = world.client("m1")
    false.open(1)
    assert engine.running == ("m1-1", 0)
    come_back()
    world.run(10.0)
    assert client.connection.linked
    assert not false.connection.linked
    world.run(10.0)
    assert [each.kind for each in world.controller.peers if each.key == "m1"] == ["multiengine"]  # type: ignore[union-attr]
    assert engine.heard[-1] == Taken("m1-1", (), True), "its batch is not taken for one of the client"
    assert not world.book._batches


def test_a_client_that_was_here_waits_until_its_name_is_free(world: TaskWorld) -> None:
    """The other one may be there for a while only, and it has results to wait for."""
    client, come_back = gone(world, "task", "c1")
    other = world.client("c1")
    come_back()
    world.run(20.0)
    assert not client.connection.linked
    other.vanish()
    world.run(CLIENT_GRACE + 10.0)
    assert client.connection.linked


def test_a_name_is_free_again_when_its_session_is_over(world: TaskWorld) -> None:
    world.client("c1").vanish()
    world.run(CLIENT_GRACE + 1)
    assert isinstance(knock(world, "task", "task", "", "f" * 32, {"client": "c1"}), Welcome)


@pytest.mark.parametrize("fresh", ["", "f" * 31, "f" * 65, "f" * 4_000_000])
def test_session_ids_have_a_length(world: TaskWorld, fresh: str) -> None:
    assert isinstance(knock(world, "view", "view", "", fresh, {"client": "c1"}), Refusal)


@pytest.mark.parametrize(
    "detail",
    [
        {},
        [],
        {"client": 7},
        {"client": b"c1"},
        {"client": None},
        {"client": "c1", "engines": 7},
        {"client": "c1", "engines": ["0"]},
        {"client": "c1", "engines": [True]},
        {"client": "c1", "engines": [-1]},
        {"client": "c1", "engines": [65_536]},
        {"client": "c1", "engines": {"0": 1}},
    ],
    ids=str,
)
def test_the_map_of_a_client_is_checked(world: TaskWorld, detail: Any) -> None:
    assert isinstance(knock(world, "task", "task", "", "f" * 32, detail), Refusal)
    assert world.controller is not None
    assert world.controller._peers.get("f" * 32) is None


# -- absurd values in records that are well formed ------------------------------------------------

HUGE = 2**63
ABSURD: list[Record] = [
    Batch("c1-5", "call", "x" * 3_900_000, 0.0, b"\x80", b"\x80", ()),
    Batch("c1-5", "no such thing", "", -1.0, b"\x80", b"\x80", ()),
    Batch("c1-5", "call", "", 1e308, pack({"retries": HUGE, "priority": -HUGE}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"wait": math.inf}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"wait": math.nan}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"wait": 1e-300}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"when": "never"}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"retries": "many"}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"after": [["c1-5", 0]]}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"after": [["c1-1", HUGE], ["c1-1", -1]]}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, pack({"after": [["c1-5", i] for i in range(50_000)]}), b"\x80", ()),
    Batch("c1-5", "call", "", 0.0, b"\xdf\xff\xff\xff\xff", b"\xc1", ()),
    Batch("c1-5", "call", "", 0.0, b"\x91" * 1000, b"\xc1", ()),
    Batch("c1-5", "call", "", 0.0, b"\x80", b"\x80", (BlobRef("c1-5/0", HUGE),)),
    Batch("c1-5", "call", "", 0.0, b"\x80", b"\x80", (BlobRef("m1-1/0", 10),)),
    Batch("c1-", "call", "", 0.0, b"\x80", b"\x80", ()),
    Batch("c1", "call", "", 0.0, b"\x80", b"\x80", ()),
    Batch("c1-1#0", "call", "", 0.0, b"\x80", b"\x80", ()),
    Work("c1-1", ((-1, 0, ()),)),
    Work("c1-1", ((HUGE, 0, ()),)),
    Work("c1-1", ((1, HUGE, ()),)),
    Work("c1-1", ((1, -1, ()),)),
    Work("c1-1", ((1, 2**31 - 1, ()),)),
    Work("c1-1", ((1, 0, (BlobRef("c1-1#0/a0", 1),)),)),
    Work("c1-1", tuple((i, 0, ()) for i in range(1000, 60_000))),
    Work("c1-404", ((0, 0, ()),)),
    Withdraw("c1-1", (-1, HUGE), "abort"),
    Withdraw("c1-1", (5,), "recall"),
    Withdraw("c1-1", (5,), "x" * 1000),
    Seek("c1-1", (-1, HUGE, -HUGE)),
    Seek("", tuple(range(65_536))),
    Taken("c1-1", (-1, HUGE), False),
    Taken("c1-404", tuple(range(65_536)), True),
    Chunk("", HUGE, b""),
    Chunk("c1-1/0", -HUGE, b"x"),
    Grant("c1-1/0", HUGE),
    Grant("c1-1/0", -HUGE),
    Ask("", "task_status", b"\xc1"),
    Ask("q" * 1_000_000, "x" * 1_000_000, b"\x80"),
    Ask("q", "task_status", pack({"verbose": "x"})),
]


@pytest.mark.parametrize("record", ABSURD, ids=lambda record: f"{type(record).__name__} {str(record)[:60]}")
def test_absurd_tasks_disturb_nobody(world: TaskWorld, record: Record, logged_errors: LoggedErrors) -> None:
    world.engine("e")
    other = world.client("c2")
    bad = world.client("c1")
    bad.open(1)
    bad.send(record)
    world.run(5.0)
    assert logged_errors.flush(TypeError, ValueError, KeyError, OverflowError) == []
    batch = other.open(3)
    world.run(5.0)
    assert other.all_ends(batch) == {"ok": 3}
    assert bad.connection.linked, "its session goes on"


@pytest.mark.parametrize(
    "record",
    [
        Submit("m1-1", tuple(range(65_536)), "execute", "", -1, 0.0, b"\x80", ()),
        Submit("m1-1", (-1, HUGE, -HUGE), "execute", "", HUGE, 1e308, b"\xc1", ()),
        Submit("", (0,), "", "", -HUGE, -1.0, b"", ()),
        Submit("m1-1", (0,), "x" * 1_000_000, "x" * 2_900_000, 0, 0.0, b"", ()),
        Submit("m1-1", (0,), "push", "", 0, 0.0, b"", tuple(BlobRef(f"m1-1/{i}", HUGE) for i in range(1000))),
        Submit("m1-1", (0,), "push", "", 0, 0.0, b"", (BlobRef("c1-1/0", 1),)),
        Submit("m1-1", (0,), "push", "", 0, 0.0, b"", (BlobRef("m1-1/0", 1, "/etc/passwd"),)),
        Cancel(("",) * 1000, (-1, HUGE), "TaskAborted"),
        Cancel((), (0,), "KeyboardInterrupt"),
        Interrupt(tuple(range(65_536)), "x"),
        Input((0, -1, HUGE), "m1-1", -HUGE, "shout", "x" * 1_000_000),
        Fetch("m1-404", tuple(range(65_536))),
        Fetch("", (-1, HUGE)),
        Forget(tuple(map(str, range(1000))), (0, HUGE)),
        Ask("q", "queue_status", pack({"targets": [0] * 500_000})),
        Ask("q", "queue_status", pack({"targets": ["9" * 100_000]})),
        Ask("q", "queue_status", pack({"targets": 7})),
        Ask("q", "queue_status", pack({"targets": [math.nan, math.inf, None, []]})),
        Ask("q", "signal", pack({"targets": [0], "number": HUGE})),
        Ask("q", "scale", pack({"n": HUGE})),
        Ask("q", "status", b"\x91" * 1000),
        Ask("q", "restart", pack({"targets": [-1, HUGE]})),
    ],
    ids=lambda record: f"{type(record).__name__} {str(record)[:60]}",
)
def test_absurd_commands_disturb_nobody(
    world: TaskWorld, record: Record, logged_errors: LoggedErrors
) -> None:
    engine = world.engine("e")
    bad = world.multiengine("m1")
    bad.send(record)
    world.run(1.0)
    assert logged_errors.flush(TypeError, ValueError, KeyError, OverflowError) == []
    other = world.multiengine("m2")
    other.send(Submit("m2-1", (0,), "execute", "", -1, 0.0, b"\x80", ()))
    while engine.commands:
        engine.reply()
    assert [result.status for result in other.hear(Result)] == ["ok"]
    assert bad.connection.linked


NO_NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("time", NO_NUMBERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda t: Submit("m1-1", (0,), "execute", "", -1, t, b"", ()),
        lambda t: Batch("c1-1", "call", "", t, b"", b"", ()),
    ],
)
def test_lengths_of_time_are_numbers(make: Any, time: float) -> None:
    with pytest.raises(WireError, match="is no time"):
        codec.decode(encode(make(time)))


@pytest.mark.parametrize("time", [*NO_NUMBERS, 1.7e308, -1.7e308, codec.TIME_LIMIT, -codec.TIME_LIMIT])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: Result("m1-1", 0, "execute", "ok", t, 1.0, 0, ()),
        lambda t: Result("m1-1", 0, "execute", "ok", 1.0, t, 0, ()),
        lambda t: Outcomes("c1-1", 0, ((0, 1, "ok", t, 1.0, 0, ()),)),
        lambda t: Outcomes("c1-1", 0, ((0, 1, "ok", 1.0, t, 0, (BlobRef("b", 1),)),)),
        lambda t: Outcomes("c1-1", 0, ((0, 1, "ok", t, -t, 0, ()),)),
    ],
)
def test_times_are_numbers_and_their_sums_and_differences_too(make: Any, time: float) -> None:
    """One that is none would spoil the mean by which tasks are handed out."""
    with pytest.raises(WireError, match="is no time"):
        codec.decode(encode(make(time)))


@pytest.mark.parametrize("time", [math.nan, 1.7e308])
def test_times_that_an_engine_makes_up_stop_no_tasks(
    world: TaskWorld, time: float, logged_errors: LoggedErrors
) -> None:
    bad = world.engine("bad", lambda key, attempt: ("ok", FOREVER))
    user = world.client("c1")
    batch = user.open(4)
    for index in range(2):
        bad.send(Outcomes(batch, bad.id, ((index, 1, "ok", -time, time, 0, (b"false",)),)))
    world.engine("good")
    other = world.client("c2").open(3)
    world.run(5.0)
    assert logged_errors.flush(ValueError, OverflowError) == []
    assert world.peers[-1].all_ends(other) == {"ok": 3}  # type: ignore[attr-defined]
    assert world.controller is not None
    assert math.isfinite(world.controller.timeline.busy)


def test_a_target_that_is_named_often_counts_once() -> None:
    """Else one record could have an engine sent the same code 65,536 times."""
    record = codec.decode(encode(Submit("m1-1", (3, 1, 3, 1), "execute", "", -1, 0.0, b"", ())))
    assert isinstance(record, Submit)
    assert record.targets == (3, 1)


# -- engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        Outcomes("c1-1", 0, ((0, 7, "ok", 1.0, 2.0, 0, (b"false",)),)),  # an attempt that is not
        Outcomes("c1-1", 1, ((0, 1, "ok", 1.0, 2.0, 0, (b"false",)),)),  # for another engine
        Outcomes("c1-1", 1, ((0, 1, "no such status", 1.0, 2.0, 0, (b"false",)),)),
        Outcomes("c1-1", 1, ((-1, HUGE, "held", 1e308, -1e308, -1, ()),)),
        Result("m1-1", 1, "x" * 1000, "no such status", -1.0, 1e308, HUGE, ()),
        Event("c1-1#" + "9" * 1000, 1, HUGE, "no such kind", "x", (), -HUGE),
        Event("c1-1#-1", 1, -HUGE, "stdout", "x" * 1_000_000, (), HUGE),
        Event("#", 1, 0, "stdout", "x", ()),
        Chunk("c1-1/0", 0, b"false"),
        Grant("c1-1/0", HUGE),
    ],
    ids=lambda record: f"{type(record).__name__} {str(record)[:60]}",
)
def test_an_engine_cannot_spoil_the_tasks_of_another(
    world: TaskWorld, record: Record, logged_errors: LoggedErrors
) -> None:
    good = world.engine("e", lambda key, attempt: ("ok", FOREVER))
    user = world.client("c1")
    batch = user.open(1)
    bad = peer(world, "engine", name="bad")
    assert bad.id == 1
    bad.send(record)
    world.run(1.0)
    assert logged_errors.flush(TypeError, ValueError, KeyError, OverflowError) == []
    good.finish()
    world.run(1.0)
    assert user.ends[batch, 0] == [("ok", 0)]


def test_a_door_does_not_answer_with_errors_of_its_own(world: TaskWorld) -> None:
    assert world.controller is not None
    for hello in (
        b"",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 10_000,
        b"\xdd\x00\x3f\xff\x00" + b"\x80" * 4_000_000,
    ):
        answer, sink = world.controller.door("view").knock(hello, object())  # type: ignore[arg-type]
        refusal = codec.decode(answer)
        assert isinstance(refusal, Refusal)
        assert sink is None
        assert issubclass(NotAllowed, IPython1Error)
        assert refusal.reason == "NotAllowed"
        assert set(unpack(refusal.facts)) == {"what"}
