"""The jobs that were submitted: what is known of each, and what the user has to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ipython1.launch.batch.job import Job
from ipython1.launch.batch.system import (
    CANCELLED,
    DONE,
    ENDED,
    FAILED,
    GONE,
    KILLED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    ended,
)

#: Seconds that a job waits before that is said.
PATIENCE = 5.0
#: Seconds that a new job may take until the batch system shows it.
SHOWN_AFTER = 10.0
#: Times that the batch system is asked how a job ended.
QUESTIONS = 3
#: Seconds in which the engines of a job that has begun are there.
COMING = 60.0
#: Seconds before the end of its time in which a job that was killed was so for that.
LATE = 5.0
#: Jobs that are named in one sentence.
NAMED = 4


@dataclass(eq=False)
class Known:
    """A job that has a key."""

    key: str
    job: Job
    submitted: float
    phase: str = WAITS
    reason: str = ""
    began: float | None = None
    until: float = 0.0  # when it was last seen to run
    unwanted: bool = False  # we cancel it
    let_go: bool = False  # no other job is to follow it
    shown: bool = False  # the batch system has shown it
    asked: int = 0  # times how it ended
    told: set[str] = field(default_factory=set)  # reasons for which it waits

    @property
    def engines(self) -> int:
        """How many it has."""
        return self.job.each

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return 0.0 if self.began is None else self.until - self.began


@dataclass(frozen=True)
class End:
    """The end of a job: how, and what the user has to know, empty where that is nothing."""

    known: Known
    seen: Seen
    words: str

    @property
    def is_well(self) -> bool:
        """Nothing went wrong: it was asked to end, by us or, once it ran, by somebody else."""
        cancelled = self.seen.reason == CANCELLED and self.known.began is not None
        return self.known.unwanted or self.known.let_go or cancelled or self.seen.reason == DONE

    @property
    def time_is_over(self) -> bool:
        """Its engines left in time, before the batch system would have ended it."""
        leave_after = self.known.job.leave_after
        return self.seen.reason == DONE and 0 < leave_after <= self.known.seconds + SHOWN_AFTER

    @property
    def may_come_again(self) -> bool:
        """Whether another such job would do better: this one had begun well, and nobody wanted its end."""
        if self.known.unwanted or self.known.let_go or self.known.began is None:
            return False
        return self.time_is_over or self.seen.reason not in (DONE, FAILED, CANCELLED, GONE)


class Jobs:
    """All jobs of a launcher that have keys.

    Parameters
    ----------
    now : callable
        The monotonic time.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._jobs: dict[str, Known] = {}

    def __iter__(self) -> Iterator[Known]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, key: str, job: Job) -> Known:
        """A job was submitted."""
        known = self._jobs[key] = Known(key, job, self._now())
        return known

    @property
    def keys(self) -> list[str]:
        """Of those that have not ended."""
        return list(self._jobs)

    @property
    def coming(self) -> int:
        """How many engines may still come."""
        now = self._now()
        return sum(
            each.engines
            for each in self._jobs.values()
            if not each.unwanted and (each.began is None or now - each.began < COMING)
        )

    @property
    def seen_waiting(self) -> int:
        """How many engines are in jobs that were seen to wait the last time."""
        return sum(
            each.engines
            for each in self._jobs.values()
            if each.phase == WAITS and each.shown and not each.unwanted
        )

    def lost(self) -> list[str]:
        """Keys of those that the batch system did not show the last time it was asked."""
        return [each.key for each in self._jobs.values() if each.asked]

    def saw(self, seen: dict[str, Seen]) -> list[End]:
        """The batch system says this of all it knows. Returns what has ended."""
        now, ends = self._now(), []
        for key, known in list(self._jobs.items()):
            what = seen.get(key)
            if what is None and (known.shown or now - known.submitted >= SHOWN_AFTER):
                if known.unwanted:
                    ends.append(self._end(known, ended(CANCELLED)))
                else:
                    known.asked += 1
            elif what is None:
                continue
            elif what.phase == ENDED:
                ends.append(self._end(known, what))
            else:
                known.asked, known.shown = 0, True
                known.phase, known.reason = what.phase, what.reason
                if what.phase == RUNS:
                    known.began = now if known.began is None else known.began
                    known.until = now
        return ends

    def learned(self, seen: dict[str, Seen]) -> list[End]:
        """How some ended that are lost. Returns the ends, also of those of which it will not be known."""
        ends = []
        for key in self.lost():
            known = self._jobs[key]
            what = seen.get(key)
            if what is not None and what.phase == ENDED:
                ends.append(self._end(known, what))
            elif known.asked >= QUESTIONS:
                ends.append(self._end(known, ended(GONE)))
        return ends

    def _end(self, known: Known, seen: Seen) -> End:
        del self._jobs[known.key]
        if known.began is not None:
            known.until = self._now()
        elif seen.reason != CANCELLED:
            known.began = known.until = self._now()  # it ran, between two looks
        limit = known.job.walltime
        if limit and known.seconds >= limit - LATE and seen.reason in (KILLED, CANCELLED, GONE):
            seen = ended(TIME)  # by whom it was killed some systems do not say
        end = End(known, seen, "")
        if known.unwanted or (seen.reason == DONE and not end.time_is_over):
            return end
        words = "left before its time was over" if end.time_is_over else seen.words
        after = f" after {known.seconds:.0f} s" if known.seconds >= 1 else ""
        gone = f"its {known.engines} engines are gone" if known.engines > 1 else "its engine is gone"
        return End(known, seen, f"job {known.key} {words}{after}; {gone}")

    def waiting(self) -> list[str]:
        """What was not said yet of jobs that wait, or do no longer."""
        now = self._now()
        by_reason: dict[str, list[str]] = {}
        begun = []
        for each in self._jobs.values():
            if each.unwanted:
                continue
            if each.phase == RUNS and each.told:
                each.told.clear()
                begun.append(each.key)
            elif each.phase == WAITS and now - each.submitted >= PATIENCE and each.reason not in each.told:
                each.told.add(each.reason)
                by_reason.setdefault(each.reason, []).append(each.key)
        news = [
            f"{_named(keys)} {'waits' if len(keys) == 1 else 'wait'}" + (f": {reason}" if reason else "")
            for reason, keys in by_reason.items()
        ]
        return news + ([f"{_named(begun)} {'runs' if len(begun) == 1 else 'run'} now"] if begun else [])


def _named(keys: list[str]) -> str:
    """``job 17``, ``jobs 17 and 18``, ``jobs 1, 2, 3, 4 and 20 more``."""
    if len(keys) == 1:
        return f"job {keys[0]}"
    if len(keys) > NAMED:
        return f"jobs {', '.join(keys[:NAMED])} and {len(keys) - NAMED} more"
    return f"jobs {', '.join(keys[:-1])} and {keys[-1]}"
