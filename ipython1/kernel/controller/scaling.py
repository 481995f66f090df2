"""More and fewer engines.

Fewer: those with the least to do are told to stop, of several the newest one, so that none that runs
something goes while another one has nothing to do. Such an engine is *leaving* until it has ended: it gets no
tasks, and does not count. What it has then: its tasks go elsewhere, its commands fail with `EngineDied`.

More: nannies are told to start some, on the hosts with the fewest first. Where the launcher itself has to (it
submits jobs), the event ``scaled`` says how many are missing, and it sees to that.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.taskstatus import TaskStatus
from ipython1.kernel.error import LaunchError
from ipython1.kernel.wire.records import ENGINES_LIMIT, Order

#: Seconds in which an engine that was ordered has to be there, or is ordered again.
START_TIME = 60.0


class Scaling:
    """Orders engines from nannies, and knows which are still to come and which leave.

    Parameters
    ----------
    registry, tasks
        The state of the cluster.
    nannies : callable
        The nannies that can take orders.
    notify : callable
        Called with a dict about what launchers want to know.
    clock : IReactorTime
    launcher_grows : bool
        The launcher starts engines, not the nannies.
    """

    def __init__(
        self,
        registry: Registry,
        tasks: TaskStatus,
        nannies: Callable[[], list[Peer]],
        notify: Callable[[dict[str, Any]], None],
        clock: Any,
        launcher_grows: bool = False,
    ) -> None:
        self._registry = registry
        self._tasks = tasks
        self._nannies = nannies
        self._notify = notify
        self._clock = clock
        self._launcher_grows = launcher_grows
        #: Of each nanny, until when the engines are waited for that it starts now.
        self._starting: dict[str, deque[float]] = {}

    # -- questions ------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """What decides on the number of engines, see `ipython1.launch.adapting`.

        ``engines``: how many there are; ``waiting``: tasks that wait for one; ``idle``: for how many
        seconds each engine without work has had none, the longest first.
        """
        engines = self._staying()
        idle = [self._idle(engine) for engine in engines if not self._has(engine)]
        return {"engines": len(engines), "waiting": self._tasks.waiting(), "idle": sorted(idle, reverse=True)}

    def scale(self, body: dict[str, Any]) -> int:
        """Have ``n`` engines; where ``idle`` is given, stop only those without work for so many seconds.

        Returns how many there will be.
        """
        wanted, least = int(body["n"]), float(body.get("idle", -1.0))
        if not 0 <= wanted <= ENGINES_LIMIT:
            raise ValueError(f"n must be from 0 to {ENGINES_LIMIT}")
        engines = self._staying()
        near = {nanny.key for nanny in self._nannies()}
        # The last to go are those that cannot be told to.
        leave = sorted(engines, key=lambda it: (it.nanny not in near, self._has(it), -it.id))
        if least >= 0:
            leave = [engine for engine in leave if not self._has(engine) and self._idle(engine) >= least]
        leave = leave[: max(0, len(engines) - wanted)]
        wanted = max(wanted, len(engines) - len(leave)) if least >= 0 else wanted
        missing = max(0, wanted - len(engines))
        if self._launcher_grows:
            self._notify({"event": "scaled", "n": wanted, "missing": missing})
        else:
            starting = sum(map(self._number_starting, list(self._starting)))
            missing -= starting
            if missing > 0 and not self._nannies():
                raise LaunchError(
                    what="An engine", reason="no nanny is connected; run ipcluster engines -n 1"
                )
            self._notify({"event": "scaled", "n": wanted, "before": len(engines) + starting})
            self._start(missing, engines)
        for engine in leave:
            self.stop(engine)
        return wanted

    def _staying(self) -> list[Engine]:
        return [engine for engine in self._registry if not engine.leaving]

    def _has(self, engine: Engine) -> int:
        return len(engine.queue) + self._tasks.count(engine.id)

    def _idle(self, engine: Engine) -> float:
        """For how many seconds an engine without work has had none."""
        commands = self._registry.now() - max(engine.since, engine.queue.empty_since)
        tasks: float = self._clock.seconds() - self._tasks.empty_since(engine.id)
        return max(0.0, min(commands, tasks))

    # -- orders to nannies ------------------------------------------------------------

    def stop(self, engine: Engine) -> None:
        """Have an engine ended."""
        self.order(engine, "stop")
        self._registry.leaves(engine)

    def order(self, engine: Engine, what: str, number: int = 0) -> None:
        """Tell the nanny of an engine what to do with it."""
        for nanny in self._nannies():
            if nanny.key == engine.nanny:
                nanny.send(Order(what, engine.uuid, number))
                return
        reason = "its nanny cannot be reached, so it takes no signals now"
        raise LaunchError(f"Engine {engine.id} was left alone: {reason}.")

    def _start(self, missing: int, engines: list[Engine]) -> None:
        nannies = self._nannies()
        there = Counter(engine.nanny for engine in engines)
        load = [(there[nanny.key] + self._number_starting(nanny.key), i) for i, nanny in enumerate(nannies)]
        heapq.heapify(load)
        starts = [0] * len(nannies)
        for _ in range(missing):
            count, i = load[0]  # the least loaded host
            heapq.heapreplace(load, (count + 1, i))
            starts[i] += 1
        for nanny, number in zip(nannies, starts, strict=True):
            if number:
                nanny.send(Order("start", "", number))
                self.expect(nanny.key, self._number_starting(nanny.key) + number)

    # -- engines that are to come -------------------------------------------------------

    def expect(self, nanny: str, number: int) -> None:
        """A nanny starts `number` engines now, if not more."""
        missing = number - self._number_starting(nanny)
        if missing > 0:
            until = self._clock.seconds() + START_TIME
            self._starting.setdefault(nanny, deque()).extend([until] * missing)

    def arrived(self, nanny: str, known: bool) -> None:
        """An engine of this nanny is there for the first time; `known`: an earlier controller had it."""
        self.start_over(nanny)
        if self._launcher_grows and not known:
            self._notify({"event": "arrived"})

    def start_over(self, nanny: str) -> None:
        """An engine of this nanny is there for the first time, or has failed to come."""
        if self._number_starting(nanny):
            self._starting[nanny].popleft()

    def _number_starting(self, nanny: str) -> int:
        ends = self._starting.get(nanny, deque())
        while ends and ends[0] <= self._clock.seconds():
            ends.popleft()
        if not ends:
            self._starting.pop(nanny, None)
        return len(ends)
