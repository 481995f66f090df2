"""Ends jobs that run for longer than they may."""

from __future__ import annotations

import math
from typing import Any

from ipython1.kernel.engine.mainloop import Job, MainLoop


class Deadlines:
    """Watches the running job of a loop.

    One timer serves all jobs, for to set one for each costs more than a small
    job does: where it goes off before the running job is late, it is set anew.

    Parameters
    ----------
    clock : IReactorTime
    hop : callable
        Calls a function in the reactor thread.
    loop : MainLoop
    """

    def __init__(self, clock: Any, hop: Any, loop: MainLoop[Any]) -> None:
        self._clock = clock
        self._hop = hop
        self._loop = loop
        self._call: Any = None
        self._at = math.inf  # when the timer goes off
        self._watched: tuple[Job, float] | None = None  # what runs, and until when it may
        self._stopped = False

    def job_started(self, job: Job) -> None:
        """`job` runs from now on; on the main thread."""
        if job.timeout > 0:
            late = self._clock.seconds() + job.timeout
            self._watched = job, late
            if late < self._at:  # also where the timer goes off now: whoever comes second sees the other
                self._hop(self._look)

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _look(self) -> None:
        self._cancel()
        self._at = math.inf
        watched = self._watched
        if self._stopped or watched is None or self._loop.running is not watched[0]:
            return
        job, late = watched
        left = late - self._clock.seconds()
        if left > 0:
            self._at = late
            self._call = self._clock.callLater(left, self._look)
        elif not job.overdue:
            self._loop.expire(job)
