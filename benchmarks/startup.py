"""From typing ``ipcluster -n 4`` to the first result, and the memory of an idle engine.

Run it with ``python -m benchmarks.startup [-n ENGINES] [-r REPEATS]``. The
client has its imports behind it, as in an IPython session that is open
already; it waits for the cluster's FURL file and connects.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import unique_bytes
from benchmarks.summary import Summary, shown
from ipython1.kernel import client
from ipython1.kernel.error import ConnectionFailed
from ipython1.kernel.files import ClusterFiles

#: What is not in seconds.
UNITS = {"engine USS": "B"}
#: Seconds that one start may take.
PATIENCE = 60.0


def one_start(n: int) -> dict[str, float]:
    """Seconds to each step of one start, and megabytes of an idle engine."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "ipython1.scripts.ipcluster", "-n", str(n), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        mec = connect(ClusterFiles("default").furl("multiengine"), started)
        connected = time.perf_counter()
        mec.wait_for_engines(n, timeout=PATIENCE)
        ready = time.perf_counter()
        mec.execute("1 + 1")
        result = time.perf_counter()
        uss = statistics.median(unique_bytes(row["pid"] for row in mec.status()))
        mec.close()
    finally:
        stopping = time.perf_counter()
        process.terminate()
        process.communicate(timeout=PATIENCE)
    stopped = time.perf_counter()
    return {
        "connected": connected - started,
        "engines ready": ready - started,
        "first result": result - started,
        "stop": stopped - stopping,
        "engine USS": uss,
    }


def connect(path: Path, started: float) -> client.MultiEngineClient:
    """A client, as soon as there is a controller."""
    while True:
        try:
            return client.MultiEngineClient(path)
        except ConnectionFailed:
            if time.perf_counter() - started > PATIENCE:
                raise
            time.sleep(0.005)


def main() -> None:
    """Measure and print medians with their spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=4, help="engines")
    parser.add_argument("-r", type=int, default=7, help="repeats")
    options = parser.parse_args()
    rows = []
    for _ in range(options.r):
        with tempfile.TemporaryDirectory(prefix="ip1-") as folder:
            os.environ["IPYTHON1_DIR"] = folder
            rows.append(one_start(options.n))
    print(f"{options.n} engines, {options.r} starts: median (least - most)")
    for name in rows[0]:
        print(f"{name:<16} {shown(Summary.of([row[name] for row in rows]), UNITS.get(name, 's'))}")


if __name__ == "__main__":
    main()
