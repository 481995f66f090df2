"""A `concurrent.futures.Executor` whose calls wait in the controller for an engine."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.error import IPython1Error, RemoteFailure
from ipython1.kernel.wire.runners import map_rows

if TYPE_CHECKING:
    from ipython1.kernel.client.task import TaskClient


class TaskFuture(TaskPending):
    """A `PendingResult` that raises what the function raised, as Futures of executors do."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` raises, or None; waits for it."""
        try:
            return super().exception(timeout)
        except concurrent.futures.TimeoutError:
            raise
        except TimeoutError as error:  # another class before Python 3.11
            raise concurrent.futures.TimeoutError(str(error)) from None

    def _make_error(self, failures: list[RemoteFailure], good: dict[int, Any]) -> Exception:
        return failures[0].exception()  # type: ignore[return-value]


class TaskExecutor(concurrent.futures.Executor):
    """Runs functions on engines, whichever is free.

    Exceptions are of their original types. A call can be cancelled as long as
    no engine has started it.

    Parameters
    ----------
    client : TaskClient
        It outlives the executor.
    """

    def __init__(self, client: TaskClient) -> None:
        self._client = client
        self._lock = client._batches.lock
        self._open: set[TaskFuture] = set()
        self._shut_down = False

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else f"{len(self._open)} outstanding"
        return f"<{type(self).__name__}: {state}>"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:  # type: ignore[override]
        """Call ``fn(*args, **kwargs)`` on one of the engines.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        SerializationError
            The function or an argument cannot be sent.
        NoEnginesRegistered
            There is nowhere to run it.
        """
        made: list[TaskFuture] = []

        def let_in(*facts: Any) -> TaskFuture:
            # Under the lock, which is held until it is sent: what was let in before a shutdown is seen by it.
            self._check_open()
            future = TaskFuture(*facts)
            made.append(future)
            self._open.add(future)
            future._when_over(lambda: self._open.discard(future))
            return future

        self._check_open()
        try:
            return self._client._submit(let_in, fn, args, kwargs)  # type: ignore[type-var, arg-type]
        except BaseException:
            self._open.difference_update(made)  # it was not sent
            raise

    def _check_open(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Like builtin `map`: iterates over the results in order.

        Parameters
        ----------
        fn : callable
        *iterables : iterable
            Read at once; the shortest ends it.
        timeout : float, optional
            Seconds from now after which the iteration raises `TimeoutError`.
        chunksize : int
            Items that go to an engine together.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be 1 or more, not {chunksize}.")
        end = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            return self._results(deque([self.submit(fn, *row) for row in rows]), end, lambda value: (value,))
        chunks = iter(lambda: list(itertools.islice(rows, chunksize)), [])
        return self._results(deque([self.submit(map_rows, fn, chunk) for chunk in chunks]), end, iter)

    def _results(
        self,
        futures: deque[TaskFuture],
        end: float | None,
        items: Callable[[Any], Iterable[Any]],
    ) -> Iterator[Any]:
        """The items in the values of futures, in order; those that are not wanted any more are aborted."""
        try:
            while futures:
                left = None if end is None else end - time.monotonic()
                value = futures[0].result(left)
                futures.popleft()
                yield from items(value)
        finally:
            if futures:
                with contextlib.suppress(IPython1Error):  # the client is closed
                    self._client.abort(futures)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The client and its engines stay.

        Parameters
        ----------
        wait : bool
            Until all calls are done.
        cancel_futures : bool
            Cancel those that no engine has started.
        """
        with self._lock:
            self._shut_down = True
        left = list(self._open)
        if cancel_futures:
            self._cancel(left)
        if wait:
            concurrent.futures.wait(left)

    def _cancel(self, futures: Iterable[TaskFuture]) -> None:
        """Cancel many at once, where no engine has started them."""
        asked = [(future, *future._begin_cancel()) for future in futures]
        mine = [future for future, _, asks in asked if asks]
        try:
            self._client.abort(mine)
        except IPython1Error:  # the client is closed: they fail, or have failed
            for future in mine:
                future._conclude_cancel(False)
        for future in mine:
            future._decide_cancel()
        for future, verdict, _ in asked:
            if verdict is not None:
                future._core.wait(verdict, None)
