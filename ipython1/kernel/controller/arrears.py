"""What a peer that does not read, or not as fast as engines speak, is behind with.

Engines keep what they said until the client has it. So what would make the
controller store too much for a peer is not stored: once the peer has caught
up, it is told to ask for it.

==========  ============================  ==========================================
a debt is   input                         next state, and what happens
==========  ============================  ==========================================
none        a record, peer is behind      owed; the record is dropped
owed        more records of the same      owed; they are dropped
owed        the peer has caught up        asked; it is told to ask, a few debts at a time
asked       all that was dropped came     none; the next ones are told when all are heard
asked       a record, peer is behind      owed; the record is dropped
asked       nothing in `ASK_TIME`         none; the peer has no use for it, or will ask
any         the controller made up an     none; that goes out whatever waits
            end of its own
==========  ============================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import Record
from ipython1.kernel.wire.session import Session

#: Bytes not acknowledged past which a peer is behind, and those at which it has caught up.
BEHIND = 32 * 1024 * 1024
CAUGHT_UP = 4 * 1024 * 1024
#: Bytes, about, and number of the debts that a peer is told of at a time.
ASK_BYTES = 16 * 1024 * 1024
ASK_COUNT = 1000
#: Seconds without an answer after which the next ones have their turn.
ASK_TIME = 10.0

#: Id and engine of a command; batch and number of a task.
Key = tuple[str, int]
#: Instead of a number of events: all of them, and the end.
ALL = math.inf


@dataclass(slots=True)
class _Debt:
    invitation: Record
    events: float = 0  # how many events the peer must have heard of
    size: int = 0


class Arrears:
    """The debts to one peer.

    Parameters
    ----------
    session : Session
        The peer's.
    """

    def __init__(self, session: Session) -> None:
        #: Whether there are debts.
        self.any = False
        self._session = session
        self._owed: dict[Key, _Debt] = {}
        self._asked: dict[Key, float] = {}
        self._waits = False  # for the peer to catch up
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._owed) + len(self._asked)

    @property
    def behind(self) -> bool:
        """Whether the peer takes less than it is sent."""
        return self._session.outbox_bytes >= BEHIND

    @property
    def clear(self) -> bool:
        """Whether any record can be sent: the peer is not behind, and there are no debts."""
        return not self.any and self._session.outbox_bytes < BEHIND

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        """Call once when the peer is not behind any more, by far."""
        self._session.when_drained(callback, CAUGHT_UP)

    def block(self, key: Key) -> bool:
        """Whether what belongs to `key` cannot be sent now."""
        return self.behind or key in self._owed

    def owe(self, key: Key, events: float, size: int, invitation: Record) -> None:
        """A record is not sent.

        Parameters
        ----------
        key : tuple
            What it belongs to.
        events : float
            How many events of that the peer would know with it; `ALL` for the end.
        size : int
            Its bytes, about.
        invitation : Record
            Tells the peer to ask.
        """
        debt = self._owed.get(key)
        if debt is None:
            debt = self._owed[key] = _Debt(invitation)
            self.any = True
            self._asked.pop(key, None)
            self._plan()
        debt.events = max(debt.events, events)
        debt.size += size

    def heard(self, key: Key, events: float) -> None:
        """The peer is sent a record; see `owe`."""
        if key in self._asked and events >= self._asked[key]:
            self._answered(key)

    def settle(self, key: Key) -> None:
        """The controller has said by itself what came of this."""
        self._owed.pop(key, None)
        if key in self._asked:
            self._answered(key)
        self.any = len(self) > 0

    def stop(self) -> None:
        """The session is over: nothing is owed."""
        self._owed.clear()
        self._asked.clear()
        self.any = False
        self._stop_timer()

    def _answered(self, key: Key) -> None:
        del self._asked[key]
        if self._asked:
            self._timer.reset(ASK_TIME)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """All that was asked for is here, or given up."""
        self._stop_timer()
        self._asked.clear()
        self.any = bool(self._owed)
        self._plan()

    def _plan(self) -> None:
        if self._owed and not self._asked and not self._waits and not self._session.ended:
            self._waits = True
            self.when_caught_up(self._invite)

    def _invite(self) -> None:
        self._waits = False
        size = 0
        while self._owed and size < ASK_BYTES and len(self._asked) < ASK_COUNT:
            key = next(iter(self._owed))
            debt = self._owed.pop(key)
            size += debt.size
            self._asked[key] = debt.events
            self._session.send(encode(debt.invitation))
        if self._asked:
            self._stop_timer()
            self._timer = self._session.clock.callLater(ASK_TIME, self._go_on)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
