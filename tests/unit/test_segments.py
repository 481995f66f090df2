"""The shared folder: who may share, what is taken by name, and what the dead left."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ipython1.kernel.wire import segments
from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.mappings import PAGE
from ipython1.kernel.wire.segments import attach, host_token, sweep, user_folder
from tests.unit.arenas import get, put

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux only")

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


# -- clean-up after others ----------------------------------------------------------


def killed_owner(folder: Path) -> None:
    """Leave behind what a killed process leaves."""
    code = (
        "import os, sys; from pathlib import Path; from ipython1.kernel.wire.arena import Arena\n"
        "arena = Arena(Path(sys.argv[1])); arena.release(arena.put([b'x']).name); arena.put([b'y'])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def test_sweep_takes_what_the_dead_left_and_nothing_else(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"alive" * 1000)
    token = host_token(folder)
    killed_owner(folder)
    assert len(list(folder.glob("*/owner"))) == 2
    assert sweep(folder) == 1
    assert sweep(folder) == 0
    assert len(list(folder.glob("*/owner"))) == 1
    assert bytes(get(segment, folder)[0]) == b"alive" * 1000
    assert host_token(folder) == token


def test_an_arena_sweeps_before_its_first_use(folder: Path) -> None:
    killed_owner(folder)
    arena = Arena(folder)
    put(arena, b"x")
    assert len(list(folder.glob("*/owner"))) == 1
    arena.close()


def test_sweep_finishes_what_a_sweep_began(folder: Path) -> None:
    (folder / ("a" * 16)).mkdir()
    (folder / ("a" * 16) / ("b" * 32)).write_bytes(b"x")
    assert sweep(folder) == 1
    assert list(folder.iterdir()) == []


def test_sweep_takes_the_unfinished_only_when_it_is_old(folder: Path) -> None:
    paths = [folder / ".new-folder", folder / ".new-file"]
    paths[0].mkdir()
    (paths[0] / "owner").touch()
    paths[1].touch()
    sweep(folder)
    assert all(path.exists() for path in paths)
    for path in paths:
        os.utime(path, (1, 1))
    sweep(folder)
    assert list(folder.iterdir()) == []


def test_sweep_leaves_strange_things(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (folder / "notes").touch()
    (folder / ("c" * 16)).symlink_to(outside)
    sweep(folder)
    assert (outside / "precious").exists()
    assert (folder / "notes").exists()


def test_two_sweeps_at_once(folder: Path) -> None:
    for _ in range(5):
        os.close(segments.make_owned_folder(folder)[1])
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(sweep(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) >= 5
    assert list(folder.iterdir()) == []


# -- who may share ------------------------------------------------------------------


def test_the_token_is_the_same_for_all_and_private(folder: Path) -> None:
    token = host_token(folder)
    assert token is not None
    assert len(bytes.fromhex(token)) == 16
    assert host_token(folder) == token
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    code = "import sys, pathlib; from ipython1.kernel.wire.segments import host_token\n"
    code += "print(host_token(pathlib.Path(sys.argv[1])))"
    other = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == token
    assert os.listdir(folder) == ["token"]


def test_the_token_is_the_same_for_many_that_begin_at_once(folder: Path) -> None:
    tokens: list[str | None] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        tokens.append(host_token(folder))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tokens)) == 1
    assert tokens[0] is not None


def test_the_usual_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(Path, "mkdir", lambda self, mode: asked.append(self))
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result([0] * 10))
    assert user_folder() is None
    assert asked == [Path(f"/dev/shm/ipython1-{os.getuid()}")]


def test_other_systems_have_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    notes: list[str] = []
    assert host_token(folder) is None
    assert sweep(folder) == 0
    assert Arena(folder, note=notes.append).put([b"x"]) is None
    assert len(notes) == 1


def test_a_host_without_the_folder_has_none(folder: Path) -> None:
    notes: list[str] = []
    assert host_token(folder / "not" / "there") is None
    arena = Arena(folder / "not" / "there", note=notes.append)
    assert arena.put([b"x"]) is None
    assert arena.put([b"x"]) is None
    assert len(notes) == 1


def spoil_mode(path: Path) -> None:
    path.chmod(0o750)


def spoil_link(path: Path) -> None:
    path.rename(path.with_name(path.name + "-real"))
    path.symlink_to(path.with_name(path.name + "-real"))


def spoil_owner(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("spoil", [spoil_mode, spoil_link, spoil_owner])
def test_a_folder_that_is_not_safely_ours_is_not_used(folder: Path, spoil: Callable[[Path], None]) -> None:
    place = folder / "place"
    arena = Arena(place)
    segment = put(arena, b"x" * 100)
    assert host_token(place) is not None
    spoil(place)
    assert host_token(place) is None
    assert user_folder(place) is None
    assert attach(segment.name, segment.ranges, place) is None
    assert Arena(place, note=lambda note: None).put([b"x"]) is None
    arena.close()


@pytest.mark.parametrize("level", ["folder", "file"])
@pytest.mark.parametrize("spoil", [spoil_mode, spoil_link, spoil_owner])
def test_segments_that_are_not_safely_ours_are_not_attached(
    arena: Arena, folder: Path, level: str, spoil: Callable[[Path], None]
) -> None:
    segment = put(arena, b"x" * 100)
    path = folder / segment.name
    spoil(path if level == "file" else path.parent)
    assert attach(segment.name, segment.ranges, folder) is None


@pytest.mark.parametrize("spoil", [spoil_mode, spoil_link, spoil_owner])
def test_a_token_that_is_not_safely_ours_counts_as_none(folder: Path, spoil: Callable[[Path], None]) -> None:
    assert host_token(folder) is not None
    spoil(folder / "token")
    assert host_token(folder) is None


@pytest.mark.parametrize("text", ["", "short", "g" * 32, "0" * 33])
def test_a_broken_token_counts_as_none(folder: Path, text: str) -> None:
    (folder / "token").write_text(text)
    (folder / "token").chmod(0o600)
    assert host_token(folder) is None


def test_a_fifo_in_place_of_a_file_blocks_nobody(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"x")
    for path in (folder / segment.name, folder / "token"):
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    assert attach(segment.name, segment.ranges, folder) is None
    assert host_token(folder) is None


def test_only_names_and_ranges_of_segments_are_taken(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"x" * 5000)
    (folder / "secret").write_bytes(b"x" * PAGE)
    (folder / "secret").chmod(0o600)
    home, _, file = segment.name.partition("/")
    for name in ("", "secret", f"{home}/../secret", f"/{segment.name}", f"{home}//{file}", f"{home}/owner"):
        assert attach(name, [(0, 1)], folder) is None
    for name in (
        segment.name + "\n",
        segment.name.replace("/", "\0"),
        f"{home}/{file.upper()}x",
        "٣" * 16 + "/" + file,
    ):
        assert attach(name, [(0, 1)], folder) is None
    for span in ((-PAGE, 1), (0, -1), (1, 10), (0, 2 * PAGE + 1), (4 * PAGE, 0), (0, 1 << 80), (1 << 80, 1)):
        assert attach(segment.name, [span], folder) is None
    assert attach(segment.name, [], folder) == []
    assert attach(segment.name, [(PAGE, 0)], folder) == [memoryview(b"")]


def test_a_system_that_does_not_say_who_uses_memory_has_none(
    folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    arena = Arena(folder, note=notes.append)
    assert arena.put([b"x"]) is None
    assert arena.put([b"x"]) is None
    assert len(notes) == 1
    assert list(folder.iterdir()) == []


def test_a_container_has_the_memory_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * PAGE
    for text, expected in (("max\n", whole), ("1048576\n", MIB), (f"{1 << 60}\n", whole)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        assert segments.memory() == expected
