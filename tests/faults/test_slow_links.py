"""Slow, lossy, cut and half-open links between hosts, and processes that stand still.

The controller is on host a, two engines on host b, the client on host c; see `hosts`.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipython1.kernel.files import ClusterFiles

from .conftest import PATIENCE, Proxy, Rig, until
from .hosts import Host, Remote, some_hosts
from .tally import TALLY
from .test_engine_deaths import pid_of

#: Seconds of silence after which links count as lost, and how late that may be noticed.
DEAD, LATE = 2.0, 3.0
#: What every client here begins with: something that shows if it is done twice, or not at all.
BEGIN = """
    mec = client.MultiEngineClient({furl!r})
    mec.wait_for_engines(2)
    tc = mec.task_client()
    mec.execute("log = []")
    uuids = [engine["uuid"] for engine in mec._core.engines()]
    pids = mec.apply(os.getpid)
    array = np.random.default_rng(5).random({size})

    def away():
        return [row["away"] for row in mec.status()]

    def commands(count, sleep=0.0):
        code = "log.append({{}}); import time; time.sleep({{}})"
        return [mec.execute(code.format(i, sleep), block=False) for i in range(count)]
"""


class Lan:
    """The hosts, what runs there, and the program that is the client."""

    def __init__(self, hosts: list[Host], files: ClusterFiles, log: Path, grace: float) -> None:
        self.a, self.b, self.c = hosts
        self.files = files
        furls = [files.furl(kind) for kind in ("engine", "multiengine")]
        python = [sys.executable, "-m"]
        times = (
            f"--dead-link-after {DEAD} --engine-grace {grace} --client-grace {grace} --controller-grace 90"
        )
        where = f"--cluster {files.cluster} --no-dashboard --port 10105 --ip {self.a.address}"
        controller = [*python, "ipython1.scripts.ipcontroller", *where.split(), *times.split()]
        self.a.start(controller, stdout=subprocess.DEVNULL)
        until(lambda: all(path.exists() for path in furls), "the controller listens")
        engine, self.furl = (path.read_text() for path in furls)
        nanny = [*python, "ipython1.scripts.ipengine", "-n", "2", "--furl-stdin", "--log-dir", os.fspath(log)]
        hidden = [files.folder]
        process = self.b.start(nanny, hidden, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(engine)
        process.stdin.close()
        process.stdin = None
        self.client = Remote(self.c, hidden)

    def begin(self, size: int = 1000) -> None:
        """Connect the client."""
        self.client.run(BEGIN.format(furl=self.furl.strip(), size=size))

    def cut(self, *hosts: Host) -> None:
        """Nothing passes any more, and nobody is told."""
        for host in hosts:
            TALLY.fault("hosts cut off")
            host.set(loss=1.0)

    def apart(self, host: Host) -> bool:
        """Whether both ends of each connection of a host have given it up."""
        return self.a.connections(host) == host.connections(self.a) == 0

    def sees_away(self) -> list[float]:
        """For how many seconds each engine is away, as the client is told."""
        found: list[float] = self.client.get("[time.time() - since if since else 0.0 for since in away()]")
        return found

    def nothing_lost(self, count: int) -> None:
        """All commands ran once, in the processes of before."""
        assert self.client.get("mec['log']") == [list(range(count))] * 2
        assert self.client.get("pids == mec.apply(os.getpid)")

    def stop(self) -> None:
        """End everything in order."""
        self.client.run("tc.close(); mec.close()")
        for host in (self.b, self.a):
            host.processes[0].terminate()
            host.processes[0].wait(PATIENCE)


@pytest.fixture
def lan(files: ClusterFiles, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lan]:
    """Three hosts with a cluster."""
    with some_hosts(3) as hosts:
        lan = Lan(hosts, files, tmp_path, getattr(request, "param", 60.0))
        yield lan
        lan.stop()


def test_links_that_are_slow_and_lose_and_reorder(lan: Lan) -> None:
    for host in (lan.a, lan.b, lan.c):
        host.set(delay=0.05, jitter=0.025, loss=0.01, reorder=0.25)  # each way, and twice for each packet
    lan.begin(size=1_000_000)
    lan.client.run(
        """
        pending = commands(50)
        tasks = [tc.submit(lambda x: x * x, i) for i in range(100)]
        mec.push({"array": array})
        back = mec.pull("array")
        mec.barrier(pending)
        """
    )
    assert lan.client.get("[bool((each == array).all()) for each in back]") == [True, True]
    assert lan.client.get("[task.result(30) for task in tasks]") == [i * i for i in range(100)]
    lan.nothing_lost(50)


def test_a_host_that_is_cut_off_comes_back(lan: Lan) -> None:
    lan.begin()
    lan.client.run("pending = commands(40, 0.05); tasks = [tc.submit(lambda x: x + 1, i) for i in range(20)]")
    lan.cut(lan.b)
    began = time.monotonic()
    until(lambda: lan.apart(lan.b), "both ends notice", DEAD + LATE)
    seen = until(lambda: all(found := lan.sees_away()) and found, "the client is told")
    assert max(seen) <= time.monotonic() - began
    assert "(away)" in lan.client.get("repr(mec.status())")
    assert "away: the nanny of " + lan.b.name in lan.client.get("repr(mec.status())")
    assert all("away" in row for _, row in lan.client.get("list(mec.queue_status())"))
    lan.b.set(loss=0.0)
    until(lambda: lan.sees_away() == [0.0, 0.0], "it is back")
    lan.client.run("mec.barrier(pending)")
    assert lan.client.get("[task.result(30) for task in tasks]") == list(range(1, 21))
    lan.nothing_lost(40)


@pytest.mark.parametrize("lan", [1.0], indirect=True)
def test_a_host_that_is_away_for_too_long(lan: Lan) -> None:
    """What ran there fails; back, it has new engines under the ids of before."""
    lan.begin()
    lan.client.run("pending = commands(5, 0.5)")
    until(lambda: lan.client.get("mec.queue_status()[1][1]['queue']"), "they are queued")
    lan.cut(lan.b)
    until(lambda: lan.client.get("mec.get_ids()") == [], "they count as dead")
    lan.client.run("errors = [each.exception(30) for each in pending]")
    failed = lan.client.get(
        "[{each.ename for each in error.elist} for error in errors[1:]] == 4 * [{'EngineDied'}]"
    )
    assert failed
    lan.b.set(loss=0.0)
    until(lambda: lan.client.get("mec.get_ids()") == [0, 1], "there are others")
    assert lan.client.get("not set(pids) & set(mec.apply(os.getpid))")
    assert lan.client.get("len(mec.status())") == 2


@pytest.mark.parametrize("lan", [1.0], indirect=True)
def test_a_client_that_is_away_for_too_long(lan: Lan) -> None:
    """What it had queued is dropped, as it hears when it is back; the rest it gets."""
    lan.begin()
    lan.client.run("pending = commands(40, 0.4)")
    until(lambda: len(lan.client.get("mec.queue_status()[0][1]['queue']")) > 30, "they are queued")
    lan.cut(lan.c)
    until(lambda: lan.apart(lan.c), "both ends notice", DEAD + LATE)
    time.sleep(1.5)
    lan.c.set(loss=0.0)
    lan.client.run("mec.barrier(pending)")
    lan.client.run(
        """
        ends = [error.elist if (error := each.exception()) else [] for each in pending]
        dropped = [{failure.engine: failure.ename for failure in end} for end in ends]
        """
    )
    ran, dropped = lan.client.get("mec['log']"), lan.client.get("dropped")
    for id in (0, 1):
        lost = [i for i, failures in enumerate(dropped) if str(id) in failures]
        assert len(lost) > 0
        assert ran[id] + lost == list(range(40))
    assert {name for failures in dropped for name in failures.values()} == {"TaskAborted"}


@pytest.mark.parametrize("way", ["out", "back"])
def test_a_link_that_is_half_open(lan: Lan, way: str) -> None:
    """Idle, and dumb in one direction only."""
    lan.begin()
    until(lambda: lan.b.connections(lan.a) == 3, "all are on lanes")
    TALLY.fault("hosts cut off")
    getattr(lan.b, way).loss = 1.0
    until(lambda: lan.apart(lan.b), "both ends notice", 2 * DEAD + LATE)
    until(lambda: all(lan.sees_away()), "the client is told")
    lan.b.set(loss=0.0)
    until(lambda: lan.sees_away() == [0.0, 0.0], "it is back")
    lan.client.run("mec.barrier(commands(5))")
    lan.nothing_lost(5)


def test_a_long_upload(lan: Lan) -> None:
    """It takes much longer than silence may; and then it is cut off in the middle."""
    lan.begin(size=150_000)
    lan.client.run(
        """
        def upload():
            link = mec._core._connection._session._link
            mec.push({"first": array})
            return link is mec._core._connection._session._link
        """
    )
    lan.c.set(rate=200_000.0)
    # A machine so busy that it stands still as long loses the link, too, but not time after time.
    assert any(lan.client.get("upload()") for _ in range(3))
    lan.client.run("pending = mec.push({'array': array + 1}, block=False)")
    time.sleep(DEAD / 2)
    lan.cut(lan.c)
    until(lambda: lan.apart(lan.c), "both ends notice", DEAD + LATE)
    lan.c.set(loss=0.0, rate=0.0)
    lan.client.run("pending.get_result(timeout=30)")
    assert lan.client.get("[bool((each == array + 1).all()) for each in mec.pull('array')]") == [True, True]
    lan.nothing_lost(0)


# -- on one host -----------------------------------------------------------------------


@pytest.mark.parametrize("who", ["engine", "nanny", "agent"])
def test_what_stands_still_goes_on(start: Callable[..., Rig], who: str) -> None:
    rig = start(2, "--dead-link-after", "1", "--engine-grace", "1")
    mec = rig.client()
    mec.execute("log = []")
    engines = [pid_of(mec, id) for id in (0, 1)]
    pid = {"engine": engines[0], "nanny": rig.state.nanny, "agent": rig.agent()}[who]
    rig.kill(pid, 19)
    began = time.time()
    pending = [mec.execute(f"log.append({i})", block=False) for i in range(50)]

    def since() -> float:
        status = mec.status()
        if who == "engine":
            return float(status[0]["away"])
        return next((float(row["away"]) for row in status.links if row["kind"] == "nanny"), 0.0)

    if who == "nanny":  # its agent speaks for it
        time.sleep(2.0)
    else:
        assert abs(until(since, "its silence is seen") - began) <= 1.5
    if who != "engine":
        mec.barrier(pending)
    rig.kill(pid, 18)
    mec.barrier(pending)
    until(lambda: not since(), "it speaks again")
    assert mec["log"] == [list(range(50))] * 2
    assert [pid_of(mec, id) for id in (0, 1)] == engines


def test_a_client_that_stands_still(start: Callable[..., Rig]) -> None:
    rig = start(1, "--dead-link-after", "1")
    mec = rig.client()
    code = (
        "from ipython1.kernel import client\n"
        f"mec = client.MultiEngineClient(cluster={rig.files.cluster!r})\n"
        "code = 'import time; time.sleep(0.03); print({})'\n"
        "pending = [mec.execute(code.format(i), block=False) for i in range(100)]\n"
        "print('sent', flush=True)\n"
        "print([each.r[0]['stdout'] for each in pending] == [f'{i}\\n' for i in range(100)], flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "sent\n"
            until(lambda: mec.queue_status()[0][1]["pending"], "the first one runs")
            os.kill(program.pid, 19)
            until(lambda: "away: client " in repr(mec.status()), "its silence is seen")
            os.kill(program.pid, 18)
            assert program.stdout.readline() == "True\n"
        finally:
            program.kill()


# -- a proxy that does what it likes ---------------------------------------------------------


class Wild(Proxy):
    """Lets connections wait for each other, and cuts single ones at random moments."""

    def __init__(self, target: Callable[[], int]) -> None:
        self.chance = random.Random(11)
        self._calm = threading.Event()
        self._chaos = threading.Thread(target=self._rage)
        super().__init__(target)

    def rage(self) -> None:
        """Begin."""
        self._chaos.start()

    def calm(self) -> None:
        """Let everything pass."""
        self._calm.set()
        if self._chaos.is_alive():
            self._chaos.join(PATIENCE)
        self.delay = 0.0

    def _connect(self, near: socket.socket) -> None:
        time.sleep(self.chance.choice((0.0, 0.0, 0.05, 0.2)))
        super()._connect(near)

    def _rage(self) -> None:
        while not self._calm.wait(self.chance.uniform(0.02, 0.25)):
            self.delay = self.chance.choice((0.0, 0.002, 0.02))
            self.cut(self.chance.randrange(1, 4))


@pytest.fixture
def proxy(files: ClusterFiles) -> Iterator[Wild]:
    """In front of the test's controller, for everybody."""
    from ipython1.launch.state import State

    proxy = Wild(lambda: State.read(files).port)
    yield proxy
    proxy.calm()
    proxy.close()


def test_a_proxy_that_delays_and_cuts_and_reorders(start: Callable[..., Rig], proxy: Wild) -> None:
    rig = start(3, "--location", f"127.0.0.1:{proxy.port}")
    mec = rig.client()
    mec.execute("log = []")
    engines = [pid_of(mec, id) for id in range(3)]
    accepted = proxy.accepted
    proxy.rage()
    pending: list[Any] = []
    tasks: list[Any] = []
    with mec.task_client() as tc:
        for i in range(100):
            pending.append(mec.execute(f"log.append({i}); print({i})", block=False))
            tasks.append(tc.submit(lambda x: x * x, i))
            time.sleep(0.05)
        proxy.calm()
        assert [task.result(PATIENCE) for task in tasks] == [i * i for i in range(100)]
    for i, each in enumerate(pending):
        assert [r["stdout"] for r in each.get_result(timeout=PATIENCE)] == [f"{i}\n"] * 3
    assert mec["log"] == [list(range(100))] * 3
    assert [pid_of(mec, id) for id in range(3)] == engines
    assert proxy.accepted - accepted > 20
    assert psutil.Process(rig.state.nanny).is_running()
