"""Segments of an arena, also those that are still being filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ipython1.kernel.wire.blocks import Block

#: Offset (a multiple of a page) and length of each buffer.
Ranges = tuple[tuple[int, int], ...]


class Segment(NamedTuple):
    """Bytes in shared memory, as `Arena.put` laid them out; its own pieces serve `attach`."""

    #: ``folder/file``, good in every process with the same `host_token`.
    name: str
    #: Bytes from the beginning to the end of the last buffer.
    size: int
    #: Where its buffers are.
    ranges: Ranges


class Draft:
    """A segment that nobody knows yet, filled from its beginning on; end it with `publish` or `discard`.

    Made by `Arena.draft`; to be used by one thread.
    """

    def __init__(
        self,
        home: Path,
        block: Block,
        size: int,
        publish: Callable[[Path, Block, int, Ranges], Segment | None],
        discard: Callable[[Path, Block], None],
    ) -> None:
        self._home = home
        self._block = block
        self._size = size
        self._publish = publish
        self._discard = discard

    def write(self, offset: int, data: Any) -> None:
        """Put `data` in its place.

        Raises
        ------
        OSError
            There is no memory for it, or no folder any more.
        """
        view = memoryview(data)
        self._block.write_file(self._home, [((offset, len(view)), view)], self._size)

    def read(self, length: int) -> bytes:
        """The first `length` bytes. Raises an OSError where the folder is gone."""
        with open(self._home / self._block.file, "rb") as file:
            return file.read(length)

    def publish(self) -> Segment | None:
        """As `Arena.put`, once it is full; None where the arena was closed, or its folder lost."""
        return self._publish(self._home, self._block, self._size, ((0, self._size),))

    def discard(self) -> None:
        """Give its memory back."""
        self._discard(self._home, self._block)
