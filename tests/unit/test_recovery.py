"""Exactly once, whatever breaks: the whole stack in memory against a list of what was sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipython1.kernel.client import CompositeError, MultiEngineClient
from ipython1.kernel.controller.service import CLIENT_GRACE
from ipython1.kernel.testing import MemoryCluster

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
        elif step[0] == "cut client":
            client._core._dialer.cut()
        elif step[0] == "cut engine":
            cluster.engine(step[1]).dialer.cut()
        elif step[0] == "kill controller":
            cluster.stop_controller()
            cluster.start_controller()
        elif step[0] == "turn":
            for _ in range(step[1]):
                cluster.step()
        else:
            cluster.clock.advance(step[1])
    results = [result.get_result(timeout=100) for result in pending]
    assert client["log"] == expected
    for pr, result in zip(pending, results, strict=True):
        assert [r["id"] for r in result] == list(pr.targets)
    assert not client._core.pending
    assert not client._core._outstanding
    client.close()


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
        assert not engine.service._kept._wanted
        assert not engine.service._jobs
    client.close()
