"""The controller: builds registry and router, and wires them to the peers.

Pure: its only I/O is what links and the clock give it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.defer import maybeDeferred

from ipython1.kernel.controller.custody import Custody
from ipython1.kernel.controller.facets import OWNERS, QUESTIONS, RECORDS, Door
from ipython1.kernel.controller.intake import InThread
from ipython1.kernel.controller.ledger import Folder
from ipython1.kernel.controller.lifecycle import ENGINE_GRACE, Lifecycle
from ipython1.kernel.controller.liveoutput import LiveOutput
from ipython1.kernel.controller.load import QUEUE_LIMIT, Load
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.questions import Questions
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.router import Router
from ipython1.kernel.controller.scaling import Scaling
from ipython1.kernel.controller.scheduler import LeastLoad
from ipython1.kernel.controller.sessions import Peers
from ipython1.kernel.controller.tables import Tables
from ipython1.kernel.controller.tasks import TaskBook
from ipython1.kernel.controller.timeline import Timeline
from ipython1.kernel.controller.timers import Timers
from ipython1.kernel.error import ConnectionFailed, RemoteFailure, WireError
from ipython1.kernel.interfaces import ILink, ILinkSink, IScheduler
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import (
    Ask,
    Cancel,
    Chunk,
    Event,
    Exited,
    Fetch,
    Grant,
    Hello,
    Ids,
    Input,
    Interrupt,
    Leaving,
    Outcomes,
    Record,
    Result,
    Share,
    Submit,
    Usage,
    Withdraw,
    Work,
)
from ipython1.kernel.wire.session import Session, Timing

#: Seconds after which an absent client's queued work is dropped.
CLIENT_GRACE = 30.0
#: Seconds after the start during which engines of an earlier controller may come back.
RETURN_GRACE = 15.0
#: Operations after which an engine may take tasks that it rejected.
PROPERTIES_OPS = frozenset({"set_properties", "del_properties", "clear_properties"})


class Controller:
    """Queues commands per engine id and brings results back.

    Parameters
    ----------
    clock : IReactorTime
    notify : callable
        Called with a map for each event that the one who started the controller should know:
        ``engines`` (ids), ``scaled`` (n, missing), ``arrived``, ``failed`` (output), ``shutdown``.
    now : callable
        Wall-clock time in seconds.
    client_grace : float
        Seconds after which an absent client's queued work is dropped.
    engine_grace : float
        Seconds that an engine may be away before it counts as dead, unless its nanny vouches for it.
    controller_grace : float, optional
        Seconds that peers look for a controller that is away; they have defaults.
    scheduler : IScheduler, optional
        Which tasks go first, and where. `LeastLoad` where not given.
    queue_limit : int
        Bytes of work that clients may have here at a time.
    detached : Folder, optional
        Where detached work is kept. Without it nothing can be detached.
    in_thread : callable
        Calls a slow function in a thread; a Deferred of what it returns. At once where not given.
    launcher_grows : bool
        More engines are started by the launcher, not by nannies.
    """

    def __init__(
        self,
        clock: Any,
        notify: Callable[[dict[str, Any]], None] = lambda event: None,
        now: Callable[[], float] = time.time,
        client_grace: float = CLIENT_GRACE,
        engine_grace: float = ENGINE_GRACE,
        controller_grace: float | None = None,
        scheduler: IScheduler | None = None,
        queue_limit: int = QUEUE_LIMIT,
        detached: Folder | None = None,
        in_thread: InThread = maybeDeferred,
        launcher_grows: bool = False,
    ) -> None:
        self._clock = clock
        self._client_grace = client_grace
        self._controller_grace = controller_grace
        self._notify = notify
        self._timing = Timing(clock)
        self._peers = Peers()
        self.nannies = self._peers.nannies
        self._timers = Timers(clock)
        self.timeline = Timeline(now)
        self.output = LiveOutput()
        self.registry = Registry(now, lambda id: self._tables.changed(id))
        self._tables = Tables(clock, self.registry, self._peers.clients, notify)
        load = Load(queue_limit)
        self.router = Router(self.registry, now, self._engines_may_return, self._tables.now, load)
        self.tasks = TaskBook(
            clock,
            self.registry,
            scheduler or LeastLoad(),
            self.router.blobs,
            self._engines_may_return,
            load,
        )
        self.tasks.ran = lambda engine, batch, ends: self.timeline.tasks(
            engine, batch.id, batch.head.label, ends
        )
        self.scaling = Scaling(self.registry, self.tasks.status, self.nannies, notify, clock, launcher_grows)
        self.questions = Questions(
            self.registry,
            self.router,
            self.tasks.status,
            self.timeline,
            self.scaling,
            self.nannies,
            lambda: self.peers,
            self._shut_down,
            clock,
        )
        self._lifecycle = Lifecycle(
            self.registry,
            self.router,
            self.tasks,
            self.questions,
            self.scaling,
            self.timeline,
            self._timers,
            self.nannies,
            self._peers.end_engine,
            self._tables.now,
            notify,
            engine_grace,
        )
        self.custody = Custody(
            clock, self.router, self.tasks, detached, self._is_here, self._cancel_if_gone, in_thread
        )
        for client in self.custody.ledger.clients:
            self._expect_client(client)
        self.tasks.when_interrupted(lambda ids: self._interrupted(ids, ""))
        self._timers.start("return", "", RETURN_GRACE, self._lifecycle.return_over)
        self._handlers: Mapping[type[Record], Callable[[Peer, Any, bytes], None]] = {
            **self.custody.handlers(),
            Cancel: self._cancel,
            Interrupt: self._interrupt,
            Input: lambda peer, record, raw: self.router.input(record, raw),
            Chunk: self.router.chunk,
            Grant: lambda peer, record, raw: self.router.grant(peer, record),
            Share: lambda peer, record, raw: self.router.blobs.share(peer, record),
            Ask: self._ask,
            Result: self._result,
            Event: self._event,
            Work: self.tasks.work,
            Withdraw: self.tasks.withdraw,
            Outcomes: self._outcomes,
            Exited: lambda peer, record, raw: self._lifecycle.exited(peer, record),
            Usage: lambda peer, record, raw: self._lifecycle.usage(peer, record),
            Leaving: lambda peer, record, raw: self._lifecycle.leaving(peer),
        }

    def door(self, furl_kind: str) -> Door:
        """The door behind the FURL of this kind."""
        return Door(furl_kind, self._admit)

    def status(self) -> list[dict[str, Any]]:
        """One map an engine: what `ipcluster status` and the dashboard show."""
        return self.questions.status()

    @property
    def peers(self) -> list[Peer]:
        """The other ends of all sessions."""
        return list(self._peers)

    def interrupt(self, targets: Iterable[int]) -> None:
        """Interrupt what runs on some engines."""
        record = Interrupt(tuple(id for id in targets if self.registry.get(id) is not None), "")
        self.router.interrupt(record, encode(record))
        self._interrupted(dict.fromkeys(record.targets, ()), "")

    def stop(self) -> None:
        """End all sessions and timers."""
        self._peers.end_all()
        self._timing.stop()
        self._timers.stop_all()
        self.tasks.stop()
        self.custody.stop()
        self._tables.stop()
        self.questions.stop()

    # -- peers ---------------------------------------------------------------------

    def _admit(
        self, furl: str, hello: Hello, detail: dict[str, Any], link: ILink
    ) -> tuple[ILinkSink, bool, int, dict[str, Any]]:
        peer = self._peers.get(hello.session)
        resumed = peer is not None
        if peer is None:  # `fresh` is known where our answer was lost
            peer = self._peers.get(hello.fresh) or self._new_peer(furl, hello, detail)
        if (peer.kind, peer.key) != (hello.kind, _key(hello.kind, detail)):
            raise WireError(reason="the session belongs to someone else")
        peer.session.attach(link, hello.received if resumed else 0)
        return peer, resumed, peer.session.received, self._welcome(peer, detail) | self._settings()

    def _new_peer(self, furl: str, hello: Hello, detail: dict[str, Any]) -> Peer:
        key = _key(hello.kind, detail)
        owner = hello.kind in OWNERS
        if hello.kind == "engine" and self.registry.is_dead(key):
            raise WireError(reason="this engine was declared dead")
        if hello.kind == "engine" and self.registry.by_uuid(key) is not None:
            raise WireError(reason="this engine is here already, in another session")
        if owner:
            self._claim(key, furl)
        session = Session(
            self._clock,
            lambda raw: peer.receive(raw),
            grace={"engine": None, "nanny": CLIENT_GRACE}.get(hello.kind, self._client_grace),
            ended=lambda: self._client_ended(peer) if owner else self._drop_peer(peer),
            id=hello.fresh,
            timing=self._timing,
        )
        host = str(detail.get("host", ""))
        memory = str(detail.get("memory", "")) if hello.kind == "engine" else ""
        peer = Peer(hello.kind, key, session, self._handle, self._away, self._overflow, host, memory, furl)
        self._peers.add(peer)
        return peer

    def _claim(self, client: str, furl: str) -> None:
        """A client is here once. Who holds the FURL for everything is not kept out by who does not."""
        for peer in self._with_work(client):
            if furl != "multiengine" or peer.furl == "multiengine":
                raise ConnectionFailed("The controller has this client already, in another session.")
            self._drop_peer(peer)
            # Its tasks would pass for those of the client.
            self.tasks.cancel_client(client, self.custody.ledger.slots)

    def _welcome(self, peer: Peer, detail: dict[str, Any]) -> dict[str, Any]:
        if peer.kind == "engine":
            engine, new = self._lifecycle.linked(peer, detail)
            for client in detail["clients"] if new else ():  # whom an earlier controller knew
                self._expect_client(str(client))
            return {"id": engine.id}
        if peer.kind == "nanny":
            self._lifecycle.nanny_linked(peer, detail)
            return {}
        if peer.kind in OWNERS and self._engines_may_return():
            for id in detail.get("engines", ()):
                self.registry.await_return(id)
        return self._tables.contents()

    def _settings(self) -> dict[str, Any]:
        """What holds for every peer."""
        return {} if self._controller_grace is None else {"grace": self._controller_grace}

    def _handle(self, peer: Peer, record: Record, raw: bytes) -> None:
        if type(record) not in RECORDS[peer.kind]:
            self._refuse(peer, record)
            return
        self._handlers[type(record)](peer, record, raw)

    def _refuse(self, peer: Peer, record: Record) -> None:
        """Not with this FURL: answered where an answer is awaited, and logged."""
        what = f"{type(record).__name__} from a {peer.kind}"
        peer.complain("refused {what} ({key})", what=what)
        failure = RemoteFailure("NotAllowed", f"This FURL does not allow {what}.")
        if isinstance(record, (Submit, Fetch)):
            for target in record.targets:
                self.router.refuse(peer, record.id, target, getattr(record, "op", ""), failure)

    def _away(self, peer: Peer) -> None:
        self.router.blobs.away(peer)
        engine = self._engine_of(peer)
        if engine is not None:
            self._lifecycle.away(peer, engine)

    def _drop_peer(self, peer: Peer) -> None:
        peer.end()
        self._peers.remove(peer)
        self._tables.client_gone(peer)
        self.router.client_gone(peer)
        self.tasks.client_gone(peer)
        self.custody.intake.client_gone(peer)

    # -- clients -----------------------------------------------------------------------

    def _overflow(self, peer: Peer) -> None:
        """Too much waits for a client: it will ask again, if it comes back in time."""
        self._drop_peer(peer)
        if peer.kind in OWNERS:
            self._expect_client(peer.key)

    def _expect_client(self, client: str) -> None:
        """Its work is dropped unless it is here when its grace time is over."""
        if ("client", client) not in self._timers:
            self._timers.start("client", client, self._client_grace, self._cancel_if_gone, client)

    def _client_ended(self, peer: Peer) -> None:
        self._drop_peer(peer)
        self._cancel_if_gone(peer.key)

    def _cancel_if_gone(self, client: str) -> None:
        if not self._is_here(client):
            held = self.custody.ledger
            self.custody.take_over(client)
            self.router.cancel_client(client, held.keeps, held.batches(client))
            self.tasks.cancel_client(client, held.slots)

    def _is_here(self, client: str) -> bool:
        return bool(self._with_work(client))

    def _with_work(self, client: str) -> list[Peer]:
        """The peers that may have work under the id of this client: views have none."""
        return [peer for peer in self._peers.clients() if peer.key == client and peer.kind in OWNERS]

    def _cancel(self, peer: Peer, record: Cancel, raw: bytes) -> None:
        self.router.cancel(record.ids, record.targets, record.reason)

    def _interrupt(self, peer: Peer, record: Interrupt, raw: bytes) -> None:
        if record.stuck not in ("", "leave", "restart"):
            raise WireError(reason=f"{record.stuck!r} is nothing to do about an engine")
        self.router.interrupt(record, raw)
        ids = (record.id,) if record.id else ()
        self._interrupted(dict.fromkeys(record.targets, ids), record.stuck)

    def _interrupted(self, ids: Mapping[int, Ids], stuck: str) -> None:
        last = {peer.key: peer.session.last for peer in self._peers.engines()}
        self._lifecycle.interrupted(ids, stuck, last)

    def _ask(self, peer: Peer, ask: Ask, raw: bytes) -> None:
        if ask.what not in QUESTIONS[peer.kind]:
            failure = RemoteFailure("NotAllowed", f"This FURL does not allow the question {ask.what!r}.")
            self.questions.answer_failure(peer, ask.id, failure)
        elif ask.what == "detach":
            self.custody.intake.ask(peer, ask)
        else:
            self.questions.ask(peer, ask)

    # -- engines and nannies -------------------------------------------------------------

    def _engine_of(self, peer: Peer) -> Engine | None:
        return self.registry.by_uuid(peer.key) if peer.kind == "engine" else None

    def _engines_may_return(self) -> bool:
        return ("return", "") in self._timers

    def _result(self, peer: Peer, result: Result, raw: bytes) -> None:
        engine = self._engine_of(peer)
        if engine is not None:
            command = engine.queue.with_engine(result.id)
            if command is not None and result.status != "unknown":
                self.timeline.command(engine.id, command, result)
            self.router.result(engine, peer, result, raw)
            if result.op in PROPERTIES_OPS:
                self.tasks.properties_changed(engine.id)
            elif not len(engine.queue):
                self.tasks.engine_free(engine.id)

    def _outcomes(self, peer: Peer, outcomes: Outcomes, raw: bytes) -> None:
        engine = self._engine_of(peer)
        if engine is not None:
            self.tasks.outcomes(engine, peer, outcomes, raw)

    def _event(self, peer: Peer, event: Event, raw: bytes) -> None:
        engine = self._engine_of(peer)
        if engine is None:
            return
        if event.engine != engine.id:
            raise WireError(reason=f"engine {engine.id} speaks for engine {event.engine}")
        if self.output.watched:
            self.output.event(event)
        (self.tasks if "#" in event.id else self.router).event(event, peer, raw)

    # -- the end ------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        for nanny in self.nannies():
            nanny.send(records.Order("quit", "", 0))
        self.questions.when_nannies_left(lambda: self._notify({"event": "shutdown"}))


def _key(kind: str, detail: Mapping[str, Any]) -> str:
    """What a peer calls itself."""
    return str(detail["uuid" if kind in ("engine", "nanny") else "client"])
