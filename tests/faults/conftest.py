"""Clusters to be maltreated: real processes, each test its own, all of them accounted for at the end."""

from __future__ import annotations

import fnmatch
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.wire import segments
from ipython1.launch.state import State
from tests.conftest import ReactorThread

from . import notes
from .tally import TALLY, dead_segments, gone_soon, processes_of

ROOT = Path(__file__).parents[2]
IPCLUSTER = [sys.executable, "-m", "ipython1.scripts.ipcluster"]
#: Seconds that anything may take before the test gives up.
PATIENCE = 30.0
#: Seconds to a death's error. The promise is one; a busy machine may be late, by no means so late.
DEATH_LIMIT = 5.0
#: What a stopped cluster leaves in its folder: what the next start goes on with, and logs.
KEPT = (
    "security/ipcontroller*",
    "run/*.lock",
    "log/ipcontroller.*",
    "log/ipengine.out",
    "log/ipengine-*.out",
    "log/engine-*.log",
    "log/engine-*.out",
    "log/job-*.out",
)


def until(true: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + timeout
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)
    return found


def environment() -> dict[str, str]:
    """What every process here runs with."""
    path = os.pathsep.join((os.fspath(ROOT), os.fspath(notes.NOTING)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def left_files(files: ClusterFiles) -> list[Path]:
    """What a cluster that is over should not have left in its folder."""
    there = (p.relative_to(files.folder) for p in files.folder.rglob("*") if not p.is_dir())
    return sorted(p for p in there if not any(fnmatch.fnmatch(os.fspath(p), kept) for kept in KEPT))


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Rig:
    """An `ipcluster` in the foreground with all that comes from it.

    Parameters
    ----------
    files : ClusterFiles
        The cluster.
    options : sequence of str
        Of ``ipcluster start``.
    """

    def __init__(self, files: ClusterFiles, options: Sequence[str], prefix: Sequence[str] = ()) -> None:
        self.files = files
        self.errors = files.root / f"{files.cluster}.err"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*prefix, *IPCLUSTER, "start", "--cluster", files.cluster, "--port", "0", *options],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._members = {psutil.Process(self.process.pid)}
        self._clients: list[MultiEngineClient] = []

    # -- what it is made of ----------------------------------------------------------

    def ready(self) -> Rig:
        """Wait for its engines."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("stop "):
                self.look()
                return self
        pytest.fail(f"it did not start: {self.said()}")

    @property
    def state(self) -> State:
        """What the state file says."""
        return State.read(self.files)

    def said(self) -> str:
        """Its stderr so far."""
        return self.errors.read_text()

    def next_controller(self, before: int = 0) -> int:
        """Wait for a controller that is not `before` to be started; its pid."""
        new: int = until(
            lambda: self.state.controller not in (0, before) and self.state.controller, "a controller"
        )
        return new

    def agent(self) -> int:
        """Pid of the nanny's agent; 0 while there is none."""
        engines = {engine["pid"] for engine in self.client()._core.engines()}
        return next((p.pid for p in psutil.Process(self.state.nanny).children() if p.pid not in engines), 0)

    def look(self) -> None:
        """Take note of the processes there are: by parentage, and those of before whatever became of it."""
        for process in list(self._members):
            try:
                self._members.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                pass

    def kill(self, pid: int, number: int = 9) -> None:
        """Send a signal to one of its processes."""
        self.look()
        assert pid in {process.pid for process in self._members}
        os.kill(pid, number)

    # -- its clients -------------------------------------------------------------------

    def client(self) -> MultiEngineClient:
        """The client of the test."""
        return self._clients[0] if self._clients else self.connect()

    def connect(self, furl: str | None = None) -> MultiEngineClient:
        """Another client."""
        mec = MultiEngineClient(furl or os.fspath(self.files.furl("multiengine")))
        self._clients.append(mec)
        return mec

    # -- the end -------------------------------------------------------------------------

    def lost(self) -> list[Any]:
        """The results that clients wait for though no engine has anything to do."""
        waiting = [pending for mec in self._clients for pending in mec.pending]
        if not waiting:
            return []
        queues = self.client().queue_status(block=False).get_result(timeout=PATIENCE)
        return [] if any(queue["queue"] or queue["pending"] for _, queue in queues) else waiting

    def stop(self) -> None:
        """Stop it in order, and see that no result and nothing else is left."""
        port = self.state.port
        self.look()
        TALLY.survivors |= {process.pid for process in self._members if lives(process)}
        lost = gone_soon(self.lost) if self.process.poll() is None else []
        TALLY.lost += len(lost)
        assert lost == [], "nobody works on these"
        for mec in self._clients:
            mec.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)
        until(lambda: not any(map(lives, self._members)), "the end of all processes")
        if port:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1).close()
        left = left_files(self.files)
        TALLY.left["files"] += len(left)
        assert left == []
        empty = [p for p in self.files.log.glob("engine-*") if p.stat().st_size == 0]
        assert empty == [], "logs that say nothing"

    def destroy(self) -> None:
        """Whatever happened: end what this test started."""
        self.look()
        for mec in self._clients:
            mec.close()
        for process in self._members:
            if lives(process):
                process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def _accounts(ipython1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Counts the faults of a test, and what ran; fails it for what ran twice or is left."""
    noted = tmp_path / "notes-of-engines"
    monkeypatch.setenv("IP1_NOTES", os.fspath(noted))
    before = processes_of(ipython1_dir)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", TALLY.watched(os.kill))
        yield
    ran = notes.read(noted, TALLY.survivors.__contains__)
    TALLY.commands += ran.commands
    TALLY.tasks += ran.tasks
    TALLY.twice += len(ran.twice)
    TALLY.survivors.clear()
    left = {
        "processes": gone_soon(lambda: [each for each in processes_of(ipython1_dir) if each not in before]),
        "segments": gone_soon(dead_segments),
    }
    TALLY.left.update({kind: len(found) for kind, found in left.items()})
    segments.sweep()  # once counted
    assert ran.twice == []
    assert {kind: found for kind, found in left.items() if found} == {}


@pytest.fixture
def files(ipython1_dir: Path, request: pytest.FixtureRequest) -> ClusterFiles:
    """The files of a cluster with the name of the test."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")[:60]
    # Where a proxy is to see everything, the name is too long for the path of a Unix socket.
    return ClusterFiles(name + 60 * "x" * ("proxy" in request.fixturenames), ipython1_dir)


