"""Who sends more than the controller should hold waits, or is told so."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from ipython1.kernel.client import room as room_module
from ipython1.kernel.client.room import Room
from ipython1.kernel.controller import load as load_module
from ipython1.kernel.controller.load import Load
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.error import WouldBlockReactor
from ipython1.kernel.wire.codec import decode_failure
from ipython1.kernel.wire.records import Batch, Outcomes, Result, Submit, Work

from .test_controller import World, ok, submit


class Bridge:
    """Waits for Futures; refuses to where `reactor` is set."""

    def __init__(self) -> None:
        self.reactor = False
        self.waits = threading.Semaphore(0)

    def wait(self, future: Future[Any], timeout: float | None) -> None:
        if self.reactor:
            raise WouldBlockReactor()
        self.waits.release()
        future.result(10)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "ROOM", 100)
    monkeypatch.setattr(room_module, "ROOM_AGAIN", 60)


def take_elsewhere(room: Room, size: int) -> threading.Thread:
    thread = threading.Thread(target=room.take, args=(size,))
    thread.start()
    return thread


def test_who_sends_too_much_waits_until_enough_has_come_back() -> None:
    bridge = Bridge()
    room = Room(bridge)  # type: ignore[arg-type]
    room.take(90)
    room.take(50)  # one may exceed it
    threads = [take_elsewhere(room, 30) for _ in range(2)]
    for _ in threads:
        assert bridge.waits.acquire(timeout=10)
    room.free(50)
    room.free(20)
    assert all(thread.is_alive() for thread in threads)
    room.free(30)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    room.free(1)
    assert not room.full
    room.take(1)
    assert bridge.waits.acquire(blocking=False) is False


def test_the_reactor_thread_and_who_says_so_do_not_wait() -> None:
    bridge = Bridge()
    room = Room(bridge)  # type: ignore[arg-type]
    room.take(200)
    room.take(10, wait=False)
    bridge.reactor = True
    room.take(10)
    room.wait()
    room.free(220)
    assert not room.full


def test_waiting_takes_nothing() -> None:
    bridge = Bridge()
    room = Room(bridge)  # type: ignore[arg-type]
    room.wait()
    room.take(100)
    thread = threading.Thread(target=room.wait)
    thread.start()
    assert bridge.waits.acquire(timeout=10)
    room.free(100)
    thread.join(10)
    assert not thread.is_alive()
    room.take(99)
    assert not room.full


def test_nobody_waits_for_a_client_that_is_closed() -> None:
    bridge = Bridge()
    room = Room(bridge)  # type: ignore[arg-type]
    room.take(200)
    thread = take_elsewhere(room, 10)
    assert bridge.waits.acquire(timeout=10)
    room.end()
    thread.join(10)
    assert not thread.is_alive()
    room.take(10)


class Full(World):
    """A controller that holds little."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        assert self.controller is not None
        self.controller.stop()
        self.controller = Controller(self.clock, self.notices.append, self.clock.seconds, queue_limit=limit)

    def load(self) -> Load:
        assert self.controller is not None
        return self.controller.router._load


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("load", "router", "batches"):
        monkeypatch.setattr(f"ipython1.kernel.controller.{module}.OVERHEAD", 100)
    assert load_module.OVERHEAD == 100


@pytest.mark.usefixtures("overhead")
def test_commands_past_the_limit_are_refused() -> None:
    world = Full(2000)
    clients, engine = [world.client(name) for name in ("c1", "c2")], world.engine("a")
    for number in range(10):
        clients[0].connection.send(submit(f"c1-{number}", 0, parts=(b"x" * 1000,)))
    clients[1].connection.send(submit("c2-1", 0, parts=(b"x" * 1000,)))
    world.turn()
    assert [record.id for record in engine.hear(Submit)] == ["c1-0"]
    refused: list[Result] = [*clients[0].hear(Result), *clients[1].hear(Result)]
    assert len(refused) == 10
    for result in refused:
        assert isinstance(result.parts[0], bytes)
        failure = decode_failure(result.parts[0], 0, "execute")
        assert failure.ename == "QueueFull"
        assert "--queue-limit" in failure.evalue
    engine.connection.send(ok("c1-0", 0))
    world.turn()
    assert world.load().used == 0
    clients[1].connection.send(submit("c2-2", 0, parts=(b"x" * 1000,)))
    world.turn()
    assert [record.id for record in engine.hear(Submit)] == ["c1-0", "c2-2"]
    clients[1].vanish()
    world.turn(100)
    assert world.load().used == 0


@pytest.mark.usefixtures("overhead")
def test_tasks_past_the_limit_are_refused() -> None:
    world = Full(3000)
    client, engine = world.client(kind="task"), world.engine("a")
    client.connection.send(Batch("c1-1", "call", "", 0.0, b"\x80", b"", ()))
    for index in range(4):
        client.connection.send(Work("c1-1", ((index, 0, (b"x" * 1000,)),)))
    client.connection.send(Work("c1-1", ((9, 0, (b"x" * 5000,)),), True))  # engines may have it
    world.turn()
    ends = [end for record in client.hear(Outcomes) for end in record.items]
    assert [end[0] for end in ends] == [2, 3]
    for end in ends:
        assert isinstance(end[6][0], bytes)
        assert decode_failure(end[6][0], 0, "").ename == "QueueFull"
    assert world.load().used == 2 * 1100 + 5100
    engine.connection.send(Outcomes("c1-1", 0, ((0, 1, "ok", 1.0, 2.0, 0, ()),)))
    world.turn()
    assert world.load().used == 1100 + 5100
    client.vanish()
    world.turn(100)
    assert world.load().used == 0
