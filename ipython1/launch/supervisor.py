"""Keeps a controller and its engines running: the loop inside `ipcluster`.

One thread, no reactor. What the supervisor reacts to:

=====================  =========================================================
controller listens     the engines get the FURL; the state file says where
engines come and go    the state file; all of them there: the cluster is ready
an engine fails early  its output is shown; none left that could come: the end
controller dies        started again on its port, with its FURLs; the end where
                       that is not wanted, or was needed too often
nanny dies             started again with its engines, under the same rule
controller exits 0     it was told to: the end
signal, owner gone     the end
=====================  =========================================================
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import exit_words
from ipython1.kernel.wire.segments import sweep
from ipython1.launch.growing import Growth
from ipython1.launch.launcher import Launcher
from ipython1.launch.report import Report
from ipython1.launch.signals import Signals
from ipython1.launch.state import State, birth, end_run

#: Deaths of a process within `PERIOD` seconds after which it is started again.
DEATHS = 3
PERIOD = 60.0
#: Seconds between two looks at what cannot wake the loop.
INTERVAL = 0.5


class IController(Protocol):
    """What a supervisor needs of a controller; `LocalController` is one."""

    @property
    def pid(self) -> int: ...

    @property
    def ended_well(self) -> bool: ...

    def start(self, port: int | None = None) -> None: ...

    def fileno(self) -> int | None: ...

    def events(self) -> list[dict[str, Any]]: ...

    def poll(self) -> str | None: ...

    def last_words(self) -> str: ...

    def stop(self) -> None: ...


class Budget:
    """Says how often something that dies may be started again.

    Parameters
    ----------
    now : callable
        The monotonic time.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._deaths: deque[float] = deque(maxlen=DEATHS + 1)

    def allows(self) -> bool:
        """Note a death; False where it is one too many."""
        self._deaths.append(self._now())
        return len(self._deaths) <= DEATHS or self._deaths[-1] - self._deaths[0] > PERIOD


