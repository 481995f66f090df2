"""`ipcluster` and `Cluster` with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from ipython1.kernel import client
from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles, known_clusters
from ipython1.launch.cluster import Cluster
from ipython1.launch.state import State, is_running

ROOT = Path(__file__).parents[2]
IPCLUSTER = [sys.executable, "-m", "ipython1.scripts.ipcluster"]
TIMEOUT = 60.0

pytestmark = pytest.mark.timeout(180)


def until(true: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + timeout
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def environment(**extra: str) -> dict[str, str]:
    """What every process here runs with."""
    return {**os.environ, "PYTHONPATH": os.fspath(ROOT), **extra}


def ipcluster(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    options = {"env": environment(), "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(
        [*IPCLUSTER, *arguments], capture_output=True, text=True, timeout=TIMEOUT, **options
    )


def processes_of(cluster: str) -> list[psutil.Process]:
    """Those that have the name of the cluster on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if cluster in process.cmdline():
                found.append(process)
        except psutil.Error:  # it has just ended
            pass
    return found


class Family:
    """A process and all that come from it; knows which of them still live."""

    def __init__(self, pid: int) -> None:
        self.top = psutil.Process(pid)
        self.members: set[psutil.Process] = {self.top}
        self.look()

    def look(self) -> None:
        """Take in those that have come since."""
        try:
            self.members.update(self.top.children(recursive=True))
        except psutil.NoSuchProcess:
            pass

    def alive(self) -> list[psutil.Process]:
        """Those that live, zombies not counted."""
        return [p for p in self.members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def gone(self) -> bool:
        """Whether all have ended."""
        try:
            return not self.alive()
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End what still lives."""
        self.look()
        for process in self.members:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


class Running:
    """An `ipcluster` in the foreground."""

    def __init__(self, *arguments: str, **extra: str) -> None:
        self.process = subprocess.Popen(
            [*IPCLUSTER, *arguments],
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family = Family(self.process.pid)

    def banner(self) -> list[str]:
        """What it prints until it is ready."""
        lines: list[str] = []
        assert self.process.stdout is not None
        while not (lines and lines[-1].startswith("stop ")):
            line = self.process.stdout.readline()
            assert line, f"{lines} {self.process.communicate(timeout=TIMEOUT)}"
            lines.append(line)
        self.family.look()
        return lines

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Exit status, and what it wrote since."""
        self.family.look()
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err


@contextmanager
def two_engines(*options: str, **extra: str) -> Iterator[Running]:
    """A cluster of two, ready, for a fixture of a module."""
    running = Running("start", "-n", "2", "--port", "0", *options, **extra)
    try:
        running.banner()
        yield running
    finally:
        ipcluster("stop")
        running.process.communicate(timeout=60)


@pytest.fixture
def start(ipython1_dir: Path) -> Iterator[Callable[..., Running]]:
    """Starts an `ipcluster`; it is ended with the test."""
    started: list[Running] = []

    def start(*arguments: str, **extra: str) -> Running:
        started.append(Running(*arguments, **extra))
        return started[-1]

    yield start
    for running in started:
        running.family.kill()
        running.process.communicate(timeout=TIMEOUT)


@pytest.fixture
def files(ipython1_dir: Path, request: pytest.FixtureRequest) -> ClusterFiles:
    """The files of a cluster that has the name of the test."""
    return ClusterFiles(re.sub(r"\W", "-", request.node.name), ipython1_dir)


# -- ipcluster start ----------------------------------------------------------------


def test_the_first_five_minutes(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "2", "--cluster", files.cluster, "--port", "0")
    banner = "".join(running.banner())
    found = State.read(files)
    name = files.cluster
    connect = f"from ipython1.kernel import client; mec = client.MultiEngineClient(cluster='{name}')"
    assert re.fullmatch(
        rf"controller   127\.0\.0\.1:{found.port}  \(pid {found.controller}\)\n"
        r"engines      2 of 2 ready in \d+\.\d s: 0 1\n"
        rf"connect      {re.escape(connect)}\n"
        r"dashboard    http://127\.0\.0\.1:\d+/\?token=\S+\n"
        rf"stop         Ctrl-C, or: ipcluster stop --cluster {name}\n",
        banner,
    )
    assert found.engines == [0, 1]
    with client.MultiEngineClient(cluster=name) as mec:
        assert mec.get_ids() == [0, 1]
        mec.execute("a = 5")
        assert mec.pull("a") == [5, 5]
    for path in files.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"
    status, out, err = running.end(signal.SIGINT)
    assert (status, out, err) == (0, f"stopped      cluster {name}\n", "")
    until(running.family.gone)
    assert not files.state.exists()


def test_ctrl_c_in_a_terminal(files: ClusterFiles) -> None:
    arguments = ["-m", "ipython1.scripts.ipcluster", "-n", "1", "--cluster", files.cluster, "--port", "0"]
    terminal = pexpect.spawn(sys.executable, arguments, env=environment(), timeout=TIMEOUT, encoding="utf-8")
    try:
        terminal.expect("stop  .*\r\n")
        family = Family(terminal.pid)
        terminal.sendintr()
        terminal.expect("stopped .*\r\n")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0
        until(family.gone)
    finally:
        terminal.close(force=True)


def test_the_second_start_has_the_furls_of_the_first(
    start: Callable[..., Running], files: ClusterFiles
) -> None:
    texts, ports = [], []
    for options in (["--port", "0"], []):
        running = start("-n", "1", "--cluster", files.cluster, *options)
        running.banner()
        texts.append([files.furl(kind).read_text() for kind in ("multiengine", "engine")])
        ports.append(State.read(files).port)
        stopped = ipcluster("stop", "--cluster", files.cluster)
        assert (stopped.returncode, stopped.stdout) == (0, f"stopped      cluster {files.cluster}\n")
        assert not is_running(files)
        assert running.end()[0] == 0
    assert texts[0] == texts[1]
    assert ports[0] == ports[1]


def test_two_starts_at_once(start: Callable[..., Running], files: ClusterFiles) -> None:
    both = [start("-n", "1", "--cluster", files.cluster, "--port", "0") for _ in range(2)]
    loser = until(lambda: next((r for r in both if r.process.poll() is not None), None), TIMEOUT)
    [winner] = [r for r in both if r is not loser]
    status, out, err = loser.end()
    assert (status, out) == (4, "")
    assert err.startswith(f"ipcluster: Cluster {files.cluster} is already running")
    winner.banner()
    assert winner.end(signal.SIGTERM)[0] == 0


def test_a_port_that_is_taken(files: ClusterFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ipcluster("start", "-n", "1", "--cluster", files.cluster, "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
    assert not is_running(files)


def broken(tmp_path: Path) -> str:
    """A PYTHONPATH where no engine can start, since its IPython is broken."""
    (tmp_path / "IPython.py").write_text("raise ImportError('this IPython is broken')")
    return os.pathsep.join([os.fspath(tmp_path), os.fspath(ROOT)])


def test_engines_that_cannot_start(
    start: Callable[..., Running], files: ClusterFiles, tmp_path: Path
) -> None:
    running = start("-n", "2", "--cluster", files.cluster, "--port", "0", PYTHONPATH=broken(tmp_path))
    status, _, err = running.end()
    assert status == 1
    assert "this IPython is broken" in err
    until(running.family.gone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_way_to_the_background_ends_what_is_on_it(number: signal.Signals) -> None:
    code = (
        "import os, time\n"
        "from ipython1.launch.daemon import daemonize\n"
        "daemonize(lambda: None)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    child = psutil.Process(int(waiting.stdout.readline()))
    waiting.send_signal(number)
    waiting.communicate(timeout=TIMEOUT)
    assert waiting.returncode == 128 + signal.SIGTERM
    until(lambda: not child.is_running())


def test_in_the_background(files: ClusterFiles) -> None:
    cluster = ["--cluster", files.cluster]
    done = ipcluster("start", "-n", "2", *cluster, "--port", "0", "--daemonize")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"stop         ipcluster stop --cluster {files.cluster}"
    found = State.read(files)
    family = Family(found.pid)
    try:
        assert os.getsid(found.pid) == found.pid != os.getsid(0)
        assert {found.controller, found.nanny} < {process.pid for process in family.members}
        again = ipcluster("start", *cluster)
        assert (again.returncode, f"already running (pid {found.pid})" in again.stderr) == (4, True)

        listed = json.loads(ipcluster("list", "-o", "json").stdout)
        assert [(c["state"], c["pid"]) for c in listed if c["cluster"] == files.cluster] == [
            ("running", found.pid)
        ]
        status = json.loads(ipcluster("status", *cluster, "-o", "json").stdout)
        assert [engine["id"] for engine in status["engines"]] == [0, 1]
        table = ipcluster("status", *cluster).stdout.splitlines()
        assert table[0] == f"controller   127.0.0.1:{found.port}  (pid {found.controller})"
        assert len(table) == 5

        assert ipcluster("scale", "3", *cluster).stdout == "engines      3: 0 1 2\n"
        assert ipcluster("scale", "1", *cluster).stdout == "engines      1: 0\n"

        more = ipcluster("engines", "-n", "1", *cluster, "--daemonize")
        assert (more.returncode, more.stderr) == (0, "")
        assert re.fullmatch(r"engines      1 of 1 ready in \d+\.\d s: 1\n", more.stdout)
        assert until(lambda: State.read(files).engines == [0, 1])

        assert "listens at" in ipcluster("logs", *cluster).stdout
        family.look()
        assert ipcluster("stop", *cluster).returncode == 0
        until(family.gone)
        until(lambda: not processes_of(files.cluster))
        assert ipcluster("stop", *cluster).returncode == 3
    finally:
        family.kill()


# -- trouble ---------------------------------------------------------------------------


def test_killing_ipcluster_takes_all_with_it(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "2", "--cluster", files.cluster, "--port", "0")
    running.banner()
    assert len(running.family.members) >= 5  # ipcluster, controller, nanny, two engines
    running.end(signal.SIGKILL)
    until(running.family.gone)
    assert files.state.exists()
    assert "stopped" in ipcluster("list").stdout
    assert ipcluster("clean", "--cluster", files.cluster).returncode == 0
    assert not files.state.exists()
    again = start("-n", "1", "--cluster", files.cluster)
    again.banner()
    assert again.end(signal.SIGTERM)[0] == 0


def test_a_killed_controller_comes_back(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "2", "--cluster", files.cluster, "--port", "0")
    running.banner()
    before = State.read(files)
    with client.MultiEngineClient(cluster=files.cluster) as mec:
        mec.execute("a = 7")
        os.kill(before.controller, signal.SIGKILL)
        assert mec.execute("b = a", block=False).get_result(timeout=TIMEOUT)
        assert mec.pull("b") == [7, 7]
    after = State.read(files)
    assert (after.port, after.controller != before.controller) == (before.port, True)
    running.family.look()
    status, _, err = running.end(signal.SIGTERM)
    assert status == 0
    assert err == "ipcluster: the controller ended: killed by signal 9 (SIGKILL). It is started again.\n"
    until(running.family.gone)


def test_a_killed_nanny_comes_back(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "2", "--cluster", files.cluster, "--port", "0")
    running.banner()
    before = State.read(files)
    os.kill(before.nanny, signal.SIGKILL)
    after = until(lambda: (s := State.read(files)).nanny not in (0, before.nanny) and s)
    assert after.controller == before.controller
    with client.MultiEngineClient(cluster=files.cluster) as mec:
        ids = until(lambda: len(ids := mec.get_ids()) == 2 and State.read(files).engines == ids and ids)
        assert mec.pull("engine_id") == ids
    running.family.look()
    status, _, err = running.end(signal.SIGTERM)
    assert (status, err) == (
        0,
        "ipcluster: the engines ended: killed by signal 9 (SIGKILL). They are started again.\n",
    )
    until(running.family.gone)


def test_a_client_ends_the_cluster(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "1", "--cluster", files.cluster, "--port", "0")
    running.banner()
    with client.MultiEngineClient(cluster=files.cluster) as mec:
        mec.kill(controller=True)
    status, _, err = running.end()
    assert (status, err) == (0, "")
    until(running.family.gone)


def test_a_stopped_nanny_does_not_stop_the_stop(start: Callable[..., Running], files: ClusterFiles) -> None:
    running = start("-n", "1", "--cluster", files.cluster, "--port", "0")
    running.banner()
    os.kill(State.read(files).nanny, signal.SIGSTOP)
    assert running.end(signal.SIGTERM)[0] == 0
    until(running.family.gone)


# -- ipcluster run ------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> str:
    """The path of a script."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return os.fspath(path)


def test_run(tmp_path: Path, ipython1_dir: Path) -> None:
    path = script(
        tmp_path,
        """
        import sys
        print(mec.get_ids(), sys.argv[1:], sys.stdin.read())
        from ipython1.kernel import client
        with client.MultiEngineClient() as other:
            print(other.get_ids())
        sys.exit(7)
        """,
    )
    clusters = known_clusters()
    with (tmp_path / "input").open("w+") as stdin:
        stdin.write("from stdin")
        stdin.seek(0)
        done = ipcluster("run", "-n", "2", path, "--input", "-n", stdin=stdin)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "[0, 1] ['--input', '-n'] from stdin\n[0, 1]\n"
    assert known_clusters() == clusters


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("if True print", 1, "SyntaxError"),
    ],
)
def test_the_exit_status_of_run(tmp_path: Path, text: str, status: int, said: str) -> None:
    done = ipcluster("run", "-n", "1", script(tmp_path, text))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "runner.py" not in done.stderr


def test_ctrl_c_of_a_script_in_a_terminal(tmp_path: Path) -> None:
    path = script(tmp_path, "import time\nprint('go', flush=True)\ntime.sleep(60)")
    arguments = ["-m", "ipython1.scripts.ipcluster", "run", "-n", "1", path]
    terminal = pexpect.spawn(sys.executable, arguments, env=environment(), timeout=TIMEOUT, encoding="utf-8")
    try:
        terminal.expect("go\r\n")
        family = Family(terminal.pid)
        terminal.sendintr()
        terminal.expect("KeyboardInterrupt")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 128 + signal.SIGINT
        until(family.gone)
    finally:
        terminal.close(force=True)


def test_a_signal_for_run_is_one_for_the_script(start: Callable[..., Running], tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print('go', flush=True)
        time.sleep(60)
        """,
    )
    running = start("run", "-n", "1", path)
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == "go\n"
    assert running.end(signal.SIGTERM) == (5, "", "")
    until(running.family.gone)


# -- Cluster -------------------------------------------------------------------------------


def test_cluster(ipython1_dir: Path) -> None:
    clusters = known_clusters()
    cluster = Cluster(n=2)
    with cluster as mec:
        assert cluster.running
        assert mec.get_ids() == [0, 1]
        assert cluster.cluster in known_clusters()
        family = Family(State.read(ClusterFiles(cluster.cluster)).pid)
        with pytest.raises(LaunchError, match="it runs already"):
            cluster.start()
    assert not cluster.running
    until(family.gone)
    assert known_clusters() == clusters
    cluster.stop()  # nothing to do


def test_cluster_in_asyncio() -> None:
    async def main() -> list[int]:
        async with Cluster(n=1) as mec:
            ids: list[int] = mec.get_ids()
        return ids

    assert asyncio.run(main()) == [0]


def test_cluster_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = known_clusters()
    monkeypatch.setenv("PYTHONPATH", broken(tmp_path))
    with pytest.raises(LaunchError, match="this IPython is broken"):
        Cluster(n=1).start()
    assert known_clusters() == clusters


@pytest.mark.parametrize("ending", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_cluster_outlives_its_program(ending: str, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        f"""
        from ipython1.kernel.files import ClusterFiles
        from ipython1.launch.cluster import Cluster
        from ipython1.launch.state import State
        cluster = Cluster(n=1)
        mec = cluster.start()
        print(State.read(ClusterFiles(cluster.cluster)).pid, flush=True)
        input()
        {ending}
        """,
    )
    clusters = known_clusters()
    program = subprocess.Popen(
        [sys.executable, path], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    family = Family(int(program.stdout.readline()))
    try:
        program.communicate("\n", timeout=TIMEOUT)
        until(family.gone)
        assert until(lambda: known_clusters() == clusters)
    finally:
        family.kill()
