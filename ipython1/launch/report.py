"""What a launcher shows its user."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from ipython1.launch.state import State


class Report:
    """Says what happens; this one only what went wrong, on stderr."""

    def listening(self, state: State) -> None:
        """The controller listens for the first time."""

    def ready(self, state: State, ids: Sequence[int], seconds: float) -> None:
        """All engines that will come are there."""

    def ended(self, state: State) -> None:
        """All is stopped."""

    def warn(self, text: str) -> None:
        """Something went wrong."""
        _say(f"ipcluster: {text}", sys.stderr)


class Banner(Report):
    """Also shows, on stdout, what a user has to know.

    Parameters
    ----------
    cluster : str
        Name of the cluster.
    option : str
        What a command line needs behind it to mean that cluster.
    daemon : bool
        The cluster runs in the background.
    """

    def __init__(self, cluster: str, option: str, daemon: bool = False) -> None:
        self._cluster = cluster
        self._option = option
        self._daemon = daemon

    def listening(self, state: State) -> None:
        self._line("controller", f"{state.address}  (pid {state.controller})")

    def ready(self, state: State, ids: Sequence[int], seconds: float) -> None:
        self._line("engines", engines_line(ids, state.n, seconds))
        which = f"cluster={self._cluster!r}" if self._option else ""
        self._line("connect", f"from ipython1.kernel import client; mec = client.MultiEngineClient({which})")
        if state.dashboard:
            self._line("dashboard", state.dashboard)
        stop = f"ipcluster stop{self._option}"
        self._line("stop", stop if self._daemon else f"Ctrl-C, or: {stop}")

    def ended(self, state: State) -> None:
        self._line("stopped", f"cluster {self._cluster}")

    def _line(self, label: str, text: str) -> None:
        _say(f"{label:<12} {text}", sys.stdout)


def _say(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except OSError:  # nobody reads it any more; the cluster is not to die of that
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def engines_line(ids: Sequence[int], n: int, seconds: float) -> str:
    """``4 of 4 ready in 0.9 s: 0 1 2 3``."""
    return f"{len(ids)} of {n} ready in {seconds:.1f} s" + (": " + " ".join(map(str, ids)) if ids else "")
