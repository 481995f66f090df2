"""What a running command gives out, on its way from the thread that runs it to the reactor."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Union

Buffer = Union[bytes, bytearray, memoryview]
#: the job, kind (as in `records.Event`), text, parts
Item = tuple[Any, str, str, list[Buffer]]

#: What one command may print and display, in characters and bytes; the rest is dropped.
OUTPUT_LIMIT = 32 * 1024 * 1024
#: A command waits while more than this has not been taken.
HIGH_WATER = 4 * 1024 * 1024
#: Bytes of text in one item taken.
TEXT_LIMIT = 32 * 1024
#: What an item counts besides its content.
OVERHEAD = 64
#: Bytes read from a source at once, and in one `OutputBuffer.collect`.
READ_SIZE, COLLECT_LIMIT = 64 * 1024, 1024 * 1024
#: Seconds between looks at the sources while much is written: less than a process takes to start.
COLLECT_PAUSE = 0.0005
#: Seconds that the end of a command waits for a thread that reads the sources.
COLLECT_TIME = 1.0

#: Kinds that `OUTPUT_LIMIT` applies to.
CAPPED = frozenset({"stdout", "stderr", "display"})
TEXTS = frozenset({"stdout", "stderr"})


class Source(Protocol):
    """Output that does not come by itself; see `DescriptorOutput`."""

    kind: str
    flush: Callable[[], None]

    def begin(self) -> None: ...

    def size(self) -> int: ...

    def skip(self, stop: int) -> None: ...

    def behind(self, stop: int) -> bool: ...

    def read(self, stop: int, limit: int) -> str: ...

    def rest(self) -> str: ...


class OutputBuffer:
    """Collects the output of the running command until it is taken.

    Any thread may write. No lock is waited for: an interrupt can strike anywhere
    in a print, and each step here leaves a good state behind.

    Parameters
    ----------
    wake : callable
        Called, on the writing thread, when there is something to take.
    wait : bool
        The thread that runs the command waits while `HIGH_WATER` is exceeded.
        False where that thread also takes.
    sources : sequence of Source
        Read by `collect`, before what is written, and at the end of a command.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        wait: bool = True,
        sources: Sequence[Source] = (),
    ) -> None:
        self._wake = wake
        self._wait = wait
        self._sources = sources
        self._reading = threading.Lock()  # the sources; see `begin`
        self._read_at = 0.0
        self._items: deque[Item] = deque()
        self._awake = False
        self._command: Any = None
        self._process = os.getpid()
        self._thread = 0  # of the command
        self._given = 0  # by this command, of the capped kinds
        self._full = False
        self._put = 0  # ever
        self._taken = 0  # ever
        self._gate = threading.Lock()  # released by `take` to let a waiting writer go on
        self._gate.acquire()

    def begin(self, command: object) -> None:
        """From now on output belongs to `command`, a job, which runs on this thread."""
        self._given, self._full = 0, False
        self._thread = threading.get_ident()
        if self._sources:
            self._reading = threading.Lock()  # an interrupt may have kept the last one from being released
            for source in self._sources:
                source.begin()
        self._command = command

    def end(self) -> None:
        """The command is over: output of threads it left behind belongs to nobody."""
        # Not in a child that user code forked: its parent reads.
        if self._sources and self._process == os.getpid():
            for source in self._sources:
                source.flush()
            stops = [source.size() for source in self._sources]  # who goes on writing is not waited for
            if self._reading.acquire(timeout=COLLECT_TIME):
                self._read(stops, OUTPUT_LIMIT)
                for source in self._sources:
                    rest = source.rest()
                    if rest:
                        self._append(source.kind, rest, [])
        self._command = None
        if self._items:
            self._wake()

    def collect(self) -> None:
        """Take what came in at the sources, if a command runs; any thread, now and then."""
        reading = self._reading
        # Another thread that is at it will see it as well.
        if self._command is not None and reading.acquire(blocking=False):
            try:
                self._read_at = time.monotonic()
                self._read([source.size() for source in self._sources], COLLECT_LIMIT)
            finally:
                reading.release()

    def _read(self, stops: Sequence[int], limit: int) -> None:
        for source, stop in zip(self._sources, stops, strict=True):
            left = limit
            while source.behind(stop):
                if self._full:
                    source.skip(stop)
                    break
                if left <= 0:
                    break
                else:
                    left -= READ_SIZE
                    self._append(source.kind, source.read(stop, READ_SIZE), [])

    def write(self, kind: str, text: str) -> bool:
        """Text printed by the running command; False where none runs in this process."""
        return self.add(kind, text, [])

    def add(self, kind: str, text: str, parts: Sequence[Buffer]) -> bool:
        """One output of the running command; `parts` are not copied."""
        # A child forked by user code has a copy of this that nobody takes from.
        if self._command is None or self._process != os.getpid():
            return False
        if self._sources and time.monotonic() - self._read_at > COLLECT_PAUSE:
            self.collect()
        return self._append(kind, text, parts)

    def _append(self, kind: str, text: str, parts: Sequence[Buffer]) -> bool:
        command = self._command
        if command is None:  # it ended just now
            return False
        size = len(text) + sum(len(part) for part in parts)
        if kind in CAPPED:
            if self._full:
                return True
            if self._given + size > OUTPUT_LIMIT:
                self._full = True
                kind, parts = "stderr", []
                text = f"\nMore than {OUTPUT_LIMIT >> 20} MiB of output: the rest is dropped.\n"
                size = len(text)
            self._given += size
        self._put += size + OVERHEAD
        self._items.append((command, kind, text, list(parts)))
        if not self._awake:
            try:
                self._awake = True
                self._wake()
            except BaseException:  # interrupted: the next one tries again
                self._awake = False
                raise
        if self._wait and self._thread == threading.get_ident():
            while self._put - self._taken > HIGH_WATER and self._items:
                # The time-out is for a `take` that came between the look and the wait.
                self._gate.acquire(timeout=0.1)
        return True

    def take(self) -> list[Item]:
        """What came since the last call, with neighbouring texts joined; one thread only."""
        self._awake = False
        if not self._items:
            return []
        items = []
        with contextlib.suppress(IndexError):
            while True:
                items.append(self._items.popleft())
        self._taken += sum(len(text) + sum(map(len, parts)) + OVERHEAD for _, _, text, parts in items)
        with contextlib.suppress(RuntimeError):  # nobody waits
            self._gate.release()
        return list(_coalesced(items))


