"""Several small things in the parts of one task: its arguments, or what came of it.

The first part says what is where, the second holds the bytes of all that is
small, and the large ones follow, each as a part of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Union

from ipython1.kernel.error import WireError
from ipython1.kernel.wire.codec import pack, unpack

Buffer = Union[bytes, bytearray, memoryview]

#: Things in one task, at most.
CHUNK_LIMIT = 10_000
#: Parts of at least so many bytes are not put together with others.
LARGE = 16 * 1024
#: Stands for the size of one of those.
_APART = -1


class Row(NamedTuple):
    """One of several things: plain facts about it, and its parts."""

    facts: tuple[Any, ...]
    parts: Sequence[Buffer]


def join_rows(rows: Iterable[Row]) -> list[Buffer]:
    """The parts that hold `rows`; bytes are copied, but for those of large parts."""
    heads: list[Any] = []
    small: list[Buffer] = []
    large: list[Buffer] = []
    for facts, parts in rows:
        sizes = []
        for part in parts:
            if len(part) < LARGE:
                sizes.append(len(part))
                small.append(part)
            else:
                sizes.append(_APART)
                large.append(part)
        heads.append((facts, sizes))
    return [pack(heads), b"".join(small), *large]


def split_rows(parts: Sequence[Buffer]) -> Iterator[Row]:
    """The rows in `parts`, as `join_rows` made them.

    Raises
    ------
    WireError
        They were not made so.
    """
    try:
        head, joined, *large = parts
        small = bytes(joined)
        place = 0
        rest = iter(large)
        for facts, sizes in unpack(bytes(head)):
            own: list[Buffer] = []
            for size in sizes:
                if size == _APART:
                    own.append(next(rest))
                else:
                    own.append(small[place : place + size])
                    place += size
            yield Row(facts, own)
    except (TypeError, ValueError, StopIteration) as error:
        raise WireError(reason=f"not the parts of a chunk ({type(error).__name__})") from None
