"""Detached work on disk: one file a parcel, which grows at its end.

A file is a row of frames: a letter, a length, and so many bytes.

======  ==================================================================
letter  what it holds
======  ==================================================================
``r``   an encoded `Submit`, `Batch` or `Work`
``n``   the name of the blob in the next frame
``b``   that blob; room for it is made first, and filled as its bytes come
``e``   units of work that have ended: ``[id, [[slot, ok, engine], ...]]``
``f``   an encoded `Result`, or `Outcomes` of one task, that no engine knows
======  ==================================================================

The name of a file that is not whole yet ends with ``.part``; nobody was told
that it is safe. Whether a last frame is whole shows in its length: one that a
killed controller has begun is cut off by the next one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from ipython1.kernel.error import WireError

RECORD, NAME, BLOB, ENDS, ANSWER = b"r", b"n", b"b", b"e", b"f"
_HEAD = struct.Struct(">cQ")
_NAME = re.compile(r"[0-9A-Za-z]{1,64}-[0-9]{1,20}")
_PART = ".part"


class Frame(NamedTuple):
    """Where a frame is; `size` without its head."""

    kind: bytes
    start: int
    size: int


class Parcel:
    """The file of one parcel.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    name : str
        ``<client>-<number>``.

    Raises
    ------
    WireError
        This cannot be the name of a file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise WireError(reason=f"{name[:100]!r} is no name of a parcel")
        self.name = name
        self.client = name.partition("-")[0]
        self.size = 0
        self._folder = folder
        self._final = folder / name
        self._path = folder / f"{name}{_PART}"
        self._blobs: dict[str, Frame] = {}
        self._map: mmap.mmap | None = None

    # -- writing ------------------------------------------------------------------------

    def create(self) -> None:
        """Begin the file."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._path.unlink(missing_ok=True)
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def append(self, kind: bytes, *items: bytes) -> list[Frame]:
        """Add frames of one kind at the end."""
        frames: list[Frame] = []
        written: list[bytes] = []
        end = self.size
        for item in items:
            frames.append(Frame(kind, end + _HEAD.size, len(item)))
            written += [_HEAD.pack(kind, len(item)), item]
            end += _HEAD.size + len(item)
        self._write(self.size, b"".join(written))
        self.size = end
        return frames

    def reserve(self, blobs: Iterable[tuple[str, int]]) -> None:
        """Make room for blobs, by name and size: for all at once, there may be tens of thousands."""
        heads: list[tuple[int, bytes]] = []
        end = self.size
        for blob, size in blobs:
            name = blob.encode()
            head = b"".join((_HEAD.pack(NAME, len(name)), name, _HEAD.pack(BLOB, size)))
            heads.append((end, head))
            self._blobs[blob] = Frame(BLOB, end + len(head), size)
            end += len(head) + size
        with open(self._path, "r+b", buffering=0) as file:
            for offset, head in heads:
                _put(file, offset, head)
            file.truncate(end)
        self.size = end

    def fill(self, blob: str, offset: int, data: bytes) -> None:
        """Write bytes of a blob."""
        frame = self._blobs[blob]
        if offset + len(data) > frame.size:
            raise WireError(reason=f"blob {blob!r} has only {frame.size} bytes")
        self._write(frame.start + offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        with open(self._path, "r+b", buffering=0) as file:
            _put(file, offset, data)

    def keep(self) -> None:
        """All of it is here: have it on the disk for good. Takes its time; any thread."""
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._path, self._final)
        self._path = self._final
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def shrink(self, answers: list[bytes]) -> None:
        """Keep only answers that no engine knows."""
        small = Parcel(self._folder, self.name)
        small.create()
        small.append(ANSWER, *answers)
        os.replace(small._path, self._final)
        self._path, self.size = self._final, small.size
        self._blobs.clear()
        self._map = None

    def delete(self) -> None:
        """Remove the file, and the folder with the last one."""
        self._map = None
        with contextlib.suppress(OSError):  # of the folder: there are others
            self._path.unlink(missing_ok=True)
            self._folder.rmdir()

    # -- reading ----------------------------------------------------------------------------

    def open(self) -> list[Frame]:
        """The frames of a file that is there; what was not finished is cut off."""
        self._path = self._final
        frames: list[Frame] = []
        length = self._path.stat().st_size
        name = ""
        with self._path.open("r+b") as file:
            while self.size + _HEAD.size <= length:
                file.seek(self.size)
                kind, size = _HEAD.unpack(file.read(_HEAD.size))
                frame = Frame(kind, self.size + _HEAD.size, size)
                if frame.start + size > length:
                    break
                if kind == NAME:
                    name = file.read(size).decode()
                elif kind == BLOB:
                    self._blobs[name] = frame
                frames.append(frame)
                self.size = frame.start + size
            file.truncate(self.size)
        return frames

    def read(self, frames: list[Frame]) -> Iterator[bytes]:
        """What frames hold."""
        with self._path.open("rb") as file:
            for frame in frames:
                file.seek(frame.start)
                yield file.read(frame.size)

    @property
    def blobs(self) -> dict[str, int]:
        """Names and sizes of the blobs."""
        return {name: frame.size for name, frame in self._blobs.items()}

    def blob(self, name: str) -> memoryview | None:
        """The bytes of a blob, read from disk as they are needed."""
        frame = self._blobs.get(name)
        if frame is None:
            return None
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._map)[frame.start : frame.start + frame.size]


def _put(file: FileIO, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def kept_parcels(folder: Path) -> list[str]:
    """Names of the parcels that are safe, oldest first; what is left of others is removed."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    names: list[str] = []
    for path in paths:
        if _NAME.fullmatch(path.name):
            names.append(path.name)
        elif path.name.endswith(_PART):
            path.unlink(missing_ok=True)
    return sorted(names, key=lambda name: (folder / name).stat().st_mtime)
