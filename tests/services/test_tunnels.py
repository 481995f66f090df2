"""Clients that reach a cluster through a real ssh, and what is left of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from twisted.internet.threads import blockingCallFromThread

from ipython1.kernel import client
from ipython1.kernel.client import MultiEngineClient, TaskClient
from ipython1.kernel.client.bridge import get_bridge
from ipython1.kernel.error import (
    BadFURL,
    ConnectionFailed,
    NobodyListening,
    NoFURLFile,
    TunnelFailed,
    WouldBlockReactor,
)
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.wire import links, tlslane
from ipython1.kernel.wire.tubs import split_furl
from tests.faults.conftest import PATIENCE, environment, lives, until
from tests.integration.test_ipcluster import Running, two_engines

from .sshd import Keys, Sshd, ssh_config
from .sshd import keys as keys

pytestmark = pytest.mark.timeout(90)

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def sshd(keys: Keys, ipython1_dir: Path) -> Iterator[Sshd]:
    """A server whose sessions find the clusters of this module."""
    variables = {
        "IPYTHON1_DIR": os.fspath(ipython1_dir),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": environment()["PYTHONPATH"],
    }
    server = Sshd(
        keys, options=["SetEnv " + " ".join(f"{name}={value}" for name, value in variables.items())]
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def cluster(ipython1_dir: Path) -> Iterator[Running]:
    """Two engines."""
    with two_engines("--no-dashboard") as running:
        yield running


@pytest.fixture(autouse=True)
def far(sshd: Sshd, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server is ``far`` for ssh, and nothing is found but through it. Afterwards nothing is left."""
    config = ssh_config(keys, {"far": (sshd.address, sshd.port), "dumb": ("127.0.0.1", 1)})
    monkeypatch.setenv("IPYTHON1_SSH", f"ssh -F {config}")
    monkeypatch.setattr(links, "unix_way", lambda path, move: None)
    yield
    until(lambda: folders() == [] and helpers() == [], "no folder, no process")


def folders() -> list[Path]:
    """Where tunnels have their sockets."""
    return [*Path(tempfile.gettempdir()).glob("ipython1-ssh-*")]


def helpers() -> list[psutil.Process]:
    """The processes of tunnels that this one has started."""
    return [each for each in psutil.Process().children(recursive=True) if is_helper(each)]


def is_helper(process: psutil.Process) -> bool:
    """Whether it watches over ssh, and lives."""
    try:
        return lives(process) and "sshwatch" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def ssh_of(helper: psutil.Process) -> psutil.Process:
    """What a helper runs."""
    child: psutil.Process = until(lambda: helper.children(), "an ssh")[0]
    return child


@pytest.fixture
def mec(cluster: Running) -> Iterator[MultiEngineClient]:
    """A client through the tunnel."""
    with MultiEngineClient("ssh://far/") as mec:
        mec.wait_for_engines(2)
        yield mec


