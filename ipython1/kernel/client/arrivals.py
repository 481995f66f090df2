"""What has come of a command so far, slot by slot.

A *slot* is what a value is kept under: an engine id for a command that goes to
engines, the number of a task for a map over the cluster. Nothing is kept for a
slot until something comes for it.

Storing and decoding are two things: the reactor thread stores, and the thread
that first reads decodes, once.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, TypeVar, Union

from ipython1.kernel.client.ids import format_id
from ipython1.kernel.client.results import display_data, make_result
from ipython1.kernel.error import CompositeError, RemoteFailure, UnknownResult
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.codec import decode_failure
from ipython1.kernel.wire.records import Event, Result

Buffer = Union[bytes, bytearray, memoryview]

#: Operations whose value is what a numbered command gave.
_COMMANDS = frozenset({"execute", "run", "get_result"})
_NOTHING: tuple[()] = ()
T = TypeVar("T")


class Output(NamedTuple):
    """Something a command gave out: `kind` stdout, stderr, display, input, or end: the slot has finished."""

    engine: int
    kind: str
    text: str = ""
    payload: Buffer = b""
    #: Number of the task; None: the engine is the slot.
    task: int | None = None

    @property
    def slot(self) -> int:
        """What this is part of."""
        return self.engine if self.task is None else self.task

    @property
    def display(self) -> dict[str, Any]:
        """Of a display: its ``data`` and ``metadata``."""
        return display_data(self.payload)


class Guard(type(threading.RLock())):  # type: ignore[misc]
    """The lock of one result; it also stands in for the `Condition` of its Future.

    A Condition is nine objects for Python's garbage collector to look at, for
    each outstanding command again and again. Nobody ever waits on this one:
    results are waited for with `concurrent.futures.wait`, which only locks.
    """

    def notify_all(self) -> None:
        """Nobody waits here."""


class FromSlot:
    """What has come for one slot; `value`, `failure` and `error` only once it is decoded."""

    __slots__ = (
        "completed",
        "decoded",
        "engine",
        "error",
        "events",
        "failure",
        "op",
        "outputs",
        "parts",
        "size",
        "started",
        "status",
        "value",
    )

    def __init__(self) -> None:
        self.events = 0
        self.size = 0
        self.outputs: list[Output] | None = None
        #: Of the result. None: it is not here yet; empty once it is decoded.
        self.parts: Sequence[Buffer] | None = None
        self.decoded = False
        self.value: Any = None
        self.failure: RemoteFailure | None = None
        self.error: CompositeError | None = None

    def finish(self, result: Result, parts: Sequence[Buffer]) -> None:
        """Keep what counts of a result: there may be very many."""
        self.engine = result.engine
        self.op = sys.intern(result.op)
        self.status = sys.intern(result.status)
        self.started = result.started
        self.completed = result.completed
        self.size += sum(map(len, parts))
        self.parts = parts

    def text(self, kind: str) -> str:
        """All text of one kind."""
        return "".join([output.text for output in self.outputs or () if output.kind == kind])

    def streamed(self) -> dict[str, Any]:
        """What came as events and belongs into the result of a command."""
        displays = [output.display for output in self.outputs or () if output.kind == "display"]
        streams = {"stdout": self.text("stdout"), "stderr": self.text("stderr"), "outputs": displays}
        return {key: value for key, value in streams.items() if value}


class _Published:
    """Objects that were published, in the order they came; unpickled when they are read."""

    __slots__ = ("parts", "values")

    def __init__(self) -> None:
        self.parts: list[Sequence[Buffer]] = []
        self.values: list[Any] = []


class Arrivals:
    """Storage of what comes of one command.

    Very many may be outstanding, so that what most of them never need is not made.

    Parameters
    ----------
    command_id : str
        For messages.
    method : str
        The call, for messages.
    slots : sequence of int
        Each once.
    """

    __slots__ = (
        "_command_id",
        "_decoding",
        "_known",
        "_log",
        "_method",
        "_progress",
        "_published",
        "_sources",
        "failed",
        "finished",
        "guard",
        "serial_time",
        "slots",
    )

    def __init__(self, command_id: str, method: str, slots: Sequence[int]) -> None:
        self._command_id = command_id
        self._method = method
        #: In the order of the values.
        self.slots: Sequence[int] = slots if isinstance(slots, range) else tuple(slots)
        self._known: Container[int] = self.slots
        if len(slots) > 1 and not isinstance(slots, range):
            self._known = frozenset(slots)
            if len(self._known) < len(slots):
                raise ValueError(f"a target occurs twice in {slots}")
        self._sources: dict[int, FromSlot] = {}
        #: Guards what is stored.
        self.guard = Guard()
        #: Slots that have finished, in the order they did; a list from the first one on.
        self.finished: Sequence[int] = _NOTHING
        #: Of the slots that have finished: how many failed, and the seconds of work by the engines' clocks.
        self.failed = 0
        self.serial_time = 0.0
        #: All output, in the order it came; the number of a slot stands for its end.
        self._log: Sequence[Output | int] = _NOTHING
        self._progress: dict[int, str] | None = None
        self._published: _Published | None = None
        self._decoding: Any = None

    # -- reactor thread: quick, nothing is unpickled ------------------------------------

    def event(self, event: Event, parts: Sequence[Buffer], task: int | None = None) -> bool:
        """Store an event; False where it was here before, or leaves a gap."""
        with self.guard:
            slot = event.engine if task is None else task
            source = self._source(slot)
            if source is None or event.index != source.events:
                return False
            source.events += 1
            source.size += len(event.text) + sum(map(len, parts))
            if event.kind == "progress":
                if self._progress is None:
                    self._progress = {}
                self._progress[slot] = event.text  # only the last one counts
            elif event.kind == "publish":
                if self._published is None:
                    self._published = _Published()
                self._published.parts.append(parts)
            elif event.kind != "started":
                output = Output(event.engine, event.kind, event.text, parts[0] if parts else b"", task)
                if source.outputs is None:
                    source.outputs = []
                source.outputs.append(output)
                self._log = _appended(self._log, output)
            return True

    def result(self, result: Result, parts: Sequence[Buffer], task: int | None = None) -> bool:
        """Store the end of the command for one slot; False where it was here before."""
        with self.guard:
            slot = result.engine if task is None else task
            source = self._source(slot)
            if source is None:
                return False
            source.finish(result, parts)
            self.failed += result.status != "ok"
            if result.started:
                self.serial_time += result.completed - result.started
            self.finished = _appended(self.finished, slot)
            self._log = _appended(self._log, slot)
            return True

    def restart(self, slot: int) -> None:
        """A task is tried again: drop what the last attempt gave out, but for what was shown already."""
        with self.guard:
            if not self.has(slot):
                self._sources.pop(slot, None)
                if self._progress is not None:
                    self._progress.pop(slot, None)

    def _source(self, slot: int) -> FromSlot | None:
        """Where to store what comes for a slot, unless it has finished or is not ours."""
        source = self._sources.get(slot)
        if source is None:
            if slot not in self._known:
                return None
            source = self._sources[slot] = FromSlot()
        return source if source.parts is None else None

    # -- any thread: reading ----------------------------------------------------------------

    @property
    def missing(self) -> int:
        """Slots that have not finished."""
        return len(self.slots) - len(self.finished)

    def awaits(self, slot: int) -> bool:
        """Whether the end of a slot is still to come."""
        return slot in self._known and not self.has(slot)

    def log(self, seen: int) -> list[Output]:
        """All output but the first `seen`, in the order it came; the caller holds the guard."""
        return [self._end(item) if isinstance(item, int) else item for item in self._log[seen:]]

    def _end(self, slot: int) -> Output:
        task = slot if isinstance(self.slots, range) else None
        return Output(self._sources[slot].engine, "end", task=task)

    def has(self, slot: int) -> bool:
        """Whether a slot has finished."""
        source = self._sources.get(slot)
        return source is not None and source.parts is not None

    @property
    def decoding(self) -> Any:
        """Guards what is decoded. Unpickling may run anything, even code that reads this result."""
        with self.guard:
            if self._decoding is None:
                self._decoding = threading.RLock()
            return self._decoding

    def decode(self, slot: int) -> FromSlot:
        """What has come for `slot`, which has finished, with its value or failure."""
        source = self._sources[slot]
        if not source.decoded:
            with self.decoding:
                if not source.decoded:
                    source.value, source.failure = self._decoded(source)
                    source.parts = ()
                    source.decoded = True
        return source

    def _decoded(self, source: FromSlot) -> tuple[Any, RemoteFailure | None]:
        engine, parts = source.engine, source.parts
        assert parts is not None
        if source.status == "unknown":
            facts = {"id": format_id(self._command_id, self.slots)}
            text = str(UnknownResult(**facts))
            return None, RemoteFailure("UnknownResult", text, "", b"", facts, engine, self._method)
        try:
            if source.status != "ok":
                return None, decode_failure(parts[0], engine, self._method)  # type: ignore[arg-type]
            value = objects.loads(parts)
            if source.op in _COMMANDS:
                times = {"started": source.started, "completed": source.completed}
                value = make_result(engine, value, source.streamed(), size=source.size, **times)
            return value, None
        except Exception as error:  # noqa: BLE001 -- unpickling runs code of users, anything may come out of it
            text = f"the result cannot be rebuilt here: {type(error).__name__}: {error}"
            trace = traceback.format_exc()
            return None, RemoteFailure("SerializationError", text, trace, b"", {}, engine, self._method)

    def error_of(self, slot: int) -> CompositeError:
        """The error of one slot that failed and is decoded; always the same object."""
        source = self._sources[slot]
        with self.decoding:
            if source.error is None:
                assert source.failure is not None
                source.error = CompositeError(self._method, [source.failure])
            return source.error

    def published(self) -> list[Any]:
        """The published objects in the order they came; an error stands for one that cannot be unpickled."""
        with self.decoding:
            if self._published is None:
                return []
            values = self._published.values
            with self.guard:
                fresh = self._published.parts[len(values) :]
            for parts in fresh:
                try:
                    values.append(objects.loads(parts))
                except Exception as error:  # noqa: BLE001 -- see _decoded
                    values.append(error)
            return list(values)

    @property
    def publications(self) -> int:
        """How many objects were published."""
        return 0 if self._published is None else len(self._published.parts)

    def texts(self, kind: str) -> list[str]:
        """What has been written so far, by slot."""
        with self.guard:
            sources = [self._sources.get(slot) for slot in self.slots]
            return ["" if source is None else source.text(kind) for source in sources]

    def progress(self, unfinished: bool = False) -> dict[int, dict[str, Any]]:
        """What code last told of its progress, by slot; `unfinished`: not of slots that have finished."""
        with self.guard:
            told = self._progress or {}
            told = {slot: text for slot, text in told.items() if not (unfinished and self.has(slot))}
        return {slot: json.loads(text) for slot, text in told.items()}


def _appended(items: Sequence[T], item: T) -> list[T]:
    """`items` with one more at the end: the same list, where it is one already."""
    if not isinstance(items, list):
        return [item]
    items.append(item)
    return items
