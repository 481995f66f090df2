"""The examples run under ``ipcluster run`` and with a running cluster, and check themselves."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import ROOT, Running

#: A smaller size than the default of each example, and what it prints last.
EXAMPLES = {
    "wordfreq.py": ([], "serial and parallel counts are equal"),
    "mc_options.py": (["2000"], "serial and parallel prices are equal"),
    "pi.py": (["500"], "serial and parallel digits are equal, and Machin's formula gives the same"),
    "rmt_eigenvalues.py": (["1000"], "serial and parallel spacings are equal"),
    "digits_search.py": (["2"], "serial and parallel accuracies are equal"),
    "option_grid.py": (["0.005"], "serial and parallel prices are equal"),
    "crawl_docs.py": (["json", "urllib"], "serial and parallel crawls are equal"),
}
#: Those for engines of another kind, and where they are tested.
ELSEWHERE = {"mpi_allreduce.py": "tests/services/test_mpi.py"}
#: What some of them need.
NEEDED = {"digits_search.py": "sklearn"}


def test_every_example_is_tested() -> None:
    tested = EXAMPLES.keys() | ELSEWHERE.keys()
    assert {path.name for path in (ROOT / "docs/examples").glob("*.py")} == tested


def check_support_vector_machines(lines: list[str]) -> None:
    """The best of the table is the one that is named, and it reads well."""
    table = [[float(text) for text in re.findall(r"[\d.]+", line)] for line in lines[2:4]]
    best = re.match(r"best: C = (\S+), gamma = (\S+) with ([\d.]+) %; it reads ([\d.]+) %", lines[4])
    assert best
    c, gamma, accuracy, unseen = map(float, best.groups())
    assert [row[0] for row in table] == [0.1, 1000.0]
    [row] = [row for row in table if row[0] == c]
    assert row[1 + [0.0001, 1.0].index(gamma)] == accuracy == max(max(row[1:]) for row in table)
    assert accuracy > 97
    assert unseen > 97


def check_asian_options(lines: list[str]) -> None:
    """The errors are as small as was asked for, and one price is known."""
    errors = [float(text) for line in lines[2:] for text in re.findall(r"±([\d.]+)", line)]
    assert len(errors) == 16
    assert all(0 < error <= 0.005 for error in errors)
    blocks = sum(int(text) for line in lines if "blocks" in line for text in line.split()[1:])
    assert lines[0] == f"Asian calls, spot 100: {blocks} tasks of 20,000 paths, errors below 0.005"
    [row] = [line.split() for line in lines if line.startswith("   100.0")]
    assert abs(float(row[1]) - 3.90496) < 0.003  # 400 blocks of another seed give this, up to 0.00003


def check_crawl(lines: list[str]) -> None:
    """Every page was found, and what was to fail did."""
    found = re.match(r"(\d+) pages with (\d+) links to (\d+) addresses$", lines[0])
    broken = re.match(r"(\d+) of these are broken, among them .", lines[1])
    failed = re.match(r"(\d+) were unavailable at first, and 1 engine was killed on the way$", lines[2])
    assert found
    assert broken
    assert failed
    pages, links, addresses = map(int, found.groups())
    modules = sum(
        1 for name in ("json", "urllib") for _ in pkgutil.iter_modules(import_module(name).__path__)
    )
    main_modules = sum(find_spec(f"{name}.__main__") is not None for name in ("json", "urllib"))
    assert pages == 1 + 2 + modules - main_modules
    assert addresses == pages + int(broken[1])
    assert links > addresses
    assert int(failed[1]) == -(-pages // 6)


#: What else must be right in what they print.
CHECKS = {
    "digits_search.py": check_support_vector_machines,
    "option_grid.py": check_asian_options,
    "crawl_docs.py": check_crawl,
}


def need(name: str) -> None:
    """Skip the test where what the example needs is not installed."""
    module = NEEDED.get(name)
    if module is not None and find_spec(module) is None:
        pytest.skip(f"{name} needs {module}, which is not installed")


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
    need(name)
    arguments, last = EXAMPLES[name]
    done = run(
        ["-m", "ipython1.scripts.ipcluster", "run", "-n", "2", f"docs/examples/{name}", *arguments],
        environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert last in done.stdout.splitlines()


@pytest.mark.parametrize("name", EXAMPLES)
def test_with_a_running_cluster(name: str, cluster: Running) -> None:
    need(name)
    arguments, last = EXAMPLES[name]
    done = run([f"docs/examples/{name}", *arguments], cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert last in done.stdout.splitlines()
    assert "4 engines" in done.stdout
    if name in CHECKS:
        CHECKS[name](done.stdout.splitlines())


def test_the_files_of_wordfreq(cluster: Running, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("To be, or not to be:\nthat is the question.\n")
    done = run(["docs/examples/wordfreq.py", str(text)], cluster.env)
    assert done.stdout.splitlines()[:3] == [
        "10 words, 8 different, in 2 lines",
        "  be                 2",
        "  to                 2",
    ]


def test_without_scikit_learn(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("raise ImportError\n")
    env = {**environment, "PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    done = run(["docs/examples/digits_search.py"], env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "This example needs scikit-learn: pip install scikit-learn\n"
