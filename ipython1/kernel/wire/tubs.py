"""Foolscap Tubs as ipython1 wants them: certificates, FURLs, options, the port.

Foolscap closes a TLS connection politely, and then waits for a peer that may
be stopped, or out of reach, for as long as TCP does. The classes here give
such a peer `LINGER` seconds, so that whoever closes something sees it gone.
"""

from __future__ import annotations

import datetime
import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from foolscap.api import Tub
from foolscap.broker import Broker
from foolscap.crypto import FoolscapContextFactory
from foolscap.negotiate import DuplicateConnection, Negotiation
from foolscap.pb import generateSwissnumber
from foolscap.tokens import BananaError, RemoteNegotiationError
from OpenSSL.crypto import Error as OpenSSLError
from twisted.internet import reactor as _reactor  # Foolscap knows no other
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.tcp import Port
from twisted.logger import Logger, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import BadFURL
from ipython1.kernel.files import ClusterFiles, write_private
from ipython1.kernel.wire.attempts import Attempts
from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.contexts import SharedContext
from ipython1.kernel.wire.pickling import restore_pickle
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER, Pulse

#: Seconds that a closed connection may take to send its last bytes.
LINGER = 1.0
#: Seconds in which a peer has to get from the first byte to the end of negotiation.
NEGOTIATION_TIME = 30
#: Seconds from there until it must have knocked at a door; where it knows none, it is a stranger.
KNOCK_TIME = 30
#: Bits of the secret in a FURL.
SECRET_BITS = 160
#: Connections that may wait to be accepted.
BACKLOG = 1024
#: Connections accepted in a turn of the reactor. Those that make room for them are closed in the next.
ACCEPTS = 32
#: Days a certificate is valid. Foolscap does not look: the FURL names the certificate.
VALIDITY = 36500

#: Ends of a negotiation that are no offence.
PEERS_CHOICE = (DuplicateConnection, RemoteNegotiationError)

_FURL = re.compile(r"pb://([a-z2-7]{32})@([^/@\s]+)/([A-Za-z0-9._-]{1,200})")
_LOCATION = re.compile(r"(?:tcp:)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9.]+)?\]):([0-9]{1,5})")

log = Logger()
# The module is untyped; mypy knows the reactor by its interfaces only.
reactor: Any = _reactor

restore_pickle()  # after Foolscap's imports: all who use it import this module


def make_certificate() -> bytes:
    """A new self-signed certificate and its private key (ECDSA, P-256), as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ipython1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALIDITY))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_tub(
    certificate: bytes | None = None,
    dead_after: float = DEAD_LINK_AFTER,
    attempts: Attempts | None = None,
) -> Tub:
    """A Tub with all our options, not yet started. The only place that makes one.

    Its ``stopService`` tells every link that it is lost, and returns a Deferred
    that fires when no connection, timer or port of the Tub is left.

    Parameters
    ----------
    certificate : bytes, optional
        What `make_certificate` returned; a new one where not given. Two Tubs
        that run at the same time need two.
    dead_after : float
        Seconds of silence after which a connection counts as lost; see `Pulse`.
    attempts : Attempts, optional
        Leads through the places of the FURL that the Tub dials, once.

    Raises
    ------
    ValueError
        `certificate` is not one.
    """
    try:
        tub = _Tub(make_certificate() if certificate is None else certificate, dead_after)
    except OpenSSLError:
        raise ValueError("not a certificate and its key") from None
    tub.setOption("expose-remote-exception-types", False)
    tub.setOption("accept-gifts", False)
    tub.removeAllConnectionHintHandlers()
    tub.attempts = Attempts(reactor, ()) if attempts is None else attempts
    tub.addConnectionHintHandler("tcp", tub.attempts)
    return tub


def split_furl(furl: str) -> tuple[str, list[str], str]:
    """Take a FURL apart.

    Returns
    -------
    tub_id : str
        What the certificate must hash to.
    locations : list of str
        Where to dial, each ``host:port``, the host of IPv6 in brackets.
    name : str
        The secret that names the object.

    Raises
    ------
    BadFURL
        `furl` is not a FURL that can be dialled.
    """
    match = _FURL.fullmatch(furl.strip())
    if match is None:
        raise BadFURL(furl=_shown(furl))
    locations = []
    for hint in match[2].split(","):
        location = _LOCATION.fullmatch(hint)
        if location is None or not 0 < int(location[2]) < 65536:
            raise BadFURL(furl=_shown(furl))
        locations.append(f"{location[1]}:{int(location[2])}")
    return match[1], locations, match[3]


def _shown(furl: str) -> str:
    # What is nearly a FURL still holds its secret, and errors end up in logs.
    text = furl.strip()
    secret = re.match(r"[a-z]+://[^/]*/", text)
    text = f"{secret[0]}…" if secret else text
    return repr(text if len(text) <= 80 else text[:79] + "…")


def load_certificate(files: ClusterFiles) -> bytes:
    """The controller's certificate of the last time, or a new one, not yet written."""
    try:
        return files.certificate.read_bytes()
    except FileNotFoundError:
        return make_certificate()


