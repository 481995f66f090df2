"""Lazy maps over the cluster: what is read from the input depends on what was taken of the results."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.progress import ItemBar
from ipython1.kernel.client.taskbatches import dump_arguments
from ipython1.kernel.client.taskmap import Feeder, MapPending, Sizes, copied
from ipython1.kernel.error import ClientClosed, CompositeError
from ipython1.kernel.wire.blobs import Buffer

if TYPE_CHECKING:
    from ipython1.kernel.client.taskcalls import TaskCalls


class _Finished:
    """Results in the order in which they are done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: deque[MapPending] = deque()
        self._news: Future[None] | None = None

    def expect(self, pending: MapPending) -> None:
        """One more."""
        pending._when_over(lambda: self._add(pending))

    def _add(self, pending: MapPending) -> None:
        with self._lock:
            self._done.append(pending)
            news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def next(self, wait: Callable[[Future[Any]], None]) -> MapPending:
        """The next one, when `wait` has waited for it."""
        while True:
            with self._lock:
                if self._done:
                    return self._done.popleft()
                news = self._news = Future()
            wait(news)


def iterate(
    client: TaskCalls,
    f_parts: Sequence[Buffer],
    rows: Iterator[tuple[Any, ...]],
    label: str,
    *,
    ordered: bool,
    ahead: int,
    chunksize: int,
    return_exceptions: bool,
) -> Iterator[Any]:
    """The results of the rows, which are read as there is room; see `TaskClient.imap`."""
    core = client._core
    batch = core.tasks.open("chunk", f_parts, label=label)
    waiting: dict[MapPending, None] = {}
    finished = _Finished()
    bar = ItemBar("imap", core)
    more = True
    try:
        while True:
            while more and len(waiting) < ahead:
                items = [dump_arguments(row, {}) for row in itertools.islice(rows, chunksize)]
                more = len(items) == chunksize
                if items:
                    core.check_usable()
                    pending = MapPending(core, batch, "imap", len(items), client)
                    waiting[pending] = None
                    # Copied, as `Batches.add` does it: what goes a second time must be the same.
                    Feeder(core, pending, list(map(copied, items)), Sizes(1, len(items)), False).feed()
                    if not ordered:
                        finished.expect(pending)
            if not waiting:
                return
            pending = next(iter(waiting)) if ordered else finished.next(bar.wait)
            bar.wait(pending)
            for slot in pending.targets:
                bar.items += 1
                yield _value(pending, slot, return_exceptions)
            del waiting[pending]
    finally:
        bar.close()
        interrupt = isinstance(sys.exc_info()[1], KeyboardInterrupt)
        with contextlib.suppress(ClientClosed):  # then nothing is left to end
            for pending in waiting:
                pending.abort(interrupt)
            core.tasks.close(batch)


def _value(pending: MapPending, slot: int, return_exceptions: bool) -> Any:
    try:
        return pending[slot]
    except CompositeError as error:
        if return_exceptions:
            return error.elist[0].exception()
        raise
