"""From targets to queues, and from engines back to the clients that wait.

Soft state: everything here can be lost. Clients send again what is
unresolved, engines answer again what they know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ipython1.kernel import error as errors
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.peers import Peer
from ipython1.kernel.controller.queue import Command
from ipython1.kernel.controller.registry import Engine, Registry
from ipython1.kernel.error import EngineDied, IPython1Error, RemoteFailure
from ipython1.kernel.wire.records import (
    Cancel,
    Chunk,
    Departed,
    Event,
    Fetch,
    Forget,
    Grant,
    Interrupt,
    Result,
    Submit,
    encode,
    encode_failure,
)


@dataclass(slots=True)
class Route:
    """Who waits for the results of a command, and from which engines."""

    owners: list[Peer]
    targets: set[int] = field(default_factory=set)
    blobs: list[str] = field(default_factory=list)


class Router:
    """Carries commands to engines and results to clients.

    Parameters
    ----------
    registry : Registry
    now : callable
        Wall-clock time in seconds.
    returning : callable
        Whether engines unknown yet may still come back to this controller.
    """

    def __init__(self, registry: Registry, now: Callable[[], float], returning: Callable[[], bool]) -> None:
        self._registry = registry
        self._now = now
        self._returning = returning
        self._routes: dict[str, Route] = {}
        self._engine_peers: dict[int, Peer] = {}
        self.blobs = BlobRoutes()

    # -- from clients ---------------------------------------------------------------

    def submit(self, client: Peer, submit: Submit, raw: bytes) -> None:
        """Queue a command for each of its targets."""
        route = self._route(submit.id, client)
        receivers = []
        for target in submit.targets:
            engine = self._registry.get(target)
            if engine is None and self._returning():
                engine = self._registry.await_return(target)
            if engine is None:
                self.refuse(client, submit.id, target, submit.op, _gone(target))
                continue
            route.targets.add(target)
            if target in self._engine_peers:
                receivers.append(self._engine_peers[target])
            engine.queue.put(Command(submit.id, submit.op, submit.label, raw))
        route.blobs += self.blobs.open(submit.parts, client, receivers)
        self._close_if_done(submit.id)

    def fetch(self, client: Peer, fetch: Fetch, raw: bytes) -> None:
        """A client wants the results of a command it, or another one, sent."""
        route = self._route(fetch.id, client)
        for target in fetch.targets:
            engine = self._registry.get(target)
            peer = self._engine_peers.get(target)
            route.targets.add(target)
            if engine is not None and engine.queue.waits(fetch.id):
                continue  # its result will come
            if peer is not None:
                peer.session.send(raw)
            else:
                result = Result(fetch.id, target, "", "unknown", 0.0, 0.0, 0, ())
                self._deliver(result, encode(result))

    def forget(self, record: Forget, raw: bytes) -> None:
        """Tell the engines that a client has these results."""
        self._to_engines(record.targets, raw)

    def cancel(self, ids: tuple[str, ...], targets: Iterable[int], reason: str) -> int:
        """Take commands out of queues (all where `ids` is empty); returns how many had not started."""
        wanted = set(ids)
        count = 0
        for target in targets:
            engine = self._registry.get(target)
            if engine is None:
                continue
            gone = engine.queue.cancel(lambda command: not wanted or command.id in wanted)
            for command in gone:
                self._finish(engine, command, RemoteFailure(reason, _text(reason)))
            running = engine.queue.running
            handed = [
                command.id
                for command in engine.queue.handed(lambda command: not wanted or command.id in wanted)
                if command is not running
            ]
            count += len(gone) + len(handed)
            # The head may not have started either: only the engine knows.
            also = running is not None and (not wanted or running.id in wanted)
            if handed or also:
                self._to_engines((target,), encode(Cancel(ids, (target,), reason)))
        return count

    def cancel_client(self, client: str) -> None:
        """Drop what a client that is gone for good has queued."""
        for engine in self._registry:
            for command in engine.queue.cancel(lambda command: command.client == client):
                self._finish(engine, command, RemoteFailure("TaskAborted", _text("TaskAborted")))
            self._to_engines((engine.id,), encode(Departed(client)))

    def interrupt(self, record: Interrupt, raw: bytes) -> None:
        """Interrupt what runs; a command named by id that has not started ends as well."""
        for target in record.targets:
            engine = self._registry.get(target)
            if engine is None:
                continue
            if record.id:
                for command in engine.queue.cancel(lambda command: command.id == record.id):
                    self._finish(engine, command, RemoteFailure("KeyboardInterrupt", "before it ran"))
            self._to_engines((target,), raw)

    # -- from engines -------------------------------------------------------------------

    def engine_ready(self, engine: Engine, peer: Peer, held: Iterable[tuple[str, str, str]]) -> None:
        """An engine registered, and has the commands `held` (id, op, label) already."""
        self._engine_peers[engine.id] = peer
        for id, op, label in held:
            engine.queue.adopt(Command(id, op, label, b""))
        engine.queue.open(peer.session.send)

    def result(self, engine: Engine, peer: Peer, result: Result, raw: bytes) -> None:
        """An engine is through with a command."""
        if result.status != "unknown":
            engine.queue.done(result.id)
        self._open_blobs(result, peer)
        self._deliver(result, raw)

    def event(self, peer: Peer, event: Event, raw: bytes) -> None:
        """A running command gave out something."""
        self._open_blobs(event, peer)
        route = self._routes.get(event.id)
        if route is not None:
            for owner in list(route.owners):
                owner.post(raw)

    def engine_died(self, engine: Engine, cause: str, output: str) -> None:
        """Fail all that the engine had; its queue goes on for a successor."""
        peer = self._engine_peers.pop(engine.id, None)
        commands = engine.queue.drain()
        for i, command in enumerate(commands):
            what = cause if i == 0 else f"{cause}, before it ran this command"
            self._finish(engine, command, died(engine.id, what, output))
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
                    del self._routes[id]

    # -- inside -------------------------------------------------------------------------------------

    def refuse(self, client: Peer, id: str, target: int, op: str, failure: RemoteFailure) -> None:
        """Answer a command that never reached an engine."""
        client.send(Result(id, target, op, "error", 0.0, self._now(), 0, (encode_failure(failure),)))

    def _route(self, id: str, client: Peer) -> Route:
        route = self._routes.setdefault(id, Route([]))
        if client not in route.owners:
            route.owners.append(client)
        return route

    def _close_if_done(self, id: str) -> None:
        route = self._routes.get(id)
        if route is not None and not route.targets:
            self.blobs.close(route.blobs)
            del self._routes[id]

    def _open_blobs(self, record: Result | Event, peer: Peer) -> None:
        route = self._routes.get(record.id)
        if route is not None:
            self.blobs.open(record.parts, peer, route.owners)

    def _deliver(self, result: Result, raw: bytes) -> None:
        route = self._routes.get(result.id)
        if route is None:
            return
        for owner in list(route.owners):
            owner.post(raw)
        route.targets.discard(result.engine)
        self._close_if_done(result.id)

    def _finish(self, engine: Engine, command: Command, failure: RemoteFailure) -> None:
        result = Result(
            command.id, engine.id, command.op, "error", 0.0, self._now(), 0, (encode_failure(failure),)
        )
        self._deliver(result, encode(result))

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


def _gone(target: int) -> RemoteFailure:
    return died(target, "it left the cluster before it got this command")


def _text(reason: str) -> str:
    cls = getattr(errors, reason, IPython1Error)
    return str(cls())
