"""The client's core against a controller that the test plays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.client.core import ClientCore
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.error import (
    ClientClosed,
    CompositeError,
    ConnectionFailed,
    RemoteFailure,
    SerializationError,
)
from ipython1.kernel.testing import InlineBridge, MemoryCluster
from ipython1.kernel.wire import blobs, objects
from ipython1.kernel.wire.blobs import LOST
from ipython1.kernel.wire.codec import decode, decode_as, encode, encode_failure, pack
from ipython1.kernel.wire.memory import MemoryDialer, MemoryLink
from ipython1.kernel.wire.records import (
    PROTOCOL,
    Ask,
    BlobRef,
    Cancel,
    Chunk,
    Event,
    Fetch,
    Forget,
    Grant,
    Hello,
    Input,
    Record,
    Result,
    Submit,
    Welcome,
)
from ipython1.kernel.wire.session import Session

TABLE = {
    "engines": [{"id": 0, "uuid": "a", "state": "ready"}, {"id": 1, "uuid": "b", "state": "ready"}],
    "failures": [],
}


class Played:
    """A controller without a will of its own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.heard: list[Record] = []
        self.forget_all()
        self.dialer = MemoryDialer(self.clock, lambda: self)  # type: ignore[arg-type,return-value]
        self.core = ClientCore(self.clock, InlineBridge(self), self.dialer)  # type: ignore[arg-type]
        self.core.open()
        self.turn()

    def forget_all(self) -> None:
        """Die, and start anew."""
        self.session: Session | None = None

    def knock(self, raw: bytes, link: MemoryLink) -> tuple[bytes, Any]:
        hello = decode_as(Hello, raw)
        assert hello.protocol == PROTOCOL
        resumed = self.session is not None and self.session.id == hello.session
        if self.session is None or not resumed:
            self.session = Session(self.clock, lambda raw: self.heard.append(decode(raw)), id=hello.fresh)
        self.session.attach(link, hello.received if resumed else 0)
        return encode(Welcome("0", resumed, self.session.received, pack(TABLE))), self.session

    def turn(self, seconds: float = 1.0) -> None:
        for _ in range(20):
            self.clock.advance(seconds / 20)

    def say(self, *said: Record) -> None:
        assert self.session is not None
        for record in said:
            self.session.send(encode(record))
        self.turn()

    def restart(self) -> None:
        self.forget_all()
        del self.heard[:]
        self.dialer.cut()
        self.turn()

    def hear(self, kind: type[Record]) -> list[Any]:
        return [record for record in self.heard if isinstance(record, kind)]

    def run_until(self, done: Any, timeout: float | None) -> None:
        self.turn()
        assert done()

    def send(self, *targets: int, parts: list[bytes] | None = None) -> PendingResult:
        pending = PendingResult(self.core, self.core.new_id(), "apply", targets)
        self.core.submit(pending, [(targets, parts or [])], "apply", {}, "label")
        self.turn()
        return pending


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    yield played
    played.core.close()
    played.turn(5)
    if played.session is not None:
        played.session.end()
    assert not played.clock.getDelayedCalls()


def ok(pending: PendingResult, engine: int, value: Any = None, events: int = 0) -> Result:
    parts = tuple(bytes(part) for part in objects.dumps(value))
    return Result(pending.command_id, engine, "apply", "ok", 1.0, 2.0, events, parts)


def large(pending: PendingResult, engine: int, events: int = 0) -> Result:
    ref = BlobRef(f"{pending.command_id}/a/r/0", 100_000)
    return Result(pending.command_id, engine, "apply", "ok", 1.0, 2.0, events, (ref,))


def died(pending: PendingResult, engine: int) -> Result:
    failure = encode_failure(RemoteFailure("EngineDied", "it died"))
    return Result(pending.command_id, engine, "apply", "error", 0.0, 2.0, 0, (failure,))


def test_a_result_whose_engine_dies_on_the_way_fails(played: Played) -> None:
    pending = played.send(0)
    played.say(large(pending, 0), Chunk(f"{pending.command_id}/a/r/0", LOST, b""))
    with pytest.raises(CompositeError, match="EngineDied"):
        pending.result()


def test_what_was_on_its_way_does_not_hold_up_the_word_that_the_engine_died(played: Played) -> None:
    pending = played.send(0)
    display = Event(
        pending.command_id, 0, 0, "display", "", (BlobRef(f"{pending.command_id}/a/0/0", 100_000),)
    )
    played.say(display, large(pending, 0, events=1))
    played.restart()
    played.say(died(pending, 0))
    with pytest.raises(CompositeError, match="it died"):
        pending.result()
    assert not played.core._blobs._incoming


def test_an_output_that_is_lost_is_told_in_its_place(played: Played) -> None:
    pending = played.send(0)
    blob = f"{pending.command_id}/a/0/0"
    played.say(
        Event(pending.command_id, 0, 0, "display", "", (BlobRef(blob, 100_000),)),
        Event(pending.command_id, 0, 1, "stdout", "more", ()),
        Chunk(blob, LOST, b""),
        ok(pending, 0, events=2),
    )
    assert pending.result() == [None]
    assert "output is missing" in pending.stderr[0]
    assert pending.stdout == ["more"]


def test_a_result_too_large_for_the_memory_fails(played: Played) -> None:
    pending = played.send(0)
    played.say(Result(pending.command_id, 0, "apply", "ok", 1.0, 2.0, 0, (BlobRef("x/a/r/0", 2**62),)))
    with pytest.raises(CompositeError, match="MemoryError"):
        pending.result()


