"""What is said to `ssh` and to the shell of another host, and what their answers mean."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from ipython1.launch.hosts import Host
from ipython1.launch.local import module_command

#: For `ssh`, behind what the user gave: of two values of one option it takes the first.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ForwardX11": "no",
    "ForwardAgent": "no",
    "ControlMaster": "no",  # it would outlive us; the user's own one may carry us
    "LogLevel": "INFO",
}
SSH_OPTIONS = tuple(word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}"))
#: Forwards of the user's configuration are not for us; our own one needs a connection of its own.
PLAIN, TUNNEL = ("-o", "ClearAllForwardings=yes"), ("-o", "ControlPath=none")
#: What the login shell there runs. The script comes as the first line of stdin: so no shell, be it csh or
#: fish, has to understand how it is quoted, and no variable of it is to be seen in a list of processes.
COMMAND = """exec sh -c 'IFS= read -r c && eval "$(printf %b "$c")"'"""

#: Exit status of the script where there is no such folder; of `ssh` itself; of a shell without the command.
NO_FOLDER, SSH_FAILED, NOT_FOUND = 96, 255, (126, 127)

#: In what `ssh` writes.
ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")
FORWARD_FAILED = re.compile(r"remote port forwarding failed")
_LOCATION = re.compile(r"(?:tcp:)?(\[[^\]]+\]|[^:,\[\]]+):(\d+)")
_NOISE = re.compile(r"Warning: Permanently added|^\s*$|^@+$")


def ssh_command(ssh: Sequence[str], target: str, forward: str = "") -> list[str]:
    """The command that reaches a host; its stdin takes `first_line` of a script.

    Parameters
    ----------
    ssh : sequence of str
        ``ssh``, with the user's options.
    target : str
        The host.
    forward : str
        For ``-R``, empty for none.
    """
    kind = [*TUNNEL, "-R", forward] if forward else [*PLAIN]
    return [*ssh, *SSH_OPTIONS, *kind, target, COMMAND]


def first_line(script: str) -> str:
    """A script as `COMMAND` reads it."""
    return script.replace("\\", "\\\\").replace("\n", "\\n") + "\n"


def script(host: Host, arguments: Sequence[str], prologue: Sequence[str] = ()) -> str:
    """What the shell there runs: folder, prologue, environment, and in its place `ipengine`."""
    lines = []
    if host.cwd:
        lines.append(f"cd {_path(host.cwd)} || exit {NO_FOLDER}")
    if prologue:
        lines += ["{", *prologue, "} </dev/null"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in host.env]
    if host.python:
        lines.append(f"p={_path(host.python)}")
    else:  # the same one, where there is a shared file system or the same installation
        lines.append(f'p={shlex.quote(sys.executable)}; [ -x "$p" ] || p=python3')
    _, *program = module_command("ipython1.scripts.ipengine")
    lines.append(f'exec "$p" {shlex.join([*program, *arguments])}')
    return "\n".join(lines)


def _path(path: str) -> str:
    """A path quoted; ``~`` means the home there."""
    if path == "~":
        return '"$HOME"'
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def forward_to(furl: str, port: int = 0) -> str:
    """The ``-R`` by which a host reaches the controller of `furl`; port 0: ssh chooses and says which."""
    found = [(match[1], match[2]) for match in _LOCATION.finditer(furl.partition("@")[2].partition("/")[0])]
    if not found:
        raise ValueError("the FURL names no address")
    near = [place for place in found if place[0].startswith("127.") or place[0] in ("localhost", "[::1]")]
    ip, number = (near or found)[0]
    return f"127.0.0.1:{port}:{ip}:{number}"


def through_tunnel(furl: str, port: int) -> str:
    """The FURL, with the near end of the tunnel as its only location."""
    tub, _, rest = furl.partition("@")
    return f"{tub}@tcp:127.0.0.1:{port}/{rest.partition('/')[2]}"


def explain(ssh: Sequence[str], host: Host, status: int, how: str, output: str) -> str:
    """Why a host failed, in words for the user.

    Parameters
    ----------
    ssh : sequence of str
        As for `ssh_command`.
    host : Host
        The host.
    status, how : int, str
        How the command ended, also in words.
    output : str
        What it wrote.
    """
    lines = [line.strip() for line in output.splitlines() if not _NOISE.search(line)]
    last = (lines[-1] if lines else "").removeprefix("ssh: ").rstrip(".")
    login, python = shlex.join([*ssh, host.target]), host.python or "python3"
    said = _first(lines, "Permission denied (", "Too many authentication failures")
    if status == SSH_FAILED and said:
        why = f"{said.rpartition(': ')[2]}. Log in once with: {login}"
    elif "REMOTE HOST IDENTIFICATION HAS CHANGED" in output:
        why = f"its host key is not the known one. If that is right: ssh-keygen -R {host.target}"
    elif "Host key verification failed" in output:
        why = f"its host key is not known. Log in once with: {login}"
    elif _first(lines, "No module named 'ipython1"):
        why = f"{python} there has no ipython1. Install it there, or name another with --python"
    elif status in NOT_FOUND:
        why = f"there is no {python} ({last}). Name one with --python PATH, or python=PATH in the hosts file"
    elif status == NO_FOLDER:
        why = f"there is no folder {host.cwd}"
    elif status == 2 and _first(lines, "No such option", "no such option"):
        why = f"the ipython1 of {python} there is of another version. Install the same one as here"
    elif status == SSH_FAILED and last:
        why = last
    else:
        why = f"{how}: {last.partition('ipengine: ')[2] or last}" if last else how
    return f"host {host.target}: {why}"


def _first(lines: Sequence[str], *words: str) -> str:
    return next((line for line in lines if any(word in line for word in words)), "").rstrip(".")
