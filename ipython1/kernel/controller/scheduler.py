"""Which tasks go first, and to which engines: `IScheduler`."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from zope.interface import implementer

from ipython1.kernel.error import LaunchError
from ipython1.kernel.interfaces import IScheduler


class Ready(Protocol):
    """What a scheduler sees of a batch."""

    number: int

    @property
    def id(self) -> str: ...

    @property
    def client(self) -> str: ...

    @property
    def waiting(self) -> int: ...

    @property
    def priority(self) -> int: ...

    def admits(self, engine: int) -> bool: ...


Loads = dict[int, int]


class _LeastLoaded:
    """The engine with the least work first."""

    def engines(self, loads: Loads) -> Iterable[int]:
        """See `IScheduler`."""
        return sorted(loads, key=lambda engine: (loads[engine], engine))


class _Ordered(_LeastLoaded):
    """Batches by priority, then by arrival."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, Ready]] = {}

    def add(self, batch: Ready) -> None:
        """See `IScheduler`."""
        self._levels.setdefault(batch.priority, OrderedDict()).setdefault(batch.id, batch)

    def remove(self, batch: Ready) -> None:
        """See `IScheduler`."""
        level = self._levels.get(batch.priority)
        if level is not None and level.pop(batch.id, None) is not None and not level:
            del self._levels[batch.priority]

    def next(self, engine: int) -> Ready | None:
        """See `IScheduler`."""
        for priority in sorted(self._levels, reverse=True):
            for batch in self._order(self._levels[priority]):
                if batch.admits(engine):
                    return batch
        return None

    def served(self, batch: Ready) -> None:
        """See `IScheduler`."""

    def _order(self, level: OrderedDict[str, Ready]) -> Iterable[Ready]:
        return level.values()


@implementer(IScheduler)
class FIFO(_Ordered):
    """First come, first served, whoever sent it; to the engine with the least work."""


@implementer(IScheduler)
class LIFO(_Ordered):
    """The newest first; to the engine with the least work."""

    def _order(self, level: OrderedDict[str, Ready]) -> Iterable[Ready]:
        return reversed(level.values())


@implementer(IScheduler)
class LeastLoad(_LeastLoaded):
    """Fair shares for the clients, each in its own order; to the engine with the least work. The default."""

    def __init__(self) -> None:
        #: priority -> client -> its batches. The client that was served last stands last.
        self._levels: dict[int, OrderedDict[str, OrderedDict[str, Ready]]] = {}

    def add(self, batch: Ready) -> None:
        """See `IScheduler`."""
        clients = self._levels.setdefault(batch.priority, OrderedDict())
        clients.setdefault(batch.client, OrderedDict()).setdefault(batch.id, batch)

    def remove(self, batch: Ready) -> None:
        """See `IScheduler`."""
        clients = self._levels.get(batch.priority, OrderedDict())
        batches = clients.get(batch.client)
        if batches is None or batches.pop(batch.id, None) is None or batches:
            return
        del clients[batch.client]
        if not clients:
            del self._levels[batch.priority]

    def next(self, engine: int) -> Ready | None:
        """See `IScheduler`."""
        for priority in sorted(self._levels, reverse=True):
            for batches in self._levels[priority].values():
                for batch in batches.values():
                    if batch.admits(engine):
                        return batch
        return None

    def served(self, batch: Ready) -> None:
        """See `IScheduler`."""
        self._levels[batch.priority].move_to_end(batch.client)


@implementer(IScheduler)
class Random(LeastLoad):
    """Fair shares; to any engine that has room."""

    def __init__(self, source: random.Random | None = None) -> None:
        super().__init__()
        self._random = source or random.Random()

    def engines(self, loads: Loads) -> Iterable[int]:
        """See `IScheduler`."""
        order = list(loads)
        self._random.shuffle(order)
        return order


@implementer(IScheduler)
class Weighted(Random):
    """Fair shares; to engines at random, the less work one has, the likelier."""

    def engines(self, loads: Loads) -> Iterator[int]:
        """See `IScheduler`."""
        # Sorted by -log(u)/weight these are weighted draws without replacement (Efraimidis and
        # Spirakis, Information Processing Letters 97, 2006).
        return iter(sorted(loads, key=lambda engine: self._random.expovariate(1 / (1 + loads[engine]))))


SCHEDULERS: dict[str, Callable[[], IScheduler]] = {
    "leastload": LeastLoad,
    "fifo": FIFO,
    "lifo": LIFO,
    "random": Random,
    "weighted": Weighted,
}
#: Where other packages name theirs.
ENTRY_POINTS = "ipython1.schedulers"


def make_scheduler(name: str) -> IScheduler:
    """The scheduler with this name: one of `SCHEDULERS`, or of an installed package.

    Raises
    ------
    LaunchError
        There is none such.
    """
    make = SCHEDULERS.get(name)
    if make is None:
        from importlib.metadata import entry_points  # takes a tenth of the start: only where it is needed

        others = entry_points(group=ENTRY_POINTS)
        if name not in others.names:
            known = ", ".join([*SCHEDULERS, *sorted(others.names)])
            raise LaunchError(f"There is no scheduler {name!r}; give one of: {known}.")
        make = others[name].load()
    return make()
