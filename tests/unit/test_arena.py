"""Shared memory: no byte of a live view ever changes, whatever order things happen in."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from ipython1.kernel.wire import arena as arena_module
from ipython1.kernel.wire import blocks, segments
from ipython1.kernel.wire.arena import IDLE, KEPT_ELSEWHERE, Arena, Segment
from ipython1.kernel.wire.blocks import STAY_MAPPED
from ipython1.kernel.wire.mappings import LARGE, PAGE
from ipython1.kernel.wire.segments import attach, sweep
from tests.unit.arenas import get, new_folder, put

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux only")

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def files(folder: Path) -> list[str]:
    """The segments in a folder, of all owners."""
    return sorted(path.name for path in folder.glob("*/*") if path.name != "owner")


# -- put and attach ---------------------------------------------------------------


def test_buffers_of_all_kinds_arrive_and_start_at_pages(arena: Arena, folder: Path) -> None:
    array = np.arange(3000.0).reshape(50, 60)
    data = [b"a" * 5000, bytearray(b"b" * 4096), memoryview(b"c"), b"", array, array.T]
    segment = put(arena, *data)
    views = get(segment, folder)
    expected = [b"a" * 5000, b"b" * 4096, b"c", b"", array.tobytes(), array.tobytes()]
    assert [bytes(view) for view in views] == expected
    assert all(offset % PAGE == 0 for offset, _ in segment.ranges)
    assert [length for _, length in segment.ranges] == [len(text) for text in expected]
    assert segment.size == segment.ranges[-1][0] + len(expected[-1])
    assert {view.format for view in views} == {"B"}


def test_nothing_to_share_is_no_segment(arena: Arena) -> None:
    assert arena.put([]) is None
    assert arena.put([b"", b""]) is None


def test_views_are_writable_and_private(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"x" * 10000)
    one, other = get(segment, folder)[0], get(segment, folder)[0]
    one[:5] = b"mine!"
    assert bytes(one[:6]) == b"mine!x"
    assert bytes(other) == b"x" * 10000
    assert bytes(get(segment, folder)[0]) == b"x" * 10000


def test_one_piece_can_be_had_by_itself(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"a" * 9000, b"b" * 9000, b"c" * 9000)
    views = attach(segment.name, segment.ranges[1:2], folder)
    assert views is not None
    assert bytes(views[0]) == b"b" * 9000


def test_views_become_the_memory_of_unpickled_arrays(arena: Arena, folder: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(5000.0), "b": np.arange(5000.0) * 2})
    buffers: list[pickle.PickleBuffer] = []
    raw = pickle.dumps(frame, protocol=5, buffer_callback=buffers.append)
    segment = put(arena, *buffers)
    again = pickle.loads(raw, buffers=get(segment, folder))
    arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == 0
    again.loc[0, "a"] = 7.0
    assert again["b"].sum() == frame["b"].sum()
    column = again["b"].to_numpy()
    del again
    gc.collect()
    arena.trim(0)
    assert arena.idle == 0  # the column is part of it
    assert column[4999] == 9998.0
    del column
    gc.collect()
    arena.trim(0)
    assert arena.idle == arena.held > 0


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[10:20],
        lambda view: view.toreadonly(),
        lambda view: view[:80].cast("d"),
        lambda view: np.frombuffer(view, np.uint8)[5:9],
        lambda view: np.frombuffer(view[:800], np.float64).reshape(10, 10).T[2:, ::3],
        lambda view: pickle.PickleBuffer(view),
        lambda view: np.asarray(memoryview(np.frombuffer(view, np.uint8))),
        lambda view: pd.Series(np.frombuffer(view, np.uint8), copy=False).iloc[3:5],
        lambda view: iter(view),
        lambda view: view.obj,
        lambda view: pickle.loads(pickle.dumps(1, 5)) and [view],
    ],
)
def test_whatever_holds_a_view_keeps_the_memory(
    arena: Arena, folder: Path, derive: Callable[[memoryview], Any]
) -> None:
    segment = put(arena, bytes(10000))
    derived = derive(get(segment, folder)[0])
    arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == 0
    del derived
    gc.collect()
    arena.trim(0)
    assert arena.idle == 3 * PAGE


def test_copies_keep_nothing(arena: Arena, folder: Path) -> None:
    segment = put(arena, bytes(8192))
    view = get(segment, folder)[0]
    array = np.frombuffer(view, np.uint8)
    kept = [array.copy(), array + 1, bytes(view), view.tolist(), pickle.dumps(array)]
    del view, array
    arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == 8192
    assert len(kept) == 5


def test_attached_memory_takes_no_descriptors(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"x" * PAGE)
    before = len(os.listdir("/proc/self/fd"))
    views = [get(segment, folder) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(views) == 50


# -- use again --------------------------------------------------------------------


def test_memory_is_used_again_under_another_name(arena: Arena, folder: Path) -> None:
    first = put(arena, b"1" * 3 * MIB)
    arena.release(first.name)
    for digit in b"2", b"3":  # the file, then its mapping
        again = put(arena, digit * 3 * MIB)
        assert arena.held == 3 * MIB
        assert again.name != first.name
        assert attach(first.name, first.ranges, folder) is None
        assert bytes(get(again, folder)[0]) == digit * 3 * MIB
        arena.release(again.name)


def test_a_published_segment_is_never_used_again(arena: Arena, folder: Path) -> None:
    segments = [put(arena, bytes([i]) * 5000) for i in range(5)]
    assert [bytes(get(s, folder)[0][:1])[0] for s in segments] == list(range(5))


def test_a_segment_grows(arena: Arena, folder: Path) -> None:
    for size in (2 * MIB, 3 * MIB, 3 * MIB + 5, 3 * MIB + 6):
        data = random.Random(size).randbytes(size)
        for _ in range(2):
            segment = put(arena, data)
            assert bytes(get(segment, folder)[0]) == data
            arena.release(segment.name)
    assert arena.held == 3 * MIB + PAGE
    assert len(files(folder)) == 1


def test_a_large_idle_segment_does_not_serve_small_ones(arena: Arena) -> None:
    large = put(arena, bytes(8 * MIB))
    arena.release(large.name)
    put(arena, bytes(PAGE))
    assert arena.held == 8 * MIB + PAGE


def test_release_is_harmless_for_what_is_not_there(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"a" * 100)
    for name in ("", "x", segment.name + "0", "0" * 16 + segment.name[16:], "../token"):
        arena.release(name)
    assert bytes(get(segment, folder)[0]) == b"a" * 100
    arena.release(segment.name)
    arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == arena.held == PAGE


def test_a_receiver_between_opening_and_locking_is_too_late(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = put(arena, b"old" * 1000)
    flock = fcntl.flock

    def slow(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        arena.release(segment.name)
        again = put(arena, b"new" * 1000)
        assert arena.held == PAGE  # the same memory
        assert again.name != segment.name
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    assert attach(segment.name, segment.ranges, folder) is None


def test_a_receiver_between_locking_and_mapping_is_in_time(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = put(arena, b"old" * 1000)
    map_file = segments.map_file

    def slow(*args: int) -> Any:
        arena.release(segment.name)
        put(arena, b"new" * 1000)
        assert arena.held == 2 * PAGE
        return map_file(*args)

    monkeypatch.setattr(segments, "map_file", slow)
    assert bytes(get(segment, folder)[0]) == b"old" * 1000


# -- room -------------------------------------------------------------------------


def test_idle_memory_goes_back(arena: Arena, folder: Path) -> None:
    segment = put(arena, bytes(PAGE))
    arena.trim(100)
    arena.release(segment.name)
    arena.trim(200)
    arena.trim(200 + IDLE - 0.1)
    assert arena.held == PAGE
    arena.trim(200 + IDLE)
    assert arena.held == 0
    assert files(folder) == []


def test_memory_kept_elsewhere_is_left_to_who_keeps_it(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"k" * PAGE)
    views = get(segment, folder)
    arena.release(segment.name)
    arena.trim(0)
    arena.trim(KEPT_ELSEWHERE - 0.1)
    assert arena.held == PAGE
    arena.trim(KEPT_ELSEWHERE)
    assert arena.held == 0
    assert files(folder) == []
    put(arena, b"n" * PAGE)
    assert bytes(views[0]) == b"k" * PAGE


def test_patience_begins_anew_with_each_change(arena: Arena, folder: Path) -> None:
    segment = put(arena, bytes(PAGE))
    views = get(segment, folder)
    arena.release(segment.name)
    arena.trim(0)
    views.clear()
    arena.trim(KEPT_ELSEWHERE - 1)  # idle from here on
    arena.trim(KEPT_ELSEWHERE + 1)
    assert arena.idle == PAGE
    segment = put(arena, bytes(PAGE))
    views = get(segment, folder)
    arena.trim(1000)
    arena.release(segment.name)
    arena.trim(2000)  # released from here on
    arena.trim(2001)
    assert arena.held == PAGE
    assert len(views) == 1


def test_published_memory_stays(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"p" * PAGE)
    for now in range(0, 1000, 10):
        arena.trim(now)
    assert bytes(get(segment, folder)[0]) == b"p" * PAGE


def test_the_limit_holds_and_idle_memory_makes_room(folder: Path, notes: list[str]) -> None:
    arena = Arena(folder, limit=10 * PAGE, note=notes.append)
    small = [put(arena, bytes(PAGE)) for _ in range(10)]
    assert arena.put([b"x"]) is None
    assert arena.put([b"x"]) is None
    assert notes == ["shared memory is full; large objects take the slower way while that is so"]
    for segment in small:
        arena.release(segment.name)
    put(arena, bytes(10 * PAGE))
    assert arena.held == 10 * PAGE
    arena.close()


def test_some_shared_memory_is_left_for_others(
    arena: Arena, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(arena, b"x")
    monkeypatch.setattr(arena_module, "space", lambda place: (800 * PAGE, 101 * PAGE))
    assert arena.put([bytes(2 * PAGE)]) is None
    assert arena.put([bytes(PAGE)]) is not None
    assert len(notes) == 1


def test_full_memory_is_no_error(
    arena: Arena, folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put(arena, b"kept" * 1000)
    idle = put(arena, bytes(30 * PAGE))
    arena.release(idle.name)
    arena.trim(0)
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset >= 3 * PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[: 2 * PAGE], offset)

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(3):
        assert arena.put([bytes(100 * PAGE)]) is None
    assert len(notes) == 1
    assert "No space left" in notes[0]
    assert arena.held == PAGE
    assert files(folder) == [kept.name[17:]]
    assert bytes(get(kept, folder)[0]) == b"kept" * 1000
    monkeypatch.undo()
    assert arena.put([bytes(100 * PAGE)]) is not None


FULL = """
import os, sys
from pathlib import Path
from ipython1.kernel.wire import arena as module
from ipython1.kernel.wire.segments import attach
folder = Path(sys.argv[1])
module.space = lambda place: (0, 1 << 40)  # believes in more than there is
notes = []
arena = module.Arena(folder, note=notes.append)
kept = []
while True:
    data = os.urandom(int(sys.argv[2]))
    segment = arena.put([data])
    if segment is None:
        break
    kept.append((data, attach(segment.name, segment.ranges, folder)[0]))
