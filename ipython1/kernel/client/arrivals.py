"""What has come of a command so far, engine by engine.

Storing and decoding are two things: the reactor thread stores, and the thread
that first reads decodes, once.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, Union

from ipython1.kernel.client.ids import format_id
from ipython1.kernel.client.results import display_data, make_result
from ipython1.kernel.error import CompositeError, RemoteFailure, UnknownResult
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.codec import decode_failure
from ipython1.kernel.wire.records import Event, Result

Buffer = Union[bytes, bytearray, memoryview]

#: Operations whose value is what a numbered command gave.
_COMMANDS = frozenset({"execute", "run", "get_result"})


class Output(NamedTuple):
    """Something a command gave out: `kind` stdout, stderr, display, or end: the engine has finished."""

    engine: int
    kind: str
    text: str = ""
    payload: Buffer = b""

    @property
    def display(self) -> dict[str, Any]:
        """Of a display: its ``data`` and ``metadata``."""
        return display_data(self.payload)


class FromEngine:
    """What has come from one engine; `value`, `failure` and `error` only once it is decoded."""

    __slots__ = (
        "decoded",
        "error",
        "events",
        "failure",
        "outputs",
        "parts",
        "progress",
        "result",
        "size",
        "value",
    )

    def __init__(self) -> None:
        self.events = 0
        self.size = 0
        self.outputs: list[Output] = []
        self.progress = ""
        self.result: Result | None = None
        self.parts: Sequence[Buffer] = ()
        self.decoded = False
        self.value: Any = None
        self.failure: RemoteFailure | None = None
        self.error: CompositeError | None = None

    def text(self, kind: str) -> str:
        """All text of one kind."""
        return "".join([output.text for output in self.outputs if output.kind == kind])

    def streamed(self) -> dict[str, Any]:
        """What came as events and belongs into the result of a command."""
        displays = [output.display for output in self.outputs if output.kind == "display"]
        streams = {"stdout": self.text("stdout"), "stderr": self.text("stderr"), "outputs": displays}
        return {key: value for key, value in streams.items() if value}


class Arrivals:
    """Storage of what comes of one command.

    Parameters
    ----------
    command_id : str
        For messages.
    method : str
        The call, for messages.
    targets : tuple of int
        Each once.
    """

    def __init__(self, command_id: str, method: str, targets: tuple[int, ...]) -> None:
        self._command_id = command_id
        self._method = method
        self.engines = {target: FromEngine() for target in targets}
        if len(self.engines) < len(targets):
            raise ValueError(f"a target occurs twice in {targets}")
        #: Guards what is stored.
        self.guard = threading.Lock()
        #: Engines that have finished, in the order they did.
        self.finished: list[int] = []
        #: All output, in the order it came.
        self.log: list[Output] = []
        self._published_parts: list[Sequence[Buffer]] = []
        #: Guards what is decoded. Unpickling may run anything, even code that reads this result.
        self.decoding = threading.RLock()
        self._published: list[Any] = []

    # -- reactor thread: quick, nothing is unpickled ------------------------------------

    def event(self, event: Event, parts: Sequence[Buffer]) -> bool:
        """Store an event; False where it was here before, or leaves a gap."""
        with self.guard:
            source = self.engines.get(event.engine)
            if source is None or source.result is not None or event.index != source.events:
                return False
            source.events += 1
            source.size += len(event.text) + sum(map(len, parts))
            if event.kind == "progress":
                source.progress = event.text  # only the last one counts
            elif event.kind == "publish":
                self._published_parts.append(parts)
            elif event.kind != "started":
                output = Output(event.engine, event.kind, event.text, parts[0] if parts else b"")
                source.outputs.append(output)
                self.log.append(output)
            return True

    def result(self, result: Result, parts: Sequence[Buffer]) -> bool:
        """Store the end of the command on one engine; False where it was here before."""
        with self.guard:
            source = self.engines.get(result.engine)
            if source is None or source.result is not None:
                return False
            source.result, source.parts = result, parts
            source.size += sum(map(len, parts))
            self.finished.append(result.engine)
            self.log.append(Output(result.engine, "end"))
            return True

    # -- any thread: reading ----------------------------------------------------------------

    @property
    def missing(self) -> int:
        """Engines that have not finished."""
        return len(self.engines) - len(self.finished)

    def decode(self, engine: int) -> FromEngine:
        """What has come from `engine`, which has finished, with its value or failure."""
        source = self.engines[engine]
        with self.decoding:
            if not source.decoded:
                source.value, source.failure = self._decoded(engine, source)
                source.parts = ()
                source.decoded = True
        return source

    def _decoded(self, engine: int, source: FromEngine) -> tuple[Any, RemoteFailure | None]:
        result = source.result
        assert result is not None
        if result.status == "unknown":
            facts = {"id": format_id(self._command_id, self.engines)}
            text = str(UnknownResult(**facts))
            return None, RemoteFailure("UnknownResult", text, "", b"", facts, engine, self._method)
        try:
            if result.status != "ok":
                return None, decode_failure(source.parts[0], engine, self._method)  # type: ignore[arg-type]
            value = objects.loads(source.parts)
            if result.op in _COMMANDS:
                times = {"started": result.started, "completed": result.completed}
                value = make_result(engine, value, source.streamed(), size=source.size, **times)
            return value, None
        except Exception as error:  # noqa: BLE001 -- unpickling runs code of users, anything may come out of it
            text = f"the result cannot be rebuilt here: {type(error).__name__}: {error}"
            trace = traceback.format_exc()
            return None, RemoteFailure("SerializationError", text, trace, b"", {}, engine, self._method)

    def error_of(self, engine: int) -> CompositeError:
        """The error of one engine that failed and is decoded; always the same object."""
        source = self.engines[engine]
        with self.decoding:
            if source.error is None:
                assert source.failure is not None
                source.error = CompositeError(self._method, [source.failure])
            return source.error

    def published(self) -> list[Any]:
        """The published objects in the order they came; an error stands for one that cannot be unpickled."""
        with self.decoding:
            with self.guard:
                fresh = self._published_parts[len(self._published) :]
            for parts in fresh:
                try:
                    self._published.append(objects.loads(parts))
                except Exception as error:  # noqa: BLE001 -- see _decoded
                    self._published.append(error)
            return list(self._published)

    def texts(self, kind: str) -> list[str]:
        """What each target has written so far."""
        with self.guard:
            return [source.text(kind) for source in self.engines.values()]

    def progress(self) -> dict[int, dict[str, Any]]:
        """What code on engines last told of its progress, by engine."""
        return {
            engine: json.loads(source.progress) for engine, source in self.engines.items() if source.progress
        }

    def serial_time(self) -> float:
        """Seconds of work, by the engines' clocks."""
        results = [source.result for source in self.engines.values() if source.result is not None]
        return sum(result.completed - result.started for result in results if result.started)

    def failed(self) -> int:
        """Engines that have failed."""
        results = [source.result for source in self.engines.values() if source.result is not None]
        return sum(result.status != "ok" for result in results)
