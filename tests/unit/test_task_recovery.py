"""Tasks exactly once, whatever breaks: the whole stack in memory against a list of what was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipython1.kernel.client.core import ClientCore
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.controller.service import RETURN_GRACE
from ipython1.kernel.error import TaskRejected
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire import objects

N = 3
LARGE = 100_000


class Run(NamedTuple):
    """One run of a task, in any process."""

    number: int
    engine: str  # uuid
    what: str


class Diary:
    """What ran, and where. The engines of a cluster in memory write it themselves."""

    def __init__(self) -> None:
        self.cluster: MemoryCluster | None = None
        self.runs: list[Run] = []
        self.dead: set[str] = set()

    def run(self, number: int, kind: str, engine_id: int, data: Any) -> Any:
        """Called by the task, on its engine."""
        assert self.cluster is not None
        engine = self.cluster.engine(engine_id).uuid
        earlier = sum(run.number == number for run in self.runs)
        what = "ok"
        if kind == "fails" or (kind == "fails first" and not earlier):
            what = "ValueError"
        elif kind == "not on 0" and engine_id == 0:
            what = "TaskRejected"
        self.runs.append(Run(number, engine, what))
        if what == "ValueError":
            raise ValueError(f"{number} failed")
        if what == "TaskRejected":
            raise TaskRejected("not here")
        assert data is None or bytes(data) == bytes([number % 256]) * LARGE
        return number if kind != "large" else (number, b"r" * LARGE)

    def good(self, number: int) -> int:
        """How often a task ran to its end on engines that still live."""
        return sum(run == (number, run.engine, "ok") and run.engine not in self.dead for run in self.runs)


DIARY = Diary()


def make_work() -> Callable[..., Any]:
    """A function that travels by value, and so sees the namespace of its engine."""

    def work(number: int, kind: str, data: Any = None) -> Any:
        import sys

        diary = sys.modules["tests.unit.test_task_recovery"].DIARY
        if kind == "prints":
            print(number)
            print("again", number, file=sys.stderr)
        return diary.run(number, kind, engine_id, data)  # type: ignore[name-defined]  # noqa: F821

    return work


WORK = objects.dumps_call(make_work())


def args_of(number: int, kind: str) -> Sequence[Any]:
    data = bytearray(bytes([number % 256]) * LARGE) if kind == "large" else None
    return objects.dumps(((number, kind, data), {}))


class Sent(NamedTuple):
    """A task that was sent: where its result will be."""

    pending: TaskPending
    slot: int
    kind: str

    def outcome(self) -> tuple[str, Any]:
        """'ok' and the value, or the name of the error."""
        source = self.pending._arrivals.decode(self.slot)
        return ("ok", source.value) if source.failure is None else (source.failure.ename, None)


def send(core: ClientCore, numbers: Sequence[int], kind: str, **rules: Any) -> list[Sent]:
    """A batch of its own."""
    batch = core.tasks.open("call", WORK, label=kind, rules=rules)
    slots = core.tasks.reserve(batch, len(numbers))
    pending = TaskPending(core, batch, "map", slots)
    core.tasks.add(pending, slots, [args_of(number, kind) for number in numbers])
    core.tasks.close(batch)
    return [Sent(pending, slot, kind) for slot in slots]


def assert_nothing_is_kept(cluster: MemoryCluster, *cores: ClientCore) -> None:
    """Neither at clients nor in controller and engines."""
    cluster.run_until(lambda: len(cluster.ready_ids()) == len(cluster.engines), timeout=100)
    for _ in range(4):
        cluster.clock.advance(0.2)
        cluster.settle()
    for core in cores:
        tasks = core.tasks
        assert not tasks._batches
        assert not tasks._unsent
        assert tasks._flush_call is None
        assert not core._blobs._held
        assert not core._blobs._incoming
    assert cluster.controller is not None
    book = cluster.controller.tasks
    assert not book._batches
    assert not book._endings.unwanted
    assert not book._endings.item_blobs
    assert not book._searches._searches
    assert not book._telling._seekers
    assert not book._dependencies._waiting
    assert not book._timers._calls
    assert book._dispatcher._rebalance_call is None
    assert book._dispatcher._ready == book._dispatcher._handed == 0
    assert all(not len(hand) for hand in book._dispatcher._hands.values())
    assert len(cluster.controller.router.blobs) == 0
    for engine in cluster.engines:
        tasks = engine.service._tasks
        assert not tasks._batches, engine.service.id
        assert not tasks._ends
        assert not engine.service._blobs._incoming


KINDS = st.sampled_from(["plain", "plain", "prints", "large", "fails", "fails first", "not on 0"])
STEP = st.one_of(
    st.tuples(st.just("send"), KINDS, st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("send"), KINDS, st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("one more"), KINDS),
    st.tuples(st.just("after"), st.sampled_from(["success", "failure", "completion"]), st.integers(0, 8)),
    st.tuples(st.just("follow"), st.integers(0, 8)),
    st.tuples(st.just("abort"), st.integers(0, 8), st.booleans()),
    st.tuples(st.just("seek"), st.integers(0, 8)),
    st.tuples(st.just("end engine"), st.integers(0, N - 1), st.booleans()),
    st.tuples(st.just("cut"), st.sampled_from(["client", "other", "nanny"])),
    st.tuples(st.just("cut engine"), st.integers(0, N - 1)),
    st.tuples(st.just("forget client")),
    st.tuples(st.just("stop controller")),
    st.tuples(st.just("start controller")),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.02, 0.1, 1.0])),
)
STEPS = st.lists(STEP, max_size=40)


class Model:
    """Drives a cluster by steps, and says what must have come of it."""

    def __init__(self, cluster: MemoryCluster, diary: Diary) -> None:
        self.cluster = cluster
        self.diary = diary
        diary.cluster = cluster
        self.clients = {"client": cluster.task_client(), "other": cluster.task_client()}
        self.core, self.other = (client._core for client in self.clients.values())
        self.sent: dict[int, Sent] = {}
        self.aborted: set[int] = set()
        #: Tasks that depend on others: what they depend on, and how.
        self.needs: dict[int, tuple[str, int]] = {}
        self.sought: list[tuple[int, Sent]] = []
        self.deaths = 0
        self.restarts = 0
        self.retries: dict[int, int] = {}
        self.open = self.core.tasks.open("call", WORK, label="open")

    def new(self, count: int) -> range:
        return range(len(self.sent), len(self.sent) + count)

    def chosen(self, back: int) -> int | None:
        return len(self.sent) - 1 - back if len(self.sent) > back else None

    def do(self, what: str, *args: Any) -> None:
        cluster = self.cluster
        if what == "send":
            kind, count, retries = args
            numbers = self.new(count)
            self.retries.update(dict.fromkeys(numbers, retries))
            self.sent.update(zip(numbers, send(self.core, numbers, kind, retries=retries), strict=True))
        elif what == "one more":
            [number] = self.new(1)
            slots = self.core.tasks.reserve(self.open)
            pending = TaskPending(self.core, self.open, "submit", slots)
            self.core.tasks.add(pending, slots, [args_of(number, args[0])])
            self.sent[number] = Sent(pending, slots[0], args[0])
        elif what in ("after", "follow"):
            which = self.chosen(args[-1])
            if which is not None:
                [number] = self.new(1)
                on = self.sent[which]
                rules: dict[str, Any] = {what: [(on.pending.command_id, on.slot)]}
                if what == "after":
                    rules["when"] = args[0]
                self.needs[number] = (args[0] if what == "after" else "follow", which)
                [self.sent[number]] = send(self.core, [number], "plain", **rules)
        elif what == "abort":
            which = self.chosen(args[0])
            if which is not None:
                self.aborted.update(
                    n for n, it in self.sent.items() if it.pending is self.sent[which].pending
                )
                self.sent[which].pending.abort(interrupt=args[1])
        elif what == "seek":
            which = self.chosen(args[0])
            if which is not None:
                task = self.sent[which]
                pending = TaskPending(self.other, task.pending.command_id, "seek", (task.slot,))
                self.other.tasks.seek(pending)
                self.sought.append((which, Sent(pending, task.slot, task.kind)))
        elif what == "end engine":
            engine = cluster.engines[args[0]]
            self.diary.dead.add(engine.uuid)
            self.deaths += 1
            cluster.end_engine(engine, "killed", restart=args[1])
            if not args[1]:
                cluster.start_engine()
        elif what == "cut":
            dialer = cluster.nanny.dialer if args[0] == "nanny" else self.clients[args[0]]._core._dialer
            dialer.cut()
        elif what == "cut engine":
            cluster.engines[args[0]].dialer.cut()
        elif what == "forget client" and cluster.controller is not None:
            for peer in cluster.controller.peers:
                if peer.key == self.core.client_id:
                    cluster.controller._overflow(peer)
            self.core._dialer.cut()
        elif what == "stop controller":
            cluster.stop_controller()
        elif what == "start controller":
            self.restarts += 1
            cluster.stop_controller()
            cluster.start_controller()
        elif what == "turn":
            for _ in range(args[0]):
                cluster.step()
        elif what == "wait":
            cluster.clock.advance(args[0])

    def finish(self) -> None:
        """Let everything come to its end."""
        if self.cluster.controller is None:
            self.cluster.start_controller()
        self.core.tasks.close(self.open)
        for task in (*self.sent.values(), *(sought for _, sought in self.sought)):
            self.cluster.run_until(task.pending.done, timeout=200)
            assert task.pending._broken is None

    def check(self) -> None:
        """Every task has one end, the right one, and ran no more often than it had to."""
        runs = Counter(run.number for run in self.diary.runs)
        for number, task in self.sent.items():
            what, value = task.outcome()
            assert what in self.allowed(number, task), (number, task.kind, what)
            if what == "ok":
                assert value == (number if task.kind != "large" else (number, b"r" * LARGE))
                assert runs[number] >= 1
            if what == "ImpossibleDependency":  # one that ran where it had to may have died there
                followed = self.needs.get(number, ("", 0))[0] == "follow"
                assert not runs[number] or (followed and self.deaths)
            if task.kind == "prints" and what == "ok":
                source = task.pending._arrivals._sources[task.slot]
                assert source.text("stdout") == f"{number}\n"
                assert source.text("stderr") == f"again {number}\n"
            assert self.diary.good(number) <= 1, (number, [r for r in self.diary.runs if r.number == number])
            if not self.restarts and task.kind == "fails":
                living = sum(r.number == number and r.engine not in self.diary.dead for r in self.diary.runs)
                assert living <= 1 + self.retries.get(number, 0)
        for number, sought in self.sought:
            what = sought.outcome()[0]
            assert what in (self.sent[number].outcome()[0], "UnknownResult"), (number, what)

    def allowed(self, number: int, task: Sent) -> set[str]:
        good = {"plain": {"ok"}, "fails": {"ValueError"}}.get(task.kind, {"ok"})
        if task.kind == "fails first":
            good = {"ok", "ValueError"} if not self.retries.get(number) or self.deaths else {"ok"}
        if task.kind == "not on 0":
            good = {"ok", "TaskRejected"} if self.deaths else {"ok"}
        if number in self.aborted:
            good |= (
                {"TaskAborted", "KeyboardInterrupt", "ValueError"}
                if task.kind.startswith("fails")
                else {
                    "TaskAborted",
                    "KeyboardInterrupt",
                }
            )
        if self.deaths >= 3:
            good |= {"EngineDied"}
        if number in self.needs:
            when, on = self.needs[number]
            ok = self.sent[on].outcome()[0] == "ok"
            met = {"success": ok, "failure": not ok, "completion": True, "follow": ok}[when]
            if not met:
                return {"ImpossibleDependency", *(good - {"ok"})}
            if when == "follow" and self.deaths:
                good |= {"ImpossibleDependency"}
        return good


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS)
def test_every_task_ends_once_and_runs_no_more_often_than_it_must(steps: list[tuple[Any, ...]]) -> None:
    global DIARY
    DIARY = Diary()
    with MemoryCluster(N) as cluster:
        cluster.clock.advance(RETURN_GRACE)
        cluster.settle()
        model = Model(cluster, DIARY)
        for what, *args in steps:
            model.do(what, *args)
        model.finish()
        model.check()
        assert_nothing_is_kept(cluster, model.core, model.other)
