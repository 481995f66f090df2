"""What has to be known of a batch system, as text that goes to its commands and comes from them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ipython1.kernel.processes import exit_words
from ipython1.launch.batch.job import Job, Template

#: What a job does.
WAITS, RUNS, ENDED = "waits", "runs", "ended"
#: How one ended.
DONE, FAILED, KILLED, CANCELLED = "done", "failed", "killed", "cancelled"
TIME, MEMORY, NODE, PREEMPTED, GONE = "time", "memory", "node", "preempted", "gone"

_WORDS = {
    DONE: "ended",
    CANCELLED: "was cancelled",
    TIME: "reached its time limit",
    MEMORY: "ran out of memory",
    NODE: "lost its node",
    PREEMPTED: "had to make room for others",
    GONE: "left the queue (how it ended is not known)",
}


@dataclass(frozen=True)
class Seen:
    """What a batch system says of a job.

    Attributes
    ----------
    phase : str
        `WAITS`, `RUNS` or `ENDED`.
    reason : str
        Why it waits, in the words of the system; or how it ended, as one of the names above.
    words : str
        How it ended, in words: ``failed with exit status 3``.
    """

    phase: str
    reason: str = ""
    words: str = ""


def ended(how: str, by: str = "", status: int = 0) -> Seen:
    """A job that ended.

    Parameters
    ----------
    how : str
        `DONE` and so on.
    by : str
        By whom it was cancelled, where that is known.
    status : int
        Of `FAILED`: the exit status; of `KILLED`: the signal.
    """
    if how in (FAILED, KILLED):
        words = f"failed with {exit_words(status)}" if how == FAILED else f"was {exit_words(-status)}"
    else:
        words = _WORDS[how] + (f" by {by}" if by else "")
    return Seen(ENDED, how, words)


def ended_with(status: int) -> Seen:
    """A job that ended by itself, with an exit status as a shell has it."""
    if status > 128:
        return ended(KILLED, status=status % 128)
    return ended(FAILED, status=status) if status else ended(DONE)


class System:
    """A batch system. A subclass says what is particular.

    Attributes
    ----------
    title : str
        For users.
    prefix : str
        Begins a directive in a script.
    submit, cancel : sequence of str
        The commands.
    refuses : mapping
        Options that it has no use for, and why.
    """

    title = ""
    prefix = "#"
    submit: Sequence[str] = ()
    cancel: Sequence[str] = ()
    refuses: ClassVar[Mapping[str, str]] = {}
    #: The field that a template must have.
    needed = "command"

    # -- the script ---------------------------------------------------------------

    def directives(self, job: Job) -> list[str]:
        """What stands behind the prefix in the head of the script."""
        raise NotImplementedError

    def spread(self, job: Job) -> str:
        """The shell command before one that is to run on each node."""
        return ""

    def opening(self, job: Job) -> list[str]:
        """Lines of shell before all others."""
        return []

    def output(self, job: Job, key: str) -> Path:
        """The file with what a job prints."""
        return job.log / f"job-{key}.out"

    def texts(self, job: Job, template: Template | None = None) -> dict[Path, str]:
        """The files to write; the last one is submitted."""
        if template is not None:
            return {job.script: template.fill(self.fields(job))}
        head = [f"{self.prefix} {each}" for each in [*self.directives(job), *job.directives]]
        body = job.body(self.spread(job) if job.nodes else "")
        return {job.script: "\n".join(["#!/bin/bash", *head, "", *self.opening(job), *body]) + "\n"}

    def fields(self, job: Job) -> dict[str, str]:
        """What a template can name."""
        spread = self.spread(job) if job.nodes else ""
        return {
            "name": job.name,
            "engines": str(job.engines),
            "cpus": str(job.slots),
            "nodes": str(max(1, job.nodes)),
            "count": str(job.count),
            "memory": str(job.memory) if job.memory else "",
            "walltime": job.clock if job.walltime else "",
            "queue": job.queue,
            "account": job.account,
            "log": str(job.log),
            "directives": "\n".join(f"{self.prefix} {each}" for each in job.directives),
            "environment": "\n".join(job.exports()),
            "prologue": "\n".join(job.prologue),
            "command": f"{spread} {job.shell_command()}".lstrip(),
        }

    # -- submitting -----------------------------------------------------------------

    def submit_command(self, submit: Sequence[str], job: Job) -> tuple[list[str], Path | None]:
        """The command that submits, and the file it reads from stdin."""
        return list(submit), job.script

    def submitted(self, output: str, job: Job) -> list[str]:
        """The keys of the jobs, from what the command printed.

        Raises
        ------
        ValueError
            It says none.
        """
        raise NotImplementedError

    # -- watching ---------------------------------------------------------------------

    def poll_command(self, keys: Collection[str]) -> list[str]:
        """The command that says what jobs do."""
        raise NotImplementedError

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        """What it says, by key; a job that the system does not know any more is not among them.

        Raises
        ------
        ValueError
            It failed.
        """
        raise NotImplementedError

    def inquest_command(self, keys: Collection[str]) -> list[str]:
        """The command that says how jobs ended that have left the queue; empty: there is none."""
        return []

    def inquest(self, output: str) -> dict[str, Seen]:
        """What it says, by key."""
        return {}

    # -- cancelling ---------------------------------------------------------------------

    def cancel_command(self, keys: Collection[str]) -> list[str]:
        """The command that cancels."""
        return [*self.cancel, *keys]


def one_id(pattern: str, output: str) -> re.Match[str]:
    """The one line of `output` that is a job's id.

    Raises
    ------
    ValueError
        There is none, or more than one.
    """
    found = [match for line in output.splitlines() if (match := re.fullmatch(pattern, line.strip()))]
    if len(found) != 1:
        raise ValueError("no job id")
    return found[0]
