"""The engines of a cluster as a client knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Engines that died for good, remembered; the controller tells of no more.
FAILURES_KEPT = 10


class EngineTable:
    """The table as last heard, and who wants to know of changes.

    Read in any thread; changed in the reactor thread.
    """

    def __init__(self) -> None:
        #: One map an engine, sorted by id. Many commands hold on to it: it is replaced, never changed.
        self.engines: tuple[dict[str, Any], ...] = ()
        self._failures: tuple[tuple[int, str, str], ...] = ()
        self._before = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def start_failures(self) -> list[str]:
        """Cause and output of the engines that died for good, starting or later, since this connected."""
        new = [failure for failure in self._failures if failure[0] > self._before]
        return [f"{cause}\n{output}".strip() for _, cause, output in new]

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` (quick, in the reactor thread) after each change.

        Returns a function that ends it.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def first(self, table: Mapping[str, Any]) -> None:
        """The table as this client found it: what failed before is nothing to it."""
        self._before = max((failure[0] for failure in table["failures"]), default=0)
        self.take(table)

    def another_controller(self) -> None:
        """A new controller counts failures from the start."""
        self._before = 0

    def take(self, table: Mapping[str, Any]) -> None:
        """There is a newer table, or what has changed in it."""
        if "engines" in table:
            self.engines = tuple(table["engines"])
            self._failures = tuple(table["failures"])
        else:
            rows = {row["id"]: row for row in (*self.engines, *table["changed"])}
            for id in table["gone"]:
                rows.pop(id, None)
            self.engines = tuple(rows[id] for id in sorted(rows))
            known = {failure[0] for failure in self._failures}
            new = tuple(failure for failure in table["failures"] if failure[0] not in known)
            self._failures = (self._failures + new)[-FAILURES_KEPT:]
        self.tell()

    def tell(self) -> None:
        """Call all who watch."""
        for listener in list(self._listeners):
            listener()
