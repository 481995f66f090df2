"""The schedulers: who is next, against what they promise."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from ipython1.kernel.controller.scheduler import (
    FIFO,
    LIFO,
    SCHEDULERS,
    LeastLoad,
    Random,
    Weighted,
    make_scheduler,
)
from ipython1.kernel.error import LaunchError
from ipython1.kernel.interfaces import IScheduler


@dataclass(eq=False)
class Tasks:
    """What a scheduler sees of a batch."""

    number: int
    client: str = "c"
    priority: int = 0
    waiting: int = 1
    refused: set[int] = field(default_factory=set)

    @property
    def id(self) -> str:
        return f"{self.client}-{self.number}"

    def admits(self, engine: int) -> bool:
        return self.waiting > 0 and engine not in self.refused


def drain(scheduler: Any, engine: int = 0, limit: int = 1000) -> list[Tasks]:
    """Hand over one task after the other."""
    order: list[Tasks] = []
    while len(order) < limit:
        batch = scheduler.next(engine)
        if batch is None:
            break
        order.append(batch)
        scheduler.served(batch)
        batch.waiting -= 1
        if not batch.waiting:
            scheduler.remove(batch)
    return order


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_one(name: str) -> None:
    scheduler = make_scheduler(name)
    assert type(scheduler) is SCHEDULERS[name]
    assert verifyObject(IScheduler, scheduler)


def test_a_scheduler_that_is_none() -> None:
    with pytest.raises(LaunchError, match="no scheduler 'best'; give one of: leastload, fifo"):
        make_scheduler("best")


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (FIFO(), [0, 0, 1, 1, 2, 2, 3, 3]),
        (LIFO(), [3, 3, 2, 2, 1, 1, 0, 0]),
        (LeastLoad(), [0, 1, 0, 1, 2, 3, 2, 3]),
    ],
)
def test_order(scheduler: Any, order: list[int]) -> None:
    for number in range(4):
        scheduler.add(Tasks(number, client="ab"[number % 2], waiting=2))
    assert [batch.number for batch in drain(scheduler)] == order


def test_who_was_only_looked_at_keeps_the_turn() -> None:
    scheduler = LeastLoad()
    first, second = Tasks(0, "a", waiting=9), Tasks(1, "b", waiting=9)
    scheduler.add(first)
    scheduler.add(second)
    assert [scheduler.next(0) for _ in range(3)] == [first] * 3
    scheduler.served(first)
    scheduler.add(first)  # more of them: no change of turn
    assert scheduler.next(0) is second


def test_an_engine_that_is_not_admitted_gets_the_next_best() -> None:
    for scheduler in (FIFO(), LIFO(), LeastLoad()):
        picky, willing = Tasks(0, "a", refused={1}), Tasks(1, "a", refused={0})
        low = Tasks(2, "b", priority=-1)
        for batch in (picky, willing, low):
            scheduler.add(batch)
        assert scheduler.next(0) is picky
        assert scheduler.next(1) is willing
        willing.waiting = 0
        scheduler.remove(willing)
        assert scheduler.next(1) is low


@pytest.mark.parametrize("name", SCHEDULERS)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(-2, 2),
            st.integers(1, 4),
            st.sets(st.integers(0, 2), max_size=2),
        )
    ),
    engine=st.integers(0, 2),
)
def test_the_highest_priority_that_is_admitted_goes_first_and_nothing_is_left(
    name: str, batches: list[tuple[str, int, int, set[int]]], engine: int
) -> None:
    scheduler: Any = make_scheduler(name)
    made = [Tasks(i, *args) for i, args in enumerate(batches)]
    for batch in made:
        scheduler.add(batch)
        scheduler.add(batch)
    mine = [batch for batch in made if batch.admits(engine)]
    wanted = Counter({batch: batch.waiting for batch in mine})
    order = drain(scheduler, engine)
    assert Counter(order) == wanted
    priorities = [batch.priority for batch in order]
    assert priorities == sorted(priorities, reverse=True)
    for batch in made:
        scheduler.remove(batch)
        scheduler.remove(batch)
    assert scheduler.next(engine) is None
    assert not scheduler._levels


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20), min_size=1))
def test_shares_are_fair(counts: dict[str, int]) -> None:
    scheduler = LeastLoad()
    for i, (client, count) in enumerate(counts.items()):
        scheduler.add(Tasks(i, client, waiting=count))
    got: Counter[str] = Counter()
    for batch in drain(scheduler):
        got[batch.client] += 1
        hungry = [client for client, count in counts.items() if got[client] < count]
        assert not hungry or max(got.values()) - min(got[client] for client in hungry) <= 20
        least = min((got[client] for client in hungry), default=0)
        assert all(got[client] <= least + 1 for client in hungry)


@given(st.dictionaries(st.integers(0, 100), st.integers(0, 50)))
def test_engines_are_put_in_order(loads: dict[int, int]) -> None:
    for scheduler in (FIFO(), LIFO(), LeastLoad()):
        assert [loads[id] for id in scheduler.engines(loads)] == sorted(loads.values())
    for scheduler in (Random(random.Random(0)), Weighted(random.Random(0))):
        assert sorted(scheduler.engines(loads)) == sorted(loads)


def test_the_less_an_engine_has_the_likelier_it_is_first() -> None:
    weighted, even = Weighted(random.Random(1)), Random(random.Random(1))
    loads = {0: 0, 1: 1, 2: 9}
    for scheduler, low, high in ((weighted, (550, 700), (20, 120)), (even, (270, 400), (270, 400))):
        first = Counter(next(iter(scheduler.engines(loads))) for _ in range(1000))
        assert low[0] < first[0] < low[1]
        assert high[0] < first[2] < high[1]
