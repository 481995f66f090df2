"""The nanny and its zygote with real processes, whose work is trivial."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipython1.kernel.engine.board import Board
from ipython1.kernel.engine.forked import Channel, fresh_reactor
from ipython1.kernel.engine.nanny import ENDED, Nanny
from ipython1.kernel.engine.zygote import Lines, Message, Zygote, line

#: Longest that a test waits for something that should take milliseconds.
PATIENCE = 20.0


class Stop(Exception):
    """What was waited for did not come."""


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote(interrupted=lambda number: None)
    yield zygote
    zygote.close()


def run(zygote: Zygote, done: Callable[[], bool]) -> None:
    """Run the zygote's loop until `done`."""

    def too_long() -> None:
        raise Stop

    if not done():
        zygote.callLater(PATIENCE, too_long)
        zygote.run(done)


def say(end: socket.socket, **message: Any) -> None:
    end.sendall(line(message))


def wait_for_signal(end: socket.socket) -> int:
    """Main function of a child that does nothing."""
    say(end, pid=os.getpid(), group=os.getpgrp())
    signal.pause()
    return 0


class Heard:
    """Remembers what a child said and how it ended."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.status: int | None = None

    def ended(self, status: int) -> None:
        self.status = status


def fork(zygote: Zygote, main: Callable[[socket.socket], int], **options: Any) -> tuple[Any, Heard]:
    heard = Heard()
    return zygote.fork(main, heard.said.append, heard.ended, **options), heard


def test_messages_go_both_ways_and_all_are_heard_before_the_end(zygote: Zygote) -> None:
    def main(end: socket.socket) -> int:
        lines = Lines()
        while not (messages := lines.feed(end.recv(65536))):
            pass
        for number in range(messages[0]["count"]):
            say(end, number=number, text="x" * 1000)
        return 7

    child, heard = fork(zygote, main)
    child.send({"count": 500, "padding": "y" * 500_000})  # more than a socket buffer holds
    run(zygote, lambda: heard.status is not None)
    assert heard.status == 7
    assert [message["number"] for message in heard.said] == list(range(500))


def test_a_watched_file_is_heard_and_is_closed_in_children(zygote: Zygote) -> None:
    near, far = socket.socketpair()
    got: list[bytes] = []
    zygote.watch(near, lambda: got.append(near.recv(10)))

    def main(_end: socket.socket) -> int:
        return 7 if near.fileno() == -1 else 1

    _child, heard = fork(zygote, main)
    run(zygote, lambda: heard.status is not None)
    assert heard.status == 7
    far.send(b"word")
    run(zygote, lambda: bool(got))
    zygote.unwatch(near)
    assert got == [b"word"]
    near.close()
    far.close()


def test_a_child_that_reads_nothing_does_not_block_its_parent(zygote: Zygote) -> None:
    child, heard = fork(zygote, wait_for_signal)
    run(zygote, lambda: bool(heard.said))
    for _ in range(100):
        child.send({"padding": "y" * 50_000})
    child.kill(signal.SIGTERM)
    run(zygote, lambda: heard.status is not None)
    assert heard.status == -signal.SIGTERM
    child.send({})  # to nobody: ignored
    child.kill(signal.SIGTERM)


def test_a_child_leads_a_session_and_its_output_goes_to_its_log(zygote: Zygote, tmp_path: Path) -> None:
    def main(end: socket.socket) -> int:
        sys.stderr = sys.__stderr__  # pytest's goes elsewhere
        os.write(1, b"printed\n")
        say(end, session=os.getsid(0), pid=os.getpid(), stdin=os.read(0, 10).decode())
        raise RuntimeError("bang")

    _, heard = fork(zygote, main, log=tmp_path / "child.log")
    run(zygote, lambda: heard.status is not None)
    [said] = heard.said
    assert said == {"session": said["pid"], "pid": said["pid"], "stdin": ""}
    assert heard.status == 1
    assert (tmp_path / "child.out").read_text() == "printed\n"
    text = (tmp_path / "child.log").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("RuntimeError: bang\n")


def test_children_hold_nothing_of_the_zygote_and_of_each_other(zygote: Zygote) -> None:
    def main(end: socket.socket) -> int:
        say(end, held=descriptors())
        return 0

    children, ours = [], [link(zygote._wake), link(zygote._wakeup)]
    for _ in range(3):
        child, heard = fork(zygote, main)
        children.append(heard)
        ours.append(link(child._channel))
    run(zygote, lambda: all(heard.status is not None for heard in children))
    for heard in children:
        # Other threads of this process open and close sockets: only the zygote's own are looked for.
        assert not set(heard.said[0]["held"]) & set(ours)


def link(end: socket.socket) -> str:
    return os.readlink(f"/proc/self/fd/{end.fileno()}")


def descriptors() -> list[str]:
    """What this process holds open, but for standard input, output and error."""
    folder = "/proc/self/fd"
    return [
        os.readlink(f"{folder}/{fd}")
        for fd in os.listdir(folder)
        if int(fd) > 2 and os.path.islink(f"{folder}/{fd}")
    ]


def test_signals_of_a_child_are_its_own(zygote: Zygote) -> None:
    """SIGTERM at any moment after the fork ends the child, and never reaches the parent's handler."""
    reached: list[int] = []
    zygote._interrupted = reached.append  # type: ignore[method-assign]
    children = []
    for _ in range(20):
        child, heard = fork(zygote, wait_for_signal)
        child.kill(signal.SIGTERM)
        children.append(heard)
    run(zygote, lambda: all(heard.status is not None for heard in children))
    assert {heard.status for heard in children} == {-signal.SIGTERM}
    assert reached == []


