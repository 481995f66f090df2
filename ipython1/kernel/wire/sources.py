"""The source text of functions that travel by value, for the tracebacks they end up in."""

from __future__ import annotations

import linecache
import types
from collections.abc import Iterable, Iterator

#: Characters of source text sent with one call.
SOURCE_LIMIT = 256 * 1024
#: Files whose source text came from elsewhere and is remembered for tracebacks.
SOURCES_KEPT = 256


def source_texts(codes: Iterable[types.CodeType]) -> Iterator[tuple[str, int, str]]:
    """``(file name, first line, text)`` of each code object whose source is known."""
    room = SOURCE_LIMIT
    for filename, first, last in {(c.co_filename, c.co_firstlineno, _last_line(c)) for c in codes}:
        text = "".join(linecache.getlines(filename)[first - 1 : last])
        room -= len(text)
        if text and room >= 0:
            yield filename, first, text


def _last_line(code: types.CodeType) -> int:
    lines = [line for _, _, line in code.co_lines() if line is not None]
    inner = [_last_line(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return max([code.co_firstlineno, *lines, *inner])


_remembered: dict[str, None] = {}


def remember_source(filename: str, first: int, text: str) -> None:
    """Let tracebacks show `text` as the lines of `filename` from `first` on."""
    lines = linecache.getlines(filename)
    if lines and filename not in _remembered:
        return  # the file is here as well
    new = text.splitlines(keepends=True)
    lines = lines + ["\n"] * (first - 1 - len(lines))
    lines[first - 1 : first - 1 + len(new)] = new
    # Without a modification time linecache keeps what is not on the disk.
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
    _remembered[filename] = None
    if len(_remembered) > SOURCES_KEPT:
        oldest = next(iter(_remembered))
        del _remembered[oldest]
        linecache.cache.pop(oldest, None)
