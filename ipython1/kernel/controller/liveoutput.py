"""The last lines that engines print, kept only while somebody looks."""

from __future__ import annotations

from collections import deque
from typing import Any

from ipython1.kernel.wire.records import Event

#: Characters kept of what an engine prints between two looks, and of all engines together.
TEXT_KEPT = 4096
ALL_KEPT = 256 * 1024
SHOWN = frozenset({"stdout", "stderr"})
#: The fields of a chunk; `cut`: it lacks its beginning.
CHUNK = ("serial", "engine", "kind", "text", "cut")
_SERIAL, _ENGINE, _KIND, _TEXT, _CUT = range(len(CHUNK))


class LiveOutput:
    """A bounded tail of what passes through the controller."""

    def __init__(self) -> None:
        self.last = 0  # serial number of the last chunk
        self._watched = False
        self._size = 0
        self._chunks: deque[list[Any]] = deque()
        self._open: dict[int, list[Any]] = {}  # of each engine what nobody has seen yet

    @property
    def watched(self) -> bool:
        """Whether anything is kept."""
        return self._watched

    @watched.setter
    def watched(self, watched: bool) -> None:
        self._watched = watched
        if not watched:
            self._chunks.clear()
            self._open.clear()
            self._size = 0

    def event(self, event: Event) -> None:
        """A running command, or task, gave out something."""
        if not self._watched or event.kind not in SHOWN or not event.text:  # empty chunks would not count
            return
        text, chunk = event.text[-TEXT_KEPT:], self._open.get(event.engine)
        if chunk is None or chunk[_KIND] != event.kind:
            self.last += 1
            chunk = [self.last, event.engine, event.kind, "", False]
            self._open[event.engine] = chunk
            self._chunks.append(chunk)
        before = len(chunk[_TEXT])
        chunk[_CUT] = chunk[_CUT] or before + len(event.text) > TEXT_KEPT
        chunk[_TEXT] = (chunk[_TEXT] + text)[-TEXT_KEPT:]
        self._size += len(chunk[_TEXT]) - before
        while self._size > ALL_KEPT:
            oldest = self._chunks.popleft()
            self._size -= len(oldest[_TEXT])
            if self._open.get(oldest[_ENGINE]) is oldest:
                del self._open[oldest[_ENGINE]]

    def after(self, serial: int) -> list[list[Any]]:
        """The chunks behind chunk `serial`; they are complete then."""
        self._open.clear()
        return [list(chunk) for chunk in self._chunks if chunk[_SERIAL] > serial]
