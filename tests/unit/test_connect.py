"""From what the user gives to a FURL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipython1.kernel.client import connect
from ipython1.kernel.client.connect import find_furl
from ipython1.kernel.error import BadFURL, NoFURLFile
from ipython1.kernel.files import ClusterFiles, write_private

TUB = "a" * 32
FURL = f"pb://{TUB}@tcp:127.0.0.1:10105/secret"
OTHER = f"pb://{TUB}@tcp:127.0.0.1:10107/other"
AFAR = f"pb://{TUB}@tcp:node7:10105,tcp:10.0.0.7:10105/afar"
IPV6 = f"pb://{TUB}@tcp:[::1]:10109/six"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("IPYTHON1_DIR", os.fspath(tmp_path))
    monkeypatch.delenv("IPYTHON1_FURL", raising=False)
    return tmp_path


def cluster(name: str, furl: str, kind: str = "multiengine", written: float | None = None) -> Path:
    files = ClusterFiles(name)
    files.create()
    path = files.furl(kind)
    write_private(path, furl + "\n")
    if written is not None:
        os.utime(path, (written, written))
    return path


def test_nothing_is_the_default_cluster(root: Path) -> None:
    cluster("default", FURL)
    cluster("other", OTHER)
    assert find_furl() == FURL
    assert find_furl(cluster="other") == OTHER


def test_the_kind_chooses_the_file(root: Path) -> None:
    cluster("default", FURL)
    cluster("default", OTHER, kind="task")
    assert find_furl(kind="task") == OTHER


def test_the_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cluster("other", OTHER)
    cluster("default", FURL)
    monkeypatch.setenv("IPYTHON1_FURL", AFAR)
    assert find_furl() == AFAR
    monkeypatch.setenv("IPYTHON1_FURL", os.fspath(path))
    assert find_furl() == OTHER
    monkeypatch.setenv("IPYTHON1_FURL", "")
    assert find_furl() == FURL


def test_what_is_given_goes_before_the_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster("other", OTHER)
    monkeypatch.setenv("IPYTHON1_FURL", AFAR)
    assert find_furl(FURL) == FURL
    assert find_furl(cluster="other") == OTHER


def test_no_cluster_at_all(root: Path) -> None:
    with pytest.raises(NoFURLFile) as caught:
        find_furl()
    assert os.fspath(root / "default" / "security" / "ipcontroller-mec.furl") in str(caught.value)
    assert "ipcluster -n 4" in str(caught.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path(root: Path, kind: Any) -> None:
    path = root / "a copy.furl"
    path.write_text(f"  {FURL}\n", encoding="utf-8")
    assert find_furl(kind(path)) == FURL


def test_a_path_in_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "furl").write_text(FURL, encoding="utf-8")
    assert find_furl("furl") == FURL


def test_a_path_below_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.fspath(root))
    (root / "mine.furl").write_text(FURL, encoding="utf-8")
    assert find_furl("~/mine.furl") == FURL


@pytest.mark.parametrize("missing", ["gone.furl", "/nowhere/furl", Path("gone")])
def test_a_path_that_is_not_there(root: Path, missing: Any) -> None:
    with pytest.raises(NoFURLFile, match=os.fspath(missing)):
        find_furl(missing)


def test_a_furl_may_have_space_around_it(root: Path) -> None:
    assert find_furl(f" {FURL}\n") == FURL


@pytest.mark.parametrize(
    "furl",
    [
        "nonsense",
        "",
        "127.0.0.1:10105",
        "pb://",
        "pb://short@tcp:127.0.0.1:1/x",
        "pb:/" + FURL,
        10105,
        3.5,
        (),
        ("127.0.0.1",),
        ("127.0.0.1", "10105"),
        (10105, "127.0.0.1"),
        ("127.0.0.1", True),
        ("127.0.0.1", 1, 2),
        b"pb://",
    ],
)
def test_no_furl(root: Path, furl: Any) -> None:
    with pytest.raises((BadFURL, NoFURLFile)):
        find_furl(furl)


def test_a_file_with_something_else_in_it(root: Path) -> None:
    path = root / "key.furl"
    path.write_text("very secret", encoding="utf-8")
    with pytest.raises(BadFURL) as caught:
        find_furl(path)
    assert os.fspath(path) in str(caught.value)
    assert "very secret" not in str(caught.value)


def test_a_folder_and_a_picture(root: Path) -> None:
    with pytest.raises(BadFURL):
        find_furl(root)
    (root / "picture").write_bytes(b"\x89PNG\xff")
    with pytest.raises(BadFURL):
        find_furl(root / "picture")


def test_an_address(root: Path) -> None:
    cluster("default", FURL)
    cluster("other", OTHER)
    cluster("afar", AFAR)
    cluster("six", IPV6)
    assert find_furl(("127.0.0.1", 10105)) == FURL
    assert find_furl(("localhost", 10107)) == OTHER
    assert find_furl(["10.0.0.7", 10105]) == AFAR  # type: ignore[arg-type]
    assert find_furl(("node7", 10105)) == AFAR
    assert find_furl(("::1", 10109)) == IPV6


def test_an_address_nobody_here_knows(root: Path) -> None:
    path = cluster("default", FURL)
    with pytest.raises(NoFURLFile) as caught:
        find_furl(("127.0.0.1", 9))
    assert "127.0.0.1:9" in str(caught.value)
    assert os.fspath(path) in str(caught.value)


def test_an_address_without_any_cluster(root: Path) -> None:
    with pytest.raises(NoFURLFile, match="default"):
        find_furl(("127.0.0.1", 10105))


def test_of_two_files_with_one_address_the_newer_counts(root: Path) -> None:
    stale = FURL.replace("secret", "stale")
    cluster("a", FURL, written=2000.0)
    cluster("b", stale, written=1000.0)
    assert find_furl(("127.0.0.1", 10105)) == FURL
    assert find_furl(("127.0.0.1", 10105), cluster="b") == stale


def test_other_clusters_files_may_be_broken(root: Path) -> None:
    cluster("default", FURL)
    cluster("broken", "pb://half")
    ClusterFiles("starting").create()
    assert find_furl(("127.0.0.1", 10105)) == FURL


def test_an_impossible_name(root: Path) -> None:
    with pytest.raises(ValueError, match="name of a cluster"):
        find_furl(cluster="../etc")


@pytest.mark.parametrize("timeout", [0, -1, "x", float("nan"), True, np.float64("inf")])
def test_the_timeout_is_checked_first(timeout):
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
        connect._open(None, "default", timeout)


@pytest.mark.parametrize("timeout", [np.int64(5), np.float32(0.5), Fraction(1, 2)])
def test_the_timeout_may_be_a_number_of_any_kind(root: Path, timeout: Any) -> None:
    with pytest.raises(NoFURLFile):
        connect._open(None, "default", timeout)
