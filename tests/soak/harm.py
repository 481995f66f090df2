"""Faults at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import psutil

from tests.faults.conftest import Rig, environment
from tests.faults.tally import TALLY

from .work import Work

#: Seconds between two deaths of one engine, or of other parts: after some in a minute they stay dead.
PAUSE = 35.0
#: Seconds between two faults.
EVERY = (0.5, 3.0)
#: A client in a process of its own, which is killed with work on its way.
CLIENT = """
import sys
from ipython1.kernel import client
mec = client.MultiEngineClient(cluster=sys.argv[1], timeout=60)
print('on', flush=True)
mec.push({'of_killed': bytes(3_000_000)}, block=False)
with mec.task_client() as tc:
    while True:
        pending = [mec.execute('len(of_killed)', block=False), tc.submit(len, 'of_killed')]
        for each in pending:
            each.exception(60)
"""


class Harm:
    """Does harm to one cluster; `run` until time is over.

    Parameters
    ----------
    rig : Rig
    work : Work
        Is told what it must put up with.

    Attributes
    ----------
    killed : set of int
        Pids of engines.
    """

    def __init__(self, rig: Rig, work: Work) -> None:
        self.killed: set[int] = set()
        self._rig = rig
        self._work = work
        self._chance = random.Random(f"{work.seed} faults")
        self._died: dict[int | str, float] = {}

    def run(self) -> None:
        """Faults, until time is over."""
        kinds = [self._kill_engine] * 2 + [self._kill_controller, self._kill_nanny, self._kill_agent]
        kinds += [self._kill_client, *[self._stop_something] * 3]
        while not self._work.over.wait(self._chance.uniform(*EVERY)):
            self._rig.look()
            try:
                self._chance.choice(kinds)()
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass  # it went by itself: a fault of before

    def _engines(self) -> dict[int, int]:
        """Pids of those that are ready."""
        return {e["id"]: e["pid"] for e in self._rig.client()._core.engines() if e["state"] == "ready"}

    def _may_die(self, name: int | str) -> bool:
        return time.monotonic() - self._died.get(name, -1e9) > PAUSE

    def _kill(self, name: int | str, kind: str, pid: int) -> None:
        self._died[name] = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        TALLY.fault(f"{kind} killed")

    def _kill_engine(self) -> None:
        engines = self._engines()
        if ready := [id for id in engines if self._may_die(id)]:
            id = self._chance.choice(ready)
            self.killed.add(engines[id])
            self._work.engines_killed = time.monotonic()
            self._kill(id, "engines", engines[id])

    def _kill_controller(self) -> None:
        pid = self._rig.state.controller
        if pid and self._may_die("controller"):
            self._kill("controller", "controllers", pid)
            self._work.controller_killed = time.monotonic()

    def _kill_nanny(self) -> None:
        """And all engines with it."""
        nanny = self._rig.state.nanny
        if nanny and self._may_die("nanny"):
            self.killed.update(child.pid for child in psutil.Process(nanny).children())
            self._work.engines_killed = time.monotonic()
            self._kill("nanny", "nannies", nanny)

    def _kill_agent(self) -> None:
        """Where it can be told from the engines."""
        nanny = self._rig.state.nanny
        children = {child.pid for child in psutil.Process(nanny).children()} if nanny else set()
        others = children - set(self._engines().values())
        if len(others) == 1 and len(children) > 1 and self._may_die("agent"):
            self._kill("agent", "agents", others.pop())

    def _kill_client(self) -> None:
        command = [sys.executable, "-c", CLIENT, self._rig.files.cluster]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                self._work.over.wait(self._chance.uniform(0, 0.5))
            finally:
                process.kill()
        TALLY.fault("clients killed")

    def _stop_something(self) -> None:
        state = self._rig.state
        if pid := self._chance.choice([*self._engines().values(), state.controller, state.nanny]):
            os.kill(pid, signal.SIGSTOP)
            try:
                self._work.over.wait(self._chance.uniform(0.05, 1.0))
            finally:
                os.kill(pid, signal.SIGCONT)
            TALLY.fault("processes stopped")
