"""Folders that can't be written to, and a disk that is full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.files import ClusterFiles
from tests.conftest import ReactorThread

from .conftest import IPCLUSTER, PATIENCE, Rig, environment
from .tally import TALLY, processes_of
from .test_engine_deaths import back, pid_of

#: Runs a command where a small file system of its own hides a folder, from it and its children.
SMALL = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"']


def can_mount(folder: Path) -> bool:
    """Whether this system lets us."""
    try:
        done = subprocess.run([*SMALL, "size=64k", folder, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture(autouse=True)
def _mountable(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("user namespaces with mounts are not to be had here")


def fails(files: ClusterFiles, prefix: list[str]) -> str:
    """What an ipcluster that does not start says."""
    TALLY.fault("folders and disks of no use")
    command = [*prefix, *IPCLUSTER, "start", "-n", "1", "--cluster", files.cluster, "--port", "0"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ipcluster: ")
    assert len(done.stderr.splitlines()) == 1
    assert processes_of(files.root) == set()
    return done.stderr


def test_a_log_folder_that_is_read_only(files: ClusterFiles) -> None:
    files.create()
    said = fails(files, [*SMALL, "ro", os.fspath(files.log)])
    assert os.fspath(files.log) in said
    assert os.strerror(errno.EROFS) in said


def test_a_log_folder_that_is_none(files: ClusterFiles) -> None:
    files.folder.mkdir(parents=True)
    files.log.write_text("")
    assert os.fspath(files.log) in fails(files, [])


def test_a_log_that_cannot_be_opened(files: ClusterFiles) -> None:
    files.create()
    (files.log / "ipcontroller.log").mkdir()
    said = fails(files, [])
    assert os.fspath(files.log / "ipcontroller.log") in said


@pytest.mark.parametrize("size", ["4k", "8k", "16k"])
def test_a_full_disk_at_the_start(files: ClusterFiles, size: str) -> None:
    files.folder.mkdir(parents=True)
    said = fails(files, [*SMALL, f"size={size}", os.fspath(files.folder)])
    assert os.fspath(files.folder) in said
    assert os.strerror(errno.ENOSPC) in said


@pytest.fixture
def rig(reactor_thread: ReactorThread, files: ClusterFiles) -> Iterator[Rig]:
    """A cluster with a small disk of its own."""
    files.folder.mkdir(parents=True)
    rig = Rig(files, ["-n", "2", "--no-dashboard"], [*SMALL, "size=1m", os.fspath(files.folder)])
    rig.ready()
    # The cluster's folder, as its processes see it.
    rig.files = ClusterFiles(files.cluster, Path(f"/proc/{rig.process.pid}/root{files.root}"))
    yield rig
    rig.destroy()


def test_a_disk_that_gets_full_later(rig: Rig) -> None:
    mec: MultiEngineClient = rig.client()
    TALLY.fault("folders and disks of no use")
    filler = rig.files.folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    mec.execute("import os, sys; x = engine_id; print('hello'); print('hello', file=sys.stderr)")
    before = pid_of(mec, 0)
    rig.kill(before)
    back(mec, 0, before)
    assert mec.pull("x", targets=1) == [1]
    assert rig.process.poll() is None
    controller = rig.state.controller
    rig.kill(controller)
    assert mec.apply(lambda: 7, block=False).get_result(timeout=PATIENCE) == [7, 7]
    assert mec.pull("x", targets=1) == [1]
    filler.unlink()
    before = pid_of(mec, 0)
    rig.kill(before)
    back(mec, 0, before)
    rig.next_controller(controller)  # in the state file, which is written again
    mec.close()
    rig.process.terminate()
    assert rig.process.wait(PATIENCE) == 0
