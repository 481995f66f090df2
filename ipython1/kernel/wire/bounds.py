"""What keeps strangers within bounds: how much the log says of them, and who is still there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

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
        now = self._clock.seconds()
        if now >= self._until:
            if self._dropped:
                self._log.warn("{dropped} more such warnings were left out", dropped=self._dropped)
            self._until = now + PERIOD
            self._said = self._dropped = 0
        if self._said >= LINES:
            self._dropped += 1
            return
        self._said += 1
        self._log.warn(text, **{name: _shown(fact) for name, fact in facts.items()})


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
