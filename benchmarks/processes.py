"""Process trees: their memory, and their end, by process id."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable

import psutil

_PR_SET_CHILD_SUBREAPER = 36
#: Seconds that a tree has to end after SIGTERM.
GRACE = 5.0


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends: so that none is lost from sight."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def unique_bytes(pids: Iterable[int]) -> list[int]:
    """The memory each process has for itself alone (USS)."""
    return [psutil.Process(pid).memory_full_info().uss for pid in pids]


def end_descendants() -> None:
    """End every descendant of this process that is left, and reap those that became its children."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        _signal(child.terminate)
    _, stubborn = psutil.wait_procs(left, GRACE)
    for child in stubborn:
        _signal(child.kill)
    psutil.wait_procs(stubborn, GRACE)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        pass
