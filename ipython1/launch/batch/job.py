"""What is asked of a batch system: one job, or an array of the same one, as data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Of a job's time, what is kept for leaving in order: a part of it, with bounds in seconds.
MARGIN, LEAST_MARGIN, MOST_MARGIN = 0.05, 30.0, 300.0
#: Seconds of the margin that engines need to end.
ENDING = 10.0

_FIELD = re.compile(r"@\{([^{}\s]*)\}")
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B?", re.IGNORECASE)
_MEBIBYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


@dataclass(frozen=True)
class Job:
    """A job of a batch system.

    Attributes
    ----------
    name : str
        As shown in the queue.
    engines : int
        How many it has; where it has several nodes, on each.
    command : sequence of str
        Starts them.
    folder : Path
        Where its script is written.
    stem : str
        Begins the name of that.
    log : Path
        Folder for what the job prints.
    count : int
        More than 1: an array of so many of them.
    nodes : int
        More than 0: one job, on each of whose nodes the command is started.
    cpus : int
        For each engine.
    memory : int
        MiB of the job on a node; 0: as the system has it.
    walltime : int
        Seconds; 0: as the system has it.
    queue, account : str
        Where, and who pays; empty: as the system has it.
    directives : sequence of str
        Further ones, as the user gave them.
    environment : sequence of (str, str)
        Variables.
    chdir : str
        A line of shell that goes to the folder to work in.
    prologue : sequence of str
        Lines of shell before the engines.
    """

    name: str
    engines: int
    command: Sequence[str]
    folder: Path
    stem: str
    log: Path
    count: int = 1
    nodes: int = 0
    cpus: int = 1
    memory: int = 0
    walltime: int = 0
    queue: str = ""
    account: str = ""
    directives: Sequence[str] = ()
    environment: Sequence[tuple[str, str]] = ()
    chdir: str = ""
    prologue: Sequence[str] = ()

    @property
    def each(self) -> int:
        """Engines of one such job, on all its nodes."""
        return self.engines * max(1, self.nodes)

    @property
    def slots(self) -> int:
        """CPUs on a node."""
        return self.engines * self.cpus

    @property
    def script(self) -> Path:
        """The file that the batch system is given; of another job, another one."""
        times = f"x{self.count}" if self.count > 1 else ""
        return self.folder / f"{self.stem}-{self.engines}{times}.sh"

    @property
    def clock(self) -> str:
        """Its time as ``H:MM:SS``."""
        minutes, seconds = divmod(self.walltime, 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    @property
    def leave_after(self) -> float:
        """Seconds from the job's start to when its engines begin to leave; 0: never."""
        return self.walltime - self._margin

    @property
    def _margin(self) -> float:
        return min(max(LEAST_MARGIN, MARGIN * self.walltime), MOST_MARGIN, self.walltime / 2)

    def shell_command(self) -> str:
        """The command as a line of bash, which counts the seconds it runs."""
        line = shlex.join(self.command)
        if self.walltime:
            within = max(self._margin - ENDING, self._margin / 2)
            line += f" --leave-after $(({self.leave_after:.0f} - SECONDS)) --leave-within {within:.0f}"
        return line

    def exports(self) -> list[str]:
        """Lines of shell that set the environment."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment]

    def body(self, spread: str = "") -> list[str]:
        """What the job does, in lines of bash.

        Parameters
        ----------
        spread : str
            Starts what follows it on each node.
        """
        lines = []
        if spread:
            again = f"{spread} /bin/bash {shlex.quote(str(self.script))} node"
            lines += [f'if [ "$1" != node ]; then exec {again}; fi']
        lines += self.exports()
        lines += [self.chdir] if self.chdir else []
        return [*lines, *self.prologue, f"exec {self.shell_command()}"]


@dataclass(frozen=True)
class Template:
    """A user's own script, with fields as ``@{queue}``; that means nothing to a shell.

    Attributes
    ----------
    text : str
        As in the file.
    """

    text: str

    def check(self, fields: Mapping[str, str], needed: str) -> None:
        """See whether it can be filled in.

        Raises
        ------
        ValueError
            It names fields that there are not, or not what it needs.
        """
        named = set(_FIELD.findall(self.text))
        unknown = ", ".join(f"@{{{name}}}" for name in sorted(named - fields.keys()))
        if unknown:
            raise ValueError(f"The template has {unknown}. Known are: {', '.join(sorted(fields))}.")
        if needed not in named:
            raise ValueError(f"The template has no @{{{needed}}}, so that no engine would start.")

    def fill(self, fields: Mapping[str, str]) -> str:
        """The script."""
        return _FIELD.sub(lambda match: fields[match[1]], self.text)


def seconds_of(walltime: str) -> int:
    """How long ``H:MM:SS`` or ``D-HH:MM:SS`` is.

    Raises
    ------
    ValueError
        It is not written so.
    """
    match = _WALLTIME.fullmatch(walltime.strip())
    if match is None:
        raise ValueError(f"{walltime!r} is no walltime. Write H:MM:SS, or D-HH:MM:SS.")
    days, hours, minutes, seconds = (int(each or 0) for each in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 1:
        raise ValueError("A walltime is longer than nothing.")
    return total


def mebibytes_of(memory: str) -> int:
    """How many MiB ``4G`` or ``500M`` are.

    Raises
    ------
    ValueError
        It is not written so.
    """
    match = _MEMORY.fullmatch(memory.strip())
    size = float(match[1]) * _MEBIBYTES[match[2].upper()] if match else 0
    if not size:
        raise ValueError(f"{memory!r} is no size of memory. Write a number and K, M, G or T, as in 4G.")
    return max(1, round(size))
