"""Submits jobs, watches and cancels them, by commands that run beside this process.

=============  ==============================  =========================================================
job            what is seen                    next
=============  ==============================  =========================================================
to submit      there is room                   the command that submits runs
submitting     it says an id                   waits
submitting     anything else                   given up; its words are shown
waits          why                             said, once for each reason
waits, runs    it ended, asked for by us       forgotten
runs           it ended with status 0          its engines were stopped on request: forgotten
runs           its time, node or memory ended  said; another one is submitted, where restarting is on,
                                               and not after `DEATHS` ends within `PERIOD` of jobs that had
                                               just begun
waits, runs    it ended otherwise              said; its engines are missing
=============  ==============================  =========================================================
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from ipython1.kernel.error import LaunchError
from ipython1.kernel.processes import exit_words, tail
from ipython1.launch.batch.errand import Errand
from ipython1.launch.batch.job import Job, Template
from ipython1.launch.batch.jobs import SHOWN_AFTER, End, Jobs, Known
from ipython1.launch.batch.system import TIME, WAITS, System

#: Commands that submit, at a time.
AT_A_TIME = 4
#: Seconds between an answer of the batch system and the next question; when all is stopped.
INTERVAL, SHORT_INTERVAL = 2.0, 0.5
#: Seconds that jobs get to leave the queue when all is stopped, and between looks at the commands.
LEAVING, LOOK = 40.0, 0.1
#: So many ends within `PERIOD` seconds, of jobs that ran for less, and no other job follows such a one.
DEATHS, PERIOD = 3, 60.0
#: How all ended, where one of them ended badly.
NO_JOB = "no job left"
#: Times that the batch system fails to answer, one after the other, before that is said.
SILENCES = 3


@dataclass(eq=False)
class Submission:
    """A job that is being submitted; so many of its elements are to be cancelled at once."""

    errand: Errand
    job: Job
    unwanted: int = 0


class Control:
    """The jobs of one launcher, from their submission to their end.

    Parameters
    ----------
    system : System
        Knows the commands.
    submit : sequence of str
        The command that submits.
    template : Template, optional
        The user's own script.
    restart : bool
        Submit another job for one that ended.
    now, sleep : callable
        The monotonic time, and how to wait.
    errand : callable
        Runs a command: `Errand`.
    """

    def __init__(
        self,
        system: System,
        submit: Sequence[str],
        template: Template | None,
        restart: bool,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        errand: Callable[..., Errand] = Errand,
    ) -> None:
        self._system = system
        self._submit = submit
        self._template = template
        self._restart = restart
        self._now = now
        self._sleep = sleep
        self._errand = errand
        self._to_submit: deque[Job] = deque()
        self._submissions: list[Submission] = []
        self._jobs = Jobs(now)
        self._look: Errand | None = None
        self._looked = -math.inf
        self._inquest: Errand | None = None
        self._then: Callable[[], bool] | None = None  # waits for a look
        self._earlier: Errand | None = None  # a look that began before that
        self._is_fresh = False
        self._cancels: list[Errand] = []
        self._silences = 0
        self._ends: deque[float] = deque(maxlen=DEATHS)
        self._news: list[str] = []
        self._begun = self._failed = self._stopping = False
        self._refusal = ""  # the last one
        #: Engines that will not come, or not again.
        self.missing = 0
        #: Engines of jobs that were submitted for others that ended.
        self.again = 0
        #: The end of what the last job wrote of those that ended badly.
        self.last_words = ""

    def submit(self, jobs: Iterable[Job]) -> None:
        """Have jobs submitted."""
        self._begun, self._failed, self._refusal = True, False, ""
        self._to_submit.extend(jobs)
        self.advance()

    def over(self) -> str | None:
        """None before the first job, and while one is there or comes; else how all ended."""
        if not self._begun or self._to_submit or self._submissions or len(self._jobs):
            return None
        return NO_JOB if self._failed else exit_words(0)

    @property
    def coming(self) -> int:
        """How many engines may still come."""
        return self._unsubmitted + self._jobs.coming

    @property
    def waiting(self) -> int:
        """How many engines have certainly not begun to start."""
        return self._unsubmitted + self._jobs.seen_waiting

    @property
    def _unsubmitted(self) -> int:
        submitting = sum((each.job.count - each.unwanted) * each.job.each for each in self._submissions)
        return sum(job.count * job.each for job in self._to_submit) + submitting

    def news(self) -> list[str]:
        """What the user has to know, since the last call."""
        news = self._news + ([] if self._stopping else self._jobs.waiting())
        self._news = []
        return news

    # -- one step ------------------------------------------------------------------------

    def advance(self) -> None:
        """Look at the commands that run, and run others."""
        self._cancels = [errand for errand in self._cancels if not errand.is_done]
        for submission in list(self._submissions):
            if submission.errand.is_done:
                self._submissions.remove(submission)
                self._submitted(submission)
        while self._to_submit and len(self._submissions) < AT_A_TIME:
            self._start_submission(self._to_submit.popleft())
        if self._look is not None and self._look.is_done:
            look, self._look = self._look, None
            self._looked_at(look)
        if self._inquest is not None and self._inquest.is_done:
            inquest, self._inquest = self._inquest, None
            self._ended(self._jobs.learned(self._system.inquest(inquest.output)))
        # One that is lost may be followed by another.
        is_known = (self._is_fresh and not self._jobs.lost()) or not len(self._jobs)
        if self._then is not None and is_known:
            then, self._then = self._then, None
            then()
        if self._look is None and len(self._jobs) and self._now() - self._looked >= self._interval:
            self._look = self._errand(self._system.poll_command(self._jobs.keys))

    def when_seen(self, then: Callable[[], bool]) -> bool:
        """Call `then` once it is known what the jobs do now; its answer, False if that is later."""
        if not len(self._jobs):
            return then()
        # The answer to a question that was asked already may be older.
        self._then, self._earlier, self._is_fresh, self._looked = then, self._look, False, -math.inf
        return False

    @property
    def _interval(self) -> float:
        return SHORT_INTERVAL if self._stopping else INTERVAL

    def _start_submission(self, job: Job) -> None:
        try:
            for path, text in self._system.texts(job, self._template).items():
                if not (path.exists() and path.read_text() == text):  # else it may be being read
                    path.write_text(text)
                    path.chmod(0o700)
        except OSError as error:
            self._refused(job, f"{error.filename}: {error.strerror}")
            return
        command, stdin = self._system.submit_command(self._submit, job)
        self._submissions.append(Submission(self._errand(command, stdin), job))

    def _submitted(self, submission: Submission) -> None:
        errand, job = submission.errand, submission.job
        try:
            keys = [] if errand.status else self._system.submitted(errand.output, job)
        except ValueError:
            keys = []
        if keys:
            known = [self._jobs.add(key, job) for key in keys]
            self._cancel(known if self._stopping else known[len(known) - submission.unwanted :])
            return
        said = f"{errand.command} printed {errand.output.strip()!r}, and that is no job id"
        self._refused(job, errand.words() if errand.status else said)

    def _refused(self, job: Job, reason: str) -> None:
        refusal = str(LaunchError(what="A job", reason=reason.removesuffix(".")))
        if refusal != self._refusal:  # many that fail alike say it once
            self._news.append(refusal)
        self._refusal, self._failed = refusal, True
        self.missing += job.count * job.each

    def _looked_at(self, look: Errand) -> None:
        self._looked = self._now()
        keys = self._jobs.keys
        try:
            seen = self._system.seen(look.output, look.errors, look.status, keys)
        except ValueError:
            self._silences += 1
            if self._silences == SILENCES:
                self._news.append(f"{look.command} does not say how the jobs are: {look.words()}")
            return
        self._silences = 0
        self._is_fresh = look is not self._earlier
        self._ended(self._jobs.saw(seen))
        lost = self._jobs.lost()
        if lost and self._inquest is None:
            command = self._system.inquest_command(lost)
            if command:
                self._inquest = self._errand(command)
            else:
                self._ended(self._jobs.learned({}))

    # -- ends -------------------------------------------------------------------------------

    def _ended(self, ends: Iterable[End]) -> None:
        for end in ends:
            known, again = end.known, False
            if self._stopping or not end.words:
                continue
            if self._restart and end.may_come_again and self._allows(end):
                # One of an array comes again by itself.
                self._to_submit.append(replace(known.job, count=1))
                self.again += known.engines
                again = True
            self._news.append(end.words + (". Another job is submitted" if again else "") + self._where(end))
            if not (again or known.let_go):
                self.missing += known.engines
            if not (again or end.is_well):
                self._failed = True
                self.last_words = tail(self._system.output(known.job, known.key))

    def _where(self, end: End) -> str:
        path = self._system.output(end.known.job, end.known.key)
        try:
            wrote = path.stat().st_size > 0
        except OSError:
            wrote = False
        return f". See {path}" if wrote and not end.is_well else ""

    def _allows(self, end: End) -> bool:
        if end.time_is_over or end.seen.reason == TIME or end.known.seconds >= PERIOD:
            return True  # many may end so together, and the next ones will again run for long
        now = self._now()
        if len(self._ends) == DEATHS and now - self._ends[0] < PERIOD:
            return False
        self._ends.append(now)
        return True

    def let_go(self, leaving: int) -> None:
        """Have no job follow those whose time is over: their engines, `leaving`, were asked for otherwise."""
        for known in self._jobs:
            leave_after = known.job.leave_after
            if known.began is None or not leave_after or known.let_go:
                continue
            left = known.began + leave_after - self._now()
            # It is seen late that a job has begun, so engines may leave earlier than that.
            if left <= 0 or (leaving > 0 and left <= SHOWN_AFTER):
                known.let_go = True
                leaving -= known.engines

    # -- cancelling ---------------------------------------------------------------------------

    def _cancel(self, jobs: Collection[Known]) -> None:
        for known in jobs:
            known.unwanted = True
        if jobs:
            self._cancels.append(self._errand(self._system.cancel_command([each.key for each in jobs])))

    def shrink(self, n: int) -> int:
        """Cancel jobs that have not begun, the newest first, of `n` engines at most; of how many it did."""
        left = n
        for job in [self._to_submit.pop() for _ in range(len(self._to_submit))]:
            fewer = min(job.count, left // job.each)
            left -= fewer * job.each
            if fewer < job.count:
                self._to_submit.appendleft(replace(job, count=job.count - fewer))
        for submission in reversed(self._submissions):
            fewer = min(submission.job.count - submission.unwanted, left // submission.job.each)
            left -= fewer * submission.job.each
            submission.unwanted += fewer
        waiting = []
        for known in reversed(list(self._jobs)):
            if known.phase == WAITS and not known.unwanted and known.engines <= left:
                left -= known.engines
                waiting.append(known)
        self._cancel(waiting)
        return n - left

    def stop(self) -> None:
        """Cancel all, and wait until they have left the queue; where called again, do not wait."""
        if self._stopping:
            self._cancel(list(self._jobs))
            return
        self._stopping, self._then = True, None
        self._to_submit.clear()
        self._cancel(list(self._jobs))
        began, again = self._now(), False
        while (self._submissions or len(self._jobs) or self._cancels) and self._now() - began < LEAVING:
            self.advance()
            if not again and self._now() - began > LEAVING / 2:
                self._cancel(list(self._jobs))
                again = True
            self._sleep(LOOK)
        self._stopping = False
        if len(self._jobs):
            keys = ", ".join(self._jobs.keys)
            self._news.append(
                f"jobs of {self._system.title} are still in the queue after {LEAVING:.0f} s: {keys}"
            )
