"""`TaskClient.executor`: what CPython's own tests ask of an Executor, over tasks."""

from __future__ import annotations

import concurrent.futures
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from ipython1.kernel.client import MapTask, Reference, TaskClient
from ipython1.kernel.client.taskexecutor import TaskExecutor
from ipython1.kernel.error import ClientClosed, NoEnginesRegistered, SerializationError
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


@pytest.fixture
def tc(cluster: MemoryCluster) -> TaskClient:
    return cluster.task_client()


@pytest.fixture
def executor(tc: TaskClient) -> TaskExecutor:
    return tc.executor()


#: Filled by functions that run on engines, which are in this process.
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def note(x: Any) -> Any:
    """Notes that it ran."""
    RAN.append(x)
    return x


# -- submit ---------------------------------------------------------------------------------


def test_submit(executor: TaskExecutor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, exp=5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == 32
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None


def test_keywords_that_name_the_own_arguments(executor: TaskExecutor) -> None:
    def names(**kwargs: int) -> dict[str, int]:
        return kwargs

    assert executor.submit(names, fn=1, self=2).result() == {"fn": 1, "self": 2}
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=abs)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="function"):
        executor.submit("abs")  # type: ignore[arg-type]


def test_exceptions_are_of_their_own_type(executor: TaskExecutor) -> None:
    future = executor.submit(operator.truediv, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        future.result()
    assert "ZeroDivisionError" in str(caught.value.__cause__)
    assert isinstance(future.exception(), ZeroDivisionError)


def test_exceptions_that_are_no_errors(executor: TaskExecutor) -> None:
    def leave() -> None:
        raise SystemExit(3)

    future = executor.submit(leave)
    assert isinstance(future.exception(), SystemExit)
    assert executor.submit(abs, -1).result() == 1


def test_exceptions_that_cannot_be_pickled(executor: TaskExecutor) -> None:
    def fail() -> None:
        class Own(Exception):
            def __reduce__(self) -> Any:
                raise TypeError

        raise Own("text")

    assert "text" in str(executor.submit(fail).exception())
    assert isinstance(executor.submit(lambda: (i for i in "abc")).exception(), SerializationError)


def test_what_cannot_be_sent(executor: TaskExecutor) -> None:
    with pytest.raises(SerializationError):
        executor.submit(print, threading.Lock())
    executor.shutdown()  # waits for nothing


def test_a_change_after_the_call_is_not_seen(executor: TaskExecutor) -> None:
    array = np.ones(10_000)
    futures = [executor.submit(np.sum, array) for _ in range(10)]
    array[:] = 0
    assert [future.result() for future in futures] == [10_000.0] * 10


def test_all_engines_work(executor: TaskExecutor) -> None:
    futures = [executor.submit(abs, Reference("engine_id")) for _ in range(20)]
    assert {future.result() for future in futures} == {0, 1}


def test_done_callbacks(executor: TaskExecutor) -> None:
    called: list[Any] = []
    future = executor.submit(abs, -1)
    future.add_done_callback(called.append)
    assert called == []
    future.result()
    assert called == [future]
    future.add_done_callback(lambda done: called.append(done.result()))
    assert called == [future, 1]


# -- waiting -----------------------------------------------------------------------------------


def test_timeouts(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    cluster.stop_controller()
    future = executor.submit(abs, -1)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=1)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=0)
    assert not future.done()
    cluster.start_controller()
    assert future.result() == 1


