"""Forks children from a warm process and watches them. Standard library only.

The zygote is one thread without a reactor, so that a fork of it is sound: no
lock is held by a thread that the child does not have. It talks with each
child in JSON lines over a socket pair, and hears of deaths by SIGCHLD.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ipython1.kernel.processes import die_with_parent, kill_group, redirect

Message = dict[str, Any]
#: What a child does: takes its end of the socket pair, returns its exit status.
Main = Callable[[socket.socket], int]

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


class IFile(Protocol):
    """What can be watched."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class IChild(Protocol):
    """A forked child, seen from its parent."""

    @property
    def pid(self) -> int: ...

    def send(self, message: Message) -> None:
        """Send a message, unless the child is gone."""

    def kill(self, number: int) -> None:
        """Send a signal to the child alone, unless it is gone."""

    def kill_group(self) -> None:
        """SIGKILL the child and what it started."""


class IZygote(Protocol):
    """What a `Nanny` needs of a `Zygote`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, call: Callable[[], None], /) -> object: ...

    def fork(
        self,
        main: Main,
        heard: Callable[[Message], None],
        ended: Callable[[int], None],
        log: Path | None = None,
        outlives: bool = False,
    ) -> IChild: ...


class Lines:
    """Cuts a stream of bytes into JSON messages, one a line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes; raises ValueError for what is none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


def line(message: Message) -> bytes:
    """A message as it crosses a socket pair."""
    return json.dumps(message).encode() + b"\n"


class Child:
    """A forked child; made by `Zygote.fork`."""

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        selector: selectors.BaseSelector,
        heard: Callable[[Message], None],
        ended: Callable[[int], None],
    ) -> None:
        self.pid = pid
        self._ended = ended
        self._heard = heard
        self._reaped = False
        self._channel: socket.socket | None = channel
        self._selector = selector
        self._lines = Lines()
        self._unsent = b""
        channel.setblocking(False)
        selector.register(channel, selectors.EVENT_READ, self._ready)

    def send(self, message: Message) -> None:
        """Send a message; never blocks, a child that reads nothing is written to later."""
        if self._channel is not None:
            self._unsent += line(message)
            self._write()

    def kill(self, number: int) -> None:
        """Send a signal to the child alone."""
        if not self._reaped:  # else the pid may be another's by now
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL the child and what it started."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)  # it may not lead its group yet
            kill_group(self.pid)

    def reaped(self, status: int) -> None:
        """It has ended: kill what it started, hear what it said last."""
        self._reaped = True
        kill_group(self.pid)
        while self._read():
            pass
        self._close()
        self._ended(status)

    def forget(self) -> None:
        """Give back the channel, in a process that is not the parent; the selector is closed already."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _close(self) -> None:
        if self._channel is not None:
            self._selector.unregister(self._channel)
            self.forget()

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read()
        if events & selectors.EVENT_WRITE:
            self._write()

    def _read(self) -> bool:
        """Whether something was there to read."""
        if self._channel is None:
            return False
        try:
            data = self._channel.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        try:
            messages = self._lines.feed(data)
        except ValueError:  # user code wrote to a file descriptor that is not its own
            data, messages = b"", []
        if not data:
            self._close()
        for message in messages:
            self._heard(message)
        return bool(data)

    def _write(self) -> None:
        if self._channel is None:
            return
        try:
            self._unsent = self._unsent[self._channel.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # it is dying: SIGCHLD will say so
            self._unsent = b""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._channel, events, self._ready)


class Zygote:
    """Forks children, and runs the loop that hears of them.

    Parameters
    ----------
    interrupted : callable
        Called with the number of each SIGTERM and SIGINT that arrives while `run` runs.
    """

    def __init__(self, interrupted: Callable[[int], None]) -> None:
        self._interrupted = interrupted
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._watched: list[IFile] = []
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake, self._wakeup = socket.socketpair()
        for end in (self._wake, self._wakeup):
            end.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._signalled)
        self._previous = {number: signal.signal(number, _noted) for number in _SIGNALS}
        self._previous_fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def seconds(self) -> float:
        """The monotonic time."""
        return time.monotonic()

    def callLater(self, delay: float, call: Callable[[], None]) -> None:
        """Call `call` after `delay` seconds."""
        heapq.heappush(self._calls, (self.seconds() + delay, next(self._order), call))

    def watch(self, file: IFile, ready: Callable[[], None]) -> None:
        """Call `ready` whenever there is something to read. In a child the file is closed."""
        self._selector.register(file, selectors.EVENT_READ, lambda _events: ready())
        self._watched.append(file)

    def unwatch(self, file: IFile) -> None:
        """Watch it no longer."""
        self._selector.unregister(file)
        self._watched.remove(file)

    def fork(
        self,
        main: Main,
        heard: Callable[[Message], None],
        ended: Callable[[int], None],
        log: Path | None = None,
        outlives: bool = False,
    ) -> Child:
        """Start a child. It leads a session of its own and has nothing on stdin.

        Parameters
        ----------
        main : callable
            Run in the child with its end of the socket pair, in blocking mode; returns the exit status.
        heard : callable
            Called here with every message from the child.
        ended : callable
            Called here when the child has ended, with its exit status (negative: a signal), after all
            that it said was heard and what it started was killed.
        log : Path, optional
            File for its stderr, beside one with the suffix ``.out`` for its stdout; None: those of this
            process.
        outlives : bool
            The child sees by itself that this process ended (EOF on its channel), and then has something
            to do. Otherwise it is killed at once.
        """
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        # A signal between the fork and the reset of the handlers would go to the parent's wakeup socket.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    ours.close()
                    self._leave()
                    os.setsid()
                    if not outlives:
                        die_with_parent(parent)
                    redirect(log, log and out_path(log))
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                    status = main(theirs)
                except BaseException:  # noqa: BLE001 -- nothing may unwind into the parent's stack
                    traceback.print_exc()
                    status = 1
                finally:
                    _flush(sys.stdout)
                    _flush(sys.stderr)
                    os._exit(status)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        child = self._children[pid] = Child(pid, ours, self._selector, heard, ended)
        return child

    def run(self, done: Callable[[], bool]) -> None:
        """Watch the children and run the calls that are due, until `done` says True."""
        while not done():
            timeout = max(0.0, self._calls[0][0] - self.seconds()) if self._calls else None
            for key, events in self._selector.select(timeout):
                now = self._selector.get_map().get(key.fd)
                if now is not None and now.data == key.data:  # else an earlier one has closed it
                    key.data(events)
            while self._calls and self._calls[0][0] <= self.seconds():
                heapq.heappop(self._calls)[2]()

    def close(self) -> None:
        """Kill what is left, and give back the signals."""
        for child in self._children.values():
            child.kill_group()
            os.waitpid(child.pid, 0)
        self._leave()

    def _leave(self) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._selector.close()  # first: to unregister in a forked child would do so in the parent's epoll
        for child in self._children.values():
            child.forget()
        self._children.clear()
        for file in self._watched:
            file.close()
        self._watched.clear()
        self._wake.close()
        self._wakeup.close()

    def _signalled(self, _events: int) -> None:
        numbers = self._wake.recv(4096)
        if signal.SIGCHLD in numbers:
            self._reap()
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._interrupted(number)

    def _reap(self) -> None:
        for child in list(self._children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self._children[pid]
                child.reaped(os.waitstatus_to_exitcode(status))


def out_path(log: Path) -> Path:
    """The file for the stdout of a child whose stderr goes to `log`."""
    return log.with_suffix(".out")


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The byte in the wakeup socket is all that is wanted of a signal."""


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError):  # closed, or never there
        pass
