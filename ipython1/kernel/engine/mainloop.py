"""Runs commands on the main thread, one after the other.

Interrupts
----------
An interrupt is a SIGINT sent to the main thread. Its handler raises only
while `user_code` is on the stack, so what surrounds user code (this loop, the
swapping of streams, the making of results) is never torn. A signal that comes
elsewhere during a command strikes as soon as that command enters user code.
Signals are sent under the lock under which commands end, and a command's end
collects those under way: so none can reach the next command. A signal that
comes just before a blocking call does not end it; so, until the handler has
run, another signal, `NUDGE`, whose handler does nothing, follows now and then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, Union

from ipython1.kernel.error import CommandTimeout, RemoteFailure
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.objects import dump_failure
from ipython1.kernel.wire.records import Submit

Buffer = Union[bytes, bytearray, memoryview]
T = TypeVar("T")

#: Ends a blocking call of the main thread, for the sake of the SIGINT that came just before it.
NUDGE = signal.SIGURG
#: Seconds between nudges: the first pause, and the longest.
NUDGE_PAUSES = (0.01, 0.25)


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
    """One command to run.

    Parameters
    ----------
    submit : Submit
    parts : list of buffers, optional
        None: they have not all arrived yet.

    Attributes
    ----------
    started, completed : float
        Seconds since the epoch; 0 where it has not come to that.
    """

    def __init__(self, submit: Submit, parts: list[Buffer] | None = None) -> None:
        self.submit = submit
        self.parts = parts
        self.started = 0.0
        self.completed = 0.0
        self.timeout = 0.0  # set by the interrupt that ends it


class MainLoop:
    """The queue of one engine, and the thread that works on it.

    Parameters
    ----------
    perform : callable
        ``perform(job)`` returns the parts of the result; what it raises is the
        command's error.
    done : callable
        ``done(job, status, parts)``, called on the loop's thread after every
        job that ran, with status 'ok' or 'error'.
    now : callable
        The time in seconds since the epoch.
    """

    def __init__(
        self,
        perform: Callable[[Job], list[Buffer]],
        done: Callable[[Job, str, list[Buffer]], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._perform = perform
        self._done = done
        self._now = now
        self._changed = threading.Condition(threading.Lock())
        self._jobs: deque[Job] = deque()
        self._stopped = False
        self._thread: int | None = None  # that takes signals
        self._unseen = False  # an interrupt was sent and its handler has not run
        self._nudging = False
        self.running: Job | None = None

    # -- any thread --------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Add a job at the end, also where its parts are still to come."""
        with self._changed:
            self._jobs.append(job)
            if job.parts is not None:
                self._changed.notify()

    def ready(self, job: Job, parts: list[Buffer]) -> None:
        """The parts of a job are all there."""
        with self._changed:
            job.parts = parts
            self._changed.notify()

    def cancel(self, match: Callable[[Job], bool]) -> list[Job]:
        """Take out the jobs that have not started and match; returns them."""
        with self._changed:
            taken = [job for job in self._jobs if match(job)]
            self._jobs = deque(job for job in self._jobs if job not in taken)
            self._changed.notify()  # the first one may be another now
        return taken

    def interrupt(self, id: str = "", timeout: float = 0.0) -> bool:
        """Raise KeyboardInterrupt in the running command.

        Parameters
        ----------
        id : str
            Only if it is this one; empty: whichever runs.
        timeout : float
            Where above 0, the command ends with `CommandTimeout` instead.

        Returns
        -------
        bool
            Whether there was such a command, and this loop can interrupt it.
        """
        with self._changed:
            job = self.running
            if job is None or self._thread is None or id not in ("", job.submit.id):
                return False
            if timeout > 0:
                job.timeout = timeout
            self._unseen = True
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
            with self._changed:
                if not self._unseen or self._thread is None:
                    self._nudging = False
                    return
                signal.pthread_kill(self._thread, NUDGE)

    def stop(self) -> None:
        """End `run_forever` after the command that runs now."""
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
                with self._changed:
                    while not self._stopped and not self._head_is_ready():
                        self._changed.wait()
                    if self._stopped:
                        return
                    job = self.running = self._jobs.popleft()
                self._run(job)
                if main and signal.getsignal(signal.SIGINT) != self._on_signal:
                    self._take_signals()  # user code changed it
        finally:
            if before is not None:
                with self._changed:
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
            with self._changed:
                if self.running is not None or not self._head_is_ready():
                    return count
                job = self.running = self._jobs.popleft()
            self._run(job)
            count += 1

    def has_next(self) -> bool:
        """Whether a job waits that can start now."""
        with self._changed:
            return self._head_is_ready()

    def _head_is_ready(self) -> bool:
        return bool(self._jobs) and self._jobs[0].parts is not None

    def _run(self, job: Job) -> None:
        process = os.getpid()
        job.started = self._now()
        try:
            parts, error = self._perform(job), None
        except BaseException as raised:  # noqa: BLE001 -- whatever user code raises is the command's error
            parts, error = [], raised
        if os.getpid() != process:
            os._exit(0)  # a child that user code forked has no business here
        if error is not None:
            # No longer inside `user_code`, so this is not interrupted.
            parts = [_encoded(_timed_out(error, job))]
        job.completed = self._now()
        with self._changed:
            self.running = None
            if self._thread is not None:
                self._collect_signals()
        self._done(job, "ok" if error is None else "error", parts)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._unseen = False
        if self.running is None:
            return
        while frame is not None:
            if frame.f_code is user_code.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back
        _Interrupts.pending = True

    def _collect_signals(self) -> None:
        # Coming back from the kernel, this thread has got what was sent to it; Python
        # then calls the handler before the call returns.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._unseen = _Interrupts.pending = False


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, a handler ends blocking calls."""


# -- errors as data ------------------------------------------------------------


def _timed_out(error: BaseException, job: Job) -> BaseException:
    if job.timeout > 0 and isinstance(error, KeyboardInterrupt):
        return CommandTimeout(timeout=job.timeout).with_traceback(error.__traceback__)
    return error


def _encoded(error: BaseException) -> bytes:
    try:
        return encode_failure(dump_failure(error, format_traceback(error)))
    except BaseException as second:  # noqa: BLE001 -- the error's own methods may do anything
        name = type(error).__name__.encode("utf-8", "backslashreplace").decode()
        return encode_failure(RemoteFailure(name, f"(its text cannot be had: {type(second).__name__})"))


def format_traceback(error: BaseException) -> str:
    """The traceback as text, without the frames of IPython and of this package."""
    summary = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    inside = [_folder("ipython1"), _folder("IPython")]
    _strip(summary, tuple(inside), (*inside, os.path.dirname(asyncio.__file__) + os.sep))
    return "".join(summary.format()).rstrip("\n")


def _folder(package: str) -> str:
    module = sys.modules.get(package)
    return os.path.dirname(module.__file__ or "") + os.sep if module is not None else "\0"


def _strip(summary: Any, inside: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Drop frames of files in `inside`, and those in `leading` before the user's first."""
    todo, seen = [summary], set()
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        frames = list(item.stack)
        while frames and frames[0].filename.startswith(leading):
            del frames[0]
        item.stack[:] = [frame for frame in frames if not frame.filename.startswith(inside)]
        todo += [item.__cause__, item.__context__, *(getattr(item, "exceptions", None) or ())]
