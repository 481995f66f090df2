"""Quantities in words, and the words of others."""

from __future__ import annotations

from typing import Any

import pytest

from ipython1.kernel.texts import duration_text, one_line, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (43_000_000, "43.0 MB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_sizes(count: Any, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (125, "2 min 05 s"), (4020, "1 h 07 min"), (90_000, "25 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07\x9b2Jc", "a�[31mb��2Jc"),
        ("one\ntwo\tthree\r\n", "one two three  "),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
        ("left\u202eright\u2066", "left�right�"),
        ("\udc80", "�"),
        ("größe 値", "größe 値"),
    ],
)
def test_text_of_others_is_only_text(text: str, shown: str) -> None:
    assert one_line(text) == shown
