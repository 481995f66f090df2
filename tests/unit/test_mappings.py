"""Mappings of files, and huge pages for them: contents, addresses and what they cost."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ipython1.kernel.wire import mappings
from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.mappings import LARGE, PAGE, huge_page, map_file, map_in_huge_pages, room
from tests.unit.arenas import get, put

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux only")

SIZE = 16 << 20


@pytest.fixture
def fd(folder: Path) -> Iterator[int]:
    """An empty file in shared memory."""
    number = os.open(folder / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield number
    os.close(number)


@pytest.fixture
def huge(fd: int) -> None:
    """This kernel makes huge pages where it is asked to."""
    if map_in_huge_pages(fd, SIZE) is None:
        pytest.skip("no huge pages can be had here")
    os.ftruncate(fd, 0)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("offset", [0, PAGE, 7 * PAGE, LARGE])
def test_any_part_of_a_file_can_be_mapped(fd: int, offset: int) -> None:
    data = np.random.default_rng(offset).bytes(2 * LARGE + 100)
    os.pwrite(fd, data, 0)
    for length in (1, PAGE, LARGE - 1, LARGE, len(data) - offset):
        if offset + length <= len(data):
            view = map_file(fd, offset, length, mmap.MAP_PRIVATE)
            assert len(view) == length
            assert bytes(view) == data[offset : offset + length]


def test_a_mapping_ends_with_its_last_view(fd: int) -> None:
    os.ftruncate(fd, LARGE)
    before = Path("/proc/self/maps").read_text().count("/file")
    view = map_file(fd, 0, LARGE, mmap.MAP_PRIVATE)
    part = view[5:10]
    del view
    assert Path("/proc/self/maps").read_text().count("/file") == before + 1
    del part
    assert Path("/proc/self/maps").read_text().count("/file") == before


def test_room_is_whole_pages() -> None:
    assert [room(size) for size in (1, PAGE, PAGE + 1)] == [PAGE, PAGE, 2 * PAGE]
    assert room(LARGE) == LARGE
    assert room(LARGE + 1) == LARGE + huge_page()


def test_huge_pages_take_few_faults(fd: int, huge: None) -> None:
    data = np.arange(SIZE // 8)
    view = map_in_huge_pages(fd, SIZE)
    assert view is not None
    assert os.fstat(fd).st_blocks * 512 == SIZE  # nothing of it can be missing later
    private = map_file(fd, 0, SIZE - 100, mmap.MAP_PRIVATE)
    seen = np.frombuffer(private, "u1")[::PAGE]
    before = faults()
    np.frombuffer(view, data.dtype)[:] = data
    seen.max()
    assert faults() - before < SIZE // PAGE // 16
    private[0] = 200
    assert view[0] == 0


def without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "huge_page", lambda: PAGE)


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "_libc_madvise", lambda: lambda *args: -1)


@pytest.mark.parametrize("change", [without_any, refused])
def test_an_arena_does_without_huge_pages(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    change(monkeypatch)
    for digit in b"123":
        data = bytes([digit]) * (LARGE + 5)
        segment = put(arena, data, b"x" * digit)
        assert [bytes(view) for view in get(segment, folder)] == [data, b"x" * digit]
        arena.release(segment.name)
    assert arena.held == room(LARGE + PAGE + digit)


def test_an_arena_grows_in_huge_pages(arena: Arena, folder: Path, huge: None) -> None:
    for size in (LARGE - PAGE, LARGE + 1, 2 * LARGE, 3 * LARGE):
        data = os.urandom(size)
        segment = put(arena, data)
        assert bytes(get(segment, folder)[0]) == data
        arena.release(segment.name)
        assert arena.held == room(size)


def test_memory_that_is_missing_is_an_error(fd: int, huge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        map_in_huge_pages(fd, SIZE)
