"""Engines in jobs of a batch system: what all the systems have in common."""

from __future__ import annotations

import math
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.batch.control import Control
from ipython1.launch.batch.job import Job, Template, mebibytes_of, seconds_of
from ipython1.launch.batch.system import System
from ipython1.launch.launcher import Launcher
from ipython1.launch.local import environment, module_command

_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class BatchLauncher(Launcher):
    """Starts engines in jobs of a batch system; a subclass says which.

    Parameters
    ----------
    files : ClusterFiles
        The cluster, in a folder that the nodes share.
    restart, stuck, stuck_after, name
        As for `Launcher`.
    per_job : int, optional
        Engines in each job; one where not given. With `srun` on each node; all of them where not given.
    queue, account, walltime, memory, cpus, job_name
        As in `Job`, walltime and memory as text.
    directive : sequence of str
        Further lines for the head of the script, without what such a line begins with.
    template : str, optional
        A file to submit instead of the script that is made here.
    submit : str, optional
        The command that submits.
    array : bool
        One array instead of many jobs.
    srun : bool
        One job, with a nanny on each of its nodes.
    python : str, optional
        The Python of the nodes; this one where not given.
    cwd : str, optional
        Folder to work in; the present one, where the node has it.
    env : sequence of str
        Variables for the engines, like ``A=1``.
    prologue
        As in `Job`.
    now : callable
        The monotonic time.
    """

    system: ClassVar[System]
    is_remote = True
    grows = True
    #: A queue may be long.
    timeout = math.inf

    def __init__(
        self,
        files: ClusterFiles,
        *,
        restart: bool = True,
        stuck: str = "leave",
        stuck_after: float = 5.0,
        name: str = "ipengine",
        per_job: int | None = None,
        queue: str = "",
        account: str = "",
        walltime: str = "",
        memory: str = "",
        cpus: int = 1,
        job_name: str = "",
        directive: Sequence[str] = (),
        template: str = "",
        submit: str = "",
        array: bool = False,
        srun: bool = False,
        python: str = "",
        cwd: str = "",
        env: Sequence[str] = (),
        prologue: Sequence[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(files, restart=restart, stuck=stuck, stuck_after=stuck_after, name=name)
        given = {"queue": queue, "account": account, "srun": srun, "array": array, "memory": memory}
        for option, why in self.system.refuses.items():
            if given.get(option):
                raise ValueError(f"--{option} is of no use with {self.system.title}: {why}")
        if srun and array:
            raise ValueError("Give either --array or --srun: many jobs, or one.")
        for what, number in (("--per-job", per_job), ("--cpus", cpus)):
            if number is not None and number < 1:
                raise ValueError(f"{what} is 1 or more, not {number}.")
        for text in (queue, account, cwd, python, *directive, *env):
            if "\n" in text:
                raise ValueError(f"{text!r} has a line end, which would be another line of the script.")
        if job_name and not _NAME.fullmatch(job_name):
            raise ValueError(f"{job_name!r} is no name for a job. Use letters, digits, '_', '-' and '.'.")
        for folder in (files.log, files.run):
            if re.search(r"[\s%$\"'\\]", str(folder)):
                raise ValueError(f"{folder} cannot be named to {self.system.title}. Set IPYTHON1_DIR.")
        self._per_job, self._array, self._srun = per_job, array, srun
        self._template = Template(_text_of(template)) if template else None
        self._submit = shlex.split(submit) or list(self.system.submit)
        here, *program = module_command("ipython1.scripts.ipengine")
        self._job = Job(
            name=job_name or f"ip1-{files.cluster}"[:15],
            engines=1,
            command=[python or here, *program],
            folder=files.run,
            stem=name,
            log=files.log,
            cpus=cpus,
            memory=mebibytes_of(memory) if memory else 0,
            walltime=seconds_of(walltime) if walltime else 0,
            queue=queue,
            account=account,
            directives=tuple(directive),
            environment=(*_own_variables(files, python), *map(_variable, env)),
            chdir=f"cd {shlex.quote(cwd)} || exit 1" if cwd else f"cd {shlex.quote(os.getcwd())}",
            prologue=tuple(prologue),
        )
        if self._template is not None:
            self._template.check(self.system.fields(self._job), self.system.needed)
        self._control = Control(self.system, self._submit, self._template, restart, now)

    # -- what is to be submitted ------------------------------------------------------

    def _jobs_for(self, n: int) -> list[Job]:
        job = self._job
        if self._srun:
            per_node = self._per_job or n
            nodes, rest = divmod(n, per_node)
            if rest:
                raise LaunchError(
                    f"{n} engines are not {per_node} on each of some nodes. Ask for another number."
                )
            return [self._with_engines(job, per_node, nodes=nodes)]
        per_job = min(self._per_job or 1, n)
        count, rest = divmod(n, per_job)
        whole = self._with_engines(job, per_job)
        jobs = [replace(whole, count=count)] if self._array and count > 1 else [whole] * count
        return jobs + ([self._with_engines(job, rest)] if rest else [])

    def _with_engines(self, job: Job, engines: int, nodes: int = 0) -> Job:
        own = ["-n", str(engines), "--cluster", self._files.cluster]
        own += ["--furl-file", str(self._files.furl("engine")), "--log-dir", str(self._files.log)]
        command = [*job.command, *own, "--leave-when-empty", *self._options]
        return replace(job, engines=engines, command=command, nodes=nodes)

    def plan(self, n: int) -> str:
        """See `Launcher`: each different script, and how it is submitted."""
        jobs = self._jobs_for(n)
        texts = []
        for position, job in enumerate(jobs):
            if job in jobs[:position]:
                continue
            command, stdin = self.system.submit_command(self._submit, job)
            line = shlex.join(command) + (f" < {stdin}" if stdin else "")
            times = jobs.count(job)
            texts.append(f"# {line}" + (f"  # {times} times" if times > 1 else ""))
            files = self.system.texts(job, self._template)
            texts += [text if len(files) == 1 else f"# {path}:\n{text}" for path, text in files.items()]
        return "\n".join(text.rstrip("\n") for text in texts)

    # -- the life of jobs ---------------------------------------------------------------

    def start(self, n: int, furl: str) -> None:
        """See `ILauncher`. The jobs read the FURL from the cluster's file when they run."""
        self._control.missing = 0
        self.grow(n)

    def grow(self, n: int) -> None:
        """See `Launcher`."""
        self._control.submit(self._jobs_for(n))

    def shrink(self, n: int) -> int:
        """See `Launcher`."""
        return self._control.shrink(n)

    def poll(self) -> str | None:
        """See `ILauncher`."""
        self._control.advance()
        return self._control.over()

    def news(self) -> list[str]:
        """See `Launcher`."""
        return self._control.news()

    @property
    def missing(self) -> int:
        """See `Launcher`."""
        return self._control.missing

    @property
    def coming(self) -> int:
        """See `Launcher`."""
        return self._control.coming

    @property
    def waiting(self) -> int:
        """See `Launcher`."""
        return self._control.waiting

    @property
    def again(self) -> int:
        """See `Launcher`."""
        return self._control.again

    def let_go(self, leaving: int) -> None:
        """See `Launcher`."""
        self._control.let_go(leaving)

    def when_seen(self, then: Callable[[], bool]) -> bool:
        """See `Launcher`: once the batch system was asked again."""
        return self._control.when_seen(then)

    def last_words(self) -> str:
        """See `Launcher`: of the last job that ended badly."""
        return self._control.last_words

    def stop(self) -> None:
        """See `ILauncher`: cancel all jobs; where some stay in the queue, `news` says which."""
        self._control.stop()


def _text_of(template: str) -> str:
    try:
        return Path(template).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ValueError(f"The template {template} cannot be read: {reason}.") from None


def _variable(text: str) -> tuple[str, str]:
    match = _VARIABLE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} sets no variable. Write NAME=VALUE.")
    return match[1], match[2]


def _own_variables(files: ClusterFiles, python: str) -> list[tuple[str, str]]:
    """What engines on other hosts need to be as those here."""
    path = "" if python else environment().get("PYTHONPATH", "")  # finds this package, also in a checkout
    return [("IPYTHON1_DIR", str(files.root)), *([("PYTHONPATH", path)] if path else [])]
