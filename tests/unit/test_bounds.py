"""What strangers can do to the log, and who is still there."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent

from ipython1.kernel.wire.bounds import FACT_LIMIT, LINES, PERIOD, Complaints, Crowd


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
