"""`PendingResult`: what comes of a command, from the moment it is sent.

The reactor thread only stores what arrives (`Arrivals`). It is decoded once,
in the thread that first reads it, so that rebuilding large objects, and code
of users that runs meanwhile, never holds up the connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import operator
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from ipython1.kernel.client import streaming
from ipython1.kernel.client.arrivals import Arrivals, Buffer, Output
from ipython1.kernel.client.callbacks import CallbackChain
from ipython1.kernel.client.ids import format_id, parse_id
from ipython1.kernel.error import (
    CompositeError,
    IPython1Error,
    RemoteFailure,
    SerializationError,
    TaskAborted,
    UnknownResult,
)
from ipython1.kernel.wire.records import Event, Result

__all__ = ["PendingResult", "format_id", "parse_id"]


class Core(Protocol):
    """What a `PendingResult` needs of its client; see `ClientCore`."""

    def wait(self, future: concurrent.futures.Future[Any], timeout: float | None) -> None: ...

    def call_user(self, f: Callable[..., Any], *args: Any) -> None: ...

    def abort(self, pending: PendingResult, interrupt: bool = False) -> None: ...


class PendingResult(concurrent.futures.Future[Any]):
    """The result of a command, now or later.

    A `concurrent.futures.Future`, and awaitable: in an asyncio task, and in
    Twisted coroutines in the reactor thread. Reading it waits for it, except
    in the reactor thread, where waiting raises `WouldBlockReactor`. It may be
    read any number of times, in any thread. Where engines failed, reading
    raises a `CompositeError`, the same each time. Ctrl-C while reading stops
    the waiting; the work goes on.

    Parameters
    ----------
    core : ClientCore
        The client that sent the command.
    id : str
        The command id, without targets.
    method : str
        The call, for messages.
    targets : sequence of int
        Engines the command goes to, each once; may be empty.
    finish : callable, optional
        Makes the result out of the list of values, one a target. Without it
        that list is the result.
    """

    def __init__(
        self,
        core: Core,
        id: str,
        method: str,
        targets: Sequence[int],
        finish: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self._core = core
        self.command_id = id
        self.method = method
        self.targets = tuple(targets)
        self._finish = finish
        self._arrivals = Arrivals(id, method, self.targets)
        self._submitted = time.monotonic()
        self._over_at: float | None = None
        #: Guards what follows, up to the settled result.
        self._guard = self._arrivals.guard
        self._broken: Exception | None = None
        self._over = False
        self._verdict: concurrent.futures.Future[bool] | None = None
        self._news: concurrent.futures.Future[None] | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._callbacks: CallbackChain | None = None
        self._settled = False
        self._value: Any = None
        self._error: Exception | None = None
        self._finish_if_over()

    def __reduce__(self) -> Any:
        raise SerializationError(
            what=f"a {type(self).__name__}",
            reason="its client belongs to this process. Send what .get_result() returns, "
            "or .id for get_pending() of another client",
        )

    # -- what arrives: reactor thread --------------------------------------------------------

    def deliver_event(self, event: Event, parts: Sequence[Buffer]) -> None:
        """Take something the command gave out. What came before, or leaves a gap, is ignored."""
        if not self._over and self._arrivals.event(event, parts):
            self._mark_running()
            self._decide_cancel()
            self._tell()

    def deliver_result(self, result: Result, parts: Sequence[Buffer]) -> None:
        """Take the end of the command on one engine; the last one makes this Future done."""
        if not self._over and self._arrivals.result(result, parts):
            if result.started:
                self._mark_running()
            self._decide_cancel()
            self._finish_if_over()
            self._tell()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more, because of `error`."""
        with self._guard:
            if self._over:
                return
            self._broken = error
        self._decide_cancel()
        self._finish_if_over()

    def _mark_running(self) -> None:
        if not self._over and not self.running():
            self.set_running_or_notify_cancel()

    def _finish_if_over(self) -> None:
        with self._guard:
            unfinished = self._arrivals.missing and self._broken is None
            if self._over or self._verdict is not None or unfinished:
                return
            self._over = True
        self.set_result(None)  # the value comes when it is read
        self._announce()

    def _announce(self) -> None:
        """The state is final: tell everyone who waits."""
        self._over_at = time.monotonic()
        with self._guard:
            listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener()
        self._tell()
        if self._callbacks:
            self._core.call_user(self._callbacks.run, self)

    def _tell(self) -> None:
        """Wake those who wait for the next thing to arrive."""
        with self._guard:
            news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _when_over(self, listener: Callable[[], None]) -> None:
        """Call `listener` (quick) once this is done: in the reactor thread, or now."""
        with self._guard:
            if not self.done():
                self._listeners += (listener,)
                return
        listener()

    # -- reading -----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The id of this result, targets included; valid in other sessions of this cluster."""
        return format_id(self.command_id, self.targets)

    def result(self, timeout: float | None = None) -> Any:
        """The result; waits for it.

        Raises
        ------
        CompositeError
            Engines failed.
        TimeoutError
            It is not there after `timeout` seconds; the work goes on.
        concurrent.futures.CancelledError
            It was cancelled.
        """
        error = self.exception(timeout)
        if error is None:
            return self._value
        try:
            # Without what earlier readers have added, or it would grow with each.
            raise error.with_traceback(None)
        finally:
            del error, self  # the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` raises, or None; waits for it."""
        if not self.done():
            self._core.wait(self, timeout)
        if self.cancelled():
            raise concurrent.futures.CancelledError()
        self._settle()
        return self._error

    def _settle(self) -> None:
        """Make the result, or the error, out of what has come; once."""
        with self._arrivals.decoding:
            if self._settled:
                return
            if self._broken is not None:
                self._error = self._broken
            else:
                sources = {engine: self._arrivals.decode(engine) for engine in self.targets}
                failures = [source.failure for source in sources.values() if source.failure is not None]
                good = {engine: source.value for engine, source in sources.items() if source.failure is None}
                try:
                    if failures:
                        self._error = self._make_error(failures, good)
                    else:
                        values = list(good.values())
                        self._value = values if self._finish is None else self._finish(values)
                except Exception as error:  # noqa: BLE001 -- e.g. arrays that do not fit together
                    self._error = error
            self._settled = True

    def _make_error(self, failures: list[RemoteFailure], good: dict[int, Any]) -> Exception:
        """The error of this result, where engines failed."""
        if len(failures) == len(self.targets) and all(
            failure.ename == "UnknownResult" and failure.facts.get("id") == self.id for failure in failures
        ):
            return UnknownResult(id=self.id)
        return CompositeError(self.method, failures, good)

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """How asyncio of Python 3.14 reads a Future without waiting."""
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        self._settle()
        return True, False, self._value, self._error

    def get_result(self, default: Any = None, block: bool = True, timeout: float | None = None) -> Any:
        """The result.

        Parameters
        ----------
        default : object
            What to return where `block` is False and it is not there yet.
        block : bool
            Whether to wait for it.
        timeout : float, optional
            Seconds to wait.
        """
        return self.result(timeout) if block or self.done() else default

    @property
    def r(self) -> Any:
        """The result; waits for it."""
        return self.result()

    def ready(self) -> bool:
        """Whether reading will not wait."""
        return self.done()

    def has(self, engine: int) -> bool:
        """Whether that engine has finished."""
        return self._arrivals.engines[engine].result is not None

    def value_of(self, engine: int, default: Any = None) -> Any:
        """The value of an engine; `default` where it has not finished, or has failed."""
        source = self._arrivals.decode(engine) if self.has(engine) else None
        return default if source is None or source.failure is not None else source.value

    def __iter__(self) -> Iterator[Any]:
        """The values of the targets, as engines finish; those that failed raise at the end, together."""
        finished = self._arrivals.finished
        failed = False
        for seen in range(len(self.targets)):
            self._wait_until(lambda seen=seen: len(finished) > seen)  # type: ignore[misc]
            if len(finished) <= seen:
                failed = True
                break
            source = self._arrivals.decode(finished[seen])
            if source.failure is None:
                yield source.value
            else:
                failed = True
        if failed:
            self.result()

    def __getitem__(self, index: Any) -> Any:
        """The value of the target at a position (a slice: of several); waits only for that one."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self.targets)))]
        position = operator.index(index)
        if not -len(self.targets) <= position < len(self.targets):
            raise IndexError(f"there is no target {position}, this result has {len(self.targets)}")
        engine = self.targets[position]
        self._wait_until(lambda: self.has(engine))
        if not self.has(engine):
            return self.result()  # raises why
        source = self._arrivals.decode(engine)
        if source.failure is not None:
            raise self._arrivals.error_of(engine).with_traceback(None)
        return source.value

    def __await__(self) -> Generator[Any, Any, Any]:
        # A Twisted coroutine may run under asyncio's reactor: only a task understands asyncio's futures.
        if not self.done():
            if _in_asyncio_task():
                loop = asyncio.get_running_loop()
                waiter = loop.create_future()
                self._when_over(functools.partial(_wake_asyncio, loop, waiter))
                yield from waiter
            else:
                over: Deferred[None] = Deferred()
                self._when_over(lambda: over.callback(None))
                yield from over.__await__()
        return self.result()

    def as_deferred(self) -> Deferred[Any]:
        """A Deferred of the result, for Twisted programs; call it in the reactor thread."""
        deferred: Deferred[Any] = Deferred()

        def fire() -> None:
            try:
                value = self.result()
            except Exception:  # noqa: BLE001 -- passed on
                deferred.errback()
            else:
                deferred.callback(value)

        self._when_over(fire)
        return deferred

    # -- callbacks ---------------------------------------------------------------------------

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """Call ``fn(self)`` when this is done: in a thread for callbacks, or at once where it is done."""
        super().add_done_callback(fn if self.done() else functools.partial(self._core.call_user, fn))

    def add_callback(self, f: Callable[..., Any], *args: Any, **kw: Any) -> None:
        """Call ``f(result, *args, **kw)`` when the result is there.

        The next callback gets what `f` returns, and so on; the result itself
        stays as it is. Callbacks run in a thread of their own; added after the
        others have run, `f` runs at once, in this thread. Where the command
        failed, none is called. Where `f` raises, the rest is not called: the
        error is logged, and raised again by each later `add_callback`.
        """
        if not callable(f):
            raise TypeError(f"a callback must be callable, not {f!r}")
        with self._guard:
            if self._callbacks is None:
                self._callbacks = CallbackChain()
        self._callbacks.add(lambda value: f(value, *args, **kw))
        if self.done():
            self._callbacks.run(self)

    # -- waiting -----------------------------------------------------------------------------

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`, or until this is done."""
        while not reached():
            with self._guard:
                news = None if reached() or self.done() else self._next_news()
            if news is None:
                return
            self._core.wait(news, None)

    def _next_news(self) -> concurrent.futures.Future[None]:
        """Done at the next thing that arrives; the caller holds the guard."""
        if self._news is None:
            self._news = concurrent.futures.Future()
        return self._news

    def watch(self, every: float | None = None) -> Iterator[Output | None]:
        """All output, in the order of its arrival, as it comes; ends when the result is there.

        Parameters
        ----------
        every : float, optional
            Yields None each time nothing has come for so many seconds.

        Yields
        ------
        Output
            Of kind stdout, stderr, display, or end: that engine has finished.
        """
        seen = 0
        while True:
            with self._guard:
                over = self.done()
                fresh = self._arrivals.log[seen:]
                news = None if over or fresh else self._next_news()
            yield from fresh
            seen += len(fresh)
            if news is not None:
                try:
                    self._core.wait(news, every)
                except TimeoutError:
                    yield None
            elif over:
                return

    def stream(self, progress_after: float | None = None, group: str | None = None) -> None:
        """Print what engines give out as it comes, labelled ``[stdout:2]``, until the result is there.

        Parameters
        ----------
        progress_after : float, optional
            Seconds after which a progress bar shows; none does without it.
        group : {'engine', 'type', 'order'}, optional
            Print nothing before the end, and then all of one engine together,
            all of one type, or the first output of each engine, then the second.
        """
        streaming.stream(self, progress_after, group)

    def wait_interactive(self) -> None:
        """Show a progress bar, in a terminal or notebook, until the result is there."""
        streaming.wait_interactive(self)

    # -- so far ------------------------------------------------------------------------------

    @property
    def progress(self) -> tuple[int, int]:
        """Targets that have finished, and all targets."""
        total = len(self.targets)
        return total - self._arrivals.missing, total

    @property
    def engine_progress(self) -> dict[int, dict[str, Any]]:
        """What code last told with ``this_engine.progress``, by engine: ``done``, ``total``, ``label``."""
        return self._arrivals.progress()

    @property
    def stdout(self) -> list[str]:
        """What each target has printed so far."""
        return self._arrivals.texts("stdout")

    @property
    def stderr(self) -> list[str]:
        """What each target has written to stderr so far."""
        return self._arrivals.texts("stderr")

    @property
    def published(self) -> list[Any]:
        """The objects given to ``this_engine.publish`` so far, in the order they came, of all targets.

        In the place of one that cannot be unpickled here stands the error.
        """
        return self._arrivals.published()

    @property
    def elapsed(self) -> float:
        """Seconds since the command was sent, until now or until the result was there."""
        return (time.monotonic() if self._over_at is None else self._over_at) - self._submitted

    @property
    def wall_time(self) -> float:
        """The same as `elapsed`."""
        return self.elapsed

    @property
    def serial_time(self) -> float:
        """Seconds the engines have worked on it, added up, by their own clocks."""
        return self._arrivals.serial_time()

    @property
    def speedup(self) -> float:
        """`serial_time` over `wall_time`."""
        wall = self.wall_time
        return self.serial_time / wall if wall else 0.0

    def __repr__(self) -> str:
        done, total = self.progress
        failed = self._arrivals.failed()
        if self.cancelled():
            state = "cancelled"
        elif self._broken is not None:
            state = f"failed: {self._broken}"
        else:
            state = "finished" if self.done() else f"{done} of {total} finished"
            state += f", {failed} failed" if failed else ""
        return f"<{type(self).__name__} {self.id} {self.method}: {state}>"

    # -- ending it ---------------------------------------------------------------------------

    def abort(self, interrupt: bool = False) -> None:
        """Do not start it where it has not started; interrupt it where it runs, if asked to. Never waits."""
        if not self.done():
            self._core.abort(self, interrupt=interrupt)

    def cancel(self) -> bool:
        """Cancel the command if no engine has started it.

        Returns
        -------
        bool
            False where an engine had started it. It goes on there, and
            elsewhere ends with `TaskAborted`.
        """
        with self._guard:
            verdict = self._verdict
            asked = verdict is not None
            if verdict is None:
                if self.done() or self.running():
                    return self.cancelled()
                verdict = self._verdict = concurrent.futures.Future()
        if not asked:
            # Until it is decided results are held: they may say TaskAborted for what was just cancelled.
            try:
                self._core.abort(self)
            except IPython1Error:
                self._conclude_cancel(False)
        self._core.wait(verdict, None)
        return verdict.result()

    def _decide_cancel(self) -> None:
        """Conclude `cancel` as soon as the engines have said enough."""
        if self._verdict is None:
            return
        if self.running() or self._broken is not None:
            self._conclude_cancel(False)
        elif not self._arrivals.missing:
            failures = [self._arrivals.decode(engine).failure for engine in self.targets]
            self._conclude_cancel(all(f is not None and f.ename == TaskAborted.__name__ for f in failures))

    def _conclude_cancel(self, cancelled: bool) -> None:
        with self._guard:
            verdict = self._verdict
            if verdict is None or verdict.running():
                return
            verdict.set_running_or_notify_cancel()  # nobody else concludes it
        cancelled = cancelled and super().cancel()
        with self._guard:
            self._verdict = None
            self._over = self._over or cancelled
        if cancelled:
            self.set_running_or_notify_cancel()
            self._announce()
        else:
            self._finish_if_over()
        verdict.set_result(cancelled)


def _in_asyncio_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _wake_asyncio(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    """Any thread: let the task that waits go on, if its loop still runs."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
