"""`TaskClient`: submit, run and what is asked of tasks, on a cluster in memory."""

from __future__ import annotations

import gc
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ipython1.kernel.client import (
    CompositeError,
    MapTask,
    Reference,
    StringTask,
    TaskClient,
    TaskRejected,
    TaskResult,
    depend,
    require,
)
from ipython1.kernel.error import (
    ClientClosed,
    ImpossibleDependency,
    NoEnginesRegistered,
    SerializationError,
    TaskAborted,
    UnknownResult,
)
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


@pytest.fixture
def tc(cluster: MemoryCluster) -> TaskClient:
    return cluster.task_client()


def tasks_sent(cluster: MemoryCluster) -> list[str]:
    """The batches that the controller has."""
    cluster.settle()
    assert cluster.controller is not None
    return [batch.id for batch in cluster.controller.tasks._batches.values()]


# -- submit ------------------------------------------------------------------------------


def test_a_result_is_what_the_function_returned(tc: TaskClient) -> None:
    assert tc.submit(pow, 2, exp=5).r == 32
    assert tc.submit(list).result() == []


def test_the_error_of_a_function(tc: TaskClient) -> None:
    pending = tc.submit(operator.truediv, 1, 0)
    with pytest.raises(CompositeError, match=r"\[\d:submit\]: ZeroDivisionError: division by zero"):
        pending.result()
    with pytest.raises(ZeroDivisionError):
        pending.exception().raise_exception()  # type: ignore[union-attr]


def test_arguments_of_all_kinds(tc: TaskClient) -> None:
    array = np.arange(10_000.0)
    pending = tc.submit(np.add, array, 1)
    array[:] = -1  # must not be seen
    assert np.array_equal(pending.r, np.arange(10_000.0) + 1)
    assert tc.submit(lambda x, *, y: x + y, [1], y=[2]).r == [1, 2]
    assert tc.submit(abs, Reference("engine_id")).r in (0, 1)


def test_all_engines_work(tc: TaskClient) -> None:
    pending = [tc.submit(abs, Reference("engine_id")) for _ in range(20)]
    assert {each.r for each in pending} == {0, 1}


def test_calls_of_one_function_share_a_batch(tc: TaskClient) -> None:
    factor = 2

    def times(x: int) -> int:
        return x * factor

    pending = [tc.submit(times, i) for i in range(5)]
    assert len({each.command_id for each in pending}) == 1
    assert [each.id.partition("#")[2] for each in pending] == ["0", "1", "2", "3", "4"]
    factor = 3
    later = tc.submit(times, 10)
    assert later.command_id != pending[0].command_id
    assert [each.r for each in [*pending, later]] == [0, 2, 4, 6, 8, 30]


def test_what_a_function_uses_may_change(tc: TaskClient) -> None:
    table = {"x": 1}

    def look() -> int:
        return table["x"]

    first = tc.submit(look)
    table["x"] = 2  # inside of an object: only pickling it again tells
    assert [first.r, tc.submit(look).r] == [1, 2]


def test_batches_are_not_kept_for_ever(cluster: MemoryCluster, tc: TaskClient) -> None:
    functions: list[Any] = [lambda i=i: i for i in range(40)]
    assert [tc.submit(f).r for f in functions] == list(range(40))
    cluster.run_until(lambda: len(tasks_sent(cluster)) <= 16)


def test_what_cannot_be_sent(tc: TaskClient, cluster: MemoryCluster) -> None:
    with pytest.raises(SerializationError):
        tc.submit(print, (i for i in "abc"))
    with pytest.raises(TypeError, match="function is needed"):
        tc.submit("print")  # type: ignore[arg-type]
    with pytest.raises(SerializationError, match=r"client\.TaskClient\(\)"):
        pickle.dumps(tc)
    assert tasks_sent(cluster) == []


def test_no_engines() -> None:
    with MemoryCluster(0) as cluster:
        tc = cluster.task_client()
        with pytest.raises(NoEnginesRegistered):
            tc.submit(abs, 1)
        with pytest.raises(NoEnginesRegistered):
            tc.map(abs, [1])
        with pytest.raises(NoEnginesRegistered):
            tc.imap(abs, [1])
        with pytest.raises(NoEnginesRegistered):
            tc.run(StringTask("a = 1"))


