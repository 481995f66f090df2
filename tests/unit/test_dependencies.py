"""When the rules of a batch are met, and when they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.controller.batches import GONE, NOWHERE, Batch, Rules
from ipython1.kernel.controller.dependencies import Dependencies, Ended
from ipython1.kernel.wire import records

ENGINES = (0, 1, 2)
#: What a task may be like: running, ended well on an engine, failed on one, or not known.
ENDS = st.sampled_from(["runs", "ok 0", "ok 1", "fails 0", "unknown"])


class World:
    """Batch ``c1-1`` with tasks in some states, and others that depend on it."""

    def __init__(self, ends: list[str], returning: bool = False) -> None:
        self.batches: dict[str, Batch] = {}
        self.returning = returning
        self.dependencies = Dependencies(self.batches.get, lambda: self.returning, lambda: ENGINES)
        self.first = self.add("c1-1")
        for index, end in enumerate(ends):
            if end != "unknown":
                self.first.add(index, ())
                self.first.take(0, 1)
                self.end(index, end)

    def add(self, id: str, **rules: Any) -> Batch:
        head = records.Batch(id, "call", "", 0.0, b"", b"", ())
        batch = self.batches[id] = Batch(head, b"", Rules(**rules), 0, [])
        return batch

    def end(self, index: int, end: str) -> None:
        if end != "runs":
            what, engine = end.split()
            self.first.end(index, int(engine), what == "ok")

    def judge(self, batch: Batch) -> str:
        """'ready', 'blocked', or why it is impossible."""
        reason = self.dependencies.judge(batch)
        return reason or ("blocked" if batch.blocked else "ready")


def keys(count: int) -> tuple[tuple[str, int], ...]:
    return tuple(("c1-1", index) for index in range(count))


@given(
    ends=st.lists(ENDS, min_size=1, max_size=4),
    when=st.sampled_from(["success", "failure", "completion"]),
    all_of=st.booleans(),
)
def test_after(ends: list[str], when: str, all_of: bool) -> None:
    world = World(ends)
    batch = world.add("c1-2", after=keys(len(ends)), when=when, all=all_of)
    met = {"runs": None, "ok": when != "failure", "fails": when != "success"}
    fits = [met[end.split()[0]] for end in ends if end != "unknown"]
    verdict = world.judge(batch)
    if "unknown" in ends:
        assert "not known here" in verdict
    elif all_of:
        assert verdict.endswith(("did not succeed", "did not fail")) == (False in fits)
        assert (verdict == "ready") == all(fits)
    else:
        assert verdict.endswith(("did not succeed", "did not fail")) == (set(fits) == {False})
        assert (verdict == "ready") == any(fits)
    assert (verdict == "blocked") == world.dependencies.any_waiting
    assert (verdict == "blocked") == (world.dependencies.all_waiting() == [batch])


@given(ends=st.lists(ENDS.filter(lambda end: end != "unknown"), min_size=1, max_size=4), all_of=st.booleans())
def test_follow(ends: list[str], all_of: bool) -> None:
    world = World(ends)
    batch = world.add("c1-2", follow=keys(len(ends)), all=all_of)
    verdict = world.judge(batch)
    where = {int(end.split()[1]) for end in ends if end.startswith("ok")}
    failed, runs = any(end.startswith("fails") for end in ends), "runs" in ends
    if all_of and failed:
        assert "which it shall follow, failed" in verdict
    elif all_of and runs:
        assert verdict == "blocked"
    elif all_of and len(where) > 1:
        assert verdict == "the tasks it shall follow ran on different engines"
    elif where:
        assert (verdict, batch.allowed) == ("ready", where)
    else:
        assert ("failed" in verdict) == (not runs)


@given(
    ends=st.lists(ENDS.filter(lambda end: end != "unknown"), min_size=1, max_size=4),
    all_of=st.booleans(),
    order=st.randoms(),
)
def test_each_end_brings_it_nearer(ends: list[str], all_of: bool, order: Any) -> None:
    """However the ends come, the last verdict is that of a batch judged when all are known."""
    ends = [end if end != "runs" else "ok 2" for end in ends]
    world, settled = World(["runs"] * len(ends)), World(ends)
    batch = world.add("c1-2", after=keys(len(ends)), all=all_of)
    verdict = world.judge(batch)
    indexes = list(range(len(ends)))
    order.shuffle(indexes)
    for index in indexes:
        world.end(index, ends[index])
        for waiting in world.dependencies.waiting_for(("c1-1", index)):
            assert waiting is batch
            verdict = world.judge(batch)
        if verdict != "blocked":
            break
    final = settled.judge(settled.add("c1-2", after=keys(len(ends)), all=all_of))
    assert ("did not" in verdict) == ("did not" in final)
    assert (verdict == "ready") == (final == "ready")
    assert not world.dependencies.any_waiting


@pytest.mark.parametrize(("all_of", "ok"), [(True, True), (False, False)])
def test_many_dependencies_are_looked_at_when_it_counts(all_of: bool, ok: bool) -> None:
    world = World(["runs"] * 1000)
    batch = world.add("c1-2", after=keys(1000), follow=keys(1000), all=all_of)
    assert world.judge(batch) == "blocked"
    for index in range(1000):
        world.end(index, "ok 0" if ok else "fails 0")
        assert bool(world.dependencies.waiting_for(("c1-1", index))) == (index == 999)
    assert (world.judge(batch) == "ready") == ok
    assert not world.dependencies._left


def test_after_and_follow_together() -> None:
    world = World(["runs", "runs"])
    batch = world.add("c1-2", after=(("c1-1", 0),), follow=(("c1-1", 1),))
    assert world.judge(batch) == "blocked"
    world.end(0, "ok 0")
    assert world.dependencies.waiting_for(("c1-1", 0)) == []  # it is not enough
    world.end(1, "ok 1")
    assert world.dependencies.waiting_for(("c1-1", 1)) == [batch]
    assert (world.judge(batch), batch.allowed) == ("ready", {1})


@pytest.mark.parametrize("engine", [GONE, NOWHERE, 9])
def test_follow_where_there_is_no_engine(engine: int) -> None:
    world = World([])
    world.dependencies.remember(("c1-0", 0), Ended(True, engine))
    assert world.judge(world.add("c1-2", follow=(("c1-0", 0),))) == "the engine it has to run on is gone"


def test_an_engine_that_died_is_followed_no_more() -> None:
    world = World([])
    for index in (0, 1):
        world.dependencies.remember(("c1-0", index), Ended(True, index))
    world.dependencies.engine_died(1)
    assert world.judge(world.add("c1-2", follow=(("c1-0", 0),))) == "ready"
    assert "gone" in world.judge(world.add("c1-3", follow=(("c1-0", 1),)))
    assert world.judge(world.add("c1-4", after=(("c1-0", 1),))) == "ready"


@pytest.mark.parametrize(
    ("key", "verdict"),
    [(("c2-1", 0), "blocked"), (("c1-9", 0), "not known here"), (("c1-2", 0), "not known here")],
)
def test_who_may_yet_come(key: tuple[str, int], verdict: str) -> None:
    world = World([], returning=True)
    batch = world.add("c1-2", after=(key,))
    assert verdict in world.judge(batch)
    world.returning = False
    assert "not known here" in world.judge(batch)
    assert not world.dependencies.any_waiting


@pytest.mark.parametrize("told", [True, False])
def test_what_the_client_tells_counts_where_nothing_is_known(told: bool) -> None:
    world = World(["ok 1"])
    known = (("c1-1", 0, not told, 2), ("c1-0", 5, told, 2))
    batch = world.add("c1-2", after=(("c1-1", 0), ("c1-0", 5)), follow=(("c1-1", 0),), known=known)
    if told:
        assert (world.judge(batch), batch.allowed) == ("ready", {1})
    else:
        assert world.judge(batch) == "task c1-0#5 did not succeed"


def test_forget() -> None:
    world = World(["runs"])
    batches = [world.add(f"c1-{i}", after=keys(1)) for i in (2, 3)]
    for batch in batches:
        assert world.judge(batch) == "blocked"
    world.dependencies.forget(batches[0])
    assert world.dependencies.all_waiting() == [batches[1]]
    world.dependencies.forget(batches[1])
    assert not world.dependencies.any_waiting
    assert world.dependencies.waiting_for(*keys(3)) == []
