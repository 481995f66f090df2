"""The files an arena keeps its segments in, and what goes into them.

One of huge pages is mapped anew for each use, which costs next to nothing; one
of many small pages stays mapped.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from ipython1.kernel.wire.copying import copy_bytes
from ipython1.kernel.wire.mappings import LARGE, PAGE, map_file, map_in_huge_pages

#: Segments of at least so many bytes stay mapped between two uses.
STAY_MAPPED = 1 << 20

#: Offset and length in the segment, and what comes there.
Piece = tuple[tuple[int, int], memoryview]

_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Block:
    """A file of ours, in pages: `capacity` is what it may take, `filled` what has memory.

    `since` is when `Arena.trim` first saw it idle, or released; `huge`, that it
    is of huge pages.
    """

    __slots__ = ("capacity", "file", "filled", "huge", "mapping", "since")

    def __init__(self, file: str) -> None:
        self.file = file
        self.capacity = 0
        self.filled = 0
        self.huge = False
        self.mapping: memoryview | None = None
        self.since: float | None = None

    def fits(self, size: int) -> bool:
        """Neither would most of it stay unused, nor most of the memory be new."""
        return size <= 2 * self.capacity and self.capacity <= max(4 * size, STAY_MAPPED)

    def write(self, home: Path, pieces: Iterable[Piece], size: int) -> None:
        """Copy the pieces to their places. Nobody else has the file mapped.

        Raises
        ------
        OSError
            There is no memory for them, or no folder any more.
        """
        mapping = self.mapping
        if size > self.filled and size >= LARGE:
            mapping = self._fill_with_huge_pages(home)
        if size > self.filled or self.filled < STAY_MAPPED:
            self.write_file(home, pieces, size)
            return
        if mapping is None:
            mapping = self._map(home)
        if not self.huge:
            self.mapping = mapping
        for (start, length), view in pieces:
            copy_bytes(mapping[start : start + length], view)

    def _fill_with_huge_pages(self, home: Path) -> memoryview | None:
        self.mapping = None
        fd = os.open(home / self.file, _FLAGS | os.O_CREAT, 0o600)
        try:
            mapping = map_in_huge_pages(fd, self.capacity)
        finally:
            os.close(fd)
        self.huge = mapping is not None
        if self.huge:
            self.filled = self.capacity
        return mapping

    def _map(self, home: Path) -> memoryview:
        fd = os.open(home / self.file, _FLAGS)
        try:
            return map_file(fd, 0, self.filled, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(fd)

    def write_file(self, home: Path, pieces: Iterable[Piece], size: int) -> None:
        """The same through the file, which may be done piece by piece; `size` is that of all of them."""
        # New small pages are filled fastest by writing to the file, and where there is
        # no memory that is an error; touching a mapping would be a SIGBUS.
        fd = os.open(home / self.file, _FLAGS | os.O_CREAT, 0o600)
        try:
            for (start, length), view in pieces:
                done = 0
                while done < length:
                    done += os.pwrite(fd, view[done:], start + done)
            self.filled = max(self.filled, -(-size // PAGE) * PAGE)
            os.ftruncate(fd, self.filled)  # to the end of the page
        finally:
            os.close(fd)
        if self.mapping is not None and len(self.mapping) < self.filled:
            self.mapping = None


def best(blocks: Iterable[Block], size: int) -> Block | None:
    """The one to take for `size` bytes, if any."""
    fitting = [block for block in blocks if block.fits(size)]
    large = [block for block in fitting if block.capacity >= size]
    if large:
        return min(large, key=lambda block: block.capacity)
    return max(fitting, key=lambda block: block.capacity, default=None)
