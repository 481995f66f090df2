"""How a call reaches engines: whom it goes to, how it is sent, how it is waited for."""

from __future__ import annotations

import abc
import concurrent.futures
import functools
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ipython1.kernel.client import asking, progress
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.targets import TargetSpec, checked_targets, resolve_targets
from ipython1.kernel.error import SerializationError
from ipython1.kernel.texts import sendable
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.records import Result

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore
    from ipython1.kernel.client.multiengine import MultiEngineClient

#: Characters of a command that `status` shows.
LABEL_LENGTH = 60
#: Seconds that the first Ctrl-C in a blocking call waits for the interrupted engines.
INTERRUPT_GRACE = 0.8

Parts = Sequence[Any]
Finish = Callable[[list[Any]], Any]


class Calls(abc.ABC):
    """The defaults `targets` and `block`, and the ways to send what goes to engines.

    Parameters
    ----------
    core : ClientCore
        The connection.
    """

    def __init__(self, core: ClientCore, targets: TargetSpec, block: bool) -> None:
        self._core = core
        self.targets = targets  # type: ignore[assignment]
        self.block = block

    @property
    def targets(self) -> int | slice | list[int] | str:
        """Where calls go that do not say so: an engine id, several, a slice or 'all'."""
        return self._targets

    @targets.setter
    def targets(self, targets: TargetSpec) -> None:
        self._targets = checked_targets(targets)

    @property
    def block(self) -> bool:
        """Whether calls that do not say so wait for their result."""
        return self._block

    @block.setter
    def block(self, block: bool) -> None:
        self._block = _checked_block(block)

    def __reduce__(self) -> Any:
        raise SerializationError(
            what=f"a {type(self).__name__}",
            reason="its connection belongs to this process. Create a client where it is needed, "
            "with client.MultiEngineClient()",
        )

    @abc.abstractmethod
    def _owner(self) -> MultiEngineClient:
        """Who keeps the connection open."""

    # -- whom it goes to --------------------------------------------------

    def _all_ids(self) -> list[int]:
        self._core.check_usable()
        return [engine["id"] for engine in self._core.engines()]

    def _chosen(self, targets: TargetSpec | None) -> tuple[int, ...]:
        return resolve_targets(self.targets if targets is None else targets, self._all_ids())

    def _blocks(self, block: bool | None) -> bool:
        return self.block if block is None else _checked_block(block)

    # -- commands ---------------------------------------------------------

    def _command(
        self,
        method: str,
        op: str,
        args: Mapping[str, Any],
        parts: Parts = (),
        *,
        targets: TargetSpec | None,
        block: bool | None,
        finish: Finish | None = None,
        label: str = "",
        timeout: float | None = None,
        attended: bool = False,
    ) -> Any:
        """The same operation on every target."""
        chosen = self._chosen(targets)
        return self._send(method, op, args, [(chosen, parts)], block, finish, label, timeout, attended)

    def _send(
        self,
        method: str,
        op: str,
        args: Mapping[str, Any],
        submits: Sequence[tuple[tuple[int, ...], Parts]],
        block: bool | None,
        finish: Finish | None = None,
        label: str = "",
        timeout: float | None = None,
        attended: bool = False,
        giver: int = -1,
    ) -> Any:
        """One command made of `submits`; its result, or the `PendingResult`.

        `attended`: the caller waits at once with `wait_for`, and answers questions.
        `giver`: see `ClientCore.submit`.
        """
        wait = self._blocks(block)
        seconds = _checked_timeout(timeout)
        targets = tuple(target for chosen, _ in submits for target in chosen)
        owner = self._owner()
        pending = PendingResult(self._core, self._core.new_id(), method, targets, finish, owner=owner)
        if (wait or attended) and asking.user_here():
            pending.attended = True  # before it is sent: the first question may come at once
        self._core.submit(
            pending,
            [(chosen, list(parts)) for chosen, parts in submits],
            op,
            dict(args),
            short_label(label or method),
            seconds,
            owner.stop_on_error,
            giver,
        )
        return wait_for(self._core, pending) if wait else pending

    # -- questions to the controller ----------------------------------------

    def _question(
        self,
        what: str,
        chosen: tuple[int, ...],
        block: bool | None,
        finish: Callable[[Any], list[Any]],
        whole: Finish | None = None,
        **body: Any,
    ) -> Any:
        """Ask the controller; `finish` makes a value a target of its answer, `whole` the result of these."""
        wait = self._blocks(block)
        future = self._core.ask(what, **body)
        if wait:
            self._core.wait(future, None)
            values = finish(future.result())
            return values if whole is None else whole(values)
        return _answer_result(self._owner(), what, chosen, future, finish, whole)

    def _until(self, done: Callable[[Sequence[Mapping[str, Any]]], bool], timeout: float | None) -> bool:
        """Wait until `done` of the engine table; False where that takes longer than `timeout`."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            changed: concurrent.futures.Future[None] = concurrent.futures.Future()
            unwatch = self._core.table.watch(functools.partial(_settle, changed))
            try:
                self._core.check_usable()
                if done(self._core.engines()):
                    return True
                self._core.wait(changed, None if end is None else max(0.0, end - time.monotonic()))
            except TimeoutError:
                return False
            finally:
                unwatch()


def _settle(future: concurrent.futures.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _answer_result(
    owner: MultiEngineClient,
    what: str,
    chosen: tuple[int, ...],
    answer: concurrent.futures.Future[Any],
    finish: Callable[[Any], list[Any]],
    whole: Finish | None,
) -> PendingResult:
    """The answer to a question as a `PendingResult`, one value a target."""
    core = owner._core
    pending = PendingResult(core, core.new_id(), what, chosen, whole, owner=owner)

    def answered(answer: concurrent.futures.Future[Any]) -> None:
        error = answer.exception()
        if error is not None:
            pending.fail(cast(Exception, error))
            return
        for target, value in zip(chosen, finish(answer.result()), strict=True):
            result = Result(pending.command_id, target, what, "ok", 0.0, 0.0, 0, ())
            pending.deliver_result(result, objects.dumps(value))

    answer.add_done_callback(answered)
    return pending


def wait_for(core: ClientCore, pending: PendingResult, wait: Callable[[], None] | None = None) -> Any:
    """The result of a blocking call.

    Ctrl-C interrupts the engines' part of it, and gives them a moment to end;
    a second one stops waiting at once.
    """
    try:
        if wait is None:
            progress.wait(pending)
        else:
            wait()
    except KeyboardInterrupt:
        pending.abort(interrupt=True)
        try:
            core.wait(pending, INTERRUPT_GRACE)
        except TimeoutError:
            pass
        raise
    finally:
        if pending.attended:
            asking.leave(pending)
    return pending.result()


def short_label(text: str) -> str:
    """The first line of `text`, cut to what `status` shows."""
    line = sendable(text.strip().partition("\n")[0].strip())
    return line if len(line) <= LABEL_LENGTH else line[: LABEL_LENGTH - 1] + "…"


def _checked_block(block: bool) -> bool:
    if not isinstance(block, bool):
        raise TypeError(f"block must be True or False, not {block!r}.")
    return block


def _checked_timeout(timeout: float | None) -> float:
    if timeout is None:
        return 0.0
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or not 0 < timeout < math.inf:
        raise ValueError(
            f"timeout must be a number of seconds above 0, or None for no limit, not {timeout!r}."
        )
    return float(timeout)
