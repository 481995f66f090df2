"""What arrives at fds 1 and 2 while a command runs: of child processes, and of C code.

Both descriptors of an engine are files. What is written to one is in the file
at once, whatever becomes of the process, and no writer ever waits for a reader,
as it would at a pipe while C code holds the GIL. So the file is read behind the
writers: now and then, before each print, and at the end of the command.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import functools
import os
import stat
from collections.abc import Callable

#: Bytes that may stay in the file of a descriptor when they are of no use any more: the client has
#: them, or nobody gets them. Of stderr so many are left for the last words of the engine.
KEPT = 16 * 1024 * 1024
LAST_WORDS = 64 * 1024

_LINE_BUFFERED = 1  # `_IOLBF` of <stdio.h>, on Linux, macOS and the BSDs


class DescriptorOutput:
    """Follows the file behind a standard descriptor, which is open for reading too.

    Parameters
    ----------
    kind : {'stdout', 'stderr'}
    fd : int
        Duplicated: user code may put something else in its place.
    flush : callable
        Has this process write what it holds back.
    """

    def __init__(self, kind: str, fd: int, flush: Callable[[], None]) -> None:
        self.kind = kind
        self.flush = flush
        self._fd = os.dup(fd)
        self._appended = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        self._position = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def size(self) -> int:
        """Bytes that were ever written."""
        if self._appended:  # nobody minds where the offset is; this is four times as fast
            return os.lseek(self._fd, 0, os.SEEK_END)
        return os.fstat(self._fd).st_size

    def begin(self) -> None:
        """What was written before is of no interest."""
        self.skip(self.size())
        self._decoder.reset()

    def skip(self, stop: int) -> None:
        """Do not read what was written before `stop`; much of it is removed."""
        if stop > KEPT:
            last = os.pread(self._fd, LAST_WORDS, max(0, stop - LAST_WORDS)) if self.kind == "stderr" else b""
            os.ftruncate(self._fd, 0)
            if last:
                os.write(self._fd, last)
            stop = self.size()
        self._position = stop

    def behind(self, stop: int) -> bool:
        """Whether something up to `stop` was not read yet."""
        if stop < self._position:  # somebody has truncated the file
            self._position = 0
        return self._position < stop

    def read(self, stop: int, limit: int) -> str:
        """The next text, of at most `limit` bytes, up to `stop`."""
        data = os.pread(self._fd, min(limit, stop - self._position), self._position)
        if not data:
            self._position = stop
        self._position += len(data)
        return self._decoder.decode(data)

    def rest(self) -> str:
        """What is left of a character that was cut off at the end."""
        return self._decoder.decode(b"", True)


def standard_outputs() -> list[DescriptorOutput]:
    """Those of fds 1 and 2 that are a file each."""
    facts = [os.fstat(fd) for fd in (1, 2)]
    if os.path.samestat(*facts) or not all(stat.S_ISREG(fact.st_mode) for fact in facts):
        return []
    return [
        DescriptorOutput("stdout", 1, line_buffered_c_stdout()),
        DescriptorOutput("stderr", 2, _nothing),
    ]


def line_buffered_c_stdout() -> Callable[[], None]:
    """Have C's ``stdout`` hold back no whole line, as it would in a file; returns what writes the rest."""
    library = ctypes.CDLL(None)
    for name in ("stdout", "__stdoutp"):  # the latter: macOS and the BSDs
        with contextlib.suppress(ValueError):
            stream = ctypes.c_void_p.in_dll(library, name)
            library.setvbuf(stream, None, _LINE_BUFFERED, ctypes.c_size_t(0))
            return functools.partial(library.fflush, stream)
    return _nothing


def _nothing() -> None:
    """Nothing is held back."""
