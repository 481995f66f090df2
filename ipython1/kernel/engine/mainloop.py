"""Runs jobs on the main thread, one after the other: commands and tasks.

They run in the order in which they came; but one whose parts are still on their
way holds up only what its own client sent after it.

Interrupts
----------
An interrupt is a SIGINT sent to the main thread. Its handler raises only
while `user_code` is on the stack, so what surrounds user code (this loop, the
swapping of streams, the making of results) is never torn. A signal that comes
elsewhere during a job strikes as soon as that job enters user code. Signals
are sent under the lock under which jobs end, and a job's end collects those
under way: so none can reach the next one. Where C code holds the interpreter
nobody here can send any: the nanny does (see `escalation`), and says on the
board for which job. A signal that
comes just before a blocking call does not end it; so, until the handler has
run, another signal, `NUDGE`, whose handler does nothing, follows now and then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, Union

from ipython1.kernel.engine.board import NUDGE
from ipython1.kernel.engine.failures import encoded

Buffer = Union[bytes, bytearray, memoryview]
T = TypeVar("T")

#: Seconds between nudges: the first pause, and the longest.
NUDGE_PAUSES = (0.01, 0.25)


#: `signal.getsignal`, where possible without its look for an enum: that takes 2 us, for each job.
_handler = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)


class _Interrupts:
    """An interrupt that came when no user code was on the stack."""

    pending = False


def user_code(f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `f`, which may be interrupted; nothing outside of such a call is."""
    if _Interrupts.pending:
        _Interrupts.pending = False
        raise KeyboardInterrupt
    return f(*args, **kwargs)


class Job:
    """Something to run, here without what it is.

    Parameters
    ----------
    id : str
        What it is known as to those who want it interrupted.
    timeout : float
        Seconds it may run; 0: any number.
    parts : sequence of buffers, optional
        None: they have not all arrived yet.

    Attributes
    ----------
    started, completed : float
        Seconds since the epoch; 0 where it has not come to that.
    overdue : bool
        It was interrupted because its time is up.
    """

    __slots__ = ("completed", "id", "overdue", "parts", "started", "timeout")

    def __init__(self, id: str, timeout: float = 0.0, parts: Sequence[Buffer] | None = None) -> None:
        self.id = id
        self.timeout = timeout
        self.parts = parts
        self.started = 0.0
        self.completed = 0.0
        self.overdue = False

    def failed(self, error: BaseException) -> tuple[str, bytes]:
        """The status and the result of this job, which raised `error`."""
        return "error", encoded(error)


J = TypeVar("J", bound=Job)


class IBoard(Protocol):
    """Where it is seen from outside which job runs, and whether it reacts; see `Board`."""

    def show(self, id: str, timeout: float = 0.0, /) -> None: ...

    def interrupted(self) -> None: ...

    def react(self, own: bool, /) -> tuple[bool, bool]: ...

    def settle(self) -> None: ...

    def hear(self, record: int, /) -> None: ...

    def served(self, record: int, /) -> bool: ...

    def new_session(self) -> None: ...


class NoBoard:
    """Nobody looks."""

    def show(self, id: str, timeout: float = 0.0) -> None:
        """See `IBoard`."""

    def interrupted(self) -> None:
        """See `IBoard`."""

    def react(self, own: bool) -> tuple[bool, bool]:
        """See `IBoard`."""
        return True, False

    def settle(self) -> None:
        """See `IBoard`."""

    def hear(self, record: int) -> None:
        """See `IBoard`."""

    def served(self, record: int) -> bool:
        """See `IBoard`."""
        return False

    def new_session(self) -> None:
        """See `IBoard`."""


