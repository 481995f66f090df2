"""Jobs from their submission to their end, with a batch system that is a dict."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.files import ClusterFiles
from ipython1.launch.batch.control import AT_A_TIME, DEATHS, INTERVAL, LEAVING, NO_JOB, PERIOD, SILENCES
from ipython1.launch.batch.errand import Errand
from ipython1.launch.batch.job import Job
from ipython1.launch.batch.jobs import COMING, PATIENCE, QUESTIONS, SHOWN_AFTER
from ipython1.launch.batch.launcher import BatchLauncher
from ipython1.launch.batch.system import (
    CANCELLED,
    DONE,
    FAILED,
    NODE,
    PREEMPTED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
    ended,
    ended_with,
)


def timeless(text: str) -> str:
    return re.sub(r"after \d+ s;", "after N s;", text)


class Done:
    """An errand that has an answer, and is done when it is told."""

    def __init__(self, command: Sequence[str], answer: tuple[int, str, str]) -> None:
        self.command = command[0]
        self.is_done = True
        self.status, self.output, self.errors = answer

    def words(self) -> str:
        return self.errors or f"exit status {self.status}"


class Site:
    """A batch system: what it knows of jobs, by key."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.accounts: dict[str, Seen] = {}
        self.commands: list[list[str]] = []
        self.errands: list[Done] = []
        self.refusal = ""
        self.down = False
        self.slow = False  # commands that submit are not done at once
        self.deaf = False  # nothing is cancelled
        self.count = 16

    def errand(self, command: Sequence[str], stdin: Path | None = None) -> Done:
        self.commands.append(list(command))
        what, *rest = command
        answer = (0, "", "")
        if what == "submit":
            answer = (1, "", self.refusal) if self.refusal else (0, self._new(), "")
        elif what == "poll":
            answer = (1, "", "no route to host") if self.down else (0, "", "")
        elif what == "cancel" and not self.deaf:
            for key in rest:
                self.seen.pop(key, None)
        errand = Done(command, answer)
        errand.is_done = not (self.slow and what == "submit")
        self.errands.append(errand)
        return errand

    def _new(self) -> str:
        self.count += 1
        self.seen[str(self.count)] = Seen(WAITS)
        return f"{self.count}\n"

    def named(self, what: str) -> list[list[str]]:
        return [rest for first, *rest in self.commands if first == what]


class FakeSystem(System):
    title = "Fake"
    submit = ("submit",)
    cancel = ("cancel",)
    site: Site

    def directives(self, job: Job) -> list[str]:
        return []

    def submitted(self, output: str, job: Job) -> list[str]:
        if not output.strip().isdigit():
            raise ValueError("no id")
        id = output.strip()
        if job.count == 1:
            return [id]
        del self.site.seen[id]
        keys = [f"{id}_{i}" for i in range(job.count)]
        self.site.seen.update(dict.fromkeys(keys, Seen(WAITS)))
        return keys

    def poll_command(self, keys: Collection[str]) -> list[str]:
        return ["poll", *keys]

    def seen(self, output: str, errors: str, status: int, keys: Collection[str]) -> dict[str, Seen]:
        if status:
            raise ValueError(errors)
        return {key: self.site.seen[key] for key in keys if key in self.site.seen}

    def inquest_command(self, keys: Collection[str]) -> list[str]:
        return ["accounts", *keys]

    def inquest(self, output: str) -> dict[str, Seen]:
        return self.site.accounts


class World:
    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = Clock()
        self.site = Site()
        system = FakeSystem()
        system.site = self.site

        class Fake(BatchLauncher):
            pass

        Fake.system = system
        files = ClusterFiles("mine", folder)
        files.create()
        self.launcher = Fake(files, now=self.clock.seconds, **options)
        self.launcher._control._errand = self.site.errand  # type: ignore[assignment]
        self.launcher._control._sleep = self.clock.advance

    def run(self, seconds: float = 2 * INTERVAL) -> str | None:
        """Let time pass, as the supervisor has it."""
        ended = self.launcher.poll()
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            ended = self.launcher.poll()
        return ended

    def news(self) -> list[str]:
        """What the user is told, without for how long it ran."""
        return [timeless(text) for text in self.launcher.news()]

    def start(self, n: int) -> None:
        self.launcher.start(n, "pb://")
        self.run(0.0)

    def become(self, seen: Seen, *keys: str) -> None:
        for key in keys or list(self.site.seen):
            self.site.seen[key] = seen


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., World]:
    return lambda **options: World(tmp_path, **options)


