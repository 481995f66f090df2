"""What clients ask of the controller itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.router import Router
from ipython1.kernel.controller.scaling import Scaling
from ipython1.kernel.controller.taskstatus import TaskStatus
from ipython1.kernel.controller.timeline import Timeline
from ipython1.kernel.error import IPython1Error, RemoteFailure, WireError
from ipython1.kernel.wire.codec import encode_failure, pack, unpack_map
from ipython1.kernel.wire.records import RECORD_LIMIT, Answer, Ask

#: Seconds that nannies have to leave when the cluster is shut down.
LEAVE_TIME = 5.0
LEAVE_POLL = 0.05
#: Characters of a label that are shown; clients cut theirs shorter.
LABEL_SHOWN = 200
#: Clients and nannies in an answer.
LINKS_SHOWN = 1000
#: Ids of tasks in an answer, of each state.
IDS_SHOWN = 10_000


class Questions:
    """Answers each `Ask` at once.

    Parameters
    ----------
    registry, router, tasks, timeline
        The state of the cluster.
    scaling : Scaling
        Orders to nannies.
    nannies : callable
        The nannies that can take orders.
    peers : callable
        The other ends of all sessions.
    shut_down : callable
        Ends the whole cluster.
    clock : IReactorTime
    """

    def __init__(
        self,
        registry: Registry,
        router: Router,
        tasks: TaskStatus,
        timeline: Timeline,
        scaling: Scaling,
        nannies: Callable[[], list[Peer]],
        peers: Callable[[], list[Peer]],
        shut_down: Callable[[], None],
        clock: Any,
    ) -> None:
        self._registry = registry
        self._router = router
        self._tasks = tasks
        self._timeline = timeline
        self._scaling = scaling
        self._nannies = nannies
        self._peers = peers
        self._shut_down = shut_down
        self._clock = clock
        self._leave_call: Any = None
        self._answers: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda body: self.status(),
            "queue_status": self._queue_status,
            "clear_queue": self._clear_queue,
            "signal": self._signal,
            "restart": self.restart,
            "kill": self._kill,
            "scale": scaling.scale,
            "load": lambda body: scaling.load(),
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
            self._scaling.order(engine, "signal", number)

    def restart(self, body: dict[str, Any]) -> None:
        """Have the engines in ``targets`` replaced by fresh ones."""
        for engine in self._named(body):
            self._scaling.order(engine, "restart")

    def _kill(self, body: dict[str, Any]) -> None:
        if body.get("controller"):
            self._shut_down()
        else:
            for engine in self._named(body):
                self._scaling.stop(engine)

    def _named(self, body: dict[str, Any]) -> list[Engine]:
        engines = [self._registry.get(id) for id in dict.fromkeys(map(int, body["targets"]))]
        return [engine for engine in engines if engine is not None]

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
