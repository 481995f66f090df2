"""Runs the sessions, system after system, again and again, and puts together what they found."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from benchmarks import rows as table
from benchmarks.processes import end_descendants

#: The system that is the machine itself, and how many rows it is worth.
LIMITS, LIMITS_WEIGHT = "limits", 4
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Results:
    """All that one run has found.

    Attributes
    ----------
    machine, options : dict
    systems : dict
        By name: ``version``, ``note``, ``facts``.
    values : dict
        By row and system: the median of each session, in their order.
    missing : dict
        By row and system: why there is no value.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, system: str, findings: Sequence[Mapping[str, Any]]) -> None:
        """Take in what a session has written down."""
        about = self.systems.setdefault(system, {"version": "", "note": "", "facts": {}, "problems": []})
        for finding in findings:
            if "values" in finding:
                median = statistics.median(finding["values"])
                self.values.setdefault(finding["row"], {}).setdefault(system, []).append(median)
            elif "missing" in finding:
                self.missing.setdefault(finding["row"], {})[system] = finding["missing"]
            elif "facts" in finding:
                about["facts"].update(finding["facts"])
            elif "version" in finding:
                about["version"], about["note"] = finding["version"], finding["note"]
            elif "problem" in finding:
                about["problems"].append(finding["problem"])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """What `save` wrote."""
        return cls(**json.loads(path.read_text()))


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


@dataclass
class Runner:
    """Runs sessions, each in a process and a folder of its own.

    Parameters
    ----------
    engines : int
    small : bool
        Everything much smaller, to try things out.
    budget : float
        Seconds that one row of a growing series may be expected to take.
    patience : int
        Seconds that any row may take.
    say : callable
        Takes a line about what goes on.
    seconds : float
        For everything. A session has its share of what is left, and what it
        leaves is for those after it.
    """

    engines: int
    small: bool
    budget: float
    patience: int
    say: Callable[[str], None]
    seconds: float = math.inf

    def run(self, systems: Sequence[str], rows: Sequence[table.Row], repeats: int, results: Results) -> None:
        """Every system, `repeats` times, beginning with another each time."""
        life = [row.key for row in rows if row in table.LIFE]
        work = [row.key for row in rows if row not in table.LIFE]
        plan = planned(systems, [keys for keys in (life, work) if keys], repeats)
        end = time.monotonic() + self.seconds
        for number, (repeat, system, keys) in enumerate(plan):
            begin = time.monotonic()
            weights = [_weight(system, keys) for _, system, keys in plan[number:]]
            findings = self.session(system, keys, (end - begin) * weights[0] / sum(weights))
            results.add(system, findings)
            self.say(
                f"{repeat + 1}/{repeats} {system}: {_outcome(findings)} in {time.monotonic() - begin:.0f} s"
            )

    def session(self, system: str, keys: Sequence[str], seconds: float = math.inf) -> list[dict[str, Any]]:
        """What one session finds that has so many seconds."""
        folder = Path(tempfile.mkdtemp(prefix="b-"))  # short: sockets lie below it
        try:
            findings = folder / "findings"
            command = [sys.executable, "-m", "benchmarks.session", system, ",".join(keys), str(findings)]
            command += ["--engines", str(self.engines), "--budget", f"{self.budget:g}"]
            command += ["--patience", str(self.patience), "--seconds", f"{seconds:g}"]
            command += ["--small"] if self.small else []
            with (folder / "output").open("w+") as output:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                found: list[dict[str, Any]] = []
                try:
                    process.wait(min(self.patience * (len(keys) + 2), seconds + 3 * self.patience))
                except subprocess.TimeoutExpired:
                    found = [{"problem": "the session did not end"}]
                finally:
                    end_descendants()
                    process.wait()
                if findings.exists():
                    found += [json.loads(line) for line in findings.read_text().splitlines()]
                else:
                    output.seek(0)
                    found.append({"problem": output.read()[-300:]})
            return found
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # a log may still be written to it


def planned(
    systems: Sequence[str], sets: Sequence[Sequence[str]], repeats: int
) -> list[tuple[int, str, Sequence[str]]]:
    """Repeat, system and keys of each session: every repeat begins with another system."""
    plan: list[tuple[int, str, Sequence[str]]] = []
    for repeat in range(repeats):
        turn = repeat % len(systems)
        plan.append((repeat, LIMITS, [LIMITS]))
        plan += [(repeat, system, keys) for system in [*systems[turn:], *systems[:turn]] for keys in sets]
    return plan


def _weight(system: str, keys: Sequence[str]) -> int:
    """The share of a session in the time there is, against others."""
    return LIMITS_WEIGHT if system == LIMITS else len(keys)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a session: whatever it leaves in a home folder goes with it."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "PYTHONPATH": path,
        "PYTHONWARNINGS": "ignore",
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "IPYTHON1_DIR": str(folder / "ipython1"),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _outcome(findings: Sequence[Mapping[str, Any]]) -> str:
    done = sum("values" in finding for finding in findings)
    words = [f"{done} rows"]
    words += [
        f"{finding['row']} failed: {finding['missing']}" for finding in findings if finding.get("failed")
    ]
    words += [finding["problem"] for finding in findings if "problem" in finding]
    return "; ".join(words)