assert 5 << 20 <= len(data) * len(kept) <= 8 << 20, len(kept)
assert all(bytes(view) == data for data, view in kept)
assert len(notes) == 1 and "No space left" in notes[0], notes
print("good")
"""


@pytest.mark.parametrize("size", [MIB, 5 * MIB])
def test_a_really_full_file_system(folder: Path, size: int) -> None:
    run = f"exec {sys.executable} -c '{FULL}' {folder} {size}"
    script = f"mount -t tmpfs -o size=8m,mode=0700 none {folder} && {run}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*command[:3], "true"], check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("good\n", 0), done.stderr


def test_ctrl_c_while_copying_leaves_nothing(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(arena, b"x")

    def interrupted(fd: int, data: memoryview, offset: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        arena.put([bytes(PAGE)])
    assert arena.held == PAGE
    assert len(files(folder)) == 1


def test_ctrl_c_while_large_bytes_are_copied_leaves_nothing(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(arena, b"x")

    def interrupted(target: memoryview, source: memoryview) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "copy_bytes", interrupted)
    monkeypatch.setattr(blocks, "STAY_MAPPED", 0)  # also where there are no huge pages
    with pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            arena.release(put(arena, bytes(LARGE)).name)
    assert arena.held == PAGE
    assert len(files(folder)) == 1


# -- end --------------------------------------------------------------------------


def test_close_removes_all_and_disturbs_nobody(arena: Arena, folder: Path) -> None:
    segment, mapped = put(arena, b"a" * 5000), put(arena, bytes(2 * MIB))
    arena.release(mapped.name)
    mapped = put(arena, b"b" * 2 * MIB)
    views = get(segment, folder) + get(mapped, folder)
    arena.close()
    arena.close()
    assert arena.held == arena.idle == 0
    assert list(folder.iterdir()) == []
    assert arena.put([b"x"]) is None
    assert attach(segment.name, segment.ranges, folder) is None
    arena.release(segment.name)
    arena.trim(0)
    assert [bytes(view) for view in views] == [b"a" * 5000, b"b" * 2 * MIB]


def test_close_while_another_thread_writes(
    arena: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def closing(fd: int, data: memoryview, offset: int) -> int:
        if len(data) > 4:
            arena.close()
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", closing)
    assert arena.put([bytes(5000)]) is None
    assert list(folder.iterdir()) == []
    assert arena.held == 0


def test_an_arena_survives_that_somebody_empties_the_folder(
    arena: Arena, folder: Path, notes: list[str]
) -> None:
    # systemd removes a user's files in /dev/shm when the last session ends
    lost = put(arena, b"lost" * 1000)
    views = get(lost, folder)
    free = put(arena, bytes(PAGE))
    arena.release(free.name)
    for path in folder.iterdir():
        shutil.rmtree(path)
    segment = put(arena, b"new" * 1000)
    assert bytes(get(segment, folder)[0]) == b"new" * 1000
    assert bytes(views[0]) == b"lost" * 1000
    assert attach(lost.name, lost.ranges, folder) is None
    arena.release(lost.name)
    arena.trim(0)
    assert notes == []
    assert arena.held == PAGE


def test_single_lost_files_are_forgotten(arena: Arena, folder: Path) -> None:
    made = [put(arena, bytes(PAGE)) for _ in range(3)]
    arena.release(made[0].name)
    arena.release(made[1].name)
    arena.trim(0)
    for path in folder.glob("*/*"):
        if path.name != "owner":
            path.unlink()
    arena.release(made[2].name)
    segment = put(arena, b"y" * PAGE)
    assert bytes(get(segment, folder)[0]) == b"y" * PAGE
    arena.trim(1)
    arena.trim(1 + IDLE)
    assert arena.held == PAGE


def test_a_forked_child_leaves_its_parents_arena_alone(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"a" * 5000)
    before = files(folder)

    def child() -> None:
        assert arena.put([b"x"]) is None
        arena.release(segment.name)
        arena.trim(0)
        arena.close()
        own = Arena(folder)
        assert bytes(get(put(own, b"mine"), folder)[0]) == b"mine"
        assert bytes(get(segment, folder)[0]) == b"a" * 5000
        own.close()

    assert in_child(child) == 0
    assert files(folder) == before
    assert bytes(get(segment, folder)[0]) == b"a" * 5000


def test_a_forked_child_keeps_what_it_sees(arena: Arena, folder: Path) -> None:
    segment = put(arena, b"a" * 5000)
    views: list[memoryview] = get(segment, folder)
    go, gone = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(go, 1)
        os._exit(bytes(views[0]) != b"a" * 5000)
    views.clear()
    arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == 0
    put(arena, b"b" * 5000)
    os.write(gone, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    arena.trim(0)
    assert arena.idle == 2 * PAGE
    os.close(go)
    os.close(gone)


def test_a_forked_child_does_not_stand_for_its_parent(folder: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from ipython1.kernel.wire.arena import Arena\n"
        "arena = Arena(Path(sys.argv[1])); arena.put([b'x'])\n"
        "pid = os.fork()\n"
        "if pid: print(pid, flush=True); os.kill(os.getpid(), 9)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        parent.stdout.readline()
        parent.wait()
        deadline = time.monotonic() + 20  # the child may not have come to its first line
        while not sweep(folder):
            assert time.monotonic() < deadline
    assert files(folder) == []


def in_child(f: Callable[[], None]) -> int:
    """Run `f` in a forked child; 0 where it went well."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            f()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


