"""How whoever started a nanny from afar can still reach it: by its stdin, or if that broke, a Unix socket.

==========================  =========================================================
the line ``quit``           stop all engines, and end
the end without that line   none: a link broke, or nobody has more to say; the engines
                            go on as long as they find the controller
a connection to the socket  takes the place of stdin, or of the connection before
==========================  =========================================================

Whoever connects to the socket hears ``ended N``, the exit status, before its end.
Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Protocol

from ipython1.kernel.engine.zygote import IFile

#: Exit status of `rejoin` where the nanny is gone.
GONE = 6
#: What the launcher looks for on stdout.
STARTED, REJOINED = "ipython1: nanny started", "ipython1: nanny rejoined"
#: ... and behind the former, where the nanny cannot be rejoined.
DEAF = "deaf"
#: The first that one who rejoins says.
HERE = b"here\n"
#: Bytes of a line at most.
LIMIT = 65536

log = logging.getLogger(__name__)


class IWatcher(Protocol):
    """What a `Leash` needs of a zygote."""

    def watch(self, file: IFile, ready: Callable[[], None]) -> None: ...

    def unwatch(self, file: IFile) -> None: ...


class Leash:
    """The nanny's end of it. It takes stdin, and leaves /dev/null in its place.

    Parameters
    ----------
    folder, key
        Where to listen, see `socket_path`; without a key, nowhere.
    broke : callable
        Called when stdin has ended without the word, and so, where it came by ssh, stdout and stderr have.
    fd : int
        Stdin.
    """

    def __init__(
        self,
        folder: Path | None = None,
        key: str = "",
        broke: Callable[[], None] = lambda: None,
        fd: int = 0,
    ) -> None:
        self._stdin = os.fdopen(os.dup(fd), "rb", buffering=0)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, fd)
        os.close(nowhere)
        self._current: RawIOBase | None = self._stdin
        self._parent = os.getppid()
        self._broke = broke
        self._rest = b""
        self._told = False  # to quit
        self._path = socket_path(folder, key) if folder is not None and key else None
        self._listener = None if self._path is None else _listen(self._path)
        self._quit: Callable[[], None] = lambda: None
        self._watcher: IWatcher | None = None

    @property
    def is_deaf(self) -> bool:
        """Whether nobody can rejoin."""
        return self._listener is None

    def read_line(self) -> str:
        """The first line, without its end; waits for it. Empty where there is none."""
        while b"\n" not in self._rest and len(self._rest) < LIMIT:
            data = self._stdin.read(4096)
            if not data:
                break
            self._rest += data
        first, _, self._rest = self._rest.partition(b"\n")
        return first.decode("ascii", "replace").strip()

    def watch(self, watcher: IWatcher, quit: Callable[[], None]) -> None:
        """Hear from now on; `quit` is called where that is wanted."""
        self._watcher, self._quit = watcher, quit
        kind = os.fstat(self._stdin.fileno()).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):  # a file has no more to say, a terminal is not for us
            watcher.watch(self._stdin, lambda: self._ready(self._stdin))
        else:
            self._stdin.close()
            self._current = None
        if self._listener is not None:
            watcher.watch(self._listener, self._accept)
        self._words(b"")

    def close(self, status: int) -> None:
        """Say how it ended, to whoever is connected, and leave nothing."""
        self._part(f"ended {status}\n")
        if self._path is not None and self._listener is not None:
            self._path.unlink(missing_ok=True)
        self._path = None

    def _accept(self) -> None:
        assert self._listener is not None
        assert self._watcher is not None
        connection, _ = self._listener.accept()
        file = connection.makefile("rwb", buffering=0)
        connection.close()  # the file has it now
        self._watcher.watch(file, lambda: self._ready(file))

    def _replace(self, file: RawIOBase) -> None:
        """Hear from this one from now on."""
        if self._current is self._stdin:  # nobody is at its other end any more, which its host may not know
            hang_up(self._parent)
            self._drop()
        self._part("replaced\n")
        self._current, self._rest = file, b""

    def _part(self, text: str) -> None:
        """The last words to whoever is connected."""
        file = self._current
        if file is not None and file is not self._stdin:
            try:
                file.write(text.encode())
            except OSError:  # it has gone
                pass
            self._drop()

    def _ready(self, file: RawIOBase) -> None:
        try:
            data = file.read(4096)
        except OSError:
            data = b""
        if file is self._current and data:
            self._words(data)
        elif file is self._current:
            self._drop()
        elif data.startswith(HERE):
            self._replace(file)
            self._words(data.removeprefix(HERE))
        else:  # somebody only wanted to know whether we live
            self._forget(file)

    def _words(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LIMIT]
        for line in lines:
            if line.strip() == b"quit":
                self._told = True
                self._quit()
            elif line.strip():
                log.warning("what came on stdin behind the FURL is not known here")

    def _drop(self) -> None:
        """The current one has ended."""
        file, self._current = self._current, None
        if file is None:
            return
        self._forget(file)
        if file is self._stdin and not self._told:
            self._broke()

    def _forget(self, file: RawIOBase) -> None:
        assert self._watcher is not None
        self._watcher.unwatch(file)
        file.close()


def socket_path(folder: Path, key: str) -> Path:
    """Where the nanny with a key listens. The name of the host is in it: `folder` may be shared."""
    return folder / f"nanny-{zlib.crc32(socket.gethostname().encode()):08x}-{key}.sock"


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """That as the current folder: the path of a Unix socket may have 107 bytes and no more."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _listen(path: Path) -> socket.socket | None:
    """A socket that listens there; None where that is not to be had, as on some file systems."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in path.parent.glob(path.name.rpartition("-")[0] + "-*.sock"):
            if (alive := _connect(other)) is not None:  # else it was killed, and what it left is gone now
                alive.close()
        with _inside(path.parent):
            listener.bind(path.name)
        listener.listen(1)
    except OSError:
        listener.close()
        return None
    return listener


def _connect(path: Path) -> socket.socket | None:
    """A connection to a nanny, None where it is gone."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _inside(path.parent):
            connection.connect(path.name)
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError:
        pass
    else:
        return connection
    connection.close()
    return None


def hang_up(parent: int) -> None:
    """End the ssh session this process was started in, where it is one and still there."""
    if "SSH_CONNECTION" in os.environ and os.getppid() == parent > 1:
        os.kill(parent, signal.SIGTERM)


def rejoin(folder: Path, key: str, stdin: int = 0) -> int:
    """Carry what comes on stdin to a nanny that runs, until either ends; returns an exit status."""
    parent = os.getppid()
    connection = _connect(socket_path(folder, key))
    if connection is None:
        return GONE
    connection.sendall(HERE)
    print(REJOINED, flush=True)
    heard = b""
    with connection, selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(stdin, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if connection.fileno() in ready:
                data = _received(connection)
                heard += data
                if not data:
                    break
            if stdin in ready:
                data = os.read(stdin, 4096)
                if not data:
                    return 0
                connection.sendall(data)
    if heard == b"replaced\n":
        hang_up(parent)
    word, _, status = heard.decode("ascii", "replace").strip().partition(" ")
    return int(status) if word == "ended" and status.isdigit() else GONE


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except OSError:
        return b""
