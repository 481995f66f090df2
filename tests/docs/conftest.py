"""A real cluster for each page of the documentation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
STARTED_WITHIN, STOPPED_WITHIN = 60.0, 30.0


class Running(NamedTuple):
    """A cluster that `ipcluster` started: what it printed, and where to run its users."""

    banner: list[str]
    port: str
    env: dict[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose `IPYTHON1_DIR` is still empty."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("IPYTHON1_")}
    paths = [os.fspath(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **keep,
        "IPYTHON1_DIR": os.fspath(tmp_path / "state"),
        "IPYTHONDIR": os.fspath(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "100",
    }


@pytest.fixture
def cluster(environment: dict[str, str], tmp_path: Path) -> Iterator[Running]:
    """What ``ipcluster -n 4`` starts, on a free port."""
    command = [sys.executable, "-m", "ipython1.scripts.ipcluster", "-n", "4", "--port", "0"]
    with (tmp_path / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        watchdog = threading.Timer(STARTED_WITHIN, process.kill)  # ends the reading below
        watchdog.start()
        assert process.stdout is not None
        banner = []
        for line in process.stdout:
            banner.append(line.rstrip("\n"))
            if line.startswith("stop"):
                break
        watchdog.cancel()
        watchdog.join()
        if process.poll() is not None or not banner or not banner[-1].startswith("stop"):
            process.kill()
            process.wait()
            errors.seek(0)
            pytest.fail("\n".join(["ipcluster did not start:", *banner, errors.read()]), pytrace=False)
        port = banner[0].split()[1].rpartition(":")[2]
        yield Running(banner, port, environment)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"ipcluster did not stop within {STOPPED_WITHIN:.0f} s of Ctrl-C", pytrace=False)
        finally:
            process.stdout.close()
        errors.seek(0)
        assert process.returncode == 0, errors.read()
