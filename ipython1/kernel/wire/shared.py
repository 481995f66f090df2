"""Bulk bytes through the shared memory of a host, behind names that other hosts refuse.

A place is ``host:folder/file:offset``: which host's shared memory (a digest
of its token), which segment of its owner's arena, and where in it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.drafts import Draft, Segment
from ipython1.kernel.wire.segments import attach, host_token


class SharedMemory:
    """One process's way into the shared memory of its host. Thread-safe.

    Parameters
    ----------
    arena : Arena
        Where this process puts what it sends. It must not be used by a parent or child.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lock = threading.Lock()
        self._uses: Counter[str] = Counter()  # places not released yet, by segment

    @cached_property
    def host(self) -> str:
        """What those have in common who can share memory; empty where there is none."""
        token = host_token()
        return hashlib.sha256(token.encode()).hexdigest()[:16] if token is not None else ""

    @property
    def idle(self) -> bool:
        """Whether there is nothing that `trim` could ever give back."""
        return not self._arena.held and not self._arena.idle

    def put(self, buffers: Sequence[Any]) -> list[tuple[str, memoryview]] | None:
        """Copy `buffers`; returns their places, and views of the copies. None: there is no room."""
        if not self.host:
            return None
        return self._placed(self._arena.put(buffers))

    def draft(self, size: int) -> Draft | None:
        """Room for a buffer that arrives bit by bit. None: there is none."""
        return self._arena.draft(size) if self.host else None

    def publish(self, draft: Draft) -> tuple[str, memoryview] | None:
        """As `put`, of a draft that is full. None: its memory was lost."""
        placed = self._placed(draft.publish())
        return placed[0] if placed is not None else None

    def _placed(self, segment: Segment | None) -> list[tuple[str, memoryview]] | None:
        if segment is None:
            return None
        views = attach(segment.name, segment.ranges)
        if views is None:
            self._arena.release(segment.name)
            return None
        with self._lock:
            self._uses[segment.name] += len(views)
        places = [f"{self.host}:{segment.name}:{offset}" for offset, _ in segment.ranges]
        return list(zip(places, views, strict=True))

    def release(self, place: str) -> None:
        """Nobody needs to find `place` any more; its bytes live on where they were taken."""
        _, name, _ = place.split(":")
        with self._lock:
            self._uses[name] -= 1
            if self._uses[name] > 0:
                return
            del self._uses[name]
        self._arena.release(name)

    def take(self, place: str, size: int) -> memoryview | None:
        """The bytes at `place`, writable and private; None where they cannot be had here."""
        host, _, rest = place.partition(":")
        name, _, offset = rest.rpartition(":")
        if not self.host or host != self.host or not offset.isdecimal():
            return None
        views = attach(name, [(int(offset), size)])
        return views[0] if views is not None else None

    def trim(self, now: float) -> None:
        """Give back what lies idle; to be called about once a second."""
        self._arena.trim(now)

    def close(self) -> None:
        """Take all names away; who has taken bytes keeps them."""
        self._arena.close()
