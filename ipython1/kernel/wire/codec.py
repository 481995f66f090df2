"""Records as bytes: msgpack arrays ``[tag, field, ...]``.

Decoding checks every field, because the bytes may come from anyone.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgpack

from ipython1.kernel.error import RemoteFailure, WireError
from ipython1.kernel.wire.records import (
    ENGINES_LIMIT,
    RECORD_LIMIT,
    BlobRef,
    Ends,
    Ids,
    Items,
    Parts,
    Record,
    Targets,
)

#: Maps and arrays in one value, at most: each takes up to eighty times its bytes. Outcomes of as many
#: tasks as a record may name, with a large part each, have three times that number.
CONTAINERS_LIMIT = 4 * ENGINES_LIMIT
#: Times are less than so many seconds from the epoch, so that sums and differences of them are numbers, too.
TIME_LIMIT = 1e12
#: So few bytes hold no more than do no harm, and are not counted.
SMALL = 64 * 1024

R = TypeVar("R", bound=Record)

_STR = frozenset({str})
_INT = frozenset({int})
_BYTES = frozenset({bytes})
_ITEM = (int, int, tuple)
_END = (int, int, str, float, float, int, tuple)


def _plain(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise WireError(reason=f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return check


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise WireError(reason=f"expected a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):  # it would spoil every sum that it gets into
        raise WireError(reason=f"{value} is no time")
    return number


def _time(value: Any) -> float:
    time = _number(value)
    if not -TIME_LIMIT < time < TIME_LIMIT:
        raise WireError(reason=f"{value} is no time")
    return time


def _ids(value: Any) -> Ids:
    if type(value) is not tuple or not _STR.issuperset(map(type, value)):
        raise WireError(reason="expected an array of str")
    return value


def _targets(value: Any) -> Targets:
    if type(value) is not tuple or len(value) > ENGINES_LIMIT or not _INT.issuperset(map(type, value)):
        raise WireError(reason=f"expected an array of at most {ENGINES_LIMIT} engine ids")
    return tuple(dict.fromkeys(value)) if len(value) > 1 else value  # each counts once


def _parts(value: Any) -> Parts:
    if type(value) is not tuple:
        raise WireError(reason="parts must be an array")
    if _BYTES.issuperset(map(type, value)):
        return value
    return tuple(item if type(item) is bytes else _blob_ref(item) for item in value)


def _blob_ref(item: Any) -> BlobRef:
    if type(item) is tuple and len(item) == 3:
        blob, size, place = item
        if type(blob) is str and type(size) is int and size >= 0 and type(place) is str:
            return BlobRef(blob, size, place)
    raise WireError(reason="a part must be bytes or [blob, size, place]")


def _items(value: Any) -> Items:
    if type(value) is not tuple:
        raise WireError(reason="expected an array of tasks")
    for item in value:
        if type(item) is not tuple or tuple(map(type, item)) != _ITEM:
            raise WireError(reason="a task must be [index, attempt, parts]")
        if not all(type(part) is bytes for part in item[2]):
            return tuple((index, attempt, _parts(parts)) for index, attempt, parts in value)
    return value


def _ends(value: Any) -> Ends:
    if type(value) is not tuple:
        raise WireError(reason="expected an array of outcomes")
    for item in value:
        if type(item) is not tuple or tuple(map(type, item)) != _END:
            raise WireError(
                reason="an outcome must be [index, attempt, status, started, completed, events, parts]"
            )
        if not (-TIME_LIMIT < item[3] < TIME_LIMIT and -TIME_LIMIT < item[4] < TIME_LIMIT):
            raise WireError(reason=f"{item[3]} or {item[4]} is no time")
        if not all(type(part) is bytes for part in item[6]):
            return tuple((*rest, _parts(parts)) for *rest, parts in value)
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "int": _plain(int),
    "str": _plain(str),
    "bool": _plain(bool),
    "bytes": _plain(bytes),
    "float": _number,
    "Parts": _parts,
    "Ids": _ids,
    "Targets": _targets,
    "Items": _items,
    "Ends": _ends,
}

#: Fields that say when something was; other numbers are for how long.
_TIMES = frozenset({"started", "completed"})

#: What msgpack makes of the fields. Arrays and times need more than a look at the type.
_TYPES = {"int": int, "str": str, "bool": bool, "bytes": bytes, "float": float}


class _Shape(NamedTuple):
    cls: type[Record]
    names: tuple[str, ...]
    items: Callable[[Any], tuple[Any, ...]]  # of a record: the tag and its fields
    checks: tuple[Callable[[Any], Any], ...]
    types: tuple[type, ...]  # of all items, the tag first
    closer: tuple[int, ...]  # which fields need more than a look at the type


def _shape(cls: type[Record]) -> _Shape:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    types = tuple(_TYPES.get(str(field.type), tuple) for field in fields)
    return _Shape(
        cls,
        tuple(field.name for field in fields),
        operator.attrgetter("tag", *[field.name for field in fields]),
        tuple(_time if field.name in _TIMES else _CHECKS[str(field.type)] for field in fields),
        (int, *types),
        tuple(i for i, kind in enumerate(types) if kind in (tuple, float)),
    )


_BY_CLASS = {cls: _shape(cls) for cls in Record.__subclasses__()}
_BY_TAG = {cls.tag: shape for cls, shape in _BY_CLASS.items()}


def encode(record: Record) -> bytes:
    """One record as bytes."""
    packed: bytes = msgpack.packb(_BY_CLASS[type(record)].items(record))
    return packed


def decode(raw: bytes) -> Record:
    """The record in `raw`.

    Raises
    ------
    WireError
        `raw` is not exactly one well-formed record of this protocol.
    """
    items = unpack(raw)
    if type(items) is not tuple or not items or type(items[0]) is not int:
        raise WireError(reason="not a record")
    shape = _BY_TAG.get(items[0])
    if shape is None:
        raise WireError(reason=f"unknown record tag {items[0]}")
    cls, names, _, checks, types, closer = shape
    if len(items) != len(types):
        raise WireError(reason=f"{cls.__name__} has {len(names)} fields, got {len(items) - 1}")
    fields = list(items[1:])
    if tuple(map(type, items)) == types:  # the usual case, quickly
        for i in closer:
            fields[i] = checks[i](fields[i])
    else:
        fields = [check(item) for check, item in zip(checks, fields, strict=True)]
    return cls(*fields)


def decode_as(cls: type[R], raw: bytes) -> R:
    """The record in `raw`, which must be a `cls`."""
    record = decode(raw)
    if not isinstance(record, cls):
        raise WireError(reason=f"expected {cls.__name__}, got {type(record).__name__}")
    return record


def pack(value: Any) -> bytes:
    """Small plain data (the `bytes` fields called detail, args, body) as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(raw: bytes) -> Any:
    """The plain data in `raw`; arrays come as tuples.

    Raises
    ------
    WireError
        `raw` is not one msgpack value within the limits.
    """
    if len(raw) > RECORD_LIMIT:
        raise WireError(reason=f"{len(raw)} bytes in one record")
    return unpack_bounded(raw)


