"""What clients ask of the controller itself, and the orders to nannies."""

from __future__ import annotations

import heapq
import signal
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.router import Router
from ipython1.kernel.controller.taskstatus import TaskStatus
from ipython1.kernel.controller.timeline import Timeline
from ipython1.kernel.error import IPython1Error, LaunchError, RemoteFailure, WireError
from ipython1.kernel.wire.codec import encode_failure, pack, unpack_map
from ipython1.kernel.wire.records import ENGINES_LIMIT, RECORD_LIMIT, Answer, Ask, Order

#: Seconds that nannies have to leave when the cluster is shut down.
LEAVE_TIME = 5.0
LEAVE_POLL = 0.05
#: Characters of a label that are shown; clients cut theirs shorter.
LABEL_SHOWN = 200
#: Clients and nannies in an answer.
LINKS_SHOWN = 1000
#: Ids of tasks in an answer, of each state.
IDS_SHOWN = 10_000
#: Seconds in which an engine that was ordered has to be there, or is ordered again.
START_TIME = 60.0


class Questions:
    """Answers each `Ask` at once.

    Parameters
    ----------
    registry, router, tasks, timeline
        The state of the cluster.
    nannies : callable
        The nannies that can take orders.
    peers : callable
        The other ends of all sessions.
    shut_down : callable
        Ends the whole cluster.
    notify : callable
        Called with a dict about what launchers want to know.
    clock : IReactorTime
    """

    def __init__(
        self,
        registry: Registry,
        router: Router,
        tasks: TaskStatus,
        timeline: Timeline,
        nannies: Callable[[], list[Peer]],
        peers: Callable[[], list[Peer]],
        shut_down: Callable[[], None],
        notify: Callable[[dict[str, Any]], None],
        clock: Any,
    ) -> None:
        self._registry = registry
        self._router = router
        self._tasks = tasks
        self._timeline = timeline
        self._nannies = nannies
        self._peers = peers
        self._shut_down = shut_down
        self._notify = notify
        self._clock = clock
        self._leave_call: Any = None
        #: Of each nanny, until when the engines are waited for that it starts now.
        self._starting: dict[str, deque[float]] = {}
        self._leaving: set[str] = set()  # uuids of engines that were told to stop
        self._answers: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda body: self.status(),
            "queue_status": self._queue_status,
            "clear_queue": self._clear_queue,
            "signal": self._signal,
            "restart": self.restart,
            "kill": self._kill,
            "scale": self._scale,
            "task_status": self._task_status,
            "timeline": self._what_ran,
            "links": lambda body: self.links(),
        }

    def ask(self, peer: Peer, ask: Ask) -> None:
        """Answer a question; what it lacks or what fails is the answer."""
        try:
            body = pack(self._answers[ask.what](unpack_map(ask.body)))
            if len(body) > RECORD_LIMIT // 2:
                raise ValueError("the answer is too long; ask for fewer targets")
        except IPython1Error as error:
            self.answer_failure(peer, ask.id, RemoteFailure(type(error).__name__, str(error)))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            reason = f"bad arguments for {ask.what!r}: {error!r}"
            self.answer_failure(peer, ask.id, RemoteFailure("WireError", str(WireError(reason=reason))))
        else:
            peer.send(Answer(ask.id, True, body))

    def answer_failure(self, peer: Peer, id: str, failure: RemoteFailure) -> None:
        """Answer with an error."""
        peer.send(Answer(id, False, encode_failure(failure)))

    def status(self) -> list[dict[str, Any]]:
        """One map an engine."""
        table = []
        for engine in self._registry:
            running = self.running(engine)
            table.append(
                {
                    **engine.facts(),
                    "cpu": engine.cpu,
                    "rss": engine.rss,
                    "stuck": engine.stuck,
                    "away": engine.away_since(self._registry.now()),
                    "running": running[0] if running else None,
                    "since": running[1] if running else engine.since,
                    "queue": len(engine.queue) + self._tasks.count(engine.id) - bool(running),
                }
            )
        return table

    def links(self) -> list[dict[str, Any]]:
        """One map a client or nanny: the longest away first; ``work``: a client has some here."""
        now = self._registry.now()
        busy = {command.client for engine in self._registry for command in engine.queue.commands}
        busy |= self._tasks.clients()
        peers = [peer for peer in self._peers() if peer.kind != "engine"]
        rows = [{**peer.facts(now), "work": peer.key in busy} for peer in peers]
        return sorted(rows, key=lambda row: row["away"] or now)[:LINKS_SHOWN]

    def load(self) -> tuple[int, int]:
        """How many engines run something, and how much waits for one."""
        running = sum(self.running(engine) is not None for engine in self._registry)
        with_engines = sum(len(engine.queue) + self._tasks.count(engine.id) for engine in self._registry)
        return running, with_engines - running + self._tasks.counts()["ready"]

    def running(self, engine: Engine) -> tuple[str, float] | None:
        """Label and start of what an engine does."""
        command = engine.queue.running
        running = self._tasks.running(engine.id) or (
            (command.label or command.op, command.since) if command else None
        )
        return (running[0][:LABEL_SHOWN], running[1]) if running else None

    def _queue_status(self, body: dict[str, Any]) -> list[Any]:
        status = []
        for engine in self._named(body):
            running = self.running(engine)
            labels = [(command.label or command.op)[:LABEL_SHOWN] for command in engine.queue.commands]
            queued = labels if self._tasks.running(engine.id) else labels[1:]
            row = {"queue": queued, "pending": running[0] if running else None}
            away = engine.away_since(self._registry.now())
            status.append([engine.id, {**row, "away": away} if away else row])
        return status

    def _task_status(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._tasks.ids(IDS_SHOWN) if body.get("verbose") else self._tasks.counts()

    def _what_ran(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._timeline.answer(int(body.get("after", 0)))
        runs = [(engine.id, self.running(engine)) for engine in self._registry] if not answer["more"] else []
        return {**answer, "running": [[id, *running] for id, running in runs if running]}

    def _clear_queue(self, body: dict[str, Any]) -> int:
        return self._router.cancel((), [engine.id for engine in self._named(body)], "QueueCleared")

    def _signal(self, body: dict[str, Any]) -> None:
        number = signal.Signals(int(body["number"]))
        for engine in self._named(body):
            self._order(engine, "signal", number)

    def restart(self, body: dict[str, Any]) -> None:
        """Have the engines in ``targets`` replaced by fresh ones."""
        for engine in self._named(body):
            self._order(engine, "restart")

    def _kill(self, body: dict[str, Any]) -> None:
        if body.get("controller"):
            self._shut_down()
        else:
            for engine in self._named(body):
                self._order(engine, "stop")

    def _scale(self, body: dict[str, Any]) -> None:
        wanted = int(body["n"])
        if not 0 <= wanted <= ENGINES_LIMIT:
            raise ValueError(f"n must be from 0 to {ENGINES_LIMIT}")
        self._leaving = {uuid for uuid in self._leaving if self._registry.by_uuid(uuid) is not None}
        engines = [engine for engine in self._registry if engine.uuid not in self._leaving]
        missing = wanted - len(engines) - sum(map(self._number_starting, list(self._starting)))
        nannies = self._nannies()
        if missing > 0 and not nannies:
            raise LaunchError(what="An engine", reason="no nanny is connected; run ipcluster engines -n 1")
        self._notify({"event": "scaled", "n": wanted})
        for engine in engines[wanted:]:
            self._order(engine, "stop")
        if missing <= 0:
            return
        # The least loaded host first.
        load = [
            (sum(engine.nanny == nanny.key for engine in engines) + self._number_starting(nanny.key), i)
            for i, nanny in enumerate(nannies)
        ]
        heapq.heapify(load)
        starts = [0] * len(nannies)
        for _ in range(missing):
            count, i = load[0]
            heapq.heapreplace(load, (count + 1, i))
            starts[i] += 1
        for nanny, number in zip(nannies, starts, strict=True):
            if number:
                nanny.send(Order("start", "", number))
                self.expect(nanny.key, self._number_starting(nanny.key) + number)

    def expect(self, nanny: str, number: int) -> None:
        """A nanny starts `number` engines now, if not more."""
        missing = number - self._number_starting(nanny)
        if missing > 0:
            until = self._clock.seconds() + START_TIME
            self._starting.setdefault(nanny, deque()).extend([until] * missing)

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

    def _named(self, body: dict[str, Any]) -> list[Engine]:
        engines = [self._registry.get(id) for id in dict.fromkeys(map(int, body["targets"]))]
        return [engine for engine in engines if engine is not None]

    def _order(self, engine: Engine, what: str, number: int = 0) -> None:
        for nanny in self._nannies():
            if nanny.key == engine.nanny:
                nanny.send(Order(what, engine.uuid, number))
                if what == "stop":
                    self._leaving.add(engine.uuid)
                return
        reason = "its nanny cannot be reached, so it takes no signals now"
        raise LaunchError(f"Engine {engine.id} was left alone: {reason}.")

    # -- leaving ------------------------------------------------------------------

    def when_nannies_left(self, done: Callable[[], None]) -> None:
        """Call `done`, once, when no nanny is connected any more, or `LEAVE_TIME` has passed."""
        if self._leave_call is None:
            self._poll_leaving(done, self._clock.seconds() + LEAVE_TIME)

    def _poll_leaving(self, done: Callable[[], None], deadline: float) -> None:
        self._leave_call = None
        if not self._nannies() or self._clock.seconds() >= deadline:
            done()
        else:
            self._leave_call = self._clock.callLater(LEAVE_POLL, self._poll_leaving, done, deadline)

    def stop(self) -> None:
        """Stop the timer."""
        if self._leave_call is not None:
            self._leave_call.cancel()
            self._leave_call = None
