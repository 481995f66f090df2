"""Which addresses of this host others may find a controller at.

A controller that listens on all addresses writes the ones that others can
reach into its FURLs, the likeliest first; who dials tries all of them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Union

#: Addresses to listen on that nobody can dial.
WILDCARDS = ("", "0.0.0.0", "::")
LOOPBACK = "127.0.0.1"
#: Addresses in a FURL at most, beside the loopback one.
LIMIT = 8
#: An address of the internet that nothing is sent to: which of ours would the packet come from?
ELSEWHERE = ("198.51.100.1", 9)

#: Interfaces of virtual machines and containers. Other hosts rarely reach them, or have the same ones.
_BRIDGES = re.compile(r"docker|br-|virbr|veth|vnet|podman|cni|flannel|cali|lxc|lxd|vboxnet|vmnet|bridge\d")
_PLACE = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")

#: Addresses by the name of their interface.
Table = Mapping[str, Sequence[str]]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def interfaces() -> dict[str, list[str]]:
    """The addresses of this host, for each interface that is up."""
    import psutil  # takes 50 ms, and most controllers listen on one address

    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    internet = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [each.address for each in addresses if each.family in internet]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def outward(towards: tuple[str, int] = ELSEWHERE) -> str:
    """The address that packets to there come from; empty where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(towards)
        except OSError:
            return ""
        name: str = probe.getsockname()[0]
        return name


def reachable(table: Table, first: str = "", ipv6: bool = True) -> list[str]:
    """The addresses that other hosts may reach this one at, the likeliest first.

    IPv4 goes before IPv6, and bridges to virtual machines come last. Link-local ones of IPv4 count
    where there are no others; those of IPv6 say nothing to another host.

    Parameters
    ----------
    table : dict
        What `interfaces` returns.
    first : str
        The one to begin with, if it is among them.
    ipv6 : bool
        Whether those of IPv6 count.
    """
    found: dict[str, tuple[bool, bool, bool]] = {}
    link_local: list[str] = []
    for name, addresses in table.items():
        for address in _parsed(addresses):
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                continue
            text, six = str(address), address.version == 6
            if address.is_link_local:
                link_local += [] if six else [text]
            elif ipv6 or not six:
                found.setdefault(text, (_BRIDGES.match(name) is not None, text != first, six))
    return sorted(found, key=lambda text: found[text])[:LIMIT] or link_local[:LIMIT]


def listening(ip: str, table: Table) -> str:
    """The address to listen on where `ip` may be the name of an interface."""
    addresses = [*_parsed(table.get(ip, ()))]
    for version in (4, 6):
        for address in addresses:
            if address.version == version and (version == 4 or not address.is_link_local):
                return str(address)
    return ip


def is_address(ip: str) -> bool:
    """Whether it is one, or means all of them; else it is a name."""
    try:
        return ip in WILDCARDS or bool(ipaddress.ip_address(ip))
    except ValueError:
        return False


def _parsed(addresses: Iterable[str]) -> Iterable[Address]:
    for text in addresses:
        try:
            yield ipaddress.ip_address(text.partition("%")[0])
        except ValueError:  # no family of ours
            continue


def split_location(text: str) -> list[tuple[str, str]]:
    """Host, and port or '', of each place in `text`: ``host`` or ``host:port``, with commas between.

    Raises
    ------
    ValueError
        One of them is neither, in words for the user.
    """
    places = []
    for part in text.split(","):
        host = f"[{part.strip()}]" if part.count(":") > 1 and "[" not in part else part.strip()
        match = _PLACE.fullmatch(host)
        if match is None or not 0 < int(match[2] or 1) < 65536:
            raise ValueError(f"{part!r} is no location. Give it as HOST or HOST:PORT")
        places.append((match[1], match[2] or ""))
    return places


def places(ip: str, location: str | None, table: Table, first: str = "") -> list[tuple[str, str]]:
    """What stands in the FURLs of a controller that listens on `ip`: hosts, and ports or ''.

    Parameters
    ----------
    ip : str
        An address, or one of `WILDCARDS`.
    location : str, optional
        What the user says of where it is.
    table, first
        As for `reachable`; used where `ip` is a wildcard.

    Raises
    ------
    ValueError
        As for `split_location`.
    """
    everywhere = ip in WILDCARDS
    if location in (None, *WILDCARDS):
        found = reachable(table, first, ipv6=ip == "::") if everywhere else []
        given = [place for text in found for place in split_location(text)]
    else:
        given = split_location(str(location))
    # The processes of this host find it also where a location is for others only.
    own = "::1" if ip == "::" else LOOPBACK if everywhere else ip
    return [*given, *split_location(own)]
