"""Maps over the cluster: many items, in tasks of several items each.

A chunk is a task of op ``chunk``; what comes of it is told item by item. Its
size follows the length of items as measured: long enough that the way to the
engine does not count, short enough that all engines end at about the same
time.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.error import RemoteFailure, WireError, own_failure
from ipython1.kernel.wire.blobs import Buffer
from ipython1.kernel.wire.chunks import CHUNK_LIMIT, Row, join_rows, split_rows
from ipython1.kernel.wire.codec import decode_failure, encode_failure
from ipython1.kernel.wire.records import Event, Result

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore
    from ipython1.kernel.client.taskcalls import TaskCalls

#: Seconds that a chunk shall take.
CHUNK_TIME = 0.03
#: A chunk has at most so many times the items of the largest that has come back.
GROWTH = 8
#: Chunks an engine has at a time.
AHEAD = 4
#: Chunks an engine gets of what is left, at least.
SHARES = 4
#: Bytes of arguments in one chunk, about.
CHUNK_BYTES = 1 << 20
#: Seconds that a chunk takes at least, however few are left.
LEAST_TIME = 0.002
#: Chunks sent in one go.
TOGETHER = 256
#: Why a map cannot be detached.
NOT_DETACHED = "A map is fed by its client, and cannot be detached. Use submit, or run it in a task."
#: Failures of a chunk that may be those of one of its items.
_OF_ONE = frozenset({"EngineDied", "TaskRejected"})


class MapPending(TaskPending):
    """The result of a map; its slots are the numbers of the items.

    Parameters
    ----------
    core : ClientCore
    batch : str
    method : str
        The call, for messages.
    total : int
        Number of items.
    owner : object
        Kept as long as this is.
    ordered : bool
        The values in the order of the items; else as they came.
    return_exceptions : bool
        An exception is the value of its item.
    """

    feeder: Feeder

    def __init__(
        self,
        core: ClientCore,
        batch: str,
        method: str,
        total: int,
        owner: object = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> None:
        self._owner = owner
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        super().__init__(_FeederCore(core), batch, method, range(total))

    @property
    def id(self) -> str:
        """The id of the map. What came of it cannot be had by this id in other sessions."""
        return self.command_id

    @property
    def _failed(self) -> bool:
        """See `Completion`: an exception that is a value is no failure."""
        return self._broken is not None or (not self._return_exceptions and self._arrivals.failed > 0)

    def _take_values(self) -> None:
        arrivals = self._arrivals
        if arrivals.failed and not self._return_exceptions:
            super()._take_values()
            return
        sources = [arrivals.decode(slot) for slot in (self.targets if self._ordered else arrivals.finished)]
        if not self._return_exceptions and any(source.failure is not None for source in sources):
            super()._take_values()  # something cannot be rebuilt here
            return
        self._value = [
            source.value if source.failure is None else source.failure.exception() for source in sources
        ]


class _FeederCore:
    """The core of a client, for the result of a map: what is to be ended is what feeds it."""

    def __init__(self, core: ClientCore) -> None:
        self.wait = core.wait
        self.sent = core.sent
        self.call_user = core.call_user

    def abort(self, pending: MapPending, interrupt: bool = False) -> None:
        pending.feeder.abort(interrupt)

    def detach(self, pendings: Sequence[MapPending]) -> list[str]:
        raise ValueError(NOT_DETACHED)


class Sizes:
    """How many items go into the next chunk.

    Parameters
    ----------
    engines : int
    fixed : int, optional
        Always so many.
    """

    def __init__(self, engines: int, fixed: int | None = None) -> None:
        self.engines = max(1, engines)
        self.fixed = fixed
        self._largest = 1
        self._mean = 0.0  # seconds of an item

    def measured(self, items: int, seconds: float) -> None:
        """A chunk of so many items took so long."""
        mean = max(seconds / items, 1e-7)  # a clock may be set back meanwhile
        # The newest counts for half: the length of items may change along the way.
        self._mean = (self._mean + mean) / 2 if self._mean else mean
        self._largest = max(self._largest, items)

    def next(self, left: int) -> int:
        """The size of the next chunk, where `left` items are left."""
        if self.fixed is not None:
            return min(self.fixed, left)
        if not self._mean:
            return 1
        share = max(left // (SHARES * self.engines), int(LEAST_TIME / self._mean))
        return max(1, min(int(CHUNK_TIME / self._mean), share, self._largest * GROWTH, CHUNK_LIMIT, left))


class Feeder:
    """Sends the items of a map as the engines take them; stands between the tasks and the result.

    Parameters
    ----------
    core : ClientCore
    pending : MapPending
        Gets what comes of the items.
    items : list of list of buffers
        The pickled arguments of each; emptied along the way.
    sizes : Sizes
    last : bool
        The batch is closed behind it.
    """

    def __init__(
        self,
        core: ClientCore,
        pending: MapPending,
        items: list[list[Buffer]],
        sizes: Sizes,
        last: bool = True,
    ) -> None:
        self.command_id = pending.command_id
        self.pending = pending
        self._core = core
        self._tasks = core.tasks
        self._items = items
        self._sizes = sizes
        self._lock = threading.RLock()  # guards the following; in memory what is sent may come back at once
        self._next = 0  # of the items that were never sent
        self._again: deque[tuple[int, ...]] = deque()  # that go once more, as chunks of these
        self._chunks: dict[int, tuple[int, ...]] = {}  # by number of the task
        self._aborted = False
        self._closed = not last
        pending.feeder = self

    # -- out: any thread ---------------------------------------------------------------------

    def feed(self) -> None:
        """Send chunks until the engines have enough."""
        with self._lock:
            room = self._room()
            while self._feed_some(room):
                pass
            if not self._chunks and not self._closed:
                self._closed = True
                self._tasks.close(self.command_id)

    def _feed_some(self, room: float) -> bool:
        """Send some of the chunks that there is room for. Whether there may be more."""
        new: list[tuple[int, ...]] = []
        while len(self._chunks) + len(new) < room and len(new) < TOGETHER:
            chunk = () if self._chunks and self._tasks.room.full else self._next_chunk()
            if not chunk:
                break
            new.append(chunk)
        if not new:
            return False
        numbers = self._tasks.reserve(self.command_id, len(new))
        self._chunks.update(zip(numbers, new, strict=True))
        parts = [join_rows(Row((), self._items[item]) for item in chunk) for chunk in new]
        # Under the lock that the reactor thread takes, too: those that come back make room for more.
        self._tasks.add(self, numbers, parts, wait=False)  # type: ignore[arg-type]
        return len(new) == TOGETHER

    def _room(self) -> float:
        """How many chunks may be on their way: sizes that are still to be measured are not known ahead."""
        if self._sizes.fixed is not None:
            return math.inf
        return AHEAD * max(1, len(self._core.engines()))

    def _next_chunk(self) -> tuple[int, ...]:
        if self._again:
            return self._again.popleft()
        first, total = self._next, len(self._items)
        if first >= total:
            return ()
        stop = first + self._sizes.next(total - first)
        if self._sizes.fixed is not None:
            self._next = stop
            return tuple(range(first, stop))
        size, last = 0, first
        while last < stop and (last == first or size < CHUNK_BYTES):
            size += sum(map(len, self._items[last]))
            last += 1
        self._next = last
        return tuple(range(first, last))

    def abort(self, interrupt: bool) -> None:
        """Send no more, and take back what was sent."""
        self._tasks.call(self._abort, interrupt)

    # -- reactor thread ----------------------------------------------------------------------------

    def _abort(self, interrupt: bool) -> None:
        with self._lock:
            self._aborted = True
            unsent = [item for chunk in self._again for item in chunk]
            unsent += range(self._next, len(self._items))
            self._again.clear()
            self._next = len(self._items)
            chunks = list(self._chunks)
        if chunks:
            self._tasks.withdraw(self.command_id, chunks, interrupt)
        self._fail(unsent)
        self.feed()  # closes the batch, where nothing is left

    def _fail(self, items: Sequence[int]) -> None:
        failure = encode_failure(own_failure("TaskAborted"))
        for item in items:
            self._deliver(item, Result("", -1, "", "error", 0.0, 0.0, 0, ()), [failure])

    # -- what comes, as to a `TaskPending` ---------------------------------------------------------

    def deliver_event(self, event: Event, parts: Sequence[Buffer], slot: int) -> None:
        """Output of a chunk counts as that of its first item."""
        chunk = self._chunks.get(slot)
        if chunk:
            self.pending.deliver_event(event, parts, chunk[0])

    def restart_slot(self, slot: int) -> None:
        """A chunk is tried again."""
        chunk = self._chunks.get(slot)
        if chunk:
            self.pending.restart_slot(chunk[0])

    def deliver_result(self, result: Result, parts: Sequence[Buffer], slot: int) -> None:
        """What came of a chunk."""
        with self._lock:
            chunk = self._chunks.pop(slot, ())
        left = self._take(result, parts, chunk)
        if left:
            self._go_again(left)
        if self._again or self._next < len(self._items) or not self._chunks:
            self.feed()

    def _go_again(self, items: Sequence[int]) -> None:
        """Items of a chunk have not run."""
        for item in items:
            self.pending.restart_slot(item)
        with self._lock:
            aborted = self._aborted
            if not aborted:
                self._again.extend((item,) for item in items)
        if aborted:
            self._fail(items)

    def _take(self, result: Result, parts: Sequence[Buffer], chunk: Sequence[int]) -> Sequence[int]:
        """Tell what came of the items; returns those that have not run."""
        rows: list[Row] = []
        if result.status == "ok":
            try:
                rows = list(split_rows(parts))
            except WireError as error:
                failure = RemoteFailure(type(error).__name__, str(error))
                result, parts = dataclasses.replace(result, status="error"), [encode_failure(failure)]
        if result.status != "ok":
            if len(chunk) > 1 and self._name(parts) in _OF_ONE:
                return chunk
            for item in chunk:
                self._deliver(item, result, parts)
            return ()
        for item, ((ok, started, completed), own) in zip(chunk, rows, strict=False):
            status = "ok" if ok else "error"
            end = Result(result.id, result.engine, "", status, started, completed, 0, ())
            self._deliver(item, end, own)
        if rows:
            self._sizes.measured(len(rows), result.completed - result.started)
        return chunk[len(rows) :]

    def _deliver(self, item: int, result: Result, parts: Sequence[Buffer]) -> None:
        self._items[item] = []
        self.pending.deliver_result(result, parts, item)

    @staticmethod
    def _name(parts: Sequence[Buffer]) -> str:
        try:
            return decode_failure(bytes(parts[0]), -1, "").ename
        except (WireError, IndexError):
            return ""

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        self.pending.fail(error)


class TaskMapper:
    """Something with a `map`, with fixed options.

    Parameters
    ----------
    client : TaskClient
    **options
        Those of `TaskClient.map`.
    """

    def __init__(self, client: TaskCalls, **options: Any) -> None:
        self.client = client
        self.options = options

    def __repr__(self) -> str:
        options = "".join(f" {name}={value!r}" for name, value in self.options.items())
        return f"<{type(self).__name__}{options}>"

    def map(self, f: Callable[..., Any], *sequences: Iterable[Any]) -> Any:
        """Like builtin `map`, on the engines."""
        return self.client.map(f, *sequences, **self.options)


def copied(parts: list[Buffer]) -> list[Buffer]:
    """The same, of which nothing changes any more."""
    return [part if type(part) is bytes else bytes(part) for part in parts]
