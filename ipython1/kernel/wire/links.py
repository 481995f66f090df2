"""Links over Foolscap, and how to dial the controller's doors.

Behind each FURL stands a door. Whoever holds the FURL knocks, with a `Hello`
and a link of its own; the door answers with a `Welcome` and its own link, or
with a `Refusal`. From then on each side hands batches to the other's link.
All that crosses Foolscap is bytes, and the references to the two links.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Container, Generator
from functools import partial
from typing import Any

from foolscap.api import (
    ChoiceOf,
    DeadReferenceError,
    Referenceable,
    RemoteException,
    RemoteInterface,
    TupleOf,
)
from foolscap.constraint import ByteStringConstraint
from foolscap.pb import Tub
from foolscap.tokens import Violation
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, inlineCallbacks, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import BadFURL, ConnectionFailed, NotAllowed, WireError
from ipython1.kernel.interfaces import IDialer, ILink, ILinkSink
from ipython1.kernel.wire.attempts import (
    HUNG_UP,
    OTHER_CERTIFICATE,
    STRANGER,
    Attempts,
    in_words,
    unreachable,
)
from ipython1.kernel.wire.bounds import Crowd
from ipython1.kernel.wire.lanes import KINDS, TICKET_SIZE
from ipython1.kernel.wire.moving import Move, Trust, Way, tls_way, unix_way
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER, LONGEST, SHORTEST
from ipython1.kernel.wire.session import BATCH_LIMIT
from ipython1.kernel.wire.tlslane import certificate_of
from ipython1.kernel.wire.tubs import make_certificate, make_tub, reactor, split_furl
from ipython1.kernel.wire.tunnels import Tunnel

#: Bytes of one argument at most: a batch, and the numbers around its records.
ARGUMENT_LIMIT = BATCH_LIMIT + 64 * 1024
#: Seconds in which a tunnel says why a connection through it failed.
WORDS_TIME = 0.5
BYTES = ByteStringConstraint(ARGUMENT_LIMIT)
SHORT = ByteStringConstraint(1024)

log = Logger()


class RILink(RemoteInterface):
    """One end of a link, as the other end sees it."""

    __remote_name__ = "ipython1.RILink"

    def deliver(batch=BYTES):  # type: ignore[no-untyped-def]  # noqa: N805
        """Take a batch; called with ``callRemoteOnly``, there is no answer."""
        return None

    def offer_lane(path=SHORT, tls=bool, ticket=SHORT):  # type: ignore[no-untyped-def]  # noqa: N805
        """A faster way, see `lanes`; from the controller, with ``callRemoteOnly``.

        The path of a Unix socket, or nothing, and whether this port takes TLS lanes.
        """
        return None


class RIDoor(RemoteInterface):
    """What a FURL names."""

    __remote_name__ = "ipython1.RIDoor"

    def knock(hello=BYTES, peer=RILink):  # type: ignore[no-untyped-def]  # noqa: N805
        """An encoded `Welcome` and a link, or a `Refusal` and None; and after how many silent seconds
        a link counts as lost."""
        return TupleOf(BYTES, ChoiceOf(RILink, None), float)


# -- both sides ------------------------------------------------------------------


@implementer(RILink, ILink)  # type: ignore[misc]
class FoolscapLink(Referenceable):  # type: ignore[misc]
    """Both ends of a link are one of these.

    Its sink hears ``link_lost`` exactly once after it was connected, whoever ended it.
    """

    def __init__(self, sink: ILinkSink | None = None, on_lost: Callable[[], None] = lambda: None) -> None:
        #: Who hears what comes in; batches that come before there is one are dropped.
        self.sink = sink
        #: Called, maybe twice, when the link is closed here or lost.
        self.at_end: Callable[[], None] = lambda: None
        #: Fires with the path, whether there are TLS lanes, and the ticket, if a lane is offered.
        self.offered: Deferred[tuple[str, bool, bytes]] = Deferred()
        self._on_lost = on_lost
        self._remote: Any = None
        self._held = False
        self._closed = False

    def connect(self, remote: Any) -> None:
        """Send to `remote`, the other end of the link, from now on."""
        self._remote = remote
        remote.notifyOnDisconnect(self._lost)

    @property
    def open(self) -> bool:
        """Whether it is of use."""
        return self._remote is not None and not self._closed

    @property
    def transport(self) -> Any:
        """The connection, while the link lasts."""
        return self._remote.tracker.broker.transport

    def send(self, batch: bytes) -> None:
        """See `ILink`."""
        if len(batch) > ARGUMENT_LIMIT:
            log.error("a batch of {size} bytes is too large for a link", size=len(batch))
            self.close()
        elif self._remote is not None:
            # Foolscap takes plain bytes only, no subclass of it.
            self._remote.callRemoteOnly("deliver", bytes(batch))

    def close(self) -> None:
        """See `ILink`. What was sent before still goes out, if the peer takes it soon."""
        if self._held:
            return
        self._closed = True
        self.at_end()
        if self._remote is not None and self._remote.isConnected():
            self._remote.tracker.broker.shutdown(Failure(ConnectionDone("the link was closed")))

    def hold(self) -> None:
        """Stay open though told to close, until `release`."""
        self._held = True

    def release(self) -> None:
        """Close."""
        self._held = False
        self.close()

    def remote_deliver(self, batch: bytes) -> None:
        """A batch from the peer."""
        if self.sink is None or self._closed:
            return
        try:
            self.sink.batch_received(batch)
        except WireError as error:
            log.warn("a link is closed: {error}", error=error)
            self.close()
        except Exception:  # noqa: BLE001 -- Foolscap would drop it silently
            log.failure("a batch was not handled, its link is closed")
            self.close()

    def offer_lane(self, path: str, tls: bool, ticket: bytes) -> None:
        """Invite the peer to move to a lane."""
        self._remote.callRemoteOnly("offer_lane", os.fsencode(path), tls, ticket)

    def remote_offer_lane(self, path: bytes, tls: bool, ticket: bytes) -> None:
        """Keep it; it may come before the answer to the knock."""
        if not self.offered.called and len(ticket) == TICKET_SIZE:
            self.offered.callback((os.fsdecode(path), tls, ticket))

    def _lost(self) -> None:
        sink, self.sink = self.sink, None
        self._remote = None
        self._held = False
        self.at_end()
        self._on_lost()
        if sink is not None:
            sink.link_lost(self)


# -- the side that dials -----------------------------------------------------------


@implementer(IDialer)
class FoolscapDialer:
    """Opens links to whoever the FURL names, each over a connection of its own.

    Dialling again replaces the link there was; the controller sees the same certificate.

    Parameters
    ----------
    furl : str
        Text of a FURL. Where it is not one, `dial` says so.
    connect_timeout : float
        Seconds from dialling to the answer.
    lanes : container of str
        Which of the `lanes.KINDS` a session may move to.
    tunnel : Tunnel, optional
        Leads to the places of the FURL. It is open; closing this closes it.
    """

    def __init__(
        self,
        furl: str,
        *,
        connect_timeout: float = 10.0,
        lanes: Container[str] = KINDS,
        tunnel: Tunnel | None = None,
    ) -> None:
        self._furl = furl.strip()
        self._lanes = lanes
        self._trust = Trust(reactor)
        self._moves: Crowd[Move] = Crowd()
        self._timeout = connect_timeout
        self._dead_after = DEAD_LINK_AFTER  # until the controller has said how long
        self._certificate = make_certificate()
        self._dialling: dict[Tub, Deferred[Any]] = {}
        self._running: set[Tub] = set()
        self._stopping: dict[Tub, Deferred[None]] = {}
        self._closed = False
        self._bad: BadFURL | None = None
        self._tunnel = tunnel
        self._places: list[str] = []
        self._attempts: Attempts | None = None
        #: Who is dialled, as 'host:port'.
        self.address = "nowhere"
        try:
            _, self._places, _ = split_furl(furl)
        except BadFURL as error:
            self._bad = error
        else:
            self.address = self._seen(self._places[0])

    def _seen(self, place: str) -> str:
        return place if self._tunnel is None else f"{place} through {self._tunnel.gateway}"

    def trouble(self) -> list[tuple[str, str]]:
        """Of the last dial, each place and why the controller was not found there, as far as is known."""
        return [] if self._attempts is None else self._in_tunnel(self._attempts.reasons())

    def dial(self, hello: bytes, sink: ILinkSink) -> Deferred[tuple[bytes, ILink | None]]:
        """See `IDialer`."""
        if self._bad is not None:
            return fail(self._bad)
        if self._closed:
            return fail(ConnectionFailed(address=self.address, reason="the connection was closed here"))
        # A Tub for each connection: a new one to the controller is never mistaken
        # for a duplicate of one that it does not know to be lost.
        attempts = Attempts(reactor, self._places, self._tunnel.routes if self._tunnel else {})
        self._attempts = attempts
        tub = make_tub(self._certificate, self._dead_after, attempts)
        tub.startService()
        self._running.add(tub)
        link = FoolscapLink(sink, lambda: self._drop(tub))
        deferred: Deferred[tuple[bytes, ILink | None]] = self._knock(tub, bytes(hello), link)
        if not deferred.called:
            self._dialling[tub] = deferred

        def ended(result: Any) -> Any:
            self._dialling.pop(tub, None)
            if not isinstance(result, Failure):
                link.offered.addCallback(self._move, link, sink)
                return result
            self._drop(tub)
            if self._tunnel is None:
                return Failure(self._explain(result.value, attempts))
            # What ssh has to say of it comes beside the connection, and maybe later.
            return deferLater(reactor, WORDS_TIME, lambda: Failure(self._explain(result.value, attempts)))

        # Cancelled by us for any reason: `_explain` tells which.
        return deferred.addTimeout(self._timeout, reactor, lambda result, _: result).addBoth(ended)

    @inlineCallbacks
    def _knock(
        self, tub: Tub, hello: bytes, link: FoolscapLink
    ) -> Generator[Deferred[Any], Any, tuple[bytes, ILink | None]]:
        try:
            door = yield tub.getReference(self._furl)
        except RemoteException:
            raise self._not_allowed() from None  # the name is unknown there
        self.address = self._seen(tub.attempts.won())
        try:
            answer, remote, dead_after = yield door.callRemote("knock", hello, link)
        except Violation:
            raise self._not_allowed() from None  # it names something, but no door
        except RemoteException:
            raise self._failed("it could not answer; its log says why") from None
        if remote is None:
            self._drop(tub)
            return answer, None
        if SHORTEST <= dead_after <= LONGEST:
            self._dead_after = dead_after
            remote.tracker.broker.pulse.start(dead_after)
        link.connect(remote)
        return answer, link

    def close(self) -> Deferred[None]:
        """See `IDialer`."""
        self._closed = True
        for deferred in list(self._dialling.values()):
            deferred.cancel()
        for move in self._moves:
            move.close()
        for tub in list(self._running):
            self._drop(tub)
        ends = [after(end) for end in self._stopping.values()]
        return DeferredList([*ends, self._moves.empty()]).addCallback(lambda _: self._close_tunnel())

    def _close_tunnel(self) -> Deferred[None]:
        return succeed(None) if self._tunnel is None else deferToThread(self._tunnel.close)

    def _move(self, offer: tuple[str, bool, bytes], link: FoolscapLink, sink: ILinkSink) -> None:
        """Try to get the session to a lane."""
        if not link.open:
            return
        path, tls, ticket = offer
        ways: list[Way] = []
        if path and "unix" in self._lanes:
            ways.append(partial(unix_way, path))
        if tls and "tls" in self._lanes and self._trust:
            peer, pinned = link.transport.getPeer(), certificate_of(link.transport)
            if pinned:
                ways.append(partial(tls_way, peer, pinned))
        if not ways:
            return

        def ended(move: Move) -> None:
            self._moves.discard(move)
            if move.tls_since is not None:
                self._trust.ended(move.tls_since)
            if not move.settled and not self._closed:
                log.info("no lane to {address}: {why}", address=self.address, why=move.why)

        move = Move(reactor, link, sink, ticket, ways, ended, self._dead_after)
        link.at_end = move.old_lost
        self._moves.add(move)
        move.start()

    def _drop(self, tub: Tub) -> None:
        if tub not in self._running:
            return
        self._running.remove(tub)
        end: Deferred[None] = Deferred()
        self._stopping[tub] = end

        def stopped(result: Any) -> None:
            if isinstance(result, Failure):
                log.failure("a Tub did not stop", result)
            del self._stopping[tub]
            end.callback(None)

        tub.stopService().addBoth(stopped)

    def _failed(self, reason: str) -> ConnectionFailed:
        return ConnectionFailed(address=self.address, reason=reason)

    def _not_allowed(self) -> NotAllowed:
        return NotAllowed(what="connecting to this controller", address=self.address)

    def _explain(self, error: BaseException | None, attempts: Attempts) -> ConnectionFailed:
        """What went wrong, in our words."""
        if isinstance(error, ConnectionFailed):
            return error
        if self._closed:
            return self._failed("the connection was closed here")
        late = isinstance(error, CancelledError)
        if not attempts.over:
            reasons = attempts.reasons(self._timeout if late else 0.0)
            return unreachable(self._in_tunnel(reasons), socket.gethostname())
        if late:
            return self._failed(f"no answer within {self._timeout:g} s")
        if error is None or isinstance(error, DeadReferenceError):
            return self._failed(HUNG_UP)
        return self._failed(in_words(error))

    def _in_tunnel(self, reasons: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The reasons; a tunnel knows better why nobody answers behind it."""
        said = self._tunnel and self._tunnel.words()
        known = (OTHER_CERTIFICATE, STRANGER)
        return [(place, said if said and reason not in known else reason) for place, reason in reasons]


def after(event: Deferred[None]) -> Deferred[None]:
    """A Deferred of its own for each who waits for `event`."""
    waiter: Deferred[None] = Deferred()
    event.addCallback(lambda _: waiter.callback(None))
    return waiter
