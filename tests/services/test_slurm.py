"""Engines in the jobs of a real Slurm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipython1.kernel.client import PendingResult, TaskClient
from ipython1.kernel.error import CompositeError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import TIME_OVER
from tests.conftest import ReactorThread
from tests.faults.conftest import Rig, until
from tests.faults.conftest import files as files
from tests.services.slurm import command, left, queue
from tests.services.slurm import slurm as slurm

Start = Callable[..., Rig]


@pytest.fixture
def start(slurm: Path, reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Start]:
    """Starts a cluster whose jobs have the name ``t``; its stop leaves none in the queue, and no process."""
    rigs: list[Rig] = []

    def start(n: int, *options: str) -> Rig:
        here = ["-n", str(n), "--no-dashboard", "--engines", "slurm", "--job-name", "t", "--ip", "127.0.0.1"]
        rigs.append(Rig(files, [*here, *options]))
        return rigs[-1]

    try:
        yield start
        for rig in rigs:
            rig.stop()
        assert left("t") == []
    finally:
        for rig in rigs:
            rig.destroy()
        command("scancel", "--name=t")
        until(lambda: not left("t"), "an empty queue")


def long_enough(seconds: float) -> str:
    time.sleep(seconds)
    return "ended"


@pytest.fixture(scope="module")
def short(
    slurm: Path, ipython1_dir: Path, reactor_thread: ReactorThread
) -> Iterator[tuple[Rig, list[PendingResult]]]:
    """A cluster whose job has a minute, which passes while other tests run, and tasks of half a minute."""
    options = ["-n", "2", "--per-job", "2", "--walltime", "0:01:00", "--no-restart", "--job-name", "short"]
    more = ["--no-dashboard", "--engines", "slurm", "--ip", "127.0.0.1"]
    rig = Rig(ClusterFiles("short", ipython1_dir), [*options, *more])
    try:
        rig.ready()
        with TaskClient(str(rig.files.furl("task"))) as tasks:
            yield rig, [tasks.submit(long_enough, 35.0) for _ in range(2)]
        rig.stop()
    finally:
        rig.destroy()


def test_a_job_with_little_time_begins(short: tuple[Rig, list[PendingResult]]) -> None:
    assert len(left("short")) == 1


def test_engines_work_come_and_go_with_jobs(start: Start) -> None:
    rig = start(4, "--per-job", "2", "--cpus", "1").ready()
    mec = rig.client()
    assert len(left("t")) == 2
    assert mec.apply(lambda: 7) == [7] * 4
    assert mec.pull("engine_id") == [0, 1, 2, 3]
    mec.scale(5)
    mec.wait_for_engines(5)
    assert len(left("t")) == 3
    mec.scale(0)
    until(lambda: not left("t"), "an empty queue")
    assert set(queue("t").values()) == {"COMPLETED"}, "their nannies left in order"
    mec.scale(1)
    mec.wait_for_engines(1)
    assert mec.apply(lambda: 8) == [8]
    assert rig.said() == ""


def test_a_job_that_waits_or_is_cancelled_is_named(start: Start) -> None:
    rig = start(4, "--per-job", "2", "--cpus", "4")
    until(lambda: ": Resources" in rig.said(), "the reason")
    waiting = next(id for id, state in queue("t").items() if state == "PENDING")
    running = next(id for id, state in queue("t").items() if state == "RUNNING")
    assert f"ipcluster: job {waiting} waits: Resources\n" in rig.said()
    until(lambda: len(rig.state.engines) == 2, "two engines")
    pending = rig.client().execute("import time; time.sleep(60)", targets=[0], block=False)
    until(lambda: rig.client().queue_status(0)[0][1]["pending"], "the command")
    command("scancel", running)
    until(lambda: f"job {running} was cancelled after" in rig.said(), "what became of it")
    assert "; its 2 engines are gone\n" in rig.said()
    with pytest.raises(CompositeError, match=r"EngineDied|KeyboardInterrupt"):
        pending.get_result(timeout=10)
    until(lambda: f"job {waiting} runs now" in rig.said(), "its turn")
    rig.ready()
    assert len(rig.client().get_ids()) == 2


def test_an_array_and_a_job_with_srun(start: Start) -> None:
    rig = start(3, "--array").ready()
    [first, *_] = left("t")
    assert [id.partition("_")[2] for id in left("t")] == ["0", "1", "2"]
    command("scancel", first)
    until(lambda: f"job {first} was cancelled" in rig.said(), "the end of an element")
    assert len(left("t")) == 2


def test_one_job_for_all_nodes(start: Start) -> None:
    start(2, "--srun").ready()
    assert len(left("t")) == 1


def test_a_refusal_is_shown_as_it_is(start: Start) -> None:
    rig = start(1, "--queue", "nosuch")
    assert rig.process.wait(20) == 1
    assert "invalid partition specified: nosuch" in rig.said()


def test_engines_leave_before_the_time_of_their_job_is_over(short: tuple[Rig, list[PendingResult]]) -> None:
    rig, tasks = short
    assert [each.get_result(timeout=60) for each in tasks] == ["ended"] * 2, "they had the time"
    until(lambda: not left("short"), "the end of the job", 60)
    assert list(queue("short").values()) == ["COMPLETED"], "it was not for Slurm to end it"
    until(lambda: "left before its time was over after" in rig.said(), "what became of it")
    [log] = rig.files.log.glob("job-*.out")
    said = log.read_text()
    assert said.count(TIME_OVER) == 2
    assert "the job's time is almost over: the engines leave within 20 s" in said
