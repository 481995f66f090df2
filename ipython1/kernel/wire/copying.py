"""Copying much memory: without the GIL, and by several threads.

Memory is faster than one core, not than many, so threads help where cores are
idle; where none is, they would be waited for. NumPy lets go of the GIL while it
copies; without it one thread copies in steps.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Bytes of which a thread more helps to copy.
SHARE = 8 << 20
#: Threads that copy at the same time, at most.
COPIERS = 4
#: Bytes a thread takes at once.
PIECE = 4 << 20
#: Bytes copied at once where it is done under the GIL.
STEP = 1 << 20


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy `source`, plain bytes, to the beginning of `target`."""
    frombuffer = getattr(sys.modules.get("numpy"), "frombuffer", None)
    if frombuffer is not None and len(source) >= STEP:
        copy_arrays([(frombuffer(target, "u1", len(source)), frombuffer(source, "u1"))])
        return
    for done in range(0, len(source), STEP):
        piece = source[done : done + STEP]
        target[done : done + len(piece)] = piece


def copy_arrays(jobs: Sequence[tuple[Any, Any]]) -> None:
    """Copy NumPy arrays.

    Parameters
    ----------
    jobs : sequence of (ndarray, ndarray)
        Target and source, of one shape that has at least one axis.
    """
    left: deque[tuple[Any, Any]] = deque()
    size = 0
    for target, source in jobs:
        rows = max(1, PIECE * len(source) // max(1, source.nbytes))
        left += [(target[i : i + rows], source[i : i + rows]) for i in range(0, len(source), rows)]
        size += source.nbytes
    number = min(COPIERS, _idle_cores(), size // SHARE) if size >= 2 * SHARE else 1
    helpers = _started(number - 1, left)
    try:
        _work(left)
    finally:  # also after Ctrl-C nobody goes on copying
        left.clear()
        for helper in helpers:
            helper.join()


def _started(number: int, left: deque[tuple[Any, Any]]) -> list[threading.Thread]:
    """Threads that work, as many as there may be."""
    helpers: list[threading.Thread] = []
    for _ in range(number):
        helper = threading.Thread(target=_work, args=(left,), daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no more are allowed, or the interpreter ends
            break
        helpers.append(helper)
    return helpers


def _work(left: deque[tuple[Any, Any]]) -> None:
    copyto = sys.modules["numpy"].copyto
    while True:
        try:
            target, source = left.popleft()
        except IndexError:
            return
        copyto(target, source)


def _idle_cores() -> int:
    """Cores that we may use and nobody does at this moment, with our own."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        return len(os.sched_getaffinity(0)) - running + 1
    except (OSError, AttributeError, ValueError, IndexError):
        return 1  # not Linux
