"""Which parcels of detached work there are, and what of them has ended; on disk as well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.logger import Logger

from ipython1.kernel.controller.holdings import Ended, Holding
from ipython1.kernel.controller.parcels import kept_parcels

#: Bytes of all that is in custody, at most.
CUSTODY_LIMIT = 10 * 1000**3
#: Parcels of which only failures are left, at most.
OVER_KEPT = 1000
#: Seconds in which notes of what has ended are collected.
NOTE_DELAY = 0.1

log = Logger()


class Folder(NamedTuple):
    """Where detached work is written down, and how many bytes of it at most."""

    path: Path
    limit: int = CUSTODY_LIMIT


class Ledger:
    """All parcels.

    Parameters
    ----------
    clock : IReactorTime
    folder : Folder, optional
        What an earlier controller has left there is taken up. None: nothing can be kept.
    """

    def __init__(self, clock: Any, folder: Folder | None) -> None:
        self.folder = folder
        #: What has not ended, by the name of the parcel.
        self.parcels: dict[str, Holding] = {}
        self._clock = clock
        self._of_client: dict[str, dict[str, Holding]] = {}
        self._concerned: dict[str, list[Holding]] = {}  # by the id of a command or batch
        self._size = 0
        #: Of which only failures are left; and these, by what they are the end of.
        self._over: OrderedDict[str, Holding] = OrderedDict()
        self._answers: dict[tuple[str, int], bytes] = {}
        self._noted: dict[str, Holding] = {}
        self._note_call: Any = None
        for name in kept_parcels(folder.path) if folder is not None else ():
            self._load(Holding(folder.path, name))  # type: ignore[union-attr]

    def _load(self, held: Holding) -> None:
        try:
            held.load()
        except (OSError, ValueError) as error:  # a `WireError` is one, too
            log.error("parcel {name} cannot be read: {error}", name=held.parcel.name, error=error)
            return
        self._answers.update(held.answers)
        self.add(held)
        if not held.missing:
            self.close(held)

    def stop(self) -> None:
        """Write down what is known, and end the timer."""
        self.write_notes()
        if self._note_call is not None:
            self._note_call.cancel()
            self._note_call = None

    # -- what there is ---------------------------------------------------------------------

    @property
    def clients(self) -> list[str]:
        """The clients of which something has not ended."""
        return list(self._of_client)

    def of(self, client: str) -> list[Holding]:
        """The parcels of a client, oldest first."""
        return list(self._of_client.get(client, {}).values())

    def concerned(self, id: str) -> Collection[Holding]:
        """The parcels for which the ends of a command or batch count."""
        return self._concerned.get(id, ())

    def slots(self, id: str) -> Collection[int]:
        """The targets of a command, or tasks of a batch, that have not ended."""
        return {slot for held in self.concerned(id) for slot in held.missing.get(id, ())}

    def keeps(self, id: str, slot: int) -> bool:
        """Whether a command for one target, or a task, is here and has not ended."""
        return any(slot in held.missing.get(id, ()) for held in self.concerned(id))

    def open(self, id: str) -> bool:
        """Whether something of a command or batch has not ended."""
        return any(id in held.missing for held in self.concerned(id))

    def batches(self, client: str) -> tuple[str, ...]:
        """The batches of a client of which tasks have not ended."""
        return tuple({id for held in self.of(client) for id in held.batches if id in held.missing})

    def answer(self, id: str, slot: int) -> bytes | None:
        """A failure that no engine knows, as a record."""
        return self._answers.get((id, slot))

    # -- what comes and goes ---------------------------------------------------------------

    def make_room(self, size: int) -> bool:
        """Whether there is room for so many bytes more; failures make room for work."""
        limit = self.folder.limit if self.folder is not None else 0
        while self._over and self._size + size > limit:
            self._drop_oldest()
        return self._size + size <= limit

    def add(self, held: Holding) -> None:
        """A parcel is here, or there is more in it."""
        name, client = held.parcel.name, held.parcel.client
        self.parcels[name] = self._of_client.setdefault(client, {})[name] = held
        self._count(held)
        for id in held.ids:
            concerned = self._concerned.setdefault(id, [])
            if held not in concerned:
                concerned.append(held)

    def ended(self, id: str, ends: Collection[Ended], answers: Iterable[bytes] = ()) -> list[Holding]:
        """Units of work have ended. Returns the parcels for which that counts."""
        concerned = list(self.concerned(id))
        for held in concerned:
            self._answers.update(held.ended(id, ends, answers))
            self.note(held)
        return concerned

    def close(self, held: Holding) -> None:
        """All of a parcel has ended: keep only what no engine knows."""
        self._let_go(held)
        if not held.answers:
            held.parcel.delete()
            return
        try:
            held.parcel.shrink(list(held.answers.values()))
        except OSError as error:  # it goes when others take its place; or the next controller tries again
            log.warn("parcel {name} stays whole: {error}", name=held.parcel.name, error=error)
        self._over[held.parcel.name] = held
        self._count(held)
        while len(self._over) > OVER_KEPT:
            self._drop_oldest()

    def drop(self, held: Holding) -> None:
        """A parcel is not kept."""
        self._let_go(held)
        self._delete(held)

    def _let_go(self, held: Holding) -> None:
        name, client = held.parcel.name, held.parcel.client
        self.parcels.pop(name, None)
        self._noted.pop(name, None)
        mine = self._of_client.get(client, {})
        mine.pop(name, None)
        if not mine:
            self._of_client.pop(client, None)
        self._size -= held.counted
        held.counted = 0
        for id in held.ids:
            concerned = self._concerned.get(id, [])
            if held in concerned:
                concerned.remove(held)
            if not concerned:
                self._concerned.pop(id, None)

    def _drop_oldest(self) -> None:
        _, held = self._over.popitem(last=False)
        self._size -= held.counted
        self._delete(held)

    def _delete(self, held: Holding) -> None:
        for key in held.answers:
            self._answers.pop(key, None)
        held.parcel.delete()

    def _count(self, held: Holding) -> None:
        self._size += held.parcel.size - held.counted
        held.counted = held.parcel.size

    # -- on disk -------------------------------------------------------------------------------

    def note(self, held: Holding) -> None:
        """Write down soon what has ended."""
        self._noted[held.parcel.name] = held
        if self._note_call is None:
            self._note_call = self._clock.callLater(NOTE_DELAY, self._note_now)

    def _note_now(self) -> None:
        self._note_call = None
        self.write_notes()

    def write_notes(self) -> None:
        """Write down what has ended; of a parcel that is being made safe, later."""
        for name, held in list(self._noted.items()):
            if held.keeping:
                continue
            del self._noted[name]
            try:
                held.write_notes()
            except OSError as error:  # engines know what has ended
                log.warn("parcel {name}: {error}", name=name, error=error)
