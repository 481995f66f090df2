"""A real controller among real sessions: over Tubs and lanes, from a few processes that hold many each."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

#: Processes that hold the sessions, and seconds in which all must be there.
PROCESSES, PATIENCE = 4, 300.0
#: Seconds in which sessions have moved to lanes, and all that was said is acknowledged.
SETTLE = 1.0
#: Seconds for which an idle controller is looked at.
IDLE = 10.0
#: Broadcasts, and tasks.
ECHOES, TASKS = 10, 10_000


class Process:
    """One process from outside."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def cpu(self) -> float:
        """Processor seconds of its threads; finer than the ticks of ``/proc/PID/stat``."""
        tasks = Path(f"/proc/{self._pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    @property
    def memory(self) -> int:
        """Bytes that it has for itself alone (USS)."""
        return int(psutil.Process(self._pid).memory_full_info().uss)


@contextmanager
def controller(folder: str) -> Iterator[Process]:
    """An `ipcontroller` with its files in `folder`."""
    command = [sys.executable, "-m", "ipython1.scripts.ipcontroller", "--cluster", "scale", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not process.stdout.readline().startswith("controller"):
            raise RuntimeError("the controller did not start")
        yield Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sessions(furl: Path, count: int, lanes: str) -> Iterator[dict[str, Any]]:
    """A process with `count` sessions of engines; what it says when they are registered."""
    command = [sys.executable, "-m", "benchmarks.scale.sessions", os.fspath(furl), str(count), lanes]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield {"line": process.stdout.readline}
    finally:
        process.stdin.close()
        process.wait()


def measure(n: int, lanes: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, with `n` sessions that may move to these lanes."""
    with tempfile.TemporaryDirectory(prefix="ipython1-scale-") as folder, ExitStack() as stack:
        os.environ["IPYTHON1_DIR"] = folder
        from ipython1.kernel import client
        from ipython1.kernel.files import ClusterFiles

        process = stack.enter_context(controller(folder))
        mec = stack.enter_context(client.MultiEngineClient(cluster="scale"))
        tc = stack.enter_context(client.TaskClient(cluster="scale"))
        time.sleep(SETTLE)
        cpu, memory, own = process.cpu, process.memory, time.process_time()
        begin = time.perf_counter()
        furl = ClusterFiles("scale").furl("engine")
        groups = [
            stack.enter_context(sessions(furl, n // PROCESSES + (i < n % PROCESSES), lanes))
            for i in range(PROCESSES)
        ]
        told = [json.loads(group["line"]()) for group in groups]
        if any("lost" in facts for facts in told):
            raise RuntimeError(f"not all engines came: {told}")
        _until(lambda: len(mec.get_ids()) == n)
        found: dict[str, Any] = {"engines": n, "lanes": lanes}
        found["wall, from the start of the processes"] = time.perf_counter() - begin
        found["wall, from the first dial"] = max(facts["seconds"] for facts in told)
        time.sleep(SETTLE)
        found["registration"] = (process.cpu - cpu) / n
        found["client, registration"] = time.process_time() - own
        found["memory per engine"] = (process.memory - memory) / n
        say(f"{n} sessions: registered in {found['wall, from the first dial']:.1f} s")
        found.update(_echoes(mec, process))
        found.update(_tasks(tc, process))
        for what, call in (("status", mec.status), ("queue_status", mec.queue_status)):
            found[what] = statistics.median(_cost(call, process)["controller"] for _ in range(3))
        cpu = process.cpu
        time.sleep(IDLE)
        found["idle"] = (process.cpu - cpu) / IDLE
        return found


def _echoes(mec: Any, process: Process) -> dict[str, float]:
    """A broadcast of 1 KB to all, and back."""
    data = os.urandom(1000)
    mec.apply(_echo, data)
    time.sleep(SETTLE)
    costs = [_cost(lambda: mec.apply(_echo, data), process) for _ in range(ECHOES)]
    return {f"echo, {what}": statistics.median(cost[what] for cost in costs) for what in costs[0]}


def _tasks(tc: Any, process: Process) -> dict[str, float]:
    def run() -> None:
        pending = [tc.submit(_echo, i) for i in range(TASKS)]
        wait(pending)

    cost = _cost(run, process)
    return {f"tasks, {what}": value for what, value in cost.items()}


def _cost(call: Callable[[], object], process: Process) -> dict[str, float]:
    """Time of one call, and processor seconds until all is acknowledged: the controller's, and our own."""
    begin, cpu, own = time.perf_counter(), process.cpu, time.process_time()
    call()
    wall = time.perf_counter() - begin
    time.sleep(SETTLE)
    return {"wall": wall, "controller": process.cpu - cpu, "client": time.process_time() - own}


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"not all engines came in {PATIENCE:g} s")
        time.sleep(0.05)


def _echo(x: Any) -> Any:
    return x
