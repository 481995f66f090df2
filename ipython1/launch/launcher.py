"""What starts the engines of a cluster: the base of all launchers, and how one is found. Light."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.interfaces import ILauncher

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The group of entry points that name launchers.
GROUP = "ipython1.launchers"


@dataclass(frozen=True)
class Option:
    """An option that some launchers take: as ``--like-this`` on a command line, ``like_this=`` in Python.

    Attributes
    ----------
    name : str
        As a keyword of Python.
    help : str
        For users.
    metavar : str
        What stands for the value; empty for a switch.
    kind : type
        Of the value: str or int.
    multiple : bool
        May be given again and again; the launcher gets a tuple.
    """

    name: str
    help: str
    metavar: str = ""
    kind: type = str
    multiple: bool = False

    @property
    def flag(self) -> str:
        """As on a command line."""
        return "--" + self.name.replace("_", "-")


#: All there are; a launcher takes those that its ``__init__`` has as keywords.
OPTIONS = (
    Option("hosts", "ssh: where, and how many engines there.", "HOST[:N],…"),
    Option("hosts_file", "ssh: a file of hosts, one a line.", "FILE"),
    Option("ssh", "ssh: the command instead of `ssh`.", "COMMAND"),
    Option("tunnel", "ssh: engines reach the controller through ssh, and no port need be open."),
    Option("mpiexec", "mpi: the command instead of `mpiexec`.", "COMMAND"),
    Option("per_job", "Batch: engines in each job.", "K", int),
    Option("queue", "Batch: the queue or partition.", "NAME"),
    Option("account", "Batch: who pays.", "NAME"),
    Option("walltime", "Batch: how long a job may take.", "H:MM:SS"),
    Option("memory", "Batch: memory of a job.", "SIZE"),
    Option("cpus", "Batch: CPUs for each engine.", "K", int),
    Option("job_name", "Batch: what the jobs are called.", "NAME"),
    Option("directive", "Batch: a line for the head of the script.", "TEXT", multiple=True),
    Option("template", "Batch: a file with the script.", "FILE"),
    Option("submit", "Batch: the command that submits.", "COMMAND"),
    Option("array", "Batch: one array of jobs."),
    Option("srun", "Batch: one job for all, whose nodes are started from its first."),
    Option("python", "Remote: the Python there.", "PATH"),
    Option("cwd", "Remote: the folder to work in.", "DIR"),
    Option("env", "Remote: a variable of the environment.", "NAME=VALUE", multiple=True),
    Option("prologue", "Remote: a line of shell before the engines start.", "LINE", multiple=True),
)


@implementer(ILauncher)
class Launcher:
    """The base of all launchers.

    A subclass has its own `start`, `stop`, `poll` and `plan`, and what it needs of the rest.
    All methods are called from one thread, and return at once but for `stop`.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    restart : bool
        Start again what dies.
    stuck, stuck_after
        What is done about engines that do not react to an interrupt, and after how many seconds.
    name : str
        Stem of the files in the log folder that take what the launcher's processes write.
    """

    #: The engines are on other hosts, so the controller has to listen to those.
    is_remote = False
    #: It can `start` any number: after a death of all, as many as were wanted last.
    resizes = False
    #: More engines are started by `grow`, not by the nannies of those that are there.
    grows = False
    #: Seconds in which the engines have to come, where the user does not say.
    timeout = 60.0

    def __init__(
        self,
        files: ClusterFiles,
        *,
        restart: bool = True,
        stuck: str = "leave",
        stuck_after: float = 5.0,
        name: str = "ipengine",
    ) -> None:
        self._files = files
        self._restart = restart
        self._name = name
        #: For `ipengine`.
        self._options = [] if restart else ["--no-restart"]
        self._options += ["--stuck", stuck, "--stuck-after", f"{stuck_after:g}"]

    @property
    def count(self) -> int:
        """How many engines there are where the user does not say: one for each CPU."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def pid(self) -> int:
        """Process id of what was started here, 0 where there is none."""
        return 0

    @property
    def missing(self) -> int:
        """How many of the engines asked for will not come."""
        return 0

    @property
    def coming(self) -> int:
        """How many may still come, where `grows`: they wait, or have begun to start not long ago."""
        return 0

    @property
    def waiting(self) -> int:
        """How many of those have certainly not begun to start."""
        return 0

    @property
    def again(self) -> int:
        """How many the launcher itself started in place of others that ended, in all its life."""
        return 0

    def plan(self, n: int) -> str:
        """What `start` would do, for the user to read: commands or scripts, without any secret."""
        raise NotImplementedError(f"{type(self).__name__} has no plan")

    def prepare(self, n: int) -> None:
        """Do what can be done for `n` engines while the controller starts, and the FURL is not known."""

    def start(self, n: int, furl: str) -> None:
        """See `ILauncher`."""
        raise NotImplementedError

    def grow(self, n: int) -> None:
        """Start `n` more engines, where `grows`."""
        raise NotImplementedError

    def shrink(self, n: int) -> int:
        """Give up at most `n` engines that have not begun to start, where `grows`; returns how many."""
        return 0

    def let_go(self, leaving: int) -> None:
        """Start none in place of engines whose time is over: `leaving`, or more where that is certain."""

    def when_seen(self, then: Callable[[], bool]) -> bool:
        """Call `then` once `waiting` and `coming` are up to date; its answer, False if that is later."""
        return then()

    def poll(self) -> str | None:
        """See `ILauncher`."""
        raise NotImplementedError

    def news(self) -> list[str]:
        """What the user has to know, in sentences, of what has happened since the last call."""
        return []

    def last_words(self) -> str:
        """The end of what the processes wrote to stderr."""
        return ""

    def stop(self) -> None:
        """See `ILauncher`."""
        raise NotImplementedError


def find_launcher(name: str) -> Callable[..., Launcher]:
    """What makes a launcher, by the name of its entry point.

    Raises
    ------
    ValueError
        There is none.
    """
    if name == "local":  # without the 30 ms of a search
        from ipython1.launch.local import LocalLauncher

        return LocalLauncher
    found = _installed()
    if name not in found:
        names = ", ".join(sorted({"local", *found}))
        raise ValueError(f"There is no launcher {name!r}. Installed are: {names}.")
    factory: Callable[..., Launcher] = found[name].load()
    return factory


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def takes(factory: Callable[..., Launcher], option: str) -> bool:
    """Whether what makes a launcher has a keyword of that name."""
    known = inspect.signature(factory).parameters
    return option in known or any(each.kind is each.VAR_KEYWORD for each in known.values())


def make_launcher(name: str, files: ClusterFiles, asked: dict[str, Any]) -> Launcher:
    """A launcher with the options that were asked for.

    Parameters
    ----------
    name : str
        Of its entry point.
    files : ClusterFiles
        The cluster.
    asked : dict
        Only what was asked for: keywords of the launcher.

    Raises
    ------
    ValueError
        There is no such launcher, it does not take one of the options, or not that value.
    """
    factory = find_launcher(name)
    for option in asked:
        if not takes(factory, option):
            raise ValueError(f"{Option(option, '').flag} is of no use with --engines {name}.")
    return factory(files, **asked)
