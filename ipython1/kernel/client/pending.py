"""`PendingResult`: what comes of a command, from the moment it is sent.

The reactor thread only stores what arrives (`Arrivals`) and says when it is all
there (`Completion`). It is decoded once, in the thread that first reads it, so
that rebuilding large objects, and code of users that runs meanwhile, never
holds up the connection.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import operator
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from ipython1.kernel.client import asking, awaiting, progress, streaming
from ipython1.kernel.client.arrivals import Arrivals, Output
from ipython1.kernel.client.callbacks import CallbackChain
from ipython1.kernel.client.completion import Completion, Core
from ipython1.kernel.client.ids import format_id, parse_id
from ipython1.kernel.error import CompositeError, RemoteFailure, SerializationError, UnknownResult

__all__ = ["PendingResult", "format_id", "parse_id"]


class PendingResult(Completion):
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
        What values are kept under, each once; may be empty. The ids of the
        engines that the command goes to, or a `range` of the numbers of tasks.
    finish : callable, optional
        Makes the result out of the list of values, one a target. Without it
        that list is the result.
    owner : object, optional
        Kept as long as this is: a client that was dropped closes, but not
        while somebody has a result of it.
    """

    def __init__(
        self,
        core: Core,
        id: str,
        method: str,
        targets: Sequence[int],
        finish: Callable[[list[Any]], Any] | None = None,
        *,
        owner: object = None,
    ) -> None:
        self.command_id = id
        self.method = method
        self._finish = finish
        self._kept = owner
        self._callbacks: CallbackChain | None = None
        self._settled = False
        self._value: Any = None
        self._error: Exception | None = None
        super().__init__(core, Arrivals(id, method, targets))

    def __reduce__(self) -> Any:
        raise SerializationError(
            what=f"a {type(self).__name__}",
            reason="its client belongs to this process. Send what .get_result() returns, "
            "or .id for get_pending() of another client",
        )

    # -- reading -----------------------------------------------------------------------------

    @property
    def targets(self) -> Sequence[int]:
        """What the values are kept under, in their order: engine ids, or numbers of tasks."""
        return self._arrivals.slots

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
        if not self._settled:
            if not self.done():
                asking.wait(self, timeout)
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
                try:
                    self._take_values()
                except Exception as error:  # noqa: BLE001 -- e.g. arrays that do not fit together
                    self._error = error
            self._settled = True

    def _take_values(self) -> None:
        sources = [self._arrivals.decode(slot) for slot in self.targets]
        failures = [source.failure for source in sources if source.failure is not None]
        if failures:
            good = {
                slot: source.value
                for slot, source in zip(self.targets, sources, strict=True)
                if source.failure is None
            }
            self._error = self._make_error(failures, good)
        else:
            values = [source.value for source in sources]
            self._value = values if self._finish is None else self._finish(values)

    def _input_handler(self) -> asking.InputHandler | None:
        return getattr(self._kept, "input_handler", None)

    def _make_error(self, failures: list[RemoteFailure], good: dict[int, Any]) -> Exception:
        """The error of this result, where something failed."""
        if not good:
            id = self.id
            if all(f.ename == "UnknownResult" and f.facts.get("id") == id for f in failures):
                return UnknownResult(id=id)
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

    def has(self, slot: int) -> bool:
        """Whether that engine, or task, has finished."""
        return self._arrivals.has(slot)

    def value_of(self, slot: int, default: Any = None) -> Any:
        """The value of an engine or task; `default` where it has not finished, or has failed."""
        source = self._arrivals.decode(slot) if self.has(slot) else None
        return default if source is None or source.failure is not None else source.value

    def __iter__(self) -> Iterator[Any]:
        """The values of the targets, as they finish; those that failed raise at the end, together."""
        failed = False
        for seen in itertools.count():
            if seen == len(self._arrivals.finished) and not self._await_finished(seen):
                break
            source = self._arrivals.decode(self._arrivals.finished[seen])
            if source.failure is None:
                yield source.value
            else:
                failed = True
        if failed or self._broken is not None:
            self.result()

    def _await_finished(self, seen: int) -> bool:
        """Wait for one more than `seen` targets to finish; False where no more will."""
        arrivals = self._arrivals

        def reached() -> bool:
            return len(arrivals.finished) > seen or not arrivals.missing

        self._wait_until(reached)
        return len(arrivals.finished) > seen

    def __getitem__(self, index: Any) -> Any:
        """The value of the target at a position (a slice: of several); waits only for that one."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self.targets)))]
        position = operator.index(index)
        if not -len(self.targets) <= position < len(self.targets):
            raise IndexError(f"there is no target {position}, this result has {len(self.targets)}")
        slot = self.targets[position]
        if not self.has(slot):
            self._wait_until(lambda: self.has(slot))
            if not self.has(slot):
                return self.result()  # raises why
        source = self._arrivals.decode(slot)
        if source.failure is not None:
            raise self._arrivals.error_of(slot).with_traceback(None)
        return source.value

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self.done():
            yield from awaiting.until_over(self._when_over)
        return self.result()

    def as_deferred(self) -> Deferred[Any]:
        """A Deferred of the result, for Twisted programs; call it in the reactor thread."""
        return awaiting.deferred_result(self._when_over, self.result)

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
                if not self.done():
                    self._listeners += (self._run_callbacks,)
        self._callbacks.add(lambda value: f(value, *args, **kw))
        if self.done():
            self._callbacks.run(self)

    def _run_callbacks(self) -> None:
        if self._callbacks:
            self._core.call_user(self._callbacks.run, self)

    # -- waiting -----------------------------------------------------------------------------

    def watch(self, every: float | None = None) -> Iterator[Output | None]:
        """All output, in the order of its arrival, as it comes; ends when the result is there.

        Parameters
        ----------
        every : float, optional
            Yields None each time nothing has come for so many seconds, and when what has come
            is no output, such as a report of progress.

        Yields
        ------
        Output
            Of kind stdout, stderr, display, input (a question), or end: that engine, or task, has finished.
        """
        seen, waited = 0, False
        while True:
            with self._guard:
                over = self.done()
                fresh = self._arrivals.log(seen)
                news = None if over or fresh else self._next_news()
            if news is not None:
                if waited and every is not None:
                    yield None
                waited = True
                try:
                    self._core.wait(news, every)
                except TimeoutError:
                    pass
                continue
            yield from fresh
            seen, waited = seen + len(fresh), False
            if over:
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
        """What code told last with ``this_engine.progress``, by target: ``done``, ``total``, ``label``."""
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
        return self._arrivals.serial_time

    @property
    def speedup(self) -> float:
        """`serial_time` over `wall_time`."""
        wall = self.wall_time
        return self.serial_time / wall if wall else 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.method}: {self._state_text()}>"

    def _repr_html_(self) -> str:
        return progress.as_html(self, self._state_text())
