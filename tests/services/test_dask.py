"""`become_dask` and `stop_dask` with the real `distributed`, on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.error import CompositeError
from tests.integration.test_ipcluster import Running, two_engines, until

if os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1":
    import dask
    import distributed
else:
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")

pytestmark = pytest.mark.timeout(90)

THREADS = "import threading; threads = sorted(each.name for each in threading.enumerate())"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engines have temporary files."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def cluster(ipython1_dir: Path, scratch: Path) -> Iterator[Running]:
    """Two engines; each may be killed."""
    with two_engines("--no-dashboard", TMPDIR=os.fspath(scratch)) as running:
        yield running


@pytest.fixture
def mec(cluster: Running) -> Iterator[MultiEngineClient]:
    """A client; afterwards no engine is a worker."""
    with MultiEngineClient() as mec:
        mec.wait_for_engines(2)
        yield mec
        mec.stop_dask()


def folders(scratch: Path) -> list[str]:
    """What is there for Dask."""
    return [each.name for each in scratch.iterdir()]


def ports(mec: MultiEngineClient) -> list[Any]:
    """Where the engines and what they have started listen."""
    engines = [psutil.Process(each["pid"]) for each in mec.status()]
    processes = [process for engine in engines for process in (engine, *engine.children(recursive=True))]
    return [each.laddr for process in processes for each in process.net_connections("inet") if not each.raddr]


def number_here() -> int:
    import __main__

    return int(__main__.number)


def test_what_dask_computes_is_what_one_process_computes(mec: MultiEngineClient) -> None:
    import dask.array as da
    import numpy as np

    with mec.become_dask() as dasks:
        assert isinstance(dasks, distributed.Client)
        assert len(dasks.nthreads()) == 2
        array = np.arange(40_000.0).reshape(200, 200)
        chunked = da.from_array(array, chunks=(50, 50))
        assert (chunked @ chunked.T).sum().compute() == (array @ array.T).sum()
        parts = [dask.delayed(pow)(n, 2) for n in range(20)]
        assert dask.delayed(sum)(parts).compute() == sum(n * n for n in range(20))
        assert dasks.gather(dasks.map(abs, range(-5, 5))) == [abs(n) for n in range(-5, 5)]
        with pytest.raises(ZeroDivisionError):
            dasks.submit(divmod, 1, 0).result()


def test_frames(mec: MultiEngineClient) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="dask.dataframe needs pyarrow")
    import dask.dataframe as dd

    frame = pd.DataFrame({"name": ["a", "b", "c"] * 100, "n": range(300)})
    mec.become_dask()
    found = dd.from_pandas(frame, npartitions=4).groupby("name").n.mean().compute()
    assert found.to_dict() == frame.groupby("name").n.mean().to_dict()


def test_engines_are_still_engines_and_tasks_see_their_namespaces(mec: MultiEngineClient) -> None:
    mec.push({"number": 7})
    dasks = mec.become_dask()
    assert [*dasks.run(number_here).values()] == [7, 7]
    asleep = dasks.map(time.sleep, [1.0, 1.0], pure=False)
    before = time.monotonic()
    mec.execute("number += 1")
    assert mec["number"] == [8, 8]
    assert time.monotonic() - before < 0.9
    assert {each.status for each in asleep} == {"pending"}
    dasks.gather(asleep)
    assert dasks.run(lambda dask_worker: dask_worker.name).keys() == dasks.nthreads().keys()
    assert {*dasks.run(lambda dask_worker: dask_worker.name).values()} == {0, 1}
    assert "Client" in dasks._repr_html_()  # although there is no dashboard to name


def test_stopping_leaves_nothing(mec: MultiEngineClient, scratch: Path) -> None:
    mec.execute(THREADS)
    threads = mec["threads"]
    for _ in range(2):
        dasks = mec.become_dask()
        assert dasks.submit(sum, [1, 2]).result() == 3
        listening = ports(mec)
        assert len(listening) == 3  # two workers and a scheduler, no dashboard
        assert {each.ip for each in listening} == {"127.0.0.1"}
        assert len(folders(scratch)) == 3
        mec.stop_dask()
        assert dasks.status == "closed"
        assert ports(mec) == []
        assert folders(scratch) == []
        mec.execute(THREADS)
        assert mec["threads"] == threads
    assert [psutil.Process(each["pid"]).children() for each in mec.status()] == [[], []]


def test_clients_share_the_cluster(mec: MultiEngineClient) -> None:
    first = mec.become_dask()
    assert mec.become_dask() is first
    with MultiEngineClient() as other:
        second = other.become_dask()
        assert second is not first
        assert second.scheduler.address == first.scheduler.address
        assert second.submit(sum, [1, 2]).result() == 3
        second.close()
        assert first.submit(sum, [3, 4]).result() == 7
        other.stop_dask()
    until(lambda: first.status != "running")
    again = mec.become_dask()
    assert again.submit(sum, [3, 4]).result() == 7


def test_it_outlives_the_client_that_began_it(mec: MultiEngineClient) -> None:
    with MultiEngineClient() as other:
        address = other.become_dask().scheduler.address
    assert mec.become_dask().scheduler.address == address


def test_nobody_without_the_key_gets_in(mec: MultiEngineClient) -> None:
    dasks = mec.become_dask()
    address = dasks.scheduler.address
    assert address.startswith("tls://")
    stranger = distributed.Security.temporary()
    for security in (None, stranger):
        reached = address if security else address.replace("tls", "tcp")
        with pytest.raises((OSError, TypeError)):
            distributed.Client(reached, security=security, timeout=1, set_as_default=False)
    assert dasks.submit(sum, [1, 2]).result() == 3


def test_an_engine_that_dies_is_a_lost_worker_and_joins_again(mec: MultiEngineClient, scratch: Path) -> None:
    dasks = mec.become_dask()
    pid = mec.status()[1]["pid"]
    futures = dasks.map(_slow_square, range(12), pure=False)
    os.kill(pid, signal.SIGKILL)
    assert dasks.gather(futures) == [n * n for n in range(12)]
    assert len(dasks.nthreads()) == 1
    until(lambda: mec.get_ids() == [0, 1] and mec.status()[1]["pid"] not in (0, pid))
    assert mec.become_dask() is dasks
    assert len(dasks.nthreads()) == 2
    mec.stop_dask()
    mec.become_dask()
    mec.stop_dask()
    assert folders(scratch) == []  # what the dead one left is gone, too


def test_where_the_scheduler_dies_a_new_one_is_started(mec: MultiEngineClient) -> None:
    dasks = mec.become_dask()
    pid = mec.status()[0]["pid"]
    [scheduler] = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    scheduler.wait(20)
    until(lambda: mec.get_ids() == [0, 1] and mec.status()[0]["pid"] not in (0, pid))
    mec.execute(THREADS)
    until(lambda: "dask worker" not in (mec.execute(THREADS), mec.pull("threads", targets=1))[1][0])
    again = mec.become_dask()
    assert again is not dasks
    assert len(again.nthreads()) == 2
    assert again.submit(sum, [1, 2]).result() == 3


def test_what_dask_does_not_take_leaves_nothing(mec: MultiEngineClient, scratch: Path) -> None:
    with pytest.raises(CompositeError, match="colour"):
        mec.become_dask(colour="red")
    assert ports(mec) == []
    assert folders(scratch) == []


def test_some_engines(mec: MultiEngineClient) -> None:
    dasks = mec.become_dask(targets=1, nthreads=3)
    assert [*dasks.nthreads().values()] == [3]
    mec.become_dask()
    assert sorted(dasks.nthreads().values()) == [1, 3]
    mec.stop_dask(targets=0)
    until(lambda: [*dasks.nthreads().values()] == [3])
    assert dasks.submit(sum, [1, 2]).result() == 3


def _slow_square(n: int) -> int:
    time.sleep(0.1)
    return n * n
