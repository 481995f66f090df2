"""A real OpenSSH server that a test runs itself: own port, own keys, own configuration, all in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.conftest import PATIENCE, lives, until

REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
#: sshd wants this folder to be there, whoever runs it.
PRIVSEP = Path("/run/sshd")


def tool(name: str) -> str:
    """The path of one of OpenSSH's programs; the test is skipped where it is not there."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if path is None:
        if REQUIRED:
            pytest.fail(f"there is no {name}: apt install openssh-server openssh-client")
        pytest.skip(f"there is no {name}")
    return path


def make_key(path: Path) -> Path:
    """A key pair without a passphrase."""
    subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", os.fspath(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


class Keys:
    """A client's key that servers take, the servers' own, and one that nobody takes.

    Parameters
    ----------
    folder : Path
        Where they are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.client = make_key(folder / "client")
        self.host = make_key(folder / "host")
        self.stranger = make_key(folder / "stranger")
        self.authorized = folder / "authorized_keys"
        shutil.copy(folder / "client.pub", self.authorized)
        self.authorized.chmod(0o600)
        self.known = folder / "known_hosts"
        self.known.write_text("* " + (folder / "host.pub").read_text())


class Sshd:
    """A server.

    Parameters
    ----------
    keys : Keys
    address : str
        To listen on.
    port : int
    options : sequence of str
        Further lines of its configuration.
    start : callable, optional
        Starts its command, where that is not to be here: `Host.start` of another host.
    """

    def __init__(
        self,
        keys: Keys,
        address: str = "127.0.0.1",
        port: int = 0,
        options: Sequence[str] = (),
        start: Callable[[list[str]], subprocess.Popen[Any]] | None = None,
    ) -> None:
        sshd = tool("sshd")
        self.keys, self.address = keys, address
        self.port = port or _free_port(address)
        name = f"{address}-{self.port}"
        self.log = keys.folder / f"sshd-{name}.log"
        config = keys.folder / f"sshd-{name}.conf"
        text = f"""
            Port {self.port}
            ListenAddress {address}
            HostKey {keys.host}
            AuthorizedKeysFile {keys.authorized}
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            PermitUserEnvironment no
            LogLevel VERBOSE
        """
        config.write_text(textwrap.dedent(text) + "\n".join([*options, ""]))
        if os.geteuid() == 0:
            PRIVSEP.mkdir(mode=0o755, exist_ok=True)
        command = [sshd, "-D", "-f", os.fspath(config), "-E", os.fspath(self.log)]
        self.process = start(command) if start else subprocess.Popen(command, start_new_session=True)
        until(self._listens, "an sshd that listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.log.exists() and "Server listening on" in self.log.read_text()

    def sessions(self) -> list[psutil.Process]:
        """The processes of its sessions."""
        try:
            children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if child.name().startswith("sshd")]

    def cut(self) -> int:
        """Kill its sessions, and nothing else; how many there were."""
        sessions = self.sessions()
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                session.kill()
        return len(sessions)

    def stop(self) -> None:
        """End it and its sessions."""
        self.cut()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def ssh_config(keys: Keys, hosts: dict[str, tuple[str, int]], lines: Sequence[str] = ()) -> Path:
    """A configuration of `ssh` in which the names `hosts` mean addresses and ports."""
    parts = [
        "\n".join((f"Host {name}", f"  HostName {address}", f"  Port {port}"))
        for name, (address, port) in hosts.items()
    ]
    everywhere = f"""
        Host *
          User {getpass.getuser()}
          IdentityFile {keys.client}
          IdentitiesOnly yes
          UserKnownHostsFile {keys.known}
          GlobalKnownHostsFile /dev/null
          HashKnownHosts no
          StrictHostKeyChecking yes
    """
    path = keys.folder / f"config-{'-'.join(hosts)}"
    path.write_text("\n".join([*parts, *lines, textwrap.dedent(everywhere)]))
    return path


@pytest.fixture(scope="module")
def keys(ipython1_dir: Path) -> Keys:
    """Keys of this test module."""
    return Keys(ipython1_dir / "keys")


@pytest.fixture(scope="module")
def sshd(keys: Keys) -> Iterator[Sshd]:
    """A server on a port of the loopback interface."""
    server = Sshd(keys)
    try:
        yield server
    finally:
        server.stop()
        assert not any(map(lives, server.sessions()))
