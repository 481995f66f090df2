"""Engines in the jobs of a real Grid Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipython1.kernel.files import ClusterFiles
from tests.conftest import ReactorThread
from tests.faults.conftest import Rig, until
from tests.faults.conftest import files as files
from tests.services.sge import command, left
from tests.services.sge import sge as sge

Start = Callable[..., Rig]


@pytest.fixture
def start(sge: Path, reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Start]:
    """Starts a cluster; its stop leaves no job in the queue, and no process."""
    rigs: list[Rig] = []

    def start(n: int, *options: str) -> Rig:
        here = ["-n", str(n), "--no-dashboard", "--engines", "sge", "--ip", "127.0.0.1"]
        rigs.append(Rig(files, [*here, *options]))
        return rigs[-1]

    try:
        yield start
        for rig in rigs:
            rig.stop()
        assert left() == []
    finally:
        for rig in rigs:
            rig.destroy()
        for id in set(left()):
            command("qdel", "-f", id)


def test_engines_work_come_and_go_with_jobs(start: Start) -> None:
    rig = start(3, "--per-job", "2", "--env", "A=it's me").ready()
    mec = rig.client()
    assert len(left()) == 2
    mec.execute("import os; a = os.environ['A']")
    assert mec.pull("a") == ["it's me"] * 3
    mec.scale(4)
    mec.wait_for_engines(4)
    assert len(left()) == 3
    mec.scale(0)
    until(lambda: not left(), "an empty queue")
    mec.scale(1)
    mec.wait_for_engines(1)
    assert mec.apply(lambda: 8) == [8]
    assert rig.said() == ""


def test_a_job_that_waits_or_is_deleted_is_named(start: Start) -> None:
    rig = start(2, "--cpus", "5")
    until(lambda: " waits" in rig.said(), "that a job waits")
    until(lambda: len(rig.state.engines) == 1, "an engine")
    running, waiting = left()
    assert f"ipcluster: job {waiting} waits\n" in rig.said()
    command("qdel", running)
    until(
        lambda: f"job {running} was cancelled, or killed by signal 9 (SIGKILL) after" in rig.said(), "its end"
    )
    until(lambda: f"job {waiting} runs now" in rig.said(), "its turn")
    rig.ready()


def test_elements_of_an_array_are_cancelled_one_by_one(start: Start) -> None:
    rig = start(3, "--array", "--cpus", "3")
    until(lambda: " waits" in rig.said(), "that one waits")
    until(lambda: len(rig.state.engines) == 2, "two engines")
    command("qdel", f"{left()[0]}.1")
    until(lambda: ".1 was cancelled" in rig.said(), "its end")
    rig.ready()
    assert len(rig.state.engines) == 2


def test_a_refusal_is_shown_as_it_is(start: Start) -> None:
    rig = start(1, "--queue", "nosuch")
    assert rig.process.wait(20) == 1
    assert 'job requests unknown queue "nosuch"' in rig.said()
