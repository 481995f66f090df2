"""LSF."""

from __future__ import annotations

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

_DELIMITER = "^"
_FIELDS = "jobid jobindex stat exit_code exit_reason pend_reason"
_WAITING = {"PEND", "PSUSP", "WAIT"}
_ENDS = {
    "TERM_OWNER": (CANCELLED, "its owner"),
    "TERM_FORCE_OWNER": (CANCELLED, "its owner"),
    "TERM_ADMIN": (CANCELLED, "an administrator"),
    "TERM_FORCE_ADMIN": (CANCELLED, "an administrator"),
    "TERM_BUCKET_KILL": (CANCELLED, ""),
    "TERM_RUNLIMIT": (TIME, ""),
    "TERM_DEADLINE": (TIME, ""),
    "TERM_CPULIMIT": (TIME, ""),
    "TERM_WINDOW": (TIME, ""),
    "TERM_MEMLIMIT": (MEMORY, ""),
    "TERM_SWAP": (MEMORY, ""),
    "TERM_PREEMPT": (PREEMPTED, ""),
    "TERM_ZOMBIE": (NODE, ""),
}


class LSFSystem(System):
    """LSF 10.1: bsub(1), bjobs(1) with ``-o``, bkill(1), blaunch(1), "Termination reasons"."""

    title = "LSF"
    prefix = "#BSUB"
    submit = ("bsub",)
    cancel = ("bkill",)

    def directives(self, job: Job) -> list[str]:
        """See `System`; LSF counts whole minutes."""
        nodes, minutes = max(1, job.nodes), -(-job.walltime // 60)
        span = f"span[ptile={job.slots}]" if job.nodes else "span[hosts=1]"
        memory = f" rusage[mem={job.memory}MB]" if job.memory else ""
        return [
            f'-J "{job.name}[1-{job.count}]"' if job.count > 1 else f"-J {job.name}",
            f"-o {job.log}/lsf-%J.out",
            "-rn",
            f"-n {nodes * job.slots}",
            f'-R "{span}{memory}"',
            *([f"-M {job.memory}MB"] if job.memory else []),
            *([f"-W {minutes // 60}:{minutes % 60:02}"] if minutes else []),
            *([f"-q {job.queue}"] if job.queue else []),
            *([f"-P {job.account}"] if job.account else []),
        ]

    def opening(self, job: Job) -> list[str]:
        """See `System`: LSF itself keeps what a job prints until its end."""
        element = '"job-$LSB_JOBID[$LSB_JOBINDEX].out"' if job.count > 1 else '"job-$LSB_JOBID.out"'
        return [f"exec >> {job.log}/{element} 2>&1"]

    def spread(self, job: Job) -> str:
        """See `System`; the hosts are those of LSB_MCPU_HOSTS, which names each with its number of slots."""
        hosts = 'set -- $LSB_MCPU_HOSTS; while [ $# -gt 1 ]; do printf "%s " "$1"; shift 2; done'
        return f'blaunch -z "$({hosts})"'

    def submitted(self, output: str, job: Job) -> list[str]:
        """See `System`: ``Job <17> is submitted to default queue <normal>.``"""
        id = one_id(r"Job <(\d+)> is submitted to .*", output)[1]
        return [id] if job.count == 1 else [f"{id}[{index}]" for index in range(1, job.count + 1)]

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """See `System`: also those that ended within the last hour (CLEAN_PERIOD)."""
        return ["bjobs", "-a", "-noheader", "-o", f"{_FIELDS} delimiter='{_DELIMITER}'", *keys]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """See `System`."""
        if status and not output.strip() and "not found" not in errors:
            raise ValueError(errors.strip() or f"exit status {status}")
        found = {}
        for line in output.splitlines():
            words = [word.strip().removeprefix("-") for word in line.split(_DELIMITER, 5)]
            if len(words) == 6 and words[0].isdigit():
                id, index, *rest = words
                found[f"{id}[{index}]" if index not in ("", "0") else id] = _seen(*rest)
        return found


def _seen(state: str, code: str, why: str, pending: str) -> Seen:
    if state in _WAITING:
        return Seen(WAITS, pending or ("held" if state == "PSUSP" else ""))
    if state == "DONE":
        return ended(DONE)
    if state != "EXIT":
        return Seen(RUNS)
    how, by = _ENDS.get(why.partition(":")[0].strip(), ("", ""))
    if how:
        return ended(how, by)
    return ended_with(int(code)) if code.isdigit() else ended(GONE)


class LSF(BatchLauncher):
    """Engines in jobs of LSF."""

    system = LSFSystem()
