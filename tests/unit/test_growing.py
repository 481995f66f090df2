"""How many engines come, where the launcher submits jobs and replaces some by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.files import ClusterFiles
from ipython1.launch.batch.control import DEATHS, INTERVAL
from ipython1.launch.batch.system import DONE, FAILED, NODE, RUNS, WAITS, Seen, ended
from ipython1.launch.growing import Growth
from tests.unit.test_batch_control import World
from tests.unit.test_launch import FakeLauncher, House


class Farm(World):
    """A launcher, what looks after it, and how many engines the controller has, of which some leave."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.growth = Growth(self.launcher, lambda text: None)
        self.there = self.leaving = 0

    def start(self, n: int) -> None:
        self.growth.asked(n)
        super().start(n)

    def arrive(self, n: int) -> None:
        self.there += n
        for _ in range(n):
            self.growth.heard({"event": "arrived"})
        self.growth.heard({"event": "engines", "ids": list(range(self.there))})

    def gone(self, n: int) -> None:
        self.there -= n
        self.leaving = max(0, self.leaving - n)
        self.growth.heard({"event": "engines", "ids": list(range(self.there))})

    def order(self, n: int) -> None:
        missing = max(0, n - (self.there - self.leaving))
        self.growth.heard({"event": "scaled", "n": n, "missing": missing})

    def scale(self, n: int) -> None:
        self.order(n)
        self.run()

    def engines(self, n: int, seconds: float = 10.0) -> None:
        """Of as many jobs, that have run for so long."""
        self.start(n)
        self.become(Seen(RUNS))
        self.arrive(n)
        self.run(seconds)

    @property
    def keys(self) -> list[str]:
        """Of jobs that wait or run."""
        return list(self.launcher._control._jobs.keys)

    @property
    def submitted(self) -> int:
        return len(self.site.named("submit"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Farm]:
    return lambda **options: Farm(tmp_path, **options)


# -- what comes without being asked for -----------------------------------------------------


@pytest.mark.parametrize("phase", [WAITS, RUNS])
def test_jobs_that_replace_others_are_not_asked_for_twice(phase: str, make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(4, 31)
    farm.gone(4)
    farm.become(ended(DONE))
    farm.run()
    farm.become(Seen(phase), *farm.keys)
    farm.run()
    farm.scale(4)
    assert (farm.launcher.coming, farm.submitted) == (4, 8)
    farm.scale(6)
    assert farm.launcher.coming == 6


def test_they_come_once(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(2)
    farm.gone(2)
    farm.become(ended(NODE))
    farm.run()
    farm.become(Seen(RUNS), *farm.keys)
    farm.arrive(2)
    farm.scale(5)
    assert farm.submitted == 4 + 3


def test_one_that_replaces_a_job_that_was_just_asked_about_comes_once(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    farm.gone(1)
    farm.become(ended(NODE))
    farm.scale(1)
    farm.become(Seen(RUNS), *farm.keys)
    farm.arrive(1)
    farm.scale(3)
    assert farm.submitted == 1 + 1 + 2


def test_a_new_start_counts_from_nothing(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(2)
    farm.there = 0
    for end in (ended(NODE), ended(FAILED, status=1)):
        farm.become(end, *farm.keys)
        farm.run()
    farm.start(2)
    farm.become(Seen(RUNS), *farm.keys)
    farm.arrive(2)
    farm.scale(4)
    assert farm.submitted == 4 + 2 + 2


def test_jobs_that_are_being_cancelled_do_not_come(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(4)
    farm.become(Seen(RUNS), "17", "18")
    farm.arrive(2)
    farm.site.deaf = True
    farm.scale(2)
    assert farm.site.named("cancel") == [["20", "19"]]
    farm.scale(4)
    assert farm.submitted == 6


def test_engines_that_others_added_are_not_those_that_wait(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(4)
    farm.run()
    farm.arrive(2)
    farm.scale(6)
    assert (farm.launcher.coming, farm.submitted) == (4, 4)


# -- the moment ---------------------------------------------------------------------------------


def test_engines_that_came_before_their_jobs_were_seen_to_run(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(4)
    farm.run()
    farm.become(Seen(RUNS))
    farm.arrive(4)
    farm.scale(6)
    assert farm.submitted == 6
    assert farm.site.named("cancel") == []


def test_the_batch_system_is_asked_at_once(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    asked = len(farm.site.named("poll"))
    while len(farm.site.named("poll")) == asked:
        farm.run(0.5)
    farm.run(0.5)
    farm.order(2)
    farm.run(0.5)
    assert farm.submitted == 2


def test_engines_of_jobs_that_are_not_shown_yet(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(2)
    farm.site.seen.clear()
    farm.arrive(2)
    farm.scale(3)
    assert farm.submitted == 3


def test_a_batch_system_that_was_asked_before_and_says_that_none_is_left(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    control = farm.launcher._control
    while control._look is None:
        farm.run(0.5)
    farm.gone(1)
    farm.become(ended(DONE))
    farm.order(1)
    assert farm.run() is None
    assert farm.submitted == 2


def test_also_where_the_batch_system_was_asked_before_that(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(4)
    farm.run()
    control = farm.launcher._control
    while control._look is None:
        farm.run(0.5)
    farm.become(Seen(RUNS))
    farm.arrive(4)
    before = dict.fromkeys(farm.keys, Seen(WAITS))
    now, farm.site.seen = farm.site.seen, before
    farm.order(6)
    control._looked_at(control._look)
    control._look, farm.site.seen = None, now
    farm.run()
    assert farm.submitted == 6
    assert farm.site.named("cancel") == []


def test_engines_that_come_meanwhile(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(4)
    farm.run()
    farm.order(6)
    farm.become(Seen(RUNS))
    farm.arrive(4)
    farm.run()
    assert farm.submitted == 6


def test_a_batch_system_that_does_not_answer_is_waited_for(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    farm.site.down = True
    farm.scale(3)
    farm.order(2)
    farm.run(20)
    assert farm.submitted == 1
    farm.site.down = False
    farm.run()
    assert farm.submitted == 2


def test_a_job_of_which_it_is_not_known_how_it_ended_may_be_replaced(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    del farm.site.seen["17"]
    farm.gone(1)
    farm.order(1)
    while not farm.site.named("accounts"):
        farm.run(0.5)
    farm.site.accounts["17"] = ended(NODE)
    assert farm.run(5 * INTERVAL) is None
    assert farm.submitted == 2


def test_without_jobs_there_is_nothing_to_wait_for(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    farm.gone(1)
    farm.become(ended(DONE))
    farm.run()
    assert farm.growth.heard({"event": "scaled", "n": 2, "missing": 2})
    assert farm.launcher.coming == 2


def test_nothing_is_submitted_after_the_stop(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    farm.order(3)
    farm.launcher.stop()
    farm.run()
    assert farm.submitted == 1


# -- engines whose time is over ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [28, 31])  # it is seen late that a job has begun
def test_those_that_leave_are_replaced_once(seconds: float, make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(4, seconds)
    farm.leaving = 4
    farm.scale(4)
    assert farm.submitted == 8, "at once"
    farm.gone(4)
    farm.become(ended(DONE), "17", "18", "19", "20")
    assert farm.run() is None
    assert (farm.launcher.coming, farm.launcher.missing, farm.submitted) == (4, 0, 8)
    assert not any("Another" in text for text in farm.news())


def test_they_are_also_where_the_controller_has_forgotten_them(make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(2, 31)
    farm.gone(2)
    farm.scale(2)
    farm.become(ended(DONE), "17", "18")
    farm.run()
    assert farm.submitted == 4


def test_those_that_will_leave_soon_are_replaced_at_their_end(make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(2, 25)
    farm.scale(3)
    farm.gone(2)
    farm.become(ended(DONE), "17", "18")
    farm.run()
    assert (farm.launcher.coming, farm.submitted) == (3, 5)


def test_only_those_that_leave_are_replaced_before_their_end(make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.start(4)
    farm.become(Seen(RUNS), "17", "18")
    farm.arrive(2)
    farm.run(4)
    farm.become(Seen(RUNS))
    farm.arrive(2)
    farm.run(24)
    farm.leaving = 2
    farm.scale(4)
    assert farm.submitted == 6
    farm.gone(4)
    farm.become(ended(DONE), "17", "18", "19", "20")
    farm.run()
    assert (farm.launcher.coming, farm.submitted) == (4, 8)


def test_jobs_without_a_time_are_always_replaced(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.engines(1)
    farm.scale(2)
    farm.gone(1)
    farm.become(ended(NODE), "17")
    farm.run()
    assert (farm.launcher.coming, farm.submitted) == (2, 3)


def test_fewer_than_leave(make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(2 * DEATHS, 31)
    farm.leaving = 2 * DEATHS
    farm.scale(1)
    farm.gone(2 * DEATHS)
    farm.become(ended(DONE), *farm.keys[: 2 * DEATHS])
    farm.run()
    assert farm.launcher.coming == 1


def test_where_none_is_wanted_that_is_no_failure(make: Callable[..., Farm]) -> None:
    farm = make(walltime="0:01:00")
    farm.engines(2, 31)
    farm.leaving = 2
    farm.scale(0)
    farm.gone(2)
    farm.become(ended(NODE))
    assert farm.run() == "exit status 0"


# -- losses that are told twice ------------------------------------------------------------------------


class Jobs(FakeLauncher):
    """A launcher whose jobs end with their last engine."""

    grows = True
    waiting = 0


def house_with(launcher: type[FakeLauncher]) -> House:
    files = ClusterFiles("mine")
    files.create()
    house = House(files, launcher)
    house.hear("listening", host="h", port=5)
    return house


@pytest.fixture
def house() -> House:
    return house_with(Jobs)


def have_wait(house: House, n: int) -> None:
    assert isinstance(house.launcher, Jobs)
    house.launcher.waiting = n


def lose(house: House) -> None:
    """The engine of a job fails, then the job ends."""
    house.hear("failed", output="no numpy", replaced=False)
    house.launcher.missing += 1
    house.supervisor.look()


@pytest.mark.parametrize("waiting", [1, 0])
def test_an_engine_that_failed_and_its_job_that_ended_are_one_loss(waiting: int, house: House) -> None:
    have_wait(house, waiting)  # the other one's job, or it has begun
    lose(house)
    assert house.supervisor.outcome is None
    have_wait(house, 0)
    house.hear("engines", ids=[0])
    assert house.calls[-1] == "ready: 1 of 2 ready in 0.0 s: 0"


def test_of_three_one_waits(house: House) -> None:
    house.supervisor.state.n = 3
    have_wait(house, 1)
    lose(house)
    house.hear("engines", ids=[0])
    assert not house.supervisor.is_ready


def test_all_that_failed_are_the_end(house: House) -> None:
    lose(house)
    lose(house)
    assert house.supervisor.outcome == 1


def test_other_launchers_tell_only_of_what_the_controller_does_not() -> None:
    house = house_with(FakeLauncher)
    lose(house)
    assert house.supervisor.outcome == 1


def test_a_job_of_which_one_engine_failed_and_a_job_that_ended_are_two_losses(house: House) -> None:
    house.hear("failed", output="no numpy", replaced=False)
    house.supervisor.state.n = 3
    house.launcher.missing = 1
    house.supervisor.look()
    house.hear("engines", ids=[0])
    assert house.calls[-1] == "ready: 1 of 3 ready in 0.0 s: 0"


def test_a_job_that_failed_is_told_of(make: Callable[..., Farm]) -> None:
    farm = make()
    farm.start(2)
    farm.run()
    farm.become(ended(FAILED, status=1), "17")
    farm.run()
    assert (farm.launcher.missing, farm.launcher.waiting) == (1, 1)
