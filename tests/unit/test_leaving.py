"""Engines that leave before their job's time is over, or when none is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.engine.leaving import INTERVAL, QUIET, Leaving
from ipython1.kernel.engine.nanny import ENDED, NO_ENGINE, TOLD_TOO, Nanny
from ipython1.kernel.processes import STOPPED, TIME_OVER
from ipython1.kernel.wire import records
from ipython1.kernel.wire.records import Exited, Withdraw
from tests.unit.task_peers import FOREVER, TaskEngine, TaskUser, TaskWorld
from tests.unit.test_agent import House
from tests.unit.test_nanny import FakeZygote, make, order


@pytest.fixture
def zygote() -> FakeZygote:
    return FakeZygote()


def with_engines(zygote: FakeZygote, folder: Path, n: int = 2, **options: Any) -> Nanny:
    """A nanny with registered engines."""
    nanny = make(zygote, folder, **options)
    nanny.start(n)
    for id, child in enumerate(zygote.engines):
        child.heard({"registered": id})
    return nanny


def causes(zygote: FakeZygote) -> list[str]:
    """Why engines ended, as the controller is told."""
    return [exited[1] for exited in zygote.agents[-1].told("exited")]


def end_all(zygote: FakeZygote) -> None:
    """What was told to end does so."""
    for child in zygote.engines:
        child.ended(0)
    zygote.agents[-1].ended(0)


# -- the time of a job --------------------------------------------------------------------


def test_idle_engines_leave_soon_after_the_time_with_the_cause(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path)
    Leaving(zygote, nanny, 100.0, 20.0).start()
    zygote.advance(99.9)
    assert zygote.agents[0].told("leaving") == []
    zygote.advance(0.1)
    assert zygote.agents[0].told("leaving") == [20.0]
    assert not any(child.signals for child in zygote.engines), "what is called back takes a moment"
    zygote.pump([INTERVAL] * QUIET)
    assert all(child.signals for child in zygote.engines)
    end_all(zygote)
    assert nanny.status == ENDED
    assert causes(zygote) == [TIME_OVER, TIME_OVER]


def test_what_runs_may_end_within_the_time_that_is_left(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path)
    zygote.boards[1].show("c-1")
    Leaving(zygote, nanny, 0.0, 20.0).start()
    zygote.pump([INTERVAL] * 60)
    assert not any(child.signals for child in zygote.engines)
    zygote.boards[1].show("")
    zygote.pump([INTERVAL] * (QUIET + 1))
    assert all(child.signals for child in zygote.engines)


def test_what_runs_for_longer_is_ended_in_order(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path)
    zygote.boards[0].show("c-1")
    Leaving(zygote, nanny, -5.0, 20.0).start()
    zygote.pump([INTERVAL] * 79)
    assert not any(child.signals for child in zygote.engines)
    zygote.pump([INTERVAL] * 3)
    assert all(child.signals for child in zygote.engines)


def test_an_engine_that_dies_meanwhile_is_not_replaced(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path)
    zygote.boards[1].show("c-1")
    Leaving(zygote, nanny, 0.0, 20.0).start()
    zygote.advance(0.0)
    zygote.engines[0].ended(-9)
    assert len(zygote.engines) == 2
    assert len(nanny.engines) == 1


def test_an_agent_that_is_started_meanwhile_knows(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path)
    nanny.leave(7.0)
    assert nanny.facts()["leaving"] == 7.0


def test_the_agent_tells_the_controller() -> None:
    house = House()
    house.agent.start()
    house.agent.heard({"leaving": 7.0})
    house.clock.advance(0.0)
    assert records.Leaving(7.0) in house.controller.records


# -- the last engine ------------------------------------------------------------------------


def test_a_nanny_may_end_with_its_last_engine(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path, leave_when_empty=True)
    for child in zygote.engines:
        order(zygote, "stop", child)
        assert nanny.status is None
        child.ended(0)
    zygote.agents[0].ended(0)
    assert nanny.status == ENDED
    assert causes(zygote) == [STOPPED, STOPPED]


def test_where_the_last_engine_died_that_is_no_success(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path, n=1, restart=False, leave_when_empty=True)
    zygote.engines[0].ended(-11)
    zygote.agents[0].ended(0)
    assert nanny.status == NO_ENGINE


def test_otherwise_a_nanny_without_engines_stays(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = with_engines(zygote, tmp_path, n=1)
    order(zygote, "stop", zygote.engines[0])
    zygote.engines[0].ended(0)
    zygote.advance(100.0)
    assert nanny._quitting is None


# -- a batch system tells all processes of a job to end -----------------------------------------


def test_engines_that_hear_of_the_end_before_their_nanny_are_not_replaced(
    zygote: FakeZygote, tmp_path: Path
) -> None:
    nanny = with_engines(zygote, tmp_path)
    zygote.engines[0].ended(0)
    zygote.advance(TOLD_TOO / 2)
    nanny.signalled()
    zygote.engines[1].ended(0)
    zygote.advance(TOLD_TOO)
    zygote.agents[0].ended(0)
    assert len(zygote.engines) == 2
    assert causes(zygote) == [STOPPED, STOPPED]
    assert nanny.status == ENDED


def test_one_that_ended_by_itself_is_replaced_a_moment_later(zygote: FakeZygote, tmp_path: Path) -> None:
    with_engines(zygote, tmp_path)
    zygote.engines[0].ended(0)
    assert len(zygote.engines) == 2
    zygote.advance(TOLD_TOO)
    assert len(zygote.engines) == 3
    assert causes(zygote) == ["exit status 0"]


# -- the controller ---------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[TaskWorld]:
    world = TaskWorld()
    yield world
    world.close()


def test_what_leaving_engines_have_not_begun_goes_to_others(world: TaskWorld) -> None:
    leaving = TaskEngine(world, "a", lambda key, attempt: ("ok", FOREVER))
    user = TaskUser(world, "c")
    batch = user.open(4)
    assert len(leaving.queue) > 1
    world.nanny.send(records.Leaving(20.0))
    assert len(leaving.queue) == 1, "the one that runs"
    assert [record.how for record in leaving.hear(Withdraw)] == ["recall"]
    late = user.open(1)
    assert leaving.running == (batch, 0)
    other = TaskEngine(world, "b", wanted=-1)
    other.detail["nanny"] = "another"
    leaving.finish()
    world.run(1.0)
    assert len(leaving.queue) == 0
    assert user.all_ends(batch) == {"ok": 4}
    assert user.end(late) == "ok"
    assert {key for key, *_ in other.runs} == {(batch, 1), (batch, 2), (batch, 3), (late, 0)}


def test_a_task_that_an_ended_job_cut_off_is_not_to_blame(world: TaskWorld) -> None:
    engines = [TaskEngine(world, "e0", lambda key, attempt: ("ok", FOREVER))]
    user = TaskUser(world, "c")
    batch = user.open(1)
    for number in range(1, 6):  # more often than a task may kill engines
        world.nanny.send(records.Leaving(1.0))
        engines[-1].stop()
        world.nanny.send(Exited(engines[-1].uuid, TIME_OVER, "", False, f"{batch}#0"))
        world.run(1.0)
        plan = ("ok", 0.1) if number == 5 else ("ok", FOREVER)
        engines.append(TaskEngine(world, f"e{number}", lambda key, attempt, plan=plan: plan))  # type: ignore[misc]
    world.run(1.0)
    assert user.end(batch) == "ok"
