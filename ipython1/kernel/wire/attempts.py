"""One dial: the places of a FURL are tried one after the other, and what came of each is kept.

The next one is tried when the one before has failed, or has not answered for
`STAGGER` seconds; so a place that swallows packets delays the others by that
much only, and the first one that proves to be the controller is taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foolscap.ipb import IConnectionHintHandler
from foolscap.tokens import BananaError, NegotiationError, RemoteNegotiationError
from OpenSSL import SSL
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
    UnknownHostError,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import ConnectionFailed, NobodyListening, Unreachable, WrongController

#: Seconds that a place has for itself before the next one is tried too.
STAGGER = 0.25

REFUSED = "connection refused"
OTHER_CERTIFICATE = "its certificate differs: the FURL is of another or an older cluster"
STRANGER = "something else answers there"
HUNG_UP = "it hung up during the handshake"

_UNKNOWN_TUB = ("unknown TubID", "TubID mismatch", "wrong Tub", "must use a certificate")


@implementer(IConnectionHintHandler)
class Attempts:
    """Leads Foolscap through the places of a FURL, and keeps what came of each.

    Parameters
    ----------
    clock : IReactorTime
    places : sequence of str
        ``host:port`` each, in the order in which they are tried.
    routes : mapping
        The Unix socket to dial instead, for those that are reached through a tunnel.
    """

    def __init__(self, clock: Any, places: Sequence[str], routes: Mapping[str, str] | None = None) -> None:
        self.places = tuple(places)
        self._clock = clock
        self._routes = routes or {}
        self._began = clock.seconds()
        self._waiting: dict[str, Deferred[None]] = {}
        self._connected: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._timer: Any = None
        #: Whether one of them was the controller.
        self.over = False

    def hint_to_endpoint(self, hint: str, reactor: Any, update_status: Any) -> tuple[Any, str]:
        """What connects to `hint`; unlike Foolscap's own, it asks no thread to resolve an address."""
        place = place_of(hint)
        host, port = place.rsplit(":", 1)
        host = host.strip("[]")
        found: Any
        if place in self._routes:
            found = UNIXClientEndpoint(reactor, self._routes[place])
        elif isIPAddress(host):
            found = TCP4ClientEndpoint(reactor, host, int(port))
        elif isIPv6Address(host):
            found = TCP6ClientEndpoint(reactor, host, int(port))
        else:
            found = HostnameEndpoint(reactor, host, int(port))
        return _InTurn(self, place, found), host

    def describe(self) -> str:
        """See `IConnectionHintHandler`."""
        return "tcp"

    def turn(self, place: str) -> Deferred[None]:
        """Fires when it is to be tried."""
        if place not in self.places[1:]:
            return succeed(None)
        waiter: Deferred[None] = Deferred(lambda _: self._leave(place))
        self._waiting[place] = waiter
        if self._timer is None:
            self._timer = self._clock.callLater(STAGGER, self._next)
        return waiter

    def connected(self, place: str, transport: Any) -> None:
        """Something listens there."""
        self._connected.add(place)
        if place in self._routes:
            transport.setTcpNoDelay = lambda enabled: None  # Foolscap calls it; before Twisted 24.11 it fails

    def failed(self, hint: str, error: BaseException) -> None:
        """There is no way to the controller."""
        place = place_of(hint)
        if place not in self._reasons and not isinstance(error, (CancelledError, ConnectingCancelledError)):
            self._reasons[place] = in_words(error)
            if self._waiting:
                self._next()

    def reasons(self, within: float = 0.0) -> list[tuple[str, str]]:
        """Each place, and why there is no controller.

        What is not decided is late: it had `within` seconds, or the time since the beginning.
        """
        late = f"{within or round(self._clock.seconds() - self._began):g} s"
        found = []
        for place in self.places:
            silent = f"no answer within {late}" if place in self._connected else f"timed out after {late}"
            found.append((place, self._reasons.get(place, silent)))
        return found

    def won(self) -> str:
        """The place that the controller was found at."""
        self.over = True
        good = (each for each in self.places if each in self._connected and each not in self._reasons)
        return next(good, self.places[0])

    def _next(self) -> None:
        if self._timer.active():
            self._timer.cancel()
        place = next(each for each in self.places if each in self._waiting)
        waiter = self._waiting.pop(place)
        self._timer = self._clock.callLater(STAGGER, self._next) if self._waiting else None
        waiter.callback(None)

    def _leave(self, place: str) -> None:
        self._waiting.pop(place, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None


@implementer(IStreamClientEndpoint)
class _InTurn:
    """An endpoint that waits for its turn."""

    def __init__(self, attempts: Attempts, place: str, endpoint: Any) -> None:
        self.endpoint = endpoint
        self._attempts = attempts
        self._place = place

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803
        """See `IStreamClientEndpoint`."""

        def connected(protocol: Any) -> Any:
            self._attempts.connected(self._place, protocol.transport)
            return protocol

        def failed(failure: Failure) -> Failure:
            self._attempts.failed(self._place, failure.value or ConnectError())
            return failure

        turn: Deferred[Any] = self._attempts.turn(self._place)
        turn.addCallback(lambda _: self.endpoint.connect(protocolFactory))
        return turn.addCallbacks(connected, failed)


def place_of(hint: str) -> str:
    """``host:port``, of what Foolscap calls a connection hint."""
    host, port = hint.removeprefix("tcp:").rsplit(":", 1)
    return f"{host}:{int(port)}"


def in_words(error: BaseException) -> str:
    """What went wrong at one place; which exception says what was read in Foolscap's source."""
    known: Sequence[tuple[Any, str | Callable[[Any], str]]] = (
        (ConnectionRefusedError, REFUSED),
        ((TimeoutError, TCPTimedOutError), "timed out"),
        (NoRouteError, "no route to that host"),
        ((DNSLookupError, UnknownHostError), "no host of that name is known here"),
        (ConnectError, _system_words),
        ((ConnectionDone, ConnectionLost), HUNG_UP),
        ((NegotiationError, RemoteNegotiationError), str),
        # Foolscap takes the bytes of a stranger apart without further ado.
        ((BananaError, SSL.Error, ValueError, LookupError, AssertionError), _stranger),
    )
    for kinds, words in known:
        if isinstance(error, kinds):
            return words if isinstance(words, str) else words(error)
    return str(error).rstrip(".") or type(error).__name__


def _system_words(error: ConnectError) -> str:
    number = error.osError
    return os.strerror(number).lower() if isinstance(number, int) else "it cannot be dialled"


def _stranger(error: BaseException) -> str:
    text = str(error)
    return OTHER_CERTIFICATE if any(words in text for words in _UNKNOWN_TUB) else STRANGER


def unreachable(reasons: Sequence[tuple[str, str]], host: str) -> ConnectionFailed:
    """The error for what was tried.

    Parameters
    ----------
    reasons : sequence of (str, str)
        As `Attempts.reasons` returns them.
    host : str
        This one.
    """
    facts: dict[str, Any] = {"attempts": tuple(reasons)}
    wrong = [each for each in reasons if each[1] in (OTHER_CERTIFICATE, STRANGER)]
    # Another place than the first may be another host's by the same address, such as a loopback one.
    if wrong and (wrong[0] == reasons[0] or len(wrong) == len(reasons)):
        return WrongController(address=wrong[0][0], reason=wrong[0][1], **facts)
    if all(reason == REFUSED for _, reason in reasons):
        return NobodyListening(address=", ".join(place for place, _ in reasons), reason=REFUSED, **facts)
    if len(reasons) == 1:
        return ConnectionFailed(address=reasons[0][0], reason=reasons[0][1], **facts)
    listed = "; ".join(f"{place}: {reason}" for place, reason in reasons)
    return Unreachable(host=host, reasons=listed, **facts)


def sentences(reasons: Sequence[tuple[str, str]], host: str) -> list[str]:
    """What an engine says, a line for each place."""
    return [f"controller at {place} not reachable from {host}: {reason}" for place, reason in reasons]
