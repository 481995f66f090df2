"""The hosts that engines are started on: how they are written, and how engines are shared out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipython1.kernel.error import LaunchError

# No leading dash: ssh would take it for an option.
_TARGET = re.compile(
    r"(?:[A-Za-z0-9_.\\][A-Za-z0-9_.@\\-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]+(?:%\w+)?)"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Host:
    """One host, as a user wrote it.

    Attributes
    ----------
    target : str
        What `ssh` is given: a name, an address or an alias of its configuration, maybe with ``user@``.
    count : int, optional
        How many engines; None: not said.
    python, cwd : str
        The Python and the folder there, empty where not said.
    env : tuple of (str, str)
        Names and values of variables.
    """

    target: str
    count: int | None = None
    python: str = ""
    cwd: str = ""
    env: tuple[tuple[str, str], ...] = ()


def variable(text: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``; raises ValueError for what is none."""
    name, equals, value = text.partition("=")
    if not equals or not _NAME.fullmatch(name) or "\0" in value:
        raise ValueError(f"{text!r} is no variable. Write NAME=VALUE.")
    return name, value


def parse_host(text: str) -> Host:
    """A host as ``name``, ``name:4``, ``user@name:4`` or ``[::1]:4``."""
    start, bracket, rest = text.partition("[")
    if bracket:
        address, closed, rest = rest.partition("]")
        target, colon, count = start + address, rest[:1], rest[1:]
        valid = bool(closed) and colon in ("", ":")
    elif text.count(":") > 1:  # an address of IPv6
        target, colon, count, valid = text, "", "", True
    else:
        target, colon, count = text.partition(":")
        valid = True
    if not valid or not _TARGET.fullmatch(target):
        raise ValueError(f"{text!r} is no host. Write HOST, HOST:4 or USER@HOST:4.")
    if not colon:
        return Host(target)
    if not (count.isascii() and count.isdigit()) or not 0 < int(count) < 100_000:
        raise ValueError(f"{text!r}: the number of engines behind the colon is to be 1 or more.")
    return Host(target, int(count))


def parse_hosts(text: str) -> list[Host]:
    """Hosts separated by commas, as ``--hosts`` has them."""
    hosts = [parse_host(each.strip()) for each in text.split(",") if each.strip()]
    if not hosts:
        raise ValueError("--hosts names no host. Write, for example, --hosts node1:4,node2:8.")
    return hosts


def parse_line(text: str) -> Host | None:
    """A line of a hosts file: ``host[:count] [python=PATH] [cwd=DIR] [NAME=VALUE …]``; None: it is empty."""
    words = shlex.split(text, comments=True)
    if not words:
        return None
    host = parse_host(words[0])
    pairs = [variable(word) for word in words[1:]]
    of_host = {name: value for name, value in pairs if name in ("python", "cwd")}
    env = tuple(pair for pair in pairs if pair[0] not in of_host)
    return Host(host.target, host.count, env=env, **of_host)


def read_hosts(path: Path) -> list[Host]:
    """The hosts in a file, one a line; comments begin with ``#``."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(f"the hosts file {path} cannot be read: {reason}.") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        try:
            host = parse_line(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if host is not None:
            hosts.append(host)
    if not hosts:
        raise ValueError(f"the hosts file {path} names no host.")
    return hosts


def total(hosts: Sequence[Host]) -> int:
    """How many engines they ask for: one each, where they do not say."""
    return sum(1 if host.count is None else host.count for host in hosts)


def share(hosts: Sequence[Host], n: int) -> list[int]:
    """How many of `n` engines each host gets.

    Those with a number get so many, in their order, and the others share what is left evenly.
    """
    left, counts = n, []
    for host in hosts:
        counts.append(min(left, host.count or 0))
        left -= counts[-1]
    open_ones = [index for index, host in enumerate(hosts) if host.count is None]
    if left and not open_ones:
        raise LaunchError(f"{n} engines were asked for, and the hosts take {n - left}.")
    for place, index in enumerate(open_ones):
        counts[index] = left // len(open_ones) + (place < left % len(open_ones))
    return counts
