"""The tasks of one batch: the table of their states, and a model of many of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipython1.kernel.controller.batches import (
    DEATHS_LIMIT,
    GONE,
    HAND_BYTES,
    MEAN_WEIGHT,
    NOWHERE,
    SHORTEST,
    Batch,
    Rules,
)
from ipython1.kernel.error import WireError
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import pack

ENGINE, OTHER = 3, 4


def make(**rules: Any) -> Batch:
    head = records.Batch("c1-1", "call", "", 0.0, b"", b"", ())
    return Batch(head, b"", Rules(**rules), 0, [])


def state_of(batch: Batch, index: int = 0) -> str:
    """The state a task is in; it is in one only."""
    places = {
        "ready": batch.ready,
        "choosy": batch.choosy,
        "sought": batch.sought,
        "handed": batch.handed,
        "ended": batch.ended,
    }
    found = [state for state, place in places.items() if index in place]
    assert len(found) <= 1, found
    state = found[0] if found else "gone"
    assert (index in batch.items) == (state not in ("ended", "gone"))
    assert batch.knows(index) == (state != "gone")
    return state


def in_state(state: str, **rules: Any) -> Batch:
    """A batch with task 0 in a state."""
    batch = make(**rules)
    batch.add(0, (b"args",), sought=state == "sought")
    if state == "choosy":
        batch.take(ENGINE, 1)
        batch.rejected(0, ENGINE)
    elif state == "handed":
        batch.take(ENGINE, 1)
    elif state == "ended":
        batch.take(ENGINE, 1)
        batch.end(0, ENGINE, ok=True)
    assert state_of(batch) == state
    return batch


def lost(batch: Batch) -> None:
    if 0 in batch.ended:
        batch.lost(0, (b"args",))


INPUTS: dict[str, Callable[[Batch], Any]] = {
    "nobody has it": lambda batch: batch.nobody_has(0),
    "adopt": lambda batch: 0 in batch.sought and batch.adopt(0, OTHER, 7),
    "take": lambda batch: batch.take(OTHER, 10),
    "take again": lambda batch: batch.take(ENGINE, 10),
    "withdraw": lambda batch: [batch.end(index, NOWHERE, False) for index in batch.withdraw([0, 9])],
    "withdraw all": lambda batch: [batch.end(index, NOWHERE, False) for index in batch.withdraw()],
    "withdraw none": lambda batch: [batch.end(index, NOWHERE, False) for index in batch.withdraw([])],
    "back": lambda batch: batch.back(0),
    "ok": lambda batch: batch.end(0, ENGINE, True),
    "error": lambda batch: 0 in batch.items and (batch.fails(0) or batch.end(0, ENGINE, False)),
    "its engine died": lambda batch: 0 in batch.handed and batch.engine_died(0, True),
    "lost": lost,
    "taken": lambda batch: batch.taken([0, 9]),
}

TABLE = {
    #                  sought    ready     choosy    handed    ended
    "nobody has it": ("ready", "ready", "choosy", "handed", "ended"),
    "adopt": ("handed", "ready", "choosy", "handed", "ended"),
    "take": ("sought", "handed", "handed", "handed", "ended"),
    "take again": ("sought", "handed", "choosy", "handed", "ended"),
    "withdraw": ("sought", "ended", "ended", "handed", "ended"),
    "withdraw all": ("sought", "ended", "ended", "handed", "ended"),
    "withdraw none": ("sought", "ready", "choosy", "handed", "ended"),
    "back": ("sought", "ready", "choosy", "ready", "ended"),
    "ok": ("ended", None, None, "ended", "ended"),
    "error": (None, None, None, "ended", "ended"),
    "its engine died": ("sought", "ready", "choosy", "ready", "ended"),
    "lost": ("sought", "ready", "choosy", "handed", "ready"),
    "taken": ("sought", "ready", "choosy", "handed", "gone"),
}
STATES = ("sought", "ready", "choosy", "handed", "ended")


@pytest.mark.parametrize(
    ("state", "what", "expected"),
    [
        (state, what, expected)
        for what, row in TABLE.items()
        for state, expected in zip(STATES, row, strict=True)
        if expected is not None  # the book does not ask for it
    ],
)
def test_the_table(state: str, what: str, expected: str) -> None:
    batch = in_state(state)
    INPUTS[what](batch)
    assert state_of(batch) == expected


def test_retries_and_attempts() -> None:
    batch = in_state("handed", retries=2)
    assert [batch.fails(0), state_of(batch)] == [True, "ready"]
    assert batch.take(OTHER, 1) == [(0, 2, (b"args",))]
    assert batch.fails(0)
    assert batch.take(OTHER, 1) == [(0, 3, (b"args",))]
    assert not batch.fails(0)
    batch.end(0, OTHER, False)
    assert batch.failed == {0}
    assert batch.taken([0]) == {OTHER: [0]}
    for kept in (batch.failures, batch.attempts, batch.failed, batch.ended, batch.items):
        assert not kept


def test_the_attempts_go_on_where_the_client_says() -> None:
    batch = make()
    batch.add(0, (), sought=True, attempt=5)
    batch.nobody_has(0)
    assert batch.take(ENGINE, 1) == [(0, 6, ())]


def test_deaths() -> None:
    batch = make()
    batch.add(0, ())
    for death in range(1, DEATHS_LIMIT + 1):
        batch.take(ENGINE, 1)
        assert batch.engine_died(0, running=False)  # this one does not count
        batch.take(ENGINE, 1)
        assert batch.engine_died(0, running=True) == (death < DEATHS_LIMIT)
    batch.end(0, NOWHERE, False)
    batch.taken([0])
    assert not batch.deaths


def test_an_outcome_that_is_lost_counts_as_a_death() -> None:
    batch = in_state("ended")
    for death in range(1, DEATHS_LIMIT + 1):
        batch.engine_gone(ENGINE)
        assert batch.ended == {0: GONE}
        assert batch.lost(0, ()) == (death < DEATHS_LIMIT)
        if death < DEATHS_LIMIT:
            batch.take(ENGINE, 1)
            batch.end(0, ENGINE, True)


def test_what_comes_back_goes_first() -> None:
    batch = make()
    for index in range(4):
        batch.add(index, ())
    batch.take(ENGINE, 2)
    batch.back(1)
    batch.back(0)
    assert list(batch.ready) == [0, 1, 2, 3]


def test_who_rejected_a_task_does_not_get_it() -> None:
    batch = in_state("choosy")
    assert not batch.admits(ENGINE)
    assert batch.admits(OTHER)
    assert batch.could_run(ENGINE)
    assert not batch.could_run(ENGINE, 0)
    assert batch.could_run(OTHER, 0)
    assert batch.take(OTHER, 1)
    assert batch.rejected(0, OTHER) == {ENGINE, OTHER}
    batch.engine_gone(ENGINE)
    assert batch.admits(ENGINE)
    batch.blocked = True
    assert not batch.admits(ENGINE)
    assert batch.waiting == 0
    batch.blocked, batch.allowed = False, {OTHER}
    assert not batch.admits(ENGINE)


def test_records_are_bounded() -> None:
    batch = make()
    for index in range(10):
        batch.add(index, (bytes(HAND_BYTES // 2),))
    assert len(batch.take(ENGINE, 10)) == 2
    assert len(batch.take(ENGINE, 1)) == 1


def test_the_mean_length() -> None:
    batch = make()
    batch.took(2.0, 2)
    assert batch.mean == 1.0
    batch.took(2.0, 1)
    assert batch.mean == pytest.approx(1.0 + MEAN_WEIGHT)
    batch.took(1000 * 0.01, 1000)
    assert batch.mean == pytest.approx(0.01)
    backwards = make()
    backwards.took(-5.0, 1)
    assert backwards.mean == SHORTEST


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"retries": 3, "priority": -1, "all": False, "when": "failure", "wait": 1},
        {"after": [["c1-1", 0], ["c2-9", 100_000]], "follow": [["c1-1", 1]], "wait": 0.5},
        {"known": [["c1-1", 0, True, -1]], "something": "new"},
    ],
)
def test_good_rules(given: dict[str, Any]) -> None:
    rules = Rules.unpack(pack(given))
    for name, value in given.items():
        if hasattr(rules, name):
            assert pack(getattr(rules, name)) == pack(value)


@pytest.mark.parametrize(
    "given",
    [
        {"retries": None},
        {"priority": "1"},
        {"all": None},
        {"when": 1},
        {"when": [1]},
        {"wait": None},
        {"after": {}},
    ],
)
def test_bad_rules(given: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        Rules.unpack(pack(given))


class Many(RuleBasedStateMachine):
    """Many tasks, each by the table."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = make(retries=1)
        self.states: dict[int, str] = {}
        self.attempts: dict[int, int] = {}

    def some(self, state: str) -> list[int]:
        return [index for index, it in self.states.items() if it == state]

    @rule(sought=st.booleans(), count=st.integers(1, 5))
    def add(self, sought: bool, count: int) -> None:
        for _ in range(count):
            index = len(self.states)
            self.batch.add(index, (b"x",), sought)
            self.states[index] = "sought" if sought else "ready"

    @rule(engine=st.integers(0, 2), count=st.integers(1, 4))
    def take(self, engine: int, count: int) -> None:
        free = self.some("ready") + [i for i in self.some("choosy") if engine not in self.batch.refusals[i]]
        assert self.batch.admits(engine) == bool(free)
        taken = self.batch.take(engine, count)
        assert len(taken) == min(count, len(free))
        for index, attempt, _ in taken:
            assert index in free
            assert attempt == self.attempts.get(index, 0) + 1
            self.attempts[index] = attempt
            self.states[index] = "handed"

    @precondition(lambda self: self.some("handed"))
    @rule(what=st.sampled_from(["ok", "error", "back", "rejected", "died"]), data=st.data())
    def handed(self, what: str, data: st.DataObject) -> None:
        batch = self.batch
        index = data.draw(st.sampled_from(self.some("handed")))
        engine = batch.handed[index]
        ready = "choosy" if index in batch.refusals else "ready"
        if what == "ok":
            batch.end(index, engine, True)
        elif what == "back":
            batch.back(index)
        elif what == "rejected":
            batch.rejected(index, engine)
            ready = "choosy"
        elif (what == "error" and not batch.fails(index)) or (
            what == "died" and not batch.engine_died(index, True)
        ):
            batch.end(index, NOWHERE, False)
        self.states[index] = "ended" if index in batch.ended else ready

    @precondition(lambda self: self.some("sought"))
    @rule(found=st.booleans(), data=st.data())
    def sought(self, found: bool, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.some("sought")))
        if found:
            self.batch.adopt(index, 1, 3)
            self.attempts[index] = 3
        else:
            self.batch.nobody_has(index)
        self.states[index] = "handed" if found else "ready"

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        indexes = data.draw(st.lists(st.sampled_from(list(self.states)), unique=True))
        gone = self.batch.withdraw(indexes)
        assert sorted(gone) == sorted(i for i in indexes if self.states[i] in ("ready", "choosy"))
        for index in gone:
            self.batch.end(index, NOWHERE, False)
            self.states[index] = "ended"

    @rule()
    def taken(self) -> None:
        ended = self.some("ended")
        by_engine = self.batch.taken(ended)
        assert sorted(itertools.chain(*by_engine.values())) == ended
        for index in ended:
            self.states[index] = "gone"
            self.attempts.pop(index, None)

    @invariant()
    def states_are_right(self) -> None:
        for index, state in self.states.items():
            assert state_of(self.batch, index) == state
        batch = self.batch
        assert batch.waiting == len(self.some("ready")) + len(self.some("choosy"))
        open_ones = {index for index, state in self.states.items() if state not in ("ended", "gone")}
        assert set(batch.failures) | set(batch.refusals) <= open_ones
        assert set(batch.deaths) <= open_ones | set(batch.ended)
        assert set(batch.failed) <= set(batch.ended)


TestMany = Many.TestCase
