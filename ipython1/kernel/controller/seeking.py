"""Tasks that engines may know of: they are asked, before anything is run a second time.

Needed where a client sends tasks again to a controller that does not know of
them, and where a client asks for tasks of another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ipython1.kernel.wire.records import ENGINES_LIMIT, End, Seek


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
        """Whether every engine that was asked has told of everything."""
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
        asked = self._open.get(engine)
        if asked is None or index not in asked:
            return False
        asked.discard(index)
        best = self.best.get(index)
        if status != "unknown" and (best is None or best.attempt < attempt):
            self.best[index] = Best(attempt, engine, end)
        return True
