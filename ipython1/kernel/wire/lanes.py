"""The fast lane: a session's batches over a Unix socket, where both ends share a host.

Foolscap introduces the two sides and then hands the dialling side a ticket,
good once and not for long. With it that side opens a lane: the first frame
each way says what was received, then both sessions go on over the lane, and
the Foolscap link is closed. If the lane breaks, the session dials again.

A frame is a length of four bytes and that many bytes.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire.session import BATCH_LIMIT

#: Seconds that a ticket is good for, and that the handshake may take.
TICKET_TIME = 20.0
TICKET_SIZE = 32
#: Longest path of a Unix socket that every platform takes.
PATH_LIMIT = 100

#: Batches of up to so many bytes are written at once.
SMALL = 64 * 1024

_LENGTH = struct.Struct("!I")
_COUNT = struct.Struct("!Q")
#: struct ucred of the kernel: pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")

log = Logger()


@implementer(ILink)
class LaneLink(Protocol):  # type: ignore[misc]
    """One end of a lane.

    Parameters
    ----------
    clock : IReactorTime
        The other end has `TICKET_TIME` for its first frame, from now on.
    greet : callable
        Called with the link and the first frame; sets `sink`, or raises
        `WireError`.
    limit : int
        Largest first frame that is taken.
    """

    def __init__(self, clock: Any, greet: Callable[[LaneLink, bytes], None], limit: int) -> None:
        self.sink: ILinkSink | None = None
        self._handshake = clock.callLater(TICKET_TIME, self.abort)
        self._greet = greet
        self._limit = limit
        self._buffer = bytearray()
        self._open = True

    transport: Any

    def connectionMade(self) -> None:
        """Only processes of this user may talk here."""
        uid = _peer_uid(self.transport.getHandle())
        if uid is not None and uid != os.getuid():
            log.warn("uid {uid} is not allowed on this lane", uid=uid)
            self.close()

    def send(self, batch: bytes) -> None:
        """See `ILink`."""
        if self._open:
            self.transport.writeSequence((_LENGTH.pack(len(batch)), batch))
            if len(batch) <= SMALL:
                # Now, not a turn of the reactor later: 5 % of a small command. Errors stay for the
                # reactor to find.
                self.transport.doWrite()

    def close(self) -> None:
        """See `ILink`. What was sent before still goes out."""
        self._open = False
        if self.transport is not None:
            self.transport.loseConnection()

    def abort(self) -> None:
        """End the connection at once."""
        self._open = False
        if self.transport is not None:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take the whole frames out of what came."""
        buffer = self._buffer
        buffer += data
        start = 0
        while self._open and len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > self._limit:
                log.warn("a frame of {size} bytes on a lane", size=size)
                self.abort()
                break
            end = start + _LENGTH.size + size
            if end > len(buffer):
                break
            frame = bytes(memoryview(buffer)[start + _LENGTH.size : end])
            start = end
            self._take(frame)
        del buffer[:start]

    def _take(self, frame: bytes) -> None:
        try:
            if self.sink is None:
                self.end_handshake()
                self._greet(self, frame)
                self._limit = BATCH_LIMIT
            else:
                self.sink.batch_received(frame)
        except WireError as error:
            log.warn("a lane is closed: {error}", error=error)
            self.abort()
        except Exception:  # noqa: BLE001 -- Twisted would end the lane as well, but not say whose it was
            log.failure("a batch was not handled, its lane is closed")
            self.abort()

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        """Tell the session."""
        self._open = False
        self.end_handshake()
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.link_lost(self)

    def end_handshake(self) -> None:
        """It has said something, or never will."""
        if self._handshake.active():
            self._handshake.cancel()


class LaneServer:
    """The controller's end: a Unix socket, and the tickets that are out.

    Parameters
    ----------
    reactor : IReactorUNIX and IReactorTime
    path : Path
        Of the socket, in a folder that only this user can enter.
    """

    def __init__(self, reactor: Any, path: Path) -> None:
        self._reactor = reactor
        self.path = path
        self._tickets: dict[bytes, tuple[ILinkSink, Any]] = {}
        path.unlink(missing_ok=True)  # of a controller that was killed
        factory = Factory.forProtocol(self._incoming)
        factory.noisy = False
        self._port = reactor.listenUNIX(os.fspath(path), factory, mode=0o600)

    def ticket(self, sink: ILinkSink) -> bytes:
        """A ticket that moves the session behind `sink` to a lane."""
        token = secrets.token_bytes(TICKET_SIZE)
        self._tickets[token] = (sink, self._reactor.callLater(TICKET_TIME, self._tickets.pop, token, None))
        return token

    def withdraw(self, token: bytes) -> None:
        """A ticket is good no longer, if it still was."""
        _, expiry = self._tickets.pop(token, (None, None))
        if expiry is not None and expiry.active():
            expiry.cancel()

    def stop(self) -> Deferred[None]:
        """Close the socket; lanes that are open stay."""
        for token in list(self._tickets):
            self.withdraw(token)
        return maybeDeferred(self._port.stopListening)

    def _incoming(self) -> LaneLink:
        return LaneLink(self._reactor, self._greeted, TICKET_SIZE + _COUNT.size)

    def _greeted(self, link: LaneLink, frame: bytes) -> None:
        token = frame[:TICKET_SIZE]
        if token not in self._tickets or len(frame) != TICKET_SIZE + _COUNT.size:
            raise WireError(reason="no such ticket")
        sink, _ = self._tickets[token]
        self.withdraw(token)
        (received,) = _COUNT.unpack(frame[TICKET_SIZE:])
        link.sink = sink
        link.send(_COUNT.pack(sink.received))
        sink.attach(link, received)


def open_lane(reactor: Any, path: str, token: bytes, sink: ILinkSink) -> None:
    """Move the session behind `sink` to the lane at `path`, where that can be reached from here.

    Where it can't, nothing happens: the session goes on over its present link.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return  # another host
    if status.st_uid != os.getuid() or len(token) != TICKET_SIZE:
        return

    def greeted(link: LaneLink, frame: bytes) -> None:
        if len(frame) != _COUNT.size:
            raise WireError(reason="not a lane")
        link.sink = sink
        sink.attach(link, _COUNT.unpack(frame)[0])

    def connected(link: LaneLink) -> None:
        link.send(token + _COUNT.pack(sink.received))

    def failed(failure: Failure) -> None:
        link.end_handshake()
        log.debug("no lane to {path}: {reason}", path=path, reason=failure.getErrorMessage())

    link = LaneLink(reactor, greeted, _COUNT.size)
    factory = Factory.forProtocol(lambda: link)
    factory.noisy = False
    UNIXClientEndpoint(reactor, path).connect(factory).addCallbacks(connected, failed)


def _peer_uid(handle: socket.socket) -> int | None:
    """Uid of the process at the other end of a Unix socket; None where the platform does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return int(_CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))[1])
