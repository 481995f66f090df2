"""Slurm."""

from __future__ import annotations

import re
from collections.abc import Collection

from ipython1.launch.batch.job import Job
from ipython1.launch.batch.launcher import BatchLauncher
from ipython1.launch.batch.system import (
    CANCELLED,
    DONE,
    GONE,
    MEMORY,
    NODE,
    PREEMPTED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
    ended,
    ended_with,
    one_id,
)

#: States of a job that runs, has not quite ended, or is stopped for a while; squeue(1), JOB STATE CODES.
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_WAITING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
}
_ENDS = {
    "COMPLETED": DONE,
    "CANCELLED": CANCELLED,
    "TIMEOUT": TIME,
    "DEADLINE": TIME,
    "OUT_OF_MEMORY": MEMORY,
    "NODE_FAIL": NODE,
    "BOOT_FAIL": NODE,
    "PREEMPTED": PREEMPTED,
    "REVOKED": GONE,
}


class SlurmSystem(System):
    """Slurm: sbatch(1), squeue(1), scancel(1)."""

    title = "Slurm"
    prefix = "#SBATCH"
    submit = ("sbatch", "--parsable")
    cancel = ("scancel",)

    def directives(self, job: Job) -> list[str]:
        """See `System`."""
        return [
            f"--job-name={job.name}",
            f"--output={self.output(job, '%A_%a' if job.count > 1 else '%j')}",
            *([f"--array=0-{job.count - 1}"] if job.count > 1 else []),
            f"--nodes={max(1, job.nodes)}",
            "--ntasks-per-node=1",
            "--no-requeue",  # it is for us to say whether there is another one
            f"--cpus-per-task={job.slots}",
            *([f"--mem={job.memory}M"] if job.memory else []),
            *([f"--time={job.clock}"] if job.walltime else []),
            *([f"--partition={job.queue}"] if job.queue else []),
            *([f"--account={job.account}"] if job.account else []),
        ]

    def spread(self, job: Job) -> str:
        """See `System`; one nanny that ends does not end the others."""
        return (
            f"srun --ntasks={job.nodes} --ntasks-per-node=1 --cpus-per-task={job.slots} --kill-on-bad-exit=0"
        )

    def submitted(self, output: str, job: Job) -> list[str]:
        """See `System`: ``17``, or ``17;cluster``."""
        id = one_id(r"(\d+)(;\S+)?", output)[1]
        return [id] if job.count == 1 else [f"{id}_{index}" for index in range(job.count)]

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """See `System`: also those that ended lately (MinJobAge), elements of an array one by one."""
        form = "JobArrayID:40,State:20,exit_code:12,Reason:256"
        return [
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--jobs={','.join(keys)}",
            f"--Format={form}",
        ]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """See `System`; it fails where none of the jobs is known any more."""
        if status and "Invalid job id" not in errors:
            raise ValueError(errors.strip() or f"exit status {status}")
        return {
            words[0]: _seen(words[1], int(words[2]), " ".join(words[3:]))
            for line in output.splitlines()
            if len(words := line.split()) >= 3 and words[2].isdigit()
        }

    def inquest_command(self, keys: Collection[str]) -> list[str]:
        """See `System`; nothing where no accounts are kept."""
        return ["sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode", f"--jobs={','.join(keys)}"]

    def inquest(self, output: str) -> dict[str, Seen]:
        """See `System`: ``17|CANCELLED by 1000|0:15``."""
        lines = re.findall(r"^(\w+)\|(\w+)[^|]*\|(\d+):(\d+)$", output, flags=re.MULTILINE)
        return {key: _seen(state, int(status) << 8 | int(number), "") for key, state, status, number in lines}


def _seen(state: str, status: int, reason: str) -> Seen:
    if state in _RUNNING:
        return Seen(RUNS)
    if state in _WAITING:
        return Seen(WAITS, "" if reason == "None" else reason)
    if state == "FAILED":  # the status is that of wait(2)
        return ended_with(status >> 8 or 128 + (status & 127))
    return ended(_ENDS.get(state, GONE))


class Slurm(BatchLauncher):
    """Engines in jobs of Slurm."""

    system = SlurmSystem()
