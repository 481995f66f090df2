"""Tasks on a real cluster: engines that are busy, die and are interrupted, and neighbours that use them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipython1.kernel import client
from ipython1.kernel.client import (
    CompositeError,
    MapTask,
    MultiEngineClient,
    Reference,
    StringTask,
    TaskClient,
    depend,
    require,
)
from ipython1.kernel.error import NotAllowed, TaskAborted, TaskTimeout
from ipython1.kernel.files import ClusterFiles

from .conftest import ReactorThread


@pytest.fixture(scope="module")
def cluster() -> client.Cluster:
    return client.Cluster(n=4)


@pytest.fixture(scope="module")
def mec(reactor_thread: ReactorThread, cluster: client.Cluster) -> Iterator[MultiEngineClient]:
    with cluster as mec:
        yield mec


@pytest.fixture(scope="module")
def tc(mec: MultiEngineClient) -> Iterator[TaskClient]:
    with mec.task_client() as tc:
        yield tc


@pytest.fixture(autouse=True)
def _all_well_afterwards(mec: MultiEngineClient, tc: TaskClient) -> Iterator[None]:
    """Whatever a test did, the same connection and the same engines go on working."""
    yield
    assert tc.map(abs, range(-8, 0), chunksize=1) == list(range(8, 0, -1))
    assert tc.pending == []
    assert mec.get_ids() == [0, 1, 2, 3]


def test_by_its_own_furl(mec: MultiEngineClient, cluster: client.Cluster) -> None:
    with TaskClient(cluster=cluster.cluster) as own:
        assert own.submit(pow, 2, 5).result(30) == 32
        assert own.ids == mec.get_ids()
    with pytest.raises(NotAllowed):
        MultiEngineClient(ClusterFiles(cluster.cluster).furl("task"))


def test_in_asyncio(tc: TaskClient) -> None:
    async def main() -> list[int]:
        pending = [tc.submit(pow, n, 2) for n in range(10)]
        return [await each for each in pending] + await tc.map(abs, [-1, -2], block=False)

    assert asyncio.run(main()) == [n * n for n in range(10)] + [1, 2]


# -- functions ------------------------------------------------------------------------------------


def test_thousands_of_calls(tc: TaskClient) -> None:
    offset = 7

    def shifted(x: int) -> int:
        return x + offset

    pending = [tc.submit(shifted, x) for x in range(3000)]
    assert [each.result(60) for each in pending] == list(range(7, 3007))
    assert len({each.command_id for each in pending}) == 1


def test_what_was_just_submitted_is_outstanding(tc: TaskClient) -> None:
    for seconds in [0.01] * 20:
        pending = tc.submit(time.sleep, seconds)
        assert tc.pending == [pending]
        tc.barrier()
        assert pending.done()
    assert tc.pending == []


def test_long_maps(tc: TaskClient) -> None:
    assert tc.map(lambda x: x * x, range(20_000)) == [x * x for x in range(20_000)]
    assert tc.map(lambda x: x * x, range(1_000), chunksize=1) == [x * x for x in range(1_000)]


def test_all_engines_share_a_map(tc: TaskClient) -> None:
    def where(x: int) -> int:
        time.sleep(0.002)
        return os.getpid()

    counts = Counter(tc.map(where, range(400)))
    assert len(counts) == 4
    assert min(counts.values()) > 40


def test_a_long_item_does_not_hold_up_the_short_ones(tc: TaskClient) -> None:
    start = time.monotonic()
    tc.map(time.sleep, [1.0] + [0.001] * 600)
    assert time.monotonic() - start < 2.0


def test_arrays(tc: TaskClient) -> None:
    arrays = [np.full(200_000, float(n)) for n in range(6)]
    doubled = tc.map(lambda a: a * 2, arrays)
    for n, array in enumerate(doubled):
        assert array[0] == array[-1] == 2.0 * n
        array[0] = -1  # writable
    assert tc.submit(np.sum, arrays[3]).result(30) == 600_000.0


def test_endless_input(tc: TaskClient) -> None:
    results = tc.imap(lambda x: x + 1, itertools.count())
    assert list(itertools.islice(results, 500)) == list(range(1, 501))
    results.close()  # type: ignore[attr-defined]
    tc.barrier(timeout=30)


def test_unordered_results_come_early(tc: TaskClient) -> None:
    def slow_first(x: int) -> int:
        time.sleep(0.8 if x == 0 else 0.0)
        return x

    assert list(tc.imap(slow_first, range(20), ordered=False))[-1] == 0


def test_from_several_threads(tc: TaskClient) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        maps = [pool.submit(tc.map, abs, range(-500, n)) for n in range(8)]
        submits = [pool.submit(lambda n: tc.submit(pow, n, 2).result(30), n) for n in range(50)]
        assert [len(each.result(60)) for each in maps] == list(range(500, 508))
        assert [each.result(60) for each in submits] == [n * n for n in range(50)]


def test_ctrl_c_ends_the_work_of_a_map(tc: TaskClient, mec: MultiEngineClient) -> None:
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tc.map(time.sleep, [30.0] * 50)
    assert time.monotonic() - start < 5
    tc.barrier(timeout=10)
    assert mec.execute("1", timeout=5)[0]["number"]


def test_a_bar_for_who_waits_long(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with contextlib.redirect_stderr(screen):
        tc.map(time.sleep, [0.0] * 100)
        assert screen.getvalue() == ""
        tc.map(time.sleep, [0.7] * 16)
    assert "of 16" in screen.getvalue()
    plain = io.StringIO()
    with contextlib.redirect_stderr(plain):
        tc.map(time.sleep, [0.7] * 16)
    assert plain.getvalue() == ""


# -- tasks with options -----------------------------------------------------------------------


def test_tasks_with_names(tc: TaskClient) -> None:
    ids = [tc.run(StringTask("b = a ** 2; c = engine_id", push={"a": n}, pull=["b", "c"])) for n in range(30)]
    tc.barrier(ids, timeout=30)
    results = [tc.get_task_result(id) for id in ids]
    assert [result["b"] for result in results if result] == [n * n for n in range(30)]
    assert all(result is not None and result.engineid == result.ns.c for result in results)
    tc.clear()


def test_a_timeout_interrupts(tc: TaskClient) -> None:
    start = time.monotonic()
    result = tc.run(MapTask(time.sleep, (30,), timeout=0.5), block=True)
    assert time.monotonic() - start < 10
    with pytest.raises(TaskTimeout):
        result.raise_exception()


def test_abort_of_what_runs(tc: TaskClient) -> None:
    running = [tc.submit(time.sleep, 30) for _ in range(4)]
    queued = [tc.submit(abs, -1) for _ in range(4)]
    time.sleep(0.5)
    tc.abort(queued)
    for each in queued:
        error = each.exception(10)
        assert isinstance(error, CompositeError)
        assert isinstance(error.elist[0].exception(), TaskAborted)
    tc.abort(running, interrupt=True)
    for each in running:
        error = each.exception(10)
        assert isinstance(error, CompositeError)
        assert error.elist[0].ename == "KeyboardInterrupt"


def test_where_a_task_may_run(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec[2].set_properties({"gpu": True})

    def has_gpu() -> bool:
        from ipython1 import this_engine

        return bool(this_engine.properties.get("gpu", False))

    @depend(has_gpu)
    @require("numpy")
    def here(x: int) -> Any:
        return x, engine_id  # type: ignore[name-defined]  # noqa: F821

    assert tc.map(here, range(6)) == [(x, 2) for x in range(6)]
    assert tc.submit(here, 1).result(30) == (1, 2)
    follower = MapTask(abs, (Reference("engine_id"),), follow=tc.submit(here, 2))
    assert tc.run(follower, block=True).results == 2
    mec[2].clear_properties()


def test_output_of_tasks(tc: TaskClient) -> None:
    pending = tc.submit(print, "hello")
    pending.result(30)
    assert pending.stdout == ["hello\n"]


def test_results_for_another_client(tc: TaskClient, mec: MultiEngineClient) -> None:
    id = tc.run(MapTask(pow, (2, 10)), block=True).taskid
    with mec.task_client() as other:
        result = other.get_task_result(id, block=True)
        assert result is not None
        assert result.results == 1024
    tc.clear()


def test_a_task_whose_engine_dies_runs_elsewhere(
    tc: TaskClient, mec: MultiEngineClient, tmp_path: Path
) -> None:
    mark = tmp_path / "died"

    def die_once(x: int) -> int:
        if x == 5 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert tc.map(die_once, range(20)) == list(range(20))
    mec.wait_for_engines(4, timeout=30)


# -- neighbours ------------------------------------------------------------------------------------


def test_executor(tc: TaskClient) -> None:
    with tc.executor() as executor:
        futures = [executor.submit(pow, n, 2) for n in range(50)]
        done = concurrent.futures.as_completed(futures, timeout=30)
        assert {future.result() for future in done} == {n * n for n in range(50)}
        assert list(executor.map(pow, range(10), [3] * 10, chunksize=3)) == [n**3 for n in range(10)]
        with pytest.raises(concurrent.futures.TimeoutError):
            list(executor.map(time.sleep, [0.0, 20.0], timeout=1))
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(30)
        tc.abort(tc.pending, interrupt=True)


def test_cancel_of_what_an_engine_has_not_started(tc: TaskClient) -> None:
    with tc.executor() as executor:
        futures = [executor.submit(time.sleep, 0.3) for _ in range(40)]
        futures[0].result(30)
        assert not futures[0].cancel()
        assert futures[-1].cancel()
        start = time.monotonic()
        executor.shutdown(cancel_futures=True)
        assert time.monotonic() - start < 3
        assert sum(future.cancelled() for future in futures) > 20
        assert all(future.done() for future in futures)


@pytest.mark.parametrize(
    "imports",
    [
        "import joblib\nfrom ipython1.kernel import client",
        "from ipython1.kernel import client\nimport joblib",
    ],
)
def test_joblib_needs_no_registering(tc: TaskClient, cluster: client.Cluster, imports: str) -> None:
    script = f"""
{imports}
with joblib.parallel_config("ipython1", cluster={cluster.cluster!r}):
    print(joblib.Parallel(n_jobs=-1)(joblib.delayed(abs)(-n) for n in range(10)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{list(range(10))}\n", "")


def test_joblib(tc: TaskClient) -> None:
    joblib = pytest.importorskip("joblib")
    tc.register_joblib_backend()
    with joblib.parallel_config("ipython1"):
        assert joblib.effective_n_jobs(-1) == 4
        assert joblib.effective_n_jobs(-2) == 3
        assert joblib.effective_n_jobs(2) == 2
        assert joblib.Parallel(n_jobs=-1)(joblib.delayed(abs)(-n) for n in range(300)) == list(range(300))
        pids = joblib.Parallel(n_jobs=-1)(joblib.delayed(os.getpid)() for _ in range(40))
        assert os.getpid() not in pids
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel(n_jobs=-1)(joblib.delayed(divmod)(1, n) for n in (1, 0, 2))

        def nested(n: int) -> list[int]:
            return list(joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, 2) for _ in range(2)))

        assert joblib.Parallel(n_jobs=-1)(joblib.delayed(nested)(n) for n in range(4)) == [
            [n * n] * 2 for n in range(4)
        ]
        generator = joblib.Parallel(n_jobs=-1, return_as="generator")(
            joblib.delayed(abs)(-n) for n in range(20)
        )
        assert list(generator) == list(range(20))
    tc.barrier(timeout=30)


def test_cross_validation_of_scikit_learn(mec: MultiEngineClient) -> None:
    joblib = pytest.importorskip("joblib")
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    X, y = datasets.load_digits(return_X_y=True)  # noqa: N806
    here = cross_val_score(SVC(gamma=0.001), X, y, cv=5)
    mec.register_joblib_backend("ours")
    with joblib.parallel_config("ours"):
        there = cross_val_score(SVC(gamma=0.001), X, y, cv=5, n_jobs=-1)
        search = GridSearchCV(SVC(), {"gamma": [1e-4, 1e-3], "C": [1, 10]}, cv=3, n_jobs=-1).fit(X, y)
    assert np.array_equal(here, there)
    assert there.mean() > 0.95
    assert search.best_params_["gamma"] == 1e-3


def test_a_script_finds_its_clients(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            def square(x):
                return x * x
            print(tc.map(square, range(5)), len(mec))
            """
        )
    )
    command = [sys.executable, "-m", "ipython1.scripts.ipcluster", "run", "-n", "2", os.fspath(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "[0, 1, 4, 9, 16] 2" in ended.stdout, ended.stderr
    assert ended.returncode == 0
