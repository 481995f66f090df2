"""The calls of a function on whichever engine is free: submit, map and imap."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ipython1.kernel.client import partition, progress
from ipython1.kernel.client.calls import _checked_block, short_label, wait_for
from ipython1.kernel.client.functions import ParallelFunction, _callable_name
from ipython1.kernel.client.life import ClientLife
from ipython1.kernel.client.taskbatches import OpenBatches, dump_arguments
from ipython1.kernel.client.taskiter import iterate
from ipython1.kernel.client.taskmap import NOT_DETACHED, Feeder, MapPending, Sizes, TaskMapper, copied
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.error import ClientClosed, NoEnginesRegistered
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.chunks import CHUNK_LIMIT

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore

#: Items that `imap` has outstanding where nothing is said: at least so many, and so many an engine.
IMAP_LEAST, IMAP_EACH = 64, 16

P = TypeVar("P", bound=TaskPending)


class TaskCalls(ClientLife):
    """The part of `TaskClient` that calls functions."""

    def _attach(self, core: ClientCore) -> None:
        super()._attach(core)
        self._batches = OpenBatches(core.tasks)

    def close(self) -> None:
        """End the connection; the engines stay. What is outstanding fails."""
        if not self.closed:
            with contextlib.suppress(ClientClosed):  # forked, or the reactor has ended
                self._batches.close()
        super().close()

    def _check(self) -> None:
        self._core.check_usable()
        if not self._core.engines():
            raise NoEnginesRegistered()

    # -- functions -----------------------------------------------------------------------

    def submit(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskPending:
        """Call a function on some engine.

        Parameters
        ----------
        f : callable
            Brings its own world: names as they were here first, the engine's
            namespace for the rest.
        *args, **kwargs
            Its arguments. A `Reference` stands for an object of the engine.

        Returns
        -------
        PendingResult
            Its result is what the function returned. Reading it raises a
            `CompositeError` where it failed.

        Raises
        ------
        SerializationError
            The function or an argument cannot be sent.
        NoEnginesRegistered
            There is no engine.
        """
        return self._submit(TaskPending, f, args, kwargs)

    def _submit(
        self, kind: type[P], f: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> P:
        """The same, with a result of this kind."""
        self._check()
        label = _callable_name(f)
        parts = dump_arguments(args, kwargs)

        def make(batch: str, slots: range) -> P:
            return kind(self._core, batch, "submit", slots, self._one)

        return self._batches.send(f, label, parts, make)

    def _one(self, values: list[Any]) -> Any:
        """The value of one task. A result refers to this, and so to the client, which stays open."""
        return values[0]

    def map(
        self,
        f: Callable[..., Any],
        *sequences: Iterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        block: bool = True,
        return_exceptions: bool = False,
    ) -> Any:
        """Like builtin `map`, on the engines; eager.

        Shows a progress bar after two seconds. Ctrl-C ends its work on the engines.

        Parameters
        ----------
        f : callable
        *sequences : iterable
            All of the same length.
        ordered : bool
            The results in the order of the items; else in the order in which they came.
        chunksize : int, optional
            Items that go to an engine together. Nothing: as many as take
            about 30 ms, as measured along the way.
        block : bool
            Wait for the list; else a `PendingResult` of it comes at once.
        return_exceptions : bool
            The exception of an item that failed stands in its place.

        Returns
        -------
        list or PendingResult

        Raises
        ------
        ValueError
            The sequences differ in length.
        CompositeError
            Items failed; the others have run as well, see its ``results``.
        """
        self._check()
        label = f"map {_callable_name(f)}"
        if not sequences:
            raise TypeError("map needs at least one sequence.")
        size = None if chunksize is None else _checked_chunksize(chunksize)
        wait = _checked_block(block)
        function = objects.dumps_call(f)
        rows = zip(*partition.same_length(sequences), strict=True)
        items = [copied(dump_arguments(row, {})) for row in rows]
        core = self._core
        batch = core.tasks.open("chunk", function, label=short_label(label))
        pending = MapPending(core, batch, "map", len(items), self, bool(ordered), bool(return_exceptions))
        try:
            Feeder(core, pending, items, Sizes(len(core.engines()), size)).feed()
        except BaseException:
            core.tasks.close(batch)
            raise
        if not wait:
            return pending
        return wait_for(core, pending, functools.partial(progress.wait, pending, ask=False))

    def imap(
        self,
        f: Callable[..., Any],
        *iterables: Iterable[Any],
        ordered: bool = True,
        max_outstanding: int | None = None,
        chunksize: int = 1,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Like builtin `map`, on the engines; lazy, also for endless iterables.

        Parameters
        ----------
        f : callable
        *iterables : iterable
            Read as there is room; the shortest ends it.
        ordered : bool
            The results in the order of the items; else as they come.
        max_outstanding : int, optional
            Items that are read and whose results are not yet taken, at most.
            Nothing: 16 an engine, and at least 64.
        chunksize : int
            Items that go to an engine together.
        return_exceptions : bool
            The exception of an item that failed stands in its place; else it
            is raised as a `CompositeError`, and the iteration ends.

        Returns
        -------
        iterator
            Closing it aborts what is outstanding.
        """
        self._check()
        label = f"imap {_callable_name(f)}"
        if not iterables:
            raise TypeError("imap needs at least one iterable.")
        size = _checked_chunksize(chunksize)
        if max_outstanding is None:
            most = max(IMAP_LEAST, IMAP_EACH * len(self._core.engines()))
        else:
            most = _at_least_one("max_outstanding", max_outstanding)
        return iterate(
            self,
            objects.dumps_call(f),
            zip(*iterables, strict=False),
            short_label(label),
            ordered=bool(ordered),
            ahead=math.ceil(most / size),
            chunksize=size,
            return_exceptions=bool(return_exceptions),
        )

    def mapper(self, **options: Any) -> TaskMapper:
        """An object whose `map` has these options."""
        return TaskMapper(self, **options)

    def parallel(self, **options: Any) -> Callable[[Callable[..., Any]], ParallelFunction]:
        """Decorate a function of items: called with sequences, it maps over them; with options of `map`.

        Examples
        --------
        >>> @tc.parallel(chunksize=10)
        ... def square(x):
        ...     return x * x
        >>> square(range(4))
        [0, 1, 4, 9]
        """
        mapper = self.mapper(**options)
        return lambda function: ParallelFunction(mapper, function)

    # -- leaving -------------------------------------------------------------------------

    def detach(self) -> list[str]:
        """Have all that is outstanding go on without this client; returns when that is safe.

        See `PendingResult.detach`. Tasks of other clients, which this one has
        only asked for, are left to them.

        Returns
        -------
        list of str
            The ids, for `get_pending` in any session of the cluster.

        Raises
        ------
        ValueError
            A map is outstanding, which its client has to feed; nothing is detached.
        """
        core = self._core
        pending = core.tasks.pending()
        if any(isinstance(each, Feeder) for each in pending):
            raise ValueError(NOT_DETACHED)
        return core.detach(list(filter(core.is_own, pending)))


def _checked_chunksize(chunksize: Any) -> int:
    size = _at_least_one("chunksize", chunksize)
    if size > CHUNK_LIMIT:
        raise ValueError(f"chunksize must be at most {CHUNK_LIMIT}, not {size}.")
    return size


def _at_least_one(name: str, value: Any) -> int:
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}.")
    return number
