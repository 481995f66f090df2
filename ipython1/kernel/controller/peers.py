"""The ends of the sessions that the controller holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zope.interface import implementer

from ipython1.kernel.error import WireError
from ipython1.kernel.interfaces import ILink, ILinkSink
from ipython1.kernel.wire.codec import decode, encode
from ipython1.kernel.wire.records import Record
from ipython1.kernel.wire.session import Session

#: Bytes kept for a peer that is away; past that it asks again when it is back.
AWAY_BYTES = 64 * 1024 * 1024


@implementer(ILinkSink)
@dataclass(eq=False)
class Peer:
    """A client, engine or nanny, linked or away.

    `handle` takes each record; `on_away` hears that the link is gone,
    `on_overflow` that too much waits for a peer that is away.
    """

    kind: str
    key: str  # client id, engine uuid or nanny uuid
    session: Session
    handle: Callable[[Peer, Record, bytes], None]
    on_away: Callable[[Peer], None]
    on_overflow: Callable[[Peer], None]

    def send(self, record: Record) -> None:
        """Queue a record for the peer."""
        self.session.send(encode(record))

    def post(self, raw: bytes) -> None:
        """Queue an encoded record that can be asked for again, should the peer be away too long."""
        self.session.send(raw)
        if self.session.outbox_bytes > AWAY_BYTES and not self.session.linked:
            self.on_overflow(self)

    def receive(self, raw: bytes) -> None:
        """Take a record from the session."""
        self.handle(self, decode(raw), raw)

    def complain(self, text: str, **facts: object) -> None:
        """Warn of what the peer does, but not for ever; the format knows its `kind` and `key`."""
        self.session.complaints.say(text, kind=self.kind, key=self.key, **facts)

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
