"""Records survive their encoding; anything else is a WireError."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.error import RemoteFailure, WireError
from ipython1.kernel.wire import codec, records
from ipython1.kernel.wire.codec import decode, decode_as, encode
from ipython1.kernel.wire.records import BlobRef, Record, Submit

INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BLOB_REFS = st.builds(BlobRef, TEXTS, st.integers(0, 2**62))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "int": INTS,
    "str": TEXTS,
    "bool": st.booleans(),
    "bytes": st.binary(max_size=40),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "Parts": st.lists(st.binary(max_size=40) | BLOB_REFS, max_size=4).map(tuple),
    "Ids": st.lists(TEXTS, max_size=4).map(tuple),
    "Targets": st.lists(INTS, max_size=4, unique=True).map(tuple),
}
TIMES = st.floats(-codec.TIME_LIMIT, codec.TIME_LIMIT, exclude_min=True, exclude_max=True)
FIELDS["Items"] = st.lists(st.tuples(INTS, INTS, FIELDS["Parts"]), max_size=3).map(tuple)
FIELDS["Ends"] = st.lists(st.tuples(INTS, INTS, TEXTS, TIMES, TIMES, INTS, FIELDS["Parts"]), max_size=3).map(
    tuple
)
CLASSES = [
    value
    for value in vars(records).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]
PLAIN = st.recursive(
    st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


def of_class(cls: type[Record]) -> st.SearchStrategy[Any]:
    """Records of one class, made from the types of its fields."""
    fields = {field.name: FIELDS[str(field.type)] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return st.builds(cls, **{name: TIMES if name in codec._TIMES else kind for name, kind in fields.items()})


RECORDS = st.one_of([of_class(cls) for cls in CLASSES])

SUBMIT = Submit("c-1", (0, 1), "execute", "a=1", -1, 0.0, b"\x80", (b"a=1", BlobRef("b", 70_000)))


def test_tags_are_unique() -> None:
    tags = [cls.tag for cls in CLASSES]
    assert len(set(tags)) == len(tags)


@given(RECORDS)
def test_roundtrip(record: Record) -> None:
    again = decode(encode(record))
    assert again == record
    assert type(again) is type(record)


@given(RECORDS, st.data())
def test_a_cut_record_is_refused(record: Record, data: st.DataObject) -> None:
    raw = encode(record)
    with pytest.raises(WireError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(RECORDS, st.binary(min_size=1, max_size=10))
def test_a_record_with_more_behind_it_is_refused(record: Record, more: bytes) -> None:
    with pytest.raises(WireError):
        decode(encode(record) + more)


@given(RECORDS, st.data())
def test_a_changed_byte_is_refused_or_gives_a_record(record: Record, data: st.DataObject) -> None:
    raw = bytearray(encode(record))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = decode(bytes(raw))
    except WireError:
        return
    assert type(again) in CLASSES


@given(st.binary(max_size=200) | PLAIN.map(codec.pack))
def test_garbage_is_a_wire_error(raw: bytes) -> None:
    try:
        again = decode(raw)
    except WireError:
        return
    assert decode(encode(again)) == again


@given(RECORDS, st.data())
def test_every_field_is_checked(record: Record, data: st.DataObject) -> None:
    items = list(msgpack.unpackb(encode(record), use_list=False))
    place = data.draw(st.integers(1, len(items) - 1))
    items[place] = None  # no field takes it
    with pytest.raises(WireError):
        decode(msgpack.packb(items))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", b"c-1"),
        ("targets", "0"),
        ("targets", ("0",)),
        ("targets", (True,)),
        ("stop", True),
        ("stop", 1.0),
        ("timeout", "1"),
        ("timeout", True),
        ("args", "text"),
        ("parts", b"x"),
        ("parts", ("text",)),
        ("parts", (("blob",),)),
        ("parts", (("blob", -1),)),
        ("parts", ((b"blob", 1),)),
        ("parts", (("blob", True),)),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any) -> None:
    items = list(msgpack.unpackb(encode(SUBMIT), use_list=False))
    items[1 + [f.name for f in dataclasses.fields(Submit)].index(field)] = value
    with pytest.raises(WireError, match="Malformed bytes from the peer"):
        decode(msgpack.packb(items))


def test_wrong_number_of_fields() -> None:
    with pytest.raises(WireError, match="Refusal has 2 fields, got 3"):
        decode(msgpack.packb([2, "NotAllowed", b"", 1]))


@pytest.mark.parametrize(
    "value", [[], 14, {}, ["14"], [True, []], [999], [None], "Submit", b"", msgpack.ExtType(5, b"")]
)
def test_not_a_record(value: Any) -> None:
    with pytest.raises(WireError):
        decode(msgpack.packb(value))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x91" * 100_000,  # a deep list
        b"\xdd\xff\xff\xff\xff",  # an array that claims 2**32 - 1 items
        b"\xc6\xff\xff\xff\xff",  # bytes that claim 4 GiB
        b"\x81\x80\xc0",  # a map as a key
        b"\xa1\xff",  # not UTF-8
        b"\xc1",  # never used by msgpack
        b"\xd6\xff\xff\xff\xff\xff",  # a time stamp
    ],
)
def test_hostile_msgpack(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode(raw)


def test_too_long_a_record_is_not_even_read() -> None:
    with pytest.raises(WireError, match="bytes in one record"):
        decode(b"\xc0" * (records.RECORD_LIMIT + 1))


def test_whole_numbers_are_good_times() -> None:
    items = list(msgpack.unpackb(encode(SUBMIT)))
    items[6] = 3
    again = decode_as(Submit, msgpack.packb(items))
    assert again.timeout == 3.0
    assert type(again.timeout) is float


def test_decode_as_refuses_other_classes() -> None:
    assert decode_as(Submit, encode(SUBMIT)) == SUBMIT
    with pytest.raises(WireError, match="expected Hello, got Submit"):
        decode_as(records.Hello, encode(SUBMIT))


@given(PLAIN)
def test_plain_data_roundtrip(value: Any) -> None:
    assert codec.unpack(codec.pack(value)) == value


@given(st.dictionaries(TEXTS, INTS, max_size=4))
def test_unpack_map(value: dict[str, int]) -> None:
    assert codec.unpack_map(codec.pack(value)) == value


@pytest.mark.parametrize("value", [[], 1, {b"1": 2}, None])
def test_unpack_map_refuses_other_values(value: Any) -> None:
    with pytest.raises(WireError, match="a map with str keys"):
        codec.unpack_map(codec.pack(value))


FACTS = st.dictionaries(TEXTS, INTS | TEXTS, max_size=3)


@given(st.builds(RemoteFailure, TEXTS, TEXTS, TEXTS, st.binary(max_size=40), FACTS))
def test_failure_roundtrip(failure: RemoteFailure) -> None:
    again = codec.decode_failure(codec.encode_failure(failure), 3, "execute")
    assert again == dataclasses.replace(failure, engine=3, method="execute")


@given(st.binary(max_size=100) | PLAIN.map(codec.pack))
def test_a_malformed_failure_is_a_wire_error(raw: bytes) -> None:
    try:
        failure = codec.decode_failure(raw, 0, "execute")
    except WireError:
        return
    assert all(type(value) is str for value in (failure.ename, failure.evalue, failure.traceback))
    assert type(failure.pickled) is bytes
    assert type(failure.facts) is dict


@pytest.mark.parametrize("value", [[1, "", "", b"", {}], ["E", "", "", "text", {}], ["E", "", "", b"", []]])
def test_a_failure_of_wrong_types_is_a_wire_error(value: Any) -> None:
    with pytest.raises(WireError):
        codec.decode_failure(codec.pack(value), 0, "execute")
