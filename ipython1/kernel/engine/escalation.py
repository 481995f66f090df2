"""What the nanny does about a job that does not react to an interrupt.

An engine interrupts its jobs itself, but not while C code holds the
interpreter: then the thread that would hear of the interrupt stands still, too.
So the nanny hears of each, and sees on the `Board` what became of it. To
*react* is that KeyboardInterrupt was raised; code that catches it has reacted.

===========  ============================================  ========================================
state        what is seen                                  next state, and what the nanny does
===========  ============================================  ========================================
quiet        an interrupt was ordered while a job runs     ordered
quiet        the engine has interrupted the job            asked
quiet        the job is late by more than `SILENCE`        asked, SIGINT
ordered      the engine heard of it: it meant this job     asked
ordered      ... and it meant another one                  quiet
ordered      nothing for `SILENCE`                         asked, SIGINT
asked        nothing yet                                   asked, `NUDGE`
asked        nothing for the grace time                    stuck: says so; restarts the engine, where
                                                           that was chosen
stuck        a restart was ordered                         stuck, restarts the engine
any          the job reacted or ended                      quiet
===========  ============================================  ========================================

What was chosen is said with the interrupt, or else with ``--stuck``; for jobs
whose time is up only there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ipython1.kernel.engine.board import Board, Running

#: What can be done about an engine that does not react.
LEAVE, RESTART = CHOICES = ("leave", "restart")
#: Seconds that an engine has to interrupt a job by itself.
SILENCE = 0.5
#: Seconds that a job has to react, where the user says nothing else.
STUCK_AFTER = 5.0

#: What is to be done now.
NOTHING, SIGNAL, NUDGED, STUCK, RESTARTED, OVER = "", "signal", "nudge", "stuck", "restart", "over"


@dataclass
class _Trouble:
    job: int
    since: float  # since when it should be interrupted
    raised: int  # by the engine until then
    choice: str  # empty: none was made
    record: int = 0  # with the order of the controller; 0: there is none
    late: bool = False
    asked: bool = False  # there was a SIGINT
    stuck: bool = False  # ... for the grace time
    ended: bool = False  # the engine is restarted


class Escalation:
    """Watches the job of one engine.

    Parameters
    ----------
    board : Board
        The engine's.
    choice : str
        What is done about a job that does not react: ``leave`` it, or ``restart`` the engine.
    grace : float
        Seconds it has to react.
    """

    def __init__(self, board: Board, choice: str, grace: float) -> None:
        self._board = board
        self._choice = choice
        self._grace = grace
        self._trouble: _Trouble | None = None

    def ordered(self, now: float, record: int, ids: Collection[str], choice: str) -> None:
        """The controller sent an interrupt, as number `record`, to the engine: for one of `ids`, or any."""
        job = self._board.running()
        if job is None or (ids and job.id not in ids):
            return
        if not ids:
            self._board.aim(job.number, record)
        trouble = self._trouble
        if trouble is None or not self._lasts(trouble, job):
            self._trouble = _Trouble(job.number, now, self._board.raised, choice, record)
            return
        trouble.choice = choice or trouble.choice
        if trouble.asked:
            self._board.serve(record)
        else:
            trouble.record = record

    def look(self, now: float) -> str:
        """What is to be done, and has been when this is called again."""
        job, trouble = self._board.running(), self._trouble
        if trouble is not None and (job is None or not self._lasts(trouble, job)):
            self._trouble = None
            return OVER if trouble.stuck else NOTHING
        if job is None:
            return NOTHING
        if trouble is None:
            trouble = self._trouble = self._begin(job, now)
            return NOTHING if trouble is None else self._signal(trouble)
        if not trouble.asked:
            if job.asked_at:
                trouble.asked = True
            elif self._board.heard >= trouble.record > 0:
                self._trouble = None  # another job was meant
            elif now - trouble.since >= SILENCE:
                return self._signal(trouble)
            return NOTHING
        return self._wait(trouble, now)

    def reason(self) -> str:
        """What there is to say of a job that is stuck."""
        job = self._board.running()
        if job is None:
            return "did not react to an interrupt"
        kind = "task" if "#" in job.id else "command"
        limit = f" (timeout {job.timeout:g} s)" if self._trouble and self._trouble.late else ""
        return f"{kind} {job.id} did not react to an interrupt{limit}"

    def _begin(self, job: Running, now: float) -> _Trouble | None:
        late = 0 < job.late_at <= (job.asked_at or now - SILENCE)
        if not (late or job.asked_at):
            return None
        since = job.asked_at or job.late_at
        return _Trouble(job.number, since, self._board.raised, "", late=late, asked=bool(job.asked_at))

    def _signal(self, trouble: _Trouble) -> str:
        if trouble.asked:  # by the engine
            return NOTHING
        trouble.asked = True
        self._board.serve(trouble.record)
        self._board.mean(trouble.job, trouble.late)
        return SIGNAL

    def _wait(self, trouble: _Trouble, now: float) -> str:
        if not trouble.stuck:
            if now - trouble.since < self._grace:
                return NUDGED
            trouble.stuck = True
            return STUCK
        if (trouble.choice or self._choice) == RESTART and not trouble.ended:
            trouble.ended = True
            return RESTARTED
        return NOTHING

    def _lasts(self, trouble: _Trouble, job: Running) -> bool:
        return job.number == trouble.job and self._board.raised == trouble.raised
