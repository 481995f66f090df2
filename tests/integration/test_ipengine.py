"""``ipengine`` as a user runs it, against a real controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipython1.kernel import client
from ipython1.kernel.error import CompositeError, LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.scripts.ipengine import NO_FURL

ROOT = Path(__file__).parents[2]
#: Longest wait for what should take milliseconds.
PATIENCE = 20.0


def until(true: Callable[[], Any]) -> Any:
    """What `true` returns, once it is true."""
    end = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
    return value


def script(name: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"ipython1.scripts.{name}", *arguments],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        **options,
    )


def ipengine(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipython1.scripts.ipengine", *arguments],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def files(ipython1_dir: Path) -> Iterator[ClusterFiles]:
    """The cluster of a controller that runs and has no engines."""
    reading, writing = os.pipe()
    options = ("--port", "0", "--no-dashboard", "--status-fd", str(writing))
    controller = script("ipcontroller", *options, pass_fds=[writing])
    os.close(writing)
    with open(reading) as status:
        event = json.loads(status.readline())
        assert event["event"] == "listening"
        yield ClusterFiles()
        controller.terminate()
        assert controller.wait(PATIENCE) == 0


class Host:
    """A running ipengine."""

    def __init__(self, files: ClusterFiles, mec: client.MultiEngineClient, *options: str) -> None:
        self.files = files
        self.mec = mec
        self.output = files.folder / "ipengine.out"
        with self.output.open("w") as output:
            self.process = script("ipengine", *options, stdin=subprocess.PIPE, stderr=output)

    def family(self) -> list[psutil.Process]:
        family: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return family

    def agent(self) -> psutil.Process:
        engines = set(self.mec.apply(os.getpid))
        [agent] = [child for child in psutil.Process(self.process.pid).children() if child.pid not in engines]
        return agent

    def logs(self) -> list[Path]:
        return sorted(self.files.log.glob("engine-*.log"))

    def gone(self, family: list[psutil.Process]) -> None:
        """Wait until none of `family` runs, nor is the controller aware of an engine."""
        _, alive = psutil.wait_procs(family, PATIENCE)
        assert alive == []
        until(lambda: not self.mec.get_ids())


@pytest.fixture
def mec(files: ClusterFiles) -> Iterator[client.MultiEngineClient]:
    with client.MultiEngineClient() as mec:
        yield mec


@pytest.fixture
def start(files: ClusterFiles, mec: client.MultiEngineClient) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def start(*options: str, n: int = 2) -> Host:
        host = Host(files, mec, "-n", str(n), *options)
        hosts.append(host)
        mec.wait_for_engines(n, timeout=PATIENCE)
        return host

    yield start
    for host in hosts:
        host.process.terminate()
        host.process.wait(PATIENCE)
        assert host.process.stdin is not None
        host.process.stdin.close()
        until(lambda: not mec.get_ids())
        for log in host.logs():
            log.unlink()


def test_engines_register_and_stop_on_request(
    start: Callable[..., Host], mec: client.MultiEngineClient
) -> None:
    host = start()
    assert mec.get_ids() == [0, 1]
    assert len(set(mec.apply(os.getpgrp))) == 2
    family = host.family()
    assert len(family) == 3
    began = time.monotonic()
    host.process.terminate()
    assert host.process.wait(PATIENCE) == 0
    assert time.monotonic() - began < 1.5  # the time before SIGKILL was not needed
    host.gone(family)
    assert host.logs() == []


def test_a_busy_engine_stops_in_time(
    start: Callable[..., Host], mec: client.MultiEngineClient, tmp_path: Path
) -> None:
    host = start()
    mec.execute("import pathlib, time; t = time.sleep", block=True)
    noted = [tmp_path / "0", tmp_path / "1"]
    busy = [
        mec.execute(
            f"""print('on')
try:
    {code}
