"""HTCondor."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ipython1.launch.batch.job import Job, Template
from ipython1.launch.batch.launcher import BatchLauncher
from ipython1.launch.batch.system import (
    CANCELLED,
    GONE,
    KILLED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
    ended,
    ended_with,
    one_id,
)

_ATTRIBUTES = "ClusterId,ProcId,JobStatus,HoldReason,RemoveReason,ExitCode,ExitBySignal,ExitSignal"
#: JobStatus, "Job ClassAd Attributes" in the manual.
_IDLE, _REMOVED, _COMPLETED, _HELD = 1, 3, 4, 5


class HTCondorSystem(System):
    """HTCondor: condor_submit(1), condor_q(1), condor_history(1), condor_rm(1).

    What is submitted is a description; the script is the program that it names.
    """

    title = "HTCondor"
    submit = ("condor_submit", "-terse")
    cancel = ("condor_rm",)
    refuses: ClassVar[Mapping[str, str]] = {
        "queue": "it has none. Say what a machine must have with --directive 'requirements = …'.",
        "srun": "a job of it has one machine. Use --per-job.",
    }
    needed = "script"

    def directives(self, job: Job) -> list[str]:
        """See `System`: lines of the description."""
        overdue = f"(JobStatus == 2) && (time() - JobCurrentStartDate > {job.walltime})"
        return [
            "universe = vanilla",
            f"executable = {job.script}",
            f"batch_name = {job.name}",
            f"output = {self.output(job, '$(Cluster).$(Process)')}",
            f"log = {job.log}/htcondor.log",
            "should_transfer_files = NO",
            f"request_cpus = {job.slots}",
            *([f"request_memory = {job.memory}M"] if job.memory else []),
            *([f"periodic_remove = {overdue}"] if job.walltime else []),
            *([f"accounting_group = {job.account}"] if job.account else []),
        ]

    def opening(self, job: Job) -> list[str]:
        """See `System`."""
        return ["exec 2>&1"]

    def texts(self, job: Job, template: Template | None = None) -> dict[Path, str]:
        """See `System`: the script, then the description."""
        script = "\n".join(["#!/bin/bash", *self.opening(job), *job.body()]) + "\n"
        if template is not None:
            description = template.fill(self.fields(job))
        else:
            lines = [*self.directives(job), *job.directives, f"queue {job.count}"]
            description = "\n".join(lines) + "\n"
        return {job.script: script, _description(job): description}

    def fields(self, job: Job) -> dict[str, str]:
        """See `System`."""
        return {**super().fields(job), "directives": "\n".join(job.directives), "script": str(job.script)}

    def submit_command(self, submit: Sequence[str], job: Job) -> tuple[list[str], Path | None]:
        """See `System`."""
        return [*submit, str(_description(job))], None

    def submitted(self, output: str, job: Job) -> list[str]:
        """See `System`: ``17.0 - 17.3``, the first and the last."""
        match = one_id(r"(\d+)\.(\d+) - (\d+)\.(\d+)", output)
        if match[1] != match[3] or int(match[4]) - int(match[2]) + 1 != job.count:
            raise ValueError("other jobs than those asked for")
        return [f"{match[1]}.{index}" for index in range(int(match[2]), int(match[4]) + 1)]

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """See `System`."""
        return ["condor_q", "-json", "-attributes", _ATTRIBUTES, *keys]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """See `System`; it prints nothing where none of the jobs is in the queue."""
        if status:
            raise ValueError(errors.strip() or f"exit status {status}")
        return _read(output)

    def inquest_command(self, keys: Collection[str]) -> list[str]:
        """See `System`."""
        return ["condor_history", "-json", "-attributes", _ATTRIBUTES, "-limit", str(len(keys)), *keys]

    def inquest(self, output: str) -> dict[str, Seen]:
        """See `System`."""
        try:
            return _read(output)
        except ValueError:
            return {}


def _description(job: Job) -> Path:
    return job.script.with_suffix(".sub")


def _read(output: str) -> dict[str, Seen]:
    jobs = json.loads(output) if output.strip() else []
    if not isinstance(jobs, list):
        raise ValueError("no list of jobs")
    return {
        f"{job.get('ClusterId')}.{job.get('ProcId')}": _seen(job) for job in jobs if isinstance(job, dict)
    }


def _seen(job: dict[str, Any]) -> Seen:
    status = job.get("JobStatus")
    if status == _IDLE:
        return Seen(WAITS)
    if status == _HELD:
        return Seen(WAITS, f"it is held: {job.get('HoldReason', 'for a reason that is not known')}")
    if status == _REMOVED:
        why = str(job.get("RemoveReason", ""))
        by = re.search(r"by user (\S+?)\)", why)
        return ended(TIME) if "PeriodicRemove" in why else ended(CANCELLED, by[1] if by else "")
    if status != _COMPLETED:
        return Seen(RUNS)
    if job.get("ExitBySignal"):
        return ended(KILLED, status=int(job.get("ExitSignal", 0)))
    return ended_with(int(job["ExitCode"])) if "ExitCode" in job else ended(GONE)


class HTCondor(BatchLauncher):
    """Engines in jobs of HTCondor."""

    system = HTCondorSystem()
