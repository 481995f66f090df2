"""A mix of everything with faults at random moments: ``python -m tests.soak --minutes 5 --seed 1``.

Clients come, work and go: commands, push and pull, scatter and gather, maps, tasks, tasks that fail at first.
Meanwhile engines and the controller are killed with -9, and processes stopped for up to a second. Each piece
of work notes in a file that it ran, and in which process. At the end it is counted what was lost or ran
twice, and what is left of the cluster; exit status 1 if anything is.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ipython1.kernel.client import MapTask, MultiEngineClient, TaskClient
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.wire.segments import sweep
from tests.faults.conftest import Rig, until

ENGINES = 4
#: Seconds after which a result counts as lost.
PATIENCE = 60.0
#: Seconds between two deaths of one engine, or of controllers: after some in a minute they stay dead.
PAUSE = 35.0
#: Seconds in which an engine that was killed is back, at the latest.
RESTART_TIME = 10.0
#: Seconds between two faults.
FAULT_EVERY = (0.5, 3.0)


def mark(path: str, key: str, seconds: float = 0.0) -> str:
    """Runs on an engine: note that it ran."""
    import os
    import time

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{key} {os.getpid()}\n".encode())
    os.close(fd)
    time.sleep(seconds)
    return key


def stumble(path: str, key: str, times: int) -> str:
    """Runs on an engine: fails so many times, which the file knows."""
    import pathlib

    name = pathlib.Path(path + "." + key)
    count = int(name.read_text()) if name.exists() else 0
    name.write_text(str(count + 1))
    if count < times:
        raise RuntimeError("not yet")
    name.unlink()
    return key


class Soak:
    """The cluster, who works on it, and who harms it.

    Parameters
    ----------
    rig : Rig
    folder : Path
        For the notes.
    seed : int
    """

    def __init__(self, rig: Rig, folder: Path, seed: int) -> None:
        self.rig = rig
        self.path = os.fspath(folder / "ran")
        self.seed = seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.killed: set[int] = set()  # pids of engines
        self.last_kill = -1e9
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        self.commands: set[str] = set()
        self.tasks: set[str] = set()

    def key(self, kept: set[str], what: str) -> str:
        """A new name for a piece of work."""
        with self._lock:
            self._number += 1
            self.counts[what] += 1
            name = f"{what}-{self._number}"
            kept.add(name)
            return name

    # -- work --------------------------------------------------------------------------

    def work(self, number: int) -> None:
        """One user: a client after the other, until time is over."""
        chance = random.Random(f"{self.seed} {number}")
        while not self.over.is_set():
            try:
                self.visit(chance)
            except Exception:  # noqa: BLE001 -- whatever it is, it is what we look for
                self.problems.append(traceback.format_exc())
                if len(self.problems) > 20:
                    return

    def visit(self, chance: random.Random) -> None:
        """A client for commands and one for tasks, and some work for both."""
        files = self.rig.files
        mec = MultiEngineClient(os.fspath(files.furl("multiengine")), timeout=PATIENCE)
        try:
            tc = TaskClient(os.fspath(files.furl("task")), timeout=PATIENCE)
            try:
                self.counts["clients"] += 2
                for _ in range(chance.randrange(5, 25)):
                    if self.over.is_set():
                        break
                    chance.choice(
                        (self.some_commands, self.arrays, self.spread, self.some_tasks, self.a_map)
                    )(chance, mec, tc)
            finally:
                tc.close()
        finally:
            mec.close()

    def excused(self, what: str, f: Callable[[], Any], began: float = 0.0) -> Any:
        """What `f` returns; None where it failed for an engine that was killed since, or not long before."""
        began = began or time.monotonic()
        try:
            return f()
        except TimeoutError:
            self.problems.append(f"LOST: {what}: {traceback.format_exc()}")
        except Exception as error:  # noqa: BLE001 -- judged by its name: it may hold those of engines
            text = f"{type(error).__name__}: {error}"
            known = ("EngineDied", "NameError", "NoEnginesRegistered", "InvalidEngineID")
            if self.last_kill > began - RESTART_TIME and any(name in text for name in known):
                self.counts["failed with a killed engine"] += 1
            else:
                self.problems.append(f"{what}: {traceback.format_exc()}")
        return None

    def some_commands(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Several at once, to some engines; most fail with a kill, none is lost or runs twice."""

        def run() -> None:
            ids = mec.get_ids()
            sent: list[tuple[str, Any]] = []
            began = time.monotonic()
            for _ in range(chance.randrange(1, 30)):
                target = chance.choice(ids)
                key = self.key(self.commands, "commands")
                seconds = chance.choice((0, 0, 0, 0.01, 0.1))
                sent.append((key, mec.apply(mark, self.path, key, seconds, targets=[target], block=False)))
            for key, pending in sent:
                got = self.excused(key, lambda p=pending: p.get_result(timeout=PATIENCE), began)  # type: ignore[misc]
                assert got is None or got == [key], (key, got)

        self.excused("commands", run)

    def arrays(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """There and back."""

        def run() -> None:
            name = self.key(set(), "pushes").replace("-", "_")
            array = np.arange(chance.choice((10, 10_000, 1_000_000))) + chance.randrange(1000)
            mec.push({name: array}, block=False).get_result(timeout=PATIENCE)
            for back in mec.pull(name, block=False).get_result(timeout=PATIENCE):
                assert (back == array).all()
            code = f"print({array[0]}); del {name}"
            for each in mec.execute(code, block=False).get_result(timeout=PATIENCE):
                assert each.get("stdout") == f"{array[0]}\n", ("output is missing", dict(each))

        self.excused("arrays", run)

    def spread(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Scatter and gather."""

        def run() -> None:
            name = self.key(set(), "scatters").replace("-", "_")
            data = list(range(chance.randrange(1, 5000)))
            ids = mec.get_ids()
            mec.scatter(name, data, targets=ids, block=False).get_result(timeout=PATIENCE)
            assert list(mec.gather(name, targets=ids, block=False).get_result(timeout=PATIENCE)) == data

        self.excused("scatter", run)

    def some_tasks(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Single tasks, some of which fail at first."""

        def run() -> None:
            sent: list[tuple[str, Any]] = []
            began = time.monotonic()
            for _ in range(chance.randrange(1, 40)):
                key = self.key(self.tasks, "tasks")
                sent.append((key, tc.submit(mark, self.path, key, chance.choice((0, 0, 0.01, 0.1)))))
            retried = self.key(set(), "retried tasks")
            id = tc.run(MapTask(stumble, (self.path, retried, 2), retries=50))
            for key, pending in sent:
                got = self.excused(key, lambda p=pending: p.get_result(timeout=PATIENCE), began)  # type: ignore[misc]
                assert got is None or got == key, (key, got)
            tc.barrier([id], timeout=PATIENCE)
            result = tc.get_task_result(id)
            assert result is not None, "LOST"
            assert result.results == retried, result.failure

        self.excused("tasks", run)

    def a_map(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Many small tasks."""

        def run() -> None:
            keys = [self.key(self.tasks, "mapped") for _ in range(chance.randrange(1, 300))]
            path, seconds = self.path, chance.choice((0, 0.001))
            pending = tc.map(mark, [path] * len(keys), keys, [seconds] * len(keys), block=False)
            assert list(pending.get_result(timeout=PATIENCE)) == keys

        self.excused("map", run)

    # -- harm --------------------------------------------------------------------------

    def harm(self) -> None:
        """Faults at random moments, until time is over."""
        chance = random.Random(f"{self.seed} faults")
        died: dict[int, float] = {}
        while not self.over.wait(chance.uniform(*FAULT_EVERY)):
            self.rig.look()
            try:
                self.fault(chance, died)
            except ProcessLookupError:
                pass  # it went by itself: a fault of before

    def fault(self, chance: random.Random, died: dict[int, float]) -> None:
        """One of them."""
        state = self.rig.state
        engines = {e["id"]: e["pid"] for e in self.rig.client()._core.engines() if e["state"] == "ready"}
        what = chance.choice(("engine", "engine", "controller", "stop", "stop", "stop"))
        if what == "engine":
            ready = [id for id in engines if time.monotonic() - died.get(id, -1e9) > PAUSE]
            if not ready:
                return
            id = chance.choice(ready)
            died[id] = time.monotonic()
            self.killed.add(engines[id])
            self.last_kill = time.monotonic()
            os.kill(engines[id], signal.SIGKILL)
        elif what == "controller":
            if not state.controller or time.monotonic() - died.get(-1, -1e9) < PAUSE:
                return
            died[-1] = time.monotonic()
            os.kill(state.controller, signal.SIGKILL)
        else:
            pid = chance.choice([*engines.values(), state.controller])
            if not pid:
                return
            os.kill(pid, signal.SIGSTOP)
            try:
                self.over.wait(chance.uniform(0.05, 1.0))
            finally:
                os.kill(pid, signal.SIGCONT)
        self.faults[{"stop": "processes stopped"}.get(what, f"{what}s killed")] += 1

    # -- the count ----------------------------------------------------------------------

    def twice(self) -> tuple[int, int]:
        """How much ran more often than it may: commands, and tasks on engines that were not killed."""
        ran: dict[str, list[int]] = collections.defaultdict(list)
        for line in Path(self.path).read_text().splitlines():
            key, pid = line.split()
            ran[key].append(int(pid))
        commands = sum(len(ran[key]) > 1 for key in self.commands)
        spared = {key: [pid for pid in ran[key] if pid not in self.killed] for key in self.tasks}
        return commands, sum(len(pids) > 1 for pids in spared.values())


def soak(minutes: float, seed: int, users: int) -> int:
    """Run it; returns the exit status."""
    root = Path(tempfile.mkdtemp(prefix="ip1-soak-"))
    os.environ["IPYTHON1_DIR"] = os.fspath(root)
    sweep()
    rig = Rig(ClusterFiles("soak", root), ["-n", str(ENGINES), "--no-dashboard"])
    left: list[str] = []
    try:
        rig.ready()
        run = Soak(rig, root, seed)
        rig.client()
        began = time.monotonic()
        threads = [threading.Thread(target=run.work, args=(number,)) for number in range(users)]
        harm = threading.Thread(target=run.harm)
        for thread in (*threads, harm):
            thread.start()
        while time.monotonic() < began + minutes * 60 and any(thread.is_alive() for thread in threads):
            time.sleep(1.0)
        run.over.set()
        harm.join()
        for thread in threads:
            thread.join(4 * PATIENCE)
            if thread.is_alive():
                run.problems.append("LOST: a user still waits")
        if not run.problems:
            until(lambda: len(rig.client().get_ids()) == ENGINES, "all engines are back", PATIENCE)
        try:
            rig.stop()
        except Exception as error:  # noqa: BLE001 -- also what pytest's assertions raise
            left.append(f"{type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 -- pytest.fail
            left.append(str(error))
    finally:
        rig.destroy()
    segments = sweep()
    commands, tasks = run.twice()
    print(f"seed {seed}, {time.monotonic() - began:.0f} s, {ENGINES} engines, {users} users")
    print("faults     ", ", ".join(f"{name}: {count}" for name, count in sorted(run.faults.items())))
    print("work       ", ", ".join(f"{name}: {count}" for name, count in sorted(run.counts.items())))
    lost = sum("LOST" in problem for problem in run.problems)
    print(f"results lost: {lost}; commands run twice: {commands}; tasks run twice on living engines: {tasks}")
    print(f"other surprises: {len(run.problems) - lost}; segments left: {segments}; left over: {left or 0}")
    for problem in run.problems[:10]:
        print(problem, file=sys.stderr)
    bad = bool(run.problems or left or segments or commands or tasks)
    if bad:
        print(f"logs: {root}", file=sys.stderr)
    else:
        shutil.rmtree(root)
    return int(bad)


def main() -> None:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parse.add_argument("--minutes", type=float, default=5.0, help="how long [5]")
    parse.add_argument("--seed", type=int, default=1, help="of what is done [1]")
    parse.add_argument("--users", type=int, default=3, help="clients at work at the same time [3]")
    options = parse.parse_args()
    status = soak(options.minutes, options.seed, options.users)
    sys.stdout.flush()
    sys.exit(status)


if __name__ == "__main__":
    main()
