"""The records that cross the wire, and their encoding.

A record is a frozen dataclass of small fields, encoded with msgpack as an
array ``[tag, field, ...]``. What could be large (code, objects, tracebacks)
travels in ``parts``: bytes that stand inline up to `INLINE_LIMIT`, or a
`BlobRef` whose bytes follow as `Chunk` records. Decoding checks every field,
because the bytes may come from anyone.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, Union

import msgpack

from ipython1.kernel.error import RemoteFailure, WireError

#: Version of the protocol; both sides must have the same.
PROTOCOL = 1
#: Parts of at least this many bytes leave the record and become blobs.
INLINE_LIMIT = 64 * 1024
#: Bytes in one `Chunk`.
CHUNK_SIZE = 1024 * 1024
#: Largest encoded record the decoder takes.
RECORD_LIMIT = 4 * 1024 * 1024
#: Engine ids are below this, and no record has more targets.
ENGINES_LIMIT = 65536


class BlobRef(NamedTuple):
    """A part whose bytes travel by themselves, or lie at `place` in the sender's shared memory."""

    blob: str
    size: int
    place: str = ""


Part = Union[bytes, BlobRef]
Parts = tuple[Part, ...]
Ids = tuple[str, ...]
Targets = tuple[int, ...]


class Record:
    """Base of all records; `tag` is the first item on the wire."""

    __slots__ = ()
    tag: ClassVar[int]


# -- the handshake, outside any session --------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Record):
    """Resumes `session`, where the controller knows it, else opens `fresh`.

    `received`: number of the last record of `session` seen from the peer. Two
    names, because the answer may be lost: who then asks again for the session
    before must not be taken for one who knows the new one.
    """

    tag: ClassVar[int] = 0
    protocol: int
    version: str
    kind: str  # 'multiengine', 'task', 'view', 'engine' or 'nanny'
    session: str  # empty: none yet
    fresh: str
    received: int
    detail: bytes  # msgpack map, by kind


@dataclass(frozen=True, slots=True)
class Welcome(Record):
    """`resumed` is False where the controller does not know the session (any more)."""

    tag: ClassVar[int] = 1
    version: str
    resumed: bool
    received: int
    detail: bytes


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """No session: `reason` is the name of an error class, `facts` its arguments."""

    tag: ClassVar[int] = 2
    reason: str
    facts: bytes  # msgpack map


# -- client -> controller -> engine ------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit(Record):
    """One operation for each of `targets`. The controller forwards it as it came.

    Sent again to a controller that does not know of it, `again` has the uuid
    of the process behind each target when it was first sent (empty: unknown).
    Another process must not run it: the first one may have.
    """

    tag: ClassVar[int] = 10
    id: str
    targets: Targets
    op: str
    label: str  # what `status` shows, short
    stop: int  # stop_on_error epoch of the client, -1: off
    timeout: float  # seconds of running, 0: none
    args: bytes  # msgpack map, small, by operation
    parts: Parts
    again: Ids = ()


@dataclass(frozen=True, slots=True)
class Cancel(Record):
    """Take the not yet started of `ids` (all of them where empty) out of the queues of `targets`."""

    tag: ClassVar[int] = 11
    ids: Ids
    targets: Targets
    reason: str  # 'QueueCleared' or 'TaskAborted'


@dataclass(frozen=True, slots=True)
class Interrupt(Record):
    """KeyboardInterrupt in the running command, only if it is `id` where that is not empty."""

    tag: ClassVar[int] = 12
    targets: Targets
    id: str


@dataclass(frozen=True, slots=True)
class Fetch(Record):
    """Send again what is known of command `id`, or of it as soon as it is there."""

    tag: ClassVar[int] = 13
    id: str
    targets: Targets


@dataclass(frozen=True, slots=True)
class Forget(Record):
    """The client has the results of `ids`: they need not be kept for it any longer."""

    tag: ClassVar[int] = 14
    ids: Ids
    targets: Targets


@dataclass(frozen=True, slots=True)
class Departed(Record):
    """Client `client` is gone for good: drop what is kept for it. Controller to engines."""

    tag: ClassVar[int] = 15
    client: str


# -- engine -> controller -> client ------------------------------------------


@dataclass(frozen=True, slots=True)
class Result(Record):
    """The end of one command on one engine.

    `status` is ``ok`` (parts: what the operation returns), ``error`` (one
    part: an encoded `RemoteFailure`) or ``unknown`` (answer to `Fetch`). One
    that the controller makes up has no events.
    """

    tag: ClassVar[int] = 20
    id: str
    engine: int
    op: str
    status: str
    started: float  # seconds since the epoch, engine's clock; 0: never ran
    completed: float
    events: int  # how many `Event`s came before
    parts: Parts