def test_a_client_works_on_the_tls_lane(cluster: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[tlslane.TLSLane] = []
    completed = tlslane.TLSLane.handshakeCompleted
    monkeypatch.setattr(
        tlslane.TLSLane, "handshakeCompleted", lambda self: (lanes.append(self), completed(self))[1]
    )
    with MultiEngineClient("ssh://far/default") as mec:
        mec.wait_for_engines(2)
        assert mec.apply(pow, 2, 5) == [32, 32]
        mec.push({"data": bytes(1_000_000)})
        assert mec.apply(lambda: len(data)) == [1_000_000] * 2  # type: ignore[name-defined]  # noqa: F821
        [lane] = lanes
        until(lambda: lane.sink is not None, "a session on the lane")
        with mec.task_client() as tc:
            assert tc.map(abs, [-1, -2]) == [1, 2]


def test_a_python_can_be_named(cluster: Running) -> None:
    with TaskClient(f"ssh://far/?python={sys.executable}") as tc:
        assert tc.submit(pow, 2, 5).r == 32


def test_the_variable(cluster: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHON1_FURL", "ssh://far")
    with MultiEngineClient() as mec:
        assert mec.apply(os.getuid) == [os.getuid()] * 2


def test_a_furl_and_a_gateway(cluster: Running) -> None:
    furl = ClusterFiles().furl("multiengine").read_text()
    unknown = furl.replace("@tcp:", "@tcp:nowhere.invalid:7,tcp:")
    with MultiEngineClient(unknown, ssh="far") as mec:
        assert mec.apply(pow, 2, 5) == [32, 32]


def test_a_cut_tunnel_heals(mec: MultiEngineClient, sshd: Sshd) -> None:
    slow = mec.execute("import time; time.sleep(1.0); a = 5", block=False)
    [helper] = helpers()
    before = ssh_of(helper)
    assert sshd.cut() > 0
    slow.result(PATIENCE)
    assert mec["a"] == [5, 5]
    assert ssh_of(helper) != before
    before = ssh_of(helper)
    before.kill()  # its socket is left behind
    assert mec.apply(lambda: a) == [5, 5]  # type: ignore[name-defined]  # noqa: F821


def test_a_closed_client_leaves_nothing(mec: MultiEngineClient) -> None:
    [helper] = helpers()
    ssh = ssh_of(helper)
    assert len(folders()) == 1
    assert folders()[0].stat().st_mode & 0o777 == 0o700
    mec.close()
    until(lambda: not lives(helper) and not lives(ssh) and not folders(), "nothing left")


def test_a_killed_client_leaves_nothing(cluster: Running) -> None:
    code = """
        from ipython1.kernel.client import MultiEngineClient
        mec = MultiEngineClient("ssh://far")
        print(mec.apply(pow, 2, 5), flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[32, 32]\n"
        [helper] = helpers()
        ssh = ssh_of(helper)
        process.send_signal(signal.SIGKILL)
    until(lambda: not lives(helper) and not lives(ssh) and not folders(), "nothing left")


def test_a_killed_helper_takes_ssh_along(mec: MultiEngineClient) -> None:
    [helper] = helpers()
    ssh = ssh_of(helper)
    helper.kill()
    until(lambda: not lives(ssh), "no ssh")


def test_no_such_cluster_there() -> None:
    with pytest.raises(
        NoFURLFile, match=r"There is no cluster 'gone' on far\. Look there with: ipcluster list"
    ):
        MultiEngineClient("ssh://far/gone")


def test_a_cluster_that_does_not_run(cluster: Running) -> None:
    files = ClusterFiles("stopped")
    files.create()
    furl = ClusterFiles().furl("multiengine").read_text()
    port = split_furl(furl)[1][0].rpartition(":")[2]
    files.furl("multiengine").write_text(furl.replace(f":{port}", ":1"))
    with pytest.raises(ConnectionFailed) as caught:
        MultiEngineClient("ssh://far/stopped")
    assert "far says: connect failed: Connection refused" in str(caught.value)
    assert not isinstance(caught.value, NobodyListening)


def test_a_wrong_key(keys: Keys, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = ssh_config(keys, {"far": (sshd.address, sshd.port)})
    wrong = tmp_path / "config"
    wrong.write_text(good.read_text().replace(str(keys.client), str(keys.stranger)))
    monkeypatch.setenv("IPYTHON1_SSH", f"ssh -F {wrong}")
    words = r"through far: Permission denied \(publickey\)\. Log in once with: ssh far"
    with pytest.raises(TunnelFailed, match=words):
        MultiEngineClient("ssh://far")


def test_an_unknown_host_key(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").touch()
    monkeypatch.setenv("IPYTHON1_SSH", f"{os.environ['IPYTHON1_SSH']} -o UserKnownHostsFile={tmp_path}/none")
    with pytest.raises(TunnelFailed, match=r"Host key verification failed\. Log in once with: ssh far"):
        MultiEngineClient("ssh://far")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ssh://nowhere.invalid", "Could not resolve hostname"),
        ("ssh://dumb", "Connection refused"),
        ("ssh://far/?python=no-python", "no-python -m ipython1.scripts.ipcluster fails there: .*not found"),
    ],
)
def test_what_else_fails(place: str, words: str) -> None:
    with pytest.raises(TunnelFailed, match=words):
        MultiEngineClient(place)


def test_no_ipcluster_there(monkeypatch: pytest.MonkeyPatch, keys: Keys) -> None:
    bare = Sshd(keys)
    try:
        config = ssh_config(keys, {"bare": (bare.address, bare.port)})
        monkeypatch.setenv("IPYTHON1_SSH", f"ssh -F {config}")
        with pytest.raises(TunnelFailed, match=r"ipcluster is not found there\. Name its Python: ssh://"):
            MultiEngineClient("ssh://bare")
    finally:
        bare.stop()


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, cluster: Running) -> None:
    monkeypatch.setenv("IPYTHON1_SSH", "/nowhere/ssh")
    with pytest.raises(TunnelFailed, match=r"/nowhere/ssh cannot be run \(No such file or directory\)"):
        MultiEngineClient("ssh://far")
    furl = ClusterFiles().furl("multiengine").read_text()
    with pytest.raises(TunnelFailed, match=r"/nowhere/ssh cannot be run"):
        MultiEngineClient(furl, ssh="far")


def test_no_forwarding_there(cluster: Running, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Sshd(keys, options=["AllowTcpForwarding no"])
    try:
        config = ssh_config(keys, {"strict": (strict.address, strict.port)})
        monkeypatch.setenv("IPYTHON1_SSH", f"ssh -F {config}")
        furl = ClusterFiles().furl("multiengine").read_text()
        with pytest.raises(ConnectionFailed, match="strict says: administratively prohibited"):
            MultiEngineClient(furl, ssh="strict")
    finally:
        strict.stop()


@pytest.fixture
def nanny(cluster: Running, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two engines that come through the gateway."""
    furl = tmp_path / "furl"
    furl.write_text(ClusterFiles().furl("engine").read_text().replace("tcp:127.0.0.1", "tcp:localhost"))
    command = [sys.executable, "-m", "ipython1.scripts.ipengine", "-n", "2", "--furl-file", os.fspath(furl)]
    options = ["--ssh", "far", "--log-dir", os.fspath(tmp_path)]
    with subprocess.Popen([*command, *options], env=environment()) as nanny:
        yield nanny
        nanny.kill()


def helper_of(nanny: subprocess.Popen[bytes]) -> psutil.Process:
    """What keeps its tunnel."""
    [helper] = [each for each in helpers() if each.ppid() == nanny.pid]
    return helper


def test_engines_through_a_gateway(nanny: subprocess.Popen[bytes], sshd: Sshd) -> None:
    with client.MultiEngineClient() as mec:
        mec.wait_for_engines(4)
        helper = helper_of(nanny)
        assert len(helper.children()) == 1  # one ssh for all
        sshd.cut()
        assert mec[mec.get_ids()[2:]].apply(pow, 2, 5) == [32, 32]
        nanny.terminate()
        assert nanny.wait(PATIENCE) == 0
        until(lambda: len(mec.get_ids()) == 2, "the engines are gone")
    assert not lives(helper)


def test_a_killed_nanny_leaves_no_tunnel(nanny: subprocess.Popen[bytes]) -> None:
    with client.MultiEngineClient() as mec:
        mec.wait_for_engines(4)
        helper = helper_of(nanny)
        ssh = ssh_of(helper)
        nanny.kill()
        until(lambda: len(mec.get_ids()) == 2, "the agent has said so, through the tunnel", timeout=9.0)
    until(lambda: not lives(helper) and not lives(ssh) and not folders(), "nothing left")


@pytest.mark.parametrize("through", ["nowhere.invalid", "-oProxyCommand=touch"])
def test_engines_without_a_gateway(cluster: Running, through: str) -> None:
    command = [sys.executable, "-m", "ipython1.scripts.ipengine", f"--ssh={through}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "ipengine: " in done.stderr
    assert ("Could not resolve hostname" in done.stderr) or ("is no host to log in to" in done.stderr)


def test_not_in_the_reactor_thread(mec: MultiEngineClient) -> None:
    for call in (partial(MultiEngineClient, "ssh://far"), partial(TaskClient, ssh="far")):
        with pytest.raises(WouldBlockReactor):
            blockingCallFromThread(get_bridge().reactor, call)


def test_what_is_no_place() -> None:
    with pytest.raises(BadFURL):
        MultiEngineClient("ssh://-oProxyCommand=x/")
