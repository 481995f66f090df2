"""The ssh launcher: hosts as they are written, what is said to `ssh`, and what becomes of a host."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from ipython1.kernel.engine.leash import DEAF, GONE, REJOINED, STARTED
from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch import remotehost
from ipython1.launch.hosts import Host, parse_host, parse_hosts, parse_line, read_hosts, share, total
from ipython1.launch.launcher import make_launcher
from ipython1.launch.remotehost import DIALLING, ENDED, FAILED, LASTING, REJOINING, UP, WAITING, RemoteHost
from ipython1.launch.remoteshell import (
    COMMAND,
    NO_FOLDER,
    SSH_FAILED,
    explain,
    first_line,
    forward_to,
    script,
    ssh_command,
    through_tunnel,
)
from ipython1.launch.ssh import Ssh, SshLauncher
from tests.faults.conftest import until

FURL = "pb://abcd@tcp:10.0.0.5:10105,tcp:127.0.0.1:10105/secret"

# -- hosts -----------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
USERS = st.from_regex(r"[a-z_][a-z0-9_.-]{0,10}", fullmatch=True)
COUNTS = st.none() | st.integers(1, 99_999)
VALUES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@given(NAMES, st.none() | USERS, COUNTS)
def test_a_host_is_read_as_it_was_written(name: str, user: str | None, count: int | None) -> None:
    target = name if user is None else f"{user}@{name}"
    assert parse_host(target if count is None else f"{target}:{count}") == Host(target, count)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("::1", Host("::1")),
        ("[::1]:4", Host("::1", 4)),
        ("me@[fe80::1]:2", Host("me@fe80::1", 2)),
        ("[::1]", Host("::1")),
    ],
)
def test_addresses_of_ipv6(text: str, host: Host) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "me@-x",
        "a b",
        "a:0",
        "a:-1",
        "a:x",
        "a:",
        "a:٣",
        "[::1",
        "[::1]4",
        "a;b",
        "$(x)",
        "@",
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_host(text)


@given(st.text())
@example("a:4,-x:2")
def test_no_text_becomes_an_option_of_ssh(text: str) -> None:
    try:
        hosts = parse_hosts(text)
    except ValueError:
        return
    assert all(not host.target.startswith("-") and not set(host.target) & set(" ;$`'\"\n") for host in hosts)


@given(NAMES, COUNTS, st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), VALUES))
def test_a_line_of_a_hosts_file(name: str, count: int | None, env: dict[str, str]) -> None:
    words = [name if count is None else f"{name}:{count}", "python=/opt/py thon", "cwd=~/work"]
    line = shlex.join([*words, *(f"{key}={value}" for key, value in env.items())]) + "  # it is there"
    assert parse_line(line) == Host(name, count, "/opt/py thon", "~/work", tuple(env.items()))


def test_a_hosts_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\n\na:4 OMP_NUM_THREADS=1\n  b\n")
    assert read_hosts(file) == [Host("a", 4, env=(("OMP_NUM_THREADS", "1"),)), Host("b")]
    file.write_text("a\nb nonsense\n")
    with pytest.raises(ValueError, match="line 2: 'nonsense' is no variable"):
        read_hosts(file)
    file.write_text("a 'b\n")
    with pytest.raises(ValueError, match="line 1: No closing quotation"):
        read_hosts(file)
    file.write_text("# nobody\n")
    with pytest.raises(ValueError, match="names no host"):
        read_hosts(file)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_hosts(tmp_path / "none")


@given(st.lists(st.none() | st.integers(1, 20), min_size=1), st.integers(1, 200))
def test_engines_are_shared_out(counts: list[int | None], n: int) -> None:
    hosts = [Host("a", count) for count in counts]
    places, rest = sum(count or 0 for count in counts), [i for i, count in enumerate(counts) if count is None]
    if n > places and not rest:
        with pytest.raises(LaunchError, match=f"{n} engines were asked for, and the hosts take {places}"):
            share(hosts, n)
        return
    shares = share(hosts, n)
    assert sum(shares) == n
    assert all(got <= count for got, count in zip(shares, counts, strict=True) if count is not None)
    evenly = [shares[i] for i in rest]
    assert not evenly or max(evenly) - min(evenly) <= 1
    assert share(hosts, total(hosts)) == [count or 1 for count in counts]


# -- what is said to ssh -----------------------------------------------------------------


def test_the_options_of_the_user_come_first() -> None:
    command = ssh_command(["ssh", "-o", "ConnectTimeout=3"], "a")
    assert command.index("ConnectTimeout=3") < command.index("ConnectTimeout=10")
    assert command[-2:] == ["a", COMMAND]
    assert "ClearAllForwardings=yes" in command
    tunnel = ssh_command(["ssh"], "a", "127.0.0.1:0:127.0.0.1:1")
    assert "ClearAllForwardings=yes" not in tunnel
    assert tunnel[-4:-2] == ["-R", "127.0.0.1:0:127.0.0.1:1"]


SHELLS = [shell for shell in ("bash", "dash", "zsh", "ksh", "tcsh", "csh", "fish", "busybox") if which(shell)]


def run_there(shell: list[str], home: Path, text: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What `sshd` would do: the login shell runs the command, whose stdin has the script first."""
    return subprocess.run(
        [*shell, "-c", COMMAND],
        input=first_line(text) + stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": os.fspath(home)},  # some shells write there
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_runs_a_script_and_leaves_the_rest_of_stdin(shell: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's work"
    folder.mkdir()
    host = Host("a", cwd="~/it's work", env=(("A", "it's \\n $HOME\n`x` %s ! ü"),))
    text = script(
        Host(host.target, cwd=host.cwd, env=host.env, python=sys.executable), ["-n", "2"], ["B='b c'"]
    )
    show = "import os, sys; print([os.environ['A'], os.getcwd(), sys.stdin.read()])"
    text = re.sub(r"exec .*", lambda _: f'export B; exec "$p" -c {shlex.quote(show)}', text)
    words = [shell, "sh"] if shell == "busybox" else [shell]
    done = run_there(words, tmp_path, text, "pb://the furl\nquit\n")
    assert (
        done.stdout == str(["it's \\n $HOME\n`x` %s ! ü", os.fspath(folder), "pb://the furl\nquit\n"]) + "\n"
    ), done.stderr


@given(VALUES)
def test_a_script_is_one_line(text: str) -> None:
    assert first_line(text).count("\n") == 1


def test_a_prologue_reads_nothing_of_stdin_and_sets_variables(tmp_path: Path) -> None:
    text = script(Host("a", python="/bin/sh"), [], ["read eaten", "X=$((1 + 1))"])
    text = re.sub(r"exec .*", lambda _: 'read kept; echo "$X [$eaten] [$kept]"', text)
    assert run_there(["sh"], tmp_path, text, "furl\n").stdout == "2 [] [furl]\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert run_there(["sh"], tmp_path, script(Host("a", cwd="/no/such"), [])).returncode == NO_FOLDER


def test_without_a_python_the_one_here_is_taken_or_python3() -> None:
    assert sys.executable in script(Host("a"), [])
    assert script(Host("a", python="~/v/bin/python"), []).startswith('p="$HOME"/v/bin/python\n')


def test_where_a_tunnel_leads() -> None:
    assert forward_to(FURL) == "127.0.0.1:0:127.0.0.1:10105"
    assert forward_to("pb://abcd@tcp:10.0.0.5:7/secret", 40000) == "127.0.0.1:40000:10.0.0.5:7"
    assert forward_to("pb://abcd@[fd00::1]:7/secret") == "127.0.0.1:0:[fd00::1]:7"
    assert through_tunnel(FURL, 40000) == "pb://abcd@tcp:127.0.0.1:40000/secret"


@pytest.mark.parametrize(
    ("status", "output", "words"),
    [
        (
            255,
            "me@b: Permission denied (publickey).",
            "Permission denied (publickey). Log in once with: ssh b",
        ),
        (255, "Host key verification failed.", "its host key is not known. Log in once with: ssh b"),
        (
            255,
            "@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
            "its host key is not the known one. If that is right: ssh-keygen -R b",
        ),
        (
            255,
            "ssh: connect to host b port 22: Connection refused",
            "connect to host b port 22: Connection refused",
        ),
        (
            127,
            "sh: 1: exec: /x/python: not found",
            "there is no python3 (sh: 1: exec: /x/python: not found).",
        ),
        (1, "ModuleNotFoundError: No module named 'ipython1'", "python3 there has no ipython1."),
        (2, "Error: No such option: --channel", "the ipython1 of python3 there is of another version."),
        (3, "12:00:00 ipengine: it is no use. All stopped.", "exit status 3: it is no use. All stopped"),
        (7, "", "exit status 7"),
        (255, "", "exit status 255"),
    ],
)
def test_why_a_host_failed(status: int, output: str, words: str) -> None:
    assert explain(["ssh"], Host("b"), status, f"exit status {status}", output).startswith(f"host b: {words}")


# -- a host ------------------------------------------------------------------------------


class FakeSsh:
    """Does what the test says."""

    def __init__(self, arguments: list[str], forward: str) -> None:
        self.arguments, self.forward = arguments, forward
        self.status: int | None = None
        self.told: list[tuple[str, bool]] = []
        self.text = ""
        self.pid = 0
        self.stopped = False

    def tell(self, text: str, last: bool = True) -> None:
        self.told.append((text, last))

    def said(self) -> str:
        text, self.text = self.text, ""
        return text

    def stop(self) -> None:
        self.stopped = True


class World:
    """One host, its ssh processes, and what the user hears."""

    def __init__(self, tunnel: bool = False, allowed: int = 3) -> None:
        self.clock = Clock()
        self.dialled: list[FakeSsh] = []
        self.news: list[str] = []
        self.allowed = allowed
        self.host = RemoteHost(
            Host("b"), 2, self._dial, self._explain, self.news.append, self._allow, tunnel, self.clock.seconds
        )

    def _dial(self, arguments: list[str], forward: str) -> FakeSsh:
        self.dialled.append(FakeSsh(arguments, forward))
        return self.dialled[-1]

    def _explain(self, status: int, how: str, output: str) -> str:
        return f"host b: {how}"

    def _allow(self) -> bool:
        self.allowed -= 1
        return self.allowed >= 0

    @property
    def ssh(self) -> FakeSsh:
        return self.dialled[-1]

    def says(self, text: str = "", status: int | None = None) -> None:
        """The current ssh writes a line, and maybe ends."""
        self.ssh.text += f"{text}\n" if text else ""
        self.ssh.status = status
        self.host.look()

    def up(self) -> World:
        self.host.dial()
        self.host.start(FURL)
        self.says(STARTED)
        self.says("12:00:00 ipengine: engine 0 (pid 9) is ready")
        self.clock.advance(LASTING)
        return self

    def key(self) -> str:
        return self.ssh.arguments[self.ssh.arguments.index("--channel") + 1]


def test_the_furl_goes_over_stdin_once_the_nanny_is_there() -> None:
    world = World()
    world.host.dial()
    world.says("some profile prints this")
    world.host.start(FURL)
    assert world.ssh.told == []
    world.says(STARTED)
    world.host.look()
    assert world.ssh.told == [(FURL + "\n", False)]
    assert world.ssh.arguments[:3] == ["-n", "2", "--furl-stdin"]
    assert world.host.state == UP
    assert world.news == []


def test_a_host_that_was_never_up_fails() -> None:
    world = World()
    world.host.dial()
    world.says(status=255)
    assert world.host.state == FAILED
    assert world.host.is_silent
    assert world.news == ["host b: exit status 255."]


def test_a_nanny_without_engines_was_heard_by_the_controller() -> None:
    world = World()
    world.host.dial()
    world.says(STARTED)
    world.says(status=1)
    assert world.host.state == FAILED
    assert not world.host.is_silent


def test_a_broken_channel_is_made_anew_and_the_engines_are_not() -> None:
    world = World().up()
    key = world.key()
    world.says(status=255)
    assert world.host.state == REJOINING
    assert world.ssh.arguments == ["--rejoin", "--channel", key]
    world.says(REJOINED)
    assert world.host.state == UP
    assert world.ssh.told == []  # the nanny has its FURL
    assert world.news == []


def test_a_host_that_cannot_be_reached_is_dialled_less_and_less_often() -> None:
    world = World().up()
    world.says(status=255)
    waited = []
    for _ in range(8):
        world.says(status=255)
        assert world.host.state == WAITING
        began, count = world.clock.seconds(), len(world.dialled)
        while len(world.dialled) == count:
            world.clock.advance(0.5)
            world.host.look()
        waited.append(world.clock.seconds() - began)
    assert waited == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(world.news) == 1
    world.says(REJOINED)
    assert world.news[1:] == ["host b is back; its engines went on."]
    world.clock.advance(LASTING)
    world.says(status=255)
    world.says(status=255)
    world.clock.advance(1)
    world.host.look()
    assert world.host.state == REJOINING  # from the beginning


def test_a_channel_that_does_not_last_is_not_dialled_without_a_pause() -> None:
    world = World().up()
    for number in range(1, 4):
        world.says(status=255)
        world.clock.advance(2 ** (number - 1))
        world.host.look()
        assert world.host.state == REJOINING
        world.says(REJOINED)
    assert len(world.dialled) == 4
    world.says(status=255)
    assert world.host.state == WAITING


@pytest.mark.parametrize("status", [1, 96, 127, 0])
def test_a_host_without_its_python_for_a_while_is_not_one_without_engines(status: int) -> None:
    world = World().up()
    world.says(status=255)
    world.says(status=status)
    assert world.host.state == WAITING
    world.host.end()
    assert world.ssh.arguments[0] == "--rejoin"


@pytest.mark.parametrize("status", [255, -9, GONE])
def test_engines_that_are_gone_are_started_again_within_the_budget(status: int) -> None:
    world = World(allowed=2).up()
    for _ in range(2):
        key = world.key()
        world.says(status=status)
        if status != GONE:
            world.says(status=GONE)
        assert world.host.state == DIALLING
        assert world.key() != key
        world.says(f"a prompt without an end $ {STARTED}")
        world.host.look()
        assert world.ssh.told == [(FURL + "\n", False)]
        world.clock.advance(LASTING)
    world.says(status=255)
    world.says(status=GONE)
    assert world.host.state == FAILED
    assert world.news == ["host b: its engines are gone. They are started again."] * 2 + [
        "host b: its engines are gone, and are not started again."
    ]


def test_a_nanny_that_ended_by_itself_is_started_again_if_it_had_engines() -> None:
    world = World().up()
    world.says(status=3)
    assert world.host.state == DIALLING
    assert world.news == ["host b: exit status 3. They are started again."]
    world.says(STARTED)
    world.says(status=3)  # and now none came
    assert world.host.state == FAILED


def test_a_nanny_that_was_told_to_stop_is_not_missed() -> None:
    world = World().up()
    world.says(status=0)
    assert world.host.state == ENDED
    assert len(world.dialled) == 1
    assert world.news == []


def test_a_nanny_that_cannot_be_rejoined() -> None:
    world = World()
    world.host.dial()
    world.host.start(FURL)
    world.says(f"{STARTED} {DEAF}")
    world.says(status=255)
    assert world.host.state == FAILED
    assert "go on as long as they find the controller" in world.news[0]
    world.host.end()
    assert not world.host.kill()


def test_what_the_nanny_says_of_the_controller_is_said_once() -> None:
    world = World().up()
    for _ in range(2):
        world.says("12:00:01 ipengine: controller at 10.0.0.5:7 not reachable from b: connection refused")
    assert world.news == ["host b: controller at 10.0.0.5:7 not reachable from b: connection refused"]


def test_a_tunnel_gives_the_furl_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tunnel=True)
    world.host.dial()
    assert world.dialled == []  # where to is not known yet
    world.host.start(FURL)
    assert world.ssh.forward == "127.0.0.1:0:127.0.0.1:10105"
    world.says("Allocated port 40123 for remote forward to 127.0.0.1:10105")
    world.says(STARTED)
    assert world.ssh.told == [("pb://abcd@tcp:127.0.0.1:40123/secret\n", False)]
    world.clock.advance(LASTING)
    world.says(status=255)
    assert world.ssh.forward == "127.0.0.1:40123:127.0.0.1:10105"  # engines know that one
    world.says("Warning: remote port forwarding failed for listen port 40123")
    killed: list[Any] = []
    monkeypatch.setattr(remotehost.os, "kill", lambda *what: killed.append(what))
    world.says(REJOINED)  # the nanny hangs up the session that has it
    assert killed == [(world.ssh.pid, signal.SIGTERM)]
    world.says(status=255)
    assert world.host.state == WAITING


def test_a_host_that_forwards_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tunnel=True)
    world.host.start(FURL)
    monkeypatch.setattr(remotehost.os, "kill", lambda *what: None)
    world.says(f"Warning: remote port forwarding failed for listen port 0\n{STARTED}")
    assert world.ssh.told == []
    world.says(status=255)
    assert world.host.state == FAILED
    assert "forwards no port" in world.news[0]


