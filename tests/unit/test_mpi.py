"""The MPI launcher with a fake ``mpiexec``, ranks, and what a nanny does as one."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ipython1.kernel.engine.nanny import JOB_ENDED, NO_CONTROLLER, RANK_ENDED, RANK_GRACE, TOLD_TOO
from ipython1.kernel.engine.rank import VARIABLES, mpi_rank, remove_leftovers
from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.launcher import make_launcher
from ipython1.launch.mpi import _ALLOCATIONS, MpiLauncher, culprit
from ipython1.scripts import ipengine
from tests.unit.test_nanny import FakeZygote, Nanny, make, order

# -- ranks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIABLES)
def test_every_mpi_names_the_rank(name: str) -> None:
    assert mpi_rank({name: "3", "HOME": "/"}) == 3


def test_the_rank_below_a_batch_script() -> None:
    assert mpi_rank({"SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "2"}) == 2
    assert mpi_rank({"SLURM_PROCID": "0", "PMI_RANK": "1"}) == 1


def test_no_rank() -> None:
    assert mpi_rank({}) is None
    assert mpi_rank({"PMI_RANK": ""}) is None
    assert mpi_rank({"PMI_RANK": "-1"}) is None


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--mpi"], {}, "this process has no rank"),
        (["--mpi", "-n", "2"], {"PMI_RANK": "0"}, "A rank of an MPI job is one engine"),
    ],
)
def test_ipengine_refuses(
    options: list[str],
    environment: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    furl = tmp_path / "furl"
    furl.write_text("pb://anything")
    done = CliRunner().invoke(ipengine.main, [*options, "--furl-file", str(furl)], env=environment)
    assert done.exit_code == 2
    assert said in done.output


def test_what_a_killed_mpiexec_leaves(tmp_path: Path) -> None:
    mine = [f"vader_segment.node.{os.getuid()}.280b0001.{rank}" for rank in range(2)]
    others = [
        f"vader_segment.node.{os.getuid()}.280b0002.0",
        f"vader_segment.node.{os.getuid() + 1}.280b0001.0",
    ]
    for name in [*mine, *others]:
        (tmp_path / name).touch()
    session = tmp_path / "ompi.node.0" / "pid.7"
    (session / "0" / "0").mkdir(parents=True)
    job = {"OMPI_MCA_ess_base_jobid": str(0x280B0001), "PMIX_SERVER_TMPDIR": str(session)}
    remove_leftovers({"PMIX_SERVER_TMPDIR": str(session)}, tmp_path)  # not Open MPI's
    assert session.exists()
    for _ in range(2):  # each rank does it
        remove_leftovers(job, tmp_path)
        assert sorted(each.name for each in tmp_path.iterdir()) == sorted(others)


# -- the nanny of a rank -------------------------------------------------------------


@pytest.fixture
def zygote() -> FakeZygote:
    return FakeZygote()


@pytest.fixture
def nanny(zygote: FakeZygote, tmp_path: Path) -> Nanny:
    """That of rank 3, whose engine is registered."""
    nanny = make(zygote, tmp_path, rank=3)
    nanny.start(1)
    zygote.engines[0].heard({"registered": 3})
    return nanny


def gone(zygote: FakeZygote) -> str:
    """Let the agent end; why the engine did, as it told."""
    zygote.agents[0].ended(0)
    [(_, cause, _, replaced, _)] = zygote.agents[0].told("exited")
    assert not replaced
    assert len(zygote.engines) == 1
    return str(cause)


def test_the_engine_wants_its_rank_as_id(nanny: Nanny, zygote: FakeZygote) -> None:
    assert zygote.engines[0].facts["wanted"] == 3


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGSEGV, 7])
def test_the_nanny_ends_as_its_engine_did(nanny: Nanny, zygote: FakeZygote, status: int) -> None:
    zygote.engines[0].ended(status)
    assert nanny.status is None  # the agent has to tell first
    assert str(abs(status)) in gone(zygote)
    assert nanny.status == status


def test_an_engine_that_just_leaves_ends_the_job(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.engines[0].ended(0)
    zygote.advance(TOLD_TOO)
    assert gone(zygote) == "exit status 0"
    assert nanny.status == RANK_ENDED


def test_one_that_dies_before_it_is_ready(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = make(zygote, tmp_path, rank=0)
    nanny.start(1)
    zygote.engines[0].ended(1)
    gone(zygote)
    assert nanny.status == 1


def test_a_restart_ends_the_job(nanny: Nanny, zygote: FakeZygote) -> None:
    order(zygote, "restart", zygote.engines[0])
    assert zygote.engines[0].signals == [signal.SIGTERM]
    zygote.engines[0].ended(0)
    assert gone(zygote) == "restarted on request"
    assert nanny.status == RANK_ENDED


def test_a_stop_is_a_good_end(nanny: Nanny, zygote: FakeZygote) -> None:
    order(zygote, "stop", zygote.engines[0])
    zygote.engines[0].ended(0)
    assert gone(zygote) == "stopped on request"
    assert nanny.status == 0


def test_mpiexec_ends_the_others(nanny: Nanny, zygote: FakeZygote) -> None:
    nanny.signalled()
    nanny.signalled()
    assert zygote.engines[0].signals == [signal.SIGTERM]
    zygote.advance(RANK_GRACE)  # it waits in MPI, where no signal handler of Python's runs
    assert zygote.engines[0].signals == [signal.SIGTERM, -signal.SIGKILL]
    zygote.engines[0].ended(-signal.SIGKILL)
    assert gone(zygote) == JOB_ENDED
    assert nanny.status == 0


def test_the_controller_is_lost(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.agents[0].heard({"lost": "gone."})
    zygote.engines[0].ended(0)
    gone(zygote)
    assert nanny.status == NO_CONTROLLER


def test_no_more_engines_in_a_rank(nanny: Nanny, zygote: FakeZygote) -> None:
    order(zygote, "start", number=2)
    assert len(zygote.engines) == 1


# -- the launcher --------------------------------------------------------------------

MPIEXEC = f"""#!{sys.executable}
import os, signal, subprocess, sys
assert sys.argv[1:3] == ["--flag", "-n"], sys.argv
ranks = [
    subprocess.Popen(sys.argv[4:], env={{**os.environ, "PMI_RANK": str(n)}}) for n in range(int(sys.argv[3]))
]
signal.signal(signal.SIGTERM, lambda *_: [each.terminate() for each in ranks])
ends = [each.wait() for each in ranks]
if any(ends):
    print(f"Process name: [[7,1],{{ends.index(max(ends))}}]\\n  Exit code:    {{max(ends)}}")
