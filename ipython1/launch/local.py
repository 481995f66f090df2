"""Starts a controller and engines on this host. Light: imports neither Twisted nor IPython."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipython1
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import die_with_parent, exit_words, tail
from ipython1.launch.launcher import Launcher
from ipython1.launch.state import State, is_running

#: Seconds that a process has to end in order before it is killed.
GRACE = 8.0


def module_command(module: str) -> list[str]:
    """The command that runs the ``main`` of a module of ours with this Python."""
    return [sys.executable, "-c", f"from {module} import main; main()"]


def environment(**extra: str) -> dict[str, str]:
    """The environment for our own processes: they find this very package, also in a checkout."""
    root = Path(ipython1.__file__).parents[1]
    found = {**os.environ, **extra}
    if root.name not in ("site-packages", "dist-packages"):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [found.get("PYTHONPATH"), os.fspath(root)]))
    return found


class Child:
    """A process that ends with this one, in a session of its own: Ctrl-C in the terminal does not reach it.

    Parameters
    ----------
    command : sequence of str
        What to run.
    output : Path
        The file for its stdout and stderr.
    env : mapping
        Its environment.
    stdin : bool
        Keep a pipe to its stdin, for `tell`; otherwise it reads nothing.
    pass_fds : sequence of int
        File descriptors it inherits.
    append : bool
        Keep what is in the file.
    orphaned : int
        The signal it gets when this process ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        env: Mapping[str, str],
        *,
        stdin: bool = False,
        pass_fds: Sequence[int] = (),
        append: bool = False,
        orphaned: int = signal.SIGKILL,
    ) -> None:
        self.output = output
        self._asked = False
        anew = 0 if append else os.O_TRUNC
        log = os.open(output, os.O_WRONLY | os.O_CREAT | anew | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid(), orphaned),
            )
        finally:
            os.close(log)
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """None while it runs, else its exit status, negative for a signal."""
        return self._process.poll()

    def poll(self) -> str | None:
        """None while it runs, else in words how it ended."""
        return None if self.status is None else exit_words(self.status)

    def tell(self, text: str, last: bool = True) -> None:
        """Write `text` to its stdin, and close that with the last. What has ended does not hear it."""
        stdin = self._process.stdin
        if stdin is not None:
            try:
                stdin.write(text.encode())
                if last:
                    stdin.close()
                else:
                    stdin.flush()
            except BrokenPipeError:
                last = True
            if last:
                self._process.stdin = None

    def stop(self) -> None:
        """End it, in order (SIGTERM) if it does so within `GRACE`; at once, where asked a second time."""
        if self.status is None and not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        if self.status is None:
            self._kill()
        self.tell("")

    def _kill(self) -> None:
        import psutil  # 50 ms, and seldom needed

        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._process.kill()
        for descendant in found:
            try:
                descendant.kill()
            except psutil.NoSuchProcess:
                pass
        self._process.wait()


