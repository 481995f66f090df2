"""What is in one parcel of detached work, and what of it has ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Union

from ipython1.kernel.controller.batches import Rules, TaskKey
from ipython1.kernel.controller.facets import RECORDS
from ipython1.kernel.controller.parcels import ANSWER, ENDS, RECORD, Frame, Parcel
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.error import WireError
from ipython1.kernel.wire.blobs import PARTS_LIMIT
from ipython1.kernel.wire.codec import decode, pack, unpack, unpack_map
from ipython1.kernel.wire.records import Batch, BlobRef, Detach, Outcomes, Record, Result, Submit, Work

#: Blobs in a piece, at most. Clients cut pieces by their bytes, which leaves room for one object with all the
#: parts that it may have, and what was before it.
BLOBS_LIMIT = 2 * PARTS_LIMIT
_ID = re.compile(r"[0-9A-Za-z]{1,64}-([0-9]{1,18})")

AnyWork = Union[Submit, Batch, Work]


class Ended(NamedTuple):
    """The end of a command for one target, or of a task; `engine` as in `Batch.ended`."""

    slot: int
    ok: bool
    engine: int


class Holding:
    """A parcel in custody.

    Parameters
    ----------
    folder : Path
        Where parcels are written.
    name : str

    Attributes
    ----------
    missing : dict
        What has not ended: targets by id of the command, tasks by id of the batch.
    batches : set
        Ids of the batches among these.
    named : set
        Ids of the batches that tasks depend on.
    ids : set
        Of all commands and batches whose ends count here.
    entries : list
        Number of the command or batch, and where its record is.
    answers : dict
        Failures that no engine knows, by id and slot, as records.
    peer : Peer, optional
        Who detaches it.
    pieces : int
        How many have come.
    arriving : dict
        How much has come of each blob that is not whole.
    asked, keeping, safe : bool
        Its client has said that this was all; it is being made safe; it is.
    failed : str
        Why it cannot be kept.
    sent : bool
        This controller was sent the work, by its client or in its name.
    old : bool
        It is of before this controller.
    counted : int
        Bytes that count for the limit.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.parcel = Parcel(folder, name)
        self.missing: dict[str, set[int]] = {}
        self.batches: set[str] = set()
        self.named: set[str] = set()
        self.ids: set[str] = set()
        self.entries: list[tuple[int, Frame]] = []
        self.answers: dict[tuple[str, int], bytes] = {}
        self.peer: Peer | None = None
        self.pieces = 0
        self.arriving: dict[str, int] = {}
        self.asked = self.keeping = self.safe = self.sent = self.old = False
        self.failed = ""
        self.counted = 0
        self._ends: dict[TaskKey, Ended] = {}
        self._notes: dict[str, list[Ended]] = {}
        self._new_answers: list[bytes] = []

    # -- what is in it ------------------------------------------------------------------

    def add(self, kind: str, piece: Detach) -> list[BlobRef]:
        """Write down a piece that a peer of this kind has sent. Returns the blobs that follow.

        Raises
        ------
        WireError
            It is not the sender's own work.
        OSError
            It cannot be written.
        """
        if len(piece.blobs) > BLOBS_LIMIT:
            raise WireError(reason=f"{len(piece.blobs)} blobs in one piece of a parcel")
        raws = [part for part in piece.records if isinstance(part, bytes)]
        blobs = [part for part in piece.blobs if isinstance(part, BlobRef) and not part.place]
        prefix = f"{self.parcel.name}/"
        if (
            len(raws) < len(piece.records)
            or len(blobs) < len(piece.blobs)
            or not all(ref.blob.startswith(prefix) for ref in blobs)
        ):
            raise WireError(reason="a parcel holds records, and blobs with its name")
        works = [decode(raw) for raw in raws]
        for work in works:
            if not isinstance(work, (Submit, Batch, Work)) or type(work) not in RECORDS[kind]:
                raise WireError(reason=f"a {kind} cannot detach {type(work).__name__}")
            if _id_of(work).partition("-")[0] != self.parcel.client:
                raise WireError(reason=f"{_id_of(work)!r} belongs to another client")
        numbers = [self._look_at(work) for work in works if isinstance(work, (Submit, Batch, Work))]
        self.entries += zip(numbers, self.parcel.append(RECORD, *raws), strict=True)
        self.parcel.reserve([(ref.blob[len(prefix) :], ref.size) for ref in blobs])
        self.arriving.update({ref.blob: 0 for ref in blobs if ref.size})
        return blobs

    def _look_at(self, work: AnyWork) -> int:
        """Note what a record is about; its number in the order of the client."""
        id = _id_of(work)
        match = _ID.fullmatch(id)
        if match is None:
            raise WireError(reason=f"{id[:100]!r} is no id")
        if isinstance(work, Submit):
            self.missing.setdefault(id, set()).update(work.targets)
        elif isinstance(work, Batch):
            rules = Rules.unpack(work.rules)
            self.batches.add(id)
            self.named.update(batch for batch, _ in (*rules.after, *rules.follow))
        else:
            self.missing.setdefault(id, set()).update(index for index, _, _ in work.items)
        self.ids |= {id, *self.named}
        return int(match[1])

    def filled(self, blob: str, offset: int, data: bytes) -> int:
        """Bytes of a blob have come. Returns how much of it is here."""
        have = self.arriving.get(blob, -1)
        if offset != have:  # it comes for the second time
            return have
        name = blob[len(self.parcel.name) + 1 :]
        self.parcel.fill(name, offset, data)
        self.arriving[blob] = have = offset + len(data)
        if have == self.parcel.blobs[name]:
            del self.arriving[blob]
        return have

    def load(self) -> None:
        """Read a parcel of before this controller."""
        frames = self.parcel.open()
        held = [frame for frame in frames if frame.kind in (RECORD, ENDS, ANSWER)]
        for frame, raw in zip(held, self.parcel.read(held), strict=True):
            if frame.kind == RECORD:
                work = decode(raw)
                assert isinstance(work, (Submit, Batch, Work))
                self.entries.append((self._look_at(work), frame))
            elif frame.kind == ENDS:
                id, ends = unpack(raw)
                self._note(id, [Ended(*end) for end in ends])
            else:
                self.answers[_key_of(decode(raw))] = raw
        self.safe = self.old = True

    # -- what becomes of it --------------------------------------------------------------------

    def ended(
        self, id: str, ends: Iterable[Ended], answers: Iterable[bytes] = ()
    ) -> dict[tuple[str, int], bytes]:
        """Units of work have ended. Returns the failures among `answers` that count here."""
        fresh = self._note(id, ends)
        if not fresh:
            return {}
        self._notes.setdefault(id, []).extend(fresh)
        slots = {end.slot for end in fresh}
        new = {key: raw for raw in answers if (key := _key_of(decode(raw)))[1] in slots}
        self.answers.update(new)
        self._new_answers += new.values()
        return new

    def _note(self, id: str, ends: Iterable[Ended]) -> list[Ended]:
        """Returns what is new."""
        missing = self.missing.get(id, set())
        tells = id in self.named or not self.safe
        fresh = []
        for end in ends:
            if end.slot in missing or (tells and (id, end.slot) not in self._ends):
                fresh.append(end)
                missing.discard(end.slot)
                if tells:
                    self._ends[id, end.slot] = end
        if not missing:
            self.missing.pop(id, None)
        return fresh

    def write_notes(self) -> None:
        """Write down what has ended since the last time."""
        notes, self._notes = self._notes, {}
        self.parcel.append(ENDS, *(pack([id, ends]) for id, ends in notes.items()))
        answers, self._new_answers = self._new_answers, []
        self.parcel.append(ANSWER, *answers)

    def left(self, raw: bytes) -> AnyWork | None:
        """What has not ended of the work in a record, to be sent in the name of the client."""
        work = decode(raw)
        if isinstance(work, Submit):
            missing = self.missing.get(work.id, set())
            places = [i for i, target in enumerate(work.targets) if target in missing]
            targets = tuple(work.targets[i] for i in places)
            again = tuple(work.again[i] for i in places) if work.again else ()
            return replace(work, targets=targets, again=again, detached=True) if targets else None
        if isinstance(work, Work):
            missing = self.missing.get(work.batch, set())
            items = tuple(item for item in work.items if item[0] in missing)
            return replace(work, items=items, again=True) if items else None
        assert isinstance(work, Batch)
        if work.id not in self.missing:
            return None
        return replace(work, detached=True, rules=self._with_ends(work.rules))

    def _with_ends(self, raw: bytes) -> bytes:
        """The rules of a batch, with what is known of the tasks that they name."""
        rules = Rules.unpack(raw)
        keys = [key for key in (*rules.after, *rules.follow) if key in self._ends]
        if not keys:
            return raw
        known = [(*key, self._ends[key].ok, self._ends[key].engine) for key in keys]
        return pack({**unpack_map(raw), "known": [*rules.known, *known]})


def _id_of(work: AnyWork) -> str:
    return work.batch if isinstance(work, Work) else work.id


def _key_of(answer: Record) -> tuple[str, int]:
    """What a failure is the end of."""
    if isinstance(answer, Result):
        return answer.id, answer.engine
    assert isinstance(answer, Outcomes)
    return answer.batch, answer.items[0][0]
