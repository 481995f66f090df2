"""Which addresses stand in the FURLs of a controller that listens on all of them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.wire.addresses import (
    LIMIT,
    interfaces,
    is_address,
    listening,
    places,
    reachable,
    split_location,
)

TABLE = {
    "lo": ["127.0.0.1", "::1"],
    "docker0": ["172.17.0.1"],
    "br-5e1f": ["172.18.0.1", "fd00:18::1"],
    "eth0": ["10.0.0.5", "fd00::5", "fe80::5%eth0"],
    "ib0": ["192.168.7.5"],
    "tun0": ["10.8.0.2"],
}


def test_ipv4_first_and_bridges_last() -> None:
    assert reachable(TABLE) == [
        "10.0.0.5",
        "192.168.7.5",
        "10.8.0.2",
        "fd00::5",
        "172.17.0.1",
        "172.18.0.1",
        "fd00:18::1",
    ]


def test_the_way_out_comes_first_unless_it_is_a_bridge() -> None:
    assert reachable(TABLE, "192.168.7.5", ipv6=False)[:2] == ["192.168.7.5", "10.0.0.5"]
    assert reachable(TABLE, "172.17.0.1", ipv6=False)[:1] == ["10.0.0.5"]
    assert reachable(TABLE, "1.2.3.4", ipv6=False)[:1] == ["10.0.0.5"]


def test_link_local_only_where_there_is_nothing_else() -> None:
    assert reachable({"eth0": ["169.254.7.7", "fe80::1%eth0"], "eth1": ["10.0.0.1"]}) == ["10.0.0.1"]
    assert reachable({"eth0": ["169.254.7.7", "fe80::1%eth0"]}) == ["169.254.7.7"]
    assert reachable({"eth0": ["fe80::1%eth0"], "lo": ["127.0.0.1"]}) == []


def test_there_are_not_too_many() -> None:
    assert len(reachable({"eth0": [f"10.0.0.{i}" for i in range(1, 100)]})) == LIMIT


@given(
    st.dictionaries(
        st.sampled_from([*TABLE, "x"]), st.lists(st.one_of(st.text(), st.ip_addresses().map(str)))
    )
)
def test_what_is_named_can_be_reached(table: dict[str, list[str]]) -> None:
    found = reachable(table)
    parsed = [ipaddress.ip_address(text) for text in found]
    assert len(set(found)) == len(found) <= LIMIT
    assert not any(each.is_loopback or each.is_multicast or each.is_unspecified for each in parsed)
    assert not any(each.is_link_local and each.version == 6 for each in parsed)


@pytest.mark.parametrize(
    ("ip", "location", "expected"),
    [
        ("127.0.0.1", None, ["127.0.0.1"]),
        ("10.0.0.5", None, ["10.0.0.5"]),
        ("::1", None, ["[::1]"]),
        ("0.0.0.0", None, ["10.0.0.5", "127.0.0.1"]),
        ("::", None, ["10.0.0.5", "[fd00::5]", "[::1]"]),
        ("0.0.0.0", "head:7", ["head", "127.0.0.1"]),
        ("10.0.0.5", "a,b", ["a", "b", "10.0.0.5"]),
        ("0.0.0.0", "0.0.0.0", ["10.0.0.5", "127.0.0.1"]),
        ("127.0.0.1", "gate", ["gate", "127.0.0.1"]),
    ],
)
def test_places(ip: str, location: str | None, expected: list[str]) -> None:
    table = {"eth0": ["10.0.0.5", "fd00::5"], "lo": ["127.0.0.1"]}
    found = list(dict.fromkeys(host for host, _ in places(ip, location, table)))
    assert found == expected


def test_a_host_without_a_network() -> None:
    assert places("0.0.0.0", None, {"lo": ["127.0.0.1"]}) == [("127.0.0.1", "")]


def test_a_location_has_its_own_port() -> None:
    assert split_location("gate:20000,::1,[::2]:7") == [("gate", "20000"), ("[::1]", ""), ("[::2]", "7")]


@pytest.mark.parametrize("text", ["two words", "host:", "host:70000", "a,,b", ""])
def test_no_location(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no location\. Give it as HOST or HOST:PORT"):
        split_location(text)


def test_an_interface_stands_for_its_address() -> None:
    assert listening("eth0", TABLE) == "10.0.0.5"
    assert listening("six", {"six": ["fe80::1%six", "fd00::6"]}) == "fd00::6"
    assert listening("10.0.0.5", TABLE) == "10.0.0.5"
    assert listening("eth9", TABLE) == "eth9"
    assert [is_address(each) for each in ("10.0.0.5", "::", "", "fd00::1", "eth0")] == [True] * 4 + [False]


def test_this_host_has_a_loopback() -> None:
    assert any("127.0.0.1" in addresses for addresses in interfaces().values())