class LocalController:
    """The controller process of a cluster on this host.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    options : sequence of str
        Further options of `ipcontroller`.
    port : int, optional
        Where to listen; as `ipcontroller` chooses, where not given.
    command : sequence of str, optional
        What to run instead of `ipcontroller`.
    """

    def __init__(
        self,
        files: ClusterFiles,
        options: Sequence[str] = (),
        *,
        port: int | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self._files = files
        self._options = options
        self._port = port
        self._command = list(command) if command else module_command("ipython1.scripts.ipcontroller")
        self._child: Child | None = None
        self._fd: int | None = None
        self._rest = b""

    def start(self, port: int | None = None) -> None:
        """Start it, for another time on `port`; it says by a ``listening`` event when it is there."""
        self._close()
        port = self._port if port is None else port
        self._fd, theirs = os.pipe()
        os.set_blocking(self._fd, False)
        options = ["--cluster", self._files.cluster, *self._options, "--status-fd", str(theirs)]
        if port is not None:
            options += ["--port", str(port)]
        # The controller runs nothing of the user's, so it imports nothing from the current folder either.
        env = environment(PYTHONSAFEPATH="1")
        try:
            self._child = Child(
                [*self._command, *options], self._files.log / "ipcontroller.out", env, pass_fds=[theirs]
            )
        finally:
            os.close(theirs)

    def fileno(self) -> int | None:
        """What becomes readable when there are events."""
        return self._fd

    def events(self) -> list[dict[str, Any]]:
        """What the controller has said since the last call."""
        data, self._rest = self._rest, b""  # `_close` has nothing to lose then
        while self._fd is not None:
            try:
                piece = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            if not piece:
                self._close()
            data += piece
        *lines, self._rest = data.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def pid(self) -> int:
        """Its process id, 0 before the start."""
        return 0 if self._child is None else self._child.pid

    def poll(self) -> str | None:
        """None while it runs, else in words how it ended."""
        return "not started" if self._child is None else self._child.poll()

    @property
    def ended_well(self) -> bool:
        """Whether it ended with exit status 0: because it was told to."""
        return self._child is not None and self._child.status == 0

    def last_words(self) -> str:
        """The end of what it wrote to stderr, empty before the start."""
        return "" if self._child is None else tail(self._child.output)

    def stop(self) -> None:
        """End it; at once, where asked a second time."""
        if self._child is not None:
            self._child.stop()
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._rest = b""


class RunningController:
    """The controller of a cluster that another `ipcluster` started, seen through its state file.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    """

    ended_well = False

    def __init__(self, files: ClusterFiles) -> None:
        self._files = files
        self._others: set[int] | None = None
        self._told: list[int] = []

    @property
    def pid(self) -> int:
        """Process id of the controller."""
        return State.read(self._files).controller

    def start(self, port: int | None = None) -> None:
        """It runs already."""

    def fileno(self) -> None:
        """Nothing becomes readable."""

    def events(self) -> list[dict[str, Any]]:
        """What has changed since the last call; of the engines, those that have come since the first."""
        if not is_running(self._files):
            return [{"event": "shutdown"}]
        state = State.read(self._files)
        found = []
        if self._others is None and state.port:
            self._others = set(state.engines)
            found.append({"event": "listening", "host": state.host, "port": state.port})
        ours = [engine for engine in state.engines if engine not in (self._others or ())]
        if ours != self._told:
            self._told = ours
            found.append({"event": "engines", "ids": ours})
        return found

    def poll(self) -> None:
        """Its own `ipcluster` sees to it."""

    def last_words(self) -> str:
        """Nothing."""
        return ""

    def stop(self) -> None:
        """It goes on."""


class LocalLauncher(Launcher):
    """Engines on this host, under one nanny (`ipengine`).

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    command : sequence of str, optional
        What to run instead of `ipengine`.
    restart, stuck, stuck_after, name
        See `Launcher`.
    """

    resizes = True

    def __init__(
        self,
        files: ClusterFiles,
        *,
        restart: bool = True,
        stuck: str = "leave",
        stuck_after: float = 5.0,
        command: Sequence[str] | None = None,
        name: str = "ipengine",
    ) -> None:
        super().__init__(files, restart=restart, stuck=stuck, stuck_after=stuck_after, name=name)
        self._command = list(command) if command else module_command("ipython1.scripts.ipengine")
        self._child: Child | None = None
        self._prepared = False

    def plan(self, n: int) -> str:
        """The command that `start` runs."""
        return shlex.join(self._line(n))

    def prepare(self, n: int) -> None:
        """Start the nanny already while the FURL is not known: its imports take the longest."""
        output = self._files.log / f"{self._name}.out"
        self._child = Child(self._line(n), output, environment(), stdin=True)
        self._prepared = True

    def _line(self, n: int) -> list[str]:
        options = ["-n", str(n), "--furl-stdin", "--cluster", self._files.cluster]
        return [*self._command, *options, *self._options]

    def start(self, n: int, furl: str) -> None:
        """Start `n` engines that register at `furl`."""
        if not self._prepared:
            self.prepare(n)
        self._prepared = False
        assert self._child is not None
        self._child.tell(furl.strip() + "\n")

    @property
    def pid(self) -> int:
        """Process id of the nanny, 0 before the start."""
        return 0 if self._child is None else self._child.pid

    def poll(self) -> str | None:
        """None while the nanny runs, else in words how it ended."""
        return None if self._child is None else self._child.poll()

    def last_words(self) -> str:
        """The end of what the nanny wrote to stderr."""
        return "" if self._child is None else tail(self._child.output)

    def stop(self) -> None:
        """End the nanny and its engines; at once, where asked a second time."""
        if self._child is not None:
            self._child.stop()
