"""The fast lane: a session's batches over a plain stream, where there is a way for one.

Foolscap introduces the two sides, and hands the dialling side a ticket, good
once and not for long. With it that side tries a lane: the Unix socket of the
cluster's folder where both ends share a host, else TLS on the port that it
has dialled. On a lane it goes, in frames of four bytes of length and so many
bytes,

=====  =============  =========================  ======================================
frame  from           what                       then
=====  =============  =========================  ======================================
1      who dialled    the ticket                 nothing has moved yet
2      the other      last number received       the one who dialled moves
3      who dialled    last number received       the other moves
4      the other      an empty frame             who dialled closes the Foolscap link
5 ...  both           batches                    an empty frame is only a sign of life
=====  =============  =========================  ======================================

Who dialled moves first, since only that side can dial again. A lane that ends
before frame 2 changes nothing, one that ends later makes that side dial again.
Until frame 4 a lane ends with the Foolscap link that it was offered on: an old
ticket never moves a session back.
"""

from __future__ import annotations

import os
import socket
import struct
from functools import partial
from typing import Any
from typing import Protocol as TypingProtocol

from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER, Pulse
from ipython1.kernel.wire.session import BATCH_LIMIT

#: Ways to open a lane; the first that works is taken.
KINDS = ("unix", "tls")
#: Bytes of a ticket.
TICKET_SIZE = 32
#: Seconds that a lane may take to close politely.
LINGER = 1.0
#: Batches of up to so many bytes are written at once.
SMALL = 64 * 1024

#: The number of the last record received, in frames 2 and 3.
COUNT = struct.Struct("!Q")
_LENGTH = struct.Struct("!I")
#: struct ucred of the kernel: pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")

log = Logger()


class Owner(TypingProtocol):
    """Who opened or accepted a lane, and leads through the handshake."""

    def opened(self, lane: LaneLink) -> None:
        """The lane may be used: who is there has been looked at."""

    def said(self, lane: LaneLink, frame: bytes) -> None:
        """A frame, while the lane has no sink. Raises `WireError`, which ends the lane."""

    def ended(self, lane: LaneLink, why: str) -> None:
        """The lane is gone; called once. Its sink, if it had one, was told."""


@implementer(ILink)
class LaneLink(Protocol):  # type: ignore[misc]
    """One end of a lane.

    Parameters
    ----------
    clock : IReactorTime
    owner : Owner
    dead_after : float
        Seconds of silence after which the lane counts as lost; see `Pulse`.
    """

    #: Whether silence ends the lane; else it can only be seen, since the system tells of an end.
    SILENCE_ENDS = True

    transport: Any

    def __init__(self, clock: Any, owner: Owner, dead_after: float = DEAD_LINK_AFTER) -> None:
        #: Who takes the batches, from `begin` on.
        self.sink: ILinkSink | None = None
        self._clock = clock
        self._owner = owner
        self._limit = TICKET_SIZE
        self._pieces: list[bytes] = []
        self._wanted = 0  # bytes until something can be done
        self._open = True
        self._gone = False
        self._why = ""
        self._timer: Any = None  # of closing
        give_up = partial(self.abort, "no sign of life") if self.SILENCE_ENDS else None
        self._pulse = Pulse(clock, dead_after, partial(self.send, b""), give_up)

    def connectionMade(self) -> None:
        """May be used at once."""
        self._owner.opened(self)

    def begin(self, sink: ILinkSink) -> None:
        """End the handshake: what comes in now is batches."""
        self.sink = sink
        self._limit = BATCH_LIMIT
        if self._open:
            self._pulse.start()

    @property
    def silent(self) -> float:
        """For how many seconds nothing has come, where that is too long; else 0."""
        return self._pulse.silent

    def send(self, batch: bytes) -> None:
        """See `ILink`."""
        if self._open:
            self._pulse.spoke = True
            self.transport.writeSequence((_LENGTH.pack(len(batch)), batch))
            stream = self._stream
            if len(batch) <= SMALL and not stream.disconnecting:
                # Now, not a turn of the reactor later: 5 % of a small command. Errors stay for the
                # reactor to find.
                stream.doWrite()

    def close(self) -> None:
        """See `ILink`. What was sent before still goes out, if the peer takes it soon."""
        if self._open:
            self._open = False
            self._pulse.stop()
            self._timer = self._clock.callLater(LINGER, self.transport.abortConnection)
            self.transport.loseConnection()

    def abort(self, why: str) -> None:
        """End the connection at once, for a reason that the owner hears."""
        if not self._gone:
            self._open = False
            self._pulse.stop()
            self._why = self._why or why
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take the whole frames out of what came."""
        if not self._open:
            return
        self._pulse.missed = 0
        self._pieces.append(data)
        self._wanted -= len(data)
        if self._wanted > 0:
            return  # of a large frame: nothing is copied before all of it is here
        data = b"".join(self._pieces)
        start = 0
        self._wanted = _LENGTH.size
        while self._open and len(data) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, start)
            if size > self._limit:
                self._refuse(f"a frame of {size} bytes")
                break
            end = start + _LENGTH.size + size
            if end > len(data):
                self._wanted += size
                break
            frame = data[start + _LENGTH.size : end]
            start = end
            self._take(frame)
        rest = data[start:]
        self._pieces = [rest]
        self._wanted -= len(rest)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        """Tell sink and owner."""
        self._open = False
        self._gone = True
        self._pulse.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.link_lost(self)
        self._owner.ended(self, self._why or reason.getErrorMessage())

    @property
    def _stream(self) -> Any:
        """What writes to the socket."""
        return self.transport

    def _take(self, frame: bytes) -> None:
        try:
            if self.sink is None:
                self._owner.said(self, frame)
            elif frame:
                self.sink.batch_received(frame)
        except WireError as error:
            self._refuse(str(error))
        except Exception:  # noqa: BLE001 -- Twisted would end the lane as well, but not say whose it was
            log.failure("a batch was not handled, its lane is closed")
            self.abort("a batch was not handled")

    def _refuse(self, why: str) -> None:
        if self.sink is not None:  # else the owner decides how much is said of it
            log.warn("a lane is closed: {why}", why=why)
        self.abort(why)


class UnixLane(LaneLink):
    """A lane over a Unix socket, between processes of one user."""

    SILENCE_ENDS = False

    def connectionMade(self) -> None:
        """Only processes of this user may talk here."""
        uid = peer_uid(self.transport.getHandle())
        if uid is not None and uid != os.getuid():
            self.abort(f"uid {uid} is not allowed here")
        else:
            super().connectionMade()


def peer_uid(handle: socket.socket) -> int | None:
    """Uid of the process at the other end of a Unix socket; None where the platform does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return int(_CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))[1])