class MainLoop(Generic[J]):
    """The queue of one engine, and the thread that works on it.

    Parameters
    ----------
    perform : callable
        ``perform(job)`` returns the parts of the result; what it raises is the
        job's error.
    done : callable
        ``done(job, status, parts)``, called on the loop's thread after every
        job that ran, with status 'ok' or 'error'.
    now : callable
        The time in seconds since the epoch.
    board : IBoard, optional
        Is told what runs.
    """

    def __init__(
        self,
        perform: Callable[[J], Sequence[Buffer]],
        done: Callable[[J, str, Sequence[Buffer]], None],
        now: Callable[[], float] = time.time,
        board: IBoard | None = None,
    ) -> None:
        self._perform = perform
        self._done = done
        self._now = now
        self.board = board or NoBoard()
        self._show = self.board.show
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: deque[J] = deque()
        self._stopped = False
        self._thread: int | None = None  # that takes signals
        self._sent = False  # an interrupt, to the job that runs
        self._unseen = False  # ... and its handler has not run
        self._nudging = False
        self._doomed: J | None = None  # interrupted before it was started
        self.running: J | None = None

    # -- any thread --------------------------------------------------------------

    def put(self, *jobs: J) -> None:
        """Add jobs at the end, also where their parts are still to come."""
        with self._lock:
            idle = not self._jobs
            self._jobs.extend(jobs)
            if idle or self._jobs[0].parts is None:  # else the loop is not waiting
                self._changed.notify()

    def ready(self, job: J, parts: Sequence[Buffer]) -> None:
        """The parts of a job are all there."""
        with self._lock:
            job.parts = parts
            if self._jobs and (self._jobs[0] is job or self._jobs[0].parts is None):
                self._changed.notify()

    def cancel(self, match: Callable[[J], bool]) -> list[J]:
        """Take out the jobs that have not started and match; returns them."""
        taken: list[J] = []
        with self._lock:
            left: deque[J] = deque()
            for job in self._jobs:
                (taken if match(job) else left).append(job)
            if taken:
                self._jobs = left
                self._changed.notify()  # the first one may be another now
        return taken

    def interrupt(self, id: str = "") -> bool:
        """Raise KeyboardInterrupt in the running job.

        Parameters
        ----------
        id : str
            Only if it is this one; empty: whichever runs, or is about to.

        Returns
        -------
        bool
            Whether there was such a job, and this loop can interrupt it.
        """
        return self._strike(lambda job: id in ("", job.id), the_next=not id)

    def expire(self, job: J) -> bool:
        """The same, for `job` alone, because its time is up."""
        return self._strike(lambda running: running is job, overdue=True)

    def _strike(self, match: Callable[[J], bool], overdue: bool = False, the_next: bool = False) -> bool:
        with self._lock:
            job = self.running
            if job is None and the_next and self._thread is not None:
                place = self._find()
                if place >= 0:
                    self._doomed = self._jobs[place]
                    return True
            if job is None or self._thread is None or not match(job):
                return False
            job.overdue = job.overdue or overdue
            self._sent = self._unseen = True
            self.board.interrupted()
            signal.pthread_kill(self._thread, signal.SIGINT)
            start, self._nudging = not self._nudging, True
        if start:
            threading.Thread(target=self._nudge, name="ipython1-interrupt", daemon=True).start()
        return True

    def _nudge(self) -> None:
        pause, longest = NUDGE_PAUSES
        while True:
            time.sleep(pause)
            pause = min(2 * pause, longest)
            with self._lock:
                if not self._unseen or self._thread is None:
                    self._nudging = False
                    return
                signal.pthread_kill(self._thread, NUDGE)

    def stop(self) -> None:
        """End `run_forever` after the job that runs now."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    # -- the loop's thread ---------------------------------------------------------

    def run_forever(self) -> None:
        """Run jobs until `stop`. On the main thread, which then takes SIGINT for interrupts."""
        main = threading.current_thread() is threading.main_thread()
        before = self._take_signals() if main else None
        self._thread = threading.get_ident() if main else None
        try:
            while True:
                with self._lock:
                    while not self._stopped and (place := self._find()) < 0:
                        self._changed.wait()
                    if self._stopped:
                        return
                    job = self._next(place)
                self._run(job)
                if main and _handler(signal.SIGINT) != self._on_signal:
                    self._take_signals()  # user code changed it
        finally:
            if before is not None:
                with self._lock:
                    self._thread = None
                    self._collect_signals()
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _take_signals(self) -> dict[signal.Signals, Any]:
        """Install the handlers; returns those that were there."""
        mine = {signal.SIGINT: self._on_signal, NUDGE: _ignore}
        return {number: signal.signal(number, handler) for number, handler in mine.items()}

    def run_ready(self) -> int:
        """Run inline what can run now; returns how many jobs that were."""
        count = 0
        while True:
            with self._lock:
                place = self._find()
                if self.running is not None or place < 0:
                    return count
                job = self._next(place)
            self._run(job)
            count += 1

    def _find(self) -> int:
        """Where the job stands that is next; -1 where none can start. Under the lock."""
        if self.has_next():
            return 0
        held: set[str] = set()
        for place, job in enumerate(self._jobs):
            client = job.id.partition("-")[0]
            if job.parts is None:
                held.add(client)
            elif client not in held:
                return place
        return -1

    def _next(self, place: int) -> J:
        job = self._jobs[place]
        del self._jobs[place]
        self._show(job.id, job.timeout)  # first, and under the lock: who interrupts it writes there, too
        self.running = job
        if self._doomed is not None:
            _Interrupts.pending, self._doomed = self._doomed is job, None
        return job

    def has_next(self) -> bool:
        """Whether the first job can start now. On the loop's thread, which alone takes out the first."""
        jobs = self._jobs
        return bool(jobs) and jobs[0].parts is not None

    def _run(self, job: J) -> None:
        process = os.getpid()
        job.started = self._now()
        try:
            parts, error = self._perform(job), None
        except BaseException as raised:  # noqa: BLE001 -- whatever user code raises is the job's error
            parts, error = (), raised
        if os.getpid() != process:
            os._exit(0)  # a child that user code forked has no business here
        status = "ok"
        if error is not None:
            # No longer inside `user_code`, so this is not interrupted.
            status, failure = job.failed(error)
            parts = (failure,)
        job.completed = self._now()
        with self._lock:
            self.running = None
            if self._sent:
                self._collect_signals()
        self._show("")
        _Interrupts.pending = False  # also one that came from elsewhere
        self._done(job, status, parts)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        own, self._unseen = self._unseen, False
        meant, late = self.board.react(own)
        job = self.running
        if job is None or not meant:
            return
        job.overdue = job.overdue or late
        if job.overdue:
            self.board.settle()
        while frame is not None:
            if frame.f_code is user_code.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back
        _Interrupts.pending = True

    def _collect_signals(self) -> None:
        # Coming back from the kernel, this thread has got what was sent to it; Python
        # then calls the handler before the call returns.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._sent = self._unseen = False


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, a handler ends blocking calls."""
