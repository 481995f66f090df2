"""A network namespace that has only loopback: no peer may speak to the outside.

Ray and Open MPI take the host's own address whatever they are told, and open
further ports. In a namespace of its own nothing of that leaves the machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

#: Set in the process that runs in the namespace already, so that it never enters a second one.
MARK = "IPYTHON1_BENCH_ISOLATED"

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


class NotIsolatedError(RuntimeError):
    """This process could reach a network that is not loopback, or cannot be kept from it."""


def up_interfaces() -> list[str]:
    """The network interfaces that are up."""
    return [name for _, name in socket.if_nameindex() if _flags(name) & _IFF_UP]


def outside(interfaces: Sequence[str], routes: str) -> list[str]:
    """The interfaces beside loopback that something can be sent to.

    Parameters
    ----------
    interfaces : sequence of str
        Those that are up.
    routes : str
        The text of ``/proc/net/route``: a heading, and a line a route.
    """
    routed = [line.split()[0] for line in routes.splitlines()[1:] if line.strip()]
    return sorted({*interfaces, *routed} - {"lo"})


def check() -> None:
    """Bring loopback up, and refuse where anything else is.

    Raises
    ------
    NotIsolatedError
    """
    found = outside(up_interfaces(), Path("/proc/net/route").read_text())
    if found:
        raise NotIsolatedError(
            f"The benchmarks run only where loopback is the one network; here is also {', '.join(found)}."
        )
    if not _flags("lo") & _IFF_UP:
        _bring_up("lo")


def enter(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Start ``python -m benchmarks`` anew, in a namespace; never returns.

    Raises
    ------
    NotIsolatedError
        There is no ``unshare``.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        raise NotIsolatedError(
            "The benchmarks need the command unshare (util-linux), to cut off the network."
        )
    command = [unshare, "--net", "--map-root-user", "--", sys.executable, "-m", "benchmarks", *arguments]
    sys.stdout.flush()
    os.execve(unshare, command, {**environment, MARK: "1"})


def _flags(interface: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", interface.encode(), 0))
    return int(struct.unpack("16sh14x", answer)[1])


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(
            sock, _SIOCSIFFLAGS, struct.pack("16sh14x", interface.encode(), _flags(interface) | _IFF_UP)
        )
