"""More and fewer engines: who is chosen, what becomes of its work, and what a launcher is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ipython1.kernel.controller.batches import DEATHS_LIMIT
from ipython1.kernel.controller.lifecycle import LAST_WORDS
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.processes import STOPPED
from ipython1.kernel.wire.codec import decode_failure, pack, unpack
from ipython1.kernel.wire.records import Answer, Ask, Exited, Order, Result, Submit
from tests.unit.task_peers import FOREVER, Peer, TaskEngine, TaskWorld


class World(TaskWorld):
    """A world whose controller tells a launcher what happens."""

    def __init__(self, grows: bool = False) -> None:
        self.grows = grows
        self.notices: list[dict[str, Any]] = []
        super().__init__()
        self.boss = self.multiengine("boss")

    def start_controller(self) -> None:
        self.controller = Controller(
            self.clock, self.notices.append, self.clock.seconds, launcher_grows=self.grows
        )

    def ask(self, what: str, **body: Any) -> Any:
        self.boss.send(Ask("q", what, pack(body)))
        answer = self.boss.hear(Answer)[-1]
        return unpack(answer.body) if answer.ok else decode_failure(answer.body, -1, what)

    def leave(self, engine: TaskEngine, cause: str = STOPPED) -> None:
        """An engine ends as its nanny was told to have it."""
        running = engine.running
        engine.stop()
        self.nanny.send(
            Exited(engine.uuid, cause, "", False, f"{running[0]}#{running[1]}" if running else "")
        )
        self.run(LAST_WORDS)

    def said(self, *events: str) -> list[dict[str, Any]]:
        return [notice for notice in self.notices if notice["event"] in events]

    def stopped(self) -> list[str]:
        return [order.uuid for order in self.nanny.hear(Order) if order.what == "stop"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def growing() -> Iterator[World]:
    world = World(grows=True)
    yield world
    world.close()


def long(key: Any, attempt: int) -> tuple[str, float]:
    return "ok", FOREVER


def command(peer: Peer, id: str, *engines: int) -> None:
    peer.send(Submit(id, engines, "execute", "work", -1, 0.0, b"", ()))


# -- fewer ------------------------------------------------------------------------------------


def test_those_with_the_least_to_do_go_first_the_newest_of_them(world: World) -> None:
    world.engines(5, long)
    command(world.boss, "boss-1", 4)
    command(world.boss, "boss-2", 1)
    command(world.boss, "boss-3", 1)
    assert world.ask("scale", n=2) == 2
    assert world.stopped() == ["e3", "e2", "e0"]
    assert world.ask("scale", n=1) == 1
    assert world.stopped() == ["e3", "e2", "e0", "e4"]
    assert [row["state"] for row in world.ask("status")] == ["leaving", "ready", *["leaving"] * 3]


def test_one_that_runs_a_task_stays_while_another_has_nothing_to_do(world: World) -> None:
    engines = world.engines(3, long)
    world.client().open(1)
    [busy] = [engine for engine in engines if engine.running]
    world.ask("scale", n=1)
    assert sorted(world.stopped()) == sorted({"e0", "e1", "e2"} - {busy.uuid})


def test_what_an_engine_that_leaves_has(world: World) -> None:
    client, (first, last) = world.client(), world.engines(2, long)
    batch = client.open(2)
    command(world.boss, "boss-1", last.id)
    world.ask("scale", n=0)
    world.engine("fresh")  # gets what the two had
    for engine in (first, last):
        world.leave(engine)
    world.run(1.0)
    assert client.all_ends(batch) == {"ok": 2}
    [result] = world.boss.hear(Result)
    told = decode_failure(result.parts[0], last.id, "execute")
    assert (told.ename, "stopped on request" in told.evalue) == ("EngineDied", True)


def test_an_engine_that_leaves_gets_no_tasks(world: World) -> None:
    client, (stays, leaves) = world.client(), world.engines(2)
    world.ask("scale", n=1)
    batch = client.open(20)
    world.run(1.0)
    assert (len(stays.runs), leaves.runs, client.all_ends(batch)) == (20, [], {"ok": 20})


def test_one_that_was_killed_by_hand_leaves_too(world: World) -> None:
    (engine,) = world.engines(1)
    world.ask("kill", targets=[0])
    world.client().open(1)
    world.run(1.0)
    assert engine.runs == []


def test_a_task_is_not_to_blame_for_engines_that_were_stopped_under_it(world: World) -> None:
    client = world.client()
    batch = client.open(1)
    for n in range(DEATHS_LIMIT + 1):
        engine = world.engine(f"e{n}", long)
        assert engine.running == (batch, 0)
        world.ask("scale", n=0)
        world.leave(engine)
    world.engine("last")
    world.run(1.0)
    assert client.end(batch) == "ok"


def test_a_new_engine_with_the_id_of_one_that_left_gets_tasks(world: World) -> None:
    client, (engine,) = world.client(), world.engines(1)
    world.ask("restart", targets=[0])
    world.ask("kill", targets=[0])
    engine.stop()
    world.nanny.send(Exited(engine.uuid, "restarted on request", "", True))
    world.run(LAST_WORDS)
    world.engine("next", wanted=0)
    batch = client.open(1)
    world.run(1.0)
    assert client.end(batch) == "ok"


def test_those_whose_nanny_is_away_go_last(world: World) -> None:
    world.engines(2)
    world.nanny.vanish()
    world.run(0.1)
    other = Peer(world, "engine", "nanny", {"uuid": "m", "host": "i", "pid": 0, "engines": [], "exited": []})
    engine = TaskEngine(world, "near")
    assert world.controller is not None
    found = world.controller.registry.by_uuid("near")
    assert found is not None
    found.nanny = "m"
    command(world.boss, "boss-1", engine.id)
    assert world.ask("scale", n=2) == 2
    assert [order.uuid for order in other.hear(Order)] == ["near"]
    assert "left alone" in world.ask("scale", n=0).evalue


# -- fewer, of those that are idle ---------------------------------------------------------------


def test_only_those_that_were_idle_for_long_are_stopped(world: World) -> None:
    engines = world.engines(4)
    world.run(100)
    command(world.boss, "boss-1", 0)
    command(world.boss, "boss-2", 1)
    engines[1].reply()
    world.run(5)
    assert world.ask("load")["engines"] == 4
    assert world.ask("load")["idle"] == pytest.approx([105, 105, 5], abs=1)
    assert world.ask("scale", n=0, idle=10) == 2
    assert world.stopped() == ["e3", "e2"]
    assert world.ask("load")["engines"] == 2
    assert world.ask("scale", n=0, idle=1) == 1
    assert world.stopped() == ["e3", "e2", "e1"]


def test_an_engine_is_idle_since_its_last_task(world: World) -> None:
    client, (engine,) = world.client(), world.engines(1, long)
    world.run(50)
    client.open(1)
    assert world.ask("load")["idle"] == ()
    world.run(7)
    engine.finish()
    world.run(3)
    assert world.ask("load")["idle"] == pytest.approx([3], abs=0.1)
    assert world.ask("scale", n=0, idle=4) == 1
    assert world.stopped() == []


def test_how_many_tasks_wait(world: World) -> None:
    client = world.client()
    client.open(20)
    assert world.ask("load") == {"engines": 0, "waiting": 20, "idle": ()}
    world.engines(2, long)
    assert world.ask("load") == {"engines": 2, "waiting": 18, "idle": ()}
    command(world.boss, "boss-1", 0)
    command(world.boss, "boss-2", 0)
    assert world.ask("load")["waiting"] == 18


# -- more, where the launcher sees to it -----------------------------------------------------------


def test_a_launcher_that_grows_is_told_how_many_are_missing(growing: World) -> None:
    growing.engines(2)
    assert growing.ask("scale", n=5) == 5
    assert growing.ask("scale", n=1) == 1
    assert growing.said("scaled") == [
        {"event": "scaled", "n": 5, "missing": 3},
        {"event": "scaled", "n": 1, "missing": 0},
    ]
    assert [order.what for order in growing.nanny.hear(Order)] == ["stop"]


def test_such_a_launcher_needs_no_nanny(growing: World) -> None:
    growing.nanny.vanish()
    growing.run(0.1)
    assert growing.ask("scale", n=3) == 3
    assert growing.said("scaled") == [{"event": "scaled", "n": 3, "missing": 3}]


def test_it_is_told_of_each_arrival_once(growing: World) -> None:
    growing.engine("a")
    growing.engine("b", wanted=4)  # known to an earlier controller
    growing.kill(growing.engines(1)[0], replaced=True)
    growing.engine("c", wanted=1, replaces={"uuid": "e0", "cause": "killed", "output": ""})
    assert len(growing.said("arrived")) == 2


def test_others_are_not(world: World) -> None:
    world.engines(2)
    world.ask("scale", n=3)
    assert world.said("arrived") == []
    assert world.said("scaled") == [{"event": "scaled", "n": 3, "before": 2}]
    assert [(order.what, order.number) for order in world.nanny.hear(Order)] == [("start", 1)]


@pytest.mark.parametrize("body", [{}, {"n": -1}, {"n": "x"}, {"n": 1, "idle": "x"}, {"n": 10**9}])
def test_bad_questions(world: World, body: dict[str, Any]) -> None:
    assert world.ask("scale", **body).ename == "WireError"


def test_without_a_nanny_nobody_starts_engines(world: World) -> None:
    world.nanny.vanish()
    world.run(0.1)
    failure = world.ask("scale", n=1)
    assert (failure.ename, "ipcluster engines" in failure.evalue) == ("LaunchError", True)
    assert world.said("scaled") == []
