"""Going to the background once the work there has begun well."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ipython1.kernel.processes import redirect

_ENDING = (signal.SIGINT, signal.SIGTERM)


def daemonize(log: Callable[[], Path]) -> Callable[[], None]:
    """Fork, and return in the child only, which is in a session of its own.

    The parent leaves with exit status 0 as soon as the child is ready, or with that of the child where
    it ends before. Until then the child writes where the parent would, and a Ctrl-C or SIGTERM for the
    parent ends the child.

    Parameters
    ----------
    log : callable
        Gives the file that takes the child's stdout and stderr from then on.

    Returns
    -------
    callable
        To be called when all is ready.
    """
    ours, theirs = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until the parent can pass them on
    child = os.fork()
    if child:
        os.close(theirs)
        for number in _ENDING:
            signal.signal(number, lambda number, frame: os.kill(child, signal.SIGTERM))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.exit(_wait(child, ours))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(ours)
    os.setsid()

    def ready() -> None:
        redirect(log())
        os.write(theirs, b"1")
        os.close(theirs)

    return ready


def _wait(child: int, pipe: int) -> int:
    """The exit status for the parent."""
    if os.read(pipe, 1):
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # the child has ended, and its pid may be another's
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status
