"""The nanny's voice: a forked child that talks with the controller for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ipython1.kernel.engine.forked import Channel, fresh_reactor, log_errors
from ipython1.kernel.engine.logs import last_words, log_path, remove_empty_logs
from ipython1.kernel.engine.nanny import FAREWELL, REMEMBERED
from ipython1.kernel.engine.zygote import Message
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.processes import kill_group
from ipython1.kernel.wire.attempts import sentences
from ipython1.kernel.wire.codec import pack
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.records import Exited, Leaving, Order, Record, Usage
from ipython1.kernel.wire.segments import sweep

#: Seconds between reports of CPU and memory, and looks at what was left in shared memory.
ROUND_INTERVAL = 2.0
#: Seconds after which a nanny that has just started says why it does not find the controller.
TROUBLE_AFTER = 4.0
#: Part of the time that engines look for a controller which is away: the nanny gives up before they
#: do, and so stops them, rather than restart each.
SHARE = 0.9

log = Logger()


class Agent:
    """Carries orders from the controller to the nanny, and deaths and usage the other way.

    Parameters
    ----------
    clock : IReactorTime
    dialer : IDialer
    facts : dict
        What `Nanny.facts` returns.
    tell : callable
        Sends a message to the nanny.
    finished : callable
        Called when all is told and this process can end.
    patience, grace : float
        Seconds to go on dialling at the start, and after a link was lost.
    """

    def __init__(
        self,
        clock: Any,
        dialer: IDialer,
        facts: dict[str, Any],
        tell: Callable[[Message], None],
        finished: Callable[[], None],
        *,
        patience: float,
        grace: float,
    ) -> None:
        self._dialer = dialer
        self._facts = facts
        self._tell = tell
        self._finished = finished
        self._patience = patience
        self._processes: dict[str, psutil.Process] = {}
        self._clock = clock
        self._trouble: Any = None
        self._connection = Connection(
            clock,
            dialer,
            "nanny",
            detail=self._detail,
            receive=self._receive,
            welcomed=self._welcomed,
            lost=self._lost,
            grace=grace,
            share=SHARE,
        )
        self._rounds = LoopingCall(self.look_round)
        self._rounds.clock = clock

    @property
    def engines(self) -> dict[str, int]:
        """The pid of each engine by its uuid."""
        engines: dict[str, int] = self._facts["engines"]
        return engines

    def start(self) -> None:
        """Dial the controller, and begin to report usage."""
        self._trouble = self._clock.callLater(TROUBLE_AFTER, self._tell_trouble)
        self._connection.start(self._patience)
        self._rounds.start(ROUND_INTERVAL, now=False).addErrback(
            lambda failure: log.failure("usage is not reported any more", failure)
        )

    def heard(self, message: Message) -> None:
        """A message from the nanny."""
        if "engines" in message:
            self._facts["engines"] = message["engines"]
        if "exited" in message:
            exited = message["exited"]
            self._facts["exited"] = [*self._facts["exited"], exited][-REMEMBERED:]
            self._connection.send(Exited(*exited))
        if "stuck" in message:
            self._facts["stuck"] = message["stuck"]
            self.report_usage()
        if "leaving" in message:
            self._facts["leaving"] = message["leaving"]
            self._connection.send(Leaving(message["leaving"]))
        if "quit" in message:
            self._leave()

    def orphaned(self) -> None:
        """The nanny has ended, and its engines with it: kill what they started, tell that they are gone."""
        for name, pid in self.engines.items():
            kill_group(pid)
            file = log_path(Path(self._facts["folder"]), name)
            cause = f"ended with its nanny (pid {self._facts['pid']})"
            self._connection.send(Exited(name, cause, last_words(file), False))
            remove_empty_logs(file)
        self._leave()

    def _leave(self) -> None:
        self._calm()
        if self._rounds.running:
            self._rounds.stop()
        self._connection.stop().addBoth(lambda _: self._finished())

    def look_round(self) -> None:
        """Report usage, and remove the shared memory of processes of this user that were killed."""
        self.report_usage()
        sweep()

    def report_usage(self) -> None:
        """Send CPU and memory of each engine, and since when it does not react."""
        table = {name: usage for name, pid in self.engines.items() if (usage := self._measure(name, pid))}
        self._processes = {name: self._processes[name] for name in table}
        if table and self._connection.linked:  # old figures are of no use after a reconnect
            self._connection.send(Usage(pack(table)))

    def _measure(self, name: str, pid: int) -> tuple[float, int, float] | None:
        try:
            process = self._processes.setdefault(name, psutil.Process(pid))
            cpu, rss = process.cpu_percent(), process.memory_info().rss
        except psutil.Error:  # it just ended
            return None
        return float(cpu), int(rss), self._facts["stuck"].get(name, 0.0)

    # -- where the controller is not found ------------------------------------------

    def _welcomed(self, _detail: dict[str, Any], resumed: bool) -> None:
        self._calm()
        if self._facts.get("leaving") and not resumed:
            self._connection.send(Leaving(self._facts["leaving"]))

    def _calm(self) -> None:
        if self._trouble is not None and self._trouble.active():
            self._trouble.cancel()

    def _tell_trouble(self) -> None:
        lines = sentences(self._dialer.trouble(), self._facts["host"])
        if lines:
            rest = max(0.0, self._patience - TROUBLE_AFTER)
            self._tell({"trouble": [*lines, f"it is tried for {rest:.0f} s more"]})

    def _lost(self, reason: Exception) -> None:
        self._calm()
        lines = sentences(getattr(reason, "attempts", ()), self._facts["host"])
        if lines:
            self._tell({"trouble": lines})
        self._tell({"lost": str(reason)})

    def _detail(self) -> dict[str, Any]:
        facts = {key: self._facts[key] for key in ("uuid", "host", "pid", "exited")}
        return {**facts, "engines": list(self.engines)}

    def _receive(self, record: Record, _raw: bytes) -> None:
        if isinstance(record, Order):
            self._tell({"order": [record.what, record.uuid, record.number, record.ids, record.stuck]})
        else:
            log.warn("a nanny does not take a {name}", name=type(record).__name__)


def run_agent(
    facts: dict[str, Any], end: socket.socket, dialer: Callable[[], IDialer], *, patience: float, grace: float
) -> int:
    """Main function of the forked agent.

    Parameters
    ----------
    facts : dict
        As for `Agent`.
    end : socket
        This end of the socket pair.
    dialer : callable
        Makes the dialer, once there is a reactor.
    patience, grace : float
        As for `Agent`.
    """
    # Both ask us to end, but only the nanny knows when; that it is gone itself is seen as EOF.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reactor = fresh_reactor()
    log_errors(2)

    def orphaned() -> None:
        reactor.callLater(FAREWELL, os._exit, 1)
        agent.orphaned()

    channel = Channel(reactor, end, lambda message: agent.heard(message), orphaned)
    agent = Agent(reactor, dialer(), facts, channel.send, reactor.stop, patience=patience, grace=grace)
    channel.start()
    reactor.callWhenRunning(agent.start)
    reactor.run(installSignalHandlers=False)
    return 0
