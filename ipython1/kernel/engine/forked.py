"""What a forked child does before it can use a reactor."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.engine.zygote import Lines, Message, line


def fresh_reactor() -> Any:
    """The global reactor, made anew in place: others hold references to it.

    After a fork the child shares the parent's epoll and waker. What the child would register there, the
    parent would see; so it gets its own, and only closes its descriptors of the old ones.
    """
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    waker = getattr(reactor, "waker", None)
    type(reactor).__init__(reactor)
    if waker is not None:
        waker.connectionLost(Failure(ConnectionDone()))
    return reactor


def log_errors(fd: int) -> None:
    """Have Twisted write warnings and errors to `fd`, whatever becomes of ``sys.stderr``."""
    file = open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    errors = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    observer = FilteringLogObserver(textFileLogObserver(file), [errors])
    show_warning = warnings.showwarning
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    warnings.showwarning = show_warning  # Twisted takes it, but the warnings of user code are its output


@implementer(IReadDescriptor)
class Channel:
    """The socket pair to the zygote, in a child that runs a reactor.

    Parameters
    ----------
    reactor : IReactorFDSet
    end : socket
        The child's end.
    heard : callable
        Called with each message, in the reactor thread.
    closed : callable
        Called when the zygote is gone, in the reactor thread.
    """

    def __init__(
        self, reactor: Any, end: socket.socket, heard: Callable[[Message], None], closed: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._heard = heard
        self._closed = closed
        self._lines = Lines()

    def start(self) -> None:
        """Begin to listen."""
        self._reactor.addReader(self)

    def send(self, message: Message) -> None:
        """Send a message to the zygote, which has it when this returns. Messages are few and small."""
        try:
            self._end.sendall(line(message))
        except OSError:
            pass  # it is gone, as `doRead` will see

    def fileno(self) -> int:
        """See `IReadDescriptor`."""
        return self._end.fileno()

    def logPrefix(self) -> str:
        """See `IReadDescriptor`."""
        return "zygote"

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        try:
            data = self._end.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._reactor.removeReader(self)
            self._closed()
        for message in self._lines.feed(data):
            self._heard(message)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends; that says nothing of the zygote."""
