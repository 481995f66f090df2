"""Which clusters run here: the lock and the state file of each. Light: the standard library only.

A cluster runs exactly as long as its `ipcluster` holds the lock, so a killed
one is recognised at once, whatever its state file says.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipython1.kernel.error import IPython1Error
from ipython1.kernel.files import ClusterFiles, known_clusters, write_private
from ipython1.launch.logs import prune

#: Name of the cluster that is meant where none is named.
DEFAULT = "default"


class NotRunning(IPython1Error):
    """Cluster {cluster} is not running. Start it with: ipcluster -n 4{option}"""

    def __init__(self, cluster: str) -> None:
        super().__init__(cluster=cluster, option=option(cluster))


class AlreadyRunning(IPython1Error):
    """Cluster {cluster} is already running{pid}: stop it with ipcluster stop{option}, or give this one
    a name: --cluster NAME"""

    def __init__(self, cluster: str, pid: int) -> None:
        super().__init__(cluster=cluster, pid=f" (pid {pid})" if pid else "", option=option(cluster))


def option(cluster: str) -> str:
    """What a command line needs behind it to mean `cluster`."""
    return "" if cluster == DEFAULT else f" --cluster {cluster}"


def private_name(kind: str) -> str:
    """A new name for a cluster that only its maker uses."""
    return f"{kind}-{os.getpid()}-{os.urandom(4).hex()}"


class Lock:
    """A file that at most one process holds locked; the kernel lets go of it when that process ends.

    Parameters
    ----------
    path : Path
        The lock file; made where it is missing, never emptied or removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process has it."""
        while self._fd is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _flock(fd, fcntl.LOCK_EX) and self._is_current(fd):
                self._fd = fd
            # Who can't share it either has met its owner, not another one that only looks (`is_held`).
            elif not _flock(fd, fcntl.LOCK_SH):
                os.close(fd)
                return False
            else:
                os.close(fd)
        return True

    def release(self) -> None:
        """Let go of the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def is_held(self) -> bool:
        """Whether some process holds the lock."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def _is_current(self, fd: int) -> bool:
        """Whether `fd` still is what `path` names: the folder may have been removed just before."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return False


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cluster_lock(files: ClusterFiles) -> Lock:
    """The lock that the `ipcluster` of a running cluster holds."""
    return Lock(files.run / "ipcluster.lock")


def controller_lock(files: ClusterFiles) -> Lock:
    """The lock that a controller holds: two with one certificate must not live at the same time."""
    return Lock(files.run / "ipcontroller.lock")


@dataclass
class State:
    """What `run/ipcluster.json` says of a cluster.

    Attributes
    ----------
    pid, created : int, float
        Process id of the `ipcluster`, and its `birth`.
    controller, nanny : int
        Process ids; 0 where there is none.
    host, port : str, int
        Where the controller listens.
    n : int
        The number of engines asked for.
    engines : list of int
        The ids of the engines that are registered.
    started : float
        Seconds since the epoch.
    dashboard : str
        URL, or empty.
    temporary : bool
        The cluster's folder is removed when it ends.
    wanted : int
        The number of engines last asked for, with `n` or by scaling.
    launcher : str
        What starts the engines.
    """

    pid: int = 0
    created: float = 0.0
    controller: int = 0
    nanny: int = 0
    host: str = ""
    port: int = 0
    n: int = 0
    engines: list[int] = field(default_factory=list)
    started: float = 0.0
    dashboard: str = ""
    temporary: bool = False
    wanted: int = 0
    launcher: str = "local"

    @property
    def is_current(self) -> bool:
        """Whether the process that wrote this lives."""
        return self.pid > 0 and birth(self.pid) == self.created

    def is_same(self, other: State) -> bool:
        """Whether both are of one and the same running cluster."""
        return (self.pid, self.created) == (other.pid, other.created)

    @property
    def address(self) -> str:
        """``host:port``, or empty as long as the controller does not listen."""
        if not self.port:
            return ""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def write(self, files: ClusterFiles) -> None:
        """Write the state file, atomically."""
        write_private(files.state, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, files: ClusterFiles) -> State:
        """The state as the file has it; all zero where there is no such file, or no readable one."""
        try:
            found: Any = json.loads(files.state.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return cls()
        if not isinstance(found, dict):
            return cls()
        empty = asdict(cls())
        return cls(**{name: found[name] for name in empty if type(found.get(name)) is type(empty[name])})


def birth(pid: int) -> float:
    """When a process began, to tell it from others that get its pid later; 0 where there is none."""
    if sys.platform == "linux":  # since boot, in ticks, which no change of the clock touches
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return float(stat.rpartition(b")")[2].split()[19])
    import psutil  # takes 50 ms

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def is_running(files: ClusterFiles) -> bool:
    """Whether the cluster's `ipcluster` lives."""
    return cluster_lock(files).is_held()


def running(files: ClusterFiles) -> State:
    """The state of a cluster that runs.

    Raises
    ------
    NotRunning
        It does not.
    """
    if not is_running(files):
        raise NotRunning(files.cluster)
    return State.read(files)


@contextmanager
def held(files: ClusterFiles) -> Iterator[Lock]:
    """Own a cluster's name for the duration of a ``with``; its folders are made.

    Raises
    ------
    AlreadyRunning
        Another process owns it.
    """
    files.create()
    lock = cluster_lock(files)
    if not lock.acquire():
        raise AlreadyRunning(files.cluster, State.read(files).pid)
    prune(files.log)
    try:
        yield lock
    finally:
        lock.release()


def clean(files: ClusterFiles, everything: bool = False) -> bool:
    """Remove what a dead cluster left behind: its sockets, its state, and what its engines wrote.

    Certificate, FURL files and the controller's log stay, so that the FURLs are good at the next start; a
    temporary cluster's folder goes altogether.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    everything : bool
        Remove its folder with certificate, FURL files and logs.

    Returns
    -------
    bool
        False, and nothing removed, where the cluster runs.
    """
    files.create()
    locks = cluster_lock(files), controller_lock(files)
    try:
        if not all(lock.acquire() for lock in locks):
            return False
        if everything or State.read(files).temporary:
            shutil.rmtree(files.folder, ignore_errors=True)
        else:
            remove_traces(files)
            for log in _engine_logs(files):
                log.unlink(missing_ok=True)
    finally:
        for lock in locks:
            lock.release()
    return True


def end_run(files: ClusterFiles, keep_detached: bool) -> None:
    """Remove what a run of the cluster leaves. The caller holds the cluster's lock, its controller has ended.

    Where another controller lives, started by hand, that is only what says that the cluster runs.
    """
    lock = controller_lock(files)
    if not lock.acquire():
        files.state.unlink(missing_ok=True)
        return
    try:
        remove_traces(files, keep_detached)
    finally:
        lock.release()


def remove_traces(files: ClusterFiles, keep_detached: bool = False) -> None:
    """Empty the run folder, but for the locks. The caller holds the locks of cluster and controller."""
    for path in list(files.run.iterdir()):
        if path == files.detached and keep_detached:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".lock":
            path.unlink(missing_ok=True)


def has_left_something(files: ClusterFiles) -> bool:
    """Whether there is something that `clean` would remove."""
    return any(path.suffix != ".lock" for path in _content(files.run)) or bool(_engine_logs(files))


def _engine_logs(files: ClusterFiles) -> list[Path]:
    return [path for path in _content(files.log) if path.name.startswith("engine-")]


def _content(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def all_clusters(root: Path | None = None) -> list[ClusterFiles]:
    """Every cluster that has a folder here, by name."""
    return [ClusterFiles(name, root) for name in sorted(known_clusters(root))]
