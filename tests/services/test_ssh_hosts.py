"""``ipcluster --engines ssh`` between hosts of their own, and what becomes of it where the cable is cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from ipython1.kernel.files import ClusterFiles
from tests.faults.conftest import PATIENCE, until
from tests.faults.conftest import files as files
from tests.faults.hosts import Host, Remote, some_hosts
from tests.faults.tally import gone_soon, processes_of

from .sshd import Keys, Sshd, ssh_config
from .sshd import keys as keys

IPCLUSTER = [sys.executable, "-m", "ipython1.scripts.ipcluster"]


class Scene:
    """A head with a cluster over ssh on the others, and a client.

    Parameters
    ----------
    head, others : Host
        The first has `ipcluster`, the others a server each.
    files : ClusterFiles
        The cluster.
    keys : Keys
    options : str
        Further options of ``ipcluster start``.
    """

    def __init__(
        self, head: Host, others: list[Host], files: ClusterFiles, keys: Keys, *options: str
    ) -> None:
        self.head, self.others, self.files = head, others, files
        self.homes = [files.root / f"home-{host.address}" for host in others]
        files.create()
        self.servers = [
            Sshd(keys, host.address, 22, start=lambda command, host=host: host.start(command, [files.folder]))
            for host in others
        ]
        config = ssh_config(keys, {f"node{i}": (server.address, 22) for i, server in enumerate(self.servers)})
        # The user's options come first, and count.
        ssh = f"ssh -F {config} -o ServerAliveInterval=1 -o ServerAliveCountMax=2 -o ConnectTimeout=2"
        lines = [f"node{i}:2 IPYTHON1_DIR={home}" for i, home in enumerate(self.homes)]
        hosts = keys.folder / "hosts"
        hosts.write_text("\n".join(lines))
        start = ["start", "--cluster", files.cluster, "--port", "0", "--no-dashboard", "--engines", "ssh"]
        start += ["--hosts-file", os.fspath(hosts), "--ssh", ssh, *options]
        self.errors = keys.folder / "ipcluster.err"
        with self.errors.open("w") as errors:
            self.process = head.start([*IPCLUSTER, *start], stdout=subprocess.PIPE, stderr=errors)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("stop "):
                break
        else:
            pytest.fail(self.said())
        self.client = Remote(head, [])
        self.client.run(f"mec = client.MultiEngineClient({os.fspath(files.furl('multiengine'))!r})")

    def said(self) -> str:
        """What `ipcluster` wrote to stderr."""
        return self.errors.read_text()

    def there(self) -> list[psutil.Process]:
        """What runs on the others."""
        return [process for home in self.homes for process in processes_of(home)]

    def stop(self) -> None:
        """Stop the cluster; nothing is left on the other hosts."""
        self.client.run("mec.close()")
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.said()
        assert gone_soon(self.there) == []
        for home in self.homes:
            left = [path for path in home.rglob("*") if not path.is_dir() and "log" not in path.parts]
            assert left == []


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Three of them."""
    with some_hosts(3) as hosts:
        yield hosts


def end(scene: Scene) -> None:
    """Whatever happened: end what is left."""
    for server in scene.servers:
        server.stop()
    for process in scene.there():
        process.kill()


@pytest.mark.parametrize("options", [(), ("--tunnel",)], ids=["direct", "tunnel"])
def test_a_cut_cable_heals(
    hosts: list[Host], files: ClusterFiles, keys: Keys, options: tuple[str, ...]
) -> None:
    head, *others = hosts
    scene = Scene(head, others, files, keys, "--engine-grace", "60", *options)
    try:
        client = scene.client
        assert client.get("mec.get_ids()") == [0, 1, 2, 3]
        client.run("import os; mec.execute('kept = 7'); pids = mec.apply(os.getpid)")
        others[1].set(loss=1.0)
        client.run("pending = mec.execute('kept += 1', block=False)")
        until(
            lambda: "host node1: " in scene.said() and "The ssh channel is lost" in scene.said(), "the loss"
        )
        time.sleep(2)  # longer than a retransmission
        others[1].set(loss=0.0)
        until(lambda: "host node1 is back; its engines went on." in scene.said(), "the host")
        client.run("pending.result(60)")
        assert client.get("mec.pull('kept')") == [8] * 4
        assert client.get("mec.apply(os.getpid) == pids")
        scene.stop()
        assert "node0" not in scene.said()
    finally:
        end(scene)


def test_a_host_that_cannot_be_told_to_stop_is_named(
    hosts: list[Host], files: ClusterFiles, keys: Keys
) -> None:
    head, *others = hosts
    scene = Scene(head, others, files, keys, "--controller-grace", "3", "--dead-link-after", "2")
    try:
        others[1].set(loss=1.0)
        scene.process.send_signal(signal.SIGTERM)
        assert scene.process.wait(PATIENCE) == 0
        assert len(scene.there()) == 4  # a nanny, its agent and two engines
        others[1].set(loss=0.0)  # else the last attempt to dial takes its time
        until(lambda: not scene.there(), "the end of the engines, by themselves")
        assert "host node1 could not be told to stop" in scene.said()
    finally:
        end(scene)