@dataclass(frozen=True, slots=True)
class Event(Record):
    """Something a running command gave out: number `index` of its events.

    `kind`: stdout, stderr, display (parts: a msgpack map of MIME bundle and
    metadata), progress (text: JSON), publish (parts: an object), started (it
    cannot be cancelled any more).
    """

    tag: ClassVar[int] = 21
    id: str
    engine: int
    index: int
    kind: str
    text: str
    parts: Parts


# -- bulk bytes, on every hop -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk(Record):
    """Bytes of a blob from `offset` on; -1: its sender died, no more will come."""

    tag: ClassVar[int] = 30
    blob: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Grant(Record):
    """The receiver of a blob has taken all before `offset`; -1: it wants no more."""

    tag: ClassVar[int] = 31
    blob: str
    offset: int


# -- controller <-> client ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engines(Record):
    """The engine table, after every change. `table`: msgpack map with engines and failures."""

    tag: ClassVar[int] = 40
    table: bytes


@dataclass(frozen=True, slots=True)
class Ask(Record):
    """A question to the controller itself: status, scale, signal, ..."""

    tag: ClassVar[int] = 41
    id: str
    what: str
    body: bytes  # msgpack map


@dataclass(frozen=True, slots=True)
class Answer(Record):
    """`body`: msgpack value where `ok`, else an encoded `RemoteFailure`."""

    tag: ClassVar[int] = 42
    id: str
    ok: bool
    body: bytes


# -- nanny <-> controller --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exited(Record):
    """An engine process ended, and why, in words."""

    tag: ClassVar[int] = 50
    uuid: str
    cause: str  # 'killed by signal 9 (SIGKILL)'
    output: str  # last lines of its stderr
    replaced: bool  # a new process takes over its id


@dataclass(frozen=True, slots=True)
class Usage(Record):
    """CPU (percent) and resident memory (bytes) of the engines. `table`: msgpack map uuid -> [cpu, rss]."""

    tag: ClassVar[int] = 51
    table: bytes


@dataclass(frozen=True, slots=True)
class Order(Record):
    """To a nanny: start (`number` engines), stop, restart, signal (`number`) engine `uuid`, quit."""

    tag: ClassVar[int] = 52
    what: str
    uuid: str
    number: int


# -- encoding -------------------------------------------------------------------

R = TypeVar("R", bound=Record)

_STR = frozenset({str})
_INT = frozenset({int})
_BYTES = frozenset({bytes})


def _plain(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise WireError(reason=f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return check


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise WireError(reason=f"expected a number, got {type(value).__name__}")
    return float(value)


def _ids(value: Any) -> Ids:
    if type(value) is not tuple or not _STR.issuperset(map(type, value)):
        raise WireError(reason="expected an array of str")
    return value


def _targets(value: Any) -> Targets:
    if type(value) is not tuple or len(value) > ENGINES_LIMIT or not _INT.issuperset(map(type, value)):
        raise WireError(reason=f"expected an array of at most {ENGINES_LIMIT} engine ids")
    return value


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


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "int": _plain(int),
    "str": _plain(str),
    "bool": _plain(bool),
    "bytes": _plain(bytes),
    "float": _number,
    "Parts": _parts,
    "Ids": _ids,
    "Targets": _targets,
}

#: What msgpack makes of the fields.
_TYPES = {"int": int, "str": str, "bool": bool, "bytes": bytes, "float": float}


class _Shape(NamedTuple):
    cls: type[Record]
    names: tuple[str, ...]
    items: Callable[[Any], tuple[Any, ...]]  # of a record: the tag and its fields
    checks: tuple[Callable[[Any], Any], ...]
    types: tuple[type, ...]  # of all items, the tag first
    arrays: tuple[int, ...]  # which of them need more than a look at the type


def _shape(cls: type[Record]) -> _Shape:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    types = tuple(_TYPES.get(str(field.type), tuple) for field in fields)
    return _Shape(
        cls,
        tuple(field.name for field in fields),
        operator.attrgetter("tag", *[field.name for field in fields]),
        tuple(_CHECKS[str(field.type)] for field in fields),
        (int, *types),
        tuple(i for i, kind in enumerate(types) if kind is tuple),
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
    cls, names, _, checks, types, arrays = shape
    if len(items) != len(types):
        raise WireError(reason=f"{cls.__name__} has {len(names)} fields, got {len(items) - 1}")
    fields = list(items[1:])
    if tuple(map(type, items)) == types:  # the usual case, quickly
        for i in arrays:
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
    try:
        return msgpack.unpackb(raw, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise WireError(reason=f"not msgpack ({type(error).__name__})") from None


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
