"""What `ipcluster top` shows of a given state."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from twisted.internet.task import Clock

from ipython1.kernel.controller.service import Controller
from ipython1.kernel.controller.timeline import RATES
from ipython1.scripts.screen import condition, view, waiting
from ipython1.web.overview import Overview
from tests.dashboards import Books

NOW = 1_000_000.0  # 13:46:40 UTC


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock on the wall shows UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def engine(id: int, **facts: Any) -> dict[str, Any]:
    """An idle engine, or another one."""
    row = {
        "id": id,
        "host": "node00",
        "pid": 4000 + id,
        "state": "ready",
        "cpu": 0.0,
        "rss": 55_000_000,
        "stuck": 0.0,
        "away": 0,
        "running": None,
        "since": NOW - 100,
        "queue": 0,
    }
    return {**row, **facts}


def state(*engines: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A state of the dashboard."""
    return {
        "cluster": "default",
        "started": NOW - 3725,
        "time": NOW,
        "fields": {"rates": RATES},
        "engines": list(engines),
        "tasks": {"blocked": 1, "ready": 1200, "handed": 16, "ended": 9},
        "totals": {"commands": 849, "tasks": 9000, "failed": 2, "died": 1, "restarted": 1},
        "rates": [],
        "incidents": [],
        **facts,
    }


