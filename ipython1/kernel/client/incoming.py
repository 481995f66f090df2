"""What arrives of commands, put in order before it is delivered.

Parts that travel by themselves come later than the record that names them.
What an engine says of a command is delivered in the order it was said, so a
record waits for its own parts and for the records before it. After an
interruption an engine says everything again: what was here is not taken twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.error import EngineDied, RemoteFailure
from ipython1.kernel.wire.blobs import Buffer, ChunkStore, gather_parts
from ipython1.kernel.wire.codec import decode_as, encode_failure
from ipython1.kernel.wire.records import (
    BlobRef,
    Cancel,
    Event,
    Fetch,
    Grant,
    Input,
    Interrupt,
    Record,
    Result,
    Submit,
    Targets,
)


@dataclass(slots=True)
class Outstanding:
    """A command on its way: what to send again should the controller forget it, and what has come.

    Very many may be outstanding, so that what most of them never need is None.
    """

    pending: PendingResult
    #: The `Submit` records, encoded.
    submits: Sequence[bytes] = ()
    fetched: bool = False
    #: Results still to come.
    left: int = 0
    blobs: Mapping[str, memoryview] | None = None
    #: Events delivered, by engine.
    events: dict[int, int] | None = None
    #: Records per engine that wait for their blobs, by number: of an event its
    #: index, of the result the next one.
    arriving: dict[int, dict[int, Arrival]] | None = None
    #: The user's word to end it.
    end: Cancel | Interrupt | None = None
    #: The last answer to a question of each engine.
    answers: Mapping[Targets, Input] | None = None
    #: The engine table as it was when this went out; None: it has not gone out yet.
    engines: tuple[dict[str, Any], ...] | None = None
    #: It shall go on without this client.
    detached: bool = False

    def unresolved(self) -> Iterator[Submit]:
        """What has not ended, to be sent again; it says who has it."""
        uuids = {engine["id"]: engine["uuid"] for engine in self.engines or ()}
        for raw in self.submits:
            submit = decode_as(Submit, raw)
            targets = submit.targets if submit.gives else tuple(filter(self.pending.awaits, submit.targets))
            if targets:
                again = () if self.engines is None else tuple(uuids.get(target, "") for target in targets)
                yield replace(submit, targets=targets, again=again, detached=self.detached)

    def delivered(self, engine: int) -> int:
        """Events of an engine that are delivered."""
        return 0 if self.events is None else self.events.get(engine, 0)

    def waiting(self, engine: int) -> dict[int, Arrival]:
        """What of an engine waits for its blobs."""
        if self.arriving is None:
            self.arriving = {}
        return self.arriving.setdefault(engine, {})


@dataclass(slots=True, eq=False)
class Arrival:
    """A record, and its parts once they are all here."""

    record: Event | Result
    parts: list[Buffer] | None = None

    def lost(self, error: Exception) -> None:
        """Its parts cannot be had: what stands in its place."""
        record = self.record
        if isinstance(record, Event):
            self.record = replace(
                record, kind="stderr", text=f"\n(Some output is missing: {error}.)\n", parts=()
            )
            self.parts = []
            return
        if isinstance(error, MemoryError):
            failure = RemoteFailure("MemoryError", f"the result cannot be received: {error}")
        else:
            facts: dict[str, Any] = {"engine": record.engine, "cause": str(error), "output": ""}
            failure = RemoteFailure("EngineDied", str(EngineDied(**facts)), facts=facts)
        self.record = replace(record, status="error", parts=())
        self.parts = [encode_failure(failure)]


class Incoming:
    """Delivers records to the `PendingResult` that they belong to; reactor thread only.

    Parameters
    ----------
    outstanding : mapping of str to Outstanding
        What is waited for, by command id.
    blobs : ChunkStore
        Receives the parts that travel by themselves.
    send : callable
        Sends a record.
    received : callable
        Told of each result that is here and need not come again.
    ended : callable
        Told of each command and result, just before the result is delivered.
    """

    def __init__(
        self,
        outstanding: Mapping[str, Outstanding],
        blobs: ChunkStore,
        send: Callable[[Record], None],
        received: Callable[[Result], None],
        ended: Callable[[Outstanding, Result], None],
    ) -> None:
        self._outstanding = outstanding
        self._blobs = blobs
        self._send = send
        self._received = received
        self._ended = ended

    def arrived(self, record: Event | Result) -> None:
        """Deliver a record, or hold it until its blobs and those before it are here."""
        out = self._outstanding.get(record.id)
        if type(record) is Result and record.status == "later":
            self._fetch(out, record)
            return
        if out is None or not out.pending.awaits(record.engine):
            self._refuse_blobs(record)
            if isinstance(record, Result):
                self._received(record)
            return
        if out.arriving is None and type(record) is Result and BlobRef not in map(type, record.parts):
            self._deliver(out, record, record.parts)  # type: ignore[arg-type] # the usual case, quickly
            return
        waiting = out.waiting(record.engine)
        if isinstance(record, Event):
            number, known = record.index, out.delivered(record.engine)
            if not known <= number <= known + len(waiting):  # seen, or after a gap: a replay follows
                self._refuse_blobs(record)
                return
        else:
            number = record.events
        if waiting:
            if number in waiting and waiting[number].record == record:  # a replay of what is on its way here
                self._ask_again(record)
                return
            if any(later >= number for later in waiting):  # the engine died, with what was on its way
                self._refuse_all(waiting)
        arrival = waiting[number] = Arrival(record)

        def complete(parts: list[Buffer]) -> None:
            arrival.parts = parts
            self._complete(out, waiting)

        def failed(error: Exception) -> None:
            arrival.lost(error)
            self._complete(out, waiting)

        gather_parts(self._blobs, record.parts, complete, failed)

    def drop(self, out: Outstanding) -> None:
        """Nothing more of this command is wanted."""
        for waiting in (out.arriving or {}).values():
            self._refuse_all(waiting)

    def _complete(self, out: Outstanding, waiting: dict[int, Arrival]) -> None:
        """Deliver what is whole, up to the first that is not."""
        while waiting:
            number, first = next(iter(waiting.items()))
            if first.parts is None:
                return
            del waiting[number]
            if isinstance(first.record, Result):
                self._deliver(out, first.record, first.parts)
            else:
                if out.events is None:
                    out.events = {}
                out.events[first.record.engine] = number + 1
                out.pending.deliver_event(first.record, first.parts)

    def _deliver(self, out: Outstanding, result: Result, parts: Sequence[Buffer]) -> None:
        if result.events > out.delivered(result.engine):
            # Events were lost with an earlier controller: the engine tells them again.
            self._fetch(out, result)
            return
        out.left -= 1
        self._received(result)
        self._ended(out, result)
        out.pending.deliver_result(result, parts)

    def _fetch(self, out: Outstanding | None, result: Result) -> None:
        known = 0 if out is None else out.delivered(result.engine)
        self._send(Fetch(result.id, (result.engine,), known))

    def _ask_again(self, record: Event | Result) -> None:
        for part in record.parts:
            if isinstance(part, BlobRef):
                self._blobs.ask_again(part.blob)

    def _refuse_all(self, waiting: dict[int, Arrival]) -> None:
        for arrival in waiting.values():
            self._refuse_blobs(arrival.record)
        waiting.clear()

    def _refuse_blobs(self, record: Event | Result) -> None:
        for part in record.parts:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)
                self._send(Grant(part.blob, -1))
