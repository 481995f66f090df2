"""Engines come, go away and die; nannies tell of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from twisted.logger import Logger

from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.questions import Questions
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.router import Router, died
from ipython1.kernel.controller.scaling import Scaling
from ipython1.kernel.controller.tasks import TaskBook
from ipython1.kernel.controller.timeline import AWAY, BACK, DIED, ENDED, FAILED, LOST, RESTARTED, Timeline
from ipython1.kernel.controller.timers import Timers
from ipython1.kernel.error import WireError
from ipython1.kernel.processes import INTENDED, STOPPED
from ipython1.kernel.wire.codec import unpack_map
from ipython1.kernel.wire.records import Exited, Ids, Order, Usage

#: Seconds an engine may be away before it counts as dead, unless its nanny vouches for it.
ENGINE_GRACE = 10.0
#: Seconds an engine under restart may take to register.
RESTART_GRACE = 60.0
#: Seconds in which what a dead engine had sent still arrives.
LAST_WORDS = 0.25
#: Characters of what a nanny says of a death that are passed on.
CAUSE_LIMIT = 1000
OUTPUT_LIMIT = 16 * 1024

#: Numbers that a nanny tells are below this: any of them, and their sum, can be shown.
USAGE_LIMIT = 2.0**53

log = Logger()


class Lifecycle:
    """Keeps the registry true, and tells router and task book.

    Parameters
    ----------
    registry, router, tasks, questions, scaling, timeline
        What has to know.
    timers : Timers
    nannies : callable
        The nannies that are linked.
    end_session : callable
        Ends the session of the engine process with a uuid.
    table_now : callable
        Tells clients of the engine table at once.
    notify, engine_grace
        As for `Controller`.
    """

    def __init__(
        self,
        registry: Registry,
        router: Router,
        tasks: TaskBook,
        questions: Questions,
        scaling: Scaling,
        timeline: Timeline,
        timers: Timers,
        nannies: Callable[[], list[Peer]],
        end_session: Callable[[str], None],
        table_now: Callable[[], None],
        notify: Callable[[dict[str, Any]], None],
        engine_grace: float = ENGINE_GRACE,
    ) -> None:
        self._registry = registry
        self._router = router
        self._tasks = tasks
        self._questions = questions
        self._scaling = scaling
        self._timeline = timeline
        self._timers = timers
        self._nannies = nannies
        self._end_session = end_session
        self._table_now = table_now
        self._notify = notify
        self._engine_grace = engine_grace
        self._may_return = True  # engines of an earlier controller

    # -- engines --------------------------------------------------------------------

    def linked(self, peer: Peer, detail: dict[str, Any]) -> tuple[Engine, bool]:
        """An engine is there, and whether as a process that is new here."""
        replaces = detail.get("replaces") or {}
        if replaces and self._is_nanny_of(detail["nanny"], replaces["uuid"]):
            self._died(replaces["uuid"], replaces["cause"], replaces["output"], replaced=True)
        engine = self._registry.by_uuid(peer.key)
        known = engine is not None and engine.send == peer.session.send
        if engine is None and not replaces:
            self._scaling.arrived(detail["nanny"], known=detail["wanted"] >= 0)
        engine = self._registry.register(
            uuid=peer.key,
            wanted=detail["wanted"],
            host=detail["host"],
            pid=detail["pid"],
            nanny=detail["nanny"],
            send=peer.session.send,
        )
        engine.absent = lambda: peer.session.absent
        self._timers.stop("away", peer.key)
        self._timers.stop("restart", str(engine.id))
        engine.vouched = True
        if known:
            self._timeline.note(BACK, engine.id)
            self._tasks.engine_free(engine.id)
        else:
            if replaces:
                self._timeline.note(RESTARTED, engine.id, f"pid {engine.pid}")
            self._router.engine_ready(engine, peer, detail["held"])
            self._tasks.engine_ready(engine, peer)
        return engine, not known

    def away(self, peer: Peer, engine: Engine) -> None:
        """The link of an engine is gone."""
        self._registry.away(engine)
        if not self._timers.fire("last words", engine.uuid):
            self._timeline.note(AWAY, engine.id)
            self._watch(peer)

    def return_over(self) -> None:
        """Engines of an earlier controller are not waited for any more."""
        self._may_return = False
        cause = "did not come back to the restarted controller"
        lost = self._registry.return_over()
        for engine in lost:
            self._timeline.note(LOST, engine.id, cause)
        self._router.engines_lost(lost, cause)
        for engine in lost:
            self._registry.remove(engine)
        self._tasks.engines_lost({engine.id for engine in lost})
        self._tasks.return_over()

    def _watch(self, peer: Peer) -> None:
        self._timers.start("away", peer.key, self._engine_grace, self._away_too_long, peer)

    def _away_too_long(self, peer: Peer) -> None:
        engine = self._registry.by_uuid(peer.key)
        if engine is None:
            return
        if all(nanny.key != engine.nanny for nanny in self._nannies()):
            self._died(peer.key, "lost: neither it nor its nanny can be reached", "", replaced=False)
        elif engine.vouched:
            self._watch(peer)  # only the link is away
        else:
            self._died(peer.key, "ended, says its nanny", "", replaced=False)

    # -- nannies --------------------------------------------------------------------

    def nanny_linked(self, peer: Peer, detail: dict[str, Any]) -> None:
        """A nanny's word on what happened while it was away."""
        for uuid, cause, output, replaced, running in detail["exited"]:
            if self._registry.by_uuid(uuid) is not None and self._is_nanny_of(peer.key, uuid):
                self._died(uuid, cause, output, replaced, running)
        # Said before the link was there: an engine that is missing here may have started since.
        alive = set(detail["engines"])
        self._vouch(peer, alive)
        mine = self._registry.of_nanny(peer.key)
        restarting = sum(engine.state == "restarting" for engine in mine)
        unknown = {uuid for uuid in alive if self._registry.by_uuid(uuid) is None}
        self._scaling.expect(peer.key, len(unknown) - restarting)
        if self._may_return:
            self._registry.expect(unknown)

    def exited(self, peer: Peer, record: Exited) -> None:
        """A nanny tells of a death."""
        if not self._is_nanny_of(peer.key, record.uuid):
            return
        engine = self._registry.by_uuid(record.uuid)
        if engine is None and not record.replaced:
            self._scaling.start_over(peer.key)
        last = (record.uuid, record.cause, record.output, record.replaced, record.running)
        if engine is not None and engine.state == "ready":
            # Its results may stand behind this in another socket: its link ends when all are read.
            self._timers.start("last words", record.uuid, LAST_WORDS, self._died, *last)
        else:
            self._died(*last)

    def usage(self, peer: Peer, record: Usage) -> None:
        """A nanny tells what its engines use, and which do not react."""
        table = unpack_map(record.table)
        if not all(map(_is_usage, table.values())):
            raise WireError(reason="the usage of an engine is [percent, bytes, since when it is stuck]")
        self._vouch(peer, table)
        for uuid, (cpu, rss, stuck) in table.items():
            engine = self._registry.by_uuid(uuid)
            if engine is not None and engine.nanny == peer.key:
                engine.cpu, engine.rss, engine.stuck = float(cpu), int(rss), float(stuck)
        self._timeline.sample(self._questions.load)

    def leaving(self, nanny: Peer) -> None:
        """The engines of a nanny end soon: what they have not begun of tasks goes elsewhere."""
        for engine in self._registry.of_nanny(nanny.key):
            self._registry.leaves(engine)
            self._tasks.engine_leaves(engine.id)

    def _vouch(self, nanny: Peer, alive: Collection[str]) -> None:
        for engine in self._registry.of_nanny(nanny.key):
            engine.vouched = engine.uuid in alive

    def interrupted(self, ids: Mapping[int, Ids], stuck: str, records: Mapping[str, int]) -> None:
        """Engines were sent interrupts: their nannies see to it that something comes of them.

        Parameters
        ----------
        ids : mapping
            Engine id -> the commands or tasks to interrupt; empty: whatever runs.
        stuck : str
            As in `Interrupt`.
        records : mapping
            Uuid of each engine -> number of the last record that it was sent.
        """
        nannies = {nanny.key: nanny for nanny in self._nannies()}
        for id, wanted in ids.items():
            engine = self._registry.get(id)
            if engine is not None and engine.nanny in nannies and engine.uuid in records:
                order = Order("interrupt", engine.uuid, records[engine.uuid], wanted, stuck)
                nannies[engine.nanny].send(order)

    def _is_nanny_of(self, nanny: str, uuid: str) -> bool:
        """Whether a nanny may tell of this engine: of its own, and of those that never registered."""
        engine = self._registry.by_uuid(uuid)
        return engine is None or engine.nanny == nanny

    # -- deaths -----------------------------------------------------------------------

    def _died(self, uuid: str, cause: str, output: str, replaced: bool, running: str = "") -> None:
        cause, output = cause[:CAUSE_LIMIT], output[-OUTPUT_LIMIT:]
        known = self._registry.by_uuid(uuid) is not None
        if not known and not self._registry.is_dead(uuid):
            self._registry.died(uuid, replaced)
            if not replaced:
                self._registry.given_up(cause, output)
            self._timeline.note(FAILED, -1, cause)
            self._notify({"event": "failed", "cause": cause, "output": output, "replaced": replaced})
            self._tasks.settle()
            return
        engine = self._registry.died(uuid, replaced)
        if engine is None:
            return
        log.info("engine {id} {cause}", id=engine.id, cause=cause)
        self._note_death(engine, cause)
        self._timers.stop("away", uuid)
        self._timers.stop("last words", uuid)
        self._end_session(uuid)
        if not replaced and cause not in INTENDED:
            self._registry.given_up(f"engine {engine.id} died: {cause}", output)
        if len(engine.queue):
            self._table_now()
        self._fail(engine, cause, output, running)
        if replaced:
            self._timers.start("restart", str(engine.id), RESTART_GRACE, self._not_restarted, engine)
        else:
            self._tasks.engines_removed()

    def _note_death(self, engine: Engine, cause: str) -> None:
        running = self._questions.running(engine)
        if running is not None:
            kind = "command" if self._tasks.status.running(engine.id) is None else "task"
            self._timeline.died(engine.id, running[0], kind, running[1])
        self._timeline.note(ENDED if cause in INTENDED else DIED, engine.id, cause)

    def _fail(self, engine: Engine, cause: str, output: str, running: str = "") -> None:
        self._router.engine_died(engine, cause, output, running)
        # A task that ran there is not to blame for the end of an engine that was told to stop.
        ran = running if cause not in INTENDED else STOPPED
        self._tasks.engine_died(engine.id, ran, died(engine.id, cause, output))

    def _not_restarted(self, engine: Engine) -> None:
        if engine.state == "restarting":
            self._timeline.note(LOST, engine.id, "its restart failed")
            self._fail(engine, "its restart failed", "")
            self._remove(engine)
            self._registry.given_up(f"engine {engine.id} died, and its restart failed", "")

    def _remove(self, engine: Engine) -> None:
        self._registry.remove(engine)
        self._tasks.engines_removed()


def _is_usage(row: Any) -> bool:
    """Whether this is what a nanny says of one engine."""
    return (
        type(row) is tuple
        and len(row) == 3
        and all(type(value) in (int, float) and 0 <= value < USAGE_LIMIT for value in row)
    )