def publish(tub: Tub, referenceable: Any, path: Path) -> str:
    """Register an object, under the name that its FURL file `path` has, and write that file."""
    name = ""
    try:
        tub_id, _, old = split_furl(path.read_text())
        if tub_id == tub.getTubID():
            name = old
    except (FileNotFoundError, UnicodeDecodeError, BadFURL):
        pass  # a new name then
    furl: str = tub.registerReference(referenceable, name=name or generateSwissnumber(SECRET_BITS))
    write_private(path, furl + "\n")
    return furl


def open_port(
    reactor: Any, tub: Tub, ip: str, port: int, wrap: Callable[[Any], Any] = lambda factory: factory
) -> int:
    """Listen for `tub`, which must not have been started, and return the number of the port.

    `wrap` may put a protocol factory of its own before the one of the Tub.

    Raises
    ------
    CannotListenError
        The port is busy, or `ip` is no address of this host.
    """
    bound = _BoundPort()
    listener = tub.listenOn(bound)
    listener.noisy = False
    bound.port = _Port(port, wrap(listener), BACKLOG, ip, reactor)
    # Twisted has three lines for each connection that it turns away, where no file is left to open.
    turned_away: Any = lambda event: tub.strangers.say("the port: {what}", what=formatEvent(event))  # noqa: E731
    bound.port._logger = Logger(observer=turned_away)
    bound.port.startListening()
    number: int = bound.port.getHost().port
    return number


def why_not_listening(error: CannotListenError, ip: str, port: int) -> str:
    """What went wrong in `open_port`, and what to do."""
    number = getattr(error.socketError, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} of {ip} is in use. Choose another with --port, or stop what listens there"
    if number == errno.EACCES:
        return f"only the administrator may listen on port {port}. Choose one above 1023 with --port"
    return (
        f"this host cannot listen on {ip}:{port} ({error.socketError}). Choose one of its addresses with --ip"
    )


class _Port(Port):
    """A port that accepts no more in one turn the more there are: it would run out of files."""

    @property
    def numberAccepts(self) -> int:
        """How many; Twisted would change it."""
        return ACCEPTS

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:
        """It stays."""


@implementer(IStreamServerEndpoint)
class _BoundPort:
    """Gives Foolscap a port that listens already: its own way to open one hides the errors."""

    port: Any = None

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:  # noqa: N803
        """The port, whose connections go to `protocolFactory`."""
        return succeed(self.port)


class _Negotiation(Negotiation):
    """Negotiation that its Tub can end, and that does not wait for silent peers."""

    SERVER_TIMEOUT = NEGOTIATION_TIME

    def connectionMade(self) -> None:
        self._our_tub.negotiating.add(self.transport)
        if self._our_tub.guests is not None:
            self._our_tub.guests.admit(self, self._leave)
        super().connectionMade()

    def _leave(self, why: str) -> None:
        self.transport.abortConnection()

    def dataReceived(self, chunk: bytes) -> None:
        # After a failure Foolscap goes on reading, and forgets the first reason for the next. A second way
        # to the same controller would even take the place of the first, if it came through that late.
        if self.failureReason is None and (not self.isClient or self.connector.active):
            super().dataReceived(chunk)

    def log(self, *args: Any, **kwargs: Any) -> None:
        # Foolscap would keep it, and nobody reads it: a tenth of what a connection takes to come about.
        pass

    def startTLS(self, cert: Any) -> None:
        self.transport.startTLS(self.tub.tls)

    def startENCRYPTED(self) -> None:
        # Foolscap would take them for a part of what was said under TLS.
        if self.buffer:
            raise BananaError("plain bytes where TLS begins")
        super().startENCRYPTED()

    def switchToBanana(self, params: Any) -> None:
        self._our_tub.negotiating.discard(self.transport)
        if self._our_tub.guests is not None:
            self._our_tub.guests.discard(self)
        super().switchToBanana(params)

    def negotiationTimedOut(self) -> None:
        super().negotiationTimedOut()
        self.transport.abortConnection()

    def negotiationFailed(self) -> None:
        super().negotiationFailed()
        why = self.failureReason
        if self.isClient:
            self.tub.attempts.failed(self.factory.location, why.value)
        elif not why.check(ConnectionDone, ConnectionLost, *PEERS_CHOICE):
            peer = self.transport.getPeer()
            self._our_tub.strangers.say("{peer} did not get through: {why}", peer=peer, why=why.value)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self._our_tub.guests is not None:
            self._our_tub.guests.discard(self)
        self._our_tub.negotiating.discard(self.transport)
        self._our_tub.check_empty()

    @property
    def _our_tub(self) -> Any:
        return self.tub if self.isClient else self.listener._tub


