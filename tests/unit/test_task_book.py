"""The task book among simulated clients and engines: one test for each promise."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipython1.kernel.controller.batches import DEATHS_LIMIT
from ipython1.kernel.controller.dependencies import ENDS_KEPT, Ended
from ipython1.kernel.controller.hands import AHEAD_MOST
from ipython1.kernel.controller.scheduler import FIFO, LIFO, Random, Ready, Weighted
from ipython1.kernel.controller.service import CLIENT_GRACE, RETURN_GRACE
from ipython1.kernel.wire.codec import decode, encode, pack
from ipython1.kernel.wire.records import (
    Answer,
    Ask,
    Batch,
    BlobRef,
    Chunk,
    Event,
    Grant,
    Outcomes,
    Result,
    Seek,
    Submit,
    Taken,
    Withdraw,
    Work,
)

from ..conftest import LoggedErrors
from .task_peers import FOREVER, Key, Plan, TaskUser, TaskWorld, failure


@pytest.fixture
def world() -> Iterator[TaskWorld]:
    world = TaskWorld()
    yield world
    world.close()


@pytest.fixture
def make() -> Iterator[Callable[..., TaskWorld]]:
    worlds: list[TaskWorld] = []

    def make(*args: Any, **kw: Any) -> TaskWorld:
        worlds.append(TaskWorld(*args, **kw))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def never(key: Key, attempt: int) -> Plan:
    return "ok", FOREVER


def fails(key: Key, attempt: int) -> Plan:
    return "error", 0.001


def rejects(key: Key, attempt: int) -> Plan:
    return "rejected", 0.001


def longest(**seconds: float) -> Callable[[Key, int], Plan]:
    """Tasks that run so long, by the name of their client."""
    return lambda key, attempt: ("ok", seconds[key[0].partition("-")[0]])


# -- who goes first, and where ----------------------------------------------------------------


def test_tasks_run_once_each_and_nothing_is_left(world: TaskWorld) -> None:
    client, engines = world.client(), world.engines(3)
    batch = client.open(100)
    world.run_until(lambda: len(client.ends) == 100)
    assert client.all_ends(batch) == {"ok": 100}
    started = sorted(itertools.chain(*[engine.started for engine in engines]))
    assert started == [(batch, i) for i in range(100)]
    client.send(Taken(batch, tuple(range(100)), True))
    world.assert_empty()
    assert not any(engine.done or engine.heads for engine in engines)


def test_two_clients_get_fair_shares(world: TaskWorld) -> None:
    clients = [world.client("c1"), world.client("c2")]
    world.engines(2, longest(c1=0.004, c2=0.004))
    for client in clients:
        client.open(500)
    for count in (100, 200, 300):
        world.run_until(lambda count=count: sum(len(client.ends) for client in clients) >= count)  # type: ignore[misc]
        assert abs(len(clients[0].ends) - len(clients[1].ends)) <= 20
    world.run_until(lambda: sum(len(client.ends) for client in clients) == 1000)


def test_a_client_that_sends_task_by_task_does_not_shut_out_one_with_long_tasks(world: TaskWorld) -> None:
    greedy, other = world.client("c1"), world.client("c2")
    world.engine("e", longest(c1=0.001, c2=0.05))
    slow = other.open(10)
    batch = greedy.open()
    sent = 0
    for _ in range(3000):
        while sent < len(greedy.ends) + 3:
            greedy.work(batch, [sent])
            sent += 1
        world.run(0.001)
        if len(other.ends) == 10:
            break
    assert other.all_ends(slow) == {"ok": 10}


def test_a_higher_priority_goes_first(world: TaskWorld) -> None:
    client = world.client()
    batches = {priority: client.open(20, priority=priority) for priority in (0, 5, -1)}
    engine = world.engine("e", never)
    while engine.queue:
        engine.finish()
        world.run()
    order = [key[0] for key in engine.started]
    assert order == sorted(order, key=[batches[5], batches[0], batches[-1]].index)


@pytest.mark.parametrize(("scheduler", "newest_first"), [(FIFO, False), (LIFO, True)])
def test_fifo_and_lifo(make: Callable[..., TaskWorld], scheduler: Any, newest_first: bool) -> None:
    world = make(scheduler)
    clients = [world.client("c1"), world.client("c2")]
    batches = [clients[i % 2].open(5) for i in range(6)]
    engine = world.engine("e", never)
    while engine.queue:
        engine.finish()
        world.run()
    order = list(dict.fromkeys(key[0] for key in engine.started))
    assert order == (batches[::-1] if newest_first else batches)


@pytest.mark.parametrize("scheduler", [Random, Weighted])
def test_random_schedulers_use_all_engines(make: Callable[..., TaskWorld], scheduler: Any) -> None:
    world = make(lambda: scheduler(random.Random(1)))
    client, engines = world.client(), world.engines(4)
    batch = client.open(400)
    world.run_until(lambda: len(client.ends) == 400)
    assert client.all_ends(batch) == {"ok": 400}
    assert all(len(engine.runs) > 40 for engine in engines)


@pytest.mark.parametrize(
    ("seconds", "least", "most"), [(0.0001, 100, AHEAD_MOST), (0.001, 15, 21), (1.0, 2, 2)]
)
def test_how_much_is_handed_ahead_goes_by_the_length_of_tasks(
    world: TaskWorld, seconds: float, least: int, most: int
) -> None:
    client, engine = world.client(), world.engine("e", longest(c1=seconds))
    client.open(2000)
    world.run_until(lambda: len(client.ends) > 60, limit=1000)
    assert least <= len(engine.queue) <= most


def test_the_next_batch_of_a_label_is_expected_to_take_as_long(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", longest(c1=1.0))
    first = client.open(1, label="slow")
    world.run_until(lambda: client.all_ends(first) == {"ok": 1})
    for _ in range(10):
        client.open(1, label="slow")
    world.run()
    assert len(engine.queue) == 2


def test_the_end_waits_for_one_long_task_and_no_longer(world: TaskWorld) -> None:
    def plan(key: Key, attempt: int) -> Plan:
        return "ok", 10.0 if key[1] == 100 else 0.001

    client, engines = world.client(), world.engines(4, plan)
    batch = client.open(1001)
    spent = world.run_until(lambda: len(client.ends) == 1001)
    assert spent < 10.2
    assert client.all_ends(batch) == {"ok": 1001}
    assert sum(len(engine.runs) for engine in engines) == 1001
    assert sum(end[0][0] == "ok" for end in client.ends.values()) == 1001


@pytest.mark.parametrize("length", [0.0005, 0.001, 0.1])
def test_what_waits_behind_a_long_task_is_called_back_soon(world: TaskWorld, length: float) -> None:
    def plan(key: Key, attempt: int) -> Plan:
        return "ok", 100.0 if key[1] == 0 else length

    client, engines = world.client(), world.engines(2, plan)
    client.open(4)
    spent = world.run_until(lambda: len(client.ends) == 3)
    assert spent < 3 * length + 0.1
    assert engines[0].running == (next(iter(client.ends))[0], 0)


def test_what_is_called_back_does_not_go_to_who_rejected_it(world: TaskWorld) -> None:
    client = world.client()
    picky = world.engine("p", rejects)
    busy = world.engine("b", never)
    client.open(3)
    world.run(1.0)
    assert len(busy.queue) >= 2
    heard = len(busy.heard)
    world.run(10.0)
    assert len(busy.heard) == heard
    assert len(picky.runs) <= 3


def test_an_engine_with_commands_gets_one_task_at_a_time_behind_them(world: TaskWorld) -> None:
    client, mec = world.client(), world.multiengine()
    engines = world.engines(2)
    mec.send(Submit("m-1", (0,), "execute", "", -1, 0.0, b"", ()))
    batch = client.open(1000)
    assert len(engines[0].queue) == 1
    world.run_until(lambda: len(client.ends) == 1000)  # even this one is called back in the end
    assert client.all_ends(batch) == {"ok": 1000}
    assert not engines[0].runs
    engines[0].reply()
    assert [result.id for result in mec.hear(Result)] == ["m-1"]
    client.open(2)
    world.run(1.0)
    assert len(client.ends) == 1002
    assert engines[0].runs


def test_two_engines_with_commands_do_the_tasks_all_the_same(world: TaskWorld) -> None:
    client, mec = world.client(), world.multiengine()
    engines = world.engines(2)
    batch = client.open(100)
    for i in range(50):
        mec.send(Submit(f"m-{i}", (0, 1), "execute", "", -1, 0.0, b"", ()))
    for _ in range(50):
        for engine in engines:
            engine.reply()
        world.run(0.001)
    assert world.run_until(lambda: len(client.ends) == 100) < 1.0
    assert client.all_ends(batch) == {"ok": 100}
    assert len(mec.hear(Result)) == 100


# -- attempts that fail -----------------------------------------------------------------------


def test_retries(world: TaskWorld) -> None:
    client = world.client()
    engines = world.engines(2, lambda key, attempt: ("ok" if attempt > key[1] else "error", 0.001))
    batch = client.open(5, retries=2)
    world.run_until(lambda: len(client.ends) == 5)
    assert [client.end(batch, i) for i in range(5)] == ["ok", "ok", "ok", "ValueError", "ValueError"]
    assert sum(len(engine.runs) for engine in engines) == 1 + 2 + 3 + 3 + 3
    client.send(Taken(batch, tuple(range(5)), True))
    world.assert_empty()


def test_events_of_an_attempt_that_was_given_up_are_not_passed_on(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    client.open(1, retries=1)
    (key, attempt), id = engine.queue[0], engine.id
    engine.print("one")
    engine.finish("error")
    engine.connection.send(Event(f"{key[0]}#0", id, 1, "stdout", "late", (), attempt))
    world.run()
    engine.print("two")
    assert [(event.text, event.attempt) for event in client.hear(Event)] == [("one", 1), ("two", 2)]


def test_an_idle_engine_gets_what_the_other_rejects(world: TaskWorld) -> None:
    client = world.client()
    picky, other = world.engine("p", rejects), world.engine("o")
    batch = client.open(1)
    world.run(1.0)
    assert client.ends == {(batch, 0): [("ok", other.id)]}
    assert len(picky.runs) == 1
    many = client.open(300)
    world.run_until(lambda: len(client.ends) == 301)
    assert client.all_ends(many) == {"ok": 300}
    client.send(Taken(batch, (0,), True), Taken(many, tuple(range(300)), True))
    world.assert_empty()


def test_rejected_by_all_ends_at_once_without_retries(world: TaskWorld) -> None:
    client, engines = world.client(), world.engines(3, rejects)
    batch = client.open(1, retries=5)
    spent = world.run_until(lambda: client.ends)
    assert spent < 0.1
    assert client.message(batch) == "said so"
    assert [len(engine.runs) for engine in engines] == [1, 1, 1]


def test_rejected_by_all_may_wait_for_a_better_engine(world: TaskWorld) -> None:
    client = world.client()
    world.engines(2, rejects)
    batch = client.open(3, wait=5.0)
    world.run(4.0)
    assert not client.ends
    world.engine("better")
    world.run(0.1)
    assert client.all_ends(batch) == {"ok": 3}


def test_rejected_by_all_waits_only_so_long_each(world: TaskWorld) -> None:
    client, engines = world.client(), world.engines(2, rejects)
    batch = client.open(1, wait=5.0)
    world.run(3.0)
    client.work(batch, [1])
    assert 1.9 < world.run_until(lambda: (batch, 0) in client.ends) < 2.1
    assert 2.9 < world.run_until(lambda: (batch, 1) in client.ends) < 3.1
    world.run(10.0)
    client.work(batch, [2])
    assert 4.9 < world.run_until(lambda: (batch, 2) in client.ends) < 5.1
    assert client.all_ends(batch) == {"TaskTimeout": 3}
    assert "an engine that takes it" in client.message(batch)
    assert [len(engine.runs) for engine in engines] == [3, 3]
    client.send(Taken(batch, (0, 1, 2), True))
    world.assert_empty()


def test_the_time_to_wait_is_not_for_tasks_that_are_only_queued(world: TaskWorld) -> None:
    client = world.client()
    world.engine("e", longest(c1=1.0))
    batch = client.open(10, wait=2.0)
    world.run(11.0)
    assert client.all_ends(batch) == {"ok": 10}


def test_changed_properties_make_an_engine_worth_asking_again(world: TaskWorld) -> None:
    client = world.client()
    willing: list[bool] = []
    engine = world.engine("e", lambda key, attempt: ("ok" if willing else "rejected", 0.001))
    batch = client.open(1, wait=100.0)
    world.run(5.0)
    assert len(engine.runs) == 1
    willing.append(True)
    mec = world.multiengine()
    mec.send(Submit("m-1", (0,), "set_properties", "", -1, 0.0, b"", ()))
    engine.reply()
    world.run(0.1)
    assert client.end(batch) == "ok"


def test_the_last_engine_that_could_take_it_goes(world: TaskWorld) -> None:
    client = world.client()
    world.engine("p", rejects)
    other = world.engine("o", never)
    batch = client.open(3)
    world.run(1.0)
    assert not client.ends
    assert len(other.queue) >= 2
    world.kill(other)
    world.run(1.0)
    assert client.all_ends(batch) == {"TaskRejected": 3}


# -- dependencies -----------------------------------------------------------------------------


def depends(client: TaskUser, **rules: Any) -> str:
    return client.open(1, **rules)


@pytest.mark.parametrize(
    ("when", "ended", "runs"),
    [
        ("success", "ok", True),
        ("success", "error", False),
        ("failure", "ok", False),
        ("failure", "error", True),
        ("completion", "ok", True),
        ("completion", "error", True),
    ],
)
@pytest.mark.parametrize("taken", ["before", "after", "never", "closed"])
def test_after_one_task(world: TaskWorld, when: str, ended: str, runs: bool, taken: str) -> None:
    client, engine = world.client(), world.engine("e", never)
    first = client.open(1)
    if taken != "after":
        second = depends(client, after=[(first, 0)], when=when)
        assert second not in {key[0] for key, _ in engine.queue}
        assert world.book.status.counts()["blocked"] == 1
    engine.finish(ended)
    world.run()
    if taken != "never":
        client.send(Taken(first, (0,), taken == "closed"))
    if taken == "after":
        second = depends(client, after=[(first, 0)], when=when)
    if runs:
        assert engine.running == (second, 0)
        engine.finish()
        world.run()
        assert client.end(second) == "ok"
    else:
        assert client.end(second) == "ImpossibleDependency"
        assert f"{first}#0 did not" in client.message(second)


def test_after_several_all_or_any(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    first = client.open(3)
    keys = [(first, i) for i in range(3)]
    every = depends(client, after=keys)
    anyone = depends(client, after=keys, all=False)
    one_fails = depends(client, after=keys, all=False, when="failure")
    engine.finish()
    world.run()
    assert {key[0] for key, _ in engine.queue} == {first, anyone}
    engine.finish()
    engine.finish()
    world.run()
    assert {key[0] for key, _ in engine.queue} == {every, anyone}
    assert client.end(one_fails) == "ImpossibleDependency"


def test_any_is_impossible_only_when_all_are(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    first = client.open(2)
    anyone = depends(client, after=[(first, 0), (first, 1)], all=False)
    every = depends(client, after=[(first, 0), (first, 1)])
    engine.finish("error")
    world.run()
    assert (anyone, 0) not in client.ends
    assert client.end(every) == "ImpossibleDependency"
    engine.finish("error")
    world.run()
    assert client.end(anyone) == "ImpossibleDependency"


def test_follow_goes_to_the_same_engine(world: TaskWorld) -> None:
    client, engines = world.client(), world.engines(3, never)
    first = client.open(3)
    where = {engine.running: engine for engine in engines}
    second = client.open(10, follow=[(first, 1)])
    apart = client.open(1, follow=[(first, 0), (first, 1)])
    either = client.open(10, follow=[(first, 0), (first, 1)], all=False)
    for engine in engines:
        engine.finish()
        world.run()
    for _ in range(20):
        for engine in engines:
            if engine.queue:
                engine.finish()
        world.run()
    assert {key for key in where[first, 1].started if key[0] == second} == {(second, i) for i in range(10)}
    assert client.all_ends(second) == {"ok": 10}
    assert client.end(apart) == "ImpossibleDependency"
    assert not any(key[0] == either for key in where[first, 2].started)
    assert client.all_ends(either) == {"ok": 10}


def test_follow_what_failed_is_impossible(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", fails)
    first = client.open(1)
    second = client.open(1, follow=[(first, 0)])
    world.run(1.0)
    assert client.end(second) == "ImpossibleDependency"
    assert len(engine.runs) == 1


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_follow_where_the_engine_is_gone_is_impossible(world: TaskWorld, replaced: bool, taken: bool) -> None:
    client = world.client()
    victim = world.engine("v", never)
    first = client.open(1)
    victim.finish()
    world.run()
    blocker = client.open(1)
    waiting = client.open(2, follow=[(first, 0)])
    if taken:
        client.send(Taken(first, (0,), False))
    world.engine("other")
    world.kill(victim, replaced)
    assert client.all_ends(waiting) == {"ImpossibleDependency": 2}
    late = client.open(1, follow=[(first, 0)])
    client.work(waiting, [2])
    assert client.end(late) == "ImpossibleDependency"
    assert client.end(waiting, 2) == "ImpossibleDependency"
    world.run(1.0)
    assert client.end(blocker) == "ok"


def test_a_scheduler_that_raises_does_not_end_dependencies(
    make: Callable[..., TaskWorld], logged_errors: LoggedErrors
) -> None:
    class Moody(FIFO):
        def add(self, batch: Ready) -> None:
            if batch.id == "c1-2" and batch.waiting:
                raise KeyError(batch.id)
            super().add(batch)

    world = make(Moody)
    client, engine = world.client(), world.engine("e", never)
    client.open(1)
    client.open(1, after=[("c1-1", 0)])  # the scheduler does not take it
    engine.finish()
    world.run()
    assert len(logged_errors.flush(KeyError)) == 1
    first = client.open(1)
    second = client.open(1, after=[(first, 0)])
    assert [key for key, _ in engine.queue] == [(first, 0)]
    engine.finish()
    world.run()
    assert engine.running == (second, 0)


@pytest.mark.parametrize("grace_over", [True, False])
def test_what_is_not_known_is_impossible_at_once(make: Callable[..., TaskWorld], grace_over: bool) -> None:
    world = make(grace_over=grace_over)
    client = world.client()
    itself = client.open(1, after=[("c1-1", 0)])
    circle = client.open(1, after=[("c1-3", 0)])
    back = client.open(1, after=[(circle, 0)])
    never_sent = client.open(1, follow=[(client.open(1), 7)])
    for batch in (itself, circle, back, never_sent):
        assert client.end(batch) == "ImpossibleDependency"
    assert "not known here" in client.message(itself)


def test_a_task_of_another_client_may_come_after_a_restart(make: Callable[..., TaskWorld]) -> None:
    world = make(grace_over=False)
    client, engine = world.client(), world.engine("e")
    batch = client.open(1, after=[("other-1", 0)])
    lost = client.open(1, after=[("gone-1", 0)])
    world.run(1.0)
    assert not client.ends
    TaskUser(world, "other").open(1)
    world.run(1.0)
    assert client.end(batch) == "ok"
    world.run(RETURN_GRACE)
    assert client.end(lost) == "ImpossibleDependency"
    assert len(engine.runs) == 2


def test_what_a_client_knows_of_ended_tasks_counts(world: TaskWorld) -> None:
    client = world.client()
    engines = world.engines(2)
    batch = client.open(
        3, after=[("c1-0", 5)], follow=[("c1-0", 6)], known=[("c1-0", 5, True, 0), ("c1-0", 6, True, 1)]
    )
    world.run(1.0)
    assert client.all_ends(batch) == {"ok": 3}
    assert [len(engine.runs) for engine in engines] == [0, 3]


def test_a_long_chain_of_dependent_batches_fails_whole(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batches = [client.open(1)]
    for _ in range(1500):
        batches.append(client.open(1, after=[(batches[-1], 0)]))
    engine.finish("error")
    world.run()
    assert [client.end(batch) for batch in batches] == ["ValueError"] + ["ImpossibleDependency"] * 1500


def test_a_long_chain_of_dependent_batches_runs(world: TaskWorld) -> None:
    client, engines = world.client(), world.engines(2)
    batches = [client.open(1)]
    for _ in range(300):
        batches.append(client.open(1, after=[(batches[-1], 0)]))
    world.run_until(lambda: len(client.ends) == 301)
    order = sorted((run for engine in engines for run in engine.runs), key=lambda run: run[2])
    assert [key[0] for key, _, _ in order] == batches


def test_waiting_for_dependencies_ends_in_time(world: TaskWorld) -> None:
    client = world.client()
    world.engine("e", never)
    first = client.open(1)
    second = client.open(5, after=[(first, 0)], wait=2.0)
    third = client.open(1, after=[(second, 0)])
    assert 1.9 < world.run_until(lambda: client.ends) < 2.1
    world.run()
    assert client.all_ends(second) == {"TaskTimeout": 5}
    assert client.end(third) == "ImpossibleDependency"
    client.work(second, [5])
    assert client.end(second, 5) == "TaskTimeout"


def test_an_engine_that_is_idle_gets_what_another_one_has_unblocked(world: TaskWorld) -> None:
    client = world.client()
    engines = world.engines(4, lambda key, attempt: ("ok", 0.001 if key[0] == "c1-1" else 1.0))
    first = client.open(1)
    client.open(8, after=[(first, 0)])
    assert world.run_until(lambda: len(client.ends) == 9) < 2.5
    assert all(len(engine.runs) >= 2 for engine in engines)


def test_ends_of_tasks_are_remembered_within_bounds(world: TaskWorld) -> None:
    dependencies = world.book._dependencies
    for i in range(ENDS_KEPT + 10):
        dependencies.remember(("c1-1", i), Ended(True, 0))
    assert len(dependencies._ends) == ENDS_KEPT
    assert sum(map(len, dependencies._at.values())) == ENDS_KEPT


# -- not wanted any more ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["abort", "interrupt"])
def test_withdraw_what_is_ready_handed_and_running(world: TaskWorld, how: str) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(20)
    assert 2 <= len(engine.queue) < 20
    client.send(Withdraw(batch, (19, 1, 0), how))
    world.run()
    assert client.end(batch, 19) == client.end(batch, 1) == "TaskAborted"
    if how == "interrupt":
        assert client.end(batch, 0) == "KeyboardInterrupt"
    else:
        assert (batch, 0) not in client.ends
    client.send(Withdraw(batch, (), how))
    world.run()
    if engine.running:
        engine.finish()
        world.run()
        assert client.end(batch, 0) == "ok"
    assert len(client.ends) == 20
    client.send(Taken(batch, tuple(range(20)), True))
    world.assert_empty()


def test_withdraw_what_has_just_ended_changes_nothing(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(2)
    engine.finish()
    client.send(
        Withdraw(batch, (0,), "interrupt"), Withdraw(batch, (0,), "abort"), Withdraw("c1-9", (), "abort")
    )
    assert client.end(batch, 0) == "ok"
    assert engine.running == (batch, 1)
    assert not engine.hear(Withdraw)


@pytest.mark.parametrize("ended", ["error", "rejected"])
def test_what_was_withdrawn_is_not_tried_again(world: TaskWorld, ended: str) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(1, retries=3)
    other = world.engine("o", never)
    client.send(Withdraw(batch, (0,), "abort"))
    engine.finish(ended)
    world.run()
    assert client.end(batch) == ("ValueError" if ended == "error" else "TaskAborted")
    assert not other.runs


def test_withdraw_while_it_is_called_back_or_its_engine_dies(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(4)
    idle = world.engine("idle", never)
    assert [record.how for record in engine.hear(Withdraw)] == ["recall"]
    running, other = engine.running, idle.running
    engine.dialer.cut()
    client.connection.send(Withdraw(batch, (), "abort"))
    world.run(1.0)
    world.kill(engine)
    world.run(1.0)
    assert running
    assert other
    assert client.end(*running) == "TaskAborted"
    idle.finish()
    world.run()
    assert len(client.ends) == 4
    assert client.end(*other) == "ok"
    assert not idle.queue


def test_withdrawing_one_by_one_is_not_slow(world: TaskWorld) -> None:
    """A hundred thousand times the length of the queue would take minutes."""
    client = world.client()
    batch = client.open(20_000)
    for index in range(20_000):
        client.connection.send(Withdraw(batch, (index,), "abort"))
    world.run()
    assert client.all_ends(batch) == {"TaskAborted": 20_000}


# -- engines die and come back ----------------------------------------------------------------


def test_only_the_running_task_counts_a_death_and_the_third_ends_it(world: TaskWorld) -> None:
    client = world.client()
    batch = ""
    for death in range(DEATHS_LIMIT):
        engine = world.engine(f"e{death}", never)
        batch = batch or client.open(3)
        assert engine.queue[0] == ((batch, 0), death + 1)
        assert len(engine.queue) == 3
        assert not client.ends
        world.kill(engine)
    assert client.end(batch, 0) == "EngineDied"
    assert "killed" in client.message(batch, 0)
    world.engine("good")
    world.run(1.0)
    assert [client.end(batch, i) for i in (1, 2)] == ["ok", "ok"]


def test_the_nanny_says_what_ran(world: TaskWorld) -> None:
    client = world.client()
    batch = ""
    for death in range(DEATHS_LIMIT):
        engine = world.engine(f"e{death}", never)
        batch = batch or client.open(2)
        world.kill(engine, running=f"{batch}#1")
    assert client.end(batch, 1) == "EngineDied"
    assert (batch, 0) not in client.ends


def test_an_engine_dies_while_tasks_are_called_back_from_it(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(6)
    engine.connection._receive = lambda record, raw: None  # it hears nothing more
    engine.connection._session._receive = lambda raw: None
    other = world.engine("o")
    world.kill(engine)
    world.run(1.0)
    assert client.all_ends(batch) == {"ok": 6}
    assert sorted(other.started) == [(batch, i) for i in range(6)]


def test_an_engine_that_is_away_gets_nothing_new_and_goes_on_when_it_is_back(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(2)
    engine.connection._delay = 3.0
    engine.dialer.cut()
    later = client.open(5)
    before = len(engine.heard)
    engine.finish()
    world.run(0.04)
    assert len(engine.heard) == before
    world.run(10.0)
    while engine.queue:
        engine.finish()
        world.run()
    assert client.all_ends(batch) == {"ok": 2}
    assert client.all_ends(later) == {"ok": 5}
    assert len(engine.runs) == 7


def test_the_results_of_a_dead_engine_that_are_asked_for_again(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(3)
    for _ in range(3):
        engine.finish()
    world.run()
    client.work(batch, [0])  # while it lives: told again
    assert client.ends[batch, 0] == [("ok", 0)] * 2
    world.kill(engine)
    client.work(batch, [1])
    client.send(Seek(batch, (2,)))
    assert client.ends[batch, 2][1:] == [("unknown", -1)]
    assert len(client.ends[batch, 1]) == 1
    other = world.engine("o")
    world.run(1.0)
    assert other.started == [(batch, 1)]
    assert client.ends[batch, 1] == [("ok", 0), ("ok", other.id)]
    client.send(Taken(batch, (0, 1, 2), True))
    world.assert_empty()


def test_an_engine_dies_while_it_is_asked_again(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(1)
    engine.finish()
    world.run()
    engine.stop()
    client.work(batch, [0])
    client.send(Seek(batch, (0,)))  # somebody else does too: it is still to run again
    world.kill(engine)
    other = world.engine("o")
    world.run(1.0)
    assert other.started == [(batch, 0)]
    assert client.ends[batch, 0][-1] == ("ok", other.id)


# -- controllers die --------------------------------------------------------------------------


class Restart:
    """Two engines, six tasks: 0 runs on the first engine, 1 waits there; 2 and 3 have ended on the
    second one, well and badly; 4 and 5 are known to nobody."""

    def __init__(self, world: TaskWorld) -> None:
        self.world = world
        self.client = world.client()
        self.first = world.engine("e0", never)
        self.batch = self.client.open(2, retries=1)
        self.second = world.engine("e1", never)
        self.first.queue.clear()
        self.second.queue.clear()
        for engine in (self.first, self.second):
            engine.heads.add(self.batch)
            engine.runs.clear()
            engine.plan = never
        world.stop_controller()
        self.first.queue.extend([((self.batch, 0), 1), ((self.batch, 1), 4)])
        self.first.runs.append(((self.batch, 0), 1, world.clock.seconds()))
        end = (b"value",)
        self.second.done[self.batch, 2] = (2, 1, "ok", 1.0, 2.0, 0, end)
        bad = self.second.done[self.batch, 2]
        self.second.done[self.batch, 3] = (3, 2, "error", *bad[3:6], failure("ValueError"))
        self.client.ends.clear()
        self.client.detail["engines"] = [0, 1]

    def resend(self, *more: Any) -> None:
        self.client.connection.send(Batch(self.batch, "call", "", 0.0, pack({"retries": 1}), pack({}), ()))
        self.client.work(self.batch, range(6), again=True)
        self.client.send(*more)


def test_a_new_controller_finds_what_engines_have(world: TaskWorld) -> None:
    it = Restart(world)
    world.start_controller()
    world.run(10.0)
    it.resend()
    world.run(1.0)
    assert it.client.ends == {(it.batch, 2): [("ok", 1)]}
    assert it.first.running == (it.batch, 0)
    ran = {key: attempt for engine in (it.first, it.second) for key, attempt, _ in engine.runs}
    while it.first.queue or it.second.queue:
        for engine in (it.first, it.second):
            if engine.queue:
                engine.finish()
        world.run(0.1)
    ran = {key: attempt for engine in (it.first, it.second) for key, attempt, _ in engine.runs}
    assert ran == {
        (it.batch, 0): 1,
        (it.batch, 1): ran[it.batch, 1],
        (it.batch, 3): 3,
        (it.batch, 4): 1,
        (it.batch, 5): 1,
    }
    assert ran[it.batch, 1] >= 4
    assert it.client.all_ends(it.batch) == {"ok": 6}
    assert sum(len(engine.runs) for engine in (it.first, it.second)) == 5
    it.client.send(Taken(it.batch, tuple(range(6)), True))
    world.assert_empty()
    assert not it.first.heads
    assert not it.second.heads


@pytest.mark.parametrize("late", ["comes", "never comes", "dies"])
def test_a_new_controller_waits_for_engines_that_are_late(world: TaskWorld, late: str) -> None:
    it = Restart(world)
    it.first.connection._delay = 8.0
    it.first.connection._stopped = late != "comes"
    world.start_controller()
    world.run(4.9)
    it.resend()
    world.run(0.5)
    assert not it.second.runs  # the first one may have them
    assert it.client.ends == {(it.batch, 2): [("ok", 1)]}
    world.run(4.0)
    if late == "comes":
        world.run(4.0)
        assert it.first.running == (it.batch, 0)
        assert (it.batch, 0) not in it.second.started
    else:
        if late == "never comes":
            assert not it.second.runs
            world.run(RETURN_GRACE)
        else:
            world.run(RETURN_GRACE)
        while it.second.queue:
            it.second.finish()
            world.run(0.1)
        assert sorted(it.second.started) == [(it.batch, i) for i in (0, 1, 3, 4, 5)]
        assert it.client.all_ends(it.batch) == {"ok": 6}


@pytest.mark.parametrize("how", ["abort", "interrupt"])
def test_what_is_sought_may_be_withdrawn(world: TaskWorld, how: str) -> None:
    it = Restart(world)
    it.second.connection._delay = 8.0
    world.start_controller()
    world.run(4.9)
    it.resend(Withdraw(it.batch, (0, 1, 3, 4), how))
    assert not it.client.ends
    world.run(10.0)
    assert it.client.end(it.batch, 4) == "TaskAborted"
    assert it.client.end(it.batch, 1) in ("TaskAborted", "KeyboardInterrupt")
    assert it.client.ends[it.batch, 2] == [("ok", 1)]
    assert (it.batch, 3) not in it.second.started
    if how == "interrupt":
        assert it.client.end(it.batch, 0) == "KeyboardInterrupt"
    else:
        assert it.first.running == (it.batch, 0)
        it.first.finish()
        world.run()
        assert it.client.end(it.batch, 0) == "ok"


def test_a_task_that_fails_between_the_question_and_its_decision(world: TaskWorld) -> None:
    it = Restart(world)
    it.second.connection._delay = 8.0
    world.start_controller()
    world.run(4.9)
    it.resend()
    it.first.finish("error")
    it.first.finish()
    world.run(10.0)
    for _ in range(10):
        for engine in (it.first, it.second):
            if engine.queue:
                engine.finish()
        world.run(0.1)
    assert it.client.all_ends(it.batch) == {"ok": 6}
    assert [key for key in it.first.started + it.second.started].count((it.batch, 0)) == 2


def test_attempts_go_on_where_the_client_says(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open()
    client.send(Work(batch, ((0, 7, ()),), True))
    assert engine.queue[0] == ((batch, 0), 8)


# -- clients go and come ----------------------------------------------------------------------


def lose_session(world: TaskWorld, client: TaskUser) -> None:
    """The controller knows the client no longer when it comes back."""
    assert world.controller is not None
    [peer] = [peer for peer in world.controller.peers if peer.key == client.detail["client"]]
    before = len(client.welcomes)
    world.controller._overflow(peer)
    client.dialer.cut()
    world.run(1.0)
    assert client.welcomes[before:] == [False]


def test_a_client_in_a_new_session_hears_everything_once_more(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(3)
    engine.finish()
    world.run()
    client.dialer.cut()
    engine.finish()
    client.ends.clear()
    lose_session(world, client)
    client.connection.send(Batch(batch, "call", "", 0.0, pack({}), pack({}), ()))
    client.work(batch, range(4), again=True)
    assert client.ends == {(batch, 0): [("ok", 0)], (batch, 1): [("ok", 0)]}
    while engine.queue:
        engine.finish()
        world.run()
    assert len(engine.runs) == 4
    assert client.all_ends(batch) == {"ok": 4}
    client.send(Taken(batch, (0, 1, 2, 3), True))
    world.assert_empty()


def test_a_client_that_is_gone_for_good_takes_its_tasks_along(world: TaskWorld) -> None:
    client, other = world.client("c1"), world.client("c2")
    engine = world.engine("e", never)
    client.open(10)
    client.open(3, after=[("c1-1", 0)])
    client.vanish()
    world.run(CLIENT_GRACE + 1.0)
    assert len(engine.queue) == 1
    engine.finish()
    world.run()
    world.assert_empty()
    batch = other.open(2)
    engine.plan = lambda key, attempt: ("ok", 0.001)
    world.run(1.0)
    assert not other.ends or other.all_ends(batch)
    while engine.queue:
        engine.finish()
    world.run()
    assert other.all_ends(batch) == {"ok": 2}


def test_another_client_asks_by_id(world: TaskWorld) -> None:
    client, other, engine = world.client("c1"), world.client("c2"), world.engine("e", never)
    batch = client.open(4)
    engine.finish()
    engine.finish("error")
    world.run()
    other.send(Seek(batch, (0, 1, 2, 77)))
    world.run()
    assert other.end(batch, 0) == "ok"
    assert other.end(batch, 1) == "ValueError"
    assert other.end(batch, 77) == "unknown"
    engine.finish()
    world.run()
    assert other.end(batch, 2) == "ok"
    engine.finish()
    world.run()
    client.send(Taken(batch, (0, 1, 2, 3), True))
    world.assert_empty()
    other.send(Seek(batch, (0,)))
    assert other.ends[batch, 0][1:] == [("unknown", -1)]
    other.send(Seek("nobody-1", (3, 4)))
    assert other.end("nobody-1", 3) == other.end("nobody-1", 4) == "unknown"
    world.assert_empty()


@pytest.mark.parametrize("ended", ["ok", "error", "dies"])
def test_another_client_asks_for_what_runs_and_only_its_engine_knows(world: TaskWorld, ended: str) -> None:
    it = Restart(world)
    world.start_controller()
    world.run(10.0)
    other = world.client("c2")
    for _ in range(2):
        other.send(Seek(it.batch, (0, 3)))
    world.run(20.0)
    assert set(other.ends) == {(it.batch, 3)}
    if ended == "dies":
        world.kill(it.first)
    else:
        it.first.finish(ended)
    world.run(1.0)
    assert (
        other.ends[it.batch, 0][0]
        == {
            "ok": ("ok", 0),
            "error": ("ValueError", 0),
            "dies": ("unknown", -1),
        }[ended]
    )
    assert not world.book._searches._searches
    assert not world.book._telling._seekers


def test_two_clients_ask_for_the_same(make: Callable[..., TaskWorld]) -> None:
    world = make(grace_over=False)
    first, second = world.client("c2"), world.client("c3", engines=[0, 5])
    engine = world.engine("e", never)
    engine.done["c1-1", 0] = (0, 1, "ok", 1.0, 2.0, 0, (b"value",))
    first.send(Seek("c1-1", (0,)))
    world.run(1.0)
    assert first.end("c1-1") == "ok"
    second.send(Seek("c1-1", (0,)))
    world.run(RETURN_GRACE)
    assert second.ends["c1-1", 0][0] == ("ok", engine.id)
    world.assert_empty()


def test_the_owner_is_done_while_another_client_asks(world: TaskWorld) -> None:
    client, other, engine = world.client("c1"), world.client("c2"), world.engine("e", never)
    batch = client.open(3)
    client.connection.send(Taken(batch, (), True))
    other.send(Seek(batch, (0, 1)))
    world.run(1.0)
    engine.finish()
    world.run(1.0)
    world.assert_empty()
    assert {(batch, 0), (batch, 1)} <= set(other.ends)
    assert other.ends[batch, 0][-1][0] == "ok"


@pytest.mark.parametrize("last", [True, False])
def test_the_owner_has_it_while_another_client_asks(world: TaskWorld, last: bool) -> None:
    client, other, engine = world.client("c1"), world.client("c2"), world.engine("e", never)
    batch = client.open(1)
    engine.finish()
    world.run()
    other.connection.send(Seek(batch, (0,)))
    world.clock.advance(0)
    world.clock.advance(0)
    client.connection.send(Taken(batch, (0,), last))
    engine.keeps = True
    world.run()
    assert other.ends[batch, 0][-1][0] == "ok"
    assert not world.book._telling._seekers


def test_a_client_asks_before_the_tasks_are_there(make: Callable[..., TaskWorld]) -> None:
    world = make(grace_over=False)
    client, other = world.client("c1"), world.client("c2", engines=[0])
    other.send(Seek("c1-1", (0, 1)))
    client.open(2)
    other.send(Seek("c1-1", (5,)))
    engine = world.engine("e", never, wanted=0)
    world.run(1.0)
    assert other.ends == {("c1-1", 5): [("unknown", -1)]}
    assert not {("c1-1", 0), ("c1-1", 1)} & set(client.ends)
    engine.finish()
    engine.finish()
    world.run()
    assert other.end("c1-1", 0) == other.end("c1-1", 1) == "ok"


def test_the_last_taken_ends_a_batch_whatever_it_has(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(10, wait=5.0)
    client.open(1, after=[(batch, 9)])
    client.send(Taken(batch, (), True))
    assert client.end("c1-2") == "ImpossibleDependency"
    engine.finish()
    world.run()
    client.send(Taken("c1-2", (0,), True))
    world.assert_empty()
    client.send(Taken(batch, (), True), Taken("c1-99", (3,), True))


# -- bulk bytes -------------------------------------------------------------------------------


def test_large_parts_go_their_way_and_the_ways_are_closed(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    head, item = BlobRef("c1-1/b/0", 10), BlobRef("c1-1#0/a/0", 10)
    batch = client.open(parts=(head,))
    client.work(batch, [0], parts=(item,))
    for blob in (head.blob, item.blob):
        engine.send(Grant(blob, 0))
        client.send(Chunk(blob, 0, b"0123456789"))
        engine.send(Grant(blob, 10))
    assert {chunk.blob for chunk in engine.hear(Chunk)} == {head.blob, item.blob}
    assert len(world.controller.router.blobs) == 2  # type: ignore[union-attr]
    engine.finish(parts=(BlobRef("c1-1#0/e/r/0", 5),))
    world.run()
    engine.send(Chunk("c1-1#0/e/r/0", 0, b"value"))
    assert client.hear(Chunk) == [Chunk("c1-1#0/e/r/0", 0, b"value")]
    client.send(Grant("c1-1#0/e/r/0", 5), Taken(batch, (0,), True))
    world.assert_empty()


def test_large_parts_of_a_client_in_a_new_session(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    head, item = BlobRef("c1-1/b/0", 10), BlobRef("c1-1#0/a/0", 10)
    batch = client.open(parts=(head,))
    client.work(batch, [0], parts=(item,))
    lose_session(world, client)
    before = len(engine.heard)
    client.connection.send(Batch(batch, "call", "", 0.0, pack({}), pack({}), (head,)))
    client.work(batch, [0], again=True, parts=(item,))
    told = engine.heard[before:]
    assert [type(record) for record in told] == [Batch, Batch, Work]
    assert told[-1] == Work(batch, ((0, 1, (item,)),))
    for blob in (head.blob, item.blob):
        engine.send(Grant(blob, 0))
        client.send(Chunk(blob, 0, b"0123456789"))
    assert {chunk.blob for chunk in engine.hear(Chunk)} == {head.blob, item.blob}
    assert len(engine.queue) == 1


def test_large_arguments_of_what_runs_again_because_its_result_is_lost(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    item = BlobRef("c1-1#0/a/0", 10)
    batch = client.open()
    client.work(batch, [0], parts=(item,))
    engine.finish()
    world.run()
    assert len(world.controller.router.blobs) == 0  # type: ignore[union-attr]
    world.kill(engine)
    client.work(batch, [0], parts=(item,))
    other = world.engine("o", never)
    assert other.running == (batch, 0)
    other.send(Grant(item.blob, 0))
    client.send(Chunk(item.blob, 0, b"0123456789"))
    assert other.hear(Chunk) == [Chunk(item.blob, 0, b"0123456789")]
    other.finish()
    world.run()
    client.send(Taken(batch, (0,), True))
    world.assert_empty()


# -- what must not be -------------------------------------------------------------------------


BAD_RULES = [
    {"retries": "many"},
    {"retries": True},
    {"priority": 1.5},
    {"all": 1},
    {"when": "sometimes"},
    {"wait": "long"},
    {"wait": -1.0},
    {"wait": float("inf")},
    {"wait": float("nan")},
    {"when": ["success"]},
    {"when": {}},
    {"after": 7},
    {"after": [["c1-1"]]},
    {"after": [["c1-1", "0"]]},
    {"follow": [[1, 1]]},
    {"known": [["c1-1", 0, 1, 0]]},
    {"known": {}},
]

BAD: dict[str, Callable[[TaskWorld], Any]] = {
    **{
        f"rules {i}": lambda world, rules=rules: Batch("c1-8", "call", "", 0.0, pack(rules), b"", ())
        for i, rules in enumerate(BAD_RULES)
    },  # type: ignore[misc]
    "rules that are none": lambda world: Batch("c1-8", "call", "", 0.0, b"\xc1", b"", ()),
    "a batch of another client": lambda world: Batch("c2-8", "call", "", 0.0, pack({}), b"", ()),
    "a blob of another batch": lambda world: Batch(
        "c1-8", "call", "", 0.0, pack({}), b"", (BlobRef("c2-1/b/0", 5),)
    ),
    "tasks of another client": lambda world: Work("c2-1", ((0, 0, ()),)),
    "tasks of no batch": lambda world: Work("c1-77", ((0, 0, ()),)),
    "a blob of another task": lambda world: Work(
        "c1-1", ((5, 0, (b"x",)), (6, 0, (BlobRef("c1-1#5/a", 5),)))
    ),
    "a negative task": lambda world: Work("c1-1", ((-1, 0, ()),)),
    "an attempt beyond all bounds": lambda world: Work("c1-1", ((5, 2**63, ()),)),
    "taken of another client": lambda world: Taken("c2-1", (0,), True),
    "no way to withdraw": lambda world: Withdraw("c1-1", (0,), "recall"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_records_are_refused_and_do_no_harm(world: TaskWorld, what: str) -> None:
    client, other, engine = world.client("c1"), world.client("c2"), world.engine("e", never)
    mine, theirs = client.open(2), other.open(2)
    links = len(client.welcomes)
    client.send(BAD[what](world))
    world.run(1.0)
    assert len(client.welcomes) == links + 1, "the link is cut"
    assert client.welcomes[-1], "the session goes on"
    assert set(world.book._batches) == {mine, theirs}
    assert set(world.book._batches[mine].items) == {0, 1}
    engine.plan = lambda key, attempt: ("ok", 0.001)
    while engine.queue:
        engine.finish()
        world.run(0.1)
    assert client.all_ends(mine) == other.all_ends(theirs) == {"ok": 2}
    client.send(Taken(mine, (0, 1), True))
    other.send(Taken(theirs, (0, 1), True))
    world.assert_empty()


def test_an_engine_speaks_only_for_itself(world: TaskWorld) -> None:
    client = world.client()
    engines = world.engines(2, never)
    batch = client.open(1)
    links = len(engines[1].welcomes)
    engines[1].send(Outcomes(batch, 0, ((0, 1, "ok", 1.0, 2.0, 0, ()),)))
    engines[1].send(Outcomes(batch, 1, ((0, 1, "ok", 1.0, 2.0, 0, ()),)))  # not what it was handed
    engines[1].send(Outcomes("c9-9", 1, ((0, 1, "ok", 1.0, 2.0, 0, ()),)))
    world.run(1.0)
    assert len(engines[1].welcomes) == links + 1
    assert not client.ends
    engines[0].finish()
    world.run()
    assert client.ends == {(batch, 0): [("ok", 0)]}


def test_withdraw_is_for_those_who_know_the_batch(world: TaskWorld) -> None:
    client, stranger = world.client("c1"), world.client("c2")
    batch = client.open(2)
    stranger.send(Withdraw(batch, (), "abort"))
    assert not client.ends


# -- looking ----------------------------------------------------------------------------------


def test_status_counts(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(40, label="work")
    client.open(3, after=[(batch, 0)])
    handed = len(engine.queue)
    assert world.book.status.counts() == {"blocked": 3, "ready": 40 - handed, "handed": handed, "ended": 0}
    world.run(1.0)
    engine.finish("error")
    world.run()
    counts = world.book.status.counts()
    assert counts["ended"] == 4
    assert counts["blocked"] == 0
    assert counts["ready"] + counts["handed"] == 39
    assert world.book.status.running(0) == ("work", world.clock.seconds())
    assert world.book.status.count(0) == len(engine.queue)
    ids = world.book.status.ids(limit=3)
    assert [len(found) for found in ids.values()] == [0, 3, 3, 3]
    assert f"{batch}#0" in ids["ended"]


def test_a_hundred_thousand_tasks_take_less_than_two_kilobytes_each(world: TaskWorld) -> None:
    client, engine = world.client(), world.engine("e", never)
    batch = client.open(1)
    peer = world.book._batches[batch].owners[0]
    count, args = 100_000, bytes(100)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(0, count, 250):
            raw = encode(Work(batch, tuple((index, 0, (args,)) for index in range(start, start + 250))))
            world.book.work(peer, decode(raw), raw)
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert len(world.book._batches[batch].items) == count
    assert engine.queue
    assert each < 800, each


def test_questions_reach_the_book(world: TaskWorld) -> None:
    client = world.client()
    client.open(2)
    client.send(Ask("q", "task_status", pack({})))
    assert client.hear(Answer)[-1].ok
