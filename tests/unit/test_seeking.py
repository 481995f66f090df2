"""A search for tasks that engines may know of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.controller.seeking import Search
from ipython1.kernel.wire.records import ENGINES_LIMIT, End, Seek


def end(index: int, status: str, attempt: int = 1) -> End:
    return (index, attempt, status, 0.0, 0.0, 0, ())


def test_engines_are_asked_once() -> None:
    search = Search("c-1")
    assert search.add([2, 1], [0, 1]) == [(0, Seek("c-1", (1, 2))), (1, Seek("c-1", (1, 2)))]
    assert search.add([2, 3], [0, 1]) == [(0, Seek("c-1", (3,))), (1, Seek("c-1", (3,)))]
    assert search.add([1], [0]) == []
    assert search.ask(5) == [Seek("c-1", (1, 2, 3))]


def test_a_question_has_as_many_tasks_as_a_record_may() -> None:
    search = Search("c-1")
    questions = search.add(range(2 * ENGINES_LIMIT + 1), [0])
    assert [len(question.items) for _, question in questions] == [ENGINES_LIMIT, ENGINES_LIMIT, 1]


def test_without_engines_it_is_answered() -> None:
    search = Search("c-1")
    assert search.add([1], []) == []
    assert search.answered


def test_the_latest_attempt_counts() -> None:
    search = Search("c-1")
    search.add([0], [0, 1, 2, 3])
    for engine, status, attempt in ((0, "error", 1), (1, "held", 3), (2, "ok", 2), (3, "unknown", 0)):
        assert not search.answered
        assert search.told(engine, end(0, status, attempt))
    assert search.answered
    assert search.best[0][:2] == (3, 1)


def test_what_was_not_asked_is_no_answer() -> None:
    search = Search("c-1")
    search.add([0], [0])
    assert not search.told(1, end(0, "ok"))
    assert not search.told(0, end(1, "ok"))
    assert search.told(0, end(0, "unknown"))
    assert not search.told(0, end(0, "error"))
    assert not search.best


@pytest.mark.parametrize("status", ["ok", "error", "rejected", "back"])
def test_what_is_held_ends_later(status: str) -> None:
    search = Search("c-1")
    search.add([0], [0, 1])
    search.told(0, end(0, "held", 4))
    assert not search.told(0, end(0, status, 3))  # of an earlier attempt
    assert search.told(0, end(0, status, 4))
    assert search.best[0].end[2] == status
    assert not search.told(0, end(0, status, 4))


def test_an_engine_goes_with_what_it_had() -> None:
    search = Search("c-1")
    search.add([0, 1], [0, 1])
    search.told(0, end(0, "held"))
    search.told(1, end(0, "unknown"))
    search.gone(0)
    assert not search.best
    assert not search.answered
    search.told(1, end(1, "ok"))
    assert search.answered
    search.over(1)
    assert search.indexes == {0}
    assert not search.best


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sets(st.integers(0, 3), min_size=1)),
            st.tuples(st.just("ask"), st.integers(0, 2)),
            st.tuples(st.just("gone"), st.integers(0, 2)),
            st.tuples(
                st.just("told"),
                st.integers(0, 2),
                st.integers(0, 3),
                st.sampled_from(["ok", "error", "held", "unknown"]),
                st.integers(1, 3),
            ),
        ),
        max_size=40,
    )
)
def test_it_is_answered_when_every_engine_has_told_of_everything(steps: list[tuple[Any, ...]]) -> None:
    search = Search("c-1")
    engines = {0}
    open_ones: set[tuple[int, int]] = set()
    wanted: set[int] = set()
    for what, *args in steps:
        if what == "add":
            asked = search.add(args[0], engines)
            new = {(engine, index) for engine, question in asked for index in question.items}
            assert new == {(engine, index) for engine in engines for index in args[0] - wanted}
            open_ones |= {(engine, index) for engine in engines for index in args[0] - wanted}
            wanted |= args[0]
        elif what == "ask":
            if args[0] in engines:
                continue
            engines.add(args[0])
            search.ask(args[0])
            open_ones |= {(args[0], index) for index in wanted}
        elif what == "gone":
            engines.discard(args[0])
            search.gone(args[0])
            open_ones = {(engine, index) for engine, index in open_ones if engine != args[0]}
        else:
            engine, index, status, attempt = args
            if engine not in engines:
                continue
            told = search.told(engine, end(index, status, attempt))
            assert told or (engine, index) not in open_ones
            open_ones.discard((engine, index))
        assert search.answered == (not open_ones)
        assert all(best.engine in engines for best in search.best.values())
        assert set(search.best) <= wanted == search.indexes
