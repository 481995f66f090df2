"""What ran where on a cluster, as data, as a picture and as a trace."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client import pictures
from ipython1.kernel.texts import duration_text, sendable

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore


class Timeline:
    """What ran where; shows as a picture in a notebook.

    Attributes
    ----------
    spans : list of dict
        In the order in which they ended, with keys ``engine, id, label, kind`` (command or
        task), ``started, completed`` (seconds since the epoch, by the engine's clock),
        ``busy`` (seconds that something ran between these), ``status`` (ok, error, rejected,
        died, running), ``count`` (how many share it, being short and alike) and ``failed`` (of
        these). ``pandas.DataFrame(timeline.spans)`` makes a table of it.
    incidents : list of dict
        What happened to engines: ``time, engine, what, text``.
    """

    def __init__(
        self,
        spans: Iterable[Mapping[str, Any]],
        incidents: Iterable[Mapping[str, Any]] = (),
        hosts: Mapping[int, str] | None = None,
    ) -> None:
        self.spans = [{**span, "label": sendable(span["label"])} for span in spans]
        self.incidents = [dict(incident) for incident in incidents]
        self._hosts = dict(hosts or {})

    def __len__(self) -> int:
        return len(self.spans)

    def __repr__(self) -> str:
        if not self.spans:
            return "<Timeline: nothing ran>"
        began, ended = self._limits()
        count = sum(span["count"] for span in self.spans)
        what = f"{count} command{'s' * (count != 1)} and tasks" if count != 1 else "1 command or task"
        return f"<Timeline: {what} on {len(self.engines)} engine(s) in {duration_text(ended - began)}>"

    def _repr_html_(self) -> str:
        return self.svg()

    @property
    def engines(self) -> list[int]:
        """The ids of the engines on which something ran."""
        return sorted({span["engine"] for span in self.spans})

    def only(self, engines: Sequence[int]) -> Timeline:
        """What of it ran on some engines."""
        return Timeline(
            (span for span in self.spans if span["engine"] in engines),
            (incident for incident in self.incidents if incident["engine"] in engines),
            self._hosts,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file.

        Parameters
        ----------
        path : str or path
            The suffix says as what: ``.svg`` and ``.png`` (with matplotlib) are pictures,
            ``.json`` is a Chrome trace, which https://ui.perfetto.dev and ``chrome://tracing`` open.

        Raises
        ------
        ValueError
            It has another suffix.
        ImportError
            It is to be a PNG, and matplotlib is not installed.
        """
        file = Path(path).expanduser()
        made: dict[str, Callable[[], str | bytes]] = {
            ".svg": self.svg,
            ".json": lambda: json.dumps(self.trace(), indent=None, separators=(",", ":")) + "\n",
            ".png": lambda: pictures.png(self.spans, self.incidents, *self._limits()),
        }
        if file.suffix.lower() not in made:
            raise ValueError(
                f"A timeline is saved as .svg, .png or .json (Chrome trace), not as {file.name!r}."
            )
        content = made[file.suffix.lower()]()
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def svg(self) -> str:
        """The picture."""
        return pictures.svg(self.spans, self.incidents, *self._limits())

    def trace(self) -> dict[str, Any]:
        """The same as a Chrome trace: an engine is a thread, times are microseconds from the first start."""
        began, _ = self._limits()
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "ipython1"}}
        ]
        for engine in self.engines:
            host = self._hosts.get(engine)
            name = f"engine {engine}" + (f" ({host})" if host else "")
            events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": engine, "args": {"name": name}})
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "name": span["label"],
                    "cat": span["kind"],
                    "pid": 0,
                    "tid": span["engine"],
                    "ts": _microseconds(span["started"] - began),
                    "dur": _microseconds(span["completed"] - span["started"]),
                    "args": {name: span[name] for name in ("id", "status", "count", "failed", "busy")},
                }
            )
        for incident in self.incidents:
            if incident["time"] >= began:
                when = _microseconds(incident["time"] - began)
                event = {"ph": "i", "s": "t", "pid": 0, "tid": incident["engine"], "ts": when}
                events.append({**event, "name": incident["what"], "args": {"text": incident["text"]}})
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began": began}}

    def _limits(self) -> tuple[float, float]:
        """When the first began, and the last ended."""
        if not self.spans:
            return time.time(), time.time()
        return min(span["started"] for span in self.spans), max(span["completed"] for span in self.spans)


def fetch_timeline(core: ClientCore, path: str | os.PathLike[str] | None = None) -> Timeline:
    """Ask the controller for what it has; saved at `path`, where one is given."""
    core.check_usable()
    spans: list[dict[str, Any]] = []
    after = 0
    while True:
        future = core.ask("timeline", after=after)
        core.wait(future, None)
        answer = future.result()
        spans += [dict(zip(answer["fields"], span, strict=True)) for span in answer["spans"]]
        if not answer["more"]:
            break
        after = spans[-1]["serial"]
    now = answer["now"]
    for engine, label, since in answer["running"]:
        since = min(since, now)
        spans.append(
            {
                "engine": engine,
                "id": "",
                "label": label,
                "kind": "command",
                "started": since,
                "completed": now,
                "busy": now - since,
                "status": "running",
                "count": 1,
                "failed": 0,
            }
        )
    for span in spans:
        span.pop("serial", None)
    incidents = [
        {name: incident[name] for name in ("time", "engine", "what", "text")}
        for incident in answer["incidents"]
    ]
    found = Timeline(spans, incidents, {engine["id"]: engine["host"] for engine in core.engines()})
    if path is not None:
        found.save(path)
    return found


def _microseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 1)
