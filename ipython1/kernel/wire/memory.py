"""The wire without sockets, for tests: links between two sides of one process."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from ipython1.kernel.error import NobodyListening, WireError
from ipython1.kernel.interfaces import IDialer, IDoor, ILink, ILinkSink


@implementer(ILink)
class MemoryLink:
    """One end of a connection; what it sends arrives at `sink` on the clock's next turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sink: ILinkSink | None = None  # the far side's
        self.other: MemoryLink | None = None
        self.open = True

    def send(self, batch: bytes) -> None:
        """Hand over a batch."""
        self._clock.callLater(0, self._deliver, batch)

    def _deliver(self, batch: bytes) -> None:
        if self.open and self.sink is not None:
            try:
                self.sink.batch_received(batch)
            except WireError:
                self.cut()

    def close(self) -> None:
        """End the connection; the far side hears of it."""
        if self.open:
            self._end()
            self._clock.callLater(0, self._tell_far_side)

    def cut(self) -> None:
        """Break the connection; both sides hear of it."""
        if self.open:
            self._end()
            self._tell_far_side()
            other = self.other
            if other is not None and other.sink is not None:
                other.sink.link_lost(self)

    def _end(self) -> None:
        self.open = False
        if self.other is not None:
            self.other.open = False

    def _tell_far_side(self) -> None:
        if self.sink is not None:
            self.sink.link_lost(self.other)


@implementer(IDialer)
class MemoryDialer:
    """Dials a door in this process.

    Parameters
    ----------
    clock : Clock
    door : callable
        Returns the `IDoor` to knock at, or None while nobody listens.
    """

    address = "memory:0"

    def __init__(self, clock: Clock, door: Callable[[], IDoor | None]) -> None:
        self._clock = clock
        self._door = door
        self.links: list[MemoryLink] = []

    def dial(self, hello: bytes, sink: ILinkSink) -> Deferred[tuple[bytes, ILink | None]]:
        """Knock."""
        door = self._door()
        if door is None:
            return fail(NobodyListening(address=self.address, reason="no controller in memory"))
        near, far = MemoryLink(self._clock), MemoryLink(self._clock)
        near.other, far.other = far, near
        far.sink = sink
        answer, near.sink = door.knock(hello, far)
        if near.sink is None:
            return succeed((answer, None))
        self.links.append(near)
        return succeed((answer, near))

    def cut(self) -> None:
        """Break all links made through this dialer."""
        links, self.links = self.links, []
        for link in links:
            link.cut()

    def trouble(self) -> list[tuple[str, str]]:
        """See `IDialer`."""
        return []

    def close(self) -> Deferred[None]:
        """Break all links, silently on this side."""
        links, self.links = self.links, []
        for link in links:
            link.close()
        return succeed(None)
