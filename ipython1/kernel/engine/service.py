"""The engine's side of the conversation: records in, jobs out, results back.

Everything here runs in the reactor thread, but for the methods that say so.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

from ipython1.kernel.engine.kept import Kept, KeptResults
from ipython1.kernel.engine.mainloop import Job, MainLoop
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.error import (
    EngineDied,
    QueueCleared,
    RemoteFailure,
    SerializationError,
    UnknownResult,
    own_failure,
)
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.wire.blobs import Buffer, ChunkStore, gather_parts
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.records import (
    INLINE_LIMIT,
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    Event,
    Fetch,
    Forget,
    Grant,
    Interrupt,
    Parts,
    Record,
    Result,
    Submit,
)
from ipython1.kernel.wire.shared import SharedMemory

#: Seconds an engine looks for its controller before it gives up.
CONTROLLER_GRACE = 120.0
#: Seconds in which output is collected before it is sent.
OUTPUT_DELAY = 0.02
#: Seconds a result waits for others while the next command runs: to send each by itself would cost
#: the engine more than a small command does.
RESULT_DELAY = 0.001


class _Outcome(NamedTuple):
    """What came of a job, ready to send."""

    status: str
    parts: Parts
    blobs: dict[str, memoryview]


class EngineService:
    """Connects a main loop to the controller.

    Parameters
    ----------
    clock : IReactorTime
        The reactor; where it also has ``callFromThread``, that is used to come
        back from other threads.
    dialer : IDialer
        Ways to the controller, with the engine FURL.
    loop : MainLoop
        Runs the jobs. Its ``done`` must be `job_done`.
    output : OutputBuffer
        What running jobs give out. Its ``wake`` must be `output_waits`.
    identity : dict
        ``uuid host pid nanny wanted replaces``: who the engine is.
    on_registered : callable
        Called with the engine id, each time the controller gave or confirmed it.
    on_end : callable
        Called with the reason when the controller is gone for good.
    shared : SharedMemory, optional
        Used for bulk bytes, and closed with the service.
    """

    def __init__(
        self,
        clock: Any,
        dialer: IDialer,
        loop: MainLoop,
        output: OutputBuffer,
        identity: dict[str, Any],
        on_registered: Callable[[int], None],
        on_end: Callable[[str], None],
        shared: SharedMemory | None = None,
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._output = output
        self._identity = dict(identity)
        self._predecessor: dict[str, str] = identity["replaces"]
        self._on_registered = on_registered
        self._hop: Callable[..., None] = getattr(clock, "callFromThread", _call_now)
        self._kept = KeptResults()
        self._jobs: dict[str, Job] = {}  # not done yet
        self._failed_epoch: dict[str, int] = {}  # client -> stop_on_error epoch that failed here
        self._told: list[str] = []  # ids of the commands that the last hello called unfinished
        self._stopped = False
        self._timeouts: dict[str, Any] = {}
        self._output_call: Any = None
        self._done: deque[tuple[Job, _Outcome, list[Job]]] = deque()  # to be sent
        self._done_planned = False
        self._done_call: Any = None
        self.id = -1
        self._connection = Connection(
            clock,
            dialer,
            "engine",
            detail=self._detail,
            receive=self._receive,
            welcomed=self._welcomed,
            lost=lambda reason: on_end(str(reason)),
            grace=CONTROLLER_GRACE,
        )
        self._blobs = ChunkStore(self._connection.send, shared, clock)
        self._handlers: dict[type[Record], Callable[[Any], None]] = {
            Submit: self._submit,
            Cancel: self._cancel,
            Interrupt: self._interrupt,
            Fetch: self._fetch,
            Forget: self._forget,
            Departed: self._departed,
            Chunk: self._blobs.chunk_received,
            Grant: self._blobs.grant_received,
        }

    def start(self) -> None:
        """Connect and register."""
        self._connection.start(patience=CONTROLLER_GRACE)

    def stop(self) -> Deferred[None]:
        """Disconnect, after what was said has arrived."""
        self._stopped = True
        for timeout in self._timeouts.values():
            timeout.cancel()
        self._timeouts.clear()
        self._finish_all()
        if self._output_call is not None:
            self._output_call.cancel()
            self._send_output()
        return self._connection.stop().addBoth(lambda _: self._blobs.close())

    # -- called from the main thread ------------------------------------------------

    def job_started(self, job: Job) -> None:
        """A job begins; only those with a timeout need to say so."""
        if job.submit.timeout > 0:
            self._hop(self._start_timeout, job)

    def job_done(self, job: Job, status: str, parts: Sequence[Buffer]) -> None:
        """A job ended; the next one starts when this returns, and may change what `parts` are views of."""
        stopped = self._stop_behind(job.submit) if status != "ok" and job.submit.stop >= 0 else []
        self._done.append((job, self._copied(job.submit.id, status, parts), stopped))
        if not self._loop.has_next():
            self._hop(self._finish_all)
        elif not self._done_planned:
            self._done_planned = True
            self._hop(self._plan_finish)

    def _copied(self, id: str, status: str, parts: Sequence[Buffer]) -> _Outcome:
        name = self._blob_name(id, "r")
        try:
            return _Outcome(status, *self._blobs.split(parts, name, INLINE_LIMIT))
        except (SerializationError, MemoryError) as error:
            failure = encode_failure(RemoteFailure(type(error).__name__, str(error)))
            return _Outcome("error", *self._blobs.split([failure], name, INLINE_LIMIT))

    def output_waits(self) -> None:
        """There is output to send, where there was none before."""
        self._hop(self._plan_output)

    # -- handshake ----------------------------------------------------------------------

    def _detail(self) -> dict[str, Any]:
        held = [[submit.id, submit.op, submit.label] for submit in self._kept.unfinished]
        self._told = [id for id, _, _ in held]
        clients = {*self._kept.clients, *self._failed_epoch}
        return {**self._identity, "held": held, "clients": sorted(clients)}

    def _welcomed(self, detail: dict[str, Any], resumed: bool) -> None:
        self.id = self._identity["wanted"] = detail["id"]
        self._identity["replaces"] = {}
        if not resumed:
            self._blobs.session_lost()
            for id in self._told:  # finished since the hello: that was said in the old session
                kept = self._kept.get(id)
                if kept is not None and kept.result is not None:
                    self._replay(kept)
        self._blobs.ask_for_all()
        self._on_registered(self.id)

    # -- records --------------------------------------------------------------------------

    def _receive(self, record: Record, raw: bytes) -> None:
        self._handlers[type(record)](record)

    def _submit(self, submit: Submit) -> None:
        kept = self._kept.get(submit.id)
        if kept is not None:
            for part in submit.parts:
                if isinstance(part, BlobRef):
                    self._blobs.ask_again(part.blob)
            self._replay(kept)
            return
        refusal = self._why_not(submit)
        if refusal is not None:
            parts = (encode_failure(refusal),)
            self._connection.send(Result(submit.id, self.id, submit.op, "error", 0.0, 0.0, 0, parts))
            return
        self._kept.open(submit)
        job = Job(submit)
        self._jobs[submit.id] = job
        client = submit.id.partition("-")[0]
        self._loop.put(job)
        # In this order: either we see that an earlier one failed, or that one's end sees this job.
        if 0 <= submit.stop <= self._failed_epoch.get(client, -1) and self._loop.cancel(lambda it: it is job):
            self._end_unstarted(job, QueueCleared.__name__, _STOPPED)
            return
        gather_parts(
            self._blobs,
            submit.parts,
            lambda parts: self._loop.ready(job, parts),
            lambda error: self._not_ready(job, error),
        )

    def _why_not(self, submit: Submit) -> RemoteFailure | None:
        """Why a command unknown here must not run: it may have run before."""
        if self._kept.had(submit.id):
            return RemoteFailure("UnknownResult", str(UnknownResult(id=f"{submit.id}@{self.id}")))
        first = dict(zip(submit.targets, submit.again, strict=False)).get(self.id, "")
        if first in ("", self._identity["uuid"]):
            return None
        facts: dict[str, Any] = {
            "engine": self.id,
            "cause": "replaced while there was no controller",
            "output": "",
        }
        if first == self._predecessor.get("uuid"):
            facts.update(cause=self._predecessor["cause"], output=self._predecessor["output"])
        return RemoteFailure("EngineDied", str(EngineDied(**facts)), facts=facts)

    def _not_ready(self, job: Job, error: Exception) -> None:
        """The parts of a job cannot be had: it must not keep the others waiting."""
        if self._loop.cancel(lambda it: it is job):
            self._end_unstarted(job, type(error).__name__, str(error))

    def _cancel(self, cancel: Cancel) -> None:
        wanted = set(cancel.ids)
        for job in self._loop.cancel(lambda job: not wanted or job.submit.id in wanted):
            self._end_unstarted(job, cancel.reason)
        running = self._loop.running
        if running is not None and running.submit.id in wanted:  # who cancels it need not wait for its end
            self._give_out(running.submit.id, "started", "", [])

    def _interrupt(self, interrupt: Interrupt) -> None:
        if interrupt.id:
            for job in self._loop.cancel(lambda job: job.submit.id == interrupt.id):
                self._end_unstarted(job, "KeyboardInterrupt", "before it ran")
        self._loop.interrupt(interrupt.id)

    def _fetch(self, fetch: Fetch) -> None:
        kept = self._kept.get(fetch.id)
        if kept is None:
            self._connection.send(Result(fetch.id, self.id, "", "unknown", 0.0, 0.0, 0, ()))
        else:
            self._replay(kept)

    def _forget(self, forget: Forget) -> None:
        for id in forget.ids:
            self._release(self._kept.forget(id))

    def _release(self, blobs: list[str]) -> None:
        for blob in blobs:
            self._blobs.release(blob)

    def _departed(self, departed: Departed) -> None:
        for job in self._loop.cancel(lambda job: job.submit.id.startswith(f"{departed.client}-")):
            self._end_unstarted(job, "TaskAborted")
        self._failed_epoch.pop(departed.client, None)
        self._release(self._kept.abandon(departed.client))

    def _replay(self, kept: Kept) -> None:
        records: list[Event | Result] = [*kept.events]
        if kept.result is not None:
            records.append(kept.result)
        for record in records:
            if record.engine != self.id:  # a new controller gave us another id
                record = dataclasses.replace(record, engine=self.id)
            self._connection.send(record)
        for blob, data in kept.blobs.items():
            self._blobs.offer(blob, data)

    # -- what jobs give -----------------------------------------------------------------------

    def _plan_output(self) -> None:
        if self._output_call is None and not self._stopped:
            self._output_call = self._clock.callLater(OUTPUT_DELAY, self._send_output)

    def _send_output(self) -> None:
        self._output_call = None
        for item in self._output.take():
            self._give_out(*item)

    def _give_out(self, id: str, kind: str, text: str, parts: list[Buffer]) -> None:
        """Send an event of a command that has not ended."""
        kept = self._kept.get(id)
        if kept is not None and kept.result is None:
            name = self._blob_name(id, len(kept.events))
            try:
                split, blobs = self._blobs.split(parts, name, INLINE_LIMIT)
            except SerializationError as error:
                kind, text, split, blobs = "stderr", f"\n{error}\n", (), {}
            event = Event(id, self.id, len(kept.events), kind, text, split)
            kept.events.append(event)
            kept.size += len(text)
            self._give(kept, event, blobs)

    def _plan_finish(self) -> None:
        # Also where all are sent by now: the next one sees that this is planned, and relies on it.
        if self._stopped:
            self._finish_all()
        elif self._done_call is None:
            self._done_call = self._clock.callLater(RESULT_DELAY, self._finish_all)

    def _finish_all(self) -> None:
        if self._done_call is not None and self._done_call.active():
            self._done_call.cancel()
        self._done_call = None
        self._done_planned = False  # before the look: what comes behind it plans anew
        if not self._done:
            return
        if self._output_call is not None:
            self._output_call.cancel()
        self._send_output()
        while self._done:
            self._finish(*self._done.popleft())

    def _finish(self, job: Job, outcome: _Outcome, stopped: list[Job]) -> None:
        submit = job.submit
        timeout = self._timeouts.pop(submit.id, None)
        if timeout is not None:
            timeout.cancel()
        self._end(job, outcome, job.started, job.completed)
        for other in stopped:
            self._end_unstarted(other, QueueCleared.__name__, _STOPPED)

    def _stop_behind(self, failed: Submit) -> list[Job]:
        """stop_on_error: take out what this client sent before it could know of the failure."""
        client = failed.id.partition("-")[0]
        self._failed_epoch[client] = max(failed.stop, self._failed_epoch.get(client, -1))

        def match(job: Job) -> bool:
            same = job.submit.id.startswith(f"{client}-")
            return same and 0 <= job.submit.stop <= failed.stop

        return self._loop.cancel(match)

    def _end_unstarted(self, job: Job, ename: str, evalue: str = "") -> None:
        for part in job.submit.parts:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)
        failure = encode_failure(RemoteFailure(ename, evalue) if evalue else own_failure(ename))
        self._end(job, _Outcome("error", (failure,), {}), 0.0, time.time())

    def _end(self, job: Job, outcome: _Outcome, started: float, completed: float) -> None:
        submit = job.submit
        self._jobs.pop(submit.id, None)
        kept = self._kept.get(submit.id)
        if kept is None:
            return
        kept.submit = None
        kept.result = Result(
            submit.id, self.id, submit.op, outcome.status, started, completed, len(kept.events), outcome.parts
        )
        kept.size += sum(len(part) for part in outcome.parts if isinstance(part, bytes))
        self._give(kept, kept.result, outcome.blobs)
        if kept.abandoned:
            self._release(self._kept.forget(submit.id))

    def _blob_name(self, id: str, what: object) -> str:
        """Names of this process's own: a successor under the same engine id makes others."""
        return f"{id}/{self._identity['uuid']}/{what}"

    def _give(self, kept: Kept, record: Record, blobs: dict[str, memoryview]) -> None:
        self._connection.send(record)
        for blob, data in blobs.items():
            kept.blobs[blob] = data
            kept.size += len(data)
            self._blobs.offer(blob, data)

    def _start_timeout(self, job: Job) -> None:
        submit = job.submit
        if submit.id in self._jobs and not self._stopped:
            self._timeouts[submit.id] = self._clock.callLater(submit.timeout, self._time_is_up, submit)

    def _time_is_up(self, submit: Submit) -> None:
        del self._timeouts[submit.id]
        self._loop.interrupt(submit.id, timeout=submit.timeout)


_STOPPED = "not run, because an earlier command of this client failed (stop_on_error)"


def _call_now(f: Callable[..., None], *args: Any) -> None:
    f(*args)
