"""The controller's end of lanes: the tickets that are out, and those who come with one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILinkSink
from ipython1.kernel.wire.bounds import Complaints, Crowd, Guests
from ipython1.kernel.wire.lanes import COUNT, TICKET_SIZE, LaneLink, UnixLane
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.tlslane import TLSLane, tls_server

#: Seconds that a ticket is good for.
TICKET_TIME = 20.0
#: Lanes that may wait to be accepted: who finds no room takes TLS instead, which costs more.
BACKLOG = 1024
#: Seconds that the handshake of a lane may take, TLS included.
HANDSHAKE_TIME = 10.0

log = Logger()


@dataclass(eq=False)
class _Ticket:
    sink: ILinkSink  # whose session may move
    expiry: Any
    lane: LaneLink | None = None  # where it was shown


class LaneServer:
    """Accepts lanes from those who hold a ticket.

    Parameters
    ----------
    reactor : IReactorUNIX and IReactorTime
    complaints : Complaints
        Hears of those who hold none.
    guests : Guests
        Counts visitors until their session has moved.
    dead_after : float
        As for `LaneLink`.
    """

    def __init__(
        self, reactor: Any, complaints: Complaints, guests: Guests, dead_after: float = DEAD_LINK_AFTER
    ) -> None:
        #: The Unix socket, where there is one.
        self.path: Path | None = None
        #: Whether there are TLS lanes.
        self.tls = False
        self._reactor = reactor
        self._complaints = complaints
        self._guests = guests
        self._dead_after = dead_after
        self._tickets: dict[bytes, _Ticket] = {}
        self._visits: Crowd[_Visit] = Crowd()
        self._port: Any = None

    def listen(self, path: Path) -> None:
        """Open the Unix socket `path`, in a folder that only this user can enter."""
        path.unlink(missing_ok=True)  # of a controller that was killed
        factory = Factory.forProtocol(partial(self._visit, UnixLane))
        factory.noisy = False
        self._port = self._reactor.listenUNIX(os.fspath(path), factory, backlog=BACKLOG, mode=0o600)
        self.path = path

    def tls_factory(self, certificate: bytes) -> Any:
        """The protocol factory of TLS lanes, which are offered from now on."""
        self.tls = True
        return tls_server(certificate, partial(self._visit, TLSLane))

    def ticket(self, sink: ILinkSink) -> bytes:
        """A ticket that moves the session behind `sink` to a lane."""
        token = secrets.token_bytes(TICKET_SIZE)
        self._tickets[token] = _Ticket(sink, self._reactor.callLater(TICKET_TIME, self.withdraw, token))
        return token

    def withdraw(self, token: bytes) -> None:
        """A ticket is good no longer; a lane where it was shown ends, unless the session has moved."""
        ticket = self._tickets.pop(token, None)
        if ticket is None:
            return
        if ticket.expiry.active():
            ticket.expiry.cancel()
        if ticket.lane is not None:
            ticket.lane.abort("the ticket was withdrawn")

    def show(self, token: bytes, lane: LaneLink) -> ILinkSink:
        """Whose session the ticket is for. It cannot be shown again.

        Raises
        ------
        WireError
            There is no such ticket, or it was shown before.
        """
        ticket = self._tickets.get(token)
        if ticket is None or ticket.lane is not None:
            raise WireError(reason="no such ticket")
        ticket.lane = lane
        return ticket.sink

    def used(self, token: bytes) -> None:
        """The session is about to move: the ticket has done its duty."""
        self._tickets.pop(token).expiry.cancel()

    def stop(self) -> Deferred[None]:
        """Close the socket and every lane; fires when nothing of them is left."""
        for token in list(self._tickets):
            self.withdraw(token)
        closed = [maybeDeferred(self._port.stopListening)] if self._port is not None else []
        for visit in self._visits:
            visit.close()
        return DeferredList([*closed, self._visits.empty()]).addCallback(lambda _: None)

    def _visit(self, kind: type[LaneLink]) -> LaneLink:
        make = partial(kind, dead_after=self._dead_after)
        return _Visit(self, self._reactor, make, self._visits, self._complaints, self._guests).lane


class _Visit:
    """Leads one incoming lane through the handshake; an `Owner`."""

    def __init__(
        self,
        server: LaneServer,
        clock: Any,
        make: Callable[[Any, _Visit], LaneLink],
        visits: Crowd[_Visit],
        complaints: Complaints,
        guests: Guests,
    ) -> None:
        self._server = server
        self._guests = guests
        self._visits = visits
        self._complaints = complaints
        self._token = b""
        self._sink: ILinkSink | None = None
        self._moved = False
        self.lane = make(clock, self)
        self._timer = clock.callLater(HANDSHAKE_TIME, self._too_late)
        visits.add(self)
        guests.admit(self, self.lane.abort)

    def close(self) -> None:
        """End the lane, politely where it is in use."""
        if self._moved:
            self.lane.close()
        else:
            self.lane.abort("the controller stops")

    def opened(self, lane: LaneLink) -> None:
        """See `Owner`; the visitor speaks first."""

    def said(self, lane: LaneLink, frame: bytes) -> None:
        """See `Owner`."""
        if self._sink is None:
            self._sink = self._server.show(frame, lane)
            self._token = frame
            lane.send(COUNT.pack(self._sink.received))
            return
        if len(frame) != COUNT.size:
            raise WireError(reason="not a number")
        self._server.used(self._token)
        self._timer.cancel()
        self._guests.discard(self)
        self._moved = True
        lane.begin(self._sink)
        lane.send(b"")  # before any batch
        self._sink.attach(lane, COUNT.unpack(frame)[0])

    def ended(self, lane: LaneLink, why: str) -> None:
        """See `Owner`."""
        if self._timer.active():
            self._timer.cancel()
        if not self._moved:
            self._server.withdraw(self._token)
            peer = lane.transport.getPeer()
            self._complaints.say("{peer} did not get onto a lane: {why}", peer=peer, why=why)
        self._guests.discard(self)
        self._visits.discard(self)

    def _too_late(self) -> None:
        self.lane.abort(f"not within {HANDSHAKE_TIME:g} s")
