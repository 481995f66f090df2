"""Fixtures that several modules of unit tests use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel.wire.arena import Arena
from tests.unit.arenas import new_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder in shared memory."""
    path = new_folder()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def notes() -> list[str]:
    """What `arena` has noted."""
    return []


@pytest.fixture
def arena(folder: Path, notes: list[str]) -> Iterator[Arena]:
    """An arena in `folder`, closed at the end."""
    made = Arena(folder, note=notes.append)
    yield made
    made.close()


@pytest.fixture
def inline() -> Iterator[None]:
    """For tests with ``%matplotlib inline``, which stays with the first shell of a process."""
    pytest.importorskip("matplotlib")
    from matplotlib_inline.backend_inline import configure_inline_support

    yield
    configure_inline_support.current_backend = "unset"
