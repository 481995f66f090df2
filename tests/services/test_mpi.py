"""Engines that are the ranks of a real MPI job: Open MPI, on this host, over the loopback interface."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.error import CompositeError
from tests.docs.test_transcripts import play
from tests.docs.transcripts import cells
from tests.integration.test_ipcluster import ROOT, TIMEOUT, Running, environment, ipcluster, until

MISSING = shutil.which("mpiexec") is None or find_spec("mpi4py") is None
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(MISSING and not REQUIRED, reason="needs mpiexec of Open MPI, and mpi4py"),
]

N = 4
#: Some containers have fewer CPUs, no network but loopback, and only root.
MPIEXEC = "mpiexec --oversubscribe --mca btl_tcp_if_include lo --mca oob_tcp_if_include lo"
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
WORLD = "from mpi4py import MPI\nworld = MPI.COMM_WORLD"


class Job(Running):
    """A cluster whose engines are an MPI job, and where Open MPI keeps its files."""

    port: str

    def __init__(self, *options: str) -> None:
        self.jobs: set[str] = set()
        self.scratch = Path(tempfile.mkdtemp(prefix="ip1mpi-"))  # short, for sockets
        extra = {**AS_ROOT, "TMPDIR": os.fspath(self.scratch)}
        common = ("-n", str(N), "--engines", "mpi", "--mpiexec", MPIEXEC, "--ip", "127.0.0.1", "--port", "0")
        super().__init__("start", *common, "--no-dashboard", *options, **extra)
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self.err = ""

    def look(self) -> None:
        """Take in the processes that have come since, and the job they are of."""
        self.family.look()
        for process in self.family.members:
            with contextlib.suppress(psutil.Error):
                job = process.environ().get("OMPI_MCA_ess_base_jobid")
                self.jobs |= {f"{int(job):x}"} if job else set()

    def segments(self) -> list[str]:
        """Shared memory of its jobs."""
        return [each for each in os.listdir("/dev/shm") if self.jobs & {*each.split(".")}]

    def says(self, *words: str) -> bool:
        """Whether it has written all of these to stderr since it was last asked for others."""
        assert self.process.stderr is not None
        with contextlib.suppress(BlockingIOError):
            self.err += os.read(self.process.stderr.fileno(), 65536).decode()
        found = all(word in self.err for word in words)
        if found:
            self.err = ""
        return found

    def mpiexec(self) -> psutil.Process:
        """That of the job."""
        children = psutil.Process(self.process.pid).children()
        [found] = [child for child in children if child.name() == "mpiexec"]
        return found

    def over(self) -> None:
        """All is gone that came with it."""
        self.process.wait(TIMEOUT)
        try:
            until(self.family.gone, TIMEOUT)
            assert self.segments() == []
            assert [*self.scratch.iterdir()] == []
        finally:
            self.family.kill()
            self.process.communicate()
            shutil.rmtree(self.scratch)


@pytest.fixture(scope="module")
def job(ipython1_dir: Path) -> Iterator[Job]:
    """One for the tests that harm no rank; in the end it is stopped while ranks wait in vain."""
    job = Job("--stuck-after", "0.5")
    try:
        job.port = job.banner()[0].split()[1].rpartition(":")[2]
        yield job
        with MultiEngineClient() as mec:
            mec.execute(WORLD)
            mec.execute("world.allreduce(1)", targets=[0, 1], block=False)
            until(lambda: all(each["running"] for each in mec.status()[:2]))
            job.look()
            assert job.segments()
            started = time.monotonic()
            assert ipcluster("stop").returncode == 0
            assert time.monotonic() - started < 8
    finally:
        job.process.terminate()
        job.over()


@pytest.fixture
def mec(job: Job) -> Iterator[MultiEngineClient]:
    with MultiEngineClient() as mec:
        mec.wait_for_engines(N)
        yield mec


def test_ranks_are_engine_ids(mec: MultiEngineClient) -> None:
    assert mec.get_ids() == list(range(N))
    mec.execute(WORLD)
    mec.execute("mine = world.rank, world.size, engine_id, MPI.Is_thread_main()")
    assert mec["mine"] == [(rank, N, rank, True) for rank in range(N)]


def test_collectives(mec: MultiEngineClient) -> None:
    mec.execute(WORLD)
    mec.execute("total = world.allreduce(world.rank + 1)")
    assert mec["total"] == [10] * N
    mec.execute("word = world.bcast('from zero' if world.rank == 0 else None)")
    assert mec["word"] == ["from zero"] * N
    mec.execute("part = world.scatter([n * n for n in range(world.size)] if world.rank == 0 else None)")
    assert mec["part"] == [0, 1, 4, 9]
    mec.execute("all = world.gather(part)")
    assert mec["all"] == [[0, 1, 4, 9], None, None, None]


def test_buffers(mec: MultiEngineClient) -> None:
    data = np.arange(400_000.0).reshape(4000, 100)
    mec.scatter("rows", data)
    mec.execute(WORLD)
    mec.execute("sums = rows.sum(axis=0); world.Allreduce(MPI.IN_PLACE, sums)")
    for sums in mec["sums"]:
        np.testing.assert_allclose(sums, data.sum(axis=0))
    mec.execute(
        "import numpy as np\n"
        "left, right = (world.rank - 1) % world.size, (world.rank + 1) % world.size\n"
        "got = np.empty(100)\n"
        "world.Sendrecv(rows[-1], dest=right, recvbuf=got, source=left)"
    )
    ends = [rows[-1] for rows in np.split(data, N)]
    for rank, got in enumerate(mec["got"]):
        np.testing.assert_array_equal(got, ends[rank - 1])


def cpu_time(pid: int) -> float:
    """Seconds that the main thread of an engine has computed."""
    [main] = [thread for thread in psutil.Process(pid).threads() if thread.id == pid]
    return float(main.user_time + main.system_time)


def test_a_collective_that_a_rank_does_not_join(mec: MultiEngineClient) -> None:
    """MPI cannot be interrupted: it is seen, and over as soon as the missing rank joins."""
    mec.execute(WORLD)
    pids = [each["pid"] for each in mec.status()[:3]]
    before = [cpu_time(pid) for pid in pids]
    waiting = mec.execute("world.allreduce(1)", targets=[0, 1, 2], block=False)
    # They are in the call once they spend time there, and not only about to call it.
    until(lambda: all(cpu_time(pid) > was + 0.2 for pid, was in zip(pids, before, strict=True)), TIMEOUT)
    mec.interrupt(targets=[0, 1, 2])
    until(lambda: all(each["stuck"] for each in mec.status()[:3]))
    assert mec.execute("1 + 1", targets=3)  # the others work on
    assert not waiting.done()
    mec.execute("world.allreduce(1)", targets=3)
    with pytest.raises(CompositeError) as caught:
        waiting.result(20)
    assert [each.ename for each in caught.value.elist] == ["KeyboardInterrupt"] * 3
    mec.execute("total = world.allreduce(1)")
    assert mec["total"] == [N] * N


def test_waiting_that_can_be_interrupted(mec: MultiEngineClient) -> None:
    mec.execute(WORLD)
    mec.execute("own = world.Dup()")
    mec.execute("import time; request = own.irecv(source=3)", targets=[0, 1, 2])
    code = "while not request.test()[0]:\n    time.sleep(0.001)"
    waiting = mec.execute(code, targets=[0, 1, 2], block=False)
    until(lambda: all(each["running"] for each in mec.status()[:3]))
    mec.interrupt(targets=[0, 1, 2])
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        waiting.result(20)
    mec.execute("for rank in range(3): own.send(None, dest=rank)", targets=3)
    mec.execute("request.wait()", targets=[0, 1, 2])


def test_the_example(mec: MultiEngineClient) -> None:
    done = subprocess.run(
        [sys.executable, "docs/examples/mpi_allreduce.py", "20000"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "serial and parallel covariances are equal"
    assert f"as on each of {N} ranks" in done.stdout


def test_the_page_about_it(mec: MultiEngineClient, job: Job, tmp_path: Path) -> None:
    page = (ROOT / "docs/launchers/mpi.rst").read_text(encoding="utf-8")
    cluster = SimpleNamespace(env=environment(COLUMNS="100", IPYTHONDIR=os.fspath(tmp_path)), port=job.port)
    assert play(cells(page), cluster, tmp_path) == []  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fragile(ipython1_dir: Path) -> Iterator[Job]:
    """A job in a cluster of its own, which may be killed three times."""
    fragile = Job("--cluster", "fragile")
    try:
        fragile.banner()
        yield fragile
        fragile.look()
        assert fragile.end(signal.SIGTERM)[0] == 0
    finally:
        fragile.process.terminate()
        fragile.over()


@pytest.fixture
def again(fragile: Job) -> Iterator[MultiEngineClient]:
    """A client of it; afterwards another job has taken the place of this one, and is whole."""
    with MultiEngineClient(cluster="fragile") as mec:
        ranks = [psutil.Process(each["pid"]) for each in mec.status()]
        before = {rank.pid for rank in ranks}
        fragile.look()
        yield mec
        until(lambda: len({each["pid"] for each in mec.status() if each["pid"]} - before) == N, TIMEOUT)
        # By then another process may have such a pid.
        until(lambda: not any(rank.is_running() for rank in ranks), TIMEOUT)
        assert mec.get_ids() == list(range(N))
        mec.execute(WORLD)
        mec.execute("total = world.allreduce(engine_id)")
        assert mec["total"] == [6] * N


def test_a_rank_that_dies_ends_the_job_which_is_started_again(fragile: Job, again: MultiEngineClient) -> None:
    again.execute(WORLD)
    # Rank 2 is killed; 0 and 1 wait for it in MPI, 3 in Python.
    code = (
        "import os, signal, time\n"
        "if world.rank == 2: time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
        "elif world.rank == 3: time.sleep(60)\n"
        "else: world.allreduce(1)"
    )
    with pytest.raises(CompositeError) as caught:
        again.execute(code)
    first, second, dead, last = caught.value.elist
    assert dead.facts["cause"] == "killed by signal 9 (SIGKILL)"
    # Or mpiexec was faster, and killed the nanny.
    ends = re.compile(r"ended with its (MPI job|nanny \(pid \d+\))")
    assert ends.fullmatch(first.facts["cause"])
    assert ends.fullmatch(second.facts["cause"])
    assert last.ename in ("KeyboardInterrupt", "EngineDied")
    until(lambda: fragile.says("process rank 2", "on signal 9 (Killed).", "They are started again."))


def test_an_engine_that_is_restarted_ends_the_job(fragile: Job, again: MultiEngineClient) -> None:
    again.execute(WORLD)
    again.restart(targets=1, timeout=100)  # MPI has no way to put one rank into a running job
    assert fragile.says("process rank 1 ended with exit status 5", "They are started again.")


def test_mpiexec_is_killed(fragile: Job, again: MultiEngineClient) -> None:
    fragile.mpiexec().kill()
    until(lambda: fragile.says("killed by signal 9 (SIGKILL). They are started again."))


def test_what_mpiexec_refuses_is_said() -> None:
    refused = Job("--mpiexec", "mpiexec --no-such-option", "--cluster", "refused")
    try:
        assert refused.process.wait(TIMEOUT) == 1
        assert refused.says("no-such-option")
    finally:
        refused.over()
