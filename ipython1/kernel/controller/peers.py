"""The ends of the sessions that the controller holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zope.interface import implementer

from ipython1.kernel.controller.arrears import ALL, BEHIND, Arrears, Key
from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire.codec import decode, encode
from ipython1.kernel.wire.records import End, Event, Outcomes, Part, Record, Result
from ipython1.kernel.wire.session import Session

#: Bytes not acknowledged at which the session of a client ends: it reads nothing, and is sent what
#: no engine keeps. Should it come back, it asks for everything.
OUTBOX_LIMIT = 4 * BEHIND


@implementer(ILinkSink)
@dataclass(eq=False)
class Peer:
    """A client, engine or nanny, linked or away.

    `handle` takes each record; `on_away` hears that the link is gone,
    `on_overflow` that too much waits for a client.
    """

    kind: str
    key: str  # client id, engine uuid or nanny uuid
    session: Session
    handle: Callable[[Peer, Record, bytes], None]
    on_away: Callable[[Peer], None]
    on_overflow: Callable[[Peer], None]
    host: str = ""  # where it says so
    memory: str = ""  # names the shared memory of its host, where it says so
    furl: str = ""  # the kind of FURL it came by
    arrears: Arrears = field(init=False)

    def __post_init__(self) -> None:
        self.arrears = Arrears(self.session)

    @property
    def behind(self) -> bool:
        """Whether it takes less than it is sent: what can wait should."""
        return self.arrears.behind

    def end(self) -> None:
        """End the session, and what waits for it."""
        self.session.end()
        self.arrears.stop()

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        """Call once when it is not behind any more, by far."""
        self.arrears.when_caught_up(callback)

    # -- what engines keep, too ------------------------------------------------------

    def wants(self, record: Event | Result) -> bool:
        """Whether to `post` what an engine said of a command. Else the peer will ask for it later."""
        if self.arrears.clear or self.kind == "engine":
            return True
        key = record.id, record.engine
        events = record.index + 1 if isinstance(record, Event) else ALL
        if not self.arrears.block(key):
            self.arrears.heard(key, events)
            return True
        size = _size(record.parts) + (len(record.text) if isinstance(record, Event) else 0)
        later = Result(record.id, record.engine, "", "later", 0.0, 0.0, 0, ())
        self.arrears.owe(key, events, size, later)
        return False

    def wants_ends(self, batch: str, engine: int, ends: Sequence[End]) -> bool:
        """Whether to `post` outcomes of tasks. Else the peer will ask for them later."""
        if self.arrears.clear:
            return True
        if not any(self.arrears.block((batch, end[0])) for end in ends):
            for end in ends:
                self.arrears.heard((batch, end[0]), ALL)
            return True
        for index, attempt, *_, parts in ends:
            later = Outcomes(batch, engine, ((index, attempt, "later", 0.0, 0.0, 0, ()),))
            self.arrears.owe((batch, index), ALL, _size(parts), later)
        return False

    def wants_event(self, batch: str, index: int) -> bool:
        """Whether to `post` an event of a task. Else it comes with the task's end."""
        return not self.arrears.block((batch, index))

    # -- sending ---------------------------------------------------------------------

    def post(self, raw: bytes) -> None:
        """Queue an encoded record that the peer wants."""
        self.session.send(raw)

    def send(self, record: Record) -> None:
        """Queue a record that nobody keeps."""
        self.tell(encode(record))

    def tell(self, raw: bytes, ends: Iterable[Key] = ()) -> None:
        """Queue an encoded record that nobody keeps; `ends`: of what it tells the end."""
        if self.arrears.any:
            for key in ends:
                self.arrears.settle(key)
        self.session.send(raw)
        if self.session.outbox_bytes > OUTBOX_LIMIT and self.kind not in ("engine", "nanny"):
            self.complain("{kind} {key} does not read: its session ends")
            self.on_overflow(self)

    def receive(self, raw: bytes) -> None:
        """Take a record from the session."""
        self.handle(self, decode(raw), raw)

    def complain(self, text: str, **facts: object) -> None:
        """Warn of what the peer does, but not for ever; the format knows its `kind` and `key`."""
        self.session.complaints.say(text, kind=self.kind, key=self.key, **facts)

    def facts(self, now: float) -> dict[str, Any]:
        """What clients may know: what it is, and since when it is away; 0: it is there."""
        absent = self.session.absent
        return {
            "kind": self.kind,
            "name": self.key,
            "host": self.host,
            "away": now - absent if absent else 0.0,
        }

    @property
    def received(self) -> int:
        """Number of the last record taken from the peer."""
        return self.session.received

    # -- ILinkSink, between a link and the session ---------------------------------

    def batch_received(self, batch: bytes) -> None:
        """Pass on; malformed bytes end the link, not the session."""
        try:
            self.session.batch_received(batch)
        except WireError as error:
            self.complain("{kind} {key}: {error}", error=error)
            raise

    def attach(self, link: ILink, peer_received: int) -> None:
        """Pass on: the peer moves to another link, and closes the old one itself."""
        self.session.attach(link, peer_received, close_old=False)

    def link_lost(self, link: ILink | None) -> None:
        """Pass on, and tell the owner where this was the present link."""
        was_linked = self.session.linked
        self.session.link_lost(link)
        if was_linked and not self.session.linked:
            self.on_away(self)


def _size(parts: Iterable[Part]) -> int:
    return sum([len(part) for part in parts])
