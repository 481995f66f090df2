"""What can be seen of tasks from outside."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ipython1.kernel.controller.batches import Batch
from ipython1.kernel.controller.dispatch import Dispatcher

STATES = ("blocked", "ready", "handed", "ended")


class TaskStatus:
    """Counts and names tasks.

    Parameters
    ----------
    batches : mapping
        All batches, by id.
    dispatcher : Dispatcher
        Knows what engines have.
    """

    def __init__(self, batches: Mapping[str, Batch], dispatcher: Dispatcher) -> None:
        self._batches = batches
        self._dispatcher = dispatcher

    def running(self, engine: int) -> tuple[str, float] | None:
        """What an engine does for a task: its label, and since when. None: nothing, or commands first."""
        hand = self._dispatcher.hand(engine)
        first = hand.first if hand is not None else None
        if hand is None or first is None or hand.behind:
            return None
        batch, index = first
        return batch.head.label or f"task {batch.id}#{index}", hand.since

    def count(self, engine: int) -> int:
        """How many tasks an engine has."""
        return len(self._dispatcher.hand(engine) or ())

    def waiting(self) -> int:
        """How many tasks wait for an engine, or behind another task on one."""
        hands = filter(None, map(self._dispatcher.hand, self._dispatcher.engines))
        return self._dispatcher.ready + sum(max(0, len(hand) - 1) for hand in hands)

    def empty_since(self, engine: int) -> float:
        """When an engine without tasks had its last one, controller's clock; 0 where it had none."""
        hand = self._dispatcher.hand(engine)
        return 0.0 if hand is None else hand.since

    def clients(self) -> set[str]:
        """The clients that have tasks here."""
        return {batch.client for batch in self._batches.values() if batch.items}

    def counts(self) -> dict[str, int]:
        """How many tasks are in which state."""
        counts = dict.fromkeys(STATES, 0)
        for batch in self._batches.values():
            counts["blocked" if batch.blocked else "ready"] += len(batch.items) - len(batch.handed)
            counts["handed"] += len(batch.handed)
            counts["ended"] += len(batch.ended)
        return counts

    def ids(self, limit: int) -> dict[str, list[str]]:
        """The ids of the tasks in each state, up to `limit` each."""
        found: dict[str, list[str]] = {state: [] for state in STATES}
        for batch in self._batches.values():
            waiting = (index for index in batch.items if index not in batch.handed)
            for state, indexes in (
                ("blocked" if batch.blocked else "ready", waiting),
                ("handed", batch.handed),
                ("ended", batch.ended),
            ):
                names = (f"{batch.id}#{index}" for index in indexes)
                found[state] += itertools.islice(names, limit - len(found[state]))
        return found
