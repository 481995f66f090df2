"""Controllers with several addresses, of which others reach some: the hosts are network namespaces."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.wire.tubs import split_furl
from tests.faults.conftest import PATIENCE, until
from tests.faults.conftest import files as files
from tests.faults.hosts import NETWORK, Host, Remote, some_hosts

from .sshd import Keys, Sshd, ssh_config
from .sshd import keys as keys

pytestmark = pytest.mark.timeout(120)

PORT = 10105
#: An address of the controller's host that no packet from elsewhere arrives at.
SWALLOWED = f"{NETWORK}.77"
#: How soon all must have been said.
SOON = 30.0


class Lan:
    """Hosts, and a controller on the first of them."""

    def __init__(self, hosts: list[Host], files: ClusterFiles, log: Path) -> None:
        self.hosts = hosts
        self.files = files
        self.log = log

    def controller(self, *options: str) -> None:
        """Start it, and wait for its FURLs."""
        where = ["--cluster", self.files.cluster, "--no-dashboard", "--port", str(PORT), *options]
        command = [sys.executable, "-m", "ipython1.scripts.ipcontroller", *where]
        process = self.hosts[0].start(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("controller ")

    def furl(self, kind: str) -> str:
        """One of its FURLs."""
        return self.files.furl(kind).read_text().strip()

    def engines(self, host: Host, furl: str, *options: str) -> subprocess.Popen[str]:
        """Two of them, on another host."""
        command = [sys.executable, "-m", "ipython1.scripts.ipengine", "-n", "2", "--furl-stdin", *options]
        folder = self.log / f"{len(host.processes)}-{host.name}"
        folder.mkdir()
        process = host.start(
            [*command, "--log-dir", os.fspath(folder)],
            [self.files.folder],
            stdin=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
        )
        assert process.stdin is not None
        process.stdin.write(furl + "\n")
        process.stdin.flush()
        process.said = lambda: (folder / "stderr").read_text()  # type: ignore[attr-defined]
        return process


@pytest.fixture
def lan(files: ClusterFiles, tmp_path: Path) -> Iterator[Lan]:
    """Three hosts; the first has one more address, and it comes first."""
    with some_hosts(3) as hosts:
        subprocess.run(
            ["ip", "-n", hosts[0].name, "address", "add", f"{SWALLOWED}/32", "dev", "lo"], check=True
        )
        yield Lan(hosts, files, tmp_path)


def test_the_address_that_answers_is_found_though_the_first_swallows_all(lan: Lan) -> None:
    a, b, c = lan.hosts
    lan.controller("--ip", "0.0.0.0")
    addresses = [f"{host}:{PORT}" for host in (SWALLOWED, a.address, "127.0.0.1")]
    assert split_furl(lan.furl("engine"))[1] == addresses
    began = time.monotonic()
    nanny: Any = lan.engines(b, lan.furl("engine"))
    program = Remote(c, [lan.files.folder])
    program.run(f"mec = client.MultiEngineClient({lan.furl('multiengine')!r}); mec.wait_for_engines(2)")
    assert time.monotonic() - began < SOON
    program.run("mec.push({'x': np.arange(100_000)})")
    assert program.get("mec.apply(lambda: int(x.sum()))") == [sum(range(100_000))] * 2
    assert b.connections(a) == 3  # the nanny's and two engines': each is on its lane alone
    until(lambda: c.connections(a) == 1, "the client on its lane")
    assert "not reachable" not in nanny.said()
    began = time.monotonic()
    program.run("mec.close()")
    nanny.terminate()
    assert nanny.wait(PATIENCE) == 0
    assert time.monotonic() - began < SOON


def test_engines_say_for_each_place_what_failed(lan: Lan) -> None:
    a, b, _ = lan.hosts
    lan.controller("--ip", a.address, "--location", "head.invalid")
    furl = lan.furl("engine")
    assert split_furl(furl)[1] == [f"head.invalid:{PORT}", f"{a.address}:{PORT}"]
    head, tail = furl.split("@")[0], furl.rpartition("/")[2]
    places = (f"{a.address}:1", f"{SWALLOWED}:{PORT}", f"head.invalid:{PORT}", "198.51.100.7:5")
    nanny: Any = lan.engines(b, f"{head}@tcp:{',tcp:'.join(places)}/{tail}")
    strange: Any = lan.engines(b, f"pb://{'a' * 32}@tcp:{a.address}:{PORT}/{tail}")
    expected = [
        f"controller at {a.address}:1 not reachable from {b.name}: connection refused",
        f"controller at {SWALLOWED}:{PORT} not reachable from {b.name}: timed out after",
        f"controller at head.invalid:{PORT} not reachable from {b.name}: no host of that name is known here",
        f"controller at 198.51.100.7:5 not reachable from {b.name}: no route to that host",
        "it is tried for 26 s more",
    ]
    until(lambda: "it is tried" in nanny.said(), "the words", SOON)
    said = [line.partition("ipengine: ")[2] for line in nanny.said().splitlines()]
    assert len(said) == len(expected)
    assert all(line.startswith(words) for line, words in zip(said, expected, strict=True))
    assert strange.wait(PATIENCE) == 3
    words = (
        f"controller at {a.address}:{PORT} not reachable from {b.name}: its certificate differs: the FURL is"
    )
    assert re.search(words, strange.said())


def test_a_client_says_it_too(lan: Lan) -> None:
    a, b, _ = lan.hosts
    lan.controller("--ip", "0.0.0.0")
    furl = lan.furl("multiengine").replace(f"{a.address}:{PORT}", f"{a.address}:1")
    program = Remote(b, [lan.files.folder])
    program.run(
        f"""
        try:
            client.MultiEngineClient({furl!r}, timeout=2)
        except client.ConnectionFailed as error:
            text, kind = str(error), type(error).__name__
        """
    )
    words = (
        f"The controller cannot be reached from {b.name}. Tried were {SWALLOWED}:{PORT}: timed out after 2 s"
        f"; {a.address}:1: connection refused; 127.0.0.1:{PORT}: connection refused."
    )
    assert program.get("[kind, text]") == ["Unreachable", words]


def test_client_and_engines_through_a_host_that_alone_reaches_the_controller(
    lan: Lan, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = lan.hosts
    lan.controller()  # on 127.0.0.1
    variables = f"IPYTHON1_DIR={os.environ['IPYTHON1_DIR']} PYTHONPATH={Path(__file__).parents[2]}"
    sshd = Sshd(keys, a.address, 22, [f"SetEnv {variables}"], start=a.start)
    monkeypatch.setenv("IPYTHON1_SSH", f"ssh -F {ssh_config(keys, {'head': (a.address, 22)})}")
    nanny: Any = lan.engines(b, lan.furl("engine"), "--ssh", "head")
    program = Remote(c, [lan.files.folder])
    place = f"ssh://head/{lan.files.cluster}?python={sys.executable}"
    program.run(f"mec = client.MultiEngineClient({place!r}); mec.wait_for_engines(2)")
    program.run("mec.push({'x': np.arange(1_000_000)})")
    assert program.get("mec.apply(lambda: int(x.sum()))") == [sum(range(1_000_000))] * 2
    assert b.connections(a) == c.connections(a) == 1
    assert sshd.cut() > 0
    assert program.get("mec.apply(len, 'back')") == [4, 4]
    program.run("mec.close()")
    nanny.terminate()
    assert nanny.wait(PATIENCE) == 0
    until(lambda: a.connections(b) == a.connections(c) == 0, "no tunnel")
    sshd.stop()
