"""What jobs give, on its way from the main thread to the controller."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ipython1.kernel.engine.jobs import AnyJob
from ipython1.kernel.engine.kept import Buffer
from ipython1.kernel.engine.mainloop import MainLoop
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.error import RemoteFailure, SerializationError
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.records import INLINE_LIMIT, Event, Parts, Record

#: Seconds in which output is collected before it is sent.
OUTPUT_DELAY = 0.02
#: Seconds a result waits for others while the next job runs: to send each by itself would cost
#: the engine more than a small job does.
RESULT_DELAY = 0.001


class Outcome(NamedTuple):
    """What came of a job, ready to send; `blobs`: to be offered or released."""

    status: str
    parts: Parts
    blobs: dict[str, memoryview]


class Outbox:
    """Collects what jobs give, and sends it.

    Parameters
    ----------
    clock : IReactorTime
    hop : callable
        Calls a function in the reactor thread.
    loop : MainLoop
    output : OutputBuffer
    blobs : ChunkStore
    send : callable
        Takes a record for the controller.
    uuid : str
        The engine's.
    finish : callable
        ``finish(job, outcome, behind)``, in the reactor thread; the arguments as of `job_done`.
    flushed : callable
        Called after some of those.
    """

    def __init__(
        self,
        clock: Any,
        hop: Callable[..., None],
        loop: MainLoop[AnyJob],
        output: OutputBuffer,
        blobs: ChunkStore,
        send: Callable[[Record], None],
        uuid: str,
        finish: Callable[[AnyJob, Outcome, Sequence[AnyJob]], None],
        flushed: Callable[[], None],
    ) -> None:
        #: The id that the engine has now.
        self.engine = -1
        self.send = send
        self._clock = clock
        self._hop = hop
        self._loop = loop
        self._output = output
        self._blobs = blobs
        self._uuid = uuid
        self._finish = finish
        self._flushed = flushed
        self._stopped = False
        self._output_call: Any = None
        self._done: deque[tuple[AnyJob, Outcome, Sequence[AnyJob]]] = deque()
        self._done_planned = False
        self._done_call: Any = None

    # -- called from the main thread ------------------------------------------------

    def job_done(self, job: AnyJob, status: str, parts: Sequence[Buffer], behind: Sequence[AnyJob]) -> None:
        """A job ended; the next one starts when this returns, and may change what `parts` are views of.

        `behind`: other jobs, that will not run because of it.
        """
        self._done.append((job, self.outcome(job, status, parts), behind))
        if not self._loop.has_next():
            self._hop(self.flush)
        elif not self._done_planned:
            self._done_planned = True
            self._hop(self._plan_flush)

    def outcome(self, job: AnyJob, status: str, parts: Sequence[Buffer]) -> Outcome:
        """What came of a job, copied; any thread."""
        if len(parts) == 1 and type(parts[0]) is bytes and len(parts[0]) < INLINE_LIMIT:
            return Outcome(status, (parts[0],), {})
        name = self._blob_name(job, f"{job.attempt or ''}r")
        try:
            return Outcome(status, *self._blobs.split(parts, name, INLINE_LIMIT))
        except (SerializationError, MemoryError) as error:
            failure = encode_failure(RemoteFailure(type(error).__name__, str(error)))
            return Outcome("error", *self._blobs.split([failure], name, INLINE_LIMIT))

    def _blob_name(self, job: AnyJob, what: str) -> str:
        """Names of this process's own: a successor under the same engine id makes others."""
        return f"{job.id}/{self._uuid}/{what}"

    def output_waits(self) -> None:
        """There is output to send, where there was none before."""
        self._hop(self._plan_output)

    # -- the reactor thread ------------------------------------------------------------

    def event(self, job: AnyJob, kind: str, text: str = "", parts: Sequence[Buffer] = ()) -> None:
        """Send an event of a job, unless that has ended."""
        if job.answer is not None:
            return
        number = len(job.events)
        split: Parts = ()
        blobs: dict[str, memoryview] = {}
        if parts:
            name = self._blob_name(job, f"{job.attempt}.{number}" if job.attempt else str(number))
            try:
                split, blobs = self._blobs.split(parts, name, INLINE_LIMIT)
            except SerializationError as error:
                kind, text = "stderr", f"\n{error}\n"
        event = Event(job.id, self.engine, number, kind, text, split, job.attempt)
        job.events.append(event)
        job.size += len(text)
        self.send(event)
        self.offer(job, blobs)

    def offer(self, job: AnyJob, blobs: Mapping[str, memoryview]) -> None:
        """Send blobs of a job after the record that names them; it may be for the second time."""
        for blob, data in blobs.items():
            if blob not in job.blobs:
                job.blobs[blob] = data
                job.size += len(data)
            self._blobs.offer(blob, data)

    def repeat_events(self, job: AnyJob, first: int = 0) -> None:
        """Send again what a job gave out so far, from event number `first` on."""
        for event in job.events[max(0, first) :]:
            if event.engine != self.engine:  # a new controller gave us another id
                event = dataclasses.replace(event, engine=self.engine)
            self.send(event)

    def _plan_output(self) -> None:
        if self._output_call is None and not self._stopped:
            self._output_call = self._clock.callLater(OUTPUT_DELAY, self._send_output)

    def _send_output(self) -> None:
        self._output_call = None
        for job, kind, text, parts in self._output.take():
            self.event(job, kind, text, parts)

    def _plan_flush(self) -> None:
        # Also where all are sent by now: the next one sees that this is planned, and relies on it.
        if self._stopped:
            self.flush()
        elif self._done_call is None:
            self._done_call = self._clock.callLater(RESULT_DELAY, self.flush)

    def flush(self) -> None:
        """Send what came of the jobs that have ended."""
        if self._done_call is not None and self._done_call.active():
            self._done_call.cancel()
        self._done_call = None
        self._done_planned = False  # before the look: what comes behind it plans anew
        if not self._done:
            return
        if self._output_call is not None:
            self._output_call.cancel()
        while self._done:
            # Only of those that have ended before this look is all output among what is taken after it.
            count = len(self._done)
            self._send_output()
            for _ in range(count):
                self._finish(*self._done.popleft())
        self._flushed()

    def stop(self) -> None:
        """Send all that is there; from now on nothing waits for more."""
        self._stopped = True
        self.flush()
        if self._output_call is not None:
            self._output_call.cancel()
            self._send_output()