def test_what_a_child_started_ends_with_it(zygote: Zygote) -> None:
    ours, theirs = os.pipe()

    def main(end: socket.socket) -> int:
        os.set_inheritable(theirs, True)
        subprocess.Popen(["sleep", "1000"], close_fds=False)
        say(end, ready=True)
        signal.pause()
        return 0

    child, heard = fork(zygote, main)
    os.close(theirs)
    run(zygote, lambda: bool(heard.said))
    child.kill(signal.SIGKILL)
    run(zygote, lambda: heard.status is not None)
    assert os.read(ours, 1) == b""  # nobody holds the other end any more
    os.close(ours)


def test_calls_come_in_the_order_of_their_times(zygote: Zygote) -> None:
    calls: list[str] = []
    zygote.callLater(0.02, lambda: calls.append("later"))
    zygote.callLater(0.0, lambda: calls.append("first"))
    zygote.callLater(0.01, lambda: calls.append("second"))
    run(zygote, lambda: len(calls) == 3)
    assert calls == ["first", "second", "later"]


def test_a_forked_child_has_a_reactor_of_its_own(zygote: Zygote) -> None:
    def main(end: socket.socket) -> int:
        reactor = fresh_reactor()

        def heard(message: Message) -> None:
            channel.send({"echo": message})
            reactor.stop()

        channel = Channel(reactor, end, heard, reactor.stop)
        channel.start()
        reactor.run(installSignalHandlers=False)
        return 5

    children = [fork(zygote, main) for _ in range(3)]
    for number, (child, _) in enumerate(children):
        child.send({"number": number})
    run(zygote, lambda: all(heard.status is not None for _, heard in children))
    assert [heard.said for _, heard in children] == [[{"echo": {"number": number}}] for number in range(3)]
    assert [heard.status for _, heard in children] == [5, 5, 5]


# -- the nanny -------------------------------------------------------------------


