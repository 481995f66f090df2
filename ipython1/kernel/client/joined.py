"""Memory for large arrays put together from parts.

Memory touched for the first time costs about as much as copying into it. So
that of a joined array that is gone serves the next one: NumPy keeps the owner
of an array's memory alive as long as any view of it, and when the owner goes,
the memory comes back here. It is private to the process, one piece of it is
kept, and the kernel may take its pages meanwhile.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ipython1.kernel.wire.copying import copy_arrays
from ipython1.kernel.wire.segments import memory

#: Arrays of fewer bytes are NumPy's own affair.
LARGE = 4 << 20
#: What is kept is at most this part of the host's memory.
KEPT = 8
#: Kinds of dtypes whose items are plain bytes.
PLAIN = "biufcmM"


class _Owner:
    """Whose end is the end of the last view of `mapping`."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping: mmap.mmap | None = None  # where it goes with its owner
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (len(mapping),),
            "data": (address, False),
        }


class Recycler:
    """Gives out private memory, and takes back what nobody has any more. Thread-safe."""

    def __init__(self) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=1)  # no lock: finalizers give back

    def empty(self, size: int) -> Any:
        """An array of at least `size` bytes, with any content.

        Raises
        ------
        OSError
            There is no such memory.
        """
        mapping = self._take(size) or _new(size)
        owner = _Owner(mapping)
        if len(mapping) <= memory() // KEPT:
            weakref.finalize(owner, self._give_back, mapping).atexit = False
        else:
            owner.mapping = mapping
        return sys.modules["numpy"].asarray(owner)

    @property
    def idle(self) -> int:
        """Bytes that wait for the next one."""
        return sum(map(len, list(self._idle)))

    def _take(self, size: int) -> mmap.mmap | None:
        try:
            mapping = self._idle.pop()
        except IndexError:
            return None
        return mapping if size <= len(mapping) <= 2 * size else None

    def _give_back(self, mapping: mmap.mmap) -> None:
        try:
            mapping.madvise(mmap.MADV_FREE)  # the kernel may take the pages, and need not
        except OSError:
            return  # it takes them now, with the mapping
        self._idle.append(mapping)


def _new(size: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without
    return mapping


recycler = Recycler()


def join_plain(parts: Sequence[Any], places: Iterable[slice]) -> Any | None:
    """One array of large arrays that differ in nothing but their length, each at its place.

    Parameters
    ----------
    parts : sequence of ndarray
    places : iterable of slice
        Where in the whole the items of each part stand.

    Returns
    -------
    ndarray or None
        Writable, of memory of its own; None where the parts are small or not
        alike, or the system cannot give and take memory so.
    """
    size = sum(part.nbytes for part in parts)
    if size < LARGE or sys.platform != "linux" or not _alike(parts):
        return None
    first = parts[0]
    shape = (sum(map(len, parts)), *first.shape[1:])
    try:
        room = recycler.empty(size)
    except OSError:
        return None
    whole = room[:size].view(first.dtype).reshape(shape)
    copy_arrays([(whole[place], part) for place, part in zip(places, parts, strict=True)])
    return whole


def _alike(parts: Sequence[Any]) -> bool:
    numpy = sys.modules["numpy"]
    first = parts[0]
    return (
        first.dtype.kind in PLAIN
        and first.dtype.isnative
        and all(
            type(part) is numpy.ndarray
            and part.dtype == first.dtype
            and part.shape[1:] == first.shape[1:]
            and part.flags.c_contiguous
            for part in parts
        )
    )
