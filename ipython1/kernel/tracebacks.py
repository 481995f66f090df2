"""Tracebacks of engines as text: equal ones folded into one, coloured where the terminal has colours."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

#: Lines shown of one traceback, and characters of a line.
LINES, LENGTH = 60, 1000

#: A cell of an engine, as a traceback names it: engines count their cells by themselves.
_CELL = re.compile(r"<engine -?\d+, (?:In\[\d+\]|silent \d+)>")
_FRAME = re.compile(r'^( *File )("[^"]*")(, line )(\d+)(, in )?(.*)$')
_MARKS = re.compile(r"^\s+[~^]+\s*$")
_ERROR = re.compile(r"^([A-Za-z_][\w.]*)(:.*)?$")
_CYAN, _GREEN, _RED, _BOLD, _PLAIN = "\x1b[36m", "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


class Failed(Protocol):
    """What is needed to know of a failure."""

    @property
    def engine(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def traceback(self) -> str: ...

    @property
    def summary(self) -> str: ...


class Folded(NamedTuple):
    """A traceback, and which engines have the same."""

    head: str
    lines: list[str]

    @property
    def text(self) -> str:
        """As it is printed, without colours."""
        return "\n".join([self.head, *self.lines])


def folded(failures: Iterable[Failed]) -> list[Folded]:
    """The tracebacks of `failures`, each different one once, in the order of their first engines."""
    groups: dict[tuple[str, str], list[Failed]] = {}
    for failure in failures:
        text = failure.traceback.rstrip() or failure.summary
        groups.setdefault((failure.method, _CELL.sub("<engine>", text)), []).append(failure)
    return [_fold(group) for group in groups.values()]


def _fold(group: Sequence[Failed]) -> Folded:
    first = group[0]
    engines = ranges(sorted({failure.engine for failure in group}))
    text = first.traceback.rstrip() or first.summary
    text = text.replace(f"<engine {first.engine}, ", f"<engine {engines}, ")
    lines = [line if len(line) <= LENGTH else f"{line[:LENGTH]} …" for line in text.split("\n")]
    if len(lines) > LINES:
        left_out = len(lines) - LINES
        lines[LINES // 2 : -LINES // 2] = [f"… {left_out} lines"]
    return Folded(f"[{engines}:{first.method}]:", lines)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in the order they come, those that follow each other as a range: ``'0-3,7'``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def coloured(traceback: Folded) -> list[str]:
    """The lines of a traceback, with the colours of a terminal."""
    return [f"{_BOLD}{traceback.head}{_PLAIN}", *map(_coloured_line, traceback.lines)]


def _coloured_line(line: str) -> str:
    frame, error = _FRAME.match(line), _ERROR.match(line)
    if frame is not None:
        file, name, at, number, within, function = frame.groups()
        return (
            f"{file}{_CYAN}{name}{_PLAIN}{at}{_GREEN}{number}{_PLAIN}{within or ''}{_CYAN}{function}{_PLAIN}"
        )
    if _MARKS.match(line):
        return f"{_RED}{line}{_PLAIN}"
    return coloured_message(line) if error is not None else line


def coloured_message(message: str) -> str:
    """A message that begins with the name of an error, coloured."""
    name, colon, text = message.partition(":")
    return f"{_RED}{_BOLD}{name}{_PLAIN}{colon}{text}"


def has_colours(file: Any, shell: Any = None) -> bool:
    """Whether colours may be written to `file`; in IPython, whether its `shell` uses them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if shell is not None and str(getattr(shell, "colors", "")).lower() == "nocolor":
        return False
    if getattr(shell, "kernel", None) is not None:
        return True  # notebooks and consoles understand them
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):
        return False


def running_shell() -> Any:
    """The IPython shell of this process, if any; never imports IPython."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython() if get_ipython is not None else None
