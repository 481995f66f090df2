"""Engines on other hosts, each reached by the system's ``ssh``.

Nothing is needed there but a Python with this package. The FURL goes over
stdin: it is on no command line, and in no file there. What keeps a host is in
`remotehost`, what is said to it in `remoteshell`.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import exit_words
from ipython1.launch.hosts import Host, parse_hosts, read_hosts, share, total, variable
from ipython1.launch.launcher import Launcher
from ipython1.launch.local import GRACE, Child, environment
from ipython1.launch.remotehost import ENDED, FAILED, RemoteHost
from ipython1.launch.remoteshell import explain, first_line, script, ssh_command
from ipython1.launch.supervisor import Budget

#: Seconds between two looks at processes that are to end.
_TICK = 0.02


class Ssh(Child):
    """A running `ssh`, which has been given its script.

    Parameters
    ----------
    command : sequence of str
        What to run.
    output : Path
        Takes what it and the nanny there write, behind what there is.
    script : str
        For the shell there.
    """

    def __init__(self, command: Sequence[str], output: Path, script: str) -> None:
        seen = output.stat().st_size if output.exists() else 0
        super().__init__(command, output, environment(), stdin=True, append=True)
        self._log = output.open("rb")  # stays good where the file is removed
        self._log.seek(seen)
        self.tell(first_line(script), last=False)

    def said(self) -> str:
        """What it has written since the last call, in whole lines; all of it, where it has ended."""
        ended = self.status is not None
        data = b"" if self._log.closed else self._log.read()
        if ended:
            self._log.close()
        else:
            whole = data.rfind(b"\n") + 1
            self._log.seek(whole - len(data), os.SEEK_CUR)
            data = data[:whole]
        return data.decode("utf-8", "replace")

    def stop(self) -> None:
        """See `Child`."""
        super().stop()
        self._log.close()


class SshLauncher(Launcher):
    """Engines on other hosts, by one `ssh` each.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    hosts : str
        Where, and how many: ``a:4,user@b:8``.
    hosts_file : str or Path
        A file of hosts, one a line: ``host[:count] [python=PATH] [cwd=DIR] [NAME=VALUE …]``.
    ssh : str
        The command, with options.
    tunnel : bool
        Engines reach the controller through their ssh channel.
    python, cwd : str
        The Python and the folder there, where a host has none of its own.
    env : sequence of str
        Variables, ``NAME=VALUE``, for all hosts.
    prologue : sequence of str
        Lines of shell before the engines.
    now : callable
        The monotonic time.
    restart, stuck, stuck_after, name
        See `Launcher`.

    Raises
    ------
    ValueError
        Something of that cannot be.
    """

    def __init__(
        self,
        files: ClusterFiles,
        *,
        hosts: str = "",
        hosts_file: str | Path = "",
        ssh: str = "ssh",
        tunnel: bool = False,
        python: str = "",
        cwd: str = "",
        env: Sequence[str] = (),
        prologue: Sequence[str] = (),
        restart: bool = True,
        stuck: str = "leave",
        stuck_after: float = 5.0,
        name: str = "ipengine",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(files, restart=restart, stuck=stuck, stuck_after=stuck_after, name=name)
        named = [
            *(parse_hosts(hosts) if hosts else ()),
            *(read_hosts(Path(hosts_file)) if hosts_file else ()),
        ]
        if not named:
            raise ValueError("Say where: --hosts node1:4,node2:8, or --hosts-file FILE.")
        if not (words := shlex.split(ssh)):
            raise ValueError("--ssh names no command.")
        common = [variable(each) for each in env]
        self._hosts = [
            replace(
                host,
                python=host.python or python,
                cwd=host.cwd or cwd,
                env=tuple(dict([*common, *host.env]).items()),
            )
            for host in named
        ]
        self._ssh = words
        self._tunnel = tunnel
        self._prologue = tuple(prologue)
        self._now = now
        self._outputs = _outputs(self._hosts, name, files)
        self._remotes: list[RemoteHost] = []
        self._prepared = False
        self._stopping = False
        self._news: list[str] = []

    @property
    def is_remote(self) -> bool:  # type: ignore[override]
        """The controller has to listen to other hosts, but for tunnels."""
        return not self._tunnel

    @property
    def count(self) -> int:
        """As many as the hosts say; one each, where they do not."""
        return total(self._hosts)

    @property
    def missing(self) -> int:
        """See `Launcher`."""
        return sum(
            remote.count
            for remote in self._remotes
            if remote.state == ENDED or (remote.state == FAILED and remote.is_silent)
        )

    def plan(self, n: int) -> str:
        """The commands, and what each shell is given to run."""
        parts = []
        for host, count in zip(self._hosts, share(self._hosts, n), strict=True):
            if count:
                forward = "127.0.0.1:0:CONTROLLER" if self._tunnel else ""
                command = ssh_command(self._ssh, host.target, forward)
                text = self._script(host, ["-n", str(count), "--furl-stdin"])
                parts.append(f"{shlex.join(command)}\n{textwrap.indent(text, '    ')}")
        return "\n".join(parts)

    def prepare(self, n: int) -> None:
        """Log in to the hosts, and start the nannies so far as they can be without the FURL."""
        self._remotes = []
        for host, output, count in zip(self._hosts, self._outputs, share(self._hosts, n), strict=True):
            if count:
                output.unlink(missing_ok=True)
                self._remotes.append(
                    RemoteHost(
                        host,
                        count,
                        partial(self._dial, host, output),
                        partial(explain, self._ssh, host),
                        self._news.append,
                        self._budget(),
                        self._tunnel,
                        self._now,
                    )
                )
        for remote in self._remotes:
            remote.dial()
        self._prepared = True

    def start(self, n: int, furl: str) -> None:
        """See `Launcher`."""
        if not self._prepared:
            self.prepare(n)
        self._prepared = False
        for remote in self._remotes:
            remote.start(furl)

    def poll(self) -> str | None:
        """See `Launcher`."""
        for remote in self._remotes:
            remote.look()
        if not self._remotes or any(remote.state not in (ENDED, FAILED) for remote in self._remotes):
            return None
        if all(remote.state == ENDED for remote in self._remotes):
            return exit_words(0)
        return "failures on all hosts"

    def news(self) -> list[str]:
        """See `Launcher`."""
        news = self._news[:]
        self._news.clear()
        return news

    def stop(self) -> None:
        """End the nannies there, in order; at once, where asked a second time."""
        if not self._stopping:
            self._stopping = True
            for remote in self._remotes:
                remote.end()
            deadline = self._now() + GRACE
            while not all(remote.is_gone for remote in self._remotes) and self._now() < deadline:
                time.sleep(_TICK)
        for remote in self._remotes:
            if not remote.kill():
                self._news.append(
                    f"host {remote.host.target} could not be told to stop. Its engines end by themselves "
                    "when the controller has been gone for its --controller-grace (120 s)."
                )
        self._remotes = []

    def _budget(self) -> Callable[[], bool]:
        budget = Budget(self._now)
        return lambda: self._restart and budget.allows()

    def _dial(self, host: Host, output: Path, arguments: Sequence[str], forward: str) -> Ssh:
        command = ssh_command(self._ssh, host.target, forward)
        return Ssh(command, output, self._script(host, arguments))

    def _script(self, host: Host, arguments: Sequence[str]) -> str:
        options = [*arguments, "--cluster", self._files.cluster, *self._options]
        return script(host, options, self._prologue)


def _outputs(hosts: Sequence[Host], name: str, files: ClusterFiles) -> list[Path]:
    """The file that takes the output of each."""
    seen: Counter[str] = Counter()
    outputs = []
    for host in hosts:
        stem = re.sub(r"[^A-Za-z0-9_.@-]", "_", host.target)
        seen[stem] += 1
        outputs.append(files.log / f"{name}-{stem}{f'-{seen[stem]}' if seen[stem] > 1 else ''}.out")
    return outputs
