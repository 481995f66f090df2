from __future__ import annotations

import sys
from collections import deque, namedtuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.client.partition import flatten, join, same_length, slices, split

counts = st.integers(1, 9)
dists = st.sampled_from(["b", "r"])
items = st.lists(st.integers(), max_size=40)


def split_flat(seq, n: int, dist: str = "b") -> list:
    return [flatten(part) for part in split(seq, n, dist)]


def model_split(seq: list, n: int, dist: str) -> list[list]:
    """Deal the items out one by one."""
    parts: list[list] = [[] for _ in range(n)]
    if dist == "r":
        for k, item in enumerate(seq):
            parts[k % n].append(item)
        return parts
    sizes = [len(seq) // n + (i < len(seq) % n) for i in range(n)]
    rest = list(seq)
    for part, size in zip(parts, sizes, strict=True):
        for _ in range(size):
            part.append(rest.pop(0))
    return parts


@given(items, counts, dists)
def test_split_agrees_with_dealing_one_by_one(seq, n, dist):
    assert split(seq, n, dist) == model_split(seq, n, dist)


@given(items, counts, dists, st.sampled_from([list, tuple]))
def test_lists_and_tuples_come_back_as_they_were(seq, n, dist, kind):
    whole = kind(seq)
    parts = split(whole, n, dist)
    assert [type(part) for part in parts] == [kind] * n
    back = join(parts, dist)
    assert back == whole
    assert type(back) is kind


@given(st.text(max_size=30), counts, dists)
def test_strings_come_back(seq, n, dist):
    assert join(split(seq, n, dist), dist) == seq
    assert join(split_flat(seq, n, dist), dist) == seq


@given(st.binary(max_size=30), counts, dists, st.sampled_from([bytes, bytearray]))
def test_bytes_come_back(seq, n, dist, kind):
    back = join(split(kind(seq), n, dist), dist)
    assert back == seq
    assert type(back) is kind


@given(st.lists(st.integers(0, 255), max_size=20), counts, dists)
def test_flattened_lists_come_back(seq, n, dist):
    assert join(split_flat(seq, n, dist), dist) == seq


@given(st.integers(0, 30), counts, dists, st.sampled_from([(), (3,), (2, 2)]))
def test_arrays_come_back_along_axis_0(length, n, dist, shape):
    whole = np.arange(length * int(np.prod(shape)), dtype="i4").reshape(length, *shape)
    back = join(split(whole, n, dist), dist)
    np.testing.assert_array_equal(back, whole, strict=True)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_round_robin_of_parts_whose_lengths_have_changed_goes_round_by_round(lengths):
    parts = [[(part, k) for k in range(length)] for part, length in enumerate(lengths)]
    expected = sorted((k, part) for part, length in enumerate(lengths) for k in range(length))
    assert join(parts, "r") == [(part, k) for k, part in expected]
    arrays = [np.array([10 * k + part for part, k in part], dtype=int) for part in parts]
    np.testing.assert_array_equal(join(arrays, "r"), [10 * k + part for k, part in expected])


def test_ten_over_four():
    assert [len(part) for part in split(list(range(10)), 4)] == [3, 3, 2, 2]
    assert split(range(10), 4, "r") == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert slices(10, 4)[0] == slice(0, 3)


@pytest.mark.parametrize(
    "dtype",
    [
        "?",
        "u1",
        "i8",
        "f2",
        "f8",
        "c16",
        "S3",
        "U4",
        "M8[ns]",
        "m8[s]",
        "O",
        "V5",
        [("a", "i4"), ("b", "U2")],
    ],
    ids=str,
)
@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("n", [3, 9])
def test_every_dtype(dtype, dist, n):
    whole = np.zeros(7, dtype=dtype)
    if whole.dtype.kind in "iufcSUO":
        whole = np.arange(7).astype(dtype)
    back = join(split(whole, n, dist), dist)
    assert back.dtype == whole.dtype
    assert back.tobytes() == whole.tobytes() if whole.dtype.kind != "O" else list(back) == list(whole)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("dist", ["b", "r"])
def test_masked_arrays_and_matrices_keep_their_kind(dist):
    masked = np.ma.array([1, 2, 3, 4, 5], mask=[0, 1, 0, 0, 1])
    back = join(split(masked, 2, dist), dist)
    assert back.tolist() == [1, None, 3, 4, None]
    matrix = np.matrix([[1, 2], [3, 4], [5, 6]])
    back = join(split(matrix, 2, dist), dist)
    assert type(back) is np.matrix
    assert back.tolist() == matrix.tolist()


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_pandas_rows_come_back(dist, n):
    frame = pd.DataFrame(
        {"a": range(5), "b": list("vwxyz"), "c": pd.Categorical(list("ababa"))}, index=[9, 8, 7, 6, 5]
    )
    parts = split(frame, n, dist)
    assert [len(part) for part in parts] == [len(part) for part in split(list(range(5)), n, dist)]
    pd.testing.assert_frame_equal(join(parts, dist), frame)
    pd.testing.assert_series_equal(join(split(frame["a"], n, dist), dist), frame["a"])
    pd.testing.assert_index_equal(join(split(frame.index, n, dist), dist), frame.index)


def test_an_empty_frame_keeps_its_columns():
    frame = pd.DataFrame({"a": np.zeros(0, dtype="i2")})
    pd.testing.assert_frame_equal(join(split(frame, 3)), frame)


def test_fewer_items_than_parts():
    assert split([1, 2], 4) == [[1], [2], [], []]
    assert split_flat([1, 2], 4) == [1, 2, [], []]
    assert split("", 2) == ["", ""]


def test_flatten_gives_bare_elements():
    assert split_flat(b"ab", 2) == [97, 98]
    frame = pd.DataFrame({"a": [1, 2]})
    assert split_flat(frame, 2)[1]["a"] == 2
    parts = split_flat(np.arange(5), 4)
    assert isinstance(parts[3], np.int64)
    np.testing.assert_array_equal(join(parts), np.arange(5), strict=True)
    rows = split_flat(np.arange(10).reshape(5, 2), 4)
    assert rows[3].shape == (2,)
    assert join(rows).tolist() == np.arange(10).reshape(5, 2).tolist()
    assert join(split_flat(b"abcde", 4)) == b"abcde"
    assert join(split_flat((1, 2, 3), 2)) == (1, 2, 3)


def test_scalars_of_engines_are_items():
    assert join([1, 2, 3]) == [1, 2, 3]
    assert join([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert join([]) == []
    point = namedtuple("point", "x y")
    assert join([point(1, 2), point(3, 4)]) == [point(1, 2), point(3, 4)]
    np.testing.assert_array_equal(join([np.float64(1), np.float64(2)]), np.array([1.0, 2.0]), strict=True)


def test_an_engine_without_items_does_not_change_the_dtype_or_shape():
    parts = [np.array([[1, 2]]), np.array([])]
    np.testing.assert_array_equal(join(parts), np.array([[1, 2]]), strict=True)


def test_mixed_parts_make_a_list():
    assert join([[1], np.array([2]), deque([3]), "ab", 4]) == [1, 2, 3, "ab", 4]
    assert join([np.array([1]), "x"]) == [1, "x"]
    assert join([b"a", 300]) == [b"a", 300]
    assert join([[(1, 2), (3, 4)], (5, 6)]) == [(1, 2), (3, 4), (5, 6)]


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="dimension"):
        join([np.zeros((2, 3)), np.zeros((2, 4))])


def test_things_without_slices_become_lists():
    assert split(deque([1, 2, 3]), 2) == [[1, 2], [3]]
    assert split({5}, 1) == [[5]]
    assert split((c for c in "abc"), 2) == [["a", "b"], ["c"]]
    assert split(memoryview(b"abc"), 2) == [b"ab", b"c"]
    assert split(memoryview(np.arange(3)), 2) == [[0, 1], [2]]


@pytest.mark.parametrize("what", [{"a": 1}, 5, None, np.array(3)], ids=["dict", "int", "None", "0-d"])
def test_what_cannot_be_cut(what):
    with pytest.raises(TypeError, match="cannot be cut into parts"):
        split(what, 2)


def test_misuse():
    with pytest.raises(ValueError, match="dist must be"):
        split([1], 1, "x")
    with pytest.raises(ValueError, match="dist must be"):
        join([], "x")
    with pytest.raises(ValueError, match="into 0 parts"):
        split([1], 0)


@given(items, counts, dists)
def test_map_arguments_are_cut_alike(seq, n, dist):
    columns = same_length([seq, iter(seq), range(len(seq)), np.array(seq, dtype=object)])
    rows = list(zip(*(split(column, n, dist) for column in columns), strict=True))
    assert len(rows) == n
    for parts in rows:
        assert len({len(part) for part in parts}) == 1
    results = [list(zip(*parts, strict=True)) for parts in rows]
    assert join(results, dist) == [(x, x, k, x) for k, x in enumerate(seq)]


def test_map_iterates_like_the_builtin():
    frame = pd.DataFrame({"a": [1], "b": [2]})
    assert same_length([{"k": 1, "l": 2}, frame, frame.index.append(frame.index)]) == [
        ["k", "l"],
        ["a", "b"],
        [0, 0],
    ]
    assert same_length(iter([])) == []


def test_map_misuse():
    with pytest.raises(ValueError, match="one length, got 1, 2"):
        same_length([[1], [1, 2]])
    with pytest.raises(TypeError, match="not iterable"):
        same_length([5])


def test_numpy_and_pandas_are_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.delitem(sys.modules, "pandas")
    assert join(split([1, 2, 3], 2, "r"), "r") == [1, 2, 3]
    assert same_length([[1]]) == [[1]]
    assert "numpy" not in sys.modules
    assert "pandas" not in sys.modules


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("length", [0, 1, 3, 7])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: pd.Categorical(list("abacbac"[:n]), categories=list("cba"), ordered=True),
        lambda n: pd.array([1, None, 3, 4, None, 6, 7][:n], dtype="Int64"),
        lambda n: pd.array(pd.date_range("2020", periods=n, tz="UTC")),
    ],
)
def test_arrays_of_pandas_keep_their_kind(make, length, dist):
    whole = make(length)
    again = join(split(whole, 4, dist), dist)
    assert type(again) is type(whole)
    pd.testing.assert_extension_array_equal(again, whole)


def test_flattened_arrays_of_pandas():
    whole = pd.Categorical(list("abacb"), categories=list("cba"), ordered=True)
    parts = [flatten(part) for part in split(whole, 4)]
    assert parts[1:] == ["a", "c", "b"]
    pd.testing.assert_extension_array_equal(join(parts), whole)


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("n", [2, 5])
def test_record_arrays_keep_their_kind(n, dist):
    whole = np.rec.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=[("a", int), ("b", float)])
    for parts in (split(whole, n, dist), [flatten(part) for part in split(whole, n, dist)]):
        again = join(parts, dist)
        assert type(again) is np.recarray
        assert again.b.tolist() == [2.0, 4.0, 6.0]
    plain = whole.view(np.ndarray)
    assert type(join(split(plain, n, dist), dist)) is np.ndarray


@pytest.mark.parametrize("dist", ["b", "r"])
def test_flattened_masked_arrays_keep_dtype_and_mask(dist):
    whole = np.ma.array([1, 2, 3, 4, 5], mask=[0, 1, 0, 1, 0])
    again = join([flatten(part) for part in split(whole, 4, dist)], dist)
    assert (again.dtype, again.tolist()) == (whole.dtype, [1, None, 3, None, 5])
