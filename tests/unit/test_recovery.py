"""Exactly once, whatever breaks: the whole stack in memory against a list of what was sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipython1.kernel.client import CompositeError, MultiEngineClient, PendingResult
from ipython1.kernel.controller.service import CLIENT_GRACE
from ipython1.kernel.testing import MemoryCluster

from .hosts import disturb

N = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(N) as cluster:
        yield cluster


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sets(st.integers(0, N - 1), min_size=1)),
        st.tuples(st.just("large"), st.sets(st.integers(0, N - 1), min_size=1)),
        st.tuples(st.just("cut client")),
        st.tuples(st.just("cut engine"), st.integers(0, N - 1)),
        st.tuples(st.just("kill controller")),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.02, 0.1, 1.0])),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_every_command_runs_exactly_once_in_order(cluster: MemoryCluster, steps: list[tuple]) -> None:
    cluster.run_until(lambda: len(cluster.ready_ids()) == N)
    client = cluster.client()
    client.execute("log = []")
    expected: list[list[int]] = [[] for _ in range(N)]
    pending = []
    for number, step in enumerate(steps):
        if step[0] == "submit":
            targets = sorted(step[1])
            pending.append(
                client.execute(f"print({number}); log.append({number})", targets=targets, block=False)
            )
            for target in targets:
                expected[target].append(number)
        elif step[0] == "large":
            targets = sorted(step[1])
            client.push({"big": b"%d" % number * 70_000}, targets=targets, block=False)
            code = f"assert big == b'{number}' * 70_000; log.append({number}); big"
            pending.append(client.execute(code, targets=targets, block=False))
            for target in targets:
                expected[target].append(number)
        else:
            disturb(cluster, client, *step)
    results = [result.get_result(timeout=100) for result in pending]
    assert client["log"] == expected
    for pr, result in zip(pending, results, strict=True):
        assert [r["id"] for r in result] == list(pr.targets)
    assert not client._core.pending
    assert not client._core._outstanding
    client.close()


#: (number, engine id) of each command that ran, in any process.
RUNS: list[tuple[int, int]] = []
RUN = "import sys; sys.modules[{module!r}].RUNS.append(({number}, engine_id))"

TARGETS = st.sets(st.integers(0, N - 1), min_size=1).map(sorted)
TROUBLE = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), TARGETS),
        st.tuples(st.just("submit"), TARGETS),
        st.tuples(st.just("large"), TARGETS),
        st.tuples(st.just("properties"), TARGETS),
        st.tuples(st.just("fetch"), st.integers(0, 5)),
        st.tuples(st.just("abort"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("end engine"), st.integers(0, N - 1)),
        st.tuples(st.just("cut"), st.sampled_from(["client", "other", "nanny"])),
        st.tuples(st.just("cut engine"), st.integers(0, N - 1)),
        st.tuples(st.just("stop controller")),
        st.tuples(st.just("start controller")),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.02, 0.1, 1.0])),
    ),
    max_size=50,
)


def outcome(cluster: MemoryCluster, pending: PendingResult) -> dict[int, str]:
    """What came of it on each engine: 'ok', or the name of the error."""
    cluster.run_until(pending.done, timeout=200)
    error = pending.exception()
    if isinstance(error, CompositeError):
        failed = {failure.engine: failure.ename for failure in error.elist}
        return {**dict.fromkeys(error.results, "ok"), **failed}
    return dict.fromkeys(pending.targets, "ok" if error is None else type(error).__name__)


@settings(max_examples=80, deadline=None)
@given(TROUBLE)
def test_whoever_dies_every_command_ends_and_runs_at_most_once(steps: list[tuple]) -> None:
    RUNS.clear()
    with MemoryCluster(N) as cluster:
        clients = {"client": cluster.client(), "other": cluster.client()}
        client, other = clients.values()
        sent: dict[int, PendingResult] = {}
        aborted: set[int] = set()
        fetched: list[tuple[int, PendingResult]] = []
        for number, step in enumerate(steps):
            code = RUN.format(module=__name__, number=number)
            if step[0] == "submit":
                sent[number] = client.execute(f"print({number}); {code}", targets=step[1], block=False)
            elif step[0] == "large":
                client.push({"big": b"%d" % number * 70_000}, targets=step[1], block=False)
                shown = f"print(len(big)); {code}; 'x' * 100_000"
                sent[number] = client.execute(shown, targets=step[1], block=False)
            elif step[0] == "properties":
                client.set_properties({"n": number}, targets=step[1], block=False)
            elif step[0] == "fetch" and len(sent) > step[1]:
                which = list(sent)[-1 - step[1]]
                fetched.append((which, other.get_pending(sent[which].id)))
            elif step[0] == "abort" and len(sent) > step[1]:
                which = list(sent)[-1 - step[1]]
                aborted.add(which)
                sent[which].abort(interrupt=step[2])
            elif step[0] == "end engine":
                cluster.end_engine(cluster.engines[step[1]], "killed", restart=True)
            elif step[0] == "cut":
                dialer = cluster.nanny.dialer if step[1] == "nanny" else clients[step[1]]._core._dialer
                dialer.cut()
            elif step[0] == "cut engine":
                cluster.engines[step[1]].dialer.cut()
            elif step[0] == "stop controller":
                cluster.stop_controller()
            elif step[0] == "start controller":
                cluster.stop_controller()
                cluster.start_controller()
            elif step[0] == "turn":
                for _ in range(step[1]):
                    cluster.step()
            elif step[0] == "wait":
                cluster.clock.advance(step[1])
        if cluster.controller is None:
            cluster.start_controller()
        outcomes = {number: outcome(cluster, pending) for number, pending in sent.items()}
        seen = [(number, outcome(cluster, pending)) for number, pending in fetched]
        for number, pending in sent.items():
            for engine in pending.targets:
                runs, what = RUNS.count((number, engine)), outcomes[number][engine]
                allowed = {"ok": {1}, "EngineDied": {0, 1}, "TaskAborted": {0}, "KeyboardInterrupt": {0}}
                # Its `push` may have died with an engine, so that there is no `big`.
                allowed["NameError"] = {0} if steps[number][0] == "large" else set()
                assert runs in allowed[what], (number, engine, what, runs)
                assert number in aborted or what not in ("TaskAborted", "KeyboardInterrupt")
        for number, outcomes_there in seen:
            for engine, what in outcomes_there.items():
                assert what in (outcomes[number][engine], "UnknownResult", "EngineDied")
        for engine in range(N):
            ran = [number for number, where in RUNS if where == engine]
            assert ran == sorted(ran)
        cluster.run_until(lambda: cluster.ready_ids() == list(range(N)), timeout=200)
        assert client.execute("1", targets="all", block=False).result(timeout=60)
        assert not client._core._outstanding
        assert not other._core._outstanding


def test_a_killed_controller_loses_nothing(cluster: MemoryCluster) -> None:
    client = cluster.client()
    client.execute("n = 0")
    pending = [client.execute("n += 1; print(n)", block=False) for _ in range(200)]
    cluster.step()
    cluster.step()
    cluster.stop_controller()
    cluster.clock.advance(3)
    cluster.start_controller()
    for i, pr in enumerate(pending):
        assert [r["stdout"] for r in pr.get_result(timeout=60)] == [f"{i + 1}\n"] * N
    assert client["n"] == [200] * N
    assert client.get_ids() == list(range(N))
    client.close()


def test_a_dead_engine_fails_its_commands_and_comes_back_under_its_id() -> None:
    with MemoryCluster(N) as cluster:
        client = cluster.client()
        client.execute("x = 1")
        pending = client.execute("x += 1", block=False)
        cluster.step()
        cluster.end_engine(cluster.engine(1), "killed by signal 9 (SIGKILL)", restart=True)
        with pytest.raises(CompositeError, match=r"\[1:execute\]: EngineDied: .*SIGKILL") as caught:
            pending.get_result(timeout=10)
        assert caught.value.engines == [1]
        assert sorted(caught.value.results) == [0, 2]
        assert client.execute("'x' in globals()", timeout=5)[1]["result"]["text/plain"] == "False"
        assert client.pull("x", targets=[0, 2]) == [2, 2]


@pytest.mark.parametrize("first", ["engine", "client"])
def test_what_an_engine_had_that_died_without_a_controller_is_not_run_again(first: str) -> None:
    with MemoryCluster(2) as cluster:
        client = cluster.client()
        client.execute("ran = 0")
        pending = client.execute("ran += 1", block=False)
        cluster.step()
        cluster.stop_controller()
        victim = cluster.engine(0)
        if first == "engine":
            client._core._connection._delay = 3.0  # the successor will be there before the client
        cluster.end_engine(victim, "killed by signal 9 (SIGKILL)", restart=True)
        if first == "client":
            cluster.engines[-1].service._connection._delay = 3.0
            cluster.clock.advance(0.2)
        cluster.start_controller()
        with pytest.raises(CompositeError, match=r"\[0:execute\]: EngineDied") as caught:
            pending.get_result(timeout=20)
        assert caught.value.engines == [0]
        cluster.run_until(lambda: cluster.ready_ids() == [0, 1])
        assert client.execute("'ran' in globals() and ran", timeout=20)[0]["result"]["text/plain"] == "False"
        assert client.pull("ran", targets=[1]) == [1]


def test_a_closed_client_fails_what_is_outstanding() -> None:
    with MemoryCluster(1) as cluster:
        client: MultiEngineClient = cluster.client()
        pending = client.execute("1", block=False)
        client.close()
        cluster.settle()
        with pytest.raises(Exception, match="closed"):
            pending.get_result(timeout=1)


def test_nothing_is_kept_of_what_was_received(cluster: MemoryCluster) -> None:
    client = cluster.client()
    for _ in range(50):
        client.execute("print('x' * 100)")
        client.push({"a": bytes(200_000)})
    for _ in range(2 * int(CLIENT_GRACE)):  # also those of the tests before are gone by then
        cluster.clock.advance(1)
        cluster.settle()
    assert cluster.controller is not None
    assert not cluster.controller.router._routes
    assert len(cluster.controller.router.blobs) == 0
    assert not client._core._blobs._held
    for engine in cluster.engines:
        assert not engine.service._commands._kept._wanted
        assert not engine.service._tasks._batches
    client.close()
