"""`Cluster` with real processes: scaling, adapting, mixing kinds, and other processes' clusters."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel import client
from ipython1.kernel.error import CompositeError, LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.cluster import Cluster
from ipython1.launch.state import NotRunning, State, is_running
from tests.integration.test_ipcluster import Family, environment, ipcluster, processes_of, until

pytestmark = pytest.mark.timeout(120)
NAME = "shared"


def python(code: str, *arguments: str) -> str:
    """What a program in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster(ipython1_dir: Path) -> Iterator[Cluster]:
    """A cluster of one engine at first, whose controller has options of its own."""
    cluster = Cluster(1, dashboard=False, scheduler="fifo")
    cluster.start()
    yield cluster
    cluster.stop()


def test_scaling(cluster: Cluster) -> None:
    mec = cluster.client()
    assert cluster.client() is mec
    cluster.scale(3)
    assert cluster.engines == mec.get_ids() == [0, 1, 2]
    running = [mec.execute("import time; time.sleep(60)", targets=id, block=False) for id in (1, 2)]
    until(lambda: [row["running"] is None for row in mec.status()] == [True, False, False])
    cluster.scale(2)
    assert mec.get_ids() == [1, 2]  # the idle one went
    cluster.scale(1)
    assert mec.get_ids() == [1]
    with pytest.raises(CompositeError, match="EngineDied: Engine 2 died: stopped on request"):
        running[1].result()
    mec.interrupt()
    assert State.read(ClusterFiles(cluster.cluster)).wanted == 1
    assert "engine 0 stopped on request" in cluster.logs()
    late = ipcluster("scale", "2", "--cluster", cluster.cluster, "--timeout", "0")
    assert (late.returncode, late.stderr.startswith("ipcluster: There are 1 engines after 0 s, not 2.")) == (
        1,
        True,
    )
    cluster.scale(2)
    cluster.scale(1, wait=False)
    cluster.scale(3)  # what leaves does not count
    assert until(lambda: len(mec.get_ids()) == 3)
    cluster.scale(1)
    mec.close()
    assert cluster.client().get_ids() == cluster.engines


def test_tasks_of_engines_that_are_stopped_run_elsewhere(cluster: Cluster) -> None:
    cluster.scale(3)
    with client.TaskClient(cluster=cluster.cluster) as tc:

        def work(n: int) -> int:
            import time

            time.sleep(0.5)
            return n

        results = tc.map(work, range(8), block=False)
        until(lambda: all(row["running"] for row in cluster.client().status()))
        cluster.scale(1)
        assert sorted(results) == list(range(8))


def test_it_adapts_to_real_tasks(cluster: Cluster) -> None:
    cluster.scale(1)
    (stays,) = cluster.client().apply(os.getpid)
    cluster.adapt(1, 3, after=0.5, idle=1.0)
    assert repr(cluster).endswith(": 1 local engine, running, adapts from 1 to 3>")
    with client.TaskClient(cluster=cluster.cluster) as tc:

        def work(n: int) -> int:
            import time

            time.sleep(0.3)
            return n

        results = tc.map(work, range(24), block=False)
        until(lambda: len(cluster.engines) == 3)
        assert sorted(results) == list(range(24))
    until(lambda: len(cluster.engines) == 1)
    cluster.adapt()
    assert repr(cluster).endswith("running>")
    with client.TaskClient(cluster=cluster.cluster) as tc:
        assert list(tc.map(work, range(4))) == list(range(4))
    assert len(cluster.engines) == 1
    assert stays  # one of the three is left, whichever


def test_an_engine_that_works_outlives_its_time(cluster: Cluster) -> None:
    cluster.scale(2)
    mec = cluster.client()
    first, last = mec.get_ids()
    busy = mec.execute("import time; time.sleep(3); a = 5", targets=last, block=False)
    cluster.adapt(0, 2, idle=0.5)
    until(lambda: cluster.engines == [last])
    busy.result(30)
    cluster.adapt()
    assert mec.get_ids() == [last] != [first]


def test_other_engines_are_added(cluster: Cluster) -> None:
    cluster.scale(1)
    added = cluster.add("local", 2, env=None, restart=False)
    assert (added.running, len(cluster.engines)) == (True, 3)
    assert "2 local engines" not in repr(added)
    assert repr(added).endswith(f"local engines for cluster {cluster.cluster}, running>")
    nannies = {host for host in cluster.client().apply(os.getppid)}
    assert len(nannies) == 2
    added.stop()
    assert not added.running
    until(lambda: len(cluster.engines) == 1)
    with pytest.raises(LaunchError, match=r"--stuck-after.*is not in the range"):
        cluster.add("local", 1, stuck_after=-1)