sys.exit(max(ends))
"""

#: In place of Python: shows what a rank was given.
RANK = """#!/bin/sh
shift 2
echo "$PMI_RANK $COLOUR $PWD $MORE $*" > "$RESULTS/$PMI_RANK"
case $PMI_RANK in
    0) exec sleep "$SLEEP";;
    *) exit "$STATUS";;
esac
"""


@pytest.fixture
def files(tmp_path: Path) -> ClusterFiles:
    found = ClusterFiles("mine", tmp_path / "root")
    found.create()
    return found


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a fake mpiexec, and a fake Python."""
    for name, text in {"mpiexec": MPIEXEC, "python": RANK}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / "results").mkdir()
    for name, value in {"RESULTS": str(tmp_path / "results"), "SLEEP": "0", "STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in _ALLOCATIONS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def until_over(launcher: MpiLauncher) -> str:
    """How the job ended."""
    deadline = time.monotonic() + 20
    while (how := launcher.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return how


def test_the_command(files: ClusterFiles) -> None:
    launcher = make_launcher("mpi", files, {"mpiexec": "mpiexec --oversubscribe", "stuck": "restart"})
    words = shlex.split(launcher.plan(3))
    assert words[:4] == ["mpiexec", "--oversubscribe", "-n", "3"]
    assert sys.executable in words
    assert words[words.index("--mpi") :] == [
        *("--mpi", "--furl-file", str(files.furl("engine")), "--log-dir", str(files.log)),
        *("--stuck", "restart", "--stuck-after", "5"),
    ]
    assert any(word.startswith("PYTHONPATH=") for word in words)  # this is a checkout


def test_what_ranks_run_first(files: ClusterFiles, programs: Path) -> None:
    launcher = MpiLauncher(
        files,
        mpiexec=f"{programs}/mpiexec --flag",
        python=f"{programs}/python",
        cwd=str(programs / "results"),
        env=["COLOUR=dark red"],
        prologue=["MORE='two words'", "export MORE"],
    )
    assert launcher.poll() is None
    assert launcher.pid == 0
    launcher.start(2, "pb://secret")
    assert "secret" not in " ".join(subprocess_words(launcher.pid))
    assert until_over(launcher) == "exit status 0"
    for rank in range(2):
        assert (programs / "results" / str(rank)).read_text() == (
            f"{rank} dark red {programs}/results two words --mpi --furl-file {files.furl('engine')} "
            f"--log-dir {files.log} --stuck leave --stuck-after 5\n"
        )
    assert launcher.news() == []
    launcher.stop()


def subprocess_words(pid: int) -> list[str]:
    import psutil

    return list(psutil.Process(pid).cmdline())


def test_how_the_job_ended(files: ClusterFiles, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATUS", "9")
    launcher = MpiLauncher(files, mpiexec=f"{programs}/mpiexec --flag", python=f"{programs}/python")
    launcher.start(2, "")
    assert until_over(launcher) == "exit status 9"
    assert launcher.news() == ["the MPI job has ended: process rank 1 ended with exit status 9"]
    assert launcher.news() == []
    assert "[[7,1],1]" in launcher.last_words()
    launcher.start(2, "")  # again
    until_over(launcher)
    assert len(launcher.news()) == 1


def test_stop(files: ClusterFiles, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEP", "60")
    launcher = MpiLauncher(files, mpiexec=f"{programs}/mpiexec --flag", python=f"{programs}/python")
    launcher.stop()  # nothing is there yet
    launcher.start(1, "")
    deadline = time.monotonic() + 20
    while not (programs / "results" / "0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    launcher.stop()
    assert launcher.poll() is not None
    # mpiexec waits for its ranks: so they are gone, too
    assert subprocess.run(["pgrep", "-f", f"{programs}/"], capture_output=True).stdout == b""


def test_no_mpi_here(files: ClusterFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(LaunchError, match="there is no program mpiexec; install Open MPI or MPICH, or give"):
        MpiLauncher(files).prepare(2)


def test_no_engine_comes_later(files: ClusterFiles) -> None:
    launcher = MpiLauncher(files)
    assert launcher.grows
    with pytest.raises(LaunchError, match="More engines did not start: an MPI job keeps the size"):
        launcher.grow(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mpiexec": " "}, "--mpiexec is empty"), ({"env": ["A B=1"]}, "--env 'A B=1' is not NAME=VALUE")],
)
def test_wrong_options(files: ClusterFiles, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_launcher("mpi", files, options)


@pytest.mark.parametrize(
    ("mpiexec", "remote"),
    [
        ("mpiexec", False),
        ("mpirun --oversubscribe --mca btl_tcp_if_include lo", False),
        ("mpiexec --hostfile nodes", True),
        ("mpiexec --host=a,b", True),
        ("mpiexec -H a:2,b", True),
        ("mpiexec.hydra -f machines", True),
        ("/usr/bin/srun --mpi=pmix", True),
    ],
)
def test_whether_ranks_may_be_elsewhere(
    files: ClusterFiles, programs: Path, mpiexec: str, remote: bool
) -> None:
    assert MpiLauncher(files, mpiexec=mpiexec).is_remote is remote


@pytest.mark.parametrize("name", _ALLOCATIONS)
def test_allocations_have_other_hosts(
    files: ClusterFiles, programs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "something")
    assert MpiLauncher(files).is_remote


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "---\nmpiexec noticed that process rank 2 on node a.b exited on signal 9 (Killed).\n---",
            "mpiexec noticed that process rank 2 on node a.b exited on signal 9 (Killed).",
        ),
        (
            "mpirun noticed that process rank 1 on node vm exited on signal 11 (Segmentation fault).",
            "mpirun noticed that process rank 1 on node vm exited on signal 11 (Segmentation fault).",
        ),
        (
            "mpiexec has exited due to process rank 1 with PID 0 on\nnode vm exiting improperly. There are\n",
            "mpiexec has exited due to process rank 1 with PID 0 on node vm exiting improperly.",
        ),
        (
            "The first process to do so was:\n\n  Process name: [[9,1],3]\n  Exit code:    5\n-----",
            "process rank 3 ended with exit status 5",
        ),
        ("=   BAD TERMINATION\n=   EXIT CODE: 9\n=   CLEANING UP", "EXIT CODE: 9"),
        ("srun: error: node7: task 3: Killed\nsrun: Terminating", "srun: error: node7: task 3: Killed"),
        ("12:00:01 ipengine: engine 3 exited", ""),
        ("", ""),
    ],
)
def test_the_sentence_that_names_the_rank(output: str, said: str) -> None:
    assert culprit(output) == said
