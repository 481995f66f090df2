"""What keeps strangers within bounds: how many there are, and how much the log says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

try:
    import resource
except ImportError:  # not on this platform
    resource = None  # type: ignore[assignment]

#: Connections that have not shown that they may be here, at most, whatever the system allows.
GUESTS_LIMIT = 4096
#: Lines that `Complaints` writes in a period, at most, and its length in seconds.
LINES = 10
PERIOD = 60.0
#: Characters of a fact that are shown: it may be what a stranger said.
FACT_LIMIT = 200

Member = TypeVar("Member")


class Complaints:
    """Warnings that strangers can cause; past `LINES` in a `PERIOD` they are only counted.

    Parameters
    ----------
    log : Logger
    clock : IReactorTime
    """

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._until = float("-inf")
        self._said = 0
        self._dropped = 0

    def say(self, text: str, **facts: object) -> None:
        """Warn, with `facts` in the format `text`."""
        if self._may_speak():
            self._log.warn(text, **{name: _shown(fact) for name, fact in facts.items()})

    def failure(self, text: str) -> None:
        """Log the exception that is being handled."""
        if self._may_speak():
            self._log.failure(text)

    def _may_speak(self) -> bool:
        now = self._clock.seconds()
        if now >= self._until:
            if self._dropped:
                self._log.warn("{dropped} more such warnings were left out", dropped=self._dropped)
            self._until = now + PERIOD
            self._said = self._dropped = 0
        if self._said >= LINES:
            self._dropped += 1
            return False
        self._said += 1
        return True


def _shown(fact: object) -> str:
    text = ascii(str(fact))[1:-1]
    return text if len(text) <= FACT_LIMIT else text[:FACT_LIMIT] + "…"


class Crowd(Generic[Member]):
    """Those who are here, in the order in which they came."""

    def __init__(self) -> None:
        self._members: dict[Member, None] = {}
        self._waiting: list[Deferred[None]] = []

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member) -> None:
        """Somebody came."""
        self._members[member] = None

    def discard(self, member: Member) -> None:
        """Somebody left, if they were here."""
        self._members.pop(member, None)
        if not self._members:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)

    def empty(self) -> Deferred[None]:
        """Fires when nobody is here."""
        deferred: Deferred[None] = Deferred()
        if self._members:
            self._waiting.append(deferred)
        else:
            deferred.callback(None)
        return deferred


class Guests:
    """Connections of those who have not shown yet that they may be here, the longest waiting first.

    Parameters
    ----------
    limit : int, optional
        How many there may be; `room` where not given.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = room() if limit is None else limit
        self._leave: dict[object, Callable[[str], None]] = {}

    def __len__(self) -> int:
        return len(self._leave)

    def admit(self, guest: object, leave: Callable[[str], None]) -> None:
        """Somebody came; where there are too many, `leave` of who waits longest is called with the reason."""
        if len(self._leave) >= self.limit:
            longest = next(iter(self._leave))
            self._leave.pop(longest)("made room for others")
        self._leave[guest] = leave

    def discard(self, guest: object) -> None:
        """Somebody left, or is no stranger any more."""
        self._leave.pop(guest, None)


def room() -> int:
    """A quarter of the files that this process may have open: most are for those who belong here."""
    if resource is None:
        return GUESTS_LIMIT
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return GUESTS_LIMIT if soft == resource.RLIM_INFINITY else max(1, min(GUESTS_LIMIT, soft // 4))
