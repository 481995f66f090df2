"""`concurrent.futures.Executor` over engines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, _base
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ipython1.kernel.client import Reference
from ipython1.kernel.client.executors import AHEAD, EngineExecutor
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.error import ClientClosed, InvalidEngineID, NoEnginesRegistered, SerializationError
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


@pytest.fixture
def mec(cluster: MemoryCluster) -> MultiEngineClient:
    return cluster.client()


@pytest.fixture
def executor(mec: MultiEngineClient) -> EngineExecutor:
    return mec.executor()


def value(cluster: MemoryCluster, future: Future[Any]) -> Any:
    """The result of `future`, for which time has to pass."""
    cluster.run_until(future.done)
    return future.result()


def test_a_result_is_what_the_function_returned(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, exp=5)
    assert isinstance(future, Future)
    assert value(cluster, future) == 32
    assert value(cluster, executor.submit(list)) == []


def test_an_exception_has_its_own_type(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    future = executor.submit(operator.truediv, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        value(cluster, future)
    assert "ZeroDivisionError" in str(caught.value.__cause__)


@dataclass(frozen=True, slots=True)
class Frozen(Exception):
    """Refuses attributes."""

    code: int


def fail_frozen() -> None:
    """Raises one."""
    raise Frozen(3)


def test_an_exception_that_refuses_attributes(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    future = executor.submit(fail_frozen)
    with pytest.raises(Frozen) as caught:
        value(cluster, future)
    assert caught.value.code == 3
    assert "fail_frozen" in str(caught.value.__cause__)
    assert future.exception() is caught.value


def test_both_engines_work(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    futures = [executor.submit(abs, Reference("engine_id")) for _ in range(6)]
    assert {value(cluster, future) for future in futures} == {0, 1}


def test_chosen_targets(cluster: MemoryCluster, mec: MultiEngineClient) -> None:
    executor = mec.executor(targets=-1)
    assert [value(cluster, executor.submit(abs, Reference("engine_id"))) for _ in range(3)] == [1, 1, 1]
    view = mec[0].executor()
    assert value(cluster, view.submit(abs, Reference("engine_id"))) == 0


def test_nothing_is_left_behind(
    cluster: MemoryCluster, executor: EngineExecutor, mec: MultiEngineClient
) -> None:
    value(cluster, executor.submit(lambda: 1))
    assert mec.keys() == [[], []]


def test_an_engine_gets_few_calls_ahead(mec: MultiEngineClient, executor: EngineExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(10)]
    assert len(mec.pending) == 2 * AHEAD
    assert [future.running() for future in futures] == [True] * 2 * AHEAD + [False] * (10 - 2 * AHEAD)


def test_what_waits_can_be_cancelled(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(10)]
    assert futures[-1].cancel()
    assert not futures[0].cancel()
    for future in futures[:-1]:
        assert value(cluster, future) == 1
    assert futures[-1].cancelled()


def test_a_change_after_the_call_is_not_seen(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    array = np.ones(10_000)
    futures = [executor.submit(np.sum, array) for _ in range(10)]
    array[:] = 0
    assert [value(cluster, future) for future in futures] == [10_000.0] * 10


def test_what_cannot_be_sent(executor: EngineExecutor) -> None:
    with pytest.raises(SerializationError):
        executor.submit(print, threading.Lock())
    with pytest.raises(TypeError, match="function"):
        executor.submit("print")  # type: ignore[arg-type]
    executor.shutdown()  # waits for nothing


# -- who does what ------------------------------------------------------------------------


#: The threads that rebuilt objects, which are made where engines run, in this process.
REBUILT: list[threading.Thread] = []


def rebuilt() -> Rebuilt:
    """What a pickled `Rebuilt` calls."""
    REBUILT.append(threading.current_thread())
    return Rebuilt()


class Rebuilt:
    """Tells when it is unpickled."""

    def __reduce__(self) -> Any:
        return rebuilt, ()


def test_what_came_is_rebuilt_once_by_the_thread_that_reads_it(
    cluster: MemoryCluster, executor: EngineExecutor
) -> None:
    REBUILT.clear()
    futures = [executor.submit(Rebuilt) for _ in range(6)]
    cluster.run_until(lambda: all(future.done() for future in futures))
    assert REBUILT == []
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.append(futures[5].result()))
    reader.start()
    reader.join(10)
    assert isinstance(read[0], Rebuilt)
    assert [reader] == REBUILT
    assert futures[5].result() is read[0]
    assert [reader] == REBUILT


def test_engines_go_on_while_a_callback_takes_its_time(
    cluster: MemoryCluster,
    mec: MultiEngineClient,
    executor: EngineExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[Any] = []
    later: list[Any] = []  # the thread for callbacks comes to none of these
    monkeypatch.setattr(mec._core._bridge, "call_user", lambda f, *args: later.append((f, args)))
    futures = [executor.submit(abs, -i) for i in range(10)]
    for future in futures:
        future.add_done_callback(called.append)
    assert [value(cluster, future) for future in futures] == list(range(10))
    assert called == []
    for f, args in later:
        f(*args)
    assert set(called) == set(futures)
    futures[0].add_done_callback(lambda done: called.append(done.result()))
    assert called[10:] == [0]


def test_who_waits_for_the_first_exception_hears_of_it(
    cluster: MemoryCluster, executor: EngineExecutor
) -> None:
    futures = [executor.submit(operator.truediv, 1, 0), *[executor.submit(abs, -1) for _ in range(20)]]
    waiter = _base._create_and_install_waiters(futures, FIRST_EXCEPTION)
    cluster.run_until(waiter.event.is_set)
    assert futures[0].done()
    assert not futures[-1].done()


def test_asyncio_reads_futures(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    good, bad = executor.submit(abs, -5), executor.submit(operator.truediv, 1, 0)
    cluster.settle()

    async def main() -> list[Any]:
        return await asyncio.gather(*map(asyncio.wrap_future, (good, bad)), return_exceptions=True)

    assert [type(found) for found in asyncio.run(main())] == [int, ZeroDivisionError]


# -- map ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_map(cluster: MemoryCluster, executor: EngineExecutor, chunksize: int) -> None:
    results = executor.map(operator.add, range(7), [10] * 9, chunksize=chunksize)
    cluster.settle()
    assert list(results) == [10, 11, 12, 13, 14, 15, 16]


def test_map_of_nothing(executor: EngineExecutor) -> None:
    assert list(executor.map(abs, [])) == []


def test_map_raises_at_the_item_that_failed(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    results = executor.map(operator.truediv, [1, 1, 1], [1, 0, 1])
    cluster.settle()
    assert next(results) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_in_time(executor: EngineExecutor) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        next(executor.map(abs, [1, 2], timeout=0))  # nothing turns the clock


def test_what_nobody_reads_any_more_is_cancelled(mec: MultiEngineClient, executor: EngineExecutor) -> None:
    results = executor.map(abs, range(100), timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    cancelled = [work.future.cancelled() for work in executor._waiting]
    assert cancelled == [True] * (100 - 2 * AHEAD)


def test_chunks_have_a_size(executor: EngineExecutor) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)


# -- shutdown ---------------------------------------------------------------------------------


def test_after_shutdown(cluster: MemoryCluster, mec: MultiEngineClient, executor: EngineExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(10)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)
    assert [value(cluster, future) for future in futures] == [1] * 10  # also those that waited
    executor.shutdown()
    assert mec.apply(abs, -1) == [1, 1]  # the client goes on


def test_shutdown_may_cancel(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(10)]
    executor.shutdown(wait=False, cancel_futures=True)
    cluster.settle()
    assert [future.cancelled() for future in futures] == [False] * 2 * AHEAD + [True] * (10 - 2 * AHEAD)
    done, left = concurrent.futures.wait(futures, timeout=0)
    assert len(done) == 10
    assert not left


def test_shutdown_waits(cluster: MemoryCluster, executor: EngineExecutor) -> None:
    future = executor.submit(abs, -1)
    ended = threading.Event()

    def shut_down() -> None:
        executor.shutdown()
        ended.set()

    thread = threading.Thread(target=shut_down)
    thread.start()
    cluster.run_until(future.done)
    thread.join(10)
    assert ended.is_set()


# -- trouble ----------------------------------------------------------------------------------


def test_no_engines() -> None:
    with MemoryCluster(0) as cluster:
        mec = cluster.client()
        with pytest.raises(NoEnginesRegistered):
            mec.executor().submit(abs, -1)
        with pytest.raises(NoEnginesRegistered):
            mec.executor(targets=3).submit(abs, -1)
        with pytest.raises(InvalidEngineID):
            mec.executor(targets="some")


def test_a_dead_engine_takes_only_its_own_calls_along(
    cluster: MemoryCluster, executor: EngineExecutor
) -> None:
    futures = [executor.submit(abs, Reference("engine_id")) for _ in range(8)]
    cluster.end_engine(cluster.engine(0), "killed by signal 9 (SIGKILL)")
    cluster.run_until(lambda: all(future.done() for future in futures))
    failed = [future for future in futures if future.exception() is not None]
    assert {type(future.exception()).__name__ for future in failed} == {"EngineDied"}
    assert len(failed) == AHEAD
    assert {future.result() for future in futures if future not in failed} == {1}


def test_when_the_last_engine_is_gone_what_waits_fails(
    cluster: MemoryCluster, executor: EngineExecutor
) -> None:
    futures = [executor.submit(abs, -1) for _ in range(8)]
    for id in (0, 1):
        cluster.end_engine(cluster.engine(id), "killed by signal 9 (SIGKILL)")
    cluster.run_until(lambda: all(future.done() for future in futures))
    names = {type(future.exception()).__name__ for future in futures}
    assert "EngineDied" in names
    assert names <= {"EngineDied", "NoEnginesRegistered"}


def test_when_the_client_is_closed_all_fails(
    cluster: MemoryCluster, executor: EngineExecutor, mec: MultiEngineClient
) -> None:
    futures = [executor.submit(abs, -1) for _ in range(8)]
    mec.close()
    cluster.run_until(lambda: all(future.done() for future in futures))
    assert {type(future.exception()) for future in futures} == {ClientClosed}
    with pytest.raises(ClientClosed):
        executor.submit(abs, -1)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_a_call_that_cannot_be_sent_fails_and_frees_its_place(
    cluster: MemoryCluster, executor: EngineExecutor, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(executor._view, "_send", refuse)
        if isinstance(error, Exception):
            assert executor.submit(abs, -1).exception(timeout=0) is error
        else:
            with pytest.raises(KeyboardInterrupt):
                executor.submit(abs, -1)
    assert not +executor._busy
    assert "0 outstanding" in repr(executor)
    assert value(cluster, executor.submit(abs, -1)) == 1
    executor.shutdown()


def test_a_call_whose_result_was_given_up(
    cluster: MemoryCluster, executor: EngineExecutor, mec: MultiEngineClient
) -> None:
    [future] = [executor.submit(abs, -1)]
    [pending] = mec.pending
    assert pending.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        value(cluster, future)
    assert isinstance(future.exception(), concurrent.futures.CancelledError)