def test_events_with_a_gap_wait_for_a_replay(played: Played) -> None:
    pending = played.send(0)
    texts = [Event(pending.command_id, 0, i, "stdout", str(i), ()) for i in range(4)]
    played.say(texts[0], texts[2], texts[3], ok(pending, 0, 7, events=4))
    assert not pending.done()
    assert played.hear(Fetch) == [Fetch(pending.command_id, (0,), 1)]
    played.say(*texts, ok(pending, 0, 7, events=4))
    assert pending.result() == [7]
    assert pending.stdout == ["0123"]


def test_missing_events_of_an_engine_that_is_gone_end_the_result(played: Played) -> None:
    pending = played.send(0)
    played.say(ok(pending, 0, 7, events=4))
    assert not pending.done()
    played.say(Result(pending.command_id, 0, "", "unknown", 0.0, 0.0, 0, ()))
    with pytest.raises(Exception, match="No result"):
        pending.result()


def test_a_new_controller_hears_of_what_was_aborted_and_forgotten(played: Played) -> None:
    done, aborted = played.send(0), played.send(0, 1)
    played.say(ok(done, 0))
    aborted.abort()
    played.turn()
    played.restart()
    assert [record.id for record in played.hear(Submit)] == [aborted.command_id]
    assert played.hear(Cancel) == [Cancel((aborted.command_id,), (0, 1), "TaskAborted")]
    assert played.heard.index(played.hear(Submit)[0]) < played.heard.index(played.hear(Cancel)[0])
    assert played.hear(Forget) == [Forget((done.command_id,), (0,))]


def test_orders_are_not_given_twice(played: Played) -> None:
    kill, scale = played.core.ask("kill", targets=[], controller=True), played.core.ask("scale", n=3)
    played.turn()
    played.restart()
    assert [ask.what for ask in played.hear(Ask)] == ["scale"]
    assert isinstance(kill.exception(0), ConnectionFailed)
    assert not scale.done()


def test_answers_are_said_again_to_another_controller(played: Played) -> None:
    pending = played.send(0, 1)
    answers = [Input((i % 2,), pending.command_id, i, "line", "x") for i in range(3)]
    for answer in answers:
        played.core.answer(answer)
    played.turn()
    assert played.hear(Input) == answers
    played.restart()
    assert set(played.hear(Input)) == set(answers[1:]), "the last of each engine"
    played.say(ok(pending, 0), ok(pending, 1))
    del played.heard[:]
    played.core.answer(answers[0])
    played.turn()
    assert played.hear(Input) == [], "nobody asks any more"


def test_a_command_sent_again_says_who_had_it(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = played.send(0, 1, parts=[bytes(100_000)])
    assert played.hear(Submit)[0].again == ()
    monkeypatch.setitem(TABLE, "engines", [{"id": 0, "uuid": "z", "state": "ready"}])
    for _ in range(2):
        played.restart()
        assert [(submit.targets, submit.again) for submit in played.hear(Submit)] == [((0, 1), ("a", "b"))]
    played.say(died(pending, 0))
    played.restart()
    assert [(submit.targets, submit.again) for submit in played.hear(Submit)] == [((1,), ("b",))]
    played.say(died(pending, 1))
    assert pending.done()
    assert not played.core._blobs._held


def test_a_command_that_never_went_out_is_not_sent_again(played: Played) -> None:
    played.dialer.cut()
    pending = PendingResult(played.core, played.core.new_id(), "apply", (0,))
    played.core.submit(pending, [((0,), [])], "apply", {}, "label")
    played.restart()
    assert [submit.again for submit in played.hear(Submit)] == [()]
    played.restart()
    assert [submit.again for submit in played.hear(Submit)] == [("a",)]


def test_a_link_that_is_back_asks_for_what_is_missing(played: Played) -> None:
    pending = played.send(0)
    blob = f"{pending.command_id}/a/r/0"
    played.say(large(pending, 0), Chunk(blob, 0, bytes(50_000)))
    del played.heard[:]
    played.dialer.cut()
    played.turn()
    assert played.hear(Grant) == [Grant(blob, 50_000)]


def test_more_arrays_than_a_record_can_name_are_refused(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PARTS_LIMIT", 10)
    with pytest.raises(SerializationError, match="more than 10"):
        played.send(0, parts=[bytes(10)] * 11)
    assert not played.core.pending


def test_an_engine_with_more_arrays_than_a_record_can_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryCluster(1) as cluster:
        client = cluster.client()
        monkeypatch.setattr(blobs, "PARTS_LIMIT", 10)
        client.execute("import pickle; x = [pickle.PickleBuffer(bytearray(20_000)) for _ in range(20)]")
        with pytest.raises(CompositeError, match="more than 10"):
            client.pull("x")


def test_an_outstanding_command_is_few_objects_for_the_garbage_collector(played: Played) -> None:
    played.send(0)  # what only the first one needs
    gc.collect()
    before = len(gc.get_objects())
    sent = [played.send(0, parts=[b"code"]) for _ in range(100)]
    gc.collect()
    assert len(gc.get_objects()) - before < 9 * len(sent)


def test_the_error_of_a_closed_client_keeps_nothing_of_its_callers(played: Played) -> None:
    class Large:
        """Something in the frame of a caller."""

    seen: list[weakref.ref[Large]] = []

    def call() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        played.core.check_usable()

    played.core.close()
    for _ in range(3):
        with pytest.raises(ClientClosed, match="closed") as caught:
            call()
    del caught
    gc.collect()
    assert [large() for large in seen] == [None] * 3
