"""Transcripts of IPython sessions in reStructuredText: reading and comparing them.

A transcript stands in a ``.. code-block:: ipython``. In what it shows, ``…``
stands for anything: as a line of its own for any number of lines, within a
line for any text. Memory addresses, process numbers, times, ports of this
host, ids of clients, the way a progress bar was drawn, and which of several
engines printed first are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import ndiff
from itertools import groupby

BLOCK = re.compile(r"^( *)\.\. code-block:: +(\w+) *$")
PROMPT = re.compile(r"^In \[(\d+)\]: ?(.*)$")
MORE = re.compile(r"^ +\.\.\.: ?(.*)$")
WILDCARD = "…"

#: A line that an engine printed, as it is shown while the engines run.
STREAMED = re.compile(r"\[(?:stdout|stderr):(\d+)\]")

#: What differs from run to run, and what stands for it in a comparison.
VARYING = (
    (re.compile(r"0x[0-9a-f]{7,}"), "0xADDRESS"),
    (re.compile(r"\b(pid|process) \d+"), r"\1 NUMBER"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:PORT"),
    (re.compile(r"\b[0-9a-f]{12}-\d+([@#])"), r"CLIENT-NUMBER\1"),
    (re.compile(r"\b\d+(\.\d+)? (s|ms|µs)\b"), "TIME"),
)


@dataclass
class Cell:
    """One input of a transcript and what it must print."""

    number: int
    line: int  # in the page
    code: list[str]
    output: list[str] = field(default_factory=list)


def blocks(text: str, language: str) -> Iterator[tuple[int, list[str]]]:
    """The code blocks of `language` in a page: the number of the first line, and the lines without indent."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        found = BLOCK.match(line)
        if found is None or found[2] != language:
            continue
        outer, first = len(found[1]), place + 1
        while first < len(lines) and (not lines[first].strip() or lines[first].strip().startswith(":")):
            first += 1
        last = first
        while last < len(lines) and (not lines[last].strip() or _indent(lines[last]) > outer):
            last += 1
        inner = _indent(lines[first]) if first < last else 0
        yield first + 1, [part[inner:].rstrip() for part in lines[first:last]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def cells(text: str) -> list[Cell]:
    """The cells of all transcripts of a page, which together are one session."""
    found: list[Cell] = []
    for start, lines in blocks(text, "ipython"):
        within_input = False
        if lines and not PROMPT.match(lines[0]):
            raise ValueError(f"line {start}: a transcript starts with In […]:")
        for place, line in enumerate(lines, start):
            prompt, more = PROMPT.match(line), MORE.match(line)
            if prompt:
                found.append(Cell(int(prompt[1]), place, [prompt[2]]))
                within_input = True
            elif more and within_input:
                found[-1].code.append(more[1])
            else:
                within_input = False
                found[-1].output.append(line)
    return found


def normal(lines: Sequence[str]) -> list[str]:
    """Printed lines without what varies, and without empty lines around them."""
    text = "\n".join(line.rstrip().rpartition("\r")[2].rstrip() for line in lines).strip("\n")
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    found: list[str] = []
    for streamed, group in groupby(text.split("\n") if text else [], lambda line: _engine(line) >= 0):
        lines = list(group)
        found += sorted(lines, key=_engine) if streamed else lines
    return found


def _engine(line: str) -> int:
    """The engine that printed a line which is shown while the engines run; -1: none."""
    streamed = STREAMED.match(line)
    return -1 if streamed is None else int(streamed[1])


def matches(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether `printed` is what a transcript shows; both are `normal`."""
    pattern = ""
    for line in expected:
        if line.strip() == WILDCARD:
            pattern += r"(?:.*\n)*?"
        else:
            pattern += "[^\n]*?".join(re.escape(part) for part in line.split(WILDCARD)) + r"\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in printed)) is not None


def difference(cell: Cell, printed: str) -> str:
    """Empty where `printed` is what the cell shows, else a readable difference."""
    expected, got = normal(cell.output), normal(printed.split("\n"))
    if matches(expected, got):
        return ""
    lines = [
        f"line {cell.line}: In [{cell.number}] prints something else (- page, + now)",
        *ndiff(expected, got),
    ]
    return "\n".join(line.rstrip() for line in lines if not line.startswith("?"))
