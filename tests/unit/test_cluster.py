"""`Cluster` without processes: its keywords, its words, and the engines that a launcher is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch import launcher as launchers
from ipython1.launch import state as states
from ipython1.launch.cluster import Cluster
from ipython1.launch.growing import Growth
from ipython1.launch.keywords import OF_ENGINES, OF_START, command_options
from ipython1.launch.launcher import OPTIONS, Launcher
from ipython1.launch.state import NotRunning, State
from ipython1.scripts import ipcluster
from tests.unit.test_launch import FakeLauncher, House


class Everything(Launcher):
    """A launcher that takes every option, and checks one."""

    def __init__(self, files: ClusterFiles, **asked: Any) -> None:
        if asked.get("walltime") == "never":
            raise ValueError("walltime must be like 1:00:00, not 'never'.")
        self.asked = asked


class Few(Launcher):
    """A launcher with one option of its own."""

    def __init__(self, files: ClusterFiles, *, hosts: str = "", restart: bool = True) -> None:
        """Takes `hosts`."""


@pytest.fixture(autouse=True)
def _launchers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = launchers.find_launcher
    more: dict[str, Any] = {"everything": Everything, "few": Few}
    for module in ("launcher", "keywords"):
        monkeypatch.setattr(
            f"ipython1.launch.{module}.find_launcher", lambda name: more.get(name) or find(name)
        )
    monkeypatch.setenv("IPYTHON1_DIR", str(tmp_path))


def options(engines: str = "everything", **keywords: Any) -> list[str]:
    return command_options(engines, ClusterFiles("mine"), keywords, (*OF_ENGINES, *OF_START))


# -- keywords ---------------------------------------------------------------------------------


def test_the_keywords_are_the_options_of_the_commands() -> None:
    ours = {"n", "files", "where", "daemonize", "dry_run", "temporary", "owner", "ready_fd"}
    of_launchers = {option.name for option in OPTIONS}
    for command, known in (("start", (*OF_ENGINES, *OF_START)), ("engines", OF_ENGINES)):
        names = {option.name for option in ipcluster.main.commands[command].params} - ours
        assert names == {*known, *of_launchers}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, []),
        ({"port": 0, "ip": "0.0.0.0"}, ["--port=0", "--ip=0.0.0.0"]),
        ({"dashboard": False, "restart": True}, ["--no-dashboard", "--restart"]),
        ({"client_grace": 1.5, "location": None}, ["--client-grace=1.5"]),
        ({"hosts": ["a:4", "b:8"]}, ["--hosts=a:4,b:8"]),
        ({"hosts": "a:4,b:8"}, ["--hosts=a:4,b:8"]),
        ({"env": {"A": 1, "B": "x y"}}, ["--env=A=1", "--env=B=x y"]),
        ({"env": ["A=1"]}, ["--env=A=1"]),
        ({"directive": "-G gpu:1"}, ["--directive=-G gpu:1"]),
        ({"prologue": ("a", "b")}, ["--prologue=a", "--prologue=b"]),
        ({"tunnel": True, "srun": False}, ["--tunnel"]),
        ({"per_job": 4, "walltime": "1:00:00"}, ["--per-job=4", "--walltime=1:00:00"]),
        ({"template": Path("/a b")}, ["--template=/a b"]),
    ],
)
def test_keywords_as_options(keywords: dict[str, Any], expected: list[str]) -> None:
    found = options(**keywords)
    assert found == ["--engines", "everything", *expected]
    command: Any = ipcluster.main.commands["start"]
    command.make_context("start", found)  # it takes them


@pytest.mark.parametrize(
    ("engines", "keywords", "error", "words"),
    [
        ("local", {"hots": "a"}, TypeError, "no option 'hots'"),
        ("few", {"wall": 1}, TypeError, "engines='few' there are: client_grace, .* hosts, ip,"),
        ("few", {"walltime": "1:00:00"}, ValueError, "walltime= is of no use with engines='few'.*: hosts"),
        ("everything", {"walltime": "never"}, ValueError, "walltime must be like"),
        ("moon", {}, ValueError, "There is no launcher 'moon'. Installed are: .*local"),
        ("everything", {"tunnel": "yes"}, TypeError, "tunnel must be True or False"),
        ("everything", {"dashboard": 1}, TypeError, "dashboard must be True or False"),
        ("everything", {"per_job": "4"}, TypeError, "per_job must be a number"),
        ("everything", {"port": True}, TypeError, "port cannot be True"),
        ("everything", {"queue": ["a"]}, TypeError, "queue cannot be"),
        ("everything", {"prologue": [1j]}, TypeError, "prologue cannot be 1j"),
    ],
)
def test_bad_keywords(engines: str, keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Cluster(2, engines=engines, **keywords)


# -- what it says ---------------------------------------------------------------------------------


def test_words() -> None:
    assert repr(Cluster(cluster="mine")) == "<Cluster 'mine': local engines, not started>"
    assert repr(Cluster(1, cluster="mine")) == "<Cluster 'mine': 1 local engine, not started>"
    assert repr(Cluster(8, cluster="mine", engines="few")) == "<Cluster 'mine': 8 few engines, not started>"


@pytest.mark.parametrize(
    ("engines", "wanted", "words"),
    [
        ([0, 1], 2, "2 few engines, running"),
        ([0], 1, "1 few engine, running"),
        ([], 2, "0 of 2 few engines, running"),
        ([0, 1, 2], 2, "3 few engines, running"),
    ],
)
def test_words_of_one_that_runs(engines: list[int], wanted: int, words: str) -> None:
    files = ClusterFiles("mine")
    with states.held(files):
        me = os.getpid()
        State(me, states.birth(me), n=2, engines=engines, wanted=wanted, launcher="few").write(files)
        found = Cluster.named("mine")
        assert repr(found) == f"<Cluster 'mine': {words}>"
        assert (found.running, found.engines, found.cluster) == (True, engines, "mine")
    assert repr(found).endswith("stopped>")
    assert (found.running, found.engines) == (False, [])
    with pytest.raises(NotRunning), found:
        pass


def test_where_none_runs() -> None:
    with pytest.raises(NotRunning, match="Cluster mine is not running"):
        Cluster.named("mine")
    with pytest.raises(ValueError, match="cannot be the name"):
        Cluster.named("../mine")
    cluster = Cluster(2)
    for call in (cluster.to_dict, cluster.client, lambda: cluster.scale(2), lambda: cluster.adapt(1, 2)):
        with pytest.raises(LaunchError, match=r"does not run. Start it with start\(\)"):
            call()
    with pytest.raises(LaunchError, match="does not run"):
        cluster.add("local", 1)
    assert cluster.logs() == ""
    cluster.stop()


def test_only_a_named_one_goes_on() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Cluster(2, daemonize=True)


def test_bounds_of_adapt() -> None:
    with pytest.raises(TypeError, match="a minimum and a maximum"):
        Cluster(2).adapt(1)
    with pytest.raises(ValueError, match="from 3 to 2"):
        Cluster(2).adapt(3, 2)


# -- in another process ---------------------------------------------------------------------------


def test_a_dict_finds_that_very_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = ClusterFiles("mine")
    with states.held(files):
        me = os.getpid()
        State(me, states.birth(me), n=2, engines=[0], wanted=2, launcher="few").write(files)
        data = json.loads(json.dumps(Cluster.named("mine").to_dict()))
        monkeypatch.setenv("IPYTHON1_DIR", str(tmp_path / "elsewhere"))
        found = Cluster.from_dict(data)
        assert repr(found) == "<Cluster 'mine': 1 of 2 few engines, running>"
        assert found.to_dict() == data
        with pytest.raises(NotRunning):
            Cluster.from_dict({**data, "created": data["created"] + 1})
        State(me, states.birth(me) + 1).write(files)  # another one of that name
        assert not found.running
    with pytest.raises(NotRunning):
        Cluster.from_dict(data)


@pytest.mark.parametrize(
    "data", [None, {}, {"cluster": "a"}, {"cluster": 1, "root": "", "pid": 1, "created": 1.0}]
)
def test_no_dict_of_a_cluster(data: Any) -> None:
    with pytest.raises(ValueError, match="nothing that"):
        Cluster.from_dict(data)


# -- engines that the launcher starts -----------------------------------------------------------------


class Jobs(Launcher):
    """A launcher that grows; `began` of its engines have started, and `lost` were cancelled by others."""

    grows = True

    def __init__(self) -> None:
        self.jobs = 0
        self.began = 0
        self.calls: list[tuple[str, int]] = []
        self.fails = False

    @property
    def coming(self) -> int:
        return self.jobs

    def grow(self, n: int) -> None:
        if self.fails:
            raise LaunchError(what="A job", reason="the queue is closed")
        self.calls.append(("grow", n))
        self.jobs += n

    def shrink(self, n: int) -> int:
        self.calls.append(("shrink", n))
        gone = min(n, self.jobs - self.began)
        self.jobs -= gone
        return gone


class Farm:
    """A launcher and what looks after it."""

    def __init__(self, n: int) -> None:
        self.jobs = Jobs()
        self.jobs.jobs = n
        self.warnings: list[str] = []
        self.growth = Growth(self.jobs, self.warnings.append)
        self.growth.asked(n)

    def miss(self, missing: int) -> bool:
        return self.growth.heard({"event": "scaled", "n": 99, "missing": missing})


def test_jobs_that_wait_are_not_asked_for_twice() -> None:
    farm = Farm(4)
    assert not farm.miss(4)
    assert farm.miss(6)
    assert not farm.miss(6)
    assert farm.jobs.calls == [("grow", 2)]


def test_those_that_came_are_none_that_wait() -> None:
    farm = Farm(4)
    farm.growth.heard({"event": "arrived"})
    farm.growth.heard({"event": "failed", "replaced": False})
    farm.growth.heard({"event": "failed", "replaced": True})  # its successor comes
    assert farm.miss(6)
    assert farm.jobs.calls == [("grow", 4)]


def test_jobs_that_wait_are_cancelled_first() -> None:
    farm = Farm(4)
    farm.jobs.began = 1
    assert not farm.miss(2)
    assert farm.jobs.calls == [("shrink", 2)]
    assert not farm.miss(0)
    assert farm.jobs.calls[1:] == [("shrink", 2)]
    assert farm.miss(3)  # the one that began may come
    assert farm.jobs.calls[2:] == [("grow", 2)]


def test_jobs_that_others_cancelled_are_not_waited_for() -> None:
    farm = Farm(4)
    farm.jobs.jobs = 1
    assert farm.miss(4)
    assert farm.jobs.calls == [("grow", 3)]


def test_a_queue_that_takes_no_jobs() -> None:
    farm = Farm(1)
    farm.jobs.fails = True
    assert not farm.miss(3)
    assert farm.warnings == ["A job did not start: the queue is closed."]
    farm.jobs.fails = False
    assert farm.miss(3)
    assert farm.jobs.calls == [("grow", 2)]


def test_launchers_that_do_not_grow_are_left_alone() -> None:
    growth = Growth(Few(ClusterFiles("mine")), lambda text: None)
    assert not growth.heard({"event": "scaled", "n": 5})


class Batch(FakeLauncher):
    """A launcher that grows."""

    grows = True

    def grow(self, n: int) -> None:
        self.calls.append(("grow", n))


def test_a_supervisor_hands_on_what_is_missing() -> None:
    files = ClusterFiles("mine")
    files.create()
    house = House(files, Batch)
    house.up()
    house.hear("arrived")
    house.hear("arrived")
    house.hear("scaled", n=5, missing=3)
    assert house.calls == [("grow", 3)]
    assert State.read(files).wanted == 5


def test_a_launcher_whose_engines_were_all_told_to_end_may_grow_again() -> None:
    files = ClusterFiles("mine")
    files.create()
    house = House(files, Batch)
    house.up()
    house.launcher.ended = "exit status 0"
    house.supervisor.look()
    house.launcher.ended = None
    house.hear("scaled", n=1, missing=1)
    house.launcher.ended = "killed by signal 9 (SIGKILL)"
    house.supervisor.look()
    assert house.calls == [("grow", 1), ("engines", 2, "pb://secret\n")]
