"""Clients that stop reading for a while, under limits so small that they are soon behind: nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipython1.kernel.client.core import ClientCore
from ipython1.kernel.controller import arrears
from ipython1.kernel.controller.service import RETURN_GRACE
from ipython1.kernel.testing import MemoryCluster

from . import test_task_recovery
from .test_task_recovery import STEP, Diary, Model, N, assert_nothing_is_kept


class Reading:
    """Whether a client reads. A connection that is cut takes along what it has not read."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._connection = core._connection
        self._held: list[bytes] | None = None

    def stop(self) -> None:
        if self._held is None:
            self._held = []
            self._connection.batch_received = self._held.append  # type: ignore[method-assign]

    def go_on(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            del self._connection.batch_received
            for batch in held:
                self._connection.batch_received(batch)

    def cut(self) -> None:
        if self._held is not None:
            self._held.clear()
        self.go_on()
        self._core._dialer.cut()


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrears, "BEHIND", 2000)
        patch.setattr(arrears, "CAUGHT_UP", 500)
        patch.setattr(arrears, "ASK_BYTES", 1000)
        yield


TARGETS = st.sets(st.integers(0, N - 1), min_size=1).map(sorted)
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("print"), TARGETS, st.sampled_from([1, 50, 3000])),
        st.tuples(st.just("print"), TARGETS, st.sampled_from([1, 50, 3000])),
        st.tuples(st.just("large"), TARGETS),
        st.tuples(st.just("stop")),
        st.tuples(st.just("go on")),
        st.tuples(st.just("cut client")),
        st.tuples(st.just("cut engine"), st.integers(0, N - 1)),
        st.tuples(st.just("new controller")),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.02, 0.1, 1.0])),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(COMMANDS)
def test_commands_of_a_client_that_stops_reading(steps: list[tuple[Any, ...]]) -> None:
    with MemoryCluster(N) as cluster:
        client = cluster.client()
        client.execute("log = []")
        reading = Reading(client._core)
        log: list[list[int]] = [[] for _ in range(N)]
        sent = []
        for number, (what, *args) in enumerate(steps):
            if what in ("print", "large"):
                shown = f"for _ in range(10): print('{number}' * {args[1]}, flush=True)" if args[1:] else ""
                value = repr("v" * 70_000 if what == "large" else number)
                code = f"log.append({number})\n{shown}\n{value}"
                sent.append((number, args, client.execute(code, targets=args[0], block=False)))
                for target in args[0]:
                    log[target].append(number)
            elif what == "stop":
                reading.stop()
            elif what == "go on":
                reading.go_on()
            elif what == "cut client":
                reading.cut()
            elif what == "cut engine":
                cluster.engine(args[0]).dialer.cut()
            elif what == "new controller":
                reading.cut()
                cluster.stop_controller()
                cluster.start_controller()
            elif what == "turn":
                for _ in range(args[0]):
                    cluster.step()
            else:
                cluster.clock.advance(args[0])
        reading.go_on()
        for number, args, pending in sent:
            for result in pending.get_result(timeout=100):
                if args[1:]:
                    assert result["stdout"] == (str(number) * args[1] + "\n") * 10
                    assert result["result"]["text/plain"] == str(number)
                else:
                    assert len(result["result"]["text/plain"]) > 70_000
        assert client["log"] == log
        cluster.run_until(lambda: not client._core._outstanding)
        assert cluster.controller is not None
        for peer in cluster.controller.peers:
            assert not peer.arrears.any


class Stopping(Model):
    """Tasks, and a client that stops reading."""

    def __init__(self, cluster: MemoryCluster, diary: Diary) -> None:
        super().__init__(cluster, diary)
        self.reading = Reading(self.core)

    def do(self, what: str, *args: Any) -> None:
        if what == "stop":
            self.reading.stop()
        elif what == "go on":
            self.reading.go_on()
        else:
            if what in ("cut", "forget client", "stop controller", "start controller"):
                self.reading.cut()
            super().do(what, *args)

    def finish(self) -> None:
        self.reading.go_on()
        super().finish()


STOP, GO_ON = st.just(("stop",)), st.just(("go on",))
TASKS = st.lists(st.one_of(STEP, STOP, STOP, GO_ON), max_size=40)


@settings(max_examples=60, deadline=None)
@given(TASKS)
def test_tasks_of_a_client_that_stops_reading(steps: list[tuple[Any, ...]]) -> None:
    diary = test_task_recovery.DIARY = Diary()
    with MemoryCluster(N) as cluster:
        cluster.clock.advance(RETURN_GRACE)
        cluster.settle()
        model = Stopping(cluster, diary)
        for what, *args in steps:
            model.do(what, *args)
        model.finish()
        model.check()
        assert_nothing_is_kept(cluster, model.core, model.other)
