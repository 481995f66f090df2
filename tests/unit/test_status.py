"""The table of engines."""

from __future__ import annotations

from typing import Any

import pytest

from ipython1.kernel.client.status import Status, duration_text, size_text

BUSY = {
    "id": 10,
    "host": "node<7>",
    "pid": 4242,
    "state": "ready",
    "cpu": 99.6,
    "rss": 43_000_000,
    "running": "x = f(<y>)",
    "since": 1000.0,
    "queue": 12,
}
IDLE = {**BUSY, "id": 2, "cpu": 0.0, "running": None, "queue": 0}
AWAY = {**IDLE, "id": 3, "state": "restarting", "pid": 0, "rss": 0}


@pytest.fixture
def status() -> Status:
    return Status([IDLE, AWAY, BUSY], now=lambda: 1125.0)


def test_columns_stand_under_each_other(status: Status) -> None:
    lines = repr(status).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split() == [
        "10",
        "node<7>",
        "4242",
        "100",
        "%",
        "43.0",
        "MB",
        "x",
        "=",
        "f(<y>)",
        "2",
        "min",
        "05",
        "s",
        "12",
    ]
    assert lines[1].split() == ["2", "node<7>", "4242", "0", "%", "43.0", "MB", "0"]
    assert "(restarting)" in lines[2]


def test_an_engine_that_does_not_react_is_marked() -> None:
    assert "x = f(<y>) (does not react to interrupts)" in repr(Status([{**BUSY, "stuck": 1000.0}]))
    assert "react" not in repr(Status([{**BUSY, "stuck": 0.0}]))


def test_markup_is_escaped(status: Status) -> None:
    markup = status._repr_html_()
    assert "x = f(&lt;y&gt;)" in markup
    assert markup.count("<tr>") == 4


def test_it_is_a_list_of_dicts(status: Status) -> None:
    assert [row["id"] for row in status] == [2, 3, 10]
    assert repr(Status()) == "no engines"


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
