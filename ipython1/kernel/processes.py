"""Small things about processes, for the nanny and the launchers. Standard library only."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path

#: What nannies say of an engine that ended because it was told to, and for good.
STOPPED = "stopped on request"
#: The same, where the batch system would soon have ended it.
TIME_OVER = "stopped, since its job's time was over"
#: Ends that are nobody's fault.
INTENDED = frozenset({STOPPED, TIME_OVER})

#: ``PR_SET_PDEATHSIG`` of ``<sys/prctl.h>``.
_PARENT_DEATH_SIGNAL = 1


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process signal `number` when its parent ends.

    Only Linux can do that; elsewhere a child has to watch a pipe or socket that its parent holds.

    Parameters
    ----------
    parent : int
        The pid of the parent. Where it is gone already, this process ends at once.
    number : int
        The signal.
    """
    if sys.platform == "linux":
        import ctypes  # takes 5 ms, and most importers of this module never come here

        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def exit_words(status: int) -> str:
    """How a process ended: ``'exit status 3'`` or ``'killed by signal 9 (SIGKILL)'``.

    Parameters
    ----------
    status : int
        As in `subprocess.Popen.returncode` and `os.waitstatus_to_exitcode`: negative for a signal.
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"killed by signal {-status}{name}"


def tail(path: Path, lines: int = 20, size: int = 8192) -> str:
    """The last `lines` lines of a log file, from its last `size` bytes; empty where there is no file."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            text = file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def remove_if_empty(log: Path) -> None:
    """Remove a log file that says nothing."""
    try:
        if log.stat().st_size == 0:
            log.unlink()
    except OSError:  # nothing to remove, or somebody else will
        pass


def remove_unused_logs(folder: Path) -> None:
    """Remove the logs of engines that say nothing, and that nobody can write to any more.

    Such are left where all of a cluster was killed at once.
    """
    for log in folder.glob("engine-*"):
        try:
            fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_size == 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_size == 0:
                    log.unlink()
        except OSError:  # in use, or no locks here
            pass
        finally:
            os.close(fd)


def kill_group(leader: int, number: int = signal.SIGKILL) -> None:
    """Send signal `number` to the process group of `leader`, if it has any process left."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):  # the latter: macOS, where only zombies are left
        pass


def redirect(log: Path | None, out: Path | None = None) -> None:
    """Take fd 0 from /dev/null and, where `log` is given, append fds 1 and 2 to that file (0600).

    Where `out` is given, fd 1 is appended to that one. What was written can be read back from the fds.
    """
    _replace(os.open(os.devnull, os.O_RDONLY), 0)
    if log is not None:
        file = _appendable(log)
        os.dup2(file, 1)
        _replace(file, 2)
    if out is not None:
        _replace(_appendable(out), 1)


def _appendable(log: Path) -> int:
    """Open a log, locked as long as any process has it."""
    while True:
        fd = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:  # none on this file system
            return fd
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # just removed by `remove_unused_logs`


def _replace(source: int, target: int) -> None:
    os.dup2(source, target)
    if source > 2:  # a process started without fds 0-2 may get one of these from os.open
        os.close(source)