def test_what_cannot_be_started_says_so(cluster: Cluster) -> None:
    with pytest.raises(LaunchError, match="it runs already"):
        cluster.start()
    with pytest.raises(
        LaunchError, match=r"^Cluster mine did not start: .*'--port'.* 70000 is not in the range"
    ):
        Cluster(1, cluster="mine", port=70000).start()
    found = Cluster(1, cluster="nothing-there")
    with pytest.raises(LaunchError, match="No such option"):
        Cluster(1, options=["--nonsense"]).start()
    assert repr(found).endswith("1 local engine, not started>")


def test_one_that_was_stopped_by_others_starts_again(ipython1_dir: Path) -> None:
    cluster = Cluster(1, cluster="again", port=0, dashboard=False)
    cluster.start()
    added = cluster.add("local", 1)
    family = Family(added._process.pid)
    assert ipcluster("stop", "--cluster", "again").returncode == 0
    assert until(lambda: not cluster.running)
    assert until(lambda: not added.running)
    until(family.gone)
    assert repr(cluster).endswith("stopped>")
    with pytest.raises(LaunchError, match="does not run"):
        cluster.scale(2)
    with cluster as mec:
        assert mec.get_ids() == [0]
    assert not cluster.running


# -- more than one process ---------------------------------------------------------------------------

STARTS = f"""
import json
from ipython1.kernel.client import Cluster
with Cluster(1, cluster={NAME!r}, daemonize=True, port=0, dashboard=False) as mec:
    mec["a"] = 5
print(json.dumps(Cluster.named({NAME!r}).to_dict()))
"""
USES = """
import json, sys
from ipython1.kernel.client import Cluster
cluster = Cluster.from_dict(json.loads(sys.argv[1]))
cluster.scale(2)
with cluster as mec:
    print(cluster, mec.pull("a", targets=0))
"""


@pytest.fixture
def shared(ipython1_dir: Path) -> Iterator[str]:
    """A cluster that another process, which has ended, has started; as a text for others."""
    yield python(STARTS)
    if is_running(ClusterFiles(NAME)):
        ipcluster("stop", "--cluster", NAME)


def test_a_cluster_outlives_its_program_and_is_found_again(shared: str) -> None:
    family = Family(State.read(ClusterFiles(NAME)).pid)
    cluster = Cluster.named(NAME)
    assert repr(cluster) == f"<Cluster '{NAME}': 1 local engine, running>"
    assert cluster.to_dict() == json.loads(shared)
    assert python(USES, shared) == f"<Cluster '{NAME}': 2 local engines, running> [5]\n"
    with cluster as mec:
        assert mec.pull("a", targets=0) == [5]
    assert cluster.running  # it is only left
    with pytest.raises(LaunchError, match="it runs already"):
        cluster.start()
    with pytest.raises(LaunchError, match="already running"):
        Cluster(1, cluster=NAME, daemonize=True).start()

    async def main() -> list[int]:
        async with Cluster.from_dict(json.loads(shared)) as mec:
            ids: list[int] = mec.get_ids()
        return ids

    assert asyncio.run(main()) == [0, 1]
    family.look()
    cluster.stop()
    assert not cluster.running
    until(family.gone)
    assert not processes_of(NAME)
    with pytest.raises(NotRunning):
        Cluster.named(NAME)
    with pytest.raises(NotRunning):
        Cluster.from_dict(json.loads(shared))


def test_what_is_added_to_a_cluster_ends_with_it(shared: str) -> None:
    cluster = Cluster.named(NAME)
    added = cluster.add("local", 1)
    family = Family(added._process.pid)
    assert cluster.engines == [0, 1]
    other = Cluster.named(NAME)
    other.stop()
    until(lambda: not added.running)
    until(family.gone)


def test_a_cluster_that_is_dropped_while_it_adapts_ends(ipython1_dir: Path) -> None:
    cluster = Cluster(1, dashboard=False)
    cluster.start()
    cluster.adapt(1, 2)
    name, family = cluster.cluster, Family(State.read(ClusterFiles(cluster.cluster)).pid)
    began = time.monotonic()
    del cluster
    until(family.gone)
    assert time.monotonic() - began < 20
    assert not ClusterFiles(name).folder.exists()
