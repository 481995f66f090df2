"""`ipcluster top` in a pseudo terminal, and `ipcluster status` for scripts, with a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ipython1.kernel import client
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.state import State
from tests.integration.test_ipcluster import IPCLUSTER, Running, environment, ipcluster, until

pytestmark = pytest.mark.timeout(180)
ENTER, LEAVE, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


class Terminal:
    """A program in a terminal of 130 columns and 24 lines."""

    def __init__(self, *command: str, **extra: str) -> None:
        env = environment(TERM="xterm", **extra)
        self.program = pexpect.spawn(
            command[0], list(command[1:]), env=env, timeout=30, encoding="utf-8", dimensions=(24, 130)
        )
        self.modes = termios.tcgetattr(self.program.child_fd)

    def expect(self, pattern: str) -> str:
        """Wait for a text; what came before it."""
        self.program.expect(pattern)
        return str(self.program.before)

    def end(self) -> tuple[int, str]:
        """Its status, and the last of what it wrote; the terminal must be as it was."""
        text = self.expect(pexpect.EOF)
        assert termios.tcgetattr(self.program.child_fd) == self.modes
        self.program.close()
        status = self.program.exitstatus
        return (-self.program.signalstatus if status is None else status), text


@pytest.fixture
def spawn() -> Iterator[Callable[..., Terminal]]:
    """Starts a program in a terminal; it is ended with the test."""
    started: list[Terminal] = []

    def spawn(*command: str, **extra: str) -> Terminal:
        started.append(Terminal(*command, **extra))
        return started[-1]

    yield spawn
    for terminal in started:
        terminal.program.close(force=True)


def left(text: str) -> bool:
    """Whether the screen of before is there again, with its cursor."""
    return LEAVE in text and CURSOR in text and ENTER not in text.rpartition(LEAVE)[2]


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (lambda top: top.program.send("q"), 0),
        (lambda top: top.program.sendintr(), 0),
        (lambda top: top.program.send("xQ"), 0),
        (lambda top: top.program.kill(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
    ids=["q", "Ctrl-C", "Q", "SIGTERM"],
)
def test_it_shows_what_runs_and_leaves_the_terminal_as_it_was(
    mec: client.MultiEngineClient,
    spawn: Callable[..., Terminal],
    ends: Callable[[Terminal], None],
    status: int,
) -> None:
    label = "import time; time.sleep(60)  # [b]\x1b[31mslow"
    pending = mec.execute(label, targets=1, block=False)
    top = spawn(*IPCLUSTER, "top")
    top.expect(re.escape(ENTER))
    top.expect(r"2: 1 busy, 1 idle;")
    row = top.expect(r"# \[b\]�\[31mslow")
    pid = mec.status()[1]["pid"]
    assert re.search(rf"\b1 .*\b{pid} .*busy.* s  import time; time\.sleep\(60\)  $", row)
    shown = re.findall(r"busy.*?(\d+\.\d) s  import", row)
    top.expect(r"2: 1 busy, 1 idle;")
    later = re.findall(r"busy.*?(\d+\.\d) s  import", top.expect(r"# \[b\]"))
    assert float(later[-1]) > float(shown[-1]), "it is live"
    ends(top)
    found, text = top.end()
    assert found == status
    assert left(text)
    assert "Traceback" not in text
    mec.interrupt(1)
    with pytest.raises(client.CompositeError, match="KeyboardInterrupt"):
        pending.get_result(timeout=30)


def test_it_can_be_suspended(cluster: Running, spawn: Callable[..., Terminal]) -> None:
    shell = spawn("/bin/bash", "--norc", "-i", PS1="ready> ")
    shell.expect("ready> ")
    shell.program.sendline(f"{sys.executable} -m ipython1.scripts.ipcluster top")
    shell.expect(re.escape(ENTER))
    shell.expect("2: 2 idle")
    shell.program.send("\x1a")
    assert left(shell.expect("Stopped"))
    shell.program.sendline("fg")
    shell.expect(re.escape(ENTER))
    shell.expect("2: 2 idle")
    shell.program.send("q")
    assert left(shell.expect("ready> $"))
    shell.program.sendline("echo status=$?")
    shell.expect("status=0")


def test_a_controller_that_comes_back(
    mec: client.MultiEngineClient, cluster: Running, spawn: Callable[..., Terminal]
) -> None:
    top = spawn(*IPCLUSTER, "top")
    top.expect("2: 2 idle")
    before = State.read(ClusterFiles("default")).controller
    os.kill(before, signal.SIGKILL)
    top.expect(r"trouble .*\d s old: The controller of cluster default does not tell what it does: ")
    top.expect(r"up \d\.\d s")
    until(lambda: mec.get_ids() == [0, 1])
    top.expect(r"2: 2 idle")
    top.program.send("q")
    assert top.end()[0] == 0
    assert State.read(ClusterFiles("default")).controller != before


def test_it_ends_with_the_cluster(spawn: Callable[..., Terminal], ipython1_dir: Path) -> None:
    running = Running("start", "-n", "1", "--port", "0", "--cluster", "short")
    try:
        running.banner()
        top = spawn(*IPCLUSTER, "top", "--cluster", "short")
        top.expect("1: 1 idle")
        assert ipcluster("stop", "--cluster", "short").returncode == 0
        status, text = top.end()
        assert status == 3
        assert left(text.partition("ipcluster: ")[0])
        assert "Cluster short is not running." in text
    finally:
        running.family.kill()
        running.process.communicate(timeout=60)


def test_once_and_in_a_pipe(mec: client.MultiEngineClient, spawn: Callable[..., Terminal]) -> None:
    mec.execute("a = 1")
    done = ipcluster("top")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ipython1     cluster default, ")
    assert lines[1].startswith("engines      2: 2 idle; ")
    assert [line.split()[0] for line in lines[6:9]] == ["id", "0", "1"]
    assert "\x1b" not in done.stdout
    assert not any(line.endswith(" ") for line in lines)
    once = spawn(*IPCLUSTER, "top", "--once")
    status, text = once.end()
    assert (status, ENTER in text, "2: 2 idle" in text) == (0, False, True)
    narrow = ipcluster("top", env=environment(COLUMNS="72", PYTHONIOENCODING="ascii"))
    assert narrow.returncode == 0
    assert max(map(len, narrow.stdout.splitlines())) <= 72


def test_it_is_light(cluster: Running) -> None:
    code = (
        "import sys\nfrom ipython1.scripts.ipcluster import main\n"
        "try:\n    main(['top'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('twisted', 'foolscap', 'IPython', 'msgpack') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr


def test_without_a_dashboard(ipython1_dir: Path) -> None:
    running = Running("start", "-n", "1", "--port", "0", "--cluster", "blind", "--no-dashboard")
    try:
        running.banner()
        done = ipcluster("top", "--cluster", "blind")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("ipcluster: Cluster blind has no dashboard")
        assert done.stderr.endswith("Use: ipcluster status --cluster blind\n")
    finally:
        running.family.kill()
        running.process.communicate(timeout=60)


def status() -> tuple[int, Any]:
    """What `ipcluster status` tells a script."""
    done = ipcluster("status", "-o", "json")
    return done.returncode, json.loads(done.stdout)


def test_status_for_scripts(mec: client.MultiEngineClient) -> None:
    until(lambda: all(row["rss"] for row in mec.status()))
    found = State.read(ClusterFiles("default"))
    code, told = status()
    assert code == 0
    known = "cluster state pid controller address wanted engines started dashboard links"
    assert set(told) == set(known.split())
    assert (told["cluster"], told["state"], told["wanted"]) == ("default", "running", 2)
    assert (told["pid"], told["controller"], told["dashboard"]) == (
        found.pid,
        found.controller,
        found.dashboard,
    )
    known = "id uuid host pid state restarts cpu rss stuck away running since queue"
    assert set(told["engines"][0]) == set(known.split())
    assert [row["pid"] for row in told["engines"]] == [row["pid"] for row in mec.status()]


def test_the_exit_status_says_whether_all_are_there(mec: client.MultiEngineClient) -> None:
    assert status()[0] == 0
    mec.kill(targets=1)
    until(lambda: mec.get_ids() == [0])
    code, told = status()
    assert (code, told["wanted"], len(told["engines"])) == (5, 2, 1)
    assert ipcluster("top").returncode == 5
    mec.scale(1)
    until(lambda: State.read(ClusterFiles("default")).wanted == 1)
    assert status()[0] == 0
    assert ipcluster("scale", "2").returncode == 0
    assert (status()[0], status()[1]["wanted"]) == (0, 2)
