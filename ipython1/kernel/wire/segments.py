"""Shared memory of one user on one host: the folder, who may share, and the receiver's side.

`arena` writes segments, files in a folder of its own below ours in
``/dev/shm``; `attach` maps them copy-on-write. A mapping keeps the open file
it was made of alive, in forked children too, and that open file keeps a
shared `flock` until the last byte of the mapping is gone. So the writer learns
from the kernel, by asking for the exclusive lock, whether anybody can still
see a segment: no message, no finalizer and no guess comes into it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ipython1.kernel.wire.mappings import PAGE, map_file

#: Seconds after which what was begun in the folder and never finished is swept.
UNFINISHED = 60.0

_TOKEN = "token"
_NEW = ".new-"
_OWNER = "owner"
_FOLDER_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}", re.ASCII)
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


# -- the folder -----------------------------------------------------------------


def user_folder(folder: Path | None = None) -> Path | None:
    """The folder that all our processes on this host share, made where it is missing.

    Parameters
    ----------
    folder : Path, optional
        Another one than ``/dev/shm/ipython1-<uid>``.

    Returns
    -------
    Path or None
        None where it can't be had, or is not safely ours: a link, another
        owner's, or open to others.
    """
    if sys.platform != "linux":
        return None
    if folder is None:
        folder = Path(f"/dev/shm/ipython1-{os.getuid()}")
    try:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        return folder if _is_private(os.lstat(folder), stat.S_ISDIR) else None
    except OSError:
        return None


def _is_private(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def host_token(folder: Path | None = None) -> str | None:
    """What two processes have in common that can share memory: host, user and ``/dev/shm``.

    Compare it as a hash. It stays in the folder until the host starts anew.

    Returns
    -------
    str or None
        32 hex digits; None where memory can't be shared.
    """
    place = user_folder(folder)
    if place is None:
        return None
    try:
        return _read_token(place) or _make_token(place)
    except OSError:
        return None


def _read_token(place: Path) -> str | None:
    try:
        fd = os.open(place / _TOKEN, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, 100).decode("ascii", "replace")
        if _is_private(os.fstat(fd), stat.S_ISREG) and re.fullmatch(r"[0-9a-f]{32}", text, re.ASCII):
            return text
    finally:
        os.close(fd)
    raise PermissionError(errno.EPERM, "not a token of ours", os.fspath(place / _TOKEN))


def _make_token(place: Path) -> str | None:
    new = place / (_NEW + secrets.token_hex(8))
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    try:
        os.write(fd, secrets.token_hex(16).encode())
        try:
            os.link(new, place / _TOKEN)  # unlike a rename, the first one stays
        except FileExistsError:
            pass
    finally:
        os.close(fd)
        new.unlink(missing_ok=True)
    return _read_token(place)


def make_owned_folder(place: Path) -> tuple[Path, int]:
    """A new folder for segments in `place`, and the descriptor that shows its owner lives.

    It gets its name only when it is locked, so that no `sweep` ever sees a
    living owner's folder without the lock.
    """
    name = secrets.token_hex(8)
    new = place / (_NEW + name)
    new.mkdir(mode=0o700)
    fd = os.open(new / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, place / name)
    except OSError:
        os.close(fd)
        shutil.rmtree(new, ignore_errors=True)
        raise
    return place / name, fd


def sweep(folder: Path | None = None) -> int:
    """Remove what processes left that ended without cleaning up; never anything of a living one.

    Returns
    -------
    int
        How many folders of segments were removed.
    """
    place = user_folder(folder)
    if place is None:
        return 0
    removed = 0
    for path in _entries(place):
        name = path.name
        if name.startswith(_NEW):
            _remove_unfinished(path)
        elif _FOLDER_NAME.fullmatch(name) and _owner_is_gone(path):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _entries(place: Path) -> list[Path]:
    try:
        return list(place.iterdir())
    except OSError:
        return []


def _remove_unfinished(path: Path) -> None:
    try:
        if time.time() - os.lstat(path).st_mtime < UNFINISHED:
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:
        pass  # its owner was just slow and has finished it


def _owner_is_gone(path: Path) -> bool:
    try:
        fd = os.open(path / _OWNER, os.O_RDWR | _OPEN)
    except FileNotFoundError:
        return True  # an earlier sweep began with the owner
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def space(place: Path) -> tuple[int, int]:
    """Bytes of a file system, all and free."""
    found = os.statvfs(place)
    if not found.f_blocks:  # a tmpfs without a limit
        return 0, memory()
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def memory() -> int:
    """Bytes of memory this process may use with others, as a container sees it."""
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text()
    except OSError:
        return memory
    return min(memory, int(text)) if text.strip().isdigit() else memory


# -- mappings -------------------------------------------------------------------


def attach(
    name: str, ranges: Sequence[tuple[int, int]], folder: Path | None = None
) -> list[memoryview] | None:
    """Views of a published segment, copy-on-write: writable, private, no byte copied before it is written.

    The segment's owner can't use its memory again before every view is gone,
    with all that was made of them (slices, arrays, copies in forked children).

    Parameters
    ----------
    name : str
        `Segment.name`.
    ranges : sequence of (int, int)
        Offset and length in bytes of each view, offsets at multiples of `PAGE`.

    Returns
    -------
    list of memoryview, or None
        None where it can't be had: it was released, its owner is another
        user or on another host, or there is less of it than was claimed.
    """
    if not _SEGMENT_NAME.fullmatch(name):
        return None
    if any(offset < 0 or offset % PAGE or length < 0 for offset, length in ranges):
        return None
    place = user_folder(folder)
    if place is None:
        return None
    first = min((offset for offset, _ in ranges), default=0)
    end = max((offset + length for offset, length in ranges), default=0)
    try:
        path = place / name
        if not _is_private(os.lstat(path.parent), stat.S_ISDIR):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
        try:
            found = os.fstat(fd)
            if not _is_private(found, stat.S_ISREG) or found.st_size < end:
                return None
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Its owner first takes the name away and then looks at the lock: a name
            # that is still there after the lock was taken says that we were in time.
            if not os.path.samestat(found, os.lstat(path)):
                return None
            if end == first:
                return [memoryview(bytearray()) for _ in ranges]
            whole = map_file(fd, first, end - first, mmap.MAP_PRIVATE)
        finally:
            os.close(fd)
    except (OSError, ValueError, OverflowError):
        return None
    return [whole[offset - first : offset - first + length] for offset, length in ranges]


def is_unseen(path: Path) -> bool:
    """Whether no process has a file mapped through `attach`."""
    fd = os.open(path, os.O_RDWR | _OPEN)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def kernel_tells(home: Path) -> bool:
    """Whether the lock of a mapped file really lasts exactly as long as the mapping."""
    file = secrets.token_hex(16)
    path = home / file
    try:
        fd = os.open(path, os.O_RDWR | _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.pwrite(fd, b"seen", 0)
        finally:
            os.close(fd)
        before = is_unseen(path)
        views = attach(f"{home.name}/{file}", [(0, 4)], home.parent)
        during = views is not None and bytes(views[0]) == b"seen" and not is_unseen(path)
        del views
        after = is_unseen(path)
        os.unlink(path)
    except OSError:
        return False
    return before and during and after
