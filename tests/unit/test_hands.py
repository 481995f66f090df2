"""How much an engine is handed of tasks, and what is called back from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.controller.hands import (
    AHEAD_LEAST,
    AHEAD_MOST,
    AHEAD_TIME,
    AHEAD_UNKNOWN,
    RECALL_TIME,
    Hand,
)


def tasks(mean: float = 0.0, id: str = "c-1") -> Any:
    return SimpleNamespace(id=id, mean=mean)


@pytest.mark.parametrize(
    ("mean", "fair", "room"),
    [
        (0.0, 1000, AHEAD_UNKNOWN),
        (0.0, 1, 1),
        (1e-9, 1000, AHEAD_MOST),
        (AHEAD_TIME / 10, 1000, 10),
        (AHEAD_TIME / 10, 4, 4),
        (10.0, 1000, AHEAD_LEAST),
        (10.0, 0, 1),
    ],
)
def test_room(mean: float, fair: int, room: int) -> None:
    hand = Hand()
    assert hand.room(tasks(mean), fair) == room
    hand.add(tasks(), range(3), 0.0)
    assert hand.room(tasks(mean), fair) == room - 3


@given(st.one_of(st.just(0.0), st.floats(1e-9, 100)), st.integers(0, 10_000))
def test_room_stays_within_bounds(mean: float, fair: int) -> None:
    room = Hand().room(tasks(mean), fair)
    assert 1 <= room <= AHEAD_MOST
    assert room <= max(1, fair)


def test_the_first_one_runs() -> None:
    hand = Hand()
    assert hand.first is None
    assert hand.waiting == 0
    one, other = tasks(), tasks(id="c-2")
    hand.add(one, [5, 6], 10.0)
    hand.add(other, [1], 11.0)
    assert (hand.first, hand.since, hand.waiting, len(hand)) == ((one, 5), 10.0, 2, 3)
    hand.remove([("c-1", 5), ("c-9", 1)], 12.0)
    assert (hand.first, hand.since, hand.waiting) == ((one, 6), 12.0, 1)
    assert hand.drain() == [(one, 6), (other, 1)]
    assert len(hand) == 0


def test_behind_commands_nothing_has_started() -> None:
    hand, batch = Hand(), tasks()
    hand.add(batch, [0], 1.0, behind=True)
    assert hand.waiting == 1
    assert hand.spare(1.0) == [(batch, 0)]
    hand.add(batch, [1, 2], 1.0)
    hand.remove([("c-1", 0)], 2.0)
    assert hand.waiting == 1


@pytest.mark.parametrize(
    ("mean", "count", "waited", "spare"),
    [
        (0.0, 1, 100.0, []),
        (0.0, 2, 0.0, [1]),
        (0.0, 6, 0.0, [3, 4, 5]),  # of 1 to 5 the last half
        (RECALL_TIME / 10, 6, 0.0, []),  # they are done sooner than called back
        (RECALL_TIME / 10, 6, 2 * RECALL_TIME, [3, 4, 5]),  # behind a long one
        (RECALL_TIME / 2, 6, 0.0, [3, 4, 5]),
    ],
)
def test_what_can_be_called_back(mean: float, count: int, waited: float, spare: list[int]) -> None:
    hand, batch = Hand(), tasks(mean)
    hand.add(batch, range(count), 10.0)
    assert hand.spare(10.0 + waited) == [(batch, index) for index in spare]


def test_nothing_is_called_back_twice() -> None:
    hand, batch = Hand(), tasks()
    hand.add(batch, range(8), 0.0)
    called: list[int] = []
    for _ in range(5):
        spare = hand.spare(1.0)
        hand.recall(spare)
        called += [index for _, index in spare]
    assert sorted(called) == list(range(1, 8))
    hand.remove([("c-1", 7)], 1.0)
    hand.add(batch, [7], 1.0)  # it comes again
    assert hand.spare(2.0) == [(batch, 7)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 20), st.booleans()),
            st.tuples(st.just("remove"), st.integers(0, 3), st.integers(0, 20)),
            st.tuples(st.just("recall")),
            st.tuples(st.just("drain")),
        )
    )
)
def test_a_hand_is_a_list(steps: list[tuple[Any, ...]]) -> None:
    hand, batches = Hand(), [tasks(id=f"c-{i}") for i in range(4)]
    model: list[tuple[int, int]] = []
    for number, (what, *args) in enumerate(steps):
        now = float(number)
        if what == "add" and (args[0], args[1]) not in model:
            hand.add(batches[args[0]], [args[1]], now, behind=args[2])
            model.append((args[0], args[1]))
        elif what == "remove":
            hand.remove([(f"c-{args[0]}", args[1])], now)
            if (args[0], args[1]) in model:
                model.remove((args[0], args[1]))
        elif what == "recall":
            spare = hand.spare(now)
            assert len(spare) <= hand.waiting
            hand.recall(spare)
        elif what == "drain":
            assert hand.drain() == [(batches[batch], index) for batch, index in model]
            model.clear()
        assert len(hand) == len(model)
        assert hand.first == ((batches[model[0][0]], model[0][1]) if model else None)
        assert max(len(model) - 1, 0) <= hand.waiting <= len(model)
