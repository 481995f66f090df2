"""TLS contexts that connections share: to make one is a quarter of setting up a connection."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from zope.interface import implementer


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class SharedContext:
    """Makes the connections of one context.

    Parameters
    ----------
    context : OpenSSL.SSL.Context
        Ready: pyOpenSSL does not let it be changed once there is a connection.
    """

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See `IOpenSSLClientConnectionCreator`."""
        return SSL.Connection(self._context, None)

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return SSL.Connection(self._context, None)
