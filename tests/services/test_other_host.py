"""A client that shares nothing with the controller but a network: it takes the TLS lane by itself.

Its host is a network namespace at the other end of a veth, with a mount namespace in which neither the
cluster's folder nor the controller's ``/dev/shm`` is to be seen. That takes root; it is skipped without,
unless IPYTHON1_REQUIRE_SERVICES=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel.files import ClusterFiles
from tests.faults.conftest import PATIENCE, Rig, environment
from tests.faults.conftest import files as files
from tests.faults.hosts import refused

TOOLS = ("ip", "unshare", "mount")
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
#: Where the two hosts are.
HERE, THERE, BITS = "10.254.97.1", "10.254.97.2", 30

CLIENT = """
    import hashlib, json, os, sys
    import numpy as np
    from ipython1.kernel import client
    from ipython1.kernel.wire import tlslane

    lanes = []
    opened = tlslane.TLSLane.handshakeCompleted
    def completed(self):
        lanes.append(self)
        opened(self)
    tlslane.TLSLane.handshakeCompleted = completed

    mec = client.MultiEngineClient(sys.argv[1])
    array = np.arange(500_000.0)
    mec.push({"array": array})
    back = mec.pull("array")
    seen = mec.execute("print('from there')")
    moved = sum(lane.sink is not None for lane in lanes)
    print(json.dumps({
        "ids": mec.get_ids(),
        "same": [bool((each == array).all()) for each in back],
        "output": [each["stdout"] for each in seen],
        "lanes": moved,
        "address": [lane.transport.getPeer().host for lane in lanes],
        "shm": sorted(os.listdir("/dev/shm")),
        "folder": os.path.exists(sys.argv[2]),
    }))
    mec.close()
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def other_host() -> Iterator[str]:
    """A network namespace with a cable to this one."""
    name = f"ip1-{os.getpid()}"
    near, far = f"ip1a{os.getpid() % 10**8}", f"ip1b{os.getpid() % 10**8}"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if reason := refused():
        pytest.skip(f"no other host: {reason}")
    try:
        if missing:
            raise OSError(f"needs {', '.join(missing)}")
        run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        if REQUIRED:
            raise
        pytest.skip(f"no other host: {error}")
    try:
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        run("ip", "address", "add", f"{HERE}/{BITS}", "dev", near)
        run("ip", "link", "set", near, "up")
        run("ip", "-n", name, "address", "add", f"{THERE}/{BITS}", "dev", far)
        run("ip", "-n", name, "link", "set", far, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)  # and with it the cable


@pytest.fixture
def rig(files: ClusterFiles) -> Iterator[Rig]:
    """A cluster that listens on the cable."""
    rig = Rig(files, ["-n", "2", "--no-dashboard", "--ip", HERE, "--location", HERE])
    try:
        yield rig
        rig.stop()
    finally:
        rig.destroy()


def test_a_client_on_another_host_takes_the_tls_lane(other_host: str, rig: Rig, tmp_path: Path) -> None:
    rig.ready()
    furl = tmp_path / "furl"
    furl.write_text(rig.files.furl("multiengine").read_text())
    script = (
        f"mount -t tmpfs none /dev/shm && mount -t tmpfs none {rig.files.folder} -o size=4k && "
        f'rmdir {rig.files.folder}/* 2>/dev/null; exec "$@"'
    )
    apart = [
        "ip",
        "netns",
        "exec",
        other_host,
        "unshare",
        "--mount",
        "--uts",
        "--ipc",
        "sh",
        "-c",
        script,
        "-",
    ]
    program = [
        sys.executable,
        "-c",
        textwrap.dedent(CLIENT),
        os.fspath(furl),
        os.fspath(rig.files.run / "lane.sock"),
    ]
    done = subprocess.run(
        [*apart, *program], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "ids": [0, 1],
        "same": [True, True],
        "output": ["from there\n"] * 2,
        "lanes": 1,
        "address": [HERE],
        "shm": told["shm"],
        "folder": False,
    }
    assert rig.client().apply(lambda: 7) == [7, 7]
    log = (rig.files.log / "ipcontroller.log").read_text()
    assert "did not get onto a lane" not in log
