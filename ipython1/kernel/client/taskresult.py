"""`TaskResult`: what came of a task, with all that is known of it."""

from __future__ import annotations

import datetime
import html
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ipython1.kernel.error import RemoteFailure
from ipython1.kernel.wire.objects import variable_name


class TaskResult:
    """What came of a task.

    Attributes
    ----------
    taskid : str
    engineid : int
        Where it ran; -1: nowhere.
    results : object
        What the function returned; of a `StringTask` a dict of what it pulled.
        None where it failed.
    failure : RemoteFailure or None
    submitted : float
        Seconds since the epoch, by this computer's clock; 0 where another client submitted it.
    started, completed : float
        The same by the engine's clock; 0 where it never ran.
    stdout, stderr : str
        What it has written.
    """

    def __init__(
        self,
        taskid: str,
        engineid: int,
        results: Any,
        failure: RemoteFailure | None,
        submitted: float,
        started: float,
        completed: float,
        stdout: str = "",
        stderr: str = "",
    ) -> None:
        self.taskid = taskid
        self.engineid = engineid
        self.results = results
        self.failure = failure
        self.submitted = submitted
        self.started = started
        self.completed = completed
        self.stdout = stdout
        self.stderr = stderr

    @property
    def duration(self) -> float:
        """Seconds that it ran."""
        return self.completed - self.started if self.started else 0.0

    @property
    def ns(self) -> SimpleNamespace:
        """The pulled names as attributes.

        Raises
        ------
        Exception
            That of the task, where it failed.
        """
        return SimpleNamespace(**self._pulled())

    def __getitem__(self, name: str) -> Any:
        """A pulled variable; where the task failed, its exception is raised."""
        pulled = self._pulled()
        key = variable_name(name) if isinstance(name, str) else name
        if key not in pulled:
            had = ", ".join(map(repr, pulled)) or "nothing"
            raise KeyError(f"{name!r} was not pulled; the task pulled {had}")
        return pulled[key]

    def _pulled(self) -> dict[str, Any]:
        self.raise_exception()
        if not isinstance(self.results, Mapping) or not all(isinstance(name, str) for name in self.results):
            raise TypeError(
                "only a StringTask has named results; what a function returned stands in .results"
            )
        return dict(self.results)

    def raise_exception(self) -> None:
        """Raise the exception of a task that failed, with its own type where possible."""
        if self.failure is not None:
            raise self.failure.exception()

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("engine", "none" if self.engineid < 0 else str(self.engineid))]
        if self.submitted:
            facts.append(("submitted", _clock(self.submitted)))
        if self.completed:
            facts.append(("completed", _clock(self.completed)))
        if self.started:
            facts.append(("duration", f"{self.duration:.3g} s"))
        facts += [
            (name, _short(text)) for name, text in (("stdout", self.stdout), ("stderr", self.stderr)) if text
        ]
        if self.failure is None:
            facts.append(("results", _short(self.results)))
        else:
            facts.append(("failure", self.failure._short()))
        return facts

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {text}" for name, text in self._facts())
        return f"<{type(self).__name__} {self.taskid}: {facts}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in [("task", self.taskid), *self._facts()]
        )
        return f"<table>{rows}</table>"


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def _short(value: Any, limit: int = 200) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 -- user code
        text = f"<its repr failed: {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}…"
