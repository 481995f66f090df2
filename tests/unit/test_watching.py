"""Looking at a cluster through its dashboard: without a dashboard, and without sockets."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.controller.service import Controller
from ipython1.kernel.files import ClusterFiles
from ipython1.launch import state as states
from ipython1.launch.state import NotRunning, State
from ipython1.web import watching
from ipython1.web.events import message
from ipython1.web.guard import token_of
from ipython1.web.overview import Changes, Overview
from ipython1.web.watching import NoDashboard, Silent, follow, look, merged
from tests.dashboards import FURLS, Books

RUNNING = State(port=5, dashboard="http://127.0.0.1:6/?token=acting", wanted=2)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ClusterFiles]:
    """Of a cluster that runs."""
    found = ClusterFiles("mine", tmp_path)
    with states.held(found):
        RUNNING.write(found)
        found.furl("view").write_text(FURLS["view"] + "\n")
        yield found


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Has the dashboard answer; a list of what it was asked."""

    def answers(body: bytes | Exception, status: int = 200) -> list[Any]:
        asked: list[Any] = []

        class Connection:
            def __init__(self, host: str, port: int, timeout: float) -> None:
                asked.append((host, port))

            def request(self, method: str, page: str, headers: dict[str, str]) -> None:
                asked.append((method, page, headers))

            def getresponse(self) -> Any:
                if isinstance(body, Exception):
                    raise body
                answer: Any = io.BytesIO(body)
                answer.status, answer.reason = status, "Reason"
                return answer

            def close(self) -> None:
                asked.append("closed")

        class Answer(io.BytesIO):
            """With room for attributes."""

        monkeypatch.setattr(http.client, "HTTPConnection", Connection)
        monkeypatch.setattr(io, "BytesIO", Answer)
        return asked

    return answers


class World:
    """A controller with engines, and its overview."""

    def __init__(self) -> None:
        self.now = 1000.0
        controller = Controller(Clock(), now=lambda: self.now)
        self.books = Books(controller, 4, lambda: self.now)
        self.overview = Overview(controller, "mine")
        self.changes = Changes(self.overview)
        self.changes.look()

    def happens(self) -> None:
        """Something of everything."""
        self.now += 3
        controller = self.overview.controller
        self.books.submit(next(iter(controller.registry)), "step")
        self.books.history(2.0)
        controller.timeline.note("died", 3, "killed")
        controller.timeline.sample(lambda: (1, 0))
        gone = controller.registry.get(3)
        if gone is not None:
            controller.registry.remove(gone)

    def whole(self) -> Any:
        """What a new watcher is told, as JSON has it."""
        return json.loads(json.dumps(self.overview.state(may_act=False)))

    def change(self) -> Any:
        """What those are told who watch."""
        return json.loads(json.dumps(self.changes.look()))


def shown(state: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a state."""
    return {name: value for name, value in state.items() if name not in ("spans", "output")}


def test_a_state_and_its_changes_are_the_next_state() -> None:
    world = World()
    known = world.whole()
    for _ in range(3):
        world.happens()
        known = merged(known, world.change())
        assert shown(known) == shown(world.whole())
    assert [row["id"] for row in known["engines"]] == [0, 1, 2]
    assert known["engines"][0]["queue"] == 2
    assert known["totals"]["died"] == 3


def test_little_of_the_past_is_kept() -> None:
    world = World()
    known = world.whole()
    for second in range(1000):
        change = {"rates": [[second, 1]], "incidents": [{"serial": second}], "spans": [[1] * 11], "gone": [3]}
        known = merged(known, change)
    assert len(known["rates"]) == watching.RATES_KEPT
    assert known["rates"][-1] == [999, 1]
    assert len(known["incidents"]) == watching.INCIDENTS_KEPT
    assert "spans" not in known


def test_one_look(files: ClusterFiles, answers: Callable[..., list[Any]]) -> None:
    world = World()
    asked = answers(json.dumps(world.whole()).encode())
    assert shown(look(files)) == shown(world.whole())
    right = {"Authorization": f"Bearer {token_of(FURLS['view'])}"}
    assert asked == [("127.0.0.1", 6), ("GET", "/state.json", right), "closed"]


def test_all_that_follows(files: ClusterFiles, answers: Callable[..., list[Any]]) -> None:
    world = World()
    body, wanted = b"retry: 1000\n\n" + message("state", world.whole()), [shown(world.whole())]
    for _ in range(2):
        world.happens()
        body += message("change", world.change())
        wanted.append(shown(world.whole()))
    asked = answers(body)
    assert [shown(state) for state in follow(files)] == wanted
    assert asked[-1] == "closed"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (ConnectionRefusedError(111, "Connection refused"), 200, "Connection refused"),
        (TimeoutError("timed out"), 200, "timed out"),
        (b"So many watch", 503, "its dashboard answers 503 Reason"),
        (b"{", 200, "Expecting property name"),
    ],
)
def test_it_does_not_tell(
    files: ClusterFiles, answers: Callable[..., list[Any]], body: Any, status: int, reason: str
) -> None:
    asked = answers(body, status)
    with pytest.raises(Silent) as caught:
        look(files)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("Look with: ipcluster logs --cluster mine")
    assert asked[-1] == "closed"


def test_there_is_nothing_to_look_at(files: ClusterFiles, tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        look(ClusterFiles("other", tmp_path))
    State().write(files)
    with pytest.raises(Silent, match="does not listen yet"):
        look(files)
    State(port=5).write(files)
    with pytest.raises(NoDashboard, match=r"Use: ipcluster status --cluster mine$"):
        look(files)
