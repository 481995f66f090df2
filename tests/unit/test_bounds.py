"""What strangers can do to the log, and who is still there."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent

from ipython1.kernel.wire.bounds import (
    FACT_LIMIT,
    GUESTS_LIMIT,
    LINES,
    PERIOD,
    Complaints,
    Crowd,
    Guests,
    room,
)


def test_complaints_are_limited_and_counted() -> None:
    events: list[Any] = []
    clock = Clock()
    complaints = Complaints(Logger(observer=events.append), clock)
    for _ in range(3):
        for number in range(LINES + 1000):
            complaints.say("number {n}", n=number)
        clock.advance(PERIOD)
    complaints.say("later")
    texts = [formatEvent(event) for event in events]
    lines = [f"number {n}" for n in range(LINES)]
    left_out = ["1000 more such warnings were left out"]
    assert texts == [*lines, *left_out, *lines, *left_out, *lines, *left_out, "later"]


def test_what_strangers_say_is_cut_and_made_harmless() -> None:
    events: list[Any] = []
    complaints = Complaints(Logger(observer=events.append), Clock())
    complaints.say("{what}", what="\x1b[31m\n" + "é" * 10_000)
    text = formatEvent(events[0])
    assert text.startswith("\\x1b[31m\\n\\xe9")
    assert text.endswith("…")
    assert len(text) == FACT_LIMIT + 1


def test_a_crowd_keeps_its_order_and_says_when_it_is_empty() -> None:
    crowd: Crowd[str] = Crowd()
    fired: list[None] = []
    crowd.empty().addCallback(fired.append)
    assert fired == [None]
    for member in "abc":
        crowd.add(member)
    crowd.empty().addCallback(fired.append)
    crowd.empty().addCallback(fired.append)
    for member in crowd:  # may be changed meanwhile
        assert fired == [None]
        crowd.discard(member)
    assert fired == [None] * 3
    assert len(crowd) == 0
    crowd.discard("a")


def test_the_longest_waiting_guest_makes_room() -> None:
    gone: list[tuple[int, str]] = []
    guests = Guests(2)

    def come(number: int) -> None:
        guests.admit(number, lambda why: gone.append((number, why)))

    come(1)
    come(2)
    guests.discard(1)
    come(3)
    assert gone == []
    come(4)
    assert gone == [(2, "made room for others")]
    assert len(guests) == 2
    guests.discard(2)
    guests.discard(3)
    guests.discard(4)
    assert len(guests) == 0


@pytest.mark.parametrize(
    ("soft", "expected"),
    [(1, 1), (256, 64), (1024, 256), (10**9, GUESTS_LIMIT), (resource.RLIM_INFINITY, GUESTS_LIMIT)],
)
def test_a_quarter_of_the_files_is_for_guests(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert room() == expected


def test_failures_are_limited_too() -> None:
    events: list[Any] = []
    complaints = Complaints(Logger(observer=events.append), Clock())
    for _ in range(LINES + 5):
        try:
            raise ValueError("odd")
        except ValueError:
            complaints.failure("not handled")
    assert len(events) == LINES
    assert "odd" in str(events[0]["log_failure"].value)
