"""A blob that arrives in chunks: into memory of this process, or into memory that its neighbours share."""

from __future__ import annotations

from typing import Any, Union

from twisted.internet.defer import Deferred

from ipython1.kernel.wire.drafts import Draft
from ipython1.kernel.wire.shared import SharedMemory

Buffer = Union[bytes, bytearray, memoryview]


class Arriving:
    """A blob of `size` bytes, of which the first `have` are here.

    Raises
    ------
    MemoryError, OverflowError
        There is no room for it.
    """

    __slots__ = ("_data", "_draft", "deferreds", "have", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.have = 0
        self.deferreds: list[Deferred[Buffer]] = []
        self._data = bytearray(size)  # no memory before it is used
        self._draft: Draft | None = None

    def share(self, shared: SharedMemory | None) -> bool:
        """Go on in shared memory; False where there is no room, and it goes on as before."""
        draft = self._draft or (shared.draft(self.size) if shared is not None else None)
        if draft is None or self._draft is not None:
            return draft is not None
        try:
            draft.write(0, memoryview(self._data)[: self.have])
        except OSError:
            draft.discard()
            return False
        self._draft = draft
        return True

    def add(self, data: bytes) -> bool:
        """Take the next bytes. False: it cannot be shared any more, and `have` may be less."""
        start, end, shared = self.have, self.have + len(data), True
        if self._draft is not None:
            try:
                self._draft.write(start, data)
                self.have = end
                return True
            except OSError:
                self._keep(self._draft)
                shared = False
        if self.have == start:
            self._data[start:end] = data
            self.have = end
        return shared

    def finish(self, shared: SharedMemory | None) -> tuple[str, Any] | None:
        """It is whole: its place where it is shared, and its bytes. None: these are lost, begin anew."""
        if self._draft is None or shared is None:
            return "", self._data
        placed = shared.publish(self._draft)
        self._draft = None
        if placed is None:
            self.have = 0
        return placed

    def drop(self) -> None:
        """Nobody wants it any more."""
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def _keep(self, draft: Draft) -> None:
        """There is no more room: go on in memory of our own, with what can be read."""
        self._draft = None
        try:
            found = draft.read(self.have)
        except OSError:
            found = b""
        self.have = len(found)
        self._data[: self.have] = found
        draft.discard()
