"""The engine's side of the conversation: records in, jobs out, results back.

Everything here runs in the reactor thread, but for the methods that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from ipython1.kernel.engine.asking import Asking
from ipython1.kernel.engine.commands import EngineCommands
from ipython1.kernel.engine.deadlines import Deadlines
from ipython1.kernel.engine.jobs import AnyJob, Command, Task
from ipython1.kernel.engine.kept import Buffer
from ipython1.kernel.engine.mainloop import MainLoop
from ipython1.kernel.engine.outbox import Outbox, Outcome
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.engine.tasks import EngineTasks
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.records import (
    Batch,
    Cancel,
    Chunk,
    Departed,
    Fetch,
    Forget,
    Grant,
    Input,
    Interrupt,
    Record,
    Result,
    Seek,
    Share,
    Submit,
    Taken,
    Withdraw,
    Work,
)
from ipython1.kernel.wire.shared import SharedMemory

#: Seconds an engine looks for its controller before it gives up.
CONTROLLER_GRACE = 120.0


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
    asking : Asking
        Is told the answers to their questions.
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
        loop: MainLoop[AnyJob],
        output: OutputBuffer,
        asking: Asking,
        identity: dict[str, Any],
        on_registered: Callable[[int], None],
        on_end: Callable[[str], None],
        shared: SharedMemory | None = None,
    ) -> None:
        self._loop = loop
        self._asking = asking
        self._identity = dict(identity)
        self._on_registered = on_registered
        self._leaving = False
        self._interrupted: AnyJob | None = None
        self._shared = shared
        hop: Callable[..., None] = getattr(clock, "callFromThread", _call_now)
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
        send, uuid = self._connection.send, identity["uuid"]
        self._blobs = ChunkStore(send, shared, clock)
        self._outbox = Outbox(
            clock, hop, loop, output, self._blobs, send, uuid, self._finish, lambda: self._tasks.send()
        )
        self._deadlines = Deadlines(clock, hop, loop)
        self._commands = EngineCommands(loop, self._outbox, self._blobs, uuid, identity["replaces"])
        self._tasks = EngineTasks(loop, self._outbox, self._blobs)
        self._handlers: dict[type[Record], Callable[[Any], None]] = {
            Submit: self._commands.submit,
            Cancel: self._commands.cancel,
            Fetch: self._commands.fetch,
            Forget: self._commands.forget,
            Result: self._commands.source_here,
            Batch: self._tasks.batch,
            Work: self._tasks.work,
            Withdraw: self._withdraw,
            Seek: self._tasks.seek,
            Taken: self._tasks.taken,
            Interrupt: self._interrupt,
            Input: asking.answered,
            Departed: self._departed,
            Chunk: self._blobs.chunk_received,
            Grant: self._blobs.grant_received,
            Share: self._blobs.share_received,
        }

    @property
    def id(self) -> int:
        """The engine id; -1 before it is registered."""
        return self._outbox.engine

    def start(self) -> None:
        """Connect and register."""
        self._connection.start(patience=CONTROLLER_GRACE)

    def leave(self) -> None:
        """This engine is to end: what that interrupts fails with it, or runs elsewhere."""
        self._leaving, self._interrupted = True, self._loop.running

    def stop(self) -> Deferred[None]:
        """Disconnect, after what was said has arrived."""
        self._deadlines.stop()
        self._outbox.stop()
        return self._connection.stop().addBoth(lambda _: self._blobs.close())

    # -- called from the main thread ------------------------------------------------

    def job_started(self, job: AnyJob) -> None:
        """A job begins."""
        if job.timeout > 0:
            self._deadlines.job_started(job)

    def job_done(self, job: AnyJob, status: str, parts: Sequence[Buffer]) -> None:
        """A job ended; the next one starts when this returns, and may change what `parts` are views of."""
        if self._leaving and (status == "error" or (isinstance(job, Task) and job is self._interrupted)):
            return  # a task may be made of several calls, and have an interrupted one among its results
        behind: Sequence[AnyJob] = ()
        if status != "ok" and isinstance(job, Command) and job.submit.stop >= 0:
            behind = self._commands.stop_behind(job)
        self._outbox.job_done(job, status, parts, behind)

    def output_waits(self) -> None:
        """There is output to send, where there was none before."""
        self._outbox.output_waits()

    # -- handshake ----------------------------------------------------------------------

    def _detail(self) -> dict[str, Any]:
        clients = sorted(self._commands.clients | self._tasks.clients)
        memory = self._shared.host if self._shared is not None else ""
        return {**self._identity, "held": self._commands.held(), "clients": clients, "memory": memory}

    def _welcomed(self, detail: dict[str, Any], resumed: bool) -> None:
        self._outbox.engine = self._identity["wanted"] = detail["id"]
        self._identity["replaces"] = {}
        if not resumed:
            self._loop.board.new_session()
            self._blobs.session_lost()
            self._commands.session_lost()
        self._blobs.ask_for_all()
        self._on_registered(self.id)

    # -- records --------------------------------------------------------------------------

    def _receive(self, record: Record, raw: bytes) -> None:
        self._handlers[type(record)](record)

    def _interrupt(self, interrupt: Interrupt) -> None:
        if interrupt.id:
            for job in self._loop.cancel(lambda job: job.id == interrupt.id):
                self._end_unstarted(job, "KeyboardInterrupt", "before it ran")
            self._tasks.send()
        record, board = self._connection.received, self._loop.board
        if not board.served(record):  # else the nanny did it, while this thread stood still
            self._loop.interrupt(interrupt.id)
        board.hear(record)

    def _withdraw(self, withdraw: Withdraw) -> None:
        self._tasks.withdraw(withdraw)
        self._loop.board.hear(self._connection.received)

    def _end_unstarted(self, job: AnyJob, ename: str, evalue: str) -> None:
        if isinstance(job, Task):
            self._tasks.end_unstarted(job, ename, evalue)
        else:
            self._commands.end_unstarted(job, ename, evalue)

    def _departed(self, departed: Departed) -> None:
        self._asking.departed(departed)
        self._commands.departed(departed)
        self._tasks.departed(departed)

    def _finish(self, job: AnyJob, outcome: Outcome, behind: Sequence[AnyJob]) -> None:
        if isinstance(job, Task):
            self._tasks.finish(job, outcome)
        else:
            self._commands.finish(job, outcome, behind)


def _call_now(f: Callable[..., None], *args: Any) -> None:
    f(*args)
