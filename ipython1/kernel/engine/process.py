"""What an engine process does, from its fork to its end."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import socket
import sys
import threading
from functools import partial
from typing import Any

from twisted.logger import Logger

from ipython1.kernel.engine.agent import SHARE, run_agent
from ipython1.kernel.engine.board import Board
from ipython1.kernel.engine.descriptors import standard_outputs
from ipython1.kernel.engine.engine import Engine
from ipython1.kernel.engine.forked import Channel, fresh_reactor, log_errors
from ipython1.kernel.engine.nanny import AgentMain, EngineMain
from ipython1.kernel.engine.service import CONTROLLER_GRACE
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.processes import kill_group
from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.links import FoolscapDialer
from ipython1.kernel.wire.shared import SharedMemory
from ipython1.kernel.wire.tunnels import Tunnel

#: Seconds in which the last results must have left, once the engine was told to stop. The nanny
#: waits for longer before it kills.
DRAIN_TIME = 1.0
#: Seconds between looks at what child processes and C code write.
COLLECT_INTERVAL = 0.2
#: Seconds that running code gets to end, where the controller is gone for good.
LAST_GRACE = 2.0
#: Seconds in which the controller must answer a dial. Where thousands dial at the same time, each waits for
#: the others; who gives up too early makes it only worse.
ANSWER_TIME = 30.0
#: Seconds a nanny looks for the controller when it starts.
START_PATIENCE = 30.0

log = Logger()


def preload() -> EngineShell:
    """Make what all engines have in common, before they are forked; importing this module did the rest."""
    return EngineShell()


def engine_main(furl: str, shell: EngineShell, tunnel: Tunnel | None = None) -> EngineMain:
    """What makes main functions of engines, for a `Nanny`; all of them share its tunnel."""

    def make(identity: dict[str, Any], board: Board) -> Any:
        def main(end: socket.socket) -> int:
            dialer = FoolscapDialer(furl, connect_timeout=ANSWER_TIME, tunnel=tunnel)
            return EngineProcess(fresh_reactor(), identity, end, dialer, shell, board).run()

        return main

    return make


def agent_main(furl: str, tunnel: Tunnel | None = None) -> AgentMain:
    """What makes main functions of agents, for a `Nanny`."""

    def make(facts: dict[str, Any]) -> Any:
        dialer = partial(FoolscapDialer, furl, connect_timeout=ANSWER_TIME, tunnel=tunnel)
        return lambda end: run_agent(
            facts, end, dialer, patience=START_PATIENCE, grace=SHARE * CONTROLLER_GRACE
        )

    return make


class EngineProcess:
    """The parts of one engine, in a process of its own: user code on the main thread, the reactor beside it.

    Parameters
    ----------
    reactor : reactor
        Made anew after the fork.
    identity : dict
        ``uuid host nanny wanted replaces``, see `EngineService`.
    end : socket
        This end of the socket pair to the zygote.
    dialer : IDialer
        Ways to the controller.
    shell : EngineShell
        Runs the code.
    board : Board
        Where the nanny sees what runs.
    """

    def __init__(
        self,
        reactor: Any,
        identity: dict[str, Any],
        end: socket.socket,
        dialer: IDialer,
        shell: EngineShell,
        board: Board,
    ) -> None:
        self._reactor = reactor
        self._status = 0
        self._channel = Channel(reactor, end, lambda message: None, self._orphaned)
        self._engine = Engine(
            reactor,
            dialer,
            shell,
            {**identity, "pid": os.getpid()},
            lambda id: self._channel.send({"registered": id}),
            self._controller_lost,
            sources=standard_outputs(),
            shared=SharedMemory(Arena()),
            board=board,
        )

    def run(self) -> int:
        """All that the process does; returns its exit status."""
        faulthandler.enable(file=2, all_threads=False)
        # What runs, also where no Python code can be called: the nanny asks for that.
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=False)
        log_errors(2)
        sys.argv[:] = ["ipengine"]  # user code that reads its arguments finds none
        # Not from the handler itself: what it interrupts may hold the lock of the loop.
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._stop))
        # What user code forks shall end by SIGTERM as any process does: a Pool waits for that.
        os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))
        self._channel.start()
        self._reactor.callWhenRunning(self._engine.service.start)
        self._reactor.callWhenRunning(self._collect_output)
        threading.Thread(target=self._run_reactor, name="ipython1 reactor", daemon=True).start()
        self._engine.loop.run_forever()
        drained = threading.Event()
        self._reactor.callFromThread(lambda: self._engine.service.stop().addBoth(lambda _: drained.set()))
        drained.wait(DRAIN_TIME)
        atexit._run_exitfuncs()  # the process ends by os._exit
        return self._status

    def _run_reactor(self) -> None:
        try:
            self._reactor.run(installSignalHandlers=False)
        finally:  # nobody stops it: it failed, and an engine that cannot be reached is of no use
            self._status = 1
            self._engine.loop.stop()

    # -- reactor thread -------------------------------------------------------------

    def _collect_output(self) -> None:
        self._engine.output.collect()
        self._reactor.callLater(COLLECT_INTERVAL, self._collect_output)

    def _stop(self) -> None:
        self._engine.service.leave()
        self._engine.loop.stop()
        self._engine.loop.interrupt()

    def _controller_lost(self, reason: str) -> None:
        self._status = 1
        self._channel.send({"reason": reason})
        self._stop()
        self._reactor.callLater(LAST_GRACE, kill_group, os.getpid())

    def _orphaned(self) -> None:
        kill_group(os.getpid())
