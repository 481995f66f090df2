"""Detached work outlives its client, and a killed controller; real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.client import CompositeError, MultiEngineClient, TaskClient
from ipython1.kernel.error import ConnectionFailed

from .conftest import PATIENCE, Rig, environment, until
from .test_engine_deaths import pid_of

COMMANDS, TASKS = 120, 400
LARGE = 20_000_000
CLIENT = """
    import json, sys, time
    from ipython1.kernel import client
    cluster, path, commands, tasks, large = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    mec, tc = client.MultiEngineClient(cluster=cluster), client.TaskClient(cluster=cluster)

    def work(what, seconds, data=b""):
        import os, time
        time.sleep(seconds)
        line = f"{what}\\n".encode()
        end = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(end, line)
        os.close(end)
        return what, len(data)

    mec.push_function({"work": work})
    mec.push({"path": path})
    prs = [mec.execute("work(f'c%d.{engine_id}', 0.02)" % i, block=False) for i in range(commands)]
    prs.append(mec.push({"big": b"x" * large}, block=False))
    prs.append(mec.execute("len(big)", block=False))
    runs = [tc.submit(work, f"t{i}", 0.005) for i in range(tasks)]
    runs.append(tc.submit(work, "large", 0.0, b"y" * large))
    began = time.monotonic()
    ids = {*mec.detach(), *tc.detach()}
    took = time.monotonic() - began
    assert len(ids) > (commands + tasks) / 2  # what had ended before needs no keeping
    print(json.dumps([[pr.id for pr in prs], [run.id for run in runs], took]), flush=True)
    time.sleep(100)
"""


def detached(rig: Rig, path: Path) -> tuple[list[str], list[str], float]:
    """The ids of what a client has detached that was killed at once; and the seconds that took."""
    arguments = [rig.files.cluster, str(path), str(COMMANDS), str(TASKS), str(LARGE)]
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            commands, tasks, seconds = json.loads(process.stdout.readline())
        finally:
            process.kill()
    return commands, tasks, seconds


def connected(rig: Rig) -> MultiEngineClient | None:
    try:
        return rig.client()
    except ConnectionFailed:
        return None


def kept(rig: Rig) -> list[Path]:
    return sorted((rig.files.run / "detached").glob("*"))


def ran(path: Path) -> Counter[str]:
    return Counter(path.read_text().split())


@pytest.mark.parametrize("trouble", ["client", "controller", "controller twice"])
def test_it_runs_once_and_its_results_are_there_in_the_morning(
    start: Callable[..., Rig], tmp_path: Path, trouble: str, figure: Callable[[str, float], None]
) -> None:
    rig = start(2, "--client-grace", "0.3")
    notes = tmp_path / "ran"
    commands, tasks, seconds = detached(rig, notes)
    figure(f"detach of {COMMANDS} commands and {TASKS} tasks, {2 * LARGE / 1e6:.0f} MB", seconds)
    assert kept(rig)
    for _ in range(["client", "controller", "controller twice"].index(trouble)):
        until(lambda: len(ran(notes)) > 10, "some have run")
        before = rig.state.controller
        rig.kill(before)
        rig.next_controller(before)
    mec = until(lambda: connected(rig), "the next controller listens")
    results = [mec.get_pending(id).get_result(timeout=PATIENCE) for id in commands]
    assert [r["result"]["text/plain"] for r in results[5]] == ["('c5.0', 0)", "('c5.1', 0)"]
    assert [r["result"]["text/plain"] for r in results[-1]] == [str(LARGE)] * 2
    with TaskClient(str(rig.files.furl("task"))) as tc:
        pending = [tc.get_pending(id) for id in tasks]
        outcomes = [each.get_result(timeout=PATIENCE) for each in pending]
    assert outcomes == [*((f"t{i}", 0) for i in range(TASKS)), ("large", LARGE)]
    wanted = [f"c{i}.{engine}" for i in range(COMMANDS) for engine in (0, 1)]
    assert ran(notes) == Counter([*wanted, *(f"t{i}" for i in range(TASKS)), "large"])
    until(lambda: not kept(rig), "nothing is kept on disk of what has ended")


def test_an_engine_that_dies_fails_its_commands_and_tasks_run_elsewhere(
    start: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = start(2, "--client-grace", "0.3")
    notes = tmp_path / "ran"
    commands, tasks, _ = detached(rig, notes)
    until(lambda: len(ran(notes)) > 10, "some have run")
    mec = rig.client()
    rig.kill(pid_of(mec, 1))
    errors = [mec.get_pending(id).exception(timeout=PATIENCE) for id in commands[:-2]]
    failures = [error.elist for error in errors if isinstance(error, CompositeError)]
    assert {failure.engine for failed in failures for failure in failed} == {1}
    # With the first engine went its results, and the function that the others call.
    names = Counter(failure.ename for failed in failures for failure in failed)
    assert names["EngineDied"] >= 1
    assert names.keys() <= {"EngineDied", "UnknownResult", "NameError"}
    with TaskClient(str(rig.files.furl("task"))) as tc:
        ends = Counter(outcome(tc, id) for id in tasks)
    assert ends.keys() <= {"ok", "UnknownResult"}  # gone with the engine that had run them
    assert ends["ok"] > TASKS // 2
    runs = ran(notes)
    assert all(runs[f"c{i}.{engine}"] <= 1 for i in range(COMMANDS) for engine in (0, 1))
    assert all(runs[f"c{i}.0"] == 1 for i in range(COMMANDS))
    assert all(runs[f"t{i}"] >= 1 for i in range(TASKS))


def outcome(tc: TaskClient, id: str) -> Any:
    error = tc.get_pending(id).exception(timeout=PATIENCE)
    if isinstance(error, CompositeError):
        return error.elist[0].ename
    return "ok" if error is None else type(error).__name__
