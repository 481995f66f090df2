"""Engines that a launcher starts itself, such as in jobs: how many of them are still to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ipython1.kernel.error import LaunchError
from ipython1.launch.launcher import Launcher


class Growth:
    """Keeps the number of engines that are to come at what the controller misses.

    Those are what was asked of the launcher, without those that arrived, that failed, and that the launcher
    says cannot come any more.

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

    def asked(self, n: int) -> None:
        """The launcher was told to start `n` engines, and no others."""
        self._asked = n

    def heard(self, event: Mapping[str, Any]) -> bool:
        """React to what the controller says; whether the launcher was told to start more engines."""
        what = event.get("event")
        if what == "arrived" or (what == "failed" and not event.get("replaced")):
            self._asked = max(0, self._asked - 1)
        return what == "scaled" and self._launcher.grows and self._want(event["missing"])

    def _want(self, missing: int) -> bool:
        """Have as many to come as the controller misses."""
        self._asked = min(self._asked, self._launcher.coming)
        more = missing - self._asked
        if more < 0:
            self._asked -= self._launcher.shrink(-more)
        if more <= 0:
            return False
        try:
            self._launcher.grow(more)
        except LaunchError as error:
            self._warn(str(error))
            return False
        self._asked = missing
        return True
