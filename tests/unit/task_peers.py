"""A controller among clients and engines that are simulated: tasks take the time of a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.task import Clock

from ipython1.kernel.controller.ledger import Folder
from ipython1.kernel.controller.lifecycle import LAST_WORDS
from ipython1.kernel.controller.service import RETURN_GRACE, Controller
from ipython1.kernel.error import RemoteFailure
from ipython1.kernel.wire.codec import decode_failure, encode_failure, pack, unpack
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.memory import MemoryDialer
from ipython1.kernel.wire.records import (
    Answer,
    Ask,
    Batch,
    End,
    Event,
    Exited,
    Outcomes,
    Parts,
    Record,
    Result,
    Seek,
    Submit,
    Taken,
    Withdraw,
    Work,
)

Key = tuple[str, int]
#: What a simulated engine makes of a task: 'ok', 'error' or 'rejected', after so many seconds.
Plan = tuple[str, float]
FOREVER = float("inf")


def failure(name: str) -> Parts:
    """The parts of a failed attempt."""
    return (encode_failure(RemoteFailure(name, "said so")),)


class Peer:
    """One end of a connection to the controller of a world."""

    def __init__(self, world: TaskWorld, furl: str, kind: str, detail: dict[str, Any]) -> None:
        self.world = world
        self.heard: list[Record] = []
        self.detail = detail
        self.id = -1
        self.welcomes: list[bool] = []
        self.dialer = MemoryDialer(
            world.clock, lambda: world.controller.door(furl) if world.controller is not None else None
        )
        self.connection = Connection(
            world.clock,
            self.dialer,
            kind,
            detail=lambda: self.detail,
            receive=self.receive,
            welcomed=self.welcomed,
            lost=lambda error: None,
            grace=1000.0,
        )
        world.peers.append(self)
        self.connection.start()
        world.run()

    def receive(self, record: Record, raw: bytes) -> None:
        """Keep it."""
        self.heard.append(record)

    def welcomed(self, detail: dict[str, Any], resumed: bool) -> None:
        """Keep the engine id."""
        self.welcomes.append(resumed)
        self.id = detail.get("id", -1)
        if self.id >= 0:
            self.detail["wanted"] = self.id

    def send(self, *records: Record) -> None:
        """Send, and let the controller work."""
        for record in records:
            self.connection.send(record)
        self.world.run()

    def hear(self, kind: type[Record]) -> list[Any]:
        """The records of one kind."""
        return [record for record in self.heard if isinstance(record, kind)]

    def vanish(self) -> None:
        """The process is gone: nothing will dial again."""
        self.connection._stopped = True
        self.dialer.cut()


class TaskUser(Peer):
    """A client that sends tasks, and notes what comes of them."""

    def __init__(self, world: TaskWorld, name: str, engines: Sequence[int] = ()) -> None:
        #: What came of each task, in order: 'ok' or the name of the error, and where.
        self.ends: dict[Key, list[tuple[str, int]]] = {}
        self._count = 0
        super().__init__(world, "task", "task", {"client": name, "engines": list(engines)})

    def receive(self, record: Record, raw: bytes) -> None:
        """Note outcomes."""
        super().receive(record, raw)
        if isinstance(record, Outcomes):
            for index, _, status, _, _, _, parts in record.items:
                what = status
                if status == "error" and isinstance(parts[0], bytes):
                    what = decode_failure(parts[0], record.engine, "").ename
                self.ends.setdefault((record.batch, index), []).append((what, record.engine))

    def open(self, count: int = 0, parts: Parts = (), label: str = "", **rules: Any) -> str:
        """Open a batch, with tasks 0 to `count`."""
        self._count += 1
        id = f"{self.detail['client']}-{self._count}"
        self.send(Batch(id, "call", label, 0.0, pack(rules), pack({}), parts))
        if count:
            self.work(id, range(count))
        return id

    def work(
        self, batch: str, indexes: Iterable[int], again: bool = False, parts: Parts = (b"args",)
    ) -> None:
        """Send tasks."""
        self.send(Work(batch, tuple((index, 0, parts) for index in indexes), again))

    def end(self, batch: str, index: int = 0) -> str:
        """What came of a task: it has one outcome."""
        [(what, _)] = self.ends[batch, index]
        return what

    def all_ends(self, batch: str) -> dict[str, int]:
        """How many tasks of a batch came out how; each once."""
        found: dict[str, int] = {}
        for (id, _), ends in self.ends.items():
            if id == batch:
                [(what, _)] = ends
                found[what] = found.get(what, 0) + 1
        return found

    def message(self, batch: str, index: int = 0) -> str:
        """What the failure of a task says."""
        for record in reversed(self.hear(Outcomes)):
            for end in record.items:
                if (record.batch, end[0]) == (batch, index):
                    return decode_failure(end[6][0], record.engine, "").evalue
        raise AssertionError("no outcome")

    def ask(self, what: str, **body: Any) -> Any:
        """Ask the controller."""
        self.send(Ask("q", what, pack(body)))
        return unpack(self.hear(Answer)[-1].body)


class TaskEngine(Peer):
    """An engine that takes its time, as real ones do what the protocol says.

    `plan` says what becomes of an attempt at a task; FOREVER: `finish` does.
    """

    def __init__(
        self,
        world: TaskWorld,
        uuid: str,
        plan: Callable[[Key, int], Plan] | None = None,
        wanted: int = -1,
        replaces: dict[str, str] | None = None,
    ) -> None:
        self.plan = plan or (lambda key, attempt: ("ok", 0.001))
        self.uuid = uuid
        self.heads: set[str] = set()
        self.queue: deque[tuple[Key, int]] = deque()
        #: No task runs before these are answered.
        self.commands: deque[Submit] = deque()
        self.done: dict[Key, End] = {}
        #: Whether what clients have is in its history.
        self.keeps = False
        #: Every attempt that began, with the time.
        self.runs: list[tuple[Key, int, float]] = []
        self._call: Any = None
        detail = {
            "uuid": uuid,
            "host": "h",
            "pid": 1,
            "nanny": "n",
            "wanted": wanted,
            "replaces": replaces or {},
            "held": [],
            "clients": [],
        }
        super().__init__(world, "engine", "engine", detail)

    def receive(self, record: Record, raw: bytes) -> None:
        """Do what the controller says."""
        super().receive(record, raw)
        if isinstance(record, Submit):
            self.commands.append(record)
        elif isinstance(record, Batch):
            self.heads.add(record.id)
        elif isinstance(record, Work):
            assert record.batch in self.heads, "tasks of a batch whose head did not come"
            for index, attempt, _ in record.items:
                key = (record.batch, index)
                if any(held == (key, attempt) for held in self.queue):
                    continue
                assert attempt > self.done.get(key, (0, 0))[1]
                self.done.pop(key, None)
                self.queue.append((key, attempt))
            self._begin()
        elif isinstance(record, Withdraw):
            self._withdraw(record)
        elif isinstance(record, Seek):
            for index in record.items:
                self._tell_again((record.batch, index))
        elif isinstance(record, Taken) and not self.keeps:
            for index in record.items:
                self.done.pop((record.batch, index), None)
            if record.last:
                self.heads.discard(record.batch)
                self.done = {key: end for key, end in self.done.items() if key[0] != record.batch}

    @property
    def running(self) -> Key | None:
        """The task at the head of the queue."""
        return self.queue[0][0] if self.queue else None

    @property
    def started(self) -> list[Key]:
        """The tasks in the order they began, each attempt."""
        return [key for key, _, _ in self.runs]

    def print(self, text: str, index: int = 0) -> None:
        """The running task prints."""
        key, attempt = self.queue[0]
        self.send(Event(f"{key[0]}#{key[1]}", self.id, index, "stdout", text, (), attempt))

    def finish(self, status: str = "ok", name: str = "", parts: Parts = (b"value",)) -> Key:
        """The running task ends now."""
        name = name or {"rejected": "TaskRejected"}.get(status, "ValueError")
        key, attempt = self.queue.popleft()
        self._call = None if self._call is None or not self._call.active() else self._call.cancel()
        now = self.world.clock.seconds()
        end: End = (
            key[1],
            attempt,
            status,
            self.runs[-1][2],
            now,
            0,
            parts if status == "ok" else failure(name),
        )
        if status != "rejected":
            self.done[key] = end
        self._tell(key, end)
        self._begin()
        return key

    def reply(self) -> None:
        """A command ends now."""
        command = self.commands.popleft()
        self.send(Result(command.id, self.id, command.op, "ok", 1.0, 2.0, 0, ()))
        self._begin()

    def _begin(self) -> None:
        if self.queue and not self.commands and (self._call is None or not self._call.active()):
            key, attempt = self.queue[0]
            if self.runs and self.runs[-1][:2] == (key, attempt):
                return  # it runs, until `finish`
            self.runs.append((key, attempt, self.world.clock.seconds()))
            status, seconds = self.plan(key, attempt)
            if seconds != FOREVER:
                self._call = self.world.clock.callLater(seconds, self.finish, status)

    def _withdraw(self, record: Withdraw) -> None:
        for held in list(self.queue)[not self.commands :]:
            key, attempt = held
            if key[0] == record.batch and (not record.items or key[1] in record.items):
                self.queue.remove(held)
                if record.how == "recall":
                    self._tell(key, (key[1], attempt, "back", 0.0, 0.0, 0, ()))
                else:
                    now = self.world.clock.seconds()
                    self.done[key] = (key[1], attempt, "error", 0.0, now, 0, failure("TaskAborted"))
                    self._tell(key, self.done[key])
        key = self.running
        named = key and key[0] == record.batch and (not record.items or key[1] in record.items)
        if named and not self.commands and record.how == "interrupt":
            self.finish("error", "KeyboardInterrupt")

    def _tell_again(self, key: Key) -> None:
        attempt = next((attempt for held, attempt in self.queue if held == key), None)
        if attempt is not None:
            self._tell(key, (key[1], attempt, "held", 0.0, 0.0, 0, ()))
        else:
            self._tell(key, self.done.get(key, (key[1], 0, "unknown", 0.0, 0.0, 0, ())))

    def _tell(self, key: Key, end: End) -> None:
        self.connection.send(Outcomes(key[0], self.id, (end,)))

    def stop(self) -> None:
        """The process is gone."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self.vanish()


