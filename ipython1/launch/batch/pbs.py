"""PBS Pro, OpenPBS and Torque."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Collection

from ipython1.launch.batch.job import Job
from ipython1.launch.batch.launcher import BatchLauncher
from ipython1.launch.batch.system import (
    CANCELLED,
    ENDED,
    FAILED,
    GONE,
    MEMORY,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
    ended,
    ended_with,
    one_id,
)

#: Exit statuses that PBS makes up: killed for memory, killed for time; and what it adds to a signal.
_MEMORY, _TIME, _SIGNALLED = (-26, -27), (-28, -29), 256
#: The substate of a job of PBS Pro that was deleted.
_DELETED = "91"


class PBSSystem(System):
    """PBS: qsub(1B), qstat(1B), qdel(1B), pbsdsh(1B).

    Torque asks otherwise for nodes, elements of arrays and jobs that have ended; which of the two this
    is ``qstat --version`` says.
    """

    title = "PBS"
    prefix = "#PBS"
    submit = ("qsub",)
    cancel = ("qdel",)

    @functools.cached_property
    def is_torque(self) -> bool:
        """Whether this is Torque; where there is neither, it is not."""
        try:
            said = subprocess.run(
                ["qstat", "--version"], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        words = said.stdout + said.stderr
        return "pbs_version" not in words and "ersion:" in words

    def directives(self, job: Job) -> list[str]:
        """See `System`."""
        nodes = max(1, job.nodes)
        if self.is_torque:
            memory = f",mem={job.memory * nodes}mb" if job.memory else ""
            resources, array = f"nodes={nodes}:ppn={job.slots}{memory}", f"-t 0-{job.count - 1}"
        else:
            memory = f":mem={job.memory}mb" if job.memory else ""
            resources, array = f"select={nodes}:ncpus={job.slots}:mpiprocs=1{memory}", f"-J 0-{job.count - 1}"
        return [
            f"-N {job.name}",
            "-j oe",
            f"-o {job.log}/",
            array if job.count > 1 else "-r n",  # an array has to be one that may run again
            f"-l {resources}",
            *(["-l place=scatter"] if job.nodes and not self.is_torque else []),
            *([f"-l walltime={job.clock}"] if job.walltime else []),
            *([f"-q {job.queue}"] if job.queue else []),
            *([f"-A {job.account}"] if job.account else []),
        ]

    def opening(self, job: Job) -> list[str]:
        """See `System`: PBS itself keeps what a job prints on its node until the end."""
        return [f'exec >> {job.log}/"job-$PBS_JOBID.out" 2>&1']

    def spread(self, job: Job) -> str:
        """See `System`."""
        return "pbsdsh -u" if self.is_torque else "pbsdsh --"

    def submitted(self, output: str, job: Job) -> list[str]:
        """See `System`: ``17.server``, or ``17[].server`` of an array."""
        match = one_id(r"(\d+)(\[\])?(\.\S+)?", output)
        id, server = match[1], match[3] or ""
        if job.count == 1:
            return [id + server]
        return [f"{id}[{index}]{server}" for index in range(job.count)]

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """See `System`: PBS Pro says with -x what has ended; Torque does by itself, for keep_completed."""
        return ["qstat", "-f", *([] if self.is_torque else ["-x"]), *keys]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """See `System`: blocks of ``Job Id: 17.server`` and lines ``    job_state = R``."""
        if status and not output.strip() and "nknown" not in errors and "finished" not in errors:
            raise ValueError(errors.strip() or f"exit status {status}")
        unfolded = output.replace("\n\t", "")
        found = {}
        for block in re.split(r"^Job Id: *", unfolded, flags=re.MULTILINE)[1:]:
            key, _, lines = block.partition("\n")
            facts = {
                name.lower(): value for name, value in re.findall(r"^ +([\w.]+) = (.*)$", lines, re.MULTILINE)
            }
            found[key.strip()] = _seen(facts)
        return found


def _seen(facts: dict[str, str]) -> Seen:
    state = facts.get("job_state", "")
    if state in ("R", "E", "S", "U", "B"):
        return Seen(RUNS)
    if state not in ("F", "C", "X"):
        comment = facts.get("comment", "").removeprefix("Not Running: ")
        return Seen(WAITS, comment or ("held" if state == "H" else ""))
    try:
        status = int(facts.get("exit_status", ""))
    except ValueError:  # it never ran
        return ended(CANCELLED if facts.get("substate") == _DELETED else GONE)
    if status in _TIME or status in _MEMORY:
        return ended(TIME if status in _TIME else MEMORY)
    if facts.get("substate") == _DELETED or status >= _SIGNALLED:
        return ended(CANCELLED)
    return (
        ended_with(status)
        if status >= 0
        else Seen(ENDED, FAILED, f"could not be started (Exit_status {status})")
    )


class PBS(BatchLauncher):
    """Engines in jobs of PBS Pro, OpenPBS or Torque."""

    system = PBSSystem()
