"""Paths of a cluster, and files that only their owner may read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ipython1.kernel.files import ClusterFiles, known_clusters, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_named_from_here_is_the_same_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHON1_DIR", "here")
    assert ClusterFiles("lab").folder == tmp_path / "here" / "lab"


def test_paths(tmp_path: Path) -> None:
    cluster = ClusterFiles("lab", tmp_path)
    assert (cluster.cluster, cluster.root, cluster.folder) == ("lab", tmp_path, tmp_path / "lab")
    assert cluster.certificate == tmp_path / "lab" / "security" / "ipcontroller.pem"
    assert cluster.state == tmp_path / "lab" / "run" / "ipcluster.json"
    assert cluster.log == tmp_path / "lab" / "log"
    assert [cluster.furl(kind).name for kind in ("multiengine", "task", "engine", "view")] == [
        "ipcontroller-mec.furl",
        "ipcontroller-tc.furl",
        "ipcontroller-engine.furl",
        "ipcontroller-view.furl",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_taken_from_the_environment(ipython1_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClusterFiles().folder == ipython1_dir / "default"
    monkeypatch.setenv("IPYTHON1_DIR", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert ClusterFiles().folder == Path("/somewhere/.ipython1/default")
    monkeypatch.setenv("IPYTHON1_DIR", "~/clusters")
    assert ClusterFiles().root == Path("/somewhere/clusters")


@pytest.mark.parametrize("name", ["default", "a", "run-2.b_C", "_"])
def test_good_names(name: str, tmp_path: Path) -> None:
    assert ClusterFiles(name, tmp_path).folder.parent == tmp_path


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc", "a b", "a\n", "ä", "a\0"])
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name of a cluster"):
        ClusterFiles(name, tmp_path)


def test_folders_are_private_whatever_was_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    cluster = ClusterFiles(root=tmp_path)
    cluster.folder.mkdir(mode=0o755)
    cluster.security.mkdir(mode=0o777)
    cluster.create()
    cluster.create()
    assert {mode(f) for f in (cluster.folder, cluster.security, cluster.log, cluster.run)} == {0o700}
    assert mode(tmp_path) == 0o755  # somebody else's


def test_a_missing_root_is_made_private(tmp_path: Path) -> None:
    ClusterFiles(root=tmp_path / "new").create()
    assert mode(tmp_path / "new") == 0o700


def test_known_clusters(tmp_path: Path) -> None:
    assert known_clusters(tmp_path / "nothing") == []
    for name in ("b", "a"):
        ClusterFiles(name, tmp_path).create()
    (tmp_path / "something-else").mkdir()
    (tmp_path / ".hidden" / "security").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert known_clusters(tmp_path) == ["a", "b"]
    assert known_clusters(tmp_path / "file") == []


def test_known_clusters_of_this_user(ipython1_dir: Path) -> None:
    ClusterFiles("mine").create()
    assert known_clusters() == ["mine"]


@pytest.mark.parametrize("data", ["pb://ä\n", b"\x00\xff"])
def test_write_private(data: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_private_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(source: Path, target: Path) -> None:
        seen.append((mode(source), source.read_text(), target.exists()))
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", look)
    previous = os.umask(0)
    try:
        write_private(tmp_path / "secret", "text")
    finally:
        os.umask(previous)
    assert seen == [(0o600, "text", False)]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("old")

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_again_is_only_dated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a controller comes back on a full disk."""
    path = tmp_path / "secret"
    write_private(path, "text")
    inode = path.stat().st_ino
    os.utime(path, (1, 1))
    write_private(path, "text")
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1
    path.chmod(0o644)
    write_private(path, "text")
    assert mode(path) == 0o600
    link = tmp_path / "link"
    link.symlink_to(path)
    write_private(link, "text")
    assert not link.is_symlink()


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match=str(path)) as caught:
        write_private(path, "text")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