except KeyboardInterrupt:
    pathlib.Path({str(path)!r}).touch()
    raise""",
            targets=id,
            block=False,
        )
        for id, (code, path) in enumerate(zip(["t(1000)", "while True: t(0)"], noted, strict=True))
    ]
    until(lambda: all(pending.stdout == ["on\n"] for pending in busy))
    host.process.send_signal(signal.SIGINT)
    assert host.process.wait(PATIENCE) == 0
    for pending in busy:
        with pytest.raises(client.CompositeError, match=r"EngineDied: .* stopped on request"):
            pending.get_result(timeout=PATIENCE)
    assert all(path.exists() for path in noted)  # nobody was killed when the nanny's patience was at its end


def test_user_code_that_runs_at_exit(
    start: Callable[..., Host], mec: client.MultiEngineClient, tmp_path: Path
) -> None:
    host = start(n=1)
    mec.execute(f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path / 'mark')!r}).touch)")
    host.process.terminate()
    host.process.wait(PATIENCE)
    assert (tmp_path / "mark").exists()


def test_the_furl_comes_on_stdin(files: ClusterFiles, mec: client.MultiEngineClient, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    host = Host(files, mec, "--furl-stdin", "--log-dir", str(folder))
    try:
        assert host.process.stdin is not None
        host.process.stdin.write(files.furl("engine").read_bytes().strip() + b"\n")
        host.process.stdin.close()
        mec.wait_for_engines(1, timeout=PATIENCE)
        assert sorted(path.suffix for path in folder.iterdir()) == [".log", ".out"]
        host.process.terminate()
        assert host.process.wait(PATIENCE) == 0
        assert list(folder.iterdir()) == []
    finally:
        host.process.kill()
        host.process.wait()
        until(lambda: not mec.get_ids())


def test_a_word_on_stdin_ends_it_and_the_end_of_stdin_does_not(
    files: ClusterFiles, mec: client.MultiEngineClient
) -> None:
    furl = files.furl("engine").read_bytes().strip() + b"\n"
    told, left = (Host(files, mec, "--furl-stdin") for _ in range(2))
    try:
        for host in (told, left):
            assert host.process.stdin is not None
            host.process.stdin.write(furl)
            host.process.stdin.flush()
        left.process.stdin.close()
        mec.wait_for_engines(2, timeout=PATIENCE)
        family = told.family()
        told.process.stdin.write(b"quit\n")
        told.process.stdin.flush()
        assert told.process.wait(PATIENCE) == 0
        assert psutil.wait_procs(family, PATIENCE)[1] == []
        assert left.process.poll() is None
        assert "the link" not in left.output.read_text()
        left.process.terminate()
        assert left.process.wait(PATIENCE) == 0
    finally:
        for host in (told, left):
            host.process.kill()
            host.process.wait()
        until(lambda: not mec.get_ids())


def test_a_crash_is_told_and_the_engine_comes_back(
    start: Callable[..., Host], mec: client.MultiEngineClient
) -> None:
    host = start()
    with pytest.raises(CompositeError) as caught:
        mec.execute("import ctypes\ndef crash():\n    ctypes.string_at(0)\ncrash()", targets=1)
    text = str(caught.value)
    assert "Engine 1 died: killed by signal 11 (SIGSEGV)" in text
    assert "Fatal Python error: Segmentation fault" in text
    assert "in crash" in text
    assert "mainloop.py" not in text
    assert mec.execute("print('back')", targets=1)[0]["stdout"] == "back\n"
    [log] = [log for log in host.logs() if log.stat().st_size]
    assert f"restarted, see {log}" in host.output.read_text()


def test_orders(start: Callable[..., Host], mec: client.MultiEngineClient) -> None:
    start()
    first, second = mec.apply(os.getpid)
    mec.restart(targets=1)
    until(lambda: _pid(mec, 1) not in (None, second))
    assert mec.apply(os.getpid, targets=0) == [first]
    mec.execute("import signal; got = []; signal.signal(signal.SIGUSR1, lambda *_: got.append(1))", targets=0)
    mec[0].signal(signal.SIGUSR1)
    until(lambda: mec.pull("got", targets=0) == [[1]])
    mec[1].kill()
    until(lambda: mec.get_ids() == [0])
    mec.scale(3)
    mec.wait_for_engines(3, timeout=PATIENCE)
    assert mec.get_ids() == [0, 1, 2]


def _pid(mec: client.MultiEngineClient, id: int) -> int | None:
    for facts in mec.status():
        if facts["id"] == id and facts["state"] == "ready":
            return int(facts["pid"])
    return None


def test_a_killed_agent_comes_back(start: Callable[..., Host], mec: client.MultiEngineClient) -> None:
    host = start()
    mec.push({"kept": 5})
    agent = host.agent()
    agent.kill()
    until(lambda: not agent.is_running())
    until(lambda: len(host.family()) == 3)
    engine = mec.apply(os.getpid, targets=1)[0]
    until(lambda: _ordered(lambda: mec.restart(targets=1)))
    until(lambda: _pid(mec, 1) not in (None, engine))
    assert mec.pull("kept", targets=0) == [5]


def _ordered(order: Callable[[], Any]) -> bool:
    """Whether the controller could pass the order on."""
    try:
        order()
    except LaunchError:
        return False
    return True


def test_a_killed_nanny_leaves_nothing(start: Callable[..., Host], mec: client.MultiEngineClient) -> None:
    host = start()
    mec.execute("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    family = host.family()
    assert len(family) == 5
    host.process.kill()
    host.gone(family)
    until(lambda: host.logs() == [])


def test_what_an_engine_started_ends_with_it(
    start: Callable[..., Host], mec: client.MultiEngineClient
) -> None:
    host = start(n=1)
    mec.execute("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    [sleeper] = [process for process in host.family() if process.name() == "sleep"]
    with pytest.raises(CompositeError, match=r"Engine 0 died: exit status 3"):
        mec.execute("import os; os._exit(3)")
    until(lambda: not sleeper.is_running())


def test_without_restart(start: Callable[..., Host], mec: client.MultiEngineClient) -> None:
    start("--no-restart")
    with pytest.raises(CompositeError, match=r"Engine 1 died: killed by signal 9 \(SIGKILL\)"):
        mec.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", targets=1)
    until(lambda: mec.get_ids() == [0])


def test_usage_is_reported(start: Callable[..., Host], mec: client.MultiEngineClient) -> None:
    start(n=1)
    until(lambda: mec.status()[0]["rss"] > 1_000_000)


def test_engines_share_most_of_their_memory(
    start: Callable[..., Host], mec: client.MultiEngineClient
) -> None:
    start()
    for pid in mec.apply(os.getpid):
        assert psutil.Process(pid).memory_full_info().uss < 40_000_000


# -- what can go wrong before there is an engine ------------------------------------------------


def test_no_furl_on_stdin() -> None:
    done = ipengine("--furl-stdin")
    assert done.returncode == NO_FURL
    assert done.stderr.startswith("ipengine: no FURL came on stdin.")
    assert done.stderr.count("\n") == 1


def test_something_else_on_stdin() -> None:
    done = ipengine("--furl-stdin", stdin="hello\n")
    assert done.returncode == NO_FURL
    assert done.stderr.startswith("ipengine: what was given is not a FURL.")
    assert done.stderr.count("\n") == 1


def test_no_furl_file() -> None:
    done = ipengine("--cluster", "none")
    assert done.returncode == NO_FURL
    assert "none/security/ipcontroller-engine.furl" in done.stderr
    assert "No such file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_furl_file(tmp_path: Path) -> None:
    (tmp_path / "furl").touch()
    done = ipengine("--furl-file", str(tmp_path / "furl"))
    assert done.returncode == NO_FURL
    assert done.stderr.startswith(f"ipengine: the FURL file {tmp_path / 'furl'} is empty.")


def test_the_furl_of_another_kind(files: ClusterFiles) -> None:
    done = ipengine("--furl-file", str(files.furl("task")))
    assert done.returncode == 3
    assert "This FURL does not allow" in done.stderr


@pytest.mark.parametrize(
    "options", [("-n", "0"), ("--cluster", "../x"), ("--furl-stdin", "--furl-file", "x"), ("--frul",)]
)
def test_wrong_options(options: tuple[str, ...]) -> None:
    done = ipengine(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")


def test_help_has_an_example() -> None:
    done = ipengine("--help")
    assert done.returncode == 0
    assert "ipengine -n 4" in done.stdout
    assert "stopped on request" in done.stdout