@pytest.fixture
def start(reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Callable[..., Rig]]:
    """Starts a cluster of `n` engines; a test that passed ends with its orderly stop, and nothing left."""
    rigs: list[Rig] = []

    def start(n: int, *options: str) -> Rig:
        rigs.append(Rig(files, ["-n", str(n), "--no-dashboard", *options]))
        return rigs[-1].ready()

    try:
        yield start
        for rig in rigs:
            rig.stop()
    finally:
        for rig in rigs:
            rig.destroy()


class Proxy:
    """A TCP proxy on loopback that can cut and delay what passes.

    Parameters
    ----------
    target : callable
        Returns the port that a new connection is forwarded to.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self.delay = 0.0  # seconds for each piece, each way
        self.accepted = 0
        self._target = target
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def furl(self, furl: str) -> str:
        """The same FURL, by way of this proxy."""
        changed, count = re.subn(r"(?<=@tcp:127\.0\.0\.1:)\d+(?=/)", str(self.port), furl.strip())
        assert count == 1
        return changed

    def cut(self, oldest: int | None = None) -> int:
        """Reset every connection there is, or the oldest ones; returns how many."""
        count = self._reset(oldest)
        TALLY.fault("connections cut", count)
        return count

    def _reset(self, oldest: int | None = None) -> int:
        with self._lock:
            cut, self._open = self._open[:oldest], [] if oldest is None else self._open[oldest:]
        for end in (end for ends in cut for end in ends):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            except OSError:
                pass
            end.close()
        return len(cut)

    def close(self) -> None:
        """End the proxy."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._run(self._connect, near)

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target()), PATIENCE)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self._open.append((near, far))
        for ends in ((near, far), (far, near)):
            self._run(self._pump, *ends)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy(files: ClusterFiles) -> Iterator[Proxy]:
    """A proxy in front of the test's controller."""
    proxy = Proxy(lambda: State.read(files).port)
    yield proxy
    proxy.close()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Has a measured time told at the end of all tests."""

    def figure(what: str, seconds: float) -> None:
        record_property("figure", f"{what}: {seconds * 1000:.0f} ms")

    return figure
