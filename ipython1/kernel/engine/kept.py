"""What an engine keeps of its commands, so that it can answer again.

A command is known from its arrival on. Its events and result are kept until
its client has them, and then for a while longer, within bounds, for whoever
asks by id.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ipython1.kernel.wire.records import Event, Result, Submit

#: Answers kept after their client has them.
KEPT_COUNT = 1000
KEPT_BYTES = 64 * 1024 * 1024
#: Ids remembered of those whose client went without their answers, and may come back.
IDS_KEPT = 100_000


@dataclass(slots=True)
class Kept:
    """One command: what came of it so far."""

    submit: Submit | None  # until the command is done
    op: str
    events: list[Event] = field(default_factory=list)
    result: Result | None = None
    blobs: dict[str, memoryview] = field(default_factory=dict)
    size: int = 0  # bytes
    abandoned: bool = False  # its client is gone for good


class KeptResults:
    """All commands known to an engine, by id."""

    def __init__(self) -> None:
        self._wanted: dict[str, Kept] = {}
        self._forgotten: OrderedDict[str, Kept] = OrderedDict()
        self._forgotten_bytes = 0
        self._ids: OrderedDict[str, None] = OrderedDict()

    def get(self, id: str) -> Kept | None:
        """What is known of command `id`."""
        return self._wanted.get(id) or self._forgotten.get(id)

    def had(self, id: str) -> bool:
        """Whether command `id` was here, and nothing else is known of it any more."""
        return id in self._ids

    def open(self, submit: Submit) -> Kept:
        """A new command is here."""
        kept = self._wanted[submit.id] = Kept(submit, submit.op)
        return kept

    @property
    def unfinished(self) -> list[Submit]:
        """The commands that have no result yet, in order of arrival."""
        return [kept.submit for kept in self._wanted.values() if kept.submit is not None]

    @property
    def clients(self) -> list[str]:
        """The ids of the clients that something is kept for."""
        return sorted({id.partition("-")[0] for id in self._wanted})

    def forget(self, id: str) -> list[str]:
        """Its client has the result of `id`. Returns blobs that nobody will want any more."""
        kept = self._wanted.get(id)
        if kept is None or kept.result is None:
            return []
        del self._wanted[id]
        self._forgotten[id] = kept
        self._forgotten_bytes += kept.size
        gone: list[str] = []
        while len(self._forgotten) > KEPT_COUNT or self._forgotten_bytes > KEPT_BYTES:
            old_id, old = self._forgotten.popitem(last=False)
            self._forgotten_bytes -= old.size
            if old.abandoned:  # its client may come back and send it again: it must not run twice
                self._ids[old_id] = None
                if len(self._ids) > IDS_KEPT:
                    self._ids.popitem(last=False)
            gone += old.blobs
        return gone

    def abandon(self, client: str) -> list[str]:
        """A client is gone for good. Returns blobs that nobody will want any more."""
        gone: list[str] = []
        for id, kept in list(self._wanted.items()):
            if id.partition("-")[0] == client:
                kept.abandoned = True
                gone += self.forget(id)
        return gone
