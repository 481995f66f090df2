"""What an engine keeps of its jobs, so that it can answer again.

A job is known from its arrival on. Its events and result are kept until its
client has them, and then for a while longer, within bounds, for whoever asks
by id. What was detached has room of its own, and more of it: nothing but other
detached jobs pushes it out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar, Union

from ipython1.kernel.engine.mainloop import Job
from ipython1.kernel.wire.records import End, Event, Part, Result

Buffer = Union[bytes, bytearray, memoryview]

#: Answers kept after their client has them.
KEPT_COUNT = 1000
KEPT_BYTES = 64 * 1024 * 1024
#: Bytes of one of them, at most: the memory of a large one serves the next.
KEPT_EACH = 4 * 1024 * 1024
#: Those of detached jobs; the newest is kept, however large.
DETACHED_COUNT = 10_000
DETACHED_BYTES = 1024 * 1024 * 1024
#: Ids remembered of those whose client went without their answers, and may come back.
IDS_KEPT = 100_000


class Kept(Job):
    """A job, and what came of it so far.

    Attributes
    ----------
    events : list of Event
    answer : Result or End, optional
        None: it has not ended.
    blobs : dict
        The large parts of both.
    size : int
        Bytes of all.
    abandoned : bool
        Its client is gone for good.
    detached : bool
        What comes of it is for other clients as well.
    """

    __slots__ = ("abandoned", "answer", "blobs", "detached", "events", "size")

    #: Which run of a task this is.
    attempt = 0

    def __init__(self, id: str, timeout: float, parts: Sequence[Buffer] | None = None) -> None:
        super().__init__(id, timeout, parts)
        self.events: list[Event] = []
        self.answer: Result | End | None = None
        self.blobs: dict[str, memoryview] = {}
        self.size = 0
        self.abandoned = False
        self.detached = False

    def close(self, answer: Result | End, parts: Sequence[Part]) -> None:
        """It has ended: what it was made of is not needed any more."""
        self.answer = answer
        self.parts = None
        for part in parts:
            if type(part) is bytes:
                self.size += len(part)


K = TypeVar("K", bound=Kept)


class _Shelf(Generic[K]):
    """Jobs in the order they were put here; the oldest make room for the newest."""

    def __init__(self) -> None:
        self.jobs: OrderedDict[str, K] = OrderedDict()
        self._bytes = 0

    def add(self, job: K, count: int, size: int, least: int) -> list[K]:
        """Keep so many, of so many bytes; but at least `least`. Returns those that are gone now."""
        self.remove(job.id)
        self.jobs[job.id] = job
        self._bytes += job.size
        gone: list[K] = []
        while len(self.jobs) > least and (len(self.jobs) > count or self._bytes > size):
            _, old = self.jobs.popitem(last=False)
            self._bytes -= old.size
            gone.append(old)
        return gone

    def remove(self, id: str) -> None:
        """Take a job out, if it is here."""
        job = self.jobs.pop(id, None)
        if job is not None:
            self._bytes -= job.size


class History(Generic[K]):
    """Jobs whose clients have what came of them, within bounds."""

    def __init__(self) -> None:
        self._jobs: _Shelf[K] = _Shelf()
        self._detached: _Shelf[K] = _Shelf()
        self._ids: OrderedDict[str, None] = OrderedDict()

    def get(self, id: str) -> K | None:
        """What is known of job `id`."""
        return self._jobs.jobs.get(id) or self._detached.jobs.get(id)

    def had(self, id: str) -> bool:
        """Whether job `id` was here, and nothing else is known of it any more."""
        return id in self._ids

    def add(self, job: K) -> list[str]:
        """Returns blobs that nobody will want any more."""
        gone: list[str] = []
        if job.detached:
            pushed_out = self._detached.add(job, DETACHED_COUNT, DETACHED_BYTES, 1)
        else:
            pushed_out = self._jobs.add(job, KEPT_COUNT, KEPT_BYTES, 0)
        for old in pushed_out:
            if old.abandoned or old.detached:  # it may be sent again: it must not run twice
                self._ids[old.id] = None
                if len(self._ids) > IDS_KEPT:
                    self._ids.popitem(last=False)
            gone += old.blobs
        return gone

    def detach(self, job: K) -> list[str]:
        """A job that may be here was detached after its end. Returns as `add`."""
        if job.id not in self._jobs.jobs:
            return []
        self._jobs.remove(job.id)
        return self.add(job)

    def remove(self, id: str) -> None:
        """Forget job `id`."""
        self._jobs.remove(id)
        self._detached.remove(id)


class KeptJobs(Generic[K]):
    """All jobs of one kind known to an engine, by id."""

    def __init__(self) -> None:
        self._wanted: dict[str, K] = {}
        self._history: History[K] = History()

    def get(self, id: str) -> K | None:
        """What is known of job `id`."""
        return self._wanted.get(id) or self._history.get(id)

    def had(self, id: str) -> bool:
        """Whether job `id` was here, and nothing else is known of it any more."""
        return self._history.had(id)

    def add(self, job: K) -> None:
        """A new job is here."""
        self._wanted[job.id] = job

    def detach(self, job: K) -> list[str]:
        """What comes of a job is for other clients as well. Returns blobs as `forget`."""
        job.detached = True
        return self._history.detach(job)

    @property
    def unfinished(self) -> list[K]:
        """The jobs that have not ended, in order of arrival."""
        return [job for job in self._wanted.values() if job.answer is None]

    @property
    def clients(self) -> set[str]:
        """The ids of the clients that something is kept for."""
        return {id.partition("-")[0] for id in self._wanted}

    def forget(self, id: str) -> list[str]:
        """Its client has the result of `id`. Returns blobs that nobody will want any more."""
        job = self._wanted.get(id)
        if job is None or job.answer is None:
            return []
        del self._wanted[id]
        if job.size > KEPT_EACH and not job.abandoned and not job.detached:
            return list(job.blobs)
        return self._history.add(job)

    def abandon(self, client: str) -> list[str]:
        """A client is gone for good. Returns blobs that nobody will want any more."""
        gone: list[str] = []
        for id, job in list(self._wanted.items()):
            if id.partition("-")[0] == client:
                job.abandoned = True
                gone += self.forget(id)
        return gone
