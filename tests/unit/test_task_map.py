"""Maps and lazy maps of `TaskClient`, and how large their chunks are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.client import CompositeError, Reference, TaskClient, TaskRejected
from ipython1.kernel.client.taskmap import CHUNK_TIME, GROWTH, Sizes
from ipython1.kernel.error import SerializationError, TaskAborted, WireError
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.chunks import CHUNK_LIMIT, LARGE, Row, join_rows, split_rows
from ipython1.kernel.wire.records import Result


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


@pytest.fixture
def tc(cluster: MemoryCluster) -> TaskClient:
    return cluster.task_client()


#: Filled by functions that run on engines, which are in this process.
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def note(x: Any) -> Any:
    """Notes that it ran."""
    RAN.append(x)
    return x


def inverse(x: float) -> float:
    """Fails for 0."""
    RAN.append(x)
    return 1 / x


# -- chunks on the wire ------------------------------------------------------------------


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=3), max_size=20), st.booleans())
def test_rows_come_back_as_they_were(rows: list[list[bytes]], large: bool) -> None:
    if large:
        rows = [[*row, bytes(LARGE), b"after"] for row in rows]
    given_rows = [Row((number, True), row) for number, row in enumerate(rows)]
    parts = join_rows(given_rows)
    assert len(parts) == 2 + large * len(rows)
    assert [(row.facts, list(row.parts)) for row in split_rows(parts)] == [
        (facts, row) for facts, row in given_rows
    ]


def test_a_result_that_is_no_chunk(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = tc.map(note, range(3), chunksize=3, block=False)
    pending.feeder.deliver_result(Result("", 0, "chunk", "ok", 1.0, 2.0, 0, ()), [b"\x01", b""], 0)
    with pytest.raises(CompositeError, match="WireError"):
        pending.result()
    cluster.settle()


@pytest.mark.parametrize("parts", [[], [b""], [b"\x01", b""], [b"\x91\x92\x90\x91\xff", b""]])
def test_what_is_no_chunk(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        list(split_rows(parts))


# -- sizes --------------------------------------------------------------------------------


def test_sizes_follow_what_was_measured() -> None:
    sizes = Sizes(4)
    assert sizes.next(10_000) == 1
    sizes.measured(1, 0.0001)
    assert sizes.next(10_000) == GROWTH
    sizes.measured(GROWTH, GROWTH * 0.0001)
    assert sizes.next(10_000) == GROWTH * GROWTH
    sizes.measured(64, 0.0064)
    assert sizes.next(10_000) == int(CHUNK_TIME / 0.0001)
    assert sizes.next(1_000) == 1_000 // 16  # the last ones are smaller
    assert sizes.next(100) == 20  # but not so small that they take no time at all
    assert sizes.next(3) == 3


def test_long_items_go_one_by_one() -> None:
    sizes = Sizes(4)
    sizes.measured(1, 1.0)
    assert sizes.next(10_000) == 1


def test_fixed_sizes() -> None:
    sizes = Sizes(4, 7)
    sizes.measured(7, 1.0)
    assert [sizes.next(left) for left in (100, 7, 2)] == [7, 7, 2]


@given(
    st.integers(1, 64),
    st.integers(1, 200_000),
    st.lists(st.floats(1e-9, 100.0), min_size=1, max_size=200),
)
def test_any_sizes_end(engines: int, total: int, lengths: list[float]) -> None:
    sizes, left = Sizes(engines), total
    for length in itertools.islice(itertools.cycle(lengths), 1000):
        size = sizes.next(left)
        assert 1 <= size <= min(left, CHUNK_LIMIT)
        left -= size
        if not left:
            return
        sizes.measured(size, size * length)


# -- map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 50, 500])
def test_map(tc: TaskClient, n: int, chunksize: int | None) -> None:
    assert tc.map(note, range(n), chunksize=chunksize) == list(range(n))
    assert sorted(RAN) == list(range(n))  # each once


def test_several_sequences(tc: TaskClient) -> None:
    assert tc.map(lambda a, b: a * b, [1, 2, 3], "abc") == ["a", "bb", "ccc"]
    with pytest.raises(ValueError, match="one length"):
        tc.map(pow, [1, 2], [3])
    with pytest.raises(TypeError, match="at least one"):
        tc.map(pow)
    with pytest.raises(ValueError, match="chunksize"):
        tc.map(abs, [1], chunksize=0)
    with pytest.raises(TypeError, match="block"):
        tc.map(abs, [1], block=1)  # type: ignore[arg-type]


def test_items_of_all_kinds(tc: TaskClient) -> None:
    arrays = [np.full(n, n) for n in (1, 5_000, 20_000)]
    assert [a.sum() for a in tc.map(lambda a: a + 1, arrays)] == [2, 5_000 * 5_001, 20_000 * 20_001]
    assert tc.map(lambda f: f(2), [lambda x: x + 1, lambda x: x * 5]) == [3, 10]
    assert set(tc.map(abs, [Reference("engine_id")] * 6)) == {0, 1}
    with pytest.raises(SerializationError):
        tc.map(abs, [iter("abc") for _ in range(2)] + [(i for i in "abc")])


def test_results_are_what_they_were_when_they_were_returned(tc: TaskClient) -> None:
    def same(x: int) -> Any:
        import numpy

        kept = same.__dict__.setdefault("kept", numpy.zeros(5_000))
        kept[:] = x
        return kept

    assert [a[0] for a in tc.map(same, range(40), chunksize=40)] == list(range(40))


def test_coroutines(tc: TaskClient) -> None:
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert tc.map(later, range(10), chunksize=5) == list(range(1, 11))


def test_not_waiting(tc: TaskClient) -> None:
    pending = tc.map(note, range(100), block=False)
    assert RAN == []
    assert pending.progress == (0, 100)
    assert sorted(pending) == list(range(100))
    assert pending.r == list(range(100))
    assert pending[7] == 7
    assert pending.progress == (100, 100)
    assert pending.serial_time > 0


def test_unordered(tc: TaskClient, cluster: MemoryCluster) -> None:
    assert sorted(tc.map(note, range(200), ordered=False)) == list(range(200))
    pending = tc.map(note, range(200), ordered=False, block=False)
    assert pending.r == [pending.value_of(slot) for slot in pending._arrivals.finished]


def test_one_item_fails_only_itself(tc: TaskClient) -> None:
    with pytest.raises(CompositeError) as caught:
        tc.map(inverse, [1, 0, 2, 0], chunksize=4)
    assert [failure.ename for failure in caught.value.elist] == ["ZeroDivisionError"] * 2
    assert caught.value.results == {0: 1.0, 2: 0.5}
    assert "inverse" in caught.value.elist[0].traceback
    assert sorted(RAN) == [0, 0, 1, 2]


@pytest.mark.parametrize("chunksize", [None, 4])
def test_exceptions_as_values(tc: TaskClient, chunksize: int | None) -> None:
    values = tc.map(inverse, [1, 0, 2], chunksize=chunksize, return_exceptions=True)
    assert isinstance(values[1], ZeroDivisionError)
    assert [values[0], values[2]] == [1.0, 0.5]


def test_an_exception_that_is_a_value_is_none_for_those_who_wait(tc: TaskClient) -> None:
    for return_exceptions in (True, False):
        pending = tc.map(inverse, [1, 0], return_exceptions=return_exceptions, block=False)
        pending.exception(30)
        assert (concurrent.futures.Future.exception(pending) is None) is return_exceptions


def test_what_cannot_come_back(tc: TaskClient) -> None:
    values = tc.map(lambda x: (i for i in "abc") if x else x, [0, 1], chunksize=2, return_exceptions=True)
    assert values[0] == 0
    assert isinstance(values[1], SerializationError)


def test_output_of_a_chunk(tc: TaskClient) -> None:
    pending = tc.map(lambda x: print("item", x), range(4), chunksize=2, block=False)
    assert pending.r == [None] * 4
    assert pending.stdout == ["item 0\nitem 1\n", "", "item 2\nitem 3\n", ""]


def test_a_function_that_rejects_an_engine(tc: TaskClient) -> None:
    def only(x: int) -> int:
        if engine_id == x % 2:  # type: ignore[name-defined]  # noqa: F821
            raise TaskRejected()
        return int(engine_id)  # type: ignore[name-defined]  # noqa: F821

    assert tc.map(only, range(10), chunksize=5) == [1, 0] * 5


def test_a_function_that_rejects_every_engine(tc: TaskClient) -> None:
    def never(x: int) -> int:
        if x == 3:
            raise TaskRejected("not here")
        return note(x)

    values = tc.map(never, range(6), chunksize=6, return_exceptions=True)
    assert [str(value) for value in values] == ["0", "1", "2", "not here", "4", "5"]
    assert sorted(RAN) == [0, 1, 2, 4, 5]


def test_a_chunk_that_kills_engines_is_tried_item_by_item(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = tc.map(note, range(6), chunksize=6, block=False)
    for _ in range(3):  # as often as a task may
        cluster.run_until(lambda: any(tasks_of(cluster, id) for id in cluster.ready_ids()))
        engine = cluster.engine(next(id for id in cluster.ready_ids() if tasks_of(cluster, id)))
        engine.loop.run_ready = lambda: 0  # type: ignore[method-assign]
        cluster.end_engine(engine, "killed by signal 9 (SIGKILL)", restart=True)
    assert pending.r == list(range(6))


def tasks_of(cluster: MemoryCluster, engine: int) -> int:
    """How many tasks the controller has given to an engine."""
    assert cluster.controller is not None
    return cluster.controller.tasks.status.count(engine)


def test_abort(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = tc.map(note, range(1000), block=False)
    cluster.run_until(lambda: len(RAN) > 0)
    pending.abort()
    with pytest.raises(CompositeError) as caught:
        pending.result()
    assert isinstance(caught.value.elist[-1].exception(), TaskAborted)
    assert len(RAN) < 1000
    assert set(caught.value.results.values()) == set(RAN)
    cluster.run_until(lambda: not batches(cluster))


def batches(cluster: MemoryCluster) -> list[str]:
    """What the controller still knows."""
    assert cluster.controller is not None
    return list(cluster.controller.tasks._batches)


def test_cancel(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = tc.map(note, range(1000), block=False)
    assert pending.cancel()
    assert pending.cancelled()
    assert RAN == []
    done = tc.map(note, range(10), block=False)
    done.result()
    assert not done.cancel()


def test_nothing_is_left_behind(cluster: MemoryCluster, tc: TaskClient) -> None:
    tc.map(note, range(100))
    list(tc.imap(note, range(100)))
    cluster.run_until(lambda: not batches(cluster))
    assert not any(engine.service._tasks._batches for engine in cluster.engines)
    assert tc.pending == []


def test_mapper_and_parallel(tc: TaskClient) -> None:
    mapper = tc.mapper(chunksize=2, return_exceptions=True)
    assert repr(mapper) == "<TaskMapper chunksize=2 return_exceptions=True>"
    values = mapper.map(inverse, [1, 0])
    assert values[0] == 1.0
    assert isinstance(values[1], ZeroDivisionError)

    @tc.parallel(block=False)
    def square(x: int) -> int:
        """Doc."""
        return x * x

    assert square(range(4)).r == [0, 1, 4, 9]
    assert square.__doc__ == "Doc."


def test_an_interrupted_chunk(tc: TaskClient) -> None:
    pending = tc.map(interrupted, range(6), chunksize=6, block=False)
    with pytest.raises(CompositeError) as caught:
        pending.result()
    assert [failure.ename for failure in caught.value.elist] == ["KeyboardInterrupt"]
    assert caught.value.results == {0: 0, 1: 1, 3: 3, 4: 4, 5: 5}  # those behind it ran afterwards
    RAN.clear()
    aborted = tc.map(aborts, range(6), chunksize=6, block=False)
    ABORTS[:] = [aborted]
    with pytest.raises(CompositeError) as caught:
        aborted.result()
    assert [failure.ename for failure in caught.value.elist] == ["KeyboardInterrupt"] + ["TaskAborted"] * 3
    assert RAN == [0, 1, 2]


def interrupted(x: int) -> int:
    """Is interrupted the first time it is called for 2."""
    if note(x) == 2 and RAN.count(2) == 1:
        raise KeyboardInterrupt
    return x


ABORTS: list[Any] = []


def aborts(x: int) -> int:
    """Aborts the map that it is part of, and is interrupted."""
    if note(x) == 2:
        ABORTS[0].abort(interrupt=True)
        raise KeyboardInterrupt
    return x


def test_its_id_is_no_task(tc: TaskClient) -> None:
    pending = tc.map(abs, range(10), block=False)
    assert "#" not in pending.id
    with pytest.raises(TypeError, match="not a map"):
        tc.get_task_result(pending)
    pending.result()


# -- imap -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("ordered", [True, False])
def test_imap(tc: TaskClient, chunksize: int, ordered: bool) -> None:
    values = list(tc.imap(note, range(100), chunksize=chunksize, ordered=ordered))
    assert sorted(values) == sorted(RAN) == list(range(100))
    if ordered:
        assert values == list(range(100))


@pytest.mark.parametrize("ordered", [True, False])
def test_endless_input(tc: TaskClient, ordered: bool) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = tc.imap(note, numbers(), max_outstanding=20, ordered=ordered)
    assert read == []
    first = list(itertools.islice(results, 50))
    assert len(set(first)) == 50
    assert len(read) <= 50 + 20
    results.close()  # type: ignore[attr-defined]


def test_closing_aborts_the_rest(cluster: MemoryCluster, tc: TaskClient) -> None:
    results = tc.imap(note, itertools.count(), max_outstanding=500)
    next(results)
    ran = len(RAN)
    results.close()  # type: ignore[attr-defined]
    cluster.run_until(lambda: not batches(cluster))
    assert len(RAN) - ran < 400
    assert tc.pending == []


def test_several_iterables_of_imap(tc: TaskClient) -> None:
    assert list(tc.imap(pow, itertools.count(), [2, 2, 2])) == [0, 1, 4]
    assert list(tc.imap(pow, [], [])) == []
    for wrong in ({"chunksize": 0}, {"max_outstanding": 0}, {"chunksize": CHUNK_LIMIT + 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tc.imap(abs, [1], **wrong)  # at the call, not at the first item
    with pytest.raises(TypeError):
        tc.imap(abs)


def test_imap_raises_at_the_item_that_failed(tc: TaskClient) -> None:
    results = tc.imap(inverse, [1, 2, 0, 4], chunksize=2)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(CompositeError, match="ZeroDivisionError"):
        next(results)
    kept = list(tc.imap(inverse, [1, 0, 4], return_exceptions=True))
    assert isinstance(kept[1], ZeroDivisionError)
    assert kept[2] == 0.25


def test_input_that_fails(tc: TaskClient) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(tc.imap(abs, broken()))