def lines(shown: Any, width: int = 100, height: int = 40) -> list[str]:
    """What a terminal would show."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return [line.rstrip() for line in capture.get().removesuffix("\n").split("\n")]


BUSY = engine(0, running="time.sleep(60)", since=NOW - 12.3, cpu=97.4, queue=2)
DEATH = {"serial": 1, "time": NOW - 60, "engine": 1, "what": "died", "text": "killed by signal 9 (SIGKILL)"}


def test_all_of_it() -> None:
    away = engine(1, state="away", away=NOW - 20)
    rates = [[int(NOW) - 25, 0, 40, 0, 0.0, 0.0, 1, 0], [int(NOW) - 2, 50, 30, 1, 0.1, 0.0125, 1, 0]]
    found = state(BUSY, away, rates=rates, incidents=[DEATH])
    assert lines(view(found, NOW, 130), width=130) == [
        "ipython1     cluster default, 13:46:40, controller up 1 h 02 min",
        "engines      2: 1 busy, 1 away; 1.0 CPUs, 110.0 MB",
        "work         2 queued; tasks: 16 with engines, 1,200 ready, 1 blocked",
        "rates        5.0 commands/s, 3.0 tasks/s, 0.1 failed/s, latency 2.0 ms, at most 12.5 ms"
        f"{'▄':>8}{'█':>23}",
        "since start  849 commands, 9,000 tasks, 2 failed; engines: 1 died, 1 restarted",
        "",
        "id  host     pid  state         CPU   memory  queue     for  running",
        " 0  node00  4000  busy         97 %  55.0 MB      2  12.3 s  time.sleep(60)",
        " 1  node00  4001  away 20.0 s   0 %  55.0 MB      0",
        "",
        "13:45:40     engine 1 died: killed by signal 9 (SIGKILL)",
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "idle"),
        ({"running": "x"}, "busy"),
        ({"running": "x", "stuck": NOW - 7, "away": NOW - 3}, "stuck 7.0 s"),
        ({"running": "x", "away": NOW - 3}, "silent 3.0 s"),
        ({"state": "away", "away": NOW - 65, "stuck": NOW - 7}, "away 1 min 05 s"),
        ({"state": "restarting"}, "restarting 1 min 40 s"),
        ({"state": "restarting", "since": NOW + 1}, "restarting 0.0 s"),
    ],
)
def test_how_an_engine_is(facts: dict[str, Any], words: str) -> None:
    assert condition(engine(0, **facts), NOW)[0] == words


def test_nothing_that_others_chose_reaches_the_terminal() -> None:
    evil = "\x1b]0;mine\x07[red]\x1b[2J\n\udc80"
    incident = {**DEATH, "text": evil, "what": evil}
    found = state(
        engine(0, host=evil, running=evil, state=evil), cluster=evil, incidents=[incident, incident]
    )
    text = "\n".join(lines(view(found, NOW, 200, trouble=evil), width=200))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text
    text.encode()
    assert "\x1b" not in "".join(lines(waiting(evil)))


ENGINES = st.builds(
    engine,
    st.integers(0, 999),
    host=st.text(max_size=60),
    state=st.sampled_from(["ready", "away", "restarting"]),
    cpu=st.floats(0, 6400),
    rss=st.integers(0, 1 << 45),
    stuck=st.sampled_from([0.0, NOW - 9]),
    away=st.sampled_from([0, NOW - 5]),
    running=st.none() | st.text(max_size=60),
    queue=st.integers(0, 10**7),
)


@settings(max_examples=30)
@given(
    st.lists(ENGINES, max_size=30, unique_by=lambda row: row["id"]),
    st.integers(0, 6),
    st.sampled_from(["", "why"]),
    st.integers(72, 140),
    st.integers(10, 60),
)
def test_it_fits(engines: list[Any], deaths: int, trouble: str, width: int, height: int) -> None:
    found = state(*engines, incidents=[DEATH] * deaths)
    shown = lines(view(found, NOW, width, height, trouble), width, height)
    assert len(shown) <= height
    assert max(map(cell_len, shown)) <= width
    first = next(i for i, line in enumerate(shown) if line.split()[:1] == ["id"]) + 1
    count = next(
        (i for i, line in enumerate(shown[first:]) if not line or line[0] == "…"), len(shown) - first
    )
    more = [line for line in shown if line.startswith("… ")]
    assert count + (int(more[0].split()[1]) if more else 0) == len(engines)


def test_where_all_have_room_they_keep_their_places() -> None:
    found = state(engine(0), engine(1, state="away", away=NOW - 1), BUSY | {"id": 2})
    shown = lines(view(found, NOW, 100, 30))
    assert [line.split()[0] for line in shown[7:]] == ["0", "1", "2"]


def test_of_many_trouble_comes_first_then_the_busiest() -> None:
    rows = [engine(i) for i in range(500)]
    rows[400] = engine(400, state="away", away=NOW - 1)
    rows[300] = engine(300, running="x", queue=1)
    rows[200] = engine(200, running="y", cpu=90.0)
    rows[100] = engine(100, running="z", cpu=95.0)
    shown = lines(view(state(*rows), NOW, 100, 20), height=20)
    assert [int(line.split()[0]) for line in shown[7:13]] == [400, 300, 100, 200, 0, 1]
    assert shown[-1] == "… 488 more: 488 idle"
    assert len(shown) == 20


def test_a_small_terminal_has_fewer_columns_and_says_nothing_of_the_past() -> None:
    shown = lines(view(state(BUSY, incidents=[DEATH]), NOW, 60, 12), 60, 12)
    assert shown[6:] == [
        "id  host    state   CPU  queue     for  running",
        " 0  node00  busy   97 %      2  12.3 s  time.sleep(60)",
    ]


def test_trouble_says_how_old_it_is() -> None:
    shown = lines(view(state(), NOW + 4, 100, trouble="Nobody answers."))
    assert shown[1:3] == ["trouble      4.0 s old: Nobody answers.", "engines      none"]


def test_it_shows_what_the_dashboard_tells() -> None:
    controller = Controller(Clock(), now=lambda: NOW)
    books = Books(controller, 40, lambda: NOW)
    books.history(60.0)
    books.trouble()
    found = Overview(controller, "here").state(may_act=False)
    shown = lines(view(found, NOW, 120), 120, 80)
    assert shown[0].startswith("ipython1     cluster here, 13:46:40, controller up 0.0 s")
    assert "tasks/s, " in shown[3]
    assert sum("node" in line for line in shown) == 40
    assert any("killed by signal 9" in line for line in shown)
