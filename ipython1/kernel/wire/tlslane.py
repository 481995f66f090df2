"""Lanes over TLS, between hosts: on the controller's port, with the certificate of its Tub.

The side that dials compares the certificate that it is shown with the one
that it has seen on its Foolscap connection, byte for byte, and says nothing
before. Foolscap has checked that one against the FURL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Factory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from ipython1.kernel.wire.contexts import SharedContext
from ipython1.kernel.wire.lanes import LaneLink, Owner
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.sniffing import MAGIC

#: What TLS 1.2 may use; all of TLS 1.3 is good.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"


@implementer(IHandshakeListener)
class TLSLane(LaneLink):
    """A lane over TLS.

    Parameters
    ----------
    clock : IReactorTime
    owner : Owner
    dead_after : float
        As for `LaneLink`.
    pinned : bytes, optional
        The certificate (DER) that the other side must have; not given on the side that listens.
    """

    def __init__(
        self, clock: Any, owner: Owner, dead_after: float = DEAD_LINK_AFTER, pinned: bytes | None = None
    ) -> None:
        super().__init__(clock, owner, dead_after)
        self._pinned = pinned

    def connectionMade(self) -> None:
        """Batches are small, and waited for."""
        if not isinstance(self.transport.getPeer(), UNIXAddress):  # of a tunnel
            self.transport.setTcpNoDelay(True)

    def handshakeCompleted(self) -> None:
        """Look who is there, then begin."""
        if self._pinned is not None and certificate_of(self.transport) != self._pinned:
            self.abort("another certificate than the controller's: somebody is in between")
        elif self._open:
            self._owner.opened(self)

    @property
    def _stream(self) -> Any:
        return self.transport.transport


def certificate_of(transport: Any) -> bytes:
    """The certificate (DER) of the peer of a TLS transport; empty where it has shown none."""
    shown = transport.getPeerCertificate()
    return b"" if shown is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)


def tls_server(certificate: bytes, make: Callable[[], LaneLink]) -> TLSMemoryBIOFactory:
    """A protocol factory for the side that listens.

    Parameters
    ----------
    certificate : bytes
        Certificate and key, as PEM.
    make : callable
        Makes the lane of each connection.
    """
    context = _context()
    context.use_certificate(x509.load_pem_x509_certificate(certificate))
    context.use_privatekey(serialization.load_pem_private_key(certificate, None))  # type: ignore[arg-type]
    factory = TLSMemoryBIOFactory(SharedContext(context), False, Factory.forProtocol(make))
    factory.protocol = TLSMemoryBIOProtocol  # the default one holds writes back for a turn of the reactor
    factory.noisy = False
    return factory


def tls_client(lane: ClientFactory) -> TLSMemoryBIOFactory:
    """Wrap the factory of a lane: a connection is announced with `MAGIC`, then encrypted."""
    factory = TLSMemoryBIOFactory(SharedContext(_context()), True, lane)
    factory.protocol = _Announced
    factory.noisy = False
    return factory


class _Announced(TLSMemoryBIOProtocol):
    def makeConnection(self, transport: Any) -> None:
        transport.write(MAGIC)
        super().makeConnection(transport)


def _context() -> SSL.Context:
    """A context with our options."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context
