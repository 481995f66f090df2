"""Signals as data, for a loop that waits for several things at once."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """Within its ``with``, SIGINT, SIGTERM, SIGHUP and SIGCHLD end `wait` instead of the process.

    A signal that was ignored before (``nohup``, a shell's background job) stays without effect, but is
    not ignored by the processes started from here.

    Parameters
    ----------
    *more : int
        Other signals that do so too.
    """

    def __init__(self, *more: int) -> None:
        self._watched = (*_WATCHED, *more)

    def __enter__(self) -> Signals:
        self._wake, self._wakeup = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wakeup, False)
        self._previous: dict[int, Any] = {number: signal.signal(number, _noted) for number in self._watched}
        self._previous_fd = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._wakeup)

    def wait(self, fds: Iterable[int], timeout: float) -> list[int]:
        """Wait for a signal, for one of `fds` to be readable, or for `timeout` seconds.

        Returns
        -------
        list of int
            The numbers of the signals that came, without SIGCHLD.
        """
        poll = select.poll()
        for fd in (self._wake, *fds):
            poll.register(fd, select.POLLIN)
        poll.poll(timeout * 1000)
        try:
            came = os.read(self._wake, 4096)
        except BlockingIOError:
            return []
        return [n for n in came if n != signal.SIGCHLD and self._previous[n] != signal.SIG_IGN]

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Within this ``with``, SIGINT raises KeyboardInterrupt."""
        if self._previous[signal.SIGINT] != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, _noted)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The byte in the pipe is all that is wanted of a signal."""
