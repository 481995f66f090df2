"""Keeps one session with the controller alive: dials, resumes, dials again."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1 import __version__
from ipython1.kernel import error
from ipython1.kernel.error import ConnectionFailed, IPython1Error, WireError
from ipython1.kernel.interfaces import IDialer, ILink, ILinkSink
from ipython1.kernel.wire.codec import decode, encode, pack, unpack_map
from ipython1.kernel.wire.records import PROTOCOL, Hello, Record, Refusal, Welcome
from ipython1.kernel.wire.session import PEER_ACK_DELAY, Session, Timing

#: Seconds before the second, and between later attempts to dial.
FIRST_DELAY = 0.05
MAX_DELAY = 5.0
#: Seconds after which a link has lasted: when it is lost, the first attempt comes at once.
LASTING = 1.0
#: How much longer each delay is than the one before; a controller that is back waits that much for us.
GROWTH = 1.5
#: Seconds that closing waits for the last records to arrive.
DRAIN_TIME = 2.0

#: Refused for good: dialling again would not help.
FINAL = (error.NotAllowed, error.VersionMismatch, error.BadFURL)

log = Logger()


@implementer(ILinkSink)
class Connection:
    """One session with the controller, over as many links as it takes.

    Parameters
    ----------
    clock : IReactorTime
    dialer : IDialer
    kind : str
        What we are: multiengine, task, view, engine or nanny.
    detail : callable
        Returns the map that goes with each `Hello`.
    receive : callable
        Called with each record, decoded and encoded.
    welcomed : callable
        Called with the map of each `Welcome`, and whether the session goes on:
        where it does not, the peer knows nothing of what was said before.
    lost : callable
        Called once with the reason, when there will be no connection any more.
    grace : float
        Seconds to go on dialling after a link was lost, unless the controller has said how long.
    share : float
        Of the time that the controller has said.
    """

    def __init__(
        self,
        clock: Any,
        dialer: IDialer,
        kind: str,
        *,
        detail: Callable[[], dict[str, Any]],
        receive: Callable[[Record, bytes], None],
        welcomed: Callable[[dict[str, Any], bool], None],
        lost: Callable[[Exception], None],
        grace: float,
        share: float = 1.0,
    ) -> None:
        self._clock = clock
        self._dialer = dialer
        self._kind = kind
        self._detail = detail
        self._on_record = receive
        self._on_welcome = welcomed
        self._on_lost = lost
        self._grace = grace
        self._share = share
        self._timing = Timing(clock, PEER_ACK_DELAY)
        self._session = Session(clock, self._receive, timing=self._timing)
        self._welcomed = ""  # id of the session that the controller has confirmed
        self._next = self._session.id  # ... of the one it opens where it does not know that
        self._early: list[bytes] | None = None  # batches that overtook the welcome
        self._delay = FIRST_DELAY
        self._linked_at = 0.0
        self._give_up_at = 0.0
        self._redial: Any = None
        self._stopped = False
        self._closing: Any = None
        self._closed = False
        self._on_closed: list[Deferred[None]] = []

    @property
    def linked(self) -> bool:
        """Whether the controller is reachable now."""
        return self._session.linked

    def start(self, patience: float = 0.0) -> None:
        """Dial; first failures are tried again for `patience` seconds."""
        self._give_up_at = self._clock.seconds() + patience
        self._dial()

    def send(self, record: Record) -> None:
        """Queue a record for the controller."""
        self._session.send(encode(record))

    def send_raw(self, raw: bytes) -> None:
        """Queue an encoded record."""
        self._session.send(raw)

    def stop(self) -> Deferred[None]:
        """Close, after what was sent has arrived or `DRAIN_TIME` has passed; may be called again."""
        done: Deferred[None] = Deferred()
        if self._closed:
            done.callback(None)
            return done
        self._on_closed.append(done)
        if self._closing is None:
            self._stopped = True
            if self._redial is not None:
                self._redial.cancel()
                self._redial = None
            linked = self._session.linked
            self._closing = self._clock.callLater(DRAIN_TIME if linked else 0, self._close)
            if linked:
                self._session.when_drained(self._closing_now)
        return done

    def _closing_now(self) -> None:
        if self._closing is not None and self._closing.active():
            self._closing.reset(0)

    def _close(self) -> None:
        self._session.end()
        self._timing.stop()
        self._dialer.close().addBoth(self._has_closed)

    def _has_closed(self, result: Any) -> None:
        self._closed = True
        for done in self._on_closed:
            done.callback(None)

    # -- dialling ---------------------------------------------------------------

    def _dial(self) -> None:
        self._redial = None
        self._early = []
        hello = Hello(
            PROTOCOL,
            __version__,
            self._kind,
            self._welcomed,
            self._next,
            self._session.received,
            pack(self._detail()),
        )
        deferred = self._dialer.dial(encode(hello), self)
        deferred.addCallback(self._answered)
        deferred.addErrback(self._dial_failed)

    def _answered(self, answer: tuple[bytes, ILink]) -> None:
        raw, link = answer
        record = decode(raw)
        if isinstance(record, Refusal):
            raise refusal_error(record)
        if not isinstance(record, Welcome):
            raise WireError(reason="the controller answered a hello with something else")
        if self._stopped:
            link.close()
            return
        resumed = record.resumed
        if not resumed:
            if self._welcomed:
                self._session.end()
                self._session = Session(self._clock, self._receive, id=self._next, timing=self._timing)
            self._welcomed, self._next = self._next, uuid.uuid4().hex
        self._linked_at = self._clock.seconds()
        try:
            self._session.attach(link, record.received)
        except WireError:
            link.close()
            raise
        early, self._early = self._early or [], None
        detail = unpack_map(record.detail)
        if "grace" in detail:
            self._grace = detail["grace"] * self._share
        self._on_welcome(detail, resumed)
        for batch in early:
            self._session.batch_received(batch)

    def _dial_failed(self, failure: Failure) -> None:
        self._early = None
        if self._stopped:
            return
        reason = failure.value
        if not isinstance(reason, IPython1Error):
            log.failure("dialling failed", failure)
            reason = ConnectionFailed(address=self._dialer.address, reason=str(reason))
        now = self._clock.seconds()
        # Once welcomed, we know the certificate: who else is there now may go again.
        final = isinstance(reason, FINAL) or (
            not self._welcomed and isinstance(reason, error.WrongController)
        )
        if final or now >= self._give_up_at:
            self.stop()
            self._on_lost(reason)
            return
        self._redial = self._clock.callLater(min(self._back_off(), self._give_up_at - now), self._dial)

    def _back_off(self) -> float:
        # Jitter, lest a thousand engines knock at the same moment after a restart.
        delay = self._delay * random.uniform(0.75, 1.25)
        self._delay = min(self._delay * GROWTH, MAX_DELAY)
        return delay

    # -- what links say -----------------------------------------------------------

    def batch_received(self, batch: bytes) -> None:
        """A batch from the link; one that overtook the welcome waits for it."""
        if self._early is not None:
            self._early.append(batch)
        else:
            self._session.batch_received(batch)

    @property
    def received(self) -> int:
        """Number of the last record taken from the controller."""
        return self._session.received

    def attach(self, link: ILink, peer_received: int) -> None:
        """Move the session to another link, unless it has come to its end meanwhile."""
        if self._stopped:
            link.close()
        else:
            self._session.attach(link, peer_received)

    def link_lost(self, link: ILink | None) -> None:
        """The link is gone: dial again."""
        self._session.link_lost(link)
        dialling = self._early is not None or self._redial is not None
        if self._stopped or self._session.linked or dialling:
            return
        now = self._clock.seconds()
        self._give_up_at = now + self._grace
        delay = 0.0
        if now - self._linked_at >= LASTING:
            self._delay = FIRST_DELAY
        else:  # links that don't last are no reason to dial without a pause
            delay = self._back_off()
        self._redial = self._clock.callLater(delay, self._dial)

    def _receive(self, raw: bytes) -> None:
        self._on_record(decode(raw), raw)


def refusal_error(refusal: Refusal) -> IPython1Error:
    """The error that a `Refusal` stands for."""
    cls = getattr(error, refusal.reason, None)
    if isinstance(cls, type) and issubclass(cls, IPython1Error):
        try:
            return cls(**unpack_map(refusal.facts))
        except (KeyError, IndexError):
            pass
    return ConnectionFailed(f"The controller refused the connection ({refusal.reason}).")
