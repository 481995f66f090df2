"""The table of engines that `status()` gives."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_COLUMNS = ("id", "host", "pid", "CPU", "memory", "running", "since", "queue")
_RIGHT = frozenset({"id", "pid", "CPU", "memory", "since", "queue"})


_STUCK = " (does not react to interrupts)"


class Status(list[dict[str, Any]]):
    """One dict an engine; shows as a table.

    Parameters
    ----------
    rows : iterable of dict
        Keys: ``id, host, pid, state``; ``cpu`` (percent), ``rss`` (bytes),
        ``running`` (its label or None), ``since`` (when that began, seconds
        since the epoch), ``queue`` (how many wait), ``restarts``, ``stuck``
        (since when it does not react to an interrupt; 0: it does).
    now : callable
        Wall-clock time in seconds.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), now: Callable[[], float] = time.time) -> None:
        super().__init__(dict(row) for row in rows)
        self.taken = now()

    def _cells(self) -> list[tuple[str, ...]]:
        return [self._row(row) for row in self]

    def _row(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        ready = row["state"] == "ready"
        busy = row["running"] is not None
        return (
            str(row["id"]),
            row["host"],
            str(row["pid"]) if row["pid"] else "",
            f"{row['cpu']:.0f} %",
            size_text(row["rss"]),
            (row["running"] or "") + _STUCK * bool(row.get("stuck")) if ready else f"({row['state']})",
            duration_text(max(0.0, self.taken - row["since"])) if busy or not ready else "",
            str(row["queue"]),
        )

    def __repr__(self) -> str:
        if not self:
            return "no engines"
        cells = [_COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                text.rjust(width) if name in _RIGHT else text.ljust(width)
                for name, text, width in zip(_COLUMNS, line, widths, strict=True)
            ).rstrip()
            for line in cells
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>"
            for line in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def size_text(count: float) -> str:
    """Bytes in words: ``'43.0 MB'``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """Seconds in words: ``'3.2 s'``, ``'2 min 05 s'``, ``'1 h 07 min'``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
