"""Engines that were added to a cluster, and how many."""

from __future__ import annotations

import operator
import subprocess
from typing import Any, SupportsIndex

from ipython1.launch.background import terminate


class Engines:
    """Engines that were added to a cluster."""

    def __init__(self, what: str, process: subprocess.Popen[bytes]) -> None:
        self._what = what
        self._process = process

    @property
    def running(self) -> bool:
        """Whether what started them still sees to them."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop them; returns when they are gone."""
        terminate(self._process)

    def __repr__(self) -> str:
        return f"<Engines: {self._what}, {'running' if self.running else 'stopped'}>"


def number_of(n: Any) -> int:
    """A number of engines to start."""
    if isinstance(n, bool) or not isinstance(n, SupportsIndex):
        raise TypeError(f"n is a number of engines, not {n!r}.")
    if operator.index(n) < 1:
        raise ValueError(f"a cluster starts with 1 engine or more, not with n={n}.")
    return operator.index(n)
