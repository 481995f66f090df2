"""A `concurrent.futures.Executor` over engines."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.completion import UNREAD, Core
from ipython1.kernel.error import CompositeError, IPython1Error
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.runners import map_rows

if TYPE_CHECKING:
    from ipython1.kernel.client.pending import PendingResult
    from ipython1.kernel.client.views import TargetView

#: Calls an engine has at a time: one to run, and one so that it need not wait for the next.
AHEAD = 2


class EngineFuture(Future[Any]):
    """The result of a call, rebuilt once, in the thread that first reads it.

    Parameters
    ----------
    core : ClientCore
        Runs callbacks outside of the reactor thread.
    """

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self._pending: PendingResult | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x}: {self._state.lower()}>"

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned; waits for it."""
        error = self.exception(timeout)
        if error is None:
            return super().result()
        try:
            raise error.with_traceback(None)
        finally:
            del error, self  # the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` raises, or None; waits for it."""
        super().exception(timeout)  # waits
        self._rebuild()
        return super().exception()

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """How asyncio of Python 3.14 reads a Future without waiting."""
        if self.done():
            self._rebuild()
        return super()._get_snapshot()  # type: ignore[misc, no-any-return]

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(self)`` when this is done: in a thread for callbacks, or at once where it is done."""
        super().add_done_callback(fn if self.done() else functools.partial(self._core.call_user, fn))

    def arrived(self, pending: PendingResult) -> None:
        """All that comes of the call is in `pending`. Reactor thread."""
        self._pending = pending
        if pending._failed:
            self.set_exception(UNREAD)
        else:
            self.set_result(None)

    def _rebuild(self) -> None:
        """Make the result, or the exception, out of what came; this is done."""
        pending = self._pending
        if pending is None:
            return
        with pending._arrivals.decoding:
            if self._pending is None:
                return
            error = CancelledError() if pending.cancelled() else pending.exception()
            if isinstance(error, CompositeError):
                error = error.elist[0].exception()
            if error is None:
                [self._result] = pending.result()
            self._exception = error
            self._pending = None


@dataclass(eq=False)
class _Work:
    future: EngineFuture
    call: list[Any]  # what `dumps_call` made
    label: str


class EngineExecutor(concurrent.futures.Executor):
    """Runs functions on engines, whichever is free.

    A call waits here until an engine has room for it; until then its Future
    can be cancelled. Results are what the function returned, exceptions are
    of their original types. Callbacks of Futures run in a thread for callbacks,
    where they may wait for other calls.

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
        self._open: set[EngineFuture] = set()
        self._shut_down = False

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else f"{len(self._open)} outstanding"
        return f"<{type(self).__name__} targets={self._view.targets!r}: {state}>"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> EngineFuture:  # type: ignore[override]
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
        future = EngineFuture(self._view._core)
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
                self._fail(work, target, error)
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
        except BaseException as error:
            self._fail(work, target, error)  # or it would never be done
            if isinstance(error, Exception):
                return
            raise
        pending._when_over(lambda: self._finished(work, target, pending))

    def _finished(self, work: _Work, target: int, pending: PendingResult) -> None:
        """In the reactor thread: no code of the user runs here, and so none can hold up the engines."""
        self._end(work, target)
        work.future.arrived(pending)
        self._hand_out()

    def _fail(self, work: _Work, target: int, error: BaseException) -> None:
        self._end(work, target)
        work.future.set_exception(error)

    def _end(self, work: _Work, target: int) -> None:
        with self._lock:
            self._busy[target] -= 1
            self._open.discard(work.future)


def _results(futures: deque[EngineFuture], end: float | None) -> Iterator[Any]:
    """The items of the futures' lists, in order; those that are not wanted any more are cancelled."""
    try:
        while futures:
            left = None if end is None else end - time.monotonic()
            yield from futures[0].result(left)
            futures.popleft()
    finally:
        for future in futures:
            future.cancel()