class _Broker(Broker):
    """A connection that ends when it is told to, and says little in the log."""

    logReceiveErrors = False  # noqa: N815
    _abort: Any = None
    _knock_timer: Any = None
    pulse: Pulse

    def connectionMade(self) -> None:
        self.tub.connected.add(self.transport)
        self.pulse = Pulse(reactor, self.tub.dead_after, self.sendPING, self.connectionTimedOut)
        self.pulse.start()
        if self.tub.guests is not None:
            self.tub.guests.admit(self, self._leave)
            self._knock_timer = reactor.callLater(KNOCK_TIME, self._leave, "it did not knock")
        super().connectionMade()

    def dataReceived(self, chunk: bytes) -> None:
        self.pulse.missed = 0
        super().dataReceived(chunk)

    def belongs_here(self) -> None:
        """The peer has shown that it holds a FURL."""
        if self.tub is not None and self.tub.guests is not None:
            self.tub.guests.discard(self)
        if self._knock_timer is not None and self._knock_timer.active():
            self._knock_timer.cancel()

    def _leave(self, why: str) -> None:
        peer = self.transport.getPeer()
        self.tub.strangers.say("{peer} had to leave: {why}", peer=peer, why=why)
        self.belongs_here()
        self.transport.abortConnection()

    def shutdown(self, why: Failure, fireDisconnectWatchers: bool = True) -> None:  # noqa: N803
        super().shutdown(why, fireDisconnectWatchers)
        self.connectionAbandoned = True  # what still comes in is not for us
        self.pulse.stop()
        if self._abort is None and self.transport in self.tub.connected:
            self._abort = reactor.callLater(LINGER, self.transport.abortConnection)

    def connectionLost(self, why: Failure) -> None:
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        self.belongs_here()
        self.pulse.stop()
        super().connectionLost(why)
        self.tub.connected.discard(self.transport)
        self.tub.forget(self.remote_tubref)
        self.tub.check_empty()

    def reportReceiveError(self, f: Failure) -> None:
        peer = self.transport.getPeer()
        self.tub.strangers.say("malformed bytes from {peer}: {error}", peer=peer, error=f.value)
        self.shutdown(f)

    def handleError(self, msg: bytes) -> None:
        peer = self.transport.getPeer()
        self.tub.strangers.say("{peer} ended the connection: {msg}", peer=peer, msg=msg)
        self.shutdown(Failure(ConnectionLost("the peer reported an error")))


class _Tub(Tub):
    """A Tub that knows its open connections, and leaves none behind."""

    unsafeTracebacks = False  # noqa: N815
    negotiationClass = _Negotiation  # noqa: N815
    brokerClass = _Broker  # noqa: N815
    attempts: Attempts

    keepaliveTimeout = None  # noqa: N815 -- a `Pulse` does it: also while much is received, and in time

    def __init__(self, certificate: bytes, dead_after: float) -> None:
        super().__init__(certData=certificate)
        self.dead_after = dead_after
        self.tls = SharedContext(
            FoolscapContextFactory(
                privateKey=self.myCertificate.privateKey.original, certificate=self.myCertificate.original
            ).getContext()
        )
        self.strangers = Complaints(log, reactor)
        #: Where given, who comes in has to knock, and not all may wait at the same time.
        self.guests: Guests | None = None
        self.negotiating: set[Any] = set()  # transports
        self.connected: set[Any] = set()
        self._empty: Deferred[None] | None = None

    def stopService(self) -> Deferred[None]:
        # Foolscap would first forget whom to tell that the connection ended.
        why = Failure(ConnectionDone("the Tub was stopped"))
        for broker in list(self.brokers.values()):
            broker.shutdown(why)
        deferred: Deferred[None] = super().stopService()
        deferred.addCallback(lambda _: self._wait_until_empty())
        return deferred

    def _wait_until_empty(self) -> Deferred[None]:
        for transport in list(self.negotiating):
            transport.abortConnection()
        if not self.negotiating and not self.connected:
            return succeed(None)
        self._empty = Deferred()
        return self._empty

    def check_empty(self) -> None:
        """A connection ended: the last one lets ``stopService`` finish."""
        if self._empty is not None and not self.negotiating and not self.connected:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def forget(self, tub_ref: Any) -> None:
        """Drop what Foolscap would keep for ever about each Tub that was ever connected."""
        if tub_ref not in self.brokers:
            self.master_table.pop(tub_ref.getTubID(), None)
            self.slave_table.pop(tub_ref.getTubID(), None)