# -- submitting -----------------------------------------------------------------------------


def test_nothing_has_ended_before_the_start(make: Callable[..., World]) -> None:
    assert make().run() is None


def test_jobs_are_submitted_some_at_a_time(make: Callable[..., World]) -> None:
    world = make()
    world.site.slow = True
    world.start(10)
    assert len(world.site.named("submit")) == AT_A_TIME
    assert world.launcher.coming == 10
    for count in (8, 10, 10):
        for errand in world.site.errands:
            errand.is_done = True
        world.run(0.0)
        assert len(world.site.named("submit")) == count
    assert world.launcher.poll() is None


def test_scripts_are_for_their_owner_only_and_have_no_furl(make: Callable[..., World]) -> None:
    world = make(per_job=2)
    world.start(3)
    scripts = sorted((world.launcher._files.run).glob("*.sh"))
    assert [path.name for path in scripts] == ["ipengine-1.sh", "ipengine-2.sh"]
    assert all(path.stat().st_mode & 0o777 == 0o700 and "pb://" not in path.read_text() for path in scripts)


def test_a_refusal_is_told_in_its_own_words_once(make: Callable[..., World]) -> None:
    world = make()
    world.site.refusal = "sbatch: error: Invalid account"
    world.start(3)
    assert world.news() == ["A job did not start: sbatch: error: Invalid account."]
    assert world.launcher.missing == 3
    assert world.run() == NO_JOB
    assert world.news() == []
    world.launcher.grow(1)
    world.run(0.0)
    assert len(world.news()) == 1, "asked again, it is said again"


def test_a_script_that_cannot_be_written_is_a_refusal(make: Callable[..., World]) -> None:
    world = make()
    (world.launcher._files.run / "ipengine-1.sh").mkdir()
    world.start(1)
    [said] = world.news()
    assert said.startswith("A job did not start: ")
    assert said.endswith("ipengine-1.sh: Is a directory.")
    assert world.run() == NO_JOB


