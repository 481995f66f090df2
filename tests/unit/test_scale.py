"""Very many engines: work of the controller and its clients is counted, not timed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from twisted.internet.task import Clock

from benchmarks.scale.simulated import ECHO, Simulation
from ipython1.kernel.client.enginetable import EngineTable
from ipython1.kernel.client.forgetting import FORGET_DELAY, Forgetting
from ipython1.kernel.controller import dispatch, router
from ipython1.kernel.controller.dependencies import Dependencies, Ended
from ipython1.kernel.controller.registry import Registry
from ipython1.kernel.wire.codec import decode, decode_as, unpack_map
from ipython1.kernel.wire.records import Engines, Forget, Record, Result, Submit
from ipython1.kernel.wire.rounds import Round

N = 300


@pytest.fixture(scope="module")
def world() -> Any:
    """All engines are there."""
    world = Simulation(N)
    world.register(0.0)
    yield world
    world.controller.stop()


def rows(tables: list[bytes]) -> Counter[str]:
    """How many rows clients were told, of each kind."""
    counted: Counter[str] = Counter()
    for raw in tables:
        counted.update({name: len(what) for name, what in unpack_map(decode_as(Engines, raw).table).items()})
    return counted


def test_each_engine_that_comes_is_told_once() -> None:
    world = Simulation(N)
    found = world.register(0.01)
    world.controller.stop()
    assert found["table bytes"] < N * 150  # a row an engine, not a table
    assert found["notices"] <= found["tables"] <= N
    assert world.notices[-1] == {"event": "engines", "ids": list(range(N))}


def test_a_thousand_come_in_few_turns() -> None:
    world = Simulation(N)
    found = world.register(0.0)
    world.controller.stop()
    assert (found["tables"], found["notices"]) == (1, 1)


def test_those_that_die_are_told_once_each() -> None:
    world = Simulation(N)
    world.register(0.0)
    found = world.deaths(1)
    world.controller.stop()
    assert found["table bytes"] < N // 2 * 1000  # the row, and the last words of its failure


def test_a_broadcast_is_one_record_for_each_engine_without_the_others(world: Simulation) -> None:
    ids = tuple(engine.id for engine in world.engines)
    world.hear([world.client.say(Submit("c" * 12 + "-1", ids, "apply", "l", -1, 0.0, b"", (ECHO,)))])
    batches = [batch for engine in world.engines for batch in engine.batches]
    assert len(batches) == N
    raws = {raw for engine in world.engines for raw in engine.read()}
    assert [len(raw) - len(ECHO) < 60 for raw in raws] == [True]  # encoded once, and short
    now = 1.0
    world.hear([e.say(Result("c" * 12 + "-1", e.id, "apply", "ok", now, now, 0, ())) for e in world.engines])
    assert sum(type(decode(raw)) is Result for raw in world.client.read()) == N
    world.hear([world.client.say(Forget(("c" * 12 + "-1",), ids))])
    assert {decode(raw) for engine in world.engines for raw in engine.read()} == {
        Forget(("c" * 12 + "-1",), ())
    }
    world.let_pass()


def test_acknowledging_goes_with_the_next_record(world: Simulation) -> None:
    ids = tuple(engine.id for engine in world.engines)
    id = "c" * 12 + "-2"
    world.hear([world.client.say(Submit(id, ids, "apply", "l", -1, 0.0, b"", ()))])
    for engine in world.engines:
        engine.read()
    world.hear([e.say(Result(id, e.id, "apply", "ok", 1.0, 1.0, 0, ())) for e in world.engines])
    world.client.read()
    world.hear([world.client.say(Forget((id,), ids))], FORGET_DELAY)
    assert sum(len(engine.batches) for engine in world.engines) == N  # not one to acknowledge, one to forget
    world.let_pass()


def test_a_command_sent_again_names_to_each_only_its_own_process() -> None:
    few = Submit("c-1", tuple(range(router.FEW)), "apply", "", -1, 0.0, b"", (), ("u",) * router.FEW)
    assert router._shortened(few, b"raw")(3) == b"raw"
    uuids = tuple(f"u{i}" for i in range(N))
    record = router._shortened(Submit("c-1", tuple(range(N)), "apply", "", -1, 0.0, b"", (), uuids), b"raw")
    again = decode_as(Submit, record(7))
    assert (again.targets, again.again) == ((7,), ("u7",))


def test_sessions_share_their_timers(world: Simulation) -> None:
    waiting = [call for call in world.clock._calls if call.active()]
    before = len(waiting)
    ids = tuple(engine.id for engine in world.engines)
    with world.timed():
        sink, batch = world.client.say(Submit("c" * 12 + "-3", ids, "apply", "l", -1, 0.0, b"", ()))
        sink.batch_received(batch)
    assert len([call for call in world.clock._calls if call.active()]) - before <= 3
    world.let_pass()
    for engine in world.engines:
        engine.read()
    world.hear([e.say(Result("c" * 12 + "-3", e.id, "apply", "ok", 1.0, 1.0, 0, ())) for e in world.engines])
    assert world.client.read()
    world.let_pass()


def test_what_a_client_has_of_a_broadcast_it_says_in_one_record() -> None:
    clock, sent = Clock(), list[Record]()
    forgetting = Forgetting(clock, "c", sent.append)
    for engine in range(N):
        forgetting.plan(Result("c-1", engine, "apply", "ok", 1.0, 1.0, 0, ()))
    forgetting.plan(Result("c-2", 5, "apply", "ok", 1.0, 1.0, 0, ()))
    clock.advance(FORGET_DELAY)
    others = tuple(engine for engine in range(N) if engine != 5)
    assert sent == [Forget(("c-1",), others), Forget(("c-1", "c-2"), (5,))]


def test_engines_that_have_nothing_to_do_are_not_each_a_look_at_all(
    world: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    free = dispatch.Dispatcher._free

    def counted(self: dispatch.Dispatcher) -> list[int]:
        looks.append(1)
        return free(self)

    monkeypatch.setattr(dispatch.Dispatcher, "_free", counted)
    world.map(50)
    assert len(looks) < N


def test_a_usage_report_looks_at_the_engines_of_its_nanny_only() -> None:
    registry = Registry(lambda: 1.0, lambda id: None)
    for number in range(10):
        registry.register(
            uuid=f"u{number}", wanted=-1, host="h", pid=1, nanny=f"n{number % 2}", send=lambda raw: None
        )
    assert [engine.id for engine in registry.of_nanny("n1")] == [1, 3, 5, 7, 9]
    registry.died("u3", replaced=False)
    registry.died("u5", replaced=True)
    assert [engine.id for engine in registry.of_nanny("n1")] == [1, 5, 7, 9]
    assert registry.of_nanny("n2") == []
    assert [engine.id for engine in registry] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    again = registry.register(uuid="new", wanted=-1, host="h", pid=1, nanny="n0", send=lambda raw: None)
    assert again.id == 3


def test_the_death_of_an_engine_touches_only_what_it_had() -> None:
    dependencies = Dependencies(lambda id: None, lambda: False, lambda: [])
    for index in range(10):
        dependencies.remember(("b", index), Ended(True, index % 2))
    dependencies.remember(("b", 0), Ended(True, 1))  # ran elsewhere since
    dependencies.engine_died(0)
    assert [dependencies._end(("b", index)) for index in (0, 1, 2)] == [
        Ended(True, 1),
        Ended(True, 1),
        Ended(True, -2),
    ]


def test_a_table_takes_changes() -> None:
    table, heard = EngineTable(), list[int]()
    table.first({"engines": ({"id": 0}, {"id": 2}), "failures": ((1, "old", ""),)})
    table.watch(lambda: heard.append(len(table.engines)))
    table.take({"changed": ({"id": 1}, {"id": 2, "state": "away"}), "gone": (), "failures": ()})
    assert table.engines == ({"id": 0}, {"id": 1}, {"id": 2, "state": "away"})
    table.take({"changed": (), "gone": (0, 7), "failures": ((1, "old", ""), (2, "new", "text"))})
    assert [row["id"] for row in table.engines] == [1, 2]
    assert table.start_failures == ["new\ntext"]
    assert heard == [3, 2]


def test_rounds() -> None:
    clock, done = Clock(), list[str]()
    round = Round(clock, 1.0)
    round.add(lambda: done.append("a"))
    clock.advance(0.1)
    round.add(lambda: done.append("b"))
    clock.advance(0.5)
    round.add(lambda: done.append("c"))
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0.4)
    assert done == ["a", "b"]
    clock.advance(0.6)
    assert done == ["a", "b", "c"]
    assert not clock.getDelayedCalls()
    round.add(lambda: done.append("d"))
    round.stop()
    clock.advance(2)
    assert done == ["a", "b", "c"]


def test_a_round_that_fails_in_one_does_the_others(logged_errors: Any) -> None:
    clock, done = Clock(), list[str]()
    round = Round(clock, 0.0)
    round.add(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    round.add(lambda: done.append("the other"))
    clock.advance(0)
    assert done == ["the other"]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1
