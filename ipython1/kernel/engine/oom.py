"""Whether the kernel kills processes here for want of memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: Seconds between looks while nothing happens.
INTERVAL = 2.0
#: Seconds from the kill to the end of a process, whose memory has to be given back: at most.
LASTS = 15.0


class OutOfMemory:
    """Watches the kernel's counter of such kills: that of our control group, else that of the host.

    Parameters
    ----------
    files : sequence of Path
        Where it may stand, as a line ``oom_kill N``; the first that has one is used.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._file = next((file for file in files if _count(file) is not None), None)
        self._seen = 0
        self._look(0.0)
        self._grew_at = -LASTS

    def look(self, now: float) -> None:
        """Take note of the counter, if that has not just been done."""
        if now - self._looked_at >= INTERVAL:
            self._look(now)

    def killed(self, now: float) -> bool:
        """Whether a process that was killed has likely been killed for want of memory."""
        self._look(now)
        return now - self._grew_at < LASTS

    def _look(self, now: float) -> None:
        self._looked_at = now
        count = None if self._file is None else _count(self._file)
        if count is not None and count > self._seen:
            self._seen, self._grew_at = count, now


def counters(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Where the kernel counts: for the control group (version 2) of this process, and for the host."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    mine = [groups / line[3:].lstrip("/") / "memory.events" for line in lines if line.startswith("0::")]
    return [*mine, proc / "vmstat"]


def _count(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    except (OSError, ValueError):
        pass
    return None
