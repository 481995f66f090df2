"""Timers with names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Timers:
    """What is due later, by what it is for and whom it is about.

    Parameters
    ----------
    clock : IReactorTime
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._calls: dict[tuple[str, str], Any] = {}
        self._work: dict[tuple[str, str], Callable[[], None]] = {}

    def __contains__(self, name: tuple[str, str]) -> bool:
        return name in self._calls

    def start(self, what: str, whom: str, delay: float, f: Callable[..., None], *args: Any) -> None:
        """Call `f` after `delay` seconds; in place of the timer of this name, if there is one."""
        self.stop(what, whom)
        self._work[what, whom] = lambda: f(*args)
        self._calls[what, whom] = self._clock.callLater(delay, self.fire, what, whom)

    def stop(self, what: str, whom: str) -> None:
        """End a timer, if there is such a one."""
        call = self._calls.pop((what, whom), None)
        if call is not None:
            del self._work[what, whom]
            if call.active():
                call.cancel()

    def fire(self, what: str, whom: str) -> bool:
        """Do now what is due later; False where there is no such timer."""
        work = self._work.get((what, whom))
        if work is None:
            return False
        self.stop(what, whom)
        work()
        return True

    def stop_all(self) -> None:
        """End every timer."""
        for name in list(self._calls):
            self.stop(*name)
