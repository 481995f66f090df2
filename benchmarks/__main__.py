"""``python -m benchmarks``: the same work on ipython1 and on its peers."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import isolation, report
from benchmarks import rows as table
from benchmarks.processes import adopt_orphans
from benchmarks.runner import Results, Runner, machine
from benchmarks.systems import OURS, PEERS, installed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peers", type=_names, default=list(PEERS), help=f"with commas between: {','.join(PEERS)}; or none"
    )
    groups = ", ".join(dict.fromkeys(row.group for row in table.ROWS))
    parser.add_argument(
        "--only",
        type=_names,
        default=[],
        help=f"{table.IMPORTANT}, groups ({groups}) or beginnings of row keys",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="folder for what is saved"
    )
    parser.add_argument("--small", action="store_true", help="sizes of a hundredth: to try things out")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for one row of a growing series")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for everything, about")
    parser.add_argument("--patience", type=int, default=180, help="seconds that any row may take")
    parser.add_argument("--report", type=Path, help="measure nothing, show this results.json")
    parser.add_argument("--page", type=Path, help="write the documentation page there")
    return parser.parse_args(arguments)


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name and name != "none"]


def measure(options: argparse.Namespace) -> Results:
    """Run everything that was asked for; only where there is no network but loopback."""
    rows = table.chosen(table.ROWS, options.only)
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown or not rows:
        raise SystemExit(f"benchmarks: there is no {' '.join(unknown) or ' '.join(options.only)}.")
    isolation.check()
    adopt_orphans()
    absent = [name for name in options.peers if not installed(name)]
    if absent:
        print(f"not installed, left out: {', '.join(absent)}", file=sys.stderr)
    systems = [OURS, *[name for name in options.peers if name not in absent]]
    asked = ("engines", "repeats", "small", "budget", "only")
    results = Results(machine=machine(), options={name: getattr(options, name) for name in asked})
    # Also where it runs in the background of a shell, which ignores Ctrl-C: all that was started is ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    runner = Runner(
        options.engines, options.small, options.budget, options.patience, _say, 60 * options.minutes
    )
    try:
        runner.run(systems, rows, options.repeats, results)
    except KeyboardInterrupt:
        print("interrupted: this is what was found so far", file=sys.stderr)
    return results


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure or load, print, save."""
    options = parse(sys.argv[1:])
    if options.report is not None:
        results = Results.load(options.report)
        print(report.text(results))
    else:
        if isolation.MARK not in os.environ:
            isolation.enter(sys.argv[1:], os.environ)
        results = measure(options)
        options.out.mkdir(parents=True, exist_ok=True)
        results.save(options.out / "results.json")
        text = report.text(results)
        (options.out / "table.rst").write_text(text)
        print(text)
        if importlib.util.find_spec("matplotlib") is None:
            print("no plot: matplotlib is not installed", file=sys.stderr)
        else:
            report.plot(results, options.out / "plot.png")
    if options.page is not None:
        report.write_page(results, options.page)


if __name__ == "__main__":
    try:
        main()
    except isolation.NotIsolatedError as error:
        sys.exit(f"benchmarks: {error}")
