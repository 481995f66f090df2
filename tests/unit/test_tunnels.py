"""Places beyond ssh, the command lines for them, and ssh's failures in words."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.error import BadFURL, NoFURLFile, TunnelFailed
from ipython1.kernel.wire import tunnels
from ipython1.kernel.wire.sshwatch import in_words
from ipython1.kernel.wire.tunnels import (
    Gateway,
    Place,
    Tunnel,
    fetch_furl,
    open_tunnel,
    parse_gateway,
    parse_place,
)

FURL = f"pb://{'a' * 32}@tcp:127.0.0.1:10105/{'b' * 32}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head", Gateway("head")),
        ("me@head.example.org", Gateway("head.example.org", "me")),
        ("me@10.0.0.5:2222", Gateway("10.0.0.5", "me", 2222)),
        ("ssh://me@head:22", Gateway("head", "me", 22)),
        ("ssh://Alias/", Gateway("Alias")),
        ("[fd00::5]:22", Gateway("fd00::5", "", 22)),
    ],
)
def test_gateways(text: str, expected: Gateway) -> None:
    assert parse_gateway(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "me@-v",
        "-me@head",
        "a b",
        "head;ls",
        "head:70000",
        "head:x",
        "a@b@c",
        "h\n",
        "$(ls)",
    ],
)
def test_no_gateway(text: str) -> None:
    with pytest.raises(
        BadFURL, match=r"is no host to log in to with ssh\. Give it as \[user@\]host\[:port\]"
    ):
        parse_gateway(text)


@given(st.one_of(st.text(), st.from_regex(r"([-a-z$;@.]{0,5}@)?[-a-z$;.]{1,8}(:[0-9]{1,6})?")))
def test_what_is_given_to_ssh_is_never_an_option(text: str) -> None:
    try:
        gateway = parse_gateway(text)
    except BadFURL:
        return
    assert not str(gateway).startswith("-")
    assert not gateway.host.startswith("-")
    assert not set(str(gateway)) & set(" ;$`|&<>\n\"'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://head", Place(Gateway("head"))),
        ("ssh://head/", Place(Gateway("head"))),
        ("ssh://me@head:22/mine", Place(Gateway("head", "me", 22), "mine")),
        ("ssh://head/?python=/opt/v/bin/python", Place(Gateway("head"), "", "/opt/v/bin/python")),
        ("ssh://head/mine?python=~/my%20v/bin/python", Place(Gateway("head"), "mine", "my v/bin/python")),
        ("ssh://head?python=python3", Place(Gateway("head"), "", "python3")),
    ],
)
def test_places(text: str, expected: Place) -> None:
    assert parse_place(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ssh://",
        "ssh:///mine",
        "ssh://head/a/b",
        "ssh://head/mi ne",
        "ssh://head/?shell=x",
        "ssh://-v/",
        "ssh://h/$(x)",
    ],
)
def test_no_place(text: str) -> None:
    with pytest.raises(BadFURL):
        parse_place(text)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPYTHON1_SSH", raising=False)
    command = Gateway("head", "me", 2222).command(9.6, "-N", "me@head")
    assert command[0] == "ssh"
    assert command[-3:] == ["-p2222", "-N", "me@head"]
    assert {"-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5"} < set(command)
    monkeypatch.setenv("IPYTHON1_SSH", "ssh -F '/my config'")
    assert Gateway("head").command(1.0)[:3] == ["ssh", "-F", "/my config"]


class Far:
    """What `subprocess.run` finds there."""

    def __init__(self, status: int = 0, said: str = "", errors: str = "") -> None:
        self.answer = status, said.encode(), errors.encode()
        self.command: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.command = command
        return subprocess.CompletedProcess(command, *self.answer)


def fetch(far: Far, monkeypatch: pytest.MonkeyPatch, place: str = "ssh://me@head/mine") -> str:
    monkeypatch.setattr(subprocess, "run", far)
    return fetch_furl(parse_place(place), "task", "other", 10.0)


def test_a_furl_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(0, f"Welcome to head!\n{FURL}\n")
    assert fetch(far, monkeypatch) == FURL
    assert far.command[-2:] == ["me@head", "ipcluster furl task --cluster mine"]
    fetch(far, monkeypatch, "ssh://head?python=my%20v/python")
    assert far.command[-1] == "'my v/python' -m ipython1.scripts.ipcluster furl task --cluster other"


@pytest.mark.parametrize(
    ("far", "place", "kind", "words"),
    [
        (
            Far(3, "", "ipcluster: no"),
            "ssh://head/mine",
            NoFURLFile,
            "There is no cluster 'mine' on head. Look there",
        ),
        (
            Far(127, "", "sh: not found"),
            "ssh://head",
            TunnelFailed,
            "ipcluster is not found there. Name its Python",
        ),
        (
            Far(127, "", "sh: py: not found"),
            "ssh://head?python=py",
            TunnelFailed,
            "py -m ipython1.scripts.ipcluster fails",
        ),
        (Far(1, "", "ImportError: x"), "ssh://head", TunnelFailed, "ipcluster fails there: ImportError: x"),
        (Far(0, "hello"), "ssh://head", TunnelFailed, "ipcluster fails there: ssh ended with exit status 0"),
        (
            Far(255, "", "Permission denied (publickey).\n"),
            "ssh://me@head",
            TunnelFailed,
            "Log in once with: ssh me@head",
        ),
    ],
)
def test_no_furl_there(
    far: Far, place: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(kind) as caught:
        fetch(far, monkeypatch, place)
    assert words in str(caught.value)


def test_no_answer_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("ssh", 20)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(TunnelFailed, match="no tunnel through head: no answer within 20 s"):
        fetch_furl(parse_place("ssh://head"), "task", "default", 10.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "ssh ended with exit status 255"),
        (
            "ssh: Could not resolve hostname h: Name or service not known\n",
            "Could not resolve hostname h: Name or",
        ),
        (
            "Warning: Permanently added 'h' to the known hosts.\nme@h: Permission denied (publickey).",
            "Permission denied (publickey). Log in once with: ssh h",
        ),
        (
            "@@@@\nHost key for h has changed\nHost key verification failed.\r\n",
            "Host key verification failed. Log in once",
        ),
        ("** WARNING: not quantum safe\n", "ssh ended with exit status 255"),
        ("Timeout, server h not responding.\n", "Timeout, server h not responding"),
        (
            "bind [127.0.0.1]:8888: Address already in use\nCould not request local forwarding.",
            "Could not request local",
        ),
    ],
)
def test_ssh_in_words(said: str, words: str) -> None:
    assert in_words(said.splitlines(), 255, "h").startswith(words)


def test_no_name_means_no_tunnel() -> None:
    assert open_tunnel(None, ["a:1"]) is None
    with pytest.raises(BadFURL):
        open_tunnel("-v", ["a:1"])


def test_a_tunnel_that_is_not_open() -> None:
    tunnel = Tunnel(Gateway("head"), ["a:1"])
    assert (tunnel.routes, tunnel.words()) == ({}, "")
    tunnel.close()
    assert tunnel.words() == ""


def test_sockets_have_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tunnels.tempfile, "tempdir", str(deep))
    folder = tunnels._folder()
    try:
        assert folder.parent != deep
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(deep.iterdir()) == []
    finally:
        folder.rmdir()
