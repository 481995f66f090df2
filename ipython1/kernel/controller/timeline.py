"""What ran where, and what happened to engines: bounded, and cheap to write.

A *span* is something that ran on one engine. Short ones that follow each other
on an engine, of one batch or of commands with one label, share a span that says
how many they were: a hundred thousand small tasks are a few spans a second.

Rates are kept in buckets of one second. Nothing here is asked for by the
controller itself: all of it may be lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from ipython1.kernel.controller.queue import Command
from ipython1.kernel.wire.records import End, Result

#: Spans kept: about 10 MB.
SPANS_KEPT = 20_000
#: Spans in one answer.
SPANS_SHOWN = 2_000
#: What happened to engines, kept.
INCIDENTS_KEPT = 500
#: Seconds of rates kept.
RATES_KEPT = 600
#: Characters of a label and of an id in a span.
LABEL_KEPT, ID_KEPT = 80, 64
#: ... and of what is said of an incident.
TEXT_KEPT = 300
#: What runs shorter than this, follows within this on what is like it, and
#: makes with it no more than this, shares a span. Seconds.
SHORT, GAP, TOGETHER = 0.005, 0.01, 1.0

#: The fields of a span. `busy`: seconds that something ran, of those from `started` to `completed`.
SPAN = (
    "serial",
    "engine",
    "id",
    "label",
    "kind",  # 'command' or 'task'
    "started",  # seconds since the epoch, engine's clock
    "completed",
    "busy",
    "status",  # 'ok', 'error', 'rejected' or 'died'
    "count",
    "failed",
)
_SERIAL, _ENGINE, _ID, _LABEL, _KIND, _STARTED, _COMPLETED, _BUSY, _STATUS, _COUNT, _FAILED = range(len(SPAN))
#: Behind these: number of the last change.
_CHANGE = len(SPAN)
#: Nothing that could be joined.
_NONE = "", "", [float("-inf")] * len(SPAN)
#: The fields of a bucket of rates; `latency`: seconds from the arrival of a command to its result.
#: `running`, `queued`: engines that ran something and what waited, None where nobody looked.
RATES = ("time", "commands", "tasks", "failed", "latency", "worst", "running", "queued")
_TIME, _COMMANDS, _TASKS, _FAILURES, _LATENCY, _WORST, _RUNNING, _QUEUED = range(len(RATES))

#: What happens to engines, as incidents name it.
AWAY, BACK, DIED, RESTARTED, ENDED = "away", "back", "died", "restarted", "stopped"
LOST, FAILED = "given up", "failed to start"
#: Seconds after its link in which the end of an engine is told: one incident, not two.
SAME = 1.0


class Timeline:
    """Takes down what the controller passes on.

    Parameters
    ----------
    now : callable
        Wall-clock time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.started = now()
        #: Counts since the start.
        self.totals = {"commands": 0, "tasks": 0, "failed": 0, "died": 0, "restarted": 0}
        #: Seconds that something ran, and that commands took from arrival to result, since the start.
        self.busy = self.latency = 0.0
        self.incidents: deque[dict[str, Any]] = deque(maxlen=INCIDENTS_KEPT)
        self.rates: deque[list[Any]] = deque(maxlen=RATES_KEPT)
        #: Number of the last incident, and of the last span.
        self.last_incident = self.last = 0
        self._now = now
        self._spans: deque[list[Any]] = deque(maxlen=SPANS_KEPT)
        #: Of each engine the last span: whose it is, its label, and the span.
        self._open: dict[int, tuple[str, str, list[Any]]] = {}
        self._change = self._looked = 0  # number of the last change of a span, and at the last look
        self._grown: list[list[Any]] = []  # since then
        self._second = -1  # of the last bucket
        self._last_bucket: list[Any] = []

    # -- what ran --------------------------------------------------------------------

    def command(self, engine: int, command: Command, result: Result) -> None:
        """A command is done."""
        now = self._now()
        latency = now - command.queued
        bucket = self._bucket(now) if int(now) != self._second else self._last_bucket
        bucket[_COMMANDS] += 1
        bucket[_LATENCY] += latency
        if latency > bucket[_WORST]:
            bucket[_WORST] = latency
        self.totals["commands"] += 1
        self.latency += latency
        status = result.status
        failed = 0
        if status != "ok":
            failed = 1
            self._failed(bucket, failed)
        if result.started:
            id, label = result.id, command.label or command.op
            client, _, _ = id.partition("-")
            self._add(
                engine,
                client,
                label,
                id,
                "command",
                result.started,
                result.completed,
                None,
                status,
                1,
                failed,
            )

    def tasks(self, engine: int, batch: str, label: str, ends: Sequence[End]) -> None:
        """An engine ran tasks of one batch, in the order they ended."""
        count = len(ends)
        failed = sum([end[2] == "error" for end in ends])
        busy = max(0.0, sum([end[4] - end[3] for end in ends]))
        bucket = self._bucket(self._now())
        bucket[_TASKS] += count
        self.totals["tasks"] += count
        self._failed(bucket, failed)
        if busy < SHORT * count:
            index, _, status, started = ends[0][:4]
            id, status = f"{batch}#{index}", "error" if failed else ends[-1][2]
            completed = ends[-1][4]
            self._add(engine, batch, label, id, "task", started, completed, busy, status, count, failed)
        else:
            for index, _, status, started, completed, _, _ in ends:
                id, failed = f"{batch}#{index}", int(status == "error")
                self._add(engine, batch, label, id, "task", started, completed, None, status, 1, failed)

    def died(self, engine: int, label: str, kind: str, since: float) -> None:
        """An engine died under something that ran there."""
        self._open.pop(engine, None)
        self._add(engine, "", label, "", kind, since, self._now(), None, DIED, 1, 1)

    def _add(
        self,
        engine: int,
        owner: str,
        label: str,
        id: str,
        kind: str,
        started: float,
        completed: float,
        busy: float | None,
        status: str,
        count: int,
        failed: int,
    ) -> None:
        """Something ran: it gets a span, or joins the one before, where both are short and alike."""
        if busy is None:
            busy = completed - started
            if busy < 0.0:  # the clock was set back
                busy = 0.0
        self.busy += busy
        self._change += 1
        if busy < SHORT * count:
            last_owner, last_label, last = self._open.get(engine, _NONE)
            if (
                started - last[_COMPLETED] < GAP
                and last_label == label
                and last_owner == owner
                and completed - last[_STARTED] < TOGETHER
                and last[_BUSY] < SHORT * last[_COUNT]
            ):
                last[_COMPLETED] = completed
                last[_BUSY] += busy
                last[_COUNT] += count
                if last[_CHANGE] <= self._looked:
                    self._grown.append(last)
                last[_CHANGE] = self._change
                if failed:
                    last[_FAILED] += failed
                    last[_STATUS] = status
                return
        self.last += 1
        shown, id = (label or id)[:LABEL_KEPT], id[:ID_KEPT]
        span = [
            self.last,
            engine,
            id,
            shown,
            kind,
            started,
            completed,
            busy,
            status,
            count,
            failed,
            self._change,
        ]
        self._spans.append(span)
        self._open[engine] = (owner, label, span)

    def _failed(self, bucket: list[Any], failed: int) -> None:
        bucket[_FAILURES] += failed
        self.totals["failed"] += failed

    # -- what happened --------------------------------------------------------------------

    def note(self, what: str, engine: int, text: str = "") -> None:
        """Something happened to an engine (-1: to one that never had an id)."""
        now = self._now()
        if what in (DIED, ENDED) and self.incidents:
            last = self.incidents[-1]
            if (last["what"], last["engine"]) == (AWAY, engine) and now - last["time"] < SAME:
                self.incidents.pop()
        self.last_incident += 1
        if what in self.totals:
            self.totals[what] += 1
        text = text[:TEXT_KEPT]
        self.incidents.append(
            {"serial": self.last_incident, "time": now, "engine": engine, "what": what, "text": text}
        )

    # -- how it goes ------------------------------------------------------------------------

    def sample(self, load: Callable[[], tuple[int, int]]) -> None:
        """Note how many engines run something and how much is queued; ``load()`` is asked once a second."""
        bucket = self._bucket(self._now())
        if bucket[_RUNNING] is None:
            bucket[_RUNNING], bucket[_QUEUED] = load()

    def _bucket(self, now: float) -> list[Any]:
        if int(now) != self._second:
            self._second = int(now)
            self._last_bucket = [self._second, 0, 0, 0, 0.0, 0.0, None, None]
            self.rates.append(self._last_bucket)
        return self._last_bucket

    # -- looking ------------------------------------------------------------------------------

    def rates_since(self, second: int) -> list[list[Any]]:
        """The buckets from `second` on, of those seconds in which there was something."""
        found = _until(reversed(self.rates), lambda bucket: bucket[_TIME] < second)
        return [list(bucket) for bucket in found][::-1]

    def incidents_since(self, serial: int) -> list[dict[str, Any]]:
        """What happened after incident `serial`."""
        return list(_until(reversed(self.incidents), lambda incident: incident["serial"] <= serial))[::-1]

    def spans(self, after: int, most: int = SPANS_SHOWN) -> list[list[Any]]:
        """The oldest of the spans with a serial number above `after`, up to `most`."""
        start = max(0, after + 1 - self._spans[0][_SERIAL]) if self._spans else 0
        return [span[:_CHANGE] for span in islice(self._spans, start, start + most)]

    def newest(self, after: int, most: int) -> list[list[Any]]:
        """The newest of the spans with a serial number above `after`, up to `most`."""
        new = islice(_until(reversed(self._spans), lambda span: span[_SERIAL] <= after), most)
        return [span[:_CHANGE] for span in new][::-1]

    def grown(self) -> list[list[Any]]:
        """The spans that were there when this was last called, and have grown since."""
        grown, self._grown, self._looked = self._grown, [], self._change
        return [span[:_CHANGE] for span in grown]

    def answer(self, after: int) -> dict[str, Any]:
        """What a client is told that has the spans up to `after`."""
        spans = self.spans(after)
        more = bool(spans) and spans[-1][_SERIAL] < self.last
        return {
            "fields": SPAN,
            "spans": spans,
            "more": more,
            "incidents": [] if more else list(self.incidents),
            "started": self.started,
            "now": self._now(),
        }


def _until(items: Iterable[Any], enough: Callable[[Any], bool]) -> Iterable[Any]:
    for item in items:
        if enough(item):
            return
        yield item
