"""A run of the whole suite uses the cores of the machine: pytest-xdist spreads the modules over workers.

Tests that count what dead processes left in ``/dev/shm`` must not see what the tests of another worker
kill, so each worker has a ``/dev/shm`` of its own. Where it may not (that takes root, on Linux), all
tests with real processes stay with one worker, and the others have the unit tests.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Any

import pytest

from tests.faults.tally import TALLY

#: More workers than this disturb each other: a test may have ten processes.
MOST = 4
#: Options by which somebody chooses tests, who should not wait for workers.
CHOICES = ("collectonly", "keyword", "lf", "markexpr")
#: Of mount(2) and unshare(2).
_NEWNS, _REC_PRIVATE, _NOSUID_NODEV = 0x20000, 0x4000 | 0x40000, 0x2 | 0x4

APART = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many ``-n auto`` starts: none for less than everything."""
    if config.args != config.getini("testpaths") or any(config.getoption(name) for name in CHOICES):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST) if cores > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    """Here: whether workers can be apart. In a worker: be it."""
    if hasattr(config, "workerinput"):
        for name in {"COLUMNS", "LINES"} - set(config.workerinput["environ"]):
            os.environ.pop(name, None)  # readline in the process that starts us sets them
        if config.workerinput["apart"]:
            _leave_shared_memory()
    elif config.getoption("tx", None):
        config.stash[APART] = _may_leave_shared_memory()


def pytest_report_header(config: pytest.Config) -> str | None:
    """How they are spread."""
    if APART not in config.stash:
        return None
    return "workers: " + (
        "each with a /dev/shm of its own"
        if config.stash[APART]
        else "one for all tests with processes, as /dev/shm is shared (without root, or mounts)"
    )


def _may_leave_shared_memory() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _leave_shared_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for done in (
        libc.unshare(_NEWNS),
        libc.mount(b"none", b"/", None, _REC_PRIVATE, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _NOSUID_NODEV, b"mode=1777"),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), "no /dev/shm of its own")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs what: module by module, in the order of the folders; the short unit tests come last."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if config.stash[APART] or module.startswith("tests/unit/") else "processes"

    config.option.loadscopereorder = False
    return ByModule(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Told to a worker."""
    node.workerinput |= {"apart": node.config.stash[APART], "environ": list(os.environ)}


# -- what they found ----------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands in its counts."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = TALLY.counts()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Its counts come in; one that crashed has none, and fails the run."""
    if hasattr(node, "workeroutput"):
        TALLY.add(node.workeroutput["tally"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Times that tests measured, and the count where any tests with faults ran."""
    figures = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    for title, lines in (("measured", figures), ("faults", TALLY.lines() if TALLY.faults else [])):
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
