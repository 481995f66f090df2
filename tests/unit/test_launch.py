"""Launching: state of clusters, the supervisor's decisions, the command lines; no processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch import background, runner, state
from ipython1.launch.cluster import Cluster
from ipython1.launch.launcher import Launcher, find_launcher, make_launcher
from ipython1.launch.local import LocalController, RunningController, environment
from ipython1.launch.logs import KEPT, follow, log_lines, prune
from ipython1.launch.report import Banner, Report, engines_line
from ipython1.launch.state import AlreadyRunning, Lock, NotRunning, State
from ipython1.launch.supervisor import DEATHS, PERIOD, Budget, Supervisor
from ipython1.scripts import ipcluster, ipcontroller
from ipython1.scripts.status import completeness


@pytest.fixture
def files(tmp_path: Path) -> ClusterFiles:
    """The files of a cluster that has never run."""
    found = ClusterFiles("mine", tmp_path / "root")
    found.create()
    return found


# -- locks and state -----------------------------------------------------------


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert not second.is_held()
    assert first.acquire()
    assert first.acquire()  # it has it already
    assert second.is_held()
    assert not second.acquire()
    first.release()
    assert not second.is_held()
    assert second.acquire()


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()
    looking = os.open(lock.path, os.O_RDWR)
    state._flock(looking, state.fcntl.LOCK_SH)
    assert not lock.is_held()
    os.close(looking)
    assert lock.acquire()


def test_a_lock_in_a_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path / "run" / "lock")
    lock.path.parent.mkdir()
    real = state._flock
    calls: list[int] = []

    def flock(fd: int, kind: int) -> bool:
        calls.append(kind)
        if len(calls) == 1:  # between opening and locking
            lock.path.unlink()
            lock.path.parent.rmdir()
        return real(fd, kind)

    monkeypatch.setattr(state, "_flock", flock)
    assert lock.acquire()
    assert lock.is_held()


def test_state_survives_its_file(files: ClusterFiles) -> None:
    written = State(1, 2.5, 3, 4, "host", 5, 6, [0, 2], 7.5, "http://x", True)
    written.write(files)
    assert State.read(files) == written
    assert files.state.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "1", "engines": 5, "who": 3}'])
def test_damaged_state_is_no_state(files: ClusterFiles, text: str) -> None:
    files.state.write_text(text)
    assert State.read(files) == State()


def test_who_wrote_the_state() -> None:
    me = os.getpid()
    assert State(me, state.birth(me)).is_current
    assert not State(me, state.birth(me) + 1).is_current
    assert not State().is_current


def test_addresses() -> None:
    assert State(host="127.0.0.1", port=10105).address == "127.0.0.1:10105"
    assert State(host="::1", port=10105).address == "[::1]:10105"
    assert State().address == ""


def test_a_name_is_owned_once(files: ClusterFiles) -> None:
    with state.held(files):
        State(pid=4242).write(files)
        assert state.running(files).pid == 4242
        with pytest.raises(AlreadyRunning) as caught, state.held(files):
            pass
    assert str(caught.value) == (
        "Cluster mine is already running (pid 4242): stop it with ipcluster stop --cluster mine, "
        "or give this one a name: --cluster NAME"
    )
    with pytest.raises(NotRunning, match="Start it with: ipcluster -n 4 --cluster mine"):
        state.running(files)


def test_clean_takes_what_a_dead_cluster_left(files: ClusterFiles) -> None:
    State(pid=4242).write(files)
    (files.run / "lane.sock").touch()
    (files.run / "blobs").mkdir()
    (files.run / "blobs" / "1").touch()
    files.furl("engine").write_text("kept")
    assert state.clean(files)
    assert {path.name for path in files.run.iterdir()} == {"ipcluster.lock", "ipcontroller.lock"}
    assert files.furl("engine").read_text() == "kept"


def test_clean_takes_what_the_engines_of_a_dead_cluster_wrote(files: ClusterFiles) -> None:
    State(pid=4242).write(files)
    for name in ("engine-1f.log", "engine-1f.out", "ipcontroller.log"):
        (files.log / name).write_text("words\n")
    assert state.has_left_something(files)
    assert state.clean(files)
    assert [path.name for path in files.log.iterdir()] == ["ipcontroller.log"]
    assert not state.has_left_something(files)


@pytest.mark.parametrize("whose", [state.cluster_lock, state.controller_lock])
def test_clean_leaves_a_live_cluster_alone(
    files: ClusterFiles, whose: Callable[[ClusterFiles], Lock]
) -> None:
    State(pid=4242).write(files)
    owner = whose(files)
    owner.acquire()
    assert not state.clean(files, everything=True)
    assert State.read(files).pid == 4242
    owner.release()
    assert state.clean(files, everything=True)
    assert not files.folder.exists()


def test_clean_removes_temporary_clusters(files: ClusterFiles) -> None:
    State(temporary=True).write(files)
    assert state.clean(files)
    assert not files.folder.exists()


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), ("x", TypeError), (True, TypeError)]
)
def test_a_cluster_of_no_engines(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{n}"):
        Cluster(n=n)


# -- the supervisor --------------------------------------------------------------


class FakeController:
    """A controller that says what a test has it say."""

    pid = 77
    ended_well = False
    words = ""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.said: list[dict[str, Any]] = []
        self.ended: str | None = None

    def start(self, port: int | None = None) -> None:
        self.ended = None
        self.calls.append(("controller", port))

    def fileno(self) -> None:
        pass

    def events(self) -> list[dict[str, Any]]:
        said, self.said = self.said, []
        return said

    def poll(self) -> str | None:
        return self.ended

    def last_words(self) -> str:
        return self.words

    def stop(self) -> None:
        self.calls.append("controller stopped")


class FakeLauncher(Launcher):
    """A launcher that records, and has nothing to prepare."""

    pid = 78
    missing = 0

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.ended: str | None = None
        self.told: list[str] = []

    def news(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def start(self, n: int, furl: str) -> None:
        self.ended = None
        self.calls.append(("engines", n, furl))

    def poll(self) -> str | None:
        return self.ended

    def last_words(self) -> str:
        return "ImportError: no numpy"

    def stop(self) -> None:
        self.calls.append("engines stopped")


class EarlyLauncher(FakeLauncher):
    """A launcher that can start before the FURL is known."""

    def prepare(self, n: int) -> None:
        self.calls.append(("prepared", n))


class FakeReport(Report):
    """Keeps what is reported."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.warnings: list[str] = []

    def listening(self, state: State) -> None:
        self.calls.append(f"listens at {state.address}")

    def ready(self, state: State, ids: Any, seconds: float) -> None:
        self.calls.append(f"ready: {engines_line(ids, state.n, seconds)}")

    def ended(self, state: State) -> None:
        self.calls.append("ended")

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class House:
    """A supervisor among fakes."""

    def __init__(
        self, files: ClusterFiles, launcher: type[FakeLauncher] = FakeLauncher, **options: Any
    ) -> None:
        files.furl("engine").write_text("pb://secret\n")
        self.files = files
        self.clock = Clock()
        self.calls: list[Any] = []
        self.controller = FakeController(self.calls)
        self.launcher = launcher(self.calls)
        self.report = FakeReport(self.calls)
        self.supervisor = Supervisor(
            files, 2, self.controller, self.launcher, self.report, now=self.clock.seconds, **options
        )
        self.supervisor.start()

    def hear(self, event: str, **facts: Any) -> None:
        self.controller.said.append({"event": event, **facts})
        self.supervisor.look()

    def up(self) -> None:
        self.hear("listening", host="h", port=5)
        self.hear("engines", ids=[0, 1])
        self.calls.clear()


