"""The controller: builds registry and router, and wires them to the peers.

Pure: its only I/O is what links and the clock give it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger

from ipython1.kernel.controller.facets import QUESTIONS, RECORDS, Door
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.questions import Questions
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.controller.router import Router
from ipython1.kernel.error import RemoteFailure, WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.processes import STOPPED
from ipython1.kernel.wire import records
from ipython1.kernel.wire.codec import encode, pack, unpack_map
from ipython1.kernel.wire.records import (
    Ask,
    Cancel,
    Chunk,
    Engines,
    Event,
    Exited,
    Fetch,
    Forget,
    Grant,
    Hello,
    Interrupt,
    Record,
    Result,
    Submit,
    Usage,
)
from ipython1.kernel.wire.session import Session

#: Seconds after which an absent client's queued work is dropped.
CLIENT_GRACE = 30.0
#: Seconds an engine may be away before it counts as dead, unless its nanny vouches for it.
ENGINE_GRACE = 10.0
#: Seconds after the start during which engines of an earlier controller may come back.
RETURN_GRACE = 15.0
#: Seconds an engine under restart may take to register.
RESTART_GRACE = 60.0
#: Characters of what a nanny says of a death that are passed on.
CAUSE_LIMIT = 1000
OUTPUT_LIMIT = 16 * 1024
#: Seconds in which changes of the engine table are collected.
TABLE_DELAY = 0.005

log = Logger()


class Controller:
    """Queues commands per engine id and brings results back.

    Parameters
    ----------
    clock : IReactorTime
    notify : callable
        Called with a map for each event that the one who started the
        controller should know: ``engines`` (ids), ``failed`` (output), ``shutdown``.
    now : callable
        Wall-clock time in seconds.
    client_grace : float
        Seconds after which an absent client's queued work is dropped.
    """

    def __init__(
        self,
        clock: Any,
        notify: Callable[[dict[str, Any]], None] = lambda event: None,
        now: Callable[[], float] = time.time,
        client_grace: float = CLIENT_GRACE,
    ) -> None:
        self._clock = clock
        self._client_grace = client_grace
        self._notify = notify
        self._peers: dict[str, Peer] = {}  # by session id
        self._table_call: Any = None
        self._told_ids: list[int] = []
        self._timers: dict[tuple[str, str], Any] = {}  # by what they are for, and whom
        self._start_timer("return", "", RETURN_GRACE, self._return_over)
        self.registry = Registry(now, self._table_changed)
        self.router = Router(self.registry, now, self._engines_may_return)
        self.questions = Questions(self.registry, self.router, self.nannies, self._shut_down, clock)
        self._handlers: Mapping[type[Record], Callable[[Peer, Any, bytes], None]] = {
            Submit: self._submit,
            Fetch: self.router.fetch,
            Forget: lambda peer, record, raw: self.router.forget(record, raw),
            Cancel: self._cancel,
            Interrupt: lambda peer, record, raw: self.router.interrupt(record, raw),
            Chunk: self.router.chunk,
            Grant: lambda peer, record, raw: self.router.grant(peer, record),
            Ask: self._ask,
            Result: self._result,
            Event: self._event,
            Exited: self._exited,
            Usage: self._usage,
        }

    def door(self, furl_kind: str) -> Door:
        """The door behind the FURL of this kind."""
        return Door(furl_kind, self._admit)

    def status(self) -> list[dict[str, Any]]:
        """One map an engine: what `ipcluster status` and the dashboard show."""
        return self.questions.status()

    def stop(self) -> None:
        """End all sessions and timers."""
        for peer in list(self._peers.values()):
            peer.session.end()
        self._peers.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._table_call is not None:
            self._table_call.cancel()
            self._table_call = None
        self.questions.stop()

    # -- peers ---------------------------------------------------------------------

    def nannies(self) -> list[Peer]:
        """The nannies that are linked."""
        return [peer for peer in self._peers.values() if peer.kind == "nanny" and peer.session.linked]

    def _admit(
        self, hello: Hello, detail: dict[str, Any], link: ILink
    ) -> tuple[ILinkSink, bool, int, dict[str, Any]]:
        peer = self._peers.get(hello.session)
        resumed = peer is not None
        if peer is None:  # `fresh` is known where our answer was lost
            peer = self._peers.get(hello.fresh) or self._new_peer(hello, detail)
        if (peer.kind, peer.key) != (hello.kind, _key(hello.kind, detail)):
            raise WireError(reason="the session belongs to someone else")
        peer.session.attach(link, hello.received if resumed else 0)
        return peer, resumed, peer.session.received, self._welcome(peer, detail)

    def _new_peer(self, hello: Hello, detail: dict[str, Any]) -> Peer:
        key = _key(hello.kind, detail)
        engine_side = hello.kind in ("engine", "nanny")
        if hello.kind == "engine" and self.registry.is_dead(key):
            raise WireError(reason="this engine was declared dead")
        if hello.kind == "engine" and self.registry.by_uuid(key) is not None:
            raise WireError(reason="this engine is here already, in another session")
        session = Session(
            self._clock,
            lambda raw: peer.receive(raw),
            grace={"engine": None, "nanny": CLIENT_GRACE}.get(hello.kind, self._client_grace),
            ended=lambda: self._drop_peer(peer) if engine_side else self._client_ended(peer),
            id=hello.fresh,
        )
        peer = Peer(hello.kind, key, session, self._handle, self._away, self._overflow)
        self._peers[hello.fresh] = peer
        return peer

    def _welcome(self, peer: Peer, detail: dict[str, Any]) -> dict[str, Any]:
        if peer.kind == "engine":
            return {"id": self._engine_linked(peer, detail).id}
        if peer.kind == "nanny":
            self._nanny_linked(peer, detail)
            return {}
        if peer.kind == "multiengine" and self._engines_may_return():
            for id in detail.get("engines", ()):
                self.registry.await_return(id)
        return self._table()

    def _handle(self, peer: Peer, record: Record, raw: bytes) -> None:
        if type(record) not in RECORDS[peer.kind]:
            self._refuse(peer, record)
            return
        self._handlers[type(record)](peer, record, raw)

    def _refuse(self, peer: Peer, record: Record) -> None:
        """Not with this FURL: answered where an answer is awaited, and logged."""
        what = f"{type(record).__name__} from a {peer.kind}"
        log.warn("refused {what} ({key})", what=what, key=peer.key)
        failure = RemoteFailure("NotAllowed", f"This FURL does not allow {what}.")
        if isinstance(record, (Submit, Fetch)):
            for target in record.targets:
                self.router.refuse(peer, record.id, target, getattr(record, "op", ""), failure)

    def _away(self, peer: Peer) -> None:
        self.router.blobs.away(peer)
        engine = self._engine_of(peer)
        if engine is not None:
            self.registry.away(engine)
            self._watch(peer)

    def _drop_peer(self, peer: Peer) -> None:
        peer.session.end()
        self._peers.pop(peer.session.id, None)
        self.router.client_gone(peer)

    # -- clients -----------------------------------------------------------------------

    def _overflow(self, peer: Peer) -> None:
        """Too much waits for a client that is away: it will ask again, if it comes back in time."""
        self._drop_peer(peer)
        self._expect_client(peer.key)

    def _expect_client(self, client: str) -> None:
        """Its work is dropped unless it is here when its grace time is over."""
        if ("client", client) not in self._timers:
            self._start_timer("client", client, self._client_grace, self._cancel_if_gone, client)

    def _client_ended(self, peer: Peer) -> None:
        self._drop_peer(peer)
        self._cancel_if_gone(peer.key)

    def _cancel_if_gone(self, client: str) -> None:
        if not any(peer.key == client for peer in self._peers.values()):
            self.router.cancel_client(client)

    def _submit(self, peer: Peer, submit: Submit, raw: bytes) -> None:
        self._table_now()
        self.router.submit(peer, submit, raw)

    def _cancel(self, peer: Peer, record: Cancel, raw: bytes) -> None:
        self.router.cancel(record.ids, record.targets, record.reason)

    def _ask(self, peer: Peer, ask: Ask, raw: bytes) -> None:
        if ask.what not in QUESTIONS[peer.kind]:
            failure = RemoteFailure("NotAllowed", f"This FURL does not allow the question {ask.what!r}.")
            self.questions.answer_failure(peer, ask.id, failure)
        else:
            self.questions.ask(peer, ask)

    def _table(self) -> dict[str, Any]:
        return {
            "engines": [engine.facts() for engine in self.registry],
            "failures": self.registry.failures,
        }

    def _table_changed(self) -> None:
        if self._table_call is None:
            self._table_call = self._clock.callLater(TABLE_DELAY, self._send_table)

    def _table_now(self) -> None:
        """Tell first which engines are gone, then what fails with them: else more could be sent there."""
        if self._table_call is not None:
            self._table_call.cancel()
            self._send_table()

    def _send_table(self) -> None:
        self._table_call = None
        raw = encode(Engines(pack(self._table())))
        for peer in self._peers.values():
            if peer.kind not in ("engine", "nanny"):
                peer.session.send(raw)
        ids = [engine.id for engine in self.registry if engine.state == "ready"]
        if ids != self._told_ids:
            self._told_ids = ids
            self._notify({"event": "engines", "ids": ids})

    # -- engines and nannies -------------------------------------------------------------

    def _engine_of(self, peer: Peer) -> Engine | None:
        engine = self.registry.by_uuid(peer.key) if peer.kind == "engine" else None
        return engine

    def _engine_linked(self, peer: Peer, detail: dict[str, Any]) -> Engine:
        replaces = detail.get("replaces") or {}
        if replaces and self._is_nanny_of(detail["nanny"], replaces["uuid"]):
            self._engine_died(replaces["uuid"], replaces["cause"], replaces["output"], replaced=True)
        engine = self.registry.by_uuid(peer.key)
        known = engine is not None and engine.send == peer.session.send
        if engine is None and not replaces:
            self.questions.start_over(detail["nanny"])
        engine = self.registry.register(
            uuid=peer.key,
            wanted=detail["wanted"],
            host=detail["host"],
            pid=detail["pid"],
            nanny=detail["nanny"],
            send=peer.session.send,
        )
        self._stop_timer("away", peer.key)
        self._stop_timer("restart", str(engine.id))
        if not known:
            self.router.engine_ready(engine, peer, detail["held"])
            for client in detail["clients"]:  # whom an earlier controller knew
                self._expect_client(str(client))
        return engine

    def _engines_may_return(self) -> bool:
        return ("return", "") in self._timers

    def _return_over(self) -> None:
        for engine in list(self.registry):
            if engine.state == "awaited":
                self.router.engine_died(engine, "did not come back to the restarted controller", "")
                self.registry.remove(engine)

    def _result(self, peer: Peer, result: Result, raw: bytes) -> None:
        engine = self._engine_of(peer)
        if engine is not None:
            self.router.result(engine, peer, result, raw)

    def _event(self, peer: Peer, event: Event, raw: bytes) -> None:
        engine = self._engine_of(peer)
        if engine is not None:
            self.router.event(engine, peer, event, raw)

    def _exited(self, peer: Peer, record: Exited, raw: bytes) -> None:
        if self._is_nanny_of(peer.key, record.uuid):
            if self.registry.by_uuid(record.uuid) is None and not record.replaced:
                self.questions.start_over(peer.key)
            self._engine_died(record.uuid, record.cause, record.output, record.replaced)

    def _is_nanny_of(self, nanny: str, uuid: str) -> bool:
        """Whether a nanny may tell of this engine: of its own, and of those that never registered."""
        engine = self.registry.by_uuid(uuid)
        return engine is None or engine.nanny == nanny

    def _engine_died(self, uuid: str, cause: str, output: str, replaced: bool) -> None:
        cause, output = cause[:CAUSE_LIMIT], output[-OUTPUT_LIMIT:]
        known = self.registry.by_uuid(uuid) is not None
        if not known and not self.registry.is_dead(uuid):
            self.registry.died(uuid, replaced)
            if not replaced:
                self.registry.given_up(cause, output)
            self._notify({"event": "failed", "cause": cause, "output": output, "replaced": replaced})
            return
        engine = self.registry.died(uuid, replaced)
        if engine is None:
            return
        log.info("engine {id} {cause}", id=engine.id, cause=cause)
        self._stop_timer("away", uuid)
        for id, peer in list(self._peers.items()):
            if peer.kind == "engine" and peer.key == uuid:
                del self._peers[id]
                peer.session.end()
        if not replaced and cause != STOPPED:
            self.registry.given_up(f"engine {engine.id} died: {cause}", output)
        if len(engine.queue):
            self._table_now()
        self.router.engine_died(engine, cause, output)
        if replaced:
            self._start_timer("restart", str(engine.id), RESTART_GRACE, self._not_restarted, engine)

    def _not_restarted(self, engine: Engine) -> None:
        if engine.state == "restarting":
            self.router.engine_died(engine, "its restart failed", "")
            self.registry.remove(engine)
            self.registry.given_up(f"engine {engine.id} died, and its restart failed", "")

    def _watch(self, peer: Peer) -> None:
        self._start_timer("away", peer.key, ENGINE_GRACE, self._away_too_long, peer)

    def _away_too_long(self, peer: Peer) -> None:
        engine = self._engine_of(peer)
        if engine is None:
            return
        if any(nanny.key == engine.nanny for nanny in self.nannies()):
            self._watch(peer)  # alive, says its nanny: only the link is away
        else:
            self._engine_died(peer.key, "lost: neither it nor its nanny can be reached", "", replaced=False)

    def _nanny_linked(self, peer: Peer, detail: dict[str, Any]) -> None:
        """A nanny's word on what happened while it was away."""
        for uuid, cause, output, replaced in detail["exited"]:
            if self.registry.by_uuid(uuid) is not None and self._is_nanny_of(peer.key, uuid):
                self._engine_died(uuid, cause, output, replaced)
        alive = set(detail["engines"])
        mine = [engine for engine in self.registry if engine.nanny == peer.key]
        restarting = sum(engine.state == "restarting" for engine in mine)
        unknown = sum(self.registry.by_uuid(uuid) is None for uuid in alive)
        self.questions.expect(peer.key, unknown - restarting)
        for engine in list(self.registry):
            if engine.nanny == peer.key and engine.uuid not in alive and engine.state == "away":
                self._engine_died(engine.uuid, "ended, says its nanny", "", replaced=False)

    def _usage(self, peer: Peer, record: Usage, raw: bytes) -> None:
        for uuid, (cpu, rss) in unpack_map(record.table).items():
            engine = self.registry.by_uuid(uuid)
            if engine is not None and engine.nanny == peer.key:
                engine.cpu, engine.rss = float(cpu), int(rss)

    # -- timers ----------------------------------------------------------------------------

    def _start_timer(self, what: str, whom: str, delay: float, f: Callable[..., None], *args: Any) -> None:
        """Call `f` after `delay` seconds; in place of the timer of this name, if there is one."""
        self._stop_timer(what, whom)
        self._timers[what, whom] = self._clock.callLater(delay, self._time_is_up, what, whom, f, args)

    def _stop_timer(self, what: str, whom: str) -> None:
        timer = self._timers.pop((what, whom), None)
        if timer is not None:
            timer.cancel()

    def _time_is_up(self, what: str, whom: str, f: Callable[..., None], args: tuple[Any, ...]) -> None:
        del self._timers[what, whom]
        f(*args)

    # -- the end ------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        for nanny in self.nannies():
            nanny.send(records.Order("quit", "", 0))
        self.questions.when_nannies_left(lambda: self._notify({"event": "shutdown"}))


def _key(kind: str, detail: Mapping[str, Any]) -> str:
    """What a peer calls itself."""
    return str(detail["uuid" if kind in ("engine", "nanny") else "client"])
