"""Going to the background once the work there has begun well."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ipython1.kernel.processes import redirect


def daemonize(log: Callable[[], Path]) -> Callable[[], None]:
    """Fork, and return in the child only, which is in a session of its own.

    The parent leaves with exit status 0 as soon as the child is ready, or with that of the child where
    it ends before. Until then the child writes where the parent would.

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
    child = os.fork()
    if child:
        os.close(theirs)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.exit(_wait(child, ours))
    os.close(ours)
    os.setsid()

    def ready() -> None:
        redirect(log())
        os.write(theirs, b"1")
        os.close(theirs)

    return ready


def _wait(child: int, pipe: int) -> int:
    """The exit status for the parent; a Ctrl-C or SIGTERM meanwhile is for the child."""
    while True:
        try:
            if os.read(pipe, 1):
                return 0
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return status if status >= 0 else 128 - status
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
