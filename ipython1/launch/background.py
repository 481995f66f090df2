"""An `ipcluster` behind a Python program: starting one and waiting until it is ready, stopping one."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import exit_words
from ipython1.launch.state import State, clean, is_running

#: Seconds that a cluster has to stop in order before it is killed: jobs in a queue take up to forty.
GRACE = 60.0
#: Seconds in which one that just starts, or stops, has to say who it is.
UNKNOWN_GRACE = 5.0


def start_command(
    what: str, command: Sequence[str], env: Mapping[str, str], *, daemonize: bool = False
) -> subprocess.Popen[bytes]:
    """Run a command of `ipcluster`; returns when it says that it is ready.

    Parameters
    ----------
    what : str
        Its name for users, where it fails.
    command : sequence of str
        Takes ``--ready-fd``; one that goes to the background is ready when it returns.
    env : mapping
        Its environment.
    daemonize : bool
        It goes to the background.

    Raises
    ------
    LaunchError
        It has ended; the message is what it wrote.
    """
    ready, theirs = os.pipe()
    with tempfile.TemporaryFile() as output, open(ready, "rb") as pipe:
        try:
            process = subprocess.Popen(
                [*command, *([] if daemonize else ["--ready-fd", str(theirs)])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=dict(env),
                pass_fds=[] if daemonize else [theirs],
                start_new_session=True,  # so that a Ctrl-C here does not stop it
            )
        finally:
            os.close(theirs)
        try:
            import ipython1.kernel.client  # noqa: F401 -- needed next, and takes as long as the start

            if (process.wait() != 0) if daemonize else not pipe.readline():
                raise LaunchError(what=what, reason=_reason(process, output))
        except BaseException:
            terminate(process)
            raise
    return process


def _reason(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    """Why it ended without ever being ready, in its own words."""
    status = process.wait()
    output.seek(0)
    words = output.read().decode("utf-8", "replace").strip().removeprefix("ipcluster: ")
    words = words.rpartition("\nError: ")[2]  # of how the command is used
    return words.removesuffix(".") or exit_words(status)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process in order, or else kill it; returns when it is gone."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_cluster(files: ClusterFiles, which: State | None = None) -> None:
    """Stop a cluster that runs, whoever started it; returns when it is gone.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    which : State, optional
        Its state; one of that name that was started later is left alone. Nothing: any.

    Raises
    ------
    LaunchError
        It is not known here which process to stop.
    """
    asked, deadline = 0, time.monotonic() + GRACE
    while is_running(files):
        late = time.monotonic() > deadline
        found = State.read(files)
        if which is not None and found.pid and not found.is_same(which):
            return
        if found.is_current and (late or found.pid != asked):
            asked = found.pid
            os.kill(asked, signal.SIGKILL if late else signal.SIGTERM)
        elif not asked and time.monotonic() > deadline - GRACE + UNKNOWN_GRACE:
            raise LaunchError(
                f"Cluster {files.cluster} is not stopped: its ipcluster is not among the processes of this "
                "host. Stop it where it was started."
            )
        time.sleep(0.02)


def end_own(process: subprocess.Popen[bytes], owner: int, temporary: ClusterFiles | None) -> None:
    """End the `ipcluster` of process `owner`; where it is killed, remove what its temporary cluster left."""
    if os.getpid() != owner:  # a fork of the process whose cluster this is
        return
    terminate(process)
    if process.returncode < 0 and temporary is not None:
        clean_killed(temporary)


def clean_killed(temporary: ClusterFiles) -> None:
    """Remove what a temporary cluster left that was killed. What it had started is just about to end."""
    deadline = time.monotonic() + GRACE
    while temporary.folder.exists() and time.monotonic() < deadline:
        if clean(temporary, everything=True):
            break
        time.sleep(0.02)
