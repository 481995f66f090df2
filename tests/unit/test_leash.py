"""How a nanny is reached by whoever started it: words on a pipe, and a Unix socket where that broke."""

from __future__ import annotations

import os
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipython1.kernel.engine import leash as leashes
from ipython1.kernel.engine.leash import GONE, Leash, rejoin, socket_path
from ipython1.kernel.engine.zygote import IFile
from tests.faults.conftest import until

KEY = "0123456789ab"


class Watcher:
    """What the zygote's loop does, one turn at a time."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()

    def watch(self, file: IFile, ready: Callable[[], None]) -> None:
        self.selector.register(file, selectors.EVENT_READ, ready)

    def unwatch(self, file: IFile) -> None:
        self.selector.unregister(file)

    def turn(self) -> bool:
        """Run what is ready; whether anything was."""
        ready = self.selector.select(0)
        for key, _ in ready:
            key.data()
        return bool(ready)


class Nanny:
    """A leash on a pipe, and what came of it."""

    def __init__(self, folder: Path | None, key: str = KEY) -> None:
        self.stdin, self.write = os.pipe()
        self.watcher = Watcher()
        self.happened: list[str] = []
        self.leash = Leash(folder, key, lambda: self.happened.append("broke"), self.stdin)

    def watch(self) -> Nanny:
        self.leash.watch(self.watcher, lambda: self.happened.append("quit"))
        return self

    def tell(self, text: str) -> None:
        os.write(self.write, text.encode())

    def hang_up(self) -> None:
        os.close(self.write)

    def turns(self) -> None:
        while self.watcher.turn():
            pass

    def until(self, true: Callable[[], bool]) -> None:
        """Go on until something is so."""

        def turned() -> bool:
            self.turns()
            return true()

        until(turned, "it")


class Rejoined:
    """Somebody who rejoins, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.stdin, self.write = os.pipe()
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run, args=(folder,), daemon=True)
        self.thread.start()

    def _run(self, folder: Path) -> None:
        self.status = rejoin(folder, KEY, self.stdin)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose path is longer than that of a Unix socket may be."""
    return tmp_path / ("x" * 100) / "run"


@pytest.fixture
def nanny(folder: Path) -> Iterator[Nanny]:
    """One that has its FURL."""
    nanny = Nanny(folder)
    nanny.tell("furl\n")
    assert nanny.leash.read_line() == "furl"
    yield nanny.watch()
    nanny.leash.close(0)


def test_words_may_come_together_with_the_furl_or_in_pieces() -> None:
    nanny = Nanny(None)
    nanny.tell("pb://furl\nqu")
    assert nanny.leash.read_line() == "pb://furl"
    nanny.watch()
    assert nanny.happened == []
    nanny.tell("it\n")
    nanny.turns()
    assert nanny.happened == ["quit"]
    nanny = Nanny(None)
    nanny.tell("pb://furl\nquit\n")
    nanny.leash.read_line()
    assert nanny.watch().happened == ["quit"]


def test_no_furl() -> None:
    nanny = Nanny(None)
    nanny.hang_up()
    assert nanny.leash.read_line() == ""


def test_what_is_not_known_is_logged(nanny: Nanny, caplog: pytest.LogCaptureFixture) -> None:
    nanny.tell("explode\n\n")
    nanny.turns()
    assert nanny.happened == []
    assert "not known here" in caplog.text


def test_the_end_of_stdin_is_no_word(nanny: Nanny) -> None:
    nanny.hang_up()
    nanny.turns()
    assert nanny.happened == ["broke"]


def test_after_the_word_the_end_is_no_break(nanny: Nanny) -> None:
    nanny.tell("quit\n")
    nanny.hang_up()
    nanny.turns()
    assert nanny.happened == ["quit"]


def test_a_file_as_stdin_is_read_and_not_watched(tmp_path: Path) -> None:
    path = tmp_path / "furl"
    path.write_text("furl\n")
    fd = os.open(path, os.O_RDONLY)
    leash, watcher = Leash(fd=fd), Watcher()
    assert leash.read_line() == "furl"
    leash.watch(watcher, lambda: None)
    assert not watcher.selector.get_map()


def test_its_stdin_is_nobody_elses(nanny: Nanny) -> None:
    nanny.tell("x")
    assert os.read(nanny.stdin, 10) == b""  # /dev/null


def test_who_rejoins_is_heard(nanny: Nanny, folder: Path) -> None:
    nanny.hang_up()
    nanny.turns()
    other = Rejoined(folder)
    os.write(other.write, b"quit\n")
    nanny.until(lambda: nanny.happened == ["broke", "quit"])
    nanny.leash.close(3)
    until(lambda: other.status is not None, "the end")
    assert other.status == 3
    assert not socket_path(folder, KEY).exists()


def test_its_end_without_a_word_changes_nothing_and_another_may_come(nanny: Nanny, folder: Path) -> None:
    for _ in range(2):
        other = Rejoined(folder)
        nanny.until(lambda: nanny.leash._current not in (None, nanny.leash._stdin))
        os.close(other.write)
        other.thread.join(30)
        assert other.status == 0
        nanny.until(lambda: nanny.leash._current is None)
    assert nanny.happened == ["broke"]


def test_who_comes_later_takes_the_place_and_ends_the_session_of_before(
    nanny: Nanny, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    monkeypatch.setattr(leashes.os, "kill", lambda *what: killed.append(what))
    first = Rejoined(folder)  # the nanny's stdin seems to be there: its host knows of no cut
    nanny.until(lambda: nanny.happened == ["broke"])
    assert killed == [(os.getppid(), signal.SIGTERM)]
    second = Rejoined(folder)
    nanny.until(lambda: first.status == GONE)
    assert killed == [(os.getppid(), signal.SIGTERM)] * 2  # it did so itself
    os.write(second.write, b"quit\n")
    nanny.until(lambda: nanny.happened == ["broke", "quit"])


def test_without_ssh_nobody_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(leashes.os, "kill", lambda *what: pytest.fail("killed"))
    leashes.hang_up(os.getppid())
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    leashes.hang_up(os.getppid() + 1)  # it has ended, and we have another parent


def test_a_nanny_that_is_gone(folder: Path) -> None:
    assert rejoin(folder, KEY) == GONE
    nanny = Nanny(folder)
    path = socket_path(folder, KEY)
    assert path.exists()
    assert nanny.leash._listener is not None
    nanny.leash._listener.close()  # as if it was killed
    assert rejoin(folder, KEY) == GONE
    assert not path.exists()


def test_the_next_nanny_removes_what_killed_ones_left_and_leaves_the_others_alone(
    nanny: Nanny, folder: Path
) -> None:
    killed = Nanny(folder, "killed")
    assert killed.leash._listener is not None
    killed.leash._listener.close()
    new = Nanny(folder, "new")
    assert sorted(folder.iterdir()) == sorted(socket_path(folder, key) for key in (KEY, "new"))
    nanny.turns()
    assert nanny.happened == []  # it was only asked whether it lives
    new.leash.close(0)


def test_a_folder_that_takes_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Nanny(tmp_path / "file").leash.is_deaf
    assert Nanny(None).leash.is_deaf
