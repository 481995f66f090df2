"""The engine's side against a controller that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ipython1.kernel.engine import kept as kept_module
from ipython1.kernel.engine.asking import Asking
from ipython1.kernel.engine.jobs import AnyJob, Command
from ipython1.kernel.engine.mainloop import MainLoop, NoBoard
from ipython1.kernel.engine.outbox import RESULT_DELAY
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.engine.service import EngineService
from ipython1.kernel.error import TaskAborted
from ipython1.kernel.wire.codec import decode, decode_as, decode_failure, encode, pack, unpack_map
from ipython1.kernel.wire.memory import MemoryDialer, MemoryLink
from ipython1.kernel.wire.records import (
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    Event,
    Forget,
    Hello,
    Interrupt,
    Record,
    Result,
    Submit,
    Welcome,
    Withdraw,
)
from ipython1.kernel.wire.session import Session


class Played:
    """A controller without a will of its own, and an engine whose jobs return what the test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.heard: list[Record] = []
        self.hellos: list[dict[str, Any]] = []
        self.engine_id = 0
        self.ran: list[str] = []
        self.before_welcome: Callable[[], None] = lambda: None
        self.session: Session | None = None
        self.dialer = MemoryDialer(self.clock, lambda: self)  # type: ignore[arg-type,return-value]
        self.output = OutputBuffer(lambda: self.service.output_waits(), False)
        self.loop: MainLoop[AnyJob] = MainLoop(self._perform, lambda *job: self.service.job_done(*job))
        identity = {"uuid": "u", "host": "h", "pid": 1, "nanny": "", "wanted": -1, "replaces": {}}
        self.service: EngineService = EngineService(
            self.clock,
            self.dialer,
            self.loop,
            self.output,
            Asking(self.output, lambda: self.loop.running, wait=False),
            identity,
            lambda id: None,
            lambda reason: None,
        )
        self.service.start()
        self.turn()

    def _perform(self, job: AnyJob) -> list[Any]:
        self.service.job_started(job)
        self.ran.append(job.id)
        self.output.begin(job)
        self.output.write("stdout", "hello")
        self.output.end()
        assert isinstance(job, Command)
        return [bytes(100_000) if job.submit.op == "large" else b"value"]

    def knock(self, raw: bytes, link: MemoryLink) -> tuple[bytes, Any]:
        hello = decode_as(Hello, raw)
        self.hellos.append(unpack_map(hello.detail))
        self.before_welcome()
        resumed = self.session is not None and self.session.id == hello.session
        if self.session is None or not resumed:
            self.session = Session(self.clock, lambda raw: self.heard.append(decode(raw)), id=hello.fresh)
        self.session.attach(link, hello.received if resumed else 0)
        return encode(
            Welcome("0", resumed, self.session.received, pack({"id": self.engine_id}))
        ), self.session

    def turn(self) -> None:
        for _ in range(10):
            self.clock.advance(0.1)

    def say(self, *said: Record) -> None:
        assert self.session is not None
        for record in said:
            self.session.send(encode(record))
        self.turn()

    def restart(self) -> None:
        self.session = None
        del self.heard[:]
        self.dialer.cut()
        self.turn()

    def results(self) -> list[Result]:
        return [record for record in self.heard if isinstance(record, Result)]


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    yield played
    played.service.stop()
    played.turn()
    played.turn()
    played.turn()
    if played.session is not None:
        played.session.end()
    assert not played.clock.getDelayedCalls()


def submit(id: str, op: str = "apply", parts: Any = (), timeout: float = 0.0) -> Submit:
    return Submit(id, (0,), op, "label", -1, timeout, b"", parts)


def test_what_ends_between_hello_and_welcome_is_told(played: Played) -> None:
    played.say(submit("c-1"))
    played.before_welcome = lambda: played.loop.run_ready() and None
    real = played.dialer.dial

    def slow(hello: bytes, sink: Any) -> Deferred[Any]:
        answer = real(hello, sink)
        later: Deferred[Any] = Deferred()
        played.clock.callLater(0.2, answer.chainDeferred, later)
        return later

    played.dialer.dial = slow  # type: ignore[method-assign]
    played.restart()
    assert played.hellos[-1]["held"] == (("c-1", "apply", "label"),)
    assert [(result.id, result.status) for result in played.results()] == [("c-1", "ok")]
    assert played.ran == ["c-1"]


