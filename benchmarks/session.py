"""One system, started once, and measured: a process of its own, which `benchmarks.runner` starts.

Each finding is a line of JSON in the file that ends the command line, so
that what was found stays when the session does not come to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from benchmarks import rows as table
from benchmarks import systems, works
from benchmarks.isolation import check
from benchmarks.processes import adopt_orphans, end_descendants, unique_bytes
from benchmarks.systems.base import NotOffered, System

#: Seconds by which a row that was begun may be late.
GRACE = 15


class TooSlowError(Exception):
    """A row took longer than it may."""


@contextlib.contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Raise `TooSlowError` here where the block takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: what is raised within a finalizer is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Session:
    """What is found, written down as it is found."""

    def __init__(self, file: IO[str], context: works.Context, seconds: int) -> None:
        self.file = file
        self.context = context
        self.seconds = seconds

    def say(self, **finding: Any) -> None:
        """Write a finding down."""
        self.file.write(json.dumps(finding) + "\n")
        self.file.flush()

    def measure(self, row: table.Row, system: Any) -> None:
        """Measure one row; a failure is a finding too."""
        assert row.run is not None, row.key
        begin = time.perf_counter()
        left = self.context.left
        if left <= 0:
            self.say(row=row.key, missing=works.NO_TIME)
            return
        try:
            with patience(math.ceil(min(self.seconds, left + GRACE))):
                values = row.run(system, self.context)
        except NotOffered as reason:
            self.say(row=row.key, missing=str(reason))
        except Exception as error:  # noqa: BLE001 -- whatever a peer raises is its result
            self.say(row=row.key, missing=f"{type(error).__name__}: {error}"[:300], failed=True)
        else:
            self.say(row=row.key, values=values, took=time.perf_counter() - begin)

    def life(self, system: System, keys: Sequence[str]) -> None:
        """Start and stop, and the memory in between."""
        with patience(self.seconds):
            begin = time.perf_counter()
            system.start()
            pids = system.all(os.getpid)
            first = time.perf_counter() - begin
        works.expect(len(set(pids)), system.n, "engines")
        found = {"first-result": first}
        processes = [psutil.Process(pid) for pid in pids]
        try:
            found["engine-memory"] = statistics.median(unique_bytes(pids))
            with contextlib.suppress(NotOffered):
                found["head-memory"] = sum(unique_bytes(system.head_pids()))
        finally:
            with patience(self.seconds):
                begin = time.perf_counter()
                system.stop()
                psutil.wait_procs(processes)
                found["stop"] = time.perf_counter() - begin
        for key in keys:
            if key in found:
                self.say(row=key, values=[found[key]])
            else:
                self.say(row=key, missing="has no scheduler process")

    def work(self, system: System, rows: Sequence[table.Row]) -> None:
        """All other rows, one after the other."""
        with patience(self.seconds):
            system.start()
            for _ in range(3):
                system.all(os.getpid)
        try:
            for row in rows:
                self.measure(row, system)
        finally:
            self.say(facts=self.context.facts)
            with patience(self.seconds):
                system.stop()


def main() -> None:
    """Run one session, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system")
    parser.add_argument("keys", help="keys of rows, with commas between")
    parser.add_argument("findings", type=Path)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--patience", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all rows together")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    check()
    adopt_orphans()
    keys = options.keys.split(",")
    folder = options.findings.parent
    with options.findings.open("w") as file:
        context = works.Context(folder, options.small, options.budget, time.monotonic() + options.seconds)
        session = Session(file, context, options.patience)
        try:
            if options.system == "limits":
                for row in table.LIMITS:
                    session.measure(row, None)
                return
            cls = systems.load(options.system)
            session.say(note=cls.note, version=version(cls.distribution) if cls.distribution else "")
            system = cls(options.engines, folder)
            rows = sorted([row for row in table.WORK if row.key in keys], key=table.urgency)
            if rows:
                session.work(system, rows)
            else:
                session.life(system, keys)
        except Exception as error:  # noqa: BLE001 -- a peer that does not start is a finding
            session.say(problem=f"{type(error).__name__}: {error}"[:300])
        finally:
            end_descendants()


if __name__ == "__main__":
    main()
    # A peer's threads may not end by themselves; all is written down, and all children are gone.
    sys.stdout.flush()
    os._exit(0)
