"""What the dashboard shows of a controller, as plain data; and what of it has changed.

docs/dashboard.rst says what is in it.
"""

from __future__ import annotations

import math
from typing import Any

from ipython1 import __version__
from ipython1.kernel.controller import liveoutput, timeline
from ipython1.kernel.controller.service import Controller

#: Spans in a whole state, and in one change.
SPANS_SHOWN = 3000
SPANS_CHANGED = 1000
#: Links shown one by one, and the bytes that wait on one before it is.
LINKS_SHOWN = 100
WAITING_SHOWN = 1024 * 1024
#: Characters of the name of a peer.
NAME_SHOWN = 12

State = dict[str, Any]


class Overview:
    """Looks at a controller.

    Parameters
    ----------
    controller : Controller
    cluster : str
        Its name.
    """

    def __init__(self, controller: Controller, cluster: str) -> None:
        self.controller = controller
        self.now = controller.registry.now
        self._head = {
            "version": __version__,
            "cluster": cluster,
            "started": controller.timeline.started,
            "fields": {"spans": timeline.SPAN, "rates": timeline.RATES, "output": liveoutput.CHUNK},
        }

    def engines(self) -> list[State]:
        """One map an engine, as `status` has it."""
        rows = self.controller.status()
        for row in rows:
            if not math.isfinite(row["cpu"]):  # JSON has no word for it
                row["cpu"] = 0.0
            row["away"] = round(row["away"])
        return rows

    def counts(self) -> State:
        """What is small and changes as a whole."""
        return {
            "tasks": self.controller.tasks.status.counts(),
            "totals": dict(self.controller.timeline.totals),
            "links": self._links(),
        }

    def head(self, may_act: bool) -> State:
        """What does not change, and the time."""
        return {**self._head, "may_act": may_act, "time": self.now()}

    def state(self, may_act: bool) -> State:
        """Everything, as it is now."""
        return {**self.head(may_act), "engines": self.engines(), **self.counts(), **self.past(may_act)}

    def past(self, may_act: bool) -> State:
        """What has been."""
        record = self.controller.timeline
        past: State = {
            "rates": record.rates_since(0),
            "incidents": list(record.incidents),
            "spans": record.newest(0, SPANS_SHOWN),
        }
        if may_act:  # what engines print may be anything: not for those who may only look
            past["output"] = self.controller.output.after(0)
        return past

    def _links(self) -> State:
        counts: dict[str, dict[str, int]] = {}
        rows: list[State] = []
        now = self.now()
        names = {engine.uuid: f"engine {engine.id}" for engine in self.controller.registry}
        for peer in self.controller.peers:
            linked, waiting = peer.session.linked, peer.session.outbox_bytes
            count = counts.setdefault(peer.kind, {"linked": 0, "away": 0, "waiting": 0})
            count["linked" if linked else "away"] += 1
            count["waiting"] += waiting
            if peer.kind != "engine" or not linked or waiting >= WAITING_SHOWN:
                row = peer.facts(now)
                name, away = names.get(peer.key, peer.key[:NAME_SHOWN]), round(row["away"])
                rows.append({**row, "name": name, "away": away, "waiting": waiting})
        rows.sort(key=lambda row: (row["away"] or now, row["kind"], row["name"]))
        return {"counts": counts, "rows": rows[:LINKS_SHOWN]}


class Changes:
    """What changes between two looks, for all who watch.

    Parameters
    ----------
    overview : Overview
    """

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._engines: dict[int, State] = {}
        self._counts: State = {}
        self._bucket: list[Any] = [0]  # of rates, the last one
        self._incident = self._span = self._chunk = 0

    def look(self) -> State:
        """What is different from the last look; its ``output`` is only for those who may act."""
        overview = self._overview
        change: State = {"time": overview.now()}
        engines = {row["id"]: row for row in overview.engines()}
        counts = overview.counts()
        change["engines"] = [row for id, row in engines.items() if self._engines.get(id) != row]
        change["gone"] = [id for id in self._engines if id not in engines]
        change.update((name, value) for name, value in counts.items() if self._counts.get(name) != value)
        self._engines, self._counts = engines, counts
        record, output = overview.controller.timeline, overview.controller.output
        rates = record.rates_since(self._bucket[0])
        change["rates"] = [bucket for bucket in rates if bucket != self._bucket]
        change["incidents"] = record.incidents_since(self._incident)
        change["spans"] = [*record.grown(), *record.newest(self._span, SPANS_CHANGED)]
        change["output"] = output.after(self._chunk)
        self._bucket = rates[-1] if rates else self._bucket
        self._incident, self._span = record.last_incident, record.last
        self._chunk = output.last
        return {name: value for name, value in change.items() if value or name == "time"}

    def full(self, may_act: bool) -> State:
        """Everything, as it was at the last look."""
        overview = self._overview
        return {
            **overview.head(may_act),
            "engines": list(self._engines.values()),
            **self._counts,
            **overview.past(may_act),
        }
