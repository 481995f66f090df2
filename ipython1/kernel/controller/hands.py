"""What each engine has been handed of tasks, and how much it should have.

An engine gets a little more than it runs, so that it need not wait for the
next task: as many as take `AHEAD_TIME`, by the measured length of the tasks
of that batch. Where one engine has nothing to do, tasks that another has not
started are called back from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipython1.kernel.controller.batches import Batch, TaskKey

#: Seconds of work an engine has before it.
AHEAD_TIME = 0.02
#: Tasks an engine has before it: at least, at most, and while their length is not known.
AHEAD_LEAST, AHEAD_MOST, AHEAD_UNKNOWN = 2, 256, 8
#: Seconds of work that are worth calling back.
RECALL_TIME = 0.005


class Hand:
    """The tasks one engine has, in the order it runs them."""

    __slots__ = ("_recalled", "_tasks", "behind", "since")

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, Batch] = {}
        self._recalled: set[TaskKey] = set()
        #: When the first one came to be the first, controller's clock.
        self.since = 0.0
        #: Whether the engine had commands when it got the first one.
        self.behind = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def first(self) -> tuple[Batch, int] | None:
        """The task that runs, or will be the next."""
        for (_, index), batch in self._tasks.items():
            return batch, index
        return None

    @property
    def waiting(self) -> int:
        """How many of them have surely not started, as far as is known."""
        return len(self._tasks) - (not self.behind) if self._tasks else 0

    def add(self, batch: Batch, indexes: Iterable[int], now: float, behind: bool = False) -> None:
        """The engine gets tasks of a batch; `behind`: it has commands to do before."""
        if not self._tasks:
            self.since, self.behind = now, behind
        id, tasks = batch.id, self._tasks
        for index in indexes:
            tasks[id, index] = batch

    def remove(self, keys: Iterable[TaskKey], now: float) -> None:
        """The engine has these no longer."""
        tasks, recalled = self._tasks, self._recalled
        for key in keys:
            tasks.pop(key, None)
            if recalled:
                recalled.discard(key)
        self.since, self.behind = now, False

    def drain(self) -> list[tuple[Batch, int]]:
        """Take out everything."""
        tasks = [(batch, index) for (_, index), batch in self._tasks.items()]
        self._tasks.clear()
        self._recalled.clear()
        return tasks

    def room(self, batch: Batch, fair: int) -> int:
        """How many more tasks of `batch` the engine may have; `fair`: its share of all there are."""
        ahead = int(AHEAD_TIME / batch.mean) if batch.mean else AHEAD_UNKNOWN
        return min(max(AHEAD_LEAST, min(ahead, AHEAD_MOST)), max(1, fair)) - len(self._tasks)

    def spare(self, now: float) -> list[tuple[Batch, int]]:
        """What can be called back and is worth it: the last half of what has surely not started.

        Of tasks whose length is not known, or with a first one that takes
        long, everything is worth it.
        """
        behind = self.unstarted()
        lengths = [batch.mean for batch, _ in behind]
        stuck = now - self.since > RECALL_TIME
        if not stuck and all(lengths) and sum(lengths) < RECALL_TIME:
            return []
        return behind[len(behind) // 2 :]

    def unstarted(self) -> list[tuple[Batch, int]]:
        """What has surely not started, as far as is known, and was not called back."""
        tasks = list(self._tasks.items())[0 if self.behind else 1 :]
        return [(batch, key[1]) for key, batch in tasks if key not in self._recalled]

    def recall(self, tasks: Iterable[tuple[Batch, int]]) -> None:
        """These were called back."""
        self._recalled.update((batch.id, index) for batch, index in tasks)
