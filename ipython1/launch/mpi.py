"""Engines that are the ranks of one MPI job, started by ``mpiexec``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import tail
from ipython1.launch.launcher import Launcher
from ipython1.launch.local import Child, environment, module_command

#: What a batch system sets in an allocation: there ``mpiexec`` finds other hosts by itself.
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_HOSTS", "LSB_MCPU_HOSTS", "PE_HOSTFILE", "OAR_NODEFILE")
#: How the various ``mpiexec`` are told of hosts.
_HOST_OPTION = re.compile(r"(-H|-f|--?(hosts?|(default-)?hostfile|machinefile|machine|w|nodelist))(=.*)?")
#: The sentence in which Open MPI, Hydra or srun says which rank it was.
_CULPRITS = (
    re.compile(r"^mpi\S+ (?:noticed|has exited)[^.]*\brank \d+\b(?:.|\n)*?(?:\)|improperly)\.", re.MULTILINE),
    re.compile(r"Process name: \[\[\d+,\d+\],\d+\]\s+Exit code: +\d+"),
    re.compile(r"^srun: error: .*\btasks? \d.*$", re.MULTILINE),
    re.compile(r"\bEXIT CODE: \d+.*$", re.MULTILINE),
)
_NAME = re.compile(r"Process name: \[\[\d+,\d+\],(\d+)\] Exit code: (\d+)")


class MpiLauncher(Launcher):
    """Engines that are one MPI job: engine id and rank are the same.

    A rank that ends takes the job with it, as MPI has it; where `restart` is on, the whole job is started
    again.

    Parameters
    ----------
    files : ClusterFiles
        The cluster. All hosts have to see its folder.
    mpiexec : str
        The command that starts the job, with its own options: it is followed by ``-n N`` and what to run.
    python : str, optional
        The Python of the engines; this one, where not given.
    cwd : str, optional
        The folder they work in.
    env : sequence of str
        ``NAME=VALUE`` for them.
    prologue : sequence of str
        Lines of shell that each rank runs first.
    restart, stuck, stuck_after, name
        See `Launcher`.

    Raises
    ------
    ValueError
        `mpiexec` or `env` is not as it should be.
    """

    def __init__(
        self,
        files: ClusterFiles,
        *,
        mpiexec: str = "mpiexec",
        python: str = "",
        cwd: str = "",
        env: Sequence[str] = (),
        prologue: Sequence[str] = (),
        restart: bool = True,
        stuck: str = "leave",
        stuck_after: float = 5.0,
        name: str = "ipengine",
    ) -> None:
        super().__init__(files, restart=restart, stuck=stuck, stuck_after=stuck_after, name=name)
        self._mpiexec = shlex.split(mpiexec)
        if not self._mpiexec:
            raise ValueError("--mpiexec is empty. Give a command, such as 'mpiexec --oversubscribe'.")
        for each in env:
            if not re.match(r"[A-Za-z_]\w*=", each):
                raise ValueError(f"--env {each!r} is not NAME=VALUE.")
        self._python = python
        self._cwd = cwd
        self._env = list(env)
        self._prologue = list(prologue)
        self._child: Child | None = None
        self._told = False
        #: Whether ranks may be on other hosts, as far as can be seen here.
        self.is_remote = (
            os.path.basename(self._mpiexec[0]) in ("srun", "aprun", "jsrun")
            or any(map(_HOST_OPTION.fullmatch, self._mpiexec[1:]))
            or any(os.environ.get(name) for name in _ALLOCATIONS)
        )

    #: What is asked for more is told why there is none, see `grow`; nannies of ranks start none either.
    grows = True

    @property
    def pid(self) -> int:
        """Process id of ``mpiexec``, 0 before the start."""
        return 0 if self._child is None else self._child.pid

    def plan(self, n: int) -> str:
        """The command that `start` runs."""
        return shlex.join(self._line(n))

    def _line(self, n: int) -> list[str]:
        # A path in a folder that all hosts have: only rank 0 has the stdin of mpiexec.
        files = [os.fspath(path) for path in (self._files.furl("engine"), self._files.log)]
        command = module_command("ipython1.scripts.ipengine")
        if self._python:
            command[0] = self._python
        command += ["--mpi", "--furl-file", files[0], "--log-dir", files[1], *self._options]
        variables = list(self._env)
        path = environment().get("PYTHONPATH")
        if path and not self._python:
            variables.insert(0, f"PYTHONPATH={path}")  # not every mpiexec takes it to other hosts
        if variables:
            command = ["env", *variables, *command]
        if self._cwd or self._prologue:
            lines = [f"cd {shlex.quote(self._cwd)} || exit 1"] if self._cwd else []
            command = ["/bin/sh", "-c", "\n".join([*lines, *self._prologue, f"exec {shlex.join(command)}"])]
        return [*self._mpiexec, "-n", str(n), *command]

    def prepare(self, n: int) -> None:
        """See whether there is an ``mpiexec``."""
        if shutil.which(self._mpiexec[0]) is None:
            reason = f"there is no program {self._mpiexec[0]}; install Open MPI or MPICH, or give --mpiexec"
            raise LaunchError(what="The MPI job", reason=reason)

    def start(self, n: int, furl: str) -> None:
        """Start the job."""
        self.prepare(n)
        self._told = False
        # What it has in /dev/shm and /tmp, only mpiexec itself removes: so no SIGKILL where we are gone.
        self._child = Child(self._line(n), self._output, environment(), orphaned=signal.SIGTERM)

    def grow(self, n: int) -> None:
        """Say that there cannot be more.

        Raises
        ------
        LaunchError
        """
        reason = "an MPI job keeps the size it began with; stop the cluster and start it with another -n"
        raise LaunchError(what="More engines", reason=reason)

    @property
    def _output(self) -> Path:
        return self._files.log / f"{self._name}.out"

    def poll(self) -> str | None:
        """None while the job runs, else in words how it ended."""
        return None if self._child is None else self._child.poll()

    def news(self) -> list[str]:
        """What ``mpiexec`` says of the rank that ended the job."""
        if self._told or self.poll() is None:
            return []
        self._told = True
        return [f"the MPI job has ended: {text}"] if (text := culprit(self.last_words())) else []

    def last_words(self) -> str:
        """The end of what ``mpiexec`` and the ranks wrote."""
        return "" if self._child is None else tail(self._child.output, lines=60)

    def stop(self) -> None:
        """End the job; at once, where asked a second time."""
        if self._child is not None:
            self._child.stop()


def culprit(output: str) -> str:
    """What an ``mpiexec`` says at its end of the rank whose end ended the job; empty where it says nothing.

    Parameters
    ----------
    output : str
        What it wrote.
    """
    for pattern in _CULPRITS:
        if found := pattern.findall(output):
            return _NAME.sub(r"process rank \1 ended with exit status \2", " ".join(found[-1].split()))
    return ""
