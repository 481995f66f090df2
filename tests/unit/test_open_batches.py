"""The batches of functions that were submitted lately: what they hold, and whom they hold up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ipython1.kernel.client import TaskClient, room, taskbatches
from ipython1.kernel.client.taskbatches import OpenBatches
from ipython1.kernel.testing import MemoryCluster

from .test_room import Bridge


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(1) as cluster:
        yield cluster


@pytest.fixture
def tc(cluster: MemoryCluster) -> TaskClient:
    return cluster.task_client()


# -- what they hold -------------------------------------------------------------------------


def kept(tc: TaskClient) -> int:
    """How many functions the client keeps."""
    return len(tc._core.tasks._batches)


def test_large_functions_are_kept_one_at_a_time(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskbatches, "OPEN_BYTES", 100_000)
    for n in range(4):
        assert tc.submit(lambda data=bytes([n]) * 150_000: len(data)).r == 150_000
        assert kept(tc) == 1
    for n in range(4):
        assert tc.submit(lambda data=bytes([n]) * 45_000: len(data)).r == 45_000
    assert kept(tc) == 2
    for n in range(40):
        assert tc.submit(lambda n=n: n).r == n
    assert kept(tc) == taskbatches.OPEN_LIMIT


def test_a_large_function_that_is_called_again_goes_once(
    tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taskbatches, "OPEN_BYTES", 1000)
    table = [bytes(20_000), bytearray(b"abc")]

    def size(x: int) -> int:
        return len(table[0]) + len(table[1]) + x

    first, again = tc.submit(size, 1), tc.submit(size, 2)
    assert first.command_id == again.command_id
    table[1].append(0)  # type: ignore[attr-defined]
    other = tc.submit(size, 3)
    assert other.command_id != first.command_id
    assert [each.r for each in (first, again, other)] == [20_004, 20_005, 20_007]


# -- whom they hold up ----------------------------------------------------------------------


class Tasks:
    """In place of `Batches`."""

    def __init__(self, bridge: Bridge) -> None:
        self.room = room.Room(bridge)  # type: ignore[arg-type]

    def open(self, op: str, parts: Any, label: str) -> str:
        return "c1-1"

    def reserve(self, batch: str) -> range:
        return range(1)

    def add(self, pending: Any, slots: range, items: Any, wait: bool = True) -> None:
        self.room.take(100, wait)

    def close(self, batch: str) -> None:
        """Nothing is kept."""


def started(f: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=f, args=args, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


def test_who_waits_for_room_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM", 100)
    monkeypatch.setattr(room, "ROOM_AGAIN", 60)
    bridge = Bridge()
    tasks = Tasks(bridge)
    batches = OpenBatches(tasks)  # type: ignore[arg-type]
    send = (batches.send, abs, "abs", [b""], lambda id, slots: id)
    tasks.room.take(100)
    waiting = started(*send)
    assert bridge.waits.acquire(timeout=10)
    bridge.reactor = True  # who comes now is in the reactor thread
    assert ends(started(*send))
    assert ends(started(batches.close))
    assert waiting.is_alive()
    bridge.reactor = False
    tasks.room.free(200)
    assert ends(waiting)


def test_a_shutdown_does_not_wait_for_who_waits_for_room(
    cluster: MemoryCluster, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM", 100)
    bridge, its = Bridge(), tc._core.tasks.room
    its._bridge = bridge  # type: ignore[assignment]
    executor = tc.executor()
    told: list[str] = []

    def submit() -> None:
        try:
            executor.submit(abs, -1)
        except RuntimeError as error:
            told.append(str(error))

    its.take(100)
    waiting = started(submit)
    assert bridge.waits.acquire(timeout=10)
    assert ends(started(lambda: executor.shutdown(wait=False)))
    its.free(100)
    assert ends(waiting)
    assert "after shutdown" in told[0]
    assert executor._open == set()
    assert tc.pending == []
    assert tc.submit(abs, -2).r == 2


def test_what_could_not_be_sent_is_not_waited_for(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    executor = tc.executor()
    with monkeypatch.context() as patch:
        patch.setattr(tc._core.tasks, "add", refuse)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(abs, -1)
    assert executor.submit(abs, -2).result() == 2
    assert ends(started(executor.shutdown))
