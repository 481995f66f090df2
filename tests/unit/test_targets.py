"""Which engines a call goes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.client.targets import checked_targets, resolve_targets
from ipython1.kernel.error import InvalidEngineID, NoEnginesRegistered

IDS = [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all", (0, 1, 2, 5)),
        (0, (0,)),
        (5, (5,)),
        (-1, (5,)),
        (-4, (0,)),
        ([2, 0], (2, 0)),
        ((1,), (1,)),
        ([0, -1], (0, 5)),
        (range(2), (0, 1)),
        (slice(1, 3), (1, 2)),
        (slice(None, None, -1), (5, 2, 1, 0)),
        (np.int64(2), (2,)),
        (np.array(2), (2,)),
        (np.array([5, 0]), (5, 0)),
        ([np.uint8(1), 2], (1, 2)),
        ({1: "a"}.keys(), (1,)),
        (iter([1, 2]), (1, 2)),
    ],
)
def test_what_targets_mean(targets: Any, expected: tuple[int, ...]) -> None:
    assert resolve_targets(targets, IDS) == expected


@pytest.mark.parametrize("targets", [3, 4, -5, [0, 3], range(4), "0", "ALL", "", True, [True, 1], 1.0, [0.0]])
def test_no_such_engine(targets: Any) -> None:
    with pytest.raises(InvalidEngineID):
        resolve_targets(targets, IDS)


@pytest.mark.parametrize("targets", [None, b"\x00", {0: 1}, object(), [[0]], ["0"], np.array([True, False])])
def test_what_names_no_engine(targets: Any) -> None:
    with pytest.raises(InvalidEngineID, match="names no engine"):
        resolve_targets(targets, IDS)


def test_the_error_names_the_engines_that_exist() -> None:
    with pytest.raises(InvalidEngineID) as caught:
        resolve_targets([0, 7], IDS)
    assert str(caught.value) == "There is no engine 7. The engines are: 0 1 2 5."
    assert caught.value.target == 7
    assert caught.value.ids == IDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("targets", [[], (), slice(4, None), np.array([], dtype=int)])
def test_nothing_selected(targets: Any) -> None:
    with pytest.raises(InvalidEngineID, match="select no engine"):
        resolve_targets(targets, IDS)


@pytest.mark.parametrize("targets", [[1, 1], [-1, 5]])
def test_an_engine_twice(targets: Any) -> None:
    with pytest.raises(InvalidEngineID, match="stands twice"):
        resolve_targets(targets, IDS)


@pytest.mark.parametrize("targets", ["all", 0, [0], slice(None)])
def test_no_engines(targets: Any) -> None:
    with pytest.raises(NoEnginesRegistered, match="ipcluster scale"):
        resolve_targets(targets, [])


def test_nonsense_is_nonsense_without_engines_too() -> None:
    with pytest.raises(InvalidEngineID, match="names no engine"):
        resolve_targets("some", [])


def test_an_iterator_is_kept_as_a_list() -> None:
    assert checked_targets(iter([3, 1])) == [3, 1]


def test_long_nonsense_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidEngineID) as caught:
        checked_targets("x" * 10_000)
    assert len(str(caught.value)) < 200


@given(st.sets(st.integers(0, 50), min_size=1).map(sorted), st.data())
def test_any_selection_of_positions(ids: list[int], data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True, min_size=1))
    expected = tuple(ids[position] for position in positions)
    assert resolve_targets([position - len(ids) for position in positions], ids) == expected
    assert resolve_targets(list(expected), ids) == expected


@given(st.sets(st.integers(0, 50), min_size=1).map(sorted), st.slices(20))
def test_slices_are_slices_of_the_ids(ids: list[int], cut: slice) -> None:
    if ids[cut]:
        assert resolve_targets(cut, ids) == tuple(ids[cut])
    else:
        with pytest.raises(InvalidEngineID):
            resolve_targets(cut, ids)
