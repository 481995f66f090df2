"""stop_on_error: a failure takes out what its client has queued behind it there, and nothing else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipython1.kernel.engine.jobs import AnyJob
from ipython1.kernel.error import CompositeError, RemoteFailure
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.blobs import LOST
from ipython1.kernel.wire.codec import decode_failure, encode_failure
from ipython1.kernel.wire.records import BlobRef, Chunk, Parts, Result, Submit

from .test_service import Played

GIVER = 7


class Engine(Played):
    """A played controller and an engine on which commands of op ``fail`` do, and start when the test says."""

    def _perform(self, job: AnyJob) -> list[Any]:
        parts = super()._perform(job)
        if job.submit.op == "fail":  # type: ignore[union-attr]
            raise ValueError("no")
        return parts

    def run_one(self) -> str | None:
        """Run the next command that can start; returns its id."""
        with self.loop._lock:
            place = self.loop._find()
            if place < 0:
                return None
            job = self.loop._next(place)
        self.loop._run(job)
        self.turn()
        return job.id

    def ends(self) -> dict[str, str]:
        """What has ended: 'ok', or the name of the error."""
        found: dict[str, str] = {}
        for result in self.results():
            assert result.id not in found
            found[result.id] = "ok" if result.status == "ok" else ename(result.parts)
        return found


def ename(parts: Parts) -> str:
    (raw,) = parts
    assert isinstance(raw, bytes)
    return decode_failure(raw, 0, "").ename


def submit(id: str, stop: int = 0, op: str = "apply", parts: Parts = (), source: str = "") -> Submit:
    return Submit(id, (0,), op, "", stop, 0.0, b"", parts, source=source, giver=GIVER if source else -1)


def given_by(source: str, ok: bool) -> Result:
    failure = encode_failure(RemoteFailure("NameError", "name 'x' is not defined"))
    return Result(source, GIVER, "give", "ok" if ok else "error", 0.0, 0.0, 0, (b"x" if ok else failure,))


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.service.stop()
    for _ in range(3):
        engine.turn()


# -- what is taken out ------------------------------------------------------------------


def test_also_what_was_sent_after_a_failure_elsewhere() -> None:
    with MemoryCluster(2) as cluster:
        mec = cluster.client()
        mec.stop_on_error = True
        loop = cluster.engine(0).loop
        loop.run_ready = lambda: 0  # type: ignore[method-assign]
        failing = mec.execute("1 / 0", targets=0, block=False)
        assert mec.execute("1 / 0", targets=1, block=False).exception() is not None
        behind = mec.execute("ran = 1", targets=0, block=False)
        cluster.settle()
        loop.__dict__.pop("run_ready")
        with pytest.raises(CompositeError, match="ZeroDivisionError"):
            failing.result()
        with pytest.raises(CompositeError, match="QueueCleared"):
            behind.result()
        assert "ran" not in mec[0]
        assert mec.execute("later = 1", targets=0)  # sent by one who knows


def test_what_is_on_its_way_was_sent_before_the_last_that_is_taken_out(engine: Engine) -> None:
    engine.say(submit("c-1", 0, "fail"), submit("c-2", 3))
    assert engine.run_one() == "c-1"
    engine.say(submit("c-3", 3), submit("c-4", 4))
    assert engine.run_one() == "c-4"
    expected = {"c-1": "ValueError", "c-2": "QueueCleared", "c-3": "QueueCleared", "c-4": "ok"}
    assert engine.ends() == expected


def test_not_what_stands_before_a_command_whose_source_fails(engine: Engine) -> None:
    engine.say(submit("c-1"), submit("c-2", source="c-3"), submit("c-4"), submit("d-1"), submit("c-5", -1))
    engine.say(given_by("c-3", ok=False))
    assert engine.ends() == {"c-2": "NameError", "c-4": "QueueCleared"}
    assert [engine.run_one() for _ in range(4)] == ["c-1", "d-1", "c-5", None]


def test_what_is_behind_parts_that_are_lost(engine: Engine) -> None:
    blob = BlobRef("c-2/s0/0", 10)
    engine.say(submit("c-1"), submit("c-2", parts=(blob,)), submit("c-3"), submit("d-1"))
    engine.say(Chunk(blob.blob, LOST, b""))
    assert engine.ends() == {"c-2": "ConnectionError", "c-3": "QueueCleared"}
    assert [engine.run_one() for _ in range(3)] == ["c-1", "d-1", None]


def test_a_command_that_comes_while_others_are_taken_out(engine: Engine) -> None:
    """As c-2, it was sent before its client knew: it must not slip in between."""
    cancel = engine.loop.cancel
    threads: list[threading.Thread] = []

    def slow(match: Callable[[AnyJob], bool]) -> list[AnyJob]:
        taken = cancel(match)
        late = threading.Thread(target=engine.service._commands.submit, args=(submit("c-3", 3),))
        threads.append(late)
        late.start()
        late.join(0.1)  # the time to slip in
        return taken

    engine.say(submit("c-1", 0, "fail"), submit("c-2", 3))
    engine.loop.cancel = slow  # type: ignore[method-assign]
    engine.run_one()
    for thread in threads:
        thread.join()
    engine.turn()
    assert engine.ends() == {"c-1": "ValueError", "c-2": "QueueCleared", "c-3": "QueueCleared"}
    assert engine.run_one() is None


# -- whatever happens --------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"), st.sampled_from(["apply", "fail", "wait"]), st.sampled_from([True, True, False])
        ),
        st.tuples(st.just("arrive"), st.integers(1, 4)),
        st.tuples(st.just("run")),
        st.tuples(st.just("source"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("hear")),
        st.tuples(st.just("failure elsewhere")),
        st.tuples(st.just("of another client")),
    ),
    max_size=40,
)


class Model:
    """What a client sends to one engine, and what of that must be stopped, or may be."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.epoch = 0
        self.coming: list[Submit] = []  # to the engine, in order
        self.here: list[Submit] = []
        self.heard = 0  # results
        self.known: dict[str, set[str]] = {}  # of each command: whose ends its client knew when it sent it
        self.failed: list[tuple[str, list[str]]] = []  # who failed by itself, what was behind it in the queue
        self.sources: list[str] = []  # still to come

    def send(self, op: str, stops: bool) -> None:
        id = f"c-{len(self.known) + 1}"
        self.known[id] = set(list(self.engine.ends())[: self.heard])
        source = f"{id}00" if op == "wait" else ""
        stop = self.epoch if stops else -1
        self.coming.append(submit(id, stop, "apply" if source else op, source=source))

    def arrive(self, count: int) -> None:
        some, self.coming = self.coming[:count], self.coming[count:]
        self.here += some
        self.sources += [record.source for record in some if record.source]
        self.engine.say(*some)

    def run(self) -> None:
        ends = self.engine.ends()
        id = self.engine.run_one()
        self.note_failure(id, ends)

    def source(self, number: int, ok: bool) -> None:
        if number < len(self.sources):
            ends = self.engine.ends()
            source = self.sources.pop(number)
            self.engine.say(given_by(source, ok))
            if not ok:
                self.note_failure(source.removesuffix("00"), ends)

    def note_failure(self, id: str | None, ends: dict[str, str]) -> None:
        """`ends`: what had ended before."""
        stops = {record.id: record.stop >= 0 for record in self.here}
        if id is None or id in ends or not stops.get(id) or self.engine.ends()[id] in ("ok", "QueueCleared"):
            return
        order = list(stops)
        behind = [each for each in order[order.index(id) + 1 :] if stops[each] and each not in ends]
        self.failed.append((id, behind))

    def hear(self) -> None:
        fresh = list(self.engine.ends().values())[self.heard :]
        self.heard += len(fresh)
        self.epoch += sum(end != "ok" for end in fresh)

    def check(self) -> None:
        ends = self.engine.ends()
        own = {id for id in ends if id.startswith("c-")}
        assert own == set(self.known)
        stopped = {id for id in own if ends[id] == "QueueCleared"}
        must = {id for _, behind in self.failed for id in behind}
        assert must <= stopped
        order = list(self.known)
        for id in stopped:  # for a failure that its client did not know of
            assert any(
                order.index(failed) < order.index(id) and failed not in self.known[id]
                for failed, _ in self.failed
            )
        ran = [id for id in self.engine.ran if id.startswith("c-")]
        assert ran == [id for id in order if id in set(ran)]
        assert set(Counter(ran).values()) <= {1}
        assert not stopped & set(ran)
        others = [id for id in self.engine.ran if id.startswith("d-")]
        assert all(ends[id] == "ok" for id in others)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_it_stops_what_is_behind_and_nothing_that_its_client_knew_to_send(steps: list[tuple]) -> None:
    engine = Engine()
    model = Model(engine)
    others = 0
    for step in steps:
        if step[0] == "send":
            model.send(*step[1:])
        elif step[0] == "arrive":
            model.arrive(step[1])
        elif step[0] == "run":
            model.run()
        elif step[0] == "source":
            model.source(*step[1:])
        elif step[0] == "hear":
            model.hear()
        elif step[0] == "failure elsewhere":
            model.epoch += 1
        else:
            others += 1
            engine.say(submit(f"d-{others}"))
    model.arrive(len(model.coming))
    while model.sources:
        model.source(0, ok=True)
    for _ in range(len(model.known) + others + 1):
        model.run()
    model.check()
    assert sum(id.startswith("d-") for id in engine.ends()) == others
    engine.service.stop()
    for _ in range(3):
        engine.turn()
