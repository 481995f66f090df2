"""The dialling end of lanes: a session's move from its Foolscap link to a lane."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import ClientFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILinkSink
from ipython1.kernel.wire.lanes import COUNT, LaneLink, UnixLane
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.tlslane import TLSLane, tls_client

#: Seconds in which a lane must be in use, from the offer on.
MOVE_TIME = 5.0
#: A TLS lane that ends sooner than so many seconds after it was tried has failed. After so many
#: failures in a row, a dialler tries none for so many seconds.
LASTING = 10.0
FAILURES = 3
PAUSE = 300.0

#: Opens a lane for a `Move`, and returns the connector; None where that is not possible here.
Way = Callable[["Move"], Any]

log = Logger()


class Trust:
    """Whether it is worth while to try a TLS lane: what is between may not let one live.

    Parameters
    ----------
    clock : IReactorTime
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._failures = 0
        self._not_before = float("-inf")

    def __bool__(self) -> bool:
        return bool(self._clock.seconds() >= self._not_before)

    def ended(self, began: float) -> None:
        """A lane has ended that was tried at the time `began`."""
        now = self._clock.seconds()
        if now - began >= LASTING:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures = 0
            self._not_before = now + PAUSE


class Held(Protocol):
    """The link that a session leaves, as a `Move` sees it."""

    def hold(self) -> None:
        """Stay open though told to close: the other side has not moved yet."""

    def release(self) -> None:
        """Close now."""


class Move:
    """Moves a session to the first lane that works; where none does, it stays. An `Owner` of lanes.

    Parameters
    ----------
    reactor : IReactorTCP, IReactorUNIX and IReactorTime
    old : Held
        The link that the session leaves.
    sink : ILinkSink
        The session, or who stands before it.
    ticket : bytes
        What the controller has given out for it.
    ways : iterable of callable
        Each opens a lane of one kind.
    on_end : callable
        Called with the move when all of it is over: the lane too, if there was one.
    dead_after : float
        As for `LaneLink`.
    """

    def __init__(
        self,
        reactor: Any,
        old: Held,
        sink: ILinkSink,
        ticket: bytes,
        ways: Iterable[Way],
        on_end: Callable[[Move], None],
        dead_after: float = DEAD_LINK_AFTER,
    ) -> None:
        self.reactor = reactor
        self._dead_after = dead_after
        #: Whether the session is on the lane.
        self.moved = False
        #: Whether the other side is there too.
        self.settled = False
        #: When a TLS lane was tried.
        self.tls_since: float | None = None
        #: Why the last lane ended.
        self.why = ""
        self._old = old
        self._sink = sink
        self._ticket = ticket
        self._ways: Iterator[Way] = iter(ways)
        self._on_end = on_end
        self._connector: Any = None
        self._lane: LaneLink | None = None
        self._cancelled = ""
        self._timer: Any = None

    def start(self) -> None:
        """Try."""
        self._timer = self.reactor.callLater(MOVE_TIME, self.cancel, f"not within {MOVE_TIME:g} s")
        self._next("there is no way")

    def old_lost(self) -> None:
        """The old link is closed, or lost: the session must not come here any more, if it has not yet."""
        if not self.moved:
            self.cancel("its link was lost")

    def cancel(self, why: str) -> None:
        """Give up what has not settled; a session that has moved already loses its lane."""
        if self.settled or self._cancelled:
            return
        self._cancelled = why
        if self._lane is not None:
            self._lane.abort(why)
        else:
            self._connector.disconnect()

    def close(self) -> None:
        """End the lane, politely where it is in use."""
        if self.settled and self._lane is not None:
            self._lane.close()
        else:
            self.cancel("the connection was closed here")

    # -- what lanes and connectors say ----------------------------------------------

    def opened(self, lane: LaneLink) -> None:
        """See `Owner`."""
        lane.send(self._ticket)

    def said(self, lane: LaneLink, frame: bytes) -> None:
        """See `Owner`."""
        if not self.moved:
            if len(frame) != COUNT.size:
                raise WireError(reason="not a lane")
            lane.send(COUNT.pack(self._sink.received))  # before any batch
            self.moved = True
            self._old.hold()
            self._sink.attach(lane, COUNT.unpack(frame)[0])
            return
        if frame:
            raise WireError(reason="a batch before the lane was ready")
        self.settled = True
        self._timer.cancel()
        lane.begin(self._sink)
        self._old.release()

    def ended(self, lane: LaneLink, why: str) -> None:
        """See `Owner`."""
        self._lane = None
        if self.moved and not self.settled:
            self._sink.link_lost(lane)
            self._old.release()
        if self.moved or self._cancelled:
            self._end(self._cancelled or why)
        else:
            self._next(why)

    def new_lane(self, kind: Callable[[Any, Move, float], LaneLink]) -> LaneLink:
        """There is a connection."""
        self._lane = kind(self.reactor, self, self._dead_after)
        return self._lane

    def not_connected(self, failure: Failure) -> None:
        """There is none."""
        if self._cancelled:
            self._end(self._cancelled)
        else:
            self._next(failure.getErrorMessage())

    def _next(self, why: str) -> None:
        for way in self._ways:
            self._connector = way(self)
            if self._connector is not None:
                return
        self._end(why)

    def _end(self, why: str) -> None:
        self.why = why
        if self._timer.active():
            self._timer.cancel()
        self._on_end(self)


class _LaneFactory(ClientFactory):  # type: ignore[misc]
    noisy = False

    def __init__(self, move: Move, kind: Callable[[Any, Move, float], LaneLink]) -> None:
        self._move = move
        self._kind = kind

    def buildProtocol(self, addr: Any) -> LaneLink:
        return self._move.new_lane(self._kind)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._move.not_connected(reason)


def unix_way(path: str, move: Move) -> Any:
    """To the Unix socket `path`, if it is there, and ours; on another host it isn't."""
    try:
        if os.lstat(path).st_uid != os.getuid():
            return None
    except (OSError, ValueError):
        return None
    return move.reactor.connectUNIX(path, _LaneFactory(move, UnixLane), timeout=MOVE_TIME)


def tls_way(peer: Any, pinned: bytes, move: Move) -> Any:
    """To the address that the Foolscap connection went to, if its certificate (DER) is `pinned` there."""
    move.tls_since = move.reactor.seconds()
    lane = tls_client(_LaneFactory(move, partial(TLSLane, pinned=pinned)))
    if isinstance(peer, UNIXAddress):  # of a tunnel
        return move.reactor.connectUNIX(os.fsdecode(peer.name or b""), lane, timeout=MOVE_TIME)
    return move.reactor.connectTCP(peer.host, peer.port, lane, timeout=MOVE_TIME)
