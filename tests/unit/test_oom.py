"""Whether a SIGKILL came from the kernel, for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipython1.kernel.engine.oom import INTERVAL, LASTS, OutOfMemory, counters


@pytest.fixture
def events(tmp_path: Path) -> Path:
    events = tmp_path / "memory.events"
    say(events, 3)
    return events


def say(events: Path, count: int) -> None:
    events.write_text(f"low 0\nhigh 0\nmax 12\noom 4\noom_kill {count}\noom_group_kill 0\n")


def test_a_count_that_grew_just_now(events: Path) -> None:
    memory = OutOfMemory([events])
    assert not memory.killed(100.0)  # those before do not count
    say(events, 4)
    assert memory.killed(101.0)
    assert memory.killed(101.0 + LASTS / 2)
    assert not memory.killed(101.0 + LASTS)


def test_a_count_that_grew_long_ago(events: Path) -> None:
    memory = OutOfMemory([events])
    say(events, 4)
    memory.look(100.0)
    assert not memory.killed(100.0 + LASTS)


def test_looks_are_rare(events: Path) -> None:
    memory = OutOfMemory([events])
    memory.look(100.0)
    say(events, 4)
    memory.look(100.0 + INTERVAL / 2)
    assert memory.killed(100.0 + LASTS + 1)  # seen only now
    memory.look(100.0 + LASTS + 1 + INTERVAL)
    assert memory.killed(100.0 + LASTS + 2)


def test_the_first_file_that_counts_is_used(tmp_path: Path, events: Path) -> None:
    (tmp_path / "other").write_text("pgfault 17\n")
    memory = OutOfMemory([tmp_path / "none", tmp_path / "other", events])
    say(events, 4)
    assert memory.killed(1.0)


@pytest.mark.parametrize("text", ["", "oom_kill many\n", None])
def test_without_a_count_nothing_is_said(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "events"
    if text is not None:
        file.write_text(text)
    memory = OutOfMemory([file])
    memory.look(100.0)
    assert not memory.killed(101.0)


def test_a_group_that_is_gone(events: Path) -> None:
    memory = OutOfMemory([events])
    events.unlink()
    assert not memory.killed(101.0)


def test_where_the_kernel_counts(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/old\n0::/user.slice/mine\n")
    groups = Path("/g")
    assert counters(tmp_path, groups) == [groups / "user.slice/mine/memory.events", tmp_path / "vmstat"]
    assert counters(tmp_path / "none", groups) == []
    assert counters()  # here
