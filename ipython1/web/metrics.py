"""The state of a cluster in the text format that Prometheus reads."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ipython1.web.overview import Overview

Sample = tuple[Mapping[str, object], float]


def render_metrics(overview: Overview, watchers: int) -> str:
    """All metrics of a controller, as text."""
    return "".join(
        line
        for name, kind, text, samples in _metrics(overview, watchers)
        for line in _lines(f"ipython1_{name}", kind, text, samples)
    )


def _metrics(overview: Overview, watchers: int) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    engines, counts, record = overview.engines(), overview.counts(), overview.controller.timeline
    totals, links = counts["totals"], counts["links"]["counts"]
    states = ["ready", "leaving", "away", "awaited", "restarting"]

    def each(name: str) -> list[Sample]:
        return [({"engine": row["id"], "host": row["host"]}, row[name]) for row in engines]

    def number(value: float) -> list[Sample]:
        return [({}, value)]

    yield (
        "engines",
        "gauge",
        "Engines by state.",
        [({"state": state}, sum(row["state"] == state for row in engines)) for state in states],
    )
    busy = [({"engine": row["id"], "host": row["host"]}, row["running"] is not None) for row in engines]
    yield "engine_busy", "gauge", "Whether the engine runs something.", busy
    yield "engine_cpu_percent", "gauge", "CPU of the engine's process, in percent of one.", each("cpu")
    yield "engine_memory_bytes", "gauge", "Resident memory of the engine's process.", each("rss")
    yield "engine_queue", "gauge", "Commands and tasks that wait for the engine.", each("queue")
    yield (
        "engine_restarts_total",
        "counter",
        "Times that the engine's process was replaced.",
        each("restarts"),
    )
    yield "tasks", "gauge", "Tasks by state.", [({"state": k}, n) for k, n in counts["tasks"].items()]
    for what in ("commands", "tasks"):
        yield f"{what}_total", "counter", f"Ends of {what} on engines.", number(totals[what])
    yield "failed_total", "counter", "Those of both that failed.", number(totals["failed"])
    yield "busy_seconds_total", "counter", "Seconds that engines ran something.", number(record.busy)
    yield (
        "latency_seconds_total",
        "counter",
        "Seconds from arrival to result of commands.",
        number(record.latency),
    )
    yield "engine_deaths_total", "counter", "Engine processes that ended.", number(totals["died"])
    linked = [
        ({"kind": kind, "state": state}, count[state])
        for kind, count in links.items()
        for state in ("linked", "away")
    ]
    yield "links", "gauge", "Sessions by kind of peer.", linked
    waiting = [({"kind": kind}, count["waiting"]) for kind, count in links.items()]
    yield "waiting_bytes", "gauge", "Bytes that peers have not confirmed.", waiting
    yield "watchers", "gauge", "Open dashboards.", number(watchers)
    yield "start_time_seconds", "gauge", "When the controller started.", number(record.started)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    yield (
        "controller_cpu_seconds_total",
        "counter",
        "CPU time of it.",
        number(usage.ru_utime + usage.ru_stime),
    )
    yield "controller_memory_peak_bytes", "gauge", "Most memory it has had.", number(usage.ru_maxrss * unit)


def _lines(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{name}{{{inside}}} {_number(value)}\n" if inside else f"{name} {_number(value)}\n"


def _escaped(label: Any) -> str:
    return str(label).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