# -- threads ------------------------------------------------------------------------


def test_threads_share_an_arena(folder: Path, notes: list[str]) -> None:
    arena = Arena(folder, limit=12 * MIB, note=notes.append)
    wrong: list[int] = []
    turns: list[int] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        kept: list[tuple[memoryview, bytes]] = []
        for turn in range(150):
            data = bytes([number, turn]) * chance.choice([3000, 40_000, 700_000])
            segment = arena.put([data])
            if segment is not None:
                kept.append((get(segment, folder)[0], data))
                arena.release(segment.name)
            wrong.extend(turn for view, expected in kept if bytes(view) != expected)
            while len(kept) > 3 or (kept and chance.random() < 0.3):
                kept.pop(chance.randrange(len(kept)))
            if turn % 20 == 0:
                arena.trim(turn)
            turns.append(arena.held)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(turns) == 600
    assert max(turns) <= 12 * MIB
    arena.trim(0)
    assert arena.idle == arena.held
    arena.close()


# -- a model ------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(1, 3 * PAGE),
    st.sampled_from([PAGE, 2 * PAGE, STAY_MAPPED, STAY_MAPPED + 1, STAY_MAPPED + 2 * PAGE, LARGE + 1]),
)
LIMIT = 16 * MIB


class ArenaMachine(RuleBasedStateMachine):
    """Everything that can happen to an arena and its readers; the bytes of every live view are known."""

    published = Bundle("published")
    views = Bundle("views")

    @initialize()
    def begin(self) -> None:
        self.folder = new_folder()
        self.now = 0.0
        self.turn = 0
        self.full: list[str] = []
        self.arena = Arena(self.folder, limit=LIMIT, note=self.full.append)
        self.contents: dict[Segment, list[np.ndarray]] = {}
        self.live: dict[int, tuple[Any, np.ndarray]] = {}
        self.retired: list[Segment] = []
        self.children: list[tuple[int, int]] = []

    def pattern(self, size: int) -> np.ndarray:
        """Bytes that occur in no other pattern at the same place."""
        self.turn += 1
        base = np.arange(-(-size // 8), dtype=np.uint64)
        return (base * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self.turn)).view(np.uint8)[:size].copy()

    @rule(target=published, sizes=st.lists(SIZES, min_size=1, max_size=3))
    def put(self, sizes: list[int]) -> Segment | None:
        data = [self.pattern(size) for size in sizes]
        segment = self.arena.put(data)
        if segment is None:
            assert self.full
            return None
        self.contents[segment] = data
        return segment

    @rule(target=views, segment=published, data=st.data())
    def attach(self, segment: Segment | None, data: st.DataObject) -> int | None:
        if segment is None:
            return None
        index = data.draw(st.integers(0, len(segment.ranges) - 1))
        found = attach(segment.name, segment.ranges[index : index + 1], self.folder)
        if segment in self.contents:
            assert found is not None
            return self.keep(found[0], self.contents[segment][index])
        assert found is None
        return None

    @rule(target=views, size=SIZES)
    def send(self, size: int) -> int | None:
        """The usual way of a blob: put, attached, released, and kept by its receiver."""
        segment = self.put([size])
        if segment is None:
            return None
        view = self.keep(get(segment, self.folder)[0], self.contents[segment][0])
        self.release(segment)
        return view

    def keep(self, view: Any, expected: np.ndarray) -> int:
        self.turn += 1
        self.live[self.turn] = (view, expected.copy())
        return self.turn

    @rule(target=views, view=views, how=st.sampled_from(["slice", "array", "readonly", "cast", "copy"]))
    def derive(self, view: int | None, how: str) -> int | None:
        if view not in self.live:
            return None
        old, expected = self.live[view]
        array = np.frombuffer(old, np.uint8)
        if how == "slice":
            # a view of its own mapping: it sees what the other writes, so it takes over
            del self.live[view]
            half = len(array) // 2
            return self.keep(memoryview(array)[half:], expected[half:])
        del self.live[view]
        if how == "array":
            return self.keep(array.reshape(1, -1)[0], expected)
        if how == "readonly":
            return self.keep(memoryview(array).toreadonly(), expected)
        if how == "cast":
            return self.keep(memoryview(array).cast("b").cast("B"), expected)
        return self.keep(array.copy(), expected)

    @rule(view=views, value=st.integers(0, 255))
    def write(self, view: int | None, value: int) -> None:
        if view in self.live:
            memory, expected = self.live[view]
            array = np.frombuffer(memory, np.uint8)
            if array.flags.writeable and len(array):
                array[:: max(1, len(array) // 3)] = value
                expected[:: max(1, len(expected) // 3)] = value

    @rule(view=consumes(views))
    def drop(self, view: int | None) -> None:
        self.live.pop(view or 0, None)

    @rule(segment=consumes(published))
    def release(self, segment: Segment | None) -> None:
        if segment is not None:
            self.arena.release(segment.name)
            self.contents.pop(segment, None)
            self.retired.append(segment)

    @rule()
    def attach_what_was_released(self) -> None:
        for segment in self.retired:
            assert attach(segment.name, segment.ranges, self.folder) is None

    @rule(seconds=st.sampled_from([0.0, 1.0, IDLE, KEPT_ELSEWHERE]))
    def trim(self, seconds: float) -> None:
        self.now += seconds
        self.arena.trim(self.now)

    @precondition(lambda self: self.live and len(self.children) < 2)
    @rule()
    def fork(self) -> None:
        """A child that looks at all it inherited when it is told to."""
        go, gone = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(go, 1)
            os._exit(not all(np.array_equal(np.frombuffer(v, np.uint8), e) for v, e in self.live.values()))
        os.close(go)
        self.children.append((pid, gone))

    @precondition(lambda self: self.children)
    @rule(kill=st.booleans())
    def child_ends(self, kill: bool) -> None:
        pid, gone = self.children.pop()
        if kill:
            os.kill(pid, signal.SIGKILL)
        else:
            os.write(gone, b"x")
        os.close(gone)
        assert os.waitpid(pid, 0)[1] == (signal.SIGKILL if kill else 0)

    @rule()
    def close(self) -> None:
        self.arena.close()
        self.retired += self.contents
        self.contents.clear()
        self.arena = Arena(self.folder, limit=LIMIT, note=self.full.append)

    @invariant()
    def every_byte_is_as_it_was(self) -> None:
        for view, expected in self.live.values():
            assert np.array_equal(np.frombuffer(view, np.uint8), expected)
        for segment, data in self.contents.items():
            found = attach(segment.name, segment.ranges, self.folder)
            assert found is not None
            assert all(
                np.array_equal(np.frombuffer(v, np.uint8), e) for v, e in zip(found, data, strict=True)
            )

    @invariant()
    def the_books_are_right(self) -> None:
        assert 0 <= self.arena.idle <= self.arena.held <= LIMIT
        on_disk = sum(path.stat().st_size for path in self.folder.glob("*/*"))
        assert on_disk == self.arena.held

    def teardown(self) -> None:
        try:
            while self.children:
                self.child_ends(kill=False)
            self.arena.close()
            self.every_byte_of_the_living()
            assert list(self.folder.iterdir()) == []
        finally:
            shutil.rmtree(self.folder)

    def every_byte_of_the_living(self) -> None:
        for view, expected in self.live.values():
            assert np.array_equal(np.frombuffer(view, np.uint8), expected)


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink takes longer than a test may
)


# -- many processes -----------------------------------------------------------------

#: Segments that readers must have seen.
ATTACHED = 1500
READER = """
import random, sys, zlib
from pathlib import Path
from ipython1.kernel.wire.segments import attach
folder, seed = Path(sys.argv[1]), sys.argv[2]
chance = random.Random(seed)
kept = []
def check():
    for view, check_sum in kept:
        if zlib.crc32(view) != check_sum:
            print("WRONG", flush=True)
for line in sys.stdin:
    name, length, check_sum = line.split()
    check_sum = int(check_sum)
    views = attach(name, [(0, int(length))], folder)
    if views is None:
        print("none", flush=True)
        continue
    view = views[0]
    if zlib.crc32(view) != check_sum:
        print("WRONG", flush=True)
    print("ok", flush=True)
    cut = chance.randrange(len(view))
    part = view[cut:]
    if chance.random() < 0.3:
        part[: len(part) // 2] = bytes(len(part) // 2)
    kept.append((part, zlib.crc32(part)))
    del view, views, part
    while len(kept) > 6 or (kept and chance.random() < 0.4):
        kept.pop(chance.randrange(len(kept)))
    check()
print("end", flush=True)
"""


class Reader:
    """A process that attaches what it is told, keeps some, and says where a byte is wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, folder, str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers: list[str] = []
        self.attached = 0
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.append(line.strip())
            self.attached += line == "ok\n"

    def tell(self, segment: Segment, check_sum: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{segment.name} {segment.ranges[0][1]} {check_sum}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        try:
            assert self.process.stdin is not None
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.thread.join(30)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_readers_in_other_processes_never_see_a_wrong_byte(arena: Arena, folder: Path) -> None:
    """The writer releases when it pleases, not when readers are ready: late ones get none."""
    chance = random.Random(7)
    bytes_at_random = chance.randbytes(3 * MIB)  # to make new ones each time takes longer than all the rest
    readers = [Reader(folder, seed) for seed in range(3)]
    ended: list[Reader] = []
    deadline = time.monotonic() + 60
    published: list[Segment] = []
    sent = 0
    while sum(reader.attached for reader in readers + ended) < ATTACHED:
        assert time.monotonic() < deadline
        start = chance.randrange(MIB)
        data = bytes_at_random[start : start + chance.choice([3000, 70_000, 70_000, 1_500_000])]
        segment = put(arena, data)
        check_sum = zlib.crc32(data)
        for reader in readers:
            reader.tell(segment, check_sum)
        published.append(segment)
        sent += 1
        while len(published) > 4 or (published and chance.random() < 0.3):
            arena.release(published.pop(chance.randrange(len(published))).name)
        if chance.random() < 0.02:
            victim = readers.pop(chance.randrange(len(readers)))
            victim.kill()
            ended.append(victim)
            readers.append(Reader(folder, sent))
        if chance.random() < 0.1:
            arena.trim(time.monotonic())
    for reader in readers:
        reader.end()
        assert reader.answers[-1] == "end"
    answers = [answer for reader in readers + ended for answer in reader.answers]
    assert "WRONG" not in answers
    assert answers.count("ok") >= ATTACHED
    assert ended
    for segment in published:
        arena.release(segment.name)
    arena.trim(0)
    assert arena.idle == arena.held  # the kernel says that none of the dead and the ended has any