def test_wait(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    good, bad = executor.submit(abs, -1), executor.submit(operator.truediv, 1, 0)
    done, left = concurrent.futures.wait([good, bad], timeout=0)
    assert (done, left) == (set(), {good, bad})
    cluster.run_until(lambda: good.done() and bad.done())
    done, left = concurrent.futures.wait([good, bad], return_when=concurrent.futures.ALL_COMPLETED)
    assert (done, left) == ({good, bad}, set())
    done, _ = concurrent.futures.wait([good, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert bad in done


def test_wait_for_the_first_and_for_an_exception(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    gate = executor.submit(abs, -1)
    futures = [gate, executor.submit(operator.truediv, 1, 0), executor.submit(abs, -2)]
    for when in (concurrent.futures.FIRST_COMPLETED, concurrent.futures.FIRST_EXCEPTION):
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda when=when, found=found: found.append(
                concurrent.futures.wait(futures, timeout=10, return_when=when)
            )
        )
        thread.start()
        cluster.run_until(lambda: all(future.done() for future in futures))
        thread.join(10)
        assert found[0].done


def test_as_completed(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    futures = [executor.submit(abs, -i) for i in range(5)]
    cancelled = executor.submit(abs, 7)
    assert cancelled.cancel()
    cluster.run_until(lambda: all(future.done() for future in futures))
    assert set(concurrent.futures.as_completed([*futures, cancelled], timeout=0)) == {*futures, cancelled}
    assert list(concurrent.futures.as_completed([futures[0]] * 3, timeout=0)) == [futures[0]]
    cluster.stop_controller()
    late = executor.submit(abs, 1)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([futures[0], late], timeout=0))


# -- cancel ------------------------------------------------------------------------------------------


def test_what_no_engine_has_started_can_be_cancelled(executor: TaskExecutor) -> None:
    futures = [executor.submit(note, i) for i in range(50)]
    assert futures[-1].cancel()
    assert futures[-1].cancelled()
    assert futures[-1].done()
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(CancelledError):
        futures[-1].exception()
    assert futures[-1].cancel()  # again
    assert [future.result() for future in futures[:-1]] == list(range(49))
    assert not futures[0].cancel()
    assert 49 not in RAN


# -- map ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_map(executor: TaskExecutor, chunksize: int) -> None:
    results = executor.map(operator.add, range(7), [10] * 9, chunksize=chunksize)
    assert list(results) == [10, 11, 12, 13, 14, 15, 16]


def test_map_starts_at_once(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    results = executor.map(note, range(3))
    cluster.settle()
    assert sorted(RAN) == [0, 1, 2]
    assert list(results) == [0, 1, 2]


def test_map_of_nothing(executor: TaskExecutor) -> None:
    assert list(executor.map(abs, [])) == []
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)


def test_map_raises_at_the_item_that_failed(executor: TaskExecutor) -> None:
    results = executor.map(operator.truediv, [1, 1, 1], [1, 0, 1])
    assert next(results) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_in_time(cluster: MemoryCluster, executor: TaskExecutor, tc: TaskClient) -> None:
    cluster.stop_controller()
    results = executor.map(note, range(100), timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    cluster.start_controller()
    tc.barrier()
    assert RAN == []  # what nobody reads any more was aborted


# -- shutdown ---------------------------------------------------------------------------------


def test_after_shutdown(executor: TaskExecutor, tc: TaskClient) -> None:
    futures = [executor.submit(abs, -1) for _ in range(10)]
    executor.shutdown(wait=False)
    assert "shut down" in repr(executor)
    for call in (executor.submit, executor.map):
        with pytest.raises(RuntimeError, match="after shutdown"):
            call(abs, [-1])
    assert [future.result() for future in futures] == [1] * 10
    executor.shutdown()  # again
    assert tc.submit(abs, -1).r == 1  # the client goes on


def test_shutdown_may_cancel(executor: TaskExecutor) -> None:
    futures = [executor.submit(note, i) for i in range(200)]
    executor.shutdown(wait=False, cancel_futures=True)
    done, left = concurrent.futures.wait(futures, timeout=0)
    assert not left
    cancelled = {future for future in futures if future.cancelled()}
    assert len(cancelled) > 100
    assert sorted(future.result() for future in done - cancelled) == sorted(RAN)


def test_shutdown_waits(cluster: MemoryCluster, executor: TaskExecutor) -> None:
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


def test_with(cluster: MemoryCluster, tc: TaskClient) -> None:
    with tc.executor() as executor:
        future = executor.submit(abs, -1)
        assert "1 outstanding" in repr(executor)
        future.result()
    with pytest.raises(RuntimeError):
        executor.submit(abs, -1)


# -- trouble --------------------------------------------------------------------------------------


def test_no_engines() -> None:
    with MemoryCluster(0) as cluster, pytest.raises(NoEnginesRegistered):
        cluster.task_client().executor().submit(abs, -1)


def test_when_the_client_is_closed_all_fails(tc: TaskClient, executor: TaskExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(8)]
    tc.close()
    assert {type(future.exception()) for future in futures} == {ClientClosed}
    with pytest.raises(ClientClosed):
        executor.submit(abs, -1)
    executor.shutdown(cancel_futures=True)


def test_a_dead_engine_takes_nothing_along(cluster: MemoryCluster, executor: TaskExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(20)]
    cluster.end_engine(cluster.engine(0), "killed by signal 9 (SIGKILL)")
    assert [future.result() for future in futures] == [1] * 20


def test_a_future_is_something_a_task_may_wait_for(tc: TaskClient, executor: TaskExecutor) -> None:
    assert tc.run(MapTask(abs, (-1,), after=executor.submit(abs, -2)), block=True).results == 1
