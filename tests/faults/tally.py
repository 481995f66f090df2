"""Counts what the tests of this folder inject, and what comes of it; the last lines of their report."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ipython1.kernel.wire import segments

#: Signals that are faults; others ask for an orderly end.
FAULTS = {signal.SIGKILL: "processes killed", signal.SIGSTOP: "processes stopped"}
#: Seconds in which what ends by itself has to be gone.
PATIENCE = 10.0


class Tally:
    """The counts of one run.

    Attributes
    ----------
    faults : Counter
        By kind.
    survivors : set of int
        Pids of what lived when its cluster was stopped in order.
    """

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.left: Counter[str] = Counter(processes=0, segments=0, files=0)
        self.commands = self.tasks = self.lost = self.twice = 0
        self.survivors: set[int] = set()

    def fault(self, kind: str, count: int = 1) -> None:
        """Something was injected."""
        self.faults[kind] += count

    def counts(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {"faults": dict(self.faults), "left": dict(self.left)} | {
            name: getattr(self, name) for name in ("commands", "tasks", "lost", "twice")
        }

    def add(self, counts: Mapping[str, Any]) -> None:
        """What another process counted."""
        for name, count in counts.items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(count)
            else:
                setattr(self, name, mine + count)

    def watched(self, kill: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """`os.kill`, counted; `subprocess` and `psutil` use it, too."""

        def counted(pid: int, number: int) -> None:
            kill(pid, number)
            if number in FAULTS:
                self.fault(FAULTS[signal.Signals(number)])

        return counted

    def lines(self) -> list[str]:
        """What is to be told."""
        return [
            f"faults injected: {worded(self.faults)}",
            f"commands run: {self.commands}, tasks run: {self.tasks}",
            f"results lost: {self.lost}, run twice: {self.twice}",
            f"left: {worded(self.left)}",
        ]


def worded(counts: Mapping[str, int]) -> str:
    """The total, and how many of each kind."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    return f"{sum(counts.values())} ({kinds})"


TALLY = Tally()


def processes_of(folder: Path) -> set[psutil.Process]:
    """What runs with that `IPYTHON1_DIR`, but for this process."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("IPYTHON1_DIR") == os.fspath(folder):
                found.add(process)
        except psutil.Error:
            pass  # it has ended, or is another user's
    return found


def dead_segments() -> list[Path]:
    """Folders of shared memory whose owners have ended."""
    place = segments.user_folder()
    return (
        [path for path in place.iterdir() if path.is_dir() and segments._owner_is_gone(path)] if place else []
    )


def gone_soon(look: Callable[[], list[Any]]) -> list[Any]:
    """What `look` still finds when it has had time to go."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
