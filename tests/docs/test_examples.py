"""The examples run under ``ipcluster run`` and with a running cluster, and check themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Running

#: A smaller size than the default of each example, and what it prints last.
EXAMPLES = {
    "wordfreq.py": ([], "serial and parallel counts are equal"),
    "mc_options.py": (["2000"], "serial and parallel prices are equal"),
    "pi.py": (["500"], "serial and parallel digits are equal, and Machin's formula gives the same"),
    "rmt_eigenvalues.py": (["1000"], "serial and parallel spacings are equal"),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "docs/examples").glob("*.py")} == EXAMPLES.keys()


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_under_ipcluster_run(name: str, environment: dict[str, str]) -> None:
    arguments, last = EXAMPLES[name]
    done = run(
        ["-m", "ipython1.scripts.ipcluster", "run", "-n", "2", f"docs/examples/{name}", *arguments],
        environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert last in done.stdout.splitlines()


def test_with_a_running_cluster(cluster: Running, tmp_path: Path) -> None:
    for name, (arguments, last) in EXAMPLES.items():
        done = run([f"docs/examples/{name}", *arguments], cluster.env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert last in done.stdout.splitlines()
        assert "4 engines" in done.stdout


def test_the_files_of_wordfreq(cluster: Running, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("To be, or not to be:\nthat is the question.\n")
    done = run(["docs/examples/wordfreq.py", str(text)], cluster.env)
    assert done.stdout.splitlines()[:3] == [
        "10 words, 8 different, in 2 lines",
        "  be                 2",
        "  to                 2",
    ]