def _coalesced(items: Sequence[Item]) -> Iterator[Item]:
    start = 0
    while start < len(items):
        command, kind = items[start][:2]
        end = start + 1
        while kind in TEXTS | {"progress"} and end < len(items) and items[end][:2] == (command, kind):
            end += 1
        if kind in TEXTS:
            for text in _pieces("".join(item[2] for item in items[start:end])):
                yield command, kind, text, []
        else:
            yield items[end - 1]  # of progress only the last counts
        start = end


def _pieces(text: str) -> Iterator[str]:
    step = TEXT_LIMIT if text.isascii() else TEXT_LIMIT // 4
    for start in range(0, len(text), step):
        yield text[start : start + step]


class OutputStream(io.TextIOBase):
    """A ``sys.stdout`` or ``sys.stderr`` that hands on text.

    Parameters
    ----------
    kind : {'stdout', 'stderr'}
    emit : callable
        ``emit(kind, text)``; returns False where nobody wants the text, which
        then goes to the process's own stream.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    mode = "w"
    line_buffering = True

    def __init__(self, kind: str, emit: Callable[[str, str], bool]) -> None:
        self._kind = kind
        self._emit = emit
        self.name = f"<{kind}>"
        self.buffer = _ByteStream(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        sendable = text if text.isascii() else text.encode("utf-8", self.errors).decode("utf-8")
        if sendable and not self._emit(self._kind, sendable):
            with contextlib.suppress(OSError):
                os.write(self.fileno(), sendable.encode("utf-8"))
        return len(text)

    def fileno(self) -> int:
        return 1 if self._kind == "stdout" else 2

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def reconfigure(self, **options: Any) -> None:
        """Accepted, without effect: text needs no encoding here."""

    def close(self) -> None:
        """The stream stays open: the next command needs it."""


class _ByteStream(io.BufferedIOBase):
    """``sys.stdout.buffer``: bytes that are UTF-8 text, or shown escaped."""

    def __init__(self, text: OutputStream) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._text.write(self._decoder.decode(raw))
        return len(raw)

    def fileno(self) -> int:
        return self._text.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """The stream stays open: the next command needs it."""
