"""The reactor's side of a client: what is outstanding, and what came of it.

Methods marked "any thread" are what the classes users see call; everything
else runs in the reactor thread.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from ipython1.kernel.client.batches import Batches
from ipython1.kernel.client.bridge import IBridge
from ipython1.kernel.client.detaching import Detaching, detach_all
from ipython1.kernel.client.enginetable import EngineTable
from ipython1.kernel.client.forgetting import Forgetting
from ipython1.kernel.client.incoming import Incoming, Outstanding
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.questions import Questions
from ipython1.kernel.client.room import OVERHEAD
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.error import ClientClosed, ConnectionFailed, IPython1Error, SerializationError
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.wire.blobs import Buffer, ChunkStore
from ipython1.kernel.wire.codec import encode, pack, unpack_map
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.records import (
    INLINE_LIMIT,
    Answer,
    Ask,
    Cancel,
    Chunk,
    Engines,
    Event,
    Fetch,
    Grant,
    Input,
    Interrupt,
    Outcomes,
    Record,
    Result,
    Submit,
    Targets,
)
from ipython1.kernel.wire.shared import SharedMemory

#: Bytes of an operation's small arguments, such as the names to pull.
ARGS_LIMIT = 2 * 1024 * 1024
#: Seconds a client looks for a controller that was there before.
CONTROLLER_GRACE = 60.0


class ClientCore:
    """One connection to the controller and the commands outstanding on it.

    Parameters
    ----------
    clock : IReactorTime
    bridge : IBridge
        Carries calls into the reactor thread, and waits.
    dialer : IDialer
        Ways to the controller.
    kind : str
        What the FURL allows us to be: multiengine, task or view.
    shared : SharedMemory, optional
        Used for bulk bytes, and closed with the connection.
    """

    def __init__(
        self,
        clock: Any,
        bridge: IBridge,
        dialer: IDialer,
        kind: str = "multiengine",
        shared: SharedMemory | None = None,
    ) -> None:
        self.client_id = uuid.uuid4().hex[:12]
        self.pending: dict[str, PendingResult] = {}
        #: stop_on_error epoch: grows with each failure this client has seen.
        self.epoch = 0
        self._clock = clock
        self._bridge = bridge
        self._dialer = dialer
        self._numbers = itertools.count(1)
        self.table = EngineTable()
        self._outstanding: dict[str, Outstanding] = {}
        self._error: Exception | None = None  # why users can send nothing any more
        self._ended = False  # nothing is sent any more, not even what came before the close
        self._opened: Future[None] = Future()
        self._at_shutdown: Any = None
        self._connection = Connection(
            clock,
            dialer,
            kind,
            detail=self._detail,
            receive=self._receive,
            welcomed=self._welcomed,
            lost=self._lost,
            grace=CONTROLLER_GRACE,
        )
        self._blobs = ChunkStore(self._connection.send, shared, clock)
        self.tasks = Batches(clock, bridge, self._blobs, self._connection.send, self.new_id)
        self._room = self.tasks.room
        self._forgetting = Forgetting(clock, self.client_id, self._connection.send)
        self._questions = Questions(self._connection.send)
        self.detaching = Detaching(
            self._connection.send,
            lambda: self._connection.linked,
            self._outstanding,
            self.tasks,
            self._blobs,
            self._questions,
        )
        self._incoming = Incoming(
            self._outstanding, self._blobs, self._connection.send, self._forgetting.plan, self._result_here
        )
        self._handlers: dict[type[Record], Callable[[Any], None]] = {
            Result: self._incoming.arrived,
            Event: self._event,
            Outcomes: self.tasks.incoming.outcomes,
            Engines: lambda record: self.table.take(unpack_map(record.table)),
            Answer: self._questions.answered,
            Chunk: self._blobs.chunk_received,
            Grant: self._blobs.grant_received,
        }

    # -- any thread: the connection ----------------------------------------------------

    def open(self) -> Future[None]:
        """Connect; the Future fails with a `ConnectionFailed`."""
        self._bridge.submit(self._open)
        return self._opened

    def close(self) -> None:
        """Disconnect, after what was sent has arrived. What is outstanding fails."""
        if self._error is None:
            self._error = ClientClosed()
            with contextlib.suppress(ClientClosed):  # forked, or the reactor has ended: nothing is open here
                self._bridge.submit(self._close)

    def check_usable(self) -> None:
        """Raise what makes this client unusable, if anything does."""
        self._bridge.check()
        if self._error is not None:
            # One that is raised again keeps the frames of all its callers; with tblib, so does its copy.
            raise copy.copy(self._error).with_traceback(None)

    @property
    def address(self) -> str:
        """Where the controller is: 'host:port'."""
        return str(self._dialer.address)

    def engines(self) -> tuple[dict[str, Any], ...]:
        """The engines as last heard of, sorted by id."""
        return self.table.engines

    # -- any thread: waiting and callbacks ------------------------------------------------

    def wait(self, future: Future[Any], timeout: float | None) -> None:
        """Block until `future` is done; see `IBridge.wait`."""
        self._bridge.wait(future, timeout)

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        """Run a user's callback outside the reactor thread."""
        self._bridge.call_user(f, *args)

    # -- any thread: commands ---------------------------------------------------------------

    def new_id(self) -> str:
        """An id for the next command."""
        return f"{self.client_id}-{next(self._numbers)}"

    def submit(
        self,
        pending: PendingResult,
        submits: Sequence[tuple[Targets, Sequence[Buffer]]],
        op: str,
        args: dict[str, Any],
        label: str,
        timeout: float = 0.0,
        stop_on_error: bool = False,
        giver: int = -1,
    ) -> None:
        """Send a command, as one record a distinct payload; everything is copied.

        Returns at once, unless very much is outstanding. With a `giver` the
        payload is what that engine gives when it is asked with `args`.
        """
        self.check_usable()
        id = pending.command_id
        packed = pack(args)
        if len(packed) > ARGS_LIMIT:
            raise SerializationError(what="The list of arguments", reason=f"it has {len(packed)} bytes")
        stop = self.epoch if stop_on_error else -1
        records: list[bytes] = []
        held: dict[str, memoryview] = {}
        source = self.new_id() if giver >= 0 else ""
        if source:
            records.append(encode(Submit(source, (giver,), "give", label, stop, 0.0, packed, (), gives=True)))
            packed = pack({})
        try:
            for number, (targets, parts) in enumerate(submits):
                split, blobs = self._blobs.split(parts, f"{id}/s{number}", INLINE_LIMIT)
                held.update(blobs)
                submit = Submit(
                    id, targets, op, label, stop, timeout, packed, split, source=source, giver=giver
                )
                records.append(encode(submit))
            out = Outstanding(pending, tuple(records), left=len(pending.targets), blobs=held or None)
            self._room.take(_size(out))
            self.check_usable()
        except BaseException:
            self._release(held)
            raise
        self.pending[id] = pending
        self._bridge.submit(self._send, out)

    def fetch(self, pending: PendingResult, targets: Targets) -> None:
        """Ask for the results of a command that this or another client sent."""
        self.check_usable()
        id = pending.command_id
        self.pending[id] = pending
        self._bridge.submit(self._send, Outstanding(pending, fetched=True, left=len(targets)))

    def sent(self, id: str) -> tuple[int, int]:
        """Bulk bytes of a command that have arrived, and how many there are."""
        out = self._outstanding.get(id)
        blobs = (out.blobs if out is not None else None) or {}
        return sum(map(self._blobs.sent, blobs)), sum(map(len, blobs.values()))

    def abort(self, pending: PendingResult, interrupt: bool = False, reason: str = "TaskAborted") -> None:
        """Take a command or tasks out of the queues; where they run, interrupt them if asked to."""
        if isinstance(pending, TaskPending):
            self.tasks.withdraw(pending.command_id, pending.unfinished, interrupt)
            return
        id, targets = pending.command_id, tuple(pending.targets)
        if interrupt:
            self._bridge.submit(self._send_end, Interrupt(targets, id))
        else:
            self._bridge.submit(self._send_end, Cancel((id,), targets, reason))

    def is_own(self, pending: PendingResult) -> bool:
        """Whether this client sent it, and has not only asked for the results of another one."""
        return pending.command_id.partition("-")[0] == self.client_id

    def detach(self, pendings: Sequence[PendingResult]) -> list[str]:
        """Have work go on without this client; see `detach_all`."""
        return detach_all(self, pendings)

    def answer(self, record: Input) -> None:
        """Answer a question of a running command."""
        self._bridge.submit(self._send_answer, record)

    def interrupt(self, targets: Targets, id: str = "", stuck: str = "") -> None:
        """KeyboardInterrupt in what runs on `targets`, or only in command `id`; `stuck` as in `Interrupt`."""
        self._bridge.submit(self._connection.send, Interrupt(tuple(targets), id, stuck))

    def ask(self, what: str, **body: Any) -> Future[Any]:
        """Ask the controller itself."""
        self.check_usable()
        future: Future[Any] = Future()
        self._bridge.submit(self._send_ask, Ask(self.new_id(), what, pack(body)), future)
        return future

    def forget(self, pending: PendingResult) -> None:
        """The user no longer wants a result: stop waiting for it."""
        self.pending.pop(pending.command_id, None)
        self._bridge.submit(self._drop, pending.command_id)

    # -- sending -----------------------------------------------------------------------------

    def _send(self, out: Outstanding) -> None:
        if self._ended:
            self._release(out.blobs or ())
            self._fail(out, self._error or ClientClosed())
            return
        self._outstanding[out.pending.command_id] = out
        if self._connection.linked:
            out.engines = self.table.engines
        for raw in out.submits:
            self._connection.send_raw(raw)
        self._send_rest(out)

    def _send_again(self, out: Outstanding) -> None:
        """A controller does not know us: send what is unresolved, and who has it."""
        for submit in out.unresolved():
            self._connection.send(submit)
        self._send_rest(out)
        for answer in (out.answers or {}).values():
            self._connection.send(answer)
        if out.end is not None:
            self._connection.send(out.end)

    def _send_rest(self, out: Outstanding) -> None:
        if out.fetched:
            targets = tuple(filter(out.pending.awaits, out.pending.targets))
            self._connection.send(Fetch(out.pending.command_id, targets))
        for blob, data in (out.blobs or {}).items():
            self._blobs.offer(blob, data)

    def _release(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            self._blobs.release(blob)

    def _send_end(self, record: Cancel | Interrupt) -> None:
        id = record.id if isinstance(record, Interrupt) else record.ids[0]
        out = self._outstanding.get(id)
        if out is not None:
            out.end = record
        self._connection.send(record)

    def _send_answer(self, record: Input) -> None:
        out = self._outstanding.get(record.id)
        if out is not None:
            out.answers = {**(out.answers or {}), record.targets: record}
            self._connection.send(record)

    def _send_ask(self, ask: Ask, future: Future[Any]) -> None:
        if self._ended:
            future.set_exception(self._error or ClientClosed())
            return
        self.tasks.flush()  # what was sent before a question is known when it is answered
        self._questions.ask(ask, future)

    def _open(self) -> None:
        # A program may end right after its last call: what it sent still goes out.
        at_shutdown = getattr(self._clock, "addSystemEventTrigger", None)
        if at_shutdown is not None:
            self._at_shutdown = at_shutdown("before", "shutdown", self._connection.stop)
        self._connection.start()

    # -- the connection ---------------------------------------------------------------------------

    def _detail(self) -> dict[str, Any]:
        """Who we are, and the engines that a restarted controller may wait for."""
        return {"client": self.client_id, "engines": [engine["id"] for engine in self.table.engines]}

    def _welcomed(self, detail: dict[str, Any], resumed: bool) -> None:
        if not self._opened.done():
            self.table.first(detail)
            self._opened.set_result(None)
        else:
            self.table.take(detail)
            if not resumed:
                self._another_controller()
        for out in self._outstanding.values():
            if out.engines is None:
                out.engines = self.table.engines
        self.detaching.welcomed(resumed)
        if not resumed:
            self._questions.ask_again(self.address)
        self._blobs.ask_for_all()

    def _another_controller(self) -> None:
        self._blobs.session_lost()
        self.table.another_controller()
        for out in list(self._outstanding.values()):
            self._send_again(out)
        self.tasks.send_again()
        self._forgetting.send_again()

    def _lost(self, reason: Exception) -> None:
        self._error = reason if isinstance(reason, IPython1Error) else ConnectionFailed(str(reason))
        self._end()
        self._closed(None)
        if not self._opened.done():
            self._opened.set_exception(self._error)

    def _close(self) -> None:
        self._forgetting.flush()
        self.tasks.flush_taken()
        self._end()
        if not self._opened.done():
            self._opened.set_exception(ClientClosed())
        self._connection.stop().addBoth(self._closed)

    def _closed(self, result: object) -> None:
        if self._at_shutdown is not None:
            self._clock.removeSystemEventTrigger(self._at_shutdown)
            self._at_shutdown = None
        self._blobs.close()

    def _end(self) -> None:
        self._ended = True
        error = self._error or ClientClosed()
        for out in list(self._outstanding.values()):
            self._fail(out, error)
        self._outstanding.clear()
        self.tasks.fail(error)
        self._questions.fail(error)
        self.detaching.fail(error)
        self._forgetting.stop()
        self.table.tell()

    def _fail(self, out: Outstanding, reason: Exception) -> None:
        self.pending.pop(out.pending.command_id, None)
        out.pending.fail(reason)

    # -- records -----------------------------------------------------------------------------------

    def _receive(self, record: Record, raw: bytes) -> None:
        handler = self._handlers.get(type(record))
        if handler is not None:
            handler(record)

    def _event(self, event: Event) -> None:
        if "#" in event.id:
            self.tasks.incoming.event(event)
        else:
            self._incoming.arrived(event)

    def _result_here(self, out: Outstanding, result: Result) -> None:
        if result.status != "ok":
            self.epoch += 1
        if not out.left:
            self.pending.pop(result.id, None)
            self._drop(result.id)

    def _drop(self, id: str) -> None:
        out = self._outstanding.pop(id, None)
        if out is not None:
            self._room.free(_size(out))
            self._release(out.blobs or ())
            self._incoming.drop(out)


def _size(out: Outstanding) -> int:
    """What a command takes of the controller's memory, about."""
    return sum(map(len, out.submits)) + OVERHEAD * len(out.pending.targets) if out.submits else 0
