"""What becomes of a task when an attempt at it ends, or when it cannot run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ipython1.kernel.controller.batches import GONE, NOWHERE, Batch, TaskKey
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.controller.dependencies import Dependencies, Ended
from ipython1.kernel.controller.dispatch import Dispatcher
from ipython1.kernel.controller.registry import Registry
from ipython1.kernel.controller.telling import Telling
from ipython1.kernel.error import ImpossibleDependency, IPython1Error, RemoteFailure, own_failure
from ipython1.kernel.wire.codec import encode, encode_failure
from ipython1.kernel.wire.records import End, Ids, Parts, Seek, Taken, Withdraw, Work

ABORTED = encode_failure(own_failure("TaskAborted"))


class Endings:
    """Ends tasks, or has them run again.

    Parameters
    ----------
    registry : Registry
        The engines.
    dispatcher : Dispatcher
        Runs tasks.
    dependencies : Dependencies
        Who waits for the end of a task.
    telling : Telling
        Tells clients.
    blobs : BlobRoutes
        The ways of the arguments, closed with their task.
    """

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        dependencies: Dependencies,
        telling: Telling,
        blobs: BlobRoutes,
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._dependencies = dependencies
        self._telling = telling
        self._blobs = blobs
        #: Tasks that were withdrawn, and are or may be with an engine; and how.
        self.unwanted: dict[TaskKey, str] = {}
        #: Called with the tasks that engines were told to interrupt, by engine.
        self.interrupted: Callable[[dict[int, Ids]], None] = lambda ids: None
        #: Routes of the arguments that travel by themselves.
        self.item_blobs: dict[TaskKey, list[str]] = {}
        self._to_judge: deque[Batch] = deque()
        self._judging = False

    def attempted(self, batch: Batch, engine: int, end: End) -> bool:
        """An attempt is over. Whether its outcome is the one of the task, and to be passed on."""
        index, _, status, started = end[:4]
        unwanted = bool(self.unwanted) and (batch.id, index) in self.unwanted
        if status == "back" or (status == "rejected" and unwanted):
            batch.back(index)
            if unwanted:
                self.make_up(batch, batch.withdraw([index]), ABORTED)
            return False
        if status == "rejected":
            batch.rejected(index, engine)
            self.end_if_refused(batch, index, end[6])
            return False
        if status == "error" and started and not unwanted and batch.fails(index):
            self._dispatcher.send(engine, encode(Taken(batch.id, (index,), False)))
            return False
        self._end(batch, index, engine, status == "ok")
        return True

    def make_up(self, batch: Batch, indexes: Sequence[int], failure: bytes) -> None:
        """End tasks that no engine has, with an encoded failure."""
        for index in indexes:
            batch.made_up[index] = failure
            self._end(batch, index, NOWHERE, False)
        self._telling.made_up(batch, indexes)

    def fail_all(self, batch: Batch, error: IPython1Error) -> None:
        """None of the tasks of a batch can run, now or later."""
        batch.verdict, batch.blocked = _encoded(error), False
        self.apply_verdict(batch)
        self._dispatcher.changed(batch)

    def apply_verdict(self, batch: Batch) -> None:
        """End what is ready of a batch none of whose tasks can run."""
        if batch.verdict and batch.waiting:
            self.make_up(batch, batch.withdraw(), batch.verdict)

    def fail_some(self, batch: Batch, indexes: Sequence[int], error: IPython1Error) -> None:
        """Ready tasks of a batch cannot run."""
        self.make_up(batch, batch.withdraw(indexes), _encoded(error))

    def end_if_refused(self, batch: Batch, index: int, parts: Parts = ()) -> None:
        """End a task that every engine has rejected, unless it may wait for a better one."""
        able = {engine.id for engine in self._registry if batch.could_run(engine.id)}
        if batch.rules.wait or index not in batch.choosy or not able or not able <= batch.refusals[index]:
            return
        said = parts[0] if parts and isinstance(parts[0], bytes) else b""
        failure = said or encode_failure(own_failure("TaskRejected"))
        self.make_up(batch, batch.withdraw([index]), failure)

    def engine_died(self, batch: Batch, index: int, ran: bool, failure: RemoteFailure) -> None:
        """The engine is gone that had a task, and ran it where `ran`."""
        if (batch.id, index) in self.unwanted:
            self.make_up(batch, [index], ABORTED)
        elif not batch.engine_died(index, ran):
            self.make_up(batch, [index], encode_failure(failure))

    def tell_again(self, batch: Batch, index: int, parts: Parts | None) -> None:
        """Tell the outcome of a task again; with `parts`, run it again where that is lost."""
        engine = batch.ended[index]
        if index in batch.made_up:
            self._telling.made_up(batch, [index])
        elif engine != GONE:
            batch.asked[index] = batch.asked.get(index) if parts is None else parts
            self._dispatcher.send(engine, encode(Seek(batch.id, (index,))))
        elif parts is None:
            self._telling.unknown(batch.id, [index])
        elif not batch.lost(index, parts):
            died = RemoteFailure("EngineDied", "engines died with the outcome of this task")
            self.make_up(batch, [index], encode_failure(died))

    def judge(self, batches: Iterable[Batch]) -> None:
        """Look whether what batches depend on is there, or impossible."""
        self._to_judge.extend(batches)
        if self._judging:  # the end of a task that others wait for: there may be a long chain of them
            return
        self._judging = True
        try:
            while self._to_judge:
                batch = self._to_judge.popleft()
                reason = self._dependencies.judge(batch)
                if reason:
                    self.fail_all(batch, ImpossibleDependency(reason=reason))
                self._dispatcher.changed(batch)
        finally:  # a scheduler may raise anything; what is left is looked at the next time
            self._judging = False

    def send_again(self, batch: Batch, index: int) -> None:
        """The way of large arguments is open again: their engine asks for what it lacks."""
        engine = batch.handed.get(index)
        if engine is not None and (batch.blobs or (batch.id, index) in self.item_blobs):
            if batch.blobs:
                self._dispatcher.send(engine, batch.raw)
            item = (index, batch.attempts[index], batch.items[index])
            self._dispatcher.send(engine, encode(Work(batch.id, (item,))))

    def withdraw(self, batch: Batch, indexes: Sequence[int], how: str) -> None:
        """Nobody wants these any more: what is ready ends, and engines stop what they have."""
        self.make_up(batch, batch.withdraw(indexes), ABORTED)
        wanted = set(indexes)
        for index in wanted & batch.sought:
            self.unwanted[batch.id, index] = how
        self.withdraw_handed(batch, [index for index in batch.handed if index in wanted], how)

    def withdraw_handed(self, batch: Batch, indexes: Iterable[int], how: str) -> None:
        """Engines shall not start these, or stop them."""
        by_engine: dict[int, list[int]] = {}
        for index in indexes:
            by_engine.setdefault(batch.handed[index], []).append(index)
            self.unwanted[batch.id, index] = how
        for engine, with_it in by_engine.items():
            self._dispatcher.send(engine, encode(Withdraw(batch.id, tuple(with_it), how)))
        if how == "interrupt" and by_engine:
            self.interrupted(
                {engine: tuple(f"{batch.id}#{i}" for i in with_it) for engine, with_it in by_engine.items()}
            )

    def remember(self, batch: Batch, indexes: Iterable[int]) -> None:
        """The outcomes of these leave the controller; what depends on them may come later."""
        for index in indexes:
            engine = batch.ended.get(index)
            if engine is not None:
                self._dependencies.remember((batch.id, index), Ended(index not in batch.failed, engine))

    def close(self, batch: Batch) -> None:
        """Nobody wants anything more of a batch, which is not among the batches any longer."""
        self.remember(batch, batch.ended)
        waiting = self._dependencies.waiting_for(*((batch.id, index) for index in batch.items))
        self._dependencies.forget(batch)
        self.withdraw_handed(batch, list(batch.handed), "abort")
        batch.withdraw()
        self._dispatcher.changed(batch)
        over = encode(Taken(batch.id, (), True))
        if batch.again:
            self._dispatcher.send_all(over)
        else:
            for engine in batch.engines:
                self._dispatcher.send(engine, over)
        self._blobs.close(batch.blobs)
        for index in batch.items:
            self.unwanted.pop((batch.id, index), None)
        self.close_blobs(batch, (*batch.items, *batch.asked))
        self.judge(waiting)

    def close_blobs(self, batch: Batch, indexes: Iterable[int]) -> None:
        """The arguments of these tasks are not needed any more."""
        if self.item_blobs:
            for index in indexes:
                self._blobs.close(self.item_blobs.pop((batch.id, index), ()))

    def _end(self, batch: Batch, index: int, engine: int, ok: bool) -> None:
        batch.end(index, engine, ok)
        if self.unwanted:
            self.unwanted.pop((batch.id, index), None)
        self.close_blobs(batch, (index,))
        if self._dependencies.any_waiting:
            self.judge(self._dependencies.waiting_for((batch.id, index)))


def _encoded(error: IPython1Error) -> bytes:
    return encode_failure(RemoteFailure(type(error).__name__, str(error)))
