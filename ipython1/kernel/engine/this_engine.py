"""What code that runs on an engine can know of it and say: ``ipython1.this_engine``."""

from __future__ import annotations

import json
from typing import Any

from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.error import IPython1Error
from ipython1.kernel.wire.objects import dumps


class ThisEngine:
    """The engine that runs this code.

    Attributes
    ----------
    id : int
        The engine id, -1 before it is registered.
    properties : dict
        What `MultiEngineClient.set_properties` sets.
    """

    def __init__(self, output: OutputBuffer | None = None) -> None:
        self.id = -1
        self.properties: dict[str, Any] = {}
        self._output = output

    def __repr__(self) -> str:
        return f"<this engine: {self.id}>"

    def progress(self, done: float, total: float | None = None, label: str = "") -> None:
        """Tell the client how far the running command is.

        Parameters
        ----------
        done, total : number
            In any unit; `total` where it is known.
        label : str
            What is being done.
        """
        if self._output is not None:
            facts = {
                "done": _number(done),
                "total": None if total is None else _number(total),
                "label": str(label),
            }
            self._output.add("progress", json.dumps(facts), [])

    def publish(self, obj: Any) -> None:
        """Append `obj`, as it is now, to ``PendingResult.published`` of the running command.

        Raises
        ------
        SerializationError
            It cannot be pickled.
        """
        parts = [bytes(part) for part in dumps(obj, "the published object")]
        if self._output is None or not self._output.add("publish", "", parts):
            raise IPython1Error("No command runs on this engine now, so there is nobody to publish to.")


def _number(value: Any) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number


class _Current:
    engine: ThisEngine | None = None


def set_current(engine: ThisEngine | None) -> ThisEngine | None:
    """Make `engine` the one that `current` returns; returns the one before."""
    before, _Current.engine = _Current.engine, engine
    return before


def current() -> ThisEngine:
    """The engine of this process.

    Raises
    ------
    IPython1Error
        This process is none.
    """
    if _Current.engine is None:
        raise IPython1Error(
            "ipython1.this_engine is only there in code that runs on an engine, as in mec.execute(...)."
        )
    return _Current.engine
