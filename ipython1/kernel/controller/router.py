"""From targets to queues, and from engines back to the clients that wait.

Soft state: everything here can be lost. Clients send again what is
unresolved, engines answer again what they know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.load import OVERHEAD, Load
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.queue import Command
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.error import EngineDied, RemoteFailure, WireError, own_failure
from ipython1.kernel.wire.codec import decode_as, encode, encode_failure
from ipython1.kernel.wire.records import (
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    Event,
    Fetch,
    Forget,
    Grant,
    Input,
    Interrupt,
    Result,
    Submit,
)

#: Targets of a record that goes to engines as it came.
FEW = 16
#: Why commands may be taken out of queues: names of error classes.
REASONS = frozenset({"QueueCleared", "TaskAborted"})


@dataclass(slots=True)
class Route:
    """Who waits for the results of a command, and from which engines."""

    owners: list[Peer]
    size: int = 0  # what it takes of memory, about
    targets: set[int] = field(default_factory=set)
    blobs: Sequence[str] = ()
    source: str = ""  # the command whose result its engines get, and on which engine
    giver: int = -1


class Router:
    """Carries commands to engines and results to clients.

    Parameters
    ----------
    registry : Registry
    now : callable
        Wall-clock time in seconds.
    returning : callable
        Whether engines unknown yet may still come back to this controller.
    table_now : callable
        Tells clients of the engine table, if it has changed.
    load : Load, optional
        How much work there may be.
    """

    def __init__(
        self,
        registry: Registry,
        now: Callable[[], float],
        returning: Callable[[], bool],
        table_now: Callable[[], None],
        load: Load | None = None,
    ) -> None:
        self._registry = registry
        self._now = now
        self._returning = returning
        self._table_now = table_now
        self._routes: dict[str, Route] = {}
        self._takers: dict[str, str] = {}  # by source: the command of those who get its result
        self._engine_peers: dict[int, Peer] = {}
        self._load = load or Load()
        self.blobs = BlobRoutes()

    # -- from clients ---------------------------------------------------------------

    def submit(self, client: Peer, submit: Submit, raw: bytes) -> None:
        """Queue a command for each of its targets."""
        size = len(raw) + OVERHEAD * len(submit.targets)
        # What is sent again engines may have; what only gives is refused with what takes.
        if not (submit.again or submit.gives or self._load.admits(size)):
            for target in submit.targets:
                self.refuse(client, submit.id, target, submit.op, self._load.refusal())
            self._drop_source(submit.source, submit.giver)
            return
        route = self._route(submit.id, None if submit.gives else client)
        if submit.source:
            route.source, route.giver = submit.source, submit.giver
            self._takers[submit.source] = submit.id
        route.size += size
        self._load.used += size
        own = _shortened(submit, raw)
        if any(isinstance(part, BlobRef) for part in submit.parts):
            receivers = [self._engine_peers[id] for id in submit.targets if id in self._engine_peers]
            prefix, targets = f"{submit.id}/", frozenset(submit.targets)
            opened = self.blobs.open(
                submit.parts, prefix, client, receivers, lambda peer: self._is_one(peer, targets)
            )
            route.blobs = [*route.blobs, *opened]
        for target in submit.targets:
            engine = self._engine(target)
            if engine is None:
                self._table_now()  # else the client might send more there
                self.refuse(client, submit.id, target, submit.op, _gone(target))
            else:
                route.targets.add(target)
                engine.queue.put(Command(submit.id, submit.op, submit.label, own(target), bool(submit.again)))
        self._close_if_done(submit.id)

    def fetch(self, client: Peer, fetch: Fetch, raw: bytes) -> None:
        """A client wants the results of a command it, or another one, sent."""
        route = self._route(fetch.id, client)
        route.targets.update(fetch.targets)
        for target in fetch.targets:
            engine = self._engine(target)
            peer = self._engine_peers.get(target)
            if engine is not None and engine.queue.waits(fetch.id):
                continue  # its result will come
            if peer is not None:
                peer.session.send(raw)
            elif engine is not None and engine.state == "awaited":
                engine.asked.append(raw)
            else:
                self._make_up(Result(fetch.id, target, "", "unknown", 0.0, 0.0, 0, ()))
        self._close_if_done(fetch.id)

    def fetch_source(self, engine: Peer, fetch: Fetch, raw: bytes) -> None:
        """An engine wants the result that a command of its own has as its source."""
        taker = self._routes.get(self._takers.get(fetch.id, ""))
        if taker is not None and fetch.targets == (taker.giver,) and self._is_one(engine, taker.targets):
            self.fetch(engine, fetch, raw)

    def forget(self, record: Forget, raw: bytes) -> None:
        """Tell the engines that a client has these results."""
        short = raw if len(record.targets) <= FEW else encode(Forget(record.ids, ()))
        self._to_engines(record.targets, short)

    def cancel(self, ids: tuple[str, ...], targets: Iterable[int], reason: str) -> int:
        """Take commands out of queues (all where `ids` is empty); returns how many.

        Those that engines have were taken out, too, where they have not started: engines say so.
        """
        if reason not in REASONS:
            raise WireError(reason=f"{reason!r} is no reason to cancel a command")
        count = 0
        for target in targets:
            engine = self._registry.get(target)
            if engine is None:
                continue
            gone = engine.queue.take(ids, lambda id, target=target: encode(Cancel((id,), (target,), reason)))  # type: ignore[misc]
            self._finish(engine, gone, own_failure(reason))
            count += len(gone)
            if engine.queue.handed(ids):
                self._to_engines((target,), encode(Cancel(ids, (target,), reason)))
        return count

    def cancel_client(
        self,
        client: str,
        kept: Callable[[str, int], bool] = lambda id, target: False,
        batches: tuple[str, ...] = (),
    ) -> None:
        """Drop what a client that is gone for good has queued; but not what is detached.

        Parameters
        ----------
        client : str
        kept : callable
            Whether a command, by id and target, is detached.
        batches : tuple of str
            Those with tasks that are.
        """
        for engine in self._registry:
            gone = engine.queue.cancel(
                lambda command, at=engine.id: command.client == client and not kept(command.id, at)  # type: ignore[misc]
            )
            self._finish(engine, gone, own_failure("TaskAborted"))
            self._to_engines((engine.id,), encode(Departed(client, batches)))

    def detach(self, submit: Submit) -> None:
        """A command outlives its client: engines keep what comes of it."""
        raw = encode(submit)
        for target in submit.targets:
            engine = self._registry.get(target)
            if engine is not None and not engine.queue.change(submit.id, _detached):
                self._to_engines((target,), raw)

    def join(self, keeper: Peer, id: str) -> None:
        """`keeper` hears of a command, too, if it is here."""
        route = self._routes.get(id)
        if route is not None and keeper not in route.owners:
            route.owners.append(keeper)

    def interrupt(self, record: Interrupt, raw: bytes) -> None:
        """Interrupt what runs; a command named by id that has not started ends as well."""
        for target in record.targets:
            engine = self._registry.get(target)
            if engine is None:
                continue
            if record.id:
                gone = engine.queue.take((record.id,), lambda id: raw)
                self._finish(engine, gone, RemoteFailure("KeyboardInterrupt", "before it ran"))
            self._to_engines((target,), raw)

    def input(self, record: Input, raw: bytes) -> None:
        """An answer to a question of a running command; of an engine that is away, kept for it."""
        for target in record.targets:
            engine = self._registry.get(target)
            if target in self._engine_peers:
                self._to_engines((target,), raw)
            elif engine is not None and engine.state == "awaited":
                engine.asked.append(raw)

    # -- from engines -------------------------------------------------------------------

    def engine_ready(self, engine: Engine, peer: Peer, held: Iterable[tuple[str, str, str]]) -> None:
        """An engine registered, and has the commands `held` (id, op, label) already."""
        self._engine_peers[engine.id] = peer
        self.blobs.engine_ready(peer)
        for id, op, label in held:
            engine.queue.adopt(Command(id, op, label, b""))
        engine.queue.open(peer.session.send)
        for raw in engine.asked:
            peer.session.send(raw)
        engine.asked.clear()

    def result(self, engine: Engine, peer: Peer, result: Result, raw: bytes) -> None:
        """An engine is through with a command."""
        if result.engine != engine.id:
            raise WireError(reason=f"engine {engine.id} speaks for engine {result.engine}")
        if result.status != "unknown":
            engine.queue.done(result.id)
        elif result.id in engine.queue:
            return  # sent again since it was asked for: there will be a result
        route = self._routes.get(result.id)
        if route is not None and self._pass_on(result, raw, peer, route.owners):
            self._heard(route, result)

    def event(self, event: Event, peer: Peer, raw: bytes) -> None:
        """A running command gave out something."""
        route = self._routes.get(event.id)
        if route is not None:
            self._pass_on(event, raw, peer, [owner for owner in route.owners if owner.kind != "engine"])

    def engine_died(self, engine: Engine, cause: str, output: str, running: str = "") -> None:
        """Fail all that the engine had; its queue goes on for a successor.

        `running`: id of what ran on it. Where that is not known, it was the
        first of its commands.
        """
        peer = self._engine_peers.pop(engine.id, None)
        commands = engine.queue.drain()
        ids = [command.id for command in commands]
        count = ids.index(running) + 1 if running in ids else int(not running)
        self._finish(engine, commands[:count], died(engine.id, cause, output))
        # Of thousands, only the one that ran says what the process said.
        self._finish(engine, commands[count:], died(engine.id, f"{cause}, before it ran this command"))
        self._results_gone([engine], cause)
        if peer is not None:
            self.client_gone(peer)
            peer.end()

    def engines_lost(self, engines: Sequence[Engine], cause: str) -> None:
        """Fail all that was meant for engines of an earlier controller: they did not come."""
        for engine in engines:
            commands = engine.queue.drain()
            self._finish(engine, commands, died(engine.id, cause))
        self._results_gone(engines, cause)

    def _results_gone(self, engines: Sequence[Engine], cause: str) -> None:
        """Nobody need wait for what these engines knew."""
        by_id = {engine.id: engine for engine in engines}
        for id, targets in [(id, route.targets & by_id.keys()) for id, route in self._routes.items()]:
            for target in targets:
                failure = died(target, f"{cause}, and its results are gone with it")
                self._finish(by_id[target], [Command(id, "", "", b"")], failure)
        for engine in engines:
            engine.asked.clear()

    # -- blobs ------------------------------------------------------------------------------

    def chunk(self, source: Peer, chunk: Chunk, raw: bytes) -> None:
        """Bulk bytes from a peer."""
        self.blobs.chunk(source, chunk, raw)

    def grant(self, receiver: Peer, grant: Grant) -> None:
        """A peer took bulk bytes."""
        self.blobs.grant(receiver, grant)

    # -- clients that leave --------------------------------------------------------------------

    def client_gone(self, client: Peer) -> None:
        """Nothing is to be sent to this client, or engine, any more."""
        self.blobs.gone(client)
        for id, route in list(self._routes.items()):
            if client in route.owners:
                route.owners.remove(client)
                if not route.owners:
                    self._drop_route(id)

    # -- inside -------------------------------------------------------------------------------------

    def refuse(self, client: Peer, id: str, target: int, op: str, failure: RemoteFailure) -> None:
        """Answer a command that never reached an engine."""
        client.send(Result(id, target, op, "error", 0.0, self._now(), 0, (encode_failure(failure),)))

    def _engine(self, target: int) -> Engine | None:
        engine = self._registry.get(target)
        if engine is None and self._returning():
            engine = self._registry.await_return(target)
        return engine

    def _is_one(self, peer: Peer, targets: Collection[int]) -> bool:
        """Whether `peer` is one of the engines with these ids."""
        engine = self._registry.by_uuid(peer.key)
        return engine is not None and engine.id in targets and self._engine_peers.get(engine.id) is peer

    def _route(self, id: str, owner: Peer | None) -> Route:
        route = self._routes.get(id)
        if route is None:
            route = self._routes[id] = Route([])
        if owner is not None and owner not in route.owners:
            route.owners.append(owner)
        return route

    def _close_if_done(self, id: str) -> None:
        route = self._routes.get(id)
        if route is not None and not route.targets:
            self.blobs.close(route.blobs)
            self._drop_route(id)
            self._drop_source(route.source, route.giver)

    def _drop_source(self, id: str, giver: int) -> None:
        """Nobody takes the result any more that this command, if there is one, gives to engines."""
        if id:
            self.cancel((id,), (giver,), "TaskAborted")
            self._to_engines((giver,), encode(Forget((id,), (giver,))))

    def _drop_route(self, id: str) -> None:
        route = self._routes.pop(id)
        self._load.used -= route.size
        if self._takers.get(route.source) == id:
            del self._takers[route.source]

    def _pass_on(self, record: Result | Event, raw: bytes, engine: Peer, owners: Sequence[Peer]) -> bool:
        """Send what an engine said to those who can take it. Whether that is all of them."""
        takers = [owner for owner in owners if owner.wants(record)]
        if takers and BlobRef in map(type, record.parts):
            self.blobs.open(record.parts, f"{record.id}/{engine.key}/", engine, takers)
        for taker in takers:
            taker.post(raw)
        return len(takers) == len(owners)

    def _heard(self, route: Route, result: Result) -> None:
        """All owners have the result."""
        route.targets.discard(result.engine)
        self._close_if_done(result.id)

    def _make_up(self, result: Result) -> None:
        """A result that no engine knows."""
        route = self._routes.get(result.id)
        if route is not None:
            raw = encode(result)
            for owner in list(route.owners):
                owner.tell(raw, [(result.id, result.engine)])
            self._heard(route, result)

    def _finish(self, engine: Engine, commands: Collection[Command], failure: RemoteFailure) -> None:
        parts = (encode_failure(failure),) if commands else ()
        for command in commands:
            result = Result(command.id, engine.id, command.op, "error", 0.0, self._now(), 0, parts)
            self._make_up(result)

    def _to_engines(self, targets: Iterable[int], raw: bytes) -> None:
        for target in targets:
            peer = self._engine_peers.get(target)
            if peer is not None:
                peer.session.send(raw)


def _shortened(submit: Submit, raw: bytes) -> Callable[[int], bytes]:
    """What goes to each target: without the others, where they are many. A thousand engines would else be
    sent a million ids."""
    if len(submit.targets) <= FEW:
        return lambda target: raw
    if not submit.again:
        short = encode(replace(submit, targets=()))
        return lambda target: short
    uuids = dict(zip(submit.targets, submit.again, strict=False))
    return lambda target: encode(replace(submit, targets=(target,), again=(uuids.get(target, ""),)))


def died(engine: int, cause: str, output: str = "") -> RemoteFailure:
    """The failure of a command whose engine died."""
    shown = f"\nThe last lines of its stderr:\n{output}" if output else ""
    facts = {"engine": engine, "cause": cause, "output": output}
    text = str(EngineDied(engine=engine, cause=cause, output=shown))
    return RemoteFailure("EngineDied", text, facts=facts)


def _detached(raw: bytes) -> bytes:
    return encode(replace(decode_as(Submit, raw), detached=True))


def _gone(target: int) -> RemoteFailure:
    return died(target, "it left the cluster before it got this command")
