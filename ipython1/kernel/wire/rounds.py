"""What is due at about the same time, for the price of one timer.

A broadcast to a thousand engines would else be two thousand timers of the controller: one for each
session to send, and one to acknowledge what came back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

log = Logger()


class Round:
    """Calls functions after a delay, or a fifth earlier where that saves a timer; they cannot be cancelled.

    Parameters
    ----------
    clock : IReactorTime
    delay : float
        Seconds; 0: in the next turn of the reactor.
    """

    __slots__ = ("_calls", "_clock", "_delay", "_timer")

    def __init__(self, clock: Any, delay: float) -> None:
        self._clock = clock
        self._delay = delay
        self._calls: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: Any = None

    def add(self, f: Callable[[], None]) -> None:
        """Call `f` once."""
        self._calls.append((self._clock.seconds() + self._delay, f))
        if self._timer is None:
            self._timer = self._clock.callLater(self._delay, self._due)

    def stop(self) -> None:
        """Call nothing more."""
        self._calls.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        now = self._clock.seconds()
        for _ in range(len(self._calls)):  # what these add has the next turn
            if not self._calls or self._calls[0][0] > now + self._delay / 5:
                break
            _, f = self._calls.popleft()
            try:
                f()
            except Exception:  # noqa: BLE001 -- the others are not to blame
                log.failure("a timed call failed")
        self._timer = (
            self._clock.callLater(max(0.0, self._calls[0][0] - now), self._due) if self._calls else None
        )
