"""What engines run, written down by themselves: the proof that each piece of work ran once.

Engines that find the folder ``noting`` on their path append a line to one file for every command
and every attempt at a task that begins, and for a task that has ended well.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ipython1.kernel.engine.jobs import AnyJob, Task
from ipython1.kernel.engine.kept import Buffer
from ipython1.kernel.engine.service import EngineService

#: What has to be on the path of the engines.
NOTING = Path(__file__).parent / "noting"


def install(path: str) -> None:
    """Have the engines of this process note what they run."""
    started, done = EngineService.job_started, EngineService.job_done

    def note(what: str, key: str) -> None:
        with contextlib.suppress(OSError):  # of a test that takes all disk space or descriptors
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, f"{what} {key} {os.getpid()}\n".encode())
            os.close(file)

    def job_started(self: EngineService, job: AnyJob) -> None:
        if isinstance(job, Task):
            note("task", f"{job.id}/{job.attempt}")
        else:
            note("command", f"{job.id}@{self.id}")
        started(self, job)

    def job_done(self: EngineService, job: AnyJob, status: str, parts: Sequence[Buffer]) -> None:
        if isinstance(job, Task) and status == "ok":
            note("ended", job.id)
        done(self, job, status, parts)

    EngineService.job_started = job_started  # type: ignore[method-assign]
    EngineService.job_done = job_done  # type: ignore[method-assign]


class Ran(NamedTuple):
    """How much ran, and how much of it more often than it may."""

    commands: int
    tasks: int
    twice: list[str]


def read(path: Path, survived: Callable[[int], bool]) -> Ran:
    """What the notes say.

    Parameters
    ----------
    path : Path
        Of the notes; where there are none, nothing ran.
    survived : callable
        Whether the process of that id was spared: only what ended well in another one may run again,
        and only as a task.
    """
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    commands = Counter(key for what, key, _ in lines if what == "command")
    attempts = Counter((key, pid) for what, key, pid in lines if what == "task")
    ended = Counter(key for what, key, pid in lines if what == "ended" and survived(int(pid)))
    twice = [key for key, count in (*commands.items(), *ended.items()) if count > 1]
    twice += [f"{key} in {pid}" for (key, pid), count in attempts.items() if count > 1]
    return Ran(len(commands), len({key.rpartition("/")[0] for key, _ in attempts}), twice)
