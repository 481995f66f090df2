"""The one process a host starts: it starts, watches, signals and restarts engines.

The nanny decides, its `Zygote` forks. It has two kinds of children: engines,
and one *agent* that talks with the controller for it. Neither the controller
being away nor the death of the agent touches the engines.

=========  ==========================  ================================================
engine     what happens                next
=========  ==========================  ================================================
starting   it says it is registered    running
starting   it dies                     replaced under the rule below, else a failed start
running    it dies                     replaced under the rule below, else gone
either     order restart               SIGTERM, then SIGKILL; replaced
either     order stop, or quit         SIGTERM, then SIGKILL; gone
running    it does not react to an     see `escalation`; SIGKILL where that says
           interrupt                   restart; replaced
=========  ==========================  ================================================

The rule: only where restarting is on, and not after `DEATHS` deaths within `PERIOD`.
A rank of an MPI job has one engine, which is never replaced: the nanny ends as it did,
and so the whole job.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipython1.kernel.engine import escalation
from ipython1.kernel.engine.board import NUDGE, Board
from ipython1.kernel.engine.escalation import Escalation
from ipython1.kernel.engine.logs import last_words, log_path, remove_empty_logs
from ipython1.kernel.engine.oom import OutOfMemory, counters
from ipython1.kernel.engine.zygote import IChild, IZygote, Main, Message
from ipython1.kernel.processes import STOPPED, exit_words

#: So many deaths of one engine within `PERIOD` seconds, and it is not restarted.
DEATHS = 3
PERIOD = 60.0
#: Seconds between SIGTERM and SIGKILL. Those of a rank end before mpiexec kills us, after a second.
GRACE, RANK_GRACE = 2.0, 0.5
#: An agent that lived for less than so many seconds is replaced after as many.
AGENT_DELAY = 1.0
#: Seconds the agent gets to tell the controller that all is over.
FAREWELL = 3.0
#: Deaths that a controller which was away is told of.
REMEMBERED = 32

#: Seconds in which a batch system that ends a job has told all of its processes.
TOLD_TOO = 0.25
#: Seconds between looks at what the engines do.
LOOK_INTERVAL = 0.25

RESTARTED = "restarted on request"

#: Exit statuses of the nanny.
ENDED, NO_ENGINE, NO_CONTROLLER, RANK_ENDED = 0, 1, 3, 5
#: Why the engine of a rank ended, where something else ended its job.
JOB_ENDED = "ended with its MPI job"

log = logging.getLogger(__name__)


#: uuid, cause, output, replaced, running: as in `records.Exited`.
Exited = tuple[str, str, str, bool, str]
#: Makes the main function of an engine, from its identity and where it shows what it runs.
EngineMain = Callable[[dict[str, Any], Board], Main]
#: Makes the main function of an agent, from what it starts with: `Nanny.facts`.
AgentMain = Callable[[dict[str, Any]], Main]


@dataclass
class Engine:
    """One engine process."""

    uuid: str
    id: int  # the one it has or wants; -1: any
    log: Path
    deaths: deque[float]  # shared with those it replaces
    replaces: dict[str, str]  # uuid, cause and output of the last one that was registered
    board: Board
    escalation: Escalation
    child: IChild = field(init=False)
    registered: bool = False
    request: str = ""  # why we are ending it
    reason: str = ""  # why it ends, in its own words
    stuck: float = 0.0  # since when it does not react to an interrupt, wall clock; 0: it does

    def __str__(self) -> str:
        return f"engine {self.id}" if self.id >= 0 else f"engine {self.uuid[:8]}"


class Nanny:
    """Starts, watches, signals and restarts the engines of one host.

    Parameters
    ----------
    zygote : IZygote
        Forks, and tells the time.
    engine_main, agent_main : callable
        Make what a forked child runs.
    folder : Path
        Where the engines' log files go.
    host : str
        Name of this host.
    pid : int
        Of this process.
    restart : bool
        Whether engines that died are replaced.
    stuck : str
        What is done about one that does not react to an interrupt: ``leave`` it, or ``restart`` it.
    stuck_after : float
        Seconds it has to react.
    memory : OutOfMemory, optional
        Knows of processes that the kernel killed.
    rank : int, optional
        In an MPI job; that is the id of its one engine.
    leave_when_empty : bool
        Quit when the last engine has ended for good.
    """

    def __init__(
        self,
        zygote: IZygote,
        engine_main: EngineMain,
        agent_main: AgentMain,
        *,
        folder: Path,
        host: str,
        pid: int,
        restart: bool = True,
        stuck: str = escalation.LEAVE,
        stuck_after: float = escalation.STUCK_AFTER,
        memory: OutOfMemory | None = None,
        rank: int | None = None,
        leave_when_empty: bool = False,
    ) -> None:
        self.uuid = uuid.uuid4().hex
        self.engines: dict[str, Engine] = {}
        #: Exit status, once all is over; negative for the signal that ended the engine of a rank.
        self.status: int | None = None
        self._zygote = zygote
        self._engine_main = engine_main
        self._agent_main = agent_main
        self._folder = folder
        self._host = host
        self._pid = pid
        self._restart = restart
        self._stuck = stuck
        self._stuck_after = stuck_after
        self._memory = memory or OutOfMemory(counters())
        self._rank = rank
        self._leave_when_empty = leave_when_empty
        self._leaving = 0.0  # seconds that engines get, once their job's time is almost over
        self._looking = False
        self._exited: deque[Exited] = deque(maxlen=REMEMBERED)
        self._agent: IChild | None = None
        self._some_registered = False
        self._quitting: int | None = None  # the exit status, once it is decided
        self._orders: dict[str, Callable[[str, int, Sequence[str], str], None]] = {
            "start": lambda _name, number, *_: self._start_more(number),
            "stop": lambda name, *_: self._end(name, STOPPED),
            "restart": lambda name, *_: self._end(name, RESTARTED),
            "signal": lambda name, number, *_: self._signal(name, number),
            "interrupt": self._interrupted,
            "quit": lambda *_: self.quit(),
        }

    # -- starting ------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the agent starts with; later changes are told to it."""
        return {
            "uuid": self.uuid,
            "host": self._host,
            "pid": self._pid,
            "engines": self._pids(),
            "exited": list(self._exited),
            "stuck": self._stuck_engines(),
            "folder": os.fspath(self._folder),
            "leaving": self._leaving,
        }

    def start_agent(self) -> None:
        """Fork the agent."""
        if self._quitting is not None:
            return
        main, born = self._agent_main(self.facts()), self._zygote.seconds()
        try:
            self._agent = self._zygote.fork(
                main, self._agent_said, lambda status: self._agent_ended(status, born), outlives=True
            )
        except OSError as error:
            log.error("the agent, our link to the controller, cannot be started (%s)", error.strerror)
            self._zygote.callLater(AGENT_DELAY, self.start_agent)

    def start(self, n: int) -> None:
        """Fork `n` more engines."""
        for _ in range(n):
            if self._quitting is None:
                self._fork(-1 if self._rank is None else self._rank, deque(maxlen=DEATHS), {})

    def _start_more(self, n: int) -> None:
        if self._rank is None:
            self.start(n)
        else:
            log.warning("no engine is started here: an MPI job keeps the size it began with")

    def _fork(self, id: int, deaths: deque[float], replaces: dict[str, str]) -> None:
        name = uuid.uuid4().hex
        board = Board(self._zygote.seconds)
        watch = Escalation(board, self._stuck, self._stuck_after)
        engine = Engine(name, id, log_path(self._folder, name), deaths, replaces, board, watch)
        identity = {"uuid": name, "host": self._host, "nanny": self.uuid, "wanted": id, "replaces": replaces}
        try:
            engine.child = self._zygote.fork(
                self._engine_main(identity, engine.board),
                lambda message: self._engine_said(engine, message),
                lambda status: self._engine_ended(engine, status),
                log=engine.log,
            )
        except OSError as error:  # no more processes, memory or descriptors for us
            log.error("%s cannot be started (%s)", engine, error.strerror)
            self._gone((name, f"could not be started: {error.strerror}", "", False, ""))
            return
        self.engines[name] = engine
        self._tell_agent({"engines": self._pids()})
        self._look_later()

    # -- what children say ----------------------------------------------------

    def _engine_said(self, engine: Engine, message: Message) -> None:
        if "registered" in message:
            engine.id = int(message["registered"])
            if not engine.registered:
                log.info("%s (pid %s) is ready", engine, engine.child.pid)
            engine.registered = self._some_registered = True
        if "reason" in message:
            engine.reason = str(message["reason"])

    def _agent_said(self, message: Message) -> None:
        if "order" in message:
            what, *details = message["order"]
            order = self._orders.get(what)
            if order is None:
                log.warning("the controller ordered %r, which is not known here", what)
            else:
                order(*details)
        for line in message.get("trouble", ()):
            log.warning("%s", line)
        if "lost" in message:
            log.error("%s All engines here are stopped.", message["lost"])
            self.quit(NO_CONTROLLER)

    def _tell_agent(self, message: Message) -> None:
        if self._agent is not None:
            self._agent.send(message)

    def _pids(self) -> dict[str, int]:
        return {engine.uuid: engine.child.pid for engine in self.engines.values()}

    # -- interrupts that engines do not take ------------------------------------

    def _interrupted(self, name: str, record: int, ids: Sequence[str], choice: str) -> None:
        engine = self.engines.get(name)
        if engine is not None:  # else it has ended, which ends what was to be interrupted
            engine.escalation.ordered(self._zygote.seconds(), record, ids, choice)

    def _look_later(self) -> None:
        if self.engines and not self._looking:
            self._looking = True
            self._zygote.callLater(LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        self._looking = False
        now = self._zygote.seconds()
        self._memory.look(now)
        for engine in list(self.engines.values()):
            if not engine.request:
                self._help(engine, engine.escalation.look(now))
        self._look_later()

    def _help(self, engine: Engine, need: str) -> None:
        if need == escalation.SIGNAL:
            engine.child.kill(signal.SIGINT)
        elif need == escalation.NUDGED:
            engine.child.kill(NUDGE)
        elif need == escalation.STUCK:
            engine.child.kill(signal.SIGQUIT)  # it writes to its log where it stands, before we go on
            log.warning("%s: %s; see %s", engine, engine.escalation.reason(), engine.log)
            self._tell_stuck(engine, time.time())
        elif need == escalation.OVER:
            log.info("%s goes on", engine)
            self._tell_stuck(engine, 0.0)
        elif need == escalation.RESTARTED:
            engine.request = f"restarted: {engine.escalation.reason()}"
            engine.child.kill_group()

    def _tell_stuck(self, engine: Engine, since: float) -> None:
        engine.stuck = since
        self._tell_agent({"stuck": self._stuck_engines()})

    def _stuck_engines(self) -> dict[str, float]:
        return {engine.uuid: engine.stuck for engine in self.engines.values() if engine.stuck}

    # -- ending ----------------------------------------------------------------

    def quit(self, status: int = ENDED, why: str = STOPPED) -> None:
        """Stop all engines, because of `why`, then the agent, then be done with exit status `status`."""
        if self._quitting is None:
            self._quitting = status
            for name in list(self.engines):
                self._end(name, why)
            self._finish()

    def leave(self, seconds: float) -> None:
        """All quit within `seconds`: until then nothing new is begun."""
        log.info("the job's time is almost over: the engines leave within %.0f s", seconds)
        self._leaving, self._restart = seconds, False
        self._tell_agent({"leaving": seconds})

    def signalled(self) -> None:
        """SIGTERM or SIGINT: quit. That is also how a rank hears that another one has ended the job."""
        self.quit(why=STOPPED if self._rank is None else JOB_ENDED)

    def _finish(self) -> None:
        """Where no engine is left: let the agent tell the rest and go."""
        if self._quitting is None or self.engines:
            return
        agent = self._agent
        if agent is None:
            self.status = self._quitting
        else:
            agent.send({"quit": True})
            # One that has ended ignores this.
            self._zygote.callLater(FAREWELL, lambda: agent.kill(signal.SIGKILL))

    def _end(self, name: str, request: str) -> None:
        engine = self.engines.get(name)
        if engine is None:
            log.warning("there is no engine %s here to be %s", name[:8], request)
            return
        if not engine.request:
            engine.child.kill(signal.SIGTERM)
            grace = GRACE if self._rank is None else RANK_GRACE
            self._zygote.callLater(grace, lambda: engine.child.kill_group() if name in self.engines else None)
        if engine.request != STOPPED:
            engine.request = request

    def _signal(self, name: str, number: int) -> None:
        engine = self.engines.get(name)
        if engine is not None and number in signal.valid_signals():
            engine.child.kill(number)
        else:
            log.warning("no signal %s for engine %s: there is no such signal or engine", number, name[:8])

    # -- after the end -----------------------------------------------------------

    def _engine_ended(self, engine: Engine, status: int) -> None:
        if status or engine.request or engine.reason:
            self._engine_gone(engine, status)
        else:  # in order, though we did not ask: who told it to may be about to tell us
            self._zygote.callLater(TOLD_TOO, lambda: self._engine_gone(engine, status))

    def _engine_gone(self, engine: Engine, status: int) -> None:
        del self.engines[engine.uuid]
        cause = engine.request or engine.reason or exit_words(status)
        if cause == exit_words(-signal.SIGKILL) and self._memory.killed(self._zygote.seconds()):
            cause += ", likely because there was not enough memory"
        output = last_words(engine.log)
        remove_empty_logs(engine.log)
        replaced = self._is_replaced(engine)
        started = "" if engine.registered else " before it was ready"
        told = f", see {engine.log}" if output and not engine.request else ""
        level = logging.INFO if engine.request else logging.ERROR
        given_up = not (replaced or engine.request) and self._often(engine)
        often = f"; not restarted, for it died {DEATHS} times in {PERIOD:.0f} s" if given_up else ""
        then = "; restarted" if replaced else often
        log.log(level, "%s (pid %s) %s%s%s%s", engine, engine.child.pid, cause, started, then, told)
        exited = (engine.uuid, f"{cause}{often}", output, replaced, engine.board.read())
        if replaced:
            self._tell_exited(exited)
            mine = {"uuid": engine.uuid, "cause": cause, "output": output}
            self._fork(engine.id, engine.deaths, mine if engine.registered else engine.replaces)
        elif self._rank is None:
            asked = engine.request == STOPPED and self._leave_when_empty
            self._gone(exited, ENDED if asked else NO_ENGINE)
        else:
            self._gone(exited, ENDED if engine.request == STOPPED else status or RANK_ENDED)

    def _gone(self, exited: Exited, status: int = NO_ENGINE) -> None:
        """An engine ended, or never was, and nothing takes its place; `status` is ours, if that is all."""
        self._tell_exited(exited)
        self._tell_agent({"engines": self._pids()})
        needless = self._rank is not None or not self._some_registered or self._leave_when_empty
        if self._quitting is None and not self.engines and needless:
            self.quit(status)
        else:
            self._finish()

    def _tell_exited(self, exited: Exited) -> None:
        self._exited.append(exited)
        self._tell_agent({"exited": exited})

    def _is_replaced(self, engine: Engine) -> bool:
        if self._rank is not None:
            return False
        if self._quitting is not None or engine.request:
            return self._quitting is None and engine.request not in ("", STOPPED)
        engine.deaths.append(self._zygote.seconds())
        return self._restart and not self._often(engine)

    def _often(self, engine: Engine) -> bool:
        return len(engine.deaths) == DEATHS and self._zygote.seconds() - engine.deaths[0] < PERIOD

    def _agent_ended(self, status: int, born: float) -> None:
        self._agent = None
        if self._quitting is not None:
            # Without an agent there is nobody to tell; the engines may still be ending.
            self._finish()
            return
        log.error("the agent, our link to the controller, ended: %s; restarted", exit_words(status))
        young = self._zygote.seconds() - born < AGENT_DELAY
        self._zygote.callLater(AGENT_DELAY if young else 0.0, self.start_agent)
