"""Large arrays in memory that is used again, and never while anybody can see it."""

from __future__ import annotations

import gc
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.client import joined
from ipython1.kernel.client.partition import join, split
from ipython1.kernel.wire import copying

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux recycles memory so")

MB = 1 << 20
DTYPES = ["f8", "i4", "u1", "?", "c16", "M8[s]", "m8[ns]", ">f8", "S3", "O", [("a", "i4"), ("b", "f8")]]


@pytest.fixture
def recycler(monkeypatch):
    fresh = joined.Recycler()
    monkeypatch.setattr(joined, "recycler", fresh)
    return fresh


def address(array) -> int:
    return array.__array_interface__["data"][0]


def filled(size: int, seed: int) -> np.ndarray:
    return np.arange(seed, seed + size // 8, dtype="i8")


@given(
    st.integers(1, 50), st.integers(0, 3), st.integers(1, 7), st.sampled_from("br"), st.sampled_from(DTYPES)
)
def test_whatever_is_split_is_joined(length, width, n, dist, dtype):
    whole = np.arange(length * (width or 1)).astype("i8")
    whole = whole.astype(dtype) if isinstance(dtype, str) else np.array([(i, i) for i in whole], dtype)
    whole = whole.reshape(length, width) if width else whole
    parts = [part.copy() for part in split(whole, n, dist)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "LARGE", 1)
        patch.setattr(copying, "SHARE", 1)
        patch.setattr(copying, "PIECE", 16)
        back = join(parts, dist)
    assert back.dtype == whole.astype(whole.dtype.newbyteorder("=")).dtype
    np.testing.assert_array_equal(back, whole)
    assert back.flags.writeable
    assert not any(np.may_share_memory(back, part) for part in parts)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.sampled_from("br"))
def test_parts_of_any_length_are_joined_as_small_ones_are(lengths, dist):
    parts = [np.full(length, i) for i, length in enumerate(lengths)]
    wanted = join(parts, dist)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "LARGE", 1)
        np.testing.assert_array_equal(join(parts, dist), wanted)


def test_large_arrays_alike_are_joined_here(recycler):
    parts = [filled(3 * MB, i) for i in range(4)]
    whole = joined.join_plain(parts, [slice(i * len(parts[0]), (i + 1) * len(parts[0])) for i in range(4)])
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    "parts",
    [
        [filled(8 * MB, 0), filled(8 * MB, 0).astype("f8")],
        [filled(8 * MB, 0), filled(8 * MB, 0).reshape(-1, 2)],
        [np.asfortranarray(filled(8 * MB, 0).reshape(-1, 2))] * 2,
        [np.ma.masked_array(filled(8 * MB, 0))] * 2,
        [filled(8 * MB, 0).astype(object)] * 2,
        [filled(8 * MB, 0)[::-1]] * 2,
        [filled(MB, 0)] * 3,
    ],
    ids=["dtypes", "shapes", "order", "masked", "objects", "strides", "small"],
)
def test_what_is_not_alike_or_small_is_left_to_numpy(recycler, parts):
    assert joined.join_plain(parts, [slice(0, 0)] * len(parts)) is None


def test_memory_that_is_gone_serves_the_next(recycler):
    first = recycler.empty(8 * MB)
    where = address(first)
    assert recycler.idle == 0
    del first
    gc.collect()
    assert recycler.idle == 8 * MB
    assert address(recycler.empty(8 * MB - 5)) == where


@pytest.mark.parametrize(
    "view",
    [lambda a: a[5:9], lambda a: a.view("i8").reshape(2, -1).T, memoryview, lambda a: memoryview(a)[3:4]],
    ids=["slice", "view", "memoryview", "slice of a memoryview"],
)
def test_memory_with_a_view_is_never_used_again(recycler, view):
    first = recycler.empty(8 * MB)
    first[:] = 7
    seen = view(first)
    kept = bytes(seen)
    del first
    gc.collect()
    assert recycler.idle == 0
    recycler.empty(8 * MB)[:] = 1
    assert bytes(seen) == kept
    del seen
    gc.collect()
    assert recycler.idle == 8 * MB


def test_one_piece_is_kept(recycler):
    pieces = [recycler.empty(size * MB) for size in (5, 6, 7)]
    pieces.clear()
    gc.collect()
    assert recycler.idle <= 7 * MB
    assert recycler.idle in (5 * MB, 6 * MB, 7 * MB)


def test_what_is_kept_does_not_lie_idle_beside_something_smaller(recycler):
    recycler.empty(8 * MB)
    gc.collect()
    small = recycler.empty(3 * MB)
    assert len(small) == 3 * MB
    assert recycler.idle == 0


def test_too_much_is_not_kept(recycler, monkeypatch):
    monkeypatch.setattr(joined, "memory", lambda: 8 * joined.KEPT * MB)
    large = recycler.empty(9 * MB)
    large[:] = 1
    assert int(large.sum()) == 9 * MB
    del large
    gc.collect()
    assert recycler.idle == 0


def test_a_forked_child_sees_what_its_parent_had(recycler):
    first = recycler.empty(8 * MB)
    first[:] = 7
    back, there = os.pipe()
    go, ready = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os.write(there, b"y" if (first == 7).all() else b"n")
        os._exit(0)
    del first
    gc.collect()
    second = recycler.empty(8 * MB)
    second[:] = 1
    os.write(ready, b"!")
    assert os.read(back, 1) == b"y"
    os.waitpid(child, 0)
    for fd in (back, there, go, ready):
        os.close(fd)


def test_no_memory_is_numpys_to_tell(recycler, monkeypatch):
    def no_memory(size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(joined, "_new", no_memory)
    assert joined.join_plain([filled(8 * MB, 0)], [slice(None)]) is None
