"""Grid Engine, in all its kinds."""

from __future__ import annotations

import getpass
import re
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar
from xml.etree import ElementTree

from ipython1.kernel.processes import exit_words
from ipython1.launch.batch.job import Job
from ipython1.launch.batch.launcher import BatchLauncher
from ipython1.launch.batch.system import (
    CANCELLED,
    ENDED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
    ended,
    ended_with,
    one_id,
)

#: Why the system says a job failed, sge_status(5): killed by a signal, such as the one of qdel; at a limit.
_KILLED, _LIMIT = 100, 37


class SGESystem(System):
    """Grid Engine: qsub(1), qstat(1), qacct(1), qdel(1)."""

    title = "Grid Engine"
    prefix = "#$"
    submit = ("qsub", "-terse")
    cancel = ("qdel",)
    refuses: ClassVar[Mapping[str, str]] = {"srun": "it starts nothing on the nodes of a job. Use --per-job."}

    def directives(self, job: Job) -> list[str]:
        """See `System`; several CPUs take a parallel environment, of which ``smp`` is the usual name."""
        limits = [f"h_rt={job.clock}"] if job.walltime else []
        limits += [f"mem_free={job.memory}M"] if job.memory else []
        return [
            f"-N {job.name}",
            "-S /bin/bash",
            "-j y",
            "-r n",
            f"-o {self.output(job, '$JOB_ID.$TASK_ID' if job.count > 1 else '$JOB_ID')}",
            *([f"-t 1-{job.count}"] if job.count > 1 else []),
            *([f"-pe smp {job.slots}"] if job.slots > 1 else []),
            *([f"-l {','.join(limits)}"] if limits else []),
            *([f"-q {job.queue}"] if job.queue else []),
            *([f"-P {job.account}"] if job.account else []),
        ]

    def submitted(self, output: str, job: Job) -> list[str]:
        """See `System`: ``17``, or ``17.1-4:1`` of an array."""
        id = one_id(r"(\d+)(\.1-\d+:1)?", output)[1]
        return [id] if job.count == 1 else [f"{id}.{index}" for index in range(1, job.count + 1)]

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """See `System`: it has no way to ask for some jobs only, and knows nothing of those that ended."""
        return ["qstat", "-xml", "-u", getpass.getuser()]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """See `System`."""
        try:
            root = ElementTree.fromstring(output)
        except ElementTree.ParseError:
            raise ValueError(errors.strip() or output.strip() or f"exit status {status}") from None
        found = {}
        for job in root.iter("job_list"):
            id, state, tasks = (job.findtext(tag, "") for tag in ("JB_job_number", "state", "tasks"))
            for key in [f"{id}.{task}" for task in _numbers(tasks)] or [id]:
                found[key] = _seen(state, id)
        return found

    def inquest_command(self, keys: Collection[str]) -> list[str]:
        """See `System`: the accounts, which come some seconds after the end."""
        ids = dict.fromkeys(key.partition(".")[0] for key in keys)
        return ["sh", "-c", 'for id; do qacct -j "$id"; done', "sh", *ids]

    def inquest(self, output: str) -> dict[str, Seen]:
        """See `System`: lines like ``exit_status  137``, one block a job or element."""
        found = {}
        for block in re.split(r"^=+$", output, flags=re.MULTILINE):
            facts = dict(re.findall(r"^(\w+)[ \t]+(\S+)", block, flags=re.MULTILINE))
            id, task, failed = (facts.get(name, "") for name in ("jobnumber", "taskid", "failed"))
            if id.isdigit() and failed.isdigit() and facts.get("exit_status", "").isdigit():
                key = f"{id}.{task}" if task.isdigit() else id
                found[key] = _end(int(failed), int(facts["exit_status"]))
        return found


def _numbers(tasks: str) -> Iterator[int]:
    """``1,4-8:2`` -> 1, 4, 6, 8."""
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks):
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _seen(state: str, id: str) -> Seen:
    if "E" in state:
        return Seen(WAITS, f"it is in state {state}; see qstat -j {id}")
    if "q" in state or "w" in state:
        return Seen(WAITS, "held" if "h" in state else "")
    return Seen(RUNS)


def _end(failed: int, status: int) -> Seen:
    if failed == _KILLED and status > 128:  # by whom is not known
        return Seen(ENDED, CANCELLED, f"was cancelled, or {exit_words(128 - status)}")
    if failed == _LIMIT:
        return ended(TIME)
    if failed:
        return Seen(ENDED, "failed", f"failed, for the reason {failed} of qacct,")
    return ended_with(status)


class SGE(BatchLauncher):
    """Engines in jobs of Grid Engine."""

    system = SGESystem()
