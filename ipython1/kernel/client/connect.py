"""From what the user gives to a controller: which FURL is meant, and the connection to it."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ipython1.kernel.error import BadFURL, NoFURLFile, WouldBlockReactor
from ipython1.kernel.files import ClusterFiles, known_clusters

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore

#: Names the FURL, or the path of the FURL file, to use where none is given.
FURL_VARIABLE = "IPYTHON1_FURL"
DEFAULT_CLUSTER = "default"

#: What names a controller: a FURL, the path of a FURL file, (host, port), or ssh://host/cluster.
FURLSpec = Union[str, "os.PathLike[str]", tuple[str, int], None]

_SCHEME = "pb://"
_SSH = "ssh://"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _named(furl: FURLSpec, cluster: str) -> FURLSpec:
    """What was given, else the variable, where no other cluster is meant."""
    if furl is None and cluster == DEFAULT_CLUSTER:
        return os.environ.get(FURL_VARIABLE) or None
    return furl


def find_furl(furl: FURLSpec = None, *, kind: str = "multiengine", cluster: str = DEFAULT_CLUSTER) -> str:
    """The FURL that is meant.

    Parameters
    ----------
    furl : str, path or (host, port), optional
        A FURL; the path of a FURL file; the address of a cluster whose FURL
        file is known here. Nothing: the variable ``IPYTHON1_FURL``, else the
        FURL file of `cluster`.
    kind : {'multiengine', 'task', 'engine', 'view'}
        Which of a cluster's FURL files to use.
    cluster : str
        Name of the cluster.

    Raises
    ------
    NoFURLFile
        There is no such file; the message names the paths.
    BadFURL
        What was given, or stands in the file, is no FURL.
    """
    furl = _named(furl, cluster)
    if furl is None:
        return _from_file(ClusterFiles(cluster).furl(kind))
    if isinstance(furl, str):
        return _from_text(furl)
    if isinstance(furl, os.PathLike):
        return _from_file(Path(furl))
    host, port = _address(furl)
    return _at_address(host, port, kind, cluster)


def _from_text(text: str) -> str:
    text = text.strip()
    if text.startswith(_SCHEME):
        return _checked(text)
    if text.startswith(_SSH):
        raise BadFURL("A cluster on another host, as in ssh://host/cluster, is for clients only.", furl=text)
    path = Path(text).expanduser()
    looks_like_path = text.endswith(".furl") or os.sep in text
    if not text or not (looks_like_path or path.exists()):
        raise BadFURL(furl=repr(text))
    return _from_file(path)


def _from_file(path: Path) -> str:
    path = path.expanduser()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise NoFURLFile(paths=os.fspath(path)) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise BadFURL(furl=os.fspath(path)) from None
    if not text.startswith(_SCHEME):
        raise BadFURL(furl=f"What stands in {path}")
    return _checked(text)


def _checked(furl: str) -> str:
    from ipython1.kernel.wire.tubs import split_furl  # imports foolscap: only when it connects

    split_furl(furl)
    return furl


def _address(pair: Any) -> tuple[str, int]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        host, port = pair
        if isinstance(host, str) and isinstance(port, int) and not isinstance(port, bool):
            return host, port
    raise BadFURL(furl=repr(pair))


def _at_address(host: str, port: int, kind: str, cluster: str) -> str:
    """The newest FURL file known here whose location is this address."""
    clusters = known_clusters() if cluster == DEFAULT_CLUSTER else [cluster]
    paths = [ClusterFiles(name).furl(kind) for name in clusters] or [ClusterFiles(cluster).furl(kind)]
    found: list[tuple[float, str]] = []
    for path in paths:
        try:
            furl, written = _from_file(path), path.stat().st_mtime
        except (NoFURLFile, BadFURL, OSError):
            continue  # not ours to read, or half of a cluster: another file may fit
        if _has_location(furl, host, port):
            found.append((written, furl))
    if not found:
        looked = ", ".join(map(os.fspath, paths))
        raise NoFURLFile(
            f"No FURL file here is of a cluster at {host}:{port} (looked at {looked}). "
            "Start the cluster, or give the path of a copy of its FURL file.",
            paths=looked,
        )
    return max(found)[1]


def _has_location(furl: str, host: str, port: int) -> bool:
    from ipython1.kernel.wire.tubs import split_furl

    _, locations, _ = split_furl(furl)
    return any(
        number == str(port) and (name == host or {name, host} <= _LOOPBACK)
        for name, number in map(_host_and_port, locations)
    )


def _host_and_port(location: str) -> tuple[str, str]:
    """Of a connection hint: 'tcp:host:port' or 'host:port', IPv6 in brackets."""
    rest, _, port = location.rpartition(":")
    return rest.removeprefix("tcp:").strip("[]"), port


def _open(
    furl: FURLSpec, cluster: str, timeout: float, kind: str = "multiengine", ssh: str | None = None
) -> ClientCore:
    """A core that is connected.

    Raises
    ------
    ConnectionFailed
        One of its kinds.
    """
    from ipython1.kernel.client.bridge import get_bridge
    from ipython1.kernel.client.core import ClientCore
    from ipython1.kernel.wire.arena import Arena
    from ipython1.kernel.wire.links import FoolscapDialer
    from ipython1.kernel.wire.shared import SharedMemory
    from ipython1.kernel.wire.tubs import split_furl
    from ipython1.kernel.wire.tunnels import Tunnel, fetch_furl, parse_gateway, parse_place

    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}.")
    timeout = float(timeout)
    furl = _named(furl, cluster)
    place = parse_place(furl) if isinstance(furl, str) and furl.strip().startswith(_SSH) else None
    gateway = parse_gateway(ssh) if ssh is not None else place.gateway if place is not None else None
    if gateway is not None and get_bridge().in_reactor_thread():
        raise WouldBlockReactor()
    if place is None:
        found = find_furl(furl, kind=kind, cluster=cluster)
    else:
        found = _checked(fetch_furl(place, kind, cluster, timeout))
    tunnel = Tunnel(gateway, split_furl(found)[1]).open(timeout) if gateway is not None else None
    bridge = get_bridge()
    dialer = FoolscapDialer(found, connect_timeout=timeout, tunnel=tunnel)
    core = ClientCore(bridge.reactor, bridge, dialer, kind, SharedMemory(Arena()))
    opened = core.open()
    try:
        core.wait(opened, None)  # the dialer keeps to the timeout
        opened.result()
    except BaseException:
        core.close()
        raise
    return core
