"""Large objects between hosts: once to each, whoever is killed or cut off meanwhile.

The controller is on host a, two engines each on hosts b, c and d, the client on host e: namespaces with
cables that count what they carry; see `tests.faults.hosts`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ipython1.kernel.files import ClusterFiles
from tests.faults.conftest import until
from tests.faults.hosts import Host, Remote, some_hosts

MB = 1_000_000
#: Seconds of silence after which a link between hosts counts as lost.
DEAD = 2.0
PATIENCE = 40.0

BEGIN = """
    import hashlib
    mec = client.MultiEngineClient({furl!r})
    mec.wait_for_engines(6)
    hosts = mec.apply(__import__("socket").gethostname)

    def push(mb, seed):
        global sent, pending
        sent = np.random.default_rng(seed).bytes(mb * 10**6)
        pending = mec.push({{"x": np.frombuffer(sent, "u1")}}, block=False)

    def outcome():
        try:
            pending.get_result(timeout=60)
        except client.CompositeError as error:
            return [(failure.engine, failure.ename) for failure in error.elist]
        return []

    def check(targets="all"):
        digest = hashlib.sha256(sent).hexdigest()
        found = mec.apply(lambda: __import__("hashlib").sha256(x).hexdigest(), targets=targets)
        return [each == digest for each in found]

    def same(targets):
        # each but the first has added something of its own to the first byte
        begun = mec.apply(lambda: (x[0], __import__("hashlib").sha256(x[1:]).hexdigest()), targets=targets)
        (first, digest), *others = begun
        wanted = [((first + 1 + id) % 256, digest) for id in targets[1:]]
        return others == wanted

    def shared():
        import os
        found = os.statvfs("/dev/shm")
        return (found.f_blocks - found.f_bfree) * found.f_frsize
