"""Detached work exactly once, whatever breaks: the whole stack in memory against a list of what was sent."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import LoopingCall

from ipython1.kernel.client import CompositeError
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.controller.service import CLIENT_GRACE, RETURN_GRACE
from ipython1.kernel.testing import MemoryCluster

N = 2
LARGE = 70_000
#: Numbers of what ran, in any process; and of tasks, in which.
RUNS: list[int] = []
RUN = "import sys; sys.modules[{module!r}].RUNS.append({number})"

WORK = st.one_of(
    st.tuples(st.just("command"), st.integers(0, N - 1)),
    st.tuples(st.just("large"), st.integers(0, N - 1)),
    st.tuples(st.just("task"), st.booleans()),
)
TROUBLE = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(1, 3)),
        st.tuples(st.just("cut client")),
        st.tuples(st.just("cut engine"), st.integers(0, N - 1)),
        st.tuples(st.just("end engine"), st.integers(0, N - 1)),
        st.tuples(st.just("start controller")),
        st.tuples(st.just("start controller")),
        st.tuples(st.just("ask"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.02, 0.1, 1.0, RETURN_GRACE, CLIENT_GRACE + 1])),
    ),
    max_size=4,
)
#: What a client sends, how much of it it detaches, and how it leaves.
ROUND = st.tuples(
    st.lists(WORK, min_size=1, max_size=6),
    TROUBLE,
    st.integers(1, 6),
    TROUBLE,
    st.sampled_from(["vanish", "close"]),
    TROUBLE,
)


class Sent(NamedTuple):
    """Something that was sent, and what becomes of it."""

    number: int
    pending: PendingResult
    task: bool


class Model:
    """Drives a cluster by steps, and says what must have come of it."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self.sent: dict[int, Sent] = {}
        self.detached: set[int] = set()
        self.deaths = 0
        self.later = cluster.client(), cluster.task_client()
        self._time = LoopingCall(lambda: None)  # goes on, though nothing happens
        self._time.clock = cluster.clock
        self._time.start(0.25)

    def renew(self) -> None:
        """Clients of another program, while the engines have other things to do."""
        self.busy(True)
        self.cluster.run_until(lambda: len(self.cluster.ready_ids()) == N, timeout=100)
        self.clients = self.cluster.client(), self.cluster.task_client()
        self.mine: list[int] = []

    def busy(self, busy: bool) -> None:
        """Whether engines start anything: else all would run while somebody waits."""
        for engine in self.cluster.engines:
            engine.loop.__dict__.pop("run_ready", None)
            if busy:
                engine.loop.run_ready = lambda: 0  # type: ignore[method-assign]

    def do(self, what: str, *args: Any) -> None:
        cluster, number = self.cluster, len(self.sent)
        mec, tc = self.clients
        run = RUN.format(module=__name__, number=number)
        if what in ("command", "large"):
            if what == "large":
                data = b"%d" % number * LARGE
                pending = mec.apply(ran, number, data, targets=args[0], block=False)
            else:
                pending = mec.execute(f"print({number}); {run}", targets=args[0], block=False)
            self.sent[number] = Sent(number, pending, False)
            self.mine.append(number)
        elif what == "task":
            data = b"%d" % number * LARGE if args[0] else b""
            self.sent[number] = Sent(number, tc.submit(ran, number, data), True)
            self.mine.append(number)
        elif what == "detach":
            self.detach(self.mine[-args[0] :])
        elif what == "vanish":
            for client in self.clients:
                client._core._dialer._door = lambda: None
                client._core._dialer.cut()
        elif what == "close":
            for client in self.clients:
                client.close()
        elif what == "cut client":
            for client in self.clients:
                client._core._dialer.cut()
        elif what == "cut engine":
            cluster.engines[args[0]].dialer.cut()
        elif what == "end engine":
            self.deaths += 1
            cluster.end_engine(cluster.engines[args[0]], "killed", restart=True)
        elif what == "start controller":
            cluster.stop_controller()
            cluster.start_controller()
        elif what == "ask" and len(self.detached) > args[0]:
            self.ask(sorted(self.detached)[-1 - args[0]])
        elif what in ("turn", "run"):
            self.busy(what == "turn")
            for _ in range(args[0]):
                cluster.step()
            self.busy(True)
        elif what == "wait":
            self.wait(args[0])

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.cluster.clock.advance(1)
            self.cluster.settle()
        self.cluster.clock.advance(seconds % 1)

    def detach(self, numbers: list[int]) -> None:
        """All that concerns these commands and tasks."""
        for client in self.clients:
            own = [self.sent[n].pending for n in numbers if self.sent[n].task == (client is self.clients[1])]
            assert client._core.detach(own) == [pending.id for pending in own]
        self.detached.update(numbers)

    def ask(self, number: int) -> PendingResult:
        sent = self.sent[number]
        return self.later[sent.task].get_pending(sent.pending.id)

    def outcome(self, number: int) -> str:
        pending = self.ask(number)
        self.cluster.run_until(pending.done, timeout=200)
        error = pending.exception()
        if isinstance(error, CompositeError):
            return error.elist[0].ename
        return "ok" if error is None else type(error).__name__

    def check(self) -> None:
        self.busy(False)
        self.cluster.run_until(lambda: len(self.cluster.ready_ids()) == N, timeout=200)
        died = {"EngineDied", "UnknownResult"} if self.deaths else set()
        for number in self.detached:
            sent, what = self.sent[number], self.outcome(number)
            assert what in {"ok"} | died, (number, what)
            if what == "ok" and not sent.task:
                assert RUNS.count(number) == 1, number
        for number, sent in self.sent.items():
            assert RUNS.count(number) <= (1 + self.deaths if sent.task else 1), number
        for client in (*self.later, *self.clients):
            client.close()
        self._time.stop()
        self.wait(CLIENT_GRACE + 5)
        assert self.cluster.controller is not None
        ledger = self.cluster.controller.custody.ledger
        assert not ledger.parcels
        assert not ledger._concerned
        assert not self.cluster.controller.custody._custodians
        assert not self.cluster.controller.tasks._batches
        assert not self.cluster.controller.router._routes
        assert len(self.cluster.controller.router.blobs) == 0
        for engine in self.cluster.engines:
            assert not engine.service._commands._kept._wanted
            assert not engine.service._tasks._batches


def ran(number: int, data: bytes) -> int:
    """A task."""
    assert data in (b"", b"%d" % number * LARGE)
    RUNS.append(number)
    return number


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROUND, min_size=1, max_size=3))
def test_detached_work_ends_and_runs_once_whatever_becomes_of_its_client(rounds: list[Any]) -> None:
    RUNS.clear()
    with MemoryCluster(N) as cluster:
        model = Model(cluster)
        for works, before, count, then, leave, after in rounds:
            model.renew()
            for what, *args in (*works, *before, ("detach", count), *then, (leave,), *after):
                model.do(what, *args)
        model.check()
