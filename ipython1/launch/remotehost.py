"""One host whose engines are started by `ssh`, and how it is kept.

==========  ====================================  =============================================
dialling    the nanny says it is there            up; it is told the FURL
dialling    ssh ends, the host never was up       failed
up          ssh ends with status 0                ended: the nanny was told to stop
up          ssh ends with the nanny's status      dialling, if it had engines; else failed
up          ssh ends, the channel broke           rejoining; waiting, where it did not last
rejoining   the nanny says it is there            up: the engines went on
rejoining   there is no such nanny                dialling
both again  ssh ends otherwise                    waiting, then once more; longer each time
==========  ====================================  =============================================

Whoever was up is dialled under a budget; without that, it failed.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from typing import Protocol

from ipython1.kernel.engine.leash import DEAF, GONE, REJOINED, STARTED
from ipython1.kernel.processes import exit_words
from ipython1.launch.hosts import Host
from ipython1.launch.remoteshell import ALLOCATED, FORWARD_FAILED, SSH_FAILED, forward_to, through_tunnel

DIALLING, REJOINING, UP, WAITING, ENDED, FAILED = "dialling", "rejoining", "up", "waiting", "ended", "failed"
#: Seconds before a host that was lost is dialled again, and how they grow.
FIRST_DELAY, MAX_DELAY = 1.0, 30.0
#: Seconds after which a channel has lasted: when it breaks, the host is dialled at once.
LASTING = 10.0
#: Exit status of a nanny that could start no engine; see `ipython1.kernel.engine.nanny`.
NO_ENGINE = 1
#: A nanny writes this when one of its engines has registered, and that when it cannot find the controller.
_READY, _UNREACHABLE = " is ready", " not reachable from "


class ISsh(Protocol):
    """A running `ssh`."""

    pid: int

    @property
    def status(self) -> int | None: ...

    def tell(self, text: str, last: bool = True) -> None: ...

    def said(self) -> str:
        """What it has written since the last call, in whole lines."""

    def stop(self) -> None: ...


class RemoteHost:
    """The engines of one host.

    Parameters
    ----------
    host : Host
        Where.
    count : int
        How many.
    dial : callable
        Starts `ssh`: ``dial(arguments of ipengine, what to forward)``.
    explain : callable
        Says in words why it failed: ``explain(status, how, output)``.
    says : callable
        Takes news for the user.
    allowed : callable
        Whether engines that are gone may be started again; each call counts.
    tunnel : bool
        Through the ssh channel to the controller.
    now : callable
        The monotonic time.
    """

    def __init__(
        self,
        host: Host,
        count: int,
        dial: Callable[[list[str], str], ISsh],
        explain: Callable[[int, str, str], str],
        says: Callable[[str], None],
        allowed: Callable[[], bool],
        tunnel: bool,
        now: Callable[[], float],
    ) -> None:
        self.host = host
        self.count = count
        self.state = WAITING
        self._dial = dial
        self._explain = explain
        self._says = says
        self._allowed = allowed
        self._tunnel = tunnel
        self._now = now
        self._key = ""
        self._furl = ""
        self._ssh: ISsh | None = None
        self._output = ""  # of the current ssh
        self._next = DIALLING  # what comes after waiting
        self._due = float("inf")
        self._delay = FIRST_DELAY
        self._since = 0.0  # when the nanny last said that it is there
        self._port = 0  # of the tunnel, there
        self._no_tunnel = False  # the current ssh has none
        self._lives = False  # a nanny there has the FURL, and for all we know has not ended
        self._was_up = self._has_engines = self._deaf = self._lost = self._ending = False
        self._warned: set[str] = set()
        #: Where it failed, the controller does not know of the engines that do not come.
        self.is_silent = True

    # -- what the launcher calls ------------------------------------------------------

    def dial(self) -> None:
        """Start, so far as that can be done: a tunnel needs the FURL."""
        if not self._tunnel or self._furl:
            self._start(DIALLING)

    def start(self, furl: str) -> None:
        """Now the FURL is known."""
        self._furl = furl
        if self._ssh is None:
            self.dial()
        self.look()

    def look(self) -> None:
        """React to what has happened."""
        ssh = self._ssh
        if ssh is None:
            if self.state == WAITING and self._now() >= self._due:
                self._start(self._next)
            return
        status = ssh.status  # before what it wrote, which is complete then
        self._read(ssh)
        if status is not None:
            self._ssh = None
            self._ended(status)
        elif self.state == UP and self._furl and not self._lives and (self._port or not self._tunnel):
            furl = through_tunnel(self._furl, self._port) if self._tunnel else self._furl
            ssh.tell(furl.strip() + "\n", last=False)
            self._lives = True

    def end(self) -> None:
        """Say that all is to end; `is_gone` says when that has happened."""
        self.look()
        self._ending = True
        if self._ssh is None and self._lives and not self._deaf:
            self._start(REJOINING)
        if self._ssh is None:
            return
        if self.state == DIALLING:
            self._hang_up(self._ssh)  # without a FURL the nanny there ends as well
        else:
            self._ssh.tell("quit\n" if self._lives else "")

    @property
    def is_gone(self) -> bool:
        """Whether no ssh runs for it."""
        return self._ssh is None or self._ssh.status is not None

    def kill(self) -> bool:
        """End its ssh at once; False where its nanny may live."""
        ssh, self._ssh = self._ssh, None
        if ssh is not None:
            self._lives = self._lives and ssh.status not in (0, GONE)
            ssh.stop()
        return not self._lives

    # -- what happens --------------------------------------------------------------------

    def _start(self, state: str) -> None:
        self.state, self._output, self._no_tunnel = state, "", False
        options = ["--rejoin"] if state == REJOINING else ["-n", str(self.count), "--furl-stdin"]
        if state == DIALLING:
            self._key, self._port, self._has_engines = uuid.uuid4().hex[:12], 0, False
        forward = forward_to(self._furl, self._port) if self._tunnel else ""
        self._ssh = self._dial([*options, "--channel", self._key], forward)

    def _hang_up(self, ssh: ISsh) -> None:
        if ssh.status is None:
            os.kill(ssh.pid, signal.SIGTERM)

    def _read(self, ssh: ISsh) -> None:
        text = ssh.said()
        self._output = (self._output + text)[-8192:]
        for line in text.splitlines():
            if match := ALLOCATED.search(line):
                self._port = int(match[1])
            elif FORWARD_FAILED.search(line):
                self._no_tunnel = True
            elif STARTED in line or REJOINED in line:
                self._deaf = line.split()[-1] == DEAF
                if self._no_tunnel:
                    self._hang_up(ssh)
                else:
                    self._came()
            elif line.endswith(_READY):
                self._has_engines = True
            elif _UNREACHABLE in line:
                self._warn(line.partition("ipengine: ")[2] or line)

    def _came(self) -> None:
        if self._lost:
            gone_on = self.state == REJOINING
            self._says(f"host {self.host.target} is back" + ("; its engines went on." if gone_on else "."))
        self.state, self._was_up, self._lost, self._since = UP, True, False, self._now()

    def _warn(self, text: str) -> None:
        text = f"host {self.host.target}: {text.strip()}"
        if text not in self._warned:
            self._warned.add(text)
            self._says(text)

    def _ended(self, status: int) -> None:
        by_ssh = status < 0 or status == SSH_FAILED  # else that is the status of what ran there
        gone = status == GONE and self.state in (UP, REJOINING)
        if gone or (self.state == UP and not by_ssh):
            self._lives = False
        if self._ending or (self.state == UP and status == 0):
            self.state = ENDED
        elif gone:
            self._start_again("its engines are gone")
        elif self.state == UP and not by_ssh:
            self._nanny_ended(status)
        elif self.state == UP and self._lives:
            self._channel_broke(status)
        elif self._was_up:
            self._wait(REJOINING if self.state == REJOINING else DIALLING, self._why(status))
        else:
            self._fail(self._why(status))

    def _why(self, status: int) -> str:
        if self._no_tunnel and self.state == DIALLING:
            return (
                f"host {self.host.target}: its sshd forwards no port (see AllowTcpForwarding there), "
                "so --tunnel is of no use"
            )
        return self._explain(status, exit_words(status), self._output)

    def _nanny_ended(self, status: int) -> None:
        if self._has_engines:
            self._start_again(self._why(status).partition(": ")[2])
        else:
            self.is_silent = status != NO_ENGINE  # of each of these the controller was told
            self._fail(self._why(status))

    def _channel_broke(self, status: int) -> None:
        if self._deaf:
            self._fail(
                f"host {self.host.target}: the ssh channel broke. Its engines go on as long as they find the "
                "controller, and are not watched."
            )
        elif self._now() - self._since >= LASTING:
            self._delay = FIRST_DELAY
            self._start(REJOINING)
        else:
            self._wait(REJOINING, self._why(status))

    def _start_again(self, why: str) -> None:
        if self._allowed():
            self._says(f"host {self.host.target}: {why}. They are started again.")
            self._lost = False
            self._start(DIALLING)
        else:
            self._fail(f"host {self.host.target}: {why}, and are not started again.")

    def _wait(self, then: str, why: str) -> None:
        if not self._lost:
            self._lost = True
            words = "its engines go on while they find the controller; it" if self._lives else "it"
            self._says(f"{why}. The ssh channel is lost: {words} is dialled until it answers.")
        self.state, self._next = WAITING, then
        self._due, self._delay = self._now() + self._delay, min(2 * self._delay, MAX_DELAY)

    def _fail(self, why: str) -> None:
        self.state = FAILED
        self._says(why if why.endswith(".") else why + ".")