def test_its_life(cluster: MemoryCluster) -> None:
    with cluster.task_client() as tc:
        assert "2 engines" in repr(tc)
        assert tc.ids == [0, 1]
        pending = tc.submit(abs, -1)
    assert tc.closed
    assert "closed" in repr(tc)
    assert isinstance(pending.exception(), ClientClosed)
    for call in (tc.submit, tc.map, tc.imap):
        with pytest.raises(ClientClosed):
            call(abs, [1])
    with pytest.raises(ClientClosed):
        tc.run(StringTask("a"))
    with pytest.raises(ClientClosed):
        tc.queue_status()


def test_nothing_is_left_of_a_client_that_was_closed(cluster: MemoryCluster) -> None:
    with cluster.task_client() as tc:
        assert [tc.submit(abs, -1).r, tc.submit(len, "ab").r] == [1, 2]
    tc.close()
    cluster.settle()
    assert tasks_sent(cluster) == []


def test_a_result_keeps_its_client(cluster: MemoryCluster) -> None:
    pending = cluster.task_client().submit(abs, -1)
    cluster._clients.clear()
    assert pending.r == 1


# -- run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outstanding", [True, False])
def test_a_result_by_its_id_keeps_its_client(cluster: MemoryCluster, outstanding: bool) -> None:
    tc = cluster.task_client()
    cluster._clients.remove(tc)
    id = tc.run(MapTask(abs, (-1,)))
    [pending] = tc.pending if outstanding else [tc.get_pending(id)]
    core = tc._core
    del tc
    gc.collect()
    assert pending.r == 1
    core.check_usable()
    del pending
    gc.collect()
    with pytest.raises(ClientClosed):
        core.check_usable()


def test_what_was_run_and_not_asked_for_goes_with_its_client(cluster: MemoryCluster) -> None:
    tc = cluster.task_client()
    cluster._clients.remove(tc)
    tc.run(MapTask(abs, (-1,)), block=True)
    tc.barrier()
    core = tc._core
    gc.disable()
    try:
        del tc
        with pytest.raises(ClientClosed):
            core.check_usable()
    finally:
        gc.enable()


def test_names_are_those_that_python_makes_of_them(tc: TaskClient) -> None:
    id = tc.run(StringTask("µ = µ + 1", push={"µ": 1}, pull=["µ"]))
    result = tc.get_task_result(id, block=True)
    assert result is not None
    assert result.ns.µ == result["µ"] == result["\u03bc"] == 2


def test_a_string_task(tc: TaskClient) -> None:
    result = tc.run(StringTask("b = a + 1\nc = 'x'", push={"a": 1}, pull=["b", "c"]), block=True)
    assert isinstance(result, TaskResult)
    assert result["b"] == 2
    assert result.ns.c == "x"
    assert result.results == {"b": 2, "c": "x"}
    assert result.failure is None
    assert result.engineid in (0, 1)
    assert result.duration >= 0
    assert result.submitted > 0
    with pytest.raises(KeyError, match="was not pulled"):
        result["d"]
    assert result.taskid in repr(result)
    assert result.taskid in result._repr_html_()


def test_a_map_task(tc: TaskClient) -> None:
    id = tc.run(MapTask(pow, (2,), {"exp": 3}))
    assert isinstance(id, str)
    result = tc.get_task_result(id, block=True)
    assert result is not None
    assert result.results == 8
    assert result.taskid == id
    with pytest.raises(TypeError, match="StringTask"):
        result["a"]


def test_a_task_that_failed(tc: TaskClient) -> None:
    result = tc.run(StringTask("1/0", pull="a"), block=True)
    assert result.failure.ename == "ZeroDivisionError"
    assert result.results is None
    for read in (result.raise_exception, lambda: result["a"], lambda: result.ns):
        with pytest.raises(ZeroDivisionError):
            read()
    assert "ZeroDivisionError" in repr(result)
    missing = tc.run(StringTask("a = 1", pull="b"), block=True)
    assert missing.failure.evalue == "name 'b' is not defined"