def test_an_answer_without_an_id_is_shown(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    monkeypatch.setattr(world.site, "_new", lambda: "queued, thank you\n")
    world.start(1)
    assert world.news() == ["A job did not start: submit printed 'queued, thank you', and that is no job id."]


def test_a_command_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    errand = Errand(["/nowhere/sbatch"])
    assert errand.is_done
    assert (errand.status, errand.words()) == (-1, "/nowhere/sbatch: No such file or directory")


def test_an_errand_reads_and_says_what_it_does(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    errand = Errand(["sh", "-c", "cat; echo no >&2; exit 3"], tmp_path / "in")
    while not errand.is_done:
        pass
    assert (errand.status, errand.output, errand.errors) == (3, "text", "no\n")
    assert errand.words() == "no"


def test_an_errand_that_does_not_end_is_given_up() -> None:
    clock = Clock()
    errand = Errand(["sleep", "100"], now=clock.seconds)
    assert not errand.is_done
    clock.advance(61)
    assert errand.is_done
    assert errand.words() == "sleep did not answer within 60 s"


# -- waiting ----------------------------------------------------------------------------------


def test_jobs_that_wait_are_named_with_the_reason_once(make: Callable[..., World]) -> None:
    world = make()
    world.start(3)
    world.become(Seen(WAITS, "Resources"))
    world.run(PATIENCE - 1)
    assert world.news() == []
    world.run(3)
    assert world.news() == ["jobs 17, 18 and 19 wait: Resources"]
    world.become(Seen(RUNS), "17")
    world.become(Seen(WAITS, "Priority"), "18")
    world.run(4)
    assert world.news() == ["job 18 waits: Priority", "job 17 runs now"]
    world.become(Seen(WAITS, "Resources"), "18")
    world.run(10)
    assert world.news() == []


def test_a_job_that_begins_at_once_is_no_news(make: Callable[..., World]) -> None:
    world = make()
    world.start(2)
    world.become(Seen(RUNS))
    assert world.run(20) is None
    assert world.news() == []
    assert world.launcher.coming == 2
    world.run(COMING)
    assert world.launcher.coming == 0


def test_all_are_asked_for_in_one_command_and_not_too_often(make: Callable[..., World]) -> None:
    world = make()
    world.start(4)
    world.run(10 * INTERVAL)
    asked = world.site.named("poll")
    assert 7 <= len(asked) <= 11
    assert asked[-1] == ["17", "18", "19", "20"]


def test_a_system_that_does_not_answer_is_said_once(make: Callable[..., World]) -> None:
    world = make()
    world.start(1)
    world.site.down = True
    world.run(2 * SILENCES * INTERVAL)
    assert world.news() == ["poll does not say how the jobs are: no route to host", "job 17 waits"]
    assert world.launcher.poll() is None
    world.site.down = False
    world.become(Seen(RUNS))
    world.run()
    assert world.news() == ["job 17 runs now"]


# -- ends ---------------------------------------------------------------------------------------


def running(make: Callable[..., World], n: int = 1, seconds: float = 4.0, **options: Any) -> World:
    world = make(**options)
    world.start(n)
    world.become(Seen(RUNS))
    world.run(seconds)
    return world


def test_one_that_was_cancelled_is_named_and_not_submitted_again(make: Callable[..., World]) -> None:
    world = running(make, 4, per_job=4)
    world.become(ended(CANCELLED, "root"))
    assert world.run() == "exit status 0", "somebody wanted that: nothing to mend"
    assert world.news() == ["job 17 was cancelled by root after N s; its 4 engines are gone"]
    assert world.launcher.missing == 4
    assert len(world.site.named("submit")) == 1


def test_one_that_was_cancelled_before_it_began_is_a_failed_start(make: Callable[..., World]) -> None:
    world = make()
    world.start(1)
    world.become(ended(CANCELLED))
    assert world.run() == NO_JOB
    assert world.news() == ["job 17 was cancelled; its engine is gone"]


def test_one_whose_engines_were_stopped_on_request_is_no_news(make: Callable[..., World]) -> None:
    world = running(make, 2)
    world.become(ended(DONE), "18")
    assert world.run() is None
    world.become(ended(DONE), "17")
    assert world.run() == "exit status 0"
    assert (world.news(), world.launcher.missing) == ([], 0)
    world.launcher.grow(1)
    assert world.run() is None


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (ended(NODE), "lost its node"),
        (ended(TIME), "reached its time limit"),
        (ended_with(137), "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_one_that_had_begun_well_is_submitted_again(
    seen: Seen, words: str, make: Callable[..., World]
) -> None:
    world = running(make)
    world.become(seen)
    assert world.run() is None
    assert world.news() == [f"job 17 {words} after N s; its engine is gone. Another job is submitted"]
    assert len(world.site.named("submit")) == 2
    assert world.launcher.missing == 0


def test_but_not_where_that_is_not_wanted(make: Callable[..., World]) -> None:
    world = running(make, restart=False)
    world.become(ended(NODE))
    assert world.run() == NO_JOB
    assert world.news() == ["job 17 lost its node after N s; its engine is gone"]
    assert world.launcher.missing == 1


def test_and_not_too_often(make: Callable[..., World]) -> None:
    world = running(make)
    for _ in range(DEATHS):
        world.become(Seen(RUNS))
        world.run()
        world.become(ended(NODE))
        assert world.run() is None
    world.become(Seen(RUNS))
    world.run()
    world.become(ended(NODE))
    assert world.run() == NO_JOB
    assert [text.endswith("Another job is submitted") for text in world.news()] == [True] * DEATHS + [False]
    assert world.clock.seconds() < PERIOD


@pytest.mark.parametrize("how", [NODE, PREEMPTED])
def test_of_those_that_ran_for_long_all_are_submitted_again(how: str, make: Callable[..., World]) -> None:
    world = running(make, 2 * DEATHS, seconds=PERIOD + 2 * INTERVAL)
    world.become(ended(how))
    assert world.run() is None
    assert len(world.site.named("submit")) == 4 * DEATHS
    assert world.launcher.missing == 0
    world.become(Seen(RUNS), *world.site.named("poll")[-1])
    world.run()
    world.become(ended(how))
    world.run()
    assert world.launcher.missing == DEATHS, "of those that had just begun, some"


def test_one_that_failed_by_itself_is_not_submitted_again(make: Callable[..., World]) -> None:
    world = running(make)
    log = world.launcher._files.log / "job-17.out"
    log.write_text("ipengine: no such module\n")
    world.become(ended(FAILED, status=1))
    assert world.run() == NO_JOB
    assert world.news() == [f"job 17 failed with exit status 1 after N s; its engine is gone. See {log}"]
    assert world.launcher.last_words() == "ipengine: no such module"


def test_engines_that_left_in_time_are_replaced(make: Callable[..., World]) -> None:
    world = running(make, walltime="0:01:00", seconds=31)
    world.become(ended(DONE))
    assert world.run() is None
    [said] = world.news()
    words = "job 17 left before its time was over after N s; its engine is gone"
    assert said == f"{words}. Another job is submitted"


@pytest.mark.parametrize(("end", "seconds"), [(ended(DONE), 31), (ended(TIME), 50)])
def test_when_the_time_of_many_is_over_all_are_replaced(
    end: Seen, seconds: float, make: Callable[..., World]
) -> None:
    world = running(make, 2 * DEATHS, walltime="0:01:00", seconds=seconds)
    world.become(end)
    assert world.run() is None
    assert all(text.endswith("Another job is submitted") for text in world.news())
    assert len(world.site.named("submit")) == 4 * DEATHS
    assert (world.launcher.coming, world.launcher.missing) == (2 * DEATHS, 0)


def test_one_that_was_killed_at_the_end_of_its_time_has_reached_it(make: Callable[..., World]) -> None:
    world = running(make, walltime="0:01:00", seconds=60, restart=False)
    world.become(ended(CANCELLED))
    assert world.run() == NO_JOB
    assert world.news() == ["job 17 reached its time limit after N s; its engine is gone"]


def test_of_one_that_left_the_queue_the_accounts_are_asked(make: Callable[..., World]) -> None:
    world = running(make, restart=False)
    del world.site.seen["17"]
    world.site.accounts["17"] = ended(FAILED, status=3)
    assert world.run(2 * INTERVAL) == NO_JOB
    assert world.news() == ["job 17 failed with exit status 3 after N s; its engine is gone"]
    assert world.site.named("accounts") == [["17"]]


def test_where_these_do_not_know_that_is_said(make: Callable[..., World]) -> None:
    world = running(make)
    del world.site.seen["17"]
    words = "job 17 left the queue (how it ended is not known) after N s; its engine is gone"
    assert world.run(2 * (QUESTIONS + 1) * INTERVAL) == NO_JOB
    assert world.news() == [words]
    assert len(world.site.named("submit")) == 1


def test_accounts_that_are_late_are_not_waited_for_without_end(make: Callable[..., World]) -> None:
    world = running(make)
    del world.site.seen["17"]
    world.site.accounts["17"] = Seen(RUNS)
    assert world.run(2 * (QUESTIONS + 1) * INTERVAL) == NO_JOB


def test_a_new_job_may_take_a_while_to_be_shown(make: Callable[..., World]) -> None:
    world = make()
    world.start(1)
    hidden = world.site.seen.pop("17")
    world.run(SHOWN_AFTER - 1)
    assert world.site.named("accounts") == []
    world.site.seen["17"] = hidden
    assert world.run(20) is None


# -- more, fewer, none ------------------------------------------------------------------------------


def test_more_engines_are_more_jobs(make: Callable[..., World]) -> None:
    world = running(make, 2, per_job=2)
    world.launcher.grow(3)
    world.run()
    assert len(world.site.named("submit")) == 3
    assert world.launcher.coming == 5


def test_fewer_are_first_those_that_have_not_begun(make: Callable[..., World]) -> None:
    world = make(per_job=2)
    world.start(6)
    world.become(Seen(RUNS), "17")
    world.run()
    assert world.launcher.shrink(3) == 2, "whole jobs only"
    assert world.site.named("cancel") == [["19"]]
    assert world.launcher.coming == 4
    assert world.launcher.shrink(10) == 2
    assert world.launcher.shrink(10) == 0, "what runs is not for us to choose from"
    assert world.run(30) is None
    assert (world.news(), world.launcher.missing) == ([], 0)


def test_also_those_that_are_being_submitted_or_were_not_yet(make: Callable[..., World]) -> None:
    world = make()
    world.site.slow = True
    world.start(AT_A_TIME + 2)
    assert world.launcher.shrink(3) == 3
    assert world.launcher.coming == AT_A_TIME - 1
    for errand in world.site.errands:
        errand.is_done = True
    world.run(0.0)
    assert len(world.site.named("submit")) == AT_A_TIME
    assert world.site.named("cancel") == [[str(16 + AT_A_TIME)]]


def test_of_an_array_single_elements(make: Callable[..., World]) -> None:
    world = make(array=True)
    world.start(5)
    assert world.launcher.shrink(2) == 2
    assert world.site.named("cancel") == [["17_4", "17_3"]]


def test_one_of_an_array_comes_again_alone(make: Callable[..., World]) -> None:
    world = running(make, 3, array=True)
    world.become(ended(NODE), "17_1")
    world.run()
    assert world.launcher._control._jobs.keys == ["17_0", "17_2", "18"]


def test_stopping_cancels_all_and_returns_when_they_are_gone(make: Callable[..., World]) -> None:
    world = running(make, 3)
    began = world.clock.seconds()
    world.launcher.stop()
    assert world.site.named("cancel") == [["17", "18", "19"]]
    assert world.clock.seconds() - began < 3
    assert (world.news(), world.launcher.missing) == ([], 0)
    assert world.launcher.poll() == "exit status 0"


def test_stopping_says_which_do_not_go(make: Callable[..., World]) -> None:
    world = running(make, 2)
    world.site.deaf = True
    began = world.clock.seconds()
    world.launcher.stop()
    assert LEAVING <= world.clock.seconds() - began < LEAVING + 1
    assert world.news() == ["jobs of Fake are still in the queue after 40 s: 17, 18"]
    assert len(world.site.named("cancel")) == 2, "asked again"


def test_stopping_cancels_what_is_just_being_submitted(make: Callable[..., World]) -> None:
    world = make()
    world.site.slow = True
    world.start(AT_A_TIME + 1)
    calls = [
        world.clock.callLater(1.0, lambda: [setattr(each, "is_done", True) for each in world.site.errands])
    ]
    world.launcher.stop()
    assert not any(call.active() for call in calls)
    assert len(world.site.named("submit")) == AT_A_TIME, "what was not submitted yet is not"
    assert {key for keys in world.site.named("cancel") for key in keys} == {"17", "18", "19", "20"}


def test_stopping_again_does_not_wait(make: Callable[..., World]) -> None:
    world = running(make, 2)
    world.site.deaf = True

    def impatient(_: float) -> None:
        raise KeyboardInterrupt

    world.launcher._control._sleep = impatient
    with pytest.raises(KeyboardInterrupt):
        world.launcher.stop()
    world.launcher.stop()
    assert world.site.named("cancel") == [["17", "18"], ["17", "18"]]
