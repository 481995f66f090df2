"""The count of what ran, and ran twice, in the tests with faults."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.notes import read
from tests.faults.tally import Tally

#: All others were spared.
KILLED = 2


@pytest.mark.parametrize(
    ("lines", "commands", "tasks", "twice"),
    [
        (["command c-1@0 1", "command c-1@1 3", "command c-2@0 1"], 3, 0, []),
        (["command c-1@0 2", "command c-1@0 1"], 1, 0, ["c-1@0"]),
        (["task c-1#0/1 1", "task c-1#0/2 1", "ended c-1#0 1", "task c-1#1/1 1"], 0, 2, []),
        (["task c-1#0/1 1", "task c-1#0/1 1"], 0, 1, ["c-1#0/1 in 1"]),
        (["task c-1#0/1 2", "ended c-1#0 2", "task c-1#0/1 1", "ended c-1#0 1"], 0, 1, []),
        (["task c-1#0/1 3", "ended c-1#0 3", "task c-1#0/2 1", "ended c-1#0 1"], 0, 1, ["c-1#0"]),
    ],
)
def test_what_ran_twice(
    tmp_path: Path, lines: list[str], commands: int, tasks: int, twice: list[str]
) -> None:
    path = tmp_path / "notes"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert read(path, lambda pid: pid != KILLED) == (commands, tasks, twice)


def test_nothing_ran(tmp_path: Path) -> None:
    assert read(tmp_path / "none", lambda pid: True) == (0, 0, [])


def test_what_is_told() -> None:
    tally = Tally()
    sent: list[tuple[int, int]] = []
    kill = tally.watched(lambda pid, number: sent.append((pid, number)))
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, 0, signal.SIGKILL):
        kill(os.getpid(), number)
    assert len(sent) == 5
    tally.commands, tally.left["segments"] = 7, 1
    assert tally.lines() == [
        "faults injected: 3 (processes killed 2, processes stopped 1)",
        "commands run: 7, tasks run: 0",
        "results lost: 0, run twice: 0",
        "left: 1 (files 0, processes 0, segments 1)",
    ]


def test_the_counts_of_several_processes_add_up() -> None:
    whole = Tally()
    for lost in (0, 1):
        part = Tally()
        part.fault("connections cut", 2)
        part.commands, part.lost = 5, lost
        whole.add(part.counts())
    assert whole.lines() == [
        "faults injected: 4 (connections cut 4)",
        "commands run: 10, tasks run: 0",
        "results lost: 1, run twice: 0",
        "left: 0 (files 0, processes 0, segments 0)",
    ]


def test_a_process_that_is_gone_was_not_killed() -> None:
    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    tally = Tally()
    with pytest.raises(ProcessLookupError):
        tally.watched(gone)(1, signal.SIGKILL)
    assert not tally.faults