def test_a_namespace_may_be_cleared(tc: TaskClient) -> None:
    assert tc.run(StringTask("a = 1", pull="a", clear_after=True), block=True)["a"] == 1
    leaks = [tc.run(StringTask("b = 'a' in globals()", pull="b"), block=True)["b"] for _ in range(4)]
    assert leaks == [False] * 4
    tc.run(StringTask("a = 1"), block=True)
    clean = StringTask("b = 'a' in globals()", pull="b", clear_before=True)
    assert [tc.run(clean, block=True)["b"] for _ in range(4)] == [False] * 4


def test_retries(cluster: MemoryCluster, tc: TaskClient) -> None:
    tries: list[int] = []
    FLAKY["tries"] = tries
    assert tc.run(MapTask(flaky, (2,), retries=2), block=True).results == 3
    tries.clear()
    assert tc.run(MapTask(flaky, (2,), retries=1), block=True).failure.ename == "OSError"
    assert len(tries) == 2


FLAKY: dict[str, list[int]] = {}


def flaky(failures: int) -> int:
    """Fails some times; runs in this process."""
    tries = FLAKY["tries"]
    tries.append(1)
    if len(tries) <= failures:
        raise OSError("not yet")
    return len(tries)


def test_recovery(tc: TaskClient) -> None:
    fails = MapTask(operator.truediv, (1, 0))
    assert tc.run(MapTask(abs, (-1,), recovery_task=MapTask(abs, (-2,))), block=True).results == 1
    id = tc.run(MapTask(operator.truediv, (1, 0), recovery_task=MapTask(abs, (-2,))))
    result = tc.get_task_result(id, block=True)
    assert result is not None
    assert (result.taskid, result.results) == (id, 2)
    chain = MapTask(operator.truediv, (1, 0), recovery_task=MapTask(len, (1,), recovery_task=fails))
    assert tc.run(chain, block=True).failure.ename == "ZeroDivisionError"


def test_an_aborted_task_is_not_recovered(cluster: MemoryCluster, tc: TaskClient) -> None:
    ran: list[int] = []
    FLAKY["tries"] = ran
    gate = tc.submit(abs, -1)
    id = tc.run(MapTask(abs, (-1,), after=gate, recovery_task=MapTask(flaky, (0,))))
    tc.abort(id)
    result = tc.get_task_result(id, block=True)
    assert result is not None
    cluster.settle()
    assert isinstance(result.failure.exception(), TaskAborted)  # type: ignore[union-attr]
    assert ran == []


def test_recovery_chains_end() -> None:
    task = MapTask(abs, (1,))
    for _ in range(8):
        task = MapTask(abs, (1,), recovery_task=task)
    with pytest.raises(ValueError, match="must end"):
        MapTask(abs, (1,), recovery_task=task)


def test_a_recovery_made_into_a_circle(tc: TaskClient) -> None:
    task = MapTask(abs, (1,))
    task.recovery_task = task
    with pytest.raises(ValueError, match="must end"):
        tc.run(task)


def test_after(tc: TaskClient) -> None:
    good, bad = tc.run(MapTask(abs, (-1,))), tc.run(MapTask(operator.truediv, (1, 0)))
    assert tc.run(MapTask(abs, (-1,), after=good), block=True).results == 1
    assert tc.run(MapTask(abs, (-1,), after=bad, when="failure"), block=True).results == 1
    assert tc.run(MapTask(abs, (-1,), after=[good, bad], when="completion"), block=True).results == 1
    assert tc.run(MapTask(abs, (-1,), after=[good, bad], any=True), block=True).results == 1
    failed = tc.run(MapTask(abs, (-1,), after=[good, bad]), block=True)
    with pytest.raises(ImpossibleDependency):
        failed.raise_exception()


def test_follow(tc: TaskClient) -> None:
    for _ in range(4):
        first = tc.submit(abs, Reference("engine_id"))
        then = tc.run(MapTask(abs, (Reference("engine_id"),), follow=first), block=True)
        assert then.results == first.r == then.engineid


