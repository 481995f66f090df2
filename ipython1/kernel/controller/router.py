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

#: Why commands may be taken out of queues: names of error classes.
REASONS = frozenset({"QueueCleared", "TaskAborted"})


@dataclass(slots=True)
class Route:
    """Who waits for the results of a command, and from which engines."""

    owners: list[Peer]
    size: int = 0  # what it takes of memory, about
    targets: set[int] = field(default_factory=set)
    blobs: Sequence[str] = ()


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
        self._engine_peers: dict[int, Peer] = {}
        self._load = load or Load()
        self.blobs = BlobRoutes()

    # -- from clients ---------------------------------------------------------------

    def submit(self, client: Peer, submit: Submit, raw: bytes) -> None:
        """Queue a command for each of its targets."""
        size = len(raw) + OVERHEAD * len(submit.targets)
        if not (submit.again or self._load.admits(size)):  # what is sent again engines may have
            for target in submit.targets:
                self.refuse(client, submit.id, target, submit.op, self._load.refusal())
            return
        route = self._route(submit.id, client)
        route.size += size
        self._load.used += size
        if any(isinstance(part, BlobRef) for part in submit.parts):
            receivers = [self._engine_peers[id] for id in submit.targets if id in self._engine_peers]
            prefix = f"{submit.id}/"
            opened = self.blobs.open(
                submit.parts, prefix, client, receivers, lambda peer: self._is_one(peer, submit.targets)
            )
            route.blobs = [*route.blobs, *opened]
        for target in submit.targets:
            engine = self._engine(target)
            if engine is None:
                self._table_now()  # else the client might send more there
                self.refuse(client, submit.id, target, submit.op, _gone(target))
            else:
                route.targets.add(target)
                engine.queue.put(Command(submit.id, submit.op, submit.label, raw, bool(submit.again)))
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

    def forget(self, record: Forget, raw: bytes) -> None:
        """Tell the engines that a client has these results."""
        self._to_engines(record.targets, raw)

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
            self._pass_on(event, raw, peer, route.owners)

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
        engine.asked.clear()
        asked_for = [
            Command(id, "", "", b"") for id, route in self._routes.items() if engine.id in route.targets
        ]
        self._finish(engine, asked_for, died(engine.id, f"{cause}, and its results are gone with it"))
        if peer is not None:
            self.blobs.gone(peer)
            peer.session.end()

    # -- blobs ------------------------------------------------------------------------------

    def chunk(self, source: Peer, chunk: Chunk, raw: bytes) -> None:
        """Bulk bytes from a peer."""
        self.blobs.chunk(source, chunk, raw)

    def grant(self, receiver: Peer, grant: Grant) -> None:
        """A peer took bulk bytes."""
        self.blobs.grant(receiver, grant)

    # -- clients that leave --------------------------------------------------------------------

    def client_gone(self, client: Peer) -> None:
        """Nothing is to be sent to this client any more."""
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

    def _is_one(self, peer: Peer, targets: Iterable[int]) -> bool:
        """Whether `peer` is one of the engines with these ids."""
        return any(self._engine_peers.get(target) is peer for target in targets)

    def _route(self, id: str, client: Peer) -> Route:
        route = self._routes.get(id)
        if route is None:
            route = self._routes[id] = Route([client])
        elif client not in route.owners:
            route.owners.append(client)
        return route

    def _close_if_done(self, id: str) -> None:
        route = self._routes.get(id)
        if route is not None and not route.targets:
            self.blobs.close(route.blobs)
            self._drop_route(id)

    def _drop_route(self, id: str) -> None:
        self._load.used -= self._routes.pop(id).size

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
