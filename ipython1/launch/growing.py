"""Engines that a launcher starts itself, such as in jobs: how many of them are still to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ipython1.kernel.error import LaunchError
from ipython1.launch.launcher import Launcher


class Growth:
    """Keeps the number of engines that are to come at what the controller misses.

    Those are what was asked of the launcher and what it starts again by itself, without those that arrived
    and that failed; but no fewer than wait, since not all that arrive are its own, and no more than can come.

    Parameters
    ----------
    launcher : Launcher
        Its own, where it does not `grow`, are not looked after.
    warn : callable
        Hears in words what went wrong.
    """

    def __init__(self, launcher: Launcher, warn: Callable[[str], None]) -> None:
        self._launcher = launcher
        self._warn = warn
        self._asked = 0  # and neither arrived nor failed
        self._again = 0  # those that are counted there
        self._missing = 0
        self._there = 0

    def asked(self, n: int) -> None:
        """The launcher was told to start `n` engines, and no others."""
        self._asked, self._again = n, self._launcher.again

    def heard(self, event: Mapping[str, Any]) -> bool:
        """React to what the controller says; whether the launcher was told to start more engines."""
        what = event.get("event")
        self._count_again()
        if what == "arrived" or (what == "failed" and not event.get("replaced")):
            self._asked = max(0, self._asked - 1)
        if what == "arrived":
            self._missing = max(0, self._missing - 1)
        elif what == "engines":
            self._there = len(event["ids"])
        elif what == "scaled" and self._launcher.grows:
            self._missing = event["missing"]
            # Engines that leave do not count, and what takes their place is among the missing.
            staying = event["n"] - self._missing
            self._launcher.let_go(max(0, self._there - staying))
            return self._launcher.when_seen(self._settle)
        return False

    def _count_again(self) -> None:
        again = self._launcher.again
        self._asked, self._again = self._asked + again - self._again, again

    def _settle(self) -> bool:
        """Have as many to come as the controller misses."""
        self._count_again()
        self._asked = min(max(self._asked, self._launcher.waiting), self._launcher.coming)
        more = self._missing - self._asked
        if more < 0:
            self._asked -= self._launcher.shrink(-more)
        if more <= 0:
            return False
        try:
            self._launcher.grow(more)
        except LaunchError as error:
            self._warn(str(error))
            return False
        self._asked = self._missing
        return True
