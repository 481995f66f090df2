"""A conversation that outlives its connections: every record once, in order.

Each side numbers what it sends and keeps it until the peer has acknowledged
it. Links come and go; on a new one both sides say the last number they
received, and the rest is sent again. What arrives twice is dropped by number.

========  ==================  ==========================================
state     input               next state, and what happens
========  ==================  ==========================================
away      attach              linked; the unacknowledged is sent again
away      grace runs out      ended; the owner is told
linked    link_lost           away; the grace timer starts
linked    attach              linked; the old link is closed
any       end                 ended; timers stop, the outbox is dropped
ended     anything            ended; nothing happens
========  ==================  ==========================================

A batch on the wire is a msgpack array ``[first, ack, [record, ...]]``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgpack
from twisted.logger import Logger
from zope.interface import implementer

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire.bounds import Complaints
from ipython1.kernel.wire.codec import unpack_bounded
from ipython1.kernel.wire.rounds import Round

#: Bytes sent and not yet acknowledged, at most (one record may exceed it).
WINDOW = 8 * 1024 * 1024
#: Bytes of records in one batch, at most (one record may exceed it).
BATCH_SIZE = 1024 * 1024
#: Largest batch a link must carry, in bytes.
BATCH_LIMIT = 8 * 1024 * 1024
#: Seconds an acknowledgement waits for a batch that goes the same way. Clients and engines wait for one
#: when they leave; the controller waits for none.
ACK_DELAY = 0.02
PEER_ACK_DELAY = 0.25
#: Received bytes that are acknowledged at once.
ACK_BYTES = 1024 * 1024

log = Logger()


class Timing:
    """When sessions send, and when they acknowledge; one for all sessions of a process is cheapest.

    Parameters
    ----------
    clock : IReactorTime
    ack_delay : float
        Seconds that an acknowledgement waits for a batch that goes the same way, at most.
    """

    def __init__(self, clock: Any, ack_delay: float = ACK_DELAY) -> None:
        self.soon = Round(clock, 0.0)
        self.later = Round(clock, ack_delay)

    def stop(self) -> None:
        """End the timers; nothing is sent any more."""
        self.soon.stop()
        self.later.stop()


@implementer(ILinkSink)
class Session:
    """One side of a conversation.

    Parameters
    ----------
    clock : IReactorTime
        Source of time.
    receive : callable
        Called with each record (encoded), once and in order.
    grace : float, optional
        Seconds without a link after which the session ends; None: never.
    ended : callable, optional
        Called when the grace time has run out.
    id : str, optional
        Unguessable name of the session; made where not given.
    timing : Timing, optional
        Shared with other sessions; whoever made it stops it.
    """

    def __init__(
        self,
        clock: Any,
        receive: Callable[[bytes], None],
        *,
        grace: float | None = None,
        ended: Callable[[], None] | None = None,
        id: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.id = id or uuid.uuid4().hex
        #: Number of the last record taken from the peer.
        self.received = 0
        #: Bytes of records not yet acknowledged.
        self.outbox_bytes = 0
        #: What is said of the peer, within bounds.
        self.complaints = Complaints(log, clock)
        #: Source of time.
        self.clock = clock
        self._receive = receive
        self._grace = grace
        self._on_ended = ended
        self._link: ILink | None = None
        self._ended = False
        self._outbox: dict[int, bytes] = {}
        self._on_drained: list[tuple[int, Callable[[], None]]] = []
        self._last = 0  # number of the last record given to send()
        self._sent = 0  # ... put on the present link
        self._acked = 0  # ... acknowledged by the peer
        self._in_flight = 0  # bytes between _acked and _sent
        self._unacked_bytes = 0  # received since our last ack went out
        self._ack_owed = False
        self._timing = timing or Timing(clock)
        self._shares_timing = timing is not None
        self._flush_planned = False
        self._ack_planned = False
        self._grace_call: Any = None
        self._start_grace()

    @property
    def ended(self) -> bool:
        """Whether nothing is sent or received any more."""
        return self._ended

    @property
    def linked(self) -> bool:
        """Whether there is a link now."""
        return self._link is not None

    @property
    def absent(self) -> float:
        """For how many seconds nothing can be heard of the peer; 0 where it is there."""
        if self._link is None:
            return float(self.clock.seconds() - self._since)
        silent: float = getattr(self._link, "silent", 0.0)  # not every link can tell
        return silent

    @property
    def last(self) -> int:
        """Number of the last record given to `send`."""
        return self._last

    # -- sending -------------------------------------------------------------

    def send(self, record: bytes) -> None:
        """Queue an encoded record; all of one reactor turn go in as few batches as possible."""
        if self._ended:
            return
        self._last += 1
        self._outbox[self._last] = record
        self.outbox_bytes += len(record)
        if not self._flush_planned and self._link is not None:
            self._plan_flush()

    def when_drained(self, callback: Callable[[], None], left: int = 0) -> None:
        """Call once when at most `left` bytes are not acknowledged (at once where that is so)."""
        if self.outbox_bytes > left:
            self._on_drained.append((left, callback))
        else:
            callback()

    def _plan_flush(self) -> None:
        self._flush_planned = True
        self._timing.soon.add(self._flush)

    def _flush(self) -> None:
        link = self._link
        if link is None or not self._flush_planned:
            return
        self._flush_planned = False
        while self._sent < self._last and self._in_flight < WINDOW:
            first, records, size = self._sent + 1, [], 0
            while self._sent < self._last and (not size or size < BATCH_SIZE):
                record = self._outbox[self._sent + 1]
                if size and size + len(record) > BATCH_SIZE:
                    break
                self._sent += 1
                size += len(record)
                records.append(record)
            self._in_flight += size
            self._put(link, first, records)
        if self._ack_owed:
            self._put(link, self._sent + 1, [])

    def _put(self, link: ILink, first: int, records: list[bytes]) -> None:
        self._ack_owed = False
        self._unacked_bytes = 0
        link.send(msgpack.packb((first, self.received, records)))

    # -- receiving -----------------------------------------------------------

    def batch_received(self, batch: bytes) -> None:
        """Take a batch from the link."""
        if self._ended:
            return
        first, ack, records = _decode_batch(batch)
        if first > self.received + 1:
            raise WireError(reason=f"record {first} came after record {self.received}")
        if ack > self._last:
            raise WireError(reason=f"acknowledges record {ack} of {self._last}")
        self._take_ack(ack)
        for record in records[self.received + 1 - first :]:
            self.received += 1
            self._unacked_bytes += len(record)
            self._ack_owed = True
            try:
                self._receive(record)
            except WireError:
                raise
            except Exception:  # noqa: BLE001 -- one bad record must not stop the others
                self.complaints.failure("a record was not handled")
            if self._ended:
                return
        self._plan_ack()

    def _take_ack(self, ack: int) -> None:
        while self._acked < ack:
            self._acked += 1
            size = len(self._outbox.pop(self._acked))
            self.outbox_bytes -= size
            if self._acked <= self._sent:
                self._in_flight -= size
        if self._sent < self._acked:  # acknowledged on an older link, while it is sent again on this one
            self._sent = self._acked
        if self._on_drained:
            self._tell_drained()
        if self._sent < self._last and not self._flush_planned and self._link is not None:
            self._plan_flush()

    def _tell_drained(self) -> None:
        waiting, self._on_drained = self._on_drained, []
        for left, callback in waiting:
            if self.outbox_bytes > left:  # maybe only since the callback before
                self._on_drained.append((left, callback))
            else:
                callback()

    def _plan_ack(self) -> None:
        if not self._ack_owed or self._link is None or self._flush_planned:
            return
        if self._unacked_bytes >= ACK_BYTES:
            self._plan_flush()
        elif not self._ack_planned:
            self._ack_planned = True
            self._timing.later.add(self._ack_due)

    def _ack_due(self) -> None:
        # Planned once, also where a batch takes the ack along meanwhile.
        if self._ack_planned and self._ack_owed and self._link is not None and not self._flush_planned:
            self._flush_planned = True
            self._flush()
        self._ack_planned = False

    # -- links ----------------------------------------------------------------

    def attach(self, link: ILink, peer_received: int, close_old: bool = True) -> None:
        """Go on over `link`; the peer has everything up to number `peer_received`.

        Raises
        ------
        WireError
            The peer claims to have what was never sent.
        """
        if self._ended:
            link.close()
            return
        if peer_received > self._last:
            raise WireError(reason=f"resumes at record {peer_received} of {self._last}")
        old, self._link = self._link, None
        if old is not None and close_old:
            old.close()
        self._cancel_timers()
        self._sent = self._acked
        self._in_flight = 0
        self._take_ack(peer_received)
        self._link = link
        self._plan_flush()

    def link_lost(self, link: ILink | None) -> None:
        """The present link is gone; older ones don't matter."""
        if self._link is None or link is not self._link:
            return
        self._link = None
        self._cancel_timers()
        self._start_grace()

    def _start_grace(self) -> None:
        self._since = self.clock.seconds()  # when it was left without a link
        if self._grace is not None:
            self._grace_call = self.clock.callLater(self._grace, self._grace_over)

    def _grace_over(self) -> None:
        self._grace_call = None
        self.end()
        if self._on_ended is not None:
            self._on_ended()

    def end(self) -> None:
        """Stop for good; nothing is sent or received any more."""
        self._ended = True
        self._cancel_timers()
        self._outbox.clear()
        self._on_drained.clear()
        self.outbox_bytes = 0
        if not self._shares_timing:
            self._timing.stop()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _cancel_timers(self) -> None:
        self._flush_planned = self._ack_planned = False
        if self._grace_call is not None:
            self._grace_call.cancel()
            self._grace_call = None


def _decode_batch(batch: bytes) -> tuple[int, int, tuple[bytes, ...]]:
    items = unpack_bounded(batch, containers=2)
    if type(items) is not tuple or len(items) != 3:
        raise WireError(reason="not a batch")
    first, ack, records = items
    if type(first) is not int or type(ack) is not int or type(records) is not tuple or first < 1 or ack < 0:
        raise WireError(reason="not a batch")
    if any(type(record) is not bytes for record in records):
        raise WireError(reason="a batch holds bytes only")
    return first, ack, records
