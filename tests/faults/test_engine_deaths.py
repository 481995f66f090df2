"""Engines, nannies and agents that are killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ipython1.kernel.client import CompositeError, MultiEngineClient
from ipython1.kernel.client.pending import PendingResult

from .conftest import DEATH_LIMIT, Rig, lives, until

SLEEP = "print('on')\nimport time; time.sleep(100)"


def pid_of(mec: MultiEngineClient, id: int) -> int:
    """Process id of an engine that is ready, else 0."""
    return next((e["pid"] for e in mec._core.engines() if e["id"] == id and e["state"] == "ready"), 0)


def running(pending: PendingResult) -> PendingResult:
    """The same, once it runs everywhere."""
    until(lambda: pending.stdout == ["on\n"] * len(pending.targets), "a command runs")
    return pending


def back(mec: MultiEngineClient, id: int, before: int) -> int:
    """Wait for an engine's successor, and return its pid."""
    new: int = until(lambda: pid_of(mec, id) not in (0, before) and pid_of(mec, id), f"engine {id} is back")
    return new


def died(pending: PendingResult, timeout: float = DEATH_LIMIT) -> CompositeError:
    """The error of a command that lost engines."""
    with pytest.raises(CompositeError) as caught:
        pending.get_result(timeout=timeout)
    assert {failure.ename for failure in caught.value.elist} == {"EngineDied"}
    return caught.value


def test_an_idle_engine_comes_back_under_its_id(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("x = engine_id")
    before = pid_of(mec, 0)
    rig.kill(before)
    back(mec, 0, before)
    assert mec.get_ids() == [0, 1]
    assert [r["result"]["text/plain"] for r in mec.execute("'x' in globals(), engine_id")] == [
        "(False, 0)",
        "(True, 1)",
    ]
    assert mec.status()[0]["restarts"] == 1


def test_a_running_command_fails_soon_and_alone(
    start: Callable[..., Rig], figure: Callable[[str, float], None]
) -> None:
    rig = start(3)
    mec = rig.client()
    mec.execute("import os; os.write(2, b'my last words\\n')", targets=1)
    before = pid_of(mec, 1)
    child = mec.execute("import subprocess; p = subprocess.Popen(['sleep', '100']); p.pid", targets=1)
    mine = psutil.Process(int(child[0]["result"]["text/plain"]))
    others = mec.execute("import time; time.sleep(0.5); 'well'", targets=[0, 2], block=False)
    pending = running(mec.execute(SLEEP, targets=[1], block=False))
    began = time.monotonic()
    rig.kill(before)
    error = died(pending)
    figure("death to error", time.monotonic() - began)
    assert "killed by signal 9 (SIGKILL)" in str(error)
    assert "my last words" in str(error)
    assert [r["result"]["text/plain"] for r in others.get_result(timeout=10)] == ["'well'"] * 2
    until(lambda: not lives(mine), "what the engine had started ends with it")
    back(mec, 1, before)
    assert mec.apply(lambda: 7, targets="all") == [7, 7, 7]


def test_what_is_queued_fails_too_and_has_not_run(start: Callable[..., Rig], tmp_path: Path) -> None:
    rig = start(2)
    mec = rig.client()
    path = tmp_path / "ran"
    mec.push({"path": str(path)})
    before = pid_of(mec, 0)
    first = running(mec.execute(SLEEP, targets=[0], block=False))
    queued = [
        mec.execute(f"open(path, 'a').write('{i}\\n')", targets=[0], block=False, silent=True)
        for i in range(200)
    ]
    until(lambda: len(mec.queue_status(targets=[0])[0][1]["queue"]) == 200, "all are queued")
    rig.kill(before)
    died(first)
    for pending in queued:
        died(pending)
    back(mec, 0, before)
    assert mec.execute("1 + 1", targets=[0])[0]["result"]["text/plain"] == "2"
    assert not path.exists()
    assert not mec.pending


def test_a_stopped_engine_holds_up_nobody_and_goes_on(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("log = []")
    stopped = pid_of(mec, 0)
    rig.kill(stopped, 19)
    pending = [mec.execute(f"log.append({i})", targets=[0], block=False) for i in range(100)]
    for i in range(20):
        mec.execute(f"log.append({i})", targets=[1])
    assert not any(each.ready() for each in pending)
    rig.kill(stopped, 18)
    for each in pending:
        each.get_result(timeout=20)
    assert mec["log"] == [list(range(100)), list(range(20))]
    assert pid_of(mec, 0) == stopped
    rig.kill(stopped, 19)
    lost = mec.execute("1", targets=[0], block=False)
    rig.kill(stopped, 9)
    died(lost)
    back(mec, 0, stopped)


def test_three_deaths_in_a_minute_are_enough(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    before = 0
    for _ in range(2):
        before = back(mec, 1, before)
        rig.kill(before)
    before = back(mec, 1, before)
    pending = running(mec.execute(SLEEP, targets=[1], block=False))
    rig.kill(before)
    died(pending)
    until(lambda: mec.get_ids() == [0], "its id is given up")
    assert mec.execute("1", timeout=10)[0]["input"]["raw"] == "1"
    assert "not restarted, for it died 3 times" in (rig.files.log / "ipengine.out").read_text()


def test_no_restart(start: Callable[..., Rig]) -> None:
    rig = start(2, "--no-restart")
    mec = rig.client()
    pending = running(mec.execute(SLEEP, targets=[0], block=False))
    rig.kill(pid_of(mec, 0))
    died(pending)
    until(lambda: mec.get_ids() == [1], "its id is given up")
    mec.scale(2)
    mec.wait_for_engines(2, timeout=20)
    assert mec.get_ids() == [0, 1]


def test_the_nanny_and_its_engines_are_replaced_under_the_same_ids(
    start: Callable[..., Rig], figure: Callable[[str, float], None]
) -> None:
    rig = start(2)
    mec = rig.client()
    before = rig.state.nanny
    first, second = pid_of(mec, 0), pid_of(mec, 1)
    pending = running(mec.execute(SLEEP, block=False))
    began = time.monotonic()
    rig.kill(before)
    error = died(pending)
    figure("death of the nanny to error", time.monotonic() - began)
    assert "nanny" in str(error)
    until(lambda: rig.state.nanny != before, "a new nanny")
    back(mec, 0, first)
    back(mec, 1, second)
    figure("death of the nanny to new engines", time.monotonic() - began)
    assert mec.get_ids() == [0, 1]
    assert mec.apply(lambda: 7) == [7, 7]
    assert rig.state.nanny != before


def test_the_death_of_the_agent_touches_no_engine(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("x = engine_id")
    pending = mec.execute("import time; time.sleep(0.5); 'well'", block=False)
    before = rig.agent()
    rig.kill(before)
    assert [r["result"]["text/plain"] for r in pending.get_result(timeout=10)] == ["'well'"] * 2
    until(lambda: rig.agent() not in (0, before), "a new agent")
    assert mec["x"] == [0, 1]
    lost = running(mec.execute(SLEEP, targets=[1], block=False))
    victim = pid_of(mec, 1)
    rig.kill(victim)
    died(lost)
    back(mec, 1, victim)