"""


class Lan:
    """Five hosts with a cluster on them."""

    def __init__(self, hosts: list[Host], files: ClusterFiles, log: Path) -> None:
        self.a, *self.others, self.e = hosts
        furls = [files.furl(kind) for kind in ("engine", "multiengine")]
        python = [sys.executable, "-m"]
        options = f"--cluster {files.cluster} --no-dashboard --port 10105 --ip {self.a.address}"
        controller = [*python, "ipython1.scripts.ipcontroller", *options.split()]
        self.a.start([*controller, "--dead-link-after", str(DEAD)], stdout=subprocess.DEVNULL)
        until(lambda: all(path.exists() for path in furls), "the controller listens")
        engine, furl = (path.read_text() for path in furls)
        nanny = [*python, "ipython1.scripts.ipengine", "-n", "2", "--furl-stdin", "--log-dir", os.fspath(log)]
        for host in self.others:
            process = host.start(nanny, [files.folder], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert process.stdin is not None
            process.stdin.write(engine)
            process.stdin.close()
            process.stdin = None
        self.client = Remote(self.e, [files.folder])
        self.client.run(BEGIN.format(furl=furl.strip()))

    def on(self, host: Host) -> list[int]:
        """The ids of the engines on a host."""
        names: list[str] = self.client.get("hosts")
        return [id for id, name in enumerate(names) if name == host.name]

    @contextlib.contextmanager
    def counted(self) -> Iterator[Callable[[], dict[str, float]]]:
        """What the cables carry meanwhile, in MB: out of a and e, in to the others."""
        cables = {"a": self.a.out, "e": self.e.out, "to e": self.e.back}
        cables.update({name: host.back for name, host in zip("bcd", self.others, strict=True)})
        before = {name: cable.carried for name, cable in cables.items()}
        yield lambda: {name: (cable.carried - before[name]) / MB for name, cable in cables.items()}

    def carrier(self, host: Host) -> psutil.Process:
        """The engine that something arrives at for all of a host: in its shared memory."""
        shared = Path(f"/proc/{host.processes[0].pid}/root/dev/shm/ipython1-{os.getuid()}")

        def found() -> psutil.Process | None:
            for process in psutil.Process(host.processes[0].pid).children(recursive=True):
                for fd in Path(f"/proc/{process.pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        target = Path(os.readlink(fd))
                        if target.name != "owner":
                            continue
                        files = [
                            path for path in (shared / target.parent.name).iterdir() if path.name != "owner"
                        ]
                        if sum(path.stat().st_blocks * 512 for path in files) > 3 * MB:
                            return process
            return None

        engine: psutil.Process = until(found, "something arrives", PATIENCE)
        return engine

    def stop(self) -> None:
        """End everything in order."""
        self.client.run("mec.close()")
        for host in (*self.others, self.a):
            host.processes[0].terminate()
        for host in (*self.others, self.a):
            host.processes[0].wait(PATIENCE)


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    folder = tmp_path_factory.mktemp("hosts")
    with pytest.MonkeyPatch.context() as patch, some_hosts(5) as hosts:
        patch.setenv("IPYTHON1_DIR", os.fspath(folder))
        lan = Lan(hosts, ClusterFiles("data", folder), folder)
        yield lan
        lan.stop()


@pytest.fixture(autouse=True)
def whole(lan: Lan) -> None:
    """Before each test all cables are whole, and all engines there."""
    for host in (lan.a, *lan.others, lan.e):
        host.set(loss=0.0, rate=0.0, delay=0.0)
    lan.client.run("mec.wait_for_engines(6, timeout=60)")


def test_a_broadcast_goes_to_each_host_once(lan: Lan) -> None:
    size = 100
    for host in (lan.a, *lan.others, lan.e):
        host.set(delay=0.001)
    with lan.counted() as carried:
        began = time.monotonic()
        lan.client.run(f"push({size}, 1); pending.get_result(timeout=60)")
        took = time.monotonic() - began
        found = carried()
    print(f"{size} MB to 6 engines on 3 hosts: {took:.2f} s, MB {found}")
    assert found["b"] + found["c"] + found["d"] <= 3.1 * size
    assert found["a"] <= 3.1 * size
    assert found["e"] <= 1.1 * size
    assert lan.client.get("check()") == [True] * 6
    assert all(each < 1.1 * size * MB for each in lan.client.get("mec.apply(shared)"))  # one copy a host
    lan.client.run("mec.execute('x[0] = engine_id; seen = int(x[0])'); seen = mec['seen']")
    assert lan.client.get("seen") == list(range(6))
    lan.client.run("mec.execute('x = None')")
    until(lambda: lan.client.get("max(mec.apply(shared))") < 5 * MB, "memory is given back", PATIENCE)


def test_a_carrier_that_is_killed_costs_the_others_nothing(lan: Lan) -> None:
    host = lan.others[0]
    host.back.rate = 10 * MB
    lan.client.run("push(25, 2)")
    carrier = lan.carrier(host)
    [dead] = lan.client.get(f"[e['id'] for e in mec._core.engines() if e['pid'] == {carrier.pid}]")
    carrier.kill()
    assert lan.client.get("outcome()") == [[dead, "EngineDied"]]
    lan.client.run("mec.wait_for_engines(6, timeout=60)")
    assert lan.client.get(f"check([id for id in range(6) if id != {dead}])") == [True] * 5
    assert lan.client.get(f"mec.keys(targets={dead})") == [[]]


def test_a_link_that_is_cut_goes_on_where_it_was(lan: Lan) -> None:
    host, size = lan.others[1], 25
    host.back.rate = 10 * MB
    with lan.counted() as carried:
        lan.client.run(f"push({size}, 3)")
        lan.carrier(host)
        host.set(loss=1.0)
        until(lambda: lan.a.connections(host) == host.connections(lan.a) == 0, "both ends notice", 5 * DEAD)
        host.set(loss=0.0)
        assert lan.client.get("outcome()") == []
        found = carried()
    print(f"{size} MB to 6 engines, one host cut off meanwhile: MB {found}")
    assert lan.client.get("check()") == [True] * 6
    assert found["c"] <= 2.0 * size


def test_a_carrier_that_stands_still_does_not_hold_up_its_neighbour(lan: Lan) -> None:
    host = lan.others[2]
    host.back.rate = 10 * MB
    lan.client.run("push(25, 4)")
    carrier = lan.carrier(host)
    carrier.suspend()
    try:
        [still] = lan.client.get(f"[e['id'] for e in mec._core.engines() if e['pid'] == {carrier.pid}]")
        assert lan.client.get(f"check([id for id in range(6) if id != {still}])") == [True] * 5
    finally:
        carrier.resume()
    assert lan.client.get("outcome()") == []
    assert lan.client.get("check()") == [True] * 6


def test_a_transfer_goes_from_host_to_host_once(lan: Lan) -> None:
    size = 50
    here, there = lan.on(lan.others[0]), lan.on(lan.others[1])
    lan.client.run(f"mec.execute('import os; y = bytearray(os.urandom({size} * 10**6))', targets={here[0]})")
    with lan.counted() as carried:
        began = time.monotonic()
        lan.client.run(f"mec.transfer('y', source={here[0]}, targets={[here[1], *there]}, name='x')")
        took = time.monotonic() - began
        found = carried()
    print(f"{size} MB from one engine to 3 others, two on another host: {took:.2f} s, MB {found}")
    assert found["e"] < 1
    assert found["to e"] < 1
    assert found["b"] < 1
    assert found["c"] <= 1.05 * size
    lan.client.run(
        f"mec.execute('x[0] = (x[0] + 1 + engine_id) % 256', targets={[here[1], *there]});"
        f"mec.execute('x = y', targets={here[0]})"
    )
    assert lan.client.get(f"same({[*here, *there]})") is True
