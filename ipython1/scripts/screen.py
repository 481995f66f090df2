"""What `ipcluster top` shows of a state of the dashboard: a picture of a given size and time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ipython1.kernel.texts import duration_text, one_line, size_text

#: Seconds over which rates are averaged, and seconds of the small picture of them.
WINDOW, PICTURED = 10, 30
#: What happened to engines, lines of it; and the height of a terminal that has room for them.
INCIDENTS_SHOWN, ROOM = 4, 16
#: Characters of a host, and columns of a terminal that has room for all columns.
HOST_SHOWN, WIDE = 20, 80
#: Heights of what was done in a second.
BARS = " ▁▂▃▄▅▆▇█"
LABEL = 13

Row = dict[str, Any]
State = dict[str, Any]


def plain(text: str, style: str = "") -> Text:
    """Text of others, of which as much shows as there is room for."""
    return Text(one_line(text), style, no_wrap=True, overflow="ellipsis")


def condition(row: Row, now: float) -> tuple[str, str]:
    """How an engine is, in words, and the style for that."""
    if row["state"] != "ready":
        return f"{row['state']} {_since(row['away'] or row['since'], now)}", "red"
    if row["stuck"]:
        return f"stuck {_since(row['stuck'], now)}", "red"
    if row["away"]:
        return f"silent {_since(row['away'], now)}", "yellow"
    return ("idle", "dim") if row["running"] is None else ("busy", "green")


def view(
    state: State, now: float, width: int, height: int | None = None, trouble: str = ""
) -> RenderableType:
    """All of it, for a terminal of some size.

    Parameters
    ----------
    state : dict
        As the dashboard has it.
    now : float
        Seconds since the epoch.
    width, height : int
        Columns, and lines; None: as many as it takes.
    trouble : str
        Why the state is old.
    """
    parts: list[RenderableType] = list(_head(state, now, width, trouble))
    incidents = state["incidents"][::-1][:INCIDENTS_SHOWN] if height is None or height >= ROOM else []
    below = [Text(), *map(_incident, incidents)] if incidents else []
    rows, rest = state["engines"], []
    if height is not None:
        room = max(1, height - len(parts) - 2 - len(below))  # an empty line, and the names of the columns
        if len(rows) > room:
            room = max(1, room - 1)
            rows = sorted(rows, key=_urgency)
            rows, rest = rows[:room], rows[room:]
    parts += [Text(), _table(rows, now, width >= WIDE)]
    if rest:
        parts.append(plain(f"… {len(rest):,} more: {_count(rest, now)}", "dim"))
    return Group(*parts, *below)


def waiting(trouble: str) -> RenderableType:
    """What is shown before there is a state."""
    return _line("ipython1", trouble or "asking the controller …")


def _urgency(row: Row) -> tuple[Any, ...]:
    """What comes first where not all have room: trouble, then the busiest."""
    in_order = row["state"] == "ready" and not row["stuck"] and not row["away"]
    return in_order, row["running"] is None, -row["queue"], -row["cpu"], row["id"]


# -- the lines above the table ---------------------------------------------------------


def _head(state: State, now: float, width: int, trouble: str) -> Iterable[Text]:
    rows, totals, tasks = state["engines"], state["totals"], state["tasks"]
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    age = _since(state["started"], now)
    yield _line("ipython1", f"cluster {state['cluster']}, {clock}, controller up {age}")
    if trouble:
        yield _line("trouble", f"{_since(state['time'], now)} old: {trouble}", "red")
    load = f"{sum(row['cpu'] for row in rows) / 100:.1f} CPUs, {size_text(sum(row['rss'] for row in rows))}"
    yield _line("engines", f"{len(rows):,}: {_count(rows, now)}; {load}" if rows else "none")
    waits = sum(row["queue"] for row in rows)
    yield _line(
        "work",
        f"{waits:,} queued; tasks: {tasks['handed']:,} with engines, {tasks['ready']:,} ready, "
        f"{tasks['blocked']:,} blocked",
    )
    yield _rates(state, now, width)
    yield _line(
        "since start",
        f"{totals['commands']:,} commands, {totals['tasks']:,} tasks, {totals['failed']:,} failed; "
        f"engines: {totals['died']:,} died, {totals['restarted']:,} restarted",
    )


def _rates(state: State, now: float, width: int) -> Text:
    names = state["fields"]["rates"]
    seconds = {bucket[0]: dict(zip(names, bucket, strict=True)) for bucket in state["rates"]}
    last = int(now) - 1  # this second is not over
    window = [seconds[t] for t in range(last - WINDOW + 1, last + 1) if t in seconds]
    done = {
        name: sum(bucket[name] for bucket in window) for name in ("commands", "tasks", "failed", "latency")
    }
    shown = ("commands", "tasks", "failed") if done["failed"] else ("commands", "tasks")
    words = [f"{_rate(done[name] / WINDOW)} {name}/s" for name in shown]
    if done["commands"]:
        worst = max(bucket["worst"] for bucket in window)
        words.append(f"latency {_short(done['latency'] / done['commands'])}, at most {_short(worst)}")
    line = _line("rates", ", ".join(words) + "  ")
    times = range(last - min(PICTURED, width - len(line)) + 1, last + 1)
    amounts = [seconds[t]["commands"] + seconds[t]["tasks"] if t in seconds else 0 for t in times]
    return line.append(_bars(amounts), "cyan")


def _bars(amounts: Sequence[float]) -> str:
    most = max(amounts, default=0) or 1
    return "".join(BARS[-int(-amount * (len(BARS) - 1) // most)] for amount in amounts)


def _count(rows: Iterable[Row], now: float) -> str:
    """``'320 busy, 8 away'``."""
    counts = Counter(condition(row, now)[0].partition(" ")[0] for row in rows)
    words = sorted(counts, key=lambda word: (word != "busy", word != "idle", word))
    return ", ".join(f"{counts[word]:,} {word}" for word in words)


def _line(label: str, text: str, style: str = "") -> Text:
    line = plain(f"{label:<{LABEL}}")
    line.stylize("bold")
    return line.append_text(plain(text, style))


# -- the table, and what happened ----------------------------------------------------------


def _table(rows: Sequence[Row], now: float, wide: bool) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("host", max_width=HOST_SHOWN)
    if wide:
        table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("CPU", justify="right", no_wrap=True)
    if wide:
        table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("queue", justify="right", no_wrap=True)
    table.add_column("for", justify="right", no_wrap=True)
    table.add_column("running", ratio=1)
    for row in rows:
        running = row["running"]
        words, style = condition(row, now)
        table.add_row(
            str(row["id"]),
            plain(row["host"]),
            *([str(row["pid"] or "")] if wide else []),
            plain(words, style),
            f"{row['cpu']:.0f} %",
            *([size_text(row["rss"])] if wide else []),
            f"{row['queue']:,}",
            "" if running is None else _since(row["since"], now),
            plain(running or ""),
        )
    return table


def _incident(incident: dict[str, Any]) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(incident["time"]))
    who = f"engine {incident['engine']}" if incident["engine"] >= 0 else "an engine"
    reason = f": {incident['text']}" if incident["text"] else ""
    return _line(clock, f"{who} {incident['what']}{reason}")


# -- quantities -------------------------------------------------------------------------------


def _since(then: float, now: float) -> str:
    return duration_text(max(0.0, now - then))


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else duration_text(seconds)


def _rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"