def test_depend(cluster: MemoryCluster, tc: TaskClient) -> None:
    cluster.client()[1].set_properties({"gpu": True})

    def has(name: str, default: bool = False) -> Any:
        from ipython1 import this_engine

        return this_engine.properties.get(name, default)

    where = Reference("engine_id")
    for _ in range(3):
        assert tc.run(MapTask(abs, (where,), depend=(has, ("gpu",))), block=True).results == 1
        code = StringTask("a = engine_id", pull="a", depend=(has, (), {"name": "gpu"}))
        assert tc.run(code, block=True)["a"] == 1
        assert tc.submit(depend(has, "gpu")(abs), where).r == 1
        assert tc.map(depend(has, "gpu")(abs), [where] * 3) == [1, 1, 1]
    nowhere = tc.run(MapTask(abs, (where,), depend=(has, ("tpu",))), block=True)
    with pytest.raises(TaskRejected):
        nowhere.raise_exception()


def test_require(tc: TaskClient) -> None:
    @require("json", "math")
    def f(x: int) -> int:
        """Doc."""
        return x + 1

    assert f(1) == 2
    assert (f.__name__, f.__doc__) == ("f", "Doc.")  # type: ignore[attr-defined]
    assert tc.submit(f, 1).r == 2
    with pytest.raises(CompositeError, match="no_such_module"):
        tc.submit(require("no_such_module")(f), 1).result()
    with pytest.raises(TypeError, match="names of modules"):
        require(len)  # type: ignore[arg-type]


def test_timeouts_of_dependencies(cluster: MemoryCluster, tc: TaskClient) -> None:
    def never() -> bool:
        return False

    result = tc.run(MapTask(abs, (1,), depend=never, wait=3.0), block=True)
    assert result.failure.ename == "TaskTimeout"
    assert cluster.clock.seconds() >= 3.0


def test_priority(cluster: MemoryCluster, tc: TaskClient) -> None:
    order: list[int] = []
    FLAKY["tries"] = order
    gate = tc.submit(abs, -1)
    for number in range(4):
        tc.run(MapTask(noted, (number,), after=gate, priority=number))
    tc.barrier()
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(3) < 2 or order.index(2) < 2


def noted(number: int) -> None:
    """Notes that it ran, in this process."""
    FLAKY["tries"].append(number)


# -- results by id --------------------------------------------------------------------------------


def test_the_pending_result_of_a_task(cluster: MemoryCluster, tc: TaskClient) -> None:
    id = tc.run(StringTask("print('said'); import sys; print('sighed', file=sys.stderr); b = 2", pull="b"))
    pending = tc.get_pending(id)
    assert pending.id == id
    assert pending.r == {"b": 2}
    assert pending.stdout == ["said\n"]
    result = tc.get_task_result(id)
    assert result is not None
    assert (result.stdout, result.stderr) == ("said\n", "sighed\n")
    assert "stdout 'said\\n'" in repr(result)
    assert cluster.task_client().get_pending(id).r == {"b": 2}


def test_results_of_another_client(cluster: MemoryCluster, tc: TaskClient) -> None:
    id = tc.run(MapTask(pow, (2, 5)))
    other = cluster.task_client()
    cluster.settle()
    result = other.get_task_result(id, block=True)
    assert result is not None
    assert result.results == 32
    assert result.submitted == 0
    assert tc.get_task_result(id, block=True).results == 32  # type: ignore[union-attr]


