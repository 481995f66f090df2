"""The records that cross the wire.

A record is a frozen dataclass of small fields, see `codec` for its bytes. What
could be large (code, objects, tracebacks) travels in ``parts``: bytes that
stand inline up to `INLINE_LIMIT`, or a `BlobRef` whose bytes follow as `Chunk`
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Union

#: Version of the protocol; both sides must have the same.
PROTOCOL = 2
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
#: Tasks of a batch to run: ``(index, attempt, parts)``.
Item = tuple[int, int, Parts]
Items = tuple[Item, ...]
#: What came of them: ``(index, attempt, status, started, completed, events, parts)``.
End = tuple[int, int, str, float, float, int, Parts]
Ends = tuple[End, ...]


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
    """One operation for each of `targets`. The controller forwards it as it came; where they are many,
    without those that do not concern the engine.

    Sent again to a controller that does not know of it, `again` has the uuid
    of the process behind each target when it was first sent (empty: unknown).
    Another process must not run it: the first one may have.
    `detached`: what comes of it is kept for other clients.
    `source`: it has the parts of the result of that command, on engine `giver`;
    that one is sent just before, with `gives`: its result is for engines only.
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
    detached: bool = False
    source: str = ""
    giver: int = -1
    gives: bool = False


@dataclass(frozen=True, slots=True)
class Cancel(Record):
    """Take the not yet started of `ids` (all of them where empty) out of the queues of `targets`."""

    tag: ClassVar[int] = 11
    ids: Ids
    targets: Targets
    reason: str  # 'QueueCleared' or 'TaskAborted'


@dataclass(frozen=True, slots=True)
class Interrupt(Record):
    """KeyboardInterrupt in the running command, only if it is `id` where that is not empty.

    `stuck`: what its nanny does about an engine that does not react: ``leave``
    it, ``restart`` it, or (empty) as the nanny was told.
    """

    tag: ClassVar[int] = 12
    targets: Targets
    id: str
    stuck: str = ""


@dataclass(frozen=True, slots=True)
class Input(Record):
    """The answer to question `serial` (an event of kind ``input``) of command `id`.

    `how`: ``line`` (`text` is what the user typed), ``end`` (of the input),
    ``refused`` (`text` says why nobody can be asked).
    """

    tag: ClassVar[int] = 16
    targets: Targets
    id: str
    serial: int
    how: str
    text: str


@dataclass(frozen=True, slots=True)
class Fetch(Record):
    """Send again what is known of command `id`, but for its `first` events; or of it when it is there.

    From an engine, which may only ask for the `source` of a command that it has: its result.
    """

    tag: ClassVar[int] = 13
    id: str
    targets: Targets
    first: int = 0


@dataclass(frozen=True, slots=True)
class Forget(Record):
    """The client has the results of `ids`: they need not be kept for it any longer."""

    tag: ClassVar[int] = 14
    ids: Ids
    targets: Targets


@dataclass(frozen=True, slots=True)
class Departed(Record):
    """Client `client` is gone for good: drop what is kept for it. Controller to engines.

    But not what is detached: batches `but`, and the commands that say so themselves.
    """

    tag: ClassVar[int] = 15
    client: str
    but: Ids = ()


@dataclass(frozen=True, slots=True)
class Detach(Record):
    """Work of the sender that shall outlive it, for the controller to keep on disk.

    A parcel of these, with numbers from 0, is whole when the question
    ``detach`` with the name of the parcel as its id follows; that is answered
    when all of it is safe. `records`: encoded `Submit`, `Batch` and `Work`.
    `blobs`: the large parts of these; each is called ``parcel/`` and its own name.
    """

    tag: ClassVar[int] = 18
    parcel: str
    number: int
    records: Parts
    blobs: Parts


# -- tasks: client -> controller -> engine --------------------------------------


@dataclass(frozen=True, slots=True)
class Batch(Record):
    """What tasks have in common; each is a `Work` item. Engines get it before the first of them.

    A task is known as ``batch#index``. `rules` is for the controller, `args`
    for the engine. `detached` as in `Submit`.
    """

    tag: ClassVar[int] = 60
    id: str
    op: str  # 'call' (parts: a function) or 'code' (parts: source text)
    label: str
    timeout: float  # seconds of running, 0: none
    rules: bytes  # msgpack map: retries, priority, after, ...
    args: bytes  # msgpack map
    parts: Parts
    detached: bool = False


