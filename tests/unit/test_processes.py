from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipython1.kernel.processes import (
    die_with_parent,
    exit_words,
    kill_group,
    redirect,
    remove_if_empty,
    remove_unused_logs,
    tail,
)


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does `work`; 99 where that raises."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by signal 9 (SIGKILL)"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-63, "killed by signal 63"),
    ],
)
def test_exit_words(status: int, words: str) -> None:
    assert exit_words(status) == words


def test_tail_is_the_last_lines_of_the_last_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    assert tail(log, lines=2) == "line 998\nline 999"
    assert tail(log, lines=50, size=18) == "line 998\nline 999"
    log.write_bytes(b"caf\xc3\xa9 \xff\xfe")
    assert tail(log, size=4) == "� ��"  # neither cut nor broken bytes hurt


def test_tail_of_nothing_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""
    (tmp_path / "empty").touch()
    assert tail(tmp_path / "empty") == ""


def test_only_an_empty_log_is_removed(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.touch()
    full.write_text("x")
    for log in (empty, full, tmp_path / "none"):
        remove_if_empty(log)
    assert list(tmp_path.iterdir()) == [full]


def test_logs_that_nobody_can_write_to_any_more(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    for name in ("engine-old.log", "engine-old.out", "engine-said.log", "ipengine.out"):
        (tmp_path / name).write_text("said" * ("said" in name))
    (tmp_path / "engine-x.log").symlink_to(tmp_path / "ipengine.out")

    def write() -> None:
        redirect(tmp_path / "engine-new.log", tmp_path / "engine-new.out")
        remove_unused_logs(tmp_path)
        os.write(2, b"err\n")

    assert in_child(write) == 0
    assert names() == ["engine-new.log", "engine-new.out", "engine-said.log", "engine-x.log", "ipengine.out"]
    remove_unused_logs(tmp_path)
    assert names() == ["engine-new.log", "engine-said.log", "engine-x.log", "ipengine.out"]


def test_redirect(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")

    def write() -> None:
        redirect(log)
        os.write(1, b"out\n")
        os.write(2, b"err\n")
        assert os.read(0, 10) == b""

    assert in_child(write) == 0
    assert log.read_bytes() == b"before\nout\nerr\n"


def test_redirect_with_a_file_for_stdout(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"

    def write() -> None:
        redirect(log, out)
        os.write(1, b"out\n")
        os.write(2, b"err\n")
        assert [os.pread(fd, 10, 0) for fd in (1, 2)] == [b"out\n", b"err\n"]

    assert in_child(write) == 0
    assert (log.read_bytes(), out.read_bytes()) == (b"err\n", b"out\n")


def test_redirect_makes_a_private_log_and_works_without_standard_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def write() -> None:
        os.umask(0)
        for fd in (0, 1, 2):
            os.close(fd)
        redirect(log)
        os.write(2, b"err\n")
        assert os.read(0, 10) == b""

    assert in_child(write) == 0
    assert log.read_bytes() == b"err\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_die_with_parent_ends_a_process_whose_parent_is_gone_already() -> None:
    assert in_child(lambda: die_with_parent(os.getppid())) == 0
    assert in_child(lambda: die_with_parent(os.getpid())) == 1


def test_kill_group_kills_what_the_leader_started() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    leader = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert leader.stdout is not None
    assert leader.stdin is not None
    assert leader.stdout.readline() == b"1\n"
    kill_group(leader.pid)
    assert leader.wait() == -signal.SIGKILL
    assert leader.stdout.read() == b""  # EOF: the grandchild holds it no more
    leader.stdout.close()
    leader.stdin.close()
    kill_group(leader.pid)  # nobody left: not an error
