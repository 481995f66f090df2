"""Ways through ssh: where a client or an engine reaches a controller only by way of another host.

A tunnel is the system's ``ssh``, so that the user's configuration, agent and
known hosts are used. It forwards a Unix socket in a private folder to each
place that a FURL names. A small process beside us (`sshwatch`) runs it, and
ends with us.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import ipython1
from ipython1.kernel.error import BadFURL, NoFURLFile, TunnelFailed
from ipython1.kernel.wire.sshwatch import UP, WORDS, in_words

#: Names the command that is used for ``ssh``, with options of its own.
SSH_VARIABLE = "IPYTHON1_SSH"
#: Seconds between signs of life, and how many may be missed.
ALIVE_INTERVAL, ALIVE_MISSES = 5, 3
#: Longest path of a Unix socket that every platform takes, with what ssh adds to it while it opens one.
PATH_LIMIT = 80
#: Exit statuses: a shell has not found the command; ssh itself has failed; `ipcluster` has no such cluster.
NOT_FOUND, SSH_FAILED, NO_CLUSTER = 127, 255, 3

_USER = r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*"
_HOST = r"[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9.]+)?\]"
_GATEWAY = re.compile(rf"(?:ssh://)?(?:({_USER})@)?({_HOST})(?::([0-9]{{1,5}}))?/?")
_PLACE = re.compile(r"(ssh://[^/?\s]+)(?:/([A-Za-z0-9._-]*))?(?:\?(\S*))?")
_FURL = re.compile(r"^pb://\S+$", re.MULTILINE)


@dataclass(frozen=True)
class Gateway:
    """A host that one can log in to with ssh: ``[user@]host[:port]``."""

    host: str
    user: str = ""
    port: int = 0

    def __str__(self) -> str:
        """As it is given to ssh."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self, timeout: float, *options: str) -> list[str]:
        """ssh to there, with our options before `options`."""
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{max(1, round(timeout))}",
            "ServerAliveInterval": f"{ALIVE_INTERVAL}",
            "ServerAliveCountMax": f"{ALIVE_MISSES}",
            "ControlMaster": "no",
            "ForwardAgent": "no",
            "RemoteCommand": "none",
            "LogLevel": "INFO",
        }
        ssh = shlex.split(os.environ.get(SSH_VARIABLE, "")) or ["ssh"]
        given = [f"-o{name}={value}" for name, value in settings.items()]
        port = [f"-p{self.port}"] if self.port else []
        return [*ssh, "-T", "-x", *given, *port, *options]


@dataclass(frozen=True)
class Place:
    """A cluster on another host: ``ssh://[user@]host[:port]/[cluster][?python=PATH]``."""

    gateway: Gateway
    cluster: str = ""
    python: str = ""


def parse_gateway(text: str) -> Gateway:
    """What `Gateway` describes.

    Raises
    ------
    BadFURL
        It is something else.
    """
    match = _GATEWAY.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        raise BadFURL(f"{text!r} is no host to log in to with ssh. Give it as [user@]host[:port].", furl=text)
    return Gateway(match[2].strip("[]"), match[1] or "", int(match[3] or 0))


def parse_place(text: str) -> Place:
    """What `Place` describes.

    Raises
    ------
    BadFURL
        It is something else.
    """
    match = _PLACE.fullmatch(text.strip())
    query = dict(parse_qsl(match[3] or "", keep_blank_values=True)) if match else {}
    if match is None or not set(query) <= {"python"}:
        form = "ssh://[user@]host[:port]/[cluster][?python=PATH]"
        raise BadFURL(f"{text!r} is not of the form {form}.", furl=text)
    python = query.get("python", "").removeprefix("~/")  # ssh starts in the home folder
    return Place(parse_gateway(match[1]), match[2] or "", python)