def test_the_way_up(files: ClusterFiles) -> None:
    ready: list[int] = []
    house = House(files, on_ready=lambda: ready.append(1))
    house.supervisor.look()
    house.clock.advance(0.5)
    house.hear("listening", host="127.0.0.1", port=5, dashboard="http://d")
    house.hear("engines", ids=[1])
    assert not ready
    house.clock.advance(0.4)
    house.hear("engines", ids=[0, 1])
    assert house.calls == [
        ("controller", None),
        "listens at 127.0.0.1:5",
        ("engines", 2, "pb://secret\n"),
        "ready: 2 of 2 ready in 0.9 s: 0 1",
    ]
    assert ready == [1]
    assert house.report.warnings == []
    found = State.read(files)
    assert (found.pid, found.controller, found.nanny) == (os.getpid(), 77, 78)
    assert (found.port, found.engines, found.dashboard) == (5, [0, 1], "http://d")
    assert found.is_current


def test_engines_that_can_are_started_with_the_controller(files: ClusterFiles) -> None:
    house = House(files, EarlyLauncher)
    assert house.calls == [("controller", None), ("prepared", 2)]


def test_the_way_down(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    house.supervisor.signalled(signal.SIGTERM)
    assert house.supervisor.outcome == 0
    house.supervisor.stop()
    assert house.calls == ["engines stopped", "controller stopped", "ended"]
    assert not files.state.exists()


def test_a_start_that_fails_costs_no_detached_work(files: ClusterFiles) -> None:
    files.detached.mkdir()
    (files.detached / "1").touch()
    House(files).supervisor.stop()
    assert (files.detached / "1").exists()
    assert not files.state.exists()
    house = House(files)
    house.up()
    house.supervisor.stop()  # its engines are gone, and what they had
    assert not files.detached.exists()


def test_a_start_that_fails_takes_nothing_from_a_controller_that_runs(files: ClusterFiles) -> None:
    (files.run / "lane.sock").touch()
    other = state.controller_lock(files)
    assert other.acquire()
    House(files).supervisor.stop()
    assert (files.run / "lane.sock").exists()
    assert not files.state.exists()
    other.release()


def test_what_cannot_be_stopped_does_not_keep_the_rest(
    files: ClusterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(files)

    def stop() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "a.out")

    monkeypatch.setattr(house.launcher, "stop", stop)
    house.supervisor.stop()
    assert house.calls[-1] == "controller stopped"
    assert house.report.warnings == ["a.out: No such file or directory."]


def test_a_second_ctrl_c_stops_at_once(files: ClusterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(files)
    stops: list[int] = []

    def stop() -> None:
        stops.append(1)
        if len(stops) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(house.launcher, "stop", stop)
    house.supervisor.stop()
    assert stops == [1, 1]
    assert house.calls[-1] == "controller stopped"


def test_a_temporary_cluster_leaves_nothing(files: ClusterFiles) -> None:
    house = House(files, temporary=True)
    house.supervisor.stop()
    assert not files.folder.exists()


def test_a_signal_before_all_is_ready(files: ClusterFiles) -> None:
    house = House(files)
    house.supervisor.signalled(signal.SIGINT)
    assert house.supervisor.outcome == 130


def test_scaling_changes_what_is_wanted(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    assert State.read(files).wanted == 2
    house.hear("scaled", n=5)
    assert (State.read(files).wanted, house.supervisor.state.n) == (5, 2)


def test_a_client_shuts_the_cluster_down(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    house.hear("shutdown")
    assert house.supervisor.outcome == 0
    assert house.calls == []


def test_a_controller_that_cannot_start(files: ClusterFiles) -> None:
    house = House(files)
    house.controller.words = "ipcontroller: The controller did not start: port 5 is in use."
    house.controller.ended = "exit status 1"
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert house.report.warnings == ["The controller did not start: port 5 is in use."]


def test_the_controllers_reason_is_heard_where_its_stderr_is_on_a_full_disk(files: ClusterFiles) -> None:
    house = House(files)
    house.controller.ended = "exit status 1"
    events = iter([[], [{"event": "error", "text": "No space."}]])  # said between the looks
    house.controller.events = lambda: next(events)  # type: ignore[method-assign]
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert house.report.warnings == ["No space."]


def test_a_full_disk_does_not_end_a_cluster_that_runs(
    files: ClusterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(files)
    house.up()
    with monkeypatch.context() as patch:

        def full(_state: State, _files: ClusterFiles) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "there")

        patch.setattr(State, "write", full)
        house.hear("engines", ids=[0])
        house.hear("engines", ids=[1])
        assert house.supervisor.outcome is None
        [warning] = house.report.warnings
        assert warning.startswith("there: No space left on device.")
    assert State.read(files).engines == [0, 1]
    house.supervisor.look()
    assert State.read(files).engines == [1]


def test_a_dead_controller_is_started_again_on_its_port(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    for _ in range(DEATHS):
        house.controller.ended = "killed by signal 9 (SIGKILL)"
        house.supervisor.look()
        house.hear("listening", host="h", port=5)
    assert house.calls == [("controller", 5)] * DEATHS
    assert house.supervisor.outcome is None
    house.controller.ended = "killed by signal 9 (SIGKILL)"
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert len(house.calls) == DEATHS
    assert "too often" in house.report.warnings[-1]


def test_a_controller_that_was_told_to_end(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    house.controller.ended_well = True
    house.controller.ended = "exit status 0"
    house.supervisor.look()
    assert house.supervisor.outcome == 0
    assert house.report.warnings == []


def test_dead_engines_are_started_again(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    house.launcher.ended = "killed by signal 9 (SIGKILL)"
    house.supervisor.look()
    assert house.calls == [("engines", 2, "pb://secret\n")]
    house.supervisor.look()
    assert len(house.calls) == 1


@pytest.mark.parametrize(
    ("orders", "started"),
    [
        ([(2, 5)], [5]),
        ([(2, 5), (5, 1)], [1]),
        ([(4, 6)], [4]),  # two are another launcher's
        ([(1, 2)], [2]),  # one was given up
        ([(2, 0)], []),
    ],
)
def test_after_a_death_of_all_there_are_as_many_as_were_wanted_last(
    files: ClusterFiles, orders: list[tuple[int, int]], started: list[int]
) -> None:
    house = House(files)
    house.launcher.resizes = True
    house.up()
    for before, n in orders:
        house.hear("scaled", n=n, before=before)
    house.launcher.ended = "killed by signal 9 (SIGKILL)"
    house.supervisor.look()
    assert house.calls == [("engines", n, "pb://secret\n") for n in started]
    assert house.report.warnings[-1].endswith("started again." if started else "None is wanted.")


def test_engines_that_were_told_to_end_stay_away(files: ClusterFiles) -> None:
    house = House(files)
    house.up()
    house.launcher.ended = "exit status 0"
    house.supervisor.look()
    assert house.calls == []
    assert house.supervisor.outcome is None
    assert State.read(files).nanny == 0


def test_nothing_is_started_again_where_that_is_not_wanted(files: ClusterFiles) -> None:
    house = House(files, restart=False)
    house.up()
    house.launcher.ended = "exit status 7"
    house.supervisor.look()
    assert house.supervisor.outcome is None
    house.controller.ended = "exit status 8"
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert house.calls == []
    assert house.report.warnings == [
        "the engines ended: exit status 7",
        "the controller ended: exit status 8",
    ]


def test_engines_that_fail_alike_are_shown_once_and_end_it(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.hear("failed", output="ImportError: no numpy", replaced=True)
    house.hear("failed", output="ImportError: no numpy", replaced=False)
    assert house.supervisor.outcome is None
    house.hear("failed", output="ImportError: no numpy", replaced=False)
    assert house.supervisor.outcome == 1
    shown = [text for text in house.report.warnings if "no numpy" in text]
    assert shown == ["an engine died before it was ready:\nImportError: no numpy"]


def test_some_engines_fail(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.hear("failed", output="oh", replaced=False)
    house.hear("engines", ids=[0])
    assert house.supervisor.outcome is None
    assert house.calls[-1] == "ready: 1 of 2 ready in 0.0 s: 0"


def test_the_nanny_fails(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.launcher.ended = "exit status 1"
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert house.report.warnings[0] == "the engines did not start:\nImportError: no numpy"


@pytest.mark.parametrize(("listens", "ids", "outcome"), [(False, [], 1), (True, [], 1), (True, [0], None)])
def test_it_takes_too_long(files: ClusterFiles, listens: bool, ids: list[int], outcome: int | None) -> None:
    house = House(files, timeout=10)
    if listens:
        house.hear("listening", host="h", port=5)
        house.hear("engines", ids=ids)
    house.clock.advance(10)
    house.supervisor.look()
    assert house.report.warnings == []
    house.clock.advance(0.1)
    house.supervisor.look()
    assert house.supervisor.outcome == outcome
    assert "10 s" in house.report.warnings[0]
    assert house.supervisor.is_ready is bool(ids)


def test_it_ends_with_its_owner(files: ClusterFiles) -> None:
    house = House(files, owner=os.getppid())
    house.up()
    assert house.supervisor.outcome is None
    house = House(files, owner=os.getppid() + 1)
    house.up()
    assert house.supervisor.outcome == 0


class FakeScript:
    """A script under a supervisor."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.status

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_script_starts_late_and_ends_it(files: ClusterFiles) -> None:
    script = FakeScript()
    house = House(files, script=lambda: house.calls.append("script") or script)
    assert "script" not in house.calls
    house.hear("listening", host="h", port=5)
    house.hear("engines", ids=[0, 1])
    assert house.calls[-1] == "script"
    house.supervisor.signalled(signal.SIGTERM)
    assert (script.signals, house.supervisor.outcome) == ([signal.SIGTERM], None)
    script.status = 3
    house.supervisor.look()
    assert house.supervisor.outcome == 0


@given(st.lists(st.floats(0, PERIOD), max_size=30))
def test_the_budget_of_restarts(pauses: list[float]) -> None:
    clock, deaths = Clock(), []
    budget = Budget(clock.seconds)
    for pause in pauses:
        clock.advance(pause)
        deaths.append(clock.seconds())
        recent = [death for death in deaths if deaths[-1] - death <= PERIOD]
        assert budget.allows() is (len(recent) <= DEATHS)


def test_the_last_words_of_a_controller_come_in_pieces(files: ClusterFiles) -> None:
    controller = LocalController(files)
    controller._fd, theirs = os.pipe()
    os.set_blocking(controller._fd, False)
    os.write(theirs, b'{"event": "a"}\n{"eve')
    assert controller.events() == [{"event": "a"}]
    os.write(theirs, b'nt": "b"}\n')
    os.close(theirs)
    assert controller.events() == [{"event": "b"}]
    assert controller.fileno() is None


def test_a_cluster_of_another_host_cannot_be_stopped_here(
    files: ClusterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "UNKNOWN_GRACE", 0.05)
    with state.held(files):
        State(pid=os.getpid(), created=1.0).write(files)  # no process of this host
        with pytest.raises(LaunchError, match="Stop it where it was started"):
            background.stop_cluster(files)


def test_more_engines_for_a_cluster_that_runs(files: ClusterFiles) -> None:
    seen = RunningController(files)
    with state.held(files):
        State(controller=9, host="h", port=5, engines=[0, 1]).write(files)
        assert seen.events() == [{"event": "listening", "host": "h", "port": 5}]
        assert seen.events() == []
        State(controller=9, host="h", port=5, engines=[0, 1, 2]).write(files)
        assert seen.events() == [{"event": "engines", "ids": [2]}]
        assert seen.pid == 9
    assert seen.events() == [{"event": "shutdown"}]


# -- what users see -----------------------------------------------------------------


def test_the_banner(capsys: pytest.CaptureFixture[str]) -> None:
    found = State(
        controller=4242, host="127.0.0.1", port=10105, n=4, dashboard="http://127.0.0.1:10106/?token=t"
    )
    banner = Banner("default", "")
    banner.listening(found)
    banner.ready(found, [0, 1, 2, 3], 0.94)
    assert capsys.readouterr().out == (
        "controller   127.0.0.1:10105  (pid 4242)\n"
        "engines      4 of 4 ready in 0.9 s: 0 1 2 3\n"
        "connect      from ipython1.kernel import client; mec = client.MultiEngineClient()\n"
        "dashboard    http://127.0.0.1:10106/?token=t\n"
        "stop         Ctrl-C, or: ipcluster stop\n"
    )


def test_the_banner_of_a_named_cluster_in_the_background(capsys: pytest.CaptureFixture[str]) -> None:
    Banner("mine", " --cluster mine", daemon=True).ready(State(n=1), [], 1)
    assert capsys.readouterr().out == (
        "engines      0 of 1 ready in 1.0 s\n"
        "connect      from ipython1.kernel import client; mec = client.MultiEngineClient(cluster='mine')\n"
        "stop         ipcluster stop --cluster mine\n"
    )


def test_nobody_reads_the_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        Banner("mine", "").ended(State())
        Banner("mine", "").ended(State())
        assert os.path.samestat(os.fstat(theirs), os.stat(os.devnull))


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of an `ipcluster` command."""
    done = CliRunner().invoke(ipcluster.main, arguments, prog_name="ipcluster")
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("command", list(ipcluster.main.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    status, out, err = invoke(command, "--help")
    assert (status, err) == (0, "")
    assert f"Example:  {'ssh' if command == 'furl' else f'ipcluster {command}'}" in out


def test_options_alone_mean_start(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(ipcluster.start, "callback", lambda **options: given.append(options))
    assert invoke("-n", "4")[0] == 0
    assert invoke("start", "-n", "4")[0] == 0
    assert given[0]["n"] == given[1]["n"] == 4
    assert given[0]["files"].cluster == "default"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("stop", 3, "ipcluster: Cluster default is not running. Start it with: ipcluster -n 4\n"),
        (
            "status --cluster x",
            3,
            "ipcluster: Cluster x is not running. Start it with: ipcluster -n 4 --cluster x\n",
        ),
        ("scale 3", 3, "not running"),
        ("engines", 3, "not running"),
        ("furl engine", 3, "not running"),
        ("logs", 3, "not running"),
        ("top --once", 3, "not running"),
        ("status -o table", 2, "not one of 'text', 'json'"),
        ("clean --cluster x", 3, "there is no cluster x"),
        ("start --engines moon", 2, "There is no launcher 'moon'. Installed are: "),
        ("start --engines slurm --per-job 0", 2, "--per-job is 1 or more, not 0"),
        ("start --cluster a/b", 2, "cannot be the name of a cluster"),
        ("strat", 2, "No such command 'strat'"),
        ("start -n 0", 2, "0 is not in the range"),
        ("run no-such-script.py", 2, "does not exist"),
    ],
)
def test_exit_statuses_and_their_reasons(arguments: str, status: int, said: str) -> None:
    found = invoke(*arguments.split())
    assert found[:2] == (status, "")
    assert said in found[2]


def test_the_status_of_a_stopped_cluster_for_programs(ipython1_dir: Path) -> None:
    status, out, err = invoke("status", "-o", "json", "--cluster", "gone")
    facts = json.loads(out)
    assert (status, facts["cluster"], facts["state"]) == (3, "gone", "stopped")
    assert (facts["engines"], facts["links"], facts["wanted"]) == ([], [], 0)
    assert "Cluster gone is not running" in err


@pytest.mark.parametrize(
    ("engines", "wanted", "status"),
    [
        ([("ready", 0.0)] * 2, 2, 0),
        ([("ready", 0.0)] * 3, 2, 0),  # more joined
        ([("ready", 0.0)] * 2, 3, 5),
        ([("ready", 0.0), ("away", 0.0)], 1, 5),
        ([("ready", 0.0), ("ready", 9.5)], 2, 5),
        ([], 0, 0),
    ],
)
def test_whether_all_engines_are_there(
    files: ClusterFiles, engines: list[tuple[str, float]], wanted: int, status: int
) -> None:
    with state.held(files):
        State(wanted=wanted).write(files)
        rows = [{"state": name, "stuck": stuck} for name, stuck in engines]
        assert completeness(files, rows) == status


def test_a_running_cluster_is_not_started_twice_nor_cleaned(ipython1_dir: Path) -> None:
    files = ClusterFiles("busy", ipython1_dir)
    with state.held(files):
        State(pid=4242, controller=4243, host="h", port=5, engines=[0, 1], started=1.0).write(files)
        status, _, err = invoke("start", "-n", "1", "--cluster", "busy")
        assert (status, "already running (pid 4242)" in err) == (4, True)
        assert invoke("clean", "--cluster", "busy")[0] == 4
        assert files.state.exists()
        [facts] = json.loads(invoke("list", "-o", "json")[1])
        assert (facts["cluster"], facts["state"], facts["address"]) == ("busy", "running", "h:5")
        assert "busy     running  4242  h:5      2" in invoke("list")[1]
        State(pid=4242, started=1.0, wanted=2).write(files)
        assert "busy     starting  4242           0" in invoke("list")[1]
        assert invoke("status", "--cluster", "busy") == (5, "starting\n", "")
        facts = json.loads(invoke("status", "--cluster", "busy", "-o", "json")[1])
        assert (facts["state"], facts["wanted"], facts["engines"], facts["links"]) == ("starting", 2, [], [])
        assert "it does not listen yet" in invoke("top", "--cluster", "busy")[2]
    assert "busy     stopped" in invoke("list")[1]
    files.furl("view").write_text("pb://v\n")
    assert invoke("furl", "view", "--cluster", "busy") == (0, "pb://v\n", "")
    assert invoke("furl", "view", "--path", "--cluster", "busy")[1] == f"{files.furl('view')}\n"
    assert invoke("clean")[:2] == (0, "cleaned      cluster busy\n")
    assert files.furl("view").exists()
    assert invoke("list")[1] == "no clusters\n"
    assert invoke("clean", "--all")[:2] == (0, "cleaned      cluster busy\n")
    assert not files.folder.exists()
    assert invoke("list")[1] == "no clusters\n"


class Moon(Launcher):
    """A launcher of another package."""

    def __init__(
        self, files: ClusterFiles, *, restart: bool, hosts: str = "", env: tuple[str, ...] = ()
    ) -> None:
        super().__init__(files, restart=restart)
        if hosts == "mars":
            raise ValueError("mars is not on the moon.")
        self.asked = hosts, env

    def plan(self, n: int) -> str:
        return f"{n} rockets for {self.asked}"


@pytest.fixture
def moon(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "moon"

        def load(self) -> type[Launcher]:
            return Moon

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()])


@pytest.mark.parametrize(
    ("options", "status", "output"),
    [
        (["-n", "2"], 0, "2 rockets for ('', ())\n"),
        (["-n", "2", "--hosts", "a:2,b"], 0, "2 rockets for ('a:2,b', ())\n"),
        (["-n", "1", "--env", "A=1", "--env", "B=2"], 0, "1 rockets for ('', ('A=1', 'B=2'))\n"),
        (["--hosts", "mars"], 2, "mars is not on the moon."),
        (["--walltime", "1:00"], 2, "--walltime is of no use with --engines moon."),
        (["--stuck", "restart"], 2, "--stuck is of no use with --engines moon."),
        (["--per-job", "2"], 2, "--per-job is of no use with --engines moon."),
    ],
)
def test_launchers_from_elsewhere_get_only_what_was_asked_for(
    moon: None, options: list[str], status: int, output: str
) -> None:
    found = invoke("start", "--engines", "moon", "--dry-run", *options)
    assert found[0] == status
    assert output in found[1 if status == 0 else 2]


def test_a_launcher_that_is_not_there(moon: None) -> None:
    with pytest.raises(ValueError, match=r"'mars'\. Installed are: local, moon"):
        find_launcher("mars")
    with pytest.raises(ValueError, match=r"--hosts is of no use with --engines local\."):
        make_launcher("local", ClusterFiles(), {"hosts": "a"})


def test_what_a_launcher_tells_is_shown(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.launcher.told = ["job 17 waits: Resources"]
    house.supervisor.look()
    house.supervisor.look()
    assert house.report.warnings == ["job 17 waits: Resources"]


def test_engines_that_a_launcher_gives_up_are_not_waited_for(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.hear("engines", ids=[0])
    assert not house.supervisor.is_ready
    house.launcher.missing = 1
    house.supervisor.look()
    assert house.supervisor.is_ready
    assert house.calls[-1] == "ready: 1 of 2 ready in 0.0 s: 0"


def test_none_of_the_engines_can_be_started(files: ClusterFiles) -> None:
    house = House(files)
    house.hear("listening", host="h", port=5)
    house.launcher.missing = 2
    house.supervisor.look()
    assert house.supervisor.outcome == 1
    assert "no engine came up (the others could not be started)" in house.report.warnings[-1]


def test_our_processes_find_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.fspath(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", "/first")
    assert environment(A="b") == {**os.environ, "A": "b", "PYTHONPATH": f"/first:{root}"}
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"] == root
    monkeypatch.setattr("ipython1.__file__", "/v/site-packages/ipython1/__init__.py")
    assert environment() == dict(os.environ)


# -- logs -----------------------------------------------------------------------------


def test_the_oldest_files_of_engines_go(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        path = tmp_path / f"engine-{number}.log"
        path.write_text("x")
        os.utime(path, (number, number))
    other = tmp_path / "ipcontroller.log"
    other.write_text("x")
    os.utime(other, (0, 0))
    prune(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ipcontroller.log", *(f"engine-{number}.log" for number in range(3, KEPT + 3))}
    prune(tmp_path / "missing")


def test_log_lines_and_what_follows(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("1\n2\n3\nnot whole")
    (tmp_path / "b.out").write_text("x\n")
    (tmp_path / "c.txt").write_text("no log\n")
    ends: dict[Path, int] = {}
    assert list(log_lines(tmp_path, 2, ends)) == ["[a] 2", "[a] 3", "[b] x"]

    def sleep(_seconds: float) -> None:
        sleeps.append(1)
        if len(sleeps) == 1:
            (tmp_path / "a.log").write_text("1\n2\n3\nnot whole, now it is\n")
            (tmp_path / "b.out").write_text("")
        elif len(sleeps) == 2:
            (tmp_path / "b.out").write_text("new\n")
        else:
            raise KeyboardInterrupt

    sleeps: list[int] = []
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        for line in follow(tmp_path, ends, sleep):
            lines.append(line)
    assert lines == ["[a] not whole, now it is", "[b] new"]


# -- the runner -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("print(mec)", ["mec"]),
        ("def f():\n    return mec.get_ids()", ["mec"]),
        ("mec = 5\nprint(mec)", []),
        ("import mec\nmec.f()", []),
        ("from x import y as mec\nmec()", []),
        ("def f(mec):\n    return mec", []),
        ("def mec(): pass\nmec()", []),
        ("class mec: pass\nmec()", []),
        ("with f() as mec:\n    mec()", []),
        ("print('mec', x.mec)", []),
        ("# -*- coding: latin-1 -*-\nmec", ["mec"]),
    ],
)
def test_which_scripts_get_a_client(source: str, names: list[str]) -> None:
    assert runner.wanted(source.encode()) == names


def test_a_script_runs_as_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    hook: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: hook.append(error))
    (tmp_path / "beside.py").write_text("value = 5")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\nassert sys.modules['__main__'].__dict__ is globals()\n"
        "assert __name__ == '__main__'\nfound = sys.argv, beside.value\nraise LookupError\n"
    )
    with pytest.raises(LookupError) as caught:
        runner.run(str(script), ["-a", "b"])
    assert sys.modules["__main__"].found == ([str(script), "-a", "b"], 5)
    trace = caught.value.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != runner.__file__:
        trace = trace.tb_next  # the test's own frames
    sys.excepthook(caught.type, caught.value, trace)
    [(_, error, shown)] = hook
    assert error.__traceback__ is shown
    assert shown.tb_frame.f_code.co_filename == str(script)  # its user sees nothing of ours
    assert shown.tb_next is None


# -- ipcontroller ------------------------------------------------------------------------


FURL = "pb://" + "a" * 32 + "@tcp:127.0.0.1:4711/" + "b" * 32


def test_the_ports_a_controller_tries(files: ClusterFiles) -> None:
    assert ipcontroller.ports(files, None) == [10105, 0]
    files.furl("engine").write_text(FURL)
    assert ipcontroller.ports(files, None) == [4711, 10105, 0]
    assert ipcontroller.ports(files, 5) == [5]
    files.furl("engine").write_text("damaged")
    assert ipcontroller.ports(files, None) == [10105, 0]


def test_status_lines_outlive_a_parent_that_does_not_read(files: ClusterFiles) -> None:
    clock = Clock()
    ours, theirs = os.pipe()
    status = ipcontroller.Status(clock, theirs)
    sent = [{"event": "failed", "output": str(i) * 3000} for i in range(100)]
    for event in sent:
        status.tell(event)
    received = b""
    while clock.getDelayedCalls():
        received += os.read(ours, 1_000_000)
        clock.advance(1)
    os.set_blocking(ours, False)
    received += os.read(ours, 1_000_000)
    assert [json.loads(line) for line in received.splitlines()] == sent
    os.close(ours)
    status.tell({"event": "engines"})  # nobody reads any more
    status.tell({"event": "engines"})
    assert clock.getDelayedCalls() == []
    os.close(theirs)


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--cluster", "a/b"], ["--nonsense"]])
def test_wrong_options_of_ipcontroller(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ipcontroller.main(arguments)
    assert caught.value.code == 2
    assert "usage: ipcontroller" in capsys.readouterr().err