class TaskWorld:
    """A controller, its clock, and its peers."""

    def __init__(
        self, scheduler: Any = None, grace_over: bool = True, detached: Folder | None = None
    ) -> None:
        self.detached = detached
        self.clock = Clock()
        self.clock.advance(1000.0)  # 0 stands for "never ran"
        self.scheduler = scheduler
        self.peers: list[Peer] = []
        self.controller: Controller | None = None
        self.start_controller()
        self.nanny = Peer(
            self, "engine", "nanny", {"uuid": "n", "host": "h", "pid": 0, "engines": [], "exited": []}
        )
        if grace_over:
            self.run(RETURN_GRACE)

    # -- time ----------------------------------------------------------------------------

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass, from event to event."""
        end = self.clock.seconds() + seconds
        while True:
            due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end + 1)
            if due > end:
                break
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def run_until(self, true: Callable[[], Any], limit: float = 100.0) -> float:
        """Let time pass until something is true; how much that was."""
        began = self.clock.seconds()
        while not true():
            calls = [call.getTime() for call in self.clock.getDelayedCalls()]
            assert min(calls, default=began + limit) < began + limit, "it does not come true"
            self.clock.advance(max(0.0, min(calls) - self.clock.seconds()))
        return self.clock.seconds() - began

    # -- who is there ------------------------------------------------------------------------

    @property
    def book(self) -> Any:
        """The task book."""
        assert self.controller is not None
        return self.controller.tasks

    def client(self, name: str = "c1", engines: Sequence[int] = ()) -> TaskUser:
        """A client for tasks."""
        return TaskUser(self, name, engines)

    def multiengine(self, name: str = "m") -> Peer:
        """A client for commands."""
        return Peer(self, "multiengine", "multiengine", {"client": name})

    def engine(self, uuid: str, plan: Callable[[Key, int], Plan] | None = None, **facts: Any) -> TaskEngine:
        """An engine."""
        return TaskEngine(self, uuid, plan, **facts)

    def engines(self, n: int, plan: Callable[[Key, int], Plan] | None = None) -> list[TaskEngine]:
        """Some engines that do the same."""
        return [self.engine(f"e{i}", plan) for i in range(n)]

    def kill(self, engine: TaskEngine, replaced: bool = False, running: str = "") -> None:
        """An engine dies, and its nanny says so."""
        engine.stop()
        self.nanny.send(Exited(engine.uuid, "killed", "", replaced, running))
        self.run(LAST_WORDS)

    def start_controller(self) -> None:
        """A controller comes up where the last one was."""
        scheduler = self.scheduler() if self.scheduler is not None else None
        self.controller = Controller(
            self.clock, now=self.clock.seconds, scheduler=scheduler, detached=self.detached
        )

    def stop_controller(self) -> None:
        """All links break, all it knew is gone."""
        if self.controller is not None:
            controller, self.controller = self.controller, None
            controller.stop()

    # -- the end -----------------------------------------------------------------------------

    def assert_empty(self) -> None:
        """Nothing of any task is kept."""
        book = self.book
        assert not book._batches
        assert not book._endings.unwanted
        assert not book._endings.item_blobs
        assert not book._dependencies._waiting
        assert not book._telling._seekers
        assert not book._searches._searches
        assert not book._timers._calls
        dispatcher = book._dispatcher
        assert dispatcher._ready == dispatcher._handed == 0
        assert not dispatcher._waiting
        assert all(not len(hand) for hand in dispatcher._hands.values())
        assert self.controller is not None
        assert len(self.controller.router.blobs) == 0

    def close(self) -> None:
        """End everything."""
        for peer in self.peers:
            if isinstance(peer, TaskEngine):
                peer.stop()
            peer.connection.stop()
        self.stop_controller()