def test_stopping_says_the_word() -> None:
    world = World().up()
    world.host.end()
    assert world.ssh.told[-1] == ("quit\n", True)
    assert not world.host.is_gone
    world.ssh.status = 0
    assert world.host.is_gone
    assert world.host.kill()


def test_stopping_a_host_that_is_lost_dials_it_once_more() -> None:
    world = World().up()
    world.says(status=255)
    world.says(status=255)
    world.host.end()
    assert world.ssh.arguments[0] == "--rejoin"
    assert world.ssh.told == [("quit\n", True)]
    world.ssh.status = 255
    assert world.host.is_gone
    assert not world.host.kill()  # it may live


def test_stopping_before_there_is_a_furl_only_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.host.dial()
    killed: list[Any] = []
    monkeypatch.setattr(remotehost.os, "kill", lambda *what: killed.append(what))
    world.host.end()
    assert killed == [(world.ssh.pid, signal.SIGTERM)]
    assert world.host.kill()
    waiting = World()
    waiting.host.dial()
    waiting.says(STARTED)
    waiting.host.end()
    assert waiting.ssh.told == [("", True)]  # end of stdin: the nanny gets no FURL
    assert waiting.host.kill()


@given(st.data())
def test_whatever_happens_a_host_keeps_its_promises(data: st.DataObject) -> None:
    """It has at most one ssh, tells each nanny its FURL once, and after a start again under the budget."""
    world = World(allowed=3)
    world.host.dial()
    world.host.start(FURL)
    lines = st.sampled_from(["", STARTED, REJOINED, "x is ready", "noise"])
    statuses = st.sampled_from([None, None, None, 0, 1, 3, GONE, 255, -9])
    for _ in range(data.draw(st.integers(0, 30))):
        if data.draw(st.booleans()):
            world.clock.advance(data.draw(st.sampled_from([0.5, 40.0])))
        if world.ssh.status is None:
            text = data.draw(lines)
            rejoins = world.ssh.arguments[0] == "--rejoin"
            if text == (STARTED if rejoins else REJOINED):
                text = ""
            world.says(text, data.draw(statuses))
        else:
            world.host.look()
    assert all(ssh.status is not None for ssh in world.dialled[:-1])
    assert all(len(ssh.told) <= 1 for ssh in world.dialled)
    assert all(not ssh.told for ssh in world.dialled if ssh.arguments[0] == "--rejoin")
    keys = {ssh.arguments[-1] for ssh in world.dialled if ssh.told}
    assert len(keys) <= 1 + 3
    if world.host.state in (ENDED, FAILED):
        assert world.ssh.status is not None
        count = len(world.dialled)
        world.clock.advance(100)
        world.host.look()
        assert len(world.dialled) == count