def unpack_bounded(raw: bytes, containers: int = CONTAINERS_LIMIT) -> Any:
    """The msgpack value in `raw`, of any length, which takes little more memory and time than its bytes.

    Keys of maps are str or bytes: of others, many with the same hash could be chosen.

    Raises
    ------
    WireError
        `raw` is not one msgpack value, or has more than so many maps and arrays.
    """
    try:
        if len(raw) <= SMALL:
            return msgpack.unpackb(raw, use_list=False)
        few = _Few(containers)
        return msgpack.unpackb(raw, use_list=False, object_hook=few, list_hook=few)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise WireError(reason=f"not msgpack ({type(error).__name__})") from None


class _Few:
    """Counts the maps and arrays of a value while it is unpacked."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many maps and arrays")
        return container


def unpack_map(raw: bytes) -> dict[str, Any]:
    """The msgpack map with str keys in `raw`."""
    value = unpack(raw)
    if type(value) is not dict or any(type(key) is not str for key in value):
        raise WireError(reason="expected a map with str keys")
    return value


def encode_failure(failure: RemoteFailure) -> bytes:
    """A failure as bytes; the engine and method are known from where it stands."""
    return pack([failure.ename, failure.evalue, failure.traceback, failure.pickled, dict(failure.facts)])


def decode_failure(raw: bytes, engine: int, method: str) -> RemoteFailure:
    """The inverse of `encode_failure`."""
    items = unpack(raw)
    if type(items) is not tuple or len(items) != 5:
        raise WireError(reason="not a failure")
    ename, evalue, traceback, pickled, facts = items
    texts = all(type(text) is str for text in (ename, evalue, traceback))
    if not texts or type(pickled) is not bytes or type(facts) is not dict:
        raise WireError(reason="not a failure")
    return RemoteFailure(ename, evalue, traceback, pickled, facts, engine, method)
