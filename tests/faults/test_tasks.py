"""Tasks while engines and the controller are killed: each result once, and no run that was not needed."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipython1.kernel.client.core import ClientCore
from ipython1.kernel.client.task import TaskClient
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.wire import objects

from .conftest import PATIENCE, Rig, until
from .test_engine_deaths import pid_of

COUNT = 5000
KILLS = 10
OUTSTANDING = 2000
ENGINES = 5


def make_append(path: Path) -> Callable[[int], int]:
    """A task that writes down that it runs, and where."""

    def append(index: int) -> int:
        import os
        import time

        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{index} {os.getpid()}\n".encode())
        os.close(file)
        time.sleep(0.004)
        return index * 2

    return append


def send(core: ClientCore, f: Callable[[int], int], count: int) -> TaskPending:
    """A task for each number, without chunks."""
    batch = core.tasks.open("call", objects.dumps_call(f), label="append")
    slots = core.tasks.reserve(batch, count)
    pending = TaskPending(core, batch, "map", slots)
    core.tasks.add(pending, slots, [objects.dumps(((index,), {})) for index in slots])
    core.tasks.close(batch)
    return pending


def written(path: Path) -> list[tuple[int, int]]:
    """What ran, and in which process."""
    lines = path.read_text().splitlines()
    return [(int(index), int(pid)) for index, pid in map(str.split, lines)]


def values(pending: TaskPending) -> dict[int, Any]:
    """The value of each task, or the name of its error."""
    found = {}
    for slot in pending.targets:
        source = pending._arrivals.decode(slot)
        found[slot] = source.value if source.failure is None else source.failure.ename
    return found


def task_client(rig: Rig) -> TaskClient:
    return TaskClient(os.fspath(rig.files.furl("task")))


def test_engines_are_killed_under_five_thousand_tasks(
    start: Callable[..., Rig], tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    rig = start(ENGINES)
    mec = rig.client()
    path = tmp_path / "ran"
    path.touch()
    source = random.Random(7)
    killed: set[int] = set()
    with task_client(rig) as tc:
        began = time.monotonic()
        pending = send(tc._core, make_append(path), COUNT)
        deaths: Counter[int] = Counter()

        def alive(id: int) -> bool:
            return pid_of(mec, id) not in (0, *killed)

        for kill in range(KILLS):
            # Spread over the whole run, and at most two for each id: the third within a minute is final.
            enough = (kill + source.random()) * 0.8 * COUNT / KILLS
            until(lambda enough=enough: len(written(path)) > enough, "they run")  # type: ignore[misc]
            victims = until(lambda: [id for id in range(ENGINES) if deaths[id] < 2 and alive(id)], "engines")
            assert not pending.done()
            victim = source.choice(victims)
            deaths[victim] += 1
            killed.add(pid_of(mec, victim))
            rig.kill(pid_of(mec, victim))
        tc._core.wait(pending, 4 * PATIENCE)
        figure(f"{COUNT} tasks under {len(killed)} deaths", time.monotonic() - began)
        assert len(killed) == KILLS
        assert values(pending) == {index: index * 2 for index in range(COUNT)}
        finished = pending._arrivals.finished
        assert sorted(finished) == list(range(COUNT))
    runs: dict[int, list[int]] = {}
    for index, pid in written(path):
        runs.setdefault(index, []).append(pid)
    assert sorted(runs) == list(range(COUNT))
    for index, pids in runs.items():
        assert all(pid in killed for pid in pids[:-1]), (index, pids, killed)
    until(lambda: all(map(alive, range(ENGINES))), "all are back")
    assert mec.apply(lambda: 1) == [1] * ENGINES


def test_the_controller_is_killed_under_outstanding_tasks(
    start: Callable[..., Rig], tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    rig = start(ENGINES)
    path = tmp_path / "ran"
    path.touch()
    with task_client(rig) as tc:
        began = time.monotonic()
        pending = send(tc._core, make_append(path), OUTSTANDING)
        for part in (0.2, 0.6):
            until(lambda part=part: len(written(path)) > part * OUTSTANDING, "some have run")  # type: ignore[misc]
            assert not pending.done()
            before = rig.state.controller
            rig.kill(before)
            rig.next_controller(before)
        tc._core.wait(pending, 4 * PATIENCE)
        figure(f"{OUTSTANDING} tasks under two controllers' deaths", time.monotonic() - began)
        assert values(pending) == {index: index * 2 for index in range(OUTSTANDING)}
        counts = Counter(index for index, _ in written(path))
        assert counts == Counter(range(OUTSTANDING))
        # All is forgotten where it was.
        until(lambda: not tc._core.tasks._batches, "nothing is outstanding")
        assert values(send_one(tc, path)) == {0: 0}


def send_one(tc: TaskClient, path: Path) -> TaskPending:
    """One more, to its end."""
    pending = send(tc._core, make_append(path), 1)
    tc._core.wait(pending, PATIENCE)
    return pending