class Home:
    """A nanny whose engines register under their wanted id, or 0, and then do nothing.

    `before` and `after` are what they do before and after that.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        before: Callable[[], None] = lambda: None,
        after: Callable[[dict[str, Any]], None] = lambda identity: None,
    ) -> None:
        self.zygote = zygote
        self.before = before
        self.after = after
        self.nanny = Nanny(
            zygote,
            self.engine_main,
            self.agent_main,
            folder=folder,
            host="here",
            pid=os.getpid(),
            restart=True,
        )

    def engine_main(self, identity: dict[str, Any], board: Board) -> Callable[[socket.socket], int]:
        def main(end: socket.socket) -> int:
            self.before()
            board.show("c-1#2")
            say(end, registered=max(identity["wanted"], 0))
            self.after(identity)
            while True:
                signal.pause()

        return main

    def agent_main(self, facts: dict[str, Any]) -> Callable[[socket.socket], int]:
        def main(end: socket.socket) -> int:
            lines = Lines()
            while data := end.recv(65536):
                if {"quit": True} in lines.feed(data):
                    return 0
            return 1

        return main

    def live(self) -> int:
        """All that the process of a nanny does."""
        self.nanny.start_agent()
        self.nanny.start(1)
        self.zygote.run(lambda: self.nanny.status is not None)
        self.zygote.close()
        return self.nanny.status or 0

    def start(self) -> None:
        self.nanny.start(1)
        self.wait_for_engine()

    def wait_for_engine(self, but: str = "") -> Any:
        """The one engine, registered, of another uuid than `but`."""

        def ready() -> bool:
            return any(engine.registered and name != but for name, engine in self.nanny.engines.items())

        run(self.zygote, ready)
        [engine] = self.nanny.engines.values()
        return engine


@pytest.fixture
def home(zygote: Zygote, tmp_path: Path) -> Home:
    return Home(zygote, tmp_path)


def test_a_killed_engine_is_replaced_in_time(home: Home) -> None:
    home.start()
    engine = home.wait_for_engine()
    began = time.monotonic()
    engine.child.kill(signal.SIGKILL)
    new = home.wait_for_engine(but=engine.uuid)
    assert time.monotonic() - began < 1.0
    assert home.nanny.facts()["exited"][-1][-1] == "c-1#2"
    assert new.replaces == {"uuid": engine.uuid, "cause": "killed by signal 9 (SIGKILL)", "output": ""}
    assert new.child.pid != engine.child.pid


def test_the_last_words_of_an_engine_are_kept(zygote: Zygote, tmp_path: Path) -> None:
    def work(identity: dict[str, Any]) -> None:
        if not identity["replaces"]:
            os.write(2, b"Fatal: no more\n")
            os._exit(3)

    home = Home(zygote, tmp_path, after=work)
    home.nanny.start(1)
    [first] = home.nanny.engines
    new = home.wait_for_engine(but=first)
    assert new.replaces == {"uuid": first, "cause": "exit status 3", "output": "Fatal: no more"}
    assert [path.name for path in tmp_path.iterdir() if path.read_text()] == [f"engine-{first}.log"]


def test_an_engine_that_ignores_sigterm_is_stopped(zygote: Zygote, tmp_path: Path) -> None:
    home = Home(zygote, tmp_path, before=_ignore_sigterm)
    home.start()
    home.nanny.quit()
    run(zygote, lambda: home.nanny.status is not None)
    assert home.nanny.status == ENDED
    assert home.nanny.engines == {}


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# -- the death of the zygote ---------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_engine_outlives_its_zygote(tmp_path: Path, number: int) -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            zygote = Zygote(interrupted=lambda number: family.nanny.quit())
            family = Home(zygote, tmp_path, after=lambda identity: _tell(theirs))
            os._exit(family.live())
        finally:
            os._exit(99)
    os.close(theirs)
    assert _read(ours) == b"r"  # the engine runs
    os.kill(pid, number)
    assert _read(ours) == b""  # nobody holds the other end any more
    os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else ENDED)


def _tell(pipe: int) -> None:
    os.write(pipe, b"r")


def _read(fd: int) -> bytes:
    assert select.select([fd], [], [], PATIENCE)[0], "nothing came"
    return os.read(fd, 1)
