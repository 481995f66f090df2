"""What an engine and its nanny tell each other without words: which job runs, and whether it reacts.

Memory that both share, so that it says something also when the engine's threads
stand still, because C code holds the interpreter, and when the engine is dead.
"""

from __future__ import annotations

import mmap
import signal
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

#: Ends a blocking call of the main thread, for the sake of the SIGINT that came just before it.
NUDGE = signal.SIGURG

_SIZE = 512
#: When the engine interrupted the job, which has not reacted yet, or 0; start; timeout; number, last: it
#: makes the rest valid. The engine writes these.
_JOB = struct.Struct("=dddQ")
_ASKED_AT, _TIMEOUT, _NUMBER = 0, 16, 24
#: How many interrupts have been raised; number of the record with the last one that was heard of.
_RAISED, _HEARD = 32, 40
#: For which job the nanny's SIGINT is, whether for being late, and the record it did it for; which job ran
#: when it heard of an interrupt, when that was, and with what record. The nanny writes these, and the
#: engine clears the first.
_MEANT, _LATE, _SERVED, _AIM, _AIMED = 48, 56, 64, 72, 88
_AIMING = struct.Struct("=QdQ")
_ID = 96
_NATURAL = struct.Struct("=Q")
#: An engine that hears of an interrupt so many seconds after its nanny did has stood still.
LATE_NEWS = 0.1
#: Looks for one at which the board does not change: jobs that follow each other so fast need no watching.
_TRIES = 5


class Running(NamedTuple):
    """The job that runs. Times are those of the monotonic clock of the host."""

    number: int  # of this process, from 1
    id: str
    started: float
    timeout: float  # seconds; 0: none
    asked_at: float  # the engine interrupted it then, and it has not reacted yet; 0: neither

    @property
    def late_at(self) -> float:
        """When its time is up; 0: never."""
        return self.started + self.timeout if self.timeout > 0 else 0.0


class Board:
    """Memory that a process shares with its parent, which makes this before the fork.

    Parameters
    ----------
    seconds : callable
        The monotonic time.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._seconds = seconds
        self._count = 0

    # -- the engine ----------------------------------------------------------------

    def show(self, id: str, timeout: float = 0.0) -> None:
        """Job `id` runs, for `timeout` seconds at most; empty: none does."""
        if id:
            text = id.encode("utf-8", "backslashreplace")[: _SIZE - _ID - 1] + b"\0"
            self._memory[_ID : _ID + len(text)] = text
            self._count += 1
            _JOB.pack_into(self._memory, 0, 0.0, self._seconds(), timeout, self._count)
        else:
            self._set(_NUMBER, 0)

    def interrupted(self) -> None:
        """The running job gets a SIGINT from the engine itself."""
        if not self._float(_ASKED_AT):
            struct.pack_into("=d", self._memory, _ASKED_AT, self._seconds())

    def react(self, own: bool) -> tuple[bool, bool]:
        """The handler of SIGINT runs; `own`: the engine itself has sent one.

        Returns
        -------
        meant : bool
            It is for the job that runs, as far as is known.
        late : bool
            ... from the nanny, because the time of the job is up.
        """
        meant, running = self._get(_MEANT), self._get(_NUMBER)
        self._set(_MEANT, 0)
        if meant not in (0, running) and not own:
            return False, False
        struct.pack_into("=d", self._memory, _ASKED_AT, 0.0)
        self._set(_RAISED, self._get(_RAISED) + 1)
        return True, meant == running and bool(self._get(_LATE))

    def settle(self) -> None:
        """The job has reacted to what came because its time is up, and is left to itself."""
        struct.pack_into("=d", self._memory, _TIMEOUT, 0.0)

    def hear(self, record: int) -> None:
        """The engine has done what record `record` of its session asks for: an interrupt."""
        self._set(_HEARD, record)

    def served(self, record: int) -> bool:
        """Whether it need not be done: by the nanny it was, or what was meant ended before we heard of it."""
        if record <= self._get(_SERVED):
            return True
        job, at, last = _AIMING.unpack_from(self._memory, _AIM)
        over = job != self._get(_NUMBER)
        return over and record <= int(last) and self._seconds() - float(at) > LATE_NEWS

    def new_session(self) -> None:
        """Records are counted from 1 again."""
        for place in (_HEARD, _SERVED, _AIMED):
            self._set(place, 0)

    # -- the nanny -------------------------------------------------------------------

    def read(self) -> str:
        """The id of the job that runs, or ran at the end of the process; empty: none."""
        return self._id() if self._get(_NUMBER) else ""

    def running(self) -> Running | None:
        """The job that runs; None where there is none, or another one begins right now."""
        for _ in range(_TRIES):
            seen, id = self._memory[: _JOB.size], self._id()
            asked_at, started, timeout, number = _JOB.unpack(seen)
            if not number:
                break
            if seen == self._memory[: _JOB.size]:
                return Running(number, id, started, timeout, asked_at)
        return None

    @property
    def raised(self) -> int:
        """How many interrupts this process has reacted to."""
        return self._get(_RAISED)

    @property
    def heard(self) -> int:
        """Number of the record with the last interrupt that the engine has heard of."""
        return self._get(_HEARD)

    def aim(self, job: int, record: int) -> None:
        """When the nanny heard of an interrupt, by record `record`, job number `job` ran."""
        _AIMING.pack_into(self._memory, _AIM, job, self._seconds(), record)

    def serve(self, record: int) -> None:
        """The engine need not do any more what record `record` of its session, and those before, ask for."""
        self._set(_SERVED, max(record, self._get(_SERVED)))

    def mean(self, job: int, late: bool) -> None:
        """A SIGINT follows for job number `job`; `late`: because its time is up."""
        self._set(_LATE, late)
        self._set(_MEANT, job)

    # -- inside ------------------------------------------------------------------------

    def _id(self) -> str:
        return self._memory[_ID:].partition(b"\0")[0].decode("utf-8", "replace")

    def _get(self, place: int) -> int:
        number: int = _NATURAL.unpack_from(self._memory, place)[0]
        return number

    def _set(self, place: int, number: int) -> None:
        _NATURAL.pack_into(self._memory, place, number)

    def _float(self, place: int) -> float:
        number: float = struct.unpack_from("=d", self._memory, place)[0]
        return number