def test_parts_for_which_there_is_no_room_do_not_hold_up_the_queue(played: Played) -> None:
    played.say(
        submit("c-1", parts=(b"x", BlobRef("c-1/s0/0", 2**62), BlobRef("c-1/s0/1", 10))), submit("c-2")
    )
    played.loop.run_ready()
    played.turn()
    assert [(result.id, result.status) for result in played.results()] == [("c-1", "error"), ("c-2", "ok")]
    (raw,) = played.results()[0].parts
    assert isinstance(raw, bytes)
    assert decode_failure(raw, 0, "").ename == "MemoryError"
    assert not played.service._blobs._incoming


def test_output_of_a_job_that_ends_while_output_is_taken(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread may be through with the next job just then: its result waits for its output."""
    played.say(submit("c-1"), submit("c-2"))
    take = played.output.take
    jobs = iter([played.loop._jobs.pop()])

    def slow_take() -> Any:
        taken = take()
        for job in jobs:
            played.loop.put(job)
            played.loop.run_ready()
        return taken

    monkeypatch.setattr(played.output, "take", slow_take)
    monkeypatch.setattr(played.service._outbox, "_hop", lambda f, *args: played.clock.callLater(0, f, *args))
    played.loop.run_ready()
    played.turn()
    kinds = [(record.id, type(record).__name__) for record in played.heard]
    assert kinds == [("c-1", "Event"), ("c-1", "Result"), ("c-2", "Event"), ("c-2", "Result")]
    assert [result.events for result in played.results()] == [1, 1]


def test_an_engine_answers_with_the_id_it_has_now(played: Played) -> None:
    played.say(submit("c-1", "large"))
    played.loop.run_ready()
    played.turn()
    blobs = {record.blob for record in played.heard if isinstance(record, Chunk)}
    assert blobs == {"c-1/u/r/0"}
    played.engine_id = 5
    played.restart()
    played.say(submit("c-1", "large"))
    assert [(record.engine, type(record)) for record in played.heard if not isinstance(record, Chunk)] == [
        (5, Event),
        (5, Result),
    ]
    assert played.ran == ["c-1"]


def test_what_was_dropped_for_want_of_room_does_not_run_again(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "KEPT_COUNT", 1)
    played.say(*(submit(f"c-{i}") for i in range(3)), submit("d-1"))
    played.loop.run_ready()
    played.say(Forget(("d-1",), (0,)), Departed("c"))
    del played.heard[:]
    played.say(submit("c-0"), submit("c-2"), submit("c-3"))
    played.loop.run_ready()
    played.turn()
    assert {result.id: result.status for result in played.results()} == {
        "c-0": "error",
        "c-2": "ok",
        "c-3": "ok",
    }
    assert played.ran == ["c-0", "c-1", "c-2", "d-1", "c-3"]
    assert list(played.service._commands._kept._history._ids) == ["c-0", "c-1"]


@pytest.mark.parametrize(
    ("first", "cause"),
    [("p", "killed"), ("q", "replaced while there was no controller"), ("u", ""), ("", "")],
)
def test_what_another_process_may_have_run_is_not_run(played: Played, first: str, cause: str) -> None:
    played.service._commands._predecessor = {"uuid": "p", "cause": "killed", "output": ""}
    played.say(Submit("c-1", (4, 0), "apply", "", -1, 0.0, b"", (), ("x", first)))
    played.loop.run_ready()
    played.turn()
    (result,) = played.results()
    assert result.status == ("error" if cause else "ok")
    assert played.ran == ([] if cause else ["c-1"])
    if cause:
        (raw,) = result.parts
        assert isinstance(raw, bytes)
        assert decode_failure(raw, 0, "").facts["cause"] == cause


def test_clients_whose_failures_are_remembered_are_named(played: Played) -> None:
    played.service._commands._failed_epoch["gone"] = 3
    played.restart()
    assert played.hellos[-1]["clients"] == ("gone",)
    played.say(Departed("gone"))
    assert not played.service._commands._failed_epoch


def test_a_link_that_is_back_asks_for_what_is_missing(played: Played) -> None:
    played.say(submit("c-1", parts=(BlobRef("c-1/s0/0", 10),)), Chunk("c-1/s0/0", 0, b"01234"))
    del played.heard[:]
    played.dialer.cut()
    played.turn()
    (grant,) = played.heard
    assert (grant.blob, grant.offset) == ("c-1/s0/0", 5)  # type: ignore[attr-defined]


def test_nothing_begins_after_the_end(played: Played) -> None:
    played.say(submit("c-1", timeout=5.0))
    played.service.stop()
    played.turn()
    played.turn()
    played.turn()
    played.loop.run_ready()
    played.service.output_waits()
    assert played.ran == ["c-1"]
    assert not [
        call for call in played.clock.getDelayedCalls() if call.func == played.service._outbox._send_output
    ]


def test_an_interrupt_that_the_nanny_has_done_is_not_done_again(played: Played) -> None:
    done: list[str] = []
    said: list[int] = []

    class Shown(NoBoard):
        def served(self, record: int) -> bool:
            return record == 2

        def hear(self, record: int) -> None:
            said.append(record)

        def new_session(self) -> None:
            said.append(0)

    played.loop.board = Shown()
    played.loop.interrupt = lambda id="": bool(done.append(id))  # type: ignore[func-returns-value, method-assign]
    played.say(submit("c-1"), Interrupt((0,), ""), Interrupt((0,), "c-3"), Withdraw("b", (), "interrupt"))
    assert done == ["c-3"]
    assert said == [2, 3, 4]
    played.restart()
    assert said == [2, 3, 4, 0]


def test_who_cancels_what_runs_is_told_that_it_has_started(played: Played) -> None:
    played.say(submit("c-1"), submit("c-2"))

    def perform(job: AnyJob) -> list[Any]:
        if job.id == "c-1":
            played.say(Cancel(("c-1", "c-2"), (0,), "TaskAborted"))
        return [b"value"]

    played.loop._perform = perform
    played.loop.run_ready()
    played.turn()
    events = [record for record in played.heard if isinstance(record, Event)]
    assert [(event.id, event.index, event.kind) for event in events] == [("c-1", 0, "started")]
    aborted, done = played.results()
    assert (aborted.id, aborted.status) == ("c-2", "error")
    failure = decode_failure(aborted.parts[0], 0, "")  # type: ignore[arg-type]
    assert (failure.ename, failure.evalue) == ("TaskAborted", str(TaskAborted()))
    assert (done.id, done.status, done.events) == ("c-1", "ok", 1)


def test_results_go_together_while_the_next_command_runs(played: Played) -> None:
    played.say(submit("c-1"), submit("c-2"), submit("c-3"))
    there: list[list[str]] = []

    def perform(job: AnyJob) -> list[Any]:
        for pause in (RESULT_DELAY / 2, 0, 0):
            played.clock.advance(pause)
        there.append([result.id for result in played.results()])
        return [b"value"]

    played.loop._perform = perform
    played.loop.run_ready()
    assert there == [[], [], ["c-1", "c-2"]]
    for _ in range(3):
        played.clock.advance(0)
    assert [result.id for result in played.results()] == ["c-1", "c-2", "c-3"]


def test_no_result_waits_for_the_next_command(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the reactor took the one before while it was being announced."""
    played.say(submit("c-1"), submit("c-2"), submit("c-3"))
    real = played.loop.has_next
    hops: list[Callable[[], None]] = []
    there: list[str] = []

    def has_next() -> bool:
        if played.ran == ["c-1"]:
            played.service._outbox.flush()
        return real()

    def perform(job: AnyJob) -> list[Any]:
        while hops:
            hops.pop(0)()
        if job.id == "c-3":
            played.turn()
            there.extend(result.id for result in played.results())
        played.ran.append(job.id)
        return [b"value"]

    monkeypatch.setattr(played.loop, "has_next", has_next)
    monkeypatch.setattr(played.service._outbox, "_hop", lambda f, *args: hops.append(lambda: f(*args)))
    played.loop._perform = perform
    played.loop.run_ready()
    assert there == ["c-1", "c-2"]
    hops.pop()()


def test_the_end_sends_the_results_that_wait(played: Played) -> None:
    played.say(submit("c-1"), submit("c-2"))

    def perform(job: AnyJob) -> list[Any]:
        if job.id == "c-2":
            played.service.stop()
            played.turn()
            there.extend(result.id for result in played.results())
        return [b"value"]

    there: list[str] = []
    played.loop._perform = perform
    played.loop.run_ready()
    assert there == ["c-1"]