def test_a_result_that_the_client_has_taken(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = tc.submit(pow, 2, 5)
    assert pending.r == 32
    cluster.clock.advance(1)
    result = tc.get_task_result(pending, block=True)
    assert result is not None
    assert result.results == 32
    assert tc.get_task_result(pending.id, block=True).results == 32  # type: ignore[union-attr]
    assert cluster.task_client().get_task_result(pending.id, block=True).results == 32  # type: ignore[union-attr]


def test_not_there_yet(tc: TaskClient) -> None:
    gate = tc.submit(abs, -1)
    id = tc.run(MapTask(abs, (-1,), after=gate))
    assert tc.get_task_result(id) is None
    assert tc.get_task_result(gate.id) is None
    tc.barrier()
    assert tc.get_task_result(id).results == 1  # type: ignore[union-attr]


def test_unknown_tasks(tc: TaskClient) -> None:
    for _ in range(2):
        with pytest.raises(UnknownResult, match="000000000000-1#0"):
            tc.get_task_result("000000000000-1#0", block=True)
    with pytest.raises(ValueError, match="not the id of a task"):
        tc.get_task_result("nonsense")
    with pytest.raises(ValueError, match="not the id of a task"):
        tc.get_task_result("000000000000-1@0")
    with pytest.raises(TypeError, match="named by its id"):
        tc.get_task_result(3)  # type: ignore[arg-type]


def test_clear(cluster: MemoryCluster, tc: TaskClient) -> None:
    ids = [tc.run(MapTask(abs, (-1,))) for _ in range(3)]
    tc.barrier(ids)
    assert len(tc._runs) == 3
    tc.clear(ids[0])
    assert list(tc._runs) == ids[1:]
    tc.clear()
    assert not tc._runs


# -- what is outstanding -------------------------------------------------------------------------------


def test_abort(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = [tc.submit(abs, -1) for _ in range(30)]
    tc.abort(pending[20:])
    tc.abort(pending[5].id)
    ended = [each.exception() for each in pending]
    assert [error is None for error in ended] == [i != 5 and i < 20 for i in range(30)]
    for error in ended[20:]:
        assert isinstance(error, CompositeError)
        assert isinstance(error.elist[0].exception(), TaskAborted)
    tc.abort(pending)  # what has ended is left alone
    assert pending[0].r == 1
    with pytest.raises(ValueError, match="another client"):
        tc.abort("000000000000-1#0")


def test_barrier(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = [tc.submit(abs, -1) for _ in range(3)]
    mapped = tc.map(abs, range(30), block=False)
    assert set(tc.pending) == {*pending, mapped}
    tc.barrier(pending[1])
    assert pending[1].done()
    tc.barrier()
    assert mapped.done()
    assert tc.pending == []
    stuck = tc.submit(abs, 1)
    assert cluster.controller is not None
    cluster.stop_controller()
    with pytest.raises(TimeoutError):
        tc.barrier(timeout=1)
    assert not stuck.done()


def test_queue_status(cluster: MemoryCluster, tc: TaskClient) -> None:
    def never() -> bool:
        return False

    waits = tc.run(MapTask(abs, (-1,), depend=never, wait=50.0))
    blocked = tc.run(MapTask(abs, (-1,), after=waits))
    assert tc.queue_status()["blocked"] == 1  # what was sent before the question counts
    cluster.settle()
    assert tc.queue_status() == {"blocked": 1, "ready": 1, "handed": 0, "ended": 0}
    found = tc.queue_status(verbose=True)
    assert found == {"blocked": [blocked], "ready": [waits], "handed": [], "ended": []}


def test_cancel(tc: TaskClient) -> None:
    pending = [tc.submit(abs, -1) for _ in range(30)]
    assert pending[-1].cancel()
    assert pending[-1].cancelled()
    assert pending[0].r == 1
    assert not pending[0].cancel()


# -- trouble ------------------------------------------------------------------------------------------


def test_a_dead_engine_takes_nothing_along(cluster: MemoryCluster, tc: TaskClient) -> None:
    pending = [tc.submit(abs, -1) for _ in range(50)]
    mapped = tc.map(abs, range(100), block=False)
    cluster.end_engine(cluster.engine(0), "killed by signal 9 (SIGKILL)")
    assert [each.r for each in pending] == [1] * 50
    assert mapped.r == list(range(100))


def test_a_controller_that_starts_again(cluster: MemoryCluster, tc: TaskClient) -> None:
    ran: list[int] = []
    FLAKY["tries"] = ran
    pending = [tc.submit(noted, i) for i in range(20)]
    mapped = tc.map(noted, range(20, 60), block=False)
    for _ in range(3):
        cluster.step()
    cluster.stop_controller()
    cluster.start_controller()
    tc.barrier(pending)
    mapped.result()
    assert sorted(ran) == list(range(60))
