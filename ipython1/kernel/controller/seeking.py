"""Tasks that engines may know of: they are asked, before anything is run a second time.

Needed where a client sends tasks again to a controller that does not know of
them, and where a client asks for tasks of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ipython1.kernel.controller.batches import Batch
from ipython1.kernel.controller.dispatch import Dispatcher
from ipython1.kernel.controller.endings import ABORTED, Endings
from ipython1.kernel.controller.telling import Telling
from ipython1.kernel.wire.codec import encode
from ipython1.kernel.wire.records import ENGINES_LIMIT, End, Outcomes, Seek


class Best(NamedTuple):
    """The latest attempt at a task that an engine has told of."""

    attempt: int
    engine: int
    end: End  # status 'held', or an outcome


class Search:
    """Some tasks of one batch, and what engines have answered.

    Parameters
    ----------
    batch : str
        Its id.
    """

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.indexes: set[int] = set()
        self.best: dict[int, Best] = {}
        self._open: dict[int, set[int]] = {}  # engine -> what it has not told of

    @property
    def answered(self) -> bool:
        """Whether every engine that was asked has told of everything; if only that it is held."""
        return not any(self._open.values())

    def add(self, indexes: Iterable[int], engines: Iterable[int]) -> list[tuple[int, Seek]]:
        """More tasks to look for. Returns which engines to ask what."""
        new = set(indexes) - self.indexes
        self.indexes |= new
        for engine in engines:
            self._open.setdefault(engine, set()).update(new)
        return [(engine, question) for question in self._questions(new) for engine in self._open]

    def ask(self, engine: int) -> list[Seek]:
        """What to ask an engine that has just come."""
        self._open[engine] = set(self.indexes)
        return self._questions(self.indexes)

    def _questions(self, indexes: Iterable[int]) -> list[Seek]:
        order = sorted(indexes)
        return [
            Seek(self.batch, tuple(order[start : start + ENGINES_LIMIT]))
            for start in range(0, len(order), ENGINES_LIMIT)
        ]

    def gone(self, engine: int) -> None:
        """An engine died; what it held is lost."""
        self._open.pop(engine, None)
        for index in [index for index, best in self.best.items() if best.engine == engine]:
            del self.best[index]

    def told(self, engine: int, end: End) -> bool:
        """An engine tells of a task. Whether this answers the question."""
        index, attempt, status = end[:3]
        best = self.best.get(index)
        if index in self._open.get(engine, ()):
            self._open[engine].discard(index)
            if status != "unknown" and (best is None or best.attempt < attempt):
                self.best[index] = Best(attempt, engine, end)
            return True
        if best is not None and best.engine == engine and best.end[2] == "held" and best.attempt == attempt:
            self.best[index] = Best(attempt, engine, end)  # it has ended since
            return True
        return False

    def over(self, index: int) -> None:
        """What was found of a task is told, or it is with an engine of ours."""
        self.indexes.discard(index)
        self.best.pop(index, None)
        for asked in self._open.values():
            asked.discard(index)


class Searches:
    """All that is asked of engines.

    Parameters
    ----------
    batches : mapping
        All batches, by id.
    dispatcher : Dispatcher
        Knows the engines.
    endings : Endings
        Takes the outcomes that are found.
    telling : Telling
        Tells clients.
    more_engines : callable
        Whether engines may still come that know tasks of a batch from before this controller.
    """

    def __init__(
        self,
        batches: Mapping[str, Batch],
        dispatcher: Dispatcher,
        endings: Endings,
        telling: Telling,
        more_engines: Callable[[str], bool],
    ) -> None:
        self._batches = batches
        self._dispatcher = dispatcher
        self._endings = endings
        self._telling = telling
        self._more_engines = more_engines
        self._searches: dict[str, Search] = {}

    def start(self, id: str, indexes: Iterable[int]) -> None:
        """Ask all engines for tasks of a batch."""
        search = self._searches.setdefault(id, Search(id))
        wanted = list(indexes)
        for index in wanted:
            best = search.best.get(index)
            if best is not None and best.end[2] == "ok":  # it was passed on, but not to this client
                self._dispatcher.send(best.engine, encode(Seek(id, (index,))))
        for engine, question in search.add(wanted, self._dispatcher.engines):
            self._dispatcher.send(engine, encode(question))
        self.settle()

    def end(self, id: str) -> set[int]:
        """Look no longer for tasks of a batch. Returns what was looked for."""
        search = self._searches.pop(id, None)
        return search.indexes if search is not None else set()

    def engine_ready(self, engine: int) -> None:
        """Ask an engine that has just come."""
        for search in self._searches.values():
            for question in search.ask(engine):
                self._dispatcher.send(engine, encode(question))

    def engine_died(self, engine: int) -> None:
        """An engine is gone, and what it knew."""
        for search in self._searches.values():
            search.gone(engine)

    def told(self, id: str, engine: int, end: End) -> bool:
        """Whether this is an answer, and no outcome that counts by itself."""
        search = self._searches.get(id)
        return search is not None and search.told(engine, end) and end[2] != "ok"

    def settle(self) -> None:
        """Conclude the searches that all engines have answered, if no more engines come."""
        answered = [search for search in self._searches.values() if search.answered]
        for search in answered:
            if not self._more_engines(search.batch):
                self._conclude(search)

    def _conclude(self, search: Search) -> None:
        batch = self._batches.get(search.batch)
        unknown: list[int] = []
        fresh: list[int] = []
        if batch is not None:
            self._telling.seekers_stay(batch)
        for index in sorted(search.indexes):
            best = search.best.get(index)
            if batch is not None and index in batch.sought:
                if best is None:
                    batch.nobody_has(index)
                    fresh.append(index)
                else:
                    self._adopt(batch, index, best)
            elif best is None and batch is not None and batch.knows(index):  # it has come since
                if index in batch.ended:
                    self._endings.tell_again(batch, index, None)
            elif best is None:
                unknown.append(index)
            elif best.end[2] == "held":  # who asks for it hears of its end
                continue
            elif best.end[2] == "error":  # those that went well were passed on as they came
                self._pass_on(search.batch, best)
            search.over(index)
        if unknown:
            self._telling.unknown(search.batch, unknown)
        if not search.indexes:
            del self._searches[search.batch]
            self._telling.drop_seekers(search.batch)
        if batch is not None:
            unwanted = [index for index in fresh if (batch.id, index) in self._endings.unwanted]
            self._endings.make_up(batch, batch.withdraw(unwanted), ABORTED)
            self._endings.apply_verdict(batch)
            self._dispatcher.changed(batch)

    def _adopt(self, batch: Batch, index: int, best: Best) -> None:
        """An engine holds a task of ours, or an attempt at it failed there."""
        batch.adopt(index, best.engine, best.attempt)
        if best.end[2] == "held":
            self._dispatcher.adopt(best.engine, batch, index)
            self._endings.send_again(batch, index)
            how = self._endings.unwanted.get((batch.id, index))
            if how:
                self._endings.withdraw_handed(batch, [index], how)
        elif self._endings.attempted(batch, best.engine, best.end):
            self._pass_on(batch.id, best)

    def _pass_on(self, id: str, best: Best) -> None:
        peer = self._dispatcher.peer(best.engine)
        if peer is not None:
            record = Outcomes(id, best.engine, (best.end,))
            self._telling.outcomes(peer, record, record.items, encode(record))
