"""The tables that `status()` and `queue_status()` give, and what the controller says for them."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.ids import ranges
from ipython1.kernel.texts import duration_text, one_line, size_text

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore

#: Rows of a table that show; the others are counted, and folded in a notebook.
UNFOLDED = 8
#: Waiting commands of one engine that show, and characters of all of them.
WAITING, WAITING_LENGTH = 3, 70

_COLUMNS = ("id", "host", "pid", "CPU", "memory", "running", "since", "queue")
_QUEUE_COLUMNS = ("id", "running", "queue", "waiting")
_RIGHT = frozenset({"id", "pid", "CPU", "memory", "since", "queue"})


_STUCK = " (does not react to interrupts)"


class Table(list[Any]):
    """A list that shows as a table: in a terminal the first rows, with ``print`` all of them.

    A notebook folds the others.
    """

    columns: Sequence[str] = ()
    empty = "nothing"

    def _cells(self) -> list[tuple[str, ...]]:
        raise NotImplementedError

    def _rest(self) -> str:
        """In words, what the rows that do not show say."""
        raise NotImplementedError

    def _below(self) -> str:
        """What is said under the table."""
        return ""

    def __str__(self) -> str:
        text = _text(self.columns, self._cells()) if self else self.empty
        return f"{text}\n{self._below()}".rstrip()

    def __repr__(self) -> str:
        cells = self._cells()
        if not cells:
            return self.empty
        text = _text(self.columns, cells[:UNFOLDED])
        if len(cells) > UNFOLDED:
            text += f"\n… {self._rest()}; print() shows all"
        return f"{text}\n{self._below()}".rstrip()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        for i, line in enumerate(repr(self).splitlines()):
            if i:
                printer.break_()
            printer.text(line)

    def _repr_html_(self) -> str:
        cells = self._cells()
        if not cells:
            return f"<p>{self.empty}</p>"
        markup = _markup(self.columns, cells[:UNFOLDED])
        if len(cells) > UNFOLDED:
            summary = f"<summary>… {html.escape(self._rest())}</summary>"
            markup += f"<details>{summary}{_markup(self.columns, cells[UNFOLDED:])}</details>"
        below = self._below()
        return f"{markup}<p>{html.escape(below)}</p>" if below else markup


class Status(Table):
    """One dict an engine; shows as a table.

    Parameters
    ----------
    rows : iterable of dict
        Keys: ``id, host, pid, state``; ``cpu`` (percent), ``rss`` (bytes),
        ``running`` (its label or None), ``since`` (when that began, seconds
        since the epoch), ``queue`` (how many wait), ``restarts``, ``stuck``
        (since when it does not react to an interrupt; 0: it does), ``away``
        (since when nothing is heard of it; 0: it is).
    links : iterable of dict
        The clients and nannies that the controller knows: ``kind``, ``name``, ``host``,
        ``away`` as above, ``work`` (a client has some on the engines).
    now : callable
        Wall-clock time in seconds.
    """

    columns = _COLUMNS
    empty = "no engines"

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        now: Callable[[], float] = time.time,
        links: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(dict(row) for row in rows)
        self.links = [dict(row) for row in links]
        self.taken = now()

    def _below(self) -> str:
        missed = [row for row in self.links if row["away"] and (row["kind"] == "nanny" or row["work"])]
        texts = [
            f"{'the nanny of ' + row['host'] if row['kind'] == 'nanny' else 'client ' + row['name']} "
            f"for {duration_text(max(0.0, self.taken - row['away']))}"
            for row in missed[:UNFOLDED]
        ]
        more = [f"{len(missed) - UNFOLDED} more"] if len(missed) > UNFOLDED else []
        return f"away: {', '.join(texts + more)}" if missed else ""

    def _cells(self) -> list[tuple[str, ...]]:
        return [self._row(row) for row in self]

    def _row(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        ready = row["state"] == "ready"
        busy = row["running"] is not None
        running, away = row["running"] or "", row.get("away", 0.0)
        running += _STUCK * bool(row.get("stuck"))
        since = row["since"]
        if not ready:
            running, since = f"({row['state']}) {running}".rstrip(), away or since
        elif away:
            running += f" (silent for {duration_text(max(0.0, self.taken - away))})"
        return (
            str(row["id"]),
            row["host"],
            str(row["pid"]) if row["pid"] else "",
            f"{row['cpu']:.0f} %",
            size_text(row["rss"]),
            running.strip(),
            duration_text(max(0.0, self.taken - since)) if busy or not ready else "",
            str(row["queue"]),
        )

    def _rest(self) -> str:
        rest = self[UNFOLDED:]
        counts = Counter(_state_of(row) for row in rest)
        return f"{len(rest)} more: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())


def _state_of(row: Mapping[str, Any]) -> str:
    if row["state"] != "ready":
        return str(row["state"])
    return "busy" if row["running"] is not None else "idle"


class QueueStatus(Table):
    """``(engine id, {'queue': [...], 'pending': ...})`` for each engine; shows as a table."""

    columns = _QUEUE_COLUMNS
    empty = "no engines"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                str(id),
                "(away) " * ("away" in facts) + (facts["pending"] or ""),
                str(len(facts["queue"])),
                _waiting(facts["queue"]),
            )
            for id, facts in self
        ]

    def _rest(self) -> str:
        rest = self[UNFOLDED:]
        running = sum(facts["pending"] is not None for _, facts in rest)
        waiting = sum(len(facts["queue"]) for _, facts in rest)
        return f"{len(rest)} more ({ranges(id for id, _ in rest)}): {running} busy, {waiting} waiting"


def fetch_status(core: ClientCore, ids: Sequence[int]) -> Status:
    """The state of these engines."""
    core.check_usable()
    table, links = core.ask("status"), core.ask("links")
    for future in (table, links):
        core.wait(future, None)
    return Status([row for row in table.result() if row["id"] in ids], links=links.result())


def rows_of(ids: Sequence[int]) -> Callable[[Any], list[Any]]:
    """What makes the rows of a `QueueStatus` for these engines of the controller's answer."""

    def rows(answer: Iterable[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
        found = {id: {**facts, "queue": list(facts["queue"])} for id, facts in answer}
        # One that has gone since has nothing to do.
        return [(id, found.get(id, {"queue": [], "pending": None})) for id in ids]

    return rows


def fetch_task_status(core: ClientCore, verbose: bool) -> dict[str, Any]:
    """How many tasks are in which state, or their ids."""
    answer = core.ask("task_status", verbose=bool(verbose))
    core.wait(answer, None)
    status = answer.result()
    return {name: list(value) if verbose else value for name, value in status.items()}


def _waiting(labels: Sequence[str]) -> str:
    shown = "; ".join(labels[:WAITING])
    if len(shown) > WAITING_LENGTH:
        return shown[: WAITING_LENGTH - 1] + "…"
    return shown + "; …" * (len(labels) > WAITING)


def _text(columns: Sequence[str], cells: Iterable[tuple[str, ...]]) -> str:
    lines = [tuple(columns), *(tuple(map(one_line, row)) for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if name in _RIGHT else text.ljust(width)
            for name, text, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _markup(columns: Sequence[str], cells: Iterable[tuple[str, ...]]) -> str:
    def row(tag: str, line: Iterable[str]) -> str:
        texts = zip(columns, line, strict=True)
        side = {True: "right", False: "left"}
        return "".join(
            f'<{tag} style="text-align: {side[name in _RIGHT]}">{html.escape(text)}</{tag}>'
            for name, text in texts
        )

    body = "".join(f"<tr>{row('td', line)}</tr>" for line in cells)
    return f"<table><thead><tr>{row('th', columns)}</tr></thead><tbody>{body}</tbody></table>"
