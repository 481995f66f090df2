"""Files mapped into memory, and memory for them in huge pages.

A small page of new memory costs more than what is copied into it: the kernel
finds and clears it, and everyone who maps it has to be given it once more. For
files in ``/dev/shm`` Linux makes huge pages where it is asked to
(``MADV_COLLAPSE``, from Linux 6.1 on), whatever its settings are, but for
``deny``. Of 80 MB a receiver then has 40 pages and not 20,000, and the sender
fills them in half the time. Where they are refused, small pages do.
Mappings begin where huge pages fit.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

PAGE = mmap.PAGESIZE
#: Mappings of fewer bytes have nothing of huge pages.
LARGE = 4 << 20

_MAP_FIXED = 0x10
_MADV_COLLAPSE = 25


def room(size: int) -> int:
    """Bytes of the pages that `size` bytes take in a file of their own."""
    page = huge_page() if size >= LARGE else PAGE
    return -(-size // page) * page


@functools.cache
def huge_page() -> int:
    """Bytes of a huge page; those of a page where there are none that would be of use here."""
    try:
        size = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return PAGE
    return size if PAGE < size <= LARGE else PAGE


@functools.cache
def _libc_mmap() -> Callable[..., int | None]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return function  # type: ignore[no-any-return]


@functools.cache
def _libc_madvise() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function  # type: ignore[no-any-return]


def map_file(fd: int, offset: int, length: int, flags: int) -> memoryview:
    """Map part of an open file, writable, without keeping a descriptor.

    `mmap.mmap` would hold a duplicate of `fd` as long as it lives, and a few
    hundred arrays would use up what a process may open. So the file is put in
    place of the pages of an anonymous mapping, which looks after the lifetime.

    Raises
    ------
    OSError
        The kernel refuses.
    """
    page = huge_page() if length >= LARGE else PAGE
    mapping = mmap.mmap(-1, length + page - PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    skipped = (offset - begin) % page  # address and offset fall on the same place of a page
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = begin + skipped
    if _libc_mmap()(address, length, protection, flags | _MAP_FIXED, fd, offset) != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return memoryview(mapping)[skipped : skipped + length]


def map_in_huge_pages(fd: int, size: int) -> memoryview | None:
    """Give a file that nobody has mapped `size` bytes of memory, all there, and map it.

    Parameters
    ----------
    fd : int
        Its content counts no more.
    size : int
        A multiple of `huge_page`.

    Returns
    -------
    memoryview or None
        None where there are no huge pages. Some of the file may have memory.

    Raises
    ------
    OSError
        There is not even memory for a beginning.
    """
    page = huge_page()
    if page == PAGE:
        return None
    os.ftruncate(fd, size)
    for offset in range(0, size, page):  # without a page no huge one takes its place
        os.pwrite(fd, b"\0", offset)
    mapping = map_file(fd, 0, size, mmap.MAP_SHARED)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return mapping if _libc_madvise()(address, size, _MADV_COLLAPSE) == 0 else None
