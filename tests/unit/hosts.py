"""Clusters in memory on several hosts, told apart by what they call their shared memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.controller import blobs as routes
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire import blobs
from ipython1.kernel.wire.arena import Arena
from ipython1.kernel.wire.records import Chunk
from ipython1.kernel.wire.shared import SharedMemory

#: Bytes in a chunk here.
CHUNK = 20_000


class HostMemory(SharedMemory):
    """The shared memory of a host with a name.

    `full`: there is no room for more; `blind`: what is shared cannot be mapped.
    """

    def __init__(self, name: str) -> None:
        super().__init__(Arena())
        self.host = name  # type: ignore[misc]
        self.full = self.blind = False

    def take(self, place: str, size: int) -> memoryview | None:
        return None if self.blind else super().take(place, size)

    def draft(self, size: int) -> Any:
        draft = None if self.full else super().draft(size)
        if draft is not None:
            write = draft.write

            def checked(offset: int, data: Any) -> None:
                if self.full:
                    raise OSError(28, "No space left on device")
                write(offset, data)

            draft.write = checked  # type: ignore[method-assign]
        return draft


class Hosts(MemoryCluster):
    """A cluster whose engines are on hosts ``a``, ``b``, ... in turn, and its clients on none of them.

    Parameters
    ----------
    n : int
        Engines.
    hosts : int
    """

    def __init__(self, n: int, hosts: int) -> None:
        self._names = itertools.cycle("abcdef"[:hosts])
        self.memories: list[HostMemory] = []
        #: Bytes that came in chunks, by engine process.
        self.chunked: Counter[str] = Counter()
        super().__init__(n)

    def shared_memory(self) -> HostMemory:
        self.memories.append(HostMemory(next(self._names)))
        return self.memories[-1]

    def start_engine(self, wanted: int = -1, replaces: dict[str, str] | None = None) -> None:
        super().start_engine(wanted, replaces)
        engine = self.engines[-1]
        take = engine.service._handlers[Chunk]

        def counted(chunk: Chunk) -> None:
            self.chunked[engine.uuid] += len(chunk.data)
            take(chunk)

        engine.service._handlers[Chunk] = counted

    def memory(self, engine: int) -> HostMemory:
        """That of an engine."""
        found = self.engine(engine).service._shared
        assert isinstance(found, HostMemory)
        return found

    def carried(self) -> list[int]:
        """Bytes that came in chunks to each engine, and to any of them."""
        return [self.chunked[engine.uuid] for engine in sorted(self.engines, key=lambda e: e.service.id)]

    def everybody_knows(self) -> None:
        """All engines are there, and clients have heard of it."""
        count = len(self.engines)
        self.run_until(lambda: len(self.ready_ids()) == count)
        self.clock.advance(1.0)
        self.settle()
        self.run_until(lambda: len(self.ready_ids()) == count)

    def nothing_left(self) -> None:
        """Nothing is on its way, and nobody shares what has come."""
        assert self.controller is not None
        self.settle()
        assert len(self.controller.router.blobs) == 0
        for engine in self.engines:
            store = engine.service._blobs
            assert not store._incoming
            assert not store._carried


def disturb(cluster: MemoryCluster, mec: MultiEngineClient, what: str, *details: Any) -> None:
    """A step of a test with trouble: something is cut or killed, or time passes."""
    if what == "cut client":
        mec._core._dialer.cut()
    elif what == "cut engine":
        cluster.engine(*details).dialer.cut()
    elif what == "kill engine":
        count = len(cluster.engines)
        cluster.run_until(lambda: len(cluster.ready_ids()) == count)
        cluster.end_engine(cluster.engine(*details), "killed", restart=True)
    elif what == "kill controller":
        cluster.stop_controller()
        cluster.start_controller()
    elif what == "turn":
        for _ in range(*details):
            cluster.step()
    else:
        assert what == "wait"
        cluster.clock.advance(*details)


@contextmanager
def chunks(size: int = CHUNK, active: int = blobs.ACTIVE) -> Iterator[pytest.MonkeyPatch]:
    """Little is much here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "CHUNK_SIZE", size)
        patch.setattr(blobs, "WINDOW", 4 * size)
        patch.setattr(blobs, "ACTIVE", active)
        patch.setattr(routes, "SHARED_FROM", 2 * size)
        yield patch
