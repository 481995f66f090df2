"""Large bytes beside the pickle: equal, of the same kind, and shared as before."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.wire import objects
from ipython1.kernel.wire.whole_bytes import ITEMS, outside

LARGE = bytes(range(256)) * 256


def there_and_back(obj, own=0):
    parts = objects.dumps(obj, own=own)
    return objects.loads([bytes(part) for part in parts]), parts


leaves = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.binary(max_size=40))
values = st.recursive(
    st.one_of(leaves, st.binary(max_size=40).map(bytearray)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=4),
    ),
    max_leaves=12,
)


def kinds(obj):
    """The types in an object, all the way down."""
    inner = obj.values() if isinstance(obj, dict) else obj if isinstance(obj, (list, tuple)) else ()
    return type(obj), [kinds(item) for item in inner]


@given(values, st.integers(0, 3))
def test_everything_comes_back_as_it_was(value, own):
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(outside(value, 8, own), protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(data, buffers=[bytearray(buffer.raw()) for buffer in buffers])
    assert back == value
    assert kinds(back) == kinds(value)


@pytest.mark.parametrize(
    "value",
    [LARGE, bytearray(LARGE), [LARGE, 1], (None, bytearray(LARGE)), {"a": LARGE, "b": "text"}],
    ids=["bytes", "bytearray", "list", "tuple", "dict"],
)
def test_large_bytes_leave_the_pickle_uncopied(value):
    back, parts = there_and_back(value)
    assert back == value
    assert len(parts) == 2
    assert len(parts[0]) < 200
    [found] = [
        item
        for item in (value.values() if isinstance(value, dict) else value)
        if isinstance(item, (bytes, bytearray))
    ] or [value]
    assert parts[1].obj is found


def test_small_bytes_and_long_lists_stay_inside():
    assert len(there_and_back([b"small"])[1]) == 1
    assert len(there_and_back([LARGE] * (ITEMS + 1))[1]) == 1


def test_what_occurs_twice_arrives_as_one():
    data = bytearray(LARGE)
    back, parts = there_and_back([data, data])
    assert back[0] is back[1]
    assert len(parts) == 2


def test_a_container_that_holds_itself_keeps_its_shape():
    knot: list[object] = [LARGE]
    knot.append(knot)
    back, _ = there_and_back(knot)
    assert back[1] is back
    assert back[0] == LARGE


def test_levels_of_the_callers_own_are_looked_into():
    ns = {"array": np.arange(9000), "data": LARGE, "inner": {"more": [LARGE + b"x", object]}}
    back, parts = there_and_back(ns, own=1)
    assert len(parts) == 3
    assert back["data"] == LARGE
    assert back["inner"]["more"][0] == LARGE + b"x"
    np.testing.assert_array_equal(back["array"], ns["array"])


def test_a_call_sends_its_large_arguments_outside():
    parts = objects.dumps_call(len, (LARGE,), {"other": bytearray(LARGE)})
    f, args, kwargs = objects.loads_call([bytes(part) for part in parts], {})
    assert (f, args, kwargs) == (len, (LARGE,), {"other": bytearray(LARGE)})
    assert type(kwargs["other"]) is bytearray
    assert len(parts) == 4


def test_the_values_themselves_are_left_alone():
    ns = {"data": LARGE}
    objects.dumps(ns)
    assert ns["data"] is LARGE
