"""The table of engines."""

from __future__ import annotations

import pytest
from IPython.lib.pretty import pretty

from ipython1.kernel.client.status import UNFOLDED, QueueStatus, Status

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


def test_who_is_away_and_since_when() -> None:
    now = 1125.0
    away = {**BUSY, "state": "away", "since": 1000.0, "away": 1120.0}
    silent = {**IDLE, "away": 1065.0}
    links = [
        {"kind": "nanny", "name": "n", "host": "node7", "away": 1122.0, "work": False},
        {"kind": "multiengine", "name": "c1", "host": "", "away": 1005.0, "work": True},
        {"kind": "task", "name": "c2", "host": "", "away": 1005.0, "work": False},
        {"kind": "nanny", "name": "m", "host": "node8", "away": 0.0, "work": False},
    ]
    lines = repr(Status([away, silent], lambda: now, links)).splitlines()
    assert "(away) x = f(<y>) " in lines[1]
    assert " 5.0 s " in lines[1]
    assert "(silent for 1 min 00 s)" in lines[2]
    assert lines[3] == "away: the nanny of node7 for 3.0 s, client c1 for 2 min 00 s"
    assert "node7 for 3.0 s" in Status([away], lambda: now, links)._repr_html_()
    assert "away" not in repr(Status([BUSY], lambda: now, links[2:]))


def test_markup_is_escaped(status: Status) -> None:
    markup = status._repr_html_()
    assert "x = f(&lt;y&gt;)" in markup
    assert markup.count("<tr>") == 4


def test_a_terminal_obeys_no_label() -> None:
    evil = {**BUSY, "running": "\x1b[31mred\n", "host": "a\x07"}
    waiting = [(0, {"queue": ["\x1b[2J"], "pending": "\x9b2J"})]
    for text in (repr(Status([evil])), str(Status([evil])), repr(QueueStatus(waiting))):
        assert not any(c in text for c in "\x1b\x07\x9b")
        assert len(text.splitlines()) == 2


def test_it_is_a_list_of_dicts(status: Status) -> None:
    assert [row["id"] for row in status] == [2, 3, 10]
    assert repr(Status()) == "no engines"


def test_many_engines_are_folded() -> None:
    rows = [{**IDLE, "id": i} for i in range(60)] + [{**BUSY, "id": 60}, {**AWAY, "id": 61}]
    many = Status(rows, now=lambda: 1125.0)
    lines = repr(many).splitlines()
    assert len(lines) == 1 + UNFOLDED + 1
    assert lines[-1] == f"… {62 - UNFOLDED} more: 52 idle, 1 busy, 1 restarting; print() shows all"
    assert len(str(many).splitlines()) == 63
    assert pretty(many) == repr(many)
    opened, _, folded = many._repr_html_().partition("<details>")
    assert (opened.count("<tr>"), folded.count("<tr>")) == (1 + UNFOLDED, 1 + 62 - UNFOLDED)
    assert "<summary>… 54 more: 52 idle, 1 busy, 1 restarting</summary>" in folded


def test_the_queues_show_as_a_table() -> None:
    queues = QueueStatus(
        [(0, {"queue": ["a = 1", "<b>"], "pending": "run()"}), (1, {"queue": [], "pending": None})]
    )
    assert repr(queues).splitlines() == [
        "id  running  queue  waiting",
        " 0  run()        2  a = 1; <b>",
        " 1               0",
    ]
    assert queues[1] == (1, {"queue": [], "pending": None})
    assert '<td style="text-align: left">a = 1; &lt;b&gt;</td>' in queues._repr_html_()
    assert repr(QueueStatus()) == "no engines"
    assert "no engines" in QueueStatus()._repr_html_()


def test_long_queues_are_cut() -> None:
    few = QueueStatus([(0, {"queue": list("abcdef"), "pending": "x"})])
    assert repr(few).endswith("6  a; b; c; …")
    long = QueueStatus([(i, {"queue": ["y" * 60] * 4, "pending": "x"}) for i in range(UNFOLDED + 2)])
    lines = repr(long).splitlines()
    assert max(map(len, lines)) < 100
    assert lines[-1] == f"… 2 more ({UNFOLDED}-{UNFOLDED + 1}): 2 busy, 8 waiting; print() shows all"
