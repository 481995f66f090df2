"""One port for two protocols: the first bytes say which.

A Foolscap connection begins with ``GET /id/``, a TLS lane with `MAGIC`. What
is no beginning of `MAGIC` belongs to Foolscap, from the first byte on.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ipython1.kernel.wire.bounds import Complaints, Crowd, Guests

#: First bytes of a TLS lane; what follows is TLS.
MAGIC = b"ipython1 lane\r\n"
#: Seconds that a connection may take to say what it wants.
SNIFF_TIME = 10.0

log = Logger()


class Sniffing(Factory):  # type: ignore[misc]
    """Hands each connection to one of two factories, with all that it said.

    Parameters
    ----------
    clock : IReactorTime
    lanes, others : IProtocolFactory
        For connections that begin with `MAGIC`, which is left out, and for all others.
    complaints : Complaints
        Hears of those who do not say what they want.
    guests : Guests
        Counts them, until they have said it.
    """

    noisy = False

    def __init__(self, clock: Any, lanes: Any, others: Any, complaints: Complaints, guests: Guests) -> None:
        self.clock = clock
        self.lanes = lanes
        self.others = others
        self.complaints = complaints
        self.guests = guests
        #: Those that have not said what they want, or were told to go and are not gone.
        self.here: Crowd[Sniffer] = Crowd()

    def buildProtocol(self, addr: Any) -> Sniffer:
        """See `IProtocolFactory`."""
        return Sniffer(self, addr)

    def stop(self) -> Any:
        """End all that have not said what they want; a Deferred that fires when they are gone."""
        for sniffer in self.here:
            sniffer.transport.abortConnection()
        return self.here.empty()


class Sniffer(Protocol):  # type: ignore[misc]
    """A connection until it is clear what it is."""

    transport: Any

    def __init__(self, door: Sniffing, address: Any) -> None:
        self._door = door
        self._address = address
        self._heard = b""
        self._timer: Any = None

    def connectionMade(self) -> None:
        """Wait, but not for ever."""
        self._door.guests.admit(self, self.give_up)
        self._door.here.add(self)
        self._timer = self._door.clock.callLater(SNIFF_TIME, self.give_up, f"silent for {SNIFF_TIME:g} s")

    def dataReceived(self, data: bytes) -> None:
        """Decide as soon as it is clear."""
        self._heard += data
        if self._heard.startswith(MAGIC):
            self._become(self._door.lanes, self._heard[len(MAGIC) :])
        elif not MAGIC.startswith(self._heard):
            self._become(self._door.others, self._heard)

    def give_up(self, why: str) -> None:
        """End the connection."""
        self._door.complaints.say("{peer} did not say what it wants: {why}", peer=self._address, why=why)
        self._end()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        """It left."""
        self._end()
        self._door.here.discard(self)

    def _become(self, factory: Any, rest: bytes) -> None:
        self._end()
        self._door.here.discard(self)
        protocol = factory.buildProtocol(self._address)
        self.transport.protocol = protocol  # hears from now on what the transport has to say
        protocol.makeConnection(self.transport)
        if rest:
            protocol.dataReceived(rest)

    def _end(self) -> None:
        self._door.guests.discard(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