# -- the launcher, with a program instead of ssh ---------------------------------------------

FAKE = f"""#!/bin/sh
for last; do :; done
case "$*" in
*refuses*) echo "refuses: Permission denied (publickey)." >&2; exit {SSH_FAILED};;
esac
PATH={os.path.dirname(sys.executable)}:$PATH exec sh -c "$last"
"""


@pytest.fixture
def files(tmp_path: Path) -> ClusterFiles:
    """Of a cluster with its folders."""
    files = ClusterFiles(root=tmp_path)
    files.create()
    return files


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A program that runs here what it is to run there."""
    program = tmp_path / "fake-ssh"
    program.write_text(FAKE)
    program.chmod(0o755)
    return os.fspath(program)


def test_the_script_reaches_a_shell_and_what_it_says_comes_back(fake: str, tmp_path: Path) -> None:
    ssh = Ssh([fake, "a", COMMAND], tmp_path / "out", 'echo one; read line; echo "two $line"; printf rest')
    ssh.tell("word\n")
    heard = ""
    until(lambda: ssh.status is not None, "its end")
    heard += ssh.said()
    assert heard == "one\ntwo word\nrest"
    again = Ssh([fake, "a", COMMAND], tmp_path / "out", "echo again")
    until(lambda: again.status is not None, "its end")
    assert again.said() == "again\n"  # and not what was there
    assert (tmp_path / "out").read_text() == "one\ntwo word\nrestagain\n"


def test_what_it_says_is_heard_where_its_file_is_removed(fake: str, tmp_path: Path) -> None:
    ssh = Ssh([fake, "a", COMMAND], tmp_path / "out", 'read line; echo "heard $line"')
    (tmp_path / "out").unlink()
    ssh.tell("word\n")
    until(lambda: ssh.status is not None, "its end")
    assert ssh.said() == "heard word\n"
    assert ssh.said() == ""
    ssh.stop()


def test_hosts_that_refuse_are_missing_and_the_others_go_on(files: ClusterFiles, fake: str) -> None:
    # A "nanny" that says it is there, and what it reads.
    python = files.root / "python"
    python.write_text(f'#!/bin/sh\necho "{STARTED}"\nread furl\nread word\necho "$word"\n')
    python.chmod(0o755)
    hosts = "good:2,refuses:3"
    launcher = SshLauncher(files, hosts=hosts, ssh=fake, python=os.fspath(python))
    assert launcher.count == 5
    launcher.prepare(5)
    launcher.start(5, FURL)
    news: list[str] = []

    def failed() -> bool:
        assert launcher.poll() is None
        news.extend(launcher.news())
        return launcher.missing == 3

    until(failed, "a refusal")
    assert news == [f"host refuses: Permission denied (publickey). Log in once with: {fake} refuses."]
    until(
        lambda: launcher.poll() is None and STARTED in (files.log / "ipengine-good.out").read_text(),
        "the other",
    )
    launcher.stop()
    assert (files.log / "ipengine-good.out").read_text().split("\n")[1:] == ["quit", ""]
    assert launcher.news() == []


def test_all_hosts_fail(files: ClusterFiles, fake: str) -> None:
    launcher = SshLauncher(files, hosts="refuses:2", ssh=fake)
    launcher.start(2, FURL)
    until(launcher.poll, "the end")
    assert launcher.poll() == "failures on all hosts"
    assert launcher.missing == 2


def test_a_plan_has_commands_and_scripts_and_no_secret(files: ClusterFiles) -> None:
    launcher = SshLauncher(
        files, hosts="a:2,me@b", env=("A=b c",), prologue=("module load x",), restart=False
    )
    plan = launcher.plan(3)
    assert plan.count("exec sh -c") == 2
    assert "    export A='b c'\n" in plan
    assert "module load x" in plan
    assert "-n 2 --furl-stdin --cluster default --no-restart" in plan
    assert "-R 127.0.0.1:0:CONTROLLER a" in SshLauncher(files, hosts="a", tunnel=True).plan(1)


def test_only_without_a_tunnel_the_controller_listens_to_others(files: ClusterFiles) -> None:
    assert SshLauncher(files, hosts="a").is_remote
    assert not SshLauncher(files, hosts="a", tunnel=True).is_remote


def test_every_host_has_a_file_for_its_output(files: ClusterFiles, fake: str) -> None:
    launcher = SshLauncher(files, hosts="refuses,refuses,me@[::1]", ssh=fake, name="x")
    names = [path.name for path in launcher._outputs]
    assert names == ["x-refuses.out", "x-refuses-2.out", "x-me@__1.out"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "Say where: --hosts"),
        ({"hosts": ","}, "names no host"),
        ({"hosts": "a:0"}, "'a:0'"),
        ({"hosts": "a", "env": ("A",)}, "'A' is no variable"),
        ({"hosts": "a", "ssh": " "}, "--ssh names no command"),
        ({"hosts": "a", "walltime": "1:00:00"}, "--walltime is of no use with --engines ssh"),
    ],
)
def test_what_cannot_be_is_refused(files: ClusterFiles, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make_launcher("ssh", files, asked)
