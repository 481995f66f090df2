"""Work that outlives its client: kept on disk until it has ended.

The controller is soft state, and who detaches work may be gone when it is
needed again. So what a client detaches is written down first (`parcels`), and
the client is told when it is safe. From then on a custodian, which is a peer
without a network, stands for the client:

=====================  ======================================================
when                   the custodian
=====================  ======================================================
work is detached       hears, beside the client, of its end; engines are told
                       to keep what comes of it
client gone for good   sends what has not ended again, as the client would
controller restarted   the same, unless the client comes back first; at once
                       where another client asks for it
unit of work ends      notes that; also when its client says it has the result
all of a parcel ended  deletes it; but failures that no engine knows stay, for
                       whoever asks
=====================  ======================================================

Exactly once, as for clients: by what engines keep. Nothing is unpickled here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from ipython1.kernel.controller.batches import GONE, NOWHERE
from ipython1.kernel.controller.custodian import Custodian
from ipython1.kernel.controller.holdings import AnyWork, Ended, Holding
from ipython1.kernel.controller.intake import Intake, InThread
from ipython1.kernel.controller.ledger import Folder, Ledger
from ipython1.kernel.controller.parcels import Frame
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.router import Router
from ipython1.kernel.controller.tasks import TaskBook
from ipython1.kernel.error import WireError
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import (
    Batch,
    BlobRef,
    Chunk,
    Detach,
    Event,
    Fetch,
    Forget,
    Outcomes,
    Record,
    Result,
    Seek,
    Submit,
    Taken,
)

#: Records that are sent again in one turn of the reactor.
STEP = 200

log = Logger()


class Custody:
    """All detached work.

    Parameters
    ----------
    clock : IReactorTime
    router : Router
    tasks : TaskBook
        Who the work is sent to.
    folder : Folder, optional
        None: nothing can be detached.
    is_here : callable
        Whether a client is, by its id; if only away for a while.
    over : callable
        Called with the id of a client of which nothing is in custody any more.
    in_thread : callable
        Calls a slow function, and returns a Deferred of what it returns.
    """

    def __init__(
        self,
        clock: Any,
        router: Router,
        tasks: TaskBook,
        folder: Folder | None,
        is_here: Callable[[str], bool],
        over: Callable[[str], None],
        in_thread: InThread,
    ) -> None:
        self._clock = clock
        self._router = router
        self._tasks = tasks
        self._is_here = is_here
        self._client_over = over
        self._custodians: dict[str, Custodian] = {}
        self._jobs: deque[tuple[Iterator[None], Callable[[], None]]] = deque()
        self._job_call: Any = None
        self.ledger = Ledger(clock, folder)
        tasks.untold = self._untold
        self.intake = Intake(
            self.ledger, router.blobs, in_thread, self._begun, self._taken_in, self._close_if_over
        )

    def stop(self) -> None:
        """End the timers; what is kept stays on disk."""
        self.ledger.stop()
        if self._job_call is not None:
            self._job_call.cancel()
            self._job_call = None
        for custodian in self._custodians.values():
            custodian.stop()

    def handlers(self) -> dict[type[Record], Callable[[Peer, Any, bytes], None]]:
        """Who takes the records that concern detached work, or may."""
        return {
            Submit: self._submit,
            Batch: self._batch,
            Fetch: self._fetch,
            Seek: self._seek,
            Forget: self._forget,
            Taken: self._taken,
            Detach: self.intake.detach,
        }

    # -- from clients: work ------------------------------------------------------------------

    def _begun(self, held: Holding) -> Custodian:
        """More of a parcel is here; who takes what is large of it."""
        custodian = self._custodian(held.parcel.client)
        for id in held.missing:
            self._join(custodian, id)
        return custodian

    def _taken_in(self, held: Holding) -> None:
        """A parcel is safe."""
        client = held.parcel.client
        self._do(self._mark(self._custodian(client), held), lambda: self.intake.answer(held))
        if not self._is_here(client):  # it has gone meanwhile
            self.take_over(client)

    def _mark(self, custodian: Custodian, held: Holding) -> Iterator[None]:
        """The work is with the controller, or with engines: these shall keep what comes of it."""
        for _, frame in held.entries:
            work = self._left(held, frame)
            if isinstance(work, Submit):
                self._router.detach(work)
            elif isinstance(work, Batch):
                self._tasks.detach(custodian.peer, work.id)
            yield

    # -- from clients: what they have, and ask for ------------------------------------------

    def _submit(self, client: Peer, record: Submit, raw: bytes) -> None:
        """A client sends work, perhaps again: of what is detached its custodian hears, too."""
        self._router.submit(client, record, raw)
        if self.ledger.open(record.id):
            self._join(self._custodian(_client_of(record.id)), record.id)

    def _batch(self, client: Peer, record: Batch, raw: bytes) -> None:
        self._tasks.batch(client, record, raw)
        if self.ledger.open(record.id):
            self._join(self._custodian(_client_of(record.id)), record.id)

    def _join(self, custodian: Custodian, id: str) -> None:
        self._router.join(custodian.peer, id)
        self._tasks.detach(custodian.peer, id)

    def _forget(self, client: Peer, record: Forget, raw: bytes) -> None:
        """A client has results."""
        self._router.forget(record, raw)
        for id in record.ids:
            if self.ledger.concerned(id):
                self._ended(id, [Ended(target, True, GONE) for target in record.targets])

    def _taken(self, client: Peer, record: Taken, raw: bytes) -> None:
        """A client has outcomes of tasks; all of a batch, where this is the last."""
        self._tasks.taken(client, record, raw)
        if self.ledger.concerned(record.batch):
            indexes = {*record.items, *(self.ledger.slots(record.batch) if record.last else ())}
            self._ended(record.batch, [Ended(index, True, GONE) for index in indexes])

    def _fetch(self, client: Peer, record: Fetch, raw: bytes) -> None:
        """A client asks for results, which no engine may know; or an engine for its part of one."""
        if client.kind == "engine":
            self._router.fetch_source(client, record, raw)
            return
        left = self._answer(client, record.id, record.targets)
        if left == record.targets:
            self._router.fetch(client, record, raw)
        elif left:
            rest = replace(record, targets=left)
            self._router.fetch(client, rest, encode(rest))

    def _seek(self, client: Peer, record: Seek, raw: bytes) -> None:
        left = self._answer(client, record.batch, record.items)
        if left or not record.items:
            self._tasks.seek(client, Seek(record.batch, left), raw)

    def _answer(self, peer: Peer, id: str, slots: tuple[int, ...]) -> tuple[int, ...]:
        for held in self.ledger.concerned(id):
            if not held.sent and not self._is_here(held.parcel.client):
                self.take_over(held.parcel.client)  # of before this controller, and wanted now
                while self._jobs:
                    self._step(*self._jobs[0])
        answers = [(slot, self.ledger.answer(id, slot)) for slot in slots]
        for _, answer in answers:
            if answer is not None:
                peer.post(answer)
        return tuple(slot for slot, answer in answers if answer is None)

    def _untold(self, id: str) -> bool:
        """Whether a batch is of before this controller, and its client not here to tell of its engines."""
        return any(held.old and not self._is_here(held.parcel.client) for held in self.ledger.concerned(id))

    # -- clients that leave ------------------------------------------------------------------

    def take_over(self, client: str) -> None:
        """A client is gone for good: send again what it has detached and has not ended."""
        mine = [held for held in self.ledger.of(client) if held.safe]
        for held in self.ledger.of(client):
            held.sent = True
            if (
                held.keeping
            ):  # it will be safe, and engines must know before they hear that the client is gone
                deque(self._mark(self._custodian(client), held), maxlen=0)
        # In the order in which the client has sent it, whatever it has detached first.
        entries = [(number, held, frame) for held in mine for number, frame in held.entries]
        entries.sort(key=lambda entry: entry[0])
        if entries:
            self._do(self._send_again(self._custodian(client), entries), lambda: None)
        elif not self.ledger.of(client):
            self._retire(client)

    def _send_again(self, custodian: Custodian, entries: list[tuple[int, Holding, Frame]]) -> Iterator[None]:
        for _, held, frame in entries:
            work = self._left(held, frame)
            if work is not None:
                try:
                    self._send(custodian, held, work)
                except WireError as error:
                    log.warn("detached work of {client}: {error}", client=custodian.peer.key, error=error)
            yield

    def _send(self, custodian: Custodian, held: Holding, work: AnyWork) -> None:
        peer, raw, parcel = custodian.peer, encode(work), held.parcel
        if isinstance(work, Submit):
            self._router.submit(peer, work, raw)
            custodian.offer(work.id, work.parts, parcel)
        elif isinstance(work, Batch):
            self._tasks.batch(peer, work, raw)
            custodian.offer(work.id, work.parts, parcel)
        else:
            self._tasks.work(peer, work, raw)
            for index, _, parts in work.items:
                custodian.offer(f"{work.batch}#{index}", parts, parcel)

    def _left(self, held: Holding, frame: Frame) -> AnyWork | None:
        if not held.missing:  # it may be deleted by now
            return None
        try:
            [raw] = held.parcel.read([frame])
        except OSError as error:
            log.error("parcel {name}: {error}", name=held.parcel.name, error=error)
            return None
        return held.left(raw)

    def _custodian(self, client: str) -> Custodian:
        custodian = self._custodians.get(client)
        if custodian is None:
            custodian = Custodian(self._clock, client, self._router.blobs, self._heard)
            self._custodians[client] = custodian
        return custodian

    # -- what comes of it -------------------------------------------------------------------------

    def _heard(self, custodian: Custodian, record: Record) -> None:
        if isinstance(record, Chunk):
            if record.offset >= 0:
                self.intake.filled(custodian, record)
        elif isinstance(record, Event):
            custodian.refuse(record.parts)
        elif isinstance(record, Result):
            custodian.refuse(record.parts)
            if record.status in ("ok", "error"):
                unknown = record.status == "error" and not record.started and not _has_blobs(record)
                ends = [Ended(record.engine, record.status == "ok", record.engine)]
                self._ended(record.id, ends, [encode(record)] if unknown else ())
        elif isinstance(record, Outcomes):
            self._told(custodian, record)

    def _told(self, custodian: Custodian, record: Outcomes) -> None:
        ends: list[Ended] = []
        answers: list[bytes] = []
        for end in record.items:
            custodian.refuse(end[6])
            if end[2] in ("ok", "error"):
                ends.append(Ended(end[0], end[2] == "ok", record.engine))
                if record.engine == NOWHERE:
                    answers.append(encode(Outcomes(record.batch, NOWHERE, (end,))))
        self._ended(record.batch, ends, answers)

    def _ended(self, id: str, ends: Collection[Ended], answers: Iterable[bytes] = ()) -> None:
        for held in self.ledger.ended(id, ends, answers):
            custodian = self._custodians.get(held.parcel.client)
            if custodian is not None:
                for end in ends:
                    custodian.release(f"{id}#{end.slot}")
                if not self.ledger.open(id):
                    custodian.release(id)
            self._close_if_over(held)

    def _close_if_over(self, held: Holding) -> None:
        if held.missing or not held.safe or held.peer is not None:
            return
        client = held.parcel.client
        self.ledger.close(held)
        if not self.ledger.of(client):
            self._retire(client)
            self._client_over(client)

    def _retire(self, client: str) -> None:
        custodian = self._custodians.pop(client, None)
        if custodian is not None:
            custodian.stop()

    # -- later ---------------------------------------------------------------------------------

    def _do(self, job: Iterator[None], done: Callable[[], None]) -> None:
        """Do something long, a little in each turn."""
        self._jobs.append((job, done))
        if self._job_call is None:
            self._job_call = self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._job_call = None
        if self._jobs:
            self._step(*self._jobs[0])
        if self._jobs:
            self._job_call = self._clock.callLater(0, self._go_on)

    def _step(self, job: Iterator[None], done: Callable[[], None]) -> None:
        for _ in range(STEP):
            if next(job, self) is self:
                self._jobs.popleft()
                done()
                return


def _client_of(id: str) -> str:
    return id.partition("-")[0]


def _has_blobs(result: Result) -> bool:
    return any(isinstance(part, BlobRef) for part in result.parts)
