"""The log files of the engines of one host, and what is said of them."""

from __future__ import annotations

import os
from itertools import islice, takewhile
from pathlib import Path

from ipython1.kernel.engine.zygote import out_path
from ipython1.kernel.processes import remove_if_empty, tail

#: Lines kept of the output of an engine that died, and lines in which they are looked for.
OUTPUT_LINES, LONG_OUTPUT = 20, 200


def log_path(folder: Path, uuid: str) -> Path:
    """The file that takes the stderr of an engine."""
    return folder / f"engine-{uuid}.log"


def remove_empty_logs(log: Path) -> None:
    """Remove those of an engine's files that say nothing."""
    remove_if_empty(log)
    remove_if_empty(out_path(log))


def last_words(log: Path) -> str:
    """The last lines of an engine's log; of a stack that the interpreter shows, what is the user's code."""
    lines = tail(log, lines=LONG_OUTPUT).splitlines()
    stacks = [i for i, text in enumerate(lines) if text.startswith("Fatal Python error: ")]
    start = len(lines) - 1
    while start > 0 and lines[start].startswith("  "):
        start -= 1
    if lines and lines[start] == _STACK:  # written on request, see `_help`
        stacks.append(start)
    if not stacks:
        return "\n".join(lines[-OUTPUT_LINES:])
    # The most recent call comes first; below the user's code there is ours.
    stack = takewhile(lambda text: _OURS not in text, lines[stacks[-1] :])
    return "\n".join(islice(stack, OUTPUT_LINES))


_OURS = os.path.dirname(__file__) + os.sep
_STACK = "Stack (most recent call first):"
