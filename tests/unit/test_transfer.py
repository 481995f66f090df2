"""Objects from engine to engine: past the client, once, in order, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipython1.kernel.client import CompositeError
from ipython1.kernel.error import InvalidEngineID
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import Chunk, Fetch, Record, Result
from ipython1.kernel.wire.segments import user_folder

from .hosts import CHUNK, Hosts, chunks, disturb

N = 4


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(N) as cluster:
        yield cluster


def names(error: CompositeError) -> list[tuple[int, str]]:
    return [(failure.engine, failure.ename) for failure in error.elist]


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_others_get_copies_of_their_own(cluster: MemoryCluster, size: int) -> None:
    mec = cluster.client()
    mec.execute(f"x = bytearray(b'a' * {size}); y = 7", targets=0)
    assert mec.transfer("x", source=0, targets=[1, 2]) == [None, None]
    mec.execute("x[0] = 98", targets=1)
    assert [bytes(x[:2]) for x in mec.pull("x", targets=[0, 1, 2])] == [b"aa", b"ba", b"aa"]
    assert "x" not in mec.keys(targets=3)[0]
    mec.transfer(["x", "y"], source=0)
    assert mec.pull("y") == [7] * 4
    mec.transfer(["x", "y"], source=0, targets=[0, 3], name=["b", "c"])
    mec.execute("b[0] = 99", targets=0)
    assert [bytes(x[:1]) for x in mec.pull("x", targets=[0, 3])] == [b"a", b"a"]
    assert [bytes(b[:1]) for b in mec.pull("b", targets=[0, 3])] == [b"c", b"a"]


def test_it_does_not_pass_through_the_client(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    heard: list[Record] = []
    receive = mec._core._connection._receive
    mec._core._connection._receive = lambda record, raw: (heard.append(record), receive(record, raw))
    for size in (10, 1000, 300_000):
        mec.execute(f"x = 'q' * {size}", targets=0)
        del heard[:]
        mec.transfer("x", source=0, targets=[1])
        assert b"qqqqqqqqqq" not in b"".join(encode(record) for record in heard)
        assert not [record for record in heard if isinstance(record, Chunk)]
        assert mec.pull("x", targets=1) == ["q" * size]


def test_what_the_source_lacks_or_cannot_send_is_told_of_each_target(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    with pytest.raises(CompositeError, match="name 'x' is not defined") as error:
        mec.transfer("x", source=0, targets=[1, 2])
    assert names(error.value) == [(1, "NameError"), (2, "NameError")]
    mec.execute("x = (i for i in ())", targets=0)
    with pytest.raises(CompositeError, match=r"the value of 'x' cannot be sent: .*generator") as error:
        mec.transfer("x", source=0, targets=[1])
    assert names(error.value) == [(1, "SerializationError")]
    mec.execute("class Large(Exception): pass\nclass Bad:\n def __reduce__(self): raise Large('z' * 200_000)")
    mec.execute("x = Bad()")
    with pytest.raises(CompositeError, match="zzzz"):
        mec.transfer("x", source=0, targets=[1])
    assert mec.apply(lambda: 1) == [1] * N


def test_functions_feel_at_home_where_they_come_to(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    mec.execute("a = 1\ndef f(x): return x + a", targets=0)
    mec.execute("a = 10", targets=1)
    mec.transfer("f", source=0, targets=[1, 2])
    assert mec.pull("f", targets=3, block=False).exception() is not None
    mec.execute("r = f(1)", targets=[1, 2])
    assert mec.pull("r", targets=[1, 2]) == [11, 2]


def test_commands_before_and_after_keep_their_order(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    pending = [mec.execute(f"x = {i}; y = None", block=False) for i in range(1)]
    for i in range(20):
        pending += [
            mec.execute(f"x = ({i}, 'q' * 100_000)", targets=i % N, block=False),
            mec.transfer("x", source=i % N, targets=(i + 1) % N, name="y", block=False),
            mec.execute(f"assert y[0] == {i}", targets=(i + 1) % N, block=False),
        ]
    mec.barrier(pending)
    assert not [each for each in pending if each.exception() is not None]


def test_names_may_come_from_a_generator(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    mec.execute("a, b = 1, 2", targets=0)
    mec.transfer((name for name in "ab"), source=0)
    mec.transfer((name for name in "ab"), source=0, name=(name for name in "cd"))
    assert mec.pull(["a", "b", "c", "d"], targets=3) == [[1, 2, 1, 2]]


def test_bad_arguments_are_refused_at_once(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    with pytest.raises(ValueError, match="has it already"):
        mec.transfer("x", source=1, targets=1)
    with pytest.raises(ValueError, match="1 variables cannot have 2 names"):
        mec.transfer("x", source=0, name=["a", "b"])
    with pytest.raises(ValueError, match="cannot be the name"):
        mec.transfer("x", source=0, name="a b")
    with pytest.raises(ValueError, match="one engine"):
        mec.transfer("x", source=[0, 1])  # type: ignore[arg-type]
    with pytest.raises(InvalidEngineID):
        mec.transfer("x", source=9)
    mec.execute("x = 1; import time")
    pending = mec.transfer("x", source=0, block=False)
    with pytest.raises(ValueError, match="cannot be detached"):
        pending.detach()
    assert pending.get_result() == [None] * 3


def test_what_nobody_waits_for_any_more_is_not_kept(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    mec.execute("x = 'q' * 6_000_000", targets=0)
    mec.transfer("x", source=0, targets=[1, 2])
    cluster.settle()
    assert not cluster.engine(0).service._blobs._held
    waiting = [mec.transfer("x", source=0, targets=[1, 2], block=False) for _ in range(3)]
    for pending in waiting:
        pending.abort()
    for pending in waiting:
        assert isinstance(pending.exception(), CompositeError)
    cluster.settle()
    assert not cluster.engine(0).service._blobs._held
    for engine in cluster.engines:
        assert not engine.service._commands._sourced
        assert not engine.service._commands._kept.unfinished
    assert not cluster.controller.router._takers  # type: ignore[union-attr]
    assert not cluster.controller.router._routes  # type: ignore[union-attr]


def test_what_is_refused_to_its_takers_is_not_kept(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    mec.execute("x = 'q' * 6_000_000", targets=0)
    router, engine = cluster.controller.router, cluster.engine(0)  # type: ignore[union-attr]
    router._load.limit = 0
    for _ in range(3):
        with pytest.raises(CompositeError) as caught:
            mec.transfer("x", source=0, targets=[1, 2])
        assert names(caught.value) == [(1, "QueueFull"), (2, "QueueFull")]
    cluster.settle()
    assert not engine.service._blobs._held
    assert not engine.service._commands._kept.unfinished
    assert not router._routes
    assert router._load.used == 0


def test_stop_on_error_counts_it_as_a_command(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    mec.stop_on_error = True
    failing = mec.transfer("missing", source=0, targets=[1], block=False)
    behind = [mec.execute("z = 1", targets=target, block=False) for target in (0, 1, 2)]
    found = [error.elist[0].ename if (error := each.exception()) else "" for each in (failing, *behind)]
    assert found == ["NameError", "QueueCleared", "QueueCleared", ""]


def test_an_engine_asks_only_for_what_its_command_names(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    secret = mec.execute("'secret'", targets=0, block=False)
    engine = cluster.engine(2)
    heard: list[Record] = []
    engine.service._handlers[Result] = heard.append
    for id in (secret.command_id, f"{mec._core.client_id}-99"):
        engine.service._outbox.send(Fetch(id, (0,)))
    secret.get_result()
    engine.service._outbox.send(Fetch(secret.command_id, (0,)))
    cluster.settle()
    assert not heard


# -- whatever happens -----------------------------------------------------------------

ENGINES = st.integers(0, N - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("transfer"), ENGINES, st.sets(ENGINES, min_size=1), st.booleans()),
        st.tuples(st.just("transfer"), ENGINES, st.sets(ENGINES, min_size=1), st.booleans()),
        st.tuples(st.just("cut client")),
        st.tuples(st.just("cut engine"), ENGINES),
        st.tuples(st.just("kill engine"), ENGINES),
        st.tuples(st.just("kill controller")),
        st.tuples(st.just("abort")),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.02, 0.1, 1.0])),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with chunks(), Hosts(N, 2) as hosts:
        yield hosts


@pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_each_arrives_once_and_whole_or_fails_for_a_reason(hosts: Hosts, steps: list[tuple]) -> None:
    hosts.everybody_knows()
    mec = hosts.client()
    mec.reset()
    mec.execute("log = []")
    deaths: set[int] = set()
    sent, others, aborted = [], [], set()
    for number, step in enumerate(steps):
        if step[0] == "transfer":
            _, source, targets, large = step
            size = 10 * CHUNK + number * 999 if large else 20
            others.append(
                mec.execute(f"x{number} = (b'%d,' % {number}) * {size}", targets=source, block=False)
            )
            pending = mec.transfer(
                f"x{number}", source=source, targets=sorted(targets), name=f"y{number}", block=False
            )
            code = f"log.append(('y{number}' in globals(), {number}))"
            others.append(mec.execute(code, targets=sorted(targets), block=False))
            sent.append((number, size, source, pending))
        elif step[0] == "abort":
            if sent:
                sent[-1][3].abort()
                aborted.add(sent[-1][0])
        else:
            disturb(hosts, mec, *step)
            if step[0] == "kill engine":
                deaths.add(step[1])
    hosts.everybody_knows()
    for number, size, source, pending in sent:
        error = pending.exception(timeout=200)
        failed = dict(names(error)) if isinstance(error, CompositeError) else {}
        for target in pending.targets:
            ename = failed.get(target)
            if ename is None and target not in deaths:
                data = b"%d," % number * size
                assert mec.pull(f"y{number}", targets=target) == [data]
            elif ename in ("EngineDied", "NameError"):
                assert {source, target} & deaths
            elif ename is not None:
                assert (ename, number in aborted) == ("TaskAborted", True)
    for target in {*range(N)} - deaths:
        (log,) = mec.pull("log", targets=target)
        expected = [
            (target not in dict(names(error) if (error := pending.exception()) else []), number)
            for number, _, _, pending in sent
            if target in pending.targets
        ]
        assert log == expected
    mec.barrier(others)
    assert not mec._core.pending
    mec.close()
    hosts.nothing_left()
    for engine in hosts.engines:
        assert not engine.service._commands._sourced