def fetch_furl(place: Place, kind: str, cluster: str, timeout: float) -> str:
    """A FURL of a cluster on another host, from ``ipcluster furl`` there.

    Parameters
    ----------
    place : Place
    kind : str
        Which FURL.
    cluster : str
        Name of the cluster where `place` has none.
    timeout : float
        Seconds to log in, and again for the command.

    Raises
    ------
    NoFURLFile
        There is no such cluster there.
    TunnelFailed
        Anything else, in words.
    """
    name, host = place.cluster or cluster, str(place.gateway)
    ipcluster = [place.python, "-m", "ipython1.scripts.ipcluster"] if place.python else ["ipcluster"]
    far = shlex.join([*ipcluster, "furl", kind, "--cluster", name])
    command = place.gateway.command(timeout, "-oClearAllForwardings=yes", host, far)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise TunnelFailed(host=host, reason=f"no answer within {2 * timeout:g} s") from None
    except OSError as error:
        raise _no_ssh(command, host, error) from None
    found = _FURL.search(done.stdout.decode("utf-8", "replace"))
    if done.returncode == 0 and found is not None:
        return found[0]
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    if done.returncode == NO_CLUSTER:
        text = f"There is no cluster {name!r} on {host}. Look there with: ipcluster list"
        raise NoFURLFile(text, paths=host)
    reason = in_words(lines, done.returncode, host)
    if done.returncode == NOT_FOUND and not place.python:
        reason = "ipcluster is not found there. Name its Python: ssh://…?python=/path/to/python"
    elif done.returncode != SSH_FAILED:
        reason = f"{shlex.join(ipcluster)} fails there: {reason}"
    raise TunnelFailed(host=host, reason=reason)


class Tunnel:
    """Unix sockets here that lead to places beyond another host.

    Parameters
    ----------
    gateway : Gateway
        That host.
    places : sequence of str
        ``host:port`` each, as that host sees them.

    Attributes
    ----------
    routes : dict
        The path of a Unix socket for each place; empty before `open`.
    """

    def __init__(self, gateway: Gateway, places: Sequence[str]) -> None:
        self.gateway = gateway
        self.routes: dict[str, str] = {}
        self._places = tuple(places)
        self._folder: Path | None = None
        self._watch: subprocess.Popen[str] | None = None
        self._pid = os.getpid()

    def open(self, timeout: float) -> Tunnel:
        """Log in, and wait until that is done.

        Raises
        ------
        TunnelFailed
            It was not done within `timeout` seconds, or failed.
        """
        self._folder = _folder()
        self.routes = {place: os.fspath(self._folder / str(i)) for i, place in enumerate(self._places)}
        forwards = [f"-L{path}:{place}" for place, path in self.routes.items()]
        options = ("-N", "-oExitOnForwardFailure=yes", "-oStreamLocalBindUnlink=yes", "-oControlPath=none")
        command = self.gateway.command(timeout, *options, *forwards, str(self.gateway))
        told = {
            "command": command,
            "host": str(self.gateway),
            "folder": os.fspath(self._folder),
            "sockets": [*self.routes.values()],
        }
        root = os.fspath(Path(ipython1.__file__).parents[1])
        code = (
            f"import sys; sys.path.append({root!r}); from ipython1.kernel.wire.sshwatch import main; main()"
        )
        self._watch = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
        )
        assert self._watch.stdin is not None
        try:
            self._watch.stdin.write(json.dumps(told) + "\n")
            self._watch.stdin.flush()
            said = self._first_words(timeout)
        except BaseException:
            self.close()
            raise
        if said != UP:
            self.close()
            raise TunnelFailed(host=str(self.gateway), reason=said)
        return self

    def _first_words(self, timeout: float) -> str:
        assert self._watch is not None
        assert self._watch.stdout is not None
        deadline = time.monotonic() + timeout + 1.0  # ssh has the same timeout, and says more
        if not select.select([self._watch.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"no answer within {timeout:g} s"
        return self._watch.stdout.readline().strip() or "ssh could not be watched"

    def words(self) -> str:
        """What is wrong with it now; empty where nothing is known to be."""
        try:
            return (self._folder / WORDS).read_text() if self._folder else ""
        except OSError:
            return "the tunnel is closed"

    def close(self) -> None:
        """End it. In a forked child, which shares it, this does nothing."""
        watch, self._watch = self._watch, None
        if watch is None or os.getpid() != self._pid:
            return
        watch.terminate()  # others may have the other end of its stdin: forked children
        for stream in (watch.stdin, watch.stdout):
            if stream is not None:
                stream.close()
        watch.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def open_tunnel(through: str | None, places: Sequence[str], timeout: float = 15.0) -> Tunnel | None:
    """An open tunnel to `places` through the host of that name; None where there is no name."""
    return None if through is None else Tunnel(parse_gateway(through), places).open(timeout)


def _no_ssh(command: Sequence[str], host: str, error: OSError) -> TunnelFailed:
    return TunnelFailed(host=host, reason=f"{command[0]} cannot be run ({error.strerror})")


def _folder() -> Path:
    """A folder of our own for sockets: their paths must be short."""
    made = tempfile.mkdtemp(prefix="ipython1-ssh-")
    if len(os.fsencode(made)) > PATH_LIMIT:
        os.rmdir(made)
        made = tempfile.mkdtemp(prefix="ipython1-ssh-", dir="/tmp")
    return Path(made)
