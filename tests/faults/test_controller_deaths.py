"""Controllers, and the `ipcluster` above them, that are killed or stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ipython1.kernel.client import CompositeError, MultiEngineClient
from ipython1.kernel.error import ConnectionFailed
from ipython1.kernel.files import ClusterFiles, known_clusters
from ipython1.launch.state import is_running

from .conftest import IPCLUSTER, PATIENCE, Rig, environment, lives, until
from .test_engine_deaths import SLEEP, pid_of, running

COUNT = 150


def test_everything_runs_exactly_once_whatever_becomes_of_the_controller(
    start: Callable[..., Rig], figure: Callable[[str, float], None]
) -> None:
    def bulk(array: Any) -> Any:
        log.append("a")  # type: ignore[name-defined]  # noqa: F821
        return array + 1

    rig = start(2)
    mec = rig.client()
    engines = [pid_of(mec, id) for id in (0, 1)]
    mec.execute("log = []; kept = engine_id")
    expected: list[int | str] = []
    pending = []
    array = np.arange(300_000.0)
    for kill in range(2):
        for i in range(COUNT):
            number = len(expected)
            code = f"log.append({number}); print({number}); import time; time.sleep(0.005)"
            pending.append(mec.execute(code, block=False))
            expected.append(number)
            if i % 50 == 25:  # bulk on its way, both ways
                pending.append(mec.apply(bulk, array + kill, block=False))
                expected.append("a")
        until(lambda: pending[len(expected) - COUNT + 3].ready(), "some have run")
        before = rig.state.controller
        began = time.monotonic()
        rig.kill(before)
        probe = mec.apply(lambda: 1, block=False)
        assert not pending[-1].ready()
        rig.next_controller(before)
        until(lambda: any(engine["state"] == "ready" for engine in mec.status()), "an answer of the new one")
        figure("controller killed to answers of the next", time.monotonic() - began)
        assert probe.get_result(timeout=PATIENCE) == [1, 1]
    for number, each in zip(expected, pending, strict=True):
        result = each.get_result(timeout=PATIENCE)
        if number == "a":
            assert all(r[7] in (8, 9) and len(r) == len(array) for r in result)
        else:
            assert [r["stdout"] for r in result] == [f"{number}\n"] * 2
    assert mec["log"] == [expected] * 2
    assert mec["kept"] == [0, 1]
    assert [pid_of(mec, id) for id in (0, 1)] == engines
    assert not mec.pending


def test_a_client_that_comes_later_finds_the_engines_of_before(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("x = engine_id")
    pending = mec.execute("import time; time.sleep(1); 'done'", block=False)
    before = rig.state.controller
    rig.kill(before)
    rig.next_controller(before)
    other = until(lambda: _connected(rig), "another client")
    other.wait_for_engines(2, timeout=20)
    assert other["x"] == [0, 1]
    for each in (other.get_pending(pending.id), pending):
        assert [r["result"]["text/plain"] for r in each.get_result(timeout=20)] == ["'done'"] * 2


def _connected(rig: Rig) -> MultiEngineClient | None:
    try:
        return rig.connect()
    except ConnectionFailed:
        return None


def test_an_engine_that_dies_while_there_is_no_controller(start: Callable[..., Rig], tmp_path: Path) -> None:
    """Its commands fail: the successor must not run again what may have run already."""
    rig = start(2)
    mec = rig.client()
    path = tmp_path / "ran"
    victim, controller = pid_of(mec, 0), rig.state.controller
    code = f"open({str(path)!r}, 'a').write(f'{{engine_id}}\\n')\n" + SLEEP
    pending = running(mec.execute(code, block=False, targets=[0]))
    behind = mec.execute("'behind'", block=False)
    rig.kill(rig.process.pid, 19)  # it starts no other one yet
    rig.kill(controller)
    rig.kill(victim)
    # The nanny replaces the engine at once; that one knocks at the door already when it opens.
    nanny = psutil.Process(rig.state.nanny)
    until(
        lambda: victim not in [p.pid for p in nanny.children()] and len(nanny.children()) == 3, "a successor"
    )
    rig.kill(rig.process.pid, 18)
    with pytest.raises(CompositeError, match=r"\[0:execute\]: EngineDied"):
        pending.get_result(timeout=PATIENCE)
    with pytest.raises(CompositeError) as caught:
        behind.get_result(timeout=PATIENCE)
    assert caught.value.engines == [0]
    assert caught.value.results[1]["result"]["text/plain"] == "'behind'"
    assert path.read_text() == "0\n"
    until(lambda: pid_of(mec, 0) not in (0, victim), "engine 0 is back")
    assert mec.apply(lambda: 7) == [7, 7]


def test_a_stopped_controller_goes_on(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("log = []")
    controller = rig.state.controller
    rig.kill(controller, 19)
    pending = [mec.execute(f"log.append({i})", block=False) for i in range(100)]
    with pytest.raises(TimeoutError):
        pending[0].get_result(timeout=1.0)
    rig.kill(controller, 18)
    for each in pending:
        each.get_result(timeout=20)
    assert mec["log"] == [list(range(100))] * 2
    assert rig.state.controller == controller


def test_a_controller_that_dies_too_often_ends_the_cluster(start: Callable[..., Rig]) -> None:
    rig = start(1)
    before = 0
    for _ in range(4):
        before = rig.next_controller(before)
        until(lambda: rig.state.port, "it listens")
        rig.kill(before)
    assert rig.process.wait(PATIENCE) == 1
    assert "the controller ended too often, the last time: killed by signal 9 (SIGKILL)" in rig.said()


def test_nothing_outlives_a_killed_ipcluster(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    running(mec.execute("import subprocess; p = subprocess.Popen(['sleep', '100'])\n" + SLEEP, block=False))
    rig.kill(rig.process.pid)
    until(lambda: not is_running(rig.files), "the lock is free")
    until(lambda: not any(map(lives, rig._members)), "the end of all processes")
    done = subprocess.run(
        [*IPCLUSTER, "clean", "--cluster", rig.files.cluster],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_private_folder_goes_even_if_its_ipcluster_was_killed(ipython1_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, time
            from ipython1.kernel.files import ClusterFiles
            from ipython1.launch.cluster import Cluster
            from ipython1.launch.state import State
            cluster = Cluster(n=1)
            with cluster as mec:
                os.kill(State.read(ClusterFiles(cluster.cluster)).pid, 9)
            print(cluster.cluster)
            """
        )
    )
    clusters = known_clusters()
    done = subprocess.run(
        [sys.executable, os.fspath(script)], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = ClusterFiles(done.stdout.strip())
    assert known_clusters() == clusters
    assert not files.folder.exists()