@dataclass(frozen=True, slots=True)
class Work(Record):
    """Tasks to run. An engine runs each attempt once; clients tell the last one they know of, or 0.

    `again`: engines may have run them, for a controller that is gone.
    """

    tag: ClassVar[int] = 61
    batch: str
    items: Items
    again: bool = False


@dataclass(frozen=True, slots=True)
class Withdraw(Record):
    """Do not start tasks of a batch (all where `items` is empty).

    `how`: ``abort``; ``interrupt`` (those that run as well); ``recall``
    (controller to engine: another one shall run them).
    """

    tag: ClassVar[int] = 62
    batch: str
    items: Targets
    how: str


@dataclass(frozen=True, slots=True)
class Seek(Record):
    """Tell what is known of tasks: their outcomes, or that they are held, or unknown."""

    tag: ClassVar[int] = 63
    batch: str
    items: Targets


@dataclass(frozen=True, slots=True)
class Taken(Record):
    """The client has these outcomes. `last`: it wants nothing more of this batch."""

    tag: ClassVar[int] = 64
    batch: str
    items: Targets
    last: bool


# -- engine -> controller -> client ------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcomes(Record):
    """What came of tasks, in the order they ended.

    Status ``ok`` and ``error`` as in `Result`. Between engine and controller
    also ``back`` (recalled, and not started), ``rejected`` (not on this
    engine; one part: an encoded `RemoteFailure`), and as answers to `Seek`
    ``held`` (not ended yet) and ``unknown``; from the controller ``later`` (as
    in `Result`; ask with `Work` or `Seek`).
    """

    tag: ClassVar[int] = 65
    batch: str
    engine: int
    items: Ends


@dataclass(frozen=True, slots=True)
class Result(Record):
    """The end of one command on one engine.

    `status` is ``ok`` (parts: what the operation returns), ``error`` (one
    part: an encoded `RemoteFailure`), ``unknown`` (answer to `Fetch`), or from
    the controller ``later`` (the client was behind, and what the engine said
    of this is left there: ask with `Fetch`). One that the controller makes up
    has no events.
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
    """Something a running command, or an attempt at a task, gave out: number `index` of its events.

    `kind`: stdout, stderr, display (parts: a msgpack map of MIME bundle and
    metadata), progress (text: JSON), publish (parts: an object), input (text:
    JSON with ``serial``, ``prompt`` and ``password``), started (it cannot be
    cancelled any more).
    """

    tag: ClassVar[int] = 21
    id: str
    engine: int
    index: int
    kind: str
    text: str
    parts: Parts
    attempt: int = 0


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


@dataclass(frozen=True, slots=True)
class Share(Record):
    """Where the engines of one host find a blob that was sent to one of them, in their shared memory.

    Controller to that engine, with no `place`: others of your host wait for it
    as well. From it: the whole blob lies at `place`; empty: it cannot be shared.
    Controller to the others: take it from `place`. From them: empty, they cannot.
    """

    tag: ClassVar[int] = 32
    blob: str
    place: str


# -- controller <-> client ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engines(Record):
    """What has changed in the engine table. `table`: msgpack map with changed rows, the ids that are gone,
    and new failures; for a client that was behind the whole one, as in a `Welcome`: engines and failures."""

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
    running: str = ""  # id of the command or task that ran on it, where that is known


@dataclass(frozen=True, slots=True)
class Usage(Record):
    """What the engines use, and whether they react to interrupts.

    `table`: msgpack map uuid -> [CPU in percent, resident memory in bytes,
    since when it does not react in seconds since the epoch, or 0].
    """

    tag: ClassVar[int] = 51
    table: bytes


@dataclass(frozen=True, slots=True)
class Leaving(Record):
    """The engines of this nanny end within so many seconds: what they have not begun goes elsewhere."""

    tag: ClassVar[int] = 53
    seconds: float


@dataclass(frozen=True, slots=True)
class Order(Record):
    """To a nanny: start (`number` engines), stop, restart, signal (`number`) engine `uuid`, quit.

    Also ``interrupt``: record `number` of its session tells engine `uuid` to
    interrupt one of `ids`, or (empty) whatever runs; with `stuck` as in
    `Interrupt`. The nanny sees to it that it does.
    """

    tag: ClassVar[int] = 52
    what: str
    uuid: str
    number: int
    ids: Ids = ()
    stuck: str = ""
