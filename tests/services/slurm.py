"""A Slurm of one node, started by a test as root, with ports, keys and folders of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
#: CPUs that the node says it has.
CPUS = 12

CONFIGURATION = """\
ClusterName=ip1
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=60
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=n1 Default=YES MaxTime=INFINITE State=UP
"""
#: Slurm 22.05 loads one of these plugins in any case; in this folder it finds nothing to do.
CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\nIgnoreSystemd=yes\n"


def free_port() -> int:
    """A port nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def command(*words: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def queue(name: str) -> dict[str, str]:
    """The jobs of this name that are to be seen, and their states; those that ended stay for a minute."""
    table = command("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i %T")
    return dict(line.split() for line in table.splitlines())  # type: ignore[misc]


def left(name: str) -> list[str]:
    """The jobs of this name that have not ended."""
    return [id for id, state in queue(name).items() if state in ("PENDING", "RUNNING", "COMPLETING")]


@contextmanager
def end_of(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends processes, the last one first."""
    try:
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A running Slurm: its folder. ``SLURM_CONF`` names it to all commands."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        reason = f"a Slurm of its own takes root, and {', '.join(missing) or 'nothing else'}"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ip1-slurm-"))
    for name in ("state", "spool", "cgroup"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "cgroup.conf").write_text(CGROUPS.format(folder=folder))
    facts = {"folder": folder, "host": socket.gethostname().partition(".")[0], "cpus": CPUS}
    text = CONFIGURATION.format(controller=free_port(), node=free_port(), **facts)
    (folder / "slurm.conf").write_text(text)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    processes: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch, end_of(processes), (folder / "out").open("wb") as out:
        patch.setenv("SLURM_CONF", os.fspath(folder / "slurm.conf"))

        def start(*words: str) -> None:
            processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        until((folder / "munge.socket").exists, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", "n1")
        until(lambda: "idle" in _nodes(), f"a node; see {folder}")
        yield folder
    shutil.rmtree(folder)


def _nodes() -> str:
    try:
        return command("sinfo", "--noheader", "--format=%T")
    except subprocess.CalledProcessError:  # it does not listen yet
        return ""
