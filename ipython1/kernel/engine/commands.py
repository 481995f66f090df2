"""The commands of an engine: records in, jobs out, results back.

All of it is in the reactor thread; `stop_behind` is on the main thread as well.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ipython1.kernel.engine.jobs import AnyJob, Command
from ipython1.kernel.engine.kept import Buffer, KeptJobs
from ipython1.kernel.engine.mainloop import MainLoop
from ipython1.kernel.engine.outbox import Outbox, Outcome
from ipython1.kernel.error import EngineDied, QueueCleared, RemoteFailure, UnknownResult, own_failure
from ipython1.kernel.wire.blobs import ChunkStore, gather_parts
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.records import BlobRef, Cancel, Departed, Fetch, Forget, Grant, Result, Submit


class EngineCommands:
    """Takes commands from the controller, and answers each.

    Parameters
    ----------
    loop : MainLoop
    outbox : Outbox
    blobs : ChunkStore
    uuid : str
        The engine's.
    predecessor : dict
        ``uuid cause output`` of the engine that had this one's id before; or empty.
    """

    def __init__(
        self,
        loop: MainLoop[AnyJob],
        outbox: Outbox,
        blobs: ChunkStore,
        uuid: str,
        predecessor: dict[str, str],
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._blobs = blobs
        self._uuid = uuid
        self._predecessor = predecessor
        self._kept: KeptJobs[Command] = KeptJobs()
        self._failed_epoch: dict[str, int] = {}  # client -> last epoch before it knew of a failure here
        self._stopping = threading.Lock()  # over that, and the queue as far as it follows from it
        self._told: list[str] = []  # ids of the commands that the last hello called unfinished
        self._sourced: dict[str, Command] = {}  # those that wait for the result of another, by its id

    # -- handshake ----------------------------------------------------------------------

    def held(self) -> list[list[str]]:
        """Id, operation and label of what has not ended, for a hello."""
        held = [job.submit for job in self._kept.unfinished]
        self._told = [submit.id for submit in held]
        return [[submit.id, submit.op, submit.label] for submit in held]

    @property
    def clients(self) -> set[str]:
        """The ids of the clients that something is kept for."""
        return self._kept.clients | self._failed_epoch.keys()

    def session_lost(self) -> None:
        """The controller knows only what the last hello said."""
        for id in self._told:  # finished since: that was said in the old session
            job = self._kept.get(id)
            if job is not None and job.answer is not None:
                self._repeat(job)

    # -- records ------------------------------------------------------------------------

    def submit(self, submit: Submit) -> None:
        """A command to run."""
        known = self._kept.get(submit.id)
        if known is not None:
            for part in submit.parts:
                if isinstance(part, BlobRef):
                    self._blobs.ask_again(part.blob)
            if submit.source and known.answer is None and known.parts is None:
                self._ask_for_source(known)
            if submit.detached:
                self._release(self._kept.detach(known))
            self._repeat(known)
            return
        refusal = self._why_not(submit)
        if refusal is not None:
            parts = (encode_failure(refusal),)
            self._outbox.send(Result(submit.id, self._outbox.engine, submit.op, "error", 0.0, 0.0, 0, parts))
            return
        job = Command(submit)
        job.detached = submit.detached
        self._kept.add(job)
        with self._stopping:  # either we see that an earlier one failed, or that one's end sees this job
            stopped = 0 <= submit.stop <= self._failed_epoch.get(job.client, -1)
            if not stopped:
                self._loop.put(job)
        if stopped:
            self.end_unstarted(job, QueueCleared.__name__, _STOPPED)
            return
        if submit.source:
            self._sourced[submit.source] = job
            self._ask_for_source(job)
            return
        gather_parts(
            self._blobs,
            submit.parts,
            lambda parts: self._loop.ready(job, parts),
            lambda error: self._not_ready(job, error),
        )

    def _ask_for_source(self, job: Command) -> None:
        self._outbox.send(Fetch(job.submit.source, (job.submit.giver,)))

    def source_here(self, result: Result) -> None:
        """The result that a command waits for, maybe for the second time."""
        job = self._sourced.pop(result.id, None)
        if job is None:
            for part in result.parts:
                if isinstance(part, BlobRef) and not self._blobs.ask_again(part.blob):
                    self._outbox.send(Grant(part.blob, -1))
            return
        if result.status == "unknown":
            self._source_failed(job, self._giver_died(job, "its result is gone"))
            return

        def arrived(parts: list[Buffer]) -> None:
            if result.status == "ok":
                self._loop.ready(job, parts)
            else:
                self._source_failed(job, bytes(parts[0]))

        def lost(error: Exception) -> None:
            if isinstance(error, MemoryError):
                self._source_failed(job, encode_failure(RemoteFailure("MemoryError", str(error))))
            else:
                self._source_failed(job, self._giver_died(job, str(error)))

        job.sent = result.parts
        gather_parts(self._blobs, result.parts, arrived, lost)

    def _giver_died(self, job: Command, cause: str) -> bytes:
        facts: dict[str, Any] = {"engine": job.submit.giver, "cause": cause, "output": ""}
        return encode_failure(RemoteFailure("EngineDied", str(EngineDied(**facts)), facts=facts))

    def _source_failed(self, job: Command, failure: bytes) -> None:
        """A command fails because its source did."""

        def end() -> None:
            self._end(job, self._outbox.outcome(job, "error", [failure]), 0.0, time.time())

        self._fail_unstarted(job, end)

    def _fail_unstarted(self, failed: Command, end: Callable[[], None]) -> None:
        """A command that waits fails, as if it had run: `end` says so."""
        for job in self.stop_behind(failed, ran=False):
            if job is failed:
                end()
            else:
                self.end_unstarted(job, QueueCleared.__name__, _STOPPED)

    def _why_not(self, submit: Submit) -> RemoteFailure | None:
        """Why a command unknown here must not run: it may have run before."""
        if self._kept.had(submit.id):
            return RemoteFailure("UnknownResult", str(UnknownResult(id=f"{submit.id}@{self._outbox.engine}")))
        engine = self._outbox.engine
        first = dict(zip(submit.targets, submit.again, strict=False)).get(engine, "")
        if first in ("", self._uuid):
            return None
        facts: dict[str, Any] = {
            "engine": engine,
            "cause": "replaced while there was no controller",
            "output": "",
        }
        if first == self._predecessor.get("uuid"):
            facts.update(cause=self._predecessor["cause"], output=self._predecessor["output"])
        return RemoteFailure("EngineDied", str(EngineDied(**facts)), facts=facts)

    def _not_ready(self, job: Command, error: Exception) -> None:
        """The parts of a job cannot be had: it must not keep the others waiting."""
        self._fail_unstarted(job, lambda: self.end_unstarted(job, type(error).__name__, str(error)))

    def cancel(self, cancel: Cancel) -> None:
        """Take commands out of the queue."""
        wanted = set(cancel.ids)

        def match(job: AnyJob) -> bool:
            return isinstance(job, Command) and (not wanted or job.id in wanted)

        for job in self._loop.cancel(match):
            self.end_unstarted(job, cancel.reason)
        running = self._loop.running
        if running is not None and running.id in wanted:  # who cancels it need not wait for its end
            self._outbox.event(running, "started")

    def fetch(self, fetch: Fetch) -> None:
        """Tell what is known of a command."""
        job = self._kept.get(fetch.id)
        if job is None:
            self._outbox.send(Result(fetch.id, self._outbox.engine, "", "unknown", 0.0, 0.0, 0, ()))
        else:
            self._repeat(job, fetch.first)

    def forget(self, forget: Forget) -> None:
        """The client has these."""
        for id in forget.ids:
            job = self._kept.get(id)
            if job is not None and job.answer is None:  # it gives what nobody takes any more
                job.abandoned = True
            self._release(self._kept.forget(id))

    def departed(self, departed: Departed) -> None:
        """A client is gone for good: what it has not detached is not run, and not kept for it."""

        def match(job: AnyJob) -> bool:
            return isinstance(job, Command) and job.client == departed.client and not job.detached

        for job in self._loop.cancel(match):
            self.end_unstarted(job, "TaskAborted")
        if not any(job.client == departed.client for job in self._kept.unfinished):
            self._failed_epoch.pop(departed.client, None)
        self._release(self._kept.abandon(departed.client))

    def _release(self, blobs: Sequence[str]) -> None:
        for blob in blobs:
            self._blobs.release(blob)

    def _repeat(self, job: Command, first: int = 0) -> None:
        self._outbox.repeat_events(job, first)
        if isinstance(job.answer, Result):
            self._outbox.send(dataclasses.replace(job.answer, engine=self._outbox.engine))
        self._outbox.offer(job, job.blobs)

    # -- ends -----------------------------------------------------------------------------

    def stop_behind(self, failed: Command, ran: bool = True) -> list[AnyJob]:
        """stop_on_error: take out what this client has queued behind a command that failed.

        Parameters
        ----------
        failed : Command
        ran : bool
            It has run; called on the main thread, before the next job starts.
            Else it waits, behind others maybe, and is taken out as well; where
            it is not in the queue any more, nothing is.
        """
        client, stop = failed.client, failed.submit.stop
        behind = ran

        def match(job: AnyJob) -> bool:  # asked of the jobs in their order
            nonlocal behind
            if job is failed:
                behind = stop >= 0
                return True
            return behind and isinstance(job, Command) and job.client == client and job.submit.stop >= 0

        with self._stopping:
            taken = self._loop.cancel(match)
            if behind:
                # Its client did not know of this failure when it sent these: nor what it had sent before
                # the last of them, and is still on its way here.
                epochs = [job.submit.stop for job in taken if isinstance(job, Command)]
                self._failed_epoch[client] = max(stop, *epochs, self._failed_epoch.get(client, -1))
        return taken

    def finish(self, job: Command, outcome: Outcome, stopped: Sequence[AnyJob]) -> None:
        """A command has run; `stopped`: those that will not, because it failed."""
        self._end(job, outcome, job.started, job.completed)
        for other in stopped:
            self.end_unstarted(other, QueueCleared.__name__, _STOPPED)

    def end_unstarted(self, job: AnyJob, ename: str, evalue: str = "") -> None:
        """A command that was taken out of the queue fails."""
        assert isinstance(job, Command)
        self._sourced.pop(job.submit.source, None)
        for part in job.sent:
            if isinstance(part, BlobRef):
                self._blobs.drop(part.blob)
                self._outbox.send(Grant(part.blob, -1))
        failure = encode_failure(RemoteFailure(ename, evalue) if evalue else own_failure(ename))
        self._end(job, Outcome("error", (failure,), {}), 0.0, time.time())

    def _end(self, job: Command, outcome: Outcome, started: float, completed: float) -> None:
        result = Result(
            job.id,
            self._outbox.engine,
            job.submit.op,
            outcome.status,
            started,
            completed,
            len(job.events),
            outcome.parts,
        )
        job.close(result, outcome.parts)
        self._outbox.send(result)
        self._outbox.offer(job, outcome.blobs)
        if job.abandoned:
            self._release(self._kept.forget(job.id))


_STOPPED = "not run, because an earlier command of this client failed (stop_on_error)"
