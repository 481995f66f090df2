"""When a command is over: all slots have finished, it was cancelled, or nothing can come any more."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ipython1.kernel.client import asking
from ipython1.kernel.client.arrivals import Arrivals, Buffer
from ipython1.kernel.error import IPython1Error, TaskAborted
from ipython1.kernel.wire.records import Event, Result

#: Stands for the error of a Future until somebody reads it.
UNREAD = IPython1Error("it failed")


class Core(Protocol):
    """What a result needs of its client; see `ClientCore`."""

    def wait(self, future: concurrent.futures.Future[Any], timeout: float | None) -> None: ...

    def sent(self, id: str) -> tuple[int, int]: ...

    def call_user(self, f: Callable[..., Any], *args: Any) -> None: ...

    def abort(self, pending: Any, interrupt: bool = False) -> None: ...

    def detach(self, pendings: Sequence[Any]) -> list[str]: ...


class Completion(concurrent.futures.Future[Any]):
    """A Future that is done when its slots have finished; it knows nothing of values.

    Parameters
    ----------
    core : ClientCore
    arrivals : Arrivals
        Stores what comes.
    """

    command_id: str
    #: Somebody who waits answers questions; and those that are open. Not made for each, see `asking`.
    attended = False
    questions: tuple[asking.Question, ...] = ()
    #: Outputs that the user has seen before such a question.
    shown = 0

    def __init__(self, core: Core, arrivals: Arrivals) -> None:
        super().__init__()
        self._core = core
        self._arrivals = arrivals
        self._submitted = time.monotonic()
        self._over_at: float | None = None
        #: Guards what follows, and the state of the Future.
        self._guard = self._condition = arrivals.guard
        self._started = False
        self._broken: Exception | None = None
        self._over = False
        self._verdict: concurrent.futures.Future[bool] | None = None
        self._news: concurrent.futures.Future[None] | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        if not arrivals.slots:
            self._finish_if_over()

    # -- what arrives: reactor thread --------------------------------------------------------

    def deliver_event(self, event: Event, parts: Sequence[Buffer], slot: int | None = None) -> None:
        """Take something the command gave out. What came before, or leaves a gap, is ignored.

        `slot` is the number of the task; None: what came belongs to its engine.
        """
        if not self._over and self._arrivals.event(event, parts, slot):
            self._started = True
            if self._verdict is not None:
                self._decide_cancel()
            if event.kind == "input":
                asking.asked(self, event, self._input_handler())
            self._tell()

    def _input_handler(self) -> asking.InputHandler | None:
        """What the user has set to answer questions."""
        return None

    def deliver_result(self, result: Result, parts: Sequence[Buffer], slot: int | None = None) -> None:
        """Take the end of the command for one slot; the last one makes this Future done."""
        if not self._over and self._arrivals.result(result, parts, slot):
            if result.started:
                self._started = True
            if self._verdict is not None:
                self._decide_cancel()
            if not self._arrivals.missing:
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

    # -- the end ---------------------------------------------------------------------------------

    def running(self) -> bool:
        """Whether an engine has started it, and it is not done."""
        return self._started and not self.done()

    @property
    def _failed(self) -> bool:
        """Whether something has failed so far."""
        return self._broken is not None or self._arrivals.failed > 0

    def awaits(self, slot: int) -> bool:
        """Whether the end of a slot is still to come."""
        return self._arrivals.awaits(slot)

    def _finish_if_over(self) -> None:
        with self._guard:
            unfinished = self._broken is None and self._arrivals.missing > 0
            if unfinished or self._over or self._verdict is not None:
                return
            self._over = True
        # The value, or error, comes when it is read. Who waits for the first error must know of it now.
        if self._failed:
            self.set_exception(UNREAD)
        else:
            self.set_result(None)
        self._announce()

    def _announce(self) -> None:
        """The state is final: tell everyone who waits."""
        self._over_at = time.monotonic()
        with self._guard:
            listeners, self._listeners = self._listeners, ()
            news, self._news = self._news, None
        for listener in listeners:
            listener()
        if news is not None:
            news.set_result(None)

    def _state_text(self) -> str:
        """In words, for the user."""
        if self.cancelled():
            return "cancelled"
        if self._broken is not None:
            return f"failed: {self._broken}"
        arrivals = self._arrivals
        total, failed = len(arrivals.slots), arrivals.failed
        state = "finished" if self.done() else f"{total - arrivals.missing} of {total} finished"
        return f"{state}, {failed} failed" if failed else state

    # -- waiting -----------------------------------------------------------------------------

    def _when_over(self, listener: Callable[[], None]) -> None:
        """Call `listener` (quick) once this is done: in the reactor thread, or now."""
        with self._guard:
            if not self.done():
                self._listeners += (listener,)
                return
        listener()

    def _tell(self) -> None:
        """Wake those who wait for the next thing to arrive, which was stored under the guard."""
        if self._news is None:
            return
        with self._guard:
            news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    def _next_news(self) -> concurrent.futures.Future[None]:
        """Done at the next thing that arrives; the caller holds the guard."""
        if self._news is None:
            self._news = concurrent.futures.Future()
        return self._news

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`, or until this is done."""
        while not reached():
            with self._guard:
                news = None if reached() or self.done() else self._next_news()
            if news is None:
                return
            self._core.wait(news, None)

    # -- letting it go -----------------------------------------------------------------------

    def detach(self) -> str:
        """Have it go on without this client; returns when that is safe.

        It then survives the end of this program and restarts of the
        controller. Any session of the cluster gets the result with
        ``get_pending(id)``; so does this one, as ever.

        Returns
        -------
        str
                Its `id`.

        Raises
        ------
        DetachFailed
            The controller cannot keep it; it goes on as before.
        """
        [id] = self._core.detach([self])
        return id

    # -- ending it ---------------------------------------------------------------------------

    def abort(self, interrupt: bool = False) -> None:
        """Do not start it where it has not started; interrupt it where it runs, if asked to. Never waits."""
        if not self.done():
            self._core.abort(self, interrupt=interrupt)

    def cancel(self) -> bool:
        """Cancel the command if no engine has started it.

        It waits for the engines' word, but not where asyncio calls it, as it
        does for a Future it wraps: there a False may mean that it is not known yet.

        Returns
        -------
        bool
            False where an engine had started it. It goes on there, and
            elsewhere ends with `TaskAborted`.
        """
        verdict, asks = self._begin_cancel()
        if verdict is None:
            return self.cancelled()
        if asks:
            try:
                self._core.abort(self)
            except IPython1Error:
                self._conclude_cancel(False)
            self._decide_cancel()  # what came just before does not come again
        if _called_by_loop():
            return verdict.done() and verdict.result()
        self._core.wait(verdict, None)
        return verdict.result()

    def _begin_cancel(self) -> tuple[concurrent.futures.Future[bool] | None, bool]:
        """What tells whether this is cancelled (None: too late), and whether the caller has to abort it.

        Until it is decided results are held: they may say TaskAborted for what was just cancelled.
        """
        with self._guard:
            if self._verdict is not None:
                return self._verdict, False
            if self._started or self.done():
                return None, False
            self._verdict = concurrent.futures.Future()
            return self._verdict, True

    def _decide_cancel(self) -> None:
        """Conclude `cancel` as soon as the engines have said enough."""
        if self._verdict is None:
            return
        if self._started or self._broken is not None:
            self._conclude_cancel(False)
        elif not self._arrivals.missing:
            failures = (self._arrivals.decode(slot).failure for slot in self._arrivals.slots)
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


def _called_by_loop() -> bool:
    """Whether an asyncio loop calls, and no task: the cells of a notebook run in one, and may wait."""
    try:
        return asyncio.current_task() is None
    except RuntimeError:  # no loop runs in this thread
        return False