class Supervisor:
    """Starts a cluster, keeps it running, and stops it.

    Parameters
    ----------
    files : ClusterFiles
        The cluster. Its lock is held by the caller.
    n : int
        Number of engines.
    controller : IController
        Not started yet.
    launcher : Launcher
        Not started yet.
    report : Report
        Hears what happens.
    restart : bool
        Start again what dies.
    temporary : bool
        Remove the folder of the cluster at the end.
    timeout : float
        Seconds in which the engines have to be there.
    owner : int, optional
        Pid of the parent, where the cluster is to end with it.
    on_ready : callable, optional
        Called once the engines are there.
    script : callable, optional
        Starts, once the engines are there, the process that the cluster is for. The cluster stops when
        it ends.
    keeps_state : bool
        The state file and the run folder are this supervisor's.
    now : callable
        The monotonic time.
    """

    def __init__(
        self,
        files: ClusterFiles,
        n: int,
        controller: IController,
        launcher: Launcher,
        report: Report,
        *,
        restart: bool = True,
        temporary: bool = False,
        timeout: float = 60.0,
        owner: int | None = None,
        on_ready: Callable[[], None] = lambda: None,
        script: Callable[[], subprocess.Popen[bytes]] | None = None,
        keeps_state: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        me, began = os.getpid(), time.time()
        self.state = State(me, birth(me), n=n, started=began, temporary=temporary, wanted=n)
        self.is_ready = False
        #: Exit status, once the end is decided.
        self.outcome: int | None = None
        self._files = files
        self._controller = controller
        self._launcher = launcher
        self._growth = Growth(launcher, report.warn)
        self._report = report
        self._restart = restart
        self._timeout = timeout
        self._owner = owner
        self._on_ready = on_ready
        self._start_script = script
        self._script: subprocess.Popen[bytes] | None = None
        self._keeps_state = keeps_state
        self._now = now
        self._began = now()
        self._listens = False
        self._has_engines = False  # the launcher is started, and has not ended for good
        self._why = ""  # the controller's reason for not starting
        self._is_written = True  # the state file is up to date
        self._failed = 0
        self._missing = 0  # engines that the launcher has given up
        self._share = n  # engines that it is to have
        self._shown: set[str] = set()
        self._budgets = {"controller": Budget(now), "engines": Budget(now)}

    # -- the loop --------------------------------------------------------------

    def run(self) -> int:
        """All of it: start, watch, stop. Returns the exit status."""
        with Signals() as signals:
            try:
                self.start()
                while self.outcome is None:
                    for number in signals.wait(self._fds(), INTERVAL):
                        self.signalled(number)
                    self.look()
            except LaunchError as error:
                self._end(1, str(error))
            except OSError as error:
                self._end(1, f"{error.filename or self._files.folder}: {error.strerror or error}.")
            finally:
                with signals.impatient():
                    self.stop()
            if self._script is None:
                return 1 if self.outcome is None else self.outcome
            while (status := self._script.poll()) is None:  # it goes on without the cluster
                for number in signals.wait([], INTERVAL):
                    self.signalled(number)
            return status if status >= 0 else 128 - status  # as a shell has it

    def start(self) -> None:
        """Start the controller and, at the same moment, what can be started of the engines."""
        self._write()
        self._controller.start()
        self._launcher.prepare(self.state.n)
        self._has_engines = True
        self._note_pids()

    def look(self) -> None:
        """React to what has happened since the last look."""
        if not self._is_written:
            self._write()
        for event in self._controller.events():
            self._heard(event)
        ended = self._controller.poll()
        if ended is not None and self.outcome is None:
            self._controller_ended(ended)
        if self._has_engines and self.outcome is None:
            self._look_at_engines()
        if self._owner is not None and os.getppid() != self._owner:
            self._end(0)
        if self._script is not None and self._script.poll() is not None:
            self._end(0)
        if not self.is_ready and self._now() - self._began > self._timeout:
            if self._listens:
                self._short(f"not all were there in {self._timeout:g} s")
            else:
                self._end(1, f"the controller did not listen within {self._timeout:g} s.")

    def signalled(self, number: int) -> None:
        """React to a signal."""
        if self._script is None:
            self._end(0 if self.is_ready else 128 + number)
        elif number != signal.SIGINT or not _on_terminal():
            self._script.send_signal(number)  # of a Ctrl-C it has heard by itself

    def stop(self) -> None:
        """Stop the engines, then the controller, and remove what they leave."""
        for part in (self._launcher, self._controller):
            try:
                part.stop()
            except KeyboardInterrupt:
                part.stop()  # asked for a second time: at once
            except OSError as error:  # the rest has to be stopped all the same
                self._report.warn(f"{error.filename}: {error.strerror or error}.")
        for text in self._launcher.news():
            self._report.warn(text)
        sweep()
        if self._keeps_state:
            end_run(self._files, keep_detached=not self._listens)  # a failed start must not cost work
            if self.state.temporary:
                shutil.rmtree(self._files.folder, ignore_errors=True)
        if self.is_ready:
            self._report.ended(self.state)

    def _fds(self) -> list[int]:
        fd = self._controller.fileno()
        return [] if fd is None else [fd]

    def _end(self, status: int, why: str = "") -> None:
        if self.outcome is None:
            self.outcome = status
            if why:
                self._report.warn(why)

    # -- what happens ------------------------------------------------------------

    def _look_at_engines(self) -> None:
        ended = self._launcher.poll()
        for text in self._launcher.news():
            self._report.warn(text)
        if ended is not None:
            self._engines_ended(ended)
        elif self._launcher.missing != self._missing:
            self._missing = self._launcher.missing
            self._count()

    def _heard(self, event: dict[str, Any]) -> None:
        what = event.get("event")
        self._has_engines |= self._growth.heard(event)
        if what == "listening":
            self._listening(event)
        elif what == "engines":
            self.state.engines = list(event["ids"])
            self._write()
            self._count()
        elif what == "scaled":
            self._scaled(event)
        elif what == "failed":
            self._failed += not event.get("replaced")
            self._show("an engine died before it was ready", event.get("output", ""))
            self._count()
        elif what == "error":
            self._why = event["text"]
        elif what == "shutdown":
            self._end(0)

    def _listening(self, event: dict[str, Any]) -> None:
        first, self._listens, self._why = not self._listens, True, ""
        self.state.host, self.state.port = event["host"], event["port"]
        self.state.dashboard = event.get("dashboard") or ""
        self._note_pids()
        if first:
            self._report.listening(self.state)
            self._start_engines()
            self._count()

    def _scaled(self, event: dict[str, Any]) -> None:
        self.state.wanted = wanted = event["n"]
        if self._launcher.resizes:  # what other launchers have of these stays as it is
            self._share = max(0, min(self._share + wanted - event["before"], wanted))
        self._write()

    def _start_engines(self) -> None:
        self._growth.asked(self._share)
        self._launcher.start(self._share, self._files.furl("engine").read_text())
        self._has_engines = True
        self._note_pids()

    def _count(self) -> None:
        """See whether all engines are there that will come."""
        if self.is_ready or not self._listens:
            return
        gone = self._failed + self._missing
        if self._launcher.grows and (self._launcher.waiting or not self.state.engines):
            # A job ends when its engines have failed: those are told of twice.
            gone = max(self._failed, self._missing)
        if len(self.state.engines) >= self.state.n:
            self._ready()
        elif len(self.state.engines) + gone >= self.state.n:
            self._short("the others died" if self._failed else "the others could not be started")

    def _short(self, why: str) -> None:
        if self.state.engines:
            self._report.warn(f"some engines did not come up ({why}). The cluster goes on without them.")
            self._ready()
        else:
            where = "" if self.state.temporary else f" Their output is in {self._files.log}"
            self._end(1, f"no engine came up ({why}).{where}")

    def _ready(self) -> None:
        self.is_ready = True
        self._report.ready(self.state, self.state.engines, self._now() - self._began)
        self._on_ready()
        if self._start_script is not None:
            self._script = self._start_script()

    def _controller_ended(self, how: str) -> None:
        for event in self._controller.events():  # its last words
            self._heard(event)
        words = self._why or self._controller.last_words()
        if self._controller.ended_well:
            self._end(0)
        elif not self._listens:
            self._end(1, words.removeprefix("ipcontroller: ") or f"the controller ended: {how}")
        elif not self._restart:
            self._end(1, f"the controller ended: {how}")
        elif not self._budgets["controller"].allows():
            self._end(1, f"the controller ended too often, the last time: {how}\n{words}".rstrip())
        else:
            self._report.warn(f"the controller ended: {how}. It is started again.")
            self._controller.start(port=self.state.port)
            self._note_pids()

    def _engines_ended(self, how: str) -> None:
        words = self._launcher.last_words()
        self._has_engines = False
        if not self.is_ready:
            self._show("the engines did not start", words)
            self._short(f"ended with {how}")
        elif how == exit_words(0):
            self._note_pids()  # they were told to
        elif not self._restart:
            self._report.warn(f"the engines ended: {how}")
            self._note_pids()
        elif not self._budgets["engines"].allows():
            self._end(1, f"the engines ended too often, the last time: {how}\n{words}".rstrip())
        elif not self._share:
            self._report.warn(f"the engines ended: {how}. None is wanted.")
            self._note_pids()
        else:
            self._report.warn(f"the engines ended: {how}. They are started again.")
            self._start_engines()

    def _show(self, what: str, output: str) -> None:
        if output not in self._shown:  # engines that fail alike say it once
            self._shown.add(output)
            self._report.warn(f"{what}:\n{output}" if output else f"{what}.")

    # -- the state file --------------------------------------------------------

    def _note_pids(self) -> None:
        self.state.controller = self._controller.pid
        self.state.nanny = self._launcher.pid if self._has_engines else 0
        self._write()

    def _write(self) -> None:
        if not self._keeps_state:
            return
        try:
            self.state.write(self._files)
        except OSError as error:
            if not self.is_ready:
                raise
            if self._is_written:  # the cluster goes on, and tries again
                self._report.warn(f"{error.filename}: {error.strerror}. What it says of the cluster is old.")
            self._is_written = False
        else:
            self._is_written = True


def _on_terminal() -> bool:
    """Whether a Ctrl-C of the terminal reaches this process, and so also the script it started."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
