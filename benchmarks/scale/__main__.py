"""``python -m benchmarks.scale``: what a controller does with very many engines."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale import real, simulated

#: Rows of the tables: what, the path of its value, unit, and what it is multiplied with.
SIMULATED = (
    ("all of them come at once", ("registered at once", "controller"), "ms", 1e3),
    ("the same, one every 10 ms", ("registered at 100 a second", "controller"), "ms", 1e3),
    ("… told to each client", ("registered at 100 a second", "table bytes"), "kB", 1e-3),
    ("… and what that takes the client", ("registered at 100 a second", "client"), "ms", 1e3),
    ("broadcast and gather of 1 KB", ("echo",), "ms", 1e3),
    (f"{simulated.TASKS:,} tasks that take no time", ("tasks",), "ms", 1e3),
    ("one round of what nannies tell, every 2 s", ("usage",), "ms", 1e3),
    ("status", ("status",), "ms", 1e3),
    ("queue_status", ("queue_status",), "ms", 1e3),
    ("one look of the dashboard, every 0.5 s", ("dashboard",), "ms", 1e3),
    ("death of half of them at once, all with work", ("deaths", "controller"), "ms", 1e3),
    ("memory of an engine, without its connection", ("memory per engine",), "kB", 1e-3),
)
REAL = (
    ("registration: from the first dial to the last welcome", ("wall, from the first dial",), "s", 1.0),
    ("… processor time, with the lane", ("registration",), "ms an engine", 1e3),
    ("memory", ("memory per engine",), "kB an engine", 1e-3),
    ("broadcast and gather of 1 KB", ("echo, wall",), "ms", 1e3),
    ("… processor time", ("echo, controller",), "ms", 1e3),
    ("… of the client", ("echo, client",), "ms", 1e3),
    (f"{real.TASKS:,} tasks that take no time", ("tasks, wall",), "s", 1.0),
    ("… processor time", ("tasks, controller",), "s", 1.0),
    ("status, processor time", ("status",), "ms", 1e3),
    ("idle, processor time of a second", ("idle",), "ms", 1e3),
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--engines", type=_numbers, default=[1000, 5000], help="simulated ones [1000,5000]")
    parser.add_argument("--real", type=_numbers, default=[200], help="sessions over real connections [200]")
    parser.add_argument("--lanes", default="unix,tls", help="that the real ones may use [unix,tls]")
    parser.add_argument("--out", type=Path, default=Path("scale-results.json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # simulate, in a process of its own
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part and part != "0"]


def table(title: str, rows: Sequence[tuple[Any, ...]], columns: Sequence[dict[str, Any]]) -> str:
    """What was found, a column for each number of engines."""
    lines = [title, "", " " * 64 + "".join(f"{column['engines']:>12,}" for column in columns)]
    for what, path, unit, factor in rows:
        values = "".join(f"{_value(column, path) * factor:>12.4g}" for column in columns)
        lines.append(f"{f'{what}, {unit}':<64}{values}")
    return "\n".join(lines)


def _value(found: Any, path: Sequence[str]) -> float:
    for name in path:
        found = found[name]
    return float(found)


def main() -> None:
    """Measure, print, save."""
    options = parse(sys.argv[1:])
    if options.one is not None:
        print(json.dumps(simulated.simulate(options.one, _say)))
        return
    # Each in a fresh process: memory is measured too.
    command = [sys.executable, "-m", "benchmarks.scale", "--one"]
    found = {
        "simulated": [
            json.loads(subprocess.run([*command, str(n)], check=True, stdout=subprocess.PIPE).stdout)
            for n in options.engines
        ],
        "real": [real.measure(n, options.lanes, _say) for n in options.real],
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    if found["simulated"]:
        print(table("Simulated: the controller's own processor time", SIMULATED, found["simulated"]))
    if found["real"]:
        print(table(f"\nReal sessions ({options.lanes})", REAL, found["real"]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
