"""A `concurrent.futures.Executor` over engines."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import CompositeError, IPython1Error
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.runners import map_rows

if TYPE_CHECKING:
    from ipython1.kernel.client.pending import PendingResult
    from ipython1.kernel.client.views import TargetView

#: Calls an engine has at a time: one to run, and one so that it need not wait for the next.
AHEAD = 2


@dataclass(eq=False)
class _Work:
    future: Future[Any]
    call: list[Any]  # what `dumps_call` made
    label: str


class EngineExecutor(concurrent.futures.Executor):
    """Runs functions on engines, whichever is free.

    A call waits here until an engine has room for it; until then its Future
    can be cancelled. Results are what the function returned, exceptions are
    of their original types.

    Parameters
    ----------
    view : TargetView
        Where functions may run. It outlives the executor.
    """

    def __init__(self, view: TargetView) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._waiting: deque[_Work] = deque()
        self._busy: Counter[int] = Counter()
        self._open: set[Future[Any]] = set()
        self._shut_down = False

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else f"{len(self._open)} outstanding"
        return f"<{type(self).__name__} targets={self._view.targets!r}: {state}>"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call ``fn(*args, **kwargs)`` on one of the engines.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        SerializationError
            The function or an argument cannot be sent.
        NoEnginesRegistered, InvalidEngineID
            There is nowhere to run it.
        """
        if not callable(fn):
            raise TypeError(f"submit takes a function, not {type(fn).__name__}.")
        self._view.ids  # noqa: B018 -- raises where there is no engine, or the client is closed
        # A later change of the arguments must not be seen, so they are copied now.
        call = [bytes(part) for part in objects.dumps_call(fn, args, kwargs)]
        future: Future[Any] = Future()
        with self._lock:
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._open.add(future)
            self._waiting.append(_Work(future, call, str(getattr(fn, "__name__", type(fn).__name__))))
        self._hand_out()
        return future

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
        chunks = iter(lambda: list(itertools.islice(rows, chunksize)), [])
        futures = deque(self.submit(map_rows, fn, chunk) for chunk in chunks)
        return _results(futures, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The client and its engines stay.

        Parameters
        ----------
        wait : bool
            Until all calls are done.
        cancel_futures : bool
            Cancel those that no engine has yet.
        """
        with self._lock:
            self._shut_down = True
            dropped = list(self._waiting) if cancel_futures else []
            for work in dropped:
                self._waiting.remove(work)
                self._open.discard(work.future)
            left = list(self._open)
        for work in dropped:
            work.future.cancel()
            work.future.set_running_or_notify_cancel()
        if wait:
            concurrent.futures.wait(left)

    # -- handing out -------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give waiting calls to engines that have room."""
        while True:
            with self._lock:
                work, target, error = self._next()
            if work is None:
                return
            if error is not None:
                self._resolve(work, target, error=error)
            else:
                self._start(work, target)

    def _next(self) -> tuple[_Work | None, int, Exception | None]:
        """The next call and the engine for it, or the error it fails with."""
        while self._waiting:
            failed: IPython1Error | None = None
            try:
                target = min(self._view.ids, key=lambda id: self._busy[id])
            except IPython1Error as error:
                target, failed = -1, error
            else:
                if self._busy[target] >= AHEAD:
                    break
            work = self._waiting.popleft()
            if not work.future.set_running_or_notify_cancel():
                self._open.discard(work.future)
                continue
            self._busy[target] += 1
            return work, target, failed
        return None, -1, None

    def _start(self, work: _Work, target: int) -> None:
        try:
            pending = self._view._send(
                "submit", "apply", {}, [((target,), work.call)], False, label=f"submit {work.label}"
            )
        except IPython1Error as error:
            self._resolve(work, target, error=error)
            return
        pending.add_done_callback(lambda pending: self._finished(work, target, pending))

    def _finished(self, work: _Work, target: int, pending: PendingResult) -> None:
        try:
            [value] = pending.result()
        except CompositeError as failed:
            self._resolve(work, target, error=failed.elist[0].exception())
        except Exception as error:  # noqa: BLE001 -- a result may refuse to be rebuilt here in any way
            self._resolve(work, target, error=error)
        else:
            self._resolve(work, target, value)
        self._hand_out()

    def _resolve(
        self, work: _Work, target: int, value: Any = None, error: BaseException | None = None
    ) -> None:
        with self._lock:
            self._busy[target] -= 1
            self._open.discard(work.future)
        if error is not None:
            work.future.set_exception(error)
        else:
            work.future.set_result(value)


def _results(futures: deque[Future[list[Any]]], end: float | None) -> Iterator[Any]:
    """The items of the futures' lists, in order; those that are not wanted any more are cancelled."""
    try:
        while futures:
            left = None if end is None else end - time.monotonic()
            yield from futures[0].result(left)
            futures.popleft()
    finally:
        for future in futures:
            future.cancel()
