"""Signs of life: how an end of a connection finds out that the other one is out of reach.

The system tells soon that a process has ended, but of a host that is gone, or of a cable, not for
many minutes. So each end sends a sign of life where it has said nothing else for a while, whatever
the other one does: the receiver of a long upload too, which its sender would not hear from otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Seconds of silence after which a connection counts as lost. Code that holds the interpreter keeps
#: an engine silent that is quite well, so this is long. The controller's setting holds for its peers.
DEAD_LINK_AFTER = 60.0
#: Bounds of that setting.
SHORTEST, LONGEST = 1.0, 86400.0
#: Signs of life in that time, the last of which must have come.
SIGNS = 5


class Pulse:
    """The signs of life of one connection, both ways.

    What counts is signs that are missing, not time: an end that was stopped itself, and goes on,
    first hears what has come meanwhile.

    Parameters
    ----------
    clock : IReactorTime
    dead_after : float
        Seconds of silence that are too many.
    speak : callable
        Sends a sign of life.
    give_up : callable, optional
        Called once, when there was silence for so long; without it, it is only noted.
    """

    __slots__ = ("_clock", "_dead_after", "_give_up", "_speak", "_timer", "missed", "spoke")

    def __init__(
        self,
        clock: Any,
        dead_after: float,
        speak: Callable[[], object],
        give_up: Callable[[], object] | None = None,
    ) -> None:
        #: Signs missing; whoever hears something sets it to 0.
        self.missed = 0
        #: Whether there was no need for a sign; whoever says something sets it.
        self.spoke = False
        self._clock = clock
        self._dead_after = dead_after
        self._speak = speak
        self._give_up = give_up
        self._timer: Any = None

    @property
    def silent(self) -> float:
        """For how many seconds nothing has come, where that is too long; else 0."""
        return self.missed * self._dead_after / SIGNS if self.missed >= SIGNS else 0.0

    def start(self, dead_after: float = 0.0) -> None:
        """Begin, or go on with another `dead_after`."""
        self.stop()
        self._dead_after = dead_after or self._dead_after
        self._timer = self._clock.callLater(self._dead_after / SIGNS, self._beat)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        self.missed += 1
        if self.missed >= SIGNS and self._give_up is not None:
            self._give_up()
            return
        if not self.spoke:
            self._speak()
        self.spoke = False
        self._timer = self._clock.callLater(self._dead_after / SIGNS, self._beat)
