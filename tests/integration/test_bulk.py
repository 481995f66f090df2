"""Bulk data on a real cluster: very large, the slower way, and what memory it takes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ipython1.kernel import client
from ipython1.kernel.client import MultiEngineClient, Reference
from ipython1.kernel.wire import arena
from ipython1.kernel.wire.mappings import LARGE, map_in_huge_pages
from ipython1.kernel.wire.segments import memory, space, user_folder

from .conftest import ReactorThread

MB = 1_000_000
GIB = 1 << 30
#: More than 31 bits count.
HUGE = int(2.2 * GIB)


def has_room(size: int) -> bool:
    """Whether an object may be here, in shared memory, with an engine and back, all at once."""
    folder = user_folder()
    if folder is None or psutil.virtual_memory().available < 6 * size:
        return False
    return min(space(folder)[1] // 2, memory() // 4) > size


@pytest.fixture
def mec(reactor_thread: ReactorThread) -> Iterator[MultiEngineClient]:
    with client.Cluster(n=2) as mec:
        mec.execute("import numpy, zlib")
        yield mec


@pytest.fixture
def no_shared_memory(monkeypatch: pytest.MonkeyPatch, mec: MultiEngineClient) -> None:
    """Shared memory as on a host whose ``/dev/shm`` is tiny."""
    monkeypatch.setattr(arena, "memory", lambda: 0)
    mec.execute("from ipython1.kernel.wire import arena; arena.memory = lambda: 0")


@pytest.mark.skipif(not has_room(HUGE), reason="less than about 14 GB of memory are free")
@pytest.mark.timeout(300)
def test_an_object_of_more_than_two_gib(mec: MultiEngineClient) -> None:
    value = np.arange(HUGE // 8)
    checksum = zlib.crc32(value)
    mec.push({"huge": value}, targets=0)
    del value
    assert mec.apply(zlib.crc32, Reference("huge"), targets=0) == [checksum]
    [back] = mec.pull("huge", targets=0)
    assert zlib.crc32(back) == checksum
    assert len(back) == HUGE // 8
    back[-1] = 0  # writable to its end


@pytest.mark.parametrize("kind", ["array", "bytearray"])
def test_without_room_in_shared_memory_large_objects_go_in_chunks(
    mec: MultiEngineClient, no_shared_memory: None, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    value = np.arange(5 * MB // 2) if kind == "array" else bytearray(np.arange(5 * MB // 2))
    checksum = zlib.crc32(value)
    with caplog.at_level(logging.WARNING, arena.log.name):
        mec.push({"large": value})
        mec.push({"large": value})
    notes = [record.getMessage() for record in caplog.records if record.name == arena.log.name]
    assert notes == ["shared memory is full; large objects take the slower way while that is so"]
    assert mec.apply(zlib.crc32, Reference("large")) == [checksum] * 2
    for back in mec.pull("large"):
        assert zlib.crc32(back) == checksum
        back[0] = 0


def test_gathered_arrays_are_their_own(mec: MultiEngineClient) -> None:
    whole = np.arange(4 * MB)
    mec.scatter("part", whole)
    first = mec.gather("part")
    first[:] = -1
    second = mec.gather("part")
    np.testing.assert_array_equal(second, whole)
    mec.execute("part += 1")
    np.testing.assert_array_equal(second, whole)
    tail = second[-5:]
    del second
    for _ in range(3):
        np.testing.assert_array_equal(mec.gather("part"), whole + 1)
    np.testing.assert_array_equal(tail, whole[-5:])
    assert (first == -1).all()


@pytest.mark.parametrize("dist", ["b", "r"])
def test_what_was_scattered_is_gathered(mec: MultiEngineClient, dist: str) -> None:
    for whole in (np.random.default_rng(1).random((MB + 1, 2)), np.arange(3 * MB, dtype="i4")):
        mec.scatter("part", whole, dist=dist)
        np.testing.assert_array_equal(mec.gather("part", dist=dist), whole)


#: Pushes 80 MB to all engines, three times: the second and third in memory that was used before.
PUSHER = """
    import json, sys
    from pathlib import Path
    import numpy, psutil
    from ipython1.kernel import client

    def memory(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def unique(process):
        return process.memory_full_info().uss

    with client.Cluster(n=4) as mec:
        mec.execute("import numpy")
        controller = next(
            process for process in psutil.Process().children(recursive=True)
            if any("ipcontroller" in word for word in process.cmdline())
        )
        without, controllers = memory("VmRSS"), unique(controller)
        size = 80_000_000
        value = numpy.ones(size // 8) if sys.argv[1] == "array" else bytearray(size)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        for _ in range(3):
            mec.push({"value": value})
        most = memory("VmHWM") - without
        found = {
            "client": most / size,
            "kept": (memory("VmRSS") - without) / size,
            "controller": (unique(controller) - controllers) / size,
        }
        print(json.dumps(found))
"""


def huge_pages() -> bool:
    """Whether shared memory here is of huge pages, which need not stay mapped."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        return map_in_huge_pages(file.fileno(), LARGE) is not None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the high-water mark")
@pytest.mark.parametrize("kind", ["array", "bytearray"])
def test_memory_of_a_push(tmp_path: Path, kind: str) -> None:
    """The client holds the object and the one copy in shared memory, however many engines there are."""
    command = [sys.executable, "-c", textwrap.dedent(PUSHER), kind]
    environment = {**os.environ, "IPYTHON1_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["client"] < 2.3
    assert found["kept"] < (1.3 if huge_pages() else 2.3)
    assert found["controller"] < 0.125
