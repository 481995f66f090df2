"""``ipcluster --engines ssh`` with real OpenSSH servers, which are on this machine: hosts in all but name."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ipython1.kernel.files import ClusterFiles
from tests.faults.conftest import Rig, until
from tests.faults.conftest import files as files
from tests.faults.tally import gone_soon, processes_of

from .sshd import Keys, Sshd, ssh_config
from .sshd import keys as keys

#: What a nanny leaves on a host: the logs of what had something to say.
KEPT = re.compile(r"log/(engine-\w+\.(log|out)|ipengine-.*\.out)")


@pytest.fixture(scope="module")
def servers(keys: Keys) -> Iterator[dict[str, Sshd]]:
    """Two of them, each a host for us."""
    servers: dict[str, Sshd] = {}
    try:
        servers["one"] = Sshd(keys, "127.0.0.1")
        servers["two"] = Sshd(keys, "127.0.0.2")
        yield servers
    finally:
        for server in servers.values():
            server.stop()


class Far:
    """Where the clusters of one test run.

    Parameters
    ----------
    files : ClusterFiles
        The cluster here.
    servers : dict
        By the names under which they are reached.
    """

    def __init__(self, files: ClusterFiles, servers: dict[str, Sshd]) -> None:
        self.files = files
        self.servers = servers
        self.keys = next(iter(servers.values())).keys
        hosts = {name: (server.address, server.port) for name, server in servers.items()}
        self.config = ssh_config(self.keys, hosts)
        self.rigs: list[Rig] = []

    def home(self, name: str) -> Path:
        """The IPYTHON1_DIR of a host."""
        return self.files.root / f"home-{name}"

    def start(self, *lines: str, options: Sequence[str] = ()) -> Rig:
        """A cluster on the hosts that the lines of a hosts file name, each with a home of its own."""
        text = [f"{line} IPYTHON1_DIR={self.home(re.split('[: ]', line)[0])}" for line in lines]
        file = self.files.root / "hosts"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(["# hosts of a test", "", *text]))
        command = f"ssh -F {self.config}"
        rig = Rig(
            self.files,
            [
                "--engines",
                "ssh",
                "--hosts-file",
                os.fspath(file),
                "--ssh",
                command,
                "--no-dashboard",
                *options,
            ],
        )
        self.rigs.append(rig)
        return rig

    def processes(self) -> set[psutil.Process]:
        """What runs there."""
        return {process for name in self.servers for process in processes_of(self.home(name))}

    def nanny(self, name: str) -> psutil.Process:
        """The nanny of a host."""
        [nanny] = [p for p in processes_of(self.home(name)) if "--channel" in p.cmdline() and _leads(p)]
        return nanny

    def left(self) -> list[Any]:
        """What should not be there any more."""
        found: list[Any] = list(self.processes())
        for name in self.servers:
            home = self.home(name)
            found += [
                path
                for path in home.rglob("*")
                if not path.is_dir() and not KEPT.search(os.fspath(path.relative_to(home)))
            ]
        return found


def _leads(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is None or "--channel" not in parent.cmdline()


@pytest.fixture
def far(files: ClusterFiles, servers: dict[str, Sshd], reactor_thread: object) -> Iterator[Far]:
    """The hosts; nothing is left on them after the test."""
    far = Far(files, servers)
    try:
        yield far
        for rig in far.rigs:
            rig.stop()
        assert gone_soon(far.left) == []
    finally:
        for rig in far.rigs:
            rig.destroy()
            for log in rig.files.log.glob("*.out"):  # pytest shows it where the test fails
                print(f"--- {log.name}\n{log.read_text()}")
        for process in far.processes():
            process.kill()


def test_a_cluster_on_two_hosts(far: Far, tmp_path: Path) -> None:
    options = ["-n", "3", "--prologue", "export C=2", "--env", "B=y", "--env", "D='\\n"]
    rig = far.start(f"one:2 cwd={tmp_path} A='one way'", "two B=x", options=options).ready()
    mec = rig.client()
    assert mec.get_ids() == [0, 1, 2]
    mec.execute("import os; found = os.getcwd(), *[os.environ.get(name) for name in 'ABCD']", block=True)
    found = sorted(mec.pull("found"), key=str)
    one = (os.fspath(tmp_path), "one way", "y", "2", "'\\n")
    assert [each for each in found if each[1]] == [one, one]
    assert [each[1:] for each in found if not each[1]] == [(None, "x", "2", "'\\n")]
    array = np.arange(300_000.0)
    mec.push({"array": array})
    assert all((each == array).all() for each in mec.pull("array"))
    assert mec.apply(os.getppid)[0] in {far.nanny("one").pid, far.nanny("two").pid}
    mec.scale(5)
    mec.wait_for_engines(5)
    assert len(set(mec.apply(os.getpid))) == 5
    mec.scale(3)
    until(lambda: len(mec.get_ids()) == 3, "fewer engines")
    rig.stop()
    far.rigs.remove(rig)
    assert [path for name in far.servers for path in far.home(name).rglob("*") if path.is_file()] == []
    assert rig.said() == ""


def test_the_furl_is_on_no_command_line_and_in_no_file_there(far: Far) -> None:
    rig = far.start("one:1").ready()
    secret = far.files.furl("engine").read_text().strip().rpartition("/")[2]
    assert rig.client().apply(os.getpid)
    for process in [*psutil.process_iter()]:
        try:
            said = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        assert not any(secret in word for word in said)
    files = [path for path in far.home("one").rglob("*") if path.is_file()]
    assert files == [] or not any(secret in path.read_text() for path in files)


def test_a_broken_channel_does_not_touch_the_engines(far: Far) -> None:
    rig = far.start("one:1", "two:2").ready()
    mec = rig.client()
    mec.execute("kept = 7")
    pids = mec.apply(os.getpid)
    pending = mec.execute("import time; time.sleep(1); kept += 1", block=False)
    assert far.servers["two"].cut() > 0
    pending.result(30)
    assert mec.pull("kept") == [8, 8, 8]
    assert mec.apply(os.getpid) == pids
    until(far.servers["two"].sessions, "the channel is back")


def test_engines_of_a_killed_nanny_are_started_again(far: Far) -> None:
    rig = far.start("one:1", "two:2").ready()
    mec = rig.client()
    before = set(mec.apply(os.getpid))
    far.nanny("two").kill()
    until(lambda: "host two: its engines are gone. They are started again." in rig.said(), "news")
    until(lambda: len(mec.get_ids()) == 3 and len(set(mec.apply(os.getpid)) - before) == 2, "new engines")


def test_without_restart_they_are_not(far: Far) -> None:
    rig = far.start("one:1", "two:2", options=["--no-restart"]).ready()
    far.nanny("two").kill()
    until(lambda: "host two: its engines are gone, and are not started again." in rig.said(), "news")
    until(lambda: len(rig.client().get_ids()) == 1, "the end of the others")


def test_engines_end_when_all_here_was_killed(far: Far) -> None:
    rig = far.start("one:1", "two:1", options=["--controller-grace", "3"]).ready()
    there = far.processes()
    assert len(there) == 6  # a nanny, its agent and an engine each
    far.rigs.remove(rig)
    try:
        rig.kill(rig.process.pid, signal.SIGKILL)
        assert gone_soon(lambda: list(far.processes())) == []  # within 10 s
    finally:
        rig.destroy()


def test_hosts_that_fail_are_named_and_the_others_go_on(far: Far) -> None:
    keys, [server, _] = far.keys, far.servers.values()
    here = ("127.0.0.1", server.port)
    hosts = dict.fromkeys(("one", "stranger", "unknown", "nopython", "nofolder", "bare"), here)
    lines = [
        "Host unknown",
        "  UserKnownHostsFile /dev/null",
        "Host nowhere",
        "  HostName no-such-host.invalid",
    ]
    lines += ["Host stranger", f"  IdentityFile {keys.stranger}"]
    far.config = ssh_config(keys, {**hosts, "closed": ("127.0.0.1", 1)}, lines)
    client = f"  IdentityFile {keys.client}"  # would be tried as well
    text = far.config.read_text().replace(client, "")
    far.config.write_text(f"{text}\nHost * !stranger\n{client}\n")
    python = Path(sys.base_prefix) / "bin" / "python3"
    rig = far.start(
        "one:1",
        *("stranger:1", "unknown:1", "closed:1", "nowhere:1"),
        "nopython:1 python=/no/such/python",
        "nofolder:1 cwd=/no/such/folder",
        f"bare:1 python={python}",
    ).ready()
    said = rig.said()
    login = f"Log in once with: ssh -F {far.config}"
    for words in (
        f"host stranger: Permission denied (publickey). {login} stranger.",
        f"host unknown: its host key is not known. {login} unknown.",
        "host closed: connect to host 127.0.0.1 port 1: Connection refused.",
        "host nowhere: Could not resolve hostname no-such-host.invalid: ",
        "host nopython: there is no /no/such/python",
        "host nofolder: there is no folder /no/such/folder.",
        f"host bare: {python} there has no ipython1. Install it there, or name another with --python.",
        "some engines did not come up",
    ):
        assert words in said, said
    assert rig.client().apply(int) == [0]


def test_where_all_hosts_fail_there_is_no_cluster(far: Far) -> None:
    rig = far.start("one:1 python=/no/such/python")
    far.rigs.remove(rig)
    try:
        assert rig.process.wait(60) == 1
        assert "no engine came up" in rig.said()
    finally:
        rig.destroy()


def listeners(server: Sshd) -> set[int]:
    """The ports on which its sessions listen."""
    found = set()
    for session in server.sessions():
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr.port for c in session.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found - {server.port}


def test_engines_reach_the_controller_through_the_tunnel(far: Far) -> None:
    rig = far.start("one:1", "two:2", options=["--tunnel"]).ready()
    assert rig.state.host == "127.0.0.1"
    ports = {name: listeners(server) for name, server in far.servers.items()}
    assert all(len(found) == 1 for found in ports.values())
    mec = rig.client()
    mec.execute("kept = 7")
    pids = mec.apply(os.getpid)
    [port] = ports["two"]
    far.servers["two"].cut()
    until(lambda: listeners(far.servers["two"]) == {port}, "the same port")
    assert mec.pull("kept") == [7, 7, 7]
    assert mec.apply(os.getpid) == pids


def test_a_host_that_forwards_nothing_is_named(far: Far, keys: Keys) -> None:
    server = Sshd(keys, "127.0.0.3", options=["AllowTcpForwarding no"])
    try:
        far.config.write_text(
            f"Host strict\n  HostName 127.0.0.3\n  Port {server.port}\n{far.config.read_text()}"
        )
        rig = far.start("one:1", "strict:1", options=["--tunnel"]).ready()
        assert "host strict: its sshd forwards no port (see AllowTcpForwarding there)" in rig.said()
    finally:
        server.stop()


def test_plan_shows_the_commands_and_starts_nothing(far: Far) -> None:
    rig = far.start("one:1", "two:2", options=["--dry-run"])
    far.rigs.remove(rig)
    out, _ = rig.process.communicate(timeout=60)
    assert rig.process.returncode == 0
    assert "-n 2 --furl-stdin" in out
    assert not any(server.sessions() for server in far.servers.values())
