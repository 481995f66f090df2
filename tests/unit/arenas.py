"""What the tests of shared memory have in common; the fixtures are in `conftest`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ipython1.kernel.wire.arena import Arena, Segment
from ipython1.kernel.wire.segments import attach


def new_folder() -> Path:
    """A folder in shared memory, where the sizes of the tests are what they seem."""
    return Path(tempfile.mkdtemp(prefix="ipython1-test-", dir="/dev/shm"))


def put(arena: Arena, *data: Any) -> Segment:
    """Share some buffers, which must succeed."""
    segment = arena.put(data)
    assert segment is not None
    return segment


def get(segment: Segment, folder: Path) -> list[memoryview]:
    """What a receiver sees of a segment, which must be there."""
    views = attach(segment.name, segment.ranges, folder)
    assert views is not None
    return views
